"""NaN and infinity in the inputs of a network: no path through the package makes an answer of it.

Max-pooling, and ReLU in some kernels, pass over a NaN as over a small number. So the networks here
hide it: their plain prediction for an image with a NaN in it is as confident as any.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfuq
from tfuq.layers import (
    DenseVariational,
    MCDropout,
    MCSigmoidDenseFA,
    MCSoftmaxDenseFA,
    PostProcessing,
    SparseBayesDense,
    VBLLDense,
)
from tfuq.predictive import (
    decompose,
    predict_uncertainty,
    read_scores,
    sample_predictions,
    score_dataset,
    test_time_augmentation,
)
from tfuq.selective import (
    ConformalPredictor,
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    VectorScaling,
    cascade,
    simulate_deferral,
)

BAD = np.array([False, True, True, True, True, False, True, False])
CLEAN = np.random.default_rng(0).random((8, 8, 8, 1)).astype("float32")
X = CLEAN.copy()
X[1, 0, 0], X[2, 3, 3], X[3, 7, 7], X[4], X[6, ::2] = np.nan, np.inf, -np.inf, np.nan, np.nan
Y = np.arange(8) % 3
SCORES = ("confidence", "margin", "entropy", "expected_entropy", "mutual_information")
SCORES += ("variation_ratio",)

HEADS = {
    "MCSoftmaxDenseFA": lambda: [MCSoftmaxDenseFA(3, 2, test_mc_samples=20, logits_only=True)],
    "MCSigmoidDenseFA": lambda: [MCSigmoidDenseFA(3, 1, test_mc_samples=20, logits_only=True)],
    "VBLLDense": lambda: [VBLLDense(3, kl_weight=0.1)],
    "DenseVariational": lambda: [DenseVariational(3, kl_weight=0.1)],
    "MCDropout": lambda: [MCDropout(0.5), layers.Dense(3)],
    "SparseBayesDense": lambda: [SparseBayesDense(3, kl_weight=0.1)],
}
RANDOM = ("VBLLDense", "DenseVariational", "MCDropout")  # SparseBayesDense, once it is selected


def network(head, compiled=False):
    """Pools before it does anything else, so that a NaN is gone after the first layer."""
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.MaxPooling2D(4), layers.Flatten(), *HEADS[head]()]
    )
    if compiled:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def hidden(model):
    """Whether the model's own prediction hides that some input is NaN or infinite."""
    return bool(np.isfinite(model.predict(X, verbose=0)[BAD]).all(-1).any())


def plain():
    parts = [layers.MaxPooling2D(4), layers.Flatten(), layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input((8, 8, 1)), *parts])


def check_unknown(found):
    """Raises AssertionError unless an `Uncertainty` says that it knows nothing of the bad rows."""
    assert (found.label[BAD] == -1).all() and (found.label[~BAD] >= 0).all()
    for name, values in found._asdict().items():
        if name != "label":
            assert np.isnan(values[BAD]).all(), name
            assert np.isfinite(values[~BAD]).all(), name


@pytest.mark.slow_cases("VBLLDense-False", "MCDropout-False")
@pytest.mark.slow_product
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("head", RANDOM)
def test_networks_drawn_know_nothing(head, compiled):
    model = network(head, compiled)
    assert hidden(model)
    told = {"num_samples": 5, "from_logits": None if compiled else True}
    stack = sample_predictions(model, X, **told)
    assert np.isnan(stack[:, BAD]).all()
    expected = sample_predictions(model, CLEAN, **told)
    np.testing.assert_allclose(stack[:, ~BAD], expected[:, ~BAD], rtol=1e-5, atol=1e-7)
    found = predict_uncertainty(model, X, **told)
    check_unknown(found)
    whole = decompose(expected)
    np.testing.assert_allclose(found.probs[~BAD], whole.probs[~BAD], rtol=1e-4, atol=1e-6)
    for score in SCORES:
        for rule in rules(score):
            groups = ["a"] * 8 if rule.by == "group" else None
            assert rule.accept(stack, groups).tolist() == (~BAD).tolist()


def rules(score):
    """Rules that accept everything they can: without parts, by class and by group."""
    all_of_it = 0.0 if score in ("confidence", "margin") else 10.0
    yield RejectionRule(score, all_of_it)
    yield RejectionRule(score, [all_of_it] * 3, by="class", keys=[0, 1, 2])
    yield RejectionRule(score, [all_of_it], by="group", keys=["a"])


