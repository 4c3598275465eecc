"""Deferral and cascades of predicted numbers, against loops over examples; bad input."""

import numpy as np
import pytest

from tfuq.predictive import RegressionUncertainty
from tfuq.selective import (
    ConformalRegressor,
    RegressionRule,
    RejectionRule,
    cascade,
    simulate_deferral,
)

RNG = np.random.default_rng(0)
N, TOLERANCE = 80, 1.0
SCALE = RNG.uniform(0.1, 3, size=N)
MEAN = RNG.normal(size=N)
Y = MEAN + SCALE * RNG.normal(size=N)
ANSWERS = Y + 0.8 * RNG.normal(size=N)
WEIGHT = RNG.integers(0, 3, size=N).astype(float)


def numbers(mean=MEAN, scale=SCALE, draws=1):
    return RegressionUncertainty(np.stack([np.stack([mean, scale], -1)] * draws), "normal")


FOUND = numbers()
RULE = RegressionRule("std", 1.2, tolerance=TOLERANCE)
simulate = simulate_deferral


def squared(answers, y):
    return np.square(answers - y)


def by_hand(accepted, expert_right, expert_paid, paid, weight):
    right = np.abs(MEAN - Y) <= TOLERANCE

    def mean(values, kept):
        return np.average(values[kept], weights=weight[kept]) if weight[kept].any() else np.nan

    every = np.ones(N, bool)
    return (
        mean(accepted.astype(float), every),
        mean(right, accepted),
        mean(expert_right, ~accepted),
        mean(np.where(accepted, right, expert_right), every),
        mean(paid, accepted),
        mean(expert_paid, ~accepted),
        mean(np.where(accepted, paid, expert_paid), every),
    )


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("error", ["a number", "a function"])
@pytest.mark.parametrize("expert", ["an accuracy", "answers"])
def test_figures_are_means_over_examples(expert, error, weight):
    wrong = np.abs(MEAN - Y) > TOLERANCE
    right = np.abs(ANSWERS - Y) <= TOLERANCE
    costs = {"error": 5.0, "rejection": 0.5, "review": 0.25}
    paid, asked = 5.0 * wrong, 5.0 * ~right + 0.75
    if error == "a function":
        if expert == "an accuracy":
            return  # which does not say how far off the expert is
        costs["error"] = squared
        paid, asked = squared(MEAN, Y), squared(ANSWERS, Y) + 0.75
    given = ANSWERS
    if expert == "an accuracy":
        given, right, asked = 0.8, np.full(N, 0.8), np.full(N, 0.2 * 5.0 + 0.75)
    team = simulate(RULE, FOUND, Y, expert=given, costs=costs, sample_weight=weight)
    used = np.ones(N) if weight is None else weight
    assert len(team.threshold) == len(np.unique(SCALE[used > 0])) + 1
    for threshold, *fields in zip(*team[:8], strict=True):
        accepted = np.float32(threshold) >= SCALE.astype("float32")
        expected = by_hand(accepted, right, asked, paid, used)
        np.testing.assert_allclose(fields, expected, rtol=1e-9, atol=1e-12)
    expected = by_hand(SCALE.astype("float32") <= np.float32(1.2), right, asked, paid, used)
    np.testing.assert_allclose(team.own[1:], expected, rtol=1e-9)
    assert team.own.threshold == 1.2 and "the rule" in team.to_markdown()


def test_ways_to_say_the_same():
    expected = simulate(RULE, FOUND, Y, expert=0.9)
    again = [
        simulate(1.2, FOUND, Y[:, None], expert=0.9, tolerance=TOLERANCE),
        simulate(1.2, FOUND, Y, expert=0.9, score="std", tolerance=TOLERANCE),
        simulate(RULE, FOUND, Y, expert=0.9, tolerance=TOLERANCE),
    ]
    for other in again:
        np.testing.assert_array_equal(other.team_cost, expected.team_cost)
        assert other.own == expected.own
    column = simulate(RULE, FOUND, Y, expert=ANSWERS[:, None]).own
    assert column == simulate(RULE, FOUND, Y, expert=ANSWERS).own
    none = simulate(None, FOUND, Y, expert=0.9, score=SCALE, tolerance=TOLERANCE)
    np.testing.assert_allclose(none.team_accuracy, expected.team_accuracy)
    assert none.own is None


def test_numbers_of_several_units_are_decided_one_by_one():
    two = np.stack([MEAN, -MEAN, SCALE, 2 * SCALE], -1)[None]
    found, y = RegressionUncertainty(two, "normal"), np.stack([Y, Y], -1)
    rule = RegressionRule("std", 1.2, units=2, tolerance=TOLERANCE)
    team = simulate(rule, found, y, expert=y)
    accepted = rule.accept(found)
    assert team.own.coverage == pytest.approx(accepted.mean())
    right = np.abs(found.mean - y) <= TOLERANCE
    assert team.own.team_accuracy == pytest.approx(np.where(accepted, right, 1).mean())


def test_rules_by_group():
    groups = np.where(np.arange(N) % 2, "a", "b")
    rule = RegressionRule("std", [1.0, 2.0], by="group", keys=["a", "b"], tolerance=TOLERANCE)
    team = simulate(rule, FOUND, Y, expert=0.9, groups=groups)
    assert team.own.coverage == rule.accept(FOUND, groups).mean() and team.own.threshold is None


