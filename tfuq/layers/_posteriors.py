"""Forms of the Gaussian posterior of a last layer: diagonal, low rank, dense.

A form adds its weights to a layer; the formulas take what `read` makes of them, once per call.
"""

import warnings

import keras
import tensorflow as tf

from tfuq._random import points
from tfuq.layers.base import distributions, softplus_inverse

MIN_VARIANCE = 1e-12  # below it the square root has no useful gradient
OFF_DIAGONAL = 1e-3  # initial size of covariances, relative to a standard deviation


class Diagonal:
    """q(w_k) = N(m_k, diag(s_k^2)), with m and s of shape `(features, units)`."""

    @staticmethod
    def add_weights(layer, features):
        initial = layer.posterior_scale or 1 / features
        layer.kernel_rho = layer.add_weight(
            name="kernel_rho",
            shape=(features, layer.units),
            initializer=keras.initializers.Constant(float(softplus_inverse(initial))),
            autocast=False,
        )

    @staticmethod
    def read(layer):
        """s."""
        return (tf.nn.softplus(tf.cast(layer.kernel_rho, layer._sampling_dtype())),)

    @staticmethod
    def noise(scale, *, seed):
        """A draw of all weights less their means, `(features, units)`."""
        return scale * points.normal(scale.shape, seed=seed, dtype=scale.dtype)

    @staticmethod
    def variance(rows, scale):
        """sum_d x_d^2 s_dk^2."""
        return _product_of_squares(rows, scale)

    @staticmethod
    def halves(scale):
        """sum_k tr S_k / 2 and sum_k log det S_k / 2."""
        return tf.nn.l2_loss(scale), sum_of_logs(scale)

    @staticmethod
    def distribution(loc, scale):
        return distributions().MultivariateNormalDiag(loc, tf.transpose(scale))


class LowRank:
    """q(w_k) = N(m_k, diag(s_k^2) + U_k U_k^T), with U of shape `(features, units, rank)`."""

    @staticmethod
    def add_weights(layer, features):
        if layer.rank > features:
            raise ValueError(
                "Argument `rank` must not be above the number of features. "
                f"Received: rank={layer.rank} with {features} features"
            )
        Diagonal.add_weights(layer, features)
        layer.kernel_factor = _add_off_diagonal(
            layer, "kernel_factor", features, (features, layer.units, layer.rank)
        )

    @staticmethod
    def read(layer):
        """s and U."""
        (scale,) = Diagonal.read(layer)
        return scale, tf.cast(layer.kernel_factor, scale.dtype)

    @staticmethod
    def noise(scale, factor, *, seed):
        """s e + U z."""
        seed, factor_seed = points.split_seed(seed, 2)
        z = points.normal(factor.shape[1:], seed=factor_seed, dtype=factor.dtype)
        return Diagonal.noise(scale, seed=seed) + tf.reduce_sum(factor * z, axis=-1)

    @staticmethod
    def variance(rows, scale, factor):
        """The diagonal's, and sum_r (x^T u_kr)^2."""
        noise = tf.matmul(rows, tf.reshape(factor, (factor.shape[0], -1)))
        noise = tf.reshape(noise, (-1, *factor.shape[1:]))
        return Diagonal.variance(rows, scale) + tf.reduce_sum(tf.square(noise), axis=-1)

    @staticmethod
    def halves(scale, factor):
        """log det(diag(s^2) + U U^T) = log det diag(s^2) + log det(I + U^T diag(s^-2) U)."""
        trace, log_det = Diagonal.halves(scale)
        whitened = tf.transpose(factor * (1 / scale)[..., None], (1, 0, 2))
        log_det += tf.reduce_sum(log_det_update(whitened)) / 2
        return trace + tf.nn.l2_loss(factor), log_det

    @staticmethod
    def distribution(loc, scale, factor):
        variance = tf.transpose(tf.square(scale))
        factor = tf.transpose(factor, (1, 0, 2))
        return distributions().MultivariateNormalDiagPlusLowRankCovariance(loc, variance, factor)


