"""Occlusion against one prediction after the other of images that NumPy has painted over."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_api import refused
from test_grad_cam import FIXTURE

from tfuq.interpret import center_occlusion, occlusion
from tfuq.layers import MCDropout
from tfuq.predictive import decompose, sample_predictions

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 7, 9, 2)).astype("float32")
LABELS = np.array([0, 2, 1, 2])


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    rest = [layers.Flatten(), MCDropout(0.5), layers.Dense(3), layers.Softmax()]
    return keras.Sequential([keras.Input((7, 9, 2)), *rest])


def painted(images, rows, columns, value):
    images = np.array(images)
    images[:, rows[0] : rows[1], columns[0] : columns[1]] = value
    return images


def expected(score, patch, downs, rights, value):
    """Drops of the scores `(n,)` by patches, and their means over each pixel."""
    drops = np.zeros((len(IMAGES), len(downs), len(rights)))
    total, count = np.zeros((len(IMAGES), 7, 9)), np.zeros((7, 9))
    for i, top in enumerate(downs):
        for j, left in enumerate(rights):
            rows, columns = (top, top + patch[0]), (left, left + patch[1])
            drop = score(IMAGES) - score(painted(IMAGES, rows, columns, value))
            drops[:, i, j] = drop
            total[:, slice(*rows), slice(*columns)] += drop[:, None, None]
            count[slice(*rows), slice(*columns)] += 1
    return drops, total / count


def test_probability_of_the_predicted_class(model):
    """With overlaps, patches that do not divide the sides, and a colour."""
    first = model(IMAGES).numpy().argmax(axis=1)

    def score(images):
        return model(images).numpy()[np.arange(4), first]

    drops, maps = expected(score, (3, 4), [0, 2, 4], [0, 3, 5], [0.5, -1])
    options = {"patch": (3, 4), "stride": (2, 3), "value": [0.5, -1], "batch_size": 3}
    found = occlusion(model, IMAGES, **options)
    assert found.dtype == "float32" and np.abs(drops).max() > 1e-3
    np.testing.assert_allclose(found, maps, rtol=1e-4, atol=1e-6)
    found = occlusion(model, IMAGES, **options, upsample=False)
    np.testing.assert_allclose(found, drops, rtol=1e-4, atol=1e-6)


def test_uncertainty_of_draws(model):
    def score(images):
        stack = sample_predictions(model, images, num_samples=3, seed=5)
        return decompose(stack).mutual_information

    _, maps = expected(score, (4, 4), [0, 3], [0, 4, 5], 0.0)
    options = {"target": "mutual_information", "num_samples": 3, "seed": 5}
    found = occlusion(model, IMAGES, 4, **options)
    np.testing.assert_allclose(found, maps, rtol=1e-3, atol=1e-6)


def test_agrees_with_tf_explain():
    with np.load(FIXTURE) as fixture:
        fixture = dict(fixture)
    convs = [layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()]
    convs += [layers.Conv2D(5, 3, activation="relu"), layers.Flatten()]
    model = keras.Sequential([keras.Input((16, 16, 3)), *convs, layers.Dense(3, "softmax")])
    model.set_weights([fixture[f"weight_{i}"] for i in range(6)])
    images = fixture["images"]
    found = occlusion(model, images, 4, value=127.5, class_index=[0, 1], upsample=False)
    whole = model.predict(images, verbose=0)[:, 1, None, None]
    np.testing.assert_allclose(found[:, 1], fixture["sensitivity"] - 1 + whole, atol=1e-5)


def test_centre(model):
    """Accuracy and p(true class) with the centre hidden, or kept, weighted."""
    weights = np.array([1.0, 2.0, 0.0, 1.0])
    found = center_occlusion(model, (IMAGES, LABELS, weights), [0, 1 / 3, 1], 2.0, batch_size=1)
    boxes = [((0, 0), (0, 0)), ((2, 4), (3, 6)), ((0, 7), (0, 9))]
    for i, (rows, columns) in enumerate(boxes):
        hidden = painted(IMAGES, rows, columns, 2.0)
        kept = np.full_like(IMAGES, 2.0)
        inside = np.s_[:, slice(*rows), slice(*columns)]
        kept[inside] = IMAGES[inside]
        for name, images in (("hidden", hidden), ("kept", kept)):
            probs = model(images).numpy()
            right = np.average(probs.argmax(axis=1) == LABELS, weights=weights)
            true = np.average(probs[np.arange(4), LABELS], weights=weights)
            assert getattr(found, f"{name}_accuracy")[i] == pytest.approx(right)
            assert getattr(found, f"{name}_probability")[i] == pytest.approx(true, abs=1e-6)
    assert found.n == 3
    assert found.to_markdown().splitlines()[3].startswith("| 0.333 | ")


def test_centre_of_draws_and_labels(model):
    """The mean prediction of draws; multi-label predictions; a dataset."""
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(3)
    found = center_occlusion(model, data, [0], num_samples=3, seed=5)
    probs = sample_predictions(model, IMAGES, num_samples=3, seed=5).mean(axis=0)
    true = probs[np.arange(4), LABELS].mean()
    assert found.hidden_probability == pytest.approx([true], abs=1e-6)
    many = keras.Sequential([keras.Input((7, 9, 2)), layers.Flatten(), layers.Dense(2, "sigmoid")])
    y = RNG.integers(2, size=(4, 2))
    found = center_occlusion(many, (IMAGES, y), [0], multi_label=True)
    right = ((many.predict(IMAGES, verbose=0) > 0.5) == y).mean()
    assert found.n == 8 and found.hidden_accuracy == pytest.approx([right])


def test_refusals(model):
    for patch in (0, 8, (3, 10), 2.0, (3,), None):
        refused("patch", occlusion, model, IMAGES, patch)
    for stride in (0, 4, (3, 4), "2"):
        refused("stride", occlusion, model, IMAGES, 3, stride)
    for value in (np.nan, [1, 2, 3], "black"):
        refused("value", occlusion, model, IMAGES, 3, value=value)
    refused("class_index", occlusion, model, IMAGES, 3, class_index=5)
    refused("upsample", occlusion, model, IMAGES, 3, upsample=1)
    data = IMAGES, LABELS
    for sizes in ([], [1.1], [np.nan], [[0.5]], "half"):
        refused("sizes", center_occlusion, model, data, sizes)
    for bad in (IMAGES, (IMAGES, LABELS + 1), (IMAGES[:, :5], LABELS), (*data, np.zeros(4))):
        refused("data", center_occlusion, model, bad)
