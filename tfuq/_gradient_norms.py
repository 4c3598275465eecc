"""Squared norms of each example's gradient of a weight, from what a layer takes and gives.

`uses` are pairs `(inputs, gradients)`, one for each time that the layer is called: what goes in,
and the gradient of the loss with respect to what comes out. Both are float32, examples first,
channels last, of known shapes. The gradient of a weight is the sum over positions and uses; it
never exists for more than a few examples at a time.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

MAX_ELEMENTS = 2**23  # of what is computed at a time, 32 MB; a single example may need more
MIN_WIDTH = 64  # columns from which a product of matrices is worth its call
MAX_USES = 4  # of a layer, for Gram matrices of all pairs
COPY_COST = 200  # of copying a number into place, in multiplications


class Window(NamedTuple):
    """Where the kernel of a convolution looks: three tuples, with a number for each axis."""

    size: tuple
    strides: tuple
    dilation: tuple

    def offsets(self):
        return list(np.ndindex(*self.size))

    def slices(self, offset, outputs):
        """The inputs under one entry of the kernel, for `outputs` positions along each axis."""
        starts = [o * d for o, d in zip(offset, self.dilation, strict=True)]
        return tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(starts, outputs, self.strides, strict=True)
        )


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
    if math.prod(window.size) == 1:
        uses, window = [_in_sequence(uses, window)], POINTWISE
    uses = [(_grouped(x, groups), _grouped(g, groups)) for x, g in uses]
    if len(uses) > MAX_USES or outer_cost(uses, window) <= gram_cost(uses, window):
        found = _outer_norms(uses, window)
    else:
        found = _gram_norms(uses, window)
    return tf.reduce_sum(tf.reshape(found, (batch, groups)), axis=1)


def _in_sequence(uses, window):
    """The positions of all uses one after the other, where a kernel looks at one at a time."""
    start = window.offsets()[0]
    inputs = [_flat(_shifted(x, g, start, window)) for x, g in uses]
    return tf.concat(inputs, axis=1), tf.concat([_flat(g) for _, g in uses], axis=1)


def _grouped(values, groups):
    """`(batch * groups, *positions, channels / groups)`."""
    if groups == 1:
        return values
    batch, *positions, channels = values.shape
    split = tf.reshape(values, (batch, *positions, groups, channels // groups))
    rank = split.shape.rank
    moved = tf.transpose(split, (0, rank - 2, *range(1, rank - 2), rank - 1))
    return tf.reshape(moved, (batch * groups, *positions, channels // groups))


def outer_cost(uses, window):
    """Multiplications for one example, by way of the gradient itself."""
    return sum(_area(g) * x.shape[-1] * g.shape[-1] for x, g in uses) * len(window.offsets())


def gram_cost(uses, window):
    """Multiplications for one example, by way of Gram matrices."""
    copies = 0 if window == POINTWISE else COPY_COST * len(window.offsets())
    return sum(
        _area(x) * _area(y) * x.shape[-1] + _area(g) * _area(h) * (g.shape[-1] + copies)
        for x, g, y, h, _ in _pairs(uses)
    )


def _outer_norms(uses, window):
    channels, filters = uses[0][0].shape[-1], uses[0][1].shape[-1]
    offsets = window.offsets()
    together = min(len(offsets), max(1, MIN_WIDTH // channels))
    runs = [offsets[i : i + together] for i in range(0, len(offsets), together)]

    def norms(uses):
        def gradient(run):
            products = [
                tf.matmul(_columns(x, g, run, window), _flat(g), transpose_a=True) for x, g in uses
            ]
            return tf.add_n(products)

        return tf.add_n([squared_norms(gradient(run)) for run in runs])

    area = max(_area(g) for _, g in uses)
    return in_chunks(norms, uses, together * channels * (area + filters))


def _columns(inputs, gradients, offsets, window):
    """The columns of the patches that belong to `offsets`: `(batch, positions, columns)`."""
    columns = [_flat(_shifted(inputs, gradients, offset, window)) for offset in offsets]
    return columns[0] if len(columns) == 1 else tf.concat(columns, axis=-1)


def _shifted(inputs, gradients, offset, window):
    """The inputs that one entry of the kernel meets, at the positions of `gradients`."""
    return inputs[(slice(None), *window.slices(offset, gradients.shape[1:-1]))]


def _gram_norms(uses, window):
    def norms(uses):
        found = []
        for x, g, y, h, weight in _pairs(uses):
            products = _patch_gram(x, g, y, h, window) * _gram(g, h)
            found.append(weight * tf.reduce_sum(products, axis=(1, 2)))
        return tf.add_n(found)

    return in_chunks(norms, uses, max(_area(x) for x, _ in uses) ** 2)


def _pairs(uses):
    """Uses two by two, each couple once, with the weight of what is symmetric."""
    for i, (x, g) in enumerate(uses):
        for j, (y, h) in enumerate(uses[i:]):
            yield x, g, y, h, 2.0 if j else 1.0


def _patch_gram(x, g, y, h, window):
    """<p_t, q_s> of the patches p of `x` and q of `y`, from the Gram matrix of their pixels."""
    gram = _gram(x, y)
    if window == POINTWISE:
        return gram
    gram = tf.reshape(gram, (-1, *x.shape[1:-1], *y.shape[1:-1]))
    rows, columns = g.shape[1:-1], h.shape[1:-1]
    parts = [
        gram[(slice(None), *window.slices(offset, rows), *window.slices(offset, columns))]
        for offset in window.offsets()
    ]
    return tf.reshape(tf.add_n(parts), (-1, _area(g), _area(h)))


def _gram(x, y):
    return tf.matmul(_flat(x), _flat(y), transpose_b=True)


def _area(values):
    return math.prod(values.shape[1:-1])


def _flat(values):
    """`(batch, positions, channels)`, the batch of any size."""
    return tf.reshape(values, (-1, _area(values), values.shape[-1]))


def depthwise_norms(uses, window):
    """Of a kernel that looks at each channel alone; its filters stand beside their channel."""
    channels, filters = uses[0][0].shape[-1], uses[0][1].shape[-1]

    def product(x, g, offset):
        met = _flat(_shifted(x, g, offset, window))[..., None]
        beside = tf.reshape(g, (-1, _area(g), channels, filters // channels))
        return tf.reduce_sum(met * beside, axis=1)

    def norms(uses):
        def gradient(offset):
            return tf.add_n([product(x, g, offset) for x, g in uses])

        return tf.add_n([squared_norms(gradient(offset)) for offset in window.offsets()])

    return in_chunks(norms, uses, max(_area(g) for _, g in uses) * filters)


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
