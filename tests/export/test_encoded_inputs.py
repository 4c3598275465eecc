"""Exports of what no sample can be made up for: encoded images, tables, names, several dtypes."""

import json
import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.export import export, export_litert, export_onnx, verify_export
from tfuq.predictive import declare

K = keras.layers
PAIRS = tf.TensorSpec((None, 2), tf.string)
TEXTS = tf.TensorSpec((None,), tf.string)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 9, 7, 3)).astype("uint8")
FILES = np.array([tf.io.encode_png(image).numpy() for image in PIXELS], object)


def decoded(batch):
    def one(content):
        image = tf.io.decode_image(content, channels=3, expand_animations=False)
        return tf.image.resize(image, (8, 8)) / 255.0

    return tf.map_fn(one, batch, fn_output_signature=tf.TensorSpec((None, None, 3), "float32"))


@pytest.fixture(scope="module")
def images():
    return keras.Sequential([keras.Input((8, 8, 3)), K.Flatten(), K.Dense(3, "softmax")])


@pytest.fixture(scope="module")
def words():
    inputs = keras.Input((2,), dtype="int64")
    return keras.Sequential([inputs, K.Embedding(3, 4), K.Flatten(), K.Dense(3, "softmax")])


def test_encoded_images_are_decoded_in_the_file(images, tmp_path):
    expected = images.predict(decoded(tf.constant(FILES)), verbose=0)
    export(images, tmp_path / "plain", preprocessing=decoded, input_signature=TEXTS)
    verify_export(tmp_path / "plain", FILES, expected)
    options = {"preprocessing": decoded, "input_signature": TEXTS, "example": list(FILES)}
    export(images, tmp_path / "tried", **options)
    about = json.loads((tmp_path / "tried" / "metadata.json").read_text())
    assert about["agreement"]["example_inputs"] == 5 and about["agreement"]["probabilities"] < 1e-6
    assert about["signature"]["inputs"]["inputs"] == {"dtype": "string", "shape": [None]}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"example": ["no image"]}, "`preprocessing` must take the `example`"),
        ({"example": np.zeros((2, 8))}, r"`example` must be a batch.*of shape \(2, 8\)"),
        ({"example": np.zeros(2)}, "`example` must be a batch"),
        ({"example": []}, "`example` must be a batch"),
        ({"preprocessing": lambda b: tf.map_fn(tf.io.decode_image, b, tf.uint8)}, "axes are known"),
        ({"preprocessing": lambda b: np.asarray(b)}, "must be made of TensorFlow operations"),
    ],
)
def test_what_is_no_example_is_refused(options, message, tmp_path):
    class Hidden(keras.Model):  # of whose inputs nothing is known
        def call(self, inputs):
            return self.head(inputs)

    model = Hidden()
    model.head = keras.Sequential([K.Flatten(), K.Dense(3, "softmax")])
    model(np.zeros((1, 8, 8, 3)))
    options = {"preprocessing": decoded, "input_signature": TEXTS, **options}
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "m", **options)
    assert not list(tmp_path.iterdir())


class Reader:
    """An object that is called, and holds what it needs."""

    def __init__(self, table):
        self.table = table

    def __call__(self, batch):
        return self.table.lookup(batch) + 1


def table_of(path):
    path.write_text("cat\ndog\n")
    start = tf.lookup.TextFileInitializer(
        str(path),
        *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
        *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
    )
    return tf.lookup.StaticHashTable(start, -1)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("kind", ["closure", "object", "method", "tf.function", "layer", "held"])
def test_tables_of_a_preprocessing_are_in_the_file(kind, words, tmp_path):
    table = table_of(tmp_path / "words.txt")
    layer = K.StringLookup(vocabulary=["cat", "dog"], num_oov_indices=0 if kind == "held" else 1)
    made = {
        "closure": lambda: lambda batch: table.lookup(batch) + 1,
        "object": lambda: Reader(table),
        "method": lambda: Reader(table).__call__,
        "tf.function": lambda: tf.function(lambda batch: table.lookup(batch) + 1),
        "layer": lambda: layer,
        "held": lambda: lambda batch: layer(batch) + 1,
    }[kind]()
    export(
        words,
        tmp_path / "m",
        preprocessing=made,
        input_signature=PAIRS,
    )
    (tmp_path / "words.txt").unlink()
    given = np.array([["cat", "dog"], ["dog", "dog"]])
    expected = words.predict(np.array([[1, 2], [2, 2]]), verbose=0)
    verify_export(tmp_path / "m", given, expected)


