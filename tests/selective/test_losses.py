"""Losses of rules beside errors: precision, recall, classes together, and several promises."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfuq.export import export
from tfuq.selective import RejectionRule, UnattainableRisk, subgroup_report
from tfuq.selective._joint_fitting import last_of_all, of_single
from tfuq.selective._losses import Loss, Promise
from tfuq.selective._rule_fitting import Read

CONFIDENCE = 0.95
NAMES = ["nevus", "melanoma", "bcc"]
BOTH = {"error": 0.15, "false negatives of melanoma": 0.15}


def draw(count, seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([0.4] * 3, size=count)
    return probs, (rng.random((count, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 2)


PROBS, Y = draw(2000, 0)
ANSWER = PROBS.argmax(-1)
NEW, NEW_Y = draw(4000, 1)
RULE = RejectionRule.fit(PROBS, Y, loss=BOTH, class_names=NAMES)


def fit(**options):
    return RejectionRule.fit(PROBS, Y, class_names=NAMES, **options)


# --- One loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss, classes, belongs, lost",
    [
        ("precision", "melanoma", ANSWER == 1, Y != 1),
        ("precision", 2, ANSWER == 2, Y != 2),
        ("precision", ["melanoma", "bcc"], ANSWER > 0, Y == 0),
        ("recall", 1, Y == 1, ANSWER != 1),
        ("false_negative", (1, 2), Y > 0, ANSWER == 0),
    ],
)
def test_the_threshold_is_that_of_errors_among_what_belongs(loss, classes, belongs, lost):
    """The oracle is the method itself on the rows that belong, their losses as errors."""
    rule = fit(loss=loss, positive_class=classes, target_risk=0.15)
    score = PROBS.max(-1)[belongs]
    alone = RejectionRule.fit(
        np.stack([np.ones(len(score)), np.zeros(len(score))], -1),
        lost[belongs].astype(int),
        score=-score,
        target_risk=0.15,
    )
    assert rule.threshold == pytest.approx(-alone.threshold, abs=1e-7)
    accepted = rule.accept(PROBS)
    found = rule.fitted_to
    assert found["risk"] == pytest.approx(lost[accepted & belongs].mean())
    assert found["loss"] == loss
    assert rule.evaluate(PROBS, Y).risk == pytest.approx(found["risk"])
    assert RejectionRule.from_json(rule.to_json()) == rule


def test_the_text_names_loss_and_class():
    for text, loss, classes in (
        ("precision of melanoma", "precision", 1),
        ("precision of 1", "precision", "melanoma"),
        ("recall of melanoma or bcc", "recall", (1, 2)),
        ("false negatives of bcc", "false_negative", 2),
    ):
        named = fit(loss=text, target_risk=0.15)
        assert named == fit(loss=loss, positive_class=classes, target_risk=0.15)
    hard = ["a or b", "c and d", "e"]  # names are looked at whole first
    rule = RejectionRule.fit(PROBS, Y, loss={"recall of c and d": 0.8}, class_names=hard)
    assert rule.fitted_to["losses"][0]["positive_class"] == 1
    rule = RejectionRule.fit(PROBS, Y, loss="recall of a or b", target_risk=0.2, class_names=hard)
    assert rule.fitted_to["positive_class"] == 0


def test_what_is_said():
    says = fit(loss="precision of melanoma", target_risk=0.1).describe()
    assert "that say class melanoma at least 90 in 100 are right" in says
    says = fit(loss="recall of melanoma or bcc", target_risk=0.12).describe()
    assert "to true cases of class melanoma or bcc at least 88 in 100 find it" in says
    assert (
        "of its answers at most 15 in 100 are wrong, of its answers to true cases of class "
        "melanoma at most 15 in 100 miss it"
    ) in RULE.describe()
    assert "With 95 % confidence for all together" in RULE.describe()


def test_a_monitor_watches_precision_and_names_what_it_cannot():
    rule = fit(loss="precision of melanoma", target_risk=0.1)
    monitor = rule.monitor().update(NEW, NEW_Y)
    accepted = rule.accept(NEW) & (NEW.argmax(-1) == 1)
    assert monitor.fitted_to["labelled"] == accepted.sum()
    assert monitor.fitted_to["loss"] == np.sum(NEW_Y[accepted] != 1)
    assert not monitor.alarm
    assert rule.monitor().update(NEW, np.zeros(4000, int)).alarms == ["risk"]
    with pytest.raises(ValueError, match=r"several losses, .*'false negatives of melanoma'"):
        RULE.monitor()


# --- Several ------------------------------------------------------------------------------------


def test_each_promise_is_evaluated_by_itself():
    found = RULE.evaluate(NEW, NEW_Y)
    accepted, wrong = RULE.accept(NEW), NEW.argmax(-1) != NEW_Y
    error, missed = found.losses
    assert found.risk == error["risk"] == pytest.approx(wrong[accepted].mean())
    assert missed["loss"] == "false negatives of melanoma" and missed["target_risk"] == 0.15
    of_class = accepted & (NEW_Y == 1)
    assert missed["risk"] == pytest.approx(wrong[of_class].mean())
    assert missed["cases"] == of_class.sum()
    expected = stats.binomtest(int(wrong[of_class].sum()), int(of_class.sum())).proportion_ci()
    np.testing.assert_allclose([missed["risk_lower"], missed["risk_upper"]], expected)
    fitted = RULE.fitted_to["losses"]
    assert [each["loss"] for each in fitted] == ["error", "false_negative"]
    assert all(each["risk"] <= each["risk_bound"] == 0.15 for each in fitted)
    assert RULE.evaluate(NEW, NEW_Y, loss="error").losses == ()


def test_pairs_are_as_a_dict_and_take_costs_and_functions(tmp_path):
    assert fit(loss=list(BOTH.items())) == RULE
    pairs = [("error", 0.15), (1 - np.eye(3), 0.15), (lambda p, y: p.argmax(-1) != y, 0.15)]
    rule = fit(loss=pairs)
    assert [each["loss"] for each in rule.fitted_to["losses"]] == [
        *("error", "matrix", "function <lambda>")
    ]
    risks = [each["risk"] for each in rule.fitted_to["losses"]]
    assert risks[0] == pytest.approx(risks[1]) == pytest.approx(risks[2])
    errors, costs, function = (each["risk"] for each in rule.evaluate(NEW, NEW_Y).losses)
    assert errors == pytest.approx(costs) == pytest.approx(function)
    rule.save(tmp_path / "rule.json")
    with pytest.raises(ValueError, match=r"`loss` must be given.*holds no functions.*<lambda>"):
        RejectionRule.load(tmp_path / "rule.json").evaluate(NEW, NEW_Y)
    each = fit(loss={"false negatives of melanoma and bcc": 0.15})
    assert [entry["positive_class"] for entry in each.fitted_to["losses"]] == [1, 2]


def test_targets_of_precision_and_recall_are_the_good_share():
    rule = fit(loss={"precision of melanoma": 0.85, "recall of bcc": 0.8})
    assert [each["target_risk"] for each in rule.fitted_to["losses"]] == [0.15, 0.2]
    with pytest.warns(UserWarning, match=r"precision of melanoma of at least 0.1 only.* 0.9"):
        fit(loss={"precision of melanoma": 0.1})
    with pytest.warns(UserWarning, match="recall of bcc of at least 0.1 only"):
        fit(loss="recall of bcc", target_risk=0.9)


def test_one_of_a_dict_is_the_rule_of_that_loss():
    one = fit(loss={"error": 0.15})
    assert one.threshold == fit(target_risk=0.15).threshold


def test_all_promises_cost_no_more_than_the_strictest_at_a_share_of_the_error():
    """Monotone risks: the threshold lies at that of the promise that asks for the most."""
    alone = [
        fit(loss="error", target_risk=0.15, confidence=0.975),
        fit(loss="false negatives of melanoma", target_risk=0.15, confidence=0.975),
    ]
    assert max(rule.threshold for rule in alone) == pytest.approx(RULE.threshold, abs=0.01)


def test_groups_labels_models_files_and_exports(tmp_path):
    groups = np.where(np.arange(2000) % 2, "a", "b")
    rule = fit(loss={"error": 0.2, "recall of melanoma": 0.8}, by="group", groups=groups)
    assert [len(part["losses"]) for part in rule.fitted_to["parts"].values()] == [2, 2]
    of_a = groups == "a"
    options = {"loss": {"error": 0.2, "recall of 1": 0.8}}
    assert rule.threshold[0] == RejectionRule.fit(PROBS[of_a], Y[of_a], **options).threshold
    assert RejectionRule.from_json(rule.to_json()) == rule
    labels = (np.random.default_rng(0).random((2000, 3)) < PROBS).astype(int)
    several = {"error": 0.2, "precision of 1": 0.7}
    found = RejectionRule.fit(PROBS, labels, loss=several, multi_label=True, by="label")
    assert len(found.threshold) == 3
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    accept = RULE.append_to(model).predict(NEW, verbose=0)["accept"]
    np.testing.assert_array_equal(accept, RULE.accept(NEW))
    export(model, tmp_path / "m", rule=RULE, from_logits=False)
    served = tf.saved_model.load(str(tmp_path / "m")).serve(NEW.astype("float32"))["accept"]
    assert np.mean(served == accept) > 0.999
    report = subgroup_report(RULE, NEW, NEW_Y, NEW_Y % 2, loss="error", target_risk=0.25)
    assert report.rows[0].verdict == "holds"
    with pytest.raises(ValueError, match=r"`loss` must name one loss.*false negatives of mel"):
        subgroup_report(RULE, NEW, NEW_Y, NEW_Y % 2)
    other = subgroup_report(fit(target_risk=0.15), NEW, NEW_Y, NEW_Y % 2, loss="recall of 1")
    assert other.target_risk is None  # what was promised is of errors


def test_images():
    images, y = PROBS[:1600].reshape(400, 2, 2, 3), Y[:1600].reshape(400, 2, 2)
    rule = RejectionRule.fit(images, y, loss={"error": 0.35, "recall of 1": 0.5})
    strict = RejectionRule.fit(images, y, target_risk=0.35)
    assert rule.threshold >= strict.threshold
    new, new_y = NEW[:3200].reshape(800, 2, 2, 3), NEW_Y[:3200].reshape(800, 2, 2)
    assert rule.evaluate(new, new_y).losses[0]["risk"] < 0.35
    single = RejectionRule.fit(images, y, loss={"error": 0.35})
    assert single.threshold == strict.threshold  # an intersection of one


def test_refused_with_what_can_be_kept():
    with pytest.raises(UnattainableRisk, match="of 'false negatives of bcc' the lowest") as caught:
        fit(loss={"error": 0.15, "false negatives of bcc": 0.005})
    assert "Kept by themselves can be: error" in str(caught.value)
    assert 0.005 < caught.value.best_risk < 0.1 and 0 < caught.value.coverage < 1
    with pytest.raises(UnattainableRisk, match="of which at least 72 are needed") as caught:
        RejectionRule.fit(PROBS[:60], Y[:60], loss={"error": 0.3, "recall of 1": 0.95})
    assert caught.value.examples_needed == 72
    groups = np.where(np.arange(2000) < 30, "few", "many")
    with pytest.warns(UserWarning, match="No threshold keeps all 2 .*all rejected"):
        rule = fit(loss=BOTH, by="group", groups=groups)
    assert not rule.accept(PROBS[:30], groups[:30]).any()


# --- Guarantees ---------------------------------------------------------------------------------

# Of each place s in [0, 1]: the share of the subset, its risk, the risk of the rest.
WORLDS = {
    "falling": (lambda s: 0.4 + 0 * s, lambda s: 0.4 * (1 - s), lambda s: 0.25 * (1 - s)),
    # The subset's risk is at the target wherever one stops, that of all is well below.
    "flat": (lambda s: 0.5 + 0 * s, lambda s: 0.2 + 0 * s, lambda s: 0.05 + 0 * s),
    # One is too large at the top, the other at the bottom: between them is little.
    "crossed": (
        lambda s: 0.5 + 0 * s,
        lambda s: np.where(s > 0.9, 0.35, 0.12),
        lambda s: np.where(s < 0.4, 0.6, 0.08),
    ),
    "waves": (
        lambda s: np.where(np.floor(7 * s) % 2, 0.8, 0.2),
        lambda s: np.where(np.floor(8 * s) % 2, 0.33, 0.08),
        lambda s: np.where(np.floor(5 * s) % 2, 0.3, 0.1),
    ),
}
TARGETS = (0.2, 0.2)
PROMISES = [Promise(Loss("error"), TARGETS[0]), Promise(Loss("false_negative", (1,)), TARGETS[1])]


def true_risks(world, cells):
    """The risks of all and of the subset above each of the places."""
    share, of_subset, of_rest = (part(cells) for part in WORLDS[world])

    def above(values, weights):
        return np.cumsum((values * weights)[::-1])[::-1] / np.cumsum(weights[::-1])[::-1]

    wrong = share * of_subset + (1 - share) * of_rest
    return above(wrong, np.ones(len(cells))), above(of_subset, share)


@pytest.mark.parametrize("sets", [60, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "world, grid, n",
    [("falling", 20_000, 400), ("flat", 20_000, 300), ("crossed", 50, 500), ("waves", 16, 400)],
)
def test_all_promises_hold_in_as_many_sets_as_was_said(world, grid, n, sets):
    """At most 5 % break any; a right method fails once in 10,000 runs."""
    rng = np.random.default_rng(5)
    cells = np.arange(grid) / grid
    risks, parts = true_risks(world, cells), [part(cells) for part in WORLDS[world]]
    rule = RejectionRule("confidence", 0.5)
    broken = found = 0
    for _ in range(sets):
        index = rng.integers(grid, size=n)
        share, of_subset, of_rest = (part[index] for part in parts)
        belongs = rng.random(n) < share
        wrong = (rng.random(n) < np.where(belongs, of_subset, of_rest)).astype("float64")
        counts = (np.ones(n, bool), belongs)
        reads = [Read(cells[index], wrong, c, wrong == 0, c, c, n, 2, True) for c in counts]
        values, _, levels = of_single(rule, reads, None, 1)
        index = last_of_all(levels, PROMISES, (1 - CONFIDENCE) / 2)
        if index is not None:
            place = int(np.searchsorted(cells, -values[index]))
            found += 1
            broken += any(risk[place] > t for risk, t in zip(risks, TARGETS, strict=True))
    assert broken <= stats.binom.ppf(1 - 1e-4, sets, 1 - CONFIDENCE)
    if world == "falling":
        assert found > sets / 2  # what promises nothing would hold, too


@pytest.mark.parametrize(
    "sets",
    [pytest.param(30, marks=pytest.mark.dear), pytest.param(300, marks=pytest.mark.slow)],
)
def test_precision_holds_in_as_many_sets_as_was_said(sets):
    """Through `fit`, where answers of a class are overconfident; fails once in 10,000 runs."""
    rng = np.random.default_rng(6)

    def drawn(count):
        p = rng.beta(0.6, 0.6, size=count)
        true = np.where(p > 0.5, 0.5 + 0.8 * (p - 0.5), p)
        return np.stack([1 - p, p], -1), (rng.random(count) < true).astype(int)

    probs, labels = drawn(200_000)
    of_class = probs[:, 1] > 0.5
    order = np.argsort(-probs[of_class, 1])
    top = probs[of_class, 1][order].astype("float32")
    lost = np.cumsum(labels[of_class][order] != 1) / np.arange(1, len(order) + 1)
    broken = found = 0
    for _ in range(sets):
        p, y = drawn(400)
        with contextlib.suppress(UnattainableRisk):
            rule = RejectionRule.fit(p, y, loss="precision", target_risk=0.25)
            found += 1
            broken += lost[np.searchsorted(-top, -rule.threshold, side="right") - 1] > 0.25
    assert found > sets / 3
    assert broken <= stats.binom.ppf(1 - 1e-4, sets, 1 - CONFIDENCE)


class Wrong:
    def __call__(self, probs, labels):
        return (probs.argmax(-1) != labels) * 1.0


def test_a_function_without_a_name():
    """Objects that are called are losses as functions are; a file does not hold them."""
    for loss in (Wrong(), functools.partial(Wrong())):
        rule = fit(loss=loss, target_risk=0.3)
        assert rule.fitted_to["loss"] == f"function {type(loss).__name__}"
        assert rule.evaluate(NEW, NEW_Y).risk == rule.evaluate(NEW, NEW_Y, loss="error").risk
        with pytest.raises(ValueError, match="`loss` must be given"):
            RejectionRule.from_json(rule.to_json()).evaluate(NEW, NEW_Y)


# --- Misuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message, options",
    [
        ("must be None for several", {"loss": BOTH, "target_risk": 0.1}),
        ("must be None for several", {"loss": BOTH, "costs": {"error": 1}}),
        ("'auto' for several losses", {"loss": BOTH, "method": "ltt"}),
        (r"name a class, one of \['nevus'.*Received: 'scar'", {"loss": {"recall of scar": 0.9}}),
        (r"in \[0, 1\]. Received: loss=95", {"loss": {"recall of bcc": 95}}),
        (r"in \(0, 1\).*Received: 1 for 'error'", {"loss": {"error": 1}}),
        ("each loss once. Received: 'error' 2", {"loss": [("error", 0.1), ("error", 0.2)]}),
        ("answers hold. Received: loss=7", {"loss": {"error": 0.1, "precision of 7": 0.9}}),
        ("at least one of", {"loss": {}}),
        ("one of 'error', .*Received: loss='eror'", {"loss": {"eror": 0.1}}),
        ("must be left out for several", {"loss": BOTH, "positive_class": 2}),
        ("precision with by='class'", {"loss": "precision", "target_risk": 0.1, "by": "class"}),
        ("several different ones. .*1, 1", {
            "loss": "recall", "positive_class": [1, 1], "target_risk": 0.1,
        }),
        ("`positive_class` must be an integer", {
            "loss": "recall", "positive_class": "scar", "target_risk": 0.1,
        }),
        ("answers hold", {"loss": "precision", "positive_class": 7, "target_risk": 0.1}),
    ],
)  # fmt: skip
def test_refused(message, options):
    with pytest.raises(ValueError, match=message):
        fit(**options)


def test_files_of_other_losses_are_refused():
    text = RULE.to_json()
    for old, new in (
        ('"target_risk": 0.15', '"target_risk": 15'),
        ('"positive_class": 1', '"x": 1'),
    ):
        assert old in text
        with pytest.raises(ValueError, match="a loss without"):
            RejectionRule.from_json(text.replace(old, new, 1))
    with pytest.raises(ValueError, match="`positive_class` must be left out without `loss`"):
        RULE.evaluate(NEW, NEW_Y, positive_class=2)
