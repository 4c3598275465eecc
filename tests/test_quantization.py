"""`model.quantize` with our layers: it runs, and what is said, saved and served agrees."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import layers
from tfuq.export import export
from tfuq.predictive import predict_uncertainty

KL = {"kl_weight": 0.01}
X = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
HEADS = {
    "VBLLDense": lambda: layers.VBLLDense(3, **KL),
    "DenseVariational": lambda: layers.DenseVariational(3, **KL),
    "SparseBayesDense": lambda: layers.SparseBayesDense(3, **KL),
    "MCSoftmaxDenseFA": lambda: layers.MCSoftmaxDenseFA(3, num_factors=2, logits_only=True),
    "MCSigmoidDenseFA": lambda: layers.MCSigmoidDenseFA(3, num_factors=2, logits_only=True),
    "MCDropout": lambda: keras.Sequential([layers.MCDropout(0.3), keras.layers.Dense(3)]),
    "NormalDense": lambda: layers.NormalDense(1),
    "QuantileDense": lambda: layers.QuantileDense(1, levels=[0.05, 0.5, 0.95]),
    "VBLLRegression": lambda: layers.VBLLRegression(1, **KL),
}
NUMBERS = ("NormalDense", "QuantileDense", "VBLLRegression")
SAMPLED = ("VBLLDense", "DenseVariational", "MCDropout")
QUICK = ("VBLLDense", "NormalDense")
CASES = [
    pytest.param(head, mode, marks=() if head in QUICK and mode == "int8" else pytest.mark.slow)
    for head in HEADS
    for mode in ("int8", "int4", "float8")
]


def said(model, head):
    options = {} if head in NUMBERS else {"from_logits": True}
    if head == "MCSigmoidDenseFA":
        options["multi_label"] = True
    found = predict_uncertainty(model, X, 20, **options)
    return (found.mean, found.std) if head in NUMBERS else (found.probs, found.predictive_entropy)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize(("head", "mode"), CASES)
def test_runs_and_is_saved(head, mode, tmp_path):
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")
    model = keras.Sequential([keras.Input((8,)), hidden, HEADS[head]()])
    before = said(model, head)
    with pytest.warns(UserWarning, match="does not have a `quantize` method"):  # Keras names ours
        model.quantize(mode)
    assert model.get_layer("hidden").quantization_mode == mode
    after = said(model, head)
    scale = max(1, np.abs(before[0]).max())
    gap = np.abs(after[0] - before[0]).max() / scale
    assert 0 < gap < (0.05 if mode == "int8" else 0.5)
    model.save(tmp_path / "model.keras")
    again = said(keras.models.load_model(tmp_path / "model.keras"), head)
    for one, other in zip(after, again, strict=True):
        np.testing.assert_array_equal(one, other)
    options = {} if head in NUMBERS else {"from_logits": True}
    if head == "MCSigmoidDenseFA":
        options["multi_label"] = True
    export(model, tmp_path / "served", num_samples=20 if head in SAMPLED else None, **options)
    served = tf.saved_model.load(str(tmp_path / "served"))
    name = "mean" if head in NUMBERS else "probabilities"
    np.testing.assert_allclose(served.serve(X)[name], after[0], atol=1e-5 * scale)
