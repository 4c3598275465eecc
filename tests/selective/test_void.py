"""Void labels, masks and weights of 0, in all of selective that takes labels: as if not there."""

import dataclasses
import functools
import inspect

import numpy as np
import pytest

import tfuq
from tfuq import selective
from tfuq.metrics import expected_calibration_error
from tfuq.selective import ConformalPredictor, RejectionRule, TemperatureScaling

VOID = 255
RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet([0.5] * 3, size=400)
Y = (RNG.random((400, 1)) > PROBS.cumsum(axis=1)).sum(axis=1).clip(0, 2)
KNOWN = RNG.random(400) < 0.7
GROUPS = np.where(np.arange(400) % 2, "a", "b")


def rule_of(probs, y, groups=None, **void):
    return RejectionRule.fit(probs, y, target_risk=0.2, **void).get_config()


def rule_by_group(probs, y, groups, **void):
    options = {"by": "group", "groups": groups, "target_risk": 0.3}
    return RejectionRule.fit(probs, y, **options, **void).get_config()


def several(probs, y, groups=None, **void):
    losses = [("error", 0.25), (lambda p, k: p.argmax(-1) != k, 0.25), ("recall of 1", 0.6)]
    return RejectionRule.fit(probs, y, loss=losses, **void).get_config()


def evaluated(probs, y, groups=None, **void):
    return RejectionRule("confidence", 0.6).evaluate(probs, y, **void)


def sets_of(probs, y, groups=None, **void):
    return ConformalPredictor.fit(probs, y, alpha=0.1, class_conditional=True, **void).get_config()


def sets_by_group(probs, y, groups, **void):
    return ConformalPredictor.fit(probs, y, alpha=0.1, groups=groups, **void).get_config()


def covered(probs, y, groups=None, **void):
    sets = ConformalPredictor("aps", 0.8)
    return sets.coverage(probs, y, **void), sets.evaluate(probs, y, **void)


def scaled(kind):
    def fit(probs, y, groups=None, **void):
        options = {"strength": 0.1} if kind == "DirichletCalibration" else {}
        config = getattr(selective, kind)(**options).fit(probs, y, **void).get_config()
        return {name: value for name, value in config.items() if name != "fitted_to"}

    return fit


def curve(name, *given):
    function = getattr(selective, name)
    return lambda probs, y, groups=None, **void: function(probs, y, *given, **void)


def report(probs, y, groups, **void):
    rule = RejectionRule("confidence", 0.6)
    return selective.subgroup_report(rule, probs, y, groups, target_risk=0.2, **void)


def deferred(probs, y, groups=None, **void):
    return selective.simulate_deferral(0.6, probs, y, expert=0.9, **void)


def in_stages(probs, y, groups=None, **void):
    return selective.cascade([(probs, 0.6), (probs[:, ::-1], 0.5)], y, **{"expert": 0.9, **void})


