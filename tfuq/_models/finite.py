"""Rows that are numbers: NaN and infinity give NaN, never a prediction."""

import tensorflow as tf


def finite_rows(batch):
    """Whether each example is finite in all inputs that are floating point, a tensor `(batch,)`."""
    leaves = tf.nest.flatten(batch)
    rows = tf.ones(tf.shape(leaves[0])[:1], "bool")
    for leaf in leaves:
        if leaf.dtype.is_floating:
            # A sum is finite if all that is in it is; it is scaled so that it cannot overflow. (To
            # ask each number first takes LiteRT several times as long.)
            scaled = leaf * tf.constant(2.0**-24, leaf.dtype)
            rows &= tf.math.is_finite(tf.reduce_sum(scaled, axis=tf.range(1, tf.rank(leaf))))
    return rows


def known_only(batch, predictions):
    """Predictions `(batch, ...)`, NaN for the examples of `batch` that are not finite.

    A network may hide these: max-pooling passes over a NaN as over a small number, and what comes
    out is as confident as any answer.
    """
    if not all(isinstance(leaf, tf.Tensor) for leaf in tf.nest.flatten(batch)):
        return predictions  # sparse or ragged
    return where_known(finite_rows(batch), predictions)


def where_known(rows, predictions, axis=0, otherwise=float("nan")):
    """Predictions of the examples in `rows`, `(batch,)`, which lie along `axis`; or `otherwise`."""
    shape = [1] * len(predictions.shape)
    shape[axis] = -1
    return tf.where(tf.reshape(rows, shape), predictions, tf.constant(otherwise, predictions.dtype))
