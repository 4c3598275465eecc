"""Thresholds of scores that accept a given fraction."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from tfuq._arguments import check_fraction, shown, to_float64
from tfuq._math.rounding import rounded_up


class Threshold(NamedTuple):
    """A threshold of an out-of-distribution score, with its confidence interval.

    Example:

    >>> import numpy as np
    >>> from tfuq.ood import MaxSoftmax
    >>> threshold = MaxSoftmax().threshold_at(0.9, scores=np.arange(1000))
    >>> print(threshold.value, threshold.lower, threshold.upper)
    899.0 880.0 918.0

    See also: `tfuq.ood.MaxSoftmax`, `tfuq.metrics.fpr_at_tpr`.
    """

    value: float
    """What scores higher is detected."""
    lower: float
    """Lower end of the confidence interval; -inf if the examples are too few for one."""
    upper: float
    """Upper end; inf if the examples are too few for one."""
    tpr: float
    """Fraction of in-distribution data that is to be accepted."""
    confidence: float
    """Probability with which the interval holds the true threshold, at least."""
    examples: int
    """How many in-distribution scores it comes from."""


def find_threshold(scores, tpr=0.95, confidence=0.95):
    """The `Threshold` that accepts a fraction `tpr` of in-distribution `scores` `(n,)`.

    value = s_(k) with k = ceil(tpr n), of the n sorted scores. The interval is [s_(l), s_(u)] with
    P(B < l) <= (1 - confidence) / 2 and P(B >= u) <= (1 - confidence) / 2 for B ~ Bin(n, tpr): for
    independent scores of any distribution it holds the quantile of order tpr with a probability of
    at least `confidence` (David and Nagaraja, Order Statistics, section 7.1).

    Raises ValueError if an argument is out of its range, or scores are NaN.
    """
    check_fraction("tpr", tpr)
    check_fraction("confidence", confidence)
    if tpr == 0:
        raise ValueError(f"Argument `tpr` must be above 0. Received: tpr={shown(tpr)}")
    if confidence in (0, 1):
        raise ValueError(
            "Argument `confidence` must be between 0 and 1. "
            f"Received: confidence={shown(confidence)}"
        )
    scores = to_float64("scores", scores)
    if scores.ndim != 1 or scores.size == 0 or np.any(np.isnan(scores)):
        raise ValueError(
            "Argument `scores` must have shape (n,), not be empty, and hold no NaN. "
            f"Received: scores={shown(scores)}"
        )
    n, tail = len(scores), (1 - confidence) / 2
    order = np.concatenate([[-np.inf], np.sort(scores), [np.inf]])
    value = order[rounded_up(tpr * n)]
    lower = order[int(stats.binom.ppf(tail, n, tpr))]
    upper = order[int(stats.binom.ppf(1 - tail, n, tpr)) + 1]
    return Threshold(float(value), float(lower), float(upper), float(tpr), float(confidence), n)
