"""Gradient features: labels, losses, layers, outputs and data; what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers
from scipy import special
from small_detectors import Batches, refused

from tfuq.ood import GradientDensity, GradientFeatures, _norm_formulas

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 5)).astype("float32")


def linear(activation=None, name="last"):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation, name=name)])
    model.set_weights([RNG.normal(size=(5, 3)), RNG.normal(size=3)])
    return model


LINEAR = of_logits(linear())
LOGITS = np.asarray(LINEAR(X), "float64")


def of_last_layer(gradients):
    """|x g^T|^2 = |x|^2 |g|^2 of the kernel, and |g|^2 of the bias."""
    bias = np.square(gradients).sum(1)
    return np.stack([np.square(X).sum(1) * bias, bias], axis=1)


# --- Labels and losses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label, y", [("all", 1), ("none", 0), ([0, 1, 0.25], [0, 1, 0.25]), (np.ones(3, int), 1)]
)
def test_confounding_labels(label, y):
    """Of the mean over C classes of the binary cross entropy: (p - y) / C at the logits."""
    features = GradientFeatures(LINEAR, label)
    expected = of_last_layer((special.expit(LOGITS) - y) / 3)
    np.testing.assert_allclose(features(X), expected, rtol=1e-5)


@pytest.mark.parametrize("label, y", [("all", [1, 1, 1]), ([0.5, 0, 0.5], [0.5, 0, 0.5])])
def test_categorical_crossentropy(label, y):
    features = GradientFeatures(LINEAR, label, "categorical_crossentropy")
    expected = of_last_layer(special.softmax(LOGITS, 1) * np.sum(y) - y)
    np.testing.assert_allclose(features(X), expected, rtol=1e-5)


def test_losses_of_the_user():
    def squares(label, logits):
        return tf.square(logits - label)

    found = GradientFeatures(LINEAR, "all", squares)(X)
    np.testing.assert_allclose(found, of_last_layer(2 * (LOGITS - 1) / 3), rtol=1e-5)
    entropy = keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None)
    found = GradientFeatures(LINEAR, [0, 0.9, 0.1], entropy)(X)
    expected = of_last_layer(special.softmax(LOGITS, 1) - [0, 0.9, 0.1])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- What the model is ---------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_are_taken_back(activation):
    """To the logits that Keras keeps beside them, whatever the compiled loss says."""
    expected = GradientFeatures(LINEAR)(X)
    model = linear(activation)
    model.set_weights(LINEAR.get_weights())
    told = {"from_logits": False} if activation == "sigmoid" else {}  # they do not sum to 1
    np.testing.assert_allclose(GradientFeatures(model, **told)(X), expected, rtol=1e-5)
    model.compile(loss="categorical_crossentropy" if not told else "binary_crossentropy")
    np.testing.assert_allclose(GradientFeatures(model)(X), expected, rtol=1e-5)


def test_probabilities_that_cannot_be_taken_back():
    inputs = keras.Input((5,))
    mean = layers.Average()([layers.Dense(3, "softmax")(inputs) for _ in range(2)])
    model = keras.Model(inputs, mean)
    refused("model", GradientFeatures(model), X)
    refused("from_logits", GradientFeatures(model, from_logits=True), X)


def test_compiled_loss_says_what_the_output_is():
    """Logits that look like probabilities."""
    model = linear()
    model.set_weights([np.zeros((5, 3)), np.full(3, 1 / 3)])
    refused("from_logits", GradientFeatures(model), X)
    of_logits(model)
    gradients = np.full((7, 3), (special.expit(1 / 3) - 1) / 3)
    np.testing.assert_allclose(GradientFeatures(model)(X), of_last_layer(gradients), rtol=1e-5)


def test_one_of_several_outputs():
    inputs = keras.Input((5,))
    other, classes = layers.Dense(2, name="other"), layers.Dense(3, name="classes")
    model = keras.Model(inputs, {"a": other(inputs), "b": classes(inputs)})
    classes.set_weights(LINEAR.get_weights())
    refused("output", GradientFeatures(model, from_logits=True), X)
    refused("output", GradientFeatures(model, output="c", from_logits=True), X)
    for output in ("b", lambda outputs: outputs["b"]):
        features = GradientFeatures(model, output=output, from_logits=True)
        found = dict(zip(features.names, features(X).T, strict=True))
        expected = GradientFeatures(LINEAR)(X)
        for column, kind in enumerate(("kernel", "bias")):
            np.testing.assert_allclose(found[f"classes/{kind}"], expected[:, column], rtol=1e-5)
            assert not found[f"other/{kind}"].any()


def test_the_model_stays_as_it_is():
    class Counting(layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight(shape=(), name="calls", trainable=False)
            self.scale = self.add_weight(shape=shape[1:], name="scale", initializer="ones")

        def call(self, x):
            self.calls.assign_add(1.0)
            self.add_loss(tf.reduce_sum(self.scale))
            return x * self.scale

    parts = [layers.BatchNormalization(), Counting(), layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((5,)), *parts, layers.Dense(3)])
    model(X)
    before = [np.array(w) for w in model.get_weights()]
    first = GradientFeatures(model, from_logits=True)(X)
    assert all(map(np.array_equal, before, model.get_weights()))
    assert not any("call" in vars(layer) for layer in parts)
    np.testing.assert_allclose(GradientFeatures(model, from_logits=True)(X), first, rtol=1e-6)


# --- Layers --------------------------------------------------------------------------------------


def deep():
    inner = [layers.Dense(4, "relu", name="a"), layers.BatchNormalization(name="b")]
    trunk = keras.Sequential([keras.Input((5,)), *inner], name="trunk")
    return of_logits(keras.Sequential([keras.Input((5,)), trunk, layers.Dense(3, name="c")]))


@pytest.mark.slow
def test_choice_of_layers():
    model = deep()
    everything = GradientFeatures(model)
    whole = everything(X)
    assert [name.split("/")[-2] for name in everything.names] == list("aabbcc")
    trunk, last = model.layers
    for chosen, columns in (
        (["c"], [4, 5]),
        (["c", "a"], [0, 1, 4, 5]),  # in the order of the model
        ([trunk], [0, 1, 2, 3]),
        (("trunk", last), range(6)),
        ([trunk.layers[1]], [2, 3]),
    ):
        features = GradientFeatures(model, layers=chosen)
        assert features.names == [everything.names[i] for i in columns]
        np.testing.assert_allclose(features(X), whole[:, list(columns)], rtol=1e-5)


def test_frozen_layers_have_no_columns():
    model = deep()
    model.layers[0].trainable = False
    assert GradientFeatures(model)(X).shape == (7, 2)
    refused("layers", GradientFeatures, model, layers=["trunk"])
    model.trainable = False
    refused("layers", GradientFeatures, model)


# --- Data ----------------------------------------------------------------------------------------


def test_kinds_of_data():
    features = GradientFeatures(LINEAR, batch_size=4)
    expected = of_last_layer((special.expit(LOGITS) - 1) / 3)
    rows = tf.data.Dataset.from_tensor_slices((X, np.zeros(7)))
    data = (X, (X, np.zeros(7)), X.astype("float64"), rows.batch(3), Batches(X), Batches(X, X))
    for x in data:
        found = features(x)
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(features(X[:1]), expected[:1], rtol=1e-5)


def test_few_sizes_of_batches_are_traced():
    features = GradientFeatures(LINEAR, batch_size=4)
    features(X)  # 4 and 3: the second is filled up
    assert features._norms.experimental_get_tracing_count() == 1
    features(X[:1])  # would do four times the work
    assert features._norms.experimental_get_tracing_count() == 2


@pytest.mark.slow_cases("1")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("most", [1, 300])
def test_memory_is_bounded(most, monkeypatch):
    """The same numbers where a batch is worked out a few examples at a time."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(2)(x)
    x = layers.MultiHeadAttention(1, 2)(*[layers.Reshape((4, 4))(x)] * 2)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    images = RNG.normal(size=(5, 6, 6, 2))
    expected = GradientFeatures(model, layers=model.layers[1:4], from_logits=True)(images)
    monkeypatch.setattr(_norm_formulas, "MAX_ELEMENTS", most)
    found = GradientFeatures(model, layers=model.layers[1:4], from_logits=True)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


