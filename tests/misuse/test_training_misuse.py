"""Misuse of `fit`: callbacks that do not go together, losses of classes that get something else.

Refused before a weight has changed.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import callbacks, layers, losses, optimizers

X, Y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

ROWS = {
    "two SGDR": lambda p: [callbacks.SGDR(0.1), callbacks.SGDR(0.2)],
    "two KLAnnealing": lambda p: [callbacks.KLAnnealing(), callbacks.KLAnnealing(0.5)],
    "two LRRangeTest": lambda p: [callbacks.LRRangeTest(num_steps=5) for _ in range(2)],
    "two SaliencySelection": lambda p: [
        callbacks.SaliencySelection(),
        callbacks.SaliencySelection(),
    ],
    "two SnapshotEnsemble": lambda p: [callbacks.SnapshotEnsemble(p, every=1) for _ in range(2)],
    "two BackupAndRestore": lambda p: [callbacks.BackupAndRestore(p) for _ in range(2)],
    "two SWAG": lambda p: [callbacks.SWAG(start=0), callbacks.SWAG(start=0)],
    "SWAG before weights are restored": lambda p: [
        callbacks.SWAG(start=0),
        keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
    ],
    "a selection after the end": lambda p: [callbacks.SaliencySelection(after_epoch=7)],
    "LRRangeTest beside SGDR": lambda p: [callbacks.LRRangeTest(num_steps=5), callbacks.SGDR(0.1)],
}


@pytest.mark.parametrize("name", ROWS)
def test_refused_before_it_trains(name, tmp_path, counts):
    head = layers.SparseBayesDense(3, kl_weight=0.1)
    model = keras.Sequential([keras.Input((4,)), head])
    model.compile("sgd", LOSS, jit_compile=False)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"Argument `(callbacks|after_epoch)`"):
        model.fit(X, Y, batch_size=2, epochs=2, callbacks=ROWS[name](tmp_path), verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    counts("misuse rows, refused")


# The loss, how the model ends, the labels, and what the error has to name.
OF_CLASSES = {
    "a soft-max under LogitNorm": (losses.LogitNorm, "softmax", 3, Y, "`y_pred` must be logits"),
    "one logit under OutlierExposure": (losses.OutlierExposure, None, 1, Y % 2, "two or more"),
    "outliers under LogitNorm": (losses.LogitNorm, None, 3, Y - 1, "classes from 0 to 2"),
    "classes from 1": (losses.EnergyMargin, None, 3, Y + 1, "or -1 .* of an outlier"),
    "labels of another model": (losses.OutlierExposure, None, 3, np.eye(4)[Y], "or be one-hot"),
}


@pytest.mark.parametrize("name", OF_CLASSES)
def test_losses_of_classes_refuse_before_they_train(name, counts):
    loss, activation, units, y, named = OF_CLASSES[name]
    head = keras.layers.Dense(units, activation)
    model = keras.Sequential([keras.Input((4,)), head])
    model.compile("sgd", loss(), jit_compile=False)
    before = model.get_weights()
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=named):
        model.fit(X, y, verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    counts("misuse rows, refused")


@pytest.mark.parametrize("is_renewed", [False, True])
def test_a_process_trained_batch_by_batch_has_all_of_them(is_renewed, counts):
    """Keras resets metrics at each `train_on_batch`: that is no epoch, new metrics or not."""
    head = layers.SNGPDense(3, num_features=8, seed=1)
    model = keras.Sequential([keras.Input((4,)), head])
    with pytest.warns(UserWarning, match="start_anew"):
        for start in range(0, 12, 4):
            if start == 0 or is_renewed:
                model.compile(
                    keras.optimizers.SGD(0.0), LOSS, metrics=["accuracy"], jit_compile=False
                )
            model.train_on_batch(X[start : start + 4], Y[start : start + 4])
    phi = np.asarray(head.random_features(X))
    expected = head.ridge * np.eye(8) + phi.T @ phi
    np.testing.assert_allclose(head.precision, expected, rtol=1e-4, atol=1e-5)
    counts("misuse rows, warned")


# What IVON gets, and the argument that the error has to name.
OF_IVON = {
    "no number of examples": ({"num_data": None}, "num_data"),
    "no examples": ({"num_data": 0}, "num_data"),
    "a share of examples": ({"num_data": 0.5}, "num_data"),
    "a momentum of 1": ({"beta_1": 1.0}, "beta_1"),
    "a negative rate": ({"learning_rate": -0.1}, "learning_rate"),
}


@pytest.mark.parametrize("name", OF_IVON)
def test_ivon_refuses(name, counts):
    options, named = OF_IVON[name]
    with pytest.raises(ValueError, match=f"Argument `{named}`"):
        optimizers.IVON(**{"learning_rate": 0.1, "num_data": 12, **options})
    counts("misuse rows, refused")
