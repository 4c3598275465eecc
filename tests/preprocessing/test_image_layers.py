"""What all layers that prepare images have in common: types, ranges, files, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_api import refused

from tfuq import preprocessing
from tfuq.preprocessing import _layers, adjust_gamma, clahe

IMAGES = np.random.default_rng(0).integers(256, size=(5, 16, 12, 3), dtype="uint8")
LAYERS = {
    "CLAHE": {"kernel_size": (8, 6), "clip_limit": 0.05, "n_bins": 64},
    "Gamma": {"gamma": 1.3, "gain": 1.1},
    "IlluminationCorrection": {"sigma": 1.5, "gamma": 2.0, "threshold": 0.1},
    "CenterFieldOfView": {"fraction": 0.5, "size": "original"},
    "FundusCrop": {"size": (9, 8), "threshold": 0.1, "pad_to_aspect_ratio": False},
    "ConfounderRemoval": {"marker_colors": [(0.1, 0.2, 0.3)], "grid": 3, "margin": 0},
}


def make(name, **kwargs):
    return getattr(preprocessing, name)(**LAYERS[name], **kwargs)


def inputs_of(name, images=IMAGES):
    both = np.concatenate([images // 2, images // 2 + images // 3], axis=-1)
    return both if name == "IlluminationCorrection" else images


@pytest.mark.slow  # the contract does this with each by itself, of floating point
def test_all_in_one_model_saved_and_exported(tmp_path):
    names = ["IlluminationCorrection", *(name for name in LAYERS if name[0] != "I")]
    layers = [make(name, value_range=(0, 255)) for name in names]
    model = keras.Sequential([keras.Input((16, 12, 6), dtype="uint8"), *layers])
    x = inputs_of("IlluminationCorrection")
    expected = model(x)
    assert model.output_shape == (None, 9, 8, 3) and expected.dtype == tf.uint8
    assert not model.variables
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert [each.get_config() for each in loaded.layers] == [each.get_config() for each in layers]
    np.testing.assert_array_equal(loaded(x), expected)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported")).serve
    for count in (5, 1):
        np.testing.assert_array_equal(served(x[:count]), expected[:count])


@pytest.mark.parametrize("name", LAYERS)
def test_mixed_precision_computes_in_float32(name):
    layer = make(name, value_range=(0, 1), dtype="mixed_float16")
    x = tf.cast(inputs_of(name) / 255, "float16")
    found = layer(x)
    assert found.dtype == tf.float16
    expected = make(name, value_range=(0, 1))(tf.cast(x, "float32"))
    np.testing.assert_allclose(tf.cast(found, "float32"), expected, atol=1e-3)
    assert layer(inputs_of(name)).dtype == tf.uint8


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_that_are_no_images(name):
    layer, x = make(name), inputs_of(name)
    refused("images", layer, x[..., 0] if name != "IlluminationCorrection" else x[0, 0])
    refused("images", layer, x.astype("int32"))
    argument = "inputs" if name == "IlluminationCorrection" else "images"
    refused(argument, layer, np.concatenate([x, x], axis=-1)[..., :4])
    refused(argument, layer, keras.Input((16, 12, 4)))
    refused("value_range", make, name, value_range=(255, 0))
    refused("value_range", make, name, value_range=(0, float("inf")))


def test_functions_look_at_values_and_layers_clip_what_overshoots():
    for wrong in (2.0, -0.1, np.nan):
        refused("images", adjust_gamma, np.full((1, 2, 2, 1), wrong))
    refused("images", adjust_gamma, [[[["black"]]]])
    wide = np.linspace(-0.4, 1.4, 8, dtype="float32").reshape(1, 2, 4, 1)
    for low, high in ((0, 1), (0, 255), (-1, 1)):
        layer = preprocessing.Gamma(value_range=(low, high))
        found = layer(low + (high - low) * wide)
        np.testing.assert_allclose(found, low + (high - low) * wide.clip(0, 1), atol=1e-4)


# --- Images of another range ---------------------------------------------------------------------

BYTES = IMAGES.astype("float32")
OTHERS = {
    "0 to 255 for 0 to 1": ((0, 1), BYTES),
    "0 to 1 for 0 to 255": ((0, 255), BYTES / 255),
    "-1 to 1 for 0 to 255": ((0, 255), BYTES / 127.5 - 1),
    "0 to 255 for -1 to 1": ((-1, 1), BYTES),
}


def in_a_graph(layer, images):
    """What a pipeline makes of single images, as `decode_jpeg` gives them."""
    return list(tf.data.Dataset.from_tensor_slices(images).map(layer))


@pytest.mark.slow_product
@pytest.mark.parametrize("name", ["Gamma", "CenterFieldOfView"])
@pytest.mark.parametrize("mistake", OTHERS)
def test_images_of_another_range_are_refused(name, mistake):
    value_range, images = OTHERS[mistake]
    layer = make(name, value_range=value_range)
    with pytest.raises(ValueError, match=r"Argument `inputs` must .*value_range.*Received: "):
        layer(images)
    with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
        in_a_graph(layer, images)


def test_layers_take_what_keras_image_layers_take():
    for name in LAYERS:
        assert make(name).value_range == (0, 255)
        np.testing.assert_allclose(
            make(name)(inputs_of(name).astype("float32")), make(name)(inputs_of(name)), atol=0.51
        )
    black = np.zeros((1, 4, 4, 3), "float32")
    dark = np.full_like(black, [0, 1, 2])  # whole numbers
    for images in (black, dark, black[:0]):
        assert make("Gamma")(images).shape == images.shape


def test_functions_refuse_other_ranges_in_graphs():
    for function in (adjust_gamma, clahe):
        with pytest.raises(ValueError, match="value_range"):
            function(BYTES)
        with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
            in_a_graph(function, BYTES)
    rounded = BYTES / 255 * 1.0005  # as resizing leaves it
    np.testing.assert_allclose(adjust_gamma(rounded), np.minimum(rounded, 1))


def test_large_batches_go_through_in_pieces(monkeypatch):
    whole = clahe(IMAGES)
    monkeypatch.setattr(_layers, "PIECE", 2 * IMAGES[0].size)
    sizes = []
    kept = _layers._whole
    monkeypatch.setattr(
        _layers, "_whole", lambda body, b: (sizes.append(len(b[0])), kept(body, b))[1]
    )
    np.testing.assert_array_equal(clahe(IMAGES), whole)
    assert sizes == [2, 2, 1]
    assert adjust_gamma(IMAGES[:0]).shape == (0, 16, 12, 3)
