"""One answer in all runtimes: Keras, TensorFlow, LiteRT, ONNX Runtime and OpenVINO.

The sixth, a browser, is `tests/examples/test_browser_example.py`.
"""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.export import export, export_litert, export_onnx, verify_export
from tfuq.export._runtimes import ONNX, LiteRT, OpenVINO
from tfuq.layers import VBLLDense
from tfuq.predictive import predict_uncertainty
from tfuq.selective import RejectionRule, TemperatureScaling

K = keras.layers


def network(head):
    body = [K.Conv2D(4, 3, activation="relu"), K.MaxPooling2D(), K.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 1)), *body, head])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model with a calibration and a rule, in all formats, and inputs enough for all cases."""
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("runtimes")
    model = network(VBLLDense(3, kl_weight=1e-3, posterior_scale=0.5))
    x = np.random.default_rng(0).normal(size=(10_000, 8, 8, 1)).astype("float32")
    found = predict_uncertainty(model, x[:400], 10, from_logits=True)
    drawn = np.random.default_rng(1).random((400, 1))
    labels = (found.probs.cumsum(-1) < drawn).sum(-1).clip(0, 2)  # as the probabilities say
    calibration = TemperatureScaling().fit(found.probs, labels)
    rule = RejectionRule(
        "confidence",
        float(np.quantile(np.asarray(calibration.transform(found.probs)).max(-1), 0.4)),
    )
    options = {"rule": rule, "calibration": calibration, "num_samples": 10, "from_logits": True}
    export(model, folder / "served", **options)
    export_litert(model, folder / "m.tflite", **options)
    export_onnx(model, folder / "m.onnx", **options)
    return folder, model, calibration, rule, x


def runners(folder):
    loaded = tf.saved_model.load(str(folder / "served"))

    def served(inputs, module=loaded):  # which has to be kept: its weights go with it
        return {name: t.numpy() for name, t in module.serve(inputs["inputs"]).items()}

    files = {"LiteRT": LiteRT(folder / "m.tflite"), "ONNX": ONNX(folder / "m.onnx")}
    return {"TensorFlow": served, **files, "OpenVINO": OpenVINO(folder / "m.onnx")}


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_five_runtimes_give_one_answer(written, count, counts):
    pytest.importorskip("openvino")
    folder, model, calibration, rule, x = written
    raw = predict_uncertainty(model, x[:count], 10, from_logits=True).probs
    probs = np.asarray(calibration.transform(raw))
    told = {name: run({"inputs": x[:count]}) for name, run in runners(folder).items()}
    for name, found in told.items():
        np.testing.assert_allclose(found["probabilities"], probs, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(
            found["accept"].astype(bool), told["TensorFlow"]["accept"], err_msg=name
        )
    # Against Python's own rule only scores within rounding of the threshold may fall otherwise.
    clear = np.abs(probs.max(-1) - rule.threshold) > 1e-5
    accept = rule.accept(probs)
    assert 0 < accept.sum() < count and clear.mean() > 0.99
    np.testing.assert_array_equal(told["OpenVINO"]["accept"].astype(bool)[clear], accept[clear])
    counts("inputs in five runtimes", count)


def test_ai_edge_litert_is_asked_for_by_name(written, monkeypatch):
    folder, model, calibration, _, x = written
    arguments = folder / "m.tflite", x[:50]
    raw = predict_uncertainty(model, x[:50], 10, from_logits=True).probs
    expected = {"probabilities": np.asarray(calibration.transform(raw))}
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)  # importing it fails
    with pytest.raises(ImportError, match=r"tfuq\[litert\]"):
        verify_export(*arguments, expected, runtime="ai-edge-litert")
    monkeypatch.undo()
    pytest.importorskip("ai_edge_litert")
    found = verify_export(*arguments, expected, runtime="ai-edge-litert")
    assert found.examples == 50
    with pytest.raises(ValueError, match="`x` must be a batch"):
        verify_export(folder / "m.tflite", x[:50, :4], expected, runtime="ai-edge-litert")
    with pytest.raises(ValueError, match="`runtime`"):
        verify_export(folder / "m.onnx", x[:50], expected, runtime="ai-edge-litert")


def test_openvino_is_asked_for_by_name(written):
    pytest.importorskip("openvino")
    folder, model, calibration, _, x = written
    expected = np.asarray(
        calibration(predict_uncertainty(model, x[:50], 10, from_logits=True).probs)
    )
    found = verify_export(folder / "m.onnx", x[:50], expected, runtime="openvino")
    assert found.differences["probabilities"] < 1e-5
    for name, runtime in (("m.tflite", "openvino"), ("served", "openvino"), ("m.onnx", "tensorrt")):
        with pytest.raises(ValueError, match="Argument `runtime` must be"):
            verify_export(folder / name, x[:50], expected, runtime=runtime)


# --- What a person does wrong, in each runtime --------------------------------------------------

WRONG = {
    "another shape": lambda x: x[:, :4],
    "no channel": lambda x: x[..., 0],
    "another name": lambda x: {"images": x},
    "two inputs": lambda x: {"inputs": x, "more": x},
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("runtime", ["served", "m.tflite", "m.onnx", "openvino"])
def test_what_a_model_does_not_take_is_refused_by_each_runtime(written, runtime, mistake, counts):
    folder, _, _, _, x = written
    if runtime == "openvino":
        pytest.importorskip("openvino")
    name = "m.onnx" if runtime == "openvino" else runtime
    options = {"runtime": "openvino"} if runtime == "openvino" else {}
    with pytest.raises(ValueError, match="Argument `x` must be a batch as the exported model"):
        verify_export(folder / name, WRONG[mistake](x[:5]), np.ones((5, 3)) / 3, **options)
    counts("misuse rows, refused")


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
def test_no_number_is_accepted_by_no_runtime(written, counts):
    pytest.importorskip("openvino")
    folder, _, _, _, x = written
    broken = x[:4].copy()
    broken[0, 0, 0], broken[1, 3, 3], broken[2] = np.nan, np.inf, -np.inf
    for name, run in runners(folder).items():
        if name == "OpenVINO":  # which would accept them
            with pytest.raises(ValueError, match="must be finite for OpenVINO"):
                run({"inputs": broken})
            continue
        found = run({"inputs": broken})
        assert not found["accept"][:3].any(), name
        assert np.isnan(found["probabilities"][:3]).all(), name
        assert np.isfinite(found["probabilities"][3]).all(), name
        counts("misuse rows, right")
