"""Public sets in one form, local files, classes in balance, and new examples of rare ones."""

import ast
import importlib.util
import io
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfuq import datasets
from tfuq.datasets import balanced, describe, from_npz, load, names, smote
from tfuq.datasets.balance import expected_copies

IMPORTS = (ast.Import, ast.ImportFrom)
EXTRAS = ("tensorflow_datasets", "imblearn")
ROOT = pathlib.Path(__file__).parents[2]
SHARED = pathlib.Path(os.environ.get("TFUQ_DATA") or ROOT.parent / "shared" / "data")
needs_tfds = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None,
    reason='needs tensorflow-datasets: pip install "tfuq[datasets]"',
)


def refused(argument, call, *args, **kwargs):
    with pytest.raises(ValueError, match=rf"(?s)Argument `{argument}` must.*Received: ") as caught:
        call(*args, **kwargs)
    return str(caught.value)


def joined(dataset):
    """All images and all labels of a dataset of batches."""
    return [np.concatenate(column) for column in zip(*dataset.as_numpy_iterator(), strict=True)]


# --- Classes in balance -----------------------------------------------------------------------

COUNTS = np.array([700, 250, 50])
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], COUNTS))
ROWS = np.arange(1000, dtype="float32")[:, None]


def elements(labels, batch_size=None):
    dataset = tf.data.Dataset.from_tensor_slices((ROWS, labels))
    return dataset if batch_size is None else dataset.batch(batch_size)


ONE_HOT = np.eye(3, dtype="float32")[LABELS]
MULTI_HOT = np.where(ROWS == 777, 1, ONE_HOT)  # one example has several labels
FORMS = {
    "arrays": lambda: (ROWS, LABELS),
    "arrays, column": lambda: (ROWS, LABELS[:, None].astype("float32")),
    "arrays, one-hot": lambda: (ROWS, ONE_HOT),
    "examples": lambda: elements(LABELS),
    "examples, one-hot": lambda: elements(ONE_HOT),
    "batches": lambda: elements(LABELS, 64),
    "batches, one-hot": lambda: elements(ONE_HOT, 64),
}


def classes_of(labels):
    return labels.argmax(-1) if labels.shape[-1:] == (3,) else labels.reshape(-1).astype(int)


@pytest.mark.slow_cases("batches, one-hot-weights1", "examples-weights1")
@pytest.mark.parametrize("weights", [pytest.param(None, marks=pytest.mark.slow), [1, 2, 5]])
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_classes_come_as_often_as_asked(make, weights):
    """Sampling with copies varies less than independent draws, whose 6 standard errors are allowed.

    A correct sampler fails less than 1 seed in 10^8.
    """
    dataset = balanced(make(), weights=weights, batch_size=50, steps=60, seed=3)
    rows, labels = joined(dataset)
    assert len(labels) == 3000
    classes = classes_of(labels)
    np.testing.assert_array_equal(classes, LABELS[rows[:, 0].astype(int)])
    p = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    off = np.abs(np.bincount(classes, minlength=3) / len(classes) - p)
    assert np.all(off < 6 * np.sqrt(p * (1 - p) / len(classes)))
    seen = np.unique(rows[:, 0].astype(int))
    assert set(np.flatnonzero(LABELS == 2)) <= set(seen)  # none of the rare ones is missed


def test_a_pass_has_every_example_nearly_as_often_as_expected():
    """Of 700, 250 and 50 examples: 0.48, 1.33 and 6.67 copies each."""
    copies = expected_copies(COUNTS, [1, 1, 1])
    np.testing.assert_allclose(copies, 1000 / 3 / COUNTS)
    assert copies @ COUNTS == pytest.approx(1000)
    for data in ((ROWS, LABELS), elements(LABELS)):
        options = {} if isinstance(data, tuple) else {"buffer_size": 1}
        rows, _ = joined(balanced(data, batch_size=100, steps=8, seed=1, **options))
        found = np.bincount(rows[:, 0].astype(int), minlength=1000)
        assert np.all(found <= np.ceil(copies)[LABELS])


