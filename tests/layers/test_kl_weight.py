"""kl_weight_for: one over the number of terms that the loss is a mean of, by any kind of data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfuq

SHAPES = {
    "one_label": ((6,), "sparse_categorical_crossentropy", 6),
    "one_label_column": ((6, 1), "sparse_categorical_crossentropy", 6),
    "one_hot": ((6, 3), "categorical_crossentropy", 6),
    "labels": ((6, 14), "binary_crossentropy", 6 * 14),
    "mask": ((6, 8, 4), "sparse_categorical_crossentropy", 6 * 32),
    "mask_channel": ((6, 8, 4, 1), "binary_crossentropy", 6 * 32),
    "one_hot_mask": ((6, 8, 4, 3), "categorical_crossentropy", 6 * 32),
    "values": ((6, 2), "mse", 12),
}


class Batches(keras.utils.PyDataset):
    def __init__(self, y):
        super().__init__()
        self.y = y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        y = self.y[2 * index : 2 * index + 2]
        return np.zeros((len(y), 1)), y


def number_of_terms(y, loss):
    """How many terms Keras takes the mean of: the change of the mean with one loss of 1."""
    loss = keras.losses.get(loss)
    fn = loss if callable(loss) and not isinstance(loss, keras.losses.Loss) else loss.call
    width = 3 if "sparse" in fn.__name__ else None
    pred = np.full((*y.shape[:2], *y.shape[2:], width) if width else y.shape, 0.5, "float32")
    if width and y.shape[-1] == 1:
        pred = np.full((*y.shape[:-1], width), 0.5, "float32")
    per_term = np.asarray(fn(y.astype("float32"), pred))
    inner = 1 if "categorical" in fn.__name__ else y.shape[-1]  # a mean over the last axis
    return per_term.size * inner


@pytest.mark.parametrize("shape, loss, expected", SHAPES.values(), ids=SHAPES)
def test_counts_what_keras_averages_over(shape, loss, expected):
    y = np.zeros(shape, "int32")
    x = np.zeros((6, 1))
    assert number_of_terms(y, loss) == expected
    built = keras.losses.deserialize({"class_name": CLASSES[loss], "config": {}})
    for data in ((x, y), tf.data.Dataset.from_tensor_slices((x, y)).batch(4), Batches(y)):
        for each in (loss, built):
            np.testing.assert_allclose(tfuq.kl_weight_for(data, each), 1 / expected, rtol=1e-12)


CLASSES = {
    "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "binary_crossentropy": "BinaryCrossentropy",
    "mse": "MeanSquaredError",
}


def test_ignored_labels_and_weights():
    y = np.array([0, 1, 2, 255, 255, 1])
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
    assert tfuq.kl_weight_for((np.zeros((6, 1)), y), loss) == 1 / 4
    weights = np.array([1, 1, 2, 2, 0, 0.0])
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight")
    assert tfuq.kl_weight_for((np.zeros((6, 1)), y, weights), loss) == 1 / 6


@pytest.mark.parametrize(
    "data, loss, message",
    [
        (np.zeros((4, 1)), "mse", "Argument `data` must hold the labels"),
        ((np.zeros((4, 1)), {"a": np.zeros(4)}), "mse", "labels of one output"),
        (
            tf.data.Dataset.from_tensors((np.zeros((4, 1)), np.zeros(4))).repeat(),
            "mse",
            "Argument `data` must end",
        ),
        (
            (np.zeros((4, 1)), np.zeros(4)),
            keras.losses.BinaryCrossentropy(reduction="sum"),
            "Argument `loss` must be a mean",
        ),
        ((np.zeros((4, 1)), np.zeros(4)), "hinge", "Argument `loss` must be one loss of Keras"),
        ((np.zeros((4, 1)), np.zeros(4)), {"a": "mse"}, "Argument `loss` must be one loss"),
    ],
)
def test_bad_input(data, loss, message):
    with pytest.raises(ValueError, match=message):
        tfuq.kl_weight_for(data, loss)
