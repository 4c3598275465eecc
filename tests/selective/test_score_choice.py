"""Choice of a score: areas against `augrc`, intervals that cover, and the p-norm of logits."""

import keras
import numpy as np
import pytest

from tfuq.selective import RejectionRule, augrc, best_score, pnorm_score, risk_coverage_curve

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(4), size=400)
STRANGE = RNG.random(400)
Y = np.where(RNG.random(400) < STRANGE**2, (PROBS.argmax(-1) + 1) % 4, PROBS.argmax(-1))


def test_areas_are_those_of_augrc():
    rounded = np.round(STRANGE, 1)  # ties
    found = best_score(PROBS, Y, {"strange": rounded, "margin": "margin"}, resamples=10)
    by_name = {row.name: row for row in found.rows}
    assert found.best == "strange" == found.rows[0].name
    assert by_name["strange"].augrc == pytest.approx(augrc(PROBS, Y, score=rounded))
    assert by_name["margin"].augrc == pytest.approx(augrc(PROBS, Y, score="margin"))
    assert by_name["margin"].differs and not by_name["strange"].differs
    assert by_name["margin"].behind_lower > 0 == by_name["strange"].behind
    assert "| strange |" in found.to_markdown() and "| yes |" in found.to_markdown()
    stack = np.stack([PROBS, PROBS[:, ::-1]])
    names = {row.name for row in best_score(stack, Y, resamples=10).rows}
    assert names >= {"confidence", "mutual_information"} and len(names) == 6


def test_intervals_cover_and_equal_scores_seldom_differ():
    """Two noises: 100 draws, at 95 %; a right interval fails once in 10,000 runs."""
    rng, differ, missed = np.random.default_rng(1), 0, 0
    for _ in range(100):
        probs = np.tile([[0.9, 0.1]], (150, 1))
        labels = (rng.random(150) < 0.3).astype(int)
        scores = {"a": rng.random(150), "b": rng.random(150)}
        found = best_score(probs, labels, scores, resamples=200)
        differ += found.rows[1].differs
        row = next(row for row in found.rows if row.name == "a")
        missed += not row.lower <= 0.15 <= row.upper  # half the error of a random score
    assert differ <= 15 and missed <= 16


def test_rows_of_an_earlier_choice_are_not_forgotten():
    """The same score, chosen on two sets of rows: neither promises with it."""
    rng, sets = np.random.default_rng(2), []
    for _ in range(2):
        probs = rng.dirichlet(np.ones(3), size=300)
        labels = np.where(rng.random(300) < np.ptp(probs, axis=1), probs.argmax(-1), 0)
        scores = {"margin": "margin", "noise": rng.random(300)}
        assert best_score(probs, labels, scores, resamples=10).best == "margin"
        sets.append((probs, labels))
    for rows in sets:
        with pytest.raises(ValueError, match=r"must come from other rows.*best_score"):
            RejectionRule.fit(*rows, score="margin", target_coverage=0.5)


def test_pnorm_by_hand_and_in_any_unit():
    logits = RNG.normal(size=(50, 5))
    centred = logits - logits.mean(-1, keepdims=True)
    for p in (1, 2, 7.5):
        by_hand = -centred.max(-1) / np.linalg.norm(centred, p, axis=-1)
        np.testing.assert_allclose(pnorm_score(logits, p), by_hand)
        np.testing.assert_allclose(pnorm_score(1e200 * logits + 3, p), by_hand, rtol=1e-6)
    assert np.isnan(pnorm_score([[np.nan, 1, 2]])[0]) and pnorm_score([[1.0, 1, 1]])[0] == 0


@pytest.mark.parametrize(
    "argument, call",
    [
        ("labels", lambda: best_score(PROBS, PROBS.argmax(-1))),
        ("scores", lambda: best_score(PROBS, Y, ["margin"])),
        ("scores", lambda: best_score(PROBS, Y, [STRANGE, STRANGE])),
        ("score", lambda: best_score(PROBS, Y, {"a": STRANGE[:3], "b": "margin"})),
        ("score", lambda: best_score(PROBS, Y, ["trust", "margin"])),
        ("score", lambda: best_score(PROBS, Y, {"a": STRANGE * np.nan, "b": "margin"})),
        ("confidence", lambda: best_score(PROBS, Y, confidence=2)),
        ("resamples", lambda: best_score(PROBS, Y, resamples=0)),
        ("probs", lambda: best_score(PROBS * 3, Y)),
        ("logits", lambda: pnorm_score(PROBS[:, :2])),
        ("logits", lambda: pnorm_score(PROBS[0])),
        ("p", lambda: pnorm_score(PROBS, 0)),
        ("p", lambda: pnorm_score(PROBS, True)),
    ],
)
def test_bad_input(argument, call):
    with pytest.raises(ValueError, match=rf"`{argument}`.* must .*Received: "):
        call()


def test_pnorm_is_a_score_of_rules():
    """Log-probabilities are logits but for a number added to all, which changes nothing."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(800, 5), scale=rng.uniform(0.5, 6, size=(800, 1)))
    y = np.where(rng.random(800) < 0.1, rng.integers(5, size=800), logits.argmax(-1))
    rule = RejectionRule.fit(logits, y, from_logits=True, score="pnorm", target_risk=0.15)
    expected = pnorm_score(logits, 2)
    np.testing.assert_allclose(rule.score_of(logits), expected, atol=1e-5)
    np.testing.assert_array_equal(rule.accept(logits), rule.score_of(logits) <= rule.threshold)
    assert rule.accept(logits).mean() > 0.1 and not rule.grows_with_trust
    assert RejectionRule.from_json(rule.to_json()) == rule
    model = keras.Sequential([keras.Input((5,)), keras.layers.Activation("linear")])
    found = rule.append_to(model).predict(logits, verbose=0)
    np.testing.assert_allclose(found["score"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["accept"], rule.accept(logits))
    of_curve = risk_coverage_curve(logits, y, score="pnorm", from_logits=True)
    assert len(of_curve.threshold) > 700


def test_pnorm_of_two_classes_is_refused():
    with pytest.raises(ValueError, match="'pnorm' needs three classes or more"):
        RejectionRule.fit(
            PROBS[:, :2] / PROBS[:, :2].sum(-1, keepdims=True),
            Y > 0,
            score="pnorm",
            target_risk=0.3,
        )
    with pytest.raises(ValueError, match="'pnorm' needs three classes or more"):
        RejectionRule("pnorm", -0.5, multi_label=True).accept(PROBS)


def test_pnorm_of_what_is_certain_or_unknown():
    rule = RejectionRule("pnorm", 0.0)
    certain, uniform, unknown = np.eye(3)[0], np.full(3, 1 / 3), np.full(3, np.nan)
    score = rule.score_of(np.stack([certain, uniform]))
    assert score[0] == pytest.approx(-np.sqrt(2 / 3), abs=1e-6) and score[1] == 0
    assert np.isnan(rule.score_of(np.stack([unknown, certain]))[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing_is_warned_of(smoothing, recwarn):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Softmax()])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    model.compile(loss=loss)
    RejectionRule.fit_model(model, (np.log(PROBS), np.eye(4)[Y]), target_coverage=0.5)
    told = [str(each.message) for each in recwarn if "label_smoothing=0.2" in str(each.message)]
    assert len(told) == (smoothing > 0)
