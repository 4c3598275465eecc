"""The command line: its answers against the library's own, its exit codes, its errors."""

import contextlib
import csv
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import metrics, selective
from tfuq.cli import COMMANDS, main
from tfuq.ensembles import DeepEnsemble
from tfuq.export import verify_export
from tfuq.layers import MCDropout
from tfuq.ood import MaxSoftmax
from tfuq.predictive import declare, predict_uncertainty
from tfuq.selective import RejectionRule, TemperatureScaling

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 4, 4, 1)).astype("float32")
# Three classes that the corners tell apart, but for noise.
Y = (X[:, 0, :3, 0] + 0.3 * RNG.normal(size=(600, 3))).argmax(-1)


RULE = ("--out", "rule.json", "--overwrite")


class Folder:
    """A folder with a model and data, and the answers of the command line in it."""

    def __init__(self, path, capfd):
        self.path, self._capfd = path, capfd

    def __call__(self, *arguments, code=0):
        """stdout, parsed if --json is asked for; the exit code is checked."""
        self._capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == code, self._capfd.readouterr()
        self.out, self.err = self._capfd.readouterr()
        return json.loads(self.out) if "--json" in arguments else self.out

    def refused(self, *arguments, says):
        """One line on stderr, nothing on stdout, and code 2."""
        self(*arguments, code=2)
        lines = self.err.strip().splitlines()
        assert self.out == "" and says in lines[-1] and "Traceback" not in self.err, self.err
        assert lines[-1].startswith(f"tfuq {arguments[0]}: "), lines


def build(*layers):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), *layers])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture(scope="module")
def model():
    model = build(keras.layers.Dense(3))
    kernel = np.zeros((16, 3), "float32")
    kernel[:3] = 6 * np.eye(3)  # over-confident
    model.layers[-1].set_weights([kernel, np.zeros(3, "float32")])
    return model


@pytest.fixture(scope="module")
def probs(model):
    return np.asarray(keras.ops.softmax(model.predict(X, verbose=0)))


