"""Features are the squared norms that a GradientTape gives for one example at a time."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfuq.ood import GradientFeatures

RNG = np.random.default_rng(0)


def one_at_a_time(model, x, label=1.0, output=lambda y: y, variables=None, scale=1.0):
    """|dJ / dw|^2, J the mean binary cross entropy of logits, without any of tfuq."""
    variables = variables or model.trainable_variables

    @tf.function(autograph=False)
    def norms(x):
        with tf.GradientTape() as tape:
            logits = tf.cast(output(model(x, training=False)), "float32")
            labels = tf.broadcast_to(tf.cast(label, "float32"), tf.shape(logits))
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            loss = scale * tf.reduce_mean(losses)
        values = [v.value for v in variables]
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        gradients = [tf.cast(tf.convert_to_tensor(g), "float32") / scale for g in gradients]
        return tf.stack([tf.reduce_sum(tf.square(g)) for g in gradients])

    count = len(tf.nest.flatten(x)[0])
    rows = [
        tf.nest.map_structure(lambda a, i=i: tf.constant(a[i : i + 1]), x) for i in range(count)
    ]
    return np.stack([norms(row) for row in rows])


def shaken(model):
    """The model with weights that are nowhere 0 or 1, as after training."""
    for variable in model.variables:
        if not variable.dtype.startswith("float"):
            continue
        noise = RNG.normal(size=variable.shape) * 0.2
        noise = np.abs(noise) if "variance" in variable.path else noise
        variable.assign(variable + noise.astype("float32"))
    return model


def agree(model, x, rtol=1e-4, **kwargs):
    model(x)  # a layer that is another's activation makes its weights when it is called
    found = GradientFeatures(model, from_logits=True)(x)
    expected = one_at_a_time(model, x, **kwargs)
    assert found.dtype == "float32" and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-12)
    assert np.count_nonzero(expected) > 0


def images(*shape):
    return RNG.normal(size=shape).astype("float32")


def chain(shape, *inner, classes=3):
    """Layers one after the other, and a linear head on all they give."""
    head = [layers.Flatten(), layers.Dense(classes)]
    return shaken(keras.Sequential([keras.Input(shape), *inner, *head]))


# --- Kinds of layers ------------------------------------------------------------------------------


def conv(rank, **kwargs):
    kind = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    return kind(4, 3, **kwargs)


LAYERS = {
    "dense": ((5,), [layers.Dense(4, "relu")]),
    "dense on positions": ((6, 5), [layers.Dense(40, "tanh"), layers.Dense(30, "gelu")]),
    "same": ((7, 6, 2), [conv(2, padding="same", activation="relu")]),
    "valid, strides": ((9, 8, 2), [conv(2, strides=2, activation=layers.LeakyReLU())]),
    "same, strides, no bias": (
        (7, 8, 2),
        [conv(2, strides=(2, 2), padding="same", use_bias=False)],
    ),
    "dilation": ((9, 8, 2), [conv(2, dilation_rate=2, padding="same"), conv(2, dilation_rate=2)]),
    "groups": ((6, 6, 4), [conv(2, groups=2, padding="same")]),
    "many channels": ((4, 4, 40), [layers.Conv2D(50, 3, padding="same"), layers.Conv2D(60, 1, 2)]),
    "1D, causal": ((9, 3), [conv(1, padding="causal", dilation_rate=2), conv(1, padding="same")]),
    "3D": ((4, 5, 4, 2), [conv(3, padding="same", strides=2)]),
    "depthwise": (
        (7, 7, 3),
        [
            layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same"),
            layers.DepthwiseConv2D((2, 3), activation="tanh", use_bias=False),
        ],
    ),
    "depthwise 1D": ((8, 3), [layers.DepthwiseConv1D(3, dilation_rate=2)]),
    "separable": (
        (7, 7, 3),
        [layers.SeparableConv2D(5, 3, strides=2, depth_multiplier=2, activation="tanh")],
    ),
    "separable 1D": ((8, 3), [layers.SeparableConv1D(5, 3, padding="same")]),
    "transposed": (
        (3, 4, 3),
        [
            layers.Conv2DTranspose(4, 3, 2, padding="same", activation="relu"),
            layers.Conv2DTranspose(2, 3, 2, output_padding=1),
        ],
    ),
    "transposed 1D": ((5, 3), [layers.Conv1DTranspose(4, 3, padding="same", dilation_rate=2)]),
    "batch normalization": ((4, 4, 3), [conv(2), layers.BatchNormalization()]),
    "other normalization": (
        (4, 6),
        [
            layers.LayerNormalization(),
            layers.GroupNormalization(3),
            layers.RMSNormalization(),
            layers.LayerNormalization(axis=(1, 2), center=False),
            layers.BatchNormalization(axis=1, scale=False),
        ],
    ),
    "dropout": ((5,), [layers.Dense(8), layers.Dropout(0.5), layers.GaussianNoise(1.0)]),
    "activation with a weight": ((5,), [layers.Dense(8, layers.PReLU())]),
    "recurrent": ((5, 3), [layers.GRU(4, return_sequences=True), layers.Dense(6)]),
    "recurrent, unrolled": ((3, 3), [layers.SimpleRNN(4, unroll=True)]),
    "both ways": ((4, 3), [layers.Bidirectional(layers.LSTM(3))]),
    "over time": ((4, 6, 6, 2), [layers.TimeDistributed(conv(2))]),
    "einsum": ((4, 3), [layers.EinsumDense("abc,cd->abd", (4, 5), bias_axes="d")]),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layer(kind):
    shape, inner = LAYERS[kind]
    agree(chain(shape, *inner), images(3, *shape))
