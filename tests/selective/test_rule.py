"""A rejection rule: thresholds by brute force, kinds of predictions, files, models, bad input."""

import json

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

from tfuq.ensembles import DeepEnsemble
from tfuq.predictive import decompose
from tfuq.selective import ConformalPredictor, RejectionRule, UnattainableRisk

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(3, 0.4), size=300)
Y = np.where(RNG.random(300) < 0.85, PROBS.argmax(-1), RNG.integers(3, size=300))
STACK = RNG.dirichlet(np.full(3, 0.4), size=(4, 300))
WRONG = PROBS.argmax(-1) != Y
TOP = PROBS.max(-1).astype("float32")


# --- Thresholds, by brute force ----------------------------------------------------------------


@pytest.mark.parametrize("target", [0.01, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("digits", [None, 1])
def test_coverage_is_the_strictest_that_reaches_the_target(target, digits):
    probs = PROBS[:, 0] if digits is None else np.round(PROBS[:, 0], digits)
    rule = RejectionRule.fit(probs, Y == 0, target_coverage=target)
    top = np.maximum(probs.astype("float32"), 1 - probs.astype("float32"))
    enough = [t for t in np.unique(top) if np.mean(top >= t) >= target - 1e-12]
    assert rule.threshold == max(enough)
    assert rule.fitted_to["accepted"] == rule.accept(probs).sum() == np.sum(top >= max(enough))


def test_costs_are_the_least_over_all_thresholds():
    for costs in (
        {"error": 5, "rejection": 1},
        {"error": 5, "rejection": 0.4, "review": 0.1},
        {"error": 1},
        {"error": 1, "review": 50},
    ):
        rule = RejectionRule.fit(PROBS, Y, costs=costs)
        of_rejection = costs.get("rejection", 0) + costs.get("review", 0)

        def cost(accepted):
            return costs["error"] * np.sum(WRONG[accepted]) + of_rejection * np.sum(~accepted)  # noqa: B023

        least = min(cost(t <= TOP) for t in [*TOP, np.inf])
        assert np.isclose(cost(rule.accept(PROBS)), least)


def test_uncertainties_are_accepted_from_below():
    for score in ("entropy", "mutual_information", "expected_entropy", "variation_ratio"):
        stack = STACK if score != "entropy" else STACK[:1]
        field = {"entropy": "predictive_entropy"}.get(score, score)
        uncertainty = getattr(decompose(stack), field)
        y = stack.mean(0).argmax(-1)
        rule = RejectionRule.fit(stack, y, score, target_coverage=0.6)
        np.testing.assert_allclose(rule.score_of(stack), uncertainty, atol=2e-6)
        accepted = rule.accept(stack)
        assert accepted.mean() >= 0.6
        assert uncertainty[accepted].max() <= uncertainty[~accepted].min(initial=9) + 1e-6


def test_margin():
    first, second = np.sort(PROBS, axis=-1)[:, :-3:-1].T
    rule = RejectionRule("margin", 0.3)
    np.testing.assert_allclose(rule.score_of(PROBS), first - second, atol=1e-6)


def test_a_threshold_for_each_class_and_each_group():
    groups = np.where(np.arange(300) % 3, "north", "south")
    rule = RejectionRule.fit(PROBS, Y, target_coverage=0.5, by="group", groups=groups)
    for name, threshold in zip(rule.keys, rule.threshold, strict=True):
        own = RejectionRule.fit(PROBS[groups == name], Y[groups == name], target_coverage=0.5)
        assert threshold == own.threshold
        np.testing.assert_array_equal(
            rule.accept(PROBS, groups)[groups == name], own.accept(PROBS[groups == name])
        )
    rule = RejectionRule.fit(PROBS, Y, target_coverage=0.5, by="class")
    assert rule.keys == [0, 1, 2]
    accepted = rule.accept(PROBS)
    for k in range(3):
        assert 0.5 <= accepted[PROBS.argmax(-1) == k].mean() < 0.52


def test_what_fitting_never_saw_is_refused():
    rule = RejectionRule.fit(PROBS, Y, target_coverage=0.5, by="group", groups=["a"] * 300)
    with pytest.raises(ValueError, match=r"`groups` must hold groups .*Received: \['b'\]"):
        rule.accept(PROBS[:2], ["a", "b"])
    assert not rule.accept(PROBS[:2], ["a", "b"], unknown_group="reject")[1]
    only = PROBS.argmax(-1) < 2
    rule = RejectionRule.fit(PROBS[only], Y[only], target_coverage=1.0, by="class")
    np.testing.assert_array_equal(rule.accept(PROBS), only)
    with pytest.raises(ValueError, match="`probs` must hold predictions of 3 classes"):
        rule.accept([[0.0, 0.0, 0.0, 1.0]])


def test_a_group_of_one_is_rejected_with_a_warning():
    groups = ["many"] * 299 + ["one"]
    with pytest.warns(UserWarning, match="these 1 examples can promise"):
        rule = RejectionRule.fit(PROBS, Y, target_risk=0.25, by="group", groups=groups)
    assert rule.threshold[rule.keys.index("one")] == np.inf
    assert not rule.accept(PROBS, groups)[-1]
    assert rule.fitted_to["parts"]["one"]["accepted"] == 0


def test_losses_of_the_users_own():
    cost = np.array([[0, 0.2, 1.0], [0.2, 0, 0.5], [0.1, 0.1, 0]])

    def loss(probs, labels):
        return cost[labels, probs.argmax(-1)]

    rule = RejectionRule.fit(PROBS, Y, target_risk=0.1, loss=loss)
    accepted = rule.accept(PROBS)
    found = loss(PROBS, Y)[accepted].mean()
    assert np.isclose(rule.fitted_to["risk"], found)
    assert rule.evaluate(PROBS, Y, loss=loss).risk == pytest.approx(found)
    again = RejectionRule.fit(PROBS, Y, target_risk=0.1, loss=cost)
    assert again.threshold == rule.threshold
    assert (again.fitted_to["loss"], rule.fitted_to["loss"]) == ("matrix", "function loss")
    by_name = RejectionRule.fit(PROBS, Y, target_risk=0.2)  # costs of 0 and 1 are counted alike
    assert RejectionRule.fit(PROBS, Y, target_risk=0.2, loss=1 - np.eye(3)).threshold == (
        by_name.threshold
    )
    assert rule.evaluate(PROBS, Y).risk == pytest.approx(found)
    read = RejectionRule.from_json(again.to_json())
    assert read == again and read.evaluate(PROBS, Y).risk == pytest.approx(found)
    assert read.evaluate(PROBS, Y, loss="error").risk > 1.1 * found
    with pytest.raises(ValueError, match=r"`loss` must be given.*'function loss'"):
        RejectionRule.from_json(rule.to_json()).evaluate(PROBS, Y)
    text = again.to_json().replace('"loss_matrix": [', '"loss_matrix": [[0.1], ', 1)
    with pytest.raises(ValueError, match="a cost matrix that is none"):
        RejectionRule.from_json(text)
    with pytest.raises(ValueError, match="`loss` must return 300 numbers in"):
        RejectionRule.fit(PROBS, Y, target_risk=0.1, loss=lambda probs, labels: labels + 1)


@pytest.mark.parametrize("method", ["auto", "ltt", "sgr"])
def test_order_of_the_examples_does_not_matter(method):
    probs, order = np.round(PROBS[:, 0], 1), RNG.permutation(300)
    options = {"target_risk": 0.25, "method": method}
    rule = RejectionRule.fit(probs, Y == 0, **options)
    assert RejectionRule.fit(probs[order], (Y == 0)[order], **options) == rule


def test_promises_for_all_groups_together_are_stricter():
    groups = np.arange(300) % 2
    options = {"target_risk": 0.25, "by": "group", "groups": groups}
    each, together = (RejectionRule.fit(PROBS, Y, simultaneous=s, **options) for s in (False, True))
    assert together.fitted_to["confidence"] == 0.95
    assert np.all(together.threshold >= each.threshold)
    for k, threshold in enumerate(together.threshold):
        rows = groups == k
        alone = RejectionRule.fit(PROBS[rows], Y[rows], target_risk=0.25, confidence=0.975)
        assert threshold == alone.threshold
    assert "in each group at most 25 in 100 are wrong" in each.describe()
    assert "95 % confidence for each by itself" in each.describe()
    assert "95 % confidence for all together" in together.describe()


def test_classes_without_examples_are_told():
    rule = RejectionRule.fit(PROBS[Y < 2], Y[Y < 2], target_risk=0.3)
    assert rule.fitted_to["classes"] == [0, 1]
    assert rule.fitted_to["unseen_classes"] == [2]
    assert rule.describe().endswith("No case of class 2 was among them.")
    low, high = rule.fitted_to["coverage_interval"]
    assert 0 < low < rule.fitted_to["coverage"] <= high <= 1


def test_evaluation_counts():
    rule = RejectionRule("confidence", 0.7)
    found = rule.evaluate(PROBS, Y)
    accepted = np.float32(0.7) <= TOP
    assert (found.examples, found.accepted) == (300, accepted.sum())
    assert found.risk == WRONG[accepted].mean()
    assert found.risk_lower < found.risk < found.risk_upper
    pixels = RejectionRule("confidence", 0.7, rank=3).evaluate(PROBS[None], Y[None])
    assert pixels.risk == found.risk
    assert np.isnan(pixels.risk_upper)  # one image: its decisions are no sample
    nothing = RejectionRule("confidence", np.inf).evaluate(PROBS, Y)
    assert nothing.coverage == 0
    assert np.isnan(nothing.risk)


# --- Kinds of predictions ----------------------------------------------------------------------


def kinds():
    """Predictions, labels and options of every form, and the same as a stack where there is one."""
    binary, pixels = PROBS[:, 0], RNG.dirichlet(np.full(3, 0.2), size=(40, 5, 5))
    labels = RNG.uniform(size=(300, 4))
    seen = (RNG.random((300, 4)) < labels).astype(int)
    multi = {"multi_label": True}
    return {
        "classes": (PROBS, Y, {}),
        "one-hot": (PROBS, np.eye(3)[Y], {}),
        "column of labels": (PROBS, Y[:, None], {}),
        "logits": (np.log(PROBS), Y, {"from_logits": True}),
        "binary": (binary, Y == 0, {}),
        "binary column": (binary[:, None], Y == 0, {}),
        "binary logits": (np.log(binary / (1 - binary)), Y == 0, {"from_logits": True}),
        "binary stack": (STACK[..., :1], STACK[..., 0].mean(0) > 0.5, {}),
        "stack": (STACK, STACK.mean(0).argmax(-1), {}),
        "labels": (labels, seen, multi),
        "stack of labels": (np.stack([labels, labels]), seen, multi),
        "pixels": (pixels, pixels.argmax(-1), {}),
        "stack of pixels": (np.stack([pixels, pixels]), pixels.argmax(-1), {}),
    }


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_kind_fits_accepts_and_comes_back(kind):
    probs, labels, options = kinds()[kind]
    rule = RejectionRule.fit(probs, labels, target_risk=0.4, **options)
    accepted = rule.accept(probs)
    sparse = np.asarray(labels)
    sparse = sparse[:, 0] if kind in ("one-hot", "column of labels") else sparse
    assert accepted.shape == sparse.shape
    assert accepted.any()
    assert rule.evaluate(probs, labels).risk <= 0.4
    assert rule.fitted_to["accepted"] == accepted.sum()
    again = RejectionRule.from_json(rule.to_json())
    assert again == rule
    np.testing.assert_array_equal(again.accept(probs), accepted)
    outputs = tf.function(rule.transform)(tf.constant(probs, "float32"))
    np.testing.assert_array_equal(outputs["accept"], accepted)
    mean = probs.mean(0) if "stack" in kind else probs
    assert outputs["probabilities"].shape == mean.shape
    if "logits" not in kind:
        np.testing.assert_allclose(outputs["probabilities"], mean, atol=1e-6)


def test_a_stack_after_single_predictions_and_the_reverse():
    rule = RejectionRule.fit(PROBS, Y, target_coverage=0.5)
    np.testing.assert_array_equal(rule.accept(np.stack([PROBS, PROBS])), rule.accept(PROBS))
    with pytest.raises(ValueError, match="`probs` must have 2 axes, or 3"):
        rule.accept(PROBS[0])
    rule = RejectionRule.fit(STACK, Y, "mutual_information", target_coverage=0.5)
    with pytest.raises(ValueError, match="`probs` must be a stack"):
        rule.accept(STACK[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_never_accepted(bad):
    probs = np.array([[bad, 0.1, 0.2], [0.9, 0.1, 0.0]])
    for score in ("confidence", "margin", "entropy", "variation_ratio"):
        anything = 0.0 if score in ("confidence", "margin") else 9.0
        rule = RejectionRule(score, anything)
        stack = probs if score != "variation_ratio" else np.stack([probs, probs])
        np.testing.assert_array_equal(rule.accept(stack), [False, True])
        np.testing.assert_array_equal(rule.transform(stack)["accept"], [False, True])
    rule = RejectionRule("confidence", 0.0, from_logits=True)  # of a logit -inf is a probability 0
    np.testing.assert_array_equal(rule.accept(probs), [bad == -np.inf, True])


# --- Models and files --------------------------------------------------------------------------


def small_model(activation="softmax"):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=activation)])


def test_fit_model_reads_every_kind_of_data():
    model, x = small_model(), RNG.normal(size=(120, 4)).astype("float32")
    y = model.predict(x, verbose=0).argmax(-1)
    expected = RejectionRule.fit(model.predict(x, verbose=0), y, target_risk=0.1)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            rows = slice(60 * index, 60 * index + 60)
            return x[rows], y[rows]

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(50)
    for data in ((x, y), dataset, Batches()):
        assert RejectionRule.fit_model(model, data, target_risk=0.1) == expected
    with pytest.raises(ValueError, match="`data` must have no sample weights"):
        RejectionRule.fit_model(model, (x, y, np.ones(120)), target_risk=0.1)
    with pytest.raises(ValueError, match="`data` must hold arrays of one length"):
        RejectionRule.fit_model(model, (x, y[:5]), target_risk=0.1)


def test_ensembles_give_stacks():
    ensemble = DeepEnsemble.from_models([small_model(), small_model()])
    x = RNG.normal(size=(80, 4)).astype("float32")
    stack = ensemble.predict(x)
    rule = RejectionRule.fit(stack, stack.mean(0).argmax(-1), target_risk=0.2)
    assert rule.accept(stack).shape == (80,)


IN_A_NEW_PROCESS = """
import sys
import numpy as np, tensorflow as tf
data = np.load("data.npz")
sys.modules["tfuq"] = None  # cannot be imported
served_model = tf.saved_model.load("served")
served = served_model.serve(tf.constant(data["x"]))
np.testing.assert_array_equal(served["accept"], data["accept"])
np.testing.assert_allclose(served["probabilities"], data["probs"], atol=1e-6)
del sys.modules["tfuq"]
import keras, tfuq
model = keras.models.load_model("model.keras", safe_mode=True)
found = model.predict(data["x"], verbose=0)
np.testing.assert_array_equal(found["accept"], data["accept"])
rule = tfuq.selective.RejectionRule.load("rule.json")
np.testing.assert_array_equal(rule.accept(data["probs"]), data["accept"])
"""


@pytest.mark.parametrize("by", [pytest.param(None, marks=pytest.mark.slow), "class"])
def test_rides_in_a_model_into_a_new_process(by, tmp_path):
    model, x = small_model(), RNG.normal(size=(64, 4)).astype("float32")
    probs = model.predict(x, verbose=0)
    rule = RejectionRule.fit(probs, probs.argmax(-1), target_coverage=0.6, by=by)
    whole = rule.append_to(model)
    np.testing.assert_array_equal(whole.predict(x, verbose=0)["accept"], rule.accept(probs))
    rule.save(tmp_path / "rule.json")
    whole.save(tmp_path / "model.keras")
    whole.export(tmp_path / "served", verbose=False)
    np.savez(tmp_path / "data.npz", x=x, probs=probs, accept=rule.accept(probs))
    done = processes.run(IN_A_NEW_PROCESS, cwd=tmp_path, world="keras")
    assert done.returncode == 0, done.stderr


def test_texts_and_files_of_another_kind_are_refused(tmp_path):
    text = RejectionRule("entropy", 0.3).to_json()
    changed = [
        text[:-20],
        text.replace("Rule", "Ruler"),
        text.replace('"format": 1', '"format": 9'),
    ]
    changed += ["[]", "[" * 100_000, text.replace("0.3", '"x"'), text.replace("entropy", "odds")]
    for bad in changed:
        with pytest.raises(ValueError, match=r"`text` must be what `RejectionRule.to_json` gave"):
            RejectionRule.from_json(bad)
    (tmp_path / "rule.json").write_text(json.dumps({"class": "RejectionRule"}))
    with pytest.raises(ValueError, match=r"`path` must name a file .*rule.json"):
        RejectionRule.load(tmp_path / "rule.json")
    with pytest.raises(OSError):
        RejectionRule.load(tmp_path / "none.json")


def test_sentences():
    rule = RejectionRule.fit(PROBS, Y, target_risk=0.15)
    share = round(100 * rule.accept(PROBS).mean())
    assert rule.describe() == (
        f"Of 100 cases like these the model answers about {share} and refers {100 - share} to a "
        "person. With 95 % confidence, for cases like the 300 that this was checked on: of its "
        "answers at most 15 in 100 are wrong. If its probabilities were calibrated, that must have "
        "used other cases than these."
    )
    assert (
        "of its answers to true cases of class 2 at most 30 in 100 miss it"
        in RejectionRule.fit(
            PROBS, Y, target_risk=0.3, loss="false_negative", positive_class=2
        ).describe()
    )
    assert "known cases" in RejectionRule.fit(PROBS, Y, target_coverage=0.5).describe()
    assert "at most 0.3" in RejectionRule("entropy", 0.3).describe()


# --- Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, options",
    [
        ("target_risk", {}),
        ("target_risk", {"target_risk": 0.1, "target_coverage": 0.5}),
        ("target_risk", {"target_risk": 0}),
        ("target_risk", {"target_risk": 1.0}),
        ("target_risk", {"target_risk": np.nan}),
        ("confidence", {"target_risk": 0.1, "confidence": 1}),
        ("target_coverage", {"target_coverage": 0}),
        ("target_coverage", {"target_coverage": 1.5}),
        ("costs", {"costs": {"error": 0}}),
        ("costs", {"costs": {"error": 1, "wrong": 1}}),
        ("costs", {"costs": {"error": np.inf}}),
        ("score", {"target_risk": 0.1, "score": "trust"}),
        ("method", {"target_risk": 0.1, "method": "hope"}),
        ("loss", {"target_risk": 0.1, "loss": "mse"}),
        ("loss", {"target_risk": 0.1, "loss": np.eye(4)}),
        ("loss", {"target_risk": 0.1, "loss": 2 * np.eye(3)}),
        ("positive_class", {"target_risk": 0.1, "loss": "false_negative", "positive_class": 7}),
        ("groups", {"target_risk": 0.1, "by": "group"}),
        ("groups", {"target_risk": 0.1, "by": "group", "groups": ["a"]}),
        ("groups", {"target_risk": 0.1, "groups": ["a"] * 300}),
        ("by", {"target_risk": 0.1, "by": "hospital"}),
        ("probs", {"target_risk": 0.1, "score": "mutual_information"}),
    ],
)
def test_bad_options(argument, options):
    with pytest.raises(ValueError, match=f"`{argument}`.* must .*Received: "):
        RejectionRule.fit(PROBS, Y, **options)


