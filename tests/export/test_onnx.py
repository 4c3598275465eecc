"""ONNX files say what Python says, where tf2onnx is installed."""

import importlib.util
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from formats import assert_agrees, each_kind

from tfuq.export import export_onnx, verify_export
from tfuq.layers import VBLLDense
from tfuq.predictive import predict_uncertainty

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
QUICK = ("plain_with_everything", "fully_bayesian", "heteroscedastic")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tf2onnx", "onnx", "onnxruntime"))),
    reason='tf2onnx is not installed: pip install "tfuq[onnx]"',
)
# tf2onnx's and onnx's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def classifier(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


@needs_onnx
@pytest.mark.parametrize("kind", each_kind(QUICK))
def test_agrees_with_python(kind, tmp_path):
    from tfuq.export._runtimes import ONNX

    case = kind(tmp_path)
    export_onnx(case.model, tmp_path / "model.onnx", **case.options)
    assert_agrees(case, kind, ONNX(tmp_path / "model.onnx"))


@pytest.mark.slow_cases("13")
@needs_onnx
@pytest.mark.parametrize("opset", [13, 18])
def test_file_is_verified(opset, tmp_path):
    model = classifier(VBLLDense(3, kl_weight=0.01))
    export_onnx(model, tmp_path / "model.onnx", num_samples=5, opset=opset)
    content = json.loads((tmp_path / "model.onnx.json").read_text())
    assert (content["kind"], content["opset"]) == ("onnx", opset)
    assert {"tfuq", "tensorflow", "keras", "tf2onnx", "onnx"} <= content["versions"].keys()
    expected = predict_uncertainty(model, X, 5, from_logits=True)
    verify_export(tmp_path / "model.onnx", X, expected)


class Gamma(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.lgamma(inputs)


class Fourier(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.abs(tf.signal.fft(tf.cast(inputs, "complex64")))


class Lottery(keras.layers.Layer):
    def call(self, inputs):
        return inputs * tf.random.stateless_uniform(tf.shape(inputs), [1, 2])


@needs_onnx
@pytest.mark.parametrize("layer", [Gamma, Fourier, Lottery])
def test_operation_that_is_not_converted_is_named(layer, tmp_path):
    model = classifier(layer(name="odd"), keras.layers.Dense(3))
    with pytest.raises(ValueError, match=f"layer 'odd' of class {layer.__name__}"):
        export_onnx(model, tmp_path / "model.onnx", from_logits=True)
    assert not list(tmp_path.iterdir())


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ImportError, match=r'pip install "tfuq\[onnx\]"'):
        export_onnx(classifier(keras.layers.Dense(3)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"opset": 12}, "Argument `opset`"),
        ({"predictive": "fresh_samples"}, "must not be 'fresh_samples'.*ONNX"),
        ({"overwrite": 1}, "Argument `overwrite`"),
    ],
)
def test_arguments_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(classifier(keras.layers.Dense(3)), tmp_path / "model.onnx", **options)
