"""Rules of a detector's score: fitted where inputs are, and wherever the detector goes."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.export import export, export_litert, export_onnx
from tfuq.ood import KNN, DetectorLayer, Energy, Mahalanobis
from tfuq.predictive import read_scores, score_dataset
from tfuq.selective import Monitor, RejectionRule
from tfuq.serving.answers import Decision, answers
from tfuq.serving.served_model import ServedModel

RNG = np.random.default_rng(0)
MODEL = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
MODEL.set_weights([RNG.normal(size=(4, 3)), np.zeros(3)])
TRAIN = RNG.normal(size=(300, 4)).astype("float32")


def rows(count, seed):
    """Inputs near to those of training, right mostly, and strange ones, wrong mostly."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    strange = rng.random(count) < 0.3
    x[strange] += 6
    said = MODEL.predict(x, verbose=0).argmax(-1)
    wrong = rng.random(count) < np.where(strange, 0.8, 0.03)
    return x, np.where(wrong, (said + 1) % 3, said)


X, Y = rows(700, 1)
NEW, NEW_Y = rows(500, 2)
DETECTOR = Mahalanobis().fit(MODEL, TRAIN, TRAIN.argmax(-1) % 3)
RULE = RejectionRule.fit_model(MODEL, (X, Y), score=DETECTOR, target_risk=0.1)
ACCEPT = RULE.accept(MODEL.predict(NEW, verbose=0), score=DETECTOR.score(NEW))


def test_it_is_the_rule_of_the_scores():
    probs = MODEL.predict(X, verbose=0)
    plain = RejectionRule.fit(probs, Y, score=DETECTOR.score(X), target_risk=0.1)
    np.testing.assert_allclose(RULE.threshold, plain.threshold, rtol=1e-5)
    assert RULE.fitted_to["detector"]["class"] == "Mahalanobis"
    assert 0.5 < ACCEPT.mean() < 0.75
    wrong = MODEL.predict(NEW, verbose=0).argmax(-1) != NEW_Y
    assert wrong[ACCEPT].mean() < 0.1 < wrong.mean()
    assert "Mahalanobis" in RULE.describe()
    again = RejectionRule.from_json(RULE.to_json())
    assert again == RULE
    monitor = again.monitor().update(MODEL.predict(NEW, verbose=0), score=DETECTOR.score(NEW))
    assert Monitor.from_json(monitor.to_json()) == monitor


def test_rows_that_are_shuffled_stay_together():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(700, seed=3).batch(64)
    rule = RejectionRule.fit_model(MODEL, data, score=DETECTOR, target_risk=0.1)
    np.testing.assert_allclose(rule.threshold, RULE.threshold, rtol=1e-5)
    names = ["a", "b", "c"]
    options = {"target_coverage": 0.5, "class_names": names, "by": "class"}
    named = RejectionRule.fit_model(MODEL, (X, np.array(names)[Y]), score=DETECTOR, **options)
    assert named.by == "class" and "detector" in named.fitted_to


@pytest.mark.filterwarnings("ignore:The scores are smaller")  # energy of inputs that are far
@pytest.mark.parametrize("kind", [Energy, Mahalanobis, KNN])
def test_in_a_model_and_its_file(kind, tmp_path):
    detector = kind().fit(MODEL, TRAIN, TRAIN.argmax(-1) % 3)
    rule = RejectionRule.fit_model(MODEL, (X, Y), score=detector, target_coverage=0.6)
    expected = detector.score(NEW)
    accept = rule.accept(MODEL.predict(NEW, verbose=0), score=expected)
    assert 0.4 < accept.mean() < 0.8
    whole = rule.append_to(MODEL, detector=detector)
    whole.save(tmp_path / "m.keras")
    for each in (whole, keras.models.load_model(tmp_path / "m.keras")):
        found = each.predict(NEW, verbose=0)
        np.testing.assert_allclose(found["score"], expected, rtol=1e-5, atol=1e-6)
        assert np.mean(found["accept"] == accept) > 0.995  # but for rounding
        np.testing.assert_allclose(found["probabilities"], MODEL.predict(NEW, verbose=0), atol=1e-6)
    broken = NEW[:3].copy()
    broken[1, 2] = np.nan
    found = whole.predict(broken, verbose=0)
    assert not found["accept"][1] and np.isnan(found["probabilities"][1]).all()


