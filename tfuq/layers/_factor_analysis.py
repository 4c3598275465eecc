"""Gaussian logits whose covariance depends on the input: the base of the heteroscedastic heads."""

from __future__ import annotations

import abc
import collections
import math
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Self,
    Tensor,
    check_choice,
    check_flags,
    check_fraction,
    check_integer,
    check_positive,
    shown,
)
from tfuq._math.logistic_normal import probit
from tfuq._random import points
from tfuq.layers import _mean_layers
from tfuq.layers._estimators import with_random_signs
from tfuq.layers.base import distributions
from tfuq.layers.heads import Head, OutputMeaning
from tfuq.layers.shapes import checked_features, floating, project, with_leading
from tfuq.layers.ways import wanted_way

MIN_SCALE = 1e-3  # the floor of d(x), as in the authors' code

HeteroscedasticOutput = collections.namedtuple(
    "HeteroscedasticOutput", ["logits", "log_probs", "probs", "predictive_variance"]
)

_ARGUMENTS = (
    "num_outputs", "num_factors", "temperature", "parameter_efficient", "train_mc_samples",
    "test_mc_samples", "compute_pred_variance", "share_samples_across_batch", "logits_only", "eps",
    "tune_temperature", "temperature_lower_bound", "temperature_upper_bound", "sampling",
    "resample", "seed", "kl_weight",
)  # fmt: skip


