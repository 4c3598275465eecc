"""Rules of a detector's score for numbers: fitted where inputs are, wherever the detector goes."""

import csv
import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import report
from tfuq.cli import main
from tfuq.export import export, export_litert, export_onnx
from tfuq.layers import NormalDense
from tfuq.metrics import ause
from tfuq.ood import KNN, Mahalanobis
from tfuq.predictive import predict_uncertainty, read_scores, score_dataset
from tfuq.selective import Monitor, RegressionRule, RejectionRule
from tfuq.serving.answers import Decision, answers
from tfuq.serving.served_model import ServedModel

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


def test_on_a_page(tmp_path):
    """The figures of scores, of the detector in one pass, and of shuffled batches are the same."""
    rows = tf.data.Dataset.from_tensor_slices((NEW, NEW_Y[:, None])).shuffle(500, seed=3).batch(64)
    scores = DETECTOR.score(NEW)
    texts = [
        report.to_markdown((FOUND, NEW_Y), rule=RULE, score=scores),
        report.to_markdown(MODEL, data=(NEW, NEW_Y), rule=RULE, score=DETECTOR),
        report.to_markdown(MODEL, data=rows, rule=RULE, score=DETECTOR),
    ]
    wrong = np.abs(FOUND.mean[:, 0] - NEW_Y) > 1
    judged = RULE.evaluate(FOUND, NEW_Y, score=scores)
    told = f"the rule accepts {judged.accepted} ({100 * ACCEPT.mean():.1f} %), of which "
    told += f"{(wrong & ACCEPT[:, 0]).sum()} are off by more than 1"
    for text in texts:
        assert told in text and f"## Mahalanobis score of at most {RULE.threshold:g}" in text
    area = f"{ause(NEW_Y, FOUND.mean[:, 0], scores):.4g}"
    assert f"(AUSE) | {area} |" in texts[0]
    below = np.log(scores)  # some of them below 0
    page = report.html((FOUND, NEW_Y), tmp_path / "page.html", score=below, tolerance=1.0)
    text = page.read_text(encoding="utf-8")
    assert "Accept an answer if its given score is at most" in text
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])
    assert below.min() - 0.1 < content["smallest"] <= below.min() < 0 and content["marks"] == []
    below[[4, 9]] = np.nan, np.inf
    assert "2 of 500 predictions or their scores" in report.to_markdown((FOUND, NEW_Y), score=below)


def test_served(tmp_path):
    """The server decides as the rule does, and says by which score."""
    export(MODEL, tmp_path / "served", rule=RULE, ood=DETECTOR)
    served = ServedModel(tmp_path / "served")
    decision = Decision.of(served.metadata)
    strange = DETECTOR.score(NEW)
    broken = np.concatenate([NEW[:60], np.full((1, 4), np.nan, "float32")])
    told = answers(served.predict(list(broken)), decision)
    assert [row["accept"] for row in told[:-1]] == ACCEPT[:60, 0].tolist()
    for row, score in zip(told[:-1], strange[:60], strict=True):
        np.testing.assert_allclose(row["ood_score"], score, rtol=1e-3)
        side = "at most" if row["accept"] else "above"
        (reason,) = row["reasons"]
        assert re.fullmatch(rf"ood score \S+ {side} the threshold {RULE.threshold:.6g}", reason)
        assert row["decision"] == ("accepted" if row["accept"] else "refer to an expert")
    assert told[-1]["accept"] is False and told[-1]["mean"] is None


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
    page = str(tmp_path / "page.html")
    assert main(["report", model, new, page, "--rule", rule, *ood]) == 0
    assert f"the rule accepts {ACCEPT.sum()} (" in pathlib.Path(page).read_text(encoding="utf-8")
    assert main(["report", model, new, page, "--rule", rule, "--quiet"]) == 2
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
            "in another order",
            lambda: RejectionRule.fit_model(
                MODEL, tf.data.Dataset.from_tensors((X, Y)), score=DETECTOR.score(X), **GOAL
            ),
        ),
        (
            "`score` must be the scores of these",
            lambda: report.html((FOUND, NEW_Y), "page.html", rule=RULE),
        ),
        (
            "`score` must be an array where `source` is not a model",
            lambda: report.html((FOUND, NEW_Y), "page.html", rule=RULE, score=DETECTOR),
        ),
        (
            "`score` must hold a number for each of 500",
            lambda: report.html((FOUND, NEW_Y), "page.html", score=DETECTOR.score(X)),
        ),
        (
            "`score` must hold a number for each example",
            lambda: report.html((FOUND, NEW_Y), "page.html", score=FOUND.std),
        ),
        (
            "`score` must be None for a rule of the score 'std'",
            lambda: report.html(
                (FOUND, NEW_Y),
                "page.html",
                rule=RegressionRule("std", 0.5),
                score=DETECTOR.score(NEW),
            ),
        ),
        (
            "`score` must be the fitted Mahalanobis.*Received: a KNN",
            lambda: report.html(MODEL, "page.html", data=(NEW, NEW_Y), rule=RULE, score=OTHER),
        ),
        (
            "`score` must be a detector where `data` are not arrays",
            lambda: report.html(
                MODEL,
                "page.html",
                data=tf.data.Dataset.from_tensors((NEW, NEW_Y)),
                score=DETECTOR.score(NEW),
            ),
        ),
        (
            "`rule=`, and `ood=`, the detector",
            lambda: export(RULE.append_to(MODEL, detector=DETECTOR), "s", output="mean"),
        ),
    ],
)
def test_what_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