# --- What is refused -----------------------------------------------------------------------------


class NotBuilt(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "argument, options",
    [
        ("model", {"model": NotBuilt()}),
        ("model", {"model": keras.Sequential([layers.Dense(3)])}),
        ("model", {"model": layers.Dense(3)}),
        ("model", {"model": "model"}),
        ("loss", {"loss": "mean_squared_error"}),
        ("loss", {"loss": None}),
        ("confounding_label", {"confounding_label": "some"}),
        ("confounding_label", {"confounding_label": 1}),
        ("confounding_label", {"confounding_label": None}),
        ("confounding_label", {"confounding_label": []}),
        ("confounding_label", {"confounding_label": [[1, 0, 1]]}),
        ("confounding_label", {"confounding_label": [0, 1, 1.5]}),
        ("confounding_label", {"confounding_label": [0, -1, 1]}),
        ("confounding_label", {"confounding_label": [0, np.nan, 1]}),
        ("confounding_label", {"confounding_label": ["a", "b", "c"]}),
        (
            "confounding_label",
            {"confounding_label": "none", "loss": "categorical_crossentropy"},
        ),
        ("layers", {"layers": "last"}),
        ("layers", {"layers": ["first"]}),
        ("layers", {"layers": ["last", 3]}),
        ("layers", {"layers": [layers.Dense(3)]}),
        ("layers", {"layers": []}),
        ("batch_size", {"batch_size": 0}),
        ("batch_size", {"batch_size": 2.5}),
    ],
)
def test_bad_arguments(argument, options):
    refused(argument, GradientFeatures, **{"model": LINEAR, **options})


