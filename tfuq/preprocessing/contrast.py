"""Contrast-limited adaptive histogram equalization (CLAHE)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_fraction, check_integer, register
from tfuq._images.arithmetic import inside
from tfuq.preprocessing._layers import ImageLayer, checked_pair, computed

LEVELS = 2**14  # of brightness, as in scikit-image


def clahe(
    images: ArrayLike,
    kernel_size: int | tuple[int, int] | None = None,
    clip_limit: float = 0.01,
    n_bins: int = 256,
) -> Tensor:
    """CLAHE: contrast-limited adaptive histogram equalization of images.

    Each tile of the image has a mapping of brightness, the running sum of its histogram, whose
    counts are cut off at a limit and the rest shared out; a pixel is mapped by the four tiles
    around it, interpolated (Zuiderveld 1994). Colours keep hue and saturation: it is their value,
    the largest of red, green and blue, that is equalized.

    The result is that of scikit-image's `equalize_adapthist`, within 1e-5 for float32, and rounded
    for uint8. Only an image without any contrast, before or after, is left as it is, where
    scikit-image makes it white or black.
    Keras' `ContrastLimitedAdaptiveHistogramEqualization` follows other conventions and differs.

    No gradient passes through the brightness, which is counted; some does through colour.

    Args:
        images: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8, or floating
            point in [0, 1].
        kernel_size: Height and width of a tile in pixels, an integer or a pair; by default an
            eighth of the image each way.
        clip_limit: Largest count of a histogram, as a fraction in [0, 1] of the tile's pixels; 0
            for no limit. More gives more contrast.
        n_bins: Number of bins of a histogram, at least 2.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If the inputs are not images, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.preprocessing import clahe

    dull = np.random.randint(100, 140, size=(32, 32, 3), dtype="uint8")
    print(np.ptp(dull), np.ptp(clahe(dull, clip_limit=0.05)))
    ```

    References:
        Zuiderveld, Contrast Limited Adaptive Histogram Equalization, Graphics Gems IV, 1994.

    See also: `tfuq.preprocessing.CLAHE`, `tfuq.preprocessing.adjust_gamma`.
    """
    kernel_size = _checked_kernel_size(kernel_size, clip_limit, n_bins)

    def body(images):
        value = tf.reduce_max(images, axis=-1, keepdims=True)
        colour = tf.where(value > 0, tf.math.divide_no_nan(images, value), 1.0)
        value = _equalized(value[..., 0], kernel_size, clip_limit, n_bins)
        return tf.ensure_shape(colour * value[..., None], images.shape)

    return computed(body, images)


@register
class CLAHE(ImageLayer):
    """Contrast-limited adaptive histogram equalization, as a layer: see `clahe`.

    Args:
        kernel_size: Height and width of a tile in pixels, an integer or a pair; by default an
            eighth of the image each way.
        clip_limit: Largest count of a histogram, as a fraction in [0, 1] of the tile's pixels; 0
            for no limit.
        n_bins: Number of bins of a histogram, at least 2.
        value_range: Black and white of floating-point images, `(0, 255)` as in Keras' own image
            layers; `(0, 1)` for those that were rescaled. Images of another range are refused.

    Call arguments:
        inputs: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8 or floating
            point.

    Returns:
        Tensor of the shape and dtype of `inputs`.

    Raises:
        ValueError: If the inputs are no images, or an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.preprocessing import CLAHE

    model = keras.Sequential([keras.Input((32, 32, 3)), CLAHE(8, 0.02), keras.layers.Flatten()])
    print(model(255 * np.random.rand(2, 32, 32, 3)).shape)
    ```

    See also: `tfuq.preprocessing.clahe`, `tfuq.preprocessing.IlluminationCorrection`.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int] | None = None,
        clip_limit: float = 0.01,
        n_bins: int = 256,
        value_range: tuple[float, float] = (0.0, 255.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(value_range, **kwargs)
        self.kernel_size = _checked_kernel_size(kernel_size, clip_limit, n_bins)
        self.clip_limit = clip_limit
        self.n_bins = n_bins

    def prepare(self, images: ArrayLike) -> Tensor:
        return clahe(images, self.kernel_size, self.clip_limit, self.n_bins)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "clip_limit": self.clip_limit,
            "n_bins": self.n_bins,
        }


def _checked_kernel_size(kernel_size, clip_limit, n_bins):
    check_fraction("clip_limit", clip_limit)
    check_integer("n_bins", n_bins, 2)
    return None if kernel_size is None else checked_pair("kernel_size", kernel_size)


# --- Arithmetic -------------------------------------------------------------------------------
# In whole numbers and float64, as in scikit-image: a rounding that differs would move a pixel to
# the next bin, whose mapping may be far away.


