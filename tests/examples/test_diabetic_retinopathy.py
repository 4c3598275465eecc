"""The example of diabetic retinopathy: its steps one by one, and a quick run."""

import importlib.util
import io
import os
import pathlib
import re
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfuq

ROOT = pathlib.Path(__file__).parents[2]
FILE = "idrid_grading_128_jpeg.npz"
REAL = os.environ.get("TFUQ_DATA")  # no test but that of the real file shall see it


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples" / "diabetic_retinopathy.py"
    spec = importlib.util.spec_from_file_location("diabetic_retinopathy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    monkeypatch.delenv("TFUQ_DATA", raising=False)


def jpegs(levels):
    """One plain image of 16 x 16 per level of red: the bytes end to end, and the offsets."""
    files = []
    for level in levels:
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (int(level), 0, 128)).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)], dtype="int32")
    return np.frombuffer(b"".join(files), dtype="uint8"), offsets


def write_idrid(folder, train=100, test=60):
    """The file as the example reads it; red says which image it is."""
    arrays = {}
    for name, count in (("train", train), ("test", test)):
        arrays[f"{name}_bytes"], arrays[f"{name}_offsets"] = jpegs(np.arange(count))
        arrays[f"y_{name}"] = np.sort(np.arange(count) % 5).astype("uint8")
    np.savez(folder / FILE, **arrays)


def some_parts(counts=(20, 8, 20, 12, 10), size=8):
    """Two parts with so many images of each grade, all different."""
    y = np.repeat(np.arange(5), counts)
    x = np.random.default_rng(0).integers(256, size=(2, len(y), size, size, 3), dtype="uint8")
    return [(x[0], y), (x[1], y)]