def test_bad_arrays():
    for probs, labels in (
        (PROBS * 2, Y),
        (PROBS * np.nan, Y),
        (PROBS[:0], Y[:0]),
        (PROBS, Y[:10]),
        (PROBS, Y + 1),
        (PROBS, Y - 0.5),
        (PROBS, Y.astype(str)),
    ):
        with pytest.raises(ValueError, match=r"must .*Received: "):
            RejectionRule.fit(probs, labels, target_risk=0.1)
    rule = RejectionRule("confidence", 0.5)
    with pytest.raises(ValueError, match="`labels` must hold only classes 0 to 2"):
        rule.evaluate(PROBS, Y + 1)
    with pytest.raises(ValueError, match="for each group cannot be part of a model"):
        RejectionRule(threshold=[0.5], by="group", keys=["a"]).transform(PROBS)


def test_bad_constructor():
    for options in (
        {"threshold": "high"},
        {"threshold": np.nan},
        {"threshold": [0.5, 0.6]},
        {"threshold": 0.5, "by": "class", "keys": [0]},
        {"threshold": [0.5], "by": "class", "keys": [0, 1]},
        {"threshold": [0.5], "by": "class", "keys": [-1]},
        {"threshold": [0.5], "by": "class", "keys": ["a"]},
        {"threshold": [0.5, 0.6], "by": "group", "keys": ["a", "a"]},
        {"rank": 0},
        {"from_logits": "yes"},
    ):
        with pytest.raises(ValueError, match=r"must .*Received: "):
            RejectionRule(**{"score": "confidence", **options})


