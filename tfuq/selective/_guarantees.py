"""Thresholds whose risk is bounded for new data, whatever the distribution of scores and errors.

Levels are the values of a score, from the most trusted down; level i accepts all examples of the
levels up to i, ties together. `accepted` and `loss` are sums over them, `(levels,)`.

Why levels that the data themselves give may be tested: a level's sums are those of every threshold
between its value and the next, so a chain over levels is a chain over all thresholds that there
are, in an order fixed beforehand; of a fixed threshold the accepted losses are independent, given
how many they are. Only where a chain starts depends on the data, by rank. It starts above the k-th
example, k fixed beforehand: given its score and how many have a higher one, these are a sample of
all with a higher one. (Starting at or below it would choose among the ties of discrete scores.)
"""

from typing import NamedTuple

import numpy as np

from tfuq._math.bounds import binomial_p_value, hoeffding_bentkus_p_value

STARTS = 8  # places at which the tests begin, each with its share of the error
LEAST_BLOCK = 64  # levels that are tested at a time, at first
GRID = 16  # ranks that `sgr` looks at, and fixed thresholds at which either starts for images


class Sums(NamedTuple):
    """What each level accepts of independent examples, whose losses are 0 or 1 if `binary`."""

    accepted: np.ndarray
    loss: np.ndarray
    binary: bool

    def p_values(self, risk, levels):
        """Of the hypotheses that the risk of what each of the levels accepts is above `risk`."""
        loss, accepted = self.loss[levels], self.accepted[levels]
        if self.binary:
            return binomial_p_value(loss, accepted, risk)
        return hoeffding_bentkus_p_value(loss / np.maximum(accepted, 1), accepted, risk)

    def ranks(self, risk, delta, most, space):
        """Up to `most` levels at ranks from the fewest that could pass to all; ties repeat one."""
        total = self.accepted[-1]
        fewest = [fewest_examples(risk, delta / count) for count in range(1, most + 1)]
        count = int(np.sum(np.array(fewest) <= total))  # fewer shares where examples are few
        if not count:
            return np.array([], int)
        # If the first level holds more than that it is the start: a stricter one, had it been seen,
        # would not have passed with the few that are likely to be there if none may be.
        counts = np.ceil(space(fewest[count - 1], total, count) - 1e-6)
        return np.maximum(np.searchsorted(self.accepted, counts, side="right") - 1, 0)

    def starts(self, risk, delta):
        """The levels at which chains of tests start, closer where few are accepted."""
        return self.ranks(risk, delta, STARTS, np.geomspace)

    def grid(self, risk, delta):
        """Levels at equal steps of examples."""
        return self.ranks(risk, delta, GRID, np.linspace)


class ImageSums(NamedTuple):
    """What each level accepts of images whose entries depend on each other, `(images, levels)`.

    Both are fractions of an image's entries. The risk is E[loss] / E[accepted]; it is at most r if
    and only if E[loss - r accepted] <= 0, a mean over images of numbers in [-r, 1 - r]. Entries of
    an image have no rank among those of all, so the levels are thresholds fixed beforehand.
    """

    accepted: np.ndarray
    loss: np.ndarray

    def p_values(self, risk, levels):
        loss, accepted = self.loss[:, levels], self.accepted[:, levels]
        mean = np.mean(loss - risk * accepted, axis=0) + risk
        return hoeffding_bentkus_p_value(mean, len(self.loss), risk)

    def starts(self, risk, delta):
        """Levels at equal steps; which of them accept enough is not known beforehand."""
        return np.linspace(0, self.loss.shape[1] - 1, GRID + 1)[1:].astype(int)

    grid = starts


def fewest_examples(risk, delta):
    """The fewest accepted, none wrong, that show a risk below `risk`: log delta / log(1 - risk)."""
    return int(np.ceil(np.log(delta) / np.log1p(-risk) - 1e-9))


def smallest_where(holds, steps=40):
    """The smallest risk in [0, 1] from which on `holds(risk)`, by bisection; 1 if none."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def learn_then_test(sums, risk, delta):
    """The most lenient level that is safe, or None (Angelopoulos et al. 2021).

    Levels are tested from strict to lenient; a test that passes lends its share of `delta` to the
    next, one that fails loses it until the next start (Wiens' fallback procedure 2003). All that
    pass hold together with a probability of at least 1 - delta, so the last may be chosen.
    """
    starts, shares = _shared_starts(sums, risk, delta)
    if not starts:
        return None
    ends = [*starts[1:], sums.loss.shape[-1]]
    budget, last = 0.0, None
    for start, end, share in zip(starts, ends, shares, strict=True):
        budget += share
        failed = _first_failure(sums, risk, start, end, budget)
        last = failed - 1 if failed > start else last
        budget = budget if failed == end else 0.0
    return last


def _shared_starts(sums, risk, delta):
    """The levels where tests start, ascending, and the share of `delta` that each has."""
    places = sums.starts(risk, delta)
    starts, counts = np.unique(places, return_counts=True)
    return starts.tolist(), counts * (delta / max(1, len(places)))


def _first_failure(sums, risk, start, end, budget):
    """The first of the levels from `start` to `end` whose test fails, or `end`.

    A few are tested, then twice as many: no more than twice the levels that pass, and one block.
    """
    size = LEAST_BLOCK
    while start < end:
        stop = min(start + size, end)
        failed = np.flatnonzero(~_passes(sums, risk, slice(start, stop), budget))
        if failed.size:
            return start + int(failed[0])
        start, size = stop, 2 * size
    return end


def _passes(sums, risk, levels, budget):
    # Eight shares of delta are delta.
    return sums.p_values(risk, levels) <= np.asarray(budget) * (1 + 1e-12)


def selection_with_guaranteed_risk(sums, risk, delta):
    """The most lenient level of a grid whose bound is under `risk`, or None.

    Geifman and El-Yaniv 2017, whose bound of Clopper and Pearson is below `risk` where the binomial
    p-value is below its share of `delta`. Their algorithm 1 searches all levels by bisection and
    shares `delta` among the log2 of them that it visits; which these are depends on the data, so
    that the union bound does not cover them. Here 16 ranks fixed beforehand have a share each.
    """
    grid = sums.grid(risk, delta)
    if not len(grid):
        return None
    levels = np.unique(grid)
    passed = levels[sums.p_values(risk, levels) <= delta / len(grid)]
    return int(passed[-1]) if len(passed) else None


METHODS = {"ltt": learn_then_test, "sgr": selection_with_guaranteed_risk}


def best_promise(sums, delta, method):
    """The lowest risk that could be promised from these examples, and for which level, or None.

    Whether any level passes shows at the few where tests start, so the search looks at no others.
    """

    def can_be_promised(risk):
        if method == "sgr":
            return selection_with_guaranteed_risk(sums, risk, delta) is not None
        starts, shares = _shared_starts(sums, risk, delta)
        return bool(starts) and bool(np.any(_passes(sums, risk, starts, shares)))

    risk = smallest_where(can_be_promised, 25)
    return risk, METHODS[method](sums, risk, delta) if risk < 1 else None
