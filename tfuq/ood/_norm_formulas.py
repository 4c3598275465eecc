"""Squared norms of each example's gradient of a weight, from what a layer takes and gives.

`uses` are pairs `(inputs, gradients)`, one for each time that the layer is called: what goes in,
and the gradient of the loss with respect to what comes out. Both are float32, examples first,
channels last, of known shapes. The gradient of a weight is the sum over positions and uses; it
never exists for more than a few examples at a time.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

MAX_ELEMENTS = 2**23  # of what is computed at a time, 32 MB; a single example may need more
MIN_WIDTH = 16  # columns from which a product of matrices is worth its call


class Window(NamedTuple):
    """Where the kernel of a convolution looks: three tuples, with a number for each axis."""

    size: tuple
    strides: tuple
    dilation: tuple

    def offsets(self):
        return list(np.ndindex(*self.size))

    def split(self, inputs):
        """`inputs` with each axis in two, the steps and the places within a step, zeros at the end.

        What a kernel meets is then one slice along the steps; slices that skip are far slower.
        """
        batch, *counts, channels = inputs.shape
        missing = [[0, -n % s] for n, s in zip(counts, self.strides, strict=True)]
        padded = tf.pad(inputs, [[0, 0], *missing, [0, 0]]) if np.any(missing) else inputs
        steps = [(-(-n // s), s) for n, s in zip(counts, self.strides, strict=True)]
        return tf.reshape(padded, (batch, *itertools.chain(*steps), channels))

    def met(self, inputs, offset, outputs):
        """The split inputs under one entry of the kernel, for `outputs` positions on each axis."""
        index = [slice(None)]
        for o, d, s, count in zip(offset, self.dilation, self.strides, outputs, strict=True):
            step, place = divmod(o * d, s)
            index += [slice(step, step + count), place]
        return inputs[tuple(index)]


POINTWISE = Window((1,), (1,), (1,))


def in_chunks(function, tensors, elements):
    """`function(tensors)`, for some examples at a time if each of them takes many `elements`."""
    count = tf.nest.flatten(tensors)[0].shape[0]
    parts = -(-count // max(1, MAX_ELEMENTS // elements))
    if parts == 1:
        return function(tensors)
    size = -(-count // parts)

    def split(tensor):
        padding = [[0, parts * size - count]] + [[0, 0]] * (tensor.shape.rank - 1)
        shape = tf.concat([[parts, size], tf.shape(tensor)[1:]], 0)
        return tf.reshape(tf.pad(tensor, padding), shape)

    found = tf.map_fn(
        function,
        tf.nest.map_structure(split, tensors),
        fn_output_signature=tf.float32,
        parallel_iterations=1,
    )
    return tf.reshape(found, (parts * size, *found.shape[2:]))[:count]


def _sum_in_turn(function, parts):
    """The sum of `function(part)`; none begins before the last has ended, to save memory."""
    total = tf.constant(0.0)
    for part in parts:
        with tf.control_dependencies([total]):
            total += function(part)
    return total


def squared_norms(values):
    """|v|^2 of each example."""
    return tf.reduce_sum(tf.square(values), axis=range(1, values.shape.rank))


def sum_norms(gradients, axes=(-1,)):
    """Of a weight that is added along `axes`, as a bias is: |sum_t g_t|^2."""
    return squared_norms(tf.add_n([_summed_except(g, axes) for g in gradients]))


def scale_norms(uses, axes=(-1,)):
    """Of a weight that multiplies along `axes`: |sum_t x_t * g_t|^2."""
    return sum_norms([x * g for x, g in uses], axes)


def _summed_except(values, axes):
    rank = values.shape.rank
    kept = {0, *(axis % rank for axis in axes)}
    return tf.reduce_sum(values, axis=[axis for axis in range(rank) if axis not in kept])


def kernel_norms(uses, window=POINTWISE, groups=1):
    """Of the kernel of a convolution: |sum_t p_t g_t^T|^2, with p_t the patch at position t.

    Two forms give the same number, and the shapes say which one is cheaper:

        |sum_t p_t g_t^T|^2  =  sum_{t, s} <p_t, p_s> <g_t, g_s>

    Args:
        uses: Pairs of inputs `(batch, *positions, channels)`, padded as the convolution wants them,
            and gradients `(batch, *output positions, filters)`.
        window: `Window`; by default that of a `Dense` layer, for pairs with one axis of positions.
        groups: Number of groups of channels.

    Returns:
        Tensor `(batch,)`.
    """
    batch = uses[0][0].shape[0]
    uses = [(window.split(_grouped(x, groups)), _grouped(g, groups)) for x, g in uses]
    width, filters = _width(uses, window), uses[0][1].shape[-1]
    is_gram_cheaper = _positions(uses) * (width + filters) < width * filters
    found = (_gram_norms if is_gram_cheaper else _outer_norms)(uses, window)
    return tf.reduce_sum(tf.reshape(found, (batch, groups)), axis=1)


def _grouped(values, groups):
    """`(batch * groups, *positions, channels / groups)`."""
    if groups == 1:
        return values
    batch, *positions, channels = values.shape
    split = tf.reshape(values, (batch, *positions, groups, channels // groups))
    rank = split.shape.rank
    moved = tf.transpose(split, (0, rank - 2, *range(1, rank - 2), rank - 1))
    return tf.reshape(moved, (batch * groups, *positions, channels // groups))


def _positions(uses):
    """How many patches an example has in all uses."""
    return sum(math.prod(g.shape[1:-1]) for _, g in uses)


def _width(uses, window):
    """How many numbers a patch holds."""
    return uses[0][0].shape[-1] * math.prod(window.size)


def _outer_norms(uses, window):
    """By way of the gradient itself, some rows of it at a time."""
    channels, filters = uses[0][0].shape[-1], uses[0][1].shape[-1]
    offsets = window.offsets()
    together = min(len(offsets), max(1, MIN_WIDTH // channels))
    runs = [offsets[i : i + together] for i in range(0, len(offsets), together)]

    def norms(uses):
        gradients = _gradients(uses)

        def of_rows(run):
            patches = _patches(uses, run, window)
            return squared_norms(tf.matmul(patches, gradients, transpose_a=True))

        return _sum_in_turn(of_rows, runs)

    return in_chunks(norms, uses, together * channels * (_positions(uses) + filters))


def _gram_norms(uses, window):
    """By way of the products of all positions with one another."""

    def norms(uses):
        patches, gradients = _patches(uses, window.offsets(), window), _gradients(uses)
        return tf.reduce_sum(_gram(patches) * _gram(gradients), axis=(1, 2))

    positions = _positions(uses)
    return in_chunks(norms, uses, positions * (positions + _width(uses, window)))


def _gram(rows):
    return tf.matmul(rows, rows, transpose_b=True)


def _patches(uses, offsets, window):
    """The columns of the patches that belong to `offsets`: `(batch, positions, columns)`."""
    patches = [
        _joined([_flat(window.met(x, offset, g.shape[1:-1])) for offset in offsets], axis=-1)
        for x, g in uses
    ]
    return _joined(patches, axis=1)


def _gradients(uses):
    return _joined([_flat(g) for _, g in uses], axis=1)


def _joined(tensors, axis):
    return tensors[0] if len(tensors) == 1 else tf.concat(tensors, axis)


def _flat(values):
    """`(batch, positions, channels)`, the batch of any size."""
    return tf.reshape(values, (-1, math.prod(values.shape[1:-1]), values.shape[-1]))


def depthwise_norms(uses, window):
    """Of a kernel that looks at each channel alone; its filters stand beside their channel."""
    channels, filters = uses[0][0].shape[-1], uses[0][1].shape[-1]
    uses = [(window.split(x), g) for x, g in uses]

    def product(x, g, offset):
        met = _flat(window.met(x, offset, g.shape[1:-1]))[..., None]
        beside = tf.reshape(g, (-1, met.shape[1], channels, filters // channels))
        return tf.reduce_sum(met * beside, axis=1)

    def norms(uses):
        def of_entry(offset):
            return squared_norms(tf.add_n([product(x, g, offset) for x, g in uses]))

        return _sum_in_turn(of_entry, window.offsets())

    return in_chunks(norms, uses, _positions(uses) * filters)


def row_norms(uses):
    """Of a table whose rows are looked up, by ids `(batch, positions)`: rows met twice add up."""
    ids = tf.concat([ids for ids, _ in uses], axis=1)
    gradients = tf.concat([g for _, g in uses], axis=1)
    batch, positions, width = gradients.shape
    order = tf.argsort(ids, axis=1)
    ids = tf.gather(ids, order, batch_dims=1)
    is_new = tf.pad(tf.cast(ids[:, 1:] != ids[:, :-1], "int32"), [[0, 0], [1, 0]])
    rows = tf.cumsum(is_new, axis=1) + positions * tf.range(batch)[:, None]
    gradients = tf.reshape(tf.gather(gradients, order, batch_dims=1), (-1, width))
    sums = tf.math.unsorted_segment_sum(gradients, tf.reshape(rows, [-1]), batch * positions)
    return squared_norms(tf.reshape(sums, (batch, positions, width)))
