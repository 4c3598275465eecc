"""Last layers with the Gaussian posterior of a Laplace approximation (Daxberger et al. 2021)."""

from __future__ import annotations

import collections
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import (
    Tensor,
    check_choice,
    check_flags,
    check_integer,
    check_positive,
    is_finite,
    register,
    shown,
)
from tfuq._math.logistic_normal import probit
from tfuq._predictions import families
from tfuq._predictions.family import LEAST_SCALE
from tfuq._random.draws import TakesDraws, current_draw
from tfuq.layers._gaussian_forms import FORMS, ScaledIdentity
from tfuq.layers._posteriors import standard_deviation
from tfuq.layers._training import calling_model
from tfuq.layers.base import constant_rho, distributions
from tfuq.layers.heads import Head, OutputMeaning
from tfuq.layers.number_head import NumberHead
from tfuq.layers.shapes import as_matrix, checked_features, floating, with_leading
from tfuq.layers.ways import wanted_way

LaplaceOutput = collections.namedtuple("LaplaceOutput", ["logits", "mean", "variance"])

_ARGUMENTS = (
    "structure", "prior_scale", "use_bias", "examples", "log_marginal_likelihood",
)  # fmt: skip
_NOISES = ("constant", "linear")


class LaplaceLastLayer(TakesDraws, keras.layers.Layer):
    """Outputs W^T x + b whose weights and bias are Gaussian together; stands behind a head.

    A subclass has the attribute `units` and passes the arguments of these names on.
    """

    def __init__(
        self,
        *args: Any,
        structure: str = "kfac",
        prior_scale: float = 1.0,
        use_bias: bool = True,
        examples: int = 0,
        log_marginal_likelihood: float | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_choice("structure", structure, tuple(FORMS))
        check_positive("prior_scale", prior_scale)
        check_flags(use_bias=use_bias)
        check_integer("examples", examples, minimum=0)
        if log_marginal_likelihood is not None and not is_finite(log_marginal_likelihood):
            raise ValueError(
                "Argument `log_marginal_likelihood` must be a finite number or None. Received: "
                f"log_marginal_likelihood={shown(log_marginal_likelihood)}"
            )
        self.structure = structure
        self.prior_scale = prior_scale
        self.use_bias = use_bias
        self.examples = examples
        self.log_marginal_likelihood = log_marginal_likelihood
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        features = checked_features(self, input_shape)
        self.kernel = self.add_weight(
            name="kernel", shape=(features, self.units), initializer=self.kernel_initializer
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.units,), initializer=self.bias_initializer
            )
        self._form.add_weights(self, features)

    def add_spread(self, name: str, shape: Any, kind: str, scaled: bool = False) -> Any:
        """Adds a part of the posterior, which starts as the prior and which no training moves."""
        initializer = keras.initializers.Constant(self.prior_scale)
        if kind == "identity":
            initializer = ScaledIdentity(self.prior_scale if scaled else 1.0)
        weight = self.add_weight(
            name=name, shape=shape, initializer=initializer, trainable=False, autocast=False
        )
        setattr(self, name, weight)

    @property
    def _form(self):
        return FORMS[self.structure]

    def _sampling_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _check_unfilled(self, training):
        """Raises ValueError where a posterior is trained on, which says nothing of the new weights.

        It is asked in each call, so that the first step of `fit` tells.
        """
        if training and self.examples and getattr(calling_model(), "loss", None) is not None:
            raise ValueError(
                "Argument `training` must be False for a layer that `tfuq.convert.laplace_head` "
                "has filled: its posterior belongs to the network as it was then. Train the model "
                "that it was made from, and call `laplace_head` again. Received: training=True of "
                f"{self.name!r}, filled from {self.examples} examples"
            )

    def _rows(self, inputs):
        """The inputs `(rows, features)`, in the sampling dtype."""
        return tf.cast(as_matrix(inputs), self._sampling_dtype())

    def _mean(self, inputs):
        """W^T x + b with the means of the weights, `(rows, units)`."""
        rows = as_matrix(inputs)
        mean = tf.matmul(rows, tf.cast(self.kernel, rows.dtype))
        mean = tf.nn.bias_add(mean, tf.cast(self.bias, mean.dtype)) if self.use_bias else mean
        return tf.cast(mean, self._sampling_dtype())

    def _drawn(self, inputs, mean):
        """The outputs of the draw of the weights that is wanted now."""
        return mean + self._form.noise(self, self._rows(inputs), current_draw().seed_of(self))

    def _check_built(self):
        if not self.built:
            raise ValueError("The layer has no weights before it is built. Received: built=False")

    def output_distribution(self, inputs: Tensor) -> Any:
        """The joint Gaussian of the outputs, of the weights' making alone.

        Args:
            inputs: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            `tfp.distributions.MultivariateNormalLinearOperator` with batch shape `(batch, ...)` and
            event shape `(units,)`.

        Raises:
            ValueError: If the layer is not built.
        """
        self._check_built()
        inputs = tf.convert_to_tensor(inputs, self.variable_dtype)
        root = self._form.root(self, self._rows(inputs))
        covariance = with_leading(tf.matmul(root, root, transpose_b=True), inputs)
        mean = with_leading(self._mean(inputs), inputs)
        scale = tf.linalg.LinearOperatorLowerTriangular(tf.linalg.cholesky(covariance))
        return distributions().MultivariateNormalLinearOperator(mean, scale)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update({name: getattr(self, name) for name in _ARGUMENTS})
        for name in ("kernel_initializer", "bias_initializer"):
            config[name] = keras.initializers.serialize(getattr(self, name))
        return config


