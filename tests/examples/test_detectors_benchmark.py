"""The benchmark of detectors: its figures, its intervals, its tables, and a run on digits."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

from tfuq import metrics, ood

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The script and what is beside it, by name."""
    sys.path.insert(0, str(FOLDER))
    names = ("detectors", "evidence.detection", "evidence.measures", "evidence.rows")
    try:
        found = {name.split(".")[-1]: importlib.import_module(name) for name in names}
        yield found
    finally:
        sys.path.remove(str(FOLDER))
        ours = ("evidence", "detectors")
        for name in [name for name in sys.modules if name.split(".")[0] in ours]:
            del sys.modules[name]


def test_no_table_is_stale(parts):
    detection = parts["detection"]
    found = json.loads(detection.RESULTS.read_text(encoding="utf-8"))
    marked = 0
    for name in detection.PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        marked += len(detection.MARKED.findall(text))
        assert detection.written(text, found) == text, f"{name}: benchmarks/detectors.py --report"
    assert marked == 5
    for task in found["tasks"].values():  # no detector by less seeds than another
        assert {len(runs) for runs in task["runs"].values()} == {found["settings"]["seeds"]}


def test_every_detector_that_scores_one_network_has_a_row(parts):
    others = {  # of several networks, shown what is unknown, or no detectors
        *("MutualInformation", "GradientDetector", "GradientFeatures", "SIRC"),
        *("DetectorLayer", "Threshold", "Tuned", "load_detector", "tune"),
    }
    rows = {name.split(",")[0].split("(")[0] for name in parts["detection"].DETECTORS}
    assert rows - {"SIRC"} == set(ood.__all__) - others


@pytest.mark.parametrize("decimals", [6, 0])  # with ties, too
def test_figures_are_those_of_tfuq(parts, decimals):
    rng = np.random.default_rng(0)
    scores = {"test": rng.normal(size=60), "near": rng.normal(1, size=45)}
    scores = {part: found.round(decimals) for part, found in scores.items()}
    found, truth = parts["detection"].figures(scores), np.repeat([0, 1], [60, 45])
    whole = np.concatenate(list(scores.values()))
    assert found["near auroc"] == pytest.approx(metrics.auroc(truth, whole), abs=1e-5)
    assert found["near fpr95"] == pytest.approx(metrics.fpr_at_tpr(truth, whole), abs=1e-5)


def test_weights_are_rows_that_come_more_than_once(parts):
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(size=50), rng.normal(0.5, size=40)
    times, others = (parts["measures"].drawn(n, 3, rng) for n in (50, 40))
    found = parts["detection"].fpr_of(times, others, inside, outside)
    for draw in range(4):
        one = np.repeat(inside, times[draw].astype(int))
        two = np.repeat(outside, others[draw].astype(int))
        truth, whole = np.repeat([0, 1], [len(one), len(two)]), np.concatenate([one, two])
        assert found[draw] == pytest.approx(metrics.fpr_at_tpr(truth, whole), abs=1e-6)


def test_a_detector_differs_from_itself_by_nothing_and_from_a_better_one(parts):
    rng, detection = np.random.default_rng(2), parts["detection"]
    scores = {"test": rng.normal(size=200), "far": rng.normal(0.5, size=200)}
    better = {"test": scores["test"], "far": scores["far"] + 1}
    runs = {detection.BASE: [scores] * 2, "Energy": [scores] * 2, "KNN": [better] * 2}
    found = detection.differences(runs)
    assert all(values == [0, 0, 0] for values in found["Energy"].values())
    assert found["KNN"]["far auroc"][1] > 0 and found["KNN"]["far fpr95"][2] < 0
    task = {"differences": found}
    assert detection.mark(task, "KNN", "far auroc") == " +"
    assert detection.mark(task, "KNN", "far fpr95") == " +"
    assert detection.mark(task, "Energy", "far auroc") == ""


def run(parts, folder, monkeypatch, *options):
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    monkeypatch.setattr(parts["detectors"], "PENALTIES", (0.0, 1e-2))
    return parts["detectors"].main(["--quick", "--cache", str(folder), *options])


def test_it_runs_on_digits_and_goes_on_where_it_was(parts, tmp_path, monkeypatch, capsys):
    names = ["MaxSoftmax", "KNN, trunk"]
    found = run(parts, tmp_path, monkeypatch, "--detectors", *names)
    task = found["tasks"]["digits"]
    assert set(task["runs"]) == set(names) and set(task["differences"]) == {"KNN, trunk"}
    assert task["runs"]["KNN, trunk"]["0"]["far auroc"] > 0.99  # noise
    assert len(task["trials"]) == 2 and task["accuracy"] > 0.8
    for table in parts["detection"].TABLES.values():
        assert "MaxSoftmax" in table(found)
    capsys.readouterr()
    assert run(parts, tmp_path, monkeypatch, "--detectors", *names) == found
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_every_detector_runs(parts, tmp_path, monkeypatch):
    task = run(parts, tmp_path, monkeypatch)["tasks"]["digits"]
    assert set(task["runs"]) == set(parts["detection"].DETECTORS)
    for name, runs in task["runs"].items():
        assert max(runs["0"]["near auroc"], runs["0"]["far auroc"]) > 0.7, name
