"""Proper scores of a predicted distribution: likelihood, pinball loss, CRPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfuq._arguments import check_fraction, shown
from tfuq._predictions.families import Quantiles
from tfuq._predictions.family import Family
from tfuq.losses.base import FamilyLoss, register


@register
class NegativeLogLikelihood(FamilyLoss):
    """-log p(y), nats, of the distribution that a head says.

    Heads make it: `head.negative_log_likelihood()`. Of a head with random weights,
    `VBLLRegression`, it is the expectation over them, which with the KL divergence that the layer
    adds is the negative evidence lower bound.

    Formula: `mean over the numbers of -log p(y | parameters)`.

    Args:
        family: Name of the distribution (`"normal"`, `"laplace"`, `"student_t"`, `"evidential"`,
            `"bayesian_normal"`), or a dict of the name `"mixture"` and `num_components`.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If the family is unknown or has no density; in the call, if labels have another
            shape than the numbers that are predicted. Labels that are NaN are an
            `InvalidArgumentError`, where XLA compiles the step a loss of NaN.

    Example:

    >>> from tfuq.losses import NegativeLogLikelihood
    >>> print(f"{NegativeLogLikelihood('normal')([[1.0]], [[1.0, 0.5]]).numpy():.4f}")
    0.2258

    See also: `tfuq.losses.BetaNLL`, `tfuq.losses.CRPS`, `tfuq.layers.NormalDense`,
    `tfuq.metrics.NumberNegativeLogLikelihood`.
    """

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family = "normal",
        reduction: str = "sum_over_batch_size",
        name: str = "negative_log_likelihood",
        dtype: Any = None,
    ) -> None:
        super().__init__(family, reduction, name, dtype)
        if not self.family.has_density:
            raise ValueError(
                "Argument `family` must have a density: quantiles are trained with "
                f"`tfuq.losses.Pinball(levels)`. Received: family={shown(self.family)}"
            )

    def _values(self, params, y):
        return -self.family.training_log_prob(params, y)


@register
class BetaNLL(FamilyLoss):
    """Negative log-likelihood, each example weighed by its predicted variance to a power.

    The likelihood of a normal gives little weight to examples of which the network says early that
    they are noisy, and so may never fit their mean; `beta=0.5` counters that. It is no proper
    score: what it trains is compared by the likelihood.

    Formula: `stop_gradient(variance)^beta * -log p(y)`   (Seitzer et al. 2022, equation 5).

    Args:
        beta: Power in [0, 1]: 0 is the likelihood, 1 has the mean's gradient of a squared error.
        family: `"normal"`, `"laplace"`, `"student_t"`, or a mixture as in `NegativeLogLikelihood`.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: As `NegativeLogLikelihood`; if `beta` is not in [0, 1].

    Example:

    >>> from tfuq.losses import BetaNLL
    >>> print(f"{BetaNLL(beta=0.5)([[1.0]], [[1.0, 0.5]]).numpy():.4f}")
    0.1129

    References:
        - Seitzer et al.: "On the Pitfalls of Heteroscedastic Uncertainty Estimation", ICLR 2022.

    See also: `tfuq.losses.NegativeLogLikelihood`, `tfuq.layers.NormalDense`.
    """

    def __init__(
        self,
        beta: float = 0.5,
        family: str | Mapping[str, Any] | Family = "normal",
        reduction: str = "sum_over_batch_size",
        name: str = "beta_nll",
        dtype: Any = None,
    ) -> None:
        super().__init__(family, reduction, name, dtype)
        check_fraction("beta", beta)
        if not self.family.has_density:
            raise ValueError(
                f"Argument `family` must have a density. Received: family={shown(self.family)}"
            )
        self.beta = beta

    def _values(self, params, y):
        weight = tf.stop_gradient(self.family.aleatoric_variance(params)) ** self.beta
        return -weight * self.family.training_log_prob(params, y)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta}


@register
class Pinball(FamilyLoss):
    """Pinball loss of quantiles, the mean over their levels; `QuantileDense` says them.

    Formula: `max(q (y - u_q), (q - 1) (y - u_q))`   (Koenker and Bassett 1978).

    Args:
        levels: Probabilities that increase, those of the head.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If `levels` are no two or more numbers in (0, 1) that increase; in the call, if
            shapes do not fit.

    Example:

    >>> from tfuq.losses import Pinball
    >>> print(f"{Pinball([0.1, 0.9])([[1.0]], [[0.0, 1.5]]).numpy():.3f}")
    0.075

    See also: `tfuq.layers.QuantileDense`.
    """

    def __init__(
        self,
        levels: Sequence[float],
        reduction: str = "sum_over_batch_size",
        name: str = "pinball",
        dtype: Any = None,
    ) -> None:
        super().__init__(Quantiles(levels), reduction, name, dtype)
        self.levels = list(self.family.levels)

    def _values(self, params, y):
        return self.family.pinball(params, y)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["family"]  # which the levels are
        return {**config, "levels": self.levels}


@register
class CRPS(FamilyLoss):
    """Continuous ranked probability score, in the unit of the label; a closed form of each family.

    It is proper, as the likelihood is, and bears an outlier better: it grows with the distance, not
    with its square. Of quantiles it is twice their mean pinball loss.

    Formula: `E|Y - y| - E|Y - Y'| / 2`, Y and Y' drawn from the prediction.

    Args:
        family: As in `NegativeLogLikelihood`, or a dict of the name `"quantiles"` and `levels`.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: As `NegativeLogLikelihood`.

    Example:

    >>> from tfuq.losses import CRPS
    >>> print(f"{CRPS('normal')([[1.0]], [[1.0, 0.5]]).numpy():.4f}")
    0.1168

    References:
        - Gneiting and Raftery: "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007.
        - Grimit et al. 2006 (mixtures of normals); Jordan et al. 2019 (Laplace, Student's t).

    See also: `tfuq.losses.NegativeLogLikelihood`, `tfuq.metrics.crps`.
    """

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family = "normal",
        reduction: str = "sum_over_batch_size",
        name: str = "crps",
        dtype: Any = None,
    ) -> None:
        super().__init__(family, reduction, name, dtype)

    def _values(self, params, y):
        return self.family.crps(params, y)
