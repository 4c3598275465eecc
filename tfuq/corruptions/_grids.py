"""Grids that corruptions of pixels go by: coarse fields made smooth, and blocks."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from scipy import ndimage

from tfuq._images.arithmetic import box_average


def barycentric(height, width):
    """Weights `(height, width, 3)` of three points around the middle, in which each pixel lies.

    An affine map that moves the points by u moves a pixel by its weighted sum of u.
    """
    middle, arm = np.array([height // 2, width // 2]), max(1, min(height, width) // 3)
    points = middle + arm * np.array([[1, 1], [-1, 1], [-1, -1]])
    system = np.concatenate([points.T, np.ones((1, 3))])
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, np.ones_like(rows)], axis=-1)
    return (pixels @ np.linalg.inv(system).T).astype("float32")


def smooth_field(noise, height, width, sigma):
    """Uniform noise in [-1, 1) `(batch, height, width, 2)`, smoothed to 3 sigma."""
    field = noise.uniform(height, width, 2, low=-1.0, high=1.0)
    return tf.einsum("ih,jw,bhwa->bija", smoothing(height, sigma), smoothing(width, sigma), field)


@functools.lru_cache(16)
def smoothing(size, sigma):
    """The Gaussian filter of SciPy as a matrix `(size, size)`."""
    matrix = ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=3)
    return matrix.astype("float32")


def blocks(size, new_size):
    """Matrix `(size, size)` that shrinks a line of pixels to `new_size` and enlarges it again."""
    nearest = ((np.arange(size) + 0.5) * new_size / size).astype("int32")
    return box_average(size, new_size)[nearest]
