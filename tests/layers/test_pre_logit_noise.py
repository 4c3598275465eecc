"""MCSoftmaxDenseXL and MCSigmoidDenseXL: values, gradients, moments, weights and errors.

The oracle draws the noise of each feature by itself, adds it to the features and takes the mean of
the link over all samples, in float64.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq._math import point_blocks
from tfuq.layers import MCSigmoidDenseXL, MCSoftmaxDenseFA, MCSoftmaxDenseXL

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
HEADS = {"softmax": MCSoftmaxDenseXL, "sigmoid": MCSigmoidDenseXL}
LINKS = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}
FEW = {"train_mc_samples": 38, "test_mc_samples": 38}


def moved(link, *args, deviation=0.5, **kwargs):
    """A head whose weights are not those it is made with."""
    layer = HEADS[link](4, *args, **{**FEW, **kwargs})
    layer(X)
    rng = np.random.default_rng(1)
    for weight in layer.trainable_variables:
        weight.assign_add(deviation * rng.normal(size=weight.shape))
    return layer


def probabilities(link, layer, features):
    """p_k of each sample, `(samples, rows, units)`, float64, as the paper writes it down."""
    weights = {w.name: tf.cast(tf.convert_to_tensor(w), "float64") for w in layer.weights}

    def affine(name):
        return features @ weights[f"{name}_kernel"] + weights[f"{name}_bias"]

    features = tf.cast(features, "float64")
    normals = tf.cast(layer._test_points(None), "float64")
    if layer.sampling != "iid":
        normals = tf.concat([normals, -normals], axis=0)
    z, e = normals[:, : layer.num_factors], normals[:, layer.num_factors :]
    noise = (tf.nn.softplus(affine("scale")) + 1e-3) * e[:, None]
    if layer.num_factors and layer.parameter_efficient:
        noise += affine("gain") * tf.matmul(z, weights["factor_loadings"])[:, None]
    elif layer.num_factors:
        factor = tf.reshape(affine("factor"), (-1, features.shape[-1], layer.num_factors))
        noise += tf.einsum("bdr,sr->sbd", factor, z)
    logits = (features + noise) @ weights["loc_kernel"] + weights["loc_bias"]
    return LINKS[link](logits / tf.cast(layer.current_temperature(), "float64"))


def value_and_gradients(function, layer):
    with tf.GradientTape() as tape:
        values = function()
        weights = np.random.default_rng(2).normal(size=values.shape)
        loss = tf.reduce_sum(values * tf.cast(weights, values.dtype))
    return values, tape.gradient(loss, layer.trainable_variables)


OPTIONS = {
    "shared factors": {"num_factors": 2},
    "own factors": {"num_factors": 2, "parameter_efficient": False, "sampling": "iid"},
    "diagonal": {"num_factors": 0, "temperature": 1.7},
    "shared, independent": {"num_factors": 3, "sampling": "iid", "tune_temperature": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("link", HEADS)
def test_values_and_gradients_are_those_of_noisy_features(link, options):
    layer = moved(link, compute_pred_variance=True, **options)
    expected, expected_gradients = value_and_gradients(
        lambda: tf.math.log(tf.reduce_mean(probabilities(link, layer, X), axis=0)), layer
    )
    found, gradients = value_and_gradients(lambda: layer(X).log_probs, layer)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want) + 1e-6
    variance = tf.math.reduce_variance(probabilities(link, layer, X), axis=0)
    np.testing.assert_allclose(layer(X).predictive_variance, variance, rtol=1e-3, atol=1e-6)


@pytest.mark.slow_cases("True-*")
@pytest.mark.parametrize("link", HEADS)
@pytest.mark.parametrize("deviation", [0.5, 40.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_and_slices_change_nothing(link, deviation, compiled, monkeypatch):
    """Noise in range of float32 and far beyond it; the kernel in parts; a block filled up."""
    layer = moved(link, 2, deviation=deviation, dtype="float64")

    def found():
        @tf.function(jit_compile=compiled)
        def run():
            return value_and_gradients(lambda: layer(X).logits, layer)

        return run()

    whole, whole_gradients = found()
    monkeypatch.setattr(point_blocks, "BLOCK", 1)
    monkeypatch.setattr(point_blocks, "LARGEST_PRODUCT", 7)
    monkeypatch.setattr(point_blocks.ProjectedBlocks, "largest", 5 * 30)
    monkeypatch.setattr(point_blocks.ProjectedBlocks, "small", 0)
    assert len(point_blocks.parts(*layer.loc_kernel.shape)) == 3
    parts, gradients = found()
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-9)
    for got, want in zip(gradients, whole_gradients, strict=True):
        assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want) + 1e-9


@pytest.mark.parametrize("factors", [0, 2])
@pytest.mark.parametrize("efficient", [False, True])
def test_moments_are_those_of_noisy_features(factors, efficient):
    layer = moved("softmax", factors, parameter_efficient=efficient)
    kernel = layer.loc_kernel.numpy()
    of_features = layer.feature_distribution(X)
    np.testing.assert_allclose(of_features.mean(), X, rtol=1e-6)
    covariance = layer.covariance(X)
    expected = np.einsum("dk,bde,el->bkl", kernel, of_features.covariance(), kernel)
    np.testing.assert_allclose(covariance, expected, rtol=1e-3, atol=1e-4)
    of_logits = layer.logit_distribution(X)
    np.testing.assert_allclose(of_logits.covariance(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(of_logits.mean(), X @ kernel + layer.loc_bias, rtol=1e-4, atol=1e-5)
    assert layer.covariance(X[:, None]).shape == (6, 1, 4, 4)


def test_weights_are_few_where_classes_are_many():
    """At most a fourteenth of HET's beside `Dense`: 29,593 classes of 1,024, by 16."""
    classes, features, factors = 1850, 64, 3

    def extra(head, **options):
        found = head(classes, factors, parameter_efficient=True, **options)
        found.build((None, features))
        return found.count_params() - (features + 1) * classes

    few = {"train_mc_samples": 2, "test_mc_samples": 2}
    own, theirs = extra(MCSoftmaxDenseXL, **few), extra(MCSoftmaxDenseFA, **few)
    assert own == 2 * features * (features + 1) + factors * features + 1
    assert own <= theirs / 14


def test_a_learned_temperature_moves():
    model = keras.Sequential([keras.Input((5,)), MCSoftmaxDenseXL(3, 2, logits_only=True, **FEW)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, jit_compile=False)
    head = model.layers[0]
    assert float(head.current_temperature()) == pytest.approx(1.0)
    model.fit(X, np.arange(6) % 3, epochs=5, verbose=0)
    assert abs(float(head.current_temperature()) - 1) > 1e-3


def test_errors_name_what_was_received():
    with pytest.raises(ValueError, match=r"`MCSigmoidDenseXL\(1\)`.*Received: units=1"):
        MCSoftmaxDenseXL(1, 2)
    assert MCSigmoidDenseXL(1, 2).units == 1
    for wrong in (0, 2.5, "3", True, None):
        for head in HEADS.values():
            with pytest.raises(ValueError, match=f"`units` must.*Received: units={wrong!r}"):
                head(wrong, 2)
    layer = MCSoftmaxDenseXL(7, 2, **FEW)
    with pytest.raises(ValueError, match="units=7 with 5 features"):
        layer.logit_distribution(X)
    assert layer.covariance(X).shape == (6, 7, 7)
