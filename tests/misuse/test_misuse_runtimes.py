"""The misuse table of runtimes: what a person feeds an export, right or refused in each.

The browser, the sixth, is in `tests/examples/test_browser_example.py`.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from PIL import Image

from tfuq.cli import main
from tfuq.export import export, export_litert, export_onnx
from tfuq.export._runtimes import ONNX, LiteRT, OpenVINO
from tfuq.predictive import declare, predict_uncertainty
from tfuq.selective import RejectionRule

pytestmark = pytest.mark.filterwarnings(
    "ignore:\\s*Warning. tf.lite.Interpreter:UserWarning", "ignore::DeprecationWarning"
)
NAMES = ["cat", "dog", "emu"]
X = np.random.default_rng(0).random((6, 8, 8, 3)).astype("float32")
RULE = RejectionRule("confidence", 0.01, class_names=NAMES)  # which accepts all that is known
RUNTIMES = ("Keras", "TensorFlow", "signature", "LiteRT", "ONNX Runtime", "OpenVINO")
REFUSED, UNKNOWN, RIGHT, NONE = "refused", "unknown", "right", "no answers"


def network(**declared):
    """One that takes images of any size, as nothing in it would fail."""
    keras.utils.set_random_seed(0)
    body = [kl.Conv2D(4, 3, activation="relu"), kl.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *body, kl.Dense(3, "softmax")])
    declare(model, class_names=NAMES, value_range=(0, 1), **declared)
    return model


@pytest.fixture(scope="module")
def runners(tmp_path_factory):
    """Functions of arrays by the name of the runtime, made when they are asked for."""
    folder, model, known = tmp_path_factory.mktemp("runtimes"), network(), {}

    def keras_model():
        def run(x):
            found = predict_uncertainty(model, x)
            return {"probabilities": found.probs, "accept": RULE.accept(found.probs)}

        return run

    def saved_model(name):
        path = folder / "served"
        if not path.exists():
            export(model, path, rule=RULE)
        loaded = tf.saved_model.load(str(path))
        called = {"TensorFlow": lambda x: loaded.serve(x)}
        called["signature"] = lambda x: loaded.signatures["serving_default"](tf.constant(x))
        return called[name]

    def file(kind, name, write):
        path = folder / name
        if not path.exists():
            write(model, path, rule=RULE)
        runtime = kind(path)
        return lambda x: runtime({"inputs": x})

    makers = {
        "Keras": keras_model,
        "TensorFlow": lambda: saved_model("TensorFlow"),
        "signature": lambda: saved_model("signature"),
        "LiteRT": lambda: file(LiteRT, "m.tflite", export_litert),
        "ONNX Runtime": lambda: file(ONNX, "m.onnx", export_onnx),
        "OpenVINO": lambda: file(OpenVINO, "m.onnx", export_onnx),
    }

    def get(name):
        if name == "OpenVINO":
            pytest.importorskip("openvino")
        if name not in known:
            known[name] = makers[name]()
        return known[name]

    return get, model


def outcome(run, given, expected):
    """What a runtime does: refuses, says that nothing is known, is right, or has no answers."""
    try:
        found = run(given)
    except Exception as error:  # each runtime has its own
        assert str(error), type(error)
        return REFUSED
    probs, accept = np.asarray(found["probabilities"]), np.asarray(found["accept"]).astype(bool)
    if not len(probs):
        return NONE
    if np.isnan(probs).all() and not accept.any():
        return UNKNOWN
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    assert accept.all()
    return RIGHT


def channels(count):
    return lambda x: np.concatenate([x, 1 - x], axis=-1)[..., :count]


# What a person gives, and what may come of it, never an answer to something else.
SHAPES = (REFUSED, UNKNOWN)
MISTAKES = {
    "bytes of 0 to 255": (lambda x: np.round(255 * x).astype("uint8"), (REFUSED, UNKNOWN)),
    "floats of 0 to 255": (lambda x: 255 * x, (REFUSED, UNKNOWN)),
    "from -1 to 1": (lambda x: 2 * x - 1, (REFUSED, UNKNOWN)),
    "half of the height": (lambda x: x[:, :4], SHAPES),
    "twice the size": (lambda x: x.repeat(2, 1).repeat(2, 2), SHAPES),
    "one channel": (channels(1), SHAPES),
    "four channels": (channels(4), SHAPES),
    "six channels": (channels(6), SHAPES),  # a convolution in two groups, to LiteRT
    "channels first": (lambda x: np.moveaxis(x, -1, 1), SHAPES),
    "no batch": (lambda x: x[0], SHAPES),
    "NaN": (lambda x: x * np.float32("nan"), (REFUSED, UNKNOWN)),
    "infinity": (lambda x: x + np.float32("inf"), (REFUSED, UNKNOWN)),
    "float64": (lambda x: x.astype("float64"), (REFUSED, RIGHT)),
    "texts of numbers": (lambda x: x.astype("U12"), (REFUSED, RIGHT)),
    "texts": (lambda x: np.full(x.shape, "cat"), (REFUSED,)),
    "a batch of none": (lambda x: x[:0], (REFUSED, NONE)),
    "nothing wrong": (lambda x: x, (RIGHT,)),
}


@pytest.mark.every_case
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", RUNTIMES)
def test_right_or_refused_by_each_runtime(name, mistake, runners, counts):
    get, model = runners
    wrong, allowed = MISTAKES[mistake]
    expected = model.predict(X, verbose=0)
    found = outcome(get(name), wrong(X), expected)
    assert found in allowed
    counts("misuse rows, right" if found == RIGHT else "misuse rows, refused")


def test_integers_of_the_range_are_no_images(runners, counts):
    """0 and 1 as integers may be masks, or what is left of pixels: refused, or as floats."""
    get, model = runners
    whole = (X > 0.5).astype("int64")
    expected = model.predict(whole.astype("float32"), verbose=0)
    for name in RUNTIMES:
        assert outcome(get(name), whole, expected) in (REFUSED, RIGHT), name
        counts("misuse rows, refused")


@pytest.mark.every_case
@pytest.mark.parametrize(
    "write, names",
    [
        (export, ["m.onnx", "m.tflite", "m.keras", "m.H5", "m.pb"]),
        (export_onnx, ["m.tflite", "m.keras", "m.json", "m.xml"]),
        (export_litert, ["m.onnx", "m.keras", "m.zip", "m.md"]),
    ],
)
def test_a_file_is_not_called_what_it_is_not(write, names, tmp_path, counts):
    """Programs tell files by their endings: a folder `m.onnx` is none of ONNX Runtime."""
    model = network()
    for name in names:
        with pytest.raises(ValueError, match="`path` must be the name"):
            write(model, tmp_path / name)
        counts("misuse rows, refused")
    assert not list(tmp_path.iterdir())


def test_one_example_of_a_batch_spoils_no_other(runners, counts):
    """Where one is not known the others have their answers, in each runtime, XLA's too."""
    get, model = runners
    mixed = X.copy()
    mixed[2, 0, 0, 0], mixed[4] = np.nan, 255 * X[4]
    good = [0, 1, 3, 5]
    expected = model.predict(X, verbose=0)
    runs = {name: get(name) for name in RUNTIMES[1:5]}
    runs["XLA"] = tf.function(runs["TensorFlow"], jit_compile=True)
    for name, run in runs.items():
        given = tf.constant(mixed) if name == "XLA" else mixed
        found = {key: np.asarray(value) for key, value in run(given).items()}
        assert found["accept"].astype(bool).tolist() == [k in good for k in range(6)], name
        assert np.isnan(found["probabilities"][[2, 4]]).all(), name
        np.testing.assert_allclose(found["probabilities"][good], expected[good], atol=1e-5)
        counts("misuse rows, right")


