"""Base of functions and layers that prepare images: types, ranges of values, resampling."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_integer, checked_range
from tfuq._images.pieces import PIECE, as_unit, checked_images, from_unit, tensor_of

# --- Images in, images out --------------------------------------------------------------------


def computed(body, *images):
    """`body`, a function of float32 `(batch, height, width, channels)` in [0, 1], on images.

    Images are single or a batch, uint8 or floating point, and so is the result; it is clipped. In
    eager mode a large batch goes through in pieces of whole images, so that memory stays bounded.
    """
    given = [tensor_of(each) for each in images]
    single = given[0].shape.rank == 3
    batches = [checked_images(each[None] if each.shape.rank == 3 else each) for each in given]
    first = batches[0]
    for other in batches[1:]:
        if other.dtype != first.dtype or not other.shape.is_compatible_with(first.shape):
            raise ValueError(
                "Argument `images` must be of one shape and dtype. Received: "
                f"{first.dtype.name} of shape {first.shape}, {other.dtype.name} of {other.shape}"
            )
    if not tf.executing_eagerly():
        result = _whole(body, batches)
    else:
        size = max(1, PIECE // max(1, int(np.prod(first.shape[1:]))))
        starts = range(0, max(1, first.shape[0]), size)
        pieces = [_whole(body, [each[i : i + size] for each in batches]) for i in starts]
        result = pieces[0] if len(pieces) == 1 else tf.concat(pieces, axis=0)
    return result[0] if single else result


def _whole(body, batches):
    dtype = batches[0].dtype
    scale = 1.0 if dtype.is_floating else 255.0
    values = body(*(tf.cast(each, "float32") / scale for each in batches))
    values = tf.clip_by_value(values, 0.0, 1.0)
    return tf.cast(values if dtype.is_floating else tf.round(values * scale), dtype)


class ImageLayer(keras.layers.Layer):
    """A layer without weights, of images in `value_range`; it computes in float32.

    Images of another range are refused: with a ValueError, in a graph when it runs with an
    `InvalidArgumentError`. XLA drops the check.

    Args:
        value_range: Black and white of floating-point images.
    """

    def __init__(self, value_range: tuple[float, float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value_range = checked_range(value_range)

    def prepare(self, images: ArrayLike) -> Tensor:
        """The result for images of uint8, or of floating point in [0, 1]."""
        raise NotImplementedError

    def call(self, inputs: Tensor) -> Any:
        dtype = keras.tree.flatten(inputs)[0].dtype
        if not dtype.is_floating:
            return self.prepare(inputs)
        images = keras.tree.map_structure(lambda each: as_unit(each, self.value_range), inputs)
        return from_unit(self.prepare(images), self.value_range, dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value_range": self.value_range}


def checked_pair(name, value):
    """An integer above 0 for both axes, or a pair of them, as a pair."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        height, width = value
    else:
        height = width = value
    for each in (height, width):
        check_integer(name, each, 1)
    return int(height), int(width)


# --- Resampling -------------------------------------------------------------------------------


def resampled(images, boxes, size):
    """What lies in boxes of the images, at another size; what lies beyond their borders is black.

    Linear interpolation that averages where it shrinks, as `tf.image.resize(antialias=True)` of the
    contents of the box. Two products of matrices: boxes may differ, and XLA compiles it.

    Args:
        images: `(batch, height, width, channels)`.
        boxes: `(batch, 4)`: top, left, bottom and right edges in pixels.
        size: New height and width, integers or tensors.
    """
    top, left, bottom, right = tf.unstack(tf.cast(boxes, "float32"), axis=-1)
    rows = _weights(top, bottom, tf.shape(images)[1], size[0])
    columns = _weights(left, right, tf.shape(images)[2], size[1])
    images = tf.einsum("nih,nhwc->niwc", rows, images)
    return tf.einsum("njw,niwc->nijc", columns, images)


def _weights(start, end, size, new_size):
    """Weights `(batch, new_size, size)` of the pixels of a line from `start` to `end`."""
    start, end = start[:, None], end[:, None]
    scale = (end - start) / tf.cast(new_size, "float32")
    position = start + (tf.range(tf.cast(new_size, "float32")) + 0.5) * scale
    pixels = tf.range(tf.cast(size, "float32")) + 0.5
    distance = tf.abs(pixels - position[..., None]) / tf.maximum(scale, 1.0)[..., None]
    inside = ((pixels > start) & (pixels < end))[:, None]
    weights = tf.where(inside, tf.nn.relu(1.0 - distance), 0.0)
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=-1, keepdims=True))
    there = (position >= 0) & (position <= tf.cast(size, "float32"))
    return tf.where(there[..., None], weights, 0.0)