class MCDenseFA(Head, keras.layers.Layer):
    """Gaussian logits with a factor-analysis covariance, averaged after a link function.

    A subclass names its number of outputs, and turns logs of means into its output.
    """

    ways = ("probit", "fresh_samples")
    output_type = HeteroscedasticOutput
    multi_label = False

    def __init__(
        self,
        num_outputs: int,
        num_factors: int = 0,
        temperature: float = 1.0,
        parameter_efficient: bool = False,
        train_mc_samples: int = 512,
        test_mc_samples: int = 640,
        compute_pred_variance: bool = False,
        share_samples_across_batch: bool = False,
        logits_only: bool = False,
        eps: float = 0.0,
        dtype: Any = None,
        tune_temperature: bool = False,
        temperature_lower_bound: float = 0.3,
        temperature_upper_bound: float = 3.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        sampling: str = "sobol",
        resample: bool = False,
        seed: int | None = None,
        last_layer: str | None = None,
        kl_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(dtype, bool):
            raise ValueError(
                "Argument `dtype` must be a dtype or a policy; it is the 11th, as edward2 has it. "
                f"Pass `tune_temperature` by name. Received: dtype={shown(dtype)}"
            )
        super().__init__(dtype=dtype, **kwargs)
        self.num_outputs, self.num_factors = num_outputs, num_factors
        self.temperature = temperature
        self.parameter_efficient = parameter_efficient
        self.train_mc_samples = train_mc_samples
        self.test_mc_samples = test_mc_samples
        self.compute_pred_variance = compute_pred_variance
        self.share_samples_across_batch = share_samples_across_batch
        self.logits_only = logits_only
        self.eps = eps
        self.tune_temperature = tune_temperature
        self.temperature_lower_bound = temperature_lower_bound
        self.temperature_upper_bound = temperature_upper_bound
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.sampling, self.resample, self.seed = sampling, resample, seed
        self.last_layer, self.kl_weight = last_layer, kl_weight
        self._check_arguments()
        self.mean_layer = _mean_layers.mean_layer(self)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def _check_arguments(self):
        check_integer("num_outputs", self.num_outputs, minimum=1)
        check_integer("num_factors", self.num_factors, minimum=0)
        check_integer("train_mc_samples", self.train_mc_samples, minimum=1)
        check_integer("test_mc_samples", self.test_mc_samples, minimum=1)
        low, high = self.temperature_lower_bound, self.temperature_upper_bound
        check_positive("temperature", self.temperature)
        flags = ("parameter_efficient", "compute_pred_variance", "share_samples_across_batch")
        flags += ("logits_only", "tune_temperature", "resample")
        check_flags(**{name: getattr(self, name) for name in flags})
        for name in ("temperature_lower_bound", "temperature_upper_bound"):
            if self.tune_temperature or getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if None not in (low, high) and low >= high:
            raise ValueError(
                "Argument `temperature_lower_bound` must be below `temperature_upper_bound`. "
                f"Received: temperature_lower_bound={shown(low)}, "
                f"temperature_upper_bound={shown(high)}"
            )
        check_fraction("eps", self.eps)
        check_choice("sampling", self.sampling, points.RULES)
        if self.seed is not None:
            check_integer("seed", self.seed, minimum=0)

    @abc.abstractmethod
    def _log_means(self, *args, **kwargs):
        """log mean p^power, and log mean (1 - p)^power where the link has two sides."""

    @staticmethod
    @abc.abstractmethod
    def _logits(log_prob, *log_complement):
        """What the loss takes, from the logs of the mean probabilities."""

    def build(self, input_shape: Any) -> None:
        features = checked_features(self, input_shape)
        width = self._noise_width(features)
        if self.mean_layer is None:
            self._add_dense("loc", features, self.num_outputs)
        else:
            _mean_layers.check_is_own(self.mean_layer)
            self.mean_layer.build(input_shape)
        self._add_dense("scale", features, width)
        if self.num_factors and self.parameter_efficient:
            self._add_dense("gain", features, width)
            self.factor_loadings = self._add_kernel(
                "factor_loadings", (self.num_factors, width), autocast=False
            )
        elif self.num_factors:
            self._add_dense("factor", features, width * self.num_factors)
        if self.tune_temperature:
            self.temperature_logit = self.add_weight(
                name="temperature_logit",
                shape=(),
                initializer=keras.initializers.Constant(self._initial_temperature_logit()),
                autocast=False,
            )
        # Not weights: they follow from the configuration, and another number of samples must not
        # keep saved weights from loading.
        self._train_points = self._normal_points(self.train_mc_samples, fresh=True)
        self._test_points = self._normal_points(self.test_mc_samples, fresh=self.resample)

    def _noise_width(self, features):
        """Number of what is noisy: the logits."""
        del features
        return self.num_outputs

    def _projection(self):
        """What leads from noise to logits, as arguments of `_log_means`."""
        return {}

    def _add_kernel(self, name, shape, autocast=True):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            autocast=autocast,
        )

    def _add_dense(self, name, features, units):
        setattr(self, f"{name}_kernel", self._add_kernel(f"{name}_kernel", (features, units)))
        bias = self.add_weight(
            name=f"{name}_bias",
            shape=(units,),
            initializer=self.bias_initializer,
            regularizer=self.bias_regularizer,
            constraint=self.bias_constraint,
        )
        setattr(self, f"{name}_bias", bias)

    def _initial_temperature_logit(self):
        low, high = self.temperature_lower_bound, self.temperature_upper_bound
        fraction = (self.temperature - low) / (high - low)
        return math.log(fraction / (1 - fraction)) if 0 < fraction < 1 else 0.0

    def _normal_points(self, num_samples, fresh):
        dimensions = self.num_factors + self.scale_kernel.shape[-1]
        return points.NormalPoints(
            self.sampling, num_samples, dimensions, seed=self.seed or 0, fresh=fresh
        )

    def call(
        self,
        inputs: Tensor,
        training: bool = False,
        seed: int | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        self._check_loss(training)
        if seed is not None and not tf.is_tensor(seed):
            check_integer("seed", seed, minimum=0)
        loc, variance = self._mean(inputs, training, mask)
        loc, scale, factors = self._at_temperature(loc, *self._noise(inputs))
        if variance is not None:
            variance /= tf.cast(self.current_temperature(), variance.dtype) ** 2
            if not training:  # Gaussian, too, and independent from one logit to the next
                scale, variance = tf.sqrt(tf.square(scale) + variance), None
        closed = None
        if wanted_way() == "probit" and not training:
            closed = with_leading(probit(loc, self._logit_variance(scale, factors)), inputs)
            if self.logits_only:
                return closed
        normals, mirrored, sign_seed = self._normals(training, seed)
        if sign_seed is not None and not self.share_samples_across_batch:
            scale, factors = with_random_signs(scale, factors, seed=sign_seed)
        noise = (scale, factors, tf.cast(normals, loc.dtype))
        options = {"mirrored": mirrored, **self._projection()}

        def log_means(loc=loc, power=1):
            return self._log_means(loc, *noise, power=power, **options)

        bounds = None
        if variance is not None:
            bounds, gap = _mean_layers.bound(log_means(loc + variance / 2), variance / 2)
            self.mean_layer._add_gap(gap, inputs, mask)
        outputs = self._outputs(log_means, bounds)
        outputs = tf.nest.map_structure(lambda t: with_leading(t, inputs), outputs)
        if closed is not None:
            outputs = outputs._replace(logits=closed)
        return outputs.logits if self.logits_only else outputs

    def _normals(self, training, seed):
        """Standard normal points, whether they have mirror images; if fresh, a seed for signs."""
        source = self._train_points if training else self._points_of_prediction()
        if seed is not None and not source.fresh:
            source = self._normal_points(self.test_mc_samples, fresh=True)
        if not source.fresh:
            return source(None), source.mirrored, None
        start = self.seed_generator.next() if seed is None else tf.stack([0, seed])
        seed, sign_seed = points.split_seed(start, 2)
        return source(seed), source.mirrored, sign_seed

    def _logit_variance(self, scale, factors):
        """Variance of each logit, `(rows, outputs)`."""
        variance = tf.square(scale)
        if len(factors) == 2:  # v(x) and loadings that all inputs share
            gain, loadings = factors
            variance += tf.square(gain) * tf.reduce_sum(tf.square(loadings), axis=0)
        elif factors:
            variance += tf.reduce_sum(tf.square(factors[0]), axis=-1)
        return variance

    def _points_of_prediction(self):
        source, way = self._test_points, wanted_way()
        fresh = source.fresh if way is None else way == "fresh_samples"
        if fresh == source.fresh:
            return source
        return self._normal_points(self.test_mc_samples, fresh=fresh)

    def _widths(self):
        return [*[self.num_outputs] * 3, self.num_outputs if self.compute_pred_variance else 0]

    def _meanings(self):
        return {
            "logits": OutputMeaning("logits", self.multi_label, not self.multi_label),
            "log_probs": OutputMeaning("log_probabilities", self.multi_label, not self.multi_label),
            "probs": OutputMeaning("probabilities", self.multi_label),
            "predictive_variance": OutputMeaning("variance", self.multi_label),
        }

    def mean_logits(self, inputs: Tensor) -> Tensor:
        inputs = tf.convert_to_tensor(inputs)
        if not self.built:
            self.build(inputs.shape)
        loc, _, _ = self._at_temperature(*self._parameters(inputs))
        return with_leading(loc, inputs)

    def linear_map(self) -> Any:
        if self.mean_layer is None:
            weights = self.loc_kernel, self.loc_bias
        else:
            weights = self.mean_layer.linear_map()
        inverse = 1 / self.current_temperature()
        return weights and tuple(
            None if each is None else tf.cast(tf.convert_to_tensor(each), inverse.dtype) * inverse
            for each in weights
        )

    def _outputs(self, log_means, bounds=None):
        """The output, from the logs of means or, in training with uncertain weights, `bounds`."""
        log_prob, *log_complement = log_means() if bounds is None else bounds
        probs = tf.exp(log_prob)
        variance = probs[:, :0]
        if self.compute_pred_variance:
            mean = probs if bounds is None else tf.exp(log_means()[0])
            variance = tf.maximum(tf.exp(log_means(power=2)[0]) - tf.square(mean), 0)
        upper = 1 - self.eps if log_complement else 1.0
        return HeteroscedasticOutput(
            self._logits(log_prob, *log_complement),
            log_prob,
            tf.clip_by_value(probs, self.eps, upper) if self.eps else probs,
            variance,
        )

    def _sampling_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _dense(self, name, inputs):
        """An affine function of all rows of the inputs, in the sampling dtype."""
        rows = tf.reshape(inputs, (-1, inputs.shape[-1]))
        kernel = tf.convert_to_tensor(getattr(self, f"{name}_kernel"))
        outputs = project(tf.cast(rows, kernel.dtype), kernel) + getattr(self, f"{name}_bias")
        return tf.cast(outputs, self._sampling_dtype())

    def _mean(self, inputs, training, mask):
        """Mean of the logits of all rows (in a draw, that draw) and its variance or None."""
        if self.mean_layer is None:
            return self._dense("loc", inputs), None
        parts = self.mean_layer._uncertain_mean(inputs, training, mask)
        loc, variance = (None if t is None else tf.cast(t, self._sampling_dtype()) for t in parts)
        return loc, None if wanted_way() == "mean" and not training else variance

    def _noise(self, inputs):
        """scale and factors of the logits of all rows, in the sampling dtype."""
        factors = ()
        if self.num_factors and self.parameter_efficient:
            loadings = tf.cast(self.factor_loadings, self._sampling_dtype())
            factors = (self._dense("gain", inputs), loadings)
        elif self.num_factors:
            factor = self._dense("factor", inputs)
            width = factor.shape[-1] // self.num_factors
            factors = (tf.reshape(factor, (-1, width, self.num_factors)),)
        return tf.nn.softplus(self._dense("scale", inputs)) + MIN_SCALE, factors

    def _parameters(self, inputs):
        """loc, scale and factors of the logits of all rows, in the sampling dtype."""
        if self.mean_layer is None:
            loc = self._dense("loc", inputs)
        else:
            logits = self.mean_layer.mean_logits(floating(inputs, self.compute_dtype))
            loc = tf.cast(tf.reshape(logits, (-1, self.num_outputs)), self._sampling_dtype())
        return loc, *self._noise(inputs)

    def _at_temperature(self, loc, scale, factors):
        if not self.tune_temperature and self.temperature == 1:
            return loc, scale, factors
        inverse = 1 / tf.cast(self.current_temperature(), loc.dtype)
        factors = (factors[0] * inverse, *factors[1:]) if factors else ()
        return loc * inverse, scale * inverse, factors

    def current_temperature(self) -> Any:
        """The temperature in use: the constant, or the tuned one as a scalar tensor."""
        if not self.tune_temperature:
            return tf.constant(self.temperature, self._sampling_dtype())
        low, high = self.temperature_lower_bound, self.temperature_upper_bound
        fraction = tf.sigmoid(tf.convert_to_tensor(self.temperature_logit))
        return low + (high - low) * tf.cast(fraction, self._sampling_dtype())

    def logit_distribution(self, features: ArrayLike) -> Any:
        """The distribution of the logits u(x), before the temperature.

        With a `last_layer`: about the mean of its weights, whose own uncertainty is not in it.

        Args:
            features: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            `tfp.distributions.MultivariateNormalDiagPlusLowRankCovariance` with batch shape
            `(batch, ...)` and event shape `(outputs,)`; without factors,
            `MultivariateNormalDiag`.
        """
        loc, scale, loadings = self._moments(features)
        tfd = distributions()
        if loadings is None:
            return tfd.MultivariateNormalDiag(loc, scale)
        return tfd.MultivariateNormalDiagPlusLowRankCovariance(loc, tf.square(scale), loadings)

    def covariance(self, features: ArrayLike) -> Tensor:
        """Sigma(x) = diag(d(x)^2) + V(x) V(x)^T of the logits, before the temperature.

        It is that of the label noise, also with a `last_layer`.

        Args:
            features: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            Tensor of shape `(batch, ..., outputs, outputs)`.
        """
        _, scale, loadings = self._moments(features)
        diagonal = tf.linalg.diag(tf.square(scale))
        if loadings is None:
            return diagonal
        return diagonal + tf.matmul(loadings, loadings, transpose_b=True)

    def _moments(self, features):
        """loc, scale and V(x) (None without factors), with the leading dimensions of `features`."""
        features = tf.convert_to_tensor(features, self.variable_dtype)
        if not self.built:
            self.build(features.shape)
        loc, scale, factors = self._parameters(features)
        if len(factors) == 2:
            gain, loadings = factors
            factors = (gain[..., None] * tf.transpose(loadings),)
        moments = [loc, scale, *factors] if factors else [loc, scale]
        loc, scale, *factors = (with_leading(t, features) for t in moments)
        return loc, scale, factors[0] if factors else None

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update({name: getattr(self, name) for name in _ARGUMENTS})
        config["last_layer"] = _mean_layers.serialized(self.last_layer)
        for kind in ("initializer", "regularizer", "constraint"):
            serialize = getattr(keras, f"{kind}s").serialize
            for weights in ("kernel", "bias"):
                config[f"{weights}_{kind}"] = serialize(getattr(self, f"{weights}_{kind}"))
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        given = _mean_layers.deserialized(config.get("last_layer"))
        return cls(**config if given is None else {**config, "last_layer": given})
