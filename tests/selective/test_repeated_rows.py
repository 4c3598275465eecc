"""Examples that are in the data several times."""

import numpy as np
import pytest

from tfuq.predictive import RegressionUncertainty
from tfuq.selective import (
    ConformalPredictor,
    ConformalRegressor,
    MaskRiskControl,
    RejectionRule,
)
from tfuq.selective._repeated_rows import LEAST, times_repeated

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(3), size=200).astype("float32")
LABELS = np.array([RNG.choice(3, p=p / p.sum()) for p in PROBS.astype("float64")])
SCALE = RNG.uniform(0.1, 3, size=200)
Y = SCALE * RNG.normal(size=200)
MASK = RNG.random((50, 4, 4)).astype("float32")
FITS = {
    "rule": lambda p, y: RejectionRule.fit(p, y, target_risk=0.6),
    "rule of a given score": lambda p, y: RejectionRule.fit(
        p, y, target_risk=0.6, score=1 - p.max(-1)
    ),
    "evaluation": lambda p, y: RejectionRule("confidence", 0.5).evaluate(p, y),
    "sets": lambda p, y: ConformalPredictor.fit(p, y, alpha=0.1),
}
OF_NUMBERS = {
    "rule": lambda found, y: RejectionRule.fit(found, y, target_risk=0.6, tolerance=1.0),
    "intervals": lambda found, y: ConformalRegressor.fit(found, y, alpha=0.1),
}


def normal(rows):
    return RegressionUncertainty(np.stack([0 * SCALE, SCALE], -1)[None, rows], "normal")


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("times", [2, 5])
def test_rows_that_are_all_there_several_times_are_told(name, times):
    rows = RNG.permutation(np.tile(np.arange(200), times))
    with pytest.warns(UserWarning, match=f"is there {times} times"):
        FITS[name](PROBS[rows], LABELS[rows])


@pytest.mark.parametrize("name", FITS)
def test_rows_that_are_there_once_pass(name):
    FITS[name](PROBS, LABELS)  # warnings are errors here


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_rows_of_numbers(name):
    OF_NUMBERS[name](normal(np.arange(200)), Y)
    rows = np.r_[np.arange(200), np.arange(200)]
    with pytest.warns(UserWarning, match="is there 2 times"):
        OF_NUMBERS[name](normal(rows), Y[rows])


def test_masks():
    MaskRiskControl.fit(MASK, MASK > 0.5)
    with pytest.warns(UserWarning, match="is there 3 times"):
        MaskRiskControl.fit(np.tile(MASK, (3, 1, 1)), np.tile(MASK > 0.5, (3, 1, 1)))


def test_a_class_that_was_made_larger_is_told():
    """A rare class is often given several times in training; a promise must not count it so."""
    rows = np.r_[np.flatnonzero(LABELS != 2), np.repeat(np.flatnonzero(LABELS == 2), 4)]
    assert times_repeated(PROBS[rows].max(-1), LABELS[rows]) == 4


@pytest.mark.parametrize("levels", [3, LEAST - 1, 300])
def test_scores_of_few_values_are_no_repetition(levels):
    """Of k different rows all come in twos with a probability of about 2^-k, at most 2^-31 here."""
    scores = RNG.integers(levels, size=5000) / levels
    assert times_repeated(scores, RNG.integers(2, size=5000)) == 1


def test_few_rows_are_not_judged():
    assert times_repeated(np.tile(np.arange(LEAST - 1.0), 2), np.zeros(2 * LEAST - 2)) == 1


def test_a_sample_of_many_rows_tells_it():
    scores = RNG.random(200_000)
    assert times_repeated(np.r_[scores, scores], np.zeros(400_000)) == 2
    assert times_repeated(np.r_[scores, scores[1:], [2.0]], np.zeros(400_000)) in (1, 2)
    assert times_repeated(RNG.random(400_000), np.zeros(400_000)) == 1


def test_padding_that_counts_nowhere_may_repeat():
    """A last batch is often filled with rows that it has, at a weight of 0."""
    rows, weight = np.tile(np.arange(200), 2), np.repeat([1.0, 0.0], 200)
    given = PROBS[rows], LABELS[rows]
    rule = RejectionRule.fit(*given, target_risk=0.6, sample_weight=weight)
    assert rule.evaluate(*given, sample_weight=weight).examples == 200


def test_several_losses_tell_it_once():
    rows = np.tile(np.arange(200), 2)
    with pytest.warns(UserWarning, match="is there 2 times") as told:
        RejectionRule.fit(PROBS[rows], LABELS[rows], loss=[("error", 0.6), (1 - np.eye(3), 0.6)])
    assert len(told) == 1
