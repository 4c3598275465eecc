"""Metrics of detectors of what is out of distribution: functions of arrays, and intervals.

Labels are 1 for out of distribution and 0 for in distribution; a score grows with being out of it.
Only the order of scores counts. Scores that are equal cannot be told apart, and no function looks
between them. None of these metrics depends on how many examples either class has, except the two
areas under precision and recall.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats

from tfuq._arguments import ArrayLike, check_choice, check_fraction, check_integer, shown
from tfuq._math.level_blocks import class_sums, level_blocks
from tfuq._math.rankings import (
    POSITIVE,
    average_precision_in,
    average_precision_out,
    best_accuracy,
    check_rate,
    false_positive_rate,
    roc_area,
)
from tfuq.metrics._ood_reading import labels_and_scores

_BLOCK = 2**20  # examples that are resampled at once


# --- Reading ------------------------------------------------------------------------------------


def _cells(y_true, y_score):
    """Number `(n,)` of the cell of a table that an example is counted in."""
    return np.unique(y_score, return_inverse=True)[1] * 2 + y_true.astype(int)


def _tables(rows, cells, weight):
    """Tables `(resamples, levels, 2)` of the examples `rows` `(resamples, n)`."""
    size = (cells.max() // 2 + 1) * 2
    index = cells[rows] + size * np.arange(len(rows))[:, None]
    counts = np.bincount(index.ravel(), weight[rows].ravel(), size * len(rows))
    return counts.reshape(len(rows), -1, 2)


def _measure(measure, y_true, y_score, sample_weight):
    return _measured({"": measure}, *labels_and_scores(y_true, y_score, sample_weight))[""]


def _measured(measures, outside, y_score, weight):
    """The figures of several `Measure`, by their names."""
    order, total, found = np.argsort(y_score), class_sums(outside, weight), {}
    for name, measure in measures.items():
        blocks = level_blocks(order, outside, y_score, weight, measure.is_downward)
        found[name] = float(measure.of_blocks(blocks, total))
    return found


# --- Functions ----------------------------------------------------------------------------------


def auroc(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Area under the receiver operating characteristic.

    Formula:
        P(s_out > s_in) + P(s_out = s_in) / 2
    for the scores of one example of each class. It is the same whichever class is called positive.

    Args:
        y_true: Labels, 0 for in distribution and 1 for out of distribution.
        y_score: Scores of the shape of `y_true`, larger for out of distribution; infinite ones may
            be.
        sample_weight: Weights of that shape. What has weight 0 is left out, whatever it holds.

    Returns:
        A float in [0, 1]; 0.5 is chance.

    Raises:
        ValueError: If arrays are empty or of different shapes, scores NaN, labels not 0 or 1, one
            class is missing, or weights are negative.

    Example:

    >>> import tfuq
    >>> tfuq.metrics.auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.9])
    0.875

    See also: `tfuq.metrics.AUROC`, `tfuq.metrics.ood_metrics`, `tfuq.metrics.bootstrap_interval`.
    """
    return _measure(roc_area, y_true, y_score, sample_weight)


