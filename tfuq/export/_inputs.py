"""Inputs of an export: what is served, what the models take of it, and examples of both."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._models.outputs import input_spec, sample_inputs
from tfuq.export._tracing import traced

COUNT = 32  # examples that are made up


class Inputs(NamedTuple):
    """What an export is served, and what it makes of that."""

    steps: tuple = ()  # of the preprocessing
    spec: object = None  # `tf.TensorSpec`s of what is served
    inner: object = None  # those of what the models take
    example: object = None  # tensors that are served, of the caller; None without

    def prepare(self, inputs):
        """What the models take, of what is served."""
        for step in self.steps:
            inputs = step(inputs)
        if self.steps and self.inner is not None:
            inputs = tf.nest.map_structure(_of_known_shape, self.inner, inputs)
        return inputs


def checked_inputs(arguments, model):
    """`Inputs` of the arguments of an export of `model`, or a ValueError."""
    steps, batch_size = _steps_of(arguments["preprocessing"]), arguments["batch_size"]
    spec = _served_spec(model, steps, arguments["input_signature"], batch_size)
    found = Inputs(steps, spec, spec if not steps else None)
    if steps:
        found = found._replace(inner=_inner_spec(found, model, batch_size))
    if arguments["example"] is not None:
        found = found._replace(example=_checked_example(arguments["example"], spec))
        _tried(found)
    return found


def of_rank(inputs, spec):
    """In graphs: the batch, refused at run time if a tensor of it has more or fewer axes.

    Signatures of a SavedModel do not ask, and a convolution of an image without a batch may end
    the process.
    """
    return tf.nest.map_structure(
        lambda leaf, each: (
            leaf if each.shape.rank is None else tf.ensure_shape(leaf, [None] * each.shape.rank)
        ),
        inputs,
        spec,
    )


def made_up(spec, declared=None):
    """Random inputs of a kind that `spec` describes, in the range that is `declared` of them."""
    inputs = sample_inputs(spec, COUNT)
    if declared is None:
        return inputs
    low, high = declared.value_range
    rng = np.random.default_rng(0)
    # The highest number of a range is taken, too: integers are declared as 0 to 255.
    return tf.nest.map_structure(
        lambda t: tf.cast(low + (high - low) * rng.random(t.shape), t.dtype), inputs
    )


# --- Preprocessing ------------------------------------------------------------------------------


def _steps_of(preprocessing):
    """The argument `preprocessing` as a tuple of layers and functions, empty for None."""
    if preprocessing is None:
        return ()
    steps = preprocessing if isinstance(preprocessing, (list, tuple)) else [preprocessing]
    for step in steps:
        if not callable(step):
            raise ValueError(
                "Argument `preprocessing` must be a Keras layer, a function of tensors or a list "
                f"of these. Received: {shown(step)}"
            )
    return tuple(steps)


def _inner_spec(found, model, batch_size):
    """`tf.TensorSpec`s of what the models take, of a trace: no step is run, on made-up inputs."""
    try:
        made = traced(
            found.spec,
            lambda batch: tf.nest.map_structure(
                lambda t: tf.TensorSpec(t.shape, t.dtype),
                tf.nest.map_structure(tf.convert_to_tensor, found.prepare(batch)),
            ),
        )
    except Exception as error:
        raise ValueError(
            "Argument `preprocessing` must be made of TensorFlow operations and take the inputs "
            f"of `input_signature`. Received: {type(error).__name__}: {error}"
        ) from error
    if isinstance(getattr(model, "inputs", None), list):
        made = _as_model_takes(made, input_spec(model))
    for spec in tf.nest.flatten(made):
        if spec.shape.rank is None:
            raise ValueError(
                "Argument `preprocessing` must give tensors whose axes are known: end it with "
                "`tf.ensure_shape(images, (None, height, width, channels))`, because a decoded "
                f"image may have any shape. Received: {spec}"
            )
    return tf.nest.map_structure(lambda spec: _with_batch(spec, batch_size), made)


def _as_model_takes(made, wanted):
    """The shapes of a trace, and of what the model says of its inputs where that is more."""
    try:
        return tf.nest.map_structure(
            lambda a, b: tf.TensorSpec(a.shape.merge_with(b.shape), a.dtype), made, wanted
        )
    except (TypeError, ValueError):
        return made  # the model will say what it does not take


def _of_known_shape(spec, tensor):
    axes = spec.shape.as_list()[1:]
    is_known = tensor.shape.rank is not None and tensor.shape.as_list()[1:] == axes
    return tensor if is_known else tf.ensure_shape(tensor, [None, *axes])


# --- What is served -----------------------------------------------------------------------------


def _served_spec(model, steps, signature, batch_size):
    if signature is None:
        knows_inputs = steps and isinstance(getattr(steps[0], "inputs", None), list)
        signature = _named_inputs(steps[0] if knows_inputs else model)
    specs = keras.tree.map_structure(lambda spec: _with_batch(spec, batch_size), signature)
    if not isinstance(specs, dict):
        return specs
    # The signature then calls them by their keys.
    return {
        name: tf.TensorSpec(each.shape, each.dtype, str(name)) if hasattr(each, "shape") else each
        for name, each in specs.items()
    }


def _named_inputs(model):
    """`tf.TensorSpec`s of a model's inputs; several in a list are called as the model's own."""
    specs = input_spec(model)
    if not isinstance(specs, (list, tuple)):
        return specs
    names = [tensor.name.replace("/", "_") for tensor in model.inputs]
    if len(set(names)) < len(names) or len(names) != len(tf.nest.flatten(specs)):
        return specs
    named = [
        tf.TensorSpec(spec.shape, spec.dtype, name)
        for spec, name in zip(tf.nest.flatten(specs), names, strict=True)
    ]
    return tf.nest.pack_sequence_as(specs, named)


def _with_batch(spec, batch_size):
    return tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype, getattr(spec, "name", None))


# --- Examples -----------------------------------------------------------------------------------


def _checked_example(example, spec):
    """The argument `example` as tensors, or a ValueError."""
    try:
        is_one = isinstance(spec, tf.TensorSpec)
        given = (
            _as_spec(spec, example) if is_one else tf.nest.map_structure(_as_spec, spec, example)
        )
    except (TypeError, ValueError, tf.errors.OpError):
        given = None
    if given is None or any(len(leaf) == 0 for leaf in tf.nest.flatten(given)):
        shapes = tf.nest.map_structure(np.shape, example)
        raise ValueError(
            f"Argument `example` must be a batch of one or more inputs as they are served, {spec}. "
            f"Received: example of shape {shapes}"
        )
    return given


def _as_spec(spec, value):
    tensor = tf.convert_to_tensor(value)
    is_text = tf.string in (spec.dtype, tensor.dtype)
    if not spec.shape.is_compatible_with(tensor.shape) or (is_text and tensor.dtype != spec.dtype):
        raise ValueError("another shape or dtype")
    return tf.cast(tensor, spec.dtype) if tensor.dtype != spec.dtype else tensor


def _tried(found):
    """Raises ValueError if the preprocessing does not take the example."""
    if found.steps:
        try:
            tf.function(found.prepare, autograph=False)(found.example)
        except Exception as error:
            raise ValueError(
                "Argument `preprocessing` must take the `example`. "
                f"Received: {type(error).__name__}: {error}"
            ) from error
