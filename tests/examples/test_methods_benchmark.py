"""The benchmark of methods: its splits, its intervals, its tables, and a run on digits."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tfuq import selective

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The script and the files beside it, by name."""
    sys.path.insert(0, str(FOLDER))
    names = ("images", "measures", "pages", "rows")
    try:
        found = {name: importlib.import_module(f"evidence.{name}") for name in names}
        yield {**found, "methods": importlib.import_module("methods")}
    finally:
        sys.path.remove(str(FOLDER))
        for name in [name for name in sys.modules if name.split(".")[0] in ("evidence", "methods")]:
            del sys.modules[name]


def test_no_table_is_stale(parts):
    pages = parts["pages"]
    found = json.loads(pages.RESULTS.read_text(encoding="utf-8"))
    marked = 0
    for name in pages.PAGES:
        path = ROOT / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            marked += len(pages.MARKED.findall(text))
            assert pages.written(text, found) == text, f"{name}: benchmarks/methods.py --report"
    assert marked >= 7


def test_what_the_page_says_in_words_has_an_interval(parts):
    pages = parts["pages"]
    found = json.loads(pages.RESULTS.read_text(encoding="utf-8"))
    task = found["tasks"]["CIFAR-10N worst"]
    columns = ("accuracy", "augrc", "nll")
    marks = {
        row: {column: pages.mark(task, row, column).strip() for column in columns}
        for row in pages.complete(task)
    }
    assert [row for row in marks if marks[row]["accuracy"] == "+"] == ["deep ensemble"]
    assert marks["deep ensemble"] == {"accuracy": "+", "augrc": "+", "nll": "+"}
    assert marks["HET full"]["augrc"] == "+" and marks["HET diagonal"]["augrc"] == ""
    assert marks["VBLL"] == {"accuracy": "", "augrc": "−", "nll": "+"}
    assert marks["temperature scaling"]["nll"] == ""
    assert pages.mean_of(task["runs"]["temperature scaling"], "ece") > 0.2
    for kind in ("near", "far"):
        for row in ("deep ensemble", "HET full"):
            assert 0 < task["differences"][row][kind][0] < 0.01
    for trials in task["trials"].values():  # the largest penalty that was tried, for all rows
        assert min(trials, key=lambda trial: trial[-1])[1] == parts["rows"].PENALTY


def predictions(rng, rows, classes=4):
    probs = rng.dirichlet(np.ones(classes), rows)
    return probs, rng.integers(classes, size=rows)


def test_the_area_of_all_rows_is_that_of_tfuq(parts):
    probs, labels = predictions(np.random.default_rng(0), 200)
    wrong = (probs.argmax(-1) != labels).astype("float32")
    found = parts["measures"].augrc_of(np.ones((1, 200)), probs.max(-1), wrong)
    np.testing.assert_allclose(found, selective.augrc(probs, labels), rtol=1e-6)


def test_weights_are_rows_that_come_more_than_once(parts):
    rng = np.random.default_rng(1)
    probs, labels = predictions(rng, 60)
    inside, outside = rng.normal(size=60), rng.normal(0.5, size=40)
    times, others = (parts["measures"].drawn(n, 3, rng) for n in (60, 40))
    wrong = (probs.argmax(-1) != labels).astype("float32")
    areas = parts["measures"].auroc_of(times, others, inside, outside)
    for draw in range(4):
        a, b = times[draw].astype(int), others[draw].astype(int)
        scores = np.concatenate([np.repeat(inside, a), np.repeat(outside, b)])
        truth = np.repeat([0, 1], [60, 40])
        tied = roc_auc_score(truth, scores)
        assert areas[draw] == pytest.approx(tied, abs=1e-6)
        rows = np.repeat(np.arange(60), a)
        expected = selective.augrc(probs[rows], labels[rows])
        found = parts["measures"].augrc_of(times[draw : draw + 1], probs.max(-1), wrong)
        assert found[0] == pytest.approx(expected, abs=1e-6)


def test_a_row_differs_from_itself_by_nothing_and_from_a_worse_one(parts):
    rng = np.random.default_rng(2)
    labels = rng.integers(3, size=300)
    good = 0.7 * np.eye(3)[labels] + 0.3 * rng.dirichlet(np.ones(3), 300)
    worse = good.copy()
    worse[:60] = worse[:60, ::-1]
    runs = {"Dense": [{"test": worse}] * 2, "same": [{"test": worse}] * 2}
    runs["better"] = [{"test": good}] * 2
    found = parts["measures"].differences(runs, {"test": labels}, 2, resamples=200)
    assert all(values == [0, 0, 0] for values in found["same"].values())
    assert found["better"]["accuracy"][1] > 0 and found["better"]["nll"][2] < 0


def test_the_critical_difference_is_that_of_demsar(parts):
    """Demsar 2006, section 3.2.2: four rows, 14 sets, q = 2.569, a difference of 1.25."""
    table = np.random.default_rng(0).random((14, 4))
    assert parts["measures"].ranks(table, True)[2] == pytest.approx(1.25, abs=0.01)


