"""The benchmarks that stand on the sets and features of `benchmarks/methods.py`."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
NAMES = (
    "cells",
    "finetuned",
    "measures",
    "multilabel",
    "nuclei",
    "paired",
    "pages",
    "rows",
    "traced",
)
SCRIPTS = (
    "saliency",
    "optimizers",
    "gradient_controls",
    "noisy_labels",
    "fundus",
    "scores",
    "selective",
    "rules",
)


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
    traced, plan = parts["traced"].Traced(), rows.Plan(None, 0.0, 1, 0, 64, 3)
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
def test_optimizers_are_measured_by_the_clock(parts, tmp_path, monkeypatch):
    script = parts["optimizers"]
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    monkeypatch.setattr(script, "ROUNDS", 1)
    rows = [script.BASE, script.MIXED[0]]
    found = script.main(["--quick", "--times", "--rows", *rows, "--cache", str(tmp_path)])
    times = found["tasks"]["digits"]["times"]
    assert list(times) == rows and all(0 < steps < together for steps, together in times.values())
    assert script.time_table(found).count("\n| digits: ") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS[:2])
def test_it_runs_on_digits(parts, name, tmp_path, monkeypatch):
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    found = parts[name].main(["--quick", "--cache", str(tmp_path)])
    (task,) = found["tasks"].values()
    for title, table in parts[name].TABLES.items():
        if title not in ("dice", "times"):  # of places; of a run of its own
            assert table(found).count("\n|") >= 2
    assert all(runs["0"]["accuracy"] > 0.8 for runs in task["runs"].values())
    assert task["differences"]


def test_the_detector_is_judged_on_rows_that_it_has_not_seen(parts):
    """Noise is not told from noise, even where the rows shown could be known by heart."""
    script, rng = parts["gradient_controls"], np.random.default_rng(0)
    noise = {kind: rng.normal(size=(60, 40)) for kind in ("test", "near", "far", "fog 1")}
    noise["far"] = noise["far"] + 1
    found = {
        f"gradients|{column}|{end}": scores
        for column, pair in script.judged(noise, 0).items()
        for end, scores in zip(("in", "out"), pair, strict=True)
    }
    areas = {key.split("|")[1]: None for key in found}
    areas = {column: script.auroc(found, "gradients", column)[0] for column in areas}
    assert set(areas) == {*script.KINDS, *script.TAUGHT, "fog 1"}
    assert abs(areas["near"] - 0.5) < 0.25  # three standard deviations of 30 against 30 rows
    assert areas["far"] > 0.95
    assert all(len(scores) == 30 for scores in found.values())


def test_as_many_images_of_each_kind_and_corruptions_are_of_others(parts):
    script = parts["gradient_controls"]
    rows = script.chosen(3000, True, 300)
    assert rows.min() >= 1500 and len(rows) == len(set(rows)) == 300
    assert sorted(script.chosen(103, True, 103)) == list(range(103))
    marks = np.arange(250, dtype="uint8")[:, None, None, None] * np.ones((8, 8, 3), "uint8")
    sets = {"test": marks, "near": marks[:40], "far": marks[:90]}
    found = script.kinds_of(sets, 300, 150)
    assert {len(found[kind]) for kind in ("test", "near", "far")} == {40}
    assert set(found) == {"test", "near", "far", *script.CORRUPTIONS}
    assert found["test"].min() >= 125 and len(found["contrast 1"]) == 150


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


# --- Paper 004 ----------------------------------------------------------------------------------


def test_global_average_precision_is_that_of_scikit_learn(parts):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(30, 4)), rng.integers(2, size=(30, 4))
    times = np.stack([np.ones(30, int), rng.multinomial(30, np.full(30, 1 / 30))])
    found = parts["multilabel"].average_precision(times, scores, truth)
    for value, each in zip(found, times, strict=True):
        again = (np.repeat(array, each, axis=0) for array in (truth, scores))
        assert value == pytest.approx(average_precision_score(*again, average="micro"))


def test_labels_of_a_mosaic_are_those_of_its_images(parts):
    from evidence.images import Part

    labels = np.random.default_rng(0).integers(10, size=43)
    pictures = (labels * 20)[:, None, None, None] * np.ones((8, 8, 3), "uint8")
    made = parts["multilabel"].mosaics(Part(pictures.astype("uint8"), labels), 10, times=2)
    assert made.images.shape == (20, 16, 16, 3) and made.labels.shape == (20, 10)
    for image, present in zip(made.images, made.labels, strict=True):
        assert set(np.unique(image) // 20) == set(np.flatnonzero(present))


def test_labels_are_measured_as_keras_and_by_hand(parts):
    import keras

    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(30, 4)), rng.integers(2, size=(30, 4))
    found = parts["multilabel"].figures(logits, truth)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    assert found["nll"] == pytest.approx(float(loss(truth, logits)), abs=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean((logits > 0) == truth), abs=1e-5)
    again = parts["multilabel"].resampled(logits, truth, {"test": np.ones((1, 30))})
    assert again["augrc"][0] == pytest.approx(found["augrc"], abs=0.005)


def test_differences_are_those_of_the_table_of_methods(parts):
    measures, rng = parts["measures"], np.random.default_rng(0)
    labels = {"test": rng.integers(3, size=50)}
    runs = {
        row: [{"test": rng.dirichlet(np.ones(3), 50)} for _ in range(3)] for row in ("Dense", "x")
    }
    expected = measures.differences(runs, labels, 4)["x"]

    def resampled(run, weights):
        return measures.resampled(run, labels, weights)

    found = parts["paired"].differences(runs, resampled, {"test": 50}, 4, "Dense")["x"]
    assert found == expected
    assert parts["paired"].told([0.1, 0.05, 0.15], 2, False) == "+0.10 [+0.05, +0.15] −"


def test_dense_is_divided_by_the_temperature_and_factors_are_as_named(parts):
    script, rows = parts["noisy_labels"], parts["rows"]
    head = script.KINDS["classes"].head
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    plan = rows.Plan(0.5, 0.0, 1, 0, 64, 4)
    cold = script.built("Dense", 5, plan, head)
    warm = script.built("Dense", 5, plan._replace(value=1.0), head)
    warm.set_weights(cold.get_weights())
    np.testing.assert_allclose(cold(x), 2 * warm(x), rtol=1e-5)
    factors = {row: script.built(row, 5, plan, head).layers[-1] for row in script.ROWS[1:]}
    assert [factors[row].num_factors for row in script.ROWS[1:]] == [0, 1, 3, 4, 3]
    assert factors["efficient"].parameter_efficient and factors["full"].temperature == 0.5


def test_a_traced_head_answers_as_a_new_one(parts):
    script, rows = parts["noisy_labels"], parts["rows"]
    head = script.KINDS["classes"].head
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    plan = rows.Plan(1.0, 0.1, 1, 0, 64, 4)
    traced = parts["traced"].Traced()
    kept = traced.of("full", script.built("full", 5, plan, head))
    fresh = script.built("full", 5, plan._replace(l2=0.3), head)
    again = traced.of("full", fresh)
    assert again is kept
    np.testing.assert_allclose(again(x), fresh(x), atol=1e-5)
    assert {float(each.weight) for each in rows.penalties(again)} == {np.float32(0.3)}


def test_top_five_is_that_of_keras(parts):
    import keras

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 12)).astype("float32"), rng.integers(12, size=40)
    expected = keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, 5)
    np.testing.assert_array_equal(parts["noisy_labels"].in_top(logits, labels), expected)


@pytest.mark.parametrize(
    "name", ["digits, mosaics", pytest.param("digits", marks=pytest.mark.slow)]
)
def test_noisy_labels_run_on_digits(parts, tmp_path, monkeypatch, name):
    """Of one temperature and penalty, so that it takes seconds; and it goes on where it was."""
    script = parts["noisy_labels"]
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    monkeypatch.setattr(script, "TEMPERATURES", (1.0,))
    monkeypatch.setattr(script, "PENALTIES", (0.0,))
    monkeypatch.setattr(script, "DIGITS", {name: script.DIGITS[name]})
    found = script.main(["--quick", "--cache", str(tmp_path)])
    runs, quality = found["tasks"][name]["runs"], "gap" if "mosaics" in name else "accuracy"
    assert runs["Dense"]["0"][quality] > 0.5 and runs["3 factors"]["0"][quality] > 0.5
    for table in set(script.TABLES) - ({"ranks", "examples"} if quality == "gap" else set()):
        assert len(script.TABLES[table](found).splitlines()) >= 3, table
    monkeypatch.setattr(parts["rows"], "train", None)
    assert script.main(["--quick", "--cache", str(tmp_path)]) == found


# --- Paper 000 ----------------------------------------------------------------------------------


def test_fundus_runs_on_digits(parts, tmp_path, monkeypatch):
    script = parts["fundus"]
    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    monkeypatch.setattr(script, "SIZES", (10,))
    found = script.main(["--quick", "--cache", str(tmp_path)])
    task = found["tasks"]["retinas"]
    assert all(task["runs"][row]["0"]["test"]["accuracy"] > 0.8 for row in script.QUICK)
    assert set(task["watched"]) == {"home", "test", "another camera", "DRIVE"}
    for table in script.TABLES.values():
        assert len(table(found).splitlines()) >= 3
    monkeypatch.setattr(parts["rows"], "train", None)
    assert script.main(["--quick", "--cache", str(tmp_path)]) == found


def test_a_monitor_says_so_where_a_rule_is_wrong_and_not_where_it_is_right(parts):
    from tfuq import selective

    script, rng = parts["fundus"], np.random.default_rng(0)
    p = rng.dirichlet([6, 1], 400)
    right = np.zeros(400, int)
    rule = selective.RejectionRule.fit(p, right, target_risk=0.15)
    good = script.alarms(rule, p[:100], right[:100], 10)
    bad = script.alarms(rule, p[:100], 1 - right[:100], 10)
    assert good["risk"] == {"share": 0.0}
    assert bad["risk"]["share"] == bad["any"]["share"] == 1.0
    middle, low, high = bad["any"]["cases"]
    assert 1 <= low <= middle <= high <= 100


def test_columns_of_the_paper_are_of_what_is_sure(parts):
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.75, 0.25]])
    found = parts["fundus"].figures(p, np.array([0, 0, 0, 0]), None)
    assert found["sure"] == 0.75 and found["accuracy of sure"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["coverage"] == 0 and found["risk"] is None


# --- Stages that learn --------------------------------------------------------------------------


def test_a_fine_tuned_network_is_its_two_parts(parts, tmp_path, monkeypatch):
    import keras

    script = parts["finetuned"]
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, strides=4, name="first")(inputs)
    y = keras.layers.Conv2D(4, 1, name="inside")(x)
    x = keras.layers.Add(name=script.CUT)([x, y])
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 1, name="after")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add(name="sum")([x, y]))
    network = keras.Model(inputs, x)
    monkeypatch.setattr(script, "trunk", lambda folder: network)
    monkeypatch.setattr(script, "one_codec", lambda images: images)
    rng = np.random.default_rng(0)
    images, labels = rng.random((20, 16, 16, 3)).astype("float32"), np.arange(20) % 3
    before = {layer.name: layer.get_weights() for layer in network.layers}
    model = script.tuned("", tmp_path, images, labels, 0)
    assert model.output_shape == (None, 3)
    for name, expected in before.items():
        same = [
            np.array_equal(a, b)
            for a, b in zip(model.get_layer(name).get_weights(), expected, strict=True)
        ]
        assert all(same) == (name != "after"), name
    monkeypatch.setattr(script, "middle_of", None)  # read, not trained again
    again = script.tuned("", tmp_path, images, labels, 0)
    np.testing.assert_allclose(again(images), model(images), atol=1e-5)


def test_what_the_page_on_unknown_inputs_says_of_gradients_holds(parts):
    found = json.loads(parts["gradient_controls"].RESULTS.read_text(encoding="utf-8"))
    known = found["tasks"]["CIFAR-10 clean"]["differences"]
    for control in ("activations", "pixels"):
        assert known[control]["near"][2] < 0, control
        each = [known[control][kind][1:] for kind in parts["gradient_controls"].CORRUPTIONS]
        assert sum(high < 0 for _, high in each) >= 3, control  # several
        assert all(low <= 0 for low, _ in each), control


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


def test_places_are_drawn_with_their_image(parts):
    """Dice of each image; and a resample of images is one of all of their places."""
    nuclei, rng = parts["nuclei"], np.random.default_rng(0)
    labels = {"test": rng.integers(2, size=3 * nuclei.PLACES)}
    labels["test"][: nuclei.PLACES] = 0
    probs = rng.dirichlet(np.ones(2), len(labels["test"]))
    probs[: nuclei.PLACES] = [0.9, 0.1]  # nothing there, nothing found
    weights = {"test": np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])}
    found = nuclei.resampled(labels)({"test": probs}, weights)
    said, true = probs[nuclei.PLACES :].argmax(1), labels["test"][nuclei.PLACES :]
    each = [
        2 * np.sum(a & b) / (a.sum() + b.sum())
        for a, b in zip(np.split(said, 2), np.split(true, 2), strict=True)
    ]
    np.testing.assert_allclose(found["dice"], [(1 + sum(each)) / 3, (2 * each[0] + each[1]) / 3])
    right = np.split(said == true, 2)
    np.testing.assert_allclose(found["accuracy"][1], (2 * right[0] + right[1]).mean() / 3)
    wide = nuclei.masks({"mask_packed": np.packbits(np.ones((1, 128 * 128), bool), axis=1)}, [0])
    assert wide.shape == (1, nuclei.GRID, nuclei.GRID) and wide.min() == 1
