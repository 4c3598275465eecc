"""Risk against coverage over whole arrays: exact curves, their areas, and points on them.

Predictions are accepted from the most trusted down. Where several have the same score no threshold
comes between them, and each figure is what is expected over their random orders, so none depends
on the order of the data. The Keras metrics (`tfuq.metrics.AURC` and kin) count in bins instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfuq._arguments import ArrayLike, check_flags
from tfuq._math.rankings import check_rate
from tfuq._math.risk_coverage import (
    generalized_area,
    largest_coverage,
    loss_table,
    risk_at,
    selective_area,
)
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._curve_points import GeneralizedCurve, RiskCoverageCurve
from tfuq.selective._ranking import check_counts, check_risk, curve_points, rank


def risk_coverage_curve(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    score: Any = "confidence",
    loss: Any = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
) -> RiskCoverageCurve:
    """Risk against coverage, a point for each number k of the most trusted that are accepted.

    Formula:
        coverage_k = k / n,  risk_k = (1 / k) sum_{i <= k} loss_i   (Geifman and El-Yaniv 2017)
    for predictions i in order of trust. Within a group of m equal scores, with a predictions and
    their loss A above it and the mean loss l in it, the risk of a + j is (A + j l) / (a + j), its
    expectation over the random orders of the group; only its end is attainable by a threshold.
    With weights the group's weight is shared evenly by its members.

    Args:
        probs: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`; or a stack `(samples, n, ..., classes)`, whose average
            is the prediction. The number of axes of `labels` tells which.
        labels: Labels, sparse `(n, ...)` or one-hot; 0 or 1 if binary or multi-label.
        score: What ranks the predictions: `"confidence"` (the largest probability), `"margin"` (how
            far it is ahead of the next), `"predictive_entropy"` or `"pnorm"` (`pnorm_score` of
            p = 2); of a stack also `"expected_entropy"`, `"mutual_information"` or
            `"variation_ratio"`. They are compared in float32. Or an array that **grows with
            uncertainty** (of confidences, the negative), with one or more leading axes of the
            labels.
        loss: What accepting a prediction costs; None for 1 if the class of the largest probability
            is wrong and 0 if it is right. An array like that of scores, or a function `loss(probs,
            labels)` of flat probabilities `(n, classes)` and labels `(n,)` that returns `(n,)`,
            for binary and multi-label predictions with the classes 0 and 1. Finite, at least 0.
        sample_weight: Weights `(n,)`, or with more of the leading axes. A weight counts equal
            examples; what has weight 0 is left out, whatever it holds.
        ignore_class: Label of what is left out, such as of void pixels, or None.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.

    Returns:
        A `RiskCoverageCurve`. Nothing in it is NaN.

    Raises:
        ValueError: If arrays are empty or do not fit together; if they hold NaN, no probabilities,
            labels that are no class, or negative weights or losses; if a score is unknown.

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4]]
    >>> curve = tfuq.selective.risk_coverage_curve(probs, [0, 1, 0, 0])
    >>> curve.risk.round(4)
    array([0.    , 0.25  , 0.3333, 0.25  ])
    >>> curve.attainable
    array([ True, False,  True,  True])

    References:
        - Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    See also: `tfuq.selective.aurc`, `tfuq.plots.risk_coverage`.
    """
    ranked = rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class)
    coverage, generalized, attainable = curve_points(ranked)
    threshold = np.repeat(ranked.threshold, np.bincount(ranked.level))
    return RiskCoverageCurve(coverage, generalized / coverage, generalized, threshold, attainable)


def generalized_risk_coverage_curve(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    score: Any = "confidence",
    loss: Any = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
) -> GeneralizedCurve:
    """Generalized risk against coverage: the loss of what is accepted, per prediction made.

    Formula:
        coverage_k = k / n,  generalized_risk_k = (1 / n) sum_{i <= k} loss_i   (Traub et al. 2024)
    the probability of a silent failure, for k = 0 to n. It is straight between attainable points,
    and `augrc` is the area under it.

    Args:
        probs: Predictions. All arguments are as for `risk_coverage_curve`.
        labels: Labels.
        score: What ranks the predictions, a name or an array that grows with uncertainty.
        loss: None for the error, an array, or a function of probabilities and labels.
        sample_weight: Weights.
        ignore_class: Label of what is left out.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.

    Returns:
        A `GeneralizedCurve`.

    Raises:
        ValueError: As `risk_coverage_curve`.

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4]]
    >>> curve = tfuq.selective.generalized_risk_coverage_curve(probs, [0, 1, 0, 0])
    >>> curve.generalized_risk
    array([0.   , 0.   , 0.125, 0.25 , 0.25 ])

    References:
        - Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification
          Systems", NeurIPS 2024.

    See also: `tfuq.selective.augrc`, `tfuq.selective.risk_coverage_curve`.
    """
    ranked = rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class)
    coverage, generalized, attainable = curve_points(ranked)
    start = [np.concatenate([[first], rest]) for first, rest in ((0, coverage), (0, generalized))]
    return GeneralizedCurve(*start, np.concatenate([[True], attainable]))


def aurc(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    score: Any = "confidence",
    loss: Any = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """Area under the risk-coverage curve.

    Formula:
        (1 / n) sum_{k=1}^n risk_k   (Geifman et al. 2019)
    of `risk_coverage_curve`, ties expected over their orders. Trapezoids between the same points
    (torch-uncertainty) differ by a term of order 1 / n. A weight of w stands for w equal examples
    here, also in what n is: weights should be about 1 on average.

    Args:
        probs: Predictions. All arguments are as for `risk_coverage_curve`.
        labels: Labels.
        score: What ranks the predictions, a name or an array that grows with uncertainty.
        loss: None for the error, an array, or a function of probabilities and labels.
        sample_weight: Weights.
        ignore_class: Label of what is left out.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.

    Returns:
        A float, less is better; with errors for losses in [0, 1], their rate for a random score.

    Raises:
        ValueError: As `risk_coverage_curve`; if weights are far below 1 and so count nothing.

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> round(tfuq.selective.aurc(probs, [0, 1, 1]), 4)
    0.1111

    References:
        - Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural
          Classifiers", ICLR 2019.

    See also: `tfuq.selective.augrc`, `tfuq.selective.eaurc`, `tfuq.metrics.AURC`.
    """
    ranked = rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class)
    check_counts(ranked.weight)
    return float(selective_area(ranked.table))


def augrc(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    score: Any = "confidence",
    loss: Any = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """Area under the generalized risk-coverage curve: how many failures go unnoticed on average.

    Formula:
        int_0^1 generalized_risk(c) dc = (1 - auroc) acc (1 - acc) + (1 - acc)^2 / 2
    the left side for any loss, by trapezoids, which is exact; the right side for errors, with the
    area `auroc` of the score that tells errors from right answers, ties counted half (Traub et al.
    2024, "Overcoming Common Flaws in the Evaluation of Selective Classification").

    Args:
        probs: Predictions. All arguments are as for `risk_coverage_curve`.
        labels: Labels.
        score: What ranks the predictions, a name or an array that grows with uncertainty.
        loss: None for the error, an array, or a function of probabilities and labels.
        sample_weight: Weights; only their ratios count.
        ignore_class: Label of what is left out.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.

    Returns:
        A float, lower is better; with errors for losses, half their rate for a random score.

    Raises:
        ValueError: As `risk_coverage_curve`.

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> round(tfuq.selective.augrc(probs, [0, 1, 1]), 4)
    0.0556

    See also: `tfuq.selective.aurc`, `tfuq.metrics.AUGRC`.
    """
    ranked = rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class)
    return float(generalized_area(ranked.table))


def eaurc(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    score: Any = "confidence",
    loss: Any = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """Excess area under the risk-coverage curve: `aurc` less that of the best order.

    Formula:
        aurc - (1 / n) sum_{k=1}^n (1 / k) sum_{i <= k} loss_(i),  loss_(1) <= ... <= loss_(n)
    (Geifman et al. 2019), which for e errors among n is (e - (n - e) (H_n - H_{n-e})) / n with the
    harmonic numbers H. It is this exact sum, not the limit r + (1 - r) log(1 - r) for large n.

    Args:
        probs: Predictions. All arguments are as for `risk_coverage_curve`.
        labels: Labels.
        score: What ranks the predictions, a name or an array that grows with uncertainty.
        loss: None for the error, an array, or a function of probabilities and labels.
        sample_weight: Weights, as for `aurc`.
        ignore_class: Label of what is left out.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.

    Returns:
        A float of at least 0; 0 if every error is trusted less than every right answer.

    Raises:
        ValueError: As `aurc`.

    Example:

    >>> import tfuq
    >>> tfuq.selective.eaurc([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1])
    0.0
    >>> round(tfuq.selective.eaurc([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [1, 1, 0]), 4)
    0.5

    See also: `tfuq.selective.aurc`, `tfuq.selective.augrc`.
    """
    ranked = rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class)
    check_counts(ranked.weight)
    losses, level = np.unique(ranked.loss, return_inverse=True)
    best = loss_table(level, len(losses), ranked.weight, ranked.loss)
    return max(0.0, float(selective_area(ranked.table)) - float(selective_area(best)))


def coverage_at_risk(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    risk: float = 0.05,
    *,
    attainable: bool = False,
    score: Any = "confidence",
    loss: Any = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """The largest coverage whose risk is at most `risk`, on these data.

    It is the largest, whatever happens at less coverage: one confident error does not end the
    search, and the answer is 1 if the risk of everything is small enough. On new data the risk may
    be larger: `RejectionRule.fit(..., target_risk=...)` guarantees it.

    Args:
        probs: Predictions. Arguments that are not described are as for `risk_coverage_curve`.
        labels: Labels.
        risk: The risk that is allowed, at least 0.
        attainable: Whether only what a threshold can reach counts, ties as a whole. Otherwise some
            of several predictions with the same score may be accepted, at random.
        score: What ranks the predictions, a name or an array that grows with uncertainty.
        loss: None for the error, an array, or a function of probabilities and labels.
        sample_weight: Weights, in whole examples.
        ignore_class: Label of what is left out.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.

    Returns:
        A float in [0, 1]; 0 if no coverage has so small a risk.

    Raises:
        ValueError: As `risk_coverage_curve`; if `risk` is negative, infinite or NaN.

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]
    >>> tfuq.selective.coverage_at_risk(probs, [1, 1, 0, 0], risk=0.25)
    1.0
    >>> tfuq.selective.coverage_at_risk(probs, [1, 1, 0, 0], risk=0.2)
    0.0

    See also: `tfuq.selective.risk_at_coverage`, `tfuq.metrics.CoverageAtRisk`.
    """
    check_risk(risk)
    check_flags(attainable=attainable)
    ranked = rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class)
    return float(largest_coverage(ranked.table, risk, attainable))


def risk_at_coverage(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    coverage: float = 0.8,
    *,
    attainable: bool = False,
    score: Any = "confidence",
    loss: Any = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
) -> float:
    """The risk if at least a fraction `coverage` is accepted, and no more than needed.

    Args:
        probs: Predictions. Arguments that are not described are as for `risk_coverage_curve`.
        labels: Labels.
        coverage: The fraction in (0, 1]: the first ceil(coverage n) predictions are accepted.
        attainable: Whether a threshold must reach it, so that all with the score of the last one
            are accepted. Otherwise some of these are, at random, and the risk is expected.
        score: What ranks the predictions, a name or an array that grows with uncertainty.
        loss: None for the error, an array, or a function of probabilities and labels.
        sample_weight: Weights, in whole examples.
        ignore_class: Label of what is left out.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.

    Returns:
        A float.

    Raises:
        ValueError: As `risk_coverage_curve`; if `coverage` is not in (0, 1].

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4]]
    >>> tfuq.selective.risk_at_coverage(probs, [0, 1, 0, 0], coverage=0.5)
    0.25
    >>> round(tfuq.selective.risk_at_coverage(probs, [0, 1, 0, 0], 0.5, attainable=True), 4)
    0.3333

    See also: `tfuq.selective.coverage_at_risk`, `tfuq.metrics.RiskAtCoverage`.
    """
    check_rate("coverage", coverage)
    check_flags(attainable=attainable)
    ranked = rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class)
    return float(risk_at(ranked.table, coverage, attainable))
