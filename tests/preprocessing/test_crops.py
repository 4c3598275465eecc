"""Crops, against TensorFlow's own and against where a disc was drawn."""

import numpy as np
import pytest
import tensorflow as tf
from test_api import refused

from tfuq.preprocessing import CenterFieldOfView, FundusCrop, center_field_of_view, crop_fundus
from tfuq.preprocessing._layers import resampled

IMAGES = np.random.default_rng(0).random((3, 30, 41, 3)).astype("float32")


def disc(height, width, row, column, radius, colour=(0.9, 0.5, 0.2)):
    """An eye's fundus: a coloured disc on nearly black, cut off by the border."""
    rows, columns = np.mgrid[:height, :width]
    inside = (rows + 0.5 - row) ** 2 + (columns + 0.5 - column) ** 2 < radius**2
    return np.where(inside[..., None], colour, 0.01).astype("float32")


# --- Resampling -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60, 50), (7, 9), (13, 100)])
def test_resampling_is_that_of_tensorflow(size):
    boxes = [[0, 0, 30, 41], [3, 5, 25, 30], [10, 1, 11, 41]]
    found = resampled(IMAGES, boxes, size)
    for one, image, (top, left, bottom, right) in zip(found, IMAGES, boxes, strict=True):
        crop = image[top:bottom, left:right]
        np.testing.assert_allclose(one, tf.image.resize(crop, size, antialias=True), atol=1e-5)


def test_beyond_the_border_is_black():
    found = resampled(IMAGES, [[-10, 0, 30, 41]] * 3, (40, 41))
    np.testing.assert_allclose(found, np.pad(IMAGES, ((0, 0), (10, 0), (0, 0), (0, 0))), atol=1e-6)


# --- Field of view ----------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.5, 0.33, 1.0])
def test_field_of_view_is_the_centre(fraction):
    crop = tf.image.central_crop(IMAGES, fraction)
    np.testing.assert_array_equal(center_field_of_view(IMAGES, fraction), crop)
    larger = center_field_of_view(IMAGES, fraction, "original")
    np.testing.assert_allclose(larger, tf.image.resize(crop, (30, 41)), atol=1e-5)
    sized = center_field_of_view(IMAGES[0], fraction, (8, 12))
    expected = tf.image.resize(crop, (8, 12), antialias=True)[0]
    np.testing.assert_allclose(sized, expected, atol=1e-5)


# --- Fundus -----------------------------------------------------------------------------------


def test_disc_fills_the_crop():
    images = np.stack([disc(60, 90, 30, 50, 20), disc(60, 90, 22, 61, 20)])
    found = crop_fundus(images, 40).numpy()
    expected = disc(40, 40, 20, 20, 20)
    np.testing.assert_allclose(found, [expected] * 2, atol=1e-5)
    images[:, 2, 3] = 1.0  # a speck is no disc
    np.testing.assert_allclose(crop_fundus(images, 40)[:, 1:], found[:, 1:], atol=1e-5)


def test_disc_that_is_cut_off_keeps_its_shape():
    image = disc(40, 90, 20, 45, 30)  # 60 wide, of which 40 high are there
    found = crop_fundus(image, 60).numpy()
    np.testing.assert_allclose(found[10:50], image[:, 15:75], atol=1e-5)
    assert not found[:10].any() and not found[50:].any()
    stretched = crop_fundus(image, 60, pad_to_aspect_ratio=False)
    crop = tf.image.resize(image[:, 15:75], (60, 60), antialias=True)
    np.testing.assert_allclose(stretched, crop, atol=1e-5)


def test_images_without_a_disc_are_resized_whole():
    line = np.zeros((30, 30, 3), "float32")
    line[:, 4:6] = 1  # narrower than a tenth
    for image in (np.zeros((30, 30, 3), "float32"), np.ones((30, 30, 3), "float32"), line):
        found = crop_fundus(image, 15)
        np.testing.assert_allclose(found, tf.image.resize(image, (15, 15), antialias=True), 1e-5)


# --- Layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer, size",
    [
        (CenterFieldOfView(0.5, value_range=(0, 255)), (16, 21)),
        (CenterFieldOfView(0.5, "original", value_range=(0, 255)), (30, 41)),
        (FundusCrop((20, 24), value_range=(0, 255)), (20, 24)),
    ],
)
def test_sizes_and_types(layer, size):
    """Of a graph for images of any size, eagerly, in `tf.data`, and of grey images and of none."""
    eight_bits = np.uint8(255 * IMAGES)
    signature = tf.TensorSpec((None, None, None, 3), "uint8")
    expected = layer(eight_bits)
    assert expected.shape == (3, *size, 3) and expected.dtype == tf.uint8
    graph = tf.function(layer, input_signature=[signature], autograph=False)
    np.testing.assert_array_equal(graph(eight_bits), expected)
    data = tf.data.Dataset.from_tensor_slices(eight_bits).map(layer)
    assert data.element_spec.shape == (*size, 3)
    np.testing.assert_array_equal(list(data), expected)
    floats = layer(eight_bits.astype("float32"))
    np.testing.assert_allclose(floats, np.float32(expected), atol=0.501)
    assert layer(eight_bits[..., :1]).shape == (3, *size, 1)
    assert layer(eight_bits[:0]).shape == (0, *size, 3)
    assert layer(eight_bits[0]).shape == (*size, 3)


@pytest.mark.slow
def test_compiled():
    unit = {"value_range": (0, 1)}
    for layer in (CenterFieldOfView(0.5, "original", **unit), FundusCrop(20, **unit)):
        compiled = tf.function(layer, jit_compile=True)
        np.testing.assert_allclose(compiled(IMAGES), layer(IMAGES), atol=1e-5)


def test_bad_arguments():
    for value in (0, -0.5, 1.1, None, "half"):
        refused("fraction", CenterFieldOfView, value)
    for value in (0, 2.5, (8,), "same", (8, -1)):
        refused("size", CenterFieldOfView, 0.5, value)
        refused("size", FundusCrop, value)
    refused("size", FundusCrop, None)
    refused("threshold", FundusCrop, 8, threshold=-1)
    refused("pad_to_aspect_ratio", FundusCrop, 8, pad_to_aspect_ratio="yes")
