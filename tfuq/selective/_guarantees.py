"""Thresholds whose risk is bounded for new data, whatever the distribution of scores and errors.

Levels are the values of a score, from the most trusted down; level i accepts all examples of the
levels up to i, ties together. `accepted` and `loss` are sums over them, `(levels,)`.

Why `auto` may look at thresholds that the data give, ties or none. Let r be the target, R(t) the
risk of what a threshold t accepts, and let equal scores be ordered by a draw; R is then a
continuous function of the place in the order of all that can be drawn, from the most trusted down.
A rule errs if its threshold has R > r. The places with R > r are intervals, between which lie gaps
with R <= r, and at every end of an interval R = r (the last may end with everything, R > r there;
the first may begin with nothing). Given how many of the n examples lie in each interval and gap,
these are independent draws from it, and their mean loss there is r, since R is r at both ends; in
the last interval it is at least r. Hence

1. after each interval and gap the count of errors is that of a flat walk, whose steps are errors
   with probability r, independent; after the last it is at least that;
2. within an interval from a to b, the part from a down to any place has a mean loss of at least r
   (R >= r there, R = r at a). Of the errors of the interval take the first ones, in the order of
   all that can be drawn, that make a probability of r: each example is one of them with
   probability r, their places are stochastically before those of a uniform draw, and so those of
   the rest after. Coupling them to uniform places moves errors up and the rest down, which adds
   errors to every prefix. So there is a flat walk W with errors(k) >= W(k) for all counts k within
   all intervals at once.

(Curve.) A threshold with R > r that accepts m examples has at least W(m) errors, whatever m is and
however it was chosen. So a rule that accepts whole levels m with at most c(m) errors only errs with
at most the probability that W has ever as few as c.

(Chain beside it.) The chain starts at a count k and goes on as long as every count a in the drawn
order, ties cut through, has at most d(a) errors; it accepts the whole levels that end on its way.
Given the counts in intervals and gaps, let x be k if that is within an interval, and else the count
at which its gap ends. A level m with R > r and m >= k is in an interval after x. If the chain
accepts it, it has passed x, where errors(x) >= W(x); if the curve does, W(m) <= c(m) and m >= x.
So both together err only if W(x) <= d(x), or W(m) <= c(m) for an m >= x. `_flat_walk` computes for
each x what a flat walk does that with, and takes for d(x) the largest that keeps it within the
error, of which the chain so has more and more on its way, since of the curve only what is left
counts. That needs the chain to pass x itself: over whole levels alone it would pass the next end of
a tie, whose number of examples says something of what comes after.

(Many errors expected.) There the error is shared, `CHAIN_SHARE` for a chain whose tests have
p-values of at most s, the rest for the martingale. This chain, too, starts at the k-th example in
the drawn order and cuts ties through, and accepts the whole levels that end on its way. So it errs
only if it passes x, with the p-value of W(x) at most s, which has a probability of at most s.

Where the chain starts and how the curve bends is by simulation (`benchmarks/rules.py`), depends on
n and the target alone, and no part of the proof depends on it.

`ltt` and `sgr` start above the k-th example, k fixed beforehand: given its score and how many have
a higher one, these are a sample of all with a higher one, so each start by itself is a valid test.
Where no scores are equal, several chains whose shares add up as they meet are covered as one is:
the starts in a gap are known from the counts, and their shares add up to what tests its end. With
ties a chain that takes over shares, or starts at a first level of more than k, is not: `auto` has
neither. Thresholds of images are fixed beforehand, and the chain is Wiens' without more.
"""

from typing import NamedTuple

import numpy as np

from tfuq._math.bounds import binomial_p_value, hoeffding_bentkus_p_value
from tfuq.selective._drawn_ties import (
    errors_of_first,
    first_failure_within,
    places_of_errors,
    seed_of,
)
from tfuq.selective._few_values import (
    FEW,
    LEAST_TIMES,
    MOST_DRAWN,
    SPENT,
    many_values,
    passed_in_turn,
    shares_of,
    without_some,
)
from tfuq.selective._flat_walk import (
    MOST_ERRORS,
    chain_beside_curve,
    curve_from,
    first_looks,
    levels_of_rare_errors,
)

