"""Layers whose outputs are places in the image, in models of any style, and their outputs."""

import contextlib
import math
import warnings
from typing import NamedTuple

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


class Places(NamedTuple):
    """A layer whose outputs are places in the image."""

    layer: keras.layers.Layer
    grid: tuple | None = None  # rows and columns that its tokens are, of tokens; last in them

    def of(self, values):
        """`(..., rows, columns, channels)` of outputs of the layer, or of gradients of them."""
        if self.grid is None:
            return values
        count = self.grid[0] * self.grid[1]
        tokens = values[..., -count:, :]  # what comes before is the class token
        shape = tf.concat([tf.shape(tokens)[:-2], self.grid, tf.shape(tokens)[-1:]], 0)
        return tf.reshape(tokens, shape)


def spatial_layer(model, outputs_of, batch, layer=None):
    """`Places` of the layer of `model`, at any depth, that `layer` stands for: a name, a path.

    None stands for the last layer with spatial output, or with tokens that are places, on which the
    output depends: that of `outputs_of(batch)`, logits where they show, as probabilities that are
    certain depend on nothing. Raises ValueError if there is no such layer.
    """
    wanted = None if layer is None else layer_in(model, layer)
    layers = _candidates(model)
    layers += [wanted] if wanted is not None and all(wanted is not each for each in layers) else []
    value, calls, tape = _watched_calls(outputs_of, few_rows(batch), layers)
    places = [(_places(each, tensor, calls, wanted), tensor) for each, tensor in calls]
    of_layer = [tensor for each, tensor in calls if each is wanted]
    spatial = [(p, t) for p, t in places if p is not None and wanted in (None, p.layer)]
    if wanted is not None and not spatial:
        raise _spatial_error(layer, [tensor.shape for tensor in of_layer])
    gradients = tape.gradient(value, [tensor for _, tensor in spatial])
    pairs = zip(spatial, gradients, strict=True)
    found = [each for (each, _), gradient in pairs if _matters(each, gradient)]
    if not found and wanted is not None:
        raise ValueError(
            "Argument `layer` must be a layer on which the output depends, at places in the image. "
            f"Received: layer={shown(layer)}, of which it is independent"
        )
    if not found:
        raise ValueError(
            "Argument `model` must have a layer with spatial output, (batch, height, width, "
            f"channels), on which its output depends. Received: model={shown(model)}"
        )
    if wanted is None and _has_other_tokens(calls, places, found[-1].layer):
        warnings.warn(
            f"The map is of the layer {found[-1].layer.name!r}, because the tokens of later layers "
            "are not a grid of places (with one class token at most). Pass `layer` to choose "
            "another.",
            stacklevel=4,
        )
    return found[-1]


def _matters(places, gradient):
    """Whether there is a gradient; of tokens, one that the places have, not the class token."""
    if gradient is None:
        return False
    return places.grid is None or bool(tf.reduce_any(places.of(gradient) != 0))


def _places(layer, tensor, calls, wanted):
    """`Places` of an output of a layer, or None."""
    if _is_spatial(layer, tensor):
        return Places(layer)
    is_tokens = tensor.shape.rank == 3 and tensor.dtype.is_floating
    grid = _grid_of(tensor.shape[1], calls, layer is wanted) if is_tokens else None
    return None if grid is None else Places(layer, grid)


def _grid_of(count, calls, is_named):
    """Rows and columns of `count` tokens, perhaps one of the class before them; None if none.

    They are those of a layer with spatial output; or, in models with attention or of a layer that
    the caller names, a square.
    """
    maps = [tensor.shape[1:3] for layer, tensor in calls if _is_spatial(layer, tensor)]
    for rows, columns in reversed(maps):
        if rows * columns in (count, count - 1):
            return rows, columns
    if not is_named and not any(isinstance(layer, _ATTENTION) for layer, _ in calls):
        return None
    sides = [math.isqrt(number) for number in (count, count - 1)]
    square = [side for side in sides if side > 1 and side**2 in (count, count - 1)]
    return (square[0], square[0]) if square else None


def _has_other_tokens(calls, places, last):
    """Whether attention that came after the layer `last` gave tokens that are no places."""
    pairs = list(zip(calls, places, strict=True))
    after = max(i for i, ((layer, _), _) in enumerate(pairs) if layer is last)
    return any(
        isinstance(layer, _ATTENTION) and found is None
        for (layer, _), (found, _) in pairs[after + 1 :]
    )


def _watched_calls(outputs_of, batch, layers):
    """A sum of outputs; `(layer, its output)` of each call of `layers`; a tape from there."""
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
        outputs = outputs_of(batch)
        # Not a plain sum: the sum of probabilities is 1 whatever they are.
        value = tf.reduce_sum(outputs * tf.range(1.0, outputs.shape[-1] + 1))
    return value, calls, tape


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
        "height, width, channels), or tokens (batch, places, channels) of a grid, perhaps with one "
        f"of the class before them. Received: layer={layer!r} with {found}"
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
