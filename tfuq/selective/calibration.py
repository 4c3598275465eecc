"""Calibration after training: probabilities that are right as often as they say."""

import warnings

import numpy as np
from keras import ops

from tfuq._arguments import check_choice, check_flags, check_integer, register, to_float64
from tfuq._models.predicting import predicted
from tfuq._predictions.labelled import judge
from tfuq.layers import PostProcessing
from tfuq.selective._scaling import (
    TEMPERATURES,
    Entries,
    bounded,
    fit_isotonic,
    fit_temperature,
    fit_vector,
    interpolate,
    log_probabilities,
    to_logits,
    to_probs,
)
from tfuq.selective.base import Fitted, numbers, plain, with_outputs

__all__ = ["IsotonicCalibration", "TemperatureScaling", "VectorScaling"]

_TOLERANCE = 5e-3  # that of `tfuq._predictions.examples`


class _Calibration(Fitted):
    """Base of what maps predictions to calibrated ones.

    A child says on what it works (`_on_logits`), its parameters (`_parameters`, all None until it
    is fitted), `_estimate(data)` and `_scale(values)`.
    """

    _on_logits = True
    _parameters = ()

    def __init__(self, rank, from_logits, multi_label, average):
        if rank is not None:
            check_integer("rank", rank, 1)
        check_flags(from_logits=from_logits, multi_label=multi_label)
        check_choice("average", average, ("before", "after"))
        self.rank = rank
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.average = average

    def get_config(self):
        names = (*self._parameters, "rank", "from_logits", "multi_label", "average")
        return plain({name: getattr(self, name) for name in names})

    def _estimate(self, data):
        """Sets the parameters."""
        raise NotImplementedError

    def _scale(self, values):
        """Calibrated `values`, a tensor `(samples, n, ..., classes)` of logits or probabilities."""
        raise NotImplementedError

    def _num_columns(self):
        """How long the last axis must be; None for any."""
        return None

    # --- Fitting ------------------------------------------------------------------------------

    def fit(self, probs, labels, sample_weight=None):
        """Fits to labelled predictions, and forgets what was fitted before.

        Args:
            probs: Predictions for data that the model has not been trained on, logits with
                `from_logits=True`: `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`; multi-label
                `(n, ..., labels)`; or a stack of them, `(samples, n, ..., classes)`.
            labels: Labels, sparse `(n, ...)` or one-hot.
            sample_weight: Weights with one or more of the leading axes of the labels.

        Returns:
            This object.

        Raises:
            ValueError: If arrays are empty or do not fit together, hold NaN, no probabilities or
                labels that are no class, or lack a class that has parameters of its own.
        """
        data, rank = self._read(probs, labels, sample_weight)
        self._estimate(data)
        self.rank = rank
        return self

    @classmethod
    def fit_model(cls, model, data, *, output=None, batch_size=32, verbose=0, **options):
        """A new object, fitted to what a model predicts for `data`, in one pass over it.

        Args:
            model: A Keras model.
            data: `(x, y)` or `(x, y, sample_weight)` arrays, a `tf.data.Dataset` of such batches,
                or a `PyDataset`; not what the model was trained on.
            output: Which output, if there are several: an index, a key or a function.
            batch_size: Examples in a batch of arrays.
            verbose: As in Keras' `predict`.
            **options: Arguments of the constructor. `from_logits` is by default what the compiled
                loss says.

        Returns:
            The fitted object.

        Raises:
            ValueError: As `fit`; if the data are of another kind or have no labels.
        """
        found = predicted(model, data, output, batch_size, verbose, takes_weights=True)
        fresh = cls(**{"from_logits": found.from_logits, **options})
        return fresh.fit(found.probs, found.labels, found.weight)

    def _read(self, probs, labels, sample_weight):
        """`Entries`, and how many axes single predictions have."""
        flags = {"from_logits": self.from_logits, "multi_label": self.multi_label}
        judged = judge(probs, labels, sample_weight, **flags)
        values, is_stack = to_float64("probs", probs), judged.stack is not None
        rank, is_binary = values.ndim - is_stack, judged.examples.columns is not None
        # Heights are looked up in float32 later, so knots must be the same numbers.
        dtype = "float64" if self._on_logits else "float32"
        tensor = ops.convert_to_tensor(values, dtype)
        values = ops.convert_to_numpy(self._samples(tensor, is_stack))
        shape = (len(values), -1) if is_binary else (len(values), -1, values.shape[-1])
        labels, weight = (np.asarray(part) for part in judged.examples[1:3])
        num_columns = judged.examples.columns or 1
        column = np.arange(len(labels)) % num_columns
        data = Entries(values.reshape(shape), labels, weight, column, num_columns, is_binary)
        return data.rows(weight > 0), rank

    # --- Use ----------------------------------------------------------------------------------

    def transform(self, probs):
        """Calibrated predictions, arrays for arrays and tensors for tensors, in float32.

        Args:
            probs: Predictions, or a stack of them, of the kind that was fitted to.

        Returns:
            Predictions `(n, ..., classes)`; those of a stack are one average.

        Raises:
            ValueError: If nothing has been fitted, or shapes do not fit; of arrays, if they hold
                NaN or no probabilities.
        """
        if any(getattr(self, name) is None for name in self._parameters):
            raise ValueError(
                f"{type(self).__name__} must be fitted before it is used: call `fit` or "
                f"`fit_model`. Received: {self!r}"
            )
        is_array = not ops.is_tensor(probs)
        probs = self._checked(probs) if is_array else probs
        probs = ops.cast(probs, "float32")
        is_stack = self._is_stack(probs.shape)
        scaled = self._scale(self._samples(probs, is_stack))
        found = self._joined(scaled, is_stack and self.average == "after")
        return ops.convert_to_numpy(found) if is_array else found

    __call__ = transform

    def append_to(self, model, output=None):
        """A functional model of the same inputs whose output is calibrated; weights are shared.

        Args:
            model: A functional or `Sequential` model, or a subclassed one called in such.
            output: Which of several outputs: an index, a key or a function.
        """
        return with_outputs(model, PostProcessing(self, name="calibration"), output)

    def _checked(self, probs):
        probs = to_float64("probs", probs)
        if np.any(np.isnan(probs)):
            raise ValueError(
                f"Argument `probs` must hold no NaN. Received: {np.isnan(probs).sum()} such"
            )
        outside = probs == np.inf
        if not self.from_logits:
            outside = (probs < -_TOLERANCE) | (probs > 1 + _TOLERANCE)
        if np.any(outside):
            raise ValueError(
                "Argument `probs` must hold probabilities in [0, 1], or finite logits with "
                f"from_logits=True. Received: probs={probs[outside][0]} ({outside.sum()} such)"
            )
        return probs

    def _is_stack(self, shape):
        """Whether predictions of `shape` are a stack; ValueError if they are neither."""
        axes, width = len(shape), shape[-1] if len(shape) > 1 else 1
        known = (axes,) if self.rank is None else (self.rank, self.rank + 1)
        if self.rank == 1:  # what was (n,) may come as (n, 1), and as a stack of these
            known = (1, 2, 3) if width == 1 else (1,)
        columns = self._num_columns()
        if axes not in known or axes == 0 or columns not in (None, width):
            last = "" if columns is None else f", the last of length {columns}"
            raise ValueError(
                f"Argument `probs` must have {self.rank or 'one or more'} axes{last}; one more if "
                f"they are a stack of samples. Received: probs of shape {tuple(shape)}"
            )
        return self.rank is not None and axes > max(self.rank, 2)

    def _is_binary(self, axes, width):
        return self.multi_label or axes == 1 or width == 1

    def _samples(self, probs, is_stack):
        """What is scaled, `(samples, n, ..., classes)`; one sample if averages are."""
        is_binary = self._is_binary(len(probs.shape), probs.shape[-1])
        stack = probs if is_stack else probs[None]
        pool = is_stack and self.average == "before"
        if self._on_logits and not pool:
            return bounded(stack) if self.from_logits else to_logits(stack, is_binary)
        stack = to_probs(stack, is_binary) if self.from_logits else stack
        stack = ops.mean(stack, axis=0, keepdims=True) if pool else stack
        return to_logits(stack, is_binary) if self._on_logits else stack

    def _joined(self, scaled, is_stack):
        """The answer: one of the kind of the inputs, of scaled logits `(samples, n, ...)`."""
        is_binary = self._is_binary(len(scaled.shape) - 1, scaled.shape[-1])
        if self.from_logits and not is_stack:
            return scaled[0]
        probs = ops.mean(to_probs(scaled, is_binary), axis=0)
        return to_logits(probs, is_binary) if self.from_logits else probs


