"""Several promises of few examples: one chain, in which each has the whole error."""

import numpy as np
import pytest
from scipy import stats

from tfuq.selective import RejectionRule, UnattainableRisk
from tfuq.selective._guarantees import fewest_examples
from tfuq.selective._joint_chain import MOST_TIMES, first_failure, last_of_chain, start_of_chain
from tfuq.selective._joint_fitting import last_of_all, of_single
from tfuq.selective._losses import Loss, Promise
from tfuq.selective._rule_fitting import Read

DELTA = 0.05
SCORED = RejectionRule("given", 0.0)  # less is more trusted


def promises_of(*risks):
    return [Promise(Loss("error"), risk) for risk in risks]


def reads_of(score, losses, counts=None):
    n = len(score)
    counts = np.ones(n, bool) if counts is None else counts
    labels = np.zeros(n, int)
    return [Read(score, loss.astype(float), counts, loss == 0, labels, labels, n, 2, True)
            for loss in losses]  # fmt: skip


def chain(score, losses, risks, shared=False):
    """The threshold of the chain, or of the method that shares the error out; None if none."""
    reads, promises = reads_of(score, losses), promises_of(*risks)
    values, _, levels = of_single(SCORED, reads, None, -1)
    if shared:
        index = last_of_all(levels, promises, DELTA / len(promises))
    else:
        start = start_of_chain(reads, promises, None, DELTA)
        index = last_of_chain(levels, reads, promises, None, -1, start, DELTA)
    return None if index is None else values[index]


def test_the_chain_goes_on_while_every_test_passes():
    rng, ends = np.random.default_rng(0), set()
    for _ in range(200):
        loss = rng.random(100) < rng.choice([0.01, 0.03, 0.06])
        counts, errors = np.arange(1, 101), np.cumsum(loss)
        passes = stats.binom.cdf(errors, counts, 0.1) <= DELTA
        expected = next((m for m in range(29, 101) if not passes[m - 1]), 101)
        assert first_failure(loss, 0.1, 29, DELTA) == expected
        ends.add(expected)
    assert {29, 101} < ends


