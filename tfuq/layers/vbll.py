"""Variational Bayesian last layers (Harrison, Willes and Snoek, ICLR 2024)."""

import collections
import math

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfuq._arguments import check_choice, check_integer, check_positive, register
from tfuq._math import logistic_normal
from tfuq._random import points
from tfuq._random.draws import current_draw
from tfuq.layers.base import VariationalLayer, check_kl_weight, softplus_inverse
from tfuq.layers.shapes import with_leading

MIN_VARIANCE = 1e-12  # below it the square root has no useful gradient
OFF_DIAGONAL = 1e-3  # initial size of covariances, relative to a standard deviation

VBLLOutput = collections.namedtuple("VBLLOutput", ["logits", "mean", "variance"])

_ARGUMENTS = (
    "units",
    "kl_weight",
    "posterior",
    "rank",
    "prior_scale",
    "posterior_scale",
    "objective",
    "noise",
    "noise_scale",
    "wishart_scale",
    "dof",
    "likelihood",
    "predictive",
    "train_mc_samples",
    "test_mc_samples",
    "use_bias",
    "logits_only",
    "sampling",
    "resample",
    "seed",
)


# The forms of the posterior. What `read` makes of the weights, once per call, the formulas take.


class _Diagonal:
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
    def variance(rows, scale):
        """sum_d x_d^2 s_dk^2."""
        return tf.matmul(tf.square(rows), tf.square(scale))

    @staticmethod
    def trace_and_log_det(scale):
        """sum_k tr S_k and sum_k log det S_k."""
        return sum_of_squares(scale), 2 * tf.reduce_sum(tf.math.log(scale))

    @staticmethod
    def distribution(loc, scale):
        return tfd.MultivariateNormalDiag(loc, tf.transpose(scale))


class _LowRank:
    """q(w_k) = N(m_k, diag(s_k^2) + U_k U_k^T), with U of shape `(features, units, rank)`."""

    @staticmethod
    def add_weights(layer, features):
        if layer.rank > features:
            raise ValueError(
                "Argument `rank` must not be above the number of features. "
                f"Received: rank={layer.rank} with {features} features"
            )
        _Diagonal.add_weights(layer, features)
        layer.kernel_factor = _add_off_diagonal(
            layer, "kernel_factor", features, (features, layer.units, layer.rank)
        )

    @staticmethod
    def read(layer):
        """s and U."""
        (scale,) = _Diagonal.read(layer)
        return scale, tf.cast(layer.kernel_factor, scale.dtype)

    @staticmethod
    def variance(rows, scale, factor):
        """The diagonal's, and sum_r (x^T u_kr)^2."""
        noise = tf.matmul(rows, tf.reshape(factor, (factor.shape[0], -1)))
        noise = tf.reshape(noise, (-1, *factor.shape[1:]))
        return _Diagonal.variance(rows, scale) + tf.reduce_sum(tf.square(noise), axis=-1)

    @staticmethod
    def trace_and_log_det(scale, factor):
        """log det(diag(s^2) + U U^T) = log det diag(s^2) + log det(I + U^T diag(s^-2) U)."""
        trace, diagonal_log_det = _Diagonal.trace_and_log_det(scale)
        whitened = tf.transpose(factor * (1 / scale)[..., None], (1, 0, 2))
        log_det_covariance = diagonal_log_det + tf.reduce_sum(log_det_update(whitened))
        return trace + sum_of_squares(factor), log_det_covariance

    @staticmethod
    def distribution(loc, scale, factor):
        variance = tf.transpose(tf.square(scale))
        factor = tf.transpose(factor, (1, 0, 2))
        return tfd.MultivariateNormalDiagPlusLowRankCovariance(loc, variance, factor)


class _Dense:
    """q(w_k) = N(m_k, L_k L_k^T): s on the diagonal of L_k, `kernel_tril` below it."""

    @staticmethod
    def add_weights(layer, features):
        _Diagonal.add_weights(layer, features)
        layer.kernel_tril = _add_off_diagonal(
            layer, "kernel_tril", features, (layer.units, features, features)
        )

    @staticmethod
    def read(layer):
        """s, and what of L is below the diagonal."""
        (scale,) = _Diagonal.read(layer)
        kernel = tf.cast(layer.kernel_tril, scale.dtype)
        below = 1 - tf.linalg.band_part(tf.ones_like(kernel[0]), 0, -1)
        return scale, kernel * below

    @staticmethod
    def variance(rows, scale, lower):
        """|x^T L_k|^2, a matrix product per class."""
        noise = tf.matmul(rows, lower) + rows * tf.transpose(scale)[:, None]
        return tf.transpose(tf.reduce_sum(tf.square(noise), axis=-1))

    @staticmethod
    def trace_and_log_det(scale, lower):
        """tr(L L^T) is the sum of squares of L."""
        trace, log_det_covariance = _Diagonal.trace_and_log_det(scale)
        return trace + sum_of_squares(lower), log_det_covariance

    @staticmethod
    def distribution(loc, scale, lower):
        root = tf.linalg.set_diag(lower, tf.transpose(scale))
        return tfd.MultivariateNormalTriL(loc, root)


