"""Grades that have an order: kappa, what referral does to it, and decisions by their cost."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfuq._arguments import ArrayLike, check_choice, check_flags, to_float64
from tfuq._predictions.labelled import labelled_predictions
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.probabilities import check_probabilities, probabilities
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._void import void_weight

_WEIGHTS = ("quadratic", "linear")
_MOST_GRADES = 1000  # arrays of that many squared are made


class KappaCurve(NamedTuple):
    """Weighted kappa of the accepted predictions, a point for each threshold.

    Example:

    >>> import tfuq
    >>> probs = [[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]
    >>> curve = tfuq.selective.kappa_referral_curve(probs, [0, 1, 2, 2])
    >>> curve.coverage
    array([0.25, 0.5 , 0.75, 1.  ])

    See also: `tfuq.selective.kappa_referral_curve`.
    """

    coverage: np.ndarray
    """Accepted fraction, ascending to 1; the rest is referred."""
    kappa: np.ndarray
    """Weighted kappa of the accepted; NaN while these hold one grade only."""
    threshold: np.ndarray
    """Score from which on is accepted, in the units of the score."""


def quadratic_weighted_kappa(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    weights: str | ArrayLike = "quadratic",
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
) -> float:
    """Weighted Cohen's kappa of grades: an error counts more the further off it is.

    Formula:
        1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij   (Cohen 1968)
    with the share O_ij of examples of grade i that are given j, E_ij what it would be if both were
    independent, and w_ij = (i - j)^2, or |i - j| if linear. scikit-learn's `cohen_kappa_score`.
    As everywhere in `tfuq.selective`, predictions come first; kappa is the same either way round.

    Args:
        probs: Probabilities `(n, ..., grades)`, of which the largest gives the grade, or a stack
            `(samples, n, ..., grades)`, whose average does; or the grades themselves, `(n,)`, or
            integers of the shape of `labels`.
        labels: True grades, sparse `(n, ...)` or, with probabilities, one-hot.
        weights: `"quadratic"` or `"linear"`.
        sample_weight: Weights `(n,)`, or with more of the leading axes.
        ignore_class: Label of what is left out, or None.
        from_logits: Whether `probs` are logits.

    Returns:
        A float of at most 1: 0 for chance. NaN if all labels and all predictions are one and the
        same grade, where 0 / 0 says nothing about agreement. Labels of one grade of which some are
        missed give 0.

    Raises:
        ValueError: If arrays are empty or do not fit together; if they hold NaN, no probabilities,
            no grades or negative weights; if `weights` is neither.

    Example:

    >>> import tfuq
    >>> tfuq.selective.quadratic_weighted_kappa([0, 1, 2, 2], [0, 1, 2, 1])
    0.8
    >>> tfuq.selective.quadratic_weighted_kappa([1, 1], [1, 1])
    nan

    References:
        - Cohen, "Weighted kappa", Psychological Bulletin 70, 1968.

    See also: `tfuq.selective.kappa_referral_curve`.
    """
    check_choice("weights", weights, _WEIGHTS)
    grades = _read_grades(probs, labels, sample_weight, from_logits, ignore_class)
    return float(_kappa(*_totals(*grades, weights, np.zeros(len(grades[0]), int)), weights)[-1])


def kappa_referral_curve(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    weights: str | ArrayLike = "quadratic",
    score: str = "confidence",
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
) -> KappaCurve:
    """Weighted kappa of the kept predictions as the least trusted ones are referred.

    The formula is that of `quadratic_weighted_kappa`, over the accepted predictions only, with a
    point for each threshold: predictions with the same score are kept or referred together. Kappa
    compares with chance among the accepted, so it may fall although fewer are wrong, if the kept
    grades become alike.

    Args:
        probs: Probabilities `(n, ..., grades)` or a stack `(samples, n, ..., grades)`.
        labels: True grades, sparse or one-hot.
        weights: `"quadratic"` or `"linear"`.
        score: What ranks the predictions, a name or an array that grows with uncertainty, as for
            `risk_coverage_curve`.
        sample_weight: Weights `(n,)`, or with more of the leading axes.
        ignore_class: Label of what is left out, or None.
        from_logits: Whether `probs` are logits.

    Returns:
        A `KappaCurve`.

    Raises:
        ValueError: As `quadratic_weighted_kappa` and `risk_coverage_curve`.

    Example:

    >>> import tfuq
    >>> probs = [[0.8, 0.1, 0.1], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]
    >>> tfuq.selective.kappa_referral_curve(probs, [0, 1, 2, 2]).kappa.round(4)
    array([   nan, 1.    , 1.    , 0.3846])

    See also: `tfuq.selective.quadratic_weighted_kappa`, `tfuq.selective.KappaCurve`.
    """
    check_choice("weights", weights, _WEIGHTS)
    sample_weight = void_weight(probs, labels, sample_weight, ignore_class)
    labelled = labelled_predictions(probs, labels, sample_weight, from_logits=from_logits)
    used = labelled.weight > 0
    level, threshold = labelled.doubt(score).levels(used)
    grades = (array[used] for array in _grades_of(labelled))
    totals = _totals(*grades, weights, level)
    return KappaCurve(totals[0] / totals[0][-1], _kappa(*totals, weights), threshold)


def expected_cost(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    cost_matrix: ArrayLike,
    *,
    from_logits: bool = False,
) -> np.ndarray:
    """Expected cost of each decision, if the probabilities are right.

    Formula:
        R_d = sum_y p_y C[y, d]
    Decisions need not be the classes: a column more may stand for a referral or a second test.

    Args:
        probs: Probabilities `(..., classes)`; those of a binary prediction as two columns. A stack
            gives a stack of costs, whose average is the cost of the average.
        cost_matrix: The cost `(classes, decisions)` of each decision for each true class.
        from_logits: Whether `probs` are logits, of a soft-max.

    Returns:
        An array `(..., decisions)`.

    Raises:
        ValueError: If arrays are empty or do not fit together; if they hold NaN, no probabilities
            or infinite costs.

    Example:

    >>> import tfuq
    >>> costs = [[0, 1, 0.3], [10, 0, 0.3]]  # healthy or ill; send home, treat, ask a doctor
    >>> tfuq.selective.expected_cost([[0.9, 0.1], [0.99, 0.01]], costs).round(4)
    array([[1.  , 0.9 , 0.3 ],
           [0.1 , 0.99, 0.3 ]])

    See also: `tfuq.selective.minimum_cost_decision`, `tfuq.selective.simulate_deferral`.
    """
    return _read_probs(probs, from_logits) @ _read_costs(cost_matrix, np.shape(probs))


def minimum_cost_decision(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    cost_matrix: ArrayLike,
    *,
    from_logits: bool = False,
) -> np.ndarray:
    """The decision whose expected cost is least: Bayes' rule for this cost.

    Args:
        probs: Probabilities `(..., classes)`. All arguments are as for `expected_cost`; average a
            stack before.
        cost_matrix: The cost `(classes, decisions)` of each decision for each true class.
        from_logits: Whether `probs` are logits.

    Returns:
        An array `(...)` of integers, columns of `cost_matrix`; of equal ones the first.

    Raises:
        ValueError: As `expected_cost`.

    Example:

    >>> import tfuq
    >>> costs = [[0, 1, 0.3], [10, 0, 0.3]]  # healthy or ill; send home, treat, ask a doctor
    >>> tfuq.selective.minimum_cost_decision([[0.9, 0.1], [0.99, 0.01], [0.1, 0.9]], costs)
    array([2, 0, 1])

    See also: `tfuq.selective.expected_cost`.
    """
    return expected_cost(probs, cost_matrix, from_logits=from_logits).argmin(axis=-1)


# --- Arithmetic ---------------------------------------------------------------------------------


def _distance(size, weights):
    difference = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(float)
    return difference**2 if weights == "quadratic" else difference


def _totals(predicted, labels, weight, weights, level):
    """Sums down to each level: weight, weighted disagreement, and weight of each grade of both."""
    size, levels = max(predicted.max(), labels.max()) + 1, level.max() + 1
    apart = weight * _distance(size, weights)[labels, predicted]

    def summed(values, columns, width):
        counts = np.bincount(level * width + columns, values, levels * width)
        return np.cumsum(counts.reshape(levels, width), axis=0)

    marginals = (summed(weight, grades, size) for grades in (labels, predicted))
    return summed(weight, 0, 1)[:, 0], summed(apart, 0, 1)[:, 0], *marginals


def _kappa(total, observed, labels, predicted, weights):
    """1 - sum w O / sum w E at each level, from sums of weight; NaN for 0 / 0."""
    chance = np.sum(labels @ _distance(labels.shape[1], weights) * predicted, axis=1) / total
    share = np.divide(observed, chance, out=np.full(len(total), np.nan), where=chance > 0)
    return 1 - share


# --- Reading ------------------------------------------------------------------------------------


def _grades_of(labelled):
    """Predicted and true grades and weights, one for each entry."""
    predicted = np.asarray(labelled.examples.probs()).argmax(axis=-1)
    return predicted, np.asarray(labelled.examples.labels), labelled.weight


def _read_grades(probs, labels, sample_weight, from_logits, ignore_class):
    """Predicted and true grades and weights `(n,)` of what has weight."""
    check_flags(from_logits=from_logits)
    predicted, truth = to_float64("probs", probs), to_float64("labels", labels)
    are_integers = np.asarray(probs).dtype.kind in "biu"
    are_grades = predicted.ndim == 1 or (are_integers and predicted.shape == truth.shape)
    sample_weight = void_weight(predicted, truth, sample_weight, ignore_class, are_grades)
    if are_grades:
        if from_logits:
            raise ValueError("Argument `from_logits` must be False for grades. Received: True")
        labelled = _labelled_grades(predicted, truth, sample_weight)
    else:
        labelled = labelled_predictions(predicted, truth, sample_weight, from_logits=from_logits)
    used = labelled.weight > 0
    return tuple(array[used] for array in _grades_of(labelled))


def _labelled_grades(predicted, truth, sample_weight):
    """`LabelledPredictions` of grades: all probability is theirs."""
    fine, known = _are_grades(predicted), _are_grades(truth)
    size = 1 + int(max(predicted[fine].max(initial=1), truth[known].max(initial=1)))
    certain = np.eye(size)[np.where(fine, predicted, 0).astype(int)]
    labelled = labelled_predictions(certain, truth, sample_weight)
    faulty = ~fine.ravel() & (labelled.weight > 0)
    if np.any(faulty):
        raise ValueError(
            f"Argument `probs` must hold grades 0, 1, 2 and so on, below {_MOST_GRADES}, or "
            f"probabilities (n, ..., grades). Received: probs={predicted.ravel()[faulty][0]} "
            f"({faulty.sum()} such)"
        )
    return labelled


def _are_grades(values):
    return (values >= 0) & (values < _MOST_GRADES) & (values == np.floor(values))


def _read_probs(probs, from_logits):
    check_flags(from_logits=from_logits)
    probs = to_float64("probs", probs)
    if probs.ndim == 0 or probs.size == 0 or probs.shape[-1] < 2:
        raise ValueError(
            "Argument `probs` must have shape (..., classes) with at least two classes, and not be "
            f"empty. Received: probs of shape {probs.shape}"
        )
    probs = np.asarray(
        probabilities(probs, from_logits, is_binary=False)
    )  # NaN for infinite logits
    check_probabilities("probs", probs, False, ("from_logits",))
    return probs


def _read_costs(cost_matrix, shape):
    costs = to_float64("cost_matrix", cost_matrix)
    if costs.ndim != 2 or costs.shape[0] != shape[-1] or not costs.size:
        raise ValueError(
            f"Argument `cost_matrix` must have shape ({shape[-1]}, decisions), a row for each "
            f"class. Received: cost_matrix of shape {costs.shape}"
        )
    if not np.all(np.isfinite(costs)):
        raise ValueError(
            f"Argument `cost_matrix` must hold finite numbers. Received: cost_matrix={costs}"
        )
    return costs
