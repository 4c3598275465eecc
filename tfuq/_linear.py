"""A matrix product with a gradient that suits wide kernels."""

import tensorflow as tf


@tf.custom_gradient
def project(inputs, kernel):
    """inputs W, for inputs `(rows, features)` and W `(features, units)`.

    dL/dinputs = g W^T is computed as (W g^T)^T: with many more units than rows, this reads W in the
    order in which it lies in memory.
    """

    def gradients(upstream):
        dinputs = tf.transpose(tf.matmul(kernel, upstream, transpose_b=True))
        return dinputs, tf.matmul(inputs, upstream, transpose_a=True)

    return tf.matmul(inputs, kernel), gradients