@pytest.mark.slow
def test_epochs_differ_and_a_seed_repeats_them():
    for make in (FORMS["arrays"], FORMS["batches"]):
        dataset = balanced(make(), seed=1)
        first, second = joined(dataset)[0], joined(dataset)[0]
        assert not np.array_equal(first, second)
        again = balanced(make(), seed=1)
        np.testing.assert_array_equal(joined(again)[0], first)
        np.testing.assert_array_equal(joined(again)[0], second)
        assert not np.array_equal(joined(balanced(make(), seed=2))[0], first)


def test_fit_knows_the_length():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    data = balanced((ROWS, LABELS, np.ones(1000)), batch_size=300)
    assert int(data.cardinality()) == 4  # as many as hold 1,000
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 8
    assert int(balanced(elements(LABELS, 8), batch_size=None).cardinality()) == 1000
    assert int(balanced(elements(LABELS), batch_size=64, steps=5).cardinality()) == 5


def test_several_inputs_and_weights_keep_their_rows():
    x = {"a": ROWS, "b": 2 * ROWS}
    for data in ((x, LABELS, ROWS[:, 0]), tf.data.Dataset.from_tensor_slices((x, LABELS, ROWS))):
        (found, labels, weights) = next(balanced(data).as_numpy_iterator())
        np.testing.assert_array_equal(found["b"], 2 * found["a"])
        np.testing.assert_array_equal(weights.reshape(-1, 1), found["a"])
        np.testing.assert_array_equal(LABELS[found["a"][:, 0].astype(int)], labels)


def test_counts_serve_where_nothing_can_be_counted():
    endless = elements(LABELS).repeat()
    refused("counts", balanced, endless)
    _, labels = joined(balanced(endless, counts=COUNTS, batch_size=50, steps=60))
    assert np.bincount(labels).min() > 800  # of 1,000 each: more than 6 standard errors of 26


def test_a_class_without_weight_is_left_out():
    _, labels = joined(balanced((ROWS, LABELS), weights=[1, 0, 1, 0], num_classes=4))
    assert set(labels) == {0, 2}


def test_shapes_say_whether_elements_are_batches():
    images, one_hot = tf.zeros((5, 4, 4, 1)), tf.one_hot(tf.range(5) % 4, 4)
    pairs = tf.data.Dataset.from_tensor_slices((images, one_hot))
    refused("batched", balanced, pairs)  # 4 labels of 4 images, or a one-hot label of an image
    found = balanced(pairs, batched=False, batch_size=2)
    assert found.element_spec[1].shape == (2, 4)
    batches = pairs.map(lambda x, y: (x, tf.argmax(y))).batch(5, drop_remainder=True)
    refused("batched", balanced, batches)
    assert balanced(batches, batched=True, batch_size=2).element_spec[1].shape == (2,)


@pytest.mark.parametrize(
    "argument, data, options",
    [
        ("data", (ROWS, LABELS), {"num_classes": 4}),
        ("data", (ROWS, np.where(LABELS == 1, 0, LABELS)), {}),
        ("data", (ROWS, LABELS - 1), {}),
        ("data", (ROWS, LABELS + 0.5), {}),
        ("data", (ROWS, LABELS[:5]), {}),
        ("data", (ROWS[:0], LABELS[:0]), {}),
        ("data", (ROWS, MULTI_HOT), {}),
        ("data", (ROWS, 0 * ONE_HOT), {}),
        ("data", elements(MULTI_HOT), {}),
        ("data", elements(MULTI_HOT, 64), {}),
        ("data", (ROWS,), {}),
        ("data", ROWS, {}),
        ("data", (ROWS, np.zeros((1000, 4, 4), int)), {}),
        ("data", tf.data.Dataset.from_tensor_slices(ROWS), {}),
        ("data", elements(LABELS).take(0), {}),
        ("data", elements(LABELS - 1), {}),
        ("num_classes", (ROWS, LABELS), {"num_classes": 2}),
        ("num_classes", (ROWS, LABELS), {"num_classes": 0}),
        ("num_classes", (ROWS, ONE_HOT), {"num_classes": 4}),
        ("weights", (ROWS, LABELS), {"weights": [1, 1]}),
        ("weights", (ROWS, LABELS), {"weights": [1, 1, -1]}),
        ("weights", (ROWS, LABELS), {"weights": [0, 0, 0]}),
        ("weights", (ROWS, LABELS), {"weights": [1, 1, np.nan]}),
        ("counts", elements(LABELS), {"counts": [1, 2, -1]}),
        ("counts", elements(ONE_HOT), {"counts": [1, 2]}),
        ("counts", (ROWS, LABELS), {"counts": COUNTS}),
        ("batched", (ROWS, LABELS), {"batched": False}),
        ("buffer_size", (ROWS, LABELS), {"buffer_size": 5}),
        ("buffer_size", elements(LABELS), {"buffer_size": 0}),
        ("batch_size", (ROWS, LABELS), {"batch_size": 0}),
        ("steps", (ROWS, LABELS), {"steps": 0}),
        ("seed", (ROWS, LABELS), {"seed": -1}),
    ],
)
def test_balanced_refuses(argument, data, options):
    refused(argument, balanced, data, **options)