@register
class TemperatureScaling(_Calibration):
    """Divides logits by a temperature: the class that is predicted stays, its confidence changes.

    Formula: softmax(z / T), sigmoid(z / T) of binary and multi-label predictions, with the T of the
    least negative log-likelihood (Guo et al. 2017). Of probabilities, z is their logarithm or log
    odds; it is that of 2^-126 (about 1e-38) for smaller ones and, for binary ones near 1, that of
    1 - 2^-25.

    Stacks of samples, such as those of an ensemble: an average of well calibrated members is not
    confident enough, so that to average first and scale the average is better calibrated (Rahaman
    and Thiery 2021), and the default. To scale each sample first keeps what the samples say of
    their disagreement in the same units. Whichever it is, T is fitted to the predictions as they
    are made.

    Args:
        temperature: T in [0.001, 1000], or one for each label with `per_label`; None to be fitted.
            The limits are reached, with a warning, by predictions that are all right or no better
            than chance.
        rank: Axes of a single prediction: 2 for `(n, classes)`, 1 for binary `(n,)`, 4 for images
            of pixels. An array with one axis more is a stack. Learned by `fit`; None takes each
            array for single predictions.
        from_logits: Whether predictions are logits. Calibrated predictions are of the same kind, so
            that losses with `from_logits=True` still fit.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        average: Of stacks: `"before"`, the average of the probabilities is scaled; `"after"`, each
            sample is scaled, and the probabilities averaged.
        per_label: With `multi_label`: whether each label has a temperature of its own.

    Raises:
        ValueError: If an argument is none of those said.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import TemperatureScaling
    >>> probs, labels = np.tile([[0.9, 0.1]], (4, 1)), [0, 0, 0, 1]  # sure of 90 %, right in 75 %
    >>> scaling = TemperatureScaling().fit(probs, labels)
    >>> round(scaling.temperature, 6), scaling([[0.9, 0.1]]).round(3).tolist()
    (2.0, [[0.75, 0.25]])

    ```python
    import keras, numpy as np
    from tfuq.selective import TemperatureScaling

    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = (x + rng.normal(size=(60, 2))).argmax(-1)
    scaling = TemperatureScaling.fit_model(model, (x, y))
    calibrated = scaling.append_to(model)
    ```

    References:
        - Guo et al., "On Calibration of Modern Neural Networks", 2017.
        - Rahaman and Thiery, "Uncertainty Quantification and Deep Ensembles", 2021.
    """

    _parameters = ("temperature",)

    def __init__(
        self,
        temperature=None,
        *,
        rank=None,
        from_logits=False,
        multi_label=False,
        average="before",
        per_label=False,
    ):
        super().__init__(rank, from_logits, multi_label, average)
        check_flags(per_label=per_label)
        if per_label and not multi_label:
            raise ValueError(
                "Argument `per_label` must be False without multi_label=True. "
                "Received: per_label=True"
            )
        self.per_label = per_label
        if temperature is not None:
            found = numbers("temperature", temperature)
            if found.ndim != per_label or found.size == 0 or not _all_in(found, *TEMPERATURES):
                raise ValueError(
                    "Argument `temperature` must be a number in [0.001, 1000] or, with per_label, "
                    f"one for each label. Received: temperature={temperature!r}"
                )
            temperature = found.tolist()
        self.temperature = temperature

    def get_config(self):
        return {**super().get_config(), "per_label": self.per_label}

    def _estimate(self, data):
        parts = data.columns() if self.per_label else [data]
        found = [fit_temperature(*part.problem()) for part in parts]
        for label, temperature in enumerate(found):
            if temperature in TEMPERATURES:
                of = f" of label {label}" if self.per_label else ""
                why = "all right" if temperature < 1 else "no better than chance"
                warnings.warn(
                    f"The temperature{of} stopped at its limit {temperature:g}, because the "
                    f"predictions of the {len(parts[label].labels)} entries are {why}.",
                    stacklevel=3,
                )
        self.temperature = found if self.per_label else found[0]

    def _num_columns(self):
        return len(self.temperature) if self.per_label else None

    def _scale(self, values):
        return values / ops.convert_to_tensor(self.temperature, "float32")


