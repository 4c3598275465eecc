"""Calls that Keras or a layer compiles with XLA are part of the graph in every format."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from tfuq import export
from tfuq.layers import Conv2DVariational
from tfuq.predictive import predict_uncertainty

FORMATS = {"export_litert": ".tflite"}
if all(map(importlib.util.find_spec, ("tf2onnx", "onnx", "onnxruntime"))):
    FORMATS["export_onnx"] = ".onnx"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
RNG = np.random.default_rng(0)


class Compiled(kl.Layer):
    """A layer that compiles its own call."""

    def call(self, inputs):
        return tf.function(lambda x: tf.tanh(x) * 2, jit_compile=True, autograph=False)(inputs)


VOLUMES = {"data_format": "channels_first", "strides": (1, 2, 1), "padding": "same"}
BODIES = {
    "groups": ((5, 5, 4), kl.Conv2D(6, 3, groups=2)),
    "groups in 1D": ((6, 4), kl.Conv1D(4, 3, groups=4)),
    "volumes, channels first": ((2, 3, 4, 5), kl.Conv3D(3, 2, **VOLUMES)),
    "a layer's own": ((4,), Compiled()),
    "draws of groups": ((5, 5, 4), Conv2DVariational(4, 3, groups=2, kl_weight=0.1)),
}


@pytest.mark.slow_product
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("body", BODIES)
def test_exported(body, name, tmp_path):
    shape, layer = BODIES[body]
    again = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), again, kl.Flatten(), kl.Dense(3, "softmax")])
    x, path = RNG.normal(size=(3, *shape)).astype("float32"), tmp_path / f"model{FORMATS[name]}"
    options = {"num_samples": 3} if "draws" in body else {}
    getattr(export, name)(model, path, **options)
    export.verify_export(path, x, predict_uncertainty(model, x, **options))


# --- How exactly ------------------------------------------------------------------------------


@pytest.mark.slow
def test_tolerance_follows_the_precision(tmp_path):
    """A network of float16 differed from its own export by more than 1e-5, and was refused."""
    layers = [kl.Dense(8, "tanh", dtype="mixed_float16"), kl.Dense(3, "softmax", dtype="float32")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    x, path = RNG.normal(size=(20, 4)).astype("float32"), tmp_path / "model.tflite"
    export.export_litert(model, path)
    found = export.verify_export(path, x, {"probs": model.predict(x, verbose=0)})
    assert 1e-5 < found.differences["probabilities"] < 5e-3
    with pytest.raises(ValueError, match=r"follows from the model's precision, float16"):
        export.verify_export(path, x, model.predict(x, verbose=0), tolerance=1e-6)


def test_one_name_for_probabilities():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, "softmax")])
    found = predict_uncertainty(model, np.ones((2, 4)))
    assert found.probabilities is found.probs
