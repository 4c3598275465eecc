"""Rules of a detector's score for numbers: fitted where inputs are, wherever the detector goes."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import report
from tfuq.cli import main
from tfuq.export import export, export_litert, export_onnx
from tfuq.layers import NormalDense
from tfuq.ood import KNN, Mahalanobis
from tfuq.predictive import predict_uncertainty, read_scores, score_dataset
from tfuq.selective import Monitor, RegressionRule, RejectionRule

RNG = np.random.default_rng(0)
MODEL = keras.Sequential([keras.Input((4,)), NormalDense(1)])
MODEL.set_weights([RNG.normal(size=(4, 2)) * [1, 0.01], np.zeros(2)])
TRAIN = RNG.normal(size=(300, 4)).astype("float32")


def rows(count, seed):
    """Inputs near to those of training, and strange ones, whose answers are far off."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    strange = rng.random(count) < 0.3
    x[strange] += 6
    y = MODEL.predict(x, verbose=0)[:, 0] + rng.normal(size=count) * np.where(strange, 9, 0.4)
    return x, y


X, Y = rows(700, 1)
NEW, NEW_Y = rows(500, 2)
DETECTOR = Mahalanobis().fit(MODEL, TRAIN, TRAIN[:, 0])
GOAL = {"target_risk": 0.1, "tolerance": 1.0}
RULE = RejectionRule.fit_model(MODEL, (X, Y), score=DETECTOR, **GOAL)
FOUND = predict_uncertainty(MODEL, NEW)
ACCEPT = RULE.accept(FOUND, score=DETECTOR.score(NEW))


def test_it_is_the_rule_of_the_scores():
    found = predict_uncertainty(MODEL, X)
    plain = RejectionRule.fit(found, Y, score=DETECTOR.score(X), **GOAL)
    assert isinstance(RULE, RegressionRule)
    np.testing.assert_allclose(RULE.threshold, plain.threshold, rtol=1e-5)
    assert RULE.fitted_to["detector"]["class"] == "Mahalanobis" and "Mahalanobis" in RULE.describe()
    assert 0.5 < ACCEPT.mean() < 0.8
    wrong = np.abs(FOUND.mean[:, 0] - NEW_Y) > 1
    assert wrong[ACCEPT[:, 0]].mean() < 0.1 < wrong.mean()
    again = RejectionRule.from_json(RULE.to_json())
    assert again == RULE
    monitor = again.monitor().update(FOUND, NEW_Y, score=DETECTOR.score(NEW))
    assert Monitor.from_json(monitor.to_json()) == monitor and not monitor.alarm


def test_rows_that_are_shuffled_stay_together():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(700, seed=3).batch(64)
    rule = RejectionRule.fit_model(MODEL, data, score=DETECTOR, **GOAL)
    np.testing.assert_allclose(rule.threshold, RULE.threshold, rtol=1e-5)


@pytest.mark.slow_cases("KNN")
@pytest.mark.parametrize("kind", [Mahalanobis, KNN])
def test_in_a_model_and_its_file(kind, tmp_path):
    detector = kind().fit(MODEL, TRAIN)
    rule = RejectionRule.fit_model(MODEL, (X, Y), score=detector, target_coverage=0.6, tolerance=1)
    expected = detector.score(NEW)
    accept = rule.accept(FOUND, score=expected)
    whole = rule.append_to(MODEL, detector=detector)
    whole.save(tmp_path / "m.keras")
    for each in (whole, keras.models.load_model(tmp_path / "m.keras")):
        found = each.predict(NEW, verbose=0)
        np.testing.assert_allclose(found["score"][:, 0], expected, rtol=1e-4, atol=1e-6)
        assert np.mean(found["accept"] == accept) > 0.995 and 0.4 < accept.mean() < 0.8
        np.testing.assert_allclose(found["mean"], FOUND.mean, rtol=1e-5)
    broken = NEW[:3].copy()
    broken[1, 2] = np.nan
    found = whole.predict(broken, verbose=0)
    assert not found["accept"][1] and np.isnan(found["mean"][1]).all()


