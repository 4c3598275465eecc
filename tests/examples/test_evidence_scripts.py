"""The benchmarks that stand on the sets and features of `benchmarks/methods.py`."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
NAMES = ("cells", "pages", "rows")
SCRIPTS = ("saliency", "optimizers", "gradient_controls")


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The scripts and the files beside them, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = {name: importlib.import_module(f"evidence.{name}") for name in NAMES}
        yield {**found, **{name: importlib.import_module(name) for name in SCRIPTS}}
    finally:
        sys.path.remove(str(FOLDER))
        for name in [n for n in sys.modules if n.split(".")[0] in ("evidence", *SCRIPTS)]:
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_table_is_stale(parts, name):
    """A script that has results has its tables in a page, and none that it does not make now."""
    script, pages = parts[name], parts["pages"]
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages.PAGES}
    marked = sum(len(pages.marked(name).findall(text)) for text in texts.values())
    assert (marked > 0) == script.RESULTS.is_file()
    if marked:
        found = json.loads(script.RESULTS.read_text(encoding="utf-8"))
        for page, text in texts.items():
            again = pages.written(text, found, name, script.TABLES)
            assert again == text, f"{page}: benchmarks/{name}.py --report"


def test_weights_are_as_many_in_each_choice(parts):
    """But for what rounding up each kernel's share adds."""
    saliency, rows = parts["saliency"], parts["rows"]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 20)).astype("float32"), rng.integers(3, size=64)
    plan = rows.Plan(None, 0.0, 1, 0, 64, 3)
    network = rows.dense(20, plan)
    count = 0.1 * (20 * rows.HIDDEN + rows.HIDDEN * 3)
    for which in saliency.WHICH:
        made = saliency.selected(network, (x, y), plan, which, 0.1)
        assert count <= saliency.count_random(made) <= count + 2, which
    biases = saliency.selected(network, (x, y), plan, saliency.BIASES, None)
    assert saliency.count_random(biases) == rows.HIDDEN + 3
    kernels = 20 * rows.HIDDEN + rows.HIDDEN * 3
    assert saliency.biases_share(network) == pytest.approx((rows.HIDDEN + 3) / kernels)


def test_a_traced_network_takes_the_other_weights_and_choice(parts):
    saliency, rows = parts["saliency"], parts["rows"]
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    traced, plan = saliency.Traced(), rows.Plan(None, 0.0, 1, 0, 64, 3)
    first = saliency.selected(rows.dense(5, plan), None, plan, "magnitude", 0.2)
    kept = traced.of("random", first)
    fresh = saliency.selected(rows.dense(5, plan), None, plan, "random", 0.2)
    again = traced.of("random", fresh)
    assert again is kept and again is not fresh
    np.testing.assert_array_equal(again.layers[0].kernel_indices, fresh.layers[0].kernel_indices)
    np.testing.assert_allclose(again(x), fresh(x), atol=1e-6)


def test_what_is_read_of_schedule_free_training_is_the_average(parts):
    """Of one weight's iterates; Keras' own is off by (1 - beta) / beta of each step."""
    import keras

    optimizers = parts["optimizers"]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    rate = 0.01
    model.compile(keras.optimizers.ScheduleFreeAdamW(rate), "mse", jit_compile=False)
    x, y, iterates = np.ones((1, 1)), np.full((1, 1), 3.0), []
    for _ in range(5):
        model.train_on_batch(x, y)
        iterates.append(float(model.optimizer._momentums[0].numpy().item()))
    left = model.get_weights()[0].item()
    optimizers.averaged(model)
    found = model.get_weights()[0].item()
    assert 0.9 * found + 0.1 * iterates[-1] == pytest.approx(left, rel=1e-5)
    assert abs(found - np.mean(iterates)) < 0.3 * rate < abs(left - iterates[-1])


def test_the_rate_is_that_of_the_lowest_loss_that_is_finite(parts):
    task = {"trials": {"SGDR": [[0.01, 0.9], [0.03, 0.4], [0.1, None]]}}
    assert parts["optimizers"].chosen_rate(task, "SGDR") == 0.03
    assert parts["optimizers"].chosen_rate(task, "Adam, default") == 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS[:2])
def test_it_runs_on_digits(parts, name, tmp_path, monkeypatch):
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    found = parts[name].main(["--quick", "--cache", str(tmp_path)])
    (task,) = found["tasks"].values()
    for table in parts[name].TABLES.values():
        assert table(found).count("\n|") >= 2
    assert all(runs["0"]["accuracy"] > 0.8 for runs in task["runs"].values())
    assert task["differences"]