def test_missing_classes_are_named():
    message = refused("data", balanced, (ROWS, LABELS), num_classes=5)
    assert "no examples of the classes [3, 4]" in message and "[700, 250, 50, 0, 0]" in message


# --- SMOTE ------------------------------------------------------------------------------------


def pictures(counts=(12, 5), dtype="uint8"):
    images = np.random.default_rng(0).integers(256, size=(sum(counts), 3, 4, 2))
    return images.astype(dtype), np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_smote_is_that_of_imbalanced_learn(dtype):
    over_sampling = pytest.importorskip("imblearn.over_sampling")
    x, y = pictures(dtype=dtype)
    found, labels = smote(x, y, seed=4, k_neighbors=3)
    theirs = over_sampling.SMOTE(k_neighbors=3, random_state=4)
    flat = x.reshape(17, -1).astype("float64" if dtype == "float64" else "float32")
    expected, classes = theirs.fit_resample(flat, y)
    np.testing.assert_array_equal(labels, classes)
    np.testing.assert_array_equal(found[:17], x)
    assert found.shape == (24, 3, 4, 2) and found.dtype == x.dtype and labels.dtype == y.dtype
    atol = 0.5 if x.dtype.kind in "iu" else 0
    np.testing.assert_allclose(found.reshape(24, -1), expected, atol=atol)


def test_smote_keeps_the_form_of_labels():
    x, y = pictures()
    expected, classes = smote(x, y)
    for labels in (y[:, None], np.eye(3, dtype="float32")[y]):
        found, given = smote(x, labels)
        np.testing.assert_array_equal(found, expected)
        assert given.dtype == labels.dtype and given.shape == (24, *labels.shape[1:])
        np.testing.assert_array_equal(given[:17], labels)
        column = given.argmax(1) if labels.shape[1] == 3 else given[:, 0]
        np.testing.assert_array_equal(column, classes)


def test_smote_takes_the_neighbours_there_are():
    x, y = pictures((9, 2, 1))
    found, labels = smote(x, y, sampling_strategy={1: 6})
    np.testing.assert_array_equal(np.bincount(labels), [9, 6, 1])
    low, high = x[9:11].min(0), x[9:11].max(0)
    assert np.all((found[12:] >= low) & (found[12:] <= high))
    assert "{0: 9, 1: 2, 2: 1}" in refused("y", smote, x, y)


def test_smote_refuses():
    x, y = pictures()
    refused("x", smote, y, y)
    refused("x", smote, x.astype(str), y)
    refused("y", smote, x, y[:3])
    refused("y", smote, x, np.ones((17, 3)))
    refused("y", smote, x, np.ones((17, 3, 3)))
    refused("k_neighbors", smote, x, y, k_neighbors=0)
    refused("seed", smote, x, y, seed=-1)


def test_smote_takes_no_dataset():
    dataset = tf.data.Dataset.from_tensor_slices(pictures())
    with pytest.raises(ValueError, match=r"must be an array.*tfuq\.datasets\.balanced"):
        smote(dataset)


