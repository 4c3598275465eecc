"""Conversions keep what preprocessing layers have learned by `adapt`, which is in no weight."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import convert
from tfuq.layers import DenseVariational, MCDropout

KL = {"kl_weight": 0.01}
RNG = np.random.default_rng(0)
X = RNG.normal(3, 4, size=(60, 4)).astype("float32")
Y = RNG.integers(0, 3, size=60)


def normalization():
    layer = keras.layers.Normalization()
    layer.adapt(X)
    return keras.Input((4,)), layer, X


def discretization():
    layer = keras.layers.Discretization(num_bins=5, output_mode="one_hot")
    layer.adapt(X)
    return keras.Input((4,)), layer, X


def of_texts(layer):
    texts = np.array(["a b", "b c", "c c", "a"] * 15)
    layer.adapt(texts)
    return keras.Input((1,), dtype="string"), layer, tf.constant(texts[:, None])


def lookup():
    return of_texts(keras.layers.StringLookup(output_mode="multi_hot"))


def vectorization():
    return of_texts(keras.layers.TextVectorization(output_mode="count"))


def integers():
    layer = keras.layers.IntegerLookup(output_mode="multi_hot")
    layer.adapt(Y + 10)
    return keras.Input((1,), dtype="int64"), layer, Y[:, None] + 10


CONVERSIONS = {
    "mc_dropout": convert.mc_dropout,
    "variational": lambda model: convert.variational(model, posterior_scale=1e-6, **KL),
    "replace_head": lambda model: convert.replace_head(model, keras.layers.Dense(3)),
}
ADAPTED = [normalization, discretization, lookup, vectorization, integers]


@pytest.mark.parametrize("kind", ADAPTED)
def test_what_was_adapted_is_kept(kind):
    keras.utils.set_random_seed(0)
    inputs, layer, x = kind()
    hidden = [keras.layers.Dense(6, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(3)]
    model = keras.Sequential([inputs, layer, keras.layers.Rescaling(1.0), *hidden])
    expected = model.predict(x, verbose=0)
    for name, make in CONVERSIONS.items():
        new = make(model)
        if name == "replace_head":
            new.layers[-1].set_weights(model.layers[-1].get_weights())
        if name == "variational":
            assert any(isinstance(each, DenseVariational) for each in new.layers)
            assert not any(isinstance(each, MCDropout) for each in new.layers)
        np.testing.assert_allclose(new.predict(x, verbose=0), expected, atol=1e-3, err_msg=name)


def test_laplace_behind_a_normalization():
    inputs, layer, x = normalization()
    model = keras.Sequential([inputs, layer, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    new = convert.laplace_head(model, (x, Y))
    found, expected = (each.predict(x, verbose=0) for each in (new, model))
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