CALIBRATIONS = ("TemperatureScaling", "VectorScaling", "IsotonicCalibration", "BetaCalibration")
CALIBRATIONS += ("DirichletCalibration", "VennAbersCalibration")
# What takes labels, and leaves out what is void. By the public names that each row stands for.
TAKES = {
    "RejectionRule.fit": rule_of,
    "RejectionRule.fit by group": rule_by_group,
    "RejectionRule.fit of several losses": several,
    "RejectionRule.evaluate": evaluated,
    "ConformalPredictor.fit": sets_of,
    "ConformalPredictor.fit by group": sets_by_group,
    "ConformalPredictor.evaluate": covered,
    **{f"{kind}.fit": scaled(kind) for kind in CALIBRATIONS},
    **{name: curve(name) for name in ("aurc", "augrc", "eaurc", "risk_coverage_curve")},
    "generalized_risk_coverage_curve": curve("generalized_risk_coverage_curve"),
    "coverage_at_risk": curve("coverage_at_risk", 0.1),
    "risk_at_coverage": curve("risk_at_coverage", 0.5),
    "gap": curve("gap"),
    "quadratic_weighted_kappa": curve("quadratic_weighted_kappa"),
    "kappa_referral_curve": curve("kappa_referral_curve"),
    "subgroup_report": report,
    "simulate_deferral": deferred,
    "cascade": in_stages,
}
# Those that take rows of labels and refuse void ones: whoever calls leaves out the rows.
REFUSE = {
    "average_thresholded_confidence": lambda p, y: selective.average_thresholded_confidence(
        p, y, p
    ),
    "difference_of_confidences": lambda p, y: selective.difference_of_confidences(p, y, p),
    "black_box_shift_estimation": lambda p, y: selective.black_box_shift_estimation(p, y, p),
    "best_score": lambda p, y: selective.best_score(p, y, ["confidence", "margin"]),
    "choose_p": lambda p, y: selective.choose_p(np.log(p), y),
    "RejectionRule.fit": lambda p, y: rule_of(p, y),
    "ConformalPredictor.fit": lambda p, y: sets_of(p, y),
    "aurc": lambda p, y: selective.aurc(p, y),
    "subgroup_report": lambda p, y: report(p, y, GROUPS),
}
ELSEWHERE = {
    "Monitor": "labels may be None or NaN: tests/selective/test_monitor.py",
    "MaskRiskControl": "masks of 0 and 1, no classes",
    "RegressionRule": "numbers, which may be anything",
    "ConformalRegressor": "numbers",
    "AdaptiveConformal": "numbers",
    "ErrorPredictor": "detectors are fitted to rows of a model",
    "CombinedScore": "the same",
    "shift_report": "label_map says what is left out",
}


def equal(found, expected):
    """Compares results part by part: arrays and numbers to rounding, all else exactly."""
    if dataclasses.is_dataclass(found):
        found, expected = vars(found), vars(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            equal(found[key], expected[key])
    elif isinstance(found, (tuple, list)):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            equal(*pair)
    elif isinstance(found, str) or found is None:
        assert found == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


FORMS = {
    "ignore_class": (np.where(KNOWN, Y, VOID), {"ignore_class": VOID}),
    "weights of 0": (np.where(KNOWN, Y, 0), {"sample_weight": KNOWN.astype("float64")}),
    "a mask": (np.where(KNOWN, Y, 1), {"sample_weight": KNOWN}),
    "both": (
        np.where(np.arange(400) < 200, np.where(KNOWN, Y, VOID), Y),
        {"ignore_class": VOID, "sample_weight": KNOWN | (np.arange(400) < 200)},
    ),
}


@functools.cache
def without(name):
    return TAKES[name](PROBS[KNOWN], Y[KNOWN], GROUPS[KNOWN])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TAKES)
def test_what_is_void_is_as_if_it_were_not_there(name, form):
    labels, void = FORMS[form]
    probs = PROBS.copy()
    probs[~KNOWN] = PROBS[~KNOWN][:, ::-1]  # whatever is predicted there
    found = TAKES[name](probs, labels, GROUPS, **void)
    equal(found, without(name))


@pytest.mark.parametrize("name", REFUSE)
def test_void_labels_that_nobody_speaks_of_are_refused(name):
    with pytest.raises(ValueError, match="255"):
        REFUSE[name](PROBS, np.where(KNOWN, Y, VOID))


def test_all_that_takes_labels_is_in_one_of_the_tables():
    said = {name.split(" ")[0].split(".")[0] for name in [*TAKES, *REFUSE, *ELSEWHERE]}
    for name in selective.__all__:
        thing = getattr(selective, name)
        methods = [thing] if inspect.isfunction(thing) else [
            getattr(thing, m) for m in ("fit", "evaluate", "update") if hasattr(thing, m)
        ]  # fmt: skip
        asked = [m for m in methods if {"labels", "y"} & set(inspect.signature(m).parameters)]
        assert not asked or name in said, name