def test_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"\[.*'last', .*\]\. Received: 'first' in layers="):
        GradientFeatures(LINEAR, layers=["last", "first"])


@pytest.mark.parametrize("length", [1, 2, 4])
def test_vectors_of_wrong_length(length):
    refused("confounding_label", GradientFeatures(LINEAR, np.ones(length)), X)


def test_losses_that_are_no_loss_of_each_example():
    mean = keras.losses.BinaryCrossentropy(from_logits=True)
    refused("loss", GradientFeatures(LINEAR, loss=mean), X)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite(value):
    bad = X.copy()
    bad[3, 1] = bad[5, 0] = value
    with pytest.raises(ValueError, match=r"`x` must .* for 2 examples, .* number 3$"):
        GradientFeatures(LINEAR, batch_size=2)(bad)
    density = GradientDensity().fit(GradientFeatures(LINEAR), np.tile(X, (2, 1)))
    assert np.isposinf(density.score(bad)).tolist() == [i in (3, 5) for i in range(7)]


def test_data_that_are_none():
    features = GradientFeatures(LINEAR)
    empty = tf.data.Dataset.from_tensor_slices(X).batch(4).take(0)
    endless = tf.data.Dataset.from_tensor_slices(X).batch(4).repeat()
    for data in (X[:0], empty, endless, None, 3.0, (X, np.zeros(3))):
        refused("x", features, data)


def test_examples_that_are_not_first():
    class Turned(keras.Model):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(5, 3), name="kernel")

        def call(self, x):
            return tf.transpose(tf.matmul(x, self.kernel))

    model = Turned()
    model(X)
    refused("model", GradientFeatures(model, from_logits=True), X)
