"""Rules of scores of few values: thresholds are told by a few examples, which are left out."""

import numpy as np
import pytest
from scipy import stats

from tfuq.selective import _few_values, _guarantees
from tfuq.selective._guarantees import METHODS, Sums

DELTA = 0.05


def drawn_sums(rng, shares, rates, count):
    """Sums of examples of so many values, the most trusted first, and the values that they have."""
    value = rng.choice(len(shares), size=count, p=shares)
    wrong = rng.random(count) < np.asarray(rates)[value]
    values, level = np.unique(value, return_inverse=True)
    accepted = np.bincount(level).cumsum()
    return Sums(accepted, np.bincount(level, wrong).cumsum(), True), values


def numbers_of_values(count, cells):
    """P(so many values) of `count` examples of as many values alike, by adding one at a time."""
    found = np.zeros(cells + 1)
    found[0] = 1
    seen = np.arange(cells + 1) / cells
    for _ in range(count):
        found = found * seen + np.append(0, (found * (1 - seen))[:-1])
    return found


@pytest.mark.parametrize("count", [60, 200, 1000])
def test_no_score_has_both_few_and_many_values(count):
    eps = _few_values.SPENT * DELTA
    many = _few_values.many_values(count, eps)
    assert _few_values.FEW < many <= count
    for cells in range(5, 120):  # alike, which scatter the least, and one of four fifths and a rest
        rest = np.arange(1, count + 1), count, cells / 120
        alike = numbers_of_values(count, cells)
        alike = alike[: _few_values.FEW + 1].sum(), alike[many:].sum()
        mixed = stats.binom.cdf(_few_values.FEW - 1, *rest[1:]), stats.binom.sf(many - 2, *rest[1:])
        assert min(alike) <= eps and min(mixed) <= eps


def test_those_left_out_are_a_sample_that_ends_with_the_fourth_value():
    accepted, errors = np.array([40, 70, 80, 160]), np.array([10.0, 15.0, 15.0, 55.0])
    sizes, ended = np.diff(accepted, prepend=0), 0
    for seed in range(800):
        rng = np.random.default_rng(seed)
        levels, rest, wrong = _few_values.without_some(accepted, errors, rng)
        left_out = sizes - np.diff(rest, prepend=0)
        assert np.flatnonzero(left_out).tolist() == levels.tolist()
        missed = np.diff(errors, prepend=0) - np.diff(wrong, prepend=0)
        assert np.all((missed >= 0) & (missed <= left_out)) and wrong.dtype == errors.dtype
        assert left_out.sum() == 8 or (len(levels) == 4 and left_out.sum() < 8)
        if len(levels) == 4:
            assert 1 in left_out  # the fourth value ends it
        ended += len(levels) == 4
    assert 0 < ended < 800
    # Of three values none ends it: all samples have 8, and each value its share.
    out = np.zeros(3)
    for seed in range(800):
        rng = np.random.default_rng(seed)
        rest = _few_values.without_some(np.array([40, 120, 160]), np.zeros(3), rng)[1]
        out += np.array([40, 80, 40]) - np.diff(rest, prepend=0)
    assert out.sum() == 6400  # a right sample fails once in 10,000 runs
    assert stats.chisquare(out, 6400 * np.array([0.25, 0.5, 0.25])).pvalue > 1e-4


def test_a_test_that_passes_hands_its_share_on():
    shares = np.array([0.2, 0.8, 0.0])

    def passed(*p_values):
        return _few_values.passed_in_turn(p_values, shares, 0.1).tolist()

    assert passed(0.02, 0.1, 0.1) == [True, True, True]
    assert passed(0.021, 0.08, 0.08) == [False, True, True]
    assert passed(0.021, 0.081, 0.0) == [False, False, False]  # nothing left for the last
    assert passed(0.02, 0.101, 0.0) == [True, False, False]
    for count in (1, 2, 3):
        for times in (2, 10, 100):
            assert sum(_few_values.shares_of(count, times)) == pytest.approx(1)


@pytest.mark.parametrize(
    "shares, rates, count, target",
    [
        ([1 / 3] * 3, [0.1001] * 3, 200, 0.1),  # all too lenient, just
        ([0.5, 0.3, 0.2], [0.08, 0.1336, 0.3], 200, 0.1),  # safe, and two that are not
        ([0.05, 0.55, 0.4], [0.9, 0.0275, 0.1], 150, 0.1),  # the second by little, by its first
        ([0.3, 0.6, *[0.01] * 10], [0.05, 0.1255, *[0.3] * 10], 100, 0.1),  # few or more, by chance
        ([0.04] * 25, [0.02] * 12 + [0.18] * 13, 120, 0.1),  # in between: both ways
    ],
)
def test_what_is_promised_of_few_values_holds(shares, rates, count, target):
    """A right rule fails once in 10,000 runs: of 1,500 sets, and the deviation of such a share."""
    rng, sets, exceeded = np.random.default_rng(11), 1500, 0
    risks = np.cumsum(np.multiply(shares, rates)) / np.cumsum(shares)
    assert np.any(risks > target)
    for _ in range(sets):
        sums, values = drawn_sums(rng, np.array(shares) / np.sum(shares), rates, count)
        level = METHODS["auto"](sums, target, DELTA)
        exceeded += level is not None and risks[values[level]] > target
    assert exceeded / sets <= stats.binom.ppf(1 - 1e-4, sets, DELTA) / sets
    if len(rates) == 3 and rates[0] == rates[1]:
        assert exceeded / sets > 0.015  # it spends its error: a rule that refuses holds, too


@pytest.mark.parametrize("cells, count", [(3, 300), (8, 300), (30, 300), (3, 20_000), (30, 20_000)])
def test_safe_levels_are_those_that_the_rule_goes_to(cells, count):
    rng, found, target = np.random.default_rng(cells), [], 0.1
    rates = np.linspace(0.02, 0.2, cells)
    for _ in range(40):
        sums, _ = drawn_sums(rng, np.full(cells, 1 / cells), rates, count)
        whole, some, delta = _guarantees.ways(sums, target, DELTA)
        assert some and whole == (cells == 30) and delta < DELTA
        level = METHODS["auto"](sums, target, DELTA)
        safe = np.flatnonzero(_guarantees.safe_levels(sums, target, DELTA, None))
        assert level == (safe[-1] if len(safe) else None)
        if whole:
            ways = [_guarantees._last_of_walk(sums, target, delta)]
            ways += [_guarantees._last_without_some(sums, target, delta)]
            assert level == (None if None in ways else min(ways))
        found.append(level)
    assert sum(level is not None for level in found) > 10
