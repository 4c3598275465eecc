"""What is declared of a model: saved with it, applied to its images, compared with labels."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq._files.reading import load_keras
from tfuq._images.inputs import InputSpec
from tfuq._predictions.class_names import agreed_names, numbered
from tfuq.ensembles import DeepEnsemble
from tfuq.predictive import Declared, declare, declared, read_scores, score_dataset

RNG = np.random.default_rng(0)
NAMES = ["cat", "dog", "emu"]


def network(shape=(4, 4, 3), classes=3):
    head = keras.layers.Dense(classes, "softmax" if classes > 1 else "sigmoid")
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), head])


def score(model, data, path, **options):
    return read_scores(score_dataset(model, data, path, verbose=0, **options).path)


# --- Saved with the model -------------------------------------------------------------------------


def functional():
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.Dense(3, "softmax")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("make", [network, functional])
def test_saved_and_loaded_and_saved_again(make, tmp_path):
    model = make()
    assert declared(model) == Declared()
    found = declare(model, class_names=NAMES, value_range=(0, 1))
    assert found == Declared(NAMES, InputSpec((0.0, 1.0), (4, 4), "rgb", "bilinear"))
    model.save(tmp_path / "a.keras")
    again = load_keras(tmp_path / "a.keras")
    again.save(tmp_path / "b.keras")
    assert declared(again) == declared(tmp_path / "a.keras") == declared(tmp_path / "b.keras")
    assert declared(again) == found
    plain = keras.models.load_model(tmp_path / "a.keras", safe_mode=True)  # as others load it
    x = RNG.random((5, 4, 4, 3), "float32")
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    declare(again, class_names=NAMES[::-1])  # the rest stays
    assert declared(again) == Declared(NAMES[::-1], found.inputs)


@pytest.mark.slow
def test_keras_alone_loads_the_file(tmp_path):
    model = network()
    declare(model, class_names=NAMES)
    model.save(tmp_path / "a.keras")
    code = "import keras; keras.models.load_model('a.keras').summary()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_file_that_declares_nonsense_is_refused(tmp_path):
    model = network()
    declare(model, class_names=NAMES)
    model.save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras") as old:
        parts = {name: old.read(name) for name in old.namelist()}
    config = json.loads(parts["config.json"])
    for content in (
        {"class_names": ["a", "a"]},
        {"inputs": {"value_range": [1, 0]}},
        {"inputs": 3},
    ):
        config["build_config"]["tfuq"] = content
        with zipfile.ZipFile(tmp_path / "b.keras", "w") as new:
            for name, part in (parts | {"config.json": json.dumps(config)}).items():
                new.writestr(name, part)
        with pytest.raises(ValueError, match=r"class_names|value_range|description of inputs"):
            declared(tmp_path / "b.keras")


def test_ensembles_agree(tmp_path):
    ensemble = DeepEnsemble(network, 2)
    assert declared(ensemble) == Declared()
    declare(ensemble.members[0], class_names=NAMES)
    with pytest.raises(ValueError, match="members with the same declarations"):
        declared(ensemble)
    declare(ensemble.members[1], class_names=NAMES)
    ensemble.save(tmp_path / "e")
    assert declared(DeepEnsemble.load(tmp_path / "e")).class_names == NAMES


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("class_names", {"class_names": ["cat", "dog"]}),
        ("class_names", {"class_names": ["cat", "dog", "dog"]}),
        ("class_names", {"class_names": "cat,dog,emu"}),
        ("class_names", {"class_names": [0, 1, 2]}),
        ("value_range", {"value_range": (1, 0)}),
        ("value_range", {"size": (4, 4)}),
        ("inputs", {"value_range": (0, 1), "size": (9, 9)}),
        ("inputs", {"value_range": (0, 1), "channels": "gray"}),
        ("resize", {"value_range": (0, 1), "resize": "crop"}),
    ],
)
def test_refused(argument, options):
    with pytest.raises(ValueError, match=rf"Argument `{argument}` must .*Received: "):
        declare(network(), **options)
    declare(network(classes=1), class_names=["well", "ill"])
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        declare(lambda x: x)


# --- Images ---------------------------------------------------------------------------------------


def test_images_are_brought_to_what_is_declared(tmp_path):
    images = RNG.integers(0, 256, size=(5, 6, 7, 3)).astype("uint8")
    names = [tmp_path / f"{n}.png" for n in range(5)]
    for name, image in zip(names, images, strict=True):
        name.write_bytes(tf.io.encode_png(image).numpy())
    model = network()
    declare(model, value_range=(-1, 1), channels="bgr")
    found = score(model, names, tmp_path / "s")["probabilities"]
    x = tf.image.resize(images, (4, 4), antialias=True)[..., ::-1] / 127.5 - 1
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    declare(model, value_range=(-1, 1), resize="refuse")
    with pytest.raises(ValueError, match=r"images of \(4, 4\) pixels"):
        score(model, names, tmp_path / "t")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_images_of_another_range_are_refused(tmp_path, dtype):
    model = network()
    declare(model, value_range=(0, 1))
    x = RNG.random((9, 4, 4, 3), "float32")
    assert len(score(model, x, tmp_path / "s")["label"]) == 9
    wrong = (255 * x).astype(dtype)
    with pytest.raises(ValueError, match=r"(?s)`data` must hold images from 0 to 1.*Received"):
        score(model, wrong, tmp_path / "t")
    if dtype == "uint8":  # black images, too: their dtype says that they were not divided
        with pytest.raises(ValueError, match="dtype uint8"):
            score(model, 0 * wrong, tmp_path / "t")
    x[7, 0] = 3.0  # in a later batch
    with pytest.raises(ValueError, match="from 0 to 1"):
        score(model, x, tmp_path / "u", batch_size=4)
    x[7, 0] = np.nan  # is unknown, as ever
    assert score(model, x, tmp_path / "v")["label"][7] == -1


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["U", "S", "O"])
def test_labels_may_be_names(tmp_path, dtype):
    model, x = network(), RNG.random((6, 4, 4, 3), "float32")
    labels = np.array(["emu", "cat", "dog", "dog", "cat", "emu"])
    declare(model, class_names=NAMES)
    found = score(model, (x, labels.astype(dtype)), tmp_path / "s")
    np.testing.assert_array_equal(found["true_label"], [2, 0, 1, 1, 0, 2])
    assert found["class"].tolist() == [NAMES[k] for k in found["label"]]
    given = tf.data.Dataset.from_tensor_slices((x, labels)).batch(4)
    np.testing.assert_array_equal(
        score(model, given, tmp_path / "t")["true_label"], [2, 0, 1, 1, 0, 2]
    )
    labels[3] = "gnu"
    with pytest.raises(ValueError, match=r"'cat', 'dog', 'emu'\. Received: 'gnu'"):
        score(model, (x, labels), tmp_path / "u")
    with pytest.raises(ValueError, match="where `class_names` are not known"):
        score(network(), (x, labels), tmp_path / "u")
    with pytest.raises(ValueError, match="the same everywhere"):
        score(model, x, tmp_path / "u", class_names=NAMES[::-1])
    with pytest.raises(ValueError, match="must name the 3 classes"):
        score(network(), x, tmp_path / "u", class_names=["cat", "dog"])


class Column:
    """As a column of a table of pandas, which says its values as an array of objects."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype or object)


def test_names_of_columns():
    for labels in (Column(["dog", "cat", "dog"]), ["dog", "cat", "dog"]):
        np.testing.assert_array_equal(numbered(labels, NAMES), [1, 0, 1])
    numbers = Column([1, 2])
    assert numbered(numbers, NAMES) is numbers
    assert numbered([2, 0], NAMES) == [2, 0]
    with pytest.raises(ValueError, match="Received: 'nan'"):
        numbered(Column(["dog", np.nan]), NAMES)


def test_names_agree():
    assert agreed_names({"a": None, "b": None}) is None
    assert agreed_names({"a": None, "b": NAMES, "c": tuple(NAMES)}) == NAMES
    with pytest.raises(ValueError, match="'dog', 'cat' of c"):
        agreed_names({"a": None, "b": ["cat", "dog"], "c": ["dog", "cat"]})
