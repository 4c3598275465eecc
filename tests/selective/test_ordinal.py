"""Weighted kappa against scikit-learn, its referral curve by hand, decisions by enumeration."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tfuq import selective

RNG = np.random.default_rng(0)
N, GRADES = 200, 5
LABELS = RNG.integers(GRADES, size=N)
NEAR = np.exp(-0.5 * (np.arange(GRADES) - LABELS[:, None] - RNG.normal(size=(N, 1))) ** 2)
PROBS = NEAR / NEAR.sum(axis=1, keepdims=True)
PREDICTED = PROBS.argmax(axis=1)
WEIGHT = RNG.integers(0, 4, size=N).astype(float)


@pytest.mark.parametrize("weights", ["quadratic", "linear"])
def test_kappa_is_that_of_scikit_learn(weights):
    for weight in (None, WEIGHT, RNG.random(N)):
        options = {"weights": weights, "sample_weight": weight}
        expected = cohen_kappa_score(LABELS, PREDICTED, **options)
        for probs in (PROBS, PREDICTED, PREDICTED.astype(float)):
            ours = selective.quadratic_weighted_kappa(probs, LABELS, **options)
            assert ours == pytest.approx(expected, abs=1e-12)


def test_kappa_reads_all_shapes():
    expected = cohen_kappa_score(LABELS, PREDICTED, weights="quadratic")
    kappa = selective.quadratic_weighted_kappa
    maps = LABELS.reshape(20, 10)
    for probs, labels, options in (
        (np.log(PROBS), LABELS, {"from_logits": True}),
        (PROBS, np.eye(GRADES)[LABELS], {}),
        (PROBS.reshape(20, 10, GRADES), maps, {}),
        (PREDICTED.reshape(20, 10), maps, {}),
        (PREDICTED, LABELS[:, None], {}),
    ):
        assert kappa(probs, labels, **options) == pytest.approx(expected, abs=1e-12)
    stack = RNG.dirichlet(np.ones(GRADES), size=(4, N))
    expected = cohen_kappa_score(LABELS, stack.mean(axis=0).argmax(axis=1), weights="quadratic")
    assert kappa(stack, LABELS) == pytest.approx(expected, abs=1e-12)


def test_kappa_without_two_grades():
    kappa = selective.quadratic_weighted_kappa
    assert np.isnan(kappa([2, 2, 2], [2, 2, 2]))  # 0 / 0
    assert np.isnan(kappa([1], [1]))
    assert kappa([2, 1, 2], [2, 2, 2]) == 0.0
    assert kappa([0, 1], [1, 0]) == -1.0
    assert kappa([0, 4], [0, 4]) == 1.0
    assert np.isnan(kappa([2, 0, 2], [2, 4, 2], sample_weight=[1, 0, 1]))


def test_what_has_no_weight_may_hold_anything():
    kappa = selective.quadratic_weighted_kappa
    expected = kappa([0, 1, 2], [0, 2, 2])
    ours = kappa([0, 1, 2, np.nan, 0], [0, 2, 2, 1, 10**6], sample_weight=[1, 1, 1, 0, 0])
    assert ours == expected


@pytest.mark.parametrize("weights", ["quadratic", "linear"])
def test_referral_curve_is_kappa_at_each_threshold(weights):
    score = RNG.integers(0, 12, size=N).astype(float)
    options = {"weights": weights, "sample_weight": WEIGHT}
    curve = selective.kappa_referral_curve(PROBS, LABELS, score=score, **options)
    np.testing.assert_array_equal(curve.threshold, np.arange(12))
    for coverage, kappa, threshold in zip(*curve, strict=True):
        kept = score <= threshold
        assert coverage == pytest.approx(WEIGHT[kept].sum() / WEIGHT.sum())
        options["sample_weight"] = WEIGHT[kept]
        expected = cohen_kappa_score(LABELS[kept], PREDICTED[kept], **options)
        assert kappa == pytest.approx(expected, abs=1e-12)


def test_referral_of_the_least_confident_raises_kappa():
    curve = selective.kappa_referral_curve(PROBS, LABELS)
    assert np.all(np.diff(curve.threshold) < 0) and curve.coverage[-1] == 1.0
    whole = selective.quadratic_weighted_kappa(PROBS, LABELS)
    assert curve.kappa[-1] == pytest.approx(whole)
    oracle = selective.kappa_referral_curve(PROBS, LABELS, score=np.abs(PREDICTED - LABELS))
    assert oracle.kappa[0] == 1.0 and np.all(np.diff(oracle.kappa) < 0)


# --- Costs ------------------------------------------------------------------------------------

COSTS = RNG.random((GRADES, GRADES + 1))  # the last decision is no grade


def test_expected_costs_are_enumerated():
    expected = [[sum(p[y] * COSTS[y, d] for y in range(GRADES)) for d in range(6)] for p in PROBS]
    np.testing.assert_allclose(selective.expected_cost(PROBS, COSTS), expected)
    decisions = selective.minimum_cost_decision(PROBS, COSTS)
    np.testing.assert_array_equal(decisions, np.argmin(expected, axis=1))
    ours = selective.expected_cost(np.log(PROBS), COSTS, from_logits=True)
    np.testing.assert_allclose(ours, expected)
    maps = selective.minimum_cost_decision(PROBS.reshape(2, 10, 10, GRADES), COSTS)
    np.testing.assert_array_equal(maps.ravel(), decisions)
    assert selective.minimum_cost_decision(PROBS[0], COSTS) == decisions[0]
    assert selective.minimum_cost_decision([0.5, 0.5], np.ones((2, 3))) == 0


def test_cost_of_errors_alone_decides_for_the_largest_probability():
    decisions = selective.minimum_cost_decision(PROBS, 1 - np.eye(GRADES))
    np.testing.assert_array_equal(decisions, PREDICTED)


def test_squared_cost_decides_for_the_grade_nearest_to_the_mean():
    squared = np.subtract.outer(np.arange(GRADES), np.arange(GRADES)) ** 2
    decisions = selective.minimum_cost_decision(PROBS, squared)
    np.testing.assert_array_equal(decisions, np.rint(PROBS @ np.arange(GRADES)))


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, probs, labels, options",
    [
        ("probs", [0.3, 0.7], [0, 1], {}),
        ("probs", [0, -1], [0, 1], {}),
        ("probs", [0, np.nan], [0, 1], {}),
        ("probs", [0, 1000], [0, 1], {}),
        ("probs", [], [], {}),
        ("probs", "ab", [0, 1], {}),
        ("probs", [[0.5, 0.9]] * 2, [0, 1], {}),
        ("labels", [0, 1], [0, 1, 2], {}),
        ("labels", [0, 1], [0, -1], {}),
        ("labels", [0, 1], [0, np.nan], {}),
        ("labels", [0, 1], [0, 1e9], {}),
        ("labels", [[0.5, 0.5]] * 2, [0, 2], {}),
        ("weights", [0, 1], [0, 1], {"weights": "cubic"}),
        ("sample_weight", [0, 1], [0, 1], {"sample_weight": [1, -1]}),
        ("sample_weight", [0, 1], [0, 1], {"sample_weight": [0, 0]}),
        ("sample_weight", [0, 1], [0, 1], {"sample_weight": [1, 1, 1]}),
        ("from_logits", [0, 1], [0, 1], {"from_logits": True}),
        ("from_logits", [0, 1], [0, 1], {"from_logits": 1}),
    ],
)
def test_kappa_refuses_bad_input(argument, probs, labels, options):
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        selective.quadratic_weighted_kappa(probs, labels, **options)


def test_curve_refuses_bad_input():
    with pytest.raises(ValueError, match="Argument `weights` must be one of"):
        selective.kappa_referral_curve(PROBS, LABELS, weights="no")
    with pytest.raises(ValueError, match="Argument `score` must be one of"):
        selective.kappa_referral_curve(PROBS, LABELS, score="no")
    with pytest.raises(ValueError, match="Argument `labels` must"):
        selective.kappa_referral_curve(PROBS, LABELS[:-1])


@pytest.mark.parametrize(
    "argument, probs, costs",
    [
        ("probs", [[0.5, np.nan]], np.eye(2)),
        ("probs", [[0.5, 0.6]], np.eye(2)),
        ("probs", [[1.5, -0.5]], np.eye(2)),
        ("probs", [[1.0]], np.eye(1)),
        ("probs", np.zeros((0, 2)), np.eye(2)),
        ("probs", 0.5, np.eye(2)),
        ("cost_matrix", [[0.5, 0.5]], np.eye(3)),
        ("cost_matrix", [[0.5, 0.5]], [0, 1]),
        ("cost_matrix", [[0.5, 0.5]], np.zeros((2, 0))),
        ("cost_matrix", [[0.5, 0.5]], [[0, np.inf], [1, 0]]),
        ("cost_matrix", [[0.5, 0.5]], [[0, np.nan], [1, 0]]),
        ("cost_matrix", [[0.5, 0.5]], "costs"),
    ],
)
def test_costs_refuse_bad_input(argument, probs, costs):
    for function in (selective.expected_cost, selective.minimum_cost_decision):
        with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
            function(probs, costs)


def test_infinite_logits_are_refused():
    with pytest.raises(ValueError, match="Argument `probs` must hold probabilities"):
        selective.expected_cost([[np.inf, 0.0]], np.eye(2), from_logits=True)
