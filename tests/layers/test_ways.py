"""Layers that are asked to predict in another way than they were made for."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.layers import (
    DenseVariational,
    MCDropout,
    MCSigmoidDenseFA,
    MCSigmoidDenseXL,
    MCSoftmaxDenseFA,
    MCSoftmaxDenseXL,
    VBLLDense,
)
from tfuq.layers.ways import knows, predicting, resamples, wanted_way

X = tf.constant(np.random.default_rng(0).normal(size=(9, 4)), "float32")


def moments(layer):
    """Mean and variance of the logits at X, by TFP."""
    given = layer.logit_distribution(X)
    return given.mean(), given.variance()


@pytest.mark.parametrize(
    "layer",
    [
        VBLLDense(3, kl_weight=0.1, posterior_scale=0.5, noise="none", logits_only=False),
        MCSoftmaxDenseFA(3, num_factors=0),
        MCSoftmaxDenseFA(3, num_factors=2, resample=True),
        MCSigmoidDenseFA(3, num_factors=2, parameter_efficient=True),
        MCSoftmaxDenseXL(3, num_factors=2),
        MCSigmoidDenseXL(3, num_factors=0, temperature=1.0),
    ],
)
def test_probit_is_the_closed_form(layer):
    before = layer(X).logits
    mean, variance = moments(layer)
    with predicting("probit"):
        first, second = layer(X).logits, layer(X).logits
    expected = mean / np.sqrt(1 + np.pi / 8 * variance)
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first, second)
    assert np.abs(before - first).max() > 1e-3
    assert knows(layer, "probit") and wanted_way() is None


def test_means_are_without_noise():
    head = VBLLDense(3, kl_weight=0.1, posterior_scale=0.5)
    dropout = MCDropout(0.5, seed=0, predictive="thinned")
    head(X)
    with predicting("mean"):
        np.testing.assert_allclose(head(X), X @ head.kernel + head.bias, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(dropout(X), X)
        assert np.any(dropout(X, training=True) != X)
    assert np.any(dropout(X) != X)


def test_fresh_samples_are_of_heads_with_noise():
    head = MCSoftmaxDenseFA(3, num_factors=2, test_mc_samples=4, logits_only=True)
    fixed = head(X)
    with predicting("fresh_samples"):
        assert np.abs(head(X) - head(X)).max() > 0
    np.testing.assert_array_equal(head(X), fixed)


def differs(layer):
    """Whether not all of 10 calls are the same: masks of 4 units are 1 time in 16^9 = 7e10."""
    return bool(np.ptp([layer(X) for _ in range(10)], axis=0).any())


@pytest.mark.slow_product
@pytest.mark.parametrize("way", ["fixed_samples", "probit", "mean"])
@pytest.mark.parametrize(
    "layer",
    [
        MCDropout(0.5, resample=True),
        DenseVariational(3, kl_weight=0.1, resample=True),
        MCSoftmaxDenseFA(3, num_factors=2, resample=True, logits_only=True),
        VBLLDense(3, kl_weight=0.1, posterior_scale=0.5, resample=True),
    ],
)
def test_a_way_fixes_noise(layer, way):
    assert differs(layer) and resamples(layer)
    with predicting(way):
        np.testing.assert_array_equal(layer(X), layer(X))
    assert layer.resample and differs(layer)


def test_other_threads_predict_as_before():
    layer, answers = VBLLDense(3, kl_weight=0.1, posterior_scale=0.5), []
    expected = layer(X)
    thread = threading.Thread(target=lambda: answers.append(layer(X)))
    with predicting("mean"):
        assert np.any(layer(X) != expected)
        thread.start()
        thread.join()
    np.testing.assert_array_equal(answers[0], expected)


def test_a_layer_that_knows_no_way_stays():
    layer = keras.layers.Dense(3)
    expected = layer(X)
    with predicting("probit"):
        np.testing.assert_array_equal(layer(X), expected)
    assert not knows(layer, "probit")
