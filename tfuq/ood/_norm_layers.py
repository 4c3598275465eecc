"""Squared norms of each example's gradients of a layer's weights, for any layer.

A `Use` is one call of a layer. Layers of `RULES` are worked out from what they take and the
gradient of what they give; any other layer is called once more, for all examples side by side (or
in turn, if it holds loops of its own).
"""

import itertools
import math
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import layers

from tfuq.ood._norm_formulas import (
    Window,
    depthwise_norms,
    in_chunks,
    kernel_norms,
    row_norms,
    scale_norms,
    sum_norms,
)


class Use(NamedTuple):
    """One call of a layer: what went in, what came out, and the gradients of that."""

    args: tuple
    kwargs: dict
    outputs: dict
    """Those of real numbers, by their number among all, flat."""
    rows: tuple = ()
    """Which of `inputs()` belong to the examples, which come first in them."""
    gradients: dict = {}
    """float32, of the outputs that the loss depends on."""

    def inputs(self):
        """All that went in, flat, followed by the masks that Keras has attached to it."""
        values = tf.nest.flatten((self.args, self.kwargs))
        return values + [getattr(value, "_keras_mask", None) for value in values]

    def call_of_one(self, examples):
        """`(args, kwargs)` for a batch of one, of whom `examples` are the rows."""
        values = self.inputs()
        for number, example in zip(self.rows, examples, strict=True):
            values[number] = example[None]
        half = len(values) // 2
        for value, mask in zip(values[:half], values[half:], strict=True):
            if mask is not None:
                value._keras_mask = mask
        return tf.nest.pack_sequence_as((self.args, self.kwargs), values[:half])


# --- Layers whose weights' gradients are known ---------------------------------------------------


def _pairs(layer, uses):
    """`(inputs, gradients)` of each use: float32, channels last."""
    is_first = getattr(layer, "data_format", None) == "channels_first"
    pairs = []
    for use in uses:
        x = use.args[0] if use.args else use.kwargs["inputs"]
        pair = tf.cast(x, "float32"), use.gradients[0]
        pairs.append(tuple(map(_channels_last, pair)) if is_first else pair)
    return pairs


def _channels_last(values):
    rank = values.shape.rank
    return tf.transpose(values, (0, *range(2, rank), 1))


def _sequence(values):
    """`(batch, positions, channels)` of any shape with channels last."""
    batch, channels = values.shape[0], values.shape[-1]
    return tf.reshape(values, (batch, -1, channels))


def _dense(layer, uses):
    pairs = [(_sequence(x), _sequence(g)) for x, g in _pairs(layer, uses)]
    return {"kernel": kernel_norms(pairs), "bias": sum_norms([g for _, g in pairs])}


def _window(layer):
    return Window(layer.kernel_size, layer.strides, layer.dilation_rate)