@pytest.fixture
def here(tmp_path, capfd, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("m.keras")
    np.savez("d.npz", x_val=X[:300], y_val=Y[:300], x_test=X[300:], y_test=Y[300:])
    return Folder(tmp_path, capfd)


VAL, TEST = ("d.npz", "--split", "val"), ("d.npz", "--split", "test")


# --- What is answered ---------------------------------------------------------------------------


def test_monitor_goes_on_from_its_file_and_raises_an_alarm(here, model):
    here("calibrate", "m.keras", *VAL, "--target-risk", "0.15", *RULE)
    watch = ("m.keras", "d.npz", "state.json", "--rule", "rule.json", *TEST[1:])
    first = here("monitor", *watch, "--json")
    here.refused("monitor", *watch, says="must hold new cases")  # the same file once more
    np.savez("next.npz", x_test=X[:299:-1], y_test=Y[:299:-1])
    again = here("monitor", "m.keras", "next.npz", *watch[2:], "--json")
    assert (first["cases"], again["cases"]) == (300, 600)
    assert again["alarms"] == [] and again["accepted"] == 2 * first["accepted"]
    here.refused("monitor", *watch, "--alpha", "0.1", says="STATE must be of the same")
    np.savez("wrong.npz", x_test=X[301:], y_test=(Y[301:] + 1) % 3)
    text = here("monitor", "m.keras", "wrong.npz", *watch[2:], code=1)
    assert "alarms     risk" in text and "raised an alarm" in here.err
    (here.path / "state.json").write_text("{}")
    here.refused("monitor", *watch, says="must name a file as `Monitor.save`")
    RejectionRule("confidence", 0.5).save(here.path / "none.json")
    new = (*watch[:2], "new.json", "--rule", "none.json", *TEST[1:])
    here.refused("monitor", *new, says="without a promise")


def test_evaluate_says_what_the_library_says(here, probs):
    found = here("evaluate", "m.keras", *TEST, "--json")
    labels, judged = Y[300:], probs[300:]
    assert found["examples"] == 300 and found["ok"] and found["failures"] == []
    assert found["accuracy"] == pytest.approx(np.mean(judged.argmax(-1) == labels))
    nll = -np.log(judged[np.arange(300), labels]).mean()
    assert found["nll"] == pytest.approx(nll, rel=1e-4)
    ece = metrics.expected_calibration_error(labels, judged)
    assert found["ece"] == pytest.approx(float(ece), rel=1e-4)
    assert found["aurc"] == pytest.approx(float(selective.aurc(judged, labels)), rel=1e-4)
    text = here("evaluate", "m.keras", *TEST)
    assert f"accuracy   {found['accuracy']:.4f}" in text and "batch" not in text
    assert here.err == ""  # nobody watches


def test_a_rule_is_fitted_judged_and_applied(here, probs):
    command = (
        "calibrate",
        "m.keras",
        *VAL,
        "--target-risk",
        0.1,
        "--out",
        "rule.json",
        "--overwrite",
    )
    said = here(*command, "--json")
    rule = RejectionRule.load("rule.json")
    expected = RejectionRule.fit(probs[:300], Y[:300], target_risk=0.1)
    assert rule.threshold == pytest.approx(expected.threshold, abs=1e-6)
    assert said["says"] == rule.describe() and said["fitted_to"]["target_risk"] == 0.1

    found = here("evaluate", "m.keras", *TEST, "--rule", "rule.json", "--json")["rule"]
    judged = rule.evaluate(probs[300:], Y[300:])
    assert found["accepted"] == judged.accepted and 0 < judged.accepted < 300
    assert found["risk"] == pytest.approx(judged.risk)
    assert found["risk_interval"] == pytest.approx([judged.risk_lower, judged.risk_upper])
    assert (found["promised_risk"], found["promise_broken"]) == (0.1, False)
    assert "promised   0.1000  (not contradicted)" in here(
        "evaluate", "m.keras", *TEST, "--rule", "rule.json"
    )

    losses = {"error": 0.2, "recall of 1": 0.8}
    several = RejectionRule.fit(probs[:300], Y[:300], loss=losses)
    several.save(here.path / "several.json")
    found = here("evaluate", "m.keras", *TEST, "--rule", "several.json", "--json")["rule"]
    judged = several.evaluate(probs[300:], Y[300:])
    assert [each["cases"] for each in found["promises"]] == [x["cases"] for x in judged.losses]
    assert found["risk"] == pytest.approx(judged.risk)
    said = here("evaluate", "m.keras", *TEST, "--rule", "several.json")
    assert "accepted, recall of 1: risk" in said and "promised at most 0.2000 (not" in said

    here("predict", "m.keras", *TEST, "out.csv", "--rule", "rule.json")
    rows = list(csv.DictReader(open_text("out.csv")))
    accepted = [row["accept"] == "True" for row in rows]
    np.testing.assert_array_equal(accepted, rule.accept(probs[300:]))


def test_promises_of_functions_and_costs(here, probs):
    args, size = ("evaluate", "m.keras", *TEST, "--rule", "rule.json"), probs.shape[1]
    options = {"target_risk": 0.3}
    lost = RejectionRule.fit(probs[:300], Y[:300], loss=lambda p, y: p.argmax(-1) != y, **options)
    lost.save("rule.json")
    assert here(*args, "--json")["rule"]["promises"] == []
    assert "the file of a rule holds no functions" in here.err
    costs = (1 - np.eye(size)) / 2
    rule = RejectionRule.fit(probs[:300], Y[:300], loss=costs, **options)
    rule.save("rule.json")
    assert "matrix: risk" in here(*args) and "(not tested)" in here(*args)
    (found,) = here(*args, "--json")["rule"]["promises"]
    assert found["risk"] == pytest.approx(rule.evaluate(probs[300:], Y[300:]).risk)


def test_a_rule_splits_its_rows_for_a_calibration(here, probs):
    command = ("calibrate", "m.keras", *VAL, "--target-risk", 0.1, "--calibrate", "temperature")
    said = here(*command, "--out", "rule.json", "--overwrite", "--json")
    rule = RejectionRule.load("rule.json")
    assert rule.calibration.fitted_to["examples"] == said["fitted_to"]["examples"] == 150
    found = here("evaluate", "m.keras", *TEST, "--rule", "rule.json", "--json")["rule"]
    assert found["accepted"] == rule.evaluate(probs[300:], Y[300:]).accepted
    rule.calibration.save("c.json")
    twice = ("--rule", "rule.json", "--calibration", "c.json")
    here("evaluate", "m.keras", *TEST, *twice, code=2)
    here(*command, "--out", "rule.json", "--overwrite", "--calibration", "c.json", code=2)


def open_text(path):
    with open(path, newline="", encoding="utf-8") as file:
        return file.read().splitlines()


def test_a_broken_promise_is_exit_code_1(here):
    here("calibrate", "m.keras", *VAL, "--target-risk", 0.1, "--out", "rule.json", "--overwrite")
    np.savez("shifted.npz", x=X[300:], y=(Y[300:] + 1) % 3)  # all answers are wrong
    found = here("evaluate", "m.keras", "shifted.npz", "--rule", "rule.json", "--json", code=1)
    assert found["rule"]["promise_broken"] and not found["ok"]
    assert "promised a risk of at most 0.1" in found["failures"][0] in here.err


def test_what_is_asked_for_and_not_so_is_exit_code_1(here):
    asked = ("--min-accuracy", 0.999, "--max-ece", 0.9, "--max-nll", 0.0001)
    found = here("evaluate", "m.keras", *TEST, *asked, "--json", code=1)
    names = [line.split()[0] for line in found["failures"]]
    assert names == ["accuracy", "nll"]
    here("evaluate", "m.keras", *TEST, "--min-accuracy", 0.5)
    here.refused("evaluate", "m.keras", *TEST, "--max-risk", 0.1, says="must come with --rule")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--max-ece", 5, "5 % is 0.05"),  # which every model would have passed
        ("--min-accuracy", 90, "90 % is 0.9"),
        ("--min-coverage", -0.1, "a fraction in"),
        ("--max-nll", "nan", "a finite number"),  # nothing is above it
    ],
)
def test_percentages_and_nan_are_not_asked_for(here, capfd, option, value, says):
    with pytest.raises(SystemExit) as left:
        here("evaluate", "m.keras", *TEST, option, value)
    assert left.value.code == 2 and says in capfd.readouterr().err