STARTS = 8  # places at which the tests begin, each with its share of the error
LEAST_BLOCK = 64  # levels that are tested at a time, at first
MOST_BLOCK = 2**16  # and at most: a test takes a dozen copies
# By examples over the fewest that can pass: the level of error at which the chain starts, over that
# of both together, and the power with which the levels of the curve grow. Where that start takes
# nearly all of the error, a curve that grows fast keeps the rest for the lenient end. Of targets up
# to `RARE` the fewest are many, and a start may be finer. `PLANS_OF_TIES` those of a score of few
# values, which a chain walks through.
RARE = 0.07
PLANS_OF_RARE = ((3, 1.0, 0.2), (5, 0.95, 0.2), (7.5, 0.87, 1.4), (10, 0.8, 1.2))
PLANS_OF_RARE += ((15, 0.7, 1.0), (np.inf, 0.45, 0.3))
PLANS = ((3, 1.0, 0.2), (5, 0.95, 0.2), (7.5, 0.84, 0.7), (10, 0.65, 0.2), (np.inf, 0.4, 0.4))
PLANS_OF_TIES = ((2.5, 1.0, 0.2), (np.inf, 0.4, 0.4))
CHAIN_SHARE = 0.4  # of many examples, where it is not charged together with the martingale
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
        counts = counts.astype(self.accepted.dtype)  # else all that are accepted are converted
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


def smallest_where(holds, steps=40, low=0.0):
    """The smallest risk in [low, 1] from which on `holds(risk)`, by bisection; 1 if none."""
    high = 1.0
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
    passed = list(_passed(sums, risk, delta))
    return passed[-1][1] - 1 if passed else None


def _passed(sums, risk, delta):
    """Ranges of levels `(first, end)` that the chains pass, none of them empty."""
    starts, shares = shared_starts(sums, risk, delta)
    ends = [*starts[1:], sums.loss.shape[-1]]
    budget = 0.0
    for start, end, share in zip(starts, ends, shares, strict=bool(starts)):
        budget += share
        failed = _first_failure(sums, risk, start, end, budget)
        if failed > start:
            yield start, failed
        budget = budget if failed == end else 0.0


def shared_starts(sums, risk, delta):
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
        failed = np.flatnonzero(~passes(sums, risk, slice(start, stop), budget))
        if failed.size:
            return start + int(failed[0])
        start, size = stop, min(2 * size, MOST_BLOCK)
    return end


def passes(sums, risk, levels, budget):
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


def chain_and_curve(sums, risk, delta):
    """The most lenient level that one chain of tests or the curve of `_flat_walk` shows, or None.

    Of a score of few values as `_few_values` says. Of other losses than errors, and of images,
    `learn_then_test`.
    """
    if not (isinstance(sums, Sums) and sums.binary):
        return learn_then_test(sums, risk, delta)
    whole, some, delta = ways(sums, risk, delta)
    found = [_last_of_walk(sums, risk, delta)] if whole else []
    found += [_last_without_some(sums, risk, delta)] if some else []
    return None if None in found else min(found)


def ways(sums, risk, delta):
    """Whether all examples are tested, whether some are left out, and the error of each way.

    Of both ways what both accept holds.
    """
    total, values = int(sums.accepted[-1]), len(sums.accepted)
    many = many_values(total, SPENT * delta)
    if total < max(LEAST_TIMES * fewest_examples(risk, delta), many):
        return True, False, delta
    return values > FEW, values < many, (1 - SPENT) * delta


def _last_of_walk(sums, risk, delta, plans=None):
    total = int(sums.accepted[-1])
    start, tilt = planned(total, risk, delta, plans)
    if risk * total > MOST_ERRORS:
        first, end = _chain_of(sums, risk, CHAIN_SHARE * delta)
        eps = (1 - CHAIN_SHARE) * delta
        rare = levels_of_rare_errors(sums.accepted, sums.loss, risk, eps)
        last = int(rare[-1]) if len(rare) else None
    elif start > total or _last_under(sums, first_looks(total, risk, delta)) is None:
        return None  # none that would pass by itself
    else:
        first, end = 0, 0
        plan = total, risk, start, delta, tilt
        if np.all(places_of_errors(sums, 1) > start):
            first, end = _before_early_error(sums, chain_beside_curve(*plan))
        last = _last_under(sums, curve_from(*plan))
    found = [last, end - 1 if end > first else None]
    return max((level for level in found if level is not None), default=None)


def _last_without_some(sums, risk, delta):
    passed, kept, rest = _without_some(sums, risk, delta)
    if passed is not None:
        return int(passed[-1]) if len(passed) else None
    level = _last_of_walk(rest, risk, delta, PLANS_OF_TIES)
    return None if level is None else int(kept[level])


def _without_some(sums, risk, delta):
    """The levels that pass among those of the examples drawn, or None if these are not few.

    And those that have other examples, with the sums over these alone.
    """
    drawn, accepted, errors = without_some(*sums[:2], np.random.default_rng([*seed_of(sums), FEW]))
    kept = np.flatnonzero(np.diff(accepted, prepend=0))
    rest = Sums(accepted[kept], errors[kept], True)
    if len(drawn) > MOST_DRAWN:
        return None, kept, rest
    p_values = Sums(accepted, errors, True).p_values(risk, drawn)
    times = sums.accepted[-1] / fewest_examples(risk, delta)
    return drawn[passed_in_turn(p_values, shares_of(len(drawn), times), delta)], kept, rest