def _padded(x, layer):
    """`x` with the zeros around it that the layer's `padding` stands for."""
    amounts = []
    for n, k, s, d in zip(x.shape[1:-1], *_window(layer), strict=True):
        reach = (k - 1) * d
        total = {
            "valid": 0,
            "causal": reach,
            "same": max((-(-n // s) - 1) * s + reach + 1 - n, 0),
        }[layer.padding]
        before = total if layer.padding == "causal" else total // 2
        amounts.append([before, total - before])
    return tf.pad(x, [[0, 0], *amounts, [0, 0]])


def _convolution(layer, uses):
    pairs = [(_padded(x, layer), g) for x, g in _pairs(layer, uses)]
    return {
        "kernel": kernel_norms(pairs, _window(layer), layer.groups),
        "bias": sum_norms([g for _, g in pairs]),
    }


def _transposed_convolution(layer, uses):
    """The gradient of a convolution, in which inputs and gradients have changed places."""
    pairs = _pairs(layer, uses)
    swapped = [(_padded(g, layer), x) for x, g in pairs]
    return {
        "kernel": kernel_norms(swapped, _window(layer)),
        "bias": sum_norms([g for _, g in pairs]),
    }


def _depthwise_convolution(layer, uses):
    pairs = [(_padded(x, layer), g) for x, g in _pairs(layer, uses)]
    return {
        "kernel": depthwise_norms(pairs, _window(layer)),
        "bias": sum_norms([g for _, g in pairs]),
    }


def _separable_convolution(layer, uses):
    """A convolution of each channel, and one of all channels at each position."""
    pairs = _pairs(layer, uses)
    pointwise = tf.reshape(tf.cast(layer.pointwise_kernel, "float32"), (-1, layer.filters))
    between = [
        (
            keras.ops.depthwise_conv(
                x,
                tf.cast(layer.depthwise_kernel, "float32"),
                strides=layer.strides,
                padding=layer.padding,
                dilation_rate=layer.dilation_rate,
                data_format="channels_last",
            ),
            tf.tensordot(g, pointwise, [[-1], [1]]),
        )
        for x, g in pairs
    ]
    depthwise = [(_padded(x, layer), g) for (x, _), (_, g) in zip(pairs, between, strict=True)]
    outer = [(_sequence(y), _sequence(g)) for (y, _), (_, g) in zip(between, pairs, strict=True)]
    return {
        "depthwise_kernel": depthwise_norms(depthwise, _window(layer)),
        "pointwise_kernel": kernel_norms(outer),
        "bias": sum_norms([g for _, g in pairs]),
    }


def _normalization(layer, uses):
    """The scale multiplies what the layer would give without it."""
    plain = {"gamma": tf.ones, "scale": tf.ones, "beta": tf.zeros}
    weights = [(getattr(layer, name, None), value) for name, value in plain.items()]
    values = [(w, value(w.shape)) for w, value in weights if isinstance(w, keras.Variable)]
    pairs = []
    for use in uses:
        with keras.StatelessScope(values):
            normalized = layer(*use.args, **use.kwargs)
        pairs.append((tf.cast(normalized, "float32"), use.gradients[0]))
    axes = tuple(tf.nest.flatten(layer.axis))
    scaled, shifted = scale_norms(pairs, axes), sum_norms([g for _, g in pairs], axes)
    return {"gamma": scaled, "scale": scaled, "beta": shifted}


def _embedding(layer, uses):
    pairs = []
    for x, g in _pairs(layer, uses):
        ids = tf.cast(tf.reshape(x, (x.shape[0], -1)), "int32")
        pairs.append((ids, _sequence(g)))
    return {"embeddings": row_norms(pairs)}


RULES = {
    layers.Dense: _dense,
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Conv3D: _convolution,
    layers.Conv1DTranspose: _transposed_convolution,
    layers.Conv2DTranspose: _transposed_convolution,
    layers.Conv3DTranspose: _transposed_convolution,
    layers.DepthwiseConv1D: _depthwise_convolution,
    layers.DepthwiseConv2D: _depthwise_convolution,
    layers.SeparableConv1D: _separable_convolution,
    layers.SeparableConv2D: _separable_convolution,
    layers.BatchNormalization: _normalization,
    layers.LayerNormalization: _normalization,
    layers.GroupNormalization: _normalization,
    layers.RMSNormalization: _normalization,
    layers.Embedding: _embedding,
}
NAMES = {  # of the variables that a rule knows, if they are not "kernel" and "bias"
    _separable_convolution: ("depthwise_kernel", "pointwise_kernel", "bias"),
    _normalization: ("gamma", "scale", "beta"),
    _embedding: ("embeddings",),
}


def rule_of(layer, variables):
    """The rule that knows all of these variables of the layer, or None."""
    rule = RULES.get(type(layer))
    known = [id(getattr(layer, name, None)) for name in NAMES.get(rule, ("kernel", "bias"))]
    return rule if all(id(variable) in known for variable in variables) else None


def known_norms(rule, layer, variables, uses):
    """Squared norms `(batch,)` for each of the variables, by the rule of their layer.

    The outputs, and their gradients, are those before the activation of the layer.
    """
    norms = rule(layer, uses)
    names = {id(getattr(layer, name, None)): name for name in norms}
    return [norms[names[id(variable)]] for variable in variables]


def of_square(gradient):
    """|g|^2, `(1,)`."""
    return tf.reduce_sum(tf.square(gradient))[None]


def of_absolute(gradient):
    """|g|_1, `(1,)`."""
    return tf.reduce_sum(tf.abs(gradient))[None]


def square_by_filter(gradient):
    """|g|^2 of what belongs to each filter, the last axis of a weight: `(filters,)`."""
    return tf.reduce_sum(tf.square(_columns(gradient)), axis=0)


def absolute_by_filter(gradient):
    """|g|_1 of each filter, `(filters,)`."""
    return tf.reduce_sum(tf.abs(_columns(gradient)), axis=0)


def _columns(gradient):
    return tf.reshape(gradient, (-1, gradient.shape[-1] if gradient.shape.rank else 1))


def replayed_norms(layer, variables, uses, measure=of_square):
    """`measure` of the gradient of each of the variables, `(batch, columns)`.

    All examples run side by side.
    """
    watched = [variable.value for variable in variables]

    def of_one(parts):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            total = tf.add_n([_product(layer, *pair) for pair in zip(uses, parts, strict=True)])
        gradients = tape.gradient(total, watched, unconnected_gradients="zero")
        return tf.concat([measure(tf.cast(g, "float32")) for g in gradients], 0)

    parts = [
        ([use.inputs()[number] for number in use.rows], list(use.gradients.values()))
        for use in uses
    ]
    sizes = [math.prod(v.shape) for v in variables]
    sizes += [t.shape[1:].num_elements() or 0 for t in tf.nest.flatten(parts)]
    of_one = tf.function(of_one, autograph=False)  # traced once, whoever calls it
    run = tf.vectorized_map if _can_be_vectorized(layer, of_one, parts) else _in_turn
    norms = in_chunks(lambda part: run(of_one, part), parts, sum(sizes))
    return tf.split(norms, [width_of(variable, measure) for variable in variables], axis=1)


def width_of(variable, measure):
    """How many numbers `measure` makes of the gradient of a variable."""
    is_whole = measure in (of_square, of_absolute) or not variable.shape
    return 1 if is_whole else variable.shape[-1]


def _can_be_vectorized(layer, of_one, parts):
    """Whether `tf.vectorized_map` runs, which fails with loops over what the weights have made.

    Those of Keras' recurrent layers go over what is put in.
    """
    if isinstance(layer, layers.RNN) and type(layer).__module__.startswith("keras."):
        return True
    specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), parts)
    graph = of_one.get_concrete_function(specs).graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(f.node_def for f in graph.library.function))
    return not any(node.op in ("While", "StatelessWhile") for node in nodes)


def _in_turn(function, parts):
    return tf.map_fn(function, parts, fn_output_signature=tf.float32)


def _product(layer, use, parts):
    """<outputs, gradients> of one example, whose gradient is that of the loss."""
    examples, gradients = parts
    args, kwargs = use.call_of_one(examples)
    with keras.StatelessScope():  # nothing that the layer counts moves on
        outputs = tf.nest.flatten(layer(*args, **kwargs))
    products = [
        tf.reduce_sum(tf.cast(outputs[number][0], "float32") * gradient)
        for number, gradient in zip(use.gradients, gradients, strict=True)
    ]
    return tf.add_n(products)
