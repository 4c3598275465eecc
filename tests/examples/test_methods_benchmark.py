"""The benchmark of methods: its splits, its intervals, its tables, and a run on digits."""

import importlib
import json
import pathlib
import sys
import types

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
    names = ("answers", "cells", "images", "measures", "own", "pages", "rows", "tasks")
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
            marked += len(pages.marked().findall(text))
            assert pages.written(text, found) == text, f"{name}: benchmarks/methods.py --report"
    assert marked >= 7


def test_what_the_page_says_by_hand_holds(parts):
    found = json.loads(parts["pages"].RESULTS.read_text(encoding="utf-8"))
    task = found["tasks"]["CIFAR-10N worst"]
    for runs in task["runs"].values():
        accuracy, confidence = (parts["cells"].mean_of(runs, c) for c in ("accuracy", "confidence"))
        assert confidence < accuracy - 0.1
    taken = [
        min(trials, key=lambda trial: trial[-1])[1] > 0
        for row, trials in task["trials"].items()
        if parts["rows"].ROWS[row].knob == "L2" or len(parts["rows"].ROWS[row].values) == 2
    ]
    assert np.mean(taken) > 0.5  # "most took one"
    fewer = {
        name
        for name, each in found["tasks"].items()
        if min(each["trials"]["Dense"], key=lambda trial: trial[-1])[2] == 8
    }
    assert fewer == {"PneumoniaMNIST", "Brain MRI, official test"}  # of benchmarks/README.md
    noisy = [each for name, each in found["tasks"].items() if "CIFAR-10N" in name]
    heads = [row for row in parts["rows"].ROWS if row.startswith("HET")]
    mark = parts["cells"].mark
    for each in noisy:  # of README, too: the ensemble is better, no head for noisy labels is
        assert mark(each, "deep ensemble", "accuracy") == " +"
        assert all(mark(each, row, c) != " +" for row in heads for c in ("accuracy", "augrc"))


def made_up(parts, accuracy):
    """Results of two sets and three rows, with these differences of accuracy in the first."""
    seconds = {"Dense": 1.0, "VBLL": 2.0, "deep ensemble": 5.0}
    runs = {row: {"0": {"seconds": s, "accuracy": 0.5}} for row, s in seconds.items()}
    task = {"runs": runs, "budget": 6, "trials": {"Dense": [[0.1, 0.1, 6, 1.0]]}}
    none = {row: {"accuracy": [0.0, -0.1, 0.1]} for row in accuracy}
    given = {row: {"accuracy": values} for row, values in accuracy.items()}
    return {"tasks": {"one": {**task, "differences": given}, "two": {**task, "differences": none}}}


def test_a_recommendation_is_what_is_better_and_what_is_cheap(parts):
    answers = parts["answers"]
    found = made_up(parts, {"VBLL": [0.1, 0.05, 0.2], "deep ensemble": [0.3, 0.2, 0.4]})
    said = answers.advice(found, "accuracy")
    assert said.count("**VBLL**, better than Dense in 1 of 2 sets and worse in 0") == 2
    assert said.count("As often: deep ensemble (5.0 times).") == 1  # of any cost alone
    found = made_up(parts, {"VBLL": [-0.1, -0.2, -0.05], "deep ensemble": [0.3, 0.2, 0.4]})
    any_cost, cheap = answers.advice(found, "accuracy").splitlines()
    assert "**deep ensemble**" in any_cost and "5.0 times" in any_cost
    assert "Dense; nothing is better" in cheap


def test_what_is_better_in_few_sets_is_named_and_not_recommended(parts):
    found = made_up(parts, {"VBLL": [0.1, 0.05, 0.2]})
    found["tasks"]["three"] = found["tasks"]["two"]
    said = parts["answers"].advice(found, "accuracy")
    assert said.count("Dense; nothing is better in half of the sets. Most often it is VBLL") == 2
    assert "**" not in said and said.count("1 of 3 sets") == 2


def test_what_does_not_help_is_said(parts):
    found = made_up(parts, {"VBLL": [-0.1, -0.2, -0.05], "deep ensemble": [0.1, -0.2, 0.4]})
    first = parts["answers"].no_help(found).splitlines()[0]
    assert first == (
        "- accuracy: worse than Dense more often than better: VBLL (1 of 2, better in 0). "
        "Never better nor worse: deep ensemble."
    )


