"""Variational Bayesian last layer of a regression (Harrison, Willes and Snoek, ICLR 2024)."""

import tensorflow as tf

from tfuq._arguments import check_positive, register
from tfuq._predictions import families
from tfuq._predictions.family import LEAST_SCALE
from tfuq._random.draws import current_draw
from tfuq.layers._posteriors import standard_deviation
from tfuq.layers._training import calling_model
from tfuq.layers.last_layer import GaussianLastLayer
from tfuq.layers.number_head import NumberHead
from tfuq.layers.shapes import with_leading


@register
class VBLLRegression(NumberHead, GaussianLastLayer):
    """Variational Bayesian last layer: stands in for the last `Dense` of a regression.

    The weights of each number are Gaussian, and so, exactly, is each number that they predict:
    neither training nor prediction draws any. The noise around it is learned, one variance for each
    number, the same for all inputs.

    Trained with `head.negative_log_likelihood()`, which is the expectation over the weights; the
    layer adds the KL divergence to the loss. Together they are the negative evidence lower bound.

    Formula (Harrison et al. 2024, section 2.2 and theorem 1):

    ```
    w_k ~ N(m_k, S_k),  y_k = w_k^T x + b_k + e_k,  e_k ~ N(0, sigma_k^2)
    y_k ~ N(m_k^T x + b_k, sigma_k^2 + x^T S_k x)
    loss = mean of -log N(y_k; m_k^T x + b_k, sigma_k^2) + x^T S_k x / (2 sigma_k^2)
           + kl_weight * beta * KL
    KL   = sum_k KL(N(m_k, S_k) || N(0, prior_scale^2 I))
           - (dof + units + 1) / 2 * sum log sigma_k^-2 + wishart_scale / 2 * sum sigma_k^-2
    ```

    `predict_uncertainty` takes the closed form where nothing else in the model is random, whatever
    `num_samples`; `sample_predictions`, and `predict_uncertainty` beside other random layers, draw
    the weights. The authors' package, with several outputs, divides x^T S_k x by the sum of all
    variances' inverses; here each has its own, as in the expectation. With one output they agree.

    Args:
        units: How many numbers there are.
        kl_weight: Weight of the KL divergence, `1 / (training examples * units)`, times pixels or
            steps where there are some: `tfuq.kl_weight_for(data, head.negative_log_likelihood())`
            with a head of any weight. Required.
        posterior: `"diagonal"` (mean field; S_k diagonal), `"low_rank"` (a diagonal plus `rank`
            directions) or `"dense"` (a Cholesky factor per number, `units * features^2` weights).
        rank: Number of directions of `"low_rank"`, from 1 to the number of features.
        mean_only: Whether to return the means alone, for metrics of Keras; not in training.
        prior_scale: Standard deviation of each weight under the prior. (The authors' package has a
            variance of `prior_scale / features`.)
        posterior_scale: Standard deviation that training starts from. Default: 1 / features.
        noise_scale: sigma that training starts from, in the unit of the labels, which best have a
            standard deviation of about 1.
        wishart_scale, dof: Scale and degrees of freedom of the Wishart prior on sigma^-2.
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
        deviations of all means, `sqrt(x^T S_k x)`; float32 also under a mixed precision policy.
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
    """

    family = families.BayesianNormal()

    def __init__(
        self,
        units,
        kl_weight=None,
        posterior="diagonal",
        rank=None,
        *,
        noise_scale=1.0,
        wishart_scale=0.01,
        min_scale=LEAST_SCALE,
        **kwargs,
    ):
        check_positive("min_scale", min_scale)
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
    def closed_form(self):
        """Whether the output says how draws would differ: the means alone do not."""
        return not self.mean_only

    def call(self, inputs, training=False):
        self._check_loss(training)
        spread = self._form.read(self)
        self._add_kl(lambda: self._kl(spread), training)
        if current_draw() is None:
            mean, variance = self._moments(inputs, spread)
            epistemic = standard_deviation(variance)
        else:
            mean = self._drawn(inputs, self._mean(inputs), spread, current_draw().seed_of(self))
            epistemic = tf.zeros_like(mean)
        noise = self._noise_scale() * tf.ones_like(mean)
        params = tf.concat([mean, noise, epistemic], axis=-1)
        return self._output(with_leading(params, inputs))

    def _check_loss(self, training):
        super()._check_loss(training)
        is_compiled = getattr(calling_model(), "loss", None) is not None
        if training and self.mean_only and self.trainable and is_compiled:
            raise ValueError(
                "Argument `mean_only` must be False in training: a loss of the means says nothing "
                "of the spread of the weights, which the KL divergence would pull to the prior. "
                "Train with `head.negative_log_likelihood()`. "
                f"Received: mean_only=True of {self.name!r}"
            )

    def get_config(self):
        return {**super().get_config(), "min_scale": self.min_scale}
