"""Variational Bayesian last layer of a regression (Harrison, Willes and Snoek, ICLR 2024)."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor, check_choice, check_integer, check_positive, register, shown
from tfuq._predictions import families
from tfuq._predictions.family import LEAST_SCALE, Family, distributions
from tfuq._predictions.location_scale import LEAST_DF
from tfuq._predictions.multivariate import whitened
from tfuq._random import points
from tfuq._random.draws import current_draw
from tfuq.layers._posteriors import beside, standard_deviation, sum_of_squares
from tfuq.layers._training import calling_model
from tfuq.layers.base import softplus_inverse
from tfuq.layers.last_layer import GaussianLastLayer
from tfuq.layers.number_head import NumberHead
from tfuq.layers.shapes import floating, with_leading


class _NormalNoise:
    """Noise of one variance for each number, learned."""

    def family(self, head):
        """What the head returns the parameters of."""
        return families.BayesianNormal()

    def add_weights(self, head):
        """Adds what the noise has beside its scale."""

    def parameters(self, head, sigma):
        """What stands between the means and their spread in the output, each `(units,)`."""
        return [sigma]

    def unit_of_weights(self, head, seed):
        """What the posterior's standard deviations are multiplied by in a draw."""
        return 1.0

    def half_squared_means(self, head, sigma):
        """sum_k |m_k|^2 / 2 in units of the weights' variance."""
        return GaussianLastLayer._half_squared_means(head, sigma)

    def posterior(self, head, given):
        """The weights' posterior, from that in which the noise has the variance 1."""
        return given

    def penalty(self, head, sigma):
        """Negative log-density of the Wishart prior, up to a constant."""
        return GaussianLastLayer._noise_penalty(head, sigma)


class _StudentNoise(_NormalNoise):
    """Noise whose precision has the posterior Gamma(df / 2, df scale^2 / 2): mean scale^-2."""

    def family(self, head):
        return families.BayesianStudentT()

    def add_weights(self, head):
        start = max(2 * (head.dof + 1) - LEAST_DF, 1e-3)
        head.noise_df_rho = head.add_weight(
            name="noise_df_rho",
            shape=(head.units,),
            initializer=keras.initializers.Constant(float(softplus_inverse(start))),
            autocast=False,
        )

    def parameters(self, head, sigma):
        return [sigma, self._df(head)]

    def _df(self, head):
        return LEAST_DF + tf.nn.softplus(tf.cast(head.noise_df_rho, head._sampling_dtype()))

    def unit_of_weights(self, head, seed):
        shape = self._df(head) / 2
        seed = points.split_seed(seed, 3)[2]  # the weights' take up to two
        return head._noise_scale() * tf.sqrt(shape / points.gamma(shape, seed=seed))

    def half_squared_means(self, head, sigma):
        kernel = tf.cast(tf.convert_to_tensor(head.kernel), head._sampling_dtype())
        return tf.reduce_sum(tf.square(kernel / sigma)) / 2

    def posterior(self, head, given):
        root = head._noise_scale()[:, None, None] * tf.linalg.cholesky(given.covariance())
        scale = tf.linalg.LinearOperatorLowerTriangular(root)
        kind = distributions().MultivariateStudentTLinearOperator
        return kind(self._df(head), given.mean(), scale)

    def penalty(self, head, sigma):
        """KL(Gamma(a, b) || Gamma(dof, wishart_scale)), summed over the numbers."""
        a = self._df(head) / 2
        b = a * tf.square(sigma)
        prior_a, prior_b = head.dof, head.wishart_scale
        kl = (a - prior_a) * tf.math.digamma(a) - tf.math.lgamma(a) + math.lgamma(prior_a)
        kl += prior_a * (tf.math.log(b) - math.log(prior_b)) + a * (prior_b - b) / b
        return tf.reduce_sum(kl)


class _JointNoise(_NormalNoise):
    """Normal noise that is correlated between the numbers: C = diag(sigma^2) + F F^T, learned."""

    def family(self, head):
        return families.BayesianMultivariateNormal(head.num_factors)

    def add_weights(self, head):
        start = keras.initializers.RandomNormal(stddev=0.1 * head.noise_scale, seed=head.seed)
        head.noise_factors = head.add_weight(
            name="noise_factors",
            shape=(head.num_factors, head.units),
            initializer=start,
            autocast=False,
        )

    def _factors(self, head):
        return tf.cast(tf.convert_to_tensor(head.noise_factors), head._sampling_dtype())

    def parameters(self, head, sigma):
        return [sigma, *tf.unstack(self._factors(head))]

    def penalty(self, head, sigma):
        """(wishart_scale tr C^-1 + (dof + units + 1) log det C) / 2."""
        units = tf.unstack(tf.eye(head.units, dtype=head._sampling_dtype()))
        columns, half_log_det = whitened(sigma, tf.transpose(self._factors(head)), *units)
        trace = tf.add_n([sum_of_squares(column) for column in columns])
        return head.wishart_scale * trace / 2 + (head.dof + head.units + 1) * half_log_det[0]


