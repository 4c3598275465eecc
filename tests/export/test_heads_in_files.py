"""Heads of VBLL's kin in files say what Python says, also of inputs that are far away."""

import keras
import numpy as np
import pytest
from architectures import of_logits

from tfuq.export import export, export_litert, export_onnx, verify_export
from tfuq.layers import VBLLDense, VBLLGenerativeDense
from tfuq.predictive import predict_uncertainty

RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
X = (RNG.normal(size=(60, 5)) + 2 * np.eye(3, 5)[Y]).astype("float32")
FORMATS = {"saved_model": export, "litert": export_litert, "onnx": export_onnx}
HEADS = {
    "generative": lambda: VBLLGenerativeDense(3, kl_weight=1 / 60, use_bias=True),
    "student_t": lambda: VBLLDense(3, kl_weight=1 / 60, noise="student_t"),
    "student_t, dense": lambda: VBLLDense(
        3, kl_weight=1 / 60, noise="student_t", posterior="dense"
    ),
}
# Of what is traced anew.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow_cases("litert-*student*", "onnx*", "saved_model*")
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kind", FORMATS)
def test_draws_are_those_of_python(kind, name, tmp_path):
    """Logits of the generative head are millions at 1,000: files differed by 2e-4 there."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    keras.utils.set_random_seed(0)
    model = of_logits(keras.Sequential([keras.Input((5,)), HEADS[name]()]))
    model.compile(keras.optimizers.Adam(0.03), model.loss, jit_compile=False)
    model.fit(X, Y, epochs=5, verbose=0)
    FORMATS[kind](model, tmp_path / "model", num_samples=5, from_logits=True)
    for scale, shift in ((1, 0), (100, 0), (1, 1000), (1000, 0)):
        x = scale * X + np.float32(shift)
        expected = predict_uncertainty(model, x, 5, from_logits=True)
        # Logits of thousands, of which float32 has three digits behind the point.
        tolerance = 1e-5 if scale + shift == 1 or name == "generative" else 1e-4
        found = verify_export(tmp_path / "model", x, expected, tolerance=tolerance)
        assert found.examples == 60 and "mutual_information" in found.differences


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_densities_beyond_float32_are_unknown(kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    model = of_logits(keras.Sequential([keras.Input((5,)), HEADS["generative"]()]))
    FORMATS[kind](model, tmp_path / "model", num_samples=2, from_logits=True)
    x = np.concatenate([1e20 * X[:4], X[:4]])
    expected = predict_uncertainty(model, x, 2, from_logits=True)
    assert np.isnan(expected.probs[:4]).all() and (expected.label[:4] == -1).all()
    assert np.isfinite(expected.probs[4:]).all()
    verify_export(tmp_path / "model", x, expected)
