"""Posteriors of generated images, against plain NumPy, SciPy and what they were made to be."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from test_api import refused

from tfuq.preprocessing import evaluate_synthetic

RNG = np.random.default_rng(0)
MIXING = RNG.dirichlet(np.ones(3), size=50)
PROBS = RNG.dirichlet(np.ones(3), size=50) * 0.3 + MIXING * 0.7


def same(x):
    return x


def test_a_model_that_follows_the_ratio():
    found = evaluate_synthetic(same, MIXING, MIXING, batch_size=7)
    np.testing.assert_allclose(found.estimates, [MIXING.mean(0)], atol=1e-6)
    np.testing.assert_allclose(found.correlation, np.ones((1, 3)), atol=1e-6)
    np.testing.assert_allclose(found.deviation, [0], atol=1e-6)
    np.testing.assert_allclose(found.kl_divergence, np.zeros((1, 50)), atol=1e-6)
    np.testing.assert_allclose(found.bin_estimates[0], found.bin_mixing, atol=1e-6)
    np.testing.assert_array_equal(found.counts.sum(axis=1), 3 * [50])


def test_agrees_with_scipy():
    found = evaluate_synthetic([same, lambda x: x[:, ::-1]], PROBS, MIXING, n_bins=4)
    for i, probs in enumerate((PROBS, PROBS[:, ::-1])):
        np.testing.assert_allclose(found.estimates[i], probs.mean(0), atol=1e-6)
        np.testing.assert_allclose(found.deviation[i], np.abs(probs - MIXING).mean(), atol=1e-6)
        divergence = stats.entropy(MIXING, probs, axis=1)
        np.testing.assert_allclose(found.kl_divergence[i], divergence, atol=1e-5)
        for c in range(3):
            correlation = stats.pearsonr(probs[:, c], MIXING[:, c]).statistic
            np.testing.assert_allclose(found.correlation[i, c], correlation, atol=1e-5)
            means = stats.binned_statistic(MIXING[:, c], probs[:, c], "mean", 4, (0, 1))
            np.testing.assert_allclose(found.bin_estimates[i, c], means.statistic, atol=1e-6)


def test_two_classes_of_keras_models_and_datasets():
    """Logits, probabilities, one column or two, arrays or batches: the same answer."""
    x, share = RNG.normal(size=(20, 1)).astype("float32"), RNG.random(20)
    one = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, activation="sigmoid")])
    logits = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    logits.set_weights(one.get_weights())
    found = evaluate_synthetic(one, x, share)
    again = evaluate_synthetic([logits], x, np.stack([1 - share, share], -1), from_logits=True)
    data = tf.data.Dataset.from_tensor_slices((x, share)).batch(8)
    batches = evaluate_synthetic(one, data)
    for other in (again, batches):
        for field, expected in zip(other, found, strict=True):
            np.testing.assert_allclose(field, expected, atol=1e-5)
    np.testing.assert_allclose(found.estimates[0, 1], one(x).numpy().mean(), atol=1e-6)


def test_certainty_and_constant_ratios():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = evaluate_synthetic(same, certain, np.array([1.0, 1.0]))
    assert np.isnan(found.correlation).all()  # the ratio never changes
    assert np.isfinite(found.kl_divergence).all() and found.kl_divergence[0, 0] > 80
    assert found.kl_divergence[0, 1] == 0
    assert np.isnan(found.bin_mixing[0, 5]) and found.counts[1, -1] == 2


def test_tables():
    found = evaluate_synthetic([same, lambda x: x[:, ::-1]], PROBS, MIXING, n_bins=2)
    lines = found.to_markdown().splitlines()
    heads = [line.split("|")[1].strip() for line in lines]
    assert heads == ["", "---", "mixing", "model 0", "model 1", "mean", "std"]
    assert f"{PROBS.mean(0)[1]:.4f}" in lines[3] and len({line.count("|") for line in lines}) == 1
    assert "std" not in evaluate_synthetic(same, PROBS, MIXING).to_markdown()
    ratio = found.to_markdown("ratio").splitlines()
    assert len(ratio) == 2 + np.count_nonzero(found.counts)
    assert f"{found.bin_mixing[2, 1]:.4f}" in ratio[-1]
    refused("table", found.to_markdown, "classes")


@pytest.mark.parametrize(
    "argument, model, images, mixing",
    [
        ("model", [], MIXING, MIXING),
        ("model", "resnet", MIXING, MIXING),
        ("model", lambda x: 2 * x, MIXING, MIXING),
        ("model", lambda x: np.nan * x, MIXING, MIXING),
        ("model", lambda x: np.zeros((len(x), 2, 2)), MIXING, MIXING),
        ("model", lambda x: 0.5, MIXING, MIXING),
        ("mixing", same, MIXING, None),
        ("mixing", same, MIXING, MIXING[:, :2]),
        ("mixing", same, MIXING, MIXING[:, 0]),
        ("mixing", same, MIXING, 2 * MIXING),
        ("images", same, MIXING, MIXING[:4]),
        ("images", same, MIXING[:0], MIXING[:0]),
    ],
)
def test_bad_input(argument, model, images, mixing):
    refused(argument, evaluate_synthetic, model, images, mixing)


def test_bad_options():
    refused("n_bins", evaluate_synthetic, same, MIXING, MIXING, n_bins=0)
    refused("batch_size", evaluate_synthetic, same, MIXING, MIXING, batch_size=0)
