"""Coverage and width of intervals on labelled data."""

from typing import NamedTuple

import numpy as np

from tfuq._math.intervals import interval_score, is_inside
from tfuq.selective._interval_fitting import rows_hash
from tfuq.selective._set_evaluation import set_coverage


class IntervalEvaluation(NamedTuple):
    """Coverage and width of intervals on labelled data.

    Example:

    >>> from tfuq.selective import ConformalRegressor
    >>> found = ConformalRegressor("split", 1.0).evaluate([0.0, 5.0], [0.5, 7.0])
    >>> found.coverage, round(found.mean_width, 6)
    (0.5, 2.0)

    See also: `tfuq.selective.ConformalRegressor`.
    """

    examples: int
    coverage: float
    coverage_lower: float
    """Lower end of its interval at 95 %, as in `SetCoverage`."""
    coverage_upper: float
    mean_width: float
    """Of the intervals that have ends, in the unit of the label."""
    interval_score: float
    """Winkler's: their width, and 2 / alpha times the distance of labels that they miss; NaN if the
    threshold was set by hand, as there is no alpha."""
    unbounded: float
    """Fraction of the intervals that have none: of predictions that are not finite, and of groups
    that are not known. They cover everything."""
    by_group: dict
    """The same of each group, by its name; empty where no groups are given."""


def interval_evaluation(lower, upper, y, alpha, groups=None):
    """`IntervalEvaluation` of arrays `(n, ..., units)`; `groups` `(n,)` are texts."""
    covered = is_inside(lower, upper, y)
    bounded = np.isfinite(lower) & np.isfinite(upper)
    lower, upper, labels = lower[bounded], upper[bounded], y[bounded]
    found = (np.nan, np.nan)
    if len(labels):
        score = interval_score(lower, upper, labels, alpha).mean()
        found = float((upper - lower).mean()), float(score)
    return IntervalEvaluation(
        len(y), *set_coverage(covered), *found, float((~bounded).mean()), groups or {}
    )


def by_group(lower, upper, y, alpha, groups):
    """`interval_evaluation` of each group, a dict."""
    parts = {}
    for name in np.unique(groups).tolist():
        rows = groups == name
        parts[name] = interval_evaluation(lower[rows], upper[rows], y[rows], alpha)
    return parts


def check_other_rows(fitted, source, y, lower, upper):
    """Raises ValueError if labelled predictions are those that a regressor was fitted to."""
    rows, known = fitted.fitted_to.get("rows"), np.isfinite(lower).all() & np.isfinite(upper).all()
    if rows is None or not known or len(y) != fitted.fitted_to.get("examples"):
        return
    if f"{rows_hash(source, y):016x}" == rows:
        raise ValueError(
            "Argument `y` must hold other rows than those of the fit, whose coverage is "
            f"{1 - fitted.fitted_to['alpha']:g} or more whatever the model. Received: the rows of "
            "the fit"
        )


def described(fitted, limits):
    """A sentence on the promise of a `ConformalRegressor` with thresholds `limits`."""
    alpha, count = fitted.fitted_to.get("alpha"), fitted.fitted_to.get("examples")
    low, high = limits.min(), limits.max()
    reach = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    how = {
        "split": f"It reaches {reach} to either side of the mean, for every example alike.",
        "normalized": f"It reaches {reach} standard deviations to either side of the mean.",
        "cqr": f"It is that of the predicted quantiles, moved outwards by {reach}.",
    }[fitted.method]
    if alpha is None:
        return f"An interval with a threshold set by hand, which promises nothing. {how}"
    whom = "a new example" if fitted.keys is None else "a new example of a known group"
    what = (
        f"the number of {whom} with a probability of at least {1 - alpha:.4g}"
        if fitted.rank == 2
        else f"an expected share of at least {1 - alpha:.4g} of the numbers of {whom}"
    )
    return (
        f"An interval holds {what}, if new examples are exchangeable with the {count} that it was "
        f"fitted to. {how}"
    )