def test_no_rule_for_an_impossible_risk_is_exit_code_1(here):
    np.savez("noise.npz", x=X[:60], y=RNG.integers(0, 3, 60))
    command = (
        "calibrate",
        "m.keras",
        "noise.npz",
        "--target-risk",
        0.01,
        "--out",
        "rule.json",
        "--overwrite",
    )
    found = here(*command, "--json", code=1)
    assert found["failures"] and not (here.path / "rule.json").exists()


def test_a_calibration_is_fitted_and_applied(here, probs):
    found = here("calibrate", "m.keras", *VAL, "--out", "t.json", "--overwrite", "--json")
    fitted = TemperatureScaling.load("t.json")
    assert fitted.temperature > 1.2  # it was over-confident
    assert found["nll_after"] < found["nll_before"]
    after = np.asarray(fitted.transform(probs[300:]))
    judged = here("evaluate", "m.keras", *TEST, "--calibration", "t.json", "--json")
    nll = float(metrics.negative_log_likelihood(Y[300:], after))
    assert judged["nll"] == pytest.approx(nll, rel=1e-4)
    more = (
        "--calibration",
        "t.json",
        "--target-coverage",
        0.8,
        "--out",
        "rule.json",
        "--overwrite",
    )
    here.refused("calibrate", "m.keras", *VAL, *more, says="was fitted to")  # the same rows
    assert "about 80" in here("calibrate", "m.keras", *TEST, *more)


@pytest.mark.slow
def test_random_models_and_ensembles(here):
    random = build(keras.layers.Dense(8, "relu"), MCDropout(0.5), keras.layers.Dense(3))
    random.save("random.keras")
    expected = predict_uncertainty(random, X[300:], 5, seed=2)
    drawn = ("--num-samples", 5, "--seed", 2)
    here("predict", "random.keras", *TEST, "out.csv", *drawn, "--columns", "mutual_information")
    found = [float(line) for line in open_text("out.csv")[1:]]
    np.testing.assert_allclose(found, expected.mutual_information, atol=1e-5)
    rule = RejectionRule("mutual_information", float(np.median(expected.mutual_information)))
    rule.save("rule.json")
    judged = here("evaluate", "random.keras", *TEST, "--rule", "rule.json", *drawn, "--json")
    assert judged["rule"]["coverage"] == pytest.approx(0.5, abs=0.01)
    accuracy = np.mean(expected.label == Y[300:])
    assert judged["accuracy"] == pytest.approx(accuracy, abs=1e-6)

    ensemble = DeepEnsemble(lambda: build(keras.layers.Dense(3)), 2)
    ensemble.save("ensemble")
    mixture = ensemble.predict_mixture(X[300:])
    found = here("evaluate", "ensemble", *TEST, "--json")
    assert found["accuracy"] == pytest.approx(np.mean(mixture.argmax(-1) == Y[300:]), abs=1e-6)


