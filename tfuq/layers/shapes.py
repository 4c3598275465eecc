"""A matrix product with a gradient that suits wide kernels, and rows given their axes back."""

import keras
import tensorflow as tf


def floating(inputs, dtype):
    """Inputs of integers or Booleans as numbers of `dtype`, as Keras' `Dense` takes them.

    A kernel in their dtype would have lost all of its fractions.
    """
    inputs = tf.convert_to_tensor(inputs)
    return inputs if inputs.dtype.is_floating else tf.cast(inputs, dtype)


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


def as_matrix(inputs):
    """`(batch, ..., features)` as `(rows, features)`."""
    return inputs if inputs.shape.rank == 2 else tf.reshape(inputs, (-1, inputs.shape[-1]))


def with_leading(tensor, inputs):
    """`(rows, ...)` with all but the last dimension of `inputs` in place of `rows`."""
    if inputs.shape.rank == 2:
        return tensor
    shape = tf.concat([tf.shape(inputs)[:-1], tf.shape(tensor)[1:]], axis=0)
    return tf.ensure_shape(tf.reshape(tensor, shape), (*inputs.shape[:-1], *tensor.shape[1:]))


def checked_features(layer, input_shape):
    """How many features there are; `layer` takes that many from now on.

    Raises:
        ValueError: If their number is not known.
    """
    features = input_shape[-1]
    if not features:
        raise ValueError(
            "The last dimension of the inputs must be known. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    layer.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: features})
    return features
