"""The declared meaning of a model's outputs: logits or probabilities, of which kind of labels.

It is taken, in this order, from the caller, from the layer that makes the output, from the compiled
loss. Never from values, so that one model gives one answer whatever it is shown first.
"""

import contextlib
import functools
import weakref
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_flags, shown
from tfuq._models.changes import watched
from tfuq._models.finite import known_only
from tfuq._models.outputs import select_output
from tfuq._predictions.families import Point
from tfuq._predictions.probabilities import check_probabilities, is_binary, probabilities

# These change shapes and weights of what passes through them, never what a number means.
_PASSING = (
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.Reshape,
)
_PASSING_OPERATIONS = ("Cast", "Reshape", "Squeeze", "ExpandDims", "Transpose")
_EXCLUSIVE = (
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "kl_divergence",
    "sparse_categorical_crossentropy",
)
_LOSSES = weakref.WeakKeyDictionary()  # of copies that are not compiled: that of their original
_INDEPENDENT = ("binary_crossentropy", "binary_focal_crossentropy")
_OF_NUMBERS = (
    "cosine_similarity",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
)


class Meaning(NamedTuple):
    """What one side says of an output; None where it says nothing."""

    is_logits: bool | None = None
    multi_label: bool | None = None
    says: str = ""  # who says it, for errors
    family: object = None  # of a regression, `Family`: neither logits nor probabilities

    @property
    def is_number(self):
        return self.family is not None


NOTHING = Meaning()


def declared(model, output=None, from_logits=None, multi_label=None, batch=None):
    """The `Meaning` of an output of a model, both of its flags known.

    Args:
        model: Keras model of any style.
        output: Which output, when the model has several: an index, a key or a function.
        from_logits: What the caller says: True, False, or None if nothing.
        multi_label: Likewise, whether the entries of the last axis do not exclude one another.
        batch: Inputs, for a subclassed model, which shows its last layer only when it is called.

    Raises:
        ValueError: If nobody says it, or two sides contradict each other; the message names the
            argument to pass.
    """
    head = said_by_head(model, output)
    if head == NOTHING and batch is not None and isinstance(model, keras.Model):
        head = said_when_called(model, output, batch)
    if head.is_number:
        raise ValueError(
            f"Argument `model` must be a classifier: {head.says} gives numbers of the family "
            f"{shown(head.family)}, which `predict_uncertainty` reads. Received: {model.name!r}"
        )
    loss = said_by_loss(model, output)
    _check_agreement(head, loss, from_logits, multi_label)
    sides = (Meaning(from_logits, multi_label), head, loss)
    is_logits = _first("is_logits", sides)
    if is_logits is None:
        raise ValueError(_unknown(model, loss))
    independent = _first("multi_label", sides[:2])
    if independent is None and loss.multi_label:  # of one output there is nothing to exclude
        independent = _width(model, output, batch) != 1
    return Meaning(bool(is_logits), bool(independent))


def _first(name, sides):
    values = (getattr(side, name) for side in sides)
    return next((value for value in values if value is not None), None)


def _unknown(model, loss):
    called = f"model {getattr(model, 'name', type(model).__name__)!r}"
    if loss.is_number:
        return (
            f"Argument `from_logits` must be given: {loss.says} is one for numbers, so the outputs "
            "are not known to be classes. If they are, pass from_logits=True (logits) or False "
            f"(probabilities). Received: from_logits=None with {called}"
        )
    return (
        "Argument `from_logits` must be True (logits) or False (probabilities): neither the last "
        "layer nor a compiled loss says which of the two the outputs are. Received: "
        f"from_logits=None with {called}"
    )


def _check_agreement(head, loss, from_logits, multi_label):
    """Raises ValueError where what is known of the layer contradicts the caller or the loss."""
    kinds = {True: "logits", False: "probabilities"}
    if head.is_logits is None:
        return
    gives = kinds[head.is_logits]
    if from_logits is not None and from_logits != head.is_logits:
        raise ValueError(
            f"Argument `from_logits` must be {head.is_logits} or left out: {head.says} gives "
            f"{gives}. Received: from_logits={from_logits}"
        )
    if from_logits is None and loss.is_logits is not None and loss.is_logits != head.is_logits:
        raise ValueError(
            f"Argument `from_logits` must be given: {head.says} gives {gives}, and {loss.says} "
            f"takes {kinds[loss.is_logits]}, so the loss misread the outputs in training. Compile "
            f"the model with a loss whose from_logits is {head.is_logits}, and train it again. "
            "Received: from_logits=None"
        )
    if multi_label is False and head.multi_label:
        raise ValueError(
            f"Argument `multi_label` must be True or left out: {head.says} gives labels that do "
            "not exclude one another. Received: multi_label=False"
        )


