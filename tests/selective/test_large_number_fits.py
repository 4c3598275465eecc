"""Fits to many numbers: what is read in blocks is that of the whole, in few copies, by no clock."""

import tracemalloc

import numpy as np
import pytest

from tfuq.predictive import RegressionUncertainty
from tfuq.selective import RejectionRule, UnattainableRisk, _number_reading


def numbers(count):
    rng = np.random.default_rng(0)
    params = np.stack([rng.normal(size=count), rng.uniform(0.1, 3, size=count)], -1)
    params = params.astype("float32")[None]
    y = params[0, :, 0] + params[0, :, 1] * rng.normal(size=count)
    return RegressionUncertainty(params, "normal"), y


def capped(mean, y):
    return np.minimum(np.abs(mean - y) / 5, 1)


@pytest.mark.parametrize("options", [{"target_risk": 0.2}, {"target_coverage": 0.5}])
@pytest.mark.parametrize("loss", ["error", capped])
def test_rows_in_blocks_are_those_of_the_whole(loss, options, monkeypatch):
    found, y = numbers(3000)
    expected = RejectionRule.fit(found, y, loss=loss, tolerance=1.0, **options)
    monkeypatch.setattr(_number_reading, "ROWS", 7)
    again = RejectionRule.fit(found[:], y, loss=loss, tolerance=1.0, **options)
    assert again.get_config() == expected.get_config()
    assert expected.evaluate(found, y, loss=loss) == again.evaluate(found[:], y[:, None], loss=loss)


@pytest.mark.slow_cases("1e-06")
@pytest.mark.parametrize("target", [0.1, 1e-6])
def test_a_rule_takes_no_more_than_three_times_the_arrays(target, monkeypatch):
    monkeypatch.setattr(_number_reading, "ROWS", 2**12)
    found, y = numbers(1_000_000)  # beside which what is of one size for all is little
    tracemalloc.start()
    try:
        RejectionRule.fit(found, y, tolerance=1.0, target_risk=target)
    except UnattainableRisk:
        assert target < 1e-3
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most <= 3 * (found.params.nbytes + y.nbytes)
    assert "_moments" not in vars(found)  # which would stay, another 24 bytes a number
