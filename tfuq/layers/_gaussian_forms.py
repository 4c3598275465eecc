"""Covariances of all weights of a last layer together: diagonal, Kronecker-factored, full.

The inputs are `(rows, features)`; a bias takes one more feature, which is 1. What a form keeps are
roots of covariances, so that any numbers in it are some covariance.
"""

import keras
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._random import points

LARGEST = 2**13  # weights of a full covariance: 0.25 GiB in float32, 0.5 GiB in float64


def check_full_size(structure, weights):
    """Raises ValueError if the full covariance of so many weights is not to be kept."""
    if structure == "full" and weights > LARGEST:
        raise ValueError(
            f"Argument `structure` may be 'full' for at most {LARGEST:,} weights. Received: "
            f"structure={shown(structure)} with {weights:,} weights of the last layer, whose "
            f"covariance takes {4 * weights**2 / 2**30:,.1f} GiB. Use 'kfac' or 'diagonal'"
        )


def _with_one(rows, use_bias):
    return tf.pad(rows, [[0, 0], [0, 1]], constant_values=1.0) if use_bias else rows


class Diagonal:
    """Standard deviations `scale` `(features + 1, units)`."""

    @staticmethod
    def add_weights(layer, features):
        layer.add_spread("scale", (features + layer.use_bias, layer.units), "scale")

    @staticmethod
    def noise(layer, rows, seed):
        """What a draw of the weights adds to the outputs, `(rows, units)`."""
        drawn = layer.scale * points.normal(layer.scale.shape, seed=seed)
        rows = _with_one(rows, layer.use_bias)
        return tf.matmul(rows, tf.cast(drawn, rows.dtype))

    @staticmethod
    def variance(layer, rows):
        """Of the outputs, `(rows, units)`."""
        rows = _with_one(rows, layer.use_bias)
        return tf.matmul(tf.square(rows), tf.square(tf.cast(layer.scale, rows.dtype)))

    @staticmethod
    def root(layer, rows):
        """R with the covariance R R^T of each row's outputs, `(rows, units, numbers)`."""
        return tf.linalg.diag(tf.sqrt(Diagonal.variance(layer, rows)))


class Kronecker:
    """Kernel Q_x (S * E) Q_u^T and bias Q_u (s * e), with E and e standard normal.

    `basis_features` `(features, features)` and `basis_units` `(units, units)` are Q_x and Q_u, and
    `scale` `(features, units)` and `bias_scale` `(units,)` are S and s.
    """

    @staticmethod
    def add_weights(layer, features):
        layer.add_spread("basis_features", (features, features), "identity")
        layer.add_spread("basis_units", (layer.units, layer.units), "identity")
        layer.add_spread("scale", (features, layer.units), "scale")
        if layer.use_bias:
            layer.add_spread("bias_scale", (layer.units,), "scale")

    @staticmethod
    def noise(layer, rows, seed):
        seed, bias_seed = points.split_seed(seed, 2)
        drawn = layer.scale * points.normal(layer.scale.shape, seed=seed)
        turned = tf.matmul(rows, tf.cast(layer.basis_features, rows.dtype))
        turned = tf.matmul(turned, tf.cast(drawn, rows.dtype))
        if layer.use_bias:
            e = points.normal(layer.bias_scale.shape, seed=bias_seed)
            turned += tf.cast(layer.bias_scale * e, rows.dtype)
        return tf.matmul(turned, tf.cast(layer.basis_units, rows.dtype), transpose_b=True)

    @staticmethod
    def _turned_variance(layer, rows):
        """Of Q_u^T times the outputs, which are independent of each other."""
        turned = tf.square(tf.matmul(rows, tf.cast(layer.basis_features, rows.dtype)))
        variance = tf.matmul(turned, tf.square(tf.cast(layer.scale, rows.dtype)))
        if layer.use_bias:
            variance += tf.square(tf.cast(layer.bias_scale, rows.dtype))
        return variance

    @staticmethod
    def variance(layer, rows):
        variance = Kronecker._turned_variance(layer, rows)
        squares = tf.square(tf.cast(layer.basis_units, rows.dtype))
        return tf.matmul(variance, squares, transpose_b=True)

    @staticmethod
    def root(layer, rows):
        deviations = tf.sqrt(Kronecker._turned_variance(layer, rows))
        return tf.cast(layer.basis_units, rows.dtype) * deviations[:, None]


class Full:
    """`covariance_root` `(units, features + 1, numbers)`: weights R e, with e standard normal."""

    @staticmethod
    def add_weights(layer, features):
        rows = features + layer.use_bias
        weights = rows * layer.units
        check_full_size("full", weights)
        layer.add_spread("covariance_root", (layer.units, rows, weights), "identity", scaled=True)

    @staticmethod
    def noise(layer, rows, seed):
        root = layer.covariance_root
        drawn = tf.linalg.matvec(root, points.normal(root.shape[-1:], seed=seed))
        rows = _with_one(rows, layer.use_bias)
        return tf.matmul(rows, tf.cast(drawn, rows.dtype), transpose_b=True)

    @staticmethod
    def variance(layer, rows):
        return tf.reduce_sum(tf.square(Full.root(layer, rows)), axis=-1)

    @staticmethod
    def root(layer, rows):
        rows = _with_one(rows, layer.use_bias)
        root = tf.cast(layer.covariance_root, rows.dtype)
        units, features, numbers = root.shape
        flat = tf.reshape(tf.transpose(root, (1, 0, 2)), (features, units * numbers))
        return tf.reshape(tf.matmul(rows, flat), (-1, units, numbers))


FORMS = {"diagonal": Diagonal, "kfac": Kronecker, "full": Full}


class ScaledIdentity(keras.initializers.Initializer):
    """The identity times a number, over the last axis and all before it together."""

    def __init__(self, gain=1.0):
        self.gain = gain

    def __call__(self, shape, dtype=None):
        return tf.reshape(self.gain * tf.eye(shape[-1], dtype=dtype), shape)

    def get_config(self):
        return {"gain": self.gain}