def aupr_in(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Average precision with **in** distribution as the positive class, from the lowest score up.

    Formula:
        sum_k (R_k - R_{k-1}) P_k
    with the precision P_k and the recall R_k of calling in distribution what has at most the k-th
    lowest score; scikit-learn's `average_precision_score(1 - y_true, -y_score)`. It depends on how
    many examples of each class there are.

    Args:
        y_true: Labels. All arguments are as for `auroc`.
        y_score: Scores.
        sample_weight: Weights.

    Returns:
        A float in [0, 1]. Chance is the share of in-distribution examples.

    Raises:
        ValueError: As `auroc`.

    Example:

    >>> import tfuq
    >>> round(tfuq.metrics.aupr_in([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9]), 4)
    0.8333

    See also: `tfuq.metrics.AUPRIn`, `tfuq.metrics.aupr_out`, `tfuq.metrics.ood_metrics`.
    """
    return _measure(average_precision_in, y_true, y_score, sample_weight)


def aupr_out(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Average precision with **out of** distribution as the positive class, from the highest down.

    Formula:
        sum_k (R_k - R_{k-1}) P_k
    with the precision P_k and the recall R_k of calling out of distribution what has at least the
    k-th highest score; scikit-learn's `average_precision_score(y_true, y_score)`. It depends on how
    many examples of each class there are.

    Args:
        y_true: Labels. All arguments are as for `auroc`.
        y_score: Scores.
        sample_weight: Weights.

    Returns:
        A float in [0, 1]. Chance is the share of out-of-distribution examples.

    Raises:
        ValueError: As `auroc`.

    Example:

    >>> import tfuq
    >>> round(tfuq.metrics.aupr_out([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9]), 4)
    0.8333

    See also: `tfuq.metrics.AUPROut`, `tfuq.metrics.aupr_in`, `tfuq.metrics.ood_metrics`.
    """
    return _measure(average_precision_out, y_true, y_score, sample_weight)


def fpr_at_tpr(
    y_true: ArrayLike,
    y_score: ArrayLike,
    tpr: float = 0.95,
    *,
    positive: str = "in",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Rate of false positives at the strictest threshold with at least `tpr` true positives.

    In the literature on detection the positive class is **in** distribution (Liang et al. 2018):
    t is the lowest score with P(s_in <= t) >= tpr, and the rate is P(s_out <= t), what is taken for
    in distribution although it is not. With `positive="out"`, t is the highest score
    with P(s_out >= t) >= tpr, and the rate is P(s_in >= t), the false alarms. Scores equal to t are
    on the positive side, whichever class they belong to; there is no interpolation.

    Args:
        y_true: Labels. The other arguments are as for `auroc`.
        y_score: Scores.
        tpr: Rate of true positives in (0, 1].
        positive: `"in"` or `"out"`, the class whose true positives are meant.
        sample_weight: Weights.

    Returns:
        A float in [0, 1]; 0 is best.

    Raises:
        ValueError: As `auroc`; if `tpr` or `positive` is none of those said.

    Example:

    >>> import tfuq
    >>> y_true, y_score = [0, 0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.6, 0.6, 0.9]
    >>> tfuq.metrics.fpr_at_tpr(y_true, y_score)
    0.5
    >>> tfuq.metrics.fpr_at_tpr(y_true, y_score, positive="out")
    0.25

    References:
        - Liang, Li and Srikant, "Enhancing the Reliability of Out-of-distribution Image Detection
          in Neural Networks", ICLR 2018.

    See also: `tfuq.metrics.FPRAtTPR`, `tfuq.metrics.ood_metrics`.
    """
    check_rate("tpr", tpr)
    check_choice("positive", positive, POSITIVE)
    return _measure(false_positive_rate(tpr, positive), y_true, y_score, sample_weight)


def detection_accuracy(
    y_true: ArrayLike, y_score: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Accuracy of telling the classes apart at the best threshold, both as probable.

    Formula:
        max_t (P(s_in <= t) + P(s_out > t)) / 2
    over all thresholds t (Liang et al. 2018; the column of table 1 of Lee and AlRegib). The best
    threshold is chosen on the very scores of its figures, so it flatters few examples.

    Args:
        y_true: Labels. All arguments are as for `auroc`.
        y_score: Scores.
        sample_weight: Weights.

    Returns:
        A float in [0.5, 1]; 0.5 is chance.

    Raises:
        ValueError: As `auroc`.

    Example:

    >>> import tfuq
    >>> tfuq.metrics.detection_accuracy([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9])
    0.75

    References:
        - Lee and AlRegib, "Gradients as a Measure of Uncertainty in Neural Networks", ICIP 2020.

    See also: `tfuq.metrics.DetectionAccuracy`, `tfuq.metrics.ood_metrics`.
    """
    return _measure(best_accuracy, y_true, y_score, sample_weight)


# --- Intervals ----------------------------------------------------------------------------------


def bootstrap_interval(
    metric: Callable[..., float],
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    sample_weight: ArrayLike | None = None,
) -> tuple[float, float]:
    """Confidence interval of a metric, by the percentiles of its values on resampled examples.

    Examples are drawn with replacement within each class, so each resample has as many of both as
    the data (`scipy.stats.bootstrap`, `method="percentile"`). The interval is that of drawing other
    test examples; it knows nothing of training again.

    Args:
        metric: Function `metric(y_true, y_score)`, such as `auroc`, or scikit-learn's; with
            weights, `metric(y_true, y_score, sample_weight=...)`.
        y_true: Labels. The arguments of the data are as for `auroc`.
        y_score: Scores.
        num_resamples: Number of resamples.
        confidence: Probability in (0, 1) that the interval is meant to have.
        seed: Integer from which the resamples follow.
        sample_weight: Weights, which stay with their examples. Examples are drawn equally often.

    Returns:
        A tuple of two floats, the lower and the upper end.

    Raises:
        ValueError: As `auroc`; if a class has fewer than two examples; if an option is out of its
            range.

    Example:

    >>> import tfuq
    >>> y_true, y_score = [0] * 5 + [1] * 5, [1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    >>> low, high = tfuq.metrics.bootstrap_interval(tfuq.metrics.auroc, y_true, y_score, seed=1)
    >>> 0.5 < low < tfuq.metrics.auroc(y_true, y_score) < high <= 1
    True

    See also: `tfuq.metrics.ood_metrics`.
    """
    outside, y_score, weight = labels_and_scores(y_true, y_score, sample_weight)
    y_true = outside.astype("float64")
    if not callable(metric):
        raise ValueError(
            "Argument `metric` must be a function of y_true and y_score. "
            f"Received: metric={shown(metric)}"
        )

    def statistic(inside, outside):
        rows = np.concatenate([inside, outside])
        weights = {} if sample_weight is None else {"sample_weight": weight[rows]}
        return metric(y_true[rows], y_score[rows], **weights)

    low, high = _resample(statistic, y_true, num_resamples, confidence, seed, vectorized=False)
    return float(low), float(high)


def _resample(statistic, y_true, num_resamples, confidence, seed, *, vectorized):
    """Ends of the interval of `statistic(rows of class 0, rows of class 1)`."""
    check_integer("num_resamples", num_resamples, 1)
    check_integer("seed", seed, 0)
    check_fraction("confidence", confidence)
    if confidence in (0, 1):
        raise ValueError(
            f"Argument `confidence` must be in (0, 1). Received: confidence={shown(confidence)}"
        )
    rows = [np.flatnonzero(y_true == label) for label in (0, 1)]
    if min(map(len, rows)) < 2:
        raise ValueError(
            "Argument `y_true` must hold at least two examples of each class for an interval. "
            f"Received: {len(rows[0])} in distribution and {len(rows[1])} out of distribution"
        )
    return scipy.stats.bootstrap(
        rows,
        statistic,
        n_resamples=num_resamples,
        batch=max(1, _BLOCK // y_true.size),
        vectorized=vectorized,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval


def ood_metrics(
    y_true: ArrayLike,
    y_score: ArrayLike,
    *,
    tpr: float = 0.95,
    num_resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    sample_weight: ArrayLike | None = None,
) -> dict[str, Any]:
    """All metrics of detection at once, with their intervals if `num_resamples` is given.

    Args:
        y_true: Labels. The arguments of the data are as for `auroc`.
        y_score: Scores.
        tpr: For `fpr_at_tpr`, whose positive class is in distribution here.
        num_resamples: Number of resamples, as for `bootstrap_interval`, which all metrics share; 0
            for no intervals.
        confidence: Of the intervals.
        seed: Of the resamples.
        sample_weight: Weights.

    Returns:
        A dict of floats: `"detection_accuracy"`, `"auroc"`, `"aupr_in"`, `"aupr_out"` and
        `"fpr_at_tpr"`. With intervals, also a tuple `(low, high)` for each, under the name with
        `"_interval"`.

    Raises:
        ValueError: As `auroc`, `fpr_at_tpr` and `bootstrap_interval`.

    Example:

    >>> import tfuq
    >>> found = tfuq.metrics.ood_metrics([0, 0, 1, 1], [1, 2, 2, 3], num_resamples=100)
    >>> found["auroc"], found["detection_accuracy"], found["fpr_at_tpr"]
    (0.875, 0.75, 0.5)
    >>> found["auroc_interval"]
    (0.5, 1.0)

    See also: `tfuq.metrics.auroc`, `tfuq.plots.detection_histograms`.
    """
    check_rate("tpr", tpr)
    check_integer("num_resamples", num_resamples, 0)
    outside, y_score, weight = labels_and_scores(y_true, y_score, sample_weight)
    computes = {
        "detection_accuracy": best_accuracy,
        "auroc": roc_area,
        "aupr_in": average_precision_in,
        "aupr_out": average_precision_out,
        "fpr_at_tpr": false_positive_rate(tpr, "in"),
    }
    found = _measured(computes, outside, y_score, weight)
    if not num_resamples:
        return found
    cells, weight = _cells(outside, y_score), _ones_unless(weight, outside)

    def statistic(inside, outside, axis):
        tables = _tables(np.concatenate([inside, outside], axis=axis), cells, weight)
        return np.stack([compute(tables) for compute in computes.values()])

    ends = _resample(statistic, outside, num_resamples, confidence, seed, vectorized=True)
    pairs = np.stack(ends, axis=-1).tolist()
    names = (f"{name}_interval" for name in computes)
    return found | {name: tuple(pair) for name, pair in zip(names, pairs, strict=True)}


def _ones_unless(weight, like):
    return np.ones(like.shape) if weight is None else weight
