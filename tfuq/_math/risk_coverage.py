"""Risk against coverage: areas and points of the curve, from a table of losses by trust.

A table has shape `(levels, 2)`: for each level of trust, from the highest down, the weight of the
examples that have it and the sum of their weighted losses. What shares a level comes in a random
order, and every figure is exactly what is expected over these orders: of k accepted examples, with
a of weight and A of loss above the level, the loss is A + (k - a) l for its mean loss l. A weight
counts equal examples. Tables of the same levels add up.
"""

import tensorflow as tf
from keras import ops

_ROUNDING = 1e-12  # what is reached in exact arithmetic is reached here


def loss_table(level, levels, weight, loss):
    """Table `(levels, 2)` of examples `(n,)` that have the levels `level`, 0 being the highest."""
    weight, loss = ops.cast(weight, "float64"), ops.cast(loss, "float64")
    return ops.segment_sum(ops.stack([weight, weight * loss], axis=-1), level, num_segments=levels)


def _levels(table):
    """Sums `(levels, 2)` above each level and down to it, its mean loss `(levels,)`, and totals.

    Totals are sums of their own, and no level is picked by its number: XLA would add up all the
    running sums again wherever one of them is used.
    """
    table = ops.cast(table, "float64")
    down_to = ops.cumsum(table, axis=0)
    above = ops.pad(down_to[:-1], [[1, 0], [0, 0]])
    mean = ops.divide_no_nan(table[:, 1], table[:, 0])
    return above, down_to, mean, ops.sum(table, axis=0)


def selective_area(table):
    """(1 / n) sum_{k=1}^n r_k, with the risk r_k of the k most trusted; NaN without weight.

    A level adds sum_k (A + (k - a) l) / k = m l + (A - a l) (H_{a+m} - H_a) over its k = a + 1 to
    a + m, with the harmonic numbers H_x = digamma(x + 1) + const.
    """
    above, down_to, mean, total = _levels(table)
    harmonic = tf.math.digamma(down_to[:, 0] + 1) - tf.math.digamma(above[:, 0] + 1)
    return (total[1] + ops.sum((above[:, 1] - above[:, 0] * mean) * harmonic)) / total[0]


def generalized_area(table):
    """Trapezoids under the loss of the accepted per example, from coverage 0 on; NaN if empty."""
    above, down_to, _, total = _levels(table)
    heights = (down_to[:, 1] + above[:, 1]) / 2
    return ops.sum(ops.cast(table, "float64")[:, 0] * heights) / total[0] / total[0]


def largest_coverage(table, risk, attainable):
    """The largest coverage with a risk of at most `risk`, 0 if none has; NaN without weight.

    Inside a level the risk moves one way. So where its end has too much, the coverage sought is
    the last whole example before A + (k - a) l = risk k.
    """
    above, down_to, mean, total = _levels(table)
    reached = down_to[:, 1] <= risk * down_to[:, 0] * (1 + _ROUNDING)
    best = ops.max(ops.where(reached, down_to[:, 0], 0.0), initial=0.0)
    if not attainable:
        spare = ops.divide_no_nan(risk * above[:, 0] - above[:, 1], mean - risk)
        whole = ops.floor(spare * (1 + _ROUNDING) + _ROUNDING)
        inside = (mean > risk) & (whole >= 0) & ~reached
        best = ops.maximum(best, ops.max(ops.where(inside, above[:, 0] + whole, 0.0), initial=0.0))
    return ops.minimum(best / total[0], 1.0)


def risk_at(table, coverage, attainable):
    """The risk at the smallest coverage of at least `coverage`; NaN without weight."""
    above, _, mean, total = _levels(table)
    missing = coverage * total[0] * (1 - _ROUNDING) - above[:, 0]
    size = ops.cast(table, "float64")[:, 0]
    some = size if attainable else ops.minimum(ops.ceil(missing), size)
    accepted = ops.where(missing > 0, some, 0.0)
    return ops.sum(accepted * mean) / ops.sum(accepted)