@register
class VectorScaling(_Calibration):
    """Gives the logit of each class a weight and a bias; Platt scaling where there is one logit.

    Formula: softmax(w_k z_k + b_k), sigmoid(w z + b) of a binary prediction and of each label of a
    multi-label one, with the w and b of the least negative log-likelihood (Guo et al. 2017; Platt
    1999, without his smoothing of the targets). Here z_k = log p_k, at least log 2^-126, of logits
    also: a number added to all logits of an example changes none of its probabilities, and so
    nothing here, and a scaling that was fitted to single predictions suits stacks. Log odds are as
    in `TemperatureScaling`. The prediction can become another one, and with few examples of a class
    the fit is loose.

    Args:
        scale: The weights w, one for each class or label, of a binary prediction one; None to be
            fitted. They are held below 1000 divided by the standard deviation of the logits, with a
            warning that classes are separable.
        bias: The biases b; fitted ones of several classes sum to 0, which changes no probability.
        rank: As in `TemperatureScaling`.
        from_logits: As there.
        multi_label: As there; each label is scaled by itself.
        average: As there. With `"after"`, the optimum next to no scaling is taken.

    Raises:
        ValueError: If an argument is none of those said.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import VectorScaling
    >>> probs, labels = np.repeat([0.1, 0.9], 4), [0, 0, 0, 1, 0, 1, 1, 1]
    >>> VectorScaling().fit(probs, labels)([0.1, 0.9]).round(3).tolist()
    [0.25, 0.75]

    References:
        - Guo et al., "On Calibration of Modern Neural Networks", 2017.
        - Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """

    _parameters = ("scale", "bias")

    def __init__(
        self,
        scale=None,
        bias=None,
        *,
        rank=None,
        from_logits=False,
        multi_label=False,
        average="before",
    ):
        super().__init__(rank, from_logits, multi_label, average)
        if (scale is None) != (bias is None):
            raise ValueError(
                "Argument `bias` must be given with `scale`, or none of them. "
                f"Received: scale={scale!r}, bias={bias!r}"
            )
        if scale is not None:
            shapes = [_numbers_in_a_row(n, v).shape for n, v in (("scale", scale), ("bias", bias))]
            if len(set(shapes)) > 1:
                raise ValueError(
                    "Argument `bias` must have as many numbers as `scale`. "
                    f"Received: scale={scale!r}, bias={bias!r}"
                )
            scale, bias = numbers("scale", scale).tolist(), numbers("bias", bias).tolist()
        self.scale = scale
        self.bias = bias

    def _estimate(self, data):
        data.check_all_seen()
        found = [fit_vector(*part.problem(), data.is_binary) for part in data.columns()]
        for label, (*_, is_finite) in enumerate(found):
            if not is_finite:
                of = f" of label {label}" if len(found) > 1 else ""
                warnings.warn(
                    f"The predictions{of} tell classes apart without an error: the weights grow as "
                    "far as they are let, and so does the confidence.",
                    stacklevel=3,
                )
        self.scale, self.bias = (
            np.concatenate(p).tolist() for p in list(zip(*found, strict=True))[:2]
        )

    def _num_columns(self):
        return len(self.scale)

    def _samples(self, probs, is_stack):
        logits = super()._samples(probs, is_stack)
        is_binary = self._is_binary(len(probs.shape), probs.shape[-1])
        return logits if is_binary else log_probabilities(logits)

    def _scale(self, values):
        scale, bias = (ops.convert_to_tensor(p, "float32") for p in (self.scale, self.bias))
        return values * scale + bias