class Reading(NamedTuple):
    """How an output of a model becomes probabilities; a flag that is None is not known yet."""

    output: object
    from_logits: bool | None
    multi_label: bool | None

    def known(self, model, batch=None):
        """This reading with both flags known, as `declared` says."""
        meaning = declared(model, *self, batch)
        return self._replace(from_logits=meaning.is_logits, multi_label=meaning.multi_label)

    def select(self, model, batch):
        """The output of a batch, float32."""
        return tf.cast(select_output(model(batch, training=False), self.output, model), "float32")

    def is_binary(self, shape):
        """Whether each entry of the last axis is a prediction of its own."""
        return is_binary(shape, self.multi_label)

    def probs(self, model, batch):
        """Probabilities `(batch, ..., classes)`, NaN for inputs that are not finite."""
        return self.as_probs(batch, self.select(model, batch))

    def as_probs(self, batch, scores):
        """Probabilities of an output `scores`, float32, NaN for inputs that are not finite."""
        scores = known_only(batch, scores)
        return probabilities(scores, self.from_logits, self.is_binary(scores.shape))

    def checked(self, probs):
        """The array `probs` `(..., classes)`, if it holds probabilities or NaN.

        Raises:
            ValueError: If the output was declared to hold probabilities, and does not.
        """
        if not self.from_logits:
            rows = np.asarray(probs).reshape(-1, probs.shape[-1])
            rows = rows[np.isfinite(rows).all(axis=-1)]
            try:
                check_probabilities("outputs", rows, self.is_binary(probs.shape))
            except ValueError as error:
                raise ValueError(
                    "Argument `from_logits` must be True if the model returns logits; pass "
                    "multi_label=True if its labels do not exclude one another. Received: "
                    f"from_logits=False, and {error}"
                ) from None
        return probs


def reading_of(output, from_logits, multi_label):
    """`Reading` of the arguments of these names, which the caller gave or left at None."""
    given = {"from_logits": from_logits, "multi_label": multi_label}
    check_flags(**{name: flag for name, flag in given.items() if flag is not None})
    return Reading(output, from_logits, multi_label)


def readings_of(models, reading, batch=None):
    """What the output of each model means; all predict labels of one kind."""
    readings = [reading.known(model, batch) for model in models]
    if len({known.multi_label for known in readings}) > 1:
        raise ValueError(
            "Argument `multi_label` must be given: the models declare different "
            "kinds of labels. Received: multi_label=None"
        )
    return readings


def said(model, output=None):
    """What the layer and the loss say of an output, which changes when a model is compiled anew."""
    return said_by_head(model, output), said_by_loss(model, output)


# --- The layer that makes the output ------------------------------------------------------------


def said_by_head(model, output=None):
    """`Meaning` that the layer which makes an output declares, as far as the model shows it."""
    if hasattr(model, "declared_output"):  # what stands for a model
        return model.declared_output()
    if isinstance(model, keras.Sequential):
        return _said_by_last(model.layers, _index_in(model.layers[-1:], output))
    outputs = getattr(model, "output", None)  # a subclassed model has none
    return NOTHING if outputs is None else _said_by_tensor(select_output(outputs, output, model))


def _said_by_last(layers, index=0):
    for layer in reversed(layers):
        if not _passes(layer):
            return _said_by(layer, index)
    return NOTHING


def _index_in(last, output):
    """The number of the output that `output` names, among those of the layer in the list `last`."""
    kinds = [getattr(layer, "output_type", None) for layer in last]
    fields = kinds[0]._fields if kinds and kinds[0] else ()
    return fields.index(output) if output in fields else output if isinstance(output, int) else 0


def _said_by_tensor(tensor):
    """`Meaning` of a symbolic tensor: of the layer or operation that made it."""
    history = tensor._keras_history
    operation = history.operation
    node = operation._inbound_nodes[history.node_index]
    if _passes(operation):
        return _said_by_tensor(node.input_tensors[0])
    if isinstance(operation, keras.layers.Average):
        said = [_said_by_tensor(each) for each in node.input_tensors]
        return said[0] if len({(s.is_logits, s.multi_label) for s in said}) == 1 else NOTHING
    if isinstance(operation, keras.Sequential):
        return _said_by_last(operation.layers, history.tensor_index)
    if isinstance(operation, keras.Model):
        outputs = keras.tree.flatten(getattr(operation, "output", None))
        inside = outputs[history.tensor_index]
        return NOTHING if inside is None else _said_by_tensor(inside)
    return _said_by(operation, history.tensor_index)


def _passes(operation):
    linear = getattr(operation, "activation", None) is keras.activations.linear
    is_activation = isinstance(operation, keras.layers.Activation)
    is_shaping = type(operation).__name__ in _PASSING_OPERATIONS
    return isinstance(operation, _PASSING) or is_shaping or (is_activation and linear)


def _said_by(layer, index=0):
    """`Meaning` of the output number `index` of a layer or an operation."""
    if hasattr(layer, "output_meaning"):
        return _said_by_protocol(layer, index)
    if isinstance(layer, keras.Model):
        return said_by_head(layer)
    if hasattr(layer, "says_of_output"):  # what applies a calibration
        return layer.says_of_output() or NOTHING
    says = f"the last layer, {layer.name!r},"
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(layer).__name__.lower())
    if name == "softmax":
        return Meaning(False, False, says)
    if name == "sigmoid":
        return Meaning(False, _labels(layer), says)
    return Meaning(True, False, says) if name == "log_softmax" else NOTHING


