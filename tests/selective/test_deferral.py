"""Deferral and cascades, against loops over examples and against experts drawn at random."""

import numpy as np
import pytest

from tfuq import selective
from tfuq.selective.rule import RejectionRule

RNG = np.random.default_rng(0)
N = 60
PROBS = RNG.dirichlet(np.full(3, 0.6), size=N)
OTHER = RNG.dirichlet(np.full(3, 0.4), size=N)
LABELS = np.where(RNG.random(N) < 0.6, PROBS.argmax(axis=1), RNG.integers(3, size=N))
ANSWERS = np.where(RNG.random(N) < 0.8, LABELS, RNG.integers(3, size=N))
CONFUSION = np.array([[8.0, 1, 1], [2, 7, 1], [0, 3, 7]])
MATRIX = np.array([[0.0, 1, 4], [3, 0, 1], [10, 5, 0.5]])
WEIGHT = RNG.integers(0, 3, size=N).astype(float)
CONFIDENCE = PROBS.max(axis=1)


class Rule:
    """What `simulate_deferral` asks of a rejection rule."""

    def __init__(self, score="confidence", threshold=0.7, from_logits=False):
        self.score, self.threshold, self.from_logits = score, threshold, from_logits

    def score_of(self, probs):
        probs = np.asarray(probs)
        if self.score == "confidence":
            return probs.max(axis=-1)
        return -np.sum(probs * np.log(probs), axis=-1)

    def accept(self, probs, groups=None):
        limit = self.threshold
        if groups is not None:
            limit = np.array([self.threshold[group] for group in groups])
        score = self.score_of(probs)
        return score >= limit if self.score == "confidence" else score <= limit


def by_hand(accepted, expert_right, expert_paid, error, weight=None, probs=PROBS):
    """The fields of a point, but the threshold, by means over the examples."""
    weight = np.ones(N) if weight is None else weight
    answers = probs.argmax(axis=1)
    right, paid = answers == LABELS, error[LABELS, answers]

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


CHANCES = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
ZERO_ONE = 1 - np.eye(3)
EXPERTS = {
    "accuracy": (0.9, {"error": 5, "review": 2, "rejection": 1}, np.full(N, 0.9), np.full(N, 3.5)),
    "accuracy alone": (0.9, None, np.full(N, 0.9), np.full(N, 0.1)),
    "confusion": (
        CONFUSION,
        {"review": 1},
        CHANCES.diagonal()[LABELS],
        2 - CHANCES.diagonal()[LABELS],
    ),
    "confusion, matrix": (
        CHANCES,
        {"error": MATRIX},
        CHANCES.diagonal()[LABELS],
        np.einsum("ij,ij->i", CHANCES, MATRIX)[LABELS],
    ),
    "answers": (
        ANSWERS,
        {"error": MATRIX, "review": 0.5},
        ANSWERS == LABELS,
        MATRIX[LABELS, ANSWERS] + 0.5,
    ),
}


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
@pytest.mark.parametrize("kind", EXPERTS)
def test_every_threshold_is_a_mean_over_examples(kind, weight):
    expert, costs, right, paid = EXPERTS[kind]
    error = (costs or {}).get("error", 1)
    error = error if np.ndim(error) else error * ZERO_ONE
    options = {"expert": expert, "costs": costs, "sample_weight": weight}
    team = selective.simulate_deferral(0.7, PROBS, LABELS, **options)
    used = np.ones(N, bool) if weight is None else weight > 0
    assert len(team.threshold) == used.sum() + 1
    assert np.all(np.diff(team.coverage) > 0)
    points = np.stack(team[1:8], axis=1)
    for point, threshold in zip(points, team.threshold, strict=True):
        expected = by_hand(threshold <= CONFIDENCE, right, paid, error, weight)
        np.testing.assert_allclose(point, expected, atol=1e-12)
    own = by_hand(CONFIDENCE >= 0.7, right, paid, error, weight)
    np.testing.assert_allclose(team.own[1:], own, atol=1e-12)
    assert team.own.threshold == 0.7
    assert team.best.team_cost == pytest.approx(team.team_cost.min())
    np.testing.assert_array_equal(team.model_alone, [array[-1] for array in team[:8]])
    np.testing.assert_array_equal(team.expert_alone, [array[0] for array in team[:8]])


