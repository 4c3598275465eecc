"""CLAHE, against scikit-image."""

import numpy as np
import pytest
import tensorflow as tf
from skimage.exposure import equalize_adapthist
from sklearn.datasets import load_sample_image
from test_api import refused

from tfuq.preprocessing import CLAHE, clahe

PHOTOGRAPH = load_sample_image("china.jpg")[100:169, 200:283]  # sides that tiles do not divide
FLOAT = (PHOTOGRAPH / 255).astype("float32")


def expected(image, n_bins=256, **options):
    """Scikit-image's answer, which knows no axis of a single channel."""
    grey = image.shape[-1] == 1
    found = equalize_adapthist(image[..., 0] if grey else image, nbins=n_bins, **options)
    return found[..., None] if grey else found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 16, "clip_limit": 0.03},
        {"kernel_size": (7, 30), "clip_limit": 0.0, "n_bins": 64},
        {"kernel_size": 200, "clip_limit": 0.002},  # larger than the image, all bins full
        {"kernel_size": 11, "clip_limit": 1.0, "n_bins": 100},
        {"kernel_size": 1, "clip_limit": 0.0},
    ],
)
def test_agrees_with_scikit_image(options):
    for image in (FLOAT, FLOAT[..., :1], FLOAT[:5, :3]):
        found = clahe(image, **options)
        np.testing.assert_allclose(found, expected(image, **options), atol=1e-5)
    for image in (PHOTOGRAPH, PHOTOGRAPH[..., :1]):
        found = clahe(image, **options)
        assert found.dtype == tf.uint8
        # Rounding of a half, and of an element on the edge of it.
        np.testing.assert_allclose(found / 255, expected(image, **options), atol=0.501 / 255)


def test_images_of_a_batch_are_their_own():
    batch = np.stack([FLOAT, FLOAT[::-1] / 2 + 0.3, FLOAT**2])
    found = clahe(batch, 16)
    for one, image in zip(found, batch, strict=True):
        np.testing.assert_allclose(one, expected(image, kernel_size=16), atol=1e-5)


def test_layer_in_a_pipeline_of_images_of_any_size():
    """One graph serves all sizes, which it learns when it runs."""
    layer = CLAHE(clip_limit=0.02, value_range=(0, 255))
    images = [FLOAT, FLOAT[:40, :50]]
    signature = tf.TensorSpec((None, None, 3), "float32")
    data = tf.data.Dataset.from_generator(lambda: iter(images), output_signature=signature)
    for found, image in zip(data.map(lambda image: layer(255 * image)), images, strict=True):
        np.testing.assert_allclose(found / 255, expected(image, clip_limit=0.02), atol=1e-4)


def test_without_contrast_an_image_stays_as_it_is():
    for image in (np.full((9, 9, 3), 77, "uint8"), np.zeros((9, 9, 1), "uint8"), FLOAT[:1, :1]):
        np.testing.assert_array_equal(clahe(image), image)


@pytest.mark.slow
def test_compiled():
    layer = CLAHE(16, value_range=(0, 1))
    compiled = tf.function(layer, jit_compile=True)
    np.testing.assert_allclose(compiled(FLOAT[None]), layer(FLOAT[None]), atol=1e-5)


def test_bad_arguments():
    for value in (0, (8,), (8, 8, 8), 2.5, (4, 0), "8"):
        refused("kernel_size", CLAHE, kernel_size=value)
    for value in (-0.1, 1.5, None, float("nan")):
        refused("clip_limit", CLAHE, clip_limit=value)
    for value in (1, 2.0, None):
        refused("n_bins", CLAHE, n_bins=value)
    refused("clip_limit", clahe, FLOAT, clip_limit=2)
