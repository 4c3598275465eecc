"""Arithmetic of distribution shift: priors from predictions, accuracy from scores, a classifier."""

import numpy as np
from scipy import optimize


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


def thresholded_accuracy(source, correct, target):
    """Fraction of `target` scores above the threshold that has the source's accuracy above it.

    Scores equal to the threshold count by the fraction that makes it exact on the source.
    Returns the accuracy and the threshold.
    """
    errors = len(source) - int(np.count_nonzero(correct))
    if errors == len(source):
        return 0.0, np.inf
    threshold = np.partition(source, errors)[errors]
    above, at = np.count_nonzero(source > threshold), np.count_nonzero(source == threshold)
    share = (len(source) - errors - above) / at
    found = np.mean(target > threshold) + share * np.mean(target == threshold)
    return float(found), float(threshold)


def confidence_difference(source, correct, target):
    """Source accuracy less what the mean confidence falls by, in [0, 1]."""
    return float(np.clip(np.mean(correct) - (np.mean(source) - np.mean(target)), 0, 1))


def resampled(estimate, source, correct, target, times, rng):
    """`estimate(source, correct, target)` of examples drawn anew from both, `(times,)`."""
    found = np.empty(times)
    for i in range(times):
        rows = rng.integers(len(source), size=len(source))
        others = rng.integers(len(target), size=len(target))
        found[i] = estimate(source[rows], correct[rows], target[others])
    return found