def test_openvino_without_us_accepts_nothing_unknown(tmp_path, counts):
    """By OpenVINO's own call, which takes NaN and computes in bfloat16 where it can."""
    openvino = pytest.importorskip("openvino")
    export_onnx(network(), tmp_path / "m.onnx", rule=RULE)
    run = openvino.Core().compile_model(str(tmp_path / "m.onnx"), "CPU")
    one = X.copy()
    one[:, 0, 0, 0] = np.nan
    wrong = [one, X * np.float32("nan"), X - np.float32("inf"), 255 * X]
    (port,) = [port for port in run.outputs if port.get_any_name() == "accept"]
    assert run(X)[port].astype(bool).all()
    for given in wrong:
        assert not run(given)[port].any()
        counts("misuse rows, refused")


@pytest.mark.parametrize("form", ["served", "m.tflite", "m.onnx"])
def test_colours_come_in_the_order_that_is_declared(form, tmp_path, capfd, counts):
    """An array does not say its order; a picture does, and is turned for the model."""
    model = network(channels="bgr")
    path, folder = tmp_path / form, tmp_path / "new"
    folder.mkdir()
    pixels = np.round(255 * X[0]).astype("uint8")
    Image.fromarray(pixels).save(folder / "a.png")
    write = {"served": export, "m.tflite": export_litert, "m.onnx": export_onnx}[form]
    write(model, path, rule=RULE)
    given = [str(path), str(folder), str(tmp_path / "o.jsonl"), "--quiet"]
    assert main(["predict", *given, *(["--trust"] if form == "served" else [])]) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    right, other = (
        model.predict((p / np.float32(255))[None], verbose=0)[0]
        for p in (pixels[..., ::-1], pixels)
    )
    np.testing.assert_allclose(row["probabilities"], right, atol=1e-5)
    assert np.abs(right - other).max() > 1e-3
    counts("misuse rows, right")
