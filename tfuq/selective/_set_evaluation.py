"""Coverage and size of prediction sets on labelled data."""

from typing import NamedTuple

import numpy as np

from tfuq._arguments import told
from tfuq._math.bounds import clopper_pearson_interval, hoeffding_bentkus_p_value
from tfuq.selective._guarantees import smallest_where

_CONFIDENCE = 0.95  # of intervals


class SetCoverage(NamedTuple):
    """How often sets hold the true class, with an interval at 95 %.

    Example:

    >>> from tfuq.selective import ConformalPredictor
    >>> sets = ConformalPredictor("lac", 0.4)
    >>> sets.coverage([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], [0, 1, 0]).coverage
    0.6666666666666666

    See also: `tfuq.selective.ConformalPredictor`.
    """

    coverage: float
    lower: float
    """By Clopper and Pearson; by Hoeffding and Bentkus, of means over examples, where an example
    has several entries."""
    upper: float


@told
class SetEvaluation(NamedTuple):
    """Coverage and size of prediction sets on labelled data.

    Example:

    >>> from tfuq.selective import ConformalPredictor
    >>> sets = ConformalPredictor("lac", 0.6)
    >>> found = sets.evaluate([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], [0, 1, 0])
    >>> found.coverage, found.mean_size, found.class_coverage
    (1.0, 1.3333333333333333, array([1., 1.]))

    See also: `tfuq.selective.ConformalPredictor`.
    """

    examples: int
    coverage: float
    coverage_lower: float
    """Lower end of its interval, as in `SetCoverage`."""
    coverage_upper: float
    mean_size: float
    """Labels in a set."""
    singletons: float
    """Fraction of the sets that have one label, those that `accept` accepts."""
    empty: float
    """Fraction of the sets that have none."""
    singleton_accuracy: float
    """How often that one label is the true one; NaN if there are no such sets."""
    class_coverage: np.ndarray
    """Coverage of each true class, `(classes,)`, of multi-label data `(labels, 2)`; NaN where there
    is none."""


def set_evaluation(sets, covered, class_coverage, known=None):
    """`SetEvaluation` of sets `(n, ..., classes)` and whether they hold the true class.

    `known` says which labels count, None for all.
    """
    examples, coverage = len(sets), set_coverage(covered, known)
    if known is not None:
        examples = int(known.reshape(len(known), -1).any(axis=1).sum())
        sets, covered = sets[known], covered[known]
    sizes = sets.sum(axis=-1)
    single = sizes == 1
    return SetEvaluation(
        examples,
        *coverage,
        float(sizes.mean()),
        float(single.mean()),
        float((sizes == 0).mean()),
        float(covered[single].mean()) if single.any() else np.nan,
        class_coverage,
    )


def class_coverage(labels, covered, classes, known=None):
    """Coverage `(labels, classes)` of each true class, of arrays `(n, entries, labels)`."""
    of_class = labels[..., None] == np.arange(classes)
    of_class &= True if known is None else known[..., None]
    counts = of_class.sum(axis=(0, 1))
    hits = (of_class & covered[..., None]).sum(axis=(0, 1))
    return np.divide(hits, counts, out=np.full(hits.shape, np.nan), where=counts > 0)


def set_coverage(covered, known=None):
    """`SetCoverage` of what is covered, bool `(n, ...)`, and of which labels are known."""
    of_example = covered.reshape(len(covered), -1)
    mean, count = float(covered.mean()), len(covered)
    if known is not None:  # the mean over examples of the share of what is known
        known = known.reshape(of_example.shape)
        used = known.any(axis=1)
        shares = (of_example & known)[used].sum(axis=1) / known[used].sum(axis=1)
        mean, count = float(shares.mean()), int(used.sum())
    if of_example.shape[1] == 1:
        covered = covered if known is None else of_example[known]
        lower, upper = clopper_pearson_interval(covered.sum(), count, _CONFIDENCE)
        return SetCoverage(mean, float(lower), float(upper))
    side = (1 - _CONFIDENCE) / 2

    def bound(value):
        return smallest_where(lambda risk: hoeffding_bentkus_p_value(value, count, risk) <= side)

    return SetCoverage(mean, 1 - bound(1 - mean), bound(mean))


def described_sets(sets):
    """What a conformal predictor promised, as text."""
    report = sets.fitted_to
    if "alpha" not in report:
        return f"Sets of the labels whose score of {sets.score} is low enough; nothing is promised."
    weights, each = report.get("weights"), ""
    if sets.keys is not None:
        each = " of each group"
    elif sets.class_conditional and weights is None:
        each = " of each class"
    text = (
        f"Of 100 cases{each} like the {report['examples']} that this was checked on, their sets "
        f"hold the true label of at least {round(100 * (1 - report['alpha']), 9):g} on average"
    )
    if weights is None:
        return f"{text}."
    what = {
        "label shift": "the classes come as often as was estimated and look as they did",
        "covariate shift": "the weights are right and labels depend on a case as they did",
    }[weights]
    return (
        f"{text.replace('like the', 'of new data, by the')}, if {what}; the "
        f"{report['examples']} count as {report['effective_examples']:.0f}."
    )
