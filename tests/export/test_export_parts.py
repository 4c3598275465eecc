"""What is inside an export: fresh noise, one pass through the prefix, fixed batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq._random.cut import cut
from tfuq.export import export, verify_export
from tfuq.export._inputs import Inputs
from tfuq.export._networks import network
from tfuq.export._operations import operations
from tfuq.export._request import Request
from tfuq.export._samples import AT_ONCE
from tfuq.layers import (
    Conv2DVariational,
    DenseVariational,
    MCDropout,
    MCSoftmaxDenseFA,
    VBLLDense,
)
from tfuq.predictive import predict_uncertainty

KL = {"kl_weight": 0.01, "posterior_scale": 0.5}
X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
SPEC = tf.TensorSpec((None, 4), "float32")


def trunk():
    return keras.layers.Dense(6, activation="relu", name="trunk")


def classifier(*head):
    return keras.Sequential([keras.Input((4,)), trunk(), *(head or (keras.layers.Dense(3),))])


def served(model, folder, **options):
    export(model, folder / "served", **options)
    return tf.saved_model.load(str(folder / "served"))


# --- Noise ------------------------------------------------------------------------------------


def test_prefix_is_computed_once():
    model = classifier(VBLLDense(3, **KL))
    request = Request([model], num_samples=5, inputs=Inputs(spec=SPEC, inner=SPEC))
    predict = network(request, model, tf.Variable)
    whole = tf.function(predict, input_signature=[SPEC], autograph=False).get_concrete_function()
    kinds = [kind for kind, _ in operations(whole)]
    # Of the trunk, of the mean and variance of the head, and of the weights of all draws.
    assert kinds.count("MatMul") == 4
    assert "While" not in kinds and "StatelessWhile" not in kinds


@pytest.mark.parametrize("at_once", [AT_ONCE, 0])
@pytest.mark.parametrize("baked_bytes", [2**28, 0])
def test_every_way_to_draw_gives_the_same_samples(at_once, baked_bytes, monkeypatch):
    monkeypatch.setattr("tfuq.export._samples.AT_ONCE", at_once)
    monkeypatch.setattr("tfuq.export._samples.BAKED_BYTES", baked_bytes)
    model = classifier(DenseVariational(5, **KL), MCDropout(0.5), DenseVariational(3, **KL))
    held = []
    request = Request([model], num_samples=5, seed=3, inputs=Inputs(spec=SPEC, inner=SPEC))
    predict = network(request, model, lambda array: held.append(array) or tf.Variable(array))
    logits, _ = tf.function(predict, autograph=False)(tf.constant(X))
    assert bool(held) == bool(baked_bytes)
    probs = tf.reduce_mean(tf.nn.softmax(logits), 0)
    expected = predict_uncertainty(model, X, 5, from_logits=True, seed=3).probs
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-6)


def test_convolutions_of_all_draws_of_few_examples_are_at_once(monkeypatch):
    body = [Conv2DVariational(4, 3, activation="relu", **KL), keras.layers.MaxPooling2D()]
    body += [Conv2DVariational(5, 2, padding="same", **KL), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 2)), *body, DenseVariational(3, **KL)])

    def whole(examples):
        spec = tf.TensorSpec((examples, 8, 8, 2), "float32")
        request = Request([model], num_samples=4, seed=3, inputs=Inputs(spec=spec, inner=spec))
        predict = network(request, model, tf.Variable)
        traced = tf.function(predict, input_signature=[spec], autograph=False)
        return traced.get_concrete_function()

    few, many, any_number = whole(16), whole(17), whole(None)
    kinds = {kind for kind, _ in operations(few)}
    assert not kinds & {"While", "StatelessWhile", "If", "StatelessIf", "Conv2D"}
    assert "Conv2D" in {kind for kind, _ in operations(many)}
    x = tf.constant(np.random.default_rng(0).normal(size=(17, 8, 8, 2)), "float32")
    expected = many(x)[0]
    np.testing.assert_allclose(few(x[1:])[0], expected[:, 1:], rtol=0, atol=2e-6)
    np.testing.assert_allclose(any_number(x)[0], expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(any_number(x[:3])[0], expected[:, :3], rtol=0, atol=2e-6)
    monkeypatch.setattr("tfuq.export._samples.AT_ONCE", 0)
    assert "Conv2D" in {kind for kind, _ in operations(whole(16))}


def test_cut_parts_make_the_whole():
    parts = cut(lambda batch, seed: (batch * tf.cast(seed[0], "float32"), [batch + 1]), SPEC)

    @tf.function
    def whole(batch, seed):
        frontier, beside = parts.prefix(batch)
        return parts.rest(*frontier, *parts.noise(seed)), beside[0]

    product, following = whole(X, tf.constant([3, 4]))
    np.testing.assert_array_equal(product, 3 * X)
    np.testing.assert_array_equal(following, X + 1)


@pytest.mark.slow
def test_fresh_samples_differ_from_call_to_call(tmp_path):
    model = classifier(VBLLDense(3, **KL))
    loaded = served(model, tmp_path, predictive="fresh_samples", num_samples=200)
    first, second = (loaded.serve(X)["probabilities"].numpy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-4
    # The counter of the first call starts at 0, where that of `predict_uncertainty` does.
    expected = predict_uncertainty(model, X, 200, from_logits=True)
    np.testing.assert_allclose(first, expected.probs, rtol=0, atol=1e-5)
    # A correct sampler fails this 1 time in 1e9: 6 standard errors of a mean of 200.
    assert np.all(np.abs(second - expected.probs) < 6 * np.sqrt(2 / 200) * expected.std + 1e-6)


@pytest.mark.slow
def test_fresh_noise_of_a_heteroscedastic_head(tmp_path):
    model = classifier(MCSoftmaxDenseFA(3, num_factors=2, test_mc_samples=10))
    loaded = served(model, tmp_path, predictive="fresh_samples")
    first, second = (loaded.serve(X)["probabilities"].numpy() for _ in range(2))
    assert 1e-5 < np.abs(first - second).max() < 0.5


@pytest.mark.slow
def test_layers_that_resample_have_fixed_noise(tmp_path):
    head = MCSoftmaxDenseFA(3, num_factors=2, resample=True, logits_only=True)
    body = DenseVariational(6, resample=True, activation="tanh", **KL)
    model = keras.Sequential([keras.Input((4,)), body, head])
    loaded = served(model, tmp_path, num_samples=3)
    first, second = (loaded.serve(X)["probabilities"].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert body.resample and head.resample and head._test_points.fresh  # the model is as it was


# --- The rest ---------------------------------------------------------------------------------


def test_batch_of_one_size(tmp_path):
    model = classifier(VBLLDense(3, **KL))
    loaded = served(model, tmp_path, batch_size=8, num_samples=3)
    info = loaded.signatures["serving_default"].structured_input_signature[1]["inputs"]
    assert info.shape == (8, 4)
    expected = predict_uncertainty(model, X[:8], 3, from_logits=True)
    found = verify_export(tmp_path / "served", X[:8], expected)
    assert found.examples == 8
    assert set(found.differences) == {
        *("probabilities", "label", "confidence"),
        *("predictive_entropy", "expected_entropy", "mutual_information"),
    }
    with pytest.raises(ValueError, match=r"Argument `x` must.*\(8, 4\)"):
        verify_export(tmp_path / "served", X[:5], expected)


def test_preprocessing_that_is_a_function_and_a_model(tmp_path):
    raw = keras.Input((2, 2), name="raw")
    flat = keras.Model(raw, keras.layers.Flatten()(raw))
    model = classifier(keras.layers.Dense(3, activation="softmax"))
    steps = [flat, tf.math.tanh]
    export(model, tmp_path / "served", preprocessing=steps)
    expected = model.predict(np.tanh(X), verbose=0)
    verify_export(tmp_path / "served", X.reshape(-1, 2, 2), expected)
