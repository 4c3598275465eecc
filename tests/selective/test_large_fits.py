"""Fits to many rows: how often they look at all of them, and how much memory that takes.

Nothing here depends on time: passes and tests are counted, and copies weighed by `tracemalloc`.
"""

import tracemalloc

import numpy as np
import pytest

from tfuq._predictions import examples
from tfuq.selective import (
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    UnattainableRisk,
    VectorScaling,
    _attainable,
    _calibration,
    _flat_walk,
    _guarantees,
    _rule_reading,
    _scaling,
    _sorted_sums,
)

RNG = np.random.default_rng(0)


def predictions(count, classes=10, sharpness=2.0):
    """Probabilities and labels that are right less often than the former say."""
    logits = RNG.normal(size=(count, classes))
    gumbel = RNG.gumbel(size=(count, classes))
    probs = np.exp(sharpness * logits)
    return probs / probs.sum(-1, keepdims=True), (logits + gumbel).argmax(-1)


def peak(call):
    """Bytes that a call has at most, besides what was there before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
        best, level = _attainable.best_promise(sums, 0.1, "ltt")
        by_loop = _guarantees.smallest_where(
            lambda risk, sums=sums: plainly_tested(sums, risk, 0.1) is not None, 25
        )
        assert best == by_loop
        assert level == (plainly_tested(sums, best, 0.1) if best < 1 else None)
    few = _guarantees.Sums(np.array([3]), np.array([0.0]), True)  # too few to start anywhere
    assert _guarantees.learn_then_test(few, 0.01, 0.1) is None
    assert len(found) > (1 if kind == "images" else 5)


@pytest.mark.parametrize("method", ["auto", "ltt", "sgr"])
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


@pytest.mark.parametrize("kind", ["column", "classes", "by class", "misses", "scores", "pixels"])
def test_rules_of_blocks_are_those_of_the_whole(kind, monkeypatch):
    rng = np.random.default_rng(3)
    probs, labels, options = *predictions(4000, 3), {"target_risk": 0.3}
    if kind == "column":
        probs, labels = 0.5 + 0.5 * rng.random(4000), (rng.random(4000) < 0.9).astype(int)
    elif kind == "by class":
        options |= {"by": "class", "simultaneous": True}
    elif kind == "misses":
        options |= {"loss": "false_negative", "positive_class": 2}
    elif kind == "scores":
        options |= {"score": rng.normal(size=4000) - 9 * probs.max(-1)}
    elif kind == "pixels":
        probs, labels = probs.reshape(400, 10, 3), labels.reshape(400, 10)
        options["target_risk"] = 0.6
    expected = RejectionRule.fit(probs, labels, **options)
    monkeypatch.setattr(_rule_reading, "BLOCK", 300)
    found = RejectionRule.fit(probs, labels, **options)
    assert found.get_config() == expected.get_config()
    assert found.fitted_to["accepted"] > 0
    if kind == "classes":
        told = found.evaluate(probs, labels)
        monkeypatch.setattr(_rule_reading, "BLOCK", 10**6)
        assert told == found.evaluate(probs, labels)


def test_faults_of_blocks_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(_rule_reading, "BLOCK", 300)
    probs, labels = predictions(1000, 3)
    with pytest.raises(ValueError, match="at example 700"):
        RejectionRule.fit(probs, np.where(np.arange(1000) == 700, 5, labels), target_risk=0.3)
    with pytest.raises(ValueError, match="`positive_class` must be a class that the labels hold"):
        few = np.where(labels == 2, 1, labels)
        misses = {"loss": "false_negative", "positive_class": 2}
        RejectionRule.fit(probs, few, target_risk=0.3, **misses)


@pytest.mark.parametrize("some", [False, True])
def test_packed_entries_sum_up_as_sorted_ones(some, monkeypatch):
    monkeypatch.setattr(_sorted_sums, "BLOCK", 64)
    for count in (1, 63, 64, 65, 500):
        for score in (RNG.normal(size=count), np.round(RNG.normal(size=count)) * 0.5):
            score, loss = score.astype("float32"), RNG.random(count) < 0.4
            counts = RNG.random(count) < 0.7 if some else np.ones(count, bool)
            for sign in (-1, 1):
                found = _sorted_sums.sorted_sums(score, counts, loss, sign)
                plain = score.astype("float64"), counts, loss * 1.0, sign
                for one, other in zip(found, _sorted_sums.sorted_sums(*plain), strict=True):
                    np.testing.assert_array_equal(one, other)
                assert (found[1] is found[2]) == counts.all()


@pytest.mark.slow
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("target", [0.2, 0.0001])
def test_a_rule_takes_no_more_than_three_times_the_column(target, monkeypatch):
    for module in (_rule_reading, _sorted_sums):
        monkeypatch.setattr(module, "BLOCK", 2**12)
    monkeypatch.setattr(_flat_walk, "SOME_LEVELS", 16)
    monkeypatch.setattr(_guarantees, "MOST_BLOCK", 2**12)
    probs = 0.5 + 0.5 * RNG.random(200_000)
    labels = (RNG.random(200_000) < probs**0.5).astype(int)

    def fit():
        try:
            RejectionRule.fit(probs, labels, target_risk=target)
        except UnattainableRisk:
            assert target < 0.1

    fit()  # what is computed once, of the number of rows
    assert peak(fit) <= 3 * probs.nbytes


# --- Calibrations -----------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    for module in (examples, _scaling, _calibration):
        monkeypatch.setattr(module, "BLOCK", 2**13)


def fits(calibration):
    probs, labels = predictions(3000)
    weight = RNG.integers(0, 3, 3000)
    yield calibration(), (probs, labels)
    yield calibration(), (probs, labels, weight)
    yield calibration(from_logits=True), (np.log(probs) + 3, labels)
    yield calibration(), (np.repeat(probs[:, 0], 10), np.repeat(labels == 0, 10))
    yield calibration(), (probs[:, :1].repeat(10, axis=0), np.repeat(labels == 0, 10))
    yield calibration(multi_label=True), (probs, labels[:, None] == np.arange(10))
    pixels = probs.reshape(60, 50, 10), labels.reshape(60, 50)
    yield calibration(), pixels


@pytest.mark.slow_cases("VectorScaling", "IsotonicCalibration")
@pytest.mark.parametrize("kind", [TemperatureScaling, VectorScaling, IsotonicCalibration])
def test_fits_in_blocks_are_those_of_the_whole(kind, monkeypatch):
    for (scaling, data), (again, _) in zip(fits(kind), fits(kind), strict=True):
        expected = scaling.fit(*data)
        with monkeypatch.context() as changed:
            for module in (examples, _scaling, _calibration):
                changed.setattr(module, "BLOCK", 2**12)
            found = again.fit(*data)
        for name in kind._parameters:
            one, other = getattr(found, name), getattr(expected, name)
            one, other = (np.hstack(x) if isinstance(x, list) else x for x in (one, other))
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
        assert found.rank == expected.rank
        assert found.fitted_to["examples"] == expected.fitted_to["examples"]
        # That of the rows, too, where rounding has moved none over an edge of its steps.
        assert found.fitted_to["rows"].split("-")[0] == expected.fitted_to["rows"].split("-")[0]


def test_a_temperature_for_many_takes_few_passes(small_blocks, monkeypatch):
    probs, labels = predictions(20_000)
    expected = _scaling.fit_temperature(np.log(probs)[None], labels, np.full(20_000, 1 / 20_000))
    passes = []
    derivatives = _scaling._derivatives
    monkeypatch.setattr(_scaling, "FIRST_ROWS", 500)
    monkeypatch.setattr(
        _scaling, "_derivatives", lambda *args: (passes.append(1), derivatives(*args))[1]
    )
    found = TemperatureScaling().fit(probs, labels).temperature
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert 2 <= len(passes) <= 5


@pytest.mark.parametrize("mistake", ["all right", "by chance", "flat", "rare"])
def test_temperatures_at_the_ends_of_what_is_allowed(mistake, small_blocks, monkeypatch):
    """Where Newton's method leaves the range, and where the first rows tell nothing."""
    monkeypatch.setattr(_scaling, "FIRST_ROWS", 50)
    probs, labels = predictions(2000)
    if mistake == "all right":
        labels = probs.argmax(-1)
    elif mistake == "by chance":
        labels = probs.argmin(-1)
    elif mistake == "flat":
        probs = np.full_like(probs, 0.1)
    else:
        labels = np.where(np.arange(2000) % 40 == 0, probs.argmax(-1), labels)
    whole = _scaling.fit_temperature(np.log(probs)[None], labels, np.full(2000, 1 / 2000))
    data = _scaling.Entries(
        np.log(probs)[None], labels, np.full(2000, 1 / 2000), 0 * labels, 1, False
    )
    np.testing.assert_allclose(_scaling.temperature_of(data), whole, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_temperature_takes_no_more_than_three_times_the_array(dtype, monkeypatch):
    for module in (examples, _scaling, _calibration):
        monkeypatch.setattr(module, "BLOCK", 2**13)
    monkeypatch.setattr(_scaling, "FIRST_ROWS", 500)  # a share of many rows as small as in use
    probs, labels = predictions(100_000)
    probs = probs.astype(dtype)
    scaling = TemperatureScaling()
    assert peak(lambda: scaling.fit(probs, labels)) <= 3 * probs.nbytes


def test_faults_are_named_by_their_place_in_the_whole(small_blocks):
    probs, labels = predictions(3000)
    probs[2500, 3] = np.nan
    with pytest.raises(ValueError, match=r"(?s)Argument `probs` must .*at example 2500"):
        TemperatureScaling().fit(probs, labels)
