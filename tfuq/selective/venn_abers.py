"""Venn-Abers prediction: two calibrated probabilities for each class, one of which is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tfuq._arguments import ArrayLike, register, shown
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._one_against_rest import (
    OneAgainstRest,
    all_or_none,
    numbers_in_a_row,
    warn_of_unseen,
)
from tfuq.selective._scaling import count_below, count_up_to

__all__ = ["VennAbersCalibration"]


@register
class VennAbersCalibration(OneAgainstRest):
    """Venn-Abers calibration: two probabilities per class, one of them calibrated, merged to one.

    Formula: of each class against the rest, p0 and p1 are what isotonic regression gives the new
    example if it joins the labelled ones as one without the class and as one with it; the
    calibrated probability is p1 / (1 - p0 + p1), the minimax of log loss, divided by the sum over
    the classes (Vovk and Petej 2014). One of p0 and p1, that of the label, is calibrated in
    expectation whatever the sample size, as no other calibration here is; their distance says how
    little the examples know. It never says 0 or 1, unlike `IsotonicCalibration`. What is promised
    is promised of a class against the rest: the division by the sum is not covered by it.

    A binary prediction, and each label of a multi-label one, has one pair of curves. Calibrated
    predictions are probabilities, those of logits also. The prediction can become another one. A
    class without a label gets small probabilities, about one in the number of examples, with a
    warning.

    Args:
        knots: For each class or label, of a binary prediction for one, the probabilities where
            p0 or p1 steps, ascending; None to be fitted.
        zeros: For each, p0 from that knot on to the next; below the first it is 0.
        ones: For each, p1 down from that knot to the one before; above the last it is 1.
        rank: As in `TemperatureScaling`.
        from_logits: Whether predictions are logits, which become probabilities first.
        multi_label: As there.
        average: Of stacks: `"before"`, the average of the probabilities is calibrated. No other,
            as samples of one example are not exchangeable with those of others.
        fitted_to: As there.

    Raises:
        ValueError: If an argument is not as described. `fit` raises it also if `sample_weight` is
            neither 0 nor one number, as weighted examples are not exchangeable.

    Example:

    >>> from tfuq.selective import VennAbersCalibration
    >>> probs, labels = [0.1, 0.2, 0.3, 0.6, 0.8, 0.9], [0, 1, 0, 1, 1, 1]
    >>> found = VennAbersCalibration().fit(probs, labels)
    >>> found([0.1, 0.9]).astype("float64").round(3).tolist()
    [0.333, 0.8]
    >>> lower, upper = found.interval([0.1, 0.9])
    >>> lower.tolist(), upper.tolist()
    ([0.0, 0.75], [0.5, 1.0])

    References:
        - Vovk and Petej, "Venn-Abers predictors", 2014.
        - Vovk, Petej and Fedorova, "Large-scale probabilistic predictors with and without
          guarantees of validity", 2015.

    See also: `tfuq.selective.IsotonicCalibration`, `tfuq.selective.TemperatureScaling`.
    """

    _parameters = ("knots", "zeros", "ones")

    def __init__(
        self,
        knots: Any = None,
        zeros: Any = None,
        ones: Any = None,
        *,
        rank: int | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
        average: str = "before",
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(rank, from_logits, multi_label, average, fitted_to)
        if average != "before":
            raise ValueError(
                "Argument `average` must be 'before': samples of one example are not exchangeable "
                f"with those of others. Received: average={shown(average)}"
            )
        if all_or_none(knots=knots, zeros=zeros, ones=ones):
            knots, zeros, ones = checked_steps(knots, zeros, ones)
        self.knots = knots
        self.zeros = zeros
        self.ones = ones

    def interval(
        self, probs: ArrayLike | Uncertainty | RegressionUncertainty
    ) -> tuple[np.ndarray, np.ndarray]:
        """The two probabilities of each class against the rest, `(lower, upper)`.

        Args:
            probs: Predictions `(n, ..., classes)` as `transform` takes, an array.

        Returns:
            p0 and p1, arrays of the shape of `probs`, of a stack of that of its average.

        Raises:
            ValueError: As `transform`.
        """
        shape, tensor = np.shape(self.transform(probs)), ops.convert_to_tensor(probs, "float32")
        values = self._samples(tensor, self._is_stack(np.shape(probs)))
        rows = ops.reshape(values, (-1, self._num_columns()))
        return tuple(ops.convert_to_numpy(part).reshape(shape) for part in self._both(rows))

    def _estimate(self, data):
        warn_of_unseen(data, "its probabilities tell only that {examples} examples are without it.")
        super()._estimate(data)

    def _curve(self, values, targets, weight):
        if np.ptp(weight) > 1e-9 * weight.max():
            raise ValueError(
                "Argument `sample_weight` must be 0 or one number for all examples that count: "
                "weighted examples are not exchangeable. Received: weights that differ by "
                f"{weight.max() / weight.min():.3g} times"
            )
        return fit_steps(values, targets)

    def _map(self, rows):
        zero, one = self._both(rows)
        return one / (1 - zero + one)

    def _both(self, rows):
        """p0 and p1 of `rows` `(n, curves)`."""
        size = max(map(len, self.knots))
        padded = [(*row, *[row[-1]] * (size - len(row))) for row in self.knots]
        zeros = [(0, *row, *[row[-1]] * (size - len(row))) for row in self.zeros]
        ones = [(*row, *[1] * (size + 1 - len(row))) for row in self.ones]
        knots = ops.convert_to_tensor(np.array(padded, "float32"))
        x = ops.transpose(ops.where(ops.isfinite(rows), rows, 0))
        first = (size + 1) * np.arange(len(padded), dtype="int32")[:, None]
        found = []
        for table, count in ((zeros, count_up_to), (ones, count_below)):
            table = ops.convert_to_tensor(np.array(table, "float32"))
            values = ops.transpose(ops.take(table, count(knots, x) + first))
            found.append(ops.where(ops.isfinite(rows), values, np.nan))
        return found


def fit_steps(values, targets):
    """Knots, p0 and p1 of Venn-Abers prediction for 0/1 `targets` on `values`, all `(n,)`.

    The value of isotonic regression at a new example depends on the knot that it ties with: one
    without the class between two knots is pooled with the one below, one with it with that above.
    """
    knots, index, mass = np.unique(values, return_inverse=True, return_counts=True)
    total = np.bincount(index, targets).astype("int64")
    zeros = _with_one_more(mass, total, 0)
    ones = _with_one_more(mass, total, 1)
    kept = (np.diff(zeros, prepend=0) != 0) | (np.diff(ones, append=1) != 0)
    kept[0] = True
    return knots[kept], zeros[kept], ones[kept]


def _with_one_more(mass, total, target):
    """At each of `m` knots the isotonic regression of all examples and one more at that knot.

    Args:
        mass, total: Examples at each knot, and those with the class, integers `(m,)`.
        target: 0 or 1, of the example that joins.

    The blocks of all that lies below a knot, and of all above, are those of one pass from either
    side; the knot is pooled with its neighbours until none violates the order. In which order
    violators are pooled makes no difference (Barlow et al. 1972).
    """
    size = len(mass)
    start, end = _blocks(mass, total), size - 1 - _blocks(mass[::-1], -total[::-1])[::-1]
    sums = [np.append(0, np.cumsum(part)) for part in (mass, total)]
    low, high = np.arange(size), np.arange(size)  # the block of each knot
    active = np.arange(size)
    while active.size:
        before = low[active], high[active]
        for outer, is_above in ((start, False), (end, True)):
            a, b = low[active], high[active]
            own = [s[b + 1] - s[a] + more for s, more in zip(sums, (1, target), strict=True)]
            inner = b + 1 if is_above else a - 1
            exists = (inner < size) if is_above else (inner >= 0)
            inner = np.where(exists, inner, 0)
            far = outer[inner]
            left, right = (inner, far) if is_above else (far, inner)
            other = [s[right + 1] - s[left] for s in sums]
            rise = other[1] * own[0] - own[1] * other[0]  # sign of: the other's mean - the own
            pooled = exists & ((rise <= 0) if is_above else (rise >= 0))
            edge = high if is_above else low
            edge[active[pooled]] = far[pooled]
        moved = (low[active] != before[0]) | (high[active] != before[1])
        active = active[moved]
    mass, total = (s[high + 1] - s[low] + more for s, more in zip(sums, (1, target), strict=True))
    return total / mass


def _blocks(mass, total):
    """For each knot, where the last block of the isotonic regression up to it begins."""
    start = np.zeros(len(mass), "int64")
    weights, sums = mass.tolist(), total.tolist()  # plain numbers are faster one by one
    for knot in range(len(weights)):
        first = knot
        while first and sums[first - 1] * weights[knot] >= sums[knot] * weights[first - 1]:
            weights[knot] += weights[first - 1]
            sums[knot] += sums[first - 1]
            first = start[first - 1]
        start[knot] = first
    return start


def checked_steps(knots, zeros, ones):
    """The arguments of the constructor as lists of lists, or a ValueError."""
    given = {"knots": knots, "zeros": zeros, "ones": ones}
    nested = all(isinstance(rows, (list, tuple)) and len(rows) for rows in given.values())
    if not nested or len({len(rows) for rows in given.values()}) > 1:
        raise ValueError(
            "Arguments `knots`, `zeros` and `ones` must be lists of a list for each curve. "
            f"Received: knots={shown(knots)}, zeros={shown(zeros)}, ones={shown(ones)}"
        )
    found = {n: [numbers_in_a_row(n, row) for row in rows] for n, rows in given.items()}
    for x, zero, one in zip(*found.values(), strict=True):
        fits = x.shape == zero.shape == one.shape and np.all(np.diff(x) > 0)
        fits = fits and np.all(np.diff(zero) >= 0) and np.all(np.diff(one) >= 0)
        if not fits or np.any(zero > one) or zero[0] < 0 or one[-1] > 1:
            raise ValueError(
                "Arguments `knots`, `zeros` and `ones` must be as long as each other and ascend, "
                "with 0 <= zeros <= ones <= 1. "
                f"Received: {x.tolist()}, {zero.tolist()}, {one.tolist()}"
            )
    return ([row.tolist() for row in rows] for rows in found.values())
