"""Heads of regressions: normal, Laplace, Student's t, mixtures, quantiles, evidential, joint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor, register
from tfuq._predictions import families
from tfuq._predictions.family import Family
from tfuq.layers.number_head import ParameterDense
from tfuq.losses import Evidential, Pinball


@register
class NormalDense(ParameterDense):
    """Normal distribution of each number: stands in for the last `Dense` of a regression.

    The noise may depend on the input. Trained with `head.negative_log_likelihood()`,
    `tfuq.losses.BetaNLL` or `CRPS`. `tfuq.predictive.predict_uncertainty` reads the output.

    Formula: `loc, s = split(x W + b)`, `scale = softplus(s) + min_scale`, `y ~ N(loc, scale^2)`.

    Args:
        units: How many numbers there are.
        mean_only: Whether to return the means alone, `(batch, ..., units)`, for losses and metrics
            of Keras, which read the parameters wrongly.
        min_scale: What is added to a scale, so that its logarithm stays finite; in the unit of the
            labels.
        use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint: As in `keras.layers.Dense`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.

    Returns:
        Parameters `(batch, ..., 2 * units)`: all `loc`, then all `scale`; float32 also under a
        mixed precision policy. With `mean_only` the means, `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, if the compiled loss does not take
            these parameters.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x = np.random.rand(64, 8)
    y = x.sum(axis=1) + 0.1 * np.random.randn(64)
    head = tfuq.layers.NormalDense(1)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), head])
    model.compile("adam", loss=head.negative_log_likelihood())
    model.fit(x, y, verbose=0)
    lower, upper = tfuq.predictive.predict_uncertainty(model, x).interval(0.9)
    ```

    References:
        - Nix and Weigend: "Estimating the mean and variance of the target probability
          distribution", 1994.

    See also: `tfuq.losses.NegativeLogLikelihood`, `tfuq.layers.StudentTDense`,
    `tfuq.layers.VBLLRegression`, `tfuq.selective.ConformalRegressor`.
    """

    family = families.Normal()


@register
class LaplaceDense(ParameterDense):
    """Laplace distribution of each number, whose heavier tails bear outliers.

    Formula: `loc, s = split(x W + b)`, `scale = softplus(s) + min_scale`,
    `p(y) = exp(-|y - loc| / scale) / (2 scale)`. Its standard deviation is sqrt(2) scale.

    Args:
        units, mean_only, min_scale, use_bias, kernel_initializer, bias_initializer,
        kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint: As in
            `NormalDense`.

    Returns:
        Parameters `(batch, ..., 2 * units)`: all `loc`, then all `scale`; or the means.

    Raises:
        ValueError: As `NormalDense`.

    Example:

    >>> import tfuq
    >>> tfuq.layers.LaplaceDense(1).compute_output_shape((None, 8))
    (None, 2)

    See also: `tfuq.layers.NormalDense`, `tfuq.losses.NegativeLogLikelihood`.
    """

    family = families.Laplace()


@register
class StudentTDense(ParameterDense):
    """Student's t distribution of each number, with degrees of freedom that are learned.

    Formula: `loc, s, d = split(x W + b)`, `scale = softplus(s) + min_scale`,
    `df = 2.01 + softplus(d)` (above 2, so that there is a variance), `y = loc + scale T_df`.

    Args:
        units, mean_only, min_scale, use_bias, kernel_initializer, bias_initializer,
        kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint: As in
            `NormalDense`.

    Returns:
        Parameters `(batch, ..., 3 * units)`: all `loc`, all `scale`, all `df`; or the means.

    Raises:
        ValueError: As `NormalDense`.

    Example:

    >>> import tfuq
    >>> tfuq.layers.StudentTDense(2).compute_output_shape((None, 8))
    (None, 6)

    See also: `tfuq.layers.NormalDense`, `tfuq.losses.NegativeLogLikelihood`.
    """

    family = families.StudentT()


@register
class MixtureDense(ParameterDense):
    """Mixture of normals of each number (a mixture density network), for several possible answers.

    Formula: `y ~ sum_k p_k N(loc_k, scale_k^2)`, `p = softmax(logits)`,
    `scale = softplus(s) + min_scale`   (Bishop 1994).

    Args:
        units: How many numbers there are.
        num_components: How many normals there are for each.
        mean_only, min_scale, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
        bias_regularizer, kernel_constraint, bias_constraint: As in `NormalDense`; but biases start
            at random, normal with the deviation 1, so that components differ.

    Returns:
        Parameters `(batch, ..., 3 * num_components * units)`: the logits of all components, their
        `loc`, their `scale`, each for all numbers; or the means.

    Raises:
        ValueError: As `NormalDense`; if `num_components` is no integer of at least 1.

    Example:

    >>> import tfuq
    >>> tfuq.layers.MixtureDense(1, num_components=5).compute_output_shape((None, 8))
    (None, 15)

    References:
        - Bishop: "Mixture Density Networks", 1994.

    See also: `tfuq.layers.NormalDense`, `tfuq.losses.NegativeLogLikelihood`.
    """

    def __init__(
        self, units: int, num_components: int = 3, *, bias_initializer: Any = None, **kwargs: Any
    ) -> None:
        if bias_initializer is None:
            bias_initializer = keras.initializers.RandomNormal(stddev=1.0)
        super().__init__(units, bias_initializer=bias_initializer, **kwargs)
        self._family = families.Mixture(num_components)
        self.num_components = num_components

    @property
    def family(self) -> Family:
        return self._family

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_components": self.num_components}


@register
class QuantileDense(ParameterDense):
    """Quantiles of each number, which cannot cross, whatever the weights.

    Trained with `head.pinball()`. Intervals reach from one of the levels to another, so that for
    `interval(0.9)` the levels 0.05 and 0.95 are learned.

    Formula: the middle quantile is linear in the inputs; each further one is beyond its neighbour
    by `softplus(x w + b)`.

    Args:
        units: How many numbers there are.
        levels: Probabilities in (0, 1) that increase, at least two.
        mean_only: Whether to return the medians alone.
        min_scale, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
        bias_regularizer, kernel_constraint, bias_constraint: As in `NormalDense`.

    Returns:
        Quantiles `(batch, ..., len(levels) * units)`: those of the first level for all numbers,
        then of the second; or the medians `(batch, ..., units)`.

    Raises:
        ValueError: As `NormalDense`; if `levels` are no two or more numbers that increase.

    Example:

    >>> import tfuq
    >>> tfuq.layers.QuantileDense(1, levels=[0.05, 0.5, 0.95]).compute_output_shape((None, 8))
    (None, 3)

    References:
        - Koenker and Bassett: "Regression Quantiles", 1978.

    See also: `tfuq.losses.Pinball`, `tfuq.selective.ConformalRegressor`.
    """

    def __init__(
        self, units: int, levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95), **kwargs: Any
    ) -> None:
        super().__init__(units, **kwargs)
        self._family = families.Quantiles(levels)
        self.levels = list(self._family.levels)

    @property
    def family(self) -> Family:
        return self._family

    def pinball(self, **kwargs: Any) -> keras.losses.Loss:
        """The loss to compile the model with: `tfuq.losses.Pinball` of these levels."""
        self._check_has_parameters("pinball")
        return Pinball(self.levels, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "levels": self.levels}


@register
class EvidentialDense(ParameterDense):
    """Evidence for a number: a normal-inverse-gamma distribution (Amini et al. 2020).

    Trained with `head.evidential()`. Its epistemic part is no posterior: see the known faults in
    `tfuq.losses.Evidential`.

    Formula: `loc` is linear; `nu = softplus + min_scale`, `alpha = 1 + softplus + min_scale`,
    `beta = softplus + min_scale`; y is Student's t.

    Args:
        units, mean_only, min_scale, use_bias, kernel_initializer, bias_initializer,
        kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint: As in
            `NormalDense`.

    Returns:
        Parameters `(batch, ..., 4 * units)`: all `loc`, `nu`, `alpha`, `beta`; or the means.

    Raises:
        ValueError: As `NormalDense`.

    Example:

    >>> import tfuq
    >>> tfuq.layers.EvidentialDense(1).compute_output_shape((None, 8))
    (None, 4)

    See also: `tfuq.losses.Evidential`, `tfuq.layers.NormalDense`, `tfuq.layers.VBLLRegression`.
    """

    family = families.Evidential()

    def evidential(self, coefficient: float = 0.01, **kwargs: Any) -> keras.losses.Loss:
        """The loss to compile the model with: `tfuq.losses.Evidential`."""
        self._check_has_parameters("evidential")
        return Evidential(coefficient, **kwargs)


@register
class MultivariateNormalDense(ParameterDense):
    """Normal distribution of several numbers whose noise is correlated: low rank plus diagonal.

    The counterpart of `MCSoftmaxDenseFA` for numbers, without samples. Its loss and
    `predict_uncertainty(...).log_prob` are of all numbers together; intervals, quantiles and CRPS
    are of each number. `samples()` have the correlations.

    Formula: `loc, s, F = split(x W + b)`, `scale = softplus(s) + min_scale`,
    `y ~ N(loc, diag(scale^2) + F F^T)`, F of the shape `(units, num_factors)`. The loss is
    `-log p(y) / units`, which compares with losses of single numbers.

    Args:
        units: How many numbers there are, at least 2.
        num_factors: Rank of the correlated noise, at least 1. `NormalDense` has none.
        mean_only, min_scale, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
        bias_regularizer, kernel_constraint, bias_constraint: As in `NormalDense`; but biases start
            at random, normal with the deviation 0.3, for factors around 0 have no gradient.

    Returns:
        Parameters `(batch, ..., (2 + num_factors) * units)`: all `loc`, all `scale`, then the
        factors one after the other, each for all numbers; or the means.

    Raises:
        ValueError: As `NormalDense`; if `units` is below 2 or `num_factors` below 1.

    Example:

    >>> import tfuq
    >>> tfuq.layers.MultivariateNormalDense(3, num_factors=2).compute_output_shape((None, 8))
    (None, 12)

    References:
        - Collier et al.: "Correlated Input-Dependent Label Noise in Large-Scale Image
          Classification", CVPR 2021 (the parameterization).

    See also: `tfuq.layers.NormalDense`, `tfuq.losses.NegativeLogLikelihood`.
    """

    def __init__(
        self, units: int, num_factors: int = 1, *, bias_initializer: Any = None, **kwargs: Any
    ) -> None:
        if bias_initializer is None:
            bias_initializer = keras.initializers.RandomNormal(stddev=0.3)
        super().__init__(units, bias_initializer=bias_initializer, **kwargs)
        if units < 2:
            raise ValueError(
                "Argument `units` must be at least 2: one number alone has no correlation. Use "
                f"`NormalDense(1)`. Received: units={units}"
            )
        self._family = families.MultivariateNormal(num_factors)
        self.num_factors = num_factors

    @property
    def family(self) -> Family:
        return self._family

    def covariance(self, params: Tensor) -> Tensor:
        """Covariance matrices of the numbers, `(..., units, units)`.

        Args:
            params: What the layer returned, `(..., (2 + num_factors) * units)`.
        """
        self._check_has_parameters("covariance")
        return self.family.covariance(tf.convert_to_tensor(params))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_factors": self.num_factors}
