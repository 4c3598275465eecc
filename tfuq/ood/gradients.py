"""Gradients of a trained network as a measure of how little it knows an input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    check_choice,
    check_flags,
    check_integer,
    shown,
    told,
)
from tfuq._models.batches import batches
from tfuq._models.gradients import FLOAT16_SCALE
from tfuq._models.meaning import Reading
from tfuq._models.numbers import number_reading
from tfuq._models.outputs import select_output
from tfuq.ensembles import DeepEnsemble
from tfuq.ood._norm_layers import (
    absolute_by_filter,
    of_absolute,
    of_square,
    square_by_filter,
    width_of,
)
from tfuq.ood._norm_models import find_units, gradient_norms

MEASURES = {  # by norm, and whether each filter is a feature
    ("squared_l2", False): of_square,
    ("squared_l2", True): square_by_filter,
    ("l1", False): of_absolute,
    ("l1", True): absolute_by_filter,
}


def binary_crossentropy(label, logits):
    """-(y log p + (1 - y) log(1 - p)) of each class, with p = sigmoid(logits)."""
    return tf.nn.sigmoid_cross_entropy_with_logits(label, logits)


def categorical_crossentropy(label, logits):
    """-sum_c y_c log p_c, with p = softmax(logits)."""
    return -tf.reduce_sum(label * tf.nn.log_softmax(logits), axis=-1)


LOSSES = {
    "binary_crossentropy": binary_crossentropy,
    "categorical_crossentropy": categorical_crossentropy,
}


@told
class GradientFeatures:
    """Squared norms of each example's gradients under a label that confounds the model.

    A label that no training example had (all classes at once, or none) asks the weights to change.
    The size of that change at each layer says more than the loss. Unknown inputs may have larger or
    smaller norms: larger for digits against other characters in the paper, smaller for most weights
    on natural images, where a confident prediction contradicts the label most. `GradientDetector`
    learns which is which from these features, `GradientDensity` looks in both directions.

    Each kernel and each bias gives one feature, or with `per_filter` one per filter. The model runs
    in inference mode: no dropout, batch statistics frozen; regularization and losses that layers
    add do not count. It has to treat examples independently, as models do in inference. Layers with
    random weights and `MCDropout` run as in `predict`.

    All examples of a batch take one forward and one backward pass. Norms of dense, convolutional,
    normalization and embedding layers, shared ones, too, come from what the layer takes and the
    gradient of what it gives. Other layers run once more, for all examples side by side or, if they
    hold loops, in turn, which takes longer. The first batch of each shape is slow, because it is
    traced. Beside what the passes need, about 32 MB hold what is computed at a time, or what one
    example needs.

    Formula:

    ```
    feature_k(x) = | d J(f(x), y) / d w_k |^2,   k = 1 ... number of weights and biases
    J = -1/C sum_c [y_c log p_c + (1 - y_c) log(1 - p_c)],   p = sigmoid(f(x))
    ```

    Paper 003, equation 2 (Lee and AlRegib 2020), printed there without the minus sign; y is the
    confounding label, f(x) are the logits. For outputs `(batch, ..., C)` J is the mean over all
    axes but the batch.

    Args:
        model: Built Keras model of any style, or a `DeepEnsemble`, the columns of whose members
            stand side by side. Its output holds logits, or the result of a Keras
            soft-max or sigmoid, before which the logits are taken. A regression needs a
            function as `loss`, and a vector as label.
        confounding_label: `"all"`: ones for all classes; `"none"`: zeros; or a vector of a number
            in [0, 1] for each class. For a regression the y that all examples are given,
            `(units,)`, such as one that none of them has.
        loss: `"binary_crossentropy"`, `"categorical_crossentropy"` (-sum_c y_c log p_c of the
            soft-max), or a function of label and logits, both `(batch, ..., C)`, that returns a
            tensor `(batch, ...)`, of which each example's mean is taken. For a regression a
            function of y and the outputs, as `head.negative_log_likelihood(reduction="none")`.
        layers: List of layers, or their names, at any depth, whose weights are wanted; all by
            default. A model inside the model stands for all that it holds.
        output: Which output, when the model has several: an index, a key, a field of a named
            tuple, or a function of the outputs.
        from_logits: Whether the output holds logits. By default what the last layer declares, else
            what the compiled loss says.
        norm: `"squared_l2"`, or `"l1"`: sums of absolute values.
        per_filter: Whether each filter or unit (the last axis of a weight) is a feature of its own.
        with_loss: Whether J itself is the last column.
        batch_size: Examples at a time, for arrays; datasets have their own.
        verbose: 1 shows a progress bar.

    L1 norms and norms of filters need the gradient of each example, and take longer than squared
    norms of whole weights.

    Call arguments:
        x: Inputs: an array (or what the model takes), `(x, y)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches of inputs or of pairs. Labels are ignored.

    Returns:
        Array `(examples, features)`, float32, at least 0. A weight that the output does not depend
        on has 0; one whose gradient is 0 in exact arithmetic (the bias of an attention's keys) has
        what rounding left, some 1e-14 of the others. The columns are in the order of
        `model.trainable_variables` when the object was made; `names` holds the paths.

    Warns:
        UserWarning: If the label is one class and no other: an ordinary label that confounds
            nothing.

    Raises:
        ValueError: If an argument is not as described, the model is not built or has no trainable
            weights among `layers`. When called: if the data are empty, or give gradients that are
            not finite; if the label has not as many numbers as there are classes; if the output
            holds probabilities whose logits are not known.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import GradientFeatures

    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, "softmax")]
    )
    features = GradientFeatures(model, confounding_label="all")
    print(features(np.random.rand(5, 8)).shape)  # (5, 4)
    print(features.names)  # kernel and bias of both layers
    ```

    References:
        - Lee and AlRegib, "Gradients as a Measure of Uncertainty in Neural Networks", ICIP 2020.

    See also: `tfuq.ood.GradientDetector`, `tfuq.ood.GradientDensity`,
    `tfuq.plots.gradient_distributions`.
    """

    def __init__(
        self,
        model: ModelLike | Callable[..., Any],
        confounding_label: str | ArrayLike = "all",
        loss: Any = "binary_crossentropy",
        layers: Sequence[str | keras.layers.Layer] | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
        norm: str = "squared_l2",
        per_filter: bool = False,
        with_loss: bool = False,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> None:
        is_ensemble = isinstance(model, DeepEnsemble)
        if not is_ensemble and (not isinstance(model, keras.Model) or not model.built):
            raise ValueError(
                "Argument `model` must be a Keras model that is built: call it on a batch, or give "
                f"it an `Input`; or a DeepEnsemble. Received: model={shown(model)}"
            )
        if not callable(loss):
            check_choice("loss", loss, tuple(LOSSES))
        check_choice("norm", norm, ("squared_l2", "l1"))
        check_flags(per_filter=per_filter, with_loss=with_loss)
        check_integer("batch_size", batch_size, 1)
        self.model = model
        self.confounding_label = confounding_label
        self.loss = loss
        self.layers = layers
        self.output = output
        self.from_logits = from_logits
        self.norm = norm
        self.per_filter = per_filter
        self.with_loss = with_loss
        self.batch_size = batch_size
        self.verbose = verbose
        self._measure = MEASURES[norm, bool(per_filter)]
        self._label = _label(confounding_label, loss)
        self._members = self._of_members() if is_ensemble else ()
        self._variables = [] if is_ensemble else _variables(model, layers)
        self._units = None
        self._is_logits = self._family = None
        self._has_warned = False
        self._sizes = []  # of batches that are traced
        self._norms = tf.function(self._traced_norms, autograph=False)

    def _of_members(self):
        """One such object for each member of an ensemble."""
        names = ("confounding_label", "loss", "layers", "output", "from_logits", "norm")
        names += ("per_filter", "with_loss", "batch_size", "verbose")
        options = {name: getattr(self, name) for name in names}
        return [GradientFeatures(member, **options) for member in self.model.members]

    @property
    def names(self) -> list[str]:
        """Paths of the weights that the columns belong to, with the number of the filter."""
        if self._members:
            parts = enumerate(part.names for part in self._members)
            return [f"member {i}: {name}" for i, names in parts for name in names]
        names = [variable.path for variable in self._variables]
        if self.per_filter:
            widths = [(v.path, width_of(v, self._measure)) for v in self._variables]
            names = [f"{path}[{i}]" for path, width in widths for i in range(width)]
        return [*names, "loss"] if self.with_loss else names

    def __call__(self, x: Data) -> np.ndarray:
        if self._members:
            return np.concatenate([part(x) for part in self._members], axis=1)
        norms = [
            self._of_batch(batch).numpy()
            for batch, *_ in batches(x, self.batch_size, self.verbose, model=self.model)
        ]
        features = np.concatenate(norms)
        is_finite = np.isfinite(features).all(axis=1)
        if not is_finite.all():
            raise ValueError(
                "Argument `x` must give finite gradients. Received: NaN or infinity for "
                f"{np.count_nonzero(~is_finite)} examples, the first of which is number "
                f"{np.argmin(is_finite)}"
            )
        return features

    def _of_batch(self, batch):
        if self._is_logits is None:
            self._is_logits = self._find_meaning(batch)
        if self._units is None:
            units = find_units(self.model, self._variables, batch, self._losses)
            if self._measure is not of_square:  # rules know no other
                units = [unit._replace(rule=None) for unit in units]
            self._units = units
        count = tf.nest.flatten(batch)[0].shape[0]
        size = self._traced_size(count)
        rows = tf.minimum(tf.range(size), count - 1)
        if size > count:
            batch = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), batch)
        return self._norms(batch)[:count]

    def _find_meaning(self, batch):
        """Whether the output holds logits, or numbers; traced, so that the model stays as it is."""
        reading, found = Reading(self.output, self.from_logits, None), []

        @tf.function(autograph=False)
        def find(batch):
            numbers = number_reading(self.model, reading, None, batch)
            found.append(reading.known(self.model, batch) if numbers is None else numbers)

        find.get_concrete_function(batch)
        self._family = getattr(found[0], "family", None)
        if self._family is None:
            if np.any((self._label < 0) | (self._label > 1)):
                raise _label_error(self.confounding_label)
            return found[0].from_logits
        if not callable(self.loss) or not self._label.ndim:
            raise ValueError(
                "Arguments `loss` and `confounding_label` must be a function of y and the outputs, "
                "and a vector, the y that all examples are given, for a regression: its head's "
                "`negative_log_likelihood(reduction='none')`, say. Received: "
                f"loss={shown(self.loss)}, confounding_label={shown(self.confounding_label)} "
                f"with numbers of {shown(self._family)}"
            )
        return True

    def _traced_size(self, count):
        """The number of examples to fill a batch up to, so that few sizes are traced."""
        known = [size for size in self._sizes if count <= size <= 2 * count]
        if not known:
            self._sizes.append(count)
        return min(known, default=count)

    def _traced_norms(self, batch):
        scale = FLOAT16_SCALE if self.model.compute_dtype == "float16" else 1.0
        arguments = self._units, self._variables, batch
        norms = gradient_norms(
            self.model, *arguments, lambda y: scale * self._losses(y), self._measure
        )
        norms /= scale if self.norm == "l1" else scale**2
        if not self.with_loss:
            return norms
        losses = self._losses(self.model(batch, training=False))
        return tf.concat([norms, losses[:, None]], axis=1)

    def _losses(self, outputs):
        """The loss of each example."""
        logits = self._logits(select_output(outputs, self.output, self.model))
        label, shape = self._label, logits.shape
        if self._family is not None:
            shape = (*shape[:-1], self._family.units(shape[-1]))
        is_class = shape[-1] == 1 and np.all((label == 0) | (label == 1)) and not self._family
        if is_class and not self._has_warned:
            self._has_warned = True
            _warn_of_one_class(self.confounding_label)
        if label.ndim and label.shape != tuple(shape[-1:]):
            kind = "classes" if self._family is None else "numbers"
            raise ValueError(
                f"Argument `confounding_label` must have a number for each of {shape[-1]} "
                f"{kind}. Received: confounding_label={shown(self.confounding_label)}"
            )
        losses = LOSSES.get(self.loss, self.loss)(tf.broadcast_to(label, shape), logits)
        if losses.shape[:1] != logits.shape[:1]:
            raise ValueError(
                "Argument `loss` must return a number for each example, and not their mean. "
                f"Received: loss={shown(self.loss)}, which returns the shape {losses.shape}"
            )
        return tf.reduce_mean(tf.reshape(losses, (losses.shape[0], -1)), axis=1)

    def _logits(self, scores):
        if not self._is_logits:
            scores = getattr(scores, "_keras_logits", None)  # where Keras' losses find them
        if scores is None:
            raise ValueError(
                "Argument `model` must give logits, or the result of a Keras soft-max or sigmoid. "
                f"Received: model {self.model.name!r}, whose logits are not known"
            )
        return tf.cast(scores, "float32")


def _label(label, loss):
    """The confounding label as an array: a scalar for all classes, or a vector."""
    if isinstance(label, str):
        check_choice("confounding_label", label, ("all", "none"))
        values = np.float32(label == "all")
    else:
        values = np.asarray(label)
        if values.dtype.kind not in "biuf" or values.ndim != 1 or not values.size:
            raise _label_error(label)
        values = values.astype("float32")
    is_known = np.isfinite(values) if callable(loss) else (values >= 0) & (values <= 1)
    if not np.all(is_known):  # what a function takes is known once the model is
        raise _label_error(label)
    if values.size > 1 and np.count_nonzero(values) == 1 and values.max() == 1:
        _warn_of_one_class(label)
    if loss == "categorical_crossentropy" and not np.any(values):
        raise ValueError(
            "Argument `confounding_label` must have a class for loss='categorical_crossentropy', "
            f"which is 0 without. Received: confounding_label={shown(label)}"
        )
    return values


def _warn_of_one_class(label):
    warnings.warn(
        f"confounding_label={label!r} is one class and no other, an ordinary label, which "
        "confounds nothing. Take 'all' or 'none' of several classes, or a number between 0 and 1.",
        stacklevel=3,
    )


def _label_error(label):
    return ValueError(
        "Argument `confounding_label` must be 'all', 'none' or a vector of numbers in [0, 1]. "
        f"Received: confounding_label={label!r}"
    )


def _variables(model, layers):
    """The trainable variables of `layers`, in the order of the model's."""
    held = model.trainable_variables
    if layers is not None:
        chosen = [layer for layer in _chosen(model, layers) for layer in layer.trainable_variables]
        held = [v for v in held if any(v is other for other in chosen)]
    if not held:
        raise ValueError(
            "Argument `layers` must hold trainable weights. "
            f"Received: layers={shown(layers)} of {shown(model)}, without any"
        )
    return held


def _chosen(model, layers):
    """The layers of the model that `layers` lists or names."""
    if not isinstance(layers, (list, tuple)):
        raise ValueError(
            f"Argument `layers` must be a list of layers or names. Received: layers={shown(layers)}"
        )
    wanted_layers = []
    for wanted in layers:
        held = model._flatten_layers()
        chosen = [layer for layer in held if layer is wanted or layer.name == wanted]
        if not chosen:
            raise ValueError(
                "Argument `layers` must be among the layers of the model, "
                f"{sorted(layer.name for layer in held)}. "
                f"Received: {shown(wanted)} in layers={shown(layers)}"
            )
        wanted_layers += chosen
    return wanted_layers
