"""Two classes ranked by a score: tables of weights, and the areas and rates that they give.

A table has shape `(..., levels, 2)`: for each level of the score, from the lowest to the highest,
the weights of the in-distribution (column 0) and of the out-of-distribution examples (column 1)
that have it. Equal scores share a level, so ties are counted as such. Tables of the same levels add
up, which is all that a streaming metric needs; leading axes are resamples.
"""

import numpy as np
from keras import ops

from tfuq._arguments import check_fraction, shown

POSITIVE = ("in", "out")
# Scores are told apart by their ratio from SMALLEST to LARGEST.
SMALLEST, LARGEST = 1e-6, 1e9
_ROUNDING = 1e-12  # sums of weights that reach a rate in exact arithmetic reach it here


def check_rate(name, value):
    """Raises ValueError unless `value` is a number in (0, 1]."""
    check_fraction(name, value)
    if value == 0:
        raise ValueError(f"Argument `{name}` must be in (0, 1]. Received: {name}={shown(value)}")


def roc_area(table):
    """P(score out > score in) + P(score out = score in) / 2: trapezoids under the ROC curve."""
    inside, outside = table[..., 0], table[..., 1]
    below = ops.cumsum(inside, axis=-1) - inside / 2
    pairs = ops.sum(inside, axis=-1) * ops.sum(outside, axis=-1)
    return ops.sum(outside * below, axis=-1) / pairs


def average_precision_in(table):
    """sum_k (R_k - R_{k-1}) P_k of the class 0, taken from the lowest score upwards."""
    reached = ops.cumsum(table, axis=-2)
    precision = ops.divide_no_nan(reached[..., 0], ops.sum(reached, axis=-1))
    return ops.sum(table[..., 0] * precision, axis=-1) / ops.sum(table[..., 0], axis=-1)


def average_precision_out(table):
    """The same of the class 1, taken from the highest score downwards."""
    return average_precision_in(ops.flip(table, axis=(-2, -1)))


def false_positive_rate(table, tpr, positive):
    """Share of the other class at the strictest threshold that accepts `tpr` of `positive`.

    `"in"` is accepted from the lowest score upwards, `"out"` from the highest downwards, ties as a
    whole.
    """
    table = table if positive == "in" else ops.flip(table, axis=(-2, -1))
    own, other = _accepted(table)
    return ops.min(ops.where(own >= tpr * (1 - _ROUNDING), other, 1.0), axis=-1)


def best_accuracy(table):
    """max_t (P(in, score <= t) + P(out, score > t)) / 2; t below all scores gives 1 / 2."""
    inside, outside = _accepted(table)
    return 0.5 + ops.max(inside - outside, axis=-1, initial=0.0) / 2


def _accepted(table):
    """Shares `(..., levels)` of both classes at or below each level."""
    reached = ops.cumsum(table, axis=-2)
    shares = reached / ops.sum(table, axis=-2, keepdims=True)
    return shares[..., 0], shares[..., 1]


def squashed_index(scores, n_bins):
    """Bin of each score, of equal width in sign(s) log(1 + |s| / 1e-6) over |s| <= 1e9.

    The order of all scores stays, whatever their size, and what is beyond lies in the end bins.
    """
    scores = ops.cast(scores, "float64")
    squashed = ops.sign(scores) * ops.log1p(ops.abs(scores) / SMALLEST)
    squashed = squashed / np.log1p(LARGEST / SMALLEST)
    index = ops.floor((ops.clip(squashed, -1, 1) + 1) / 2 * n_bins)
    return ops.cast(ops.clip(index, 0, n_bins - 1), "int32")