def test_what_has_been_run_is_said(parts):
    found = made_up(parts, {"VBLL": [0.1, 0.05, 0.2]})
    said = parts["answers"].extent(found)
    assert (
        "Run so far: 2 of 8 sets." in said and "- one; two: 3 of 19 rows, 1 seeds, 6 trials" in said
    )
    assert "L2 up to 0.1; not run: temperature scaling, " in said


def with_ranks(values):
    """Results of sets by name, of rows with this NLL."""
    tasks = {
        name: {"runs": {row: {"0": {"nll": v}} for row, v in each.items()}}
        for name, each in values.items()
    }
    return {"tasks": tasks}


def test_sets_of_the_same_images_are_one_witness(parts):
    """Twice CIFAR-10, in which another row is best each time, against one IDRiD."""
    first, second = (
        {"Dense": 1.0, "VBLL": 2.0, "SNGP": 3.0},
        {"Dense": 2.0, "VBLL": 1.0, "SNGP": 3.0},
    )
    values = {"CIFAR-10 clean": first, "CIFAR-10N worst": second, "IDRiD": first}
    tasks = with_ranks(values)["tasks"]
    found = parts["pages"].family_ranks(tasks, list(first), "nll", False)
    np.testing.assert_array_equal(found, [[1.5, 1.5, 3], [1, 2, 3]])
    said = parts["pages"].rank_table(with_ranks(values), columns=("nll",))
    assert "3 sets of 2 families of images" in said and "no two rows are apart" in said
    assert [line.split("|")[1].strip() for line in said.splitlines()[2:5]] == list(first)


def test_rows_are_apart_beyond_the_critical_difference(parts):
    said = parts["pages"].far_apart(["a", "b", "c"], np.array([1.0, 2.0, 3.1]), 2.0)
    assert said == "apart: a before c"


def test_a_choice_at_the_end_of_its_grid_is_said(parts):
    rows = parts["rows"].ROWS
    trials = {
        "Dense": [[0.3, 0.3, 12, 2.0], [1.0, 1.0, 12, 1.0]],
        "VBLL": [[1.0, 0.3, 12, 1.0], [1.0, 1.0, 12, 2.0]],
        "IVON": [[rows["IVON"].values[0], 0.0, 12, 1.0]],
        "fully Bayesian": [[rows["fully Bayesian"].values[1], 0.0, 12, 1.0]],
    }
    said = parts["pages"].grid_ends({"tasks": {"one": {"trials": trials}}})
    assert said == "Chosen at an end of its grid: Dense (one); IVON (one).\n"


def test_each_row_has_as_many_trials_of_the_same_penalties(parts):
    rows = parts["rows"]
    plan = rows.Plan(None, 0.0, rows.STAGES, 0, 64, 3)
    for row, spec in rows.ROWS.items():
        if spec.kind == "fit":
            tried = list(rows.trials(row, plan, lambda: plan))
            assert len(set(tried)) == rows.TRIALS == len(tried), row
            if spec.knob == "L2" or len(spec.values) == 2:
                assert {each.l2 for each in tried} == set(rows.L2), row


def test_more_trials_run_alone_and_another_choice_drops_its_runs(parts, tmp_path, monkeypatch):
    """Of two rows one finds a better plan in the trial that it lacks: its runs are forgotten."""
    methods, rows = parts["methods"], parts["rows"]
    monkeypatch.setattr(methods.Runs, "fit", lambda self, row, plan, graphs: (plan, 1.0))
    monkeypatch.setattr(methods.Runs, "asked", lambda self, plan, parts: {"validation": plan})
    monkeypatch.setattr(methods.measures, "nll_of", lambda plan, y: abs(plan.l2 - 1e-3))
    task = types.SimpleNamespace(name="one", identity="x", target_risk=0.1, counts={}, classes=3)
    task.plan, task.x = lambda seed: rows.Plan(None, 0.0, 12, seed, 64, 3), {"validation": 0}
    task.y = {"validation": 0}
    store = parts["tasks"].Store(tmp_path / "found.json", tmp_path, {}, methods.PARTS)
    entry, start = store.task(task), task.plan(0)
    for row in ("VBLL", "Dense"):
        plans = rows.trials(row, start, lambda: start._replace(value=0.3, l2=3e-3))
        known = [[p.value, p.l2, p.stages, abs(p.l2 - 1e-3)] for p in plans]
        entry["trials"][row] = [trial for trial in known if row == "Dense" or trial[1] != 1e-3]
        entry["runs"][row] = {"0": {}}
    runs = methods.Runs(store, task, ["Dense"], 1)
    assert runs.names == ["Dense", "VBLL"] and not runs.has_trials_left("Dense")
    assert runs.chosen("VBLL", {}).l2 == runs.chosen("Dense", {}).l2 == 1e-3
    assert len(entry["trials"]["VBLL"]) == rows.TRIALS and set(entry["runs"]) == {"Dense"}