@register
class LastLayerLaplace(Head, LaplaceLastLayer):
    """Last layer of a classifier with the posterior of a Laplace approximation.

    `tfuq.convert.laplace_head` makes and fills it for a trained network. When constructed, its
    posterior is the prior, and it trains as a `Dense` does: only the means, with your own
    cross-entropy, `from_logits=True`. A filled layer refuses to be trained.

    Formula (Daxberger et al. 2021; MacKay 1992):

    ```
    theta = (W, b) ~ N(theta_MAP, (H + I / prior_scale^2)^-1),  u = W^T x + b
    H = sum_n J_n^T L_n J_n,  L = diag(p) - p p^T  (of several labels diag(p (1 - p)))

    structure="full":      H as it is
    structure="diagonal":  its diagonal
    structure="kfac":      of W (sum L_n) x (sum x_n x_n^T / N), of b (sum L_n), nothing between
    logits = mean / sqrt(1 + pi var / 8),  mean and var of u
    ```

    H of a linear layer is exactly the Hessian of the loss, and its Gauss-Newton matrix.

    Args:
        units: Integer K, the number of classes (at least 2) or labels.
        structure: `"kfac"`, `"diagonal"`, or `"full"`, the covariance of all weights with each
            other, of at most 8,192 of them.
        prior_scale: Standard deviation of each weight under the prior.
        likelihood: `"categorical"`, or `"bernoulli"` for labels that do not exclude each other (and
            for two classes in one unit).
        predictive: The logits outside training. `"probit"`: mean / sqrt(1 + pi var / 8), without
            samples; `"mean"`: the mean logits. `tfuq.predictive.sample_predictions` draws whole
            networks either way.
        use_bias: Whether there is a bias, which is random as the kernel is.
        logits_only: Whether to return the logits alone.
        examples: How many examples the posterior was filled from; 0 is none.
        log_marginal_likelihood: Laplace's estimate of it, as `laplace_head` has found it.
        kernel_initializer, bias_initializer: For the means, as in `keras.layers.Dense`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.

    Returns:
        Logits `(batch, ..., units)`, float32 also under a mixed precision policy. With
        `logits_only=False` a named tuple `(logits, mean, variance)` of three such tensors.

    Raises:
        ValueError: If an argument is out of its range; if `fit` is to train what was filled.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    bayesian = tfuq.convert.laplace_head(model, (x, y))
    print(bayesian.layers[-1].prior_scale, tfuq.predictive.predict_uncertainty(bayesian, x).probs)
    ```

    References:
        - Daxberger et al.: "Laplace Redux - Effortless Bayesian Deep Learning", NeurIPS 2021.
        - MacKay: "The Evidence Framework Applied to Classification Networks", 1992.

    See also: `tfuq.convert.laplace_head`, `tfuq.layers.LastLayerLaplaceRegression`,
    `tfuq.layers.VBLLDense`.
    """

    ways = ("probit", "mean")
    output_type = LaplaceOutput

    def __init__(
        self,
        units: int,
        structure: str = "kfac",
        prior_scale: float = 1.0,
        likelihood: str = "categorical",
        predictive: str = "probit",
        logits_only: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(structure=structure, prior_scale=prior_scale, **kwargs)
        check_integer("units", units, minimum=1)
        check_choice("likelihood", likelihood, ("categorical", "bernoulli"))
        check_choice("predictive", predictive, self.ways)
        if units == 1 and likelihood == "categorical":
            raise ValueError(
                "Argument `units` must be at least 2 for likelihood='categorical', where one class "
                "has probability 1 whatever the input. For two classes in one logit, or one label, "
                "pass likelihood='bernoulli'. Received: units=1 with likelihood='categorical'"
            )
        self.units = units
        self.likelihood, self.predictive, self.logits_only = likelihood, predictive, logits_only
        self._check_switches("logits_only")

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        self._check_loss(training)
        self._check_unfilled(training)
        mean = self._mean(inputs)
        way = wanted_way() if wanted_way() in self.ways else self.predictive
        needs_variance = not self.logits_only or way == "probit"
        variance = self._form.variance(self, self._rows(inputs)) if needs_variance else None
        if current_draw() is not None:
            logits = self._drawn(inputs, mean)
        else:
            logits = mean if training or way == "mean" else probit(mean, variance)
        if self.logits_only:
            return with_leading(logits, inputs)
        return LaplaceOutput(*(with_leading(t, inputs) for t in (logits, mean, variance)))

    def _widths(self):
        return [self.units] * len(LaplaceOutput._fields)

    def _meanings(self):
        several = self.likelihood == "bernoulli"
        kinds = zip(LaplaceOutput._fields, ("logits", "logits", "variance"), strict=True)
        return {field: OutputMeaning(kind, several) for field, kind in kinds}

    def mean_logits(self, inputs: Tensor) -> Tensor:
        inputs = floating(inputs, self.compute_dtype)
        if not self.built:
            self.build(inputs.shape)
        return with_leading(self._mean(inputs), inputs)

    def linear_map(self) -> Any:
        return self.kernel, self.bias if self.use_bias else None

    def get_config(self) -> dict[str, Any]:
        own = ("units", "likelihood", "predictive", "logits_only")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


@register
class LastLayerLaplaceRegression(NumberHead, LaplaceLastLayer):
    """Last layer of a regression with the posterior of a Laplace approximation.

    `tfuq.convert.laplace_head` makes and fills it, for a network that is trained already: of a last
    `Dense` with `noise="constant"`, of a `NormalDense` with `noise="linear"`, whose scales stay as
    they are. As it is constructed its posterior is the prior, and `head.negative_log_likelihood()`
    trains means and noise, at the means of the weights. What was filled refuses to be trained on.

    Formula: as `LastLayerLaplace`, with `L_n = diag(1 / sigma_k(x_n)^2)`, and
    `y_k ~ N(mean_k, sigma_k(x)^2 + var_k)`, which is exact for this layer.

    Args:
        units: How many numbers there are.
        structure, prior_scale, use_bias, examples, log_marginal_likelihood, kernel_initializer,
        bias_initializer: As in `LastLayerLaplace`.
        mean_only: Whether to return the means alone, for metrics of Keras.
        noise: `"constant"`, one sigma for each number; `"linear"`: softplus of a linear map of the
            inputs, plus `min_scale`.
        noise_scale: sigma that training starts from.
        min_scale: What is added to sigma, so that its logarithm stays finite.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.

    Returns:
        Parameters `(batch, ..., 3 * units)`: all means, then all sigma, then the standard
        deviations of all means; float32 also under a mixed precision policy. With `mean_only` the
        means, `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, if the compiled loss does not take
            these parameters, or the layer was filled.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x = np.random.rand(64, 8)
    y = x.sum(axis=1) + 0.1 * np.random.randn(64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    bayesian = tfuq.convert.laplace_head(model, (x, y))
    lower, upper = tfuq.predictive.predict_uncertainty(bayesian, x).interval(0.9)
    ```

    References:
        - Daxberger et al.: "Laplace Redux - Effortless Bayesian Deep Learning", NeurIPS 2021.

    See also: `tfuq.convert.laplace_head`, `tfuq.layers.LastLayerLaplace`,
    `tfuq.layers.VBLLRegression`.
    """

    family = families.BayesianNormal()

    def __init__(
        self,
        units: int,
        structure: str = "kfac",
        prior_scale: float = 1.0,
        *,
        noise: str = "constant",
        noise_scale: float = 1.0,
        min_scale: float = LEAST_SCALE,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, structure=structure, prior_scale=prior_scale, **kwargs)
        check_choice("noise", noise, _NOISES)
        check_positive("noise_scale", noise_scale)
        check_positive("min_scale", min_scale)
        self.noise, self.noise_scale, self.min_scale = noise, noise_scale, min_scale

    @property
    def closed_form(self) -> bool:
        """Whether the output says how draws would differ: the means alone do not."""
        return not self.mean_only

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self.noise == "linear":
            self.noise_kernel = self.add_weight(
                name="noise_kernel", shape=self.kernel.shape, initializer="zeros"
            )
        self.noise_rho = self.add_weight(
            name="noise_rho",
            shape=(self.units,),
            initializer=constant_rho(self.noise_scale),
            autocast=False,
        )

    def _sigma(self, rows):
        """Scale of the noise, `(rows, units)`."""
        rho = tf.cast(self.noise_rho, rows.dtype)
        raw = tf.broadcast_to(rho, (tf.shape(rows)[0], self.units))
        if self.noise == "linear":
            raw += tf.matmul(rows, tf.cast(self.noise_kernel, rows.dtype))
        return tf.nn.softplus(raw) + self.min_scale

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        self._check_loss(training)
        self._check_unfilled(training)
        rows, mean = self._rows(inputs), self._mean(inputs)
        epistemic = tf.zeros_like(mean)
        if current_draw() is not None:
            mean = self._drawn(inputs, mean)
        elif not training:
            epistemic = standard_deviation(self._form.variance(self, rows))
        params = tf.concat([mean, self._sigma(rows), epistemic], axis=-1)
        return self._output(with_leading(params, inputs))

    def get_config(self) -> dict[str, Any]:
        own = ("noise", "noise_scale", "min_scale")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
