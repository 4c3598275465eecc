"""Images of another range than is declared of a model are refused by all that runs a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import callbacks, interpret, ood
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import MCDropout
from tfuq.predictive import (
    declare,
    predict_uncertainty,
    sample_predictions,
    test_time_augmentation,
)
from tfuq.selective import ConformalPredictor, RejectionRule, TemperatureScaling

X = np.random.default_rng(0).random((12, 4, 4, 3), "float32")
Y = np.arange(12) % 3


def network():
    layers = [keras.layers.Conv2D(2, 2), keras.layers.Flatten(), MCDropout(0.5)]
    model = keras.Sequential([keras.Input((4, 4, 3)), *layers, keras.layers.Dense(3, "softmax")])
    declare(model, value_range=(0, 1))
    return model


keras.utils.set_random_seed(0)  # of some networks the temperature has no optimum, which warns
MODEL, OTHER = network(), network()
ENTRIES = {
    "predict_uncertainty": lambda x: predict_uncertainty(MODEL, x, 2),
    "sample_predictions": lambda x: sample_predictions(MODEL, x, 2),
    "test_time_augmentation": lambda x: test_time_augmentation(MODEL, x, [lambda i: i]),
    "DeepEnsemble.predict": lambda x: DeepEnsemble.from_models([MODEL, OTHER]).predict(x),
    "DeepEnsemble.evaluate": lambda x: DeepEnsemble.from_models([MODEL, OTHER]).evaluate((x, Y)),
    "Detector.fit": lambda x: ood.MaxSoftmax().fit(MODEL, x),
    "Detector.score": lambda x: ood.MaxSoftmax().fit(MODEL, X).score(x),
    "grad_cam": lambda x: interpret.grad_cam(MODEL, x[:2]),
    "RejectionRule.fit_model": lambda x: RejectionRule.fit_model(
        MODEL, (x, Y), target_coverage=0.5
    ),
    "ConformalPredictor.fit_model": lambda x: ConformalPredictor.fit_model(
        MODEL, (x, Y), alpha=0.5
    ),
    "TemperatureScaling.fit_model": lambda x: TemperatureScaling.fit_model(MODEL, (x, Y)),
    "RejectionEvaluator": lambda x: callbacks.RejectionEvaluator((x, Y)).evaluate(MODEL),
}
WRONG = {"bytes": (255 * X).astype("uint8"), "floats to 255": 255 * X, "ints": X.astype("int32")}


@pytest.mark.parametrize("entry", ENTRIES)
def test_another_range_is_refused(entry, counts):
    for images in WRONG.values():
        with pytest.raises(ValueError, match="must hold images from 0 to 1, as declared of the mo"):
            ENTRIES[entry](images)
        counts("misuse rows, refused")
    ENTRIES[entry](X)


@pytest.mark.parametrize("wrap", ["dataset", "PyDataset"])
def test_in_data_sets_too(wrap):
    class Batches(keras.utils.PyDataset):
        num_batches = 2

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return images[6 * i : 6 * i + 6], Y[6 * i : 6 * i + 6]

    for images in (*WRONG.values(), np.concatenate([X[:7], 255 * X[7:]])):
        data = tf.data.Dataset.from_tensor_slices((images, Y)).batch(6)
        data = Batches() if wrap == "PyDataset" else data
        with pytest.raises(ValueError, match="images from 0 to 1"):
            predict_uncertainty(MODEL, data, 2)
        with pytest.raises(ValueError, match="images from 0 to 1"):
            RejectionRule.fit_model(MODEL, data, target_coverage=0.5)


def test_integers_are_taken_from_0_to_255():
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    declare(model, value_range=(0, 255))
    found = predict_uncertainty(model, WRONG["bytes"])
    assert found.label.shape == (12,)
    with pytest.raises(ValueError, match="images from 0 to 255"):
        predict_uncertainty(model, WRONG["bytes"].astype("float32") * 2)


def test_nan_is_no_image_of_another_range():
    images = X.copy()
    images[0, 0, 0, 0] = np.nan
    assert predict_uncertainty(MODEL, images, 2).label.tolist()[0] == -1
    table = callbacks.RejectionEvaluator((X, Y), (0.1,)).evaluate(MODEL)
    assert table["coverage"][0] == 1


def of_bytes(*layers, declared=False):
    """A network that takes images of 0 to 255."""
    model = keras.Sequential([keras.Input((4, 4, 3)), *layers, keras.layers.Flatten()])
    model.add(keras.layers.Dense(3, "softmax"))
    if declared:
        declare(model, value_range=(0, 255))
    return model


def nested():
    """As a network of `keras.applications` stands in another."""
    inputs = keras.Input((4, 4, 3))
    turned = keras.layers.RandomFlip()(inputs)
    return keras.Model(inputs, of_bytes(keras.layers.Rescaling(1 / 127.5, -1))(turned))


BLACK = {
    "declared": lambda: of_bytes(declared=True),
    "divides": lambda: of_bytes(keras.layers.Rescaling(1 / 255)),
    "divides within": nested,
}
TAKES_THEM = {
    "nobody knows": lambda: of_bytes(),
    "multiplies first": lambda: of_bytes(
        keras.layers.Rescaling(255.0), keras.layers.Rescaling(1 / 255)
    ),
    "declared 0 to 1": lambda: MODEL,
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", BLACK)
def test_images_of_0_to_1_are_told_where_0_to_255_are_taken(name, counts):
    model = BLACK[name]()
    with pytest.warns(UserWarning, match="the model takes 0 to 255: to it they are black"):
        predict_uncertainty(model, X)
    predict_uncertainty(model, 255 * X)
    predict_uncertainty(model, np.round(X))  # black pixels
    predict_uncertainty(model, np.zeros_like(X))
    counts("misuse rows, refused")


@pytest.mark.parametrize("name", TAKES_THEM)
def test_images_of_0_to_1_pass_elsewhere(name):
    predict_uncertainty(TAKES_THEM[name](), X)
