"""Detectors on data and models of any kind, with and without a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers
from scipy import special, stats
from small_detectors import (
    DETECTORS,
    LAST,
    MODEL,
    MOVING,
    OTHER,
    Batches,
    Subclassed,
    X,
    Y,
    features_of,
    fitted,
    make_model,
    model_of,
    refused,
)

from tfuq import ood

# --- Data -----------------------------------------------------------------------------------------


@pytest.mark.slow_cases("Max*", "Entropy", "Mahalanobis*", "ViM", "ReAct", "GradNorm")
@pytest.mark.parametrize("name", DETECTORS)
def test_datasets(name):
    pairs = tf.data.Dataset.from_tensor_slices((X, np.eye(3)[Y])).batch(13)
    expected = fitted(name).score(OTHER)
    assert expected.shape == (21,) and expected.dtype == "float64"
    found = DETECTORS[name]().fit(model_of(name), pairs).score(Batches(OTHER))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["RelativeMahalanobis", "MutualInformation"])
def test_kinds_of_data(name):
    """All that `fit` and `score` take, which are the same functions for all others."""
    expected = fitted(name).score(OTHER)
    for data in ((X, Y), Batches(X, Y)):
        found = DETECTORS[name]().fit(model_of(name), data, batch_size=16).score(OTHER)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    rows = tf.data.Dataset.from_tensor_slices(OTHER).batch(9)
    for data in (rows, (OTHER, np.zeros(21)), OTHER.astype("float64")):
        found = fitted(name).score(data, batch_size=10)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in MOVING])
def test_arrays_are_enough(name):
    more = {"head": MODEL.layers[1]} if name in LAST else {}
    found = DETECTORS[name]().fit_features(features_of(name, X), Y, **more)
    # All rows at a time, as Keras was given them: matrix products of other sizes round otherwise.
    expected = DETECTORS[name]().fit(model_of(name), X, Y, batch_size=len(X))
    scores = found.score_features(features_of(name, OTHER))
    np.testing.assert_allclose(scores, expected.score(OTHER), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scores, expected.score_features(features_of(name, OTHER)))
    assert found.threshold_at(0.9) == pytest.approx(expected.threshold_at(0.9), rel=1e-4)
    refused("model", found.score, OTHER)
    found.model = model_of(name)
    np.testing.assert_allclose(found.score(OTHER), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MOVING)
def test_inputs_that_move_need_the_model(name):
    features = features_of(name, OTHER)
    refused("epsilon", fitted(name).score_features, [features, features])
    refused("x", fitted(name).threshold_at, 0.9)
    assert fitted(name).threshold_at(0.9, X).examples == 40


# --- Models ---------------------------------------------------------------------------------------


def styles():
    """Models that compute what `MODEL` does; each with its inputs, and which output it is."""
    hidden, last = MODEL.layers
    inputs = keras.Input((5,))
    outputs = last(hidden(inputs))
    trunk = keras.Sequential([keras.Input((5,)), hidden], name="trunk")
    halves = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    joined = last(hidden(layers.Concatenate()([halves["a"], halves["b"]])))
    probs = layers.Softmax()(last(hidden(inputs)))
    sharp = layers.Dense(3, "softmax", name="sharp")
    sharp.build((None, 6))
    sharp.set_weights(last.get_weights())
    yield "functional", of_logits(keras.Model(inputs, outputs)), X, OTHER, None
    yield "subclassed", of_logits(Subclassed(hidden, last)), X, OTHER, None
    nested = keras.Sequential([keras.Input((5,)), trunk, last])
    yield "nested", of_logits(nested), X, OTHER, None
    split = [{"a": x[:, :2], "b": x[:, 2:]} for x in (X, OTHER)]
    yield "several inputs", of_logits(keras.Model(halves, joined)), *split, None
    several = keras.Model(inputs, {"other": hidden(inputs), "classes": outputs})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    several.compile(loss={"classes": loss, "other": "mse"})
    yield "several outputs", several, X, OTHER, "classes"
    yield "softmax layer", keras.Model(inputs, probs), X, OTHER, None
    yield "softmax inside", keras.Sequential([keras.Input((5,)), hidden, sharp]), X, OTHER, None


STYLES = {style[0]: style[1:] for style in styles()}


@pytest.mark.parametrize("style", STYLES)
def test_models_of_any_style(style):
    """These are traced; `MODEL` runs eagerly."""
    model, x, other, output = STYLES[style]
    for detector, name in (
        (ood.GradNorm(2.0, output=output), "GradNorm"),
        (ood.ODIN(10.0, 0.05, output=output), "ODIN"),
        (ood.Energy(2.0, output=output), "Energy"),
    ):
        found = detector.fit(model, x).score(other)
        np.testing.assert_allclose(found, fitted(name).score(OTHER), rtol=1e-3, atol=1e-5)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = make_model(eager=False)
    model.set_weights(MODEL.get_weights())
    # A distance along a thin direction of the features carries the rounding of its variance, which
    # differs between processors; the order of the examples does not.
    for name, tolerance in (("GradNorm", 0.1), ("Mahalanobis", 0.5)):
        found, expected = DETECTORS[name]().fit(model, X, Y).score(OTHER), fitted(name).score(OTHER)
        np.testing.assert_allclose(found, expected, rtol=tolerance)
        assert stats.spearmanr(found, expected).statistic > 0.97


def test_dropout_and_batch_statistics_are_as_in_prediction():
    normal = layers.BatchNormalization()
    parts = [layers.Dense(6, "relu"), normal, layers.Dropout(0.5), layers.Dense(3)]
    model = of_logits(keras.Sequential([keras.Input((5,)), *parts]))
    before = [np.array(w) for w in normal.get_weights()]
    expected = special.logsumexp(model.predict(OTHER, verbose=0), axis=1)
    np.testing.assert_allclose(ood.Energy().fit(model, X).score(OTHER), -expected, rtol=1e-5)
    for old, new in zip(before, normal.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_logits_that_are_not_known():
    inputs = keras.Input((5,))
    heads = [layers.Dense(3, "softmax")(inputs) for _ in range(2)]
    model = keras.Model(inputs, layers.Average()(heads))
    probs = model.predict(OTHER, verbose=0)
    found = ood.MaxSoftmax().fit(model, X).score(OTHER)
    np.testing.assert_allclose(found, 1 - probs.max(1), rtol=1e-4)
    for make in (ood.MaxLogit, ood.Energy, ood.GradNorm, ood.ViM, ood.ReAct):
        refused("model", make().fit, model, X)
    ood.ReAct(base="entropy").fit(model, X).score(OTHER)
