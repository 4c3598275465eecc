"""The misuse table of the server, and of files that commands share: right, or refused by name.

The server's functions are called without a process; `tests/serving` sends the same over sockets.
"""

import json
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from entry_points import copy_of
from models import CLASSES, IMAGES, made

from tfuq import cli, selective
from tfuq.export import export
from tfuq.layers import NormalDense
from tfuq.predictive import declare, predict_uncertainty
from tfuq.selective import RejectionRule, TemperatureScaling
from tfuq.serving import answers as answering
from tfuq.serving import command, reading
from tfuq.serving.service import input_spec

SCRIPTS = Path(__file__).parents[2] / "examples" / "serving"
sys.path.insert(0, str(SCRIPTS))
try:
    import malformed
finally:
    sys.path.remove(str(SCRIPTS))

FLOATS = np.linspace(0, 1, 16, dtype="float32").reshape(4, 4, 1)
BYTES = (255 * FLOATS).astype("uint8")
DECLARED = reading.InputSpec(
    (4, 4, 1),
    np.dtype("float32"),
    (0.0, 1.0),
    value_range=(0.0, 1.0),
    bounds=(-0.001, 1.001),
)
TO_255 = DECLARED._replace(
    pixel_range=(0.0, 255.0),
    value_range=(0.0, 255.0),
    bounds=(-0.255, 255.255),
    takes_integers=True,
)
UNKNOWN = reading.InputSpec((4, 4, 1), np.dtype("float32"))
NPY, PNG, JSON = "application/x-npy", "image/png", "application/json"


def instances(*arrays):
    return json.dumps({"instances": [array.tolist() for array in arrays]}).encode()


def png(pixels):
    return malformed.image_file(pixels, "PNG")


# What a person sends: the kind, the body, what the model takes, the word of the refusal.
SENT = {
    "bytes to a model of 0 to 1": (NPY, malformed.npy_file(BYTES), DECLARED, "wrong_range"),
    "floats to 255 to a model of 0 to 1": (
        *(NPY, malformed.npy_file(255 * FLOATS)),
        *(DECLARED, "wrong_range"),
    ),
    "floats to 255 as JSON": (JSON, instances(255 * FLOATS), DECLARED, "wrong_range"),
    "one of two in another range": (JSON, instances(FLOATS, 9 * FLOATS), DECLARED, "wrong_range"),
    "standardized images": (NPY, malformed.npy_file(4 * FLOATS - 2), DECLARED, "wrong_range"),
    "twice the range": (NPY, malformed.npy_file(510 * FLOATS), TO_255, "wrong_range"),
    "NaN": (NPY, malformed.npy_file(FLOATS * np.nan), DECLARED, "not_finite"),
    "infinity": (NPY, malformed.npy_file(FLOATS + np.inf), DECLARED, "not_finite"),
    "channels first": (NPY, malformed.npy_file(FLOATS.reshape(1, 4, 4)), DECLARED, "wrong_shape"),
    "a batch of one": (NPY, malformed.npy_file(FLOATS[None]), DECLARED, "wrong_shape"),
    "no channel": (NPY, malformed.npy_file(FLOATS[..., 0]), DECLARED, "wrong_shape"),
    "other pixels": (NPY, malformed.npy_file(FLOATS[:2]), DECLARED, "wrong_shape"),
    "texts": (NPY, malformed.npy_file(FLOATS.astype("U8")), DECLARED, "wrong_dtype"),
    "an image of a model whose range nobody says": (
        *(PNG, png(BYTES[..., 0])),
        *(UNKNOWN, "unsupported_media_type"),
    ),
    "an array as an image": (PNG, malformed.npy_file(FLOATS), DECLARED, "not_an_image"),
}


@pytest.mark.parametrize("mistake", SENT)
def test_refused_by_the_server(mistake, counts):
    kind, body, spec, word = SENT[mistake]
    with pytest.raises(reading.Refused) as raised:
        reading.read(kind, body, spec)
    assert raised.value.error == word
    counts("misuse rows, refused")


@pytest.mark.parametrize(
    "kind, body, spec, expected",
    [
        (NPY, malformed.npy_file(FLOATS), DECLARED, FLOATS),
        (JSON, instances(FLOATS), DECLARED, FLOATS),
        (PNG, png(BYTES[..., 0]), DECLARED, BYTES / np.float32(255)),
        (PNG, png(BYTES[..., 0]), TO_255, BYTES),
        (NPY, malformed.npy_file(BYTES), TO_255, BYTES),
        (NPY, malformed.npy_file(FLOATS.astype(">f8")), DECLARED, FLOATS),
    ],
)
def test_taken_by_the_server(kind, body, spec, expected, counts):
    (found,), _ = reading.read(kind, body, spec)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())
    counts("misuse rows, right")


def started(inputs=None, names=None, **options):
    metadata = {"inputs": inputs, "class_names": names}
    model = types.SimpleNamespace(
        metadata=metadata,
        shape=(4, 4, 1),
        dtype=np.dtype("float32"),
        num_classes=3,
        of_numbers=False,
    )
    given = {"pixel_range": None, "class_names": None, "max_pixels": 99, "max_batch": 9}
    given["max_decoded"] = 2**20
    return model, types.SimpleNamespace(**{**given, **options})


