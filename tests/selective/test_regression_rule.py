"""Rejection rules for numbers: their guarantee, their place in a model, files, bad input."""

import keras
import numpy as np
import pytest
from scipy import stats

from tfuq.layers import NormalDense
from tfuq.ood import KNN
from tfuq.predictive import RegressionUncertainty, predict_uncertainty
from tfuq.selective import CombinedScore, RegressionRule, RejectionRule, UnattainableRisk

RNG = np.random.default_rng(0)


def data(count, seed=0):
    """What a network says of numbers whose noise it knows, and the numbers."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 3, size=count)
    params = np.stack([np.zeros(count), scale], axis=-1)[None]
    return RegressionUncertainty(params, "normal"), scale * rng.normal(size=count)


FOUND, Y = data(1000)


@pytest.mark.parametrize("score", ["std", "interval_width", "aleatoric_std"])
def test_keeps_the_target(score):
    rule = RejectionRule.fit(FOUND, Y, score, tolerance=1.0, target_risk=0.1)
    assert isinstance(rule, RegressionRule)
    new, y = data(20000, seed=1)
    result = rule.evaluate(new, y)
    assert 0.15 < result.coverage < 0.35 and result.risk < 0.1
    wrong = np.abs(y[:, None]) > 1
    assert result.risk == pytest.approx(wrong[rule.accept(new)].mean())


def test_risk_is_above_the_target_as_rarely_as_promised():
    """300 rules: more than 5 % + 4 deviations are above it once in 30,000 runs of a right one."""
    sets = (data(300, seed) for seed in range(300))
    fitted, above = rules_above(sets, 0.2)
    assert fitted > 250 and above / 300 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)


def rules_above(sets, target):
    """How many rules there are, and how many of them have a risk above the target.

    Of what is accepted |N(0, s^2)| > 1, s uniform up to the threshold.
    """
    fitted = above = 0
    for found, y in sets:
        try:
            rule = RejectionRule.fit(found, y, tolerance=1.0, target_risk=target, confidence=0.95)
        except UnattainableRisk:
            continue
        scales = np.linspace(0.1, min(rule.threshold, 3.0), 500)
        fitted, above = fitted + 1, above + (2 * stats.norm.sf(1 / scales).mean() > target)
    return fitted, above


@pytest.mark.slow
@pytest.mark.parametrize("n, target", [(20, 0.5), (100, 0.25), (1000, 0.2)])
def test_two_thousand_rules_keep_the_promise(n, target, counts):
    """More than 5 % + 4 deviations of 2,000 are above once in 30,000 runs of a right one."""
    fitted, above = rules_above((data(n, seed) for seed in range(2000)), target)
    counts(f"rules of numbers above their target, n = {n}", above)
    assert fitted > 400 and above / 2000 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.slow
def test_two_thousand_rules_of_several_numbers_keep_the_promise(counts):
    """400 examples of four numbers with one error in common: examples count, not numbers."""

    def of_examples(seed):
        rng = np.random.default_rng(seed)
        scale = rng.uniform(0.1, 3, size=(400, 4))
        params = np.concatenate([np.zeros((400, 4)), scale], axis=-1)[None]
        return RegressionUncertainty(params, "normal"), scale * rng.normal(size=(400, 1))

    fitted, above = rules_above(map(of_examples, range(2000)), 0.4)
    counts("rules of four numbers above their target", above)
    assert fitted > 400 and above / 2000 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_groups_have_thresholds_of_their_own():
    groups = np.where(np.arange(1000) % 2, "a", "b")
    options = {"tolerance": 1.0, "target_risk": 0.15, "by": "group", "groups": groups}
    rule = RejectionRule.fit(FOUND, Y, **options)
    assert rule.keys == ["a", "b"] and len(rule.threshold) == 2
    assert rule.accept(FOUND, groups).shape == (1000, 1)
    with pytest.raises(ValueError, match="groups"):
        rule.accept(FOUND, ["c"] * 1000)
    assert not rule.accept(FOUND, ["c"] * 1000, unknown_group="reject").any()


def test_a_loss_of_one_s_own():
    def loss(mean, y):
        return np.minimum(np.abs(mean - y) / 5, 1)

    rule = RejectionRule.fit(FOUND, Y, loss=loss, target_risk=0.2)
    assert rule.evaluate(FOUND, Y, loss=loss).risk < 0.2
    assert rule.evaluate(FOUND, Y) == rule.evaluate(FOUND, Y, loss=loss)
    with pytest.raises(ValueError, match=r"`loss` must be given.*'function loss'"):
        RejectionRule.from_json(rule.to_json()).evaluate(FOUND, Y)
    assert "by the chosen loss" in rule.describe()


def test_images_of_numbers():
    rng = np.random.default_rng(2)
    params = rng.uniform(0.1, 3, size=(1, 200, 4, 4, 2))
    found = RegressionUncertainty(params, "normal")
    y = found.mean + found.std * rng.normal(size=found.shape)
    rule = RejectionRule.fit(found, y, tolerance=2.5, target_risk=0.3)
    assert rule.rank == 4 and rule.accept(found).shape == (200, 4, 4, 1)
    assert rule.evaluate(found, y).risk < 0.3
    assert rule.fitted_to["examples"] == 160  # a fifth gave thresholds


def test_costs_and_coverage():
    half = RejectionRule.fit(FOUND, Y, tolerance=1.0, target_coverage=0.5)
    assert half.accept(FOUND).mean() == pytest.approx(0.5, abs=0.002)
    cheap = RejectionRule.fit(FOUND, Y, tolerance=1.0, costs={"error": 10, "rejection": 1})
    assert 0 < cheap.accept(FOUND).mean() < 0.5


def test_says_what_was_promised():
    text = RejectionRule.fit(FOUND, Y, tolerance=1.0, target_risk=0.1).describe()
    assert "at most 10 in 100 are off by more than 1" in text and "95 % confidence" in text


def test_file(tmp_path):
    rule = RejectionRule.fit(FOUND, Y, tolerance=1.0, target_risk=0.1)
    rule.save(tmp_path / "rule.json")
    again = RegressionRule.load(tmp_path / "rule.json")
    assert again == rule
    np.testing.assert_array_equal(again.accept(FOUND), rule.accept(FOUND))


def test_what_is_not_known_is_refused():
    params = FOUND.params.copy()
    params[:, :3] = np.nan
    accepted = RegressionRule("std", 100.0).accept(RegressionUncertainty(params, "normal"))
    assert not accepted[:3].any() and accepted[3:].all()


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), NormalDense(1)])


def test_in_a_model(model, tmp_path):
    x = RNG.normal(size=(50, 4)).astype("float32")
    x[3] = np.nan
    found = predict_uncertainty(model, x)
    rule = RegressionRule("std", float(np.nanmedian(found.std)), level=0.8)
    rule.append_to(model).save(tmp_path / "model.keras")
    answers = keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0)
    np.testing.assert_array_equal(answers["accept"], rule.accept(found))
    np.testing.assert_allclose(answers["mean"], found.mean, rtol=1e-5)
    np.testing.assert_allclose(answers["std"], found.std, rtol=1e-5)
    for end, expected in zip(("lower", "upper"), found.interval(0.8), strict=True):
        np.testing.assert_allclose(answers[end], expected, rtol=1e-4, atol=1e-5)


def test_fit_model_is_fit_of_predict_uncertainty(model):
    x = RNG.normal(size=(200, 4)).astype("float32")
    found = predict_uncertainty(model, x)
    y = found.mean + found.std * RNG.normal(size=found.shape)
    options = {"tolerance": 2.0, "target_risk": 0.3}
    assert RejectionRule.fit_model(model, (x, y), **options) == RejectionRule.fit(
        found, y, **options
    )


GOOD = {"tolerance": 1.0, "target_risk": 0.1}


@pytest.mark.parametrize(
    "options, match",
    [
        ({"target_risk": 0.1}, "`tolerance`"),
        ({**GOOD, "tolerance": -1}, "`tolerance`"),
        ({**GOOD, "score": "confidence"}, "`score`"),
        ({**GOOD, "score": "epistemic_std"}, "`score`"),
        ({**GOOD, "from_logits": True}, "`from_logits`"),
        ({**GOOD, "multi_label": True}, "`multi_label`"),
        ({**GOOD, "class_names": ["a", "b"]}, "`class_names`"),
        ({**GOOD, "by": "class"}, "`by`"),
        ({**GOOD, "loss": "false_negative"}, "`loss`"),
        ({**GOOD, "loss": lambda mean, y: 10 * mean + y}, "`loss`"),
        ({**GOOD, "groups": ["a"] * 1000}, "`groups`"),
        ({"tolerance": 1.0}, "target_risk"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        RejectionRule.fit(FOUND, Y, **options)


@pytest.mark.parametrize(
    "y", [np.stack([Y, Y], 1), Y[:10], np.where(Y > 1, np.nan, Y), ["a"] * 1000], ids=range(4)
)
def test_bad_numbers(y):
    with pytest.raises(ValueError, match="`y`"):
        RejectionRule.fit(FOUND, y, **GOOD)


def test_another_kind_of_prediction():
    rule = RegressionRule("std", 1.0)
    with pytest.raises(ValueError, match="`found`"):
        rule.accept(np.ones((5, 1)))
    with pytest.raises(ValueError, match="`found`"):
        rule.accept(RegressionUncertainty(np.ones((1, 5, 2)), "laplace"))
    with pytest.raises(ValueError, match="`found`"):
        rule.accept(RegressionUncertainty(np.ones((1, 5, 4)), "normal"))
    with pytest.raises(ValueError, match="`probs`"):
        RejectionRule("confidence", 0.5).accept(FOUND)
    with pytest.raises(ValueError, match="`tolerance`"):
        RejectionRule.fit(np.full((9, 2), 0.5), np.zeros(9, int), **GOOD)


def test_a_score_from_beside_the_numbers():
    rng = np.random.default_rng(11)
    scale = rng.uniform(0.1, 3, size=1000)
    found = RegressionUncertainty(np.stack([0 * scale, 1 + 0 * scale], -1)[None], "normal")
    y = scale * rng.normal(size=1000)  # of which the network knows nothing
    half, rest = slice(0, 500), slice(500, None)
    features = np.stack([np.ones(1000), scale, rng.normal(size=1000) / 10], -1)
    goal = {"tolerance": 1.0, "target_risk": 0.2}
    rule = RejectionRule.fit(found[half], y[half], score=scale[half], **goal)
    assert 0.2 < rule.fitted_to["coverage"] < 0.6
    again = RejectionRule.from_json(rule.to_json())
    accept = again.accept(found[rest], score=scale[rest]).ravel()
    np.testing.assert_array_equal(accept, scale[rest].astype("float32") <= rule.threshold)
    judged = again.evaluate(found[rest], y[rest], score=scale[rest])
    assert judged.accepted == accept.sum() and judged.risk < 0.25
    monitor = again.monitor().update(found[rest], y[rest], score=scale[rest])
    assert monitor.fitted_to["accepted"] == accept.sum() and not monitor.alarm
    bank = KNN(k=5).fit_features(features[scale < 0.5])
    RejectionRule.fit(found[half], y[half], score=bank.score_features(features[half]), **goal)
    joined = CombinedScore({"a": "given", "b": "given"})
    own = {"a": scale[half], "b": features[half, 2]}
    scores = joined.fit_features(own).score_features(own)
    with pytest.raises(ValueError, match=r"`score` must come from other rows.*CombinedScore"):
        RejectionRule.fit(found[half], y[half], score=scores, **goal)
    for message, call in (
        ("`score` must be the scores", lambda: rule.accept(found)),
        ("`score` must be None", lambda: RegressionRule("std", 0.5).accept(found, score=scale)),
        ("`score` must hold a number", lambda: rule.accept(found, score=scale[:9])),
        ("`score` must hold finite", lambda: RejectionRule.fit(found, y, scale / 0, **goal)),
        ("`score` must hold a number", lambda: RejectionRule.fit(found, y, np.abs, **goal)),
        ("A rule for your own scores", lambda: rule.transform(found.params[0])),
    ):
        with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
            call()
