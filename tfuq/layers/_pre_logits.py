"""Gaussian features whose covariance depends on the input: the base of the heads of HET-XL."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_integer, shown
from tfuq.layers._factor_analysis import MCDenseFA
from tfuq.layers.base import distributions


class MCDenseXL(MCDenseFA):
    """Logits of features with noise, averaged after a link function.

    What is noise of logits in the base is noise of features here, and W^T of it that of logits.
    """

    def __init__(
        self,
        units: int,
        num_factors: int,
        temperature: float = 1.0,
        parameter_efficient: bool = True,
        train_mc_samples: int = 256,
        test_mc_samples: int = 1024,
        tune_temperature: bool = True,
        **kwargs: Any,
    ) -> None:
        check_integer("units", units, minimum=1)
        for name in ("last_layer", "kl_weight"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"Argument `{name}` belongs to heads that add noise to the logits; here the "
                    "kernel of the mean carries noise of the features to them. Use "
                    "`MCSoftmaxDenseFA` or `MCSigmoidDenseFA`. Received: "
                    f"{name}={shown(kwargs[name])}"
                )
        super().__init__(
            units,
            num_factors,
            temperature=temperature,
            parameter_efficient=parameter_efficient,
            train_mc_samples=train_mc_samples,
            test_mc_samples=test_mc_samples,
            tune_temperature=tune_temperature,
            **kwargs,
        )

    @property
    def units(self) -> int:
        return self.num_outputs

    def _noise_width(self, features):
        """Number of what is noisy: the features."""
        return features

    def _kernel(self):
        return tf.cast(tf.convert_to_tensor(self.loc_kernel), self._sampling_dtype())

    def _projection(self):
        return {"kernel": self._kernel()}

    def _logit_variance(self, scale, factors):
        """sum_d W_dk^2 d_d^2 + sum_r (W^T v_r)_k^2, one factor at a time."""
        kernel = self._kernel()
        variance = tf.matmul(tf.square(scale), tf.square(kernel))
        if not factors:
            return variance
        if len(factors) == 2:
            gain, loadings = factors
            each = loadings[:, None] * gain
        else:
            each = tf.transpose(factors[0], (2, 0, 1))

        def add(variance, factor):
            return variance + tf.square(tf.matmul(factor, kernel))

        return tf.foldl(add, each, initializer=variance)

    def feature_distribution(self, features: ArrayLike) -> Any:
        """The distribution of the noisy features x + d(x) e + V(x) z.

        Args:
            features: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            `tfp.distributions.MultivariateNormalDiagPlusLowRankCovariance` with batch shape
            `(batch, ...)` and event shape `(features,)`; without factors,
            `MultivariateNormalDiag`.
        """
        _, scale, loadings = self._moments(features)
        loc, tfd = tf.cast(features, scale.dtype), distributions()
        if loadings is None:
            return tfd.MultivariateNormalDiag(loc, scale)
        return tfd.MultivariateNormalDiagPlusLowRankCovariance(loc, tf.square(scale), loadings)

    def logit_distribution(self, features: ArrayLike) -> Any:
        """The distribution of the logits u(x), before the temperature.

        Args:
            features: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            `tfp.distributions.MultivariateNormalTriL` with batch shape `(batch, ...)` and event
            shape `(units,)`.

        Raises:
            ValueError: If there are more units than features: their Gaussian has no density.
        """
        loc, _, _ = self._moments(features)
        width = self.loc_kernel.shape[0]
        if self.units > width:
            raise ValueError(
                "Argument `units` must not be above the number of features, or the logits have no "
                "density. Multiply samples of `feature_distribution(features)` by the kernel, or "
                f"call `covariance(features)`. Received: units={shown(self.units)} with {width} "
                "features"
            )
        root = tf.linalg.cholesky(self.covariance(features))
        return distributions().MultivariateNormalTriL(loc, root)

    def covariance(self, features: ArrayLike) -> Tensor:
        """W^T (diag(d(x)^2) + V(x) V(x)^T) W of the logits, before the temperature.

        Args:
            features: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            Tensor of shape `(batch, ..., units, units)`.
        """
        _, scale, loadings = self._moments(features)
        kernel = self._kernel()
        scaled = scale[..., None] * kernel
        covariance = tf.matmul(scaled, scaled, transpose_a=True)
        if loadings is None:
            return covariance
        projected = tf.einsum("dk,...dr->...kr", kernel, loadings)
        return covariance + tf.matmul(projected, projected, transpose_b=True)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("last_layer", "kl_weight"):
            del config[name]
        return {"units": config.pop("num_outputs"), **config}
