"""Grad-CAM where places are tokens, as in vision transformers, and heads that are convolutions."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers

from tfuq.interpret import grad_cam

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 12, 12, 3)).astype("float32")
RAW = {"relu": False, "upsample": False}


def transformer(has_class_token, activation=None, grid=(4, 4)):
    """Two blocks on tokens of patches, the embedding of which is a convolution."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 12, 3))
    strides = (12 // grid[0], 12 // grid[1])
    maps = layers.Conv2D(8, strides, strides, name="patches")(inputs)
    x = layers.Reshape((grid[0] * grid[1], 8), name="embedded")(maps)
    if has_class_token:
        x = layers.ZeroPadding1D((1, 0), name="class_token")(x)
    for i in range(2):
        normal = layers.LayerNormalization(name=f"before_{i}")(x)
        x = layers.Add()(
            [x, layers.MultiHeadAttention(2, 4, name=f"attention_{i}")(normal, normal)]
        )
        normal = layers.LayerNormalization(name=f"between_{i}")(x)
        x = layers.Add(name=f"block_{i}")([x, layers.Dense(8, "gelu", name=f"mlp_{i}")(normal)])
    x = layers.LayerNormalization(name="norm")(x)
    if has_class_token:
        x = layers.Reshape((8,))(layers.Cropping1D((0, grid[0] * grid[1]))(x))
    else:
        x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation, name="head")(x))
    return of_logits(model) if activation is None else model


def by_tape(model, images, last):
    """The map of class 1 at what the attention of the last block takes, or at the last layer."""
    part = {name: model.get_layer(name) for name in ("before_1", "attention_1", "between_1")}
    part |= {name: model.get_layer(name) for name in ("mlp_1", "norm", "head")}
    x = keras.Model(model.inputs[0], model.get_layer("block_0").output)(images)
    with tf.GradientTape() as tape:
        tokens = part["before_1"](x)
        tape.watch(tokens)
        x = x + part["attention_1"](tokens, tokens)
        x = x + part["mlp_1"](part["between_1"](x))
        normal = part["norm"](x)
        tape.watch(normal)
        pooled = normal[:, 0] if last == "before_1" else tf.reduce_mean(normal, 1)
        score = tf.linalg.matvec(pooled, part["head"].kernel.value[:, 1])
        kept = tokens if last == "before_1" else normal
    gradients = tape.gradient(score, kept)
    places = [np.asarray(each)[:, -16:].reshape(-1, 4, 4, 8) for each in (kept, gradients)]
    return np.einsum("bhwc,bc->bhw", places[0], places[1].mean((1, 2)))


@pytest.mark.slow_product
@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("has_class_token, last", [(True, "before_1"), (False, "norm")])
def test_tokens_of_the_last_block_are_places(has_class_token, last, activation):
    """Not the patch embedding; and of probabilities the score before the soft-max."""
    model = transformer(has_class_token, activation)
    found = grad_cam(model, IMAGES, 1, **RAW)
    np.testing.assert_allclose(found, by_tape(model, IMAGES, last), rtol=1e-3, atol=1e-6)
    named = grad_cam(model, IMAGES, 1, last, **RAW)
    np.testing.assert_array_equal(found, named)
    assert grad_cam(model, IMAGES, 1).shape == (3, 12, 12)


@pytest.mark.slow
def test_a_grid_that_is_no_square_is_that_of_the_patches():
    model = transformer(True, grid=(3, 4))
    assert grad_cam(model, IMAGES, 1, **RAW).shape == (3, 3, 4)


def test_tokens_that_are_no_grid_are_told():
    inputs = keras.Input((12, 12, 3))
    maps = layers.Conv2D(8, 3, 3, name="patches")(inputs)
    x = layers.ZeroPadding1D((4, 0))(layers.Reshape((16, 8))(maps))  # four registers
    x = layers.MultiHeadAttention(2, 4)(x, x)
    model = of_logits(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))))
    with warnings.catch_warnings(record=True) as told:  # Keras' own among them
        warnings.simplefilter("always")
        grad_cam(model, IMAGES, 1)
    assert any("not a grid of places" in str(each.message) for each in told)
    with pytest.raises(ValueError, match="tokens"):
        grad_cam(model, IMAGES, 1, "multi_head_attention")


@pytest.mark.slow
def test_rows_of_a_recurrent_network_are_no_places():
    inputs = keras.Input((12, 12, 3))
    maps = layers.Conv2D(4, 3, name="maps")(inputs)
    rows = layers.LSTM(5, return_sequences=True)(layers.Reshape((25, 16))(maps))
    model = of_logits(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(rows))))
    np.testing.assert_array_equal(
        grad_cam(model, IMAGES, 1, **RAW), grad_cam(model, IMAGES, 1, "maps", **RAW)
    )


def test_a_soft_max_behind_a_convolution_is_explained_by_its_score():
    """Certain predictions have no gradient behind the soft-max, and a map before it."""
    body = [layers.Conv2D(4, 3, activation="relu", name="body")]
    head = [layers.Conv2D(3, 1, name="last"), layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((12, 12, 3)), *body, *head, layers.Softmax()])
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel * 500, bias])
    found = grad_cam(model, IMAGES, 1, "body", **RAW)
    plain = of_logits(keras.Model(model.inputs[0], model.layers[-2].output))
    np.testing.assert_allclose(found, grad_cam(plain, IMAGES, 1, "body", **RAW), rtol=1e-4)
    assert np.all(np.abs(found).max((1, 2)) > 0.1)
