"""Rules whose thresholds are declared beforehand: a fixed sequence, each at the whole error."""

import warnings

import keras
import numpy as np
import pytest
from scipy import stats

from tfuq._math.bounds import hoeffding_bentkus_p_value
from tfuq.predictive import RegressionUncertainty
from tfuq.selective import RejectionRule, UnattainableRisk
from tfuq.selective._declared_thresholds import declared_levels, last_in_sequence, table_of
from tfuq.selective._guarantees import METHODS, Sums

DECLARED = np.linspace(0.9, 0.5, 9)


def binary(count=1000, seed=0):
    """Probabilities of two classes that are what they say, and labels."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.5, 1, count)
    return np.stack([1 - p, p], -1), (rng.random(count) < p).astype(int)


def by_hand(score, wrong, thresholds, risk, delta=0.05):
    """The last threshold before the first that fails, of a score of trust, or None."""
    found = None
    for threshold in thresholds:
        accepted = score >= np.float32(threshold)
        if stats.binom.cdf(wrong[accepted].sum(), accepted.sum(), risk) > delta:
            return found
        found = threshold
    return found


@pytest.mark.parametrize("risk", [0.12, 0.15, 0.2, 0.3])
def test_a_rule_ends_where_the_sequence_says(risk):
    for seed in range(5):
        probs, labels = binary(300, seed)
        score, wrong = probs.max(-1).astype("float32"), probs.argmax(-1) != labels
        expected = by_hand(score, wrong, DECLARED, risk)
        for order in (DECLARED, DECLARED[::-1]):
            if expected is None:
                with pytest.raises(UnattainableRisk, match=r"the first of 9 `thresholds`, 0\.9"):
                    RejectionRule.fit(probs, labels, target_risk=risk, thresholds=order)
                continue
            rule = RejectionRule.fit(probs, labels, target_risk=risk, thresholds=order.tolist())
            assert rule.threshold == expected  # as it was declared, not in float32
            assert rule.accept(probs).sum() == rule.fitted_to["accepted"]
            assert rule.fitted_to["coverage"] == np.mean(score >= np.float32(expected))
            assert rule.fitted_to["risk"] == pytest.approx(wrong[rule.accept(probs)].mean())


def test_a_score_of_doubt_goes_the_other_way():
    probs, labels = binary()
    entropy = -np.sum(probs * np.log(probs), -1).astype("float32")
    declared = np.linspace(0.3, 0.69, 9)
    rule = RejectionRule.fit(
        probs, labels, "predictive_entropy", target_risk=0.2, thresholds=declared[::-1]
    )
    wrong = probs.argmax(-1) != labels
    assert rule.threshold == -by_hand(-entropy, wrong, -declared, 0.2)
    assert rule.fitted_to["thresholds"] == declared.tolist()  # from the most trusted on


@pytest.mark.parametrize("world", ["flat", "cliff", "late", "tied"])
def test_the_target_is_exceeded_in_no_more_sets_than_promised(world):
    """A right rule fails once in 10,000 runs: of 4000 sets, and the deviation of such a share."""
    rates = {
        "flat": np.full(6, 0.1001),  # every threshold is too lenient, just
        "cliff": np.array([0.03, 0.05, 0.9, 0.1, 0.1, 0.1]),
        "late": np.array([0.5, 0.02, 0.02, 0.02, 0.02, 0.5]),  # too lenient, safe, too lenient
        "tied": np.array([0.06, 0.1, 0.241, 0.1, 0.1, 0.1]),
    }[world]
    share = {"tied": [0.7, 0.02, 0.2, 0.04, 0.02, 0.02]}.get(world, np.full(6, 1 / 6))
    risks = np.cumsum(rates * share) / np.cumsum(share)
    assert np.any(risks > 0.1)
    rng, sets, exceeded = np.random.default_rng(8), 4000, 0
    thresholds = 1 - np.arange(6) / 6
    for _ in range(sets):
        place = rng.choice(6, 250, p=share)
        score = (1 - place / 6).astype("float32")
        wrong = rng.random(250) < rates[place]
        sums = declared_levels(thresholds, score, np.ones(250, bool), wrong, 1)[1]
        last = last_in_sequence(table_of(None, *sums[1:], True), 0.1, 0.05)
        exceeded += last is not None and risks[last] > 0.1
    assert exceeded / sets <= stats.binom.ppf(1 - 1e-4, sets, 0.05) / sets
    if world in ("flat", "tied"):  # it spends its error: a rule that refuses holds, too
        assert exceeded / sets > 0.02


def test_a_score_of_three_is_accepted_as_with_its_values_declared():
    """The same 200 sets for both, whose seed is fixed."""
    rng, mine, usual = np.random.default_rng(9), 0.0, 0.0
    for _ in range(200):
        place = rng.integers(3, size=500)
        wrong = rng.random(500) < np.array([0.03, 0.045, 0.25])[place]
        sums = declared_levels(-np.arange(3.0), -place, np.ones(500, bool), wrong, 1)[1]
        table = Sums(sums[1], sums[2].astype("float64"), True)
        for level, which in (
            (last_in_sequence(table, 0.05, 0.05), 0),
            (METHODS["auto"](table, 0.05, 0.05), 1),
        ):
            part = 0 if level is None else (level + 1) / 3
            mine, usual = (mine + part, usual) if which == 0 else (mine, usual + part)
    assert mine > 0 and usual > 0.95 * mine  # it was less than .77 with one draw of equal scores


def test_losses_of_images_are_means_over_them():
    rng = np.random.default_rng(2)
    quality = rng.uniform(0.5, 1, (800, 1, 1))
    p = np.clip(quality + 0.1 * rng.normal(size=(800, 4, 4)), 0.5, 1)
    labels = (rng.random(p.shape) < p).astype(int)
    declared, risk = [0.8, 0.7, 0.6, 0.5], 0.22
    probs = np.stack([1 - p, p], -1)
    rule = RejectionRule.fit(probs, labels, target_risk=risk, thresholds=declared)
    expected = None
    for threshold in declared:
        accepted = p.astype("float32") >= np.float32(threshold)
        mean = np.mean((accepted * (labels == 0.0) - risk * accepted).mean((1, 2))) + risk
        if hoeffding_bentkus_p_value(mean, 800, risk) > 0.05:
            break
        expected = threshold
    assert rule.threshold == expected and expected in declared[:-1]
    assert rule.fitted_to["coverage"] == pytest.approx(
        np.mean(p.astype("float32") >= np.float32(expected))
    )


def test_each_class_group_and_label_has_its_own_end():
    probs, labels = binary(2000)
    flipped = probs.copy()
    flipped[1000:] = flipped[1000:, ::-1]
    true = np.concatenate([labels[:1000], 1 - labels[1000:]])
    options = {"target_risk": 0.2, "thresholds": DECLARED}
    rule = RejectionRule.fit(flipped, true, by="class", **options)
    for key, threshold in zip(rule.keys, rule.threshold, strict=True):
        rows = flipped.argmax(-1) == key
        wrong, score = true[rows] != key, flipped.max(-1)[rows].astype("float32")
        assert threshold == by_hand(score, wrong, DECLARED, 0.2)
    groups = np.repeat(["good", "bad"], 1000)
    worse = np.where(groups == "bad", np.arange(2000) % 2, labels)
    with pytest.warns(UserWarning, match="the first of 9 `thresholds`.*all rejected"):
        rule = RejectionRule.fit(probs, worse, by="group", groups=groups, **options)
    assert dict(zip(rule.keys, rule.threshold, strict=True))["bad"] == np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = RejectionRule.fit(
            probs, np.stack([1 - labels, labels], -1), multi_label=True, by="label", **options
        )
    assert found.keys == [0, 1] and np.all(np.isin(found.threshold, DECLARED))


def test_numbers_have_declared_thresholds_and_images_of_them_give_no_rows_away():
    rng = np.random.default_rng(4)
    scale = rng.uniform(0.1, 3, (400, 1))
    options = {"tolerance": 1.0, "target_risk": 0.2, "thresholds": [0.25, 0.5, 0.75, 1.0]}
    found = RegressionUncertainty(np.stack([0 * scale, scale], -1)[None, :, 0], "normal")
    y = scale * rng.normal(size=scale.shape)
    rule = RejectionRule.fit(found, y[:, 0], **options)
    wrong, std = np.abs(y[:, 0]) > 1, found.std.astype("float32").ravel()
    expected = by_hand(-std, wrong, -np.array(options["thresholds"]), 0.2)
    assert rule.threshold == -expected and rule.fitted_to["examples"] == 400
    assert "one of 4 that were declared" in rule.describe()


def test_a_rule_keeps_and_tells_what_was_declared(tmp_path):
    probs, labels = binary()
    rule = RejectionRule.fit(probs, labels, target_risk=0.2, thresholds=DECLARED)
    report = rule.fitted_to
    assert (report["method"], report["thresholds"]) == ("fixed_sequence", DECLARED.tolist())
    assert "one of 9 that were declared before these cases" in rule.describe()
    rule.save(tmp_path / "rule.json")
    assert RejectionRule.load(tmp_path / "rule.json") == rule
    model = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
    model.compile(loss="sparse_categorical_crossentropy")
    whole = rule.append_to(model)
    whole.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    edge = np.array([[1 - t, t] for t in np.float32(DECLARED)], "float32")
    assert np.array_equal(again.predict(edge, verbose=0)["accept"].ravel(), rule.accept(edge))
    damaged = {**report, "thresholds": ["a"]}
    with pytest.raises(ValueError, match="thresholds that are no numbers"):
        RejectionRule("confidence", 0.7, fitted_to=damaged)


def test_the_refusal_says_what_the_first_threshold_has():
    probs, labels = binary()
    with pytest.raises(UnattainableRisk, match="At least 14 are needed there") as caught:
        RejectionRule.fit(probs, labels, target_risk=0.2, thresholds=[0.999, 0.6])
    assert "accepts 1 of 1000" in str(caught.value) and caught.value.examples_needed == 14
    with pytest.raises(UnattainableRisk, match=r"mean loss of 0\.2") as caught:
        RejectionRule.fit(probs, labels, target_risk=0.2, thresholds=[0.5])
    assert caught.value.coverage == 1
    risk = caught.value.best_risk
    RejectionRule.fit(probs, labels, target_risk=risk + 1e-6, thresholds=[0.5])
    with pytest.raises(UnattainableRisk):
        RejectionRule.fit(probs, labels, target_risk=risk - 1e-6, thresholds=[0.5])


REFUSED = {
    "of a percentage": ({"thresholds": [70, 80]}, "from 0.5.* to 0.99.*none of these"),
    "twice the same": ({"thresholds": [0.9, 0.9, 0.5]}, r"np.unique.*\[0.9, 0.9, 0.5\]"),
    "the same in float32": ({"thresholds": [0.9, 0.9 + 1e-9]}, "differ in float32"),
    "in no order": ({"thresholds": [0.5, 0.9, 0.7]}, "ascending or descending"),
    "with NaN": ({"thresholds": [0.9, np.nan]}, "no NaN"),
    "infinite": ({"thresholds": [0.9, np.inf]}, "finite numbers"),
    "above all of float32": ({"thresholds": [0.9, 1e39]}, "finite numbers"),
    "none": ({"thresholds": []}, r"Received: thresholds=\[\]"),
    "a number": ({"thresholds": 0.9}, "a list of finite"),
    "a table": ({"thresholds": [[0.9, 0.8]]}, "a list of finite"),
    "a text": ({"thresholds": "0.9"}, "a list of finite|hold numbers"),
    "flags": ({"thresholds": [True, False]}, "hold numbers"),
    "too many": ({"thresholds": np.linspace(0.5, 1, 1001)}, "at most 1000.*Received: 1001"),
    "with another method": ({"method": "ltt"}, "with method='ltt'"),
    "for a coverage": ({"target_risk": None, "target_coverage": 0.5}, "with target_risk=None"),
    "for costs": ({"target_risk": None, "costs": {"error": 1}}, "with target_risk=None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misuse_is_refused(case):
    options, message = REFUSED[case]
    options = {"target_risk": 0.2, "thresholds": DECLARED, **options}
    with pytest.raises(ValueError, match=message):
        RejectionRule.fit(*binary(), **options)


def test_scores_of_the_rows_themselves_are_seen():
    probs, labels = binary()
    for some in (np.sort(probs.max(-1)), np.sort(probs.max(-1))[::100]):
        with pytest.raises(ValueError, match="all of them scores of these examples"):
            RejectionRule.fit(probs, labels, target_risk=0.2, thresholds=some)
    coarse = np.round(probs, 1)  # of six values, which are declared
    rule = RejectionRule.fit(
        coarse, labels, target_risk=0.2, thresholds=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    )
    assert rule.threshold in (0.6, 0.7, 0.8)
