"""Confused pairs of classes, over one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfuq._arguments import ArrayLike, check_flags, to_float64, told
from tfuq._files.tables import check_top, markdown_table, names_of
from tfuq._predictions.examples import from_arrays


class ConfusedPair(NamedTuple):
    """How often two classes are taken for each other.

    Example:

    >>> from tfuq.interpret import confused_pairs
    >>> confused_pairs([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]).pairs[0].mean
    1.0

    See also: `tfuq.interpret.confused_pairs`.
    """

    first: str
    """A class; the true one if the pairs are directed."""
    second: str
    """Another class; the predicted one if the pairs are directed."""
    mean: float
    """Errors, on average over the runs."""
    std: float
    """Their standard deviation over the runs (with runs - 1); NaN for a single run."""
    rate: float
    """The mean, as a fraction of the examples of both classes, or of the first if directed."""
    runs: int
    """How many runs have such an error."""


@told
class ConfusedPairs(NamedTuple):
    """Pairs of classes, the most confused first.

    Example:

    >>> from tfuq.interpret import confused_pairs
    >>> probs = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]
    >>> print(confused_pairs([0, 1, 1], probs, names=["well", "ill"]).to_markdown())
    | pair | errors | fraction | runs |
    | --- | --: | --: | --: |
    | well and ill | 1 | 0.333 | 1 of 1 |

    See also: `tfuq.interpret.confused_pairs`.
    """

    pairs: tuple
    """A `ConfusedPair` each; those that no run confuses are left out."""
    counts: np.ndarray
    """Confusion matrices, `(runs, classes, classes)`, of true class and predicted class."""
    directed: bool
    """Whether the first class of a pair is the true one, and the second the predicted one."""

    def to_markdown(self) -> str:
        """A table with a line for each pair, after tables 4.1 and 4.2 of Mishra (2020).

        Returns:
            A string.
        """
        word, runs = "as" if self.directed else "and", len(self.counts)
        rows = [
            [f"{p.first} {word} {p.second}", _errors(p), f"{p.rate:.3f}", f"{p.runs} of {runs}"]
            for p in self.pairs
        ]
        return markdown_table(["pair", "errors", "fraction", "runs"], rows)


def _errors(pair):
    if np.isnan(pair.std):
        return f"{pair.mean:g}"
    return f"{pair.mean:.2f} ± {pair.std:.2f}"


def confused_pairs(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    top: int | None = 10,
    directed: bool = False,
    from_logits: bool = False,
    sample_weight: ArrayLike | None = None,
) -> ConfusedPairs:
    """The pairs of classes that are confused most, on average over runs, with the variation.

    Mishra (2020, sections 4.1 and 4.2) trains a model several times and counts how often "the first
    label [is] predicted as the second, and vice versa".

    Args:
        y_true: Labels `(n, ...)`, or one-hot.
        y_pred: Predicted probabilities (or logits) `(n, ..., classes)`, binary `(n,)` or `(n, ...,
            1)`; of several runs with one axis more, `(runs, n, ..., classes)`, or a list of such
            arrays.
        names: Names of the classes, or None for their numbers.
        top: How many pairs at most; None for all that are confused.
        directed: Whether A taken for B and B taken for A are pairs of their own.
        from_logits: Whether `y_pred` holds logits.
        sample_weight: Weights of the examples, the same in all runs, or None.

    Returns:
        `ConfusedPairs`. Of pairs with as many errors the one with the lower class comes first.

    Raises:
        ValueError: If arrays do not fit together or hold no labels or predictions, or an argument
            is out of its range.

    Example:

    >>> import numpy as np
    >>> from tfuq.interpret import confused_pairs
    >>> labels, runs = [0, 1, 2, 2], np.eye(3)[[[0, 2, 1, 1], [0, 2, 2, 0]]]
    >>> print(confused_pairs(labels, runs, names=["cat", "dog", "fox"]).to_markdown())
    | pair | errors | fraction | runs |
    | --- | --: | --: | --: |
    | dog and fox | 2.00 ± 1.41 | 0.667 | 2 of 2 |
    | cat and fox | 0.50 ± 0.71 | 0.167 | 1 of 2 |

    References:
        - Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020, chapter 4.

    See also: `tfuq.interpret.ConfusedPairs`, `tfuq.plots.confused_pairs`.
    """
    check_top(top)
    check_flags(directed=directed)
    runs = _runs(to_float64("y_true", y_true).shape, to_float64("y_pred", y_pred))
    counts = np.stack([_counts(y_true, run, sample_weight, from_logits) for run in runs])
    names = names_of(names, counts.shape[-1])
    errors = counts if directed else counts + counts.swapaxes(1, 2)
    examples = counts.sum(axis=2).mean(axis=0)
    pairs = [
        _pair(errors[:, a, b], names[a], names[b], examples[a] + (0 if directed else examples[b]))
        for a in range(len(names))
        for b in range(len(names))
        if (a != b if directed else a < b) and np.any(errors[:, a, b])
    ]
    pairs.sort(key=lambda pair: -pair.mean)  # stable
    return ConfusedPairs(tuple(pairs[:top]), counts, bool(directed))


def _runs(labels, y_pred):
    """Predictions `(runs, ...)` for labels of that shape."""

    def fits(shape):
        return labels in (shape, shape[:-1], (*shape[:-1], 1))

    is_stack = y_pred.ndim > 1 and not fits(y_pred.shape) and fits(y_pred.shape[1:])
    return y_pred if is_stack else y_pred[None]


def _counts(y_true, y_pred, sample_weight, from_logits):
    """Weights `(classes, classes)` by true and predicted class."""
    examples = from_arrays(y_true, y_pred, sample_weight, from_logits=from_logits)
    scores = np.asarray(examples.scores)
    classes = scores.shape[1]
    index = np.asarray(examples.labels) * classes + scores.argmax(axis=1)
    counts = np.bincount(index, np.asarray(examples.weight), classes**2)
    return counts.reshape(classes, classes)


def _pair(errors, first, second, examples):
    std = float(errors.std(ddof=1)) if len(errors) > 1 else float("nan")
    mean = float(errors.mean())
    return ConfusedPair(first, second, mean, std, mean / examples, int(np.count_nonzero(errors)))