def test_the_detector_is_judged_on_rows_that_it_has_not_seen(parts):
    """Noise is not told from noise, even where the rows shown could be known by heart."""
    script, rng = parts["gradient_controls"], np.random.default_rng(0)
    noise = {kind: rng.normal(size=(60, 40)) for kind in ("test", "near", "far")}
    noise["far"] = noise["far"] + 1
    found = {
        f"gradients|{column}|{end}": scores
        for column, pair in script.judged(noise, 0).items()
        for end, scores in zip(("in", "out"), pair, strict=True)
    }
    areas = {key.split("|")[1]: None for key in found}
    areas = {column: script.auroc(found, "gradients", column)[0] for column in areas}
    assert set(areas) == {"near", "far", "near, taught by the other", "far, taught by the other"}
    assert abs(areas["near"] - 0.5) < 0.25  # three standard deviations of 30 against 30 rows
    assert areas["far"] > 0.95
    assert all(len(scores) == 30 for scores in found.values())


def test_corrupted_images_are_of_other_rows_than_the_known(parts):
    script = parts["gradient_controls"]
    rows = script.chosen(3000, True)
    assert rows.min() >= 1500 and len(rows) == len(set(rows)) == script.IMAGES
    assert sorted(script.chosen(103, True)) == list(range(103))


def test_norms_of_activations_are_those_of_keras(parts):
    import keras

    script, x = parts["gradient_controls"], np.random.default_rng(0).random((3, 4, 4, 3)) * 255
    trunk = script.pixels_as_features((4, 4, 3))
    projection = np.ones((48, 5), "float32"), np.zeros(5, "float32")
    network = parts["rows"].dense(5, parts["rows"].Plan(None, 0.0, 1, 0, 64, 3))
    model = script.whole(trunk, projection, network)
    norms = script.in_batches(script.activation_norms(model), x.astype("float32"), 2)
    projected = np.repeat(x.reshape(3, -1).sum(1, keepdims=True) / 255, 5, axis=1)
    hidden = keras.ops.relu(projected @ network.layers[0].kernel + network.layers[0].bias)
    logits = network(projected)
    expected = [np.sum(np.asarray(each) ** 2, axis=1) for each in (projected, hidden, logits)]
    np.testing.assert_allclose(norms, np.stack(expected, axis=1), rtol=1e-4)


def test_what_the_page_on_unknown_inputs_says_of_gradients_holds(parts):
    found = json.loads(parts["gradient_controls"].RESULTS.read_text(encoding="utf-8"))
    known = found["tasks"]["CIFAR-10 clean"]["differences"]
    for control in ("activations", "pixels"):
        assert all(known[control][kind][2] < 0 for kind in ("near", "shift")), control


def test_what_the_page_on_rapid_training_says_holds(parts):
    tasks = json.loads(parts["optimizers"].RESULTS.read_text(encoding="utf-8"))["tasks"]
    assert len(tasks) == 3

    def sign(task, row, column):
        return parts["cells"].sign(task["differences"][row][column], column)

    def mean(task, row):
        return parts["cells"].mean_of(task["runs"][row], "accuracy")

    for task in tasks.values():
        assert sign(task, "SGDR+DLR+CLM", "accuracy") == ""
        for row in ("SGDR", "SGDR+DLR", "SGDR+DLR+CLM"):
            assert mean(task, row) <= mean(task, "SGD, one cosine") + 0.003  # a third of a percent
    assert sign(tasks["CIFAR-10N worst"], "SGD, one cosine", "accuracy") == " +"
    worse = [sign(task, "Adam, default", "augrc") == " −" for task in tasks.values()]
    assert sum(worse) == 2


def test_a_rate_at_the_end_of_those_tried_is_said(parts):
    told = parts["optimizers"].told
    assert told(0.1, (0.01, 0.1)) == "0.1 (end)" and told(0.1, (0.1,)) == "0.1"
    assert told(0.03, (0.01, 0.03, 0.1)) == "0.03"


@pytest.mark.slow
def test_gradients_and_their_controls_run_on_digits(parts, tmp_path, monkeypatch):
    script = parts["gradient_controls"]
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    monkeypatch.setattr(script, "IMAGES", 100)
    found = script.main(["--quick", "--cache", str(tmp_path)])
    task = found["tasks"]["digits"]
    assert task["accuracies"]["0"] > 0.8
    assert all(task["runs"][name]["0"]["far"] > 0.9 for name in ("pixels", "features"))
    assert set(task["differences"]) == set(script.CONTROLS)
    for table in script.TABLES.values():
        assert len(table(found).splitlines()) >= 3