@pytest.mark.slow_cases("VBLLDense")
@pytest.mark.slow_cases("MCSigmoidDenseFA")
@pytest.mark.parametrize("head", HEADS)
def test_heads_keep_nan(head):
    """A NaN that comes to a head comes out of it, and a rule on its logits refuses."""
    inputs = X.reshape(8, -1)[:, :5].copy()
    inputs[BAD, 2] = np.nan
    head_layers = HEADS[head]()
    for compiled in (False, True):
        model = tf.function(
            lambda x: keras.Sequential(head_layers)(x), autograph=False, jit_compile=compiled
        )
        logits = model(inputs).numpy()
        assert np.isnan(logits[BAD]).any(-1).all() and np.isfinite(logits[~BAD]).all()
        multi_label = head == "MCSigmoidDenseFA"
        rule = RejectionRule("confidence", 0.0, from_logits=True, multi_label=multi_label)
        accepted = rule.accept(logits).reshape(8, -1)
        assert not accepted[BAD].all(-1).any() and accepted[~BAD].all()


@pytest.mark.slow_product
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("score", SCORES)
def test_rules_refuse_in_graphs(score, jit, special):
    stack = np.random.default_rng(1).dirichlet([1, 1, 1], (4, 8)).astype("float32")
    stack[2, BAD, 1] = special
    for rule in rules(score):
        if rule.by == "group":
            continue
        transform = tf.function(rule.transform, autograph=False, jit_compile=jit)
        found = transform(stack)
        assert found["accept"].numpy().tolist() == (~BAD).tolist(), rule
        assert np.isnan(found["score"].numpy()[BAD]).all()


def test_logits_that_are_infinite_are_refused():
    logits = np.array([[0, np.inf, 1], [np.inf, np.inf, 0], [-np.inf] * 3, [0, -np.inf, 3]])
    rule = RejectionRule("confidence", 0.0, from_logits=True)
    assert rule.accept(logits).tolist() == [False, False, False, True]


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
def test_sets_hold_everything(score):
    """Nothing is known of the label, so that any may be right; and the set is no answer."""
    more = {"penalty": 0.01, "k_reg": 1} if score == "raps" else {}
    sets = ConformalPredictor(score, 0.4, **more)
    probs = np.random.default_rng(1).dirichlet([1, 1, 1], 8).astype("float32")
    probs[BAD, 0] = np.nan
    assert sets.predict_set(probs)[BAD].all() and not sets.accept(probs)[BAD].any()
    for jit in (False, True):
        found = tf.function(sets.transform, autograph=False, jit_compile=jit)(probs)
        assert found["prediction_set"].numpy()[BAD].all()


def test_calibrations_keep_nan():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet([1, 1, 1], 60)
    labels = np.array([rng.choice(3, p=p) for p in probs])
    new = probs[:8].copy()
    new[BAD, 1] = np.nan
    for scaling in (TemperatureScaling(), VectorScaling(), IsotonicCalibration()):
        scaling.fit(probs, labels)
        with pytest.raises(ValueError, match="NaN"):
            scaling.transform(new)
        found = scaling.transform(tf.constant(new)).numpy()  # as in a graph, where nothing raises
        assert np.isnan(found[BAD]).any(-1).all() and np.isfinite(found[~BAD]).all()
        assert not RejectionRule("confidence", 0.0).accept(found)[BAD].any()