@pytest.mark.filterwarnings("ignore")  # that LiteRT's interpreter will move elsewhere
def test_in_an_export_and_in_tables(tmp_path):
    export(MODEL, tmp_path / "served", rule=RULE, ood=DETECTOR)
    served = tf.saved_model.load(str(tmp_path / "served"))
    found = served.serve(NEW)
    assert np.mean(found["accept"].numpy() == ACCEPT) > 0.995
    np.testing.assert_allclose(found["score"][:, 0], found["ood_score"])
    export_litert(MODEL, tmp_path / "m.tflite", rule=RULE, ood=DETECTOR)
    interpreter = tf.lite.Interpreter(str(tmp_path / "m.tflite"), num_threads=1)
    run = interpreter.get_signature_runner("serving_default")
    found = run(**{name: NEW for name in run.get_input_details()})
    assert np.mean(found["accept"] == ACCEPT) > 0.99
    score_dataset(MODEL, NEW, tmp_path / "scores", rule=RULE, ood=DETECTOR)
    table = read_scores(tmp_path / "scores")
    np.testing.assert_array_equal(table["accept"], ACCEPT[:, 0])
    np.testing.assert_allclose(table["score"], table["ood_score"])


@pytest.mark.slow
def test_in_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    export_onnx(MODEL, tmp_path / "m.onnx", rule=RULE, ood=DETECTOR)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {session.get_inputs()[0].name: NEW})
    assert np.mean(found[names.index("accept")] == ACCEPT) > 0.99


def test_on_the_command_line(tmp_path, capsys):
    MODEL.save(tmp_path / "m.keras")
    DETECTOR.save(tmp_path / "d.npz")
    np.savez(tmp_path / "val.npz", x=X, y=Y)
    np.savez(tmp_path / "new.npz", x=NEW, y=NEW_Y)
    model, new, rule = (str(tmp_path / n) for n in ("m.keras", "new.npz", "rule.json"))
    goal = ["--target-risk", "0.1", "--tolerance", "1", "--out", rule]
    ood = ["--ood", str(tmp_path / "d.npz"), "--json", "--quiet"]
    assert main(["calibrate", model, str(tmp_path / "val.npz"), *goal, *ood]) == 0
    fitted = RejectionRule.load(rule)
    np.testing.assert_allclose(fitted.threshold, RULE.threshold, rtol=1e-5)
    capsys.readouterr()
    assert main(["evaluate", model, new, "--rule", rule, *ood]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rule"]["accepted"] == ACCEPT.sum()
    state = str(tmp_path / "state.json")
    assert main(["monitor", model, new, state, "--rule", rule, *ood]) == 0
    out = str(tmp_path / "out.csv")
    assert main(["predict", model, new, out, "--rule", rule, *ood]) == 0
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["accept"] == "True" for row in table] == ACCEPT[:, 0].tolist()


OTHER = KNN().fit(MODEL, TRAIN)
ARRAY = RejectionRule.fit(FOUND, NEW_Y, score=OTHER.score(NEW), target_coverage=0.5, tolerance=1)


@pytest.mark.parametrize(
    "message, call",
    [
        (r"`detector\.score\(x\)`", lambda: RejectionRule.fit(FOUND, NEW_Y, DETECTOR, 0.1)),
        ("`ood` must be the fitted Mahalanobis", lambda: score_dataset(MODEL, X, "s", rule=RULE)),
        (
            "`ood` must be the fitted Mahalanobis.*Received: a KNN",
            lambda: export(MODEL, "s", rule=RULE, ood=OTHER),
        ),
        ("`detector` must be the fitted", lambda: RULE.append_to(MODEL)),
        ("fit_model", lambda: ARRAY.append_to(MODEL)),
        ("fit_model", lambda: export(MODEL, "s", rule=ARRAY, ood=OTHER)),
        (
            "`detector` must be None",
            lambda: RegressionRule("std", 0.5).append_to(MODEL, detector=OTHER),
        ),
        ("`predictions` must be a pair", lambda: RULE.transform(tf.eye(2))),
        ("must be fitted", lambda: RejectionRule.fit_model(MODEL, (X, Y), score=KNN(), **GOAL)),
        (
            "in their order",
            lambda: RejectionRule.fit_model(
                MODEL, tf.data.Dataset.from_tensors((X, Y)), score=DETECTOR.score(X), **GOAL
            ),
        ),
        ("a page of numbers", lambda: report.html((FOUND, NEW_Y), "page.html", rule=RULE)),
    ],
)
def test_what_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
