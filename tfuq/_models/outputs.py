"""Meaning of a model's outputs: logits or probabilities, and of which shape."""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._models.finite import known_only
from tfuq._predictions.probabilities import are_inside, is_binary, probabilities, sum_to_one


class Reading(NamedTuple):
    """How a model's outputs become probabilities."""

    output: object
    from_logits: bool | None
    multi_label: bool

    def is_logits(self, model, batch=None):
        """Whether the output holds logits: as told, as the loss says, or as a batch shows.

        Of a batch only the predictions that are finite can show it.
        """
        flag = self.from_logits
        flag = loss_takes_logits(model, self.output) if flag is None else flag
        if flag is not None:
            return bool(flag)
        if batch is None:
            raise ValueError(
                "Argument `from_logits` must be True or False where no compiled loss says it. "
                f"Received: from_logits=None with {model}"
            )
        values = self.select(model, batch).numpy()
        finite = np.isfinite(values).all(axis=-1)
        if not finite.any():
            raise ValueError(
                "Argument `from_logits` must be True or False where no compiled loss says it and "
                "the first predictions do not show it. Received: from_logits=None, no finite "
                "prediction"
            )
        return not self.are_probs(values[finite])

    def select(self, model, batch):
        """The output of a batch, float32."""
        return tf.cast(select_output(model(batch, training=False), self.output), "float32")

    def is_binary(self, shape):
        """Whether each entry of the last axis is a prediction of its own."""
        return is_binary(shape, self.multi_label)

    def probs(self, model, batch, is_logits):
        """Probabilities `(batch, ..., classes)`, NaN for inputs that are not finite."""
        scores = known_only(batch, self.select(model, batch))
        return probabilities(scores, is_logits, self.is_binary(scores.shape))

    def are_probs(self, values):
        """Whether `values` `(..., classes)` can be probabilities."""
        fine = are_inside(values)
        fine = fine if self.is_binary(values.shape) else fine & sum_to_one(values)
        return bool(np.all(fine))


def loss_takes_logits(model, output):
    """What the compiled loss says of an output: True, False, or None if it says nothing."""
    loss = getattr(model, "loss", None)
    if isinstance(loss, (dict, list, tuple)):
        with contextlib.suppress(LookupError, TypeError):
            return _says_logits(loss[output])
        return None
    return _says_logits(loss)


def _says_logits(loss):
    if isinstance(loss, str):  # Keras' own, by name, take probabilities
        return False if "crossentropy" in loss else None
    flag = getattr(loss, "from_logits", None)
    if flag is None and hasattr(loss, "get_config"):
        flag = loss.get_config().get("from_logits")
    return flag


def any_batch(tensor):
    """The `tf.TensorSpec` of a tensor, with a batch of any size."""
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def input_spec(model):
    """What a functional or `Sequential` model takes, with a batch of any size."""
    if not isinstance(getattr(model, "inputs", None), list):
        raise ValueError(
            "Argument `input_signature` must be given for models that do not know their inputs. "
            f"Received: input_signature=None with {model}"
        )
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(any_batch, inputs)


def check_same_shapes(shapes, name):
    """Raises ValueError unless all models have outputs of the same shapes, as far as known."""
    known = [shape for shape in shapes if shape is not None]
    for other in known[1:]:
        if not _are_compatible(known[0], other):
            raise ValueError(
                f"Argument `{name}` must give models with outputs of one shape. "
                f"Received: outputs of shapes {known[0]} and {other}"
            )


def _are_compatible(shapes, others):
    pairs = zip(shapes, others, strict=False)
    fit = all(tf.TensorShape(a).is_compatible_with(b) for a, b in pairs)
    return fit and len(shapes) == len(others)


def select_output(outputs, output):
    """The tensor among a model's `outputs` that `output` names: an index, a key or a function."""
    if callable(output):
        return output(outputs)
    if keras.tree.is_nested(outputs) == (output is None):
        raise ValueError(
            "Argument `output` must be an index, a key or a function if the model has several "
            f"outputs, and None if it has one. Received: output={output!r} with {outputs}"
        )
    if output is None:
        return outputs
    try:
        is_field = output in getattr(outputs, "_fields", ())
        return getattr(outputs, output) if is_field else outputs[output]
    except (IndexError, KeyError, TypeError):
        raise ValueError(
            "Argument `output` must be an index or a key of the model's outputs. "
            f"Received: output={output!r} with {outputs}"
        ) from None