def test_predict_writes_csv_parquet_and_shards(here, model, probs):
    parquet = pytest.importorskip("pyarrow.parquet")
    MaxSoftmax().fit(model, X).save("ood.json")
    found = here("predict", "m.keras", *TEST, "o.csv", "--ood", "ood.json", "--json")
    rows = list(csv.DictReader(open_text("o.csv")))
    assert found["examples"] == len(rows) == 300 and "ood_score" in found["columns"]
    written = np.array([[float(row[f"probabilities_{k}"]) for k in range(3)] for row in rows])
    np.testing.assert_allclose(written, probs[300:], atol=1e-6)
    scores = [float(row["ood_score"]) for row in rows]
    np.testing.assert_allclose(scores, MaxSoftmax().fit(model, X).score(X[300:]), atol=1e-6)
    assert [int(row["true_label"]) for row in rows] == Y[300:].tolist()

    here("predict", "m.keras", *TEST, "o.parquet", "--shard-size", 70)
    table = parquet.read_table("o.parquet")
    np.testing.assert_allclose(table["probabilities"].to_pylist(), probs[300:], atol=1e-6)
    here("predict", "m.keras", *TEST, "shards", "--shard-size", 70)
    assert len(list((here.path / "shards").glob("part-*"))) == 5
    assert not list(here.path.glob("*.parts"))


def test_a_rule_of_a_detector(here, model, probs):
    detector = MaxSoftmax().fit(model, X)
    detector.save("ood.npz")
    rows, ood = ("m.keras", *VAL), ("--ood", "ood.npz")
    told = here("calibrate", *rows, *RULE, "--target-coverage", 0.6, *ood, "--json")
    assert told["fitted_to"]["detector"]["class"] == "MaxSoftmax" and "MaxSoftmax" in told["says"]
    rule = RejectionRule.load("rule.json")
    accept = rule.accept(probs[300:], score=detector.score(X[300:]))
    found = here("evaluate", "m.keras", *TEST, "--rule", "rule.json", *ood, "--json")
    assert found["rule"]["accepted"] == accept.sum()
    here("report", "m.keras", *TEST, "page.html", "--rule", "rule.json", *ood)
    assert "score is at most" in "".join(open_text("page.html"))
    here("report", "m.keras", *TEST, "page.html", *ood)
    here.refused("report", "m.keras", *TEST, "p.html", "--rule", "rule.json", says="`ood` must be")
    RejectionRule("margin", 0.5).save("margin.json")
    given = ("--rule", "margin.json", *ood)
    here.refused("report", "m.keras", *TEST, "p.html", *given, says="--ood must be left out")
    here("export", "m.keras", "served", "--rule", "rule.json", *ood)
    served = tf.saved_model.load("served")  # to be kept: its weights go with it
    found = served.serve(X[300:])
    np.testing.assert_array_equal(found["accept"], accept)
    here.refused("evaluate", "m.keras", *TEST, "--rule", "rule.json", says="`ood` must be the")
    here.refused("calibrate", *rows, *RULE, *ood, says="--ood must come with")
    here("calibrate", *rows, *RULE, "--target-coverage", 0.6, "--score", "pnorm(3)")
    assert RejectionRule.load("rule.json").score == "pnorm(3)"
    with pytest.raises(SystemExit):
        main(["calibrate", *rows, *RULE, "--target-coverage", "0.6", "--score", "pnorm(0)"])


def test_predict_goes_on_where_it_was_interrupted(here, monkeypatch):
    from tfuq._files import shards

    add, calls = shards.ShardFolder.add, []

    def interrupted(folder, columns, *told):
        calls.append(columns)
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(folder, columns, *told)

    monkeypatch.setattr(shards.ShardFolder, "add", interrupted)
    command = ("predict", "m.keras", *TEST, "o.csv", "--shard-size", 70)
    here(*command, code=130)
    assert not (here.path / "o.csv").exists() and (here.path / "o.csv.parts").is_dir()
    monkeypatch.undo()
    monkeypatch.chdir(here.path)
    assert here(*command, "--json")["resumed_after"] == 210
    here("predict", "m.keras", *TEST, "whole.csv")
    assert open_text("o.csv") == open_text("whole.csv")


