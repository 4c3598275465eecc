"""Variational Bayesian last layers (Harrison, Willes and Snoek, ICLR 2024)."""

from __future__ import annotations

import collections
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor, check_choice, check_integer, register, shown
from tfuq._math.logistic_normal import probit
from tfuq._random import points
from tfuq._random.draws import current_draw
from tfuq.layers._likelihoods import LIKELIHOODS, closed_form_gap
from tfuq.layers._posteriors import standard_deviation
from tfuq.layers._student_logits import (
    STUDENT,
    degrees_of_freedom,
    first_tilt,
    roots,
    slack,
    tilted_gap,
)
from tfuq.layers._training import add_term
from tfuq.layers.base import distributions
from tfuq.layers.heads import Head, OutputMeaning
from tfuq.layers.last_layer import GaussianLastLayer
from tfuq.layers.shapes import floating, with_leading
from tfuq.layers.ways import wanted_way

VBLLOutput = collections.namedtuple("VBLLOutput", ["logits", "mean", "variance"])

_ARGUMENTS = (
    "units", "objective", "noise", "likelihood", "predictive", "train_mc_samples",
    "test_mc_samples", "logits_only", "sampling", "resample",
)  # fmt: skip


@register
class VBLLDense(Head, GaussianLastLayer):
    """Variational Bayesian last layer: stands in for the last `Dense` of a classifier.

    The weights of each output are Gaussian, so each logit is exactly Gaussian and no weights need
    to be sampled. Train it with your own cross-entropy, `from_logits=True`. The other terms of the
    evidence lower bound need no label: the layer adds them to the loss.

    Formula (Harrison et al. 2024, section 2.3, equation 12 and theorem 1):

    ```
    w_k ~ N(m_k, S_k),  u_k = w_k^T x + b_k + e_k ~ N(m_k^T x + b_k, x^T S_k x + sigma_k^2)
    loss = CE(mean, y) + E[lse(mean + var / 2) - lse(mean)] + kl_weight * beta * KL
    KL   = sum_k KL(N(m_k, S_k) || N(0, prior_scale^2 I))
    ```

    E is the mean over the examples of a batch. `objective="monte_carlo"` replaces lse(mean + var /
    2) by the mean of lse(u) over draws of the logits: the bound without Jensen's slack, but with
    noise. CE(mean, y) is the exact expectation of the other terms, so this needs no label either.
    In training the layer returns the mean logits. Otherwise it returns logits of the posterior
    predictive, and adds only the KL divergence to the loss.

    In a model with one output, E follows the compiled cross-entropy: its reduction, `loss_weights`,
    masks, `ignore_class`, sample and class weights apply to both. With several outputs these are
    refused; in your own training loop E is the mean over what is not masked. A head that is called
    several times in one call adds the KL divergence once, and E for each output (in a model of one
    output, its mean over the calls).

    With `noise="student_t"` the logits follow Student's t, with this closed form:

    ```
    l_k ~ Gamma(a_k, a_k sigma_k^2),  w_k ~ N(m_k, S_k / l_k),  e_k ~ N(0, 1 / l_k)
    E[a(u)] - a(mean) <= a(mean + t v) - a(mean) + sum_k v_k (r_k / 4 - t_k + t_k^2) / 2,
    v_k = (x^T S_k x + 1) sigma_k^2,  r_k = a_k / (a_k - 1)
    KL = sum_k E KL(N(m_k, S_k / l_k) || N(0, prior_scale^2 / l_k))
         + KL(Gamma(a_k, a_k sigma_k^2) || Gamma(dof, wishart_scale))
    ```

    t is learned (Knowles and Minka 2011). The authors' package has one t sigma^2 for all k, from
    which SGD diverges where sigma is small, and e (2.718...) for r_k.

    Args:
        units: Integer K, the number of classes (at least 2) or labels.
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`, or
            `1 / (examples * labels or pixels)` where the loss is a mean over those, too:
            `tfuq.kl_weight_for(data, loss)`. Required.
        posterior: `"diagonal"` (mean field; S_k diagonal), `"low_rank"` (a diagonal plus `rank`
            directions) or `"dense"` (a Cholesky factor per class, `units * features^2` weights).
        rank: Number of directions of `"low_rank"`, from 1 to the number of features.
        prior_scale: Standard deviation of each weight under the prior. (The authors' package has a
            variance of `prior_scale * 2 / features`.)
        posterior_scale: Standard deviation that training starts from. Default: 1 / features, the
            authors'.
        objective: `"closed_form"` or `"monte_carlo"`.
        noise: `"none"`, or `"learned"`: independent noise e_k ~ N(0, sigma_k^2) on the logits, with
            a Wishart prior on its precision. It adds to the loss, times kl_weight * beta,
            `-(dof + units + 1) / 2 * sum log sigma^-2 + wishart_scale / 2 * sum sigma^-2`.
            `"student_t"` (t-VBLL): its precision l_k is uncertain, too; see below.
        noise_scale: Initial sigma.
        wishart_scale, dof: Scale and degrees of freedom of that prior; of `"student_t"` rate and
            shape of the Gamma prior, and training starts from the shape `dof + 1`.
        likelihood: `"categorical"`, or `"bernoulli"` for labels that do not exclude each other
            (and for two classes in one unit), with a binary cross-entropy.
        predictive: The logits outside training. `"monte_carlo"`: log of the mean probability over
            `test_mc_samples` (for `"bernoulli"`, its log-odds). `"probit"`: mean / sqrt(1 + pi var
            / 8) (MacKay 1992), free of samples. `"mean"`: the mean logits.
        train_mc_samples: Draws of the logits for `objective="monte_carlo"`.
        test_mc_samples: Draws of the logits for `predictive="monte_carlo"`. Mirror images come in
            pairs (see `sampling`): an odd number is rounded up.
        use_bias: Whether to add b, which is not random.
        logits_only: Whether to return the logits alone.
        kernel_initializer, bias_initializer, kernel_constraint, bias_constraint,
        bias_regularizer: For the means of the weights and for b, as in `keras.layers.Dense`.
        sampling: `"sobol"`, `"antithetic"` or `"iid"`: how draws of the logits are placed.
        resample: Whether each prediction draws anew. By default predictions repeat.
        seed: Integer that determines all noise.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.
        mask: Boolean tensor `(batch, ...)`, as Keras passes it on: places with False add nothing to
            the loss.

    Returns:
        Logits `(batch, ..., units)`, float32 also under a mixed precision policy. With
        `logits_only=False` a named tuple `(logits, mean, variance)` of three such tensors; mean and
        variance are those of the Gaussian logits.

    Raises:
        ValueError: If an argument is out of its range, or `kl_weight` is missing.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLDense

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=1 / len(x))])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    probs = keras.ops.softmax(model.predict(x, verbose=0))
    ```

    References:
        - Harrison, Willes, Snoek: "Variational Bayesian Last Layers", ICLR 2024.

    See also: `tfuq.layers.VBLLGenerativeDense`, `tfuq.layers.VBLLRegression`,
    `tfuq.convert.replace_head`, `tfuq.convert.laplace_head`.
    """

    ways = ("probit", "mean")
    output_type = VBLLOutput

    def __init__(
        self,
        units: int,
        kl_weight: float | None = None,
        posterior: str = "diagonal",
        rank: int | None = None,
        prior_scale: float = 1.0,
        posterior_scale: float | None = None,
        objective: str = "closed_form",
        noise: str = "none",
        noise_scale: float = 0.1,
        wishart_scale: float = 1.0,
        dof: float = 1.0,
        likelihood: str = "categorical",
        predictive: str = "monte_carlo",
        train_mc_samples: int = 10,
        test_mc_samples: int = 30,
        use_bias: bool = True,
        logits_only: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        sampling: str = "sobol",
        resample: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            kl_weight=kl_weight,
            posterior=posterior,
            rank=rank,
            prior_scale=prior_scale,
            posterior_scale=posterior_scale,
            noise_scale=noise_scale,
            wishart_scale=wishart_scale,
            dof=dof,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            seed=seed,
            **kwargs,
        )
        self.units = units
        self.objective = objective
        self.noise, self.likelihood, self.predictive = noise, likelihood, predictive
        self.train_mc_samples, self.test_mc_samples = train_mc_samples, test_mc_samples
        self.logits_only = logits_only
        self.sampling, self.resample = sampling, resample
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._check_arguments()

    def _check_arguments(self):
        check_integer("units", self.units, minimum=1)
        check_choice("objective", self.objective, ("closed_form", "monte_carlo"))
        check_choice("noise", self.noise, ("none", "learned", "student_t"))
        if self.noise == "student_t" and self.objective != "closed_form":
            raise ValueError(
                "Argument `objective` must be 'closed_form' with noise='student_t'. "
                f"Received: objective={shown(self.objective)}"
            )
        check_choice("likelihood", self.likelihood, tuple(LIKELIHOODS))
        if self.units == 1 and self.likelihood == "categorical":
            raise ValueError(
                "Argument `units` must be at least 2 for likelihood='categorical', where one class "
                "has probability 1 whatever the input. For two classes in one logit, or one label, "
                "pass likelihood='bernoulli'. Received: units=1 with likelihood='categorical'"
            )
        check_choice("predictive", self.predictive, ("monte_carlo", "probit", "mean"))
        check_integer("train_mc_samples", self.train_mc_samples, minimum=1)
        check_integer("test_mc_samples", self.test_mc_samples, minimum=1)
        check_choice("sampling", self.sampling, points.RULES)
        self._check_switches("logits_only", "resample")

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self._is_student:
            STUDENT.add_weights(self)
            start = first_tilt(self.units, self.likelihood == "bernoulli")
            self.tilt = self.add_weight(
                name="tilt",
                shape=(self.units,),
                initializer=keras.initializers.Constant(start),
                autocast=False,
            )
        self._train_points = self._normal_points(self.train_mc_samples, fresh=True)
        self._test_points = self._normal_points(self.test_mc_samples, fresh=self.resample)

    def _normal_points(self, num_samples, fresh):
        return points.NormalPoints(
            self.sampling, num_samples, self.units, seed=self.seed or 0, fresh=fresh
        )

    @property
    def posterior_form(self) -> str:
        """The former name of `posterior`."""
        return self._posterior

    def _sampling_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def call(self, inputs: Tensor, training: bool = False, mask: Tensor | None = None) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        self._check_loss(training)
        spread = self._form.read(self)
        mean, weight_variance = self._moments(inputs, spread)
        sigma = self._noise_scale()
        variance = self._logit_variance(weight_variance, sigma)
        self._add_kl(lambda: self._kl(spread, sigma), training)
        if current_draw() is not None:
            logits = self._drawn_logits(inputs, mean, spread)
        elif training:
            gap = (
                self._student_gap(mean, weight_variance, sigma)
                if self._is_student
                else self._gap(mean, variance)
            )
            self._add_gap(gap, inputs, mask)
            logits = mean
        else:
            logits = self._predictive_logits(mean, variance)
        if self.logits_only:
            return with_leading(logits, inputs)
        return VBLLOutput(*(with_leading(t, inputs) for t in (logits, mean, variance)))

    def _uncertain_mean(self, inputs, training, mask):
        """Mean of the logits and its variance, `(rows, units)`, for a head that adds noise; the
        divergence is added to the loss. In a draw of the network, that draw and None.
        """
        del mask  # the divergence is of weights
        inputs, spread = floating(inputs, self.compute_dtype), self._form.read(self)
        self._add_kl(lambda: self._kl(spread, self._noise_scale()), training)
        draw = current_draw()
        if draw is None:
            return self._moments(inputs, spread)
        return self._drawn(inputs, self._mean(inputs), spread, draw.seed_of(self)), None

    def _widths(self):
        return [self.units] * len(VBLLOutput._fields)

    def _meanings(self):
        is_bernoulli = self.likelihood == "bernoulli"
        # The log of mean probabilities sums to 1; the other logits are on a scale of their own.
        normalized = self.predictive == "monte_carlo" and not is_bernoulli
        return {
            "logits": OutputMeaning("logits", is_bernoulli, normalized),
            "mean": OutputMeaning("logits", is_bernoulli),
            "variance": OutputMeaning("variance", is_bernoulli),
        }

    def mean_logits(self, inputs: Tensor) -> Tensor:
        inputs = tf.convert_to_tensor(inputs)
        if not self.built:
            self.build(inputs.shape)
        return with_leading(self._mean(inputs), inputs)

    def linear_map(self) -> Any:
        return self.kernel, self.bias if self.use_bias else None

    def _add_gap(self, gap, inputs, mask):
        if self.likelihood == "bernoulli":  # the loss is a mean over labels
            gap = tf.reduce_mean(gap, axis=-1)
        leading = tf.reshape(gap, tf.shape(inputs)[:-1])
        add_term(self, tf.ensure_shape(leading, inputs.shape[:-1]), mask)

    @property
    def _is_student(self):
        return self.noise == "student_t"

    def _logit_variance(self, weight_variance, sigma):
        """Of the logits, noise included."""
        if not self._is_student:
            return weight_variance + tf.square(sigma)
        return (weight_variance + 1) * tf.square(sigma) * slack(self)

    def _student_gap(self, mean, weight_variance, sigma):
        log_partition = LIKELIHOODS[self.likelihood].log_partition
        tilt = tf.cast(tf.convert_to_tensor(self.tilt), mean.dtype)
        spread = (weight_variance + 1) * tf.square(sigma)
        return tilted_gap(log_partition, mean, spread, slack(self), tilt)

    def _half_squared_means(self, sigma):
        if self._is_student:
            return STUDENT.half_squared_means(self, sigma)
        return super()._half_squared_means(sigma)

    def _noise_penalty(self, sigma):
        return STUDENT.penalty(self, sigma) if self._is_student else super()._noise_penalty(sigma)

    def _drawn(self, inputs, mean, spread, seed):
        drawn = super()._drawn(inputs, mean, spread, seed)
        if not self._is_student:
            return drawn
        seed = points.split_seed(seed, 3)[2]  # the weights' take up to two
        return mean + (drawn - mean) * self._noise_scale() * roots(self, (self.units,), seed)

    def posterior_distribution(self) -> Any:
        found = super().posterior_distribution()
        return STUDENT.posterior(self, found) if self._is_student else found

    posterior_distribution.__doc__ = GaussianLastLayer.posterior_distribution.__doc__

    def _gap(self, mean, variance):
        """E[a(u)] - a(mean) by the objective, `(rows,)`, or `(rows, units)` for Bernoulli."""
        likelihood = LIKELIHOODS[self.likelihood]
        if self.objective == "closed_form":
            return closed_form_gap(likelihood.log_partition, mean, variance)
        seed, sign_seed = points.split_seed(self.seed_generator.next(), 2)
        scale = standard_deviation(variance)
        scale *= points.random_signs(tf.shape(scale), seed=sign_seed, dtype=scale.dtype)
        normals = tf.cast(self._train_points(seed), mean.dtype)
        mean_log_partition = likelihood.mean_log_partition(
            mean, scale, normals, mirrored=self._train_points.mirrored
        )
        return mean_log_partition - likelihood.log_partition(mean)

    def _predictive_logits(self, mean, variance):
        way = wanted_way() if wanted_way() in self.ways else self.predictive
        if way == "mean":
            return mean
        if way == "probit":
            return probit(mean, variance)
        return self._mean_probs_as_logits(mean, variance)

    def _mean_probs_as_logits(self, mean, variance):
        source = self._test_points
        if source.fresh and wanted_way() is not None:  # fresh samples are draws of the weights
            source = self._normal_points(self.test_mc_samples, fresh=False)
        seed = None
        if source.fresh:
            seed = points.split_seed(self.seed_generator.next(), 1)[0]
        normals, scale = tf.cast(source(seed), mean.dtype), standard_deviation(variance)
        if self._is_student:
            seed = None if seed is None else points.split_seed(seed, 1)[0]
            normals *= roots(self, normals.shape, seed)
            scale /= tf.sqrt(slack(self))
        return LIKELIHOODS[self.likelihood].predictive_logits(mean, scale, normals, source.mirrored)

    def _drawn_logits(self, inputs, mean, spread):
        """Logits for one draw of the weights, the same for all examples and batches; the noise on
        logits, which is not of the weights' making, is averaged over.
        """
        logits = self._drawn(inputs, mean, spread, current_draw().seed_of(self))
        if self.noise == "none":
            return logits
        variance = self._logit_variance(tf.zeros_like(logits), self._noise_scale())
        return self._mean_probs_as_logits(logits, variance)

    def logit_distribution(self, inputs: Tensor) -> Any:
        """The Gaussian of the logits, noise included; or Student's t.

        Args:
            inputs: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            `tfp.distributions.MultivariateNormalDiag` with batch shape `(batch, ...)` and event
            shape `(units,)`; with `noise="student_t"` independent `StudentT`s.
        """
        inputs = tf.convert_to_tensor(inputs, self.variable_dtype)
        if not self.built:
            self.build(inputs.shape)
        mean, variance = self._moments(inputs, self._form.read(self))
        sigma = self._noise_scale()
        scale = tf.sqrt(variance + (1.0 if self._is_student else tf.square(sigma)))
        mean, scale = (with_leading(values, inputs) for values in (mean, scale))
        if self._is_student:
            of_each = distributions().StudentT(degrees_of_freedom(self), mean, sigma * scale)
            return distributions().Independent(of_each, 1)
        return distributions().MultivariateNormalDiag(mean, scale)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update({name: getattr(self, name) for name in _ARGUMENTS})
        return config
