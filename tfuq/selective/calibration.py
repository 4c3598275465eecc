"""Calibrations after training: temperature, vector and isotonic scaling."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from keras import ops

from tfuq._arguments import ArrayLike, check_flags, register, shown
from tfuq._predictions.probabilities import TOLERANCE
from tfuq.selective._calibration import Calibration
from tfuq.selective._one_against_rest import OneAgainstRest, numbers_in_a_row, warn_of_unseen
from tfuq.selective._scaling import (
    TEMPERATURES,
    fit_isotonic,
    fit_vector,
    interpolate,
    log_probabilities,
    temperature_of,
)
from tfuq.selective.base import numbers

__all__ = ["IsotonicCalibration", "TemperatureScaling", "VectorScaling"]


@register
class TemperatureScaling(Calibration):
    """Temperature scaling: divides the logits; labels stay, confidences change.

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
        fitted_to: What it was fitted to, a dict: the number of `examples` and a hash of the `rows`,
            by which a rule that is fitted to the same rows is refused.

    Raises:
        ValueError: If an argument is not as described.

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

    See also: `tfuq.selective.VectorScaling`, `tfuq.selective.IsotonicCalibration`,
    `tfuq.metrics.expected_calibration_error`.
    """

    _parameters = ("temperature",)

    def __init__(
        self,
        temperature: float | ArrayLike | None = None,
        *,
        rank: int | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
        average: str = "before",
        per_label: bool = False,
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(rank, from_logits, multi_label, average, fitted_to)
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
                    f"one for each label. Received: temperature={shown(temperature)}"
                )
            temperature = found.tolist()
        self.temperature = temperature

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "per_label": self.per_label}

    def _estimate(self, data):
        parts = data.columns() if self.per_label else [data]
        found = [temperature_of(part) for part in parts]
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
class VectorScaling(Calibration):
    """Vector scaling: a weight and a bias for each logit; Platt scaling for a single logit.

    Formula: softmax(w_k z_k + b_k), sigmoid(w z + b) of a binary prediction and of each label of a
    multi-label one, with the w and b of the least negative log-likelihood (Guo et al. 2017; Platt
    1999, without his smoothing of the targets). Here z_k = log p_k, at least log 2^-126, of logits
    also: a number added to all logits of an example changes none of its probabilities, and so
    nothing here, and a scaling that was fitted to single predictions suits stacks. Log odds are as
    in `TemperatureScaling`. The prediction can become another one, and with few examples of a class
    the fit is loose; a class without a label gets the mean weight and bias, with a warning.

    Args:
        scale: The weights w, one for each class or label, of a binary prediction one; None to be
            fitted. They are held below 1000 divided by the standard deviation of the logits, with a
            warning that classes are separable.
        bias: The biases b; fitted ones of several classes sum to 0, which changes no probability.
        rank: As in `TemperatureScaling`.
        from_logits: As there.
        multi_label: As there; each label is scaled by itself.
        average: As there. With `"after"`, the optimum next to no scaling is taken.
        fitted_to: As there.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import VectorScaling
    >>> probs, labels = np.repeat([0.1, 0.9], 4), [0, 0, 0, 1, 0, 1, 1, 1]
    >>> VectorScaling().fit(probs, labels)([0.1, 0.9]).round(3).tolist()
    [0.25, 0.75]

    References:
        - Guo et al., "On Calibration of Modern Neural Networks", 2017.
        - Platt, "Probabilistic Outputs for Support Vector Machines", 1999.

    See also: `tfuq.selective.TemperatureScaling`, `tfuq.selective.DirichletCalibration`.
    """

    _parameters = ("scale", "bias")

    def __init__(
        self,
        scale: Any = None,
        bias: Any = None,
        *,
        rank: int | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
        average: str = "before",
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(rank, from_logits, multi_label, average, fitted_to)
        if (scale is None) != (bias is None):
            raise ValueError(
                "Argument `bias` must be given with `scale`, or none of them. "
                f"Received: scale={shown(scale)}, bias={shown(bias)}"
            )
        if scale is not None:
            shapes = [numbers_in_a_row(n, v).shape for n, v in (("scale", scale), ("bias", bias))]
            if len(set(shapes)) > 1:
                raise ValueError(
                    "Argument `bias` must have as many numbers as `scale`. "
                    f"Received: scale={shown(scale)}, bias={shown(bias)}"
                )
            scale, bias = numbers("scale", scale).tolist(), numbers("bias", bias).tolist()
        self.scale = scale
        self.bias = bias

    def _estimate(self, data):
        warn_of_unseen(data)
        found = [fit_vector(*part.problem(), data.is_binary) for part in data.columns()]
        for label, (*_, is_finite) in enumerate(found):
            if not is_finite:
                of = f" of label {label}" if len(found) > 1 else ""
                warnings.warn(
                    f"The predictions{of} separate the classes without an error, so that the "
                    "weights, and with them the confidence, grow to their limit.",
                    stacklevel=3,
                )
        self.scale, self.bias = (
            np.concatenate(p).tolist() for p in list(zip(*found, strict=True))[:2]
        )

    def _num_columns(self):
        return len(self.scale)

    def _samples(self, probs, is_stack):
        logits = super()._samples(probs, is_stack)
        binary = self._is_binary(len(probs.shape), probs.shape[-1])
        return logits if binary else log_probabilities(logits)

    def _scale(self, values):
        scale, bias = (ops.convert_to_tensor(p, "float32") for p in (self.scale, self.bias))
        return values * scale + bias


@register
class IsotonicCalibration(OneAgainstRest):
    """Isotonic calibration: maps each class probability by a rising curve and renormalizes.

    Formula: of each class against the rest, the non-decreasing function of its probability of the
    least squared error (pool adjacent violators; equal probabilities count as one example of their
    mean), linear between its knots and constant outside; then divided by the sum over the classes,
    uniform where that is 0 (Zadrozny and Elkan 2002). A binary prediction, and each label of a
    multi-label one, has one curve. Calibrated predictions are probabilities, those of logits also.
    The prediction can become another one; fewer than about 1000 examples are better served by
    `TemperatureScaling`. A class without a label keeps its probability, with a warning.

    Args:
        knots: For each class or label, of a binary prediction for one, the probabilities where its
            curve bends, ascending; None to be fitted.
        heights: For each, the calibrated probabilities there.
        rank: As in `TemperatureScaling`.
        from_logits: Whether predictions are logits, which become probabilities first.
        multi_label: As there.
        average: As there. With `"after"`, the curves are fitted to all samples as examples of their
            own, not to their average.
        fitted_to: As there.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from tfuq.selective import IsotonicCalibration
    >>> probs, labels = [0.1, 0.2, 0.3, 0.6, 0.8, 0.9], [0, 1, 0, 1, 1, 1]
    >>> IsotonicCalibration().fit(probs, labels)([0.0, 0.25, 0.45, 1.0]).round(3).tolist()
    [0.0, 0.5, 0.75, 1.0]

    References:
        - Zadrozny and Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability
          Estimates", 2002.

    See also: `tfuq.selective.TemperatureScaling`, `tfuq.selective.BetaCalibration`,
    `tfuq.selective.VennAbersCalibration`.
    """

    _parameters = ("knots", "heights")
    _unseen = (np.array([0.0, 1.0]),) * 2  # a curve that leaves probabilities as they are

    def __init__(
        self,
        knots: Any = None,
        heights: Any = None,
        *,
        rank: int | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
        average: str = "before",
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(rank, from_logits, multi_label, average, fitted_to)
        if (knots is None) != (heights is None):
            raise ValueError(
                "Argument `heights` must be given with `knots`, or none of them. "
                f"Received: knots={shown(knots)}, heights={shown(heights)}"
            )
        if knots is not None:
            knots, heights = _check_curves(knots, heights)
        self.knots = knots
        self.heights = heights

    _curve = staticmethod(fit_isotonic)

    def _map(self, rows):
        return interpolate(rows, self.knots, self.heights)


def _all_in(values, lower, upper):
    return bool(np.all((values >= lower) & (values <= upper)))


def _check_curves(knots, heights):
    """Knots and heights as lists of lists, or a ValueError."""
    is_nested = all(isinstance(rows, (list, tuple)) and len(rows) for rows in (knots, heights))
    if not is_nested or len(knots) != len(heights):
        raise ValueError(
            "Argument `heights` must be a list of a curve for each of the curves of `knots`. "
            f"Received: knots={shown(knots)}, heights={shown(heights)}"
        )
    curves = []
    for x, y in zip(knots, heights, strict=True):
        x, y = numbers_in_a_row("knots", x), numbers_in_a_row("heights", y)
        if x.shape != y.shape or np.any(np.diff(x) <= 0) or np.any(np.diff(y) < 0):
            raise ValueError(
                "Arguments `knots` and `heights` must be curves of as many knots as heights, that "
                f"ascend. Received: {x.tolist()}, {y.tolist()}"
            )
        for name, values in (("knots", x), ("heights", y)):
            if not _all_in(values, -TOLERANCE, 1 + TOLERANCE):
                raise ValueError(
                    f"Argument `{name}` must hold numbers in [0, 1]. Received: {values.tolist()}"
                )
        curves.append((x, y))
    return _transposed(curves)


def _transposed(curves):
    """Lists of all knots and of all heights, from pairs of arrays."""
    return ([part.tolist() for part in parts] for parts in zip(*curves, strict=True))
