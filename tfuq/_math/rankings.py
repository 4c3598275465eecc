"""Two classes ranked by a score: tables of weights, and the areas and rates that they give.

A table has shape `(..., levels, 2)`: for each level of the score, from the lowest to the highest,
the weights of the in-distribution (column 0) and of the out-of-distribution examples (column 1)
that have it. Equal scores share a level, so ties are counted as such. Tables of the same levels add
up, which is all that a streaming metric needs; leading axes are resamples.
"""

from typing import NamedTuple

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


class Measure(NamedTuple):
    """A figure of a table, which blocks of its levels, in their order, give piece by piece.

    Called with a table it gives the figure `(...)`.
    """

    part: object  # function of a block, the sums `(..., 2)` before it, and those of all
    join: object  # what makes one figure of those of all blocks: `ops.add`, a minimum or maximum
    is_downward: bool = False  # from the highest score, with the classes exchanged
    finish: object = None  # function of that figure

    def __call__(self, table):
        table = ops.flip(table, axis=(-2, -1)) if self.is_downward else table
        total = ops.sum(table, axis=-2)
        found = self.part(table, ops.zeros_like(total), total)
        return found if self.finish is None else self.finish(found)

    def of_blocks(self, blocks, total):
        """The figure of blocks of levels, from the lowest up, or down if `is_downward`."""
        found, before = None, np.zeros(2)
        for block in blocks:
            block = block[::-1, ::-1] if self.is_downward else block
            ends = total[::-1] if self.is_downward else total
            part = self.part(block, before, ends)
            found = part if found is None else self.join(found, part)
            before = before + block.sum(axis=0)
        return found if self.finish is None else self.finish(found)


def _reached(table, before):
    """Sums `(..., levels, 2)` down to each level, with those before the table."""
    return ops.cumsum(table, axis=-2) + ops.expand_dims(before, -2) * ops.ones_like(table)


def _pairs(table, before, total):
    inside, outside = table[..., 0], table[..., 1]
    below = _reached(table, before)[..., 0] - inside / 2
    return ops.sum(outside * below, axis=-1) / (total[..., 0] * total[..., 1])


def _precision(table, before, total):
    reached = _reached(table, before)
    precision = ops.divide_no_nan(reached[..., 0], ops.sum(reached, axis=-1))
    return ops.sum(table[..., 0] * precision, axis=-1) / total[..., 0]


def _shares(table, before, total):
    """Shares `(..., levels)` of both classes at or below each level."""
    shares = _reached(table, before) / ops.expand_dims(total, -2)
    return shares[..., 0], shares[..., 1]


def _advantage(table, before, total):
    inside, outside = _shares(table, before, total)
    return ops.max(inside - outside, axis=-1, initial=0.0)


# P(score out > score in) + P(score out = score in) / 2: trapezoids under the ROC curve.
roc_area = Measure(_pairs, ops.add)
# sum_k (R_k - R_{k-1}) P_k of the class 0, taken from the lowest score upwards.
average_precision_in = Measure(_precision, ops.add)
# The same of the class 1, taken from the highest score downwards.
average_precision_out = Measure(_precision, ops.add, is_downward=True)
# max_t (P(in, score <= t) + P(out, score > t)) / 2; t below all scores gives 1 / 2.
best_accuracy = Measure(_advantage, ops.maximum, finish=lambda found: 0.5 + found / 2)


def false_positive_rate(tpr, positive):
    """`Measure`: share of the other class at the strictest threshold with `tpr` of `positive`.

    `"in"` is accepted from the lowest score upwards, `"out"` from the highest downwards, ties as a
    whole.
    """

    def part(table, before, total):
        own, other = _shares(table, before, total)
        return ops.min(ops.where(own >= tpr * (1 - _ROUNDING), other, 1.0), axis=-1)

    return Measure(part, ops.minimum, is_downward=positive == "out")


def squashed_index(scores, n_bins):
    """Bin of each score, of equal width in sign(s) log(1 + |s| / 1e-6) over |s| <= 1e9.

    The order of all scores stays, whatever their size, and what is beyond lies in the end bins.
    """
    scores = ops.cast(scores, "float64")
    squashed = ops.sign(scores) * ops.log1p(ops.abs(scores) / SMALLEST)
    squashed = squashed / np.log1p(LARGEST / SMALLEST)
    index = ops.floor((ops.clip(squashed, -1, 1) + 1) / 2 * n_bins)
    return ops.cast(ops.clip(index, 0, n_bins - 1), "int32")
