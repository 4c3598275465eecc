"""Evidential regression (Amini et al. 2020)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfuq._arguments import is_finite, shown
from tfuq.losses.base import FamilyLoss, register


@register
class Evidential(FamilyLoss):
    """Deep evidential regression: the likelihood of a Student's t, and less evidence for errors.

    Formula (Amini et al. 2020, equations 8 and 9): `-log St(y) + coefficient |y - loc| (2 nu +
    alpha)`.

    Known faults: the likelihood alone leaves nu and beta undetermined, so that the "epistemic" part
    is set by the coefficient and by when training stops, and does not vanish with more data
    (Meinert et al. 2023; Bengs et al. 2023). Where its epistemic part is to be relied on, compare
    it with a deep ensemble or `VBLLRegression`.

    Args:
        coefficient: Weight of the second term, a number of at least 0.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If `coefficient` is negative; in the call, if shapes do not fit.

    Example:

    >>> from tfuq.losses import Evidential
    >>> print(f"{Evidential(0.1)([[1.0]], [[0.5, 1.0, 2.0, 1.0]]).numpy():.4f}")
    1.3324

    References:
        - Amini et al.: "Deep Evidential Regression", NeurIPS 2020.
        - Meinert, Gawlikowski, Lavin: "The Unreasonable Effectiveness of Deep Evidential
          Regression", AAAI 2023.

    See also: `tfuq.layers.EvidentialDense`.
    """

    def __init__(
        self,
        coefficient: float = 0.01,
        reduction: str = "sum_over_batch_size",
        name: str = "evidential",
        dtype: Any = None,
    ) -> None:
        super().__init__("evidential", reduction, name, dtype)
        if not is_finite(coefficient) or coefficient < 0:
            raise ValueError(
                "Argument `coefficient` must be a finite number of at least 0. "
                f"Received: coefficient={shown(coefficient)}"
            )
        self.coefficient = coefficient

    def _values(self, params, y):
        loc, evidence, alpha, _ = self.family.split(params)
        penalty = tf.abs(y - loc) * (2 * evidence + alpha)
        return self.coefficient * penalty - self.family.log_prob(params, y)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["family"]  # which is no choice
        return {**config, "coefficient": self.coefficient}