def test_a_table_out_of_reach_is_refused_by_name(words, tmp_path):
    unseen = [types.SimpleNamespace(table=table_of(tmp_path / "words.txt"))]
    step = lambda batch: unseen[0].table.lookup(batch) + 1  # noqa: E731
    with pytest.raises(ValueError, match="`preprocessing` must hold its tables"):
        export(words, tmp_path / "m", preprocessing=step, input_signature=PAIRS)
    assert not (tmp_path / "m").exists()


# --- Files of other runtimes --------------------------------------------------------------------


def signature(path):
    file = path / "metadata.json" if path.is_dir() else path.with_name(f"{path.name}.json")
    return json.loads(file.read_text())


EXPORTS = {"m": export, "m.tflite": export_litert, "m.onnx": export_onnx}


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
@pytest.mark.slow_after(2)
@pytest.mark.parametrize("name", EXPORTS)
def test_inputs_in_a_list_keep_their_names(name, tmp_path):
    age, image = keras.Input((2,), name="age"), keras.Input((3,), name="image")
    model = keras.Model([image, age], K.Dense(3, "softmax")(K.concatenate([age, image])))
    EXPORTS[name](model, tmp_path / name)
    assert set(signature(tmp_path / name)["signature"]["inputs"]) == {"age", "image"}
    rng = np.random.default_rng(0)
    x = [rng.random((4, 3), "float32"), rng.random((4, 2), "float32")]
    by_name = {"image": x[0], "age": x[1]}
    expected = model.predict(x, verbose=0)
    verify_export(tmp_path / name, x if name == "m" else by_name, expected)


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
def test_models_in_float64_become_float32(name, tmp_path):
    layers = [K.Dense(8, "relu", dtype="float64"), K.Dense(3, "softmax", dtype="float64")]
    model = keras.Sequential([keras.Input((4,), dtype="float64"), *layers])
    EXPORTS[name](model, tmp_path / name)
    about = signature(tmp_path / name)
    assert about["signature"]["inputs"]["inputs"]["dtype"] == "float32"
    assert about["agreement"]["probabilities"] < 1e-5
    x = np.random.default_rng(0).normal(size=(6, 4))
    verify_export(tmp_path / name, x, model.predict(x, verbose=0))


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", [K.LSTM, K.GRU, K.SimpleRNN], ids=lambda kind: kind.__name__)
def test_recurrent_layers_run_in_litert(kind, tmp_path):
    layer = kind(4)
    model = keras.Sequential([keras.Input((5, 3)), K.Bidirectional(layer), K.Dense(3, "softmax")])
    export_litert(model, tmp_path / "m.tflite")
    x = np.random.default_rng(0).normal(size=(6, 5, 3)).astype("float32")
    verify_export(tmp_path / "m.tflite", x, model.predict(x, verbose=0))
    assert not any(getattr(each, "unroll", False) for each in model._flatten_layers())
    endless = keras.Sequential([keras.Input((None, 3)), layer, K.Dense(3, "softmax")])
    with pytest.raises(ValueError, match=f"(?s)class {kind.__name__}.*time dimension is undefined"):
        export_litert(endless, tmp_path / "n.tflite")


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
def test_random_inputs_lie_in_the_declared_range(tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 3)), K.Flatten(), K.Dense(3, "softmax")])
    declare(model, value_range=(0, 1))
    export_litert(model, tmp_path / "m.tflite")
    assert signature(tmp_path / "m.tflite")["agreement"]["probabilities"] is not None


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
def test_what_cannot_be_made_up_is_said(tmp_path):
    class Few(K.Layer):
        def call(self, inputs):  # numbers of a table of two, to which no random ones belong
            tf.debugging.assert_greater(inputs, 100, "large numbers alone")
            return tf.cast(inputs, "float32") / 200

        def compute_output_spec(self, inputs):
            return keras.KerasTensor(inputs.shape, "float32")

    inputs = keras.Input((3,), dtype="int32")
    model = keras.Sequential([inputs, Few(), K.Dense(3, "softmax")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_onnx(model, tmp_path / "m.onnx")
    assert any("not tried" in str(each.message) for each in caught)
    assert signature(tmp_path / "m.onnx")["agreement"] == {"random_inputs": 0}
    example = np.full((2, 3), 150, "int32")
    export_onnx(model, tmp_path / "n.onnx", example=example)
    assert signature(tmp_path / "n.onnx")["agreement"]["example_inputs"] == 2
    with pytest.raises(ValueError, match="`example` must be what the model takes"):
        export_onnx(model, tmp_path / "o.onnx", example=example - 100)
