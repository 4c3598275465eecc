"""The layer: anew in training, the same in prediction, and in files and pipelines."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from test_corruptions import IMAGES, as_float, refused

from tfuq import corruptions
from tfuq._images.pieces import Shared
from tfuq.corruptions import CorruptionLayer

X = as_float(IMAGES)
COPIES = np.repeat(X[:1], 400, axis=0)


def noisy(value_range=(0, 1), **kwargs):
    return CorruptionLayer("gaussian_noise", 5, seed=3, value_range=value_range, **kwargs)


def kinds(images):
    """How many different images there are."""
    return len({image.tobytes() for image in np.asarray(images)})


def test_training_draws_anew_and_predictions_repeat():
    layer = noisy()
    first, second = (layer(COPIES[:3], training=True) for _ in range(2))
    assert kinds([*first, *second]) == 6
    predicted = layer(COPIES[:3])
    assert kinds([*predicted, *layer(COPIES[:3], training=False), *noisy()(COPIES[:1])]) == 1
    # One pattern for all images: an answer does not depend on the batch.
    np.testing.assert_array_equal(layer(X)[::-1], layer(X[::-1]))
    np.testing.assert_array_equal(predicted[:1], corruptions.gaussian_noise(COPIES[:1], 5, seed=3))
    assert kinds(noisy(resample=True)(COPIES[:3])) == 3
    np.testing.assert_array_equal(noisy(training_only=True)(X), X)
    assert kinds(noisy(training_only=True)(COPIES[:3], training=True)) == 3


def test_a_rate_of_images_is_corrupted():
    """400 images, each by a coin: fails a correct layer once in a million seeds."""
    found = noisy(rate=0.3)(COPIES, training=True).numpy()
    changed = np.any(found != COPIES, axis=(1, 2, 3))
    assert stats.binomtest(int(changed.sum()), 400, 0.3).pvalue > 1e-6
    np.testing.assert_array_equal(noisy(rate=0)(X, training=True), X)
    assert np.all(np.any(noisy(rate=0.3)(X) != X, axis=(1, 2, 3)))  # predictions are corrupted


def test_range_of_values():
    expected = noisy()(X)
    wide = noisy(value_range=(0, 255))(255 * X)
    np.testing.assert_allclose(wide, 255 * expected, atol=1e-3)
    centred = noisy(value_range=(-1, 1))(2 * X - 1)
    np.testing.assert_allclose(centred, 2 * expected - 1, atol=1e-5)
    wide = 1.6 * X - 0.3
    np.testing.assert_allclose(noisy()(wide), noisy()(np.clip(wide, 0, 1)), atol=1e-6)
    eight_bits = noisy()(IMAGES)
    assert eight_bits.dtype == tf.uint8
    np.testing.assert_array_equal(eight_bits, corruptions.gaussian_noise(IMAGES, 5, seed=Shared(3)))


@pytest.mark.slow
def test_images_of_another_range_are_refused():
    """Floats of 0 to 255, as `decode_jpeg` and Keras' loaders give them, became white."""
    default = CorruptionLayer("gaussian_noise", 5, seed=3)
    assert default.value_range == (0, 255)
    np.testing.assert_allclose(default(255 * X), 255 * noisy()(X), atol=1e-3)
    for layer, images in ((noisy(), 255 * X), (default, X)):
        refused("inputs", layer, images)
        data = tf.data.Dataset.from_tensors(images).map(layer)
        with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
            list(data)
        model = keras.Sequential([keras.Input(images.shape[1:]), layer])
        model.compile(jit_compile=False)
        with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
            model.predict(images, verbose=0)
    data = tf.data.Dataset.from_tensors(255 * X).map(lambda x: corruptions.fog(x, 3))
    with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
        list(data)


def test_mixed_precision_keeps_the_dtype_of_the_layer():
    layer = CorruptionLayer("fog", 2, value_range=(0, 1), dtype="mixed_float16")
    assert layer(X).dtype == tf.float16
    assert layer(IMAGES).dtype == tf.uint8


def test_in_a_pipeline():
    layer = CorruptionLayer("impulse_noise", options={"amount": 0.2, "salt": 0.25}, seed=1)
    data = tf.data.Dataset.from_tensor_slices(IMAGES[[0, 0, 0, 0]]).batch(2)
    found = [*data.map(lambda x: layer(x, training=True)), *data.map(layer)]
    assert [images.dtype for images in found] == 4 * [tf.uint8]
    assert kinds(np.concatenate(found[:2])) == 4
    assert kinds(np.concatenate(found[2:])) == 1


@pytest.mark.slow
def test_every_corruption_as_a_layer():
    for name in corruptions.names():
        layer = CorruptionLayer(name, 3, value_range=(0, 1))
        assert kinds(layer(COPIES[:2])) == 1
        assert np.any(layer(X, training=True) != X)


def test_saved_and_loaded(tmp_path):
    options = {"amount": 0.2, "salt": 0.25}
    layer = CorruptionLayer("impulse_noise", options=options, value_range=(0, 255), seed=4)
    model = keras.Sequential([keras.Input((32, 32, 3)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.layers[0].get_config() == layer.get_config()
    np.testing.assert_array_equal(loaded(255 * X), model(255 * X))


def test_whose_severities():
    """What was saved before there were others keeps those of CIFAR-10-C, at any size."""
    images = np.full((1, 96, 96, 1), 128, "uint8")
    of_imagenet = noisy()(images)
    np.testing.assert_array_equal(of_imagenet, noisy(severity_of="imagenet-c")(images))
    config = noisy().get_config()
    assert config.pop("severity_of") is None
    old = CorruptionLayer.from_config(config)
    assert old.severity_of == "cifar10-c"
    assert np.std(old(images)) < 0.5 * np.std(of_imagenet)
    options = {"severity": None, "options": {"stddev": 0.1}}
    config = {**config, **options}
    assert CorruptionLayer.from_config(config).severity_of is None


@pytest.mark.parametrize(
    "argument, kwargs",
    [
        ("corruption", {"corruption": "rain"}),
        ("severity", {"severity": 0}),
        ("severity", {"severity": None}),
        ("severity", {"severity": 3, "options": {"stddev": 0.1}}),
        ("stddev", {"severity": None, "options": {"stddev": -1}}),
        ("rate", {"rate": 1.5}),
        ("training_only", {"training_only": "yes"}),
        ("resample", {"resample": None}),
        ("value_range", {"value_range": (1, 0)}),
        ("value_range", {"value_range": 255}),
        ("seed", {"seed": -1}),
        ("severity_of", {"severity_of": "imagenet"}),
    ],
)
def test_bad_arguments(argument, kwargs):
    refused(argument, CorruptionLayer, **{"corruption": "gaussian_noise", "severity": 3, **kwargs})


def test_inputs_that_are_no_images():
    refused("images", noisy(), X[..., 0])
    refused("images", noisy(), IMAGES.astype("int32"))