def test_no_group_is_in_two_parts(parts):
    images, rng = parts["images"], np.random.default_rng(0)
    groups = rng.integers(40, size=400)
    arrays = {"images": rng.integers(255, size=(400, 8, 8), dtype="uint8")}
    arrays |= {"labels": rng.integers(3, size=400), "groups": groups}
    found = images.own_task(arrays, {})
    split = [set(found[part].groups) for part in images.SHARES]
    assert sum(map(len, split)) == len(set.union(*split)) == len(set(groups))
    assert sum(len(found[part].labels) for part in images.SHARES) == 400


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": np.zeros((9, 8, 8))}, "uint8"),
        ({"labels": np.arange(9.0)}, "integers from 0"),
        ({"labels": np.arange(8)}, "a row for each"),
        ({"groups": np.zeros(9, int)}, "too few groups"),
        ({"groups": np.zeros(8, int)}, "a row for each label"),
    ],
)
def test_a_file_of_another_form_is_refused(parts, changed, said):
    arrays = {"images": np.zeros((9, 8, 8), "uint8"), "labels": np.arange(9), **changed}
    with pytest.raises(ValueError, match=said):
        parts["images"].own_task(arrays, {})


def test_a_network_set_anew_learns_as_a_new_one(parts):
    rows, rng = parts["rows"], np.random.default_rng(0)
    x, y = rng.normal(size=(64, 5)).astype("float32"), rng.integers(3, size=64)
    plan = rows.Plan(1e-3, 1e-3, 2, 0, 64, 3)
    graphs = {}
    first = rows.fitted("Dense", x, y, plan, graphs=graphs).predict(x, verbose=0)
    other = rows.fitted("Dense", x, y, plan._replace(seed=1), graphs=graphs).predict(x, verbose=0)
    again = rows.fitted("Dense", x, y, plan, graphs=graphs).predict(x, verbose=0)
    np.testing.assert_allclose(again, first, atol=1e-6)
    assert np.abs(other - first).max() > 0.01


@pytest.mark.slow
def test_every_row_runs(parts, tmp_path, monkeypatch):
    """Trained, compared with Dense, exported and asked; better than a guess."""
    rows = parts["rows"]
    monkeypatch.setattr(rows, "STEPS", 50)
    monkeypatch.setattr(parts["methods"].costs, "ROUNDS", 1)
    options = ["--quick", "--cache", str(tmp_path), "--rows", *rows.ROWS]
    parts["methods"].main(options)
    found = parts["methods"].main([*options, "--costs"])
    task = found["tasks"]["digits"]
    assert set(task["runs"]) == set(task["costs"]["rows"]) == set(rows.ROWS)
    assert set(task["differences"]) == set(rows.ROWS) - {"Dense"}
    for row, runs in task["runs"].items():
        assert runs["0"]["accuracy"] > 0.5, row
    for row, cost in task["costs"]["rows"].items():
        assert cost["ms"] > 0 and cost["export_mb"] > cost["weights_mb"] > 0, row
    assert parts["pages"].cost_table(found).count("\n|") > len(rows.ROWS)


def test_sets_that_are_unknown_are_refused(parts, tmp_path):
    with pytest.raises(ValueError, match=r"--tasks must be among digits\. Received: \['cifar'\]"):
        parts["methods"].main(["--quick", "--cache", str(tmp_path), "--tasks", "cifar"])


def test_it_runs_on_digits_and_goes_on_where_it_was(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    found = parts["methods"].main(["--quick", "--cache", str(tmp_path)])
    task = found["tasks"]["digits"]
    assert set(task["runs"]) == {"Dense", "temperature scaling"}
    assert task["runs"]["Dense"]["0"]["accuracy"] > 0.8
    assert len(task["trials"]["Dense"]) == parts["rows"].TRIALS
    assert set(task["differences"]["temperature scaling"]) == set(parts["measures"].PAIRED)
    assert "accuracy" in parts["pages"].set_table("digits", task)
    monkeypatch.setattr(parts["methods"].costs, "ROUNDS", 1)
    costly = ["--quick", "--costs", "--cache", str(tmp_path), "--rows", "Laplace"]
    found = parts["methods"].main(costly)  # Dense is measured with it; what has run stays
    assert list(found["tasks"]["digits"]["costs"]["rows"]) == ["Dense", "Laplace"]
    assert set(found["tasks"]["digits"]["runs"]) == {"Dense", "temperature scaling"}
    assert "| Laplace | - |" in parts["pages"].cost_table(found)
    capsys.readouterr()
    assert parts["methods"].main(["--quick", "--cache", str(tmp_path)]) == found
    assert capsys.readouterr().out == ""
    stored = tmp_path / "methods.json"
    task["differences"].clear()  # and with another, empty cache: what is compared is run again
    stored.write_text(json.dumps(found), encoding="utf-8")
    for path in (tmp_path / "predictions").iterdir():
        path.unlink()
    again = parts["methods"].main(["--quick", "--cache", str(tmp_path)])["tasks"]["digits"]
    assert set(again["differences"]) == {"temperature scaling"}
    assert len(again["trials"]["Dense"]) == parts["rows"].TRIALS
