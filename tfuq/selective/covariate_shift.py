"""Covariate shift: how much more often an example's like comes now than it did."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from tfuq._arguments import ArrayLike, Self, check_integer, check_positive, register, shown
from tfuq._math.logistic_regression import logistic_regression
from tfuq._models.feature_arrays import check_rows
from tfuq.selective._two_sample_test import check_samples
from tfuq.selective.base import Fitted, config_of, numbers

__all__ = ["CovariateShift"]

MOST = 30.0  # of the logarithm of a weight
# Two samples hardly overlap below this share of effective examples, or this mean weight.
OVERLAP, LEAST_MEAN = 0.01, 0.3


@register
class CovariateShift(Fitted):
    """Density ratio: how much more frequent an input is in new data than in the old.

    `CovariateShift.fit` makes one from features of both data, without labels.
    `ConformalPredictor.fit` and `predict_set` take its weights.

    Formula:

    ```
    w(x) = p_new(x) / p_old(x) = P(new | x) n_old / (P(old | x) n_new)   (Bickel et al. 2009)
    ```

    with P(new | x) from a logistic regression on features. This is correct if the logarithm of the
    ratio is linear in the features, as for two normal distributions with one covariance. If the
    shift also changed the meaning of the labels, no weights help.

    Args:
        mean, deviation: Of the features `(d,)`, which are brought to mean 0 and deviation 1.
        coefficients: Of these, `(d,)`.
        bias: Logarithm of the weight at the mean.
        fitted_to: What it was fitted to, a dict.

    Raises:
        ValueError: If an argument is not of its shape, or not finite.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import CovariateShift
    >>> rng = np.random.default_rng(0)
    >>> shift = CovariateShift.fit(rng.normal(size=(900, 1)), rng.normal(1, 1, (900, 1)))
    >>> bool(np.abs(shift.weights([[0.5], [1.5]]) - np.exp([0, 1])).max() < 0.4)
    True

    References:
        - Bickel, Brueckner and Scheffer, "Discriminative learning under covariate shift", 2009.
        - Tibshirani et al., "Conformal prediction under covariate shift", 2019.

    See also: `tfuq.selective.ConformalPredictor`, `tfuq.selective.shift_report`.
    """

    def __init__(
        self,
        mean: ArrayLike,
        deviation: ArrayLike,
        coefficients: ArrayLike,
        bias: float,
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        given = {"mean": mean, "deviation": deviation, "coefficients": coefficients}
        found = {name: np.atleast_1d(numbers(name, value)) for name, value in given.items()}
        for name, values in found.items():
            fine = values.ndim == 1 and values.shape == found["mean"].shape
            if not fine or not np.all(np.isfinite(values)):
                raise ValueError(
                    f"Argument `{name}` must hold a finite number for each feature, as `mean`. "
                    f"Received: {name}={shown(given[name])}"
                )
        if np.any(found["deviation"] <= 0):
            raise ValueError(
                f"Argument `deviation` must be above 0. Received: deviation={shown(deviation)}"
            )
        self.mean, self.deviation, self.coefficients = (part.tolist() for part in found.values())
        self.bias = float(numbers("bias", bias))
        self.fitted_to = dict(fitted_to or {})

    def get_config(self) -> dict[str, Any]:
        return config_of(self, ("mean", "deviation", "coefficients", "bias", "fitted_to"))

    @classmethod
    def fit(
        cls,
        features: ArrayLike,
        new_features: ArrayLike,
        *,
        l2: float = 1.0,
        max_examples: int = 5000,
        seed: int = 0,
    ) -> Self:
        """The weights that tell old and new features apart.

        Args:
            features: Of old examples, `(n, d)`, such as `tfuq.ood`'s features or columns of a
                table; more axes between are averaged over. For the promise of conformal sets others
                than those that calibrate.
            new_features: Of new examples, `(m, d)`.
            l2: Penalty l2 / 2 |w|^2 of the regression.
            max_examples: How many of each are used at most, drawn at random.
            seed: Of that draw.

        Returns:
            The shift; a warning where the two hardly overlap, and few examples have all the weight.

        Raises:
            ValueError: If features are empty, not finite, or have not the same columns.

        Example:

        >>> import numpy as np
        >>> from tfuq.selective import CovariateShift
        >>> old, new = np.arange(60.0)[:, None], np.arange(30.0, 90)[:, None]
        >>> shift = CovariateShift.fit(old, new)
        >>> bool(shift.weights([[10.0]]) < 0.3), shift.fitted_to["new_examples"]
        (True, 60)
        """
        check_positive("l2", l2)
        check_integer("max_examples", max_examples, 2)
        check_integer("seed", seed, 0)
        samples = check_samples(features=features, new_features=new_features)
        rng = np.random.default_rng(seed)
        old, new = (
            part[rng.permutation(len(part))[:max_examples]].astype("float64") for part in samples
        )
        rows = np.concatenate([old, new])
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1)
        targets = np.repeat([0, 1], [len(old), len(new)])
        found = logistic_regression((rows - mean) / deviation, targets, l2)
        bias = float(found[1] + np.log(len(old) / len(new)))
        shift = cls(mean, deviation, found[0], bias)
        weights = shift.weights(old)
        effective = float(weights.sum() ** 2 / np.sum(weights**2))
        if effective < OVERLAP * len(old) or weights.mean() < LEAST_MEAN:
            warnings.warn(
                f"Old and new examples hardly overlap: {len(old)} old ones count as "
                f"{effective:.1f}, with a mean weight of {weights.mean():.2g} where it should be "
                "1. Whatever they weight depends on a few examples.",
                stacklevel=2,
            )
        report = {"examples": len(old), "new_examples": len(new), "effective_examples": effective}
        return cls(mean, deviation, found[0], bias, report)

    def weights(self, features: ArrayLike) -> np.ndarray:
        """Weights `(n,)` of examples with features `(n, d)`.

        Raises:
            ValueError: If features have other columns, or are not finite.
        """
        rows = check_rows("features", features, pool=True)
        if rows.shape[1] != len(self.mean) or not np.all(np.isfinite(rows)):
            raise ValueError(
                f"Argument `features` must hold {len(self.mean)} finite columns, as what it was "
                f"fitted to. Received: features={shown(features)}"
            )
        scaled = (rows - np.asarray(self.mean)) / np.asarray(self.deviation)
        logarithm = scaled @ np.asarray(self.coefficients) + self.bias
        return np.exp(np.clip(logarithm, -MOST, MOST))