def test_levels_are_whole_and_hold_one_example_more_than_the_fewest():
    score, right = np.arange(100.0), np.zeros((2, 100))
    assert chain(score, right, (0.1, 0.1)) == 99
    one = right.copy()
    one[1, 60] = 1  # 61 with 1 wrong: a p-value of .013; of the 29th, of .2
    assert chain(score, one, (0.1, 0.1)) == 99
    one[:] = 0
    one[0, 29] = 1
    assert chain(score, one, (0.1, 0.1)) is None  # 29 pass, 30 do not
    one[0, 29], one[0, 30] = 0, 1
    assert chain(score, one, (0.1, 0.1)) == 29
    assert chain(score[:29], right[:, :29], (0.1, 0.1)) is None
    assert chain(score[:30], right[:, :30], (0.1, 0.1)) == 29
    assert chain(score // 50, right, (0.1, 0.1)) == 1
    last = np.where(np.arange(100) >= 90, 1, right)
    assert chain(score // 50, last, (0.1, 0.1)) == 0


def test_the_order_of_rows_is_nothing():
    rng = np.random.default_rng(1)
    for _ in range(20):
        score, losses = rng.integers(6, size=90), rng.random((2, 90)) < 0.03
        order = rng.permutation(90)
        found = chain(score, losses, (0.1, 0.1))
        assert found == chain(score[order], losses[:, order], (0.1, 0.1))


def waves(u):
    """Which promise is broken changes on the way, and between them neither is."""
    rates = np.array([[0.02, 0.2, 0.05, 0.05, 0.12, 0.3], [0.1, 0.03, 0.05, 0.2, 0.14, 0.3]])
    return rates[:, np.minimum((6 * u).astype(int), 5)]


def soon(u):
    """The first promise is broken from the start on, just; the second never is."""
    return np.stack([np.full_like(u, 0.1001), np.full_like(u, 0.01)])


def late(u):
    """Nothing is wrong at first; then the one or the other."""
    return np.stack([np.where(u < 0.4, 0, 0.3), np.where(u < 0.35, 0, 0.25)])


def both(u):
    return np.full((2, len(u)), 0.1001)


@pytest.mark.slow_product
@pytest.mark.parametrize("cells", [None, 7])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("world", [waves, soon, late, both])
def test_violations(world, nested, cells):
    """1,000 sets each, whose true risks are known: a right method fails once in 10,000."""
    middles = (np.arange(7000) + 0.5) / 7000
    rates = world(middles)
    if cells:  # ties whose risk is that of all in them
        rates = np.repeat(rates.reshape(2, cells, -1).mean(axis=2), 1000, axis=1)
    risks = np.cumsum(rates, axis=1) / np.arange(1, 7001)
    rng, broken, found, sets = np.random.default_rng([2, nested]), 0, 0, 1000
    for _ in range(sets):
        place = rng.integers(7000, size=95)
        drawn = rng.random((1 if nested else 2, 95))
        score = place // (7000 // cells) if cells else middles[place]
        threshold = chain(score.astype(float), drawn < rates[:, place], (0.1, 0.1))
        if threshold is not None:
            found += 1
            last = int((threshold + 1) * (7000 // cells)) - 1 if cells else int(threshold * 7000)
            broken += np.any(risks[:, last] > 0.1)
    assert broken <= stats.binom.ppf(1 - 1e-4, sets, DELTA)
    if world in (soon, both):
        assert broken == found  # of what is broken everywhere
    else:
        assert found > broken


def test_it_is_taken_of_few_examples_that_all_promises_are_of():
    score, losses = np.arange(300.0), np.zeros((2, 300))
    promises, fewest = promises_of(0.1, 0.05), fewest_examples(0.05, DELTA)
    assert fewest == 59

    def start(n, counts=None, binary=True):
        reads = [read._replace(binary=binary) for read in reads_of(score[:n], losses[:, :n])]
        if counts is not None:
            reads[1] = reads[1]._replace(counts=counts)
        return start_of_chain(reads, promises, None, DELTA)

    most = int(MOST_TIMES * fewest)
    assert start(40) == start(most) == 59 and start(most + 1) is None
    assert start(100, np.arange(100) < 90) is None
    assert start(100, binary=False) is None


def test_few_examples_are_accepted_where_the_error_shared_out_accepts_none():
    """Of 60 examples at 10 %: the chain needs 30 without an error, a half of the error 36."""
    accepted = np.zeros(2)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        score = rng.random(60)
        losses = rng.random((2, 60)) < 0.06 * score
        for method in (0, 1):
            threshold = chain(score, losses, (0.1, 0.1), shared=bool(method))
            accepted[method] += 0 if threshold is None else np.mean(score <= threshold)
    assert accepted[0] > 1.3 * accepted[1] > 5


def test_rules_keep_both_promises_by_this_chain():
    rng = np.random.default_rng(4)
    probs = np.stack([p := rng.uniform(0.5, 1, 60), 1 - p], -1)
    labels = (rng.random(60) < 0.06 * (2 - 2 * p)).astype(int)
    severe = np.array([[0, 0], [1, 0]])  # an answer of 0 where 1 is true
    rule = RejectionRule.fit(probs, labels, loss=[("error", 0.1), (severe, 0.1)])
    wrong = (labels == 1).astype(float)
    threshold = chain(-p, np.stack([wrong, wrong]), (0.1, 0.1))
    assert -rule.threshold == pytest.approx(threshold, abs=1e-6)
    assert [each["risk_bound"] for each in rule.fitted_to["losses"]] == [0.1, 0.1]


def test_a_refusal_names_the_fewest_of_the_chain():
    probs = np.tile([0.9, 0.1], (25, 1))
    severe = [[0, 0], [1, 0]]
    with pytest.raises(UnattainableRisk, match="at least 30 are needed") as refusal:
        RejectionRule.fit(probs, np.zeros(25, int), loss=[("error", 0.1), (severe, 0.1)])
    assert refusal.value.examples_needed == 30