def safe_levels(sums, risk, delta, looked):
    """Which levels `chain_and_curve` shows to be safe, all together, bool `(levels,)`.

    Of other losses than errors those that the chains of `learn_then_test` pass. `looked` are the
    levels at which the martingale of many errors is looked at.
    """
    safe = np.zeros(sums.loss.shape[-1], bool)
    if not sums.binary:
        for start, end in _passed(sums, risk, delta):
            safe[start:end] = True
        return safe
    whole, some, delta = ways(sums, risk, delta)
    found = [_safe_of_walk(sums, risk, delta, looked)] if whole else []
    if some:
        passed, kept, rest = _without_some(sums, risk, delta)
        if passed is None:
            passed = kept[_safe_of_walk(rest, risk, delta, None, PLANS_OF_TIES)]
        safe[passed] = True
        found.append(safe)
    return np.logical_and.reduce(found)


def _safe_of_walk(sums, risk, delta, looked, plans=None):
    safe = np.zeros(len(sums.loss), bool)
    total = int(sums.accepted[-1])
    start, tilt = planned(total, risk, delta, plans)
    if risk * total > MOST_ERRORS:
        first, end = _chain_of(sums, risk, CHAIN_SHARE * delta)
        eps = (1 - CHAIN_SHARE) * delta
        safe[levels_of_rare_errors(sums.accepted, sums.loss, risk, eps, looked)] = True
    elif start <= total:
        plan = total, risk, start, delta, tilt
        first, end = _before_early_error(sums, chain_beside_curve(*plan))
        curve = curve_from(*plan)
        few = np.flatnonzero(sums.loss < len(curve))
        safe[few[sums.accepted[few] >= curve[sums.loss[few].astype(int)]]] = True
    else:
        return safe
    safe[first:end] = True
    return safe


def starts_without_error(sums, risk, delta):
    """Whether levels without an error are enough by themselves, each way that is tested."""
    whole, some, delta = ways(sums, risk, delta)
    tested = [(sums, None)] if whole else []
    if some:
        passed, _, rest = _without_some(sums, risk, delta)
        if passed is not None and not len(passed):
            return False
        tested += [(rest, PLANS_OF_TIES)] if passed is None else []
    starts = [planned(int(part.accepted[-1]), risk, delta, plans)[0] for part, plans in tested]
    found = [
        _last_under(part, np.array([start]))
        for (part, _), start in zip(tested, starts, strict=True)
    ]
    return None not in found


def planned(total, risk, delta, plans=None):
    """After how many examples without an error the chain starts, and the tilt of the curve.

    `plans` are by default those of many values.
    """
    plans = plans or (PLANS_OF_RARE if risk <= RARE else PLANS)
    fewest = fewest_examples(risk, delta)
    share, tilt = next(plan for most, *plan in plans if total / fewest < most)
    start = fewest_examples(risk, share * delta)
    return start if start <= total else fewest, tilt


def _before_early_error(sums, looks):
    """The levels `(first, end)` from the start to the first error that is too early, or none.

    With the c-th error there are c: few enough from `looks[c]` on, never if c is `len(looks)`.
    """
    places = places_of_errors(sums, len(looks))
    early = np.flatnonzero(places < np.append(looks[1:], np.inf)[: len(places)])
    stop = places[early[0]] if len(early) else sums.accepted[-1] + 1
    ends = np.array([looks[0], stop]).astype(sums.accepted.dtype)
    first, end = np.searchsorted(sums.accepted, ends)
    return int(first), max(int(first), int(end))


def _last_under(sums, looks):
    """The last level with at most c errors after `looks[c]` examples, for any c, or None."""
    errors = np.arange(len(looks)).astype(sums.loss.dtype)  # else all of `loss` is converted
    levels = np.searchsorted(sums.loss, errors, side="right") - 1
    under = levels[(levels >= 0) & (sums.accepted[levels] >= looks)]
    return int(under[-1]) if len(under) else None


def _chain_of(sums, risk, delta):
    """The levels `(first, end)` of a chain from the fewest that can pass, empty if none."""
    fewest = fewest_examples(risk, delta)
    if sums.accepted[-1] < fewest:
        return 0, 0
    start = int(np.searchsorted(sums.accepted, sums.accepted.dtype.type(fewest)))
    if errors_of_first(sums, start, fewest):
        return 0, 0
    end = _first_failure(sums, risk, start, len(sums.accepted), delta)
    return start, first_failure_within(sums, risk, start, end, fewest, delta)


METHODS = {
    "auto": chain_and_curve,
    "ltt": learn_then_test,
    "sgr": selection_with_guaranteed_risk,
}
