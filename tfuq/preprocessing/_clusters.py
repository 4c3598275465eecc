"""Colours of an image in a few clusters, by k-means on a table of them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

LEVELS = 8  # of each channel of quantized colours
ITERATIONS = 10  # of k-means, which here has settled before


def joined(table, cells):
    """Sums over the cells of each image."""
    shape = (tf.shape(table)[0] // cells, cells, *table.shape[1:])
    return tf.reduce_sum(tf.reshape(table, shape), axis=1)


def quantized(images, weight, cell=None, cells=1):
    """Weights `(groups, bins)` and sums `(groups, bins, channels)` of quantized colours.

    A group is a cell of an image, numbered through the batch, or by default the image.
    """
    batch, channels = tf.shape(images)[0], images.shape[-1]
    if cell is None:
        cell = tf.range(batch)[:, None, None]
    level = tf.cast(tf.minimum(images * LEVELS, LEVELS - 1), "int32")
    bins = LEVELS**channels
    index = cell * bins + tf.reduce_sum(level * LEVELS ** np.arange(channels), axis=-1)
    groups = batch * cells
    counts = tf.math.unsorted_segment_sum(weight, index, groups * bins)
    sums = tf.math.unsorted_segment_sum(weight[..., None] * images, index, groups * bins)
    return tf.reshape(counts, (groups, bins)), tf.reshape(sums, (groups, bins, channels))


def clusters(counts, sums, k):
    """Centres `(groups, k, channels)` of k-means and their shares `(groups, k)`, largest first."""
    counts, sums = tf.stop_gradient(counts), tf.stop_gradient(sums)
    colours = tf.math.divide_no_nan(sums, counts[..., None])
    centres = first_centres(colours, counts, k)

    def assigned(centres):
        along = tf.matmul(colours, centres, transpose_b=True)
        distance = tf.reduce_sum(tf.square(centres), axis=-1)[:, None] - 2 * along
        return tf.one_hot(tf.argmin(distance, axis=-1), k) * counts[..., None]

    def moved(centres):
        members = assigned(centres)
        sizes = tf.reduce_sum(members, axis=1)[..., None]
        means = tf.math.divide_no_nan(tf.matmul(members, colours, transpose_a=True), sizes)
        return (tf.where(sizes > 0, means, centres),)

    (centres,) = tf.while_loop(lambda _: True, moved, (centres,), maximum_iterations=ITERATIONS)
    sizes = tf.reduce_sum(assigned(centres), axis=1)
    order = tf.argsort(sizes, axis=-1, direction="DESCENDING", stable=True)
    shares = tf.math.divide_no_nan(sizes, tf.reduce_sum(counts, axis=-1, keepdims=True))
    return tuple(tf.gather(each, order, axis=1, batch_dims=1) for each in (centres, shares))


def first_centres(colours, counts, k):
    """Centres `(groups, k, channels)`: the most frequent, then what adds most to the distances."""
    chosen, squared = [], tf.ones_like(counts)
    for number in range(k):
        index = tf.argmax(counts * squared, axis=-1)
        centre = tf.gather(colours, index, axis=1, batch_dims=1)[:, None]
        distance = tf.reduce_sum(tf.square(colours - centre), axis=-1)
        squared = tf.minimum(squared, distance) if number else distance
        chosen.append(centre)
    return tf.concat(chosen, axis=1)