class Dense:
    """q(w_k) = N(m_k, L_k L_k^T): s on the diagonal of L_k, `kernel_tril` below it."""

    @staticmethod
    def add_weights(layer, features):
        Diagonal.add_weights(layer, features)
        layer.kernel_tril = _add_off_diagonal(
            layer, "kernel_tril", features, (layer.units, features, features)
        )

    @staticmethod
    def read(layer):
        """s, and what of L is below the diagonal."""
        (scale,) = Diagonal.read(layer)
        kernel = tf.cast(layer.kernel_tril, scale.dtype)
        below = 1 - tf.linalg.band_part(tf.ones_like(kernel[0]), 0, -1)
        return scale, kernel * below

    @staticmethod
    def noise(scale, lower, *, seed):
        """L_k e_k."""
        e = points.normal(scale.shape, seed=seed, dtype=scale.dtype)
        return scale * e + tf.transpose(tf.linalg.matvec(lower, tf.transpose(e)))

    @staticmethod
    def variance(rows, scale, lower):
        """|x^T L_k|^2, a matrix product per class."""
        noise = tf.matmul(rows, lower) + rows * tf.transpose(scale)[:, None]
        return tf.transpose(tf.reduce_sum(tf.square(noise), axis=-1))

    @staticmethod
    def halves(scale, lower):
        """tr(L L^T) is the sum of squares of L."""
        trace, log_det = Diagonal.halves(scale)
        return trace + tf.nn.l2_loss(lower), log_det

    @staticmethod
    def distribution(loc, scale, lower):
        root = tf.linalg.set_diag(lower, tf.transpose(scale))
        return distributions().MultivariateNormalTriL(loc, root)


@tf.custom_gradient
def standard_deviation(variance):
    """sqrt(variance), with a gradient at 0: what is below `MIN_VARIANCE` has that one's."""
    found = tf.sqrt(tf.maximum(variance, MIN_VARIANCE))
    return found, lambda upstream: upstream * (0.5 / found)


@tf.custom_gradient
def beside(mean, constants, spread):
    """`(rows, m)`, `(n,)` in each row and `(rows, k)` side by side, gradients in two operations."""
    rows = tf.shape(mean)[0] if mean.shape[0] is None else mean.shape[0]
    sizes = [part.shape[-1] for part in (mean, constants, spread)]
    repeated = tf.broadcast_to(constants, (rows, sizes[1]))

    def gradients(upstream):
        of_mean, of_constants, of_spread = tf.split(upstream, sizes, axis=-1)
        return of_mean, tf.reduce_sum(of_constants, axis=0), of_spread

    return tf.concat([mean, repeated, spread], axis=-1), gradients


def sum_of_squares(values):
    """In two operations, with one for the gradient."""
    return 2 * tf.nn.l2_loss(values)


@tf.custom_gradient
def sum_of_logs(values):
    """Sum of the logarithms, with one operation for the gradient."""
    return tf.reduce_sum(tf.math.log(values)), lambda upstream: upstream / values


@tf.custom_gradient
def _product_of_squares(rows, scale):
    """(x * x) (s * s), for x `(rows, features)` and s `(features, units)`."""
    of_rows, of_scale = tf.square(rows), tf.square(scale)

    def gradients(upstream):
        twice = 2 * upstream
        drows = rows * tf.matmul(twice, of_scale, transpose_b=True)
        return drows, scale * tf.matmul(of_rows, twice, transpose_a=True)

    return tf.matmul(of_rows, of_scale), gradients


@tf.custom_gradient
def log_det_update(factor):
    """log det(I + U^T U) for U `(batch, features, rank)`; its gradient is 2 U (I + U^T U)^-1."""
    batch, _, rank = factor.shape
    identity = tf.eye(rank, batch_shape=(batch,), dtype=factor.dtype)
    gram = identity + tf.matmul(factor, factor, transpose_a=True)
    root = tf.linalg.cholesky(gram)

    def gradient(upstream):  # of a few rows and columns: one operation, where a solver takes two
        return tf.matmul(factor, 2 * upstream[:, None, None] * tf.linalg.inv(gram))

    return 2 * tf.reduce_sum(tf.math.log(tf.linalg.diag_part(root)), axis=-1), gradient


def _add_off_diagonal(layer, name, features, shape):
    # Not zero, where the gradient of U U^T is zero; small, so that training starts at the diagonal.
    size = OFF_DIAGONAL * (layer.posterior_scale or 1 / features)
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=keras.initializers.RandomNormal(stddev=size, seed=layer.seed),
        autocast=False,
    )


POSTERIORS = {"diagonal": Diagonal, "low_rank": LowRank, "dense": Dense}


class PosteriorName(str):
    """The argument `posterior` of a layer; its call, deprecated, is `posterior_distribution()`."""

    def __new__(cls, name, layer):
        found = super().__new__(cls, name)
        found._layer = layer
        return found

    def __call__(self):
        warnings.warn(
            "`posterior` is the argument of the layer. Call `posterior_distribution()`.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self._layer.posterior_distribution()

    def __reduce__(self):  # a copied or pickled configuration holds no layer
        return str, (str(self),)
