"""Outputs of a model: which of several, of which shape, for which inputs."""

import functools

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import shown


def any_batch(tensor):
    """The `tf.TensorSpec` of a tensor, with a batch of any size."""
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def input_spec(model):
    """What a functional or `Sequential` model takes, with a batch of any size."""
    if not isinstance(getattr(model, "inputs", None), list):
        raise ValueError(
            "Argument `input_signature` must be given for models that do not know their inputs. "
            f"Received: input_signature=None with {shown(model)}"
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


def select_output(outputs, output, model=None):
    """The tensor among a model's `outputs` that `output` names: an index, a key or a function.

    A functional model whose output is a named tuple returns a list once it was saved and loaded:
    of `model` the fields are still known.
    """
    if isinstance(output, str) and isinstance(outputs, list):
        names = _names_of(model)
        output = names.index(output) if output in names else output
    if callable(output):
        return output(outputs)
    if keras.tree.is_nested(outputs) == (output is None):
        raise ValueError(
            "Argument `output` must be an index, a key or a function if the model has several "
            f"outputs, and None if it has one. Received: output={shown(output)} with {outputs}"
        )
    if output is None:
        return outputs
    try:
        is_field = output in getattr(outputs, "_fields", ())
        return getattr(outputs, output) if is_field else outputs[output]
    except (IndexError, KeyError, TypeError):
        raise ValueError(
            "Argument `output` must be an index or a key of the model's outputs. "
            f"Received: output={shown(output)} with {outputs}"
        ) from None


def _names_of(model):
    """Names of the outputs of a functional model that returns a list: fields, or layers."""
    outputs = getattr(model, "output", None)
    if not isinstance(outputs, list):
        return []
    makers = [tensor._keras_history.operation for tensor in outputs]
    fields = getattr(getattr(makers[0], "output_type", None), "_fields", ())
    if len(fields) == len(outputs) and all(maker is makers[0] for maker in makers):
        return list(fields)
    return list(model.output_names)


def sample_inputs(spec, count=32):
    """Inputs of a kind that `spec` describes, to see what a model makes of them."""
    return tf.nest.map_structure(
        functools.partial(_random_tensor, np.random.default_rng(0), count), spec
    )


def _random_tensor(rng, count, spec):
    shape = [count if spec.shape[0] is None else spec.shape[0]]
    shape += [1 if axis is None else axis for axis in spec.shape[1:]]
    if spec.dtype.is_floating:
        return tf.constant(rng.normal(size=shape), spec.dtype)
    if spec.dtype == tf.string:
        return tf.fill(shape, "")
    return tf.cast(rng.integers(256 if spec.dtype == tf.uint8 else 2, size=shape), spec.dtype)
