"""Fits to many rows: how often they look at all of them, which is counted, not timed."""

import numpy as np
import pytest

from tfuq.selective import RejectionRule, UnattainableRisk, _guarantees

RNG = np.random.default_rng(0)


# --- Rules ------------------------------------------------------------------------------------


def plainly_tested(sums, risk, delta):
    """The procedure as it is told: every level in turn."""
    starts, size = sums.starts(risk, delta), sums.loss.shape[-1]
    if not len(starts):
        return None
    shares = np.bincount(starts, minlength=size) * (delta / len(starts))
    budget, last = 0.0, None
    for level, p_value in enumerate(sums.p_values(risk, np.arange(size))):
        budget += shares[level]
        passes = budget and p_value <= budget * (1 + 1e-12)
        last, budget = (level, budget) if passes else (last, 0.0)
    return last


def some_sums(kind, seed):
    rng = np.random.default_rng(seed)
    if kind == "images":
        accepted = np.minimum(rng.random((80, 60)).cumsum(axis=1) / 20, 1)
        share = rng.random((80, 1)) * np.linspace(0, rng.choice([0.1, 0.6]), 60)
        return _guarantees.ImageSums(accepted, accepted * share)
    wrong = rng.random(700) < np.linspace(0.0, rng.choice([0.1, 0.4]), 700)
    loss = wrong if kind == "binary" else wrong * rng.random(700)
    accepted = np.cumsum(rng.integers(1, 3, 700))
    return _guarantees.Sums(accepted, np.cumsum(1.0 * loss), kind == "binary")


@pytest.mark.parametrize("kind", ["binary", "real", "images"])
def test_levels_in_blocks_are_those_of_a_plain_loop(kind, monkeypatch):
    monkeypatch.setattr(_guarantees, "LEAST_BLOCK", 4)
    found = set()
    for seed in range(12):
        sums = some_sums(kind, seed)
        for risk in (0.01, 0.05, 0.1, 0.3):
            expected = plainly_tested(sums, risk, 0.1)
            assert _guarantees.learn_then_test(sums, risk, 0.1) == expected
            found.add(expected)
        best, level = _guarantees.best_promise(sums, 0.1, "ltt")
        by_loop = _guarantees.smallest_where(
            lambda risk, sums=sums: plainly_tested(sums, risk, 0.1) is not None, 25
        )
        assert best == by_loop
        assert level == (plainly_tested(sums, best, 0.1) if best < 1 else None)
    few = _guarantees.Sums(np.array([3]), np.array([0.0]), True)  # too few to start anywhere
    assert _guarantees.learn_then_test(few, 0.01, 0.1) is None
    assert len(found) > (1 if kind == "images" else 5)


@pytest.mark.parametrize("method", ["ltt", "sgr"])
def test_an_unattainable_target_takes_few_tests(method, monkeypatch):
    """The lowest risk that can be promised was found by 26 passes over all thresholds."""
    tested, count = [], 100_000

    def p_values(errors, n, risk):
        tested.append(np.size(errors))
        return _binomial(errors, n, risk)

    _binomial = _guarantees.binomial_p_value
    monkeypatch.setattr(_guarantees, "binomial_p_value", p_values)
    probs = 0.5 + 0.5 * RNG.random(count)
    labels = (RNG.random(count) < 0.7).astype(int)
    with pytest.raises(UnattainableRisk) as refusal:
        RejectionRule.fit(probs, labels, target_risk=0.001, method=method)
    assert 0.25 < refusal.value.best_risk < 0.5 and refusal.value.coverage > 0
    assert sum(tested) <= 2.1 * count