NOISES = {
    "normal": _NormalNoise(),
    "student_t": _StudentNoise(),
    "multivariate_normal": _JointNoise(),
}


@register
class VBLLRegression(NumberHead, GaussianLastLayer):
    """Variational Bayesian last layer: stands in for the last `Dense` of a regression.

    The weights of each number are Gaussian, and so, exactly, is each number that they predict:
    neither training nor prediction draws any. The noise around it is learned, one variance for each
    number, the same for all inputs.

    Trained with `head.negative_log_likelihood()`, which is the expectation over the weights; the
    layer adds the KL divergence to the loss. Together they are the negative evidence lower bound.

    With `likelihood="student_t"` the precision of the noise has a Gamma posterior, so that y has
    Student's t distribution: the doubt about the noise counts where there are few examples. All
    examples share the precision, so outliers weigh as much as under normal noise: for these take
    `StudentTDense`.

    Formula (Harrison et al. 2024, section 2.2 and theorem 1):

    ```
    w_k ~ N(m_k, S_k),  y_k = w_k^T x + b_k + e_k,  e_k ~ N(0, sigma_k^2)
    y_k ~ N(m_k^T x + b_k, sigma_k^2 + x^T S_k x)
    loss = mean of -log N(y_k; m_k^T x + b_k, sigma_k^2) + x^T S_k x / (2 sigma_k^2)
           + kl_weight * beta * KL
    KL   = sum_k KL(N(m_k, S_k) || N(0, prior_scale^2 I))
           - (dof + units + 1) / 2 * sum log sigma_k^-2 + wishart_scale / 2 * sum sigma_k^-2

    likelihood="student_t", with precisions l_k of the noise:
    l_k ~ Gamma(a_k, a_k sigma_k^2),  w_k ~ N(m_k, S_k / l_k),  e_k ~ N(0, 1 / l_k)
    y_k ~ t of 2 a_k degrees of freedom, location m_k^T x + b_k, scale sigma_k sqrt(1 + x^T S_k x)
    loss = mean of ((y_k - m_k^T x - b_k)^2 / sigma_k^2 + x^T S_k x - E log l_k + log 2 pi) / 2
           + kl_weight * beta * KL,  E log l_k = digamma(a_k) - log(a_k sigma_k^2)
    KL   = sum_k E KL(N(m_k, S_k / l_k) || N(0, prior_scale^2 / l_k))
           + KL(Gamma(a_k, a_k sigma_k^2) || Gamma(dof, wishart_scale))

    likelihood="multivariate_normal": e ~ N(0, C), and
    loss = mean of (-log N(y; M^T x + b, C) + tr(C^-1 diag(x^T S_k x)) / 2) / units + ...
    KL   = ... - (dof + units + 1) / 2 * log det C^-1 + wishart_scale / 2 * tr C^-1
    ```

    `predict_uncertainty` takes the closed form where nothing else in the model is random, whatever
    `num_samples`; `sample_predictions`, and `predict_uncertainty` beside other random layers, draw
    the weights. The authors' package, with several outputs, divides x^T S_k x by the sum of all
    variances' inverses; here each has its own, as in the expectation. With one output they agree.
    A draw of a Student's t head takes weights of a precision drawn from its posterior, and noise
    whose precision stays integrated: moments are those of the closed form.

    Args:
        units: How many numbers there are.
        kl_weight: Weight of the KL divergence, `1 / (training examples * units)`, times pixels or
            steps where there are some: `tfuq.kl_weight_for(data, head.negative_log_likelihood())`
            with a head of any weight. Required.
        posterior: `"diagonal"` (mean field; S_k diagonal), `"low_rank"` (a diagonal plus `rank`
            directions) or `"dense"` (a Cholesky factor per number, `units * features^2` weights).
        rank: Number of directions of `"low_rank"`, from 1 to the number of features.
        likelihood: `"normal"`; `"student_t"`, whose degrees of freedom are learned, above 2; or
            `"multivariate_normal"`, with noise that is correlated between the numbers.
        num_factors: Of `"multivariate_normal"`, the number of directions that the covariance of the
            noise has beside its diagonal: C = diag(sigma^2) + F F^T. With `units` of them it is
            any covariance.
        mean_only: Whether to return the means alone, for metrics of Keras; not in training.
        prior_scale: Standard deviation of each weight under the prior. (The authors' package has a
            variance of `prior_scale / features`.)
        posterior_scale: Standard deviation that training starts from. Default: 1 / features.
        noise_scale: sigma that training starts from, in the unit of the labels, which best have a
            standard deviation of about 1.
        wishart_scale, dof: Scale and degrees of freedom of the Wishart prior on sigma^-2; of
            `"student_t"` rate and shape of the Gamma prior, and training starts from the shape
            `dof + 1`.
        min_scale: What is added to sigma, so that its logarithm stays finite.
        use_bias: Whether to add b, which is not random.
        kernel_initializer, bias_initializer, kernel_constraint, bias_constraint,
        bias_regularizer: For the means of the weights and for b, as in `keras.layers.Dense`.
        seed: Integer from which the initial covariances follow.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.

    Returns:
        Parameters `(batch, ..., 3 * units)`: all means, then all sigma, then the standard
        deviations of all means, `sqrt(x^T S_k x)`; of `"student_t"` `(batch, ..., 4 * units)`:
        means, sigma, degrees of freedom, and the last in units of sigma; of
        `"multivariate_normal"` the factors stand after sigma, `(batch, ..., (3 + num_factors) *
        units)`. float32 also under a mixed precision policy.
        With `mean_only` the means, `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range, or `kl_weight` is missing; in `fit`, if the
            compiled loss does not take these parameters.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x = np.random.rand(64, 8)
    y = x.sum(axis=1) + 0.1 * np.random.randn(64)
    head = tfuq.layers.VBLLRegression(1, kl_weight=1 / len(x))
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), head])
    model.compile("adam", loss=head.negative_log_likelihood())
    model.fit(x, y, verbose=0)
    found = tfuq.predictive.predict_uncertainty(model, x)
    print(found.mean.shape, found.epistemic_std.shape)  # (64, 1) (64, 1)
    ```

    References:
        - Harrison, Willes, Snoek: "Variational Bayesian Last Layers", ICLR 2024.

    See also: `tfuq.layers.VBLLDense`, `tfuq.layers.NormalDense`.
    """

    def __init__(
        self,
        units: int,
        kl_weight: float | None = None,
        posterior: str = "diagonal",
        rank: int | None = None,
        *,
        likelihood: str = "normal",
        num_factors: int | None = None,
        noise_scale: float = 1.0,
        wishart_scale: float = 0.01,
        min_scale: float = LEAST_SCALE,
        **kwargs: Any,
    ) -> None:
        check_choice("likelihood", likelihood, tuple(NOISES))
        if (num_factors is None) == (likelihood == "multivariate_normal"):
            raise ValueError(
                "Argument `num_factors` must be given with likelihood='multivariate_normal', and "
                f"only then. Received: num_factors={shown(num_factors)} with "
                f"likelihood={shown(likelihood)}"
            )
        if num_factors is not None:
            check_integer("num_factors", num_factors, minimum=1)
            check_integer("units", units, minimum=2)  # one number has none to be correlated with
        check_positive("min_scale", min_scale)
        self.likelihood = likelihood
        self.num_factors = num_factors
        self.min_scale = min_scale
        super().__init__(
            units,
            kl_weight=kl_weight,
            posterior=posterior,
            rank=rank,
            noise_scale=noise_scale,
            wishart_scale=wishart_scale,
            **kwargs,
        )

    @property
    def family(self) -> Family:
        """The `Family` of what is returned."""
        return self._noise.family(self)

    @property
    def _noise(self):
        return NOISES[self.likelihood]

    @property
    def closed_form(self) -> bool:
        """Whether the output says how draws would differ: the means alone do not."""
        return not self.mean_only

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._noise.add_weights(self)

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        self._check_loss(training)
        spread = self._form.read(self)
        sigma = self._noise_scale()
        self._add_kl(lambda: self._kl(spread, sigma), training)
        if current_draw() is None:
            mean, variance = self._moments(inputs, spread)
            epistemic = standard_deviation(variance)
        else:
            mean = self._drawn(inputs, self._mean(inputs), spread, current_draw().seed_of(self))
            epistemic = tf.zeros_like(mean)
        noise = self._noise.parameters(self, sigma)
        noise = noise[0] if len(noise) == 1 else tf.concat(noise, axis=-1)
        params = beside(mean, noise, epistemic)
        return self._output(with_leading(params, inputs))

    def _drawn(self, inputs, mean, spread, seed):
        drawn = super()._drawn(inputs, mean, spread, seed)
        return mean + (drawn - mean) * self._noise.unit_of_weights(self, seed)

    def posterior_distribution(self) -> Any:
        """q(w_1), ..., q(w_K), the posterior of each number's weights.

        Returns:
            TFP distribution with batch shape `(units,)` and event shape `(features,)`:
            `MultivariateNormalDiag`, `MultivariateNormalDiagPlusLowRankCovariance` or
            `MultivariateNormalTriL`; with `likelihood="student_t"`
            `MultivariateStudentTLinearOperator`, the precision of the noise integrated.

        Raises:
            ValueError: If the layer is not built.
        """
        return self._noise.posterior(self, super().posterior_distribution())

    def _half_squared_means(self, sigma):
        return self._noise.half_squared_means(self, sigma)

    def _noise_penalty(self, sigma):
        return self._noise.penalty(self, sigma)

    def _check_loss(self, training):
        super()._check_loss(training)
        is_compiled = getattr(calling_model(), "loss", None) is not None
        if training and self.mean_only and self.trainable and is_compiled:
            raise ValueError(
                "Argument `mean_only` must be False in training: a loss of the means does not "
                "depend on the spread of the weights, so that the KL divergence alone would set "
                "it. Train with `head.negative_log_likelihood()`. Received: mean_only=True of "
                f"{self.name!r}"
            )

    def get_config(self) -> dict[str, Any]:
        own = ("likelihood", "num_factors", "min_scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
