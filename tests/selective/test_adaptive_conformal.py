"""Adaptive conformal intervals: the bound on misses holds for any series."""

import numpy as np
import pytest

from tfuq.predictive import RegressionUncertainty
from tfuq.selective import AdaptiveConformal

STEPS = 4000


def series(kind):
    rng = np.random.default_rng(3)
    time, noise = np.arange(STEPS), rng.normal(size=STEPS)
    mean = np.sin(time / 50)
    scales = {
        "steady": np.ones(STEPS),
        "drifting": np.exp(np.cumsum(0.02 * rng.normal(size=STEPS))),
        "shocks": np.where(time // 500 % 2, 20.0, 1.0),
        "growing": 1.01**time,
    }
    return mean, mean + scales[kind] * noise


@pytest.mark.parametrize("kind", ["steady", "drifting", "shocks", "growing"])
def test_misses_stay_within_the_bound(kind):
    mean, y = series(kind)
    sets = AdaptiveConformal(0.1, 0.02, window=200)
    lower, upper = sets.run(mean, y)
    missed = (y < lower[:, 0]) | (y > upper[:, 0])
    assert sets.misses == missed.sum() and sets.steps == STEPS
    assert abs(sets.miscoverage - 0.1) <= sets.bound < 0.02
    for end in (500, 1000, 2000):  # at every time, not at the last
        assert abs(missed[:end].mean() - 0.1) <= (0.9 + 0.02) / (0.02 * end)


@pytest.mark.slow_cases("100", "1000")
@pytest.mark.parametrize("n", [20, 100, 1000])
def test_each_of_two_thousand_series_keeps_the_bound(n):
    """Series that drift, each with another scale: |misses / n - alpha| <= (0.9 + step) / (step n).

    It follows from the level, which moves by step * (alpha - miss) and stays in [-step, 1 + step]:
    no chance is in it, and no series may fail.
    """
    rng, alpha, step = np.random.default_rng(4), 0.1, 0.1
    drift = np.exp(np.cumsum(0.1 * rng.normal(size=(2000, n)), axis=1))
    rates = []
    for y in drift * rng.normal(size=drift.shape):
        sets = AdaptiveConformal(alpha, step, window=100)
        lower, upper = sets.run(np.zeros(n), y)
        missed = int(np.sum((y < lower[:, 0]) | (y > upper[:, 0])))
        assert sets.misses == missed and -step <= sets.level <= 1 + step
        np.testing.assert_allclose(sets.level, alpha + step * (n * alpha - missed), atol=1e-9)
        rates.append(missed / n)
    assert np.abs(np.array(rates) - alpha).max() <= (0.9 + step) / (step * n) + 1e-9
    # Over the series: (alpha - E level) / (step n), of which the level's part is a few steps.
    assert abs(np.mean(rates) - alpha) <= 0.5 / (step * n)


def test_without_steps_it_does_not_hold():
    """A window alone lags behind what grows: the table above can tell."""
    mean, y = series("growing")
    sets = AdaptiveConformal(0.1, 0, window=1000)
    sets.run(mean, y)
    assert sets.miscoverage > 0.15 and sets.bound == np.inf


def test_the_threshold_is_that_of_a_plain_sort():
    mean, y = series("drifting")
    sets, scores, level = AdaptiveConformal(0.1, 0.02, window=50), [], 0.1
    lower, upper = sets.run(mean[:300], y[:300])
    for t in range(300):
        rank = int(np.ceil((len(scores) + 1) * (1 - level) - 1e-9))
        limit = np.sort(scores)[rank - 1] if 0 < rank <= len(scores) else np.inf
        np.testing.assert_allclose(upper[t, 0], mean[t] + limit)
        missed = not lower[t, 0] <= y[t] <= upper[t, 0]
        level += 0.02 * (0.1 - missed)
        scores = [*scores, abs(y[t] - mean[t])][-50:]
    np.testing.assert_allclose(sets.level, level)


def test_one_step_at_a_time_and_from_a_file(tmp_path):
    mean, y = series("drifting")
    lower, upper = AdaptiveConformal(0.1, 0.02, window=50).run(mean[:120], y[:120])
    sets = AdaptiveConformal(0.1, 0.02, window=50)
    for t in range(120):
        assert sets.interval(mean[t]) == (lower[t, 0], upper[t, 0])
        if t % 40 == 3:  # between an interval and its label
            sets.save(tmp_path / "state.json")
            sets = AdaptiveConformal.load(tmp_path / "state.json")
        sets.update(y[t])


def test_scales_of_predictions_serve():
    mean, y = series("shocks")
    scale = np.abs(y - mean).clip(0.1)
    found = RegressionUncertainty(np.stack([mean, scale], -1)[None], "normal")
    sets = AdaptiveConformal(0.1, 0.02, method="normalized")
    lower, upper = sets.run(found, y)
    assert abs(sets.miscoverage - 0.1) <= sets.bound
    again = AdaptiveConformal(0.1, 0.02, method="normalized")
    again.run(found[:-1], y[:-1])
    np.testing.assert_allclose(again.interval(found[-1]), (lower[-1, 0], upper[-1, 0]))


def test_what_is_not_known_teaches_nothing():
    sets = AdaptiveConformal()
    sets.run(np.zeros(100), np.linspace(-1, 1, 100))
    before = sets.to_json()
    assert sets.interval(np.nan) == (-np.inf, np.inf)
    sets.update(3.0)
    sets.interval(0.0)
    sets.update(np.nan)
    assert sets.to_json() == before


def test_misuse(counts):
    sets = AdaptiveConformal()
    sets.interval(0.0)
    for call in (
        lambda: sets.interval(1.0),  # without a label of the last
        lambda: sets.run([0.0], [1.0]),
        lambda: AdaptiveConformal().update(1.0),
        lambda: AdaptiveConformal().interval([1.0, 2.0]),
        lambda: AdaptiveConformal().interval("high"),
        lambda: AdaptiveConformal().run(np.zeros((5, 2)), np.zeros((5, 2))),
        lambda: AdaptiveConformal().run(np.zeros(5), np.zeros(4)),
        lambda: AdaptiveConformal(method="normalized").interval(1.0),
        lambda: AdaptiveConformal(alpha=1.5),
        lambda: AdaptiveConformal(step_size=-1),
        lambda: AdaptiveConformal(pending=[1.0]),
    ):
        with pytest.raises(ValueError, match=r"(must|Call).*Received"):
            call()
        counts("misuse rows, refused")