def test_an_expert_of_chances_is_the_mean_of_drawn_ones():
    """Of 4,000 experts; a right mean fails with a probability of 6e-5 at four deviations."""
    rng = np.random.default_rng(1)
    drawn = (rng.random((4000, N, 1)) > CHANCES.cumsum(axis=1)[LABELS]).sum(axis=2)
    accepted = CONFIDENCE >= 0.7
    cost = np.where(accepted, MATRIX[LABELS, PROBS.argmax(axis=1)], MATRIX[LABELS, drawn])
    cost = cost.mean(axis=1)
    options = {"expert": CONFUSION, "costs": {"error": MATRIX}}
    ours = selective.simulate_deferral(0.7, PROBS, LABELS, **options).own.team_cost
    assert abs(ours - cost.mean()) < 4 * cost.std() / np.sqrt(4000)
    picked = selective.simulate_deferral(
        0.7, PROBS, LABELS, expert=drawn[0], costs={"error": MATRIX}
    )
    assert picked.own.team_cost == pytest.approx(cost[0])


def test_thresholds_of_ones_own():
    thresholds = [0.9, 0.0, 1.0, 0.5]
    team = selective.simulate_deferral(None, PROBS, LABELS, expert=0.9, thresholds=thresholds)
    np.testing.assert_array_equal(team.threshold, thresholds)
    np.testing.assert_allclose(team.coverage, [np.mean(t <= CONFIDENCE) for t in thresholds])
    assert team.own is None and "the rule" not in team.to_markdown()
    assert team.model_alone.coverage == 1 and team.expert_alone.coverage == 0
    assert team.best.threshold in thresholds


@pytest.mark.parametrize("score", ["confidence", "entropy"])
def test_a_rule_brings_its_score(score):
    rule = Rule(score, 0.6)
    team = selective.simulate_deferral(rule, PROBS, LABELS, expert=0.9)
    accepted = rule.accept(PROBS)
    assert 0 < accepted.mean() < 1
    assert team.own.coverage == pytest.approx(accepted.mean())
    assert team.own.threshold == 0.6
    named = selective.simulate_deferral(None, PROBS, LABELS, expert=0.9, score=score)
    np.testing.assert_allclose(team.team_accuracy, named.team_accuracy)
    np.testing.assert_allclose(team.threshold, named.threshold)
    given = rule.score_of(PROBS) * (-1 if score == "confidence" else 1)
    array = selective.simulate_deferral(0.6, PROBS, LABELS, expert=0.9, score=given)
    np.testing.assert_allclose(array.team_accuracy, named.team_accuracy)


def test_a_rule_by_group_is_judged_as_it_accepts():
    groups = np.where(np.arange(N) % 2, "a", "b")
    rule = Rule(threshold={"a": 0.9, "b": 0.5})
    team = selective.simulate_deferral(rule, PROBS, LABELS, expert=0.9, groups=groups)
    accepted = np.where(groups == "a", 0.9, 0.5) <= CONFIDENCE
    assert team.own.coverage == pytest.approx(accepted.mean())
    assert team.own.threshold is None
    assert "| the rule |  | " in team.to_markdown()


@pytest.mark.parametrize("score", ["confidence", "entropy", "margin", "mutual_information"])
def test_a_fitted_rule_is_a_point_of_its_own_curve(score):
    stack = np.stack([PROBS, OTHER])
    rule = RejectionRule.fit(stack, LABELS, score=score, target_coverage=0.6)
    team = selective.simulate_deferral(rule, stack, LABELS, expert=CONFUSION)
    assert team.own.coverage == pytest.approx(rule.accept(stack).mean())
    nearest = np.argmin(np.abs(team.threshold - rule.threshold))
    assert team.team_cost[nearest] == pytest.approx(team.own.team_cost)
    found = selective.cascade([(stack, rule)], LABELS, expert=CONFUSION)
    assert found.cost == pytest.approx(team.own.team_cost)


