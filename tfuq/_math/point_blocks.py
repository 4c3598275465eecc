"""Blocks of points, over which means under Gaussian noise are summed: `Blocks`.

A block is small enough for the caches. Noise of features times a kernel comes in `ProjectedBlocks`.
"""

import itertools
from typing import NamedTuple

import tensorflow as tf

from tfuq._math.logistic_links import Sigmoid, SigmoidByRows, Softmax, SoftmaxByRows

# Elements in a block. Three times as many are faster, but then memory still grows between 100 and
# 1,000 samples of 64 x 100 logits; from 2^20 on, blocks fall out of the cache.
BLOCK = 21 * 2**14
# Blocks of fewer points than this are slow for their size: many classes get larger blocks.
POINTS, LARGEST_BLOCK = 10, 2**21
MANY = LARGEST_BLOCK // (64 * POINTS)  # classes, from which blocks are of few rows, too
LARGEST_PRODUCT = 2**23  # elements in a block of noise that is a product with a kernel
SMALL = 2**17  # elements in all, up to which a loop costs more than it saves


class Blocks:
    """The points cut into equal blocks, the last one filled up; `mask` is 0 for the filling.

    `of_rows` are the blocks for some rows, where there are so many classes that `in_row_blocks`
    takes a few rows at once.
    """

    largest = LARGEST_BLOCK
    small = SMALL
    links = {Softmax: Softmax, Sigmoid: Sigmoid}

    def __init__(self, points, loc):
        self.of_rows, self._rows_at_once = self, None
        if self._has_many(loc.shape[1]):
            self._rows_at_once = -(-BLOCK // (POINTS * loc.shape[1]))
            if loc.shape[0] != self._rows_at_once:
                few = tf.zeros((self._rows_at_once, loc.shape[1]), loc.dtype)
                self.of_rows = Blocks(points, few)
        count, dimensions = points.shape
        elements = loc.shape.num_elements()
        least, most = (min, max) if elements is not None else (tf.minimum, tf.maximum)
        elements = most(tf.size(loc) if elements is None else elements, 1)
        several = least(POINTS, self.largest // elements)
        largest = least(most(most(BLOCK // elements, several), 1), count)
        self.number = -(-count // largest)
        one = isinstance(self.number, int) and self.number == 1
        self.one_small_block = one and elements * count <= self.small
        size = -(-count // self.number)
        filled = self.number * size
        points = tf.pad(points, [[0, filled - count], [0, 0]])
        points = tf.reshape(points, (self.number, size, dimensions))
        self.points = tf.transpose(points, (0, 2, 1))
        mask = tf.cast(tf.range(filled) < count, points.dtype)
        self.mask = tf.reshape(mask, (self.number, 1, size))

    @staticmethod
    def _has_many(classes):
        return classes is not None and classes >= MANY

    def apart(self, params):
        """Parameters by rows, and loadings, which all rows share."""
        return params[:3], params[3:]

    def in_row_blocks(self, function, arrays, likes, totals):
        """What `function` makes of `arrays` `(rows, ...)`, of many classes a few rows at once.

        Args:
            function: Of arrays; returns two tuples, of arrays by rows and of sums over these.
            arrays: Tensors, the first of means of logits.
            likes: Tensors of the shapes of the arrays that it returns.
            totals: Tensors of the shapes of its sums.
        """
        if self.of_rows is self:
            return function(*arrays)
        rows, size = tf.shape(arrays[0])[0], self._rows_at_once
        number = -(-rows // size)

        def cut(array):
            missing = [[0, number * size - rows], *[[0, 0]] * (array.shape.rank - 1)]
            return tf.reshape(tf.pad(array, missing), (number, size, *array.shape[1:]))

        blocks = [cut(array) for array in arrays]

        def body(index, written, sums):
            found, more = function(*(block[index] for block in blocks))
            written = [array.write(index, each) for array, each in zip(written, found, strict=True)]
            return index + 1, written, [a + b for a, b in zip(sums, more, strict=True)]

        empty = [tf.TensorArray(e.dtype, number, element_shape=(size, *e.shape[1:])) for e in likes]
        start = (0, empty, [tf.zeros_like(each) for each in totals])
        loop = tf.while_loop(lambda i, *_: i < number, body, start, parallel_iterations=1)
        whole = [
            tf.ensure_shape(tf.reshape(array.stack(), (-1, *like.shape[1:]))[:rows], like.shape)
            for array, like in zip(loop[1], likes, strict=True)
        ]
        return tuple(whole), tuple(loop[2])

    def noise(self, params, points):
        """What the logits of a block add to their means, as the quick road takes it."""
        return _noise(params, points)

    def by_class(self, noise):
        """`noise` as `(rows, classes, points)`."""
        return noise

    def recorded(self, params, points):
        """`noise`, and what makes of its gradient those of all parameters but the means."""
        with tf.GradientTape() as tape:
            tape.watch(params[1:])
            noise = self.noise(params, points)
        return noise, lambda upstream: tape.gradient(noise, params[1:], upstream)

    def reduce(self, function, initial):
        """function(state, points (dimensions, size), mask (1, size)) over the blocks."""

        def body(index, *state):
            return (index + 1, *function(state, self.points[index], self.mask[index]))

        if self.one_small_block:
            return body(0, *initial)[1:]
        loop = tf.while_loop(
            lambda index, *_: index < self.number, body, (0, *initial), parallel_iterations=1
        )
        return loop[1:]

    def total(self, function, like):
        """Sums over the blocks of what function(points, mask) returns, in the shapes of `like`."""
        if self.one_small_block:
            return function(self.points[0], self.mask[0])

        def add(state, points, mask):
            return added(state, function(points, mask))

        return self.reduce(add, self._zeros(like))

    def _zeros(self, like):
        return tuple(tf.zeros_like(each) for each in like)


class ProjectedBlocks(Blocks):
    """Blocks of the noise of features, projected: few and large, for each reads the kernel.

    The kernel is the largest of all arrays: it is never copied, and its gradient is summed a part
    at a time.
    """

    largest = small = LARGEST_PRODUCT
    links = {Softmax: SoftmaxByRows, Sigmoid: SigmoidByRows}

    def __init__(self, points, loc, scale, place):
        super().__init__(points, max(loc, scale, key=lambda each: each.shape[-1]))
        self._place = place  # of the kernel among the parameters; what turns the noise follows it

    def noise(self, params, points):
        """W^T (scale * e + F z), times what turns it: `(rows, points, classes)`."""
        return self._projected(params, self._rows(params, points), points)

    def by_class(self, noise):
        return tf.transpose(noise, (0, 2, 1))

    def recorded(self, params, points):
        own, kernel, turns = params[1 : self._place], params[self._place], self._turns(params)
        with tf.GradientTape() as tape:
            tape.watch(own)
            rows = self._rows(params, points)

        def gradients(upstream):
            upstream = upstream * turns[0][:, None] if turns else upstream
            flat = tf.reshape(upstream, (-1, kernel.shape[1]))
            # For wide kernels (W g^T)^T is faster than g W^T.
            of_rows = tf.transpose(tf.matmul(kernel, flat, transpose_b=True))
            of_signs = tuple(tf.zeros_like(each) for each in turns)
            return *tape.gradient(rows, own, of_rows), _Product(rows, flat), *of_signs

        return self._projected(params, rows, points), gradients

    def total(self, function, like):
        return _in_one_piece(super().total(function, like), self._place)

    def _zeros(self, like):
        zeros, kernel = list(super()._zeros(like)), like[self._place]
        zeros[self._place] = tuple(
            tf.zeros((end - start, kernel.shape[1]), kernel.dtype)
            for start, end in parts(*kernel.shape)
        )
        return tuple(zeros)

    @staticmethod
    def _has_many(classes):
        return False  # of few rows the product would not be worth reading the kernel

    def apart(self, params):
        return params, ()

    def _turns(self, params):
        return params[self._place + 1 :]

    def _rows(self, params, points):
        """Noise of the features, `(rows * points, features)`."""
        noise = tf.transpose(_noise(params[: self._place], points), (0, 2, 1))
        return tf.reshape(noise, (-1, noise.shape[-1]))

    def _projected(self, params, rows, points):
        kernel, turns = params[self._place], self._turns(params)
        noise = tf.reshape(rows @ kernel, (-1, tf.shape(points)[1], kernel.shape[1]))
        return noise * turns[0][:, None] if turns else noise


class _Product(NamedTuple):
    """rows^T upstream, the gradient of a kernel, which is as large as that: not made yet."""

    rows: tf.Tensor
    upstream: tf.Tensor

    def added_to(self, sums):
        """Sums of the parts, each with that of this product: one after the other."""
        bounds, found = parts(self.rows.shape[1], self.upstream.shape[1]), []
        for (start, end), before in zip(bounds, sums, strict=True):
            with tf.control_dependencies(found[-1:]):
                rows = tf.identity(self.rows[:, start:end])
            found.append(before + tf.matmul(rows, self.upstream, transpose_a=True))
        return tuple(found)


def _noise(params, points):
    """scale * e + F z for a block of points: `(rows, classes, points)`."""
    scale, *factors = params[1:]
    num_factors = points.shape[0] - scale.shape[-1]
    noise = scale[..., None] * points[num_factors:]
    if len(factors) == 1:
        flat = tf.matmul(tf.reshape(factors[0], (-1, num_factors)), points[:num_factors])
        noise += tf.reshape(flat, tf.shape(noise))
    elif factors:
        gain, loadings = factors
        noise += gain[..., None] * tf.matmul(loadings, points[:num_factors], transpose_a=True)
    return noise


def parts(features, classes):
    """Pairs of first and last feature that cut a kernel, no part of which is large."""
    number = min(-(-features * classes // LARGEST_PRODUCT), features)
    return list(itertools.pairwise(features * part // number for part in range(number + 1)))


def _in_one_piece(gradients, place):
    """Gradients with that of the kernel, a product or its parts, as one tensor."""
    found = gradients[place]
    if isinstance(found, _Product):
        whole = tf.matmul(*found, transpose_a=True)
    else:
        whole = tf.concat(found, axis=0)
    # What follows from that of the means is as large as the kernel: not beside the parts, too.
    with tf.control_dependencies([whole]):
        of_means = tf.identity(gradients[0])
    return of_means, *gradients[1:place], whole, *gradients[place + 1 :]


def added(state, more):
    pairs = zip(state, more, strict=True)
    return tuple(b.added_to(a) if isinstance(b, _Product) else a + b for a, b in pairs)
