"""Misuse of heads that say numbers, in `fit`: another loss, other targets. Refused, none silent."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import layers, losses

ROWS, FEATURES = 8, 4
X = np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype("float32")
Y = X.sum(axis=1)
LEVELS = [0.1, 0.5, 0.9]
HEADS = {
    "NormalDense": lambda: layers.NormalDense(1),
    "LaplaceDense": lambda: layers.LaplaceDense(1),
    "StudentTDense": lambda: layers.StudentTDense(1),
    "MixtureDense": lambda: layers.MixtureDense(1, num_components=2),
    "QuantileDense": lambda: layers.QuantileDense(1, levels=LEVELS),
    "EvidentialDense": lambda: layers.EvidentialDense(1),
    "VBLLRegression": lambda: layers.VBLLRegression(1, kl_weight=0.1),
    "LastLayerLaplaceRegression": lambda: layers.LastLayerLaplaceRegression(1),
    "VBLLRegression student_t": lambda: layers.VBLLRegression(
        1, kl_weight=0.1, likelihood="student_t"
    ),
}
EVERY_HEAD = pytest.mark.parametrize("head", HEADS)
WRONG_LOSSES = {
    "a squared error": "mse",
    "an absolute error": keras.losses.MeanAbsoluteError(),
    "a loss of classes": "sparse_categorical_crossentropy",
    "a loss of one class": keras.losses.BinaryCrossentropy(from_logits=True),
    "the loss of another head": losses.Evidential(0.1),
}
WRONG_TARGETS = {
    "two numbers for one": (np.stack([Y, Y], axis=-1), ValueError, r"`y_true` must have shape"),
    "a number per step": (Y[:, None, None], ValueError, r"`y_true` must have shape"),
    "a number that is missing": (
        np.where(np.arange(ROWS) == 2, np.nan, Y),
        tf.errors.InvalidArgumentError,
        r"y_true",
    ),
}


def own_loss(layer):
    return (
        losses.Pinball(LEVELS)
        if isinstance(layer, layers.QuantileDense)
        else losses.Evidential(0.1)
        if isinstance(layer, layers.EvidentialDense)
        else layer.negative_log_likelihood()
    )


def model_of(layer, loss, metrics=()):
    model = keras.Sequential([keras.Input((FEATURES,)), layer])
    model.compile("sgd", loss, metrics=list(metrics), jit_compile=False)
    return model


def refused(model, y, error, match):
    before = model.get_weights()
    with pytest.raises(error, match=match):
        model.fit(X, y, verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@EVERY_HEAD
def test_refuses_a_loss_that_misreads_it(head, counts):
    layer = HEADS[head]()
    for name, loss in WRONG_LOSSES.items():
        if name == "the loss of another head" and head == "EvidentialDense":
            loss = layers.NormalDense(1).negative_log_likelihood()
        refused(model_of(layer, loss), Y, ValueError, r"Argument `loss` must")
        counts("misuse rows, refused")
    metrics = ["mae", keras.metrics.RootMeanSquaredError()]
    refused(model_of(layer, own_loss(layer), metrics), Y, ValueError, r"Argument `metrics` must")
    counts("misuse rows, refused")


@EVERY_HEAD
def test_refuses_targets_of_another_kind(head, counts):
    layer = HEADS[head]()
    for y, error, match in WRONG_TARGETS.values():
        refused(model_of(layer, own_loss(layer)), y, error, match)
        counts("misuse rows, refused")


@EVERY_HEAD
def test_refuses_booleans(head, counts):
    layer = HEADS[head]()
    refused(model_of(layer, own_loss(layer)), Y > 0, ValueError, r"`y_true` must hold numbers")
    counts("misuse rows, refused")


def test_refuses_booleans_outside_of_fit(counts):
    loss, params = layers.NormalDense(1).negative_log_likelihood(), np.ones((2, 2), "float32")
    for y in (np.array([True, False]), [True, False], tf.constant([True, False])):
        with pytest.raises(ValueError, match="Received: booleans"):
            loss(y, params)
        counts("misuse rows, refused")


def test_refuses_targets_whose_rank_is_forgotten(counts):
    """After a row and a column Keras passes labels on without a shape: compared as it runs."""
    layer = HEADS["NormalDense"]()
    model = model_of(layer, own_loss(layer))
    for y in (Y, Y[:, None]):
        model.evaluate(X, y, verbose=0)
    for y in (np.stack([Y, Y], axis=-1), Y[:, None, None]):
        refused_here = (ValueError, tf.errors.InvalidArgumentError)
        with pytest.raises(refused_here, match=r"y_true|assert_equal"):
            model.evaluate(X, y, verbose=0)
        counts("misuse rows, refused")


@EVERY_HEAD
def test_a_column_of_targets_is_as_good_as_a_row(head, counts):
    layer = HEADS[head]()
    model = model_of(layer, own_loss(layer))
    row, column = (model.evaluate(X, y, verbose=0) for y in (Y, Y[:, None]))
    np.testing.assert_allclose(row, column, rtol=1e-6)
    counts("misuse rows, right")


@pytest.mark.parametrize("head", ["NormalDense", "StudentTDense", "EvidentialDense"])
def test_a_loss_of_numbers_refuses_a_plain_layer(head, counts):
    """`Dense(1)` kept by mistake: its one output is no parameters."""
    model = model_of(keras.layers.Dense(1), own_loss(HEADS[head]()))
    refused(model, Y, ValueError, r"multiple of \d")
    counts("misuse rows, refused")