def test_a_calibration_set_too_small_is_told_what_it_needs():
    with pytest.raises(UnattainableRisk, match="At least 29 examples are needed"):
        RejectionRule.fit(PROBS[:1], PROBS[:1].argmax(-1), target_risk=0.1)


@keras.saving.register_keras_serializable("tests")
def far_off(probs, labels):
    return np.minimum(np.abs(probs.argmax(-1) - labels), 2) / 2


def test_a_registered_loss_is_known_in_files():
    rule = RejectionRule.fit(PROBS, Y, target_risk=0.2, loss=far_off)
    read = RejectionRule.from_json(rule.to_json())
    found = read.evaluate(PROBS, Y)
    assert found.risk == rule.evaluate(PROBS, Y, loss=far_off).risk and np.isnan(found.risk_lower)
    assert found.risk == pytest.approx(far_off(PROBS, Y)[rule.accept(PROBS)].mean())
    of_class = rule.to_json().replace("tests>far_off", "tfuq>RejectionRule")  # no function
    with pytest.raises(ValueError, match="`loss` must be given"):
        RejectionRule.from_json(of_class).evaluate(PROBS, Y)
    missed = {"loss": "false_negative", "positive_class": 2}
    rule = RejectionRule.fit(PROBS, Y, target_risk=0.4, **missed)
    assert rule.evaluate(PROBS, Y).risk == rule.evaluate(PROBS, Y, **missed).risk
    assert rule.evaluate(PROBS, Y).risk != rule.evaluate(PROBS, Y, loss="error").risk


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (
            lambda p, y: RejectionRule.fit(p, y, target_risk=0.9, confidence=0.05),
            "confidence=0.05 holds more seldom than it fails: confidence=0.95",
        ),
        (lambda p, y: ConformalPredictor.fit(p, y, alpha=0.9), "alpha=0.9 .* alpha=0.1"),
        (
            lambda p, y: ConformalPredictor.fit(p, y, target_coverage=0.1),
            "target_coverage=0.1 .* target_coverage=0.9",
        ),
    ],
)
def test_a_probability_the_other_way_round_is_told(fit, said):
    probs = np.random.default_rng(0).dirichlet(np.ones(3), size=60)
    with pytest.warns(UserWarning, match=said):
        fit(probs, np.arange(60) % 3)
