"""Arguments of fitting a conformal predictor: their checks, and the examples to tune with."""

import warnings

import numpy as np

from tfuq._arguments import check_fraction, check_integer, check_positive, shown
from tfuq.selective.base import numbers, warn_of_complement
from tfuq.selective.conformal_scores import (
    ROUNDING,
    by_example,
    fewest_examples,
    thresholds,
    tuned_penalty,
    tuned_rank,
)


def check_options(score, randomized, penalty, k_reg):
    """Raises ValueError unless the options of the scores are of their kind, and for this score."""
    if score == "lac" and randomized:
        raise ValueError('Argument `randomized` must be False with score="lac". Received: True')
    for name, value in (("penalty", penalty), ("k_reg", k_reg)):
        if value is not None and score != "raps":
            raise ValueError(
                f'Argument `{name}` must be None unless score="raps". '
                f"Received: {name}={shown(value)}"
            )
    if k_reg is not None:
        check_integer("k_reg", k_reg, 0)
    if penalty not in (None, 0):
        check_positive("penalty", penalty)


def checked_threshold(threshold, axes):
    """The argument `threshold` as an array of that many axes."""
    found = numbers("threshold", threshold)
    if found.ndim != axes or found.size == 0:
        raise ValueError(
            f"Argument `threshold` must have {axes} axes, one for each of `keys`, "
            "`class_conditional` and `multi_label` that is given. "
            f"Received: threshold={shown(threshold)}"
        )
    return found


def is_tuned(value):
    return isinstance(value, str) and value == "tuned"


def checked_alpha(alpha, target_coverage):
    """The fraction to miss, of the one argument that is given or of neither."""
    if alpha is not None and target_coverage is not None:
        raise ValueError(
            "Argument `target_coverage` must be None if `alpha` is given. "
            f"Received: alpha={shown(alpha)}, target_coverage={shown(target_coverage)}"
        )
    given = {"alpha": alpha, "target_coverage": target_coverage}
    for name, value in given.items():
        if value is not None:
            check_fraction(name, value)
            if value in (0, 1):
                raise ValueError(
                    f"Argument `{name}` must be in (0, 1). Received: {name}={shown(value)}"
                )
    if target_coverage is not None and target_coverage < 0.5:
        warn_of_complement("target_coverage", target_coverage, "may miss more than it holds")
    if alpha is not None and alpha > 0.5:
        warn_of_complement("alpha", alpha, "may miss more than it holds")
    if target_coverage is not None:
        return round(1 - float(target_coverage), 12)
    return 0.1 if alpha is None else float(alpha)


def split(count, share, seed):
    """Rows to tune with, and rows to calibrate with."""
    check_fraction("tuning_share", share)
    tuned_on = round(share * count)
    if not 0 < tuned_on < count:
        raise ValueError(
            f"Argument `tuning_share` must leave some of {count} examples on both sides. "
            f"Received: tuning_share={shown(share)}"
        )
    rows = np.random.default_rng(seed).permutation(count)
    return np.sort(rows[:tuned_on]), np.sort(rows[tuned_on:])


def calibrated(scores, labels, num_classes, alpha, class_conditional, multi_label, known=None):
    """The thresholds of the scores `(n, ...)` of true labels, and what they promise, a dict.

    `known` says which labels count, None for all.
    """
    known = None if known is None else by_example(known, multi_label, classes=False)
    scores, true = (by_example(part, multi_label, classes=False) for part in (scores, labels))
    classes = num_classes if class_conditional else None
    found, counts = thresholds(scores, true, alpha, classes, known)
    _check_counts(counts, alpha, class_conditional)
    shape = found.shape[0 if multi_label else 1 : 2 if class_conditional else 1]
    report = {"alpha": alpha, "examples": len(labels), "classes": np.unique(labels).tolist()}
    report["unseen_classes"] = np.setdiff1d(np.arange(num_classes), labels).tolist()
    if class_conditional:
        report["examples_of_class"] = counts.reshape(shape).tolist()
    return found.reshape(shape), report


def warn_if_saturated(score, thresholds):
    """Warns of sums of probabilities that reach 1, at which sets hold every class."""
    if score == "aps" and np.any(np.isfinite(thresholds) & (thresholds >= 1 - ROUNDING)):
        warnings.warn(
            "Sets hold every class, because the threshold of the score 'aps' is 1: probabilities "
            "are so near to 0 and 1 that their sums do not tell labels apart. Calibrate them "
            "(`TemperatureScaling`), or use score='raps' or 'lac'.",
            stacklevel=5,
        )


def _check_counts(counts, alpha, class_conditional):
    """Raises ValueError, or warns of some classes, if there are too few examples."""
    needed = fewest_examples(alpha)
    few = counts < needed
    if few.all():
        of_each = " of a class" if class_conditional else ""
        raise ValueError(
            f"Argument `probs` must hold at least {needed} examples{of_each} to miss at most "
            f"alpha={alpha:g}. Received: {counts.max()} examples{of_each}"
        )
    if few.any():
        names = [c[1] if len(counts) == 1 else tuple(c) for c in np.argwhere(few).tolist()]
        warnings.warn(
            f"Some classes are in every set, because they have fewer than {needed} calibration "
            f"examples: {names} with {counts[few].tolist()}.",
            stacklevel=5,
        )


def tune(predictor, probs, labels, alpha, tuned):
    """Sets those of `k_reg` and `penalty` of a predictor that are to be tuned on these examples."""
    probs = by_example(probs, predictor.multi_label)
    labels = by_example(labels, predictor.multi_label, classes=False)
    if "k_reg" in tuned:
        predictor.k_reg = tuned_rank(probs, labels, alpha)
    if "penalty" in tuned:

        def scores_of(penalty):
            predictor.penalty = penalty
            return predictor._scores(probs)

        predictor.penalty = tuned_penalty(scores_of, labels, alpha)
