"""The benchmark whose last stage learns: a run on digits, its tables, and what begins anew."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
NAMES = "methods", "finetuning"


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The script and the files beside it, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = {name: importlib.import_module(name) for name in NAMES}
        for name in ("pages", "rows", "tasks"):
            found[name] = importlib.import_module(f"evidence.{name}")
        yield found
    finally:
        sys.path.remove(str(FOLDER))
        for name in [n for n in sys.modules if n.split(".")[0] in ("evidence", *NAMES)]:
            del sys.modules[name]


def test_no_table_is_stale(parts):
    script, pages = parts["finetuning"], parts["pages"]
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages.PAGES}
    assert sum(len(pages.marked("finetuning").findall(t)) for t in texts.values()) == 5
    found = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    for page, text in texts.items():
        again = pages.written(text, found, "finetuning", script.TABLES)
        assert again == text, f"{page}: benchmarks/finetuning.py --report"


def test_it_runs_on_digits(parts, tmp_path, monkeypatch, capsys):
    script = parts["finetuning"]
    monkeypatch.setattr(parts["rows"], "STEPS", 240)
    names = ["Dense", "temperature scaling", "Laplace", script.FROZEN]
    options = ["--quick", "--cache", str(tmp_path), "--rows", *names]
    found = script.main(options)
    task = found["tasks"]["digits"]
    assert set(task["runs"]) == set(names)
    assert task["runs"]["Dense"]["0"]["accuracy"] > 0.7
    tried = task["trials"]["Dense"]
    assert [trial[2] for trial in tried] == [script.STAGES] * 3 + [1]
    assert set(task["trials"]) == {"Dense"}  # what is made of it, and what is frozen, tunes nothing
    mean, low, high = task["differences"]["temperature scaling"]["accuracy"]
    assert mean == low == high == 0  # a temperature moves no label
    assert task["differences"][script.FROZEN]["accuracy"] != [0, 0, 0]
    for name, table in script.TABLES.items():
        assert table(found), name
    assert script.FROZEN in script.figures(found) and script.FROZEN in script.differences(found)
    capsys.readouterr()
    assert script.main(options) == found
    assert capsys.readouterr().out == ""


def test_a_network_begins_anew_and_its_stage_learns(parts, monkeypatch, tmp_path):
    script, rows, tasks = (parts[name] for name in ("finetuning", "rows", "tasks"))
    monkeypatch.setattr(rows, "STEPS", 48)
    stages, frozen = script.made_up()
    features = stages.features(["test"])["test"]
    np.testing.assert_allclose(
        features, stages.task.x["test"], atol=1e-3
    )  # at the start, as frozen
    store = tasks.Store(tmp_path / "found.json", tmp_path, {}, parts["methods"].PARTS)
    runs = script.Runs(store, stages, ["Dense"], 1, frozen)
    plan = next(runs.plans("Dense", stages.task.plan(0), None))._replace(value=1e-2)
    assert plan.batch == script.BATCH
    once, graphs = [], {}
    for seed in (0, 1, 0):
        network, _ = runs.fit("Dense", plan._replace(seed=seed), graphs)
        once.append(runs.asked(network, ["test"])["test"])
    np.testing.assert_allclose(once[0], once[2], atol=1e-5)
    assert np.abs(once[0] - once[1]).max() > 1e-3
    assert np.abs(stages.features(["test"])["test"] - features).max() > 1e-3