@register
class IsotonicCalibration(_Calibration):
    """Maps the probability of each class by a rising curve, and brings their sum back to 1.

    Formula: of each class against the rest, the non-decreasing function of its probability of the
    least squared error (pool adjacent violators; equal probabilities count as one example of their
    mean), linear between its knots and constant outside; then divided by the sum over the classes,
    uniform where that is 0 (Zadrozny and Elkan 2002). A binary prediction, and each label of a
    multi-label one, has one curve. Calibrated predictions are probabilities, those of logits also.
    The prediction can become another one; fewer than about 1000 examples are better served by
    `TemperatureScaling`.

    Args:
        knots: For each class or label, of a binary prediction for one, the probabilities where its
            curve bends, ascending; None to be fitted.
        heights: For each, the calibrated probabilities there.
        rank: As in `TemperatureScaling`.
        from_logits: Whether predictions are logits, which become probabilities first.
        multi_label: As there.
        average: As there. With `"after"`, the curves are fitted to all samples as examples of their
            own, not to their average.

    Raises:
        ValueError: If an argument is none of those said.

    Example:

    >>> from tfuq.selective import IsotonicCalibration
    >>> probs, labels = [0.1, 0.2, 0.3, 0.6, 0.8, 0.9], [0, 1, 0, 1, 1, 1]
    >>> IsotonicCalibration().fit(probs, labels)([0.0, 0.25, 0.45, 1.0]).round(3).tolist()
    [0.0, 0.5, 0.75, 1.0]

    References:
        - Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability
          Estimates", 2002.
    """

    _on_logits = False
    _parameters = ("knots", "heights")

    def __init__(
        self,
        knots=None,
        heights=None,
        *,
        rank=None,
        from_logits=False,
        multi_label=False,
        average="before",
    ):
        super().__init__(rank, from_logits, multi_label, average)
        if (knots is None) != (heights is None):
            raise ValueError(
                "Argument `heights` must be given with `knots`, or none of them. "
                f"Received: knots={knots!r}, heights={heights!r}"
            )
        if knots is not None:
            knots, heights = _check_curves(knots, heights)
        self.knots = knots
        self.heights = heights

    def _estimate(self, data):
        data.check_all_seen()
        curves = []
        for part in data.columns():
            values = part.values[..., None] if data.is_binary else part.values
            weight = np.tile(part.weight, len(values))
            labels = np.tile(part.labels, len(values))
            for k in range(values.shape[-1]):
                targets = labels == (1 if data.is_binary else k)
                curves.append(fit_isotonic(values[..., k].ravel(), targets, weight))
        self.knots, self.heights = (
            [p.tolist() for p in parts] for parts in zip(*curves, strict=True)
        )

    def _num_columns(self):
        return len(self.knots)

    def _scale(self, values):
        rows = ops.reshape(values, (-1, len(self.knots)))
        found = interpolate(rows, self.knots, self.heights)
        if not self.multi_label and len(self.knots) > 1:
            total = ops.sum(found, axis=-1, keepdims=True)
            shared = ops.where(total > 0, total, 1)
            found = ops.where(ops.equal(total, 0), 1 / len(self.knots), found / shared)
        return ops.reshape(found, ops.shape(values))

    def _joined(self, scaled, is_stack):
        return ops.mean(scaled, axis=0)