def _said_by_protocol(layer, index):
    """`Meaning` of an output that a head declares itself (`tfuq.layers.heads`)."""
    fields = () if getattr(layer, "logits_only", True) else layer.output_type._fields
    said = layer.output_meaning(*fields[index : index + 1])
    if said.family is not None:
        family = Point() if said.kind == "mean" else said.family
        return Meaning(says=f"the layer {layer.name!r}", family=family)
    several = said.multi_label and _labels(layer) is not False  # one label excludes nothing
    return Meaning(said.from_logits, several, f"the layer {layer.name!r}")


def _labels(layer):
    """Whether a layer of independent outputs gives several labels; None if it does not show."""
    widths = (getattr(layer, name, None) for name in ("units", "filters", "num_outputs"))
    units = next((width for width in widths if width is not None), None)
    return None if units is None else units > 1


def _width(model, output, batch):
    """How many numbers an output has for each entry, or None if it does not show."""
    if not isinstance(model, keras.Sequential) and getattr(model, "output", None) is not None:
        return select_output(model.output, output, model).shape[-1]
    if isinstance(model, keras.Sequential) and model.built:
        return model.output_shape[-1]
    if batch is None:
        return None
    rows = tf.nest.map_structure(lambda leaf: leaf[:1], batch)
    return select_output(model(rows, training=False), output, model).shape[-1]


def said_when_called(model, output, batch):
    """`Meaning` of the layer whose output a model returns as its own, seen in a call of it."""
    made = {}  # of each output its layer; the outputs are kept, so that their ids stay theirs

    def note(layer):
        def handler(call, *args, **kwargs):
            outputs = call(*args, **kwargs)
            for index, tensor in enumerate(keras.tree.flatten(outputs)):
                made[id(tensor)] = (layer, index, tensor)
            return outputs

        return handler

    rows = tf.nest.map_structure(lambda leaf: leaf[:1], batch)
    with contextlib.ExitStack() as stack:
        for layer in dict.fromkeys(model._flatten_layers(include_self=False)):
            stack.enter_context(watched(layer, note(layer)))
        found = select_output(model(rows, training=False), output, model)
    layer, index, _ = made.get(id(found), (None, 0, None))
    return NOTHING if layer is None else _said_by(layer, index)


# --- The compiled loss --------------------------------------------------------------------------


def said_by_loss(model, output=None):
    """`Meaning` that the compiled loss of an output declares."""
    loss = _compiled_loss(model, output)
    if loss is None:
        return NOTHING
    if isinstance(loss, str):
        with contextlib.suppress(ValueError):
            loss = keras.losses.get(loss)
    name = getattr(getattr(loss, "fn", loss), "__name__", type(loss).__name__)
    says = f"the compiled loss, {name},"
    if name in _OF_NUMBERS:
        return Meaning(says=says, family=Point())
    if getattr(loss, "family", None) is not None:
        return Meaning(says=says, family=loss.family)
    is_exclusive = name in _EXCLUSIVE or getattr(loss, "exclusive", False)
    independent = True if name in _INDEPENDENT else False if is_exclusive else None
    return Meaning(_takes_logits(loss, independent is not None), independent, says)


def smoothing_of_loss(model, output=None):
    """The label smoothing of the compiled loss of an output; 0 if there is none or it is hidden."""
    loss = _compiled_loss(model, output)
    said = getattr(loss, "label_smoothing", None)
    if said is None and isinstance(loss, functools.partial):
        said = loss.keywords.get("label_smoothing")
    return float(said) if isinstance(said, (int, float)) else 0.0


def mean_alike(copy, model):
    """Lets outputs of `copy` mean what those of `model` do, until it is compiled itself.

    For copies whose last layers are of the same kinds, which a loss alone may have told. A file of
    the copy does not hold it: once loaded, it asks for `from_logits` where only the loss had said.
    """
    if (loss := _loss_of(model)) is not None:
        _LOSSES[copy] = loss


def _loss_of(model):
    loss = getattr(model, "loss", None)
    return _LOSSES.get(model) if loss is None and isinstance(model, keras.Model) else loss


def _compiled_loss(model, output):
    loss = _loss_of(model)
    return _chosen(loss, output) if isinstance(loss, (dict, list, tuple)) else loss


def _chosen(losses, output):
    """The loss of an output among several, or None if it has none or it is not known."""
    if len(losses) == 1 and output is None:
        return next(iter(losses.values() if isinstance(losses, dict) else losses))
    with contextlib.suppress(LookupError, TypeError):
        return losses[output]
    return None


def _takes_logits(loss, is_of_classes):
    flag = getattr(loss, "from_logits", None)
    if flag is None and hasattr(loss, "get_config"):
        flag = loss.get_config().get("from_logits")
    return False if flag is None and is_of_classes else flag
