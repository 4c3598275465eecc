"""The command line on regressions: calibrate, evaluate, predict and export say what Python says."""

import csv
import json
import re

import keras
import numpy as np
import pytest

from tfuq import report
from tfuq.cli import main
from tfuq.export import verify_export
from tfuq.layers import NormalDense
from tfuq.predictive import predict_uncertainty
from tfuq.selective import ConformalRegressor, RegressionRule, RejectionRule

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 4)).astype("float32")
Y = X[:, 0] + RNG.normal(size=400) * np.exp(X[:, 1] / 2)
HALVES = {"val": slice(0, 200), "test": slice(200, 400)}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a network that knows its noise, another one of classes, and data."""
    folder = tmp_path_factory.mktemp("commands")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), NormalDense(1)])
    kernel = np.zeros((4, 2), "float32")
    kernel[0, 0], kernel[1, 1] = 1.0, 0.7
    model.set_weights([kernel, np.array([0.0, 0.5], "float32")])
    model.save(folder / "m.keras")
    layers = [keras.Input((4,)), keras.layers.Dense(2, "softmax")]
    keras.Sequential(layers).save(folder / "c.keras")
    arrays = {
        f"{n}_{part}": a[rows] for n, a in (("x", X), ("y", Y)) for part, rows in HALVES.items()
    }
    np.savez(folder / "d.npz", **arrays)
    np.savez(folder / "classes.npz", x=X, y=(Y > 0).astype("int64"))
    return folder, model


@pytest.fixture
def run(here, capfd):
    folder, _ = here

    def command(*arguments, code=0):
        words = [
            str(folder / a) if "." in str(a) and str(a)[-1].isalpha() else str(a) for a in arguments
        ]
        capfd.readouterr()
        assert main([*words, "--json", "--quiet"]) == code, capfd.readouterr()
        out, err = capfd.readouterr()
        return err if code == 2 else json.loads(out)

    return command


VAL, TEST = ("d.npz", "--split", "val"), ("d.npz", "--split", "test")


def test_from_calibration_to_the_export(here, run):
    folder, model = here
    found = predict_uncertainty(model, X)
    goal = ("--target-risk", 0.2, "--tolerance", 1)
    said = run("calibrate", "m.keras", *VAL, *goal, "--out", "rule.json", "--overwrite")
    rule = RejectionRule.load(folder / "rule.json")
    assert isinstance(rule, RegressionRule) and said["says"] == rule.describe()
    expected = RejectionRule.fit(found[:200], Y[:200], target_risk=0.2, tolerance=1.0)
    assert rule.threshold == pytest.approx(expected.threshold, rel=1e-6)

    figures = run("evaluate", "m.keras", *TEST, "--rule", "rule.json")
    judged = rule.evaluate(found[200:], Y[200:])
    assert figures["rule"]["accepted"] == judged.accepted and 0 < judged.accepted < 200
    assert figures["mae"] == pytest.approx(np.abs(found.mean[200:, 0] - Y[200:]).mean(), rel=1e-4)
    lower, upper = found[200:].interval(0.9)
    inside = (lower[:, 0] <= Y[200:]) & (Y[200:] <= upper[:, 0])
    assert figures["interval_coverage"] == pytest.approx(inside.mean(), abs=0.006)
    assert np.isfinite([figures["crps"], figures["nll"], figures["rmse"]]).all()
    run("evaluate", "m.keras", *TEST, "--max-mae", 1e-3, code=1)

    run("predict", "m.keras", *TEST, "out.csv", "--rule", "rule.json")
    rows = list(csv.DictReader((folder / "out.csv").read_text().splitlines()))
    accepted = [row["accept"] == "True" for row in rows]
    np.testing.assert_array_equal(accepted, rule.accept(found)[200:, 0])
    run("export", "m.keras", "served.tflite", "--rule", "rule.json")
    verify_export(folder / "served.tflite", X, {"accept": rule.accept(found)})


def test_report(here, run):
    folder, model = here
    found = predict_uncertainty(model, X)
    rule = RejectionRule.fit(found[:200], Y[:200], target_risk=0.2, tolerance=1.0)
    rule.save(folder / "own.json")
    options = ("--title", "Ages", "--quantity", "age (years)")
    said = run("report", "m.keras", *TEST, "page.html", "--rule", "own.json", *options)
    assert said["examples"] == 200
    source = found[200:], Y[200:]
    expected = folder / "expected.html"
    report.html(source, expected, rule=rule, title="Ages", quantity="age (years)")
    page = (folder / "page.html").read_text()
    assert rule.describe() in page and "Off by more than 1" in page
    assert re.sub(r'".*?"', "", page) == re.sub(r'".*?"', "", expected.read_text())
    run("report", "m.keras", *TEST, "plain.html", "--tolerance", 2)
    assert "Off by more than 2" in (folder / "plain.html").read_text()


def test_intervals(here, run):
    folder, model = here
    found = predict_uncertainty(model, X)
    said = run(
        "calibrate", "m.keras", *VAL, "--method", "normalized", "--out", "sets.json", "--overwrite"
    )
    sets = ConformalRegressor.load(folder / "sets.json")
    assert said["says"] == sets.describe() and sets.fitted_to["alpha"] == 0.1
    figures = run("evaluate", "m.keras", *TEST, "--conformal", "sets.json")
    expected = sets.coverage(found[200:], Y[200:]).coverage
    assert figures["interval_coverage"] == pytest.approx(expected, abs=0.006)
    run("predict", "m.keras", *TEST, "sets.csv", "--conformal", "sets.json")
    rows = list(csv.DictReader((folder / "sets.csv").read_text().splitlines()))
    lower = [float(row["lower"]) for row in rows]
    np.testing.assert_allclose(lower, sets.interval(found[200:]).lower[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            ("calibrate", "m.keras", *VAL, "--target-risk", 0.2, "--out", "x.json", "--overwrite"),
            "tolerance",
        ),
        (
            (
                *("calibrate", "m.keras", *VAL, "--target-risk", 0.2, "--tolerance", 1),
                *("--calibrate", "isotonic", "--out", "x.json", "--overwrite"),
            ),
            "--calibrate",
        ),
        (
            (
                "calibrate",
                "m.keras",
                *VAL,
                "--method",
                "isotonic",
                "--out",
                "x.json",
                "--overwrite",
            ),
            "--method",
        ),
        (
            (
                "calibrate",
                "c.keras",
                "classes.npz",
                "--alpha",
                0.1,
                "--out",
                "x.json",
                "--overwrite",
            ),
            "--alpha",
        ),
        (
            (
                "calibrate",
                "c.keras",
                "classes.npz",
                "--method",
                "cqr",
                "--out",
                "x.json",
                "--overwrite",
            ),
            "--method",
        ),
        (("evaluate", "m.keras", *TEST, "--min-accuracy", 0.9), "--min-accuracy"),
        (("evaluate", "c.keras", "classes.npz", "--max-mae", 0.9), "--max-mae"),
        (("evaluate", "c.keras", "classes.npz", "--level", 0.9), "level"),
        (("report", "m.keras", *TEST, "page.html", "--unit", 1), "unit"),
        (("report", "m.keras", *TEST, "page.html", "--tolerance", -1), "tolerance"),
        (("report", "c.keras", "classes.npz", "page.html", "--tolerance", 1), "--tolerance"),
        (("report", "c.keras", "classes.npz", "page.html", "--quantity", "age"), "--quantity"),
        (("predict", "m.keras", *TEST, "no.csv", "--family", "laplace"), "family"),
    ],
)
def test_refused(arguments, says, run, counts):
    assert says in run(*arguments, code=2).strip().splitlines()[-1]
    counts("misuse rows, refused")


def test_a_rule_of_numbers_is_watched(run, here):
    folder, model = here
    found = predict_uncertainty(model, X)
    rule = RejectionRule.fit(found[:200], Y[:200], tolerance=1.5, target_risk=0.3)
    rule.save(folder / "watched.json")
    rest = ("state.json", "--rule", "watched.json")
    watch = ("monitor", "m.keras", "d.npz", *rest, *TEST[1:])
    seen = run(*watch)
    judged = rule.evaluate(found[200:], Y[200:])
    assert (seen["cases"], seen["accepted"]) == (200, judged.accepted) and not seen["alarms"]
    assert seen["loss"] / seen["labelled"] == pytest.approx(judged.risk)
    np.savez(folder / "off.npz", x=X, y=Y + 9)
    later = run("monitor", "m.keras", "off.npz", *rest, code=1)
    assert "risk" in later["alarms"] and later["cases"] == 200 + len(X)