def _equalized(values, kernel_size, clip_limit, n_bins):
    """Brightness `(batch, height, width)` in [0, 1], equalized."""
    axes = (1, 2)
    low, high = _extremes(tf.round(values * 65535), "float64")
    levels = (tf.cast(tf.round(values * 65535), "float64") - low) / tf.maximum(high - low, 1)
    bins = tf.cast(tf.round(levels * (LEVELS - 1)), "int32") // (1 + LEVELS // n_bins)
    kernel = kernel_size or [tf.maximum(tf.shape(values)[axis] // 8, 1) for axis in axes]
    tiles = [-(-tf.shape(values)[axis] // side) for axis, side in zip(axes, kernel, strict=True)]
    counts = _histograms(bins, tiles, kernel, n_bins)
    pixels = tf.cast(kernel[0] * kernel[1], "float64")
    if clip_limit:
        counts = _limited(counts, tf.cast(tf.maximum(clip_limit * pixels, 1), "int32"))
    mappings = tf.cast(tf.cumsum(counts, axis=-1), "float64") * ((LEVELS - 1) / pixels)
    mappings = tf.floor(tf.minimum(mappings, LEVELS - 1.0))
    mapped = _interpolated(mappings, bins, tiles, kernel)
    least, most = _extremes(mapped, "float32")
    stretched = (mapped - least) / tf.maximum(most - least, 1)
    return tf.where((high > low) & (most > least), stretched, values)


def _extremes(values, dtype):
    values = tf.cast(values, dtype)
    return tf.reduce_min(values, (1, 2), True), tf.reduce_max(values, (1, 2), True)


def _histograms(bins, tiles, kernel, n_bins):
    """Counts `(batch, rows, columns, n_bins)` of the tiles of an image continued by its mirror."""
    batch = tf.shape(bins)[0]
    places = [tf.range(count * side) for count, side in zip(tiles, kernel, strict=True)]
    for axis, place in enumerate(places, 1):
        bins = tf.gather(bins, inside(place, tf.shape(bins)[axis], "reflect"), axis=axis)
    row, column = (place // side for place, side in zip(places, kernel, strict=True))
    tile = row[:, None] * tiles[1] + column
    tile += (tf.range(batch) * tiles[0] * tiles[1])[:, None, None]
    index = tile * n_bins + bins
    segments = batch * tiles[0] * tiles[1] * n_bins
    counts = tf.math.unsorted_segment_sum(tf.ones_like(index), index, segments)
    return tf.reshape(counts, (batch, *tiles, n_bins))


def _limited(counts, limit):
    """Counts `(..., bins)` cut off at `limit`, and what is over shared out among the bins below it.

    First every bin gets an equal, whole part; the rest goes to bins at equal distances, again and
    again from one bin further on, until nothing is over or all bins are full.
    """
    n_bins = counts.shape[-1]
    over = _sum(tf.maximum(counts - limit, 0))
    counts = tf.minimum(counts, limit)
    part = over // n_bins
    filled = tf.where(counts < limit - part, counts + part, counts)
    filled = tf.where(filled >= limit - part, limit, filled)
    over -= _sum(filled - counts)

    def unfinished(_, counts, over):
        return tf.reduce_any((over > 0) & (counts < limit))

    def shared(first, counts, over):
        below = counts < limit
        distance = tf.maximum(_sum(tf.cast(below, "int32")) // tf.maximum(over, 1), 1)
        ahead = tf.range(n_bins) - first
        given = below & (ahead >= 0) & (ahead % distance == 0) & (over > 0)
        given = tf.cast(given, "int32")
        return (first + 1) % n_bins, counts + given, over - _sum(given)

    return tf.while_loop(unfinished, shared, (0, filled, over))[1]


def _sum(counts):
    return tf.reduce_sum(counts, axis=-1, keepdims=True)


def _interpolated(mappings, bins, tiles, kernel):
    """Levels `(batch, height, width)`, whole numbers, of the bins mapped by the tiles around."""
    batch, height, width = tf.unstack(tf.shape(bins))
    n_bins = mappings.shape[-1]
    flat = tf.reshape(mappings, (batch, tiles[0] * tiles[1] * n_bins))
    row, column = (
        _neighbours(size, count, side)
        for size, count, side in zip((height, width), tiles, kernel, strict=True)
    )
    total = tf.zeros(tf.shape(bins))
    for top, down in row:
        for left, right in column:
            index = (top[:, None] * tiles[1] + left) * n_bins + bins
            index = tf.reshape(index, (batch, height * width))
            found = tf.reshape(tf.gather(flat, index, axis=1, batch_dims=1), tf.shape(bins))
            total += tf.cast(found * (down[:, None] * right), "float32")
    return tf.floor(total)


def _neighbours(size, count, side):
    """For the two tiles beside each position of a line: which they are, and their shares."""
    place = tf.range(size) + side // 2
    share = tf.cast(place % side, "float64") / tf.cast(side, "float64")
    tile = place // side
    first, second = (tf.clip_by_value(index, 0, count - 1) for index in (tile - 1, tile))
    return (first, 1 - share), (second, share)