def test_smote_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imblearn.over_sampling", None)
    with pytest.raises(ImportError, match=r'pip install "tfuq\[smote\]"'):
        smote(*pictures())


# --- Local files ------------------------------------------------------------------------------


def jpegs(images):
    """The bytes of JPEG files end to end, and where each begins."""
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)], dtype="int32")
    return np.frombuffer(b"".join(files), "uint8"), offsets, files


GREY = np.random.default_rng(1).integers(256, size=(6, 8, 10), dtype="uint8")
GRADES = np.array([0, 1, 2, 0, 1, 2], "uint8")


def test_files_of_arrays_as_others_name_them(tmp_path):
    np.savez(
        tmp_path / "keras.npz", x_train=GREY[:4], y_train=GRADES[:4], x_test=GREY, y_test=GRADES
    )
    medmnist = {"val_images": GREY, "val_labels": GRADES[:, None]}
    np.savez(tmp_path / "medmnist.npz", **medmnist)
    np.savez(tmp_path / "whole.npz", x=GREY, y=GRADES)
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "folder" / "test.npz", images=GREY, labels=GRADES)
    np.savez(tmp_path / "folder" / "train.npz", x=GREY[:2], y=GRADES[:2])
    for path, split in (
        ("keras.npz", "test"),
        ("medmnist.npz", "val"),
        ("whole.npz", None),
        ("folder", "test"),
        ("folder/test.npz", "test"),
    ):
        dataset = from_npz(tmp_path / path, split, batch_size=4)
        assert int(dataset.cardinality()) == 2
        images, labels = joined(dataset)
        np.testing.assert_array_equal(images, GREY[..., None])
        np.testing.assert_array_equal(labels, GRADES)
        assert images.dtype == np.uint8 and labels.dtype == np.int64
    train, test = from_npz(str(tmp_path / "keras.npz"), ["train", "test"])
    assert (int(train.cardinality()), int(test.cardinality())) == (4, 6)
    assert train.element_spec[0].shape == (8, 10, 1) and train.element_spec[1].shape == ()
    (tmp_path / "keras.npz").rename(tmp_path / "folder" / "train.npz")
    (tmp_path / "folder" / "test.npz").unlink()
    assert int(from_npz(tmp_path / "folder", "test").cardinality()) == 6  # the one file there is


def test_files_of_jpegs(tmp_path):
    colour = np.random.default_rng(2).integers(256, size=(5, 16, 16, 3), dtype="uint8")
    data, offsets, files = jpegs(colour)
    soft = np.full((5, 3), 1 / 3)
    arrays = {
        "train_bytes": data,
        "train_offsets": offsets,
        "y_train": GRADES[:5],
        "soft_train": soft,
    }
    np.savez(tmp_path / "data.npz", **arrays)
    images, labels = joined(from_npz(tmp_path, batch_size=2))
    expected = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, GRADES[:5])
    for label in ("soft", "soft_train"):
        _, labels = joined(from_npz(tmp_path, label=label, batch_size=2))
        np.testing.assert_array_equal(labels, soft.astype("float32"))


def test_jpegs_of_several_sizes(tmp_path):
    data, offsets, _ = jpegs([np.zeros((16, 16, 3), "uint8"), np.ones((24, 16, 3), "uint8")])
    np.savez(tmp_path / "data.npz", bytes=data, offsets=offsets, y=[0, 1])
    assert [image.shape for image, _ in from_npz(tmp_path, None)] == [(16, 16, 3), (24, 16, 3)]
    assert from_npz(tmp_path, None, image_size=8, batch_size=2).element_spec[0].shape[1:] == (
        8,
        8,
        3,
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="`image_size` must be given"):
        joined(from_npz(tmp_path, None, batch_size=2))