def test_of_equally_cheap_thresholds_the_best_refers_least():
    probs = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]
    team = selective.simulate_deferral(None, probs, [0, 0, 1], expert=1.0)
    assert team.best.coverage == pytest.approx(2 / 3)  # to refer them as well costs nothing
    free = selective.simulate_deferral(None, probs, [0, 0, 0], expert=1.0)
    assert free.best.coverage == 1.0


def test_other_kinds_of_predictions():
    expected = selective.simulate_deferral(0.7, PROBS, LABELS, expert=0.9).own

    def check(probs, labels, **options):
        team = selective.simulate_deferral(0.7, probs, labels, expert=0.9, **options)
        np.testing.assert_allclose(team.own, expected, atol=1e-12)

    check(np.log(PROBS), LABELS, from_logits=True)
    check(np.stack([PROBS, PROBS]), LABELS)
    check(PROBS.reshape(6, 10, 3), LABELS.reshape(6, 10))
    check(PROBS, np.eye(3)[LABELS])
    binary, truth = PROBS[:, 0], (LABELS == 0).astype(int)
    expected = selective.simulate_deferral(0.7, binary, truth, expert=0.9).own
    check(binary[:, None], truth)
    check(binary.reshape(20, 3), truth.reshape(20, 3), multi_label=True)


# --- Cascades ---------------------------------------------------------------------------------


def test_a_cascade_is_a_loop_over_examples():
    costs = {"error": 10, "review": 4, "rejection": 1, "model": [0.1, 0.5]}
    stages = [(PROBS, 0.8), (OTHER, Rule(threshold=0.75))]
    found = selective.cascade(stages, LABELS, expert=CONFUSION, costs=costs, sample_weight=WEIGHT)
    totals, right, cost = np.zeros((3, 4)), 0.0, 0.0  # reached, answered, right, paid
    for p, q, y, w in zip(PROBS, OTHER, LABELS, WEIGHT, strict=True):
        for stage, (probs, limit, price) in enumerate([(p, 0.8, 0.1), (q, 0.75, 0.5), (p, 0, 5)]):
            totals[stage, 0] += w
            totals[stage, 3] += w * price
            if probs.max() >= limit:
                good = CHANCES[y, y] if stage == 2 else float(probs.argmax() == y)
                totals[stage, 1:] += w * np.array([1, good, 10 * (1 - good)])
                break
    right, cost = totals[:, 2].sum(), totals[:, 3].sum()
    np.testing.assert_allclose(
        found.stages,
        np.stack(
            [
                totals[:, 0] / WEIGHT.sum(),
                totals[:, 1] / WEIGHT.sum(),
                totals[:, 2] / totals[:, 1],
                totals[:, 3] / WEIGHT.sum(),
            ],
            axis=1,
        ),
    )
    assert found.accuracy == pytest.approx(right / WEIGHT.sum())
    assert found.cost == pytest.approx(cost / WEIGHT.sum())
    assert found.coverage == pytest.approx(totals[:2, 1].sum() / WEIGHT.sum())


def test_a_cascade_of_one_is_deferral():
    costs = {"error": MATRIX, "review": 1}
    team = selective.simulate_deferral(0.7, PROBS, LABELS, expert=ANSWERS, costs=costs).own
    for rule in (0.7, Rule(), CONFIDENCE >= 0.7):
        found = selective.cascade([(PROBS, rule)], LABELS, expert=ANSWERS, costs=costs)
        assert found.accuracy == pytest.approx(team.team_accuracy)
        assert found.cost == pytest.approx(team.team_cost)
        assert found.coverage == pytest.approx(team.coverage)
        assert found.stages[0].accuracy == pytest.approx(team.model_accuracy)


