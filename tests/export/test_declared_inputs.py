"""Exports of a model of which names and inputs are declared: in the metadata, and looked at."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import cli
from tfuq.ensembles import DeepEnsemble
from tfuq.export import export, export_litert
from tfuq.export.verification import read_metadata
from tfuq.ood import Energy
from tfuq.predictive import declare
from tfuq.selective import RejectionRule

X = np.random.default_rng(0).random((6, 4, 4, 3), "float32")
NAMES = ["cat", "dog", "emu"]


def network():
    head = keras.layers.Dense(3, "softmax")
    return keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), head])


@pytest.fixture(scope="module")
def model():
    made = network()
    declare(made, class_names=NAMES, value_range=(0, 1))
    return made


def test_an_export_is_scored_with_what_its_metadata_declare(model, tmp_path, capfd):
    export(model, tmp_path / "m")
    for name, images, code in (("x", X, 0), ("y", 255 * X, 2)):
        np.savez(tmp_path / f"{name}.npz", x=images)
        files = [str(tmp_path / part) for part in ("m", f"{name}.npz", f"{name}.csv")]
        assert cli.main(["predict", *files, "--quiet", "--trust"]) == code
    assert "must hold images from 0 to 1" in capfd.readouterr().err


def test_metadata_hold_what_is_declared(model, tmp_path):
    rule = RejectionRule("confidence", 0.1)
    export(model, tmp_path / "m", rule=rule)
    about = read_metadata(tmp_path / "m")
    assert about["class_names"] == NAMES
    assert about["inputs"] == {
        "value_range": [0.0, 1.0],
        "size": [4, 4],
        "channels": "rgb",
        "resize": "bilinear",
        "bounds": [-0.001, 1.001],
        "takes_integers": False,
    }
    export(network(), tmp_path / "n", rule=rule)
    about = read_metadata(tmp_path / "n")
    assert about["class_names"] is about["inputs"] is None
    # Of raw inputs, which the preprocessing takes, nothing is declared.
    steps = keras.layers.Rescaling(1 / 255)
    export(model, tmp_path / "p", rule=rule, preprocessing=steps)
    assert read_metadata(tmp_path / "p")["inputs"] is None
    served = tf.saved_model.load(str(tmp_path / "p"))
    assert served.serve(255 * X)["accept"].numpy().all()
    assert not served.serve(2 * 255 * X + 255)["accept"].numpy().any()


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
@pytest.mark.parametrize("kind", ["saved_model", "litert"])
def test_images_of_another_range_are_not_accepted(model, tmp_path, kind):
    rule = RejectionRule("confidence", 0.1)
    if kind == "saved_model":
        export(model, tmp_path / "m", rule=rule)
        loaded = tf.saved_model.load(str(tmp_path / "m"))
        serve = loaded.serve
    else:
        export_litert(model, tmp_path / "m.tflite", rule=rule)
        assert json.loads((tmp_path / "m.tflite.json").read_text())["class_names"] == NAMES
        runner = tf.lite.Interpreter(str(tmp_path / "m.tflite")).get_signature_runner()
        (name,) = runner.get_input_details()

        def serve(x):
            return runner(**{name: np.asarray(x, "float32")})

    found = serve(X)
    assert np.all(found["accept"]) and np.all(np.isfinite(found["probabilities"]))
    mixed = X.copy()
    mixed[2] *= 255
    mixed[4, 0, 0, 0] = -0.5
    found = serve(mixed)
    is_known = np.isin(np.arange(6), (0, 1, 3, 5))
    np.testing.assert_array_equal(found["accept"], is_known)
    np.testing.assert_array_equal(np.isfinite(found["probabilities"]).all(-1), is_known)
    expected = model.predict(X, verbose=0)[is_known]
    np.testing.assert_allclose(np.asarray(found["probabilities"])[is_known], expected, atol=1e-5)


def test_members_and_the_rule_agree(model, tmp_path):
    other = network()
    declare(other, class_names=NAMES[::-1], value_range=(0, 1))
    with pytest.raises(ValueError, match="the same everywhere"):
        export(DeepEnsemble.from_models([model, other]), tmp_path / "m")
    declare(other, class_names=NAMES, value_range=(0, 255))
    with pytest.raises(ValueError, match="the same declared inputs"):
        export(DeepEnsemble.from_models([model, other]), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_first_request_decides_nothing(tmp_path):
    """What numbers mean is part of the export: small ones first, or large ones, are the same."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.set_weights([np.array([[1.0], [1.0]]), np.zeros(1)])
    rng = np.random.default_rng(0)
    small, large = rng.random((8, 2)) / 2, 5 * rng.normal(size=(8, 2))  # as probabilities, as none
    detector = Energy(from_logits=True).fit(model, large.astype("float32"))
    export(model, tmp_path / "m", from_logits=True, ood=detector)
    answers = []
    for first in (small, large):
        serve = tf.saved_model.load(tmp_path / "m").signatures["serving_default"]
        serve(tf.constant(first, "float32"))
        rows = np.concatenate([small, large]).astype("float32")
        answers.append({name: each.numpy() for name, each in serve(tf.constant(rows)).items()})
    for name, each in answers[0].items():
        np.testing.assert_array_equal(each, answers[1][name], err_msg=name)
    both = np.concatenate([small, large]).astype("float32")
    np.testing.assert_allclose(answers[0]["ood_score"], detector.score(both), rtol=1e-5)
