"""Table of predicted numbers and of what a rule does with them, for the report by group."""

from typing import NamedTuple

import numpy as np

from tfuq import metrics
from tfuq._arguments import check_positive, shown
from tfuq._math.intervals import is_inside
from tfuq._predictions.numbers import RegressionUncertainty, usual_level
from tfuq.selective._number_reading import losses_of_numbers
from tfuq.selective.own_loss import own_loss_of_numbers
from tfuq.selective.regression_rule import RegressionRule


class NumberTable(NamedTuple):
    """Arrays `(n, entries)` of numbers and what a rule does with them."""

    found: RegressionUncertainty
    y: np.ndarray  # (n, ..., units)
    correct: np.ndarray  # within the tolerance
    accepted: np.ndarray
    at_risk: np.ndarray  # the same: each accepted number belongs to the risk
    loss: np.ndarray
    error: np.ndarray
    inside: np.ndarray | None  # of its interval; None where the network says none

    def rows(self, chosen):
        """The table of some examples, a mask `(n,)`."""
        return type(self)(*(None if part is None else part[chosen] for part in self))

    def quality(self):
        """Calibration error; mean error and share inside of the intervals."""
        known = self.inside is not None
        error = metrics.quantile_calibration_error(self.y, self.found) if known else np.nan
        inside = float(self.inside.mean()) if known else np.nan
        return error, float(self.error.mean()), inside


def table_of_numbers(rule, found, labels, loss, tolerance, accepted_of):
    """`NumberTable` of what `subgroup_report` was given.

    Args:
        rule: `RegressionRule` or None.
        found, labels: Predictions and numbers.
        loss: As in `RejectionRule.fit`, or None for that of the rule.
        tolerance: How far off a number is wrong, or None for the rule's.
        accepted_of: `accepted_of(accept, shape)` asks the rule about predictions of a shape.
    """
    if rule is not None and not isinstance(rule, RegressionRule):
        raise ValueError(
            "Argument `rule` must be None or a RegressionRule for numbers, as `RejectionRule.fit` "
            f"makes of them. Received: rule={shown(rule)}"
        )
    tolerance = getattr(rule, "tolerance", None) if tolerance is None else tolerance
    if tolerance is None:
        raise ValueError(
            "Argument `tolerance` is required: how far from its label a number is wrong, in its "
            "unit. Received: tolerance=None"
        )
    check_positive("tolerance", tolerance)
    y = found.labels(labels, "labels")
    for name, values in (("labels", y), ("probs", found.mean)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"Argument `{name}` must hold finite numbers. "
                f"Received: {np.count_nonzero(~np.isfinite(values))} that are not"
            )
    error = np.abs(y - found.mean)
    losses = losses_of_numbers(
        own_loss_of_numbers(rule, loss), found.mean.ravel(), y.ravel(), tolerance
    )
    accepted = np.ones(y.size, bool) if rule is None else accepted_of(rule.accept, found.shape)
    inside = None
    if found.family.has_noise:
        ends = found.interval(usual_level(found.family, rule))
        inside = is_inside(*ends, y)
    parts = error <= tolerance, accepted, accepted, losses, error
    parts = [np.reshape(part, (len(found), -1)) for part in parts]
    return NumberTable(found, y, *parts, inside)