def sum_of_squares(values):
    """In one operation, with one for the gradient."""
    return 2 * tf.nn.l2_loss(values)


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


_POSTERIORS = {"diagonal": _Diagonal, "low_rank": _LowRank, "dense": _Dense}


class _Categorical:
    """One class of several: the log-partition of the logits is their log-sum-exp."""

    @staticmethod
    def log_partition(logits):
        return tf.reduce_logsumexp(logits, axis=-1)

    mean_log_partition = staticmethod(logistic_normal.mean_log_sum_exp)

    @staticmethod
    def predictive_logits(loc, scale, points, mirrored):
        return logistic_normal.log_mean_softmax(loc, scale, (), points, mirrored=mirrored)


class _Bernoulli:
    """Several labels, or one: the log-partition of each logit is its softplus."""

    @staticmethod
    def log_partition(logits):
        return tf.nn.softplus(logits)

    mean_log_partition = staticmethod(logistic_normal.mean_softplus)

    @staticmethod
    def predictive_logits(loc, scale, points, mirrored):
        log_prob, log_complement = logistic_normal.log_mean_sigmoid(
            loc, scale, (), points, mirrored=mirrored
        )
        return log_prob - log_complement


_LIKELIHOODS = {"categorical": _Categorical, "bernoulli": _Bernoulli}


def closed_form_gap(log_partition, mean, variance):
    """a(mean + variance / 2) - a(mean), a bound on E[a(u)] - a(mean) for u ~ N(mean, variance).

    Jensen's inequality for a = log-sum-exp, log E[sum exp(u)] (Harrison et al. 2024, theorem 1).
    """
    return log_partition(mean + variance / 2) - log_partition(mean)