# --- Images, one-hot labels, stacks and texts ---------------------------------------------------


def pixels():
    probs, y, known = PROBS.reshape(100, 2, 2, 3), Y.reshape(100, 2, 2), KNOWN.reshape(100, 2, 2)
    return probs, y, known.copy()


def test_void_pixels():
    probs, y, known = pixels()
    void = {"ignore_class": VOID}
    labels = np.where(known, y, VOID)
    rule = RejectionRule.fit(probs, labels, target_coverage=0.5, **void)
    assert rule.fitted_to["decisions"] == known.sum()
    assert rule.fitted_to["accepted"] == (rule.accept(probs) & known).sum()
    found = rule.evaluate(probs, labels, **void)
    accepted = rule.accept(probs)[known]
    wrong = (probs.argmax(-1) != y)[known]
    assert (found.examples, found.accepted) == (known.sum(), accepted.sum())
    assert found.risk == pytest.approx(wrong[accepted].mean())
    assert np.isnan(found.risk_lower)  # pixels of an image are no sample
    assert found.accuracy == pytest.approx(1 - wrong.mean())
    strict = RejectionRule.fit(probs, labels, target_risk=0.6, **void)
    assert strict.evaluate(probs, labels, **void).risk < 0.6
    same = RejectionRule.fit(probs, y, target_risk=0.6, sample_weight=known)
    assert same.threshold == strict.threshold
    sets = ConformalPredictor.fit(probs, labels, alpha=0.1, **void)
    coverage = sets.coverage(probs, labels, **void).coverage
    held = np.take_along_axis(sets.predict_set(probs), y[..., None], -1)[..., 0]
    used = known.any(axis=(1, 2))
    shares = (held & known)[used].sum((1, 2)) / known[used].sum((1, 2))
    assert coverage == pytest.approx(shares.mean()) and coverage >= 0.9
    report = selective.subgroup_report(rule, probs, labels, GROUPS[:100], target_risk=0.5, **void)
    for row in report:
        inside = known & ((row.group == "all") | (GROUPS[:100] == row.group))[:, None, None]
        right, accepted = (probs.argmax(-1) == y)[inside], rule.accept(probs)[inside]
        assert row.n == inside.any(axis=(1, 2)).sum()
        assert row.accuracy == pytest.approx(right.mean())
        assert row.coverage == pytest.approx(accepted.mean())
        assert row.risk == pytest.approx(1 - right[accepted].mean())
        expected = expected_calibration_error(y[inside], probs[inside], n_bins=15)
        assert row.ece == pytest.approx(expected, abs=1e-6)
    broken = np.where(known[..., None], probs, np.nan)  # whatever is predicted there
    assert selective.subgroup_report(rule, broken, labels, GROUPS[:100], **void).rows[0].n == (
        report.rows[0].n
    )
    whole = np.where(np.arange(100)[:, None, None] < 40, VOID, y)
    report = selective.subgroup_report(None, probs, whole, GROUPS[:100], **void)
    assert report.rows[0].n == 60
    with pytest.raises(ValueError, match="must be a number if pixels have void labels"):
        ConformalPredictor.fit(probs, labels, "raps", penalty="tuned", **void)


