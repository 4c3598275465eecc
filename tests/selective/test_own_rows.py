"""Promises stand on rows of their own: rows that are split off, or known again and refused."""

import json

import keras
import numpy as np
import pytest
from scipy import stats

from tfuq.predictive import decompose
from tfuq.selective import (
    ConformalPredictor,
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    UnattainableRisk,
    VectorScaling,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, size=(600, 3))
Y = (LOGITS + RNG.gumbel(size=LOGITS.shape) / 2).argmax(-1)
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
KINDS = [TemperatureScaling, VectorScaling, IsotonicCalibration]
SAME = r"(?s)`probs` must hold rows that its calibration was not fitted to.*Received: "


def world(rng, n):
    """Binary predictions that are too sure, and their labels."""
    logit = rng.normal(0, 3, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int)
    return 1 / (1 + np.exp(-3 * logit)), labels


@pytest.mark.slow_cases("50")
@pytest.mark.parametrize("worlds", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_the_promised_share_of_worlds_keeps_the_risk(worlds):
    """A correct fit fails this once in 1e6 sets of seeds (a binomial tail at 5 %).

    The risk is that of the world, by quantiles of its logits; rows of it agree in the end.
    """
    target = 0.1
    logit = stats.norm.ppf((np.arange(4000) + 0.5) / 4000, 0, 3)
    new, positive = 1 / (1 + np.exp(-3 * logit)), 1 / (1 + np.exp(-logit))
    broken = fitted = 0
    for seed in range(worlds):
        probs, labels = world(np.random.default_rng(seed), 800)
        try:
            rule = RejectionRule.fit(
                probs, labels, target_risk=target, calibration=IsotonicCalibration(), seed=seed
            )
        except UnattainableRisk:
            continue
        fitted += 1
        accepted, answer = rule.accept(new), rule.calibration(new) > 0.5
        risk = np.where(answer, 1 - positive, positive)[accepted].mean()
        broken += risk > target
    assert fitted > worlds / 2
    assert broken <= stats.binom.ppf(1 - 1e-6, worlds, 0.05)
    found = rule.evaluate(*world(np.random.default_rng(10**6), 20_000))
    n = found.coverage * 20_000
    assert found.risk == pytest.approx(risk, abs=6 * np.sqrt(target * (1 - target) / n))


@pytest.mark.parametrize("kind", KINDS)
def test_sets_of_a_calibration_cover(kind):
    """Coverage of 300 examples is within six standard deviations of Beta(271, 30): 1 in 1e8."""
    rng = np.random.default_rng(1)
    probs, labels = world(rng, 600)
    sets = ConformalPredictor.fit(probs, labels, alpha=0.1, calibration=kind(), seed=2)
    assert type(sets.calibration) is kind and sets.fitted_to["examples"] == 300
    slack = 6 * np.sqrt(0.9 * 0.1 / 300)
    assert sets.coverage(*world(rng, 20_000)).coverage > 0.9 - slack


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_carries_its_calibration(kind, tmp_path):
    given = kind()
    rule = RejectionRule.fit(PROBS, Y, target_risk=0.3, calibration=given, seed=1)
    assert not given.is_fitted and rule.calibration.fitted_to["examples"] == 300
    assert rule.fitted_to["examples"] == 300 and "300 other cases" in rule.describe()
    bare = RejectionRule(**{**rule.get_config(), "calibration": None})
    calibrated = rule.calibration(PROBS)
    np.testing.assert_allclose(rule.score_of(PROBS), bare.score_of(calibrated), atol=1e-6)
    np.testing.assert_array_equal(rule.accept(PROBS), bare.accept(calibrated))
    graph = rule.transform(keras.ops.convert_to_tensor(PROBS, "float32"))
    np.testing.assert_allclose(graph["probabilities"], calibrated, atol=1e-6)
    np.testing.assert_allclose(graph["score"], rule.score_of(PROBS), atol=1e-6)
    found = decompose(PROBS[None])
    np.testing.assert_allclose(rule.score_of(found), rule.score_of(PROBS), atol=1e-6)
    rule.save(tmp_path / "rule.json")
    assert RejectionRule.load(tmp_path / "rule.json") == rule
    sets = ConformalPredictor.fit(PROBS, Y, calibration=kind())
    assert ConformalPredictor.from_json(sets.to_json()) == sets
    assert len(repr(rule).splitlines()) < 6 and kind.__name__ in repr(rule)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_stacks_are_calibrated_alike(kind):
    given = {"target_risk": 0.3, "seed": 3}
    one = RejectionRule.fit(PROBS, Y, calibration=kind(), **given)
    logits = RejectionRule.fit(LOGITS, Y, from_logits=True, calibration=kind(), **given)
    stack = RejectionRule.fit(np.stack([PROBS] * 3), Y, calibration=kind(), **given)
    assert logits.threshold == pytest.approx(one.threshold, abs=1e-4)
    assert stack.threshold == pytest.approx(one.threshold, abs=1e-4)
    np.testing.assert_allclose(logits.score_of(LOGITS), one.score_of(PROBS), atol=1e-4)
    np.testing.assert_allclose(
        stack.score_of(np.stack([PROBS] * 2)), one.score_of(PROBS), atol=1e-4
    )


def test_binary_stacks_and_columns_are_calibrated_alike():
    probs, labels = world(RNG, 400)
    given = {"target_coverage": 0.5, "calibration": TemperatureScaling()}
    rule = RejectionRule.fit(probs, labels, **given)
    expected = rule.score_of(probs)
    np.testing.assert_allclose(rule.score_of(probs[:, None]), expected, atol=1e-6)
    stacked = np.stack([probs] * 2)
    np.testing.assert_allclose(rule.score_of(stacked, stacked=True), expected, atol=1e-6)
    np.testing.assert_allclose(rule.score_of(stacked[..., None]), expected, atol=1e-6)


def test_a_prediction_that_is_none_is_not_accepted():
    rule = RejectionRule.fit(PROBS, Y, target_coverage=1.0, calibration=IsotonicCalibration())
    rows = PROBS[:3].astype("float32")
    rows[1, 0] = np.nan
    assert not rule.accept(rows)[1] and rule.accept(rows)[0]
    with pytest.raises(ValueError, match="sum to 1"):
        rule.accept(PROBS * 0.5)
    graph = rule.transform(keras.ops.convert_to_tensor(PROBS[:3] * 0.5, "float32"))
    assert not np.any(graph["accept"]) and np.all(np.isnan(graph["score"]))


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_output_on_the_same_rows_is_refused(kind, tmp_path):
    kind().fit(PROBS, Y).save(tmp_path / "c.json")
    scaling = kind.load(tmp_path / "c.json")
    probs, order = scaling(PROBS), np.random.default_rng(0).permutation(600)
    for rows in (slice(None), order):
        with pytest.raises(ValueError, match=SAME):
            RejectionRule.fit(probs[rows], Y[rows], target_risk=0.3)
        with pytest.raises(ValueError, match=SAME):
            ConformalPredictor.fit(probs[rows], Y[rows])
    half = kind().fit(PROBS[:300], Y[:300])
    rule = RejectionRule.fit(half(PROBS[300:]), Y[300:], target_risk=0.3)
    assert "other cases" in rule.describe()
    assert RejectionRule.fit(PROBS, Y, target_risk=0.3).calibration is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("binary", [False, True], ids=["classes", "binary"])
def test_rows_that_overlap_in_part_are_counted(kind, binary, tmp_path):
    """A third of the rows; whatever is chosen from the calibrated array, in any order."""
    raw, labels = (PROBS[:, 1], (Y == 1).astype(int)) if binary else (PROBS, Y)
    kind().fit(raw[:300], labels[:300]).save(tmp_path / "c.json")
    assert (tmp_path / "c.json").stat().st_size < 20_000
    probs = kind.load(tmp_path / "c.json")(raw)
    rows = np.random.default_rng(0).permutation(np.r_[0:100, 300:500])
    for fit in (RejectionRule.fit, ConformalPredictor.fit):
        options = {"target_coverage": 0.8}
        with pytest.raises(
            ValueError, match=r"about (9\d|1\d\d) are of rows that .* was fitted to"
        ):
            fit(probs[rows], labels[rows], **options)
        with pytest.raises(ValueError, match=r"about (2[89]\d|3\d\d) are"):
            fit(probs.astype("float64"), labels, **options)
        fit(probs[300:], labels[300:], **options)
        fit(probs[np.arange(600) >= 300], labels[300:], **options)
        if kind is not IsotonicCalibration:  # plain numbers, as read from a file
            with pytest.raises(ValueError, match=r"about \d+ are of rows that .* was fitted to"):
                fit(np.array(probs)[rows], labels[rows], **options)
        fit(np.array(probs)[300:], labels[300:], **options)


def test_few_of_many_rows_are_estimated():
    """A sample of 512 of 20,000: 2,000 shared are found to five deviations and 5 %."""
    raw, labels = world(np.random.default_rng(5), 30_000)
    probs = TemperatureScaling().fit(raw[:20_000], labels[:20_000])(raw)
    with pytest.raises(ValueError, match="about") as caught:
        RejectionRule.fit(probs[18_000:], labels[18_000:], target_coverage=0.8)
    found = int(str(caught.value).split("about ")[1].split()[0])
    assert abs(found - 2000) < 5 * np.sqrt(2000 * 20_000 / 512) + 100


def test_new_rows_are_not_taken_for_known_ones():
    """Votes of 30 networks and saturated probabilities, which repeat; a rate of 1e-5 at most."""
    rng = np.random.default_rng(6)
    for raw in (rng.binomial(30, 0.7, 4000) / 30, rng.beta(0.05, 0.05, 4000)):
        labels = (rng.random(4000) < raw).astype(int)
        for kind in KINDS:
            probs = kind().fit(raw[:2000], labels[:2000])(raw)
            RejectionRule.fit(probs[2000:], labels[2000:], target_coverage=0.8)


def test_a_damaged_sketch_is_refused():
    content = TemperatureScaling().fit(PROBS, Y).get_config()
    for hashes in ("", "?", "AAA=", 3):
        sketches = {
            name: {"rows": 3, "single": 3, "pairs": 0, "hashes": hashes}
            for name in ("calibrated", "raw")
        }
        given = content | {"fitted_to": content["fitted_to"] | {"sketches": sketches}}
        with pytest.raises(ValueError, match="`fitted_to` must"):
            TemperatureScaling(**given)


def test_a_calibration_of_logits_knows_its_rows_too():
    scaling = TemperatureScaling(from_logits=True).fit(LOGITS, Y)
    with pytest.raises(ValueError, match=SAME):
        RejectionRule.fit(scaling(LOGITS), Y, target_risk=0.3, from_logits=True)
    binary = np.log(PROBS[:, 1] / (1 - PROBS[:, 1])), (Y == 1).astype(int)
    scaling = TemperatureScaling(from_logits=True).fit(*binary)
    with pytest.raises(ValueError, match=SAME):
        ConformalPredictor.fit(scaling(binary[0]), binary[1], from_logits=True)


def test_files_of_before_load():
    scaling = TemperatureScaling().fit(PROBS, Y)
    for fitted in (scaling, RejectionRule.fit(PROBS, Y, target_risk=0.3)):
        content = json.loads(fitted.to_json())
        assert "calibration" not in content["config"]
        content["config"].pop("fitted_to", None) if fitted is scaling else None
        found = type(fitted).from_json(json.dumps(content))
        assert "calibration" not in found.get_config()


BAD = [
    ("calibration", {"calibration": TemperatureScaling(2.0)}),
    ("calibration", {"calibration": "isotonic"}),
    ("calibration_share", {"calibration_share": 0.0}),
    ("calibration_share", {"calibration_share": 2}),
    ("seed", {"seed": -1}),
    ("from_logits", {"calibration": TemperatureScaling(from_logits=True)}),
]


@pytest.mark.parametrize("argument, options", BAD)
@pytest.mark.parametrize("kind", [RejectionRule, ConformalPredictor])
def test_bad_input_is_refused(kind, argument, options):
    given = {"calibration": IsotonicCalibration()} | options
    given |= {"target_coverage": 0.5}
    with pytest.raises(ValueError, match=f"(?s)`{argument}` must .*Received: "):
        kind.fit(PROBS, Y, **given)


def test_scores_of_stacks_take_no_calibration():
    stack = np.stack([PROBS, PROBS[:, ::-1]])
    given = {"target_coverage": 0.5, "calibration": TemperatureScaling()}
    with pytest.raises(ValueError, match="`calibration` must be None for the score"):
        RejectionRule.fit(stack, Y, "mutual_information", **given)