@pytest.mark.parametrize("crop", [False, True])
def test_images_and_masks_are_resized_together(tmp_path, crop):
    masks = (GREY > 128).astype("uint8")
    np.savez(tmp_path / "data.npz", x_train=GREY, y_train=masks)
    options = {"image_size": (4, 4), "crop_to_aspect_ratio": crop, "batch_size": 6}
    images, labels = joined(from_npz(tmp_path, **options))
    whole = GREY[:, :, 1:9] if crop else GREY
    whole = whole[..., None].astype("float32")
    expected = tf.image.resize(whole, (4, 4), antialias=True)
    np.testing.assert_array_equal(images, np.round(expected))
    assert images.dtype == np.uint8 and labels.dtype == np.uint8
    expected = tf.image.resize((whole > 128).astype("uint8"), (4, 4), "nearest")
    np.testing.assert_array_equal(labels, expected[..., 0])


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("shuffle", [False, True, 3])
def test_order_and_cache(tmp_path, cache, shuffle):
    count = 50
    x, y = np.arange(count, dtype="uint8"), np.arange(count)
    np.savez(tmp_path / "data.npz", x_train=np.tile(x[:, None, None], (1, 2, 2)), y_train=y)

    def read(seed=0):
        return from_npz(tmp_path, shuffle=shuffle, seed=seed, cache=cache, batch_size=8)

    dataset = read()
    epochs = [joined(dataset) for _ in range(2)]
    for images, labels in epochs:
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
        np.testing.assert_array_equal(np.sort(labels), y)
    orders = [labels for _, labels in epochs]
    assert np.array_equal(orders[0], y) == (not shuffle)
    assert np.array_equal(orders[0], orders[1]) == (not shuffle)
    np.testing.assert_array_equal(joined(read())[1], orders[0])
    if shuffle:
        assert not np.array_equal(joined(read(seed=1))[1], orders[0])
    if shuffle == 3:
        assert np.all(np.arange(count) - orders[0] > -3)  # nothing comes from further on