def test_folders_of_images(here, model):
    images = RNG.integers(0, 256, size=(12, 6, 5, 1)).astype("uint8")
    classes = ["cat", "dog", "emu"]
    for number, image in enumerate(images):
        folder = here.path / "images" / classes[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.png").write_bytes(tf.io.encode_png(image).numpy())
    order = np.argsort(np.arange(12) % 3, kind="stable")
    x = tf.image.resize(images[order], (4, 4), antialias=True) / 255
    expected = np.asarray(keras.ops.softmax(model.predict(x, verbose=0)))
    labels = np.repeat(np.arange(3), 4)
    scale = ("--scale", 1 / 255)
    found = here("evaluate", "m.keras", "images", *scale, "--json")
    assert found["accuracy"] == pytest.approx(np.mean(expected.argmax(-1) == labels))
    here("predict", "m.keras", "images", "o.csv", *scale)
    rows = list(csv.DictReader(open_text("o.csv")))
    assert [row["file"] for row in rows][:2] == ["images/cat/00.png", "images/cat/03.png"]
    assert [int(row["true_label"]) for row in rows] == labels.tolist()
    written = [float(row["probabilities_1"]) for row in rows]
    np.testing.assert_allclose(written, expected[:, 1], atol=1e-5)
    here("report", "m.keras", "images", "page.html", *scale)
    assert "emu" in (here.path / "page.html").read_text()
    here("predict", "m.keras", "images/cat", "cat.csv", *scale)
    assert "true_label" not in open_text("cat.csv")[0]
    here.refused("evaluate", "m.keras", "images/cat", *scale, says="must have labels")
    (here.path / "images" / "stray.png").write_bytes(b"")
    here.refused("evaluate", "m.keras", "images", says="images beside the folders")
    (here.path / "images" / "stray.png").unlink()
    here.refused("evaluate", "m.keras", "images", says="--scale must be given")


def write_images(folder, classes, count=4, shape=(4, 4, 1)):
    """Images whose brightest corner tells their class: the model is right."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            image = np.zeros(shape, "uint8")
            image[0, number] = 250 - k
            (folder / name / f"{k}.png").write_bytes(tf.io.encode_png(image).numpy())


def accuracy_of(here, *arguments):
    return here("evaluate", "m.keras", *arguments, "--scale", 1 / 255, "--json")["accuracy"]


@pytest.mark.slow
def test_an_empty_folder_keeps_its_number_and_a_missing_one_is_no_shift(here):
    classes = ["cat", "dog", "emu"]
    names = ("--class-names", "cat,dog,emu")
    write_images(here.path / "images", classes)
    assert accuracy_of(here, "images") == accuracy_of(here, "images", *names) == 1
    for file in (here.path / "images" / "cat").iterdir():
        file.unlink()
    (here.path / "images" / ".checkpoints").mkdir()  # hidden ones are none
    assert accuracy_of(here, "images") == accuracy_of(here, "images", *names) == 1
    (here.path / "images" / "cat").rmdir()
    assert accuracy_of(here, "images", *names) == 1
    for command in (("evaluate", "m.keras", "images"), ("predict", "m.keras", "images", "o.csv")):
        here.refused(*command, says="a sub-folder, which may be empty, for each of the 3 classes")
    command = (
        "calibrate",
        "m.keras",
        "images",
        "--target-coverage",
        0.8,
        "--out",
        "r.json",
        "--overwrite",
    )
    here.refused(*command, says="--class-names")
    assert not (here.path / "r.json").exists()
    (here.path / "images" / "gnu").mkdir()
    here.refused("evaluate", "m.keras", "images", *names, says="cat, dog, emu. Received: gnu")
    few = ("--class-names", "dog,emu,gnu,cat", "--scale", 1)
    here.refused("evaluate", "m.keras", "images", *few, says="must name the 3 classes")


@pytest.mark.slow
def test_a_rule_carries_the_names_along(here):
    classes = ["zebra", "ape", "bear"]
    write_images(here.path / "images", classes, count=20)
    names, scale = ("--class-names", ",".join(classes)), ("--scale", 1 / 255)
    command = (
        "calibrate",
        "m.keras",
        "images",
        "--target-coverage",
        0.8,
        "--out",
        "rule.json",
        "--overwrite",
    )
    here(*command, *names, *scale)
    assert RejectionRule.load("rule.json").class_names == classes
    for file in (here.path / "images" / "ape").iterdir():
        file.unlink()
    (here.path / "images" / "ape").rmdir()
    rule = ("--rule", "rule.json")
    assert accuracy_of(here, "images", *rule) == 1
    here("predict", "m.keras", "images", "o.csv", *rule, *scale)
    rows = list(csv.DictReader(open_text("o.csv")))
    assert {(row["true_label"], row["class"]) for row in rows} == {("0", "zebra"), ("2", "bear")}
    here("report", "m.keras", "images", "page.html", *rule, *scale)
    assert "zebra" in (here.path / "page.html").read_text()
    here("export", "m.keras", "served", *rule)
    found = here("evaluate", "served", "--trust", "images", *scale, "--json")
    assert found["accuracy"] == 1  # the names are in its metadata
    other = ("--class-names", "ape,bear,zebra")
    here.refused("evaluate", "m.keras", "images", *rule, *other, says="the same everywhere")


@pytest.mark.slow
def test_names_that_are_declared_of_a_model_order_its_folders(here, model):
    """Folders are in the order of the alphabet, the classes of this model are not."""
    classes = ["zebra", "ape", "bear"]
    write_images(here.path / "images", classes)
    assert accuracy_of(here, "images") < 1  # as nothing is known
    named = keras.models.clone_model(model)
    named.set_weights(model.get_weights())
    named.compile(loss=model.loss)
    declare(named, class_names=classes, value_range=(0, 1))
    named.save("m.keras")
    found = here("evaluate", "m.keras", "images", "--json")  # the range, too, is declared
    assert found["accuracy"] == 1
    here.refused("evaluate", "m.keras", "images", "--scale", 1, says="--scale must be left out")
    here("predict", "m.keras", "images", "o.csv")
    rows = list(csv.DictReader(open_text("o.csv")))
    assert {(row["file"].split("/")[1], row["class"]) for row in rows} == {(c, c) for c in classes}
    other = ("--class-names", "ape,bear,zebra")
    here.refused("evaluate", "m.keras", "images", *other, says="must be the same everywhere")
    x, y = X[:9, :, :, :].clip(0, 1), np.array(classes)[Y[:9]]
    np.savez("named.npz", x=x, y=y)
    assert here("evaluate", "m.keras", "named.npz", "--json")["examples"] == 9
    np.savez("bytes.npz", x=(255 * x).astype("uint8"), y=y)
    here.refused("evaluate", "m.keras", "bytes.npz", says="images from 0 to 1")
    assert here("evaluate", "m.keras", "bytes.npz", "--scale", 1 / 255, "--json")["examples"] == 9


def test_files_that_came_while_predict_was_interrupted(here, monkeypatch):
    from tfuq._files import shards

    def interrupted(folder, columns, *told):
        raise KeyboardInterrupt

    write_images(here.path / "images", ["cat", "dog", "emu"])
    command = ("predict", "m.keras", "images", "o.csv", "--shard-size", 5, "--scale", 1)
    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardFolder, "add", interrupted)
        here(*command, code=130)
    (here.path / "images" / "cat" / "00.png").write_bytes(
        (here.path / "images" / "cat" / "1.png").read_bytes()
    )
    here.refused(*command, says="files: 12 there, 13 now")
    assert here(*command, "--overwrite", "--json")["examples"] == 13


def test_export_and_what_it_wrote_is_a_model(here, probs):
    here("calibrate", "m.keras", *VAL, "--target-risk", 0.1, "--out", "rule.json", "--overwrite")
    found = here("export", "m.keras", "served", "--rule", "rule.json", "--json")
    assert found["bytes"] > 1000
    here("predict", "served", "--trust", *TEST, "o.csv")
    rows = list(csv.DictReader(open_text("o.csv")))
    accepted = [row["accept"] == "True" for row in rows]
    expected = RejectionRule.load("rule.json").accept(probs[300:])
    assert 0 < expected.sum() < 300
    np.testing.assert_array_equal(accepted, expected)
    judged = here("evaluate", "served", "--trust", *TEST, "--rule", "rule.json", "--json")
    assert judged["rule"]["accepted"] == expected.sum()
    here.refused("export", "served", "again", "--trust", says="must not be a SavedModel")
    here.refused("export", "m.keras", "served", says="Received")


@pytest.mark.slow_cases("isotonic")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("method", ["isotonic", "vector"])
def test_an_exported_rule_carries_its_calibration(here, probs, method):
    here("calibrate", "m.keras", *VAL, "--target-coverage", 0.6, "--calibrate", method, *RULE)
    rule = RejectionRule.load("rule.json")
    assert rule.calibration is not None
    expected = rule.accept(probs[300:])
    assert 0 < expected.sum() < 300
    here("export", "m.keras", "served", "--rule", "rule.json")
    here("predict", "served", "--trust", *TEST, "o.csv")
    accepted = [row["accept"] == "True" for row in csv.DictReader(open_text("o.csv"))]
    near = np.isclose(rule.score_of(probs[300:]), rule.threshold, atol=1e-5)
    np.testing.assert_array_equal(np.array(accepted)[~near], expected[~near])
    known = verify_export("served", X[300:], rule.calibration(probs[300:]))
    assert known.differences["probabilities"] < 1e-5


def test_a_rule_is_not_fitted_to_rows_of_its_calibration(here):
    """The splits overlap in 100 rows of 300."""
    rows = {"x_cal": X[:300], "y_cal": Y[:300], "x_rule": X[200:500], "y_rule": Y[200:500]}
    np.savez("o.npz", x_new=X[300:], y_new=Y[300:], **rows)
    here("calibrate", "m.keras", "o.npz", "--split", "cal", "--out", "c.json", "--overwrite")
    options = ("--target-coverage", 0.6, "--calibration", "c.json", *RULE)
    here.refused("calibrate", "m.keras", "o.npz", "--split", "rule", *options, says="about 1")
    here("calibrate", "m.keras", "o.npz", "--split", "new", *options)


@pytest.mark.slow
def test_export_writes_one_file_where_the_name_asks_for_it(here, probs):
    here("export", "m.keras", "m.tflite", "--weights", "float16", "--json")
    found = verify_export("m.tflite", X[300:], probs[300:], tolerance=1e-2)
    assert found.differences["probabilities"] > 0  # float16
    here("export", "m.keras", "m32.tflite")
    verify_export("m32.tflite", X[300:], probs[300:])
    here.refused("export", "m.keras", "served", "--weights", "int8", says="ends in .tflite")


def test_report_writes_a_page(here):
    here("report", "m.keras", *TEST, "page.html", "--names", "a,b,c", "--title", "Ward 3")
    assert "Ward 3" in (here.path / "page.html").read_text()


# --- How it is used -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"] if command else ["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert "exit code" in text and f"tfuq {command or 'evaluate'}" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [[], ["dance"], ["evaluate"], ["evaluate", "m", "d", "--x"]])
def test_bad_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and "usage: tfuq" in capsys.readouterr().err


def test_bad_input_is_one_line(here):
    (here.path / "broken.keras").write_bytes(b"PK\x03\x04")
    (here.path / "empty").mkdir()
    (here.path / "broken.npz").write_bytes(b"PK\x03\x04")
    (here.path / "rule.json").write_text("{}")
    np.savez("unlabelled.npz", x=X)
    np.savez("wrong.npz", x=X[:, :3], y=Y)
    np.savez("classes.npz", x=X, y=Y + 5)
    np.savez("short.npz", x=X, y=Y[:5])
    np.savez("none.npz", x=X[:0], y=Y[:0])
    np.savez("pickled.npz", x=np.array([{}]), y=Y[:1])
    judge = ("evaluate", "m.keras")
    here.refused("evaluate", "nowhere.keras", *TEST, says="MODEL must exist")
    here.refused("evaluate", "broken.keras", *TEST, says="MODEL must be a model that loads")
    here.refused("evaluate", "empty", *TEST, says="MODEL must be a .keras file")
    here.refused(*judge, "nowhere.npz", says="DATA must exist")
    here.refused(*judge, "broken.npz", says="DATA must be an .npz")
    here.refused(*judge, "m.keras", says="DATA must be an .npz")
    here.refused(*judge, "empty", says="DATA must hold images")
    here.refused(*judge, "unlabelled.npz", says="must have labels")
    here.refused(*judge, "d.npz", "--split", "dev", says="x_dev")
    for name in ("classes", "short", "none", "pickled"):
        here.refused(*judge, f"{name}.npz", says="Received")
    here.refused(*judge, "wrong.npz", says="shape")
    here.refused(*judge, *TEST, "--rule", "rule.json", says="--rule must be a file of")
    here.refused(*judge, *TEST, "--rule", "no.json", says="--rule must exist")
    here.refused(*judge, *TEST, "--num-samples", 5, says="`num_samples`")
    here.refused(
        "calibrate", "m.keras", *VAL, "--out", "no/r.json", "--overwrite", says="--out must"
    )
    here.refused("predict", "m.keras", *TEST, "no/o.csv", says="OUT must be in a folder")
    (here.path / "o.csv").write_text("precious")
    here.refused("predict", "m.keras", *TEST, "o.csv", says="OUT must be new")
    assert (here.path / "o.csv").read_text() == "precious"
    with pytest.raises(ValueError, match="DATA must exist"):
        main([*judge, "nowhere.npz", "--debug"])


def test_progress_is_for_a_terminal(here, monkeypatch):
    """Commands that go well write nothing to stderr, unless a person watches it."""
    commands = (
        ("calibrate", "m.keras", *VAL, "--target-risk", "0.2", *RULE),
        ("evaluate", "m.keras", *TEST, "--rule", "rule.json"),
        ("predict", "m.keras", *TEST, "o.csv", "--rule", "rule.json"),
        ("monitor", "m.keras", "d.npz", "s.json", "--rule", "rule.json", *TEST[1:]),
        ("report", "m.keras", *TEST, "page.html"),
    )
    for command in commands:
        here(*command)
        assert here.err == "", command
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    here("evaluate", "m.keras", *TEST)
    assert "predicting d.npz" in here.err


OUTS = ("served", "m.onnx", "m.tflite")
QUIET = (
    ("calibrate", "m.keras", *VAL, "--target-risk", "0.2", *RULE),
    ("evaluate", "m.keras", *TEST, "--rule", "rule.json"),
    *(("export", "m.keras", out, "--rule", "rule.json") for out in OUTS),
    *(("verify", out) for out in OUTS),
    ("predict", "m.keras", *TEST, "o.csv", "--rule", "rule.json"),
    ("predict", "served", *TEST, "served.csv", "--trust"),
    *(("predict", out, *TEST, f"{out}.csv") for out in OUTS[1:]),
    ("monitor", "m.keras", "d.npz", "s.json", "--rule", "rule.json", *TEST[1:]),
    ("report", "m.keras", *TEST, "page.html"),
)


@pytest.mark.slow
def test_commands_are_quiet_in_processes_of_their_own(here):
    """Nothing of TensorFlow's or of a converter's; of another, the log level of a user's shell."""
    kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    tool = [sys.executable, "-m", "tfuq"]
    for words in QUIET:
        done = subprocess.run([*tool, *words], env=kept, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), (words, done.stdout)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*tool, "serve", "served", "--port", "0"]
    with subprocess.Popen(command, env=kept, text=True, **pipes) as server:
        address = server.stdout.readline().split()[-1]
        body = json.dumps({"instances": X[:2].tolist()}).encode()
        head = {"Content-Type": "application/json"}
        for path, sent in (("/predict", body), ("/predict", b"{"), ("/ready", None)):
            request = urllib.request.Request(address + path, sent, head if sent else {})
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=300).read()
        server.terminate()
        _, err = server.communicate(timeout=300)
    assert err == ""


@pytest.mark.slow
def test_a_real_process(here, probs):
    command = [sys.executable, "-m", "tfuq", "evaluate", "m.keras", *TEST, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bars, nothing of TensorFlow's
    found = json.loads(done.stdout)
    assert found["accuracy"] == pytest.approx(np.mean(probs[300:].argmax(-1) == Y[300:]))


def test_thresholds_that_are_declared(here, probs):
    command = (
        "calibrate",
        "m.keras",
        *VAL,
        "--out",
        "rule.json",
        "--overwrite",
        "--thresholds",
        ".9,.8,.7,.5",
    )
    here(*command, "--target-risk", 0.3)
    rule = RejectionRule.load("rule.json")
    assert rule.fitted_to["method"] == "fixed_sequence"
    expected = RejectionRule.fit(
        probs[:300], Y[:300], target_risk=0.3, thresholds=[0.9, 0.8, 0.7, 0.5]
    )
    assert rule.threshold == expected.threshold
    here.refused(*command, says="--thresholds must come with --target-risk")
    with pytest.raises(SystemExit):
        here(*command[:-1], "a,b", "--target-risk", 0.3)
