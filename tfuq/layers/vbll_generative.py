"""Generative variational Bayesian last layer (Harrison, Willes and Snoek, ICLR 2024)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfuq._arguments import Tensor, check_integer, register
from tfuq._random.draws import current_draw
from tfuq.layers._likelihoods import Categorical
from tfuq.layers._training import add_term
from tfuq.layers.base import distributions
from tfuq.layers.heads import Head, OutputMeaning
from tfuq.layers.last_layer import GaussianLastLayer, wishart_penalty
from tfuq.layers.shapes import floating, with_leading
from tfuq.layers.ways import wanted_way


def log_densities(rows, means, noise, spread=None, bias=0.0):
    """log N(x; m_k, diag(v_k)) + bias_k of rows `(n, features)`, for v_k = noise + spread_k.

    Far from all means what they share is much larger than what tells classes apart. It is one
    number for each row, added last, so that what is lost is lost for all classes alike; float32 by
    a sum for each class had errors of several nats between classes at 1,000.

    Args:
        rows: `(n, features)`.
        means: m, `(features, units)`.
        noise: Variances that all classes share, `(features, 1)`.
        spread: What each class adds to them, `(features, units)`, or None for nothing.
        bias: `(units,)`.
    """
    center = tf.reduce_mean(means, axis=1)
    rows, means = rows - center, means - center[:, None]
    usual = 0.0 if spread is None else tf.reduce_mean(spread, axis=1, keepdims=True)
    shared, variances = noise + usual, noise if spread is None else noise + spread
    apart = tf.matmul(rows, means / variances) + bias
    apart -= tf.reduce_sum(tf.square(means) / variances + tf.math.log(variances), axis=0) / 2
    if spread is not None:  # 1 / v - 1 / shared, where the difference of inverses would cancel
        inverses = (usual - spread) / (variances * shared)
        apart -= tf.matmul(tf.square(rows), inverses) / 2
    together = tf.reduce_sum(tf.square(rows) / shared[:, 0], axis=1, keepdims=True)
    return apart - (together + rows.shape[-1] * math.log(2 * math.pi)) / 2


@register
class VBLLGenerativeDense(Head, GaussianLastLayer):
    """Generative variational Bayesian last layer: a Gaussian of the features for each class.

    It stands in for the last `Dense` of a classifier. Each class has a mean in the space of the
    features, which is uncertain, and all share the variances around it. The logits are
    log-densities: far from all classes they are low, so that `tfuq.ood.Energy` and its kin, which
    take `mean_logits`, see what is like none. Trained with your own cross-entropy,
    `from_logits=True`; what the bound has beyond it needs no label, and the layer adds it to the
    loss. Nothing is sampled.

    Formula (Harrison et al. 2024, section 2.4 and theorem 2):

    ```
    mu_k ~ N(m_k, S_k), S_k diagonal,  x | k ~ N(mu_k, C), C = diag(sigma^2)
    training:    logits_k = log N(x; m_k, C) - tr(C^-1 S_k) / 2 + b_k,  and the loss has
                 E[lse_k(log N(x; m_k, S_k + C) + b_k) - lse_k(logits_k)] + kl_weight * beta * KL
    prediction:  logits_k = log N(x; m_k, S_k + C) + b_k
    KL = sum_k KL(N(m_k, S_k) || N(0, prior_scale^2 I))
         - (dof + features + 1) / 2 * sum log sigma^-2 + wishart_scale / 2 * sum sigma^-2
    ```

    E is weighted and reduced as the compiled cross-entropy is; see `VBLLDense`. The features best
    are of about unit scale, as a normalization makes them. A draw of the network takes one mean for
    each class; the mean of such draws is near the prediction, not equal to it, since that one
    averages densities.

    Args:
        units: Integer K, the number of classes, at least 2.
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`;
            `tfuq.kl_weight_for(data, loss)` computes it. Required.
        prior_scale: Standard deviation of each class mean under the prior.
        posterior_scale: Standard deviation of the class means that training starts from. Default:
            1 / features.
        noise_scale: sigma that training starts from.
        wishart_scale, dof: Scale and degrees of freedom of the Wishart prior on sigma^-2.
        use_bias: Whether to add b, which is not random: the logarithms of how frequent classes are,
            up to a constant. The authors' package has none.
        kernel_initializer, bias_initializer, kernel_constraint, bias_constraint,
        bias_regularizer: For the class means `(features, units)` and for b.
        seed: Integer, kept for the layer's configuration: nothing is drawn while it trains.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.
        mask: Boolean tensor `(batch, ...)`: what is False adds nothing to the loss.

    Returns:
        Logits `(batch, ..., units)`, float32 also under a mixed precision policy.

    Raises:
        ValueError: If an argument is out of its range, or `kl_weight` is missing.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLGenerativeDense

    x, y = np.random.randn(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), VBLLGenerativeDense(3, kl_weight=1 / len(x))])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    logits = model.predict(x, verbose=0)
    ```

    References:
        - Harrison, Willes, Snoek: "Variational Bayesian Last Layers", ICLR 2024.

    See also: `tfuq.layers.VBLLDense`, `tfuq.ood.Mahalanobis`.
    """

    ways = ("mean",)
    logits_only = True

    def __init__(
        self,
        units: int,
        kl_weight: float | None = None,
        *,
        noise_scale: float = 1.0,
        use_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        check_integer("units", units, minimum=2)
        for name in ("posterior", "rank"):  # the base's, of which there is one here
            if name in kwargs:
                raise TypeError(f"VBLLGenerativeDense has no argument {name!r}: S_k is diagonal")
        super().__init__(kl_weight=kl_weight, noise_scale=noise_scale, use_bias=use_bias, **kwargs)
        self.units = units

    def _noise_shape(self, features):
        return (features,)

    def _noise_penalty(self, sigma):
        return wishart_penalty(sigma, self.wishart_scale, self.dof + self.kernel.shape[0] + 1)

    def _sampling_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def call(self, inputs: Tensor, training: bool = False, mask: Tensor | None = None) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        self._check_loss(training)
        spread, sigma = self._form.read(self), self._noise_scale()
        self._add_kl(lambda: self._kl(spread, sigma), training)
        rows, means, noise = self._rows(inputs), self._means(), tf.square(sigma)[:, None]
        draw = current_draw()
        if draw is not None:
            means += self._form.noise(*spread, seed=draw.seed_of(self))
        if draw is not None or (wanted_way() == "mean" and not training):
            return with_leading(self._logits(rows, means, noise), inputs)
        variances = tf.square(spread[0])
        predicted = self._logits(rows, means, noise, variances)
        if not training:
            return with_leading(predicted, inputs)
        logits = self._logits(rows, means, noise) - tf.reduce_sum(variances / noise, axis=0) / 2
        gap = Categorical.log_partition(predicted) - Categorical.log_partition(logits)
        leading = tf.reshape(gap, tf.shape(inputs)[:-1])
        add_term(self, tf.ensure_shape(leading, inputs.shape[:-1]), mask)
        return with_leading(logits, inputs)

    def _means(self):
        return tf.cast(tf.convert_to_tensor(self.kernel), self._sampling_dtype())

    def _logits(self, rows, means, noise, spread=None):
        bias = tf.cast(self.bias, rows.dtype) if self.use_bias else 0.0
        return log_densities(rows, means, noise, spread, bias)

    def _widths(self):
        return [self.units]

    def _meanings(self):
        return {"logits": OutputMeaning("logits", False)}

    def mean_logits(self, inputs: Tensor) -> Tensor:
        inputs = tf.convert_to_tensor(inputs)
        if not self.built:
            self.build(inputs.shape)
        noise = self._noise_variance()[:, None]
        return with_leading(self._logits(self._rows(inputs), self._means(), noise), inputs)

    def feature_distribution(self) -> Any:
        """Gaussians of the features of each class, with the doubt about their means.

        Returns:
            `tfp.distributions.MultivariateNormalDiag` with batch shape `(units,)` and event shape
            `(features,)`: N(m_k, S_k + C).

        Raises:
            ValueError: If the layer is not built.
        """
        of_means = self.posterior_distribution()
        scale = tf.sqrt(of_means.variance() + self._noise_variance())
        return distributions().MultivariateNormalDiag(of_means.mean(), scale)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "units": self.units}
        return {name: config[name] for name in config if name not in ("posterior", "rank")}