def rows(text, name):
    """The cells of the rows of printed tables that begin with `name`, without the name."""
    found = re.findall(rf"^{re.escape(name)} +\| (.*)$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in found]


# Data


def test_reads_images_and_grades_in_order(example, tmp_path):
    write_idrid(tmp_path)
    (x_train, y_train), (x_test, y_test) = example.load_idrid(tmp_path)
    assert x_train.shape == (100, 16, 16, 3)
    assert x_test.dtype == np.uint8
    # JPEG at this quality moves a plain colour by a few levels.
    np.testing.assert_allclose(x_train[..., 0].mean((1, 2)), np.arange(100), atol=3)
    np.testing.assert_allclose(x_test[..., 0].mean((1, 2)), np.arange(60), atol=3)
    np.testing.assert_array_equal(y_train, np.repeat(np.arange(5), 20))
    np.testing.assert_array_equal(y_test, np.repeat(np.arange(5), 12))


def test_limit_keeps_the_shares_of_the_grades(example, tmp_path):
    x, y = np.arange(100), np.repeat(np.arange(5), 20)
    few, grades = example.draw_some(x, y, 50, seed=1)
    np.testing.assert_array_equal(np.bincount(grades), [10] * 5)
    assert len(set(few)) == 50
    np.testing.assert_array_equal(few // 20, grades)
    write_idrid(tmp_path)
    assert [len(y) for _, y in example.load_idrid(tmp_path, limit=50)] == [50, 50]
    assert [len(y) for _, y in example.load_idrid(tmp_path, limit=70)] == [70, 60]


def test_limit_that_leaves_fewer_images_than_grades(example, tmp_path):
    """IDRiD's part for testing has 103 images, and `--quick` takes 100: three were left over."""
    write_idrid(tmp_path, train=413, test=103)
    assert [len(y) for _, y in example.load_idrid(tmp_path, limit=100)] == [100, 98]
    assert [len(y) for _, y in example.load_idrid(tmp_path, limit=103)] == [103, 103]


def test_a_quick_picture_says_that_it_means_nothing(example, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(example.Figure, "suptitle", lambda _, text, **__: said.append(text))
    y, probs = np.arange(5), np.eye(5)
    found = types.SimpleNamespace(probs=probs, label=y)
    for note in (None, "means nothing"):
        example.draw(y, {"Dense": found, "VBLL": found}, tmp_path, note)
    assert said == ["means nothing"]


def test_data_of_the_real_file(example):
    if not REAL or not (pathlib.Path(REAL) / FILE).is_file():
        pytest.skip(f"needs {FILE}: set TFUQ_DATA to its folder")
    (x_train, y_train), (x_test, y_test) = example.load_idrid(REAL)
    assert x_train.shape[1:] == x_test.shape[1:] == (128, 128, 3)
    # Grades as IDRiD's authors count them.
    np.testing.assert_array_equal(np.bincount(y_train), [134, 20, 136, 74, 49])
    np.testing.assert_array_equal(np.bincount(y_test), [34, 5, 32, 19, 13])


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_names_the_missing_file(example, tmp_path, quick):
    """A folder that is asked for must hold the file; nothing stands in."""
    with pytest.raises(SystemExit, match=rf"{FILE} is missing in .*TFUQ_DATA.*--tfds"):
        example.main(["--data-dir", str(tmp_path), *quick])


def test_says_where_to_look_when_nothing_is_set(example):
    with pytest.raises(SystemExit, match="neither --data-dir nor TFUQ_DATA is set"):
        example.main([])


def test_takes_the_folder_of_the_environment(example, tmp_path, monkeypatch, capsys):
    write_idrid(tmp_path)
    monkeypatch.setenv("TFUQ_DATA", str(tmp_path))
    parts = example.load(example.read_arguments(["--quick", "--limit", "60"]))
    assert [len(y) for _, y in parts] == [60, 60]
    assert f"IDRiD, from {tmp_path}" in capsys.readouterr().out


def fake_tfds(asked):
    """Stands in for tensorflow-datasets: wide images with a disc in the middle."""

    def load(name, split, data_dir):
        asked.update(name=name, split=split, data_dir=data_dir)
        image = np.zeros((60, 100, 3), "uint8")
        image[10:50, 30:70] = 200
        example = {"image": np.stack([image] * 3), "label": np.array([0, 4, 2])}
        return [tf.data.Dataset.from_tensor_slices(example) for _ in split]

    return types.SimpleNamespace(load=load)


def test_tensorflow_datasets(example, monkeypatch):
    asked = {}
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake_tfds(asked))
    arguments = ["--tfds", "--data-dir", "somewhere", "--limit", "70"]
    parts = example.load(example.read_arguments(arguments))
    assert asked["name"].startswith("diabetic_retinopathy_detection/")
    assert asked["split"] == ["train[:70]", "test[:70]"]
    assert asked["data_dir"] == "somewhere"
    for x, y in parts:
        np.testing.assert_array_equal(x, np.full((3, 128, 128, 3), 200))  # the margin is gone
        np.testing.assert_array_equal(y, [0, 4, 2])


def test_dark_image_is_not_cropped(example):
    assert example.crop_to_disc(tf.zeros((5, 7, 3), "uint8")).shape == (5, 7, 3)


def test_says_how_to_install_tensorflow_datasets(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(SystemExit, match=re.escape('pip install "tfuq[datasets]"')):
        example.main(["--tfds"])


def test_discs_darken_with_the_grade(example):
    (x, y), (other, _) = example.make_discs(60, size=32)
    assert np.all(np.bincount(y) >= 3)
    darkness = [-x[y == grade].mean() for grade in range(5)]
    assert np.all(np.diff(darkness) > 0)
    assert not np.array_equal(x, other)


# Preparation


def test_equalize_spreads_the_luminance_and_keeps_the_hue(example):
    ramp = np.linspace(100, 140, 64)[:, None, None] * np.ones((64, 64, 1))
    image = (ramp * [1.0, 0.7, 0.4]).astype("uint8")
    found = example.equalize(image).astype("float64")
    assert found.dtype == np.float64
    assert found.shape == image.shape
    assert found.mean(-1).std() > 2 * image.mean(-1).std()
    before, after = image[..., 0] - 1.0 * image[..., 2], found[..., 0] - found[..., 2]
    middle = slice(16, 48)  # at the ends, colours reach the limits of what can be shown
    np.testing.assert_allclose(after[middle], before[middle], atol=3)


def test_split_is_70_15_15_of_each_grade(example):
    parts = some_parts((40, 20, 40, 40, 60))
    data = example.split(parts, seed=3)
    per_grade = np.array([80, 40, 80, 80, 120])
    for y, share in ((data.y_train, 0.7), (data.y_val, 0.15), (data.y_test, 0.15)):
        np.testing.assert_allclose(np.bincount(y), share * per_grade, atol=1)
    images = np.concatenate([data.x_train, data.x_val, data.x_test])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 400  # none twice


def test_official_split_leaves_the_test_part_alone(example):
    parts = some_parts()
    data = example.split(parts, official=True)
    np.testing.assert_array_equal(data.x_test, parts[1][0])
    np.testing.assert_array_equal(data.y_test, parts[1][1])
    assert len(data.y_val) == pytest.approx(0.15 * 70, abs=1)
    assert len(data.y_train) + len(data.y_val) == 70


def test_new_images_lie_between_two_of_their_grade(example):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [21, 3, 12])
    x = rng.integers(256, size=(36, 4, 4, 3), dtype="uint8")
    found, labels = example.balance(x, y)
    np.testing.assert_array_equal(np.bincount(labels), [21, 11, 12])  # at least half of 21
    np.testing.assert_array_equal(found[:36], x)
    for image in found[36:].astype("float64"):
        assert min(off_segment(image, a, b) for a in x[21:24] for b in x[21:24]) < 1


def off_segment(point, start, end):
    """The largest distance in any pixel from the segment between two images."""
    start, end = start.astype("float64"), end.astype("float64")
    along = end - start
    share = np.clip(np.vdot(point - start, along) / max(np.vdot(along, along), 1), 0, 1)
    return np.abs(point - start - share * along).max()


def test_balance_needs_two_images_of_a_grade(example):
    with pytest.raises(
        ValueError, match=r"`y` must hold each class .* at least twice.*\{0: 3, 1: 1\}"
    ):
        example.balance(np.zeros((4, 2, 2, 3), "uint8"), np.array([0, 0, 0, 1]))


def test_only_training_images_are_balanced(example, monkeypatch):
    monkeypatch.setattr(example, "equalize", lambda image: image)
    parts = some_parts()
    data, balanced = example.prepare(parts, seed=2)
    before, after = np.bincount(data.y_train), np.bincount(balanced.y_train)
    assert before.min() < before.max() / 2 <= after.min()
    given = {image.tobytes() for x, _ in parts for image in x}
    for x, y, counts in (
        (balanced.x_val, balanced.y_val, np.bincount(data.y_val)),
        (balanced.x_test, balanced.y_test, np.bincount(data.y_test)),
    ):
        assert all(image.tobytes() in given for image in x)
        np.testing.assert_array_equal(np.bincount(y), counts)
    # What the synthetic images were made of: the training images alone.
    alone, _ = example.balance(data.x_train, data.y_train, seed=2)
    np.testing.assert_array_equal(balanced.x_train, alone)


# Models and judgement


def test_bayesian_copy_starts_from_the_dense_head(example):
    dense = example.build_model(16, (4, 4), seed=1)
    before = [weight.copy() for weight in dense.get_weights()]
    bayesian = example.make_bayesian(dense, 50)
    head = bayesian.layers[-1]
    assert isinstance(head, tfuq.layers.VBLLDense)
    assert head.kl_weight == 1 / 50
    np.testing.assert_array_equal(head.kernel, dense.layers[-1].kernel)
    bayesian.set_weights([weight + 1 for weight in bayesian.get_weights()])
    for old, new in zip(before, dense.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # training the copy leaves the model alone


def test_predictions_of_both_kinds_of_head(example):
    dense = example.build_model(16, (4, 4), seed=1)
    bayesian = example.make_bayesian(dense, 50)
    bayesian.layers[-1].kernel_rho.assign(bayesian.layers[-1].kernel_rho + 5)
    x = np.random.default_rng(0).integers(256, size=(6, 16, 16, 3), dtype="uint8")
    one, many = example.predict(dense, x, 10), example.predict(bayesian, x, 10)
    np.testing.assert_allclose(one.probs, keras.ops.softmax(dense(x, training=False)), rtol=1e-5)
    np.testing.assert_array_equal(one.mutual_information, 0)
    assert np.all(many.mutual_information > 0)
    scores = example.confidences(many)
    assert len(scores) == 3
    for score in scores.values():
        assert score.shape == (6,)
        assert np.all((score >= 0) & (score <= 1))
    order = np.argsort(many.predictive_entropy)
    assert np.all(np.diff(scores["predictive entropy"][order]) <= 0)


def known(example, probs):
    return tfuq.predictive.decompose(np.asarray(probs, "float64")[None])


def test_table_one_by_hand(example):
    """Three are accepted, of which two are right; ECE is that of all four."""
    probs = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
    found = example.table_one(np.array([0, 1, 1, 0]), known(example, probs), 0.7)
    assert found["accuracy on accepted"] == pytest.approx(2 / 3)
    assert found["coverage"] == pytest.approx(3 / 4)
    assert found["rejection rate"] == pytest.approx(1 / 4)
    assert found["ECE"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.4) / 4)
    assert list(found) == list(example.PAPER)


def test_accuracy_of_the_most_confident(example):
    y, label = np.array([0, 1, 2, 3]), np.array([0, 1, 0, 3])
    confidence = np.array([0.9, 0.1, 0.8, 0.5])
    found = [example.accuracy_at(y, label, confidence, c) for c in (0.01, 0.5, 0.75, 1)]
    assert found == [1, 1 / 2, 2 / 3, 3 / 4]


def test_nothing_accepted_is_a_dash(example, capsys):
    found = {name: known(example, [[0.2] * 5] * 3) for name in ("Dense", "VBLL")}
    example.print_table_one(np.array([0, 1, 2]), found)
    said = capsys.readouterr().out
    assert rows(said, "accuracy on accepted") == [["0.8993", "-", "-"]]
    assert rows(said, "coverage") == [["0.7450", "0.0000", "0.0000"]]


# The run


@pytest.mark.slow
def test_quick_run_on_a_fresh_machine(example, tmp_path, capsys):
    """No files: discs, which the example says; two models are trained, judged and drawn."""
    arguments = ["--quick", "--limit", "60", "--samples", "5", "--output", str(tmp_path / "new")]
    example.main(arguments)
    said = capsys.readouterr().out
    assert "SYNTHETIC discs" in said
    assert "do not reproduce the" in said.replace("\n", " ")
    before, after = (
        np.array(rows(said, name)[0], int) for name in ("training", "training, after SMOTE")
    )
    assert before.min() < before.max() / 2 <= after.min()
    assert re.findall(r"unfreezing_stage: (\d)", said) == ["0", "1", "2"]
    paper, dense, bayesian = rows(said, "coverage")[0]
    assert paper == "0.7450"
    for covered, rejected in zip(
        (dense, bayesian), rows(said, "rejection rate")[0][1:], strict=True
    ):
        assert float(covered) + float(rejected) == pytest.approx(1)
    by_threshold, by_coverage = rows(said, "VBLL, mutual information")
    assert len(by_threshold) == len(by_coverage) == 5
    _, *accuracies = rows(said, "accuracy on all")[0]
    for name, accuracy in zip(("Dense", "VBLL"), accuracies, strict=True):
        assert rows(said, f"{name}, confidence")[1][0] == accuracy  # where nothing is refused
    assert not rows(said, "Dense, mutual information")
    with Image.open(tmp_path / "new" / "diabetic_retinopathy.png") as figure:
        assert min(figure.size) > 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--samples", "1"], "--samples must be at least 2, not 1"),
        (["--limit", "49"], "--limit must be at least 50, not 49"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
    ],
)
def test_refuses_bad_arguments(example, capsys, arguments, message):
    with pytest.raises(SystemExit):
        example.read_arguments(arguments)
    assert message in capsys.readouterr().err


def test_help_teaches(example, capsys):
    with pytest.raises(SystemExit, match="0"):
        example.main(["--help"])
    said = capsys.readouterr().out
    assert "python examples/diabetic_retinopathy.py --tfds" in said
    assert "15 %" in said or "70/15/15" in said
