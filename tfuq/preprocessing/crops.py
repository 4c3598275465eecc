"""Crops: the centre of the field of view, and the disc of a picture of the eye's fundus."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_flags, check_fraction, check_positive, register
from tfuq._images.arithmetic import grey
from tfuq.preprocessing._layers import ImageLayer, checked_pair, computed, resampled

ORIGINAL = "original"
LEAST_OF_LINE = 0.02  # of a row or column of the disc is bright, or it is a speck
LEAST_SIDE = 0.1  # of the image, or what is bright is no disc


# --- Field of view ----------------------------------------------------------------------------


def center_field_of_view(
    images: ArrayLike, fraction: float, size: int | tuple[int, int] | str | None = None
) -> Tensor:
    """The centre of images, as if the camera had been nearer.

    Mishra (2020, section 4.5.2) finds predictions of skin lesions to improve when the lesion covers
    about half of the area. Cropped as by `tf.image.central_crop`.

    Args:
        images: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8, or floating
            point in [0, 1].
        fraction: Fraction of height and of width to keep, in (0, 1].
        size: `"original"` to enlarge the crop to the size of the images; an integer or a pair for
            another height and width; None to leave the crop as large as it is.

    Returns:
        Tensor of the dtype of `images`.

    Raises:
        ValueError: If the inputs are not images, or an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from tfuq.preprocessing import center_field_of_view
    >>> image = np.zeros((8, 12, 3), "uint8")
    >>> center_field_of_view(image, 0.5).shape, center_field_of_view(image, 0.5, "original").shape
    (TensorShape([4, 6, 3]), TensorShape([8, 12, 3]))

    References:
        Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020.

    See also: `tfuq.preprocessing.CenterFieldOfView`, `tfuq.preprocessing.crop_fundus`.
    """
    size = _checked_view(fraction, size)

    def body(images):
        crop = tf.image.central_crop(images, float(fraction))
        if size is None:
            return crop
        batch, *sides = tf.unstack(tf.shape(crop)[:3])
        boxes = tf.tile([[0, 0, *sides]], (batch, 1))
        original = tf.unstack(tf.shape(images)[1:3])
        result = resampled(crop, boxes, original if size == ORIGINAL else size)
        sides = images.shape[1:3] if size == ORIGINAL else size
        return tf.ensure_shape(result, (images.shape[0], *sides, images.shape[-1]))

    return computed(body, images)


@register
class CenterFieldOfView(ImageLayer):
    """The centre of the field of view, as a layer: see `center_field_of_view`.

    Args:
        fraction: Fraction of height and of width to keep, in (0, 1].
        size: `"original"` to enlarge the crop to the size of the images; an integer or a pair for
            another height and width; None to leave the crop as large as it is.
        value_range: Black and white of floating-point images, `(0, 255)` as in Keras' own image
            layers; `(0, 1)` for those that were rescaled. Images of another range are refused.

    Call arguments:
        inputs: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8 or floating
            point.

    Returns:
        Tensor of the dtype of `inputs`.

    Raises:
        ValueError: If the inputs are no images, or an argument is out of its range.

    Example:

    >>> import keras
    >>> from tfuq.preprocessing import CenterFieldOfView
    >>> CenterFieldOfView(0.7, size=224)(keras.Input((300, 400, 3))).shape
    (None, 224, 224, 3)

    See also: `tfuq.preprocessing.center_field_of_view`.
    """

    def __init__(
        self,
        fraction: float,
        size: int | tuple[int, int] | str | None = None,
        value_range: tuple[float, float] = (0.0, 255.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(value_range, **kwargs)
        self.size = _checked_view(fraction, size)
        self.fraction = fraction

    def prepare(self, images: ArrayLike) -> Tensor:
        return center_field_of_view(images, self.fraction, self.size)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fraction": self.fraction, "size": self.size}


def _checked_view(fraction, size):
    check_positive("fraction", fraction)
    check_fraction("fraction", fraction)
    if size is None or (isinstance(size, str) and size == ORIGINAL):
        return size
    return checked_pair("size", size)


# --- Fundus -----------------------------------------------------------------------------------


def crop_fundus(
    images: ArrayLike,
    size: int | tuple[int, int],
    threshold: float = 0.05,
    pad_to_aspect_ratio: bool = True,
) -> Tensor:
    """The disc of pictures of the eye's fundus, without the black around it, at one size.

    The crop goes from the first to the last row and column of which at least 2 % is brighter than
    `threshold`. An image in which that is less than a tenth of its height or width has no disc, and
    is resized whole. Linear interpolation, which averages where it shrinks.

    Args:
        images: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8, or floating
            point in [0, 1].
        size: Height and width of the result, an integer or a pair.
        threshold: Brightness (luma) in [0, 1] of the darkest pixel of the disc.
        pad_to_aspect_ratio: Whether a crop of another shape than `size`, as of a disc that is cut
            off above and below, is completed with black; if not, it is stretched.

    Returns:
        Tensor `(batch, *size, channels)` or `(*size, channels)` of the dtype of `images`.

    Raises:
        ValueError: If the inputs are not images, or an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from tfuq.preprocessing import crop_fundus
    >>> rows, columns = np.mgrid[:60, :100]
    >>> disc = (rows - 30) ** 2 + (columns - 40) ** 2 < 20**2
    >>> cropped = crop_fundus(disc[..., None].astype("float32"), 32)
    >>> cropped.shape, round(float(np.mean(cropped)), 1)  # a disc fills pi / 4 of its square
    (TensorShape([32, 32, 1]), 0.8)

    See also: `tfuq.preprocessing.FundusCrop`, `tfuq.preprocessing.center_field_of_view`.
    """
    size = _checked_fundus(size, threshold, pad_to_aspect_ratio)

    def body(images):
        boxes = _disc(grey(images)[..., 0] > threshold)
        if pad_to_aspect_ratio:
            boxes = _widened(boxes, size[0] / size[1])
        result = resampled(images, tf.stop_gradient(boxes), size)
        return tf.ensure_shape(result, (images.shape[0], *size, images.shape[-1]))

    return computed(body, images)


def _disc(bright):
    """Boxes `(batch, 4)` around what is bright `(batch, height, width)`, or of the whole image."""
    bright = tf.cast(bright, "float32")
    edges, found = [], True
    for axis in (1, 2):
        size = tf.shape(bright)[axis]
        line = tf.reduce_mean(bright, axis=3 - axis) >= LEAST_OF_LINE
        first = tf.argmax(line, axis=1, output_type="int32")
        last = size - tf.argmax(line[:, ::-1], axis=1, output_type="int32")
        extent = tf.where(tf.reduce_any(line, axis=1), last - first, 0)
        found &= tf.cast(extent, "float32") >= LEAST_SIDE * tf.cast(size, "float32")
        edges.append((first, last, size))
    (top, bottom, height), (left, right, width) = edges
    boxes = tf.stack([top, left, bottom, right], axis=-1)
    return tf.cast(tf.where(found[:, None], boxes, [0, 0, height, width]), "float32")


def _widened(boxes, ratio):
    """Boxes with the same middle, larger in one direction so that height is `ratio` times width."""
    corners = boxes[:, :2], boxes[:, 2:]
    middle, sides = (corners[0] + corners[1]) / 2, corners[1] - corners[0]
    height, width = tf.unstack(sides, axis=-1)
    sides = tf.stack([tf.maximum(height, width * ratio), tf.maximum(width, height / ratio)], -1)
    return tf.concat([middle - sides / 2, middle + sides / 2], axis=-1)


@register
class FundusCrop(ImageLayer):
    """The disc of pictures of the eye's fundus, as a layer: see `crop_fundus`.

    Args:
        size: Height and width of the result, an integer or a pair.
        threshold: Brightness (luma) in [0, 1] of the darkest pixel of the disc.
        pad_to_aspect_ratio: Whether a crop of another shape than `size` is completed with black; if
            not, it is stretched.
        value_range: Black and white of floating-point images, `(0, 255)` as in Keras' own image
            layers; `(0, 1)` for those that were rescaled. Images of another range are refused.

    Call arguments:
        inputs: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8 or floating
            point.

    Returns:
        Tensor `(batch, *size, channels)` or `(*size, channels)` of the dtype of `inputs`.

    Raises:
        ValueError: If the inputs are no images, or an argument is out of its range.

    Example:

    >>> import keras
    >>> from tfuq.preprocessing import FundusCrop
    >>> FundusCrop(256)(keras.Input((None, None, 3), dtype="uint8")).shape
    (None, 256, 256, 3)

    See also: `tfuq.preprocessing.crop_fundus`.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        threshold: float = 0.05,
        pad_to_aspect_ratio: bool = True,
        value_range: tuple[float, float] = (0.0, 255.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(value_range, **kwargs)
        self.size = _checked_fundus(size, threshold, pad_to_aspect_ratio)
        self.threshold = threshold
        self.pad_to_aspect_ratio = pad_to_aspect_ratio

    def prepare(self, images: ArrayLike) -> Tensor:
        return crop_fundus(images, self.size, self.threshold, self.pad_to_aspect_ratio)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "size": self.size,
            "threshold": self.threshold,
            "pad_to_aspect_ratio": self.pad_to_aspect_ratio,
        }


def _checked_fundus(size, threshold, pad_to_aspect_ratio):
    check_fraction("threshold", threshold)
    check_flags(pad_to_aspect_ratio=pad_to_aspect_ratio)
    return checked_pair("size", size)