def test_a_cascade_is_that_of_a_loop():
    second = numbers(MEAN + 0.1, SCALE / 2)
    loose = RegressionRule("std", 1.0, tolerance=TOLERANCE)
    costs = {"error": 10.0, "review": 2.0, "model": [0.1, 1.0]}
    team = cascade([(FOUND, RULE), (second, loose)], Y, expert=ANSWERS, costs=costs)
    first = RULE.accept(FOUND)[:, 0]
    then = ~first & loose.accept(second)[:, 0]
    answers = np.where(first, MEAN, np.where(then, MEAN + 0.1, ANSWERS))
    right = np.abs(answers - Y) <= TOLERANCE
    paid = 10.0 * ~right + 0.1 + 1.0 * ~first + 2.0 * ~(first | then)
    assert team.accuracy == pytest.approx(right.mean()) and team.cost == pytest.approx(paid.mean())
    assert team.coverage == pytest.approx((first | then).mean())
    one = cascade([(FOUND, RULE)], Y, expert=0.9, costs={"error": 10.0})
    alone = simulate(RULE, FOUND, Y, expert=0.9, costs={"error": 10.0}).own
    assert one.cost == pytest.approx(alone.team_cost)
    assert one.accuracy == pytest.approx(alone.team_accuracy)


def test_what_does_not_reach_a_stage_may_be_unknown():
    first = RULE.accept(FOUND)[:, 0]
    second = numbers(np.where(first, np.nan, MEAN))
    loose = RegressionRule("std", 9.0, tolerance=TOLERANCE)
    team = cascade([(FOUND, RULE), (second, loose)], Y, expert=0.9)
    assert team.coverage == 1.0


SPOILED = np.where(np.arange(N) == 3, np.nan, 1.0)
PROBS = RNG.dirichlet(np.ones(3), size=N)
TWO = RegressionUncertainty(np.stack([MEAN, MEAN, SCALE, SCALE], -1)[None], "normal")
OTHER = RegressionRule("std", 1.2, tolerance=2.0)
MISTAKES = {
    "no tolerance": lambda: simulate(1.2, FOUND, Y, expert=0.9),
    "a tolerance of 0": lambda: simulate(1.2, FOUND, Y, expert=0.9, tolerance=0.0),
    "a tolerance for classes": lambda: simulate(
        0.7, PROBS, np.zeros(N, int), expert=0.9, tolerance=1.0
    ),
    "labels of another length": lambda: simulate(RULE, FOUND, Y[1:], expert=0.9),
    "labels that are NaN": lambda: simulate(RULE, FOUND, Y * SPOILED, expert=0.9),
    "predictions that are NaN": lambda: simulate(RULE, numbers(MEAN * SPOILED), Y, expert=0.9),
    "a rule of classes": lambda: simulate(
        RejectionRule("confidence", 0.7), FOUND, Y, expert=0.9, tolerance=1.0
    ),
    "a rule for classes' numbers": lambda: simulate(RULE, PROBS, np.zeros(N, int), expert=0.9),
    "intervals as a rule": lambda: simulate(
        ConformalRegressor.fit(FOUND, Y), FOUND, Y, expert=0.9, tolerance=1.0
    ),
    "a rule of another family": lambda: simulate(
        RegressionRule("std", 1.0, family="laplace", tolerance=1.0), FOUND, Y, expert=0.9
    ),
    "a rule of two numbers": lambda: simulate(RULE, TWO, np.stack([Y, Y], -1), expert=0.9),
    "an accuracy in percent": lambda: simulate(RULE, FOUND, Y, expert=90),
    "a confusion matrix": lambda: simulate(RULE, FOUND, Y, expert=np.eye(2)),
    "answers of another length": lambda: simulate(RULE, FOUND, Y, expert=Y[1:]),
    "answers that are NaN": lambda: simulate(RULE, FOUND, Y, expert=Y * SPOILED),
    "an accuracy and a cost of distances": lambda: simulate(
        RULE, FOUND, Y, expert=0.9, costs={"error": squared}
    ),
    "a cost matrix": lambda: simulate(RULE, FOUND, Y, expert=0.9, costs={"error": np.eye(2)}),
    "costs below 0": lambda: simulate(
        RULE, FOUND, Y, expert=Y, costs={"error": lambda a, y: a - y - 9}
    ),
    "one cost for all": lambda: simulate(RULE, FOUND, Y, expert=Y, costs={"error": lambda a, y: 1}),
    "a score of classes": lambda: simulate(
        None, FOUND, Y, expert=0.9, tolerance=1.0, score="confidence"
    ),
    "no doubt between networks": lambda: simulate(
        None, FOUND, Y, expert=0.9, tolerance=1.0, score="epistemic_std"
    ),
    "logits": lambda: simulate(RULE, FOUND, Y, expert=0.9, from_logits=True),
    "weights below 0": lambda: simulate(RULE, FOUND, Y, expert=0.9, sample_weight=-WEIGHT),
    "weights of 0": lambda: simulate(RULE, FOUND, Y, expert=0.9, sample_weight=0 * WEIGHT),
    "numbers, then classes": lambda: cascade([(FOUND, RULE), (PROBS, 0.7)], Y, expert=0.9),
    "a threshold alone in a cascade": lambda: cascade([(FOUND, 0.7)], Y, expert=0.9, tolerance=1.0),
    "rules of two tolerances": lambda: cascade([(FOUND, RULE), (FOUND, OTHER)], Y, expert=0.9),
    "intervals in a cascade": lambda: cascade(
        [(FOUND, ConformalRegressor.fit(FOUND, Y))], Y, expert=0.9, tolerance=1.0
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refuses(mistake, counts):
    with pytest.raises(ValueError, match=r"(?s)(must|is required).*Received"):
        MISTAKES[mistake]()
    counts("misuse rows, refused")
