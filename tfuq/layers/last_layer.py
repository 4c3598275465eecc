"""A linear last layer with Gaussian weights: its posterior, its noise, the terms of its bound."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor, check_choice, check_flags, check_integer, check_positive, shown
from tfuq.layers._posteriors import POSTERIORS, PosteriorName
from tfuq.layers.base import VariationalLayer, check_kl_weight, softplus_inverse
from tfuq.layers.shapes import as_matrix, checked_features

_ARGUMENTS = (
    "kl_weight", "posterior", "rank", "prior_scale", "posterior_scale", "noise_scale",
    "wishart_scale", "dof", "use_bias", "seed",
)  # fmt: skip


def wishart_penalty(sigma, scale, power):
    """sum_k scale / sigma_k^2 / 2 + power log sigma_k, its gradient in few operations."""

    @tf.custom_gradient
    def penalty(sigma):
        inverse = tf.math.reciprocal(sigma)
        squares = tf.square(inverse)
        sums = tf.reduce_sum(scale / 2 * squares + power * tf.math.log(sigma))
        return sums, lambda upstream: upstream * inverse * (power - scale * squares)

    return penalty(sigma)


class GaussianLastLayer(VariationalLayer):
    """u_k = w_k^T x + b_k + e_k with w_k ~ N(m_k, S_k) and noise e_k ~ N(0, sigma_k^2).

    A subclass has the attribute `units`, and `noise` if not `"learned"`; it answers in the dtype
    `_sampling_dtype()`.
    """

    noise = "learned"
    min_scale = 0.0
    """What is added to a learned sigma."""

    def __init__(
        self,
        *,
        kl_weight: float | None = None,
        posterior: str = "diagonal",
        rank: int | None = None,
        prior_scale: float = 1.0,
        posterior_scale: float | None = None,
        noise_scale: float = 0.1,
        wishart_scale: float = 1.0,
        dof: float = 1.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kl_weight = kl_weight
        self.posterior = posterior
        self.rank = rank
        self.prior_scale, self.posterior_scale = prior_scale, posterior_scale
        self.noise_scale, self.wishart_scale, self.dof = noise_scale, wishart_scale, dof
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.seed = seed
        self._check_last_layer()
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def _check_last_layer(self):
        check_kl_weight(self.kl_weight)
        check_choice("posterior", self._posterior, tuple(POSTERIORS))
        if (self.rank is None) == (self._posterior == "low_rank"):
            raise ValueError(
                "Argument `rank` must be given with posterior='low_rank', and only then. "
                f"Received: rank={shown(self.rank)} with posterior={shown(self._posterior)}"
            )
        if self.rank is not None:
            check_integer("rank", self.rank, minimum=1)
        if self.posterior_scale is not None:
            check_positive("posterior_scale", self.posterior_scale)
        for name in ("prior_scale", "noise_scale", "wishart_scale", "dof"):
            check_positive(name, getattr(self, name))
        check_flags(use_bias=self.use_bias)
        if self.seed is not None:
            check_integer("seed", self.seed, minimum=0)

    def build(self, input_shape: Any) -> None:
        features = checked_features(self, input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(features, self.units),
            initializer=self.kernel_initializer,
            constraint=self.kernel_constraint,
            autocast=False,  # the KL divergence takes it in full precision
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self._form.add_weights(self, features)
        if self.noise != "none":
            self.noise_rho = self.add_weight(
                name="noise_rho",
                shape=self._noise_shape(features),
                initializer=keras.initializers.Constant(float(softplus_inverse(self.noise_scale))),
                autocast=False,
            )
        self._add_beta()
        self._warn_if_heavy(features * self.units, self.posterior_scale or 1 / features)

    def _noise_shape(self, features):
        """Shape of sigma."""
        del features  # the noise is of the outputs
        return (self.units,)

    @property
    def posterior(self) -> Any:
        """The form of the posterior, the constructor's argument."""
        return PosteriorName(self._posterior, self)

    @posterior.setter
    def posterior(self, name: str) -> None:
        self._posterior = str(name) if isinstance(name, str) else name

    @property
    def _form(self):
        return POSTERIORS[self._posterior]

    def _noise_scale(self):
        """sigma `(units,)`, or 0."""
        dtype = self._sampling_dtype()
        if self.noise == "none":
            return tf.zeros((), dtype)
        return tf.nn.softplus(tf.cast(self.noise_rho, dtype)) + self.min_scale

    def _noise_variance(self):
        return tf.square(self._noise_scale())

    def _mean(self, inputs):
        """Mean of u, `(rows, units)`."""
        rows = as_matrix(inputs)
        mean = tf.matmul(rows, tf.cast(self.kernel, rows.dtype))
        mean = tf.nn.bias_add(mean, tf.cast(self.bias, mean.dtype)) if self.use_bias else mean
        return tf.cast(mean, self._sampling_dtype())

    def _rows(self, inputs):
        """The inputs `(rows, features)`, in the sampling dtype."""
        return tf.cast(as_matrix(inputs), self._sampling_dtype())

    def _moments(self, inputs, spread):
        """Mean of u and its variance without the noise, `(rows, units)`."""
        return self._mean(inputs), self._form.variance(self._rows(inputs), *spread)

    def _drawn(self, inputs, mean, spread, seed):
        """`w_k^T x + b_k` of one draw of the weights, given its mean, `(rows, units)`."""
        return mean + tf.matmul(self._rows(inputs), self._form.noise(*spread, seed=seed))

    def kl_divergence(self) -> Tensor:
        """The KL divergence of the posterior from the prior, in nats; with learned noise, plus
        the negative log-density of its Wishart prior up to a constant, or the divergence of its
        own posterior. A scalar tensor.
        """
        return self._kl(self._form.read(self), self._noise_scale())

    def _kl(self, spread, sigma):
        """The divergence, from what the posterior's form reads and the scale of the noise."""
        half_trace, half_log_det = self._form.halves(*spread)
        prior_variance, size = self.prior_scale**2, math.prod(self.kernel.shape)
        kl = (half_trace + self._half_squared_means(sigma)) / prior_variance - half_log_det
        kl += size * (math.log(prior_variance) - 1) / 2
        return kl if self.noise == "none" else kl + self._noise_penalty(sigma)

    def _half_squared_means(self, sigma):
        """sum_k |m_k|^2 / 2, in units of the variance of the weights."""
        del sigma  # the weights have variances of their own
        return tf.nn.l2_loss(tf.cast(tf.convert_to_tensor(self.kernel), self._sampling_dtype()))

    def _noise_penalty(self, sigma):
        return wishart_penalty(sigma, self.wishart_scale, self.dof + self.units + 1)

    def posterior_distribution(self) -> Any:
        """q(w_1), ..., q(w_K), the posterior of each output's weights.

        Returns:
            TFP distribution with batch shape `(units,)` and event shape `(features,)`:
            `MultivariateNormalDiag`, `MultivariateNormalDiagPlusLowRankCovariance` or
            `MultivariateNormalTriL`.

        Raises:
            ValueError: If the layer is not built.
        """
        if not self.built:
            raise ValueError("The layer has no weights before it is built. Received: built=False")
        loc = tf.transpose(tf.convert_to_tensor(self.kernel))
        spread = self._form.read(self)
        return self._form.distribution(tf.cast(loc, spread[0].dtype), *spread)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update({name: getattr(self, name) for name in _ARGUMENTS})
        for name in ("kernel_initializer", "bias_initializer"):
            config[name] = keras.initializers.serialize(getattr(self, name))
        for name in ("kernel_constraint", "bias_constraint"):
            config[name] = keras.constraints.serialize(getattr(self, name))
        config["bias_regularizer"] = keras.regularizers.serialize(self.bias_regularizer)
        return config