def test_what_a_file_does_not_hold_is_named(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x_train=GREY, y_train=GRADES, test_bytes=GREY[0, 0], names=np.array(["a"]))
    assert "['x_train', 'y_train', 'test_bytes', 'names']" in refused(
        "path", from_npz, path, "test"
    )
    assert "label='dme'" in refused("path", from_npz, path, label="dme")
    assert "'x_train'" in refused("path", from_npz, path, None)
    refused("label", from_npz, path, label="names")
    assert "['data.npz']" in refused("path", from_npz, tmp_path / "date.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    refused("path", from_npz, tmp_path / "text.npz")
    assert "['data.npz', 'text.npz']" in refused("path", from_npz, tmp_path)
    assert "[]" in refused("path", from_npz, tmp_path / "nowhere" / "data.npz")


def test_bad_arrays_in_files(tmp_path):
    path = tmp_path / "data.npz"
    data, offsets, _ = jpegs(np.zeros((2, 8, 8, 3), "uint8"))
    for arrays in (
        {"x_train": GREY, "y_train": GRADES[:3]},
        {"x_train": GREY[0], "y_train": GRADES},
        {"x_train": GREY.astype(str), "y_train": GRADES},
        {"x_train": GREY, "y_train": np.array([None] * 6)},  # would have to be unpickled
        {"train_bytes": data, "train_offsets": offsets[:-1], "y_train": GRADES[:1]},
        {"train_bytes": data, "train_offsets": offsets[::-1], "y_train": GRADES[:2]},
        {"train_bytes": data.astype(int), "train_offsets": offsets, "y_train": GRADES[:2]},
    ):
        np.savez(path, **arrays)
        refused("path", from_npz, path)


def test_forms_are_checked(tmp_path):
    np.savez(tmp_path / "data.npz", x_train=GREY, y_train=GRADES)
    for argument, values in {
        "batch_size": (0, -1, 2.5),
        "image_size": (0, (4, 4, 4), "8", (4, -1)),
        "shuffle": (0, -1, "yes"),
        "seed": (-1, None),
    }.items():
        for value in values:
            refused(argument, from_npz, tmp_path, **{argument: value})


def test_real_files():
    if not (SHARED / "idrid_grading_128_jpeg.npz").is_file():
        pytest.skip(f"needs idrid_grading_128_jpeg.npz in {SHARED}: set TFUQ_DATA to its folder")
    grades = from_npz(SHARED / "idrid_grading_128_jpeg.npz", "test", batch_size=103)
    ((images, labels),) = grades.as_numpy_iterator()
    assert images.shape == (103, 128, 128, 3)
    np.testing.assert_array_equal(np.bincount(labels), [34, 5, 32, 19, 13])  # as its authors count
    risk = from_npz(SHARED / "idrid_grading_128_jpeg.npz", "test", label="dme", batch_size=103)
    assert set(next(iter(risk))[1].numpy()) == {0, 1, 2}


# --- Public sets ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets", reason='pip install "tfuq[datasets]"')


@pytest.fixture
def mocked(tfds):
    """Random examples instead of downloads, with the features that each set says it has."""
    policy = tfds.testing.MockPolicy.USE_CODE
    with tfds.testing.mock_data(num_examples=5, policy=policy):
        yield tfds


WHOLE_NAMES = {
    "lsun": ("lsun/bridge", {}),
    "cifar10_c": ("cifar10_c", {"corruption": "fog", "severity": 3}),
    "imagenet_c": ("imagenet_c", {"corruption": "fog", "severity": 3}),
    "mnist_c": ("mnist_c", {"corruption": "fog"}),
}


def test_every_set_is_what_its_description_says(mocked):
    """Names of features, and numbers of classes, as the installed tensorflow-datasets has them."""
    for name in names():
        found = describe(name)
        builder = mocked.builder(found.builder)
        features = builder.info.features
        if found.label is None:
            assert found.num_classes == len(builder.BUILDER_CONFIGS)
        elif found.label == "soft_label":
            assert features["soft_label"].shape == (found.num_classes,)
        else:
            assert features[found.label].num_classes == found.num_classes, name
        assert features["image"].shape[-1] in (1, 3)
        assert set(found.labels) <= set(features), name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in WHOLE_NAMES else pytest.mark.slow)
        for name in names()
        if name not in ("cifar10_h", "oxford_iiit_pet")  # below
    ],
)
def test_every_set_has_the_form(mocked, name):
    whole, options = WHOLE_NAMES.get(name, (name, {}))
    found = describe(name)
    dataset = load(whole, found.splits[0], batch_size=3, image_size=(12, 10), **options)
    images, labels = joined(dataset)
    assert images.shape[:3] == (5, 12, 10) and images.shape[3] in (1, 3)
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    assert labels.shape == (5,)
    assert np.all((labels >= 0) & (labels < found.num_classes))
    if name == "lsun":
        assert set(labels) == {2}  # the third of the categories


def test_pets_as_images_and_as_masks(mocked):
    (image, label) = next(iter(load("oxford_iiit_pet")))
    assert image.shape.rank == 3 and label.shape == ()
    train, test = load(
        "oxford_iiit_pet",
        ["train", "test"],
        label="segmentation_mask",
        image_size=8,
        crop_to_aspect_ratio=True,
        batch_size=2,
        shuffle=True,
        cache=True,
    )
    for dataset in (train, test):
        images, masks = joined(dataset)
        assert images.shape == (5, 8, 8, 3) and masks.shape == (5, 8, 8, 1)
        assert masks.dtype == np.uint8


def test_labels_are_those_of_the_set(tfds):
    """Features of one's own making, to see which become image and label."""
    soft = np.random.default_rng(0).dirichlet(np.ones(10), size=4).astype("float32")
    images = np.arange(4 * 32 * 32 * 3).reshape(4, 32, 32, 3).astype("uint8")
    examples = {"image": images, "label": np.arange(4), "soft_label": soft}

    def as_dataset(self, *args, **kwargs):
        return tf.data.Dataset.from_tensor_slices(examples)

    policy = tfds.testing.MockPolicy.USE_CODE
    with tfds.testing.mock_data(as_dataset_fn=as_dataset, policy=policy):
        for label, expected in ((None, soft), ("label", np.arange(4)), ("soft_label", soft)):
            found, labels = joined(load("cifar10_h", "test", label=label, batch_size=3))
            np.testing.assert_array_equal(found, images)
            np.testing.assert_array_equal(labels, expected)
            assert labels.dtype == expected.dtype


