"""Gradient features: L1 norms, filters, the loss beside them, columns of rounding, labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers

from tfuq.ood import GradientDensity, GradientFeatures
from tfuq.ood.log_features import log_norms

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 6, 6, 2)).astype("float32")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    body = [layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization()]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
    return of_logits(keras.Sequential([keras.Input((6, 6, 2)), *body, *head]))


def gradients_of(model):
    """Of each example the gradients of all weights, and the loss, by a tape."""
    found = []
    for image in IMAGES:
        with tf.GradientTape() as tape:
            logits = model(image[None], training=False)
            loss = tf.reduce_mean(tf.nn.softplus(-logits))  # against ones
        parts = tape.gradient(loss, [v.value for v in model.trainable_variables])
        found.append(([np.asarray(part, "float64") for part in parts], float(loss)))
    return found


@pytest.mark.parametrize("per_filter", [False, True])
@pytest.mark.parametrize("norm", ["squared_l2", "l1"])
def test_norms_as_a_tape_gives_them(norm, per_filter, network):
    features = GradientFeatures(network, norm=norm, per_filter=per_filter, with_loss=True)
    found = features(IMAGES)
    expected = []
    for parts, loss in gradients_of(network):
        sizes = [part**2 if norm == "squared_l2" else np.abs(part) for part in parts]
        rows = [each.reshape(-1, each.shape[-1]).sum(0) for each in sizes]
        expected.append([*(np.concatenate(rows) if per_filter else map(np.sum, rows)), loss])
    np.testing.assert_allclose(found, np.array(expected), rtol=2e-3, atol=1e-7)
    assert len(features.names) == found.shape[1] and features.names[-1] == "loss"
    assert len(set(features.names)) == len(features.names)


def test_what_is_no_norm_is_refused(network):
    with pytest.raises(ValueError, match="Argument `norm` must be one of"):
        GradientFeatures(network, norm="l2")
    with pytest.raises(ValueError, match="Argument `per_filter` must be True or False"):
        GradientFeatures(network, per_filter=1)


def test_a_label_of_one_class_confounds_nothing(network):
    with pytest.warns(UserWarning, match="ordinary label"):
        GradientFeatures(network, [0, 1, 0])
    binary = of_logits(keras.Sequential([keras.Input((2,)), layers.Dense(1)]))
    with pytest.warns(UserWarning, match="ordinary label"):
        GradientFeatures(binary, "all")(np.ones((2, 2)))


def test_a_gradient_of_rounding_is_no_information():
    """The bias of an attention's keys moves all scores alike: soft-max does not see it."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    pooled = layers.GlobalAveragePooling1D()(attention)
    model = of_logits(keras.Model(inputs, layers.Dense(3)(pooled)))
    features = GradientFeatures(model, batch_size=64)
    x = RNG.normal(size=(120, 5, 8)).astype("float32")
    norms = features(x).astype("float64")
    keys = [i for i, name in enumerate(features.names) if "key/bias" in name]
    assert len(keys) == 1 and np.all(norms[:, keys] < 1e-11 * norms.sum(1, keepdims=True))
    logs = log_norms(norms)
    expected = np.log(norms.sum(1))
    assert np.std(logs[:, keys[0]] - expected) < 1e-3 * np.std(expected)
    others = norms.copy()
    others[:, keys] *= np.exp(RNG.normal(0, 2, (120, 1)))  # as rounding may be elsewhere
    density = GradientDensity().fit_features(norms)
    found, moved = density.score_features(norms), density.score_features(others)
    np.testing.assert_allclose(moved, found, rtol=0.02)
