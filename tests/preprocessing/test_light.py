"""Gamma against scikit-image; illumination against its closed form and SciPy's blur."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import gaussian_filter
from skimage.exposure import adjust_gamma as expected_gamma
from test_api import refused

from tfuq.preprocessing import Gamma, IlluminationCorrection, adjust_gamma, correct_illumination

RNG = np.random.default_rng(0)
ALL_LEVELS = np.arange(256, dtype="uint8").reshape(1, 16, 16, 1)
SKIN = RNG.uniform(0.2, 0.8, size=(2, 24, 20, 3)).astype("float32")
LIGHT = (np.linspace(0.2, 0.7, 24)[:, None, None] * [1.0, 0.8, 0.6]).astype("float32")


@pytest.mark.parametrize("gamma, gain", [(1.2, 1.0), (0.45, 1.0), (2.0, 1.7), (1.0, 0.5)])
def test_gamma_agrees_with_scikit_image(gamma, gain):
    found = adjust_gamma(ALL_LEVELS, gamma, gain)
    assert found.dtype == tf.uint8
    exact = np.minimum(255 * expected_gamma(ALL_LEVELS / 255, gamma, gain), 255)
    np.testing.assert_allclose(found, exact, atol=0.501)  # halves are rounded either way
    expected = np.minimum(expected_gamma(SKIN, gamma, gain), 1)
    np.testing.assert_allclose(adjust_gamma(SKIN, gamma, gain), expected, rtol=1e-6)
    wide = Gamma(gamma, gain, value_range=(-1, 3))(4 * SKIN - 1)
    np.testing.assert_allclose(wide, 4 * expected - 1, atol=1e-5)


def test_gamma_of_black_has_a_gradient():
    x = tf.zeros((1, 2, 2, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = adjust_gamma(x, 0.5)
    np.testing.assert_array_equal(tape.gradient(y, x), np.zeros((1, 2, 2, 1)))


def test_surface_is_found_under_any_light():
    """Without blur the map is exact, and what is left is the surface, times a number."""
    ambient = LIGHT * SKIN
    flash = ambient + 0.2 * SKIN
    found = correct_illumination(ambient, flash, sigma=0.1, gamma=1.0).numpy()
    level = ambient.sum(axis=(1, 2, 3)) / (0.2 * SKIN).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found, np.minimum(0.2 * SKIN * level[:, None, None, None], 1), 1e-5)
    assert np.abs(found.mean() / ambient.mean() - 1) < 0.02  # as bright as before


def test_illumination_agrees_with_the_formula_in_scipy():
    """With places that the flash does not reach, and others that it makes white."""
    ambient = (LIGHT * SKIN) ** (1 / 2.2)
    flash = (LIGHT * SKIN + 0.2 * SKIN) ** (1 / 2.2)
    flash[:, 3:6], flash[:, 9, 4:12] = ambient[:, 3:6], 1.0
    light, added = ambient**2.2, flash**2.2 - ambient**2.2
    counted = (added > 0.05) & (flash < 0.99)
    sigmas = (0, 2.5, 2.5, 0)
    above, below = (
        gaussian_filter(counted * each, sigmas, mode="nearest") for each in (light, added)
    )
    level = (counted * light).sum((1, 2, 3)) / (counted * added).sum((1, 2, 3))
    even = light * level[:, None, None, None] * below / above
    found = correct_illumination(ambient, flash, sigma=2.5, gamma=2.2, threshold=0.05)
    np.testing.assert_allclose(found, np.minimum(even, 1) ** (1 / 2.2), atol=1e-4)


def test_where_there_is_nothing_to_divide_by_pictures_stay():
    np.testing.assert_allclose(correct_illumination(SKIN, SKIN), SKIN, atol=1e-6)  # no flash
    black = np.zeros((4, 4, 3), "float32")
    np.testing.assert_array_equal(correct_illumination(black, black + 0.5), black)
    half = SKIN.copy()
    half[:, :, 10:] += 0.15
    found = correct_illumination(SKIN, half, sigma=1.0)  # reaches 4 pixels
    np.testing.assert_allclose(found[:, :, :6], SKIN[:, :, :6], atol=1e-6)
    assert np.abs(found - SKIN)[:, :, 10:].max() > 0.05


def test_pair_as_two_inputs_or_as_channels():
    layer = IlluminationCorrection(sigma=2.0, value_range=(0, 255))
    ambient, flash = (np.uint8(255 * each) for each in (LIGHT * SKIN, LIGHT * SKIN + 0.2 * SKIN))
    expected = correct_illumination(ambient, flash, sigma=2.0)
    inputs = [keras.Input((24, 20, 3), dtype="uint8") for _ in range(2)]
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None, 24, 20, 3) and model.output.dtype == "uint8"
    np.testing.assert_array_equal(model([ambient, flash]), expected)
    both = np.concatenate([ambient, flash], axis=-1)
    np.testing.assert_array_equal(layer(both), expected)
    data = tf.data.Dataset.from_tensor_slices(both)
    np.testing.assert_array_equal(list(data.map(layer)), expected)
    # Within the rounding of both.
    assert np.abs(layer(both.astype("float32")) - np.float32(expected)).max() < 0.501


def test_bad_arguments():
    for value in (0, -1, None, float("nan"), "1"):
        refused("gamma", Gamma, gamma=value)
        refused("gain", Gamma, gain=value)
        refused("gamma", IlluminationCorrection, gamma=value)
        refused("sigma", IlluminationCorrection, sigma=value)
    refused("threshold", IlluminationCorrection, threshold=2)
    refused("images", correct_illumination, SKIN, SKIN[:, :-1])
    refused("images", correct_illumination, SKIN, np.uint8(SKIN))
    refused("inputs", IlluminationCorrection(), SKIN)
    refused("inputs", IlluminationCorrection(), [SKIN, SKIN, SKIN])