@pytest.mark.parametrize("by", [None, "class"])
def test_served(by, tmp_path):
    """The server decides as the rule does, and says by which score."""
    rule = RejectionRule.fit_model(MODEL, (X, Y), score=DETECTOR, target_coverage=0.6, by=by)
    export(MODEL, tmp_path / "served", rule=rule, ood=DETECTOR)
    served = ServedModel(tmp_path / "served")
    decision = Decision.of(served.metadata)
    strange, probs = DETECTOR.score(NEW), MODEL.predict(NEW, verbose=0)
    broken = np.concatenate([NEW[:60], np.full((1, 4), np.nan, "float32")])
    told = answers(served.predict(list(broken)), decision)
    accept = rule.accept(probs, score=strange)[:60]
    assert [row["accept"] for row in told[:-1]] == accept.tolist() and 10 < accept.sum() < 50
    for row, score, label in zip(told, strange[:60], probs.argmax(-1), strict=False):
        np.testing.assert_allclose(row["ood_score"], score, rtol=1e-3)
        threshold = rule.threshold if by is None else rule.threshold[rule.keys.index(label)]
        side = "at most" if row["accept"] else "above"
        (reason,) = row["reasons"]
        assert re.fullmatch(rf"ood score \S+ {side} the threshold {threshold:.6g}", reason)
    assert told[-1]["accept"] is False and told[-1]["label"] is None


def test_what_is_fitted_is_not_trained():
    layer = DetectorLayer(DETECTOR)
    assert len(layer.trainable_weights) == len(MODEL.weights) == 2
    assert len(layer.non_trainable_weights) == len(DETECTOR._graph_state())


@pytest.mark.filterwarnings("ignore")  # that LiteRT's interpreter will move elsewhere
def test_in_an_export_and_in_tables(tmp_path):
    export(MODEL, tmp_path / "served", rule=RULE, ood=DETECTOR)
    served = tf.saved_model.load(str(tmp_path / "served"))
    found = served.serve(NEW)
    assert np.mean(found["accept"].numpy() == ACCEPT) > 0.995
    export_litert(MODEL, tmp_path / "m.tflite", rule=RULE, ood=DETECTOR)
    interpreter = tf.lite.Interpreter(str(tmp_path / "m.tflite"), num_threads=1)
    run = interpreter.get_signature_runner("serving_default")
    found = run(**{name: NEW for name in run.get_input_details()})
    assert np.mean(found["accept"] == ACCEPT) > 0.99
    score_dataset(MODEL, NEW, tmp_path / "scores", rule=RULE, ood=DETECTOR)
    table = read_scores(tmp_path / "scores")
    np.testing.assert_array_equal(table["accept"], ACCEPT)


@pytest.mark.slow
def test_in_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    export_onnx(MODEL, tmp_path / "m.onnx", rule=RULE, ood=DETECTOR)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {session.get_inputs()[0].name: NEW})
    assert np.mean(found[names.index("accept")] == ACCEPT) > 0.99


OTHER = KNN().fit(MODEL, TRAIN)
ARRAY = RejectionRule.fit(MODEL.predict(X, verbose=0), Y, score=OTHER.score(X), target_coverage=0.5)


@pytest.mark.parametrize(
    "message, call",
    [
        (r"`detector\.score\(x\)`", lambda: RejectionRule.fit(X, Y, DETECTOR, 0.1)),
        (r"`detector\.score\(x\)`", lambda: RULE.accept(np.eye(3), score=DETECTOR)),
        ("`ood` must be the fitted Mahalanobis", lambda: score_dataset(MODEL, X, "s", rule=RULE)),
        (
            "`ood` must be the fitted Mahalanobis.*Received: a KNN",
            lambda: export(MODEL, "s", rule=RULE, ood=OTHER),
        ),
        ("`detector` must be the fitted", lambda: RULE.append_to(MODEL)),
        ("`detector` must be the fitted", lambda: RULE.append_to(MODEL, detector=OTHER)),
        ("fit_model", lambda: ARRAY.append_to(MODEL)),
        ("fit_model", lambda: export(MODEL, "s", rule=ARRAY, ood=OTHER)),
        (
            "`append_to` took: export that one with `rule=`, so",
            lambda: export(
                RejectionRule("confidence", 0.5).append_to(MODEL), "s", output="probabilities"
            ),
        ),
        (
            "`append_to` took: export that one with `rule=`, and `ood=`, the detector",
            lambda: export_onnx(RULE.append_to(MODEL, detector=DETECTOR), "s.onnx"),
        ),
        ("`output`", lambda: RULE.append_to(MODEL, 1, detector=DETECTOR)),
        (
            "`detector` must be None",
            lambda: RejectionRule("confidence", 0.5).append_to(MODEL, detector=OTHER),
        ),
        ("must be fitted", lambda: RejectionRule.fit_model(MODEL, (X, Y), score=KNN())),
        ("`predictions` must be a pair", lambda: RULE.transform(tf.eye(3))),
        ("`detector` must", lambda: DetectorLayer(3)),
        ("`model` must be a functional", lambda: DetectorLayer(OTHER, print)),
        (
            "weights",
            lambda: RejectionRule.fit_model(MODEL, (X, Y, np.ones(700)), score=OTHER),
        ),
    ],
)
def test_what_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
