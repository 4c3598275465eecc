"""Gaussian kernels, and estimators of the noise that they bring into a linear operation.

A kernel is `Gaussian` or `SparseGaussian`; an estimator takes either, and any operation
`op(inputs, kernel)` that is linear in both.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._random import points

MIN_VARIANCE = 1e-12  # below it the square root has no useful gradient


class Gaussian(NamedTuple):
    """Independent weights N(loc, scale^2), both of the kernel's shape."""

    loc: tf.Tensor
    scale: tf.Tensor

    def variance(self):
        """Of each weight, in the kernel's shape."""
        return tf.square(self.scale)

    def noise(self, *, seed):
        """A draw of kernel - loc."""
        return self.scale * points.normal(tf.shape(self.scale), seed=seed, dtype=self.scale.dtype)


class SparseGaussian(NamedTuple):
    """Weights of which only some, w[indices], are random: N(loc[indices], scale^2).

    `indices` `(k,)` count along the flat `loc`, each once and in ascending order; `scale` is
    `(k,)`.
    """

    loc: tf.Tensor
    indices: tf.Tensor
    scale: tf.Tensor

    def variance(self):
        """Of each weight, in the kernel's shape: 0 where it is not random."""
        return self._spread(tf.square(self.scale))

    def noise(self, *, seed):
        """A draw of kernel - loc: 0 where a weight is not random."""
        noise = points.normal(tf.shape(self.scale), seed=seed, dtype=self.scale.dtype)
        return self._spread(self.scale * noise)

    def selected(self):
        """Means `(k,)` of the random weights."""
        return tf.gather(tf.reshape(self.loc, [-1]), self.indices)

    def _spread(self, values):
        size = int(np.prod(self.loc.shape))
        if values.shape[0] != size:
            values = tf.scatter_nd(self.indices[:, None], values, [size])
        return tf.reshape(values, self.loc.shape)


def reparameterization(op, x, kernel, *, seed, channel_axis=-1):
    """op(x, loc + e) with one draw e for the whole batch (Kingma and Welling 2014)."""
    del channel_axis
    return op(x, tf.cast(kernel.loc + kernel.noise(seed=seed), x.dtype))


def local_reparameterization(op, x, kernel, *, seed, channel_axis=-1):
    """op(x, loc) + sqrt(op(x^2, scale^2)) e, a draw e per output (Kingma et al. 2015).

    Exact for one output of a linear operation; outputs that share weights, such as the places of a
    convolution, are drawn as if they did not.
    """
    del channel_axis
    mean = op(x, tf.cast(kernel.loc, x.dtype))
    return mean + tf.cast(_gaussian_noise(op, x, kernel.variance(), seed), mean.dtype)


def _gaussian_noise(op, x, variance, seed):
    """sqrt(op(x^2, variance)) e, which keeps one tensor for its gradient, e / (2 sqrt(...)).

    Left to itself, TensorFlow would keep five of the outputs' size. The squares are made again.
    """

    @tf.custom_gradient
    def noise(x, variance):
        of_outputs = op(tf.square(tf.cast(x, variance.dtype)), variance)
        root = tf.sqrt(tf.maximum(of_outputs, MIN_VARIANCE))
        e = points.normal(tf.shape(root), seed=seed, dtype=root.dtype)
        derivative = tf.where(of_outputs > MIN_VARIANCE, e / (2 * root), 0)

        def gradients(upstream):
            with tf.control_dependencies([upstream]):  # or both squares would be one, and kept
                wide = tf.cast(x, variance.dtype)
                squares = tf.square(wide)
            with tf.GradientTape() as tape:
                tape.watch([squares, variance])
                again = op(squares, variance)  # not computed: its gradients do not ask for it
            of_squares, of_variance = tape.gradient(
                again, [squares, variance], upstream * derivative
            )
            return tf.cast(2 * wide * of_squares, x.dtype), of_variance

        return root * e, gradients

    return noise(tf.identity(x), variance)  # an input of a branch cannot be asked for twice


def flipout(op, x, kernel, *, seed, channel_axis=-1):
    """op(x, loc) + op(x s, e) r, with one draw e and signs s and r per example.

    Wen et al. 2018, equation 4. Signs are per channel of the input and of the output.
    """
    noise_seed, in_seed, out_seed = points.split_seed(seed, 3)
    mean = op(x, tf.cast(kernel.loc, x.dtype))
    e = tf.cast(kernel.noise(seed=noise_seed), x.dtype)
    noise = op(x * _channel_signs(x, channel_axis, seed=in_seed), e)
    return mean + noise * _channel_signs(mean, channel_axis, seed=out_seed)


def _channel_signs(x, channel_axis, *, seed):
    """Signs that broadcast over all axes of `x` but the batch and the channels."""
    kept = (0, channel_axis % x.shape.rank)
    shape = [tf.shape(x)[axis] if axis in kept else 1 for axis in range(x.shape.rank)]
    return points.random_signs(tf.stack(shape), seed=seed, dtype=x.dtype)


ESTIMATORS = {
    "flipout": flipout,
    "reparameterization": reparameterization,
    "local_reparameterization": local_reparameterization,
}


def with_random_signs(scale, factors, *, seed):
    """The noise of each row mirrored at random: its distribution stays, rows decorrelate."""
    scale_seed, factor_seed = points.split_seed(seed, 2)
    shape = tf.shape(scale)
    scale *= points.random_signs(shape, seed=scale_seed, dtype=scale.dtype)
    if not factors:
        return scale, factors
    # A sign per row and factor for V(x); for v(x), whose factors are shared, one per row.
    shape = (shape[0], 1, factors[0].shape[-1])[: factors[0].shape.rank]
    signs = points.random_signs(shape, seed=factor_seed, dtype=scale.dtype)
    return scale, (factors[0] * signs, *factors[1:])
