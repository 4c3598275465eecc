"""Guided backpropagation against the rule of the paper, written out for a small network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers
from test_api import refused

from tfuq._random.draws import one_draw
from tfuq.interpret import grad_cam, guided_backpropagation, guided_grad_cam
from tfuq.layers import MCDropout

IMAGES = np.random.default_rng(0).normal(size=(4, 10, 10, 2)).astype("float32")


@tf.custom_gradient
def guided_relu(x):
    def backward(gradient):
        passes = tf.cast(x > 0, x.dtype) * tf.cast(gradient > 0, x.dtype)
        return passes * gradient

    return tf.nn.relu(x), backward


@tf.custom_gradient
def guided_relu6(x):
    def backward(gradient):
        passes = tf.cast((x > 0) & (x < 6), x.dtype) * tf.cast(gradient > 0, x.dtype)
        return passes * gradient

    return tf.nn.relu6(x), backward


def expected(weights, classes=(0, 1, 2), relu=guided_relu):
    """Of conv, relu, conv, relu, flatten, dense: what comes back to the images."""
    first, bias, second, bias2, kernel, bias3 = (tf.constant(w) for w in weights)
    images = tf.constant(IMAGES)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        x = relu(tf.nn.conv2d(images, first, 1, "VALID") + bias)
        x = relu(tf.nn.conv2d(x, second, 1, "VALID") + bias2)
        logits = tf.reshape(x, (len(IMAGES), -1)) @ kernel + bias3
        scores = [logits[:, c] for c in classes]
    return np.stack([tape.gradient(score, images).numpy() for score in scores], axis=1)


class WithFunctions(keras.Model):
    def __init__(self, relu):
        super().__init__()
        self.relu = relu
        self.convs = [layers.Conv2D(3, 3), layers.Conv2D(4, 3)]
        self.dense = layers.Dense(3)

    def call(self, inputs):
        for conv in self.convs:
            inputs = self.relu(conv(inputs))
        return self.dense(keras.ops.reshape(inputs, (-1, 6 * 6 * 4)))


def nested():
    """One ReLU is an argument, in a nested model; the other one is a layer."""
    inner = [layers.Conv2D(3, 3, activation="relu"), layers.Conv2D(4, 3), layers.ReLU()]
    inner = keras.Sequential([keras.Input((10, 10, 2)), *inner])
    inputs = keras.Input((10, 10, 2))
    return of_logits(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inner(inputs)))))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "model, relu",
    [
        (nested, guided_relu),
        (lambda: WithFunctions(keras.ops.relu), guided_relu),
        (lambda: WithFunctions(keras.activations.relu6), guided_relu6),
    ],
    ids=["nested", "functions", "relu6"],
)
def test_rule_of_the_paper(model, relu):
    model = model()
    model(IMAGES)
    weights = [np.float32(3 * w) for w in model.get_weights()]  # some reach 6
    model.set_weights(weights)
    wanted = expected(weights, relu=relu)
    found = guided_backpropagation(model, IMAGES, [0, 1, 2], from_logits=True, batch_size=3)
    assert found.dtype == "float32" and np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with tf.GradientTape() as tape:  # and the model's own gradients are still plain
        images = tf.constant(IMAGES)
        tape.watch(images)
        score = model(images)[:, 1]
    plain = expected(weights, [1], tf.nn.relu if relu is guided_relu else tf.nn.relu6)[:, 0]
    np.testing.assert_allclose(tape.gradient(score, images), plain, rtol=1e-4, atol=1e-5)
    assert not np.allclose(plain, wanted[:, 1], atol=1e-3)


@pytest.mark.slow
def test_product():
    model = nested()
    maps = grad_cam(model, IMAGES, [0, 2])
    back = guided_backpropagation(model, IMAGES, [0, 2])
    data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(3)
    found = guided_grad_cam(model, data, [0, 2])
    np.testing.assert_allclose(found, maps[..., None] * back, rtol=1e-4, atol=1e-7)
    assert found.shape == (4, 2, 10, 10, 2) and np.abs(found).max() > 0


@pytest.mark.slow
def test_certain_predictions():
    """Of the score before a soft-max that float32 rounds to 1."""
    model = nested()
    model.layers[-1].bias.assign([60.0, 0.0, 0.0])
    sharp = keras.Sequential([model, layers.Softmax()])
    for explain in (guided_backpropagation, guided_grad_cam):
        wanted, found = explain(model, IMAGES), explain(sharp, IMAGES)
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * largest)
        assert largest > 0


@pytest.mark.slow
def test_averaged_over_draws():
    """Of a network that is random behind its only ReLU, whose gate then differs with the draw."""
    conv, hidden = layers.Conv2D(3, 3, activation="relu"), [layers.Flatten(), MCDropout(0.5)]
    rest = [*hidden, layers.Dense(3)]
    model = keras.Sequential([keras.Input((10, 10, 2)), conv, *rest])
    wanted = 0
    for number in range(2):
        with tf.GradientTape() as tape, one_draw(tf.constant([3, number])):
            images = tf.constant(IMAGES)
            tape.watch(images)
            x = guided_relu(tf.nn.conv2d(images, conv.kernel.value, 1, "VALID") + conv.bias.value)
            for layer in rest:
                x = layer(x)
            score = tf.nn.softmax(x)[:, 2]
        wanted += tape.gradient(score, images).numpy() / 2
    options = {"from_logits": True, "num_samples": 2, "seed": 3}
    found = guided_backpropagation(model, IMAGES, 2, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    doubts = guided_backpropagation(model, IMAGES, target="mutual_information", **options)
    assert doubts.shape == found.shape and np.abs(doubts).max() > 0


def test_refusals():
    swish = keras.Sequential(
        [keras.Input((10, 10, 2)), layers.Conv2D(3, 3, activation="swish"), layers.Flatten()]
    )
    of_logits(swish)
    refused("model", guided_backpropagation, swish, IMAGES)
    refused("model", guided_grad_cam, swish, IMAGES)
    refused("class_index", guided_grad_cam, nested(), IMAGES, 3)
    refused("images", guided_backpropagation, nested(), IMAGES[:, 1:])
    refused("layer", guided_grad_cam, nested(), IMAGES, layer="none such")
