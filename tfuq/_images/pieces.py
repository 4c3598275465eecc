"""Batches of images, worked on a piece at a time, with noise that does not depend on the pieces."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, shown
from tfuq._random.points import ALGORITHM, normal

PIECE = 2**24  # values that are worked on at a time; several float32 tensors of this size exist
EIGHT_BITS = 255
OVERSHOOT = 0.5  # of the range
ROUNDING = 1e-3  # of images in [0, 1]: resizing and casts leave such, and results are clipped


class Shared(NamedTuple):
    """A seed from which all images of a batch get the same random numbers."""

    seed: object


class Noise:
    """Random numbers for the images of a batch; each request is independent of those before."""

    def __init__(self, seed, images, shared):
        self.shared = shared
        self._seed, self._requests = seed, 0
        self._batch = 1 if shared else tf.shape(images)[0]

    def _next_seed(self):
        self._requests += 1
        return tf.random.fold_in(self._seed, self._requests, alg=ALGORITHM)

    def normal(self, *shape):
        """Standard normals `(batch, *shape)`, or `(1, *shape)` for all images."""
        return normal((self._batch, *shape), seed=self._next_seed())

    def uniform(self, *shape, low=0.0, high=1.0):
        """Uniform numbers in [low, high) `(batch, *shape)`, or `(1, *shape)` for all images."""
        shape, seed = (self._batch, *shape), self._next_seed()
        return tf.random.stateless_uniform(shape, seed, low, high, alg=ALGORITHM)

    def poisson(self, means):
        """Poisson numbers with these means `(batch, ...)`."""
        seed = self._next_seed()

        def draw(means):
            return tf.random.stateless_poisson(tf.shape(means), seed, means, "float32")

        return tf.map_fn(draw, means) if self.shared else draw(means)


def applied(body, images, seed):
    """`body(images, noise)`, a function of float32 in [0, 1], for images as users have them.

    In eager mode a batch of more than `PIECE` values goes through in pieces of whole images, each
    with a seed of its own, so that memory stays bounded. A graph takes what it is given at once.
    """
    images = tensor_of(images)
    if images.shape.rank == 3:
        return applied(body, images[None], seed)[0]
    images = checked_images(images)
    shared, seed = isinstance(seed, Shared), seed_pair(getattr(seed, "seed", seed))
    if not tf.executing_eagerly():
        return _whole(body, images, seed, shared)
    size = max(1, PIECE // max(1, int(np.prod(images.shape[1:]))))
    if images.shape[0] <= size:
        return _whole(body, images, seed, shared)
    pieces = []
    for start in range(0, images.shape[0], size):
        own = seed if shared or not start else tf.random.fold_in(seed, -start, alg=ALGORITHM)
        pieces.append(_whole(body, images[start : start + size], own, shared))
    return tf.concat(pieces, axis=0)


def _whole(body, images, seed, shared):
    dtype = images.dtype
    scale = 1.0 if dtype.is_floating else 255.0
    values = tf.cast(images, "float32") / scale
    values = body(values, Noise(seed, images, shared))
    values = tf.ensure_shape(tf.clip_by_value(values, 0.0, 1.0), images.shape)
    return tf.cast(values if dtype.is_floating else tf.round(values * scale), dtype)


def seed_pair(seed):
    """`seed` as an int32 tensor of shape `(2,)`."""
    if tf.is_tensor(seed) or isinstance(seed, np.ndarray):
        seed = tf.convert_to_tensor(seed)
        if not seed.dtype.is_integer or not seed.shape.is_compatible_with((2,)):
            raise ValueError(
                "Argument `seed` must be an integer or an integer tensor of shape (2,). "
                f"Received: seed={shown(seed)}"
            )
        return tf.cast(seed, "int32")
    check_integer("seed", seed, 0)
    seed = int(seed)
    return tf.constant([seed >> 31 & 0x7FFFFFFF, seed & 0x7FFFFFFF], "int32")


def tensor_of(images):
    """Images as a tensor, or a ValueError."""
    try:
        return tf.convert_to_tensor(images)
    except (TypeError, ValueError) as error:
        raise _refusal(f"images of type {type(images).__name__}") from error


def checked_images(images):
    """A tensor of images, or a ValueError; in a graph, values are looked at when it runs."""
    images = tensor_of(images)
    if images.dtype != tf.uint8 and not images.dtype.is_floating:
        raise _refusal(f"images of dtype {images.dtype.name}")
    is_image = images.shape.rank == 4 and images.shape[-1] in (1, 3)
    if not is_image or 0 in images.shape[1:]:
        raise _refusal(f"images of shape {images.shape}")
    if images.dtype.is_floating:
        _check_values(images)
    return images


# --- Ranges of values -------------------------------------------------------------------------


def as_unit(images, value_range):
    """Floating-point images in `value_range` as float32 in [0, 1].

    What lies within half a range beyond it, as resampling and noise leave, is clipped. What lies
    further out, and what lies within [0, 1] where white is 255, is of another range.
    """
    low, high = value_range
    images = tf.cast(images, "float32")
    least, most = _extremes(images, low)
    beyond = OVERSHOOT * (high - low)
    is_fine = (least >= low - beyond) & (most <= high + beyond)
    if low == 0 and high >= EIGHT_BITS:
        is_fine &= (most > 1) | ~tf.reduce_any((images > 0) & (images < 1))
    said = (
        f"Argument `inputs` must hold images from {low:g} to {high:g}, or pass `value_range`, what "
        "black and white are, to the layer."
    )
    _require(is_fine, said, least, most)
    return tf.clip_by_value((images - low) / (high - low), 0.0, 1.0)


def from_unit(images, value_range, dtype):
    """Images in [0, 1] as such in `value_range`."""
    low, high = value_range
    return tf.cast(low + (high - low) * images, dtype)


def _check_values(images):
    if tf.executing_eagerly():
        outside = ~((images >= -ROUNDING) & (images <= 1 + ROUNDING))  # NaN is one
        if tf.reduce_any(outside):
            raise _refusal(f"{images[outside][0]:g} among the values")
        return
    least, most = _extremes(images, 0)
    is_fine = (least >= -ROUNDING) & (most <= 1 + ROUNDING)
    _require(is_fine, f"Argument `images` must be {_IMAGES}.", least, most)


def _extremes(images, instead):
    """The least and the largest number of images, of which those that are not finite count as
    `instead`.
    """
    numbers = tf.where(tf.math.is_finite(images), images, tf.cast(instead, images.dtype))
    return tf.reduce_min(numbers), tf.reduce_max(numbers)


def _require(is_fine, said, least, most):
    """Raises ValueError unless so; in a graph InvalidArgumentError when it runs, not under XLA."""
    if not tf.executing_eagerly():
        tf.debugging.Assert(is_fine, [f"{said} Received: values from", least, "to", most])
    elif not is_fine:
        raise ValueError(f"{said} Received: values from {least:g} to {most:g}")


_IMAGES = (
    "images (batch, height, width, 1 or 3), or one of them, uint8, or floating point in [0, 1]; "
    "others are divided by 255 first, or go to a layer with value_range=(0, 255)"
)


def _refusal(received):
    return ValueError(f"Argument `images` must be {_IMAGES}. Received: {received}")