def _all_in(values, lower, upper):
    return bool(np.all((values >= lower) & (values <= upper)))


def _numbers_in_a_row(name, value):
    """The argument `name` as an array `(n,)` of one or more finite numbers."""
    found = numbers(name, value)
    if found.ndim != 1 or found.size == 0 or not np.all(np.isfinite(found)):
        raise ValueError(
            f"Argument `{name}` must be a list of finite numbers. Received: {name}={value!r}"
        )
    return found


def _check_curves(knots, heights):
    """Knots and heights as lists of lists, or a ValueError."""
    is_nested = all(isinstance(rows, (list, tuple)) and len(rows) for rows in (knots, heights))
    if not is_nested or len(knots) != len(heights):
        raise ValueError(
            "Argument `heights` must be a list of a curve for each of the curves of `knots`. "
            f"Received: knots={knots!r}, heights={heights!r}"
        )
    curves = []
    for x, y in zip(knots, heights, strict=True):
        x, y = _numbers_in_a_row("knots", x), _numbers_in_a_row("heights", y)
        if x.shape != y.shape or np.any(np.diff(x) <= 0) or np.any(np.diff(y) < 0):
            raise ValueError(
                "Arguments `knots` and `heights` must be curves of as many knots as heights, that "
                f"ascend. Received: {x.tolist()}, {y.tolist()}"
            )
        for name, values in (("knots", x), ("heights", y)):
            if not _all_in(values, -_TOLERANCE, 1 + _TOLERANCE):
                raise ValueError(
                    f"Argument `{name}` must hold numbers in [0, 1]. Received: {values.tolist()}"
                )
        curves.append((x, y))
    return _transposed(curves)


def _transposed(curves):
    """Lists of all knots and of all heights, from pairs of arrays."""
    return ([part.tolist() for part in parts] for parts in zip(*curves, strict=True))