def test_one_hot_stacks_names_and_predictions_that_are_not_finite():
    plain = RejectionRule.fit(PROBS[KNOWN], Y[KNOWN], target_risk=0.2)
    stack = np.stack([PROBS, PROBS])
    found = RejectionRule.fit(stack, Y, target_risk=0.2, sample_weight=KNOWN)
    assert found.threshold == pytest.approx(plain.threshold)
    broken = PROBS.copy()
    broken[~KNOWN] = np.nan
    assert rule_of(broken, Y, sample_weight=KNOWN)["threshold"] == plain.threshold
    names = np.where(KNOWN, np.array(["x", "y", "z"])[Y], "void")
    found = RejectionRule.fit(
        PROBS, names, target_risk=0.2, ignore_class="void", class_names=["x", "y", "z"]
    )
    assert found.threshold == plain.threshold
    one_hot = selective.aurc(PROBS, np.eye(3)[Y], ignore_class=2)
    assert one_hot == pytest.approx(selective.aurc(PROBS[Y != 2], Y[Y != 2]))
    score = -PROBS.max(-1)
    score[~KNOWN] = np.nan
    given = RejectionRule.fit(PROBS, Y, score=score, target_risk=0.2, sample_weight=KNOWN)
    assert given.fitted_to["accepted"] == plain.fitted_to["accepted"]
    fitted = RejectionRule.fit(
        PROBS, np.where(KNOWN, Y, VOID), target_risk=0.3, ignore_class=VOID,
        calibration=TemperatureScaling(),
    )  # fmt: skip
    assert fitted.fitted_to["examples"] < 0.6 * KNOWN.sum()


def test_labels_of_their_own():
    y = (RNG.random((400, 3)) < PROBS).astype(int)
    known = RNG.random((400, 3)) < 0.8
    labels = np.where(known, y, -1)
    options = {"multi_label": True, "by": "label", "target_risk": 0.3}
    rule = RejectionRule.fit(PROBS, labels, ignore_class=-1, **options)
    for k in range(3):
        rows = known[:, k]
        alone = RejectionRule.fit(PROBS[rows, k], y[rows, k], target_risk=0.3)
        assert rule.threshold[k] == alone.threshold
    sets = ConformalPredictor.fit(PROBS, labels, multi_label=True, ignore_class=-1)
    alone = ConformalPredictor.fit(PROBS[known[:, 1], 1], y[known[:, 1], 1])
    assert sets.threshold[1] == pytest.approx(alone.threshold)
    labels[:, 1] = -1
    with pytest.raises(ValueError, match=r"known labels of each label.*none of \[1\]"):
        RejectionRule.fit(PROBS, labels, ignore_class=-1, **options)


@pytest.mark.parametrize("void", [255, 1])
def test_labels_of_one_column_are_no_one_hot_ones(void):
    """Binary labels `(n, 1)`: what is void is their number, not the place of the largest."""
    probs, labels = PROBS[:, :1], (PROBS[:, 0] > 0.4).astype(int)
    labels[:50] = void
    known = labels != void
    for y in (labels, labels[:, None]):
        rule = RejectionRule.fit(probs, y, target_coverage=0.5, ignore_class=void)
        assert rule.fitted_to["examples"] == known.sum()


@pytest.mark.parametrize(
    "message, void",
    [
        ("mask of 0 and 1", {"sample_weight": np.full(400, 0.5)}),
        ("mask of 0 and 1", {"sample_weight": np.ones(399)}),
        ("leave known labels", {"sample_weight": np.zeros(400)}),
        ("`ignore_class` must be None or the void label", {"ignore_class": 2.5}),
        ("`ignore_class` must be None or the void label", {"ignore_class": True}),
        ("leading axes", {"ignore_class": 2, "sample_weight": np.ones(7)}),
    ],
)
def test_refused(message, void):
    for call in (rule_of, sets_of, evaluated):
        with pytest.raises(ValueError, match=message):
            call(PROBS, Y, **void)


def test_numbers_have_no_void_class():
    found = tfuq.predictive.RegressionUncertainty(np.ones((1, 5, 2)), "normal")
    with pytest.raises(ValueError, match="ignore_class"):
        RejectionRule.fit(found, np.ones(5), tolerance=1.0, target_risk=0.1, ignore_class=0)
    with pytest.raises(ValueError, match="`ignore_class` must be None for numbers"):
        selective.simulate_deferral(0.6, found, np.ones(5), expert=0.9, ignore_class=0)