def test_what_is_judged_with_labels_is_refused():
    probs = np.random.default_rng(1).dirichlet([1, 1, 1], 8)
    probs[2] = np.nan
    calls = {
        "cascade": lambda: cascade([(probs, 0.5)], Y, expert=1.0),
        "simulate_deferral": lambda: simulate_deferral(0.5, probs, Y, expert=1.0),
        "fit": lambda: RejectionRule.fit(probs, Y, target_coverage=0.5),
        "evaluate": lambda: RejectionRule("confidence", 0.5).evaluate(probs, Y),
        "sets": lambda: ConformalPredictor.fit(probs, Y, alpha=0.5),
        "coverage": lambda: ConformalPredictor("lac", 0.5).coverage(probs, Y),
        "scaling": lambda: TemperatureScaling().fit(probs, Y),
        "table": lambda: tfuq.metrics.rejection_table(Y, probs, [0.5]),
        "decompose": lambda: decompose(probs[None]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match="must"):
            raise AssertionError(f"{name} answered {call()}")


@pytest.mark.parametrize(
    "labels", [np.where(Y, Y, np.nan), Y + 0.5, Y - 1, Y + 9, np.where(Y, Y, np.inf)]
)
def test_labels_that_are_none_are_refused(labels):
    probs = np.random.default_rng(1).dirichlet([1, 1, 1], 8)
    with np.errstate(invalid="ignore"):
        for call in (
            lambda: RejectionRule.fit(probs, labels, target_coverage=0.5),
            lambda: ConformalPredictor.fit(probs, labels, alpha=0.5),
            lambda: VectorScaling().fit(probs, labels),
            lambda: tfuq.metrics.brier_score(labels, probs),
            lambda: tfuq.metrics.expected_calibration_error(labels, probs),
            lambda: tfuq.selective.aurc(probs, labels),
            lambda: tfuq.interpret.confused_pairs(labels, probs),
        ):
            with pytest.raises(ValueError, match=r"labels|y_true"):
                call()


# --- What predicts ------------------------------------------------------------------------------


def test_models_with_a_rule_refuse(tmp_path):
    """`append_to`: in memory, and after saving and loading."""
    model = plain()
    assert hidden(model)
    whole = RejectionRule("confidence", 0.0).append_to(model)
    sets = ConformalPredictor("lac", 0.9).append_to(model)
    scaled = TemperatureScaling(1.5, rank=2).append_to(model)
    whole.save(tmp_path / "rule.keras")
    loaded = keras.models.load_model(tmp_path / "rule.keras", safe_mode=True)
    for each in (whole, loaded):
        found = each.predict(X, verbose=0)
        assert found["accept"].tolist() == (~BAD).tolist()
        assert np.isnan(found["probabilities"][BAD]).all()
        kept = model.predict(CLEAN, verbose=0)[~BAD]
        np.testing.assert_allclose(found["probabilities"][~BAD], kept, rtol=1e-6)
    assert sets.predict(X, verbose=0)["prediction_set"][BAD].all()
    assert np.isnan(scaled.predict(X, verbose=0)[BAD]).all()


def test_a_rule_behind_a_stack_refuses():
    """A model of which the samples come first."""
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3, "softmax")(inputs)
    stack = keras.ops.stack([outputs, outputs], axis=0)
    whole = RejectionRule("mutual_information", 1.0).append_to(keras.Model(inputs, stack))
    x = np.zeros((3, 4), "float32")
    x[1, 0] = np.nan
    assert whole(x)["accept"].numpy().tolist() == [True, False, True]
    assert isinstance(whole.layers[-1], PostProcessing)


def test_whole_numbers_are_never_unknown():
    inputs = keras.Input((4,), dtype="int32")
    outputs = keras.layers.Dense(3, "softmax")(keras.layers.Rescaling(0.1)(inputs))
    whole = RejectionRule("confidence", 0.0).append_to(keras.Model(inputs, outputs))
    assert whole.predict(np.arange(12).reshape(3, 4), verbose=0)["accept"].all()


@pytest.mark.parametrize("first", [slice(0, 8), slice(1, 8)])
def test_ensembles_know_nothing(first):
    """Also where the first example of the first batch is the one that is bad."""
    ensemble = tfuq.ensembles.DeepEnsemble.from_models([plain(), plain()])
    x, bad = X[first], BAD[first]
    stack, mean = ensemble.predict(x), ensemble.predict_mixture(x)
    for found, expected in (
        (stack, ensemble.predict(CLEAN[first])),
        (mean[None], ensemble.predict_mixture(CLEAN[first])[None]),
    ):
        assert np.isnan(found[:, bad]).all()
        np.testing.assert_allclose(found[:, ~bad], expected[:, ~bad], rtol=1e-6)
    with pytest.raises(ValueError, match="NaN"):
        ensemble.evaluate(x, Y[first])


def test_augmentation_at_test_time_knows_nothing():
    model = plain()
    stack = test_time_augmentation(model, X, layers.RandomFlip(), num_samples=3)
    assert np.isnan(stack[:, BAD]).all() and np.isfinite(stack[:, ~BAD]).all()
    check_unknown(
        test_time_augmentation(model, X, layers.RandomFlip(), num_samples=3, summary=True)
    )


