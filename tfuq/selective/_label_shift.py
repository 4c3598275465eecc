"""Label shift: class frequencies of new data, estimated and corrected for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from tfuq._arguments import ArrayLike, to_float64
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._shift_inputs import (
    check_draws,
    confusion_of,
    interval_of,
    read_source_and_target,
    read_unlabelled,
)


def solve_prior(columns, shares):
    """The prior q >= 0, sum 1, with `columns` q nearest to `shares`.

    Args:
        columns: P(predicted i | true j), `(classes, classes)`; a column of zeros for a class that
            was never seen, which gets 0.
        shares: P(predicted i) of the new data, `(classes,)`.
    """
    found, _ = optimize.nnls(columns, shares)
    total = found.sum()
    return found / total if total > 0 else np.full(len(found), np.nan)


def by_true_class(confusion):
    """P(predicted i | true j) from counts `(predicted, true)`; zeros for classes never seen."""
    totals = confusion.sum(axis=0)
    return np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)


def sampling_error(confusion):
    """Expected Frobenius norm of the error of `by_true_class`, from smoothed frequencies.

    sqrt(sum_j (1 - sum_i a_ij^2) / n_j), the variances of multinomial frequencies.
    """
    totals = confusion.sum(axis=0)
    smooth = (confusion + 1 / len(confusion)) / (totals + 1)
    return float(np.sqrt(np.sum((1 - (smooth**2).sum(axis=0)) / np.maximum(totals, 1))))


def resampled_priors(confusion, counts, times, rng):
    """`solve_prior` of confusion matrices and counts of predictions drawn anew, `(times, ...)`."""
    cells = confusion.ravel() / confusion.sum()
    tables = rng.multinomial(confusion.sum(), cells, size=times).reshape(-1, *confusion.shape)
    shares = rng.multinomial(counts.sum(), counts / counts.sum(), size=times) / counts.sum()
    drawn = zip(tables, shares, strict=True)
    return np.stack([solve_prior(by_true_class(table), share) for table, share in drawn])


class LabelShift(NamedTuple):
    """How frequent the classes are in new data, from what a model predicts; arrays `(classes,)`.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import black_box_shift_estimation
    >>> probs = np.eye(2)[[0] * 60 + [1] * 40]
    >>> black_box_shift_estimation(probs, [0] * 60 + [1] * 40, np.eye(2)[[0] * 9 + [1]]).reliable
    True

    See also: `tfuq.selective.black_box_shift_estimation`, `tfuq.selective.correct_label_shift`.
    """

    source_prior: np.ndarray
    """Frequency of each class in the labelled data."""
    target_prior: np.ndarray
    """Estimated frequency in the new data; NaN, and so are its ends, if nothing of the kind that is
    predicted for these was predicted for the labelled data."""
    lower: np.ndarray
    """Lower end of its bootstrap interval."""
    upper: np.ndarray
    weights: np.ndarray
    """`target_prior / source_prior`; NaN for a class that the labelled data do not hold."""
    condition_number: float
    """Of the matrix P(predicted | true) that is inverted; inf if it is singular."""
    reliable: bool
    """Whether all classes were seen, and the least singular value of that matrix is above its
    sampling error: otherwise some classes cannot be told apart by these predictions."""
    p_value: float
    """Of the hypothesis that all classes are predicted as often as before (chi-squared test)."""


def black_box_shift_estimation(
    probs_source: ArrayLike,
    labels: ArrayLike,
    probs_target: ArrayLike,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 500,
    seed: int = 0,
    from_logits: bool = False,
) -> LabelShift:
    """Frequencies of the classes in new data without labels, if only these frequencies changed.

    Formula:

    ```
    sum_j P_source(predicted i | true j) q_j = P_target(predicted i)   (Lipton et al. 2018)
    ```

    solved for q >= 0 by least squares, which is the exact solution where that is a distribution.
    It holds if examples of a class look the same in both data: for label shift alone.

    Args:
        probs_source: Predictions for data that the model has not been trained on, `(n, classes)`;
            binary `(n,)` or `(n, 1)`; or a stack `(samples, n, classes)`.
        labels: Their labels, sparse or one-hot.
        probs_target: Predictions for the new data, of the same classes.
        confidence: Of the interval.
        n_bootstrap: Draws that the interval is made of.
        seed: Of these draws.
        from_logits: Whether predictions are logits.

    Returns:
        `LabelShift`.

    Raises:
        ValueError: If arrays are empty, hold NaN or no probabilities, or do not fit together; if
            there are several predictions for an example, of pixels or labels.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import black_box_shift_estimation
    >>> right = np.eye(2)[[0] * 90 + [1] * 10 + [1] * 80 + [0] * 20]  # 90 % and 80 % of a class
    >>> new = np.eye(2)[[0] * 34 + [1] * 66]  # as 20 % and 80 % of the classes would give
    >>> black_box_shift_estimation(right, [0] * 100 + [1] * 100, new).target_prior.round(6)
    array([0.2, 0.8])

    See also: `tfuq.selective.correct_label_shift`, `tfuq.selective.shift_report`.
    """
    check_draws(confidence, n_bootstrap, seed)
    source, labels, target = read_source_and_target(probs_source, labels, probs_target, from_logits)
    classes = source.shape[1]
    confusion = confusion_of(labels, source).T
    counts = np.bincount(target.argmax(axis=1), minlength=classes)
    columns = by_true_class(confusion)
    found = solve_prior(columns, counts / counts.sum())
    draws = resampled_priors(confusion, counts, n_bootstrap, np.random.default_rng(seed))
    lower, upper = interval_of(draws, confidence)
    prior = confusion.sum(axis=0) / confusion.sum()
    values = np.linalg.svd(columns, compute_uv=False)
    return LabelShift(
        prior,
        found,
        lower,
        upper,
        np.divide(found, prior, out=np.full(classes, np.nan), where=prior > 0),
        float(values[0] / values[-1]) if values[-1] > 1e-12 else np.inf,
        bool(np.all(prior > 0) and values[-1] > sampling_error(confusion)),
        _same_frequencies(confusion.sum(axis=1), counts),
    )


def correct_label_shift(
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    source_prior: ArrayLike,
    target_prior: ArrayLike,
    *,
    from_logits: bool = False,
) -> np.ndarray:
    """Probabilities for data whose classes are more or less frequent than where they were learned.

    Formula:

    ```
    p'(y | x) = p(y | x) q(y) / p(y), over the sum of the same     (Saerens et al. 2002)
    ```

    Args:
        probs: Predictions `(n, classes)`, binary `(n,)` or `(n, 1)`, or a stack of them.
        source_prior: Frequencies p of the classes where the model learned, `(classes,)`; two for
            binary predictions.
        target_prior: Frequencies q in the data at hand.
        from_logits: Whether `probs` are logits.

    Returns:
        Probabilities `(n, classes)`, float64. Where all that the prediction holds possible has a
        frequency of 0, the prediction as it was.

    Raises:
        ValueError: If a prior is not one, or asks for a class that the source does not have; if
            predictions hold NaN or do not fit.

    Example:

    >>> from tfuq.selective import correct_label_shift
    >>> correct_label_shift([[0.6, 0.4]], [0.5, 0.5], [0.2, 0.8]).round(4)
    array([[0.2727, 0.7273]])

    See also: `tfuq.selective.black_box_shift_estimation`.
    """
    probs = read_unlabelled("probs", probs, from_logits)
    priors = {"source_prior": source_prior, "target_prior": target_prior}
    before, after = (_check_prior(*prior, probs.shape[1]) for prior in priors.items())
    if np.any((before == 0) & (after > 0)):
        raise ValueError(
            "Argument `source_prior` must be above 0 wherever `target_prior` is. "
            f"Received: source_prior={source_prior}, target_prior={target_prior}"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        # Ratios as logarithms: they may be larger than any float.
        ratio = np.where(after > 0, np.log(after) - np.log(before), -np.inf)
        found = np.log(probs) + ratio
    largest = found.max(axis=1, keepdims=True)
    found = np.exp(found - np.where(np.isfinite(largest), largest, 0))
    total = found.sum(axis=1, keepdims=True)
    return np.divide(found, total, out=probs.copy(), where=total > 0)


def _same_frequencies(before, after):
    """p-value of the chi-squared test that two rows of counts have the same frequencies."""
    table = np.stack([before, after])
    table = table[:, table.sum(axis=0) > 0]
    return float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0


def _check_prior(name, prior, classes):
    prior = to_float64(name, prior)
    if prior.shape != (classes,) or not np.all(prior >= 0) or abs(prior.sum() - 1) > 1e-6:
        raise ValueError(
            f"Argument `{name}` must hold {classes} frequencies that sum to 1. "
            f"Received: {name}={prior}"
        )
    return prior