@pytest.mark.parametrize("row", ["sparse Bayes 20 %", "IVON"])
def test_selected_and_drawn_weights_begin_anew_too(parts, monkeypatch, row):
    rows, rng = parts["rows"], np.random.default_rng(0)
    monkeypatch.setattr(rows, "STEPS", 24)
    x, y = rng.normal(size=(64, 5)).astype("float32"), rng.integers(3, size=64)
    graphs, first = {}, rows.Plan(rows.ROWS[row].values[0], 0.0, 3, 0, 64, 3)
    second = first._replace(l2=1.0) if row != "IVON" else first._replace(value=0.1)
    rows.fitted(row, x, y, first, graphs=graphs)
    again, alone = (rows.fitted(row, x, y, second, graphs=g) for g in (graphs, None))
    assert len(graphs) == 1
    for one, other in zip(again.weights, alone.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_training_sees_all_rows_equally_often_in_the_order_of_its_seed(parts, monkeypatch):
    rows = parts["rows"]
    monkeypatch.setattr(rows, "STEPS", 12)
    seen = {}

    class Model:
        def fit(self, data, epochs, steps_per_epoch, **_):
            assert (epochs, steps_per_epoch) == (rows.STAGES, 1)
            self.seen = np.concatenate([np.asarray(x)[:, 0] for x, _ in data])

    x = np.arange(64, dtype="float32")[:, None]
    for seed in (0, 0, 1):
        plan = rows.Plan(None, 0.0, rows.STAGES, seed, 64, 3)
        model = Model()
        rows.train(model, x, np.arange(64), plan)
        np.testing.assert_array_equal(seen.setdefault(seed, model.seen), model.seen)
    counts = np.bincount(seen[0].astype(int), minlength=64)
    assert counts.sum() == 12 * 16 and set(counts) == {3}
    assert (seen[0] != seen[1]).any()


def test_a_promise_is_contradicted_beyond_chance_alone(parts):
    """100 accepted at a promised risk of .1: 12 errors are chance (p = .30), 18 are not (.01)."""
    runs = [{"coverage": 0.5, "realized": risk} for risk in (0.08, 0.12, 0.18)]
    runs.append({"coverage": 0.0, "realized": None})
    task = {"runs": {"Dense": dict(enumerate(runs))}, "rows": {"test": 200}, "target_risk": 0.1}
    said = parts["answers"].kept({"tasks": {"one": {**task, "differences": {"VBLL": {}}}}})
    assert said == (
        "- one: risk at most the promised in 1 of 3 runs, above it by more than chance in 1; "
        "nothing to promise in 1.\n"
    )
    assert parts["answers"].chance_of(runs[1], 0.1, 200) == pytest.approx(0.2970, abs=1e-4)


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


def test_a_network_set_anew_learns_as_a_new_one(parts):
    rows, rng = parts["rows"], np.random.default_rng(0)
    x, y = rng.normal(size=(64, 5)).astype("float32"), rng.integers(3, size=64)
    plan = rows.Plan(1e-3, 1e-3, 2, 0, 64, 3)
    graphs = {}
    first = rows.fitted("Dense", x, y, plan, graphs=graphs).predict(x, verbose=0)
    strong = rows.fitted("Dense", x, y, plan._replace(l2=10.0), graphs=graphs)
    alone = rows.fitted("Dense", x, y, plan._replace(l2=10.0)).predict(x, verbose=0)
    np.testing.assert_allclose(strong.predict(x, verbose=0), alone, atol=1e-6)
    assert np.abs(alone - first).max() > 0.01 and len(graphs) == 1
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
        assert cost["memory_mb"]["training"] > 0 and cost["memory_mb"]["answers"] > 0, row
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
    said = capsys.readouterr().out
    assert "digits Dense 0" not in said  # no run
    assert "## Differences with Dense" in said and "[" in said
    stored = tmp_path / "methods.json"
    task["differences"].clear()  # and with another, empty cache: what is compared is run again
    stored.write_text(json.dumps(found), encoding="utf-8")
    for path in (tmp_path / "predictions").iterdir():
        path.unlink()
    again = parts["methods"].main(["--quick", "--cache", str(tmp_path)])["tasks"]["digits"]
    assert set(again["differences"]) == {"temperature scaling"}
    assert len(again["trials"]["Dense"]) == parts["rows"].TRIALS