RANGE = {"value_range": [0.0, 1.0], "bounds": [-0.001, 1.001], "takes_integers": False}


@pytest.mark.parametrize(
    "call, given, says",
    [
        (input_spec, started(RANGE, pixel_range=[0.0, 255.0]), "--pixel-range"),
        (command.class_names, started(names=["a", "b", "c"], class_names="c,b,a"), "--class-names"),
        (command.class_names, started(class_names="a,b"), "names"),
        (command.class_names, started(class_names="a,b,c,d"), "names"),
    ],
)
def test_refused_when_the_server_starts(call, given, says, counts):
    with pytest.raises(ValueError, match=says):
        call(*given)
    counts("misuse rows, refused")


def test_the_server_takes_the_range_from_the_metadata(counts):
    spec = input_spec(*started(RANGE))
    assert spec.value_range == spec.pixel_range == (0.0, 1.0)
    assert (list(spec.bounds), spec.takes_integers) == (RANGE["bounds"], False)
    counts("misuse rows, right")


# --- Files that the commands take ----------------------------------------------------------------


def predictions(count):
    """Probabilities of 200 examples, and labels drawn from them."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([1] * count, 200)
    return probs, np.array([rng.choice(count, p=row) for row in probs])


def classes_of(count):
    return RejectionRule.fit(*predictions(count), target_coverage=0.9)


FILES = {
    "a rule of two classes": ("--rule", lambda: classes_of(2), "classes|axes"),
    "a rule of five classes": ("--rule", lambda: classes_of(5), "classes"),
    "a rule of other names": (
        "--rule",
        lambda: RejectionRule("confidence", 0.5, class_names=["x", "y", "z"]),
        "class.names",
    ),
    "a rule of pixels": ("--rule", lambda: RejectionRule("confidence", 0.5, rank=4), "axes|shape"),
    "a calibration as a rule": (
        "--rule",
        lambda: TemperatureScaling().fit(*predictions(3)),
        "rule|class",
    ),
    "a rule as a calibration": ("--calibration", lambda: classes_of(3), "calibration|class"),
    "a calibration of five classes": (
        "--calibration",
        lambda: selective.VectorScaling().fit(*predictions(5)),
        "axes|classes|shape|length",
    ),
}


# `predict` takes no calibration: rules carry theirs.
ROWS = [
    (mistake, command)
    for mistake in FILES
    for command in ("evaluate", "predict", "export")
    if command != "predict" or FILES[mistake][0] == "--rule"
]


@pytest.mark.every_case
@pytest.mark.parametrize("mistake, command", ROWS)
def test_refused_by_the_commands(mistake, command, tmp_path, counts):
    option, make, says = FILES[mistake]
    model = copy_of(made("soft-max"))
    declare(model, class_names=["a", "b", "c"])
    model.save(tmp_path / "m.keras")
    make().save(tmp_path / "file.json")
    np.savez(tmp_path / "d.npz", x=IMAGES, y=CLASSES)
    said = [tmp_path / "m.keras"]
    said += [] if command == "export" else [tmp_path / "d.npz"]
    said += {"evaluate": [], "predict": [tmp_path / "o.csv"], "export": [tmp_path / "s.tflite"]}[
        command
    ]
    said += [option, tmp_path / "file.json", "--quiet", "--debug"]
    with pytest.raises(ValueError, match=f"(?i){says}"):
        cli.main([command, *map(str, said)])
    assert not (tmp_path / "o.csv").exists() and not (tmp_path / "s.tflite").exists()
    counts("misuse rows, refused")


# --- A regression behind the server --------------------------------------------------------------


def test_the_server_answers_a_regression(tmp_path, counts):
    """Its decision is that of the export; a row that is unknown is referred, without numbers."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), NormalDense(1)])
    images = np.random.default_rng(0).random((9, 4, 4, 1)).astype("float32")
    found = predict_uncertainty(model, images)
    rule = selective.RegressionRule("std", float(np.median(found.std)))
    export(model, tmp_path / "served", rule=rule)
    options = command.checked(model=tmp_path / "served")
    served, decision = command.load(options)
    answers = answering.answers(served.predict([*images, images[0] * np.nan]), decision)
    assert [a["accept"] for a in answers[:9]] == rule.accept(found)[:, 0].tolist()
    np.testing.assert_allclose([a["mean"] for a in answers[:9]], found.mean[:, 0], rtol=1e-5)
    assert all(a["lower"] < a["mean"] < a["upper"] for a in answers[:9])
    assert "std" in answers[0]["reasons"][0] and "threshold" in answers[0]["reasons"][0]
    assert not answers[9]["accept"] and answers[9]["mean"] is answers[9]["upper"] is None
    json.dumps(answers, allow_nan=False)
    counts("misuse rows, right")
    options.class_names = "a,b"
    with pytest.raises(ValueError, match="class-names"):
        command.load(options)
    export(model, tmp_path / "undecided")
    options.model, options.class_names = tmp_path / "undecided", None
    with pytest.raises(ValueError, match="makes no decisions"):
        command.load(options)
    counts("misuse rows, refused", 2)
