"""Tests of the one home of probabilities: arrays, graphs, exports; float32 and float64."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from tfuq._predictions import probabilities as home

PROBS = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 5))
PROBS[0, 0] = [1, 0, 0, 0]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 1e-6)])
def test_entropy_is_scipys_for_arrays_and_in_graphs(dtype, tolerance):
    probs, expected = PROBS.astype(dtype), scipy.stats.entropy(PROBS, axis=-1)
    for function in (home.entropy, tf.function(home.entropy)):
        found = np.asarray(function(probs))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_entropy_of_binary_predictions_is_that_of_two_classes():
    p = PROBS[..., 0]
    found = home.entropy(p, is_binary=True)
    np.testing.assert_allclose(found, home.entropy(home.both_classes(p)), atol=1e-15)


@pytest.mark.parametrize("epsilon", [1e-7, 1e-10, 1e-3])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_certain_prediction_has_entropy_0_whatever_keras_epsilon(epsilon, dtype):
    before = keras.config.epsilon()
    keras.config.set_epsilon(epsilon)
    try:
        certain = np.array([[1, 0, 0]], dtype)
        assert np.asarray(home.entropy(certain)) == 0
        assert np.all(np.asarray(home.entropy(certain, is_binary=True)) == 0)
        assert np.asarray(home.entropy_of_logits(np.array([[0, -np.inf]], dtype))) == 0
    finally:
        keras.config.set_epsilon(before)


def test_entropy_counts_what_the_tolerance_lets_through_as_0_and_1():
    assert np.asarray(home.entropy(np.array([1.004, -0.004]))) == 0
    assert np.isnan(home.entropy(np.array([np.nan, 0.5])))


def test_the_gradient_of_entropy_is_finite_at_0():
    probs = tf.constant([1.0, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(probs)
        value = home.entropy(probs)
    assert np.isfinite(tape.gradient(value, probs)).all()


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 1e-6)])
def test_the_link_is_scipys(dtype, tolerance):
    logits = np.random.default_rng(1).normal(size=(6, 3), scale=5).astype(dtype)
    for is_binary, expected in (
        (True, scipy.special.expit(logits)),
        (False, scipy.special.softmax(logits, -1)),
    ):
        found = np.asarray(home.probabilities(logits, True, is_binary))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=tolerance)
        assert home.probabilities(logits, False, is_binary) is logits
    np.testing.assert_allclose(
        home.entropy_of_logits(logits),
        scipy.stats.entropy(scipy.special.softmax(logits.astype("float64"), -1), axis=-1),
        atol=10 * tolerance,
    )


def test_is_binary():
    assert home.is_binary((8, 1), False) and home.is_binary((8, 3), True)
    assert not home.is_binary((8, 3), False)


def test_the_check_takes_what_a_model_in_bfloat16_gives():
    home.check_probabilities("probs", np.array([[0.604, 0.4], [1.004, -0.004]]), False)
    home.check_probabilities("probs", np.array([[0.9, 0.9]]), True)


@pytest.mark.parametrize(
    "row, message",
    [
        ([0.9, 0.9, 0.05], r"that sum to 1 over.*probs=\[0.9  0.9  0.05\] \(1 such\)"),
        ([np.nan, 0.5, 0.5], r"`probs` must hold probabilities in \[0, 1\]"),
        ([2.0, -1.0, 0.0], r"`probs` must hold probabilities in \[0, 1\]"),
    ],
)
def test_the_check_refuses_with_the_row_that_it_found(row, message):
    with pytest.raises(ValueError, match=message):
        home.check_probabilities("probs", np.array([[0.2, 0.3, 0.5], row]), False)
