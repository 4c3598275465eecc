"""Layers whose outputs are places in the image, in models of any style, and their outputs."""

import contextlib

import keras
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._models.changes import watched
from tfuq._models.features import SAMPLE, find_layer, without_nan

# Their layers inside give tensors of four axes, none of which is a place in the image.
_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def few_rows(batch):
    """A few examples, without NaN: enough to see how a model is built."""
    return tf.nest.map_structure(lambda leaf: leaf[:SAMPLE], without_nan(batch))


def spatial_layer(model, reading, batch, layer=None):
    """The layer of `model`, at any depth, that `layer` stands for: a name, a path or a layer.

    None stands for the last layer with spatial output on which the output depends. Raises
    ValueError if there is no such layer.
    """
    layers = _candidates(model) if layer is None else [layer_in(model, layer)]
    outputs, calls, tape = _watched_calls(model, reading, few_rows(batch), layers)
    spatial = [(each, tensor) for each, tensor in calls if _is_spatial(each, tensor)]
    if layer is not None and not spatial:
        raise _spatial_error(layer, [tensor.shape for _, tensor in calls])
    gradients = tape.gradient(outputs, [tensor for _, tensor in spatial])
    pairs = zip(spatial, gradients, strict=True)
    found = [each for (each, _), gradient in pairs if gradient is not None]
    if not found and layer is not None:
        raise ValueError(
            "Argument `layer` must be a layer on which the output depends. "
            f"Received: layer={shown(layer)}, of which it is independent"
        )
    if not found:
        raise ValueError(
            "Argument `model` must have a layer with spatial output, (batch, height, width, "
            f"channels), on which its output depends. Received: model={shown(model)}"
        )
    return found[-1]


def _watched_calls(model, reading, batch, layers):
    """Outputs of the model; `(layer, its output)` of each call of `layers`; a tape from there."""
    calls = []

    def note(layer):
        def handler(call, *args, **kwargs):
            outputs = call(*args, **kwargs)
            if tf.executing_eagerly():  # not what the body of a loop holds
                tensor = tf.nest.flatten(outputs)[0]
                tape.watch(tensor)
                calls.append((layer, tensor))
            return outputs

        return handler

    with tf.GradientTape(watch_accessed_variables=False) as tape, contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(watched(layer, note(layer)))
        outputs = reading.select(model, batch)
    return outputs, calls, tape


def _candidates(model):
    layers = list(dict.fromkeys(model._flatten_layers(include_self=False)))
    inside = {
        id(part)
        for layer in layers
        if isinstance(layer, _ATTENTION)
        for part in layer._flatten_layers(include_self=False)
    }
    return [layer for layer in layers if id(layer) not in inside]


def layer_in(model, layer):
    """The layer of `model`, at any depth, of this name or path, or the layer itself."""
    if isinstance(layer, str):
        return find_layer(model, layer)
    if any(layer is each for each in model._flatten_layers(include_self=False)):
        return layer
    raise ValueError(
        "Argument `layer` must be a layer of the model, the name or path of one, or None. "
        f"Received: layer={shown(layer)}"
    )


def _is_spatial(layer, tensor):
    """Whether a layer gives `(batch, height, width, channels)` with more than one place."""
    is_last = getattr(layer, "data_format", "channels_last") != "channels_first"
    return is_last and tensor.shape.rank == 4 and tensor.shape[1] * tensor.shape[2] > 1


def _spatial_error(layer, shapes):
    found = f"outputs of shapes {[tuple(shape) for shape in shapes]}" if shapes else "no call of it"
    return ValueError(
        "Argument `layer` must be a layer that runs when the model is called, and gives (batch, "
        f"height, width, channels). Received: layer={layer!r} with {found}"
    )


@contextlib.contextmanager
def output_kept(layer):
    """While it is open, the output of the last call of `layer` is kept; yields a list of it."""
    kept = []

    def handler(call, *args, **kwargs):
        outputs = call(*args, **kwargs)
        tensor = tf.nest.flatten(outputs)[0]
        if tensor.graph is graph:
            kept[:] = [tensor]
        return outputs

    graph = tf.compat.v1.get_default_graph()
    with watched(layer, handler):
        yield kept