def test_what_does_not_reach_a_stage_may_be_unknown():
    late = OTHER.copy()
    late[CONFIDENCE >= 0.8] = np.nan
    stages = [(PROBS, 0.8), (late, 0.7), (PROBS, 0.0), (np.full_like(PROBS, np.nan), 0.5)]
    found = selective.cascade(stages, LABELS, expert=1.0)
    again = selective.cascade([(PROBS, 0.8), (OTHER, 0.7), (PROBS, 0.0)], LABELS, expert=1.0)
    assert found.accuracy == again.accuracy and found.coverage == 1.0
    assert found.stages[3][:2] == found.stages[4][:2] == (0.0, 0.0)
    assert np.isnan(found.stages[3].accuracy) and found.stages[4].cost == 0.0
    assert "| model 4 | 0.0 % | 0.0 % |  | 0 |" in found.to_markdown()
    with pytest.raises(ValueError, match="Argument `probs` must hold no NaN"):
        selective.cascade([(late, 0.7)], LABELS, expert=1.0)


# --- Bad input --------------------------------------------------------------------------------

BAD = [
    ("expert", {"expert": 1.1}),
    ("expert", {"expert": np.nan}),
    ("expert", {"expert": "good"}),
    ("expert", {"expert": None}),
    ("expert", {"expert": np.eye(2)}),
    ("expert", {"expert": -np.eye(3)}),
    ("expert", {"expert": np.diag([1.0, 1.0, 0.0])}),
    ("expert", {"expert": np.full((3, 3), np.nan)}),
    ("expert", {"expert": ANSWERS[:-1]}),
    ("expert", {"expert": ANSWERS + 1}),
    ("expert", {"expert": ANSWERS + 0.5}),
    ("expert", {"expert": 0.9, "costs": {"error": MATRIX}}),
    ("costs", {"costs": {"mistake": 1}}),
    ("costs", {"costs": [1, 2]}),
    ("costs", {"costs": {"error": -1}}),
    ("costs", {"costs": {"error": np.nan}}),
    ("costs", {"costs": {"error": np.ones((2, 2))}}),
    ("costs", {"costs": {"review": [1, 2]}}),
    ("costs", {"costs": {"review": "much"}}),
    ("probs", {"probs": np.full((N, 3), np.nan)}),
    ("labels", {"labels": LABELS + 1}),
    ("sample_weight", {"sample_weight": np.zeros(N)}),
    ("from_logits", {"from_logits": None}),
]
OF_DEFERRAL = [
    ("rule", {"rule": "mine"}),
    ("rule", {"rule": np.nan}),
    ("rule", {"rule": True}),
    ("thresholds", {"thresholds": []}),
    ("thresholds", {"thresholds": [np.nan]}),
    ("thresholds", {"thresholds": [[0.5]]}),
    ("thresholds", {"thresholds": "high"}),
    ("score", {"score": "doubt"}),
    ("score", {"score": "entropy", "rule": Rule()}),
    ("groups", {"groups": LABELS}),
    ("from_logits", {"rule": Rule(from_logits=True)}),
]
OF_CASCADES = [
    ("stages", {"stages": []}),
    ("stages", {"stages": None}),
    ("stages", {"stages": [PROBS]}),
    ("stages", {"stages": [(PROBS, 0.5, 1)]}),
    ("stages", {"stages": [(PROBS, "high")]}),
    ("stages", {"stages": [(PROBS, None)]}),
    ("stages", {"stages": [(PROBS, 0.9), (np.full((N, 4), 0.25), 0.5)]}),
    ("rule", {"stages": [(PROBS, 1.5)]}),
    ("rule", {"stages": [(PROBS, np.ones(3, bool))]}),
    ("costs", {"costs": {"model": [1, 2, 3]}}),
    ("costs", {"costs": {"model": -1}}),
    ("from_logits", {"stages": [(PROBS, Rule(from_logits=True))]}),
]


@pytest.mark.parametrize("argument, options", BAD + OF_DEFERRAL)
def test_deferral_refuses_bad_input(argument, options):
    given = {"rule": 0.7, "probs": PROBS, "labels": LABELS, "expert": 0.9} | options
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        selective.simulate_deferral(**given)


@pytest.mark.parametrize("argument, options", BAD + OF_CASCADES)
def test_cascades_refuse_bad_input(argument, options):
    given = {"stages": [(PROBS, 0.7)], "labels": LABELS, "expert": 0.9} | options
    if "probs" in given:
        given["stages"] = [(given.pop("probs"), 0.7)]
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        selective.cascade(**given)