def test_logits_are_known_beside_nan():
    """One example that is NaN does not turn probabilities into logits, nor the other way round."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    expected = model.predict(x, verbose=0)
    x[0, 1] = np.nan
    ensemble = tfuq.ensembles.DeepEnsemble.from_models([model])
    found = ensemble.predict(x)[0]
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-6)
    assert np.isnan(ensemble.predict(x[:1])).all()  # alone, too: the layer says what it is


@pytest.mark.parametrize("head", ["VBLLDense", None])
def test_scores_of_a_data_set_refuse(head, tmp_path):
    model = network(head) if head else plain()
    found = score_dataset(
        model,
        X,
        tmp_path / "scores",
        rule=RejectionRule("confidence", 0.0),
        ood=tfuq.ood.MaxSoftmax().fit(plain(), CLEAN),
        num_samples=4 if head else None,
        verbose=0,
    )
    rows = read_scores(found.path)
    assert rows["accept"].tolist() == (~BAD).tolist()
    assert (rows["label"][BAD] == -1).all() and np.isposinf(rows["ood_score"][BAD]).all()
    assert np.isnan(rows["probabilities"][BAD]).all()


def test_fitting_to_a_model_refuses():
    model = plain()
    for fit in (RejectionRule.fit_model, ConformalPredictor.fit_model):
        with pytest.raises(ValueError, match="NaN"):
            fit(model, (X, Y), target_coverage=0.5)
    evaluator = tfuq.callbacks.RejectionEvaluator((X, Y), verbose=0)
    with pytest.raises(ValueError, match="NaN"):
        evaluator.evaluate(model)


def test_explanations_know_nothing():
    parts = [layers.Conv2D(2, 3, activation="relu"), layers.GlobalMaxPooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *parts, layers.Dense(3, "softmax")])
    for explain in (tfuq.interpret.grad_cam, tfuq.interpret.guided_backpropagation):
        maps = explain(model, X, 0)
        assert np.isnan(maps[BAD]).all() and np.isfinite(maps[~BAD]).all()
    maps = tfuq.interpret.occlusion(model, X, 4, class_index=0)
    assert np.isnan(maps[BAD]).all() and np.isfinite(maps[~BAD]).all()


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_what_overflows_in_half_precision_is_refused(dtype):
    keras.config.set_dtype_policy(dtype)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), MCDropout(0.5)])
    model.add(layers.Dense(3, dtype="float32"))
    x = np.zeros((3, 4), "float32")
    x[1] = 3e38
    rule = RejectionRule("confidence", 0.0, from_logits=True)
    logits = model.predict(x, verbose=0)
    known = np.isfinite(logits).all(-1)
    assert rule.accept(logits).tolist() == known.tolist() and known[0] and known[2]
    if dtype == "mixed_float16":  # it is infinite there
        assert not known[1]


@pytest.mark.slow
def test_a_model_of_nan_is_known_for_it():
    model = network("VBLLDense", compiled=True)
    weights = model.get_weights()
    weights[0][:] = np.nan
    model.set_weights(weights)
    found = predict_uncertainty(model, CLEAN, num_samples=3)
    assert (found.label == -1).all() and np.isnan(found.confidence).all()
    assert not RejectionRule("confidence", 0.0, from_logits=True).accept(model.predict(CLEAN)).any()
    with pytest.raises(ValueError, match="finite"):
        tfuq.ood.MaxSoftmax().fit(model, CLEAN)


@pytest.mark.slow_cases("False")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("with_sets", [False, True])
def test_an_export_refuses(with_sets, tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), *HEADS["VBLLDense"]()])
    options = {"conformal": ConformalPredictor("lac", 0.9)} if with_sets else {}
    options |= {} if with_sets else {"rule": RejectionRule("confidence", 0.0)}
    detector = tfuq.ood.MaxSoftmax(from_logits=True).fit(model, CLEAN)
    tfuq.export.export(
        model, tmp_path / "m", num_samples=3, ood=detector, from_logits=True, **options
    )
    module = tf.saved_model.load(str(tmp_path / "m"))
    served = module.serve(X)
    assert not served["accept"].numpy()[BAD].any()
    assert np.isnan(served["probabilities"].numpy()[BAD]).any(-1).all()
    assert np.isposinf(served["ood_score"].numpy()[BAD]).all()
    if with_sets:
        assert served["prediction_set"].numpy()[BAD].all()


def test_an_export_refuses_what_pooling_hides(tmp_path):
    model = plain()
    assert hidden(model)
    rule = RejectionRule("confidence", 0.0)
    tfuq.export.export(model, tmp_path / "m", rule=rule, from_logits=False)
    module = tf.saved_model.load(str(tmp_path / "m"))
    assert module.serve(X)["accept"].numpy().tolist() == (~BAD).tolist()