def test_names_of_tensorflow_datasets_serve_too(mocked):
    assert load("svhn_cropped").element_spec == load("svhn").element_spec
    by_argument = load("cifar10_c", "test", corruption="fog", severity=2)
    assert load("cifar10_corrupted/fog_2", "test").element_spec == by_argument.element_spec
    assert load("tf_flowers", image_size=8).element_spec[0].shape == (8, 8, 3)
    assert load("smallnorb").element_spec[1].dtype == tf.int64  # its label is `label_category`


def test_corruption_and_severity_name_the_configuration(mocked, monkeypatch):
    asked = []
    monkeypatch.setattr(mocked, "builder", lambda *args, **kwargs: asked.append((args, kwargs)))
    with pytest.raises(AttributeError):  # there is no builder to go on with
        load("cifar10_c", "test", corruption="gaussian_noise", severity=5, data_dir="somewhere")
    options = {"config": "gaussian_noise_5", "data_dir": "somewhere"}
    assert asked == [(("cifar10_corrupted",), options)]


@pytest.mark.parametrize(
    "argument, name, options",
    [
        ("name", "no_such_set", {}),
        ("name", "lsun", {}),
        ("name", "lsun/garden", {}),
        ("name", "cifar10/small", {}),
        ("name", "imdb_reviews", {}),
        ("name", "celeb_a", {}),
        ("name", "chexpert", {}),
        ("corruption", "cifar10_c", {"severity": 1}),
        ("corruption", "cifar10_c", {"corruption": "rain", "severity": 1}),
        ("corruption", "cifar10", {"corruption": "fog"}),
        ("severity", "cifar10_c", {"corruption": "fog"}),
        ("severity", "cifar10_c", {"corruption": "fog", "severity": 6}),
        ("severity", "cifar10_c/fog_1", {"severity": 2}),
        ("severity", "mnist_c", {"corruption": "fog", "severity": 2}),
        ("label", "cifar10", {"label": "colour"}),
        ("label", "cifar10_h", {"label": "human_labels"}),
        ("label", "cifar10_n", {"split": "test"}),
        ("label", "cifar10_n", {"split": ["train", "test[:10%]"], "label": "worse_label"}),
        ("image_size", "dtd", {"batch_size": 2}),
        ("batch_size", "cifar10", {"batch_size": 0}),
        ("split", "cifar10", {"split": None}),
    ],
)
def test_load_refuses(mocked, argument, name, options):
    refused(argument, load, name, **options)


@needs_tfds
def test_what_is_elsewhere_is_said():
    assert "from_npz" in refused("name", load, "ChestMNIST")
    assert "image_dataset_from_directory" in refused("name", load, "isic")


def test_load_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "tfuq\[datasets\]"'):
        load("cifar10")


def test_describe_refuses():
    refused("name", describe, "cifar")


def test_extras_are_imported_when_they_are_needed():
    for path in (ROOT / "tfuq").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        imported = [ast.unparse(node) for node in body if isinstance(node, IMPORTS)]
        assert not any(extra in line for line in imported for extra in EXTRAS), path


@pytest.mark.slow
def test_the_package_imports_none_of_the_extras():
    code = f"import sys, tfuq.datasets; print([n for n in {EXTRAS} if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_names_are_public():
    assert set(datasets.__all__) == {
        "PublicSet",
        "balanced",
        "describe",
        "from_npz",
        "load",
        "names",
        "smote",
    }


def test_smote_takes_no_datasets():
    """Neighbours are looked for among all examples."""
    pytest.importorskip("imblearn")
    x, y = np.zeros((4, 2)), np.array([0, 0, 1, 1])
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    for given in ((dataset,), (dataset, y)):
        with pytest.raises(ValueError, match="`x` must be an array, because neighbours"):
            smote(*given)
    with pytest.raises(ValueError, match="Argument `y` must hold a label"):
        smote(x)