@register
class VBLLDense(VariationalLayer):
    """Variational Bayesian last layer: stands in for the last `Dense` of a classifier.

    The weights of each output are Gaussian, and so, exactly, is each logit, which nothing has to
    sample weights for. Trained with your own cross-entropy, `from_logits=True`; what the evidence
    lower bound has beyond it needs no label, and the layer adds it to the loss.

    Formula (Harrison et al. 2024, section 2.3, equation 12 and theorem 1):

    ```
    w_k ~ N(m_k, S_k),  u_k = w_k^T x + b_k + e_k ~ N(m_k^T x + b_k, x^T S_k x + sigma_k^2)
    loss = CE(mean, y) + E[lse(mean + var / 2) - lse(mean)] + kl_weight * beta * KL
    KL   = sum_k KL(N(m_k, S_k) || N(0, prior_scale^2 I))
    ```

    E is the mean over the examples of a batch. `objective="monte_carlo"` has the mean of lse(u)
    over draws of the logits in place of lse(mean + var / 2): the bound itself, without Jensen's
    slack, and with noise. Since CE(mean, y) is the exact expectation of all but that term, no
    label is needed there either. In training the layer returns the mean logits; otherwise logits
    of the posterior predictive, and only the KL divergence is added to the loss.

    Sample weights and class weights scale the cross-entropy that you compile with. They do not
    reach what the layer adds.

    Args:
        units: Integer K, the number of classes (or labels).
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`.
            Required. Of the usual meaning: the loss is a mean over examples, and the KL divergence
            counts once for all of them.
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
        noise_scale: Initial sigma of `"learned"`.
        wishart_scale, dof: Scale and degrees of freedom of that prior.
        likelihood: `"categorical"`, or `"bernoulli"` for labels that do not exclude each other
            (and for two classes in one unit), with a binary cross-entropy.
        predictive: What the logits are outside training. `"monte_carlo"`: log of the mean
            probability over `test_mc_samples` (for `"bernoulli"`, its log-odds). `"probit"`:
            mean / sqrt(1 + pi var / 8) (MacKay 1992), free of samples. `"mean"`: the mean logits.
        train_mc_samples: Draws of the logits for `objective="monte_carlo"`.
        test_mc_samples: Draws of the logits for `predictive="monte_carlo"`. Mirror images come in
            pairs (see `sampling`): an odd number is rounded up.
        use_bias: Whether to add b, which is not random.
        logits_only: Whether to return the logits alone.
        kernel_initializer, bias_initializer, kernel_constraint, bias_constraint,
        bias_regularizer: For the means of the weights and for b, as in `keras.layers.Dense`.
        sampling: `"sobol"`, `"antithetic"` or `"iid"`: how draws of the logits are placed.
        resample: Whether each prediction draws anew. By default predictions repeat.
        seed: Integer from which all noise follows.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.

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
    """

    def __init__(
        self,
        units,
        kl_weight=None,
        posterior="diagonal",
        rank=None,
        prior_scale=1.0,
        posterior_scale=None,
        objective="closed_form",
        noise="none",
        noise_scale=0.1,
        wishart_scale=1.0,
        dof=1.0,
        likelihood="categorical",
        predictive="monte_carlo",
        train_mc_samples=10,
        test_mc_samples=30,
        use_bias=True,
        logits_only=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        sampling="sobol",
        resample=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_integer("units", units, minimum=1)
        check_kl_weight(kl_weight)
        check_choice("posterior", posterior, tuple(_POSTERIORS))
        if (rank is None) == (posterior == "low_rank"):
            raise ValueError(
                "Argument `rank` must be given with posterior='low_rank', and only then. "
                f"Received: rank={rank!r} with posterior={posterior!r}"
            )
        if rank is not None:
            check_integer("rank", rank, minimum=1)
        for name, value in (
            ("prior_scale", prior_scale),
            ("posterior_scale", 1 if posterior_scale is None else posterior_scale),
            ("noise_scale", noise_scale),
            ("wishart_scale", wishart_scale),
            ("dof", dof),
        ):
            check_positive(name, value)
        check_choice("objective", objective, ("closed_form", "monte_carlo"))
        check_choice("noise", noise, ("none", "learned"))
        check_choice("likelihood", likelihood, tuple(_LIKELIHOODS))
        check_choice("predictive", predictive, ("monte_carlo", "probit", "mean"))
        check_integer("train_mc_samples", train_mc_samples, minimum=1)
        check_integer("test_mc_samples", test_mc_samples, minimum=1)
        check_choice("sampling", sampling, points.RULES)
        if seed is not None:
            check_integer("seed", seed, minimum=0)
        self.units = units
        self.kl_weight = kl_weight
        self.posterior_form = posterior
        self.rank = rank
        self.prior_scale = prior_scale
        self.posterior_scale = posterior_scale
        self.objective = objective
        self.noise = noise
        self.noise_scale = noise_scale
        self.wishart_scale = wishart_scale
        self.dof = dof
        self.likelihood = likelihood
        self.predictive = predictive
        self.train_mc_samples = train_mc_samples
        self.test_mc_samples = test_mc_samples
        self.use_bias = use_bias
        self.logits_only = logits_only
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.sampling = sampling
        self.resample = resample
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def build(self, input_shape):
        features = input_shape[-1]
        if not features:
            raise ValueError(
                "The last dimension of the inputs must be known. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: features})
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
        if self.noise == "learned":
            self.noise_rho = self.add_weight(
                name="noise_rho",
                shape=(self.units,),
                initializer=keras.initializers.Constant(float(softplus_inverse(self.noise_scale))),
                autocast=False,
            )
        self._add_beta()
        self._train_points = self._normal_points(self.train_mc_samples, fresh=True)
        self._test_points = self._normal_points(self.test_mc_samples, fresh=self.resample)

    def _normal_points(self, num_samples, fresh):
        return points.NormalPoints(
            self.sampling, num_samples, self.units, seed=self.seed or 0, fresh=fresh
        )

    @property
    def _form(self):
        return _POSTERIORS[self.posterior_form]

    def _sampling_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _noise_variance(self):
        """sigma^2 `(units,)`, or 0."""
        dtype = self._sampling_dtype()
        if self.noise == "none":
            return tf.zeros((), dtype)
        return tf.square(tf.nn.softplus(tf.cast(self.noise_rho, dtype)))

    def _moments(self, inputs, spread):
        """Mean of the logits and their variance without the noise, `(rows, units)`."""
        dtype = self._sampling_dtype()
        rows = tf.reshape(inputs, (-1, inputs.shape[-1]))
        mean = tf.matmul(rows, tf.cast(self.kernel, rows.dtype))
        mean = tf.cast(mean + tf.cast(self.bias, mean.dtype) if self.use_bias else mean, dtype)
        return mean, self._form.variance(tf.cast(rows, dtype), *spread)

    def call(self, inputs, training=False):
        spread = self._form.read(self)
        mean, weight_variance = self._moments(inputs, spread)
        variance = weight_variance + self._noise_variance()
        self._add_kl(self._kl(spread))
        if current_draw() is not None:
            logits = self._drawn_logits(mean, weight_variance)
        elif training:
            self._add_mean(self._gap(mean, variance))
            logits = mean
        else:
            logits = self._predictive_logits(mean, variance)
        if self.logits_only:
            return with_leading(logits, inputs)
        return VBLLOutput(*(with_leading(t, inputs) for t in (logits, mean, variance)))

    def compute_output_spec(self, inputs, training=False):
        spec = keras.KerasTensor((*inputs.shape[:-1], self.units), dtype=self._sampling_dtype())
        return spec if self.logits_only else VBLLOutput(spec, spec, spec)

    def kl_divergence(self):
        """The KL divergence of the posterior from the prior, in nats; with learned noise, plus
        the negative log-density of its Wishart prior up to a constant. A scalar tensor.
        """
        return self._kl(self._form.read(self))

    def _kl(self, spread):
        trace, log_det_covariance = self._form.trace_and_log_det(*spread)
        prior_variance = self.prior_scale**2
        loc = tf.cast(tf.convert_to_tensor(self.kernel), trace.dtype)
        squares = (trace + sum_of_squares(loc)) / prior_variance
        size = math.prod(loc.shape)
        kl = (squares - size + size * math.log(prior_variance) - log_det_covariance) / 2
        return kl if self.noise == "none" else kl + self._noise_penalty()

    def _noise_penalty(self):
        variance = self._noise_variance()
        trace, log_det_variance = tf.reduce_sum(1 / variance), tf.reduce_sum(tf.math.log(variance))
        return (self.wishart_scale * trace + (self.dof + self.units + 1) * log_det_variance) / 2

    def _add_mean(self, values):
        """Adds the mean of `values` to the loss; that of none is 0."""
        count = tf.maximum(tf.size(values), 1)
        self.add_loss(tf.reduce_sum(values) / tf.cast(count, values.dtype))

    def _gap(self, mean, variance):
        """E[a(u)] - a(mean) by the objective, `(rows,)`, or `(rows, units)` for Bernoulli."""
        likelihood = _LIKELIHOODS[self.likelihood]
        if self.objective == "closed_form":
            return closed_form_gap(likelihood.log_partition, mean, variance)
        seed, sign_seed = points.split_seed(self.seed_generator.next(), 2)
        scale = _standard_deviation(variance)
        scale *= points.random_signs(tf.shape(scale), seed=sign_seed, dtype=scale.dtype)
        normals = tf.cast(self._train_points(seed), mean.dtype)
        mean_log_partition = likelihood.mean_log_partition(
            mean, scale, normals, mirrored=self._train_points.mirrored
        )
        return mean_log_partition - likelihood.log_partition(mean)

    def _predictive_logits(self, mean, variance):
        if self.predictive == "mean":
            return mean
        if self.predictive == "probit":
            return mean / tf.sqrt(1 + math.pi / 8 * variance)
        return self._mean_probs_as_logits(mean, variance)

    def _mean_probs_as_logits(self, mean, variance):
        source = self._test_points
        seed = None
        if source.fresh:
            seed = points.split_seed(self.seed_generator.next(), 1)[0]
        normals = tf.cast(source(seed), mean.dtype)
        return _LIKELIHOODS[self.likelihood].predictive_logits(
            mean, _standard_deviation(variance), normals, source.mirrored
        )

    def _drawn_logits(self, mean, weight_variance):
        """Logits for one draw of the weights; the noise on logits, which is not of the weights'
        making, is averaged over.
        """
        seed = current_draw().seed_of(self)
        noise = points.normal((self.units,), seed=seed, dtype=mean.dtype)
        logits = mean + _standard_deviation(weight_variance) * noise
        if self.noise == "none":
            return logits
        variance = self._noise_variance() * tf.ones_like(logits)
        return self._mean_probs_as_logits(logits, variance)

    def posterior(self):
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

    def logit_distribution(self, inputs):
        """The Gaussian of the logits, noise included.

        Args:
            inputs: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            `tfp.distributions.MultivariateNormalDiag` with batch shape `(batch, ...)` and event
            shape `(units,)`.
        """
        inputs = tf.convert_to_tensor(inputs, self.variable_dtype)
        if not self.built:
            self.build(inputs.shape)
        mean, variance = self._moments(inputs, self._form.read(self))
        scale = tf.sqrt(variance + self._noise_variance())
        return tfd.MultivariateNormalDiag(with_leading(mean, inputs), with_leading(scale, inputs))

    def get_config(self):
        config = super().get_config()
        config.update({name: getattr(self, name) for name in _ARGUMENTS if name != "posterior"})
        config["posterior"] = self.posterior_form
        for name in ("kernel_initializer", "bias_initializer"):
            config[name] = keras.initializers.serialize(getattr(self, name))
        for name in ("kernel_constraint", "bias_constraint"):
            config[name] = keras.constraints.serialize(getattr(self, name))
        config["bias_regularizer"] = keras.regularizers.serialize(self.bias_regularizer)
        return config


def _standard_deviation(variance):
    return tf.sqrt(tf.maximum(variance, MIN_VARIANCE))
