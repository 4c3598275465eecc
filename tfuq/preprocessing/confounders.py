"""Removal of coloured marks, such as pen on skin, by k-means of colours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Tensor,
    check_flags,
    check_fraction,
    check_integer,
    check_positive,
    register,
    shown,
)
from tfuq._images.arithmetic import tint
from tfuq.preprocessing._blobs import without_middle
from tfuq.preprocessing._clusters import clusters, joined, quantized
from tfuq.preprocessing._layers import ImageLayer, computed


def remove_confounders(
    images: ArrayLike,
    marker_colors: Sequence[Sequence[float]] | None = None,
    tolerance: float = 0.2,
    grid: int = 8,
    num_colors: int = 4,
    min_share: float = 0.1,
    keep_shades: bool = True,
    margin: int = 1,
    *,
    keep_middle: bool = True,
    max_share: float = 0.3,
    return_mask: bool = False,
) -> Any:
    """Images with marks painted over in the colour that dominates around them.

    After Mishra (2020, section 4.4), who sets thresholds by hand: a mask finds the marks (see
    `confounder_mask`); the image is parted by a grid, and masked pixels get the dominant colour of
    their cell: the largest cluster of k-means, in quantized RGB, of the cell's pixels outside the
    mask. A cell without such pixels takes the dominant colour of the image, and an image that is
    masked throughout stays as it is.

    K-means starts from the most frequent colour, adding each time the colour that contributes most
    to the squared distances; nothing is random. No gradient passes to what is painted over.

    Args:
        images: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8, or floating
            point in [0, 1].
        marker_colors: Colours (red, green, blue) in [0, 1] of the marks, a sequence of at least
            one; None for colours that are rare and unlike the others.
        tolerance: Euclidean distance of colours, above 0: for `marker_colors`, up to which a pixel
            belongs to a mark; without them, from which it is unlike the others.
        grid: Cells along height and along width.
        num_colors: Clusters of k-means, in the image and in a cell.
        min_share: Fraction of the image from which a cluster is no mark; the largest never is.
        keep_shades: Whether shades of a frequent colour, such as shadows and dark lesions, are no
            marks. Of no effect on `marker_colors`; without these, it must be False for grey images,
            which differ in their shade only.
        margin: Pixels around what is found that are masked too, as an edge is blurred.
        keep_middle: Whether a compact blob in the middle, and what is joined to it, is no mark: it
            is what the picture was taken of. Of no effect on `marker_colors`.
        max_share: Share of an image, in (0, 1], from which on it is left as it is: so much is no
            mark; 1 is no limit. A warning tells how many images that are, except in graphs, which
            cannot warn.
        return_mask: Whether to return what was painted over as well.

    Returns:
        Tensor of the shape and dtype of `images`; with `return_mask` a pair of it and a Boolean
        tensor of that shape without the last axis.

    Raises:
        ValueError: If the inputs are not images, or an argument is not as described.

    Example:

    ```python
    import numpy as np
    from tfuq.preprocessing import remove_confounders

    skin = np.random.normal((0.8, 0.6, 0.5), 0.02, (64, 64, 3)).clip(0, 1)
    marked = skin.copy()
    marked[20:30, 10:14] = (0.2, 0.2, 0.7)  # blue ink
    clean = remove_confounders(marked)
    print(np.abs(clean - skin).max())  # about 0.1, the grain of the skin
    ```

    References:
        Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020.

    See also: `tfuq.preprocessing.ConfounderRemoval`, `tfuq.preprocessing.confounder_mask`.
    """
    marks = Marks(
        marker_colors, tolerance, num_colors, min_share, keep_shades, margin, keep_middle, max_share
    ).checked()
    check_integer("grid", grid, 1)
    check_flags(return_mask=return_mask)

    def body(images):
        masked = _masked(images, marks)
        painted = _painted(images, masked, grid, num_colors)
        return tf.concat([painted, tf.cast(masked, "float32")], axis=-1) if return_mask else painted

    found = computed(body, images)
    return (found[..., :-1], found[..., -1] > 0) if return_mask else found


def confounder_mask(
    images: ArrayLike,
    marker_colors: Sequence[Sequence[float]] | None = None,
    tolerance: float = 0.2,
    num_colors: int = 4,
    min_share: float = 0.1,
    keep_shades: bool = True,
    margin: int = 1,
    *,
    keep_middle: bool = True,
    max_share: float = 0.3,
) -> Tensor:
    """Where images hold marks: what `remove_confounders` paints over.

    With `marker_colors`: pixels with |x - m| <= tolerance for one of these colours m. Without:
    pixels that are far, by more than `tolerance`, from all colours that are frequent, the centres c
    of those clusters that hold `min_share` of the image. Their distance is |x - c|, or, to keep
    shades, that to the line through black and c, on which the shades of c lie:

        |x - c (x . c) / (c . c)|

    A mark of the hue of a frequent colour, or a black one, is not found that way: name its colour.
    What is rare and of a hue of its own is taken for a mark, whatever it is, unless it is a compact
    blob in the middle, as a lesion is, or joined to one: a window of an eighth of the shorter side,
    in the middle half of the image, that is masked by more than half. So ink that touches a lesion
    stays too. Name the colours where that matters, and look at the masks of some images.

    Args:
        images: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8, or floating
            point in [0, 1].
        marker_colors: As all further arguments, as for `remove_confounders`.
        tolerance: Distance of colours, above 0.
        num_colors: Clusters of k-means.
        min_share: Fraction of the image from which a cluster is no mark.
        keep_shades: Whether shades of frequent colours are no marks.
        margin: Pixels around what is found that are masked too.
        keep_middle: Whether a compact blob in the middle is no mark.
        max_share: Share of an image from which on nothing of it is masked, with a warning.

    Returns:
        Boolean tensor, of the shape of `images` without the last axis.

    Raises:
        ValueError: If the inputs are not images, or an argument is not as described.

    Example:

    >>> import numpy as np
    >>> from tfuq.preprocessing import confounder_mask
    >>> image = np.full((4, 5, 3), 200, "uint8")
    >>> image[1, 2] = 0, 0, 255
    >>> confounder_mask(image, margin=0).numpy().astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 0, 1, 0, 0],
           [0, 0, 0, 0, 0],
           [0, 0, 0, 0, 0]])

    See also: `tfuq.preprocessing.remove_confounders`.
    """
    marks = Marks(
        marker_colors, tolerance, num_colors, min_share, keep_shades, margin, keep_middle, max_share
    ).checked()
    found = computed(lambda images: tf.cast(_masked(images, marks), "float32"), images)
    return found[..., 0] > 0


@register
class ConfounderRemoval(ImageLayer):
    """Marks painted over in the colour that dominates around them: `remove_confounders`.

    Args:
        marker_colors: Colours (red, green, blue) in [0, 1] of the marks, whatever `value_range` is,
            a sequence of at least one; None for colours that are rare and unlike the others.
        tolerance: Euclidean distance of colours in [0, 1], above 0: for `marker_colors`, up to
            which a pixel belongs to a mark; without them, from which it is unlike the others.
        grid: Cells along height and along width.
        num_colors: Clusters of k-means, in the image and in a cell.
        min_share: Fraction of the image from which a cluster is no mark; the largest never is.
        keep_shades: Whether shades of a frequent colour, such as shadows and dark lesions, are no
            marks; for grey images without `marker_colors` it must be False.
        margin: Pixels around what is found that are masked too.
        keep_middle: Whether a compact blob in the middle, and what is joined to it, is no mark.
        max_share: Share of an image from which on it is left as it is.
        value_range: Black and white of floating-point images, `(0, 255)` as in Keras' own image
            layers; `(0, 1)` for those that were rescaled. Images of another range are refused.

    Call arguments:
        inputs: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8 or floating
            point.

    Returns:
        Tensor of the shape and dtype of `inputs`.

    Raises:
        ValueError: If the inputs are no images, or an argument is not as described.

    Example:

    ```python
    import numpy as np
    import tensorflow as tf
    from tfuq.preprocessing import ConfounderRemoval

    images = np.random.randint(150, 200, size=(4, 32, 32, 3), dtype="uint8")
    images[:2, 5:9, 5:20] = 60, 20, 140  # violet ink
    without_ink = ConfounderRemoval(marker_colors=[(0.24, 0.08, 0.55)])
    data = tf.data.Dataset.from_tensor_slices(images).batch(2).map(without_ink)
    print([int(batch[..., 0].numpy().min()) for batch in data])
    ```

    See also: `tfuq.preprocessing.remove_confounders`.
    """

    def __init__(
        self,
        marker_colors: Sequence[Sequence[float]] | None = None,
        tolerance: float = 0.2,
        grid: int = 8,
        num_colors: int = 4,
        min_share: float = 0.1,
        keep_shades: bool = True,
        margin: int = 1,
        value_range: tuple[float, float] = (0.0, 255.0),
        keep_middle: bool = True,
        max_share: float = 0.3,
        **kwargs: Any,
    ) -> None:
        super().__init__(value_range, **kwargs)
        marks = Marks(
            *(marker_colors, tolerance, num_colors, min_share, keep_shades, margin),
            *(keep_middle, max_share),
        ).checked()
        check_integer("grid", grid, 1)
        self.marker_colors = marks.marker_colors
        self.tolerance = tolerance
        self.grid = grid
        self.num_colors = num_colors
        self.min_share = min_share
        self.keep_shades = keep_shades
        self.margin = margin
        self.keep_middle = keep_middle
        self.max_share = max_share

    def prepare(self, images: ArrayLike) -> Tensor:
        return remove_confounders(images, **self._options())

    def _options(self):
        return {
            "marker_colors": self.marker_colors,
            "tolerance": self.tolerance,
            "grid": self.grid,
            "num_colors": self.num_colors,
            "min_share": self.min_share,
            "keep_shades": self.keep_shades,
            "margin": self.margin,
            "keep_middle": self.keep_middle,
            "max_share": self.max_share,
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._options()}


# --- Masks ------------------------------------------------------------------------------------


class Marks(NamedTuple):
    """What counts as a mark, as `remove_confounders` tells it."""

    marker_colors: tuple | None
    tolerance: float
    num_colors: int
    min_share: float
    keep_shades: bool
    margin: int
    keep_middle: bool
    max_share: float

    def checked(self):
        """The same with the colours as tuples, or a ValueError for any of the arguments."""
        check_positive("tolerance", self.tolerance)
        check_integer("num_colors", self.num_colors, 1)
        check_fraction("min_share", self.min_share)
        check_flags(keep_shades=self.keep_shades, keep_middle=self.keep_middle)
        check_integer("margin", self.margin, 0)
        check_positive("max_share", self.max_share)
        check_fraction("max_share", self.max_share)
        return self._replace(marker_colors=_checked_colors(self.marker_colors))


def _checked_colors(marker_colors):
    if marker_colors is None:
        return None
    try:
        colours = np.asarray(marker_colors, "float64")
    except (TypeError, ValueError):
        colours = np.zeros(0)
    inside = (colours >= 0) & (colours <= 1)
    if colours.ndim != 2 or colours.shape[1] != 3 or not len(colours) or not inside.all():
        raise ValueError(
            "Argument `marker_colors` must be a sequence of at least one colour (red, green, blue) "
            f"in [0, 1]. Received: marker_colors={shown(marker_colors)}"
        )
    return tuple(tuple(colour) for colour in colours.tolist())


def _masked(images, marks):
    """Booleans `(batch, height, width, 1)`."""
    if marks.marker_colors is None:
        if images.shape[-1] == 1 and marks.keep_shades:
            raise ValueError(
                "Argument `keep_shades` must be False for grey images, which differ only in "
                "shade, unless `marker_colors` are given. Received: keep_shades=True"
            )
        options = marks.num_colors, marks.min_share, marks.keep_shades
        masked = _squared_to_frequent(images, *options) > marks.tolerance**2
        masked = without_middle(masked[..., None]) if marks.keep_middle else masked[..., None]
    else:
        distances = (tf.square(images - tint(each, images)) for each in marks.marker_colors)
        nearest = tf.reduce_min([tf.reduce_sum(each, axis=-1) for each in distances], axis=0)
        masked = (nearest <= marks.tolerance**2)[..., None]
    if marks.margin:
        grown = tf.nn.max_pool2d(tf.cast(masked, "float32"), 2 * marks.margin + 1, 1, "SAME")
        masked = tf.reshape(grown, tf.shape(masked)) > 0
    return _limited(masked, marks.max_share)


def _limited(masked, max_share):
    """Masks that cover less than `max_share` of their image, and nothing of the others.

    1 is no limit.
    """
    share = tf.reduce_mean(tf.cast(masked, "float32"), axis=(1, 2, 3), keepdims=True)
    is_fine = (share < max_share) | (share == 0) | (max_share == 1)
    if tf.executing_eagerly() and not tf.reduce_all(is_fine):
        count, most = int(tf.reduce_sum(tf.cast(~is_fine, "int32"))), float(tf.reduce_max(share))
        warnings.warn(
            f"{count} of {masked.shape[0]} images are left as they are: max_share={max_share:g} "
            f"or more of each would be painted over, up to {most:.2f}. "
            "Pass the colours of the marks as `marker_colors`.",
            stacklevel=2,
        )
    return masked & is_fine


def _squared_to_frequent(images, num_colors, min_share, keep_shades):
    """Squared distance `(batch, height, width)` to the nearest of the frequent colours."""
    centres, shares = clusters(*quantized(images, tf.ones(tf.shape(images)[:3])), num_colors)
    largest = tf.reduce_max(shares, axis=-1, keepdims=True)
    frequent = shares >= tf.minimum(min_share, largest)
    along = tf.einsum("nhwc,nkc->nhwk", images, centres)
    length = tf.reduce_sum(tf.square(centres), axis=-1)[:, None, None]
    own = tf.reduce_sum(tf.square(images), axis=-1, keepdims=True)
    if keep_shades:
        squared = own - tf.math.divide_no_nan(tf.square(along), length)
    else:
        squared = own - 2 * along + length
    return tf.reduce_min(tf.where(frequent[:, None, None], squared, np.inf), axis=-1)


def _painted(images, masked, grid, num_colors):
    """Images whose masked pixels have the dominant colour of their cell of the grid."""
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    row, column = (tf.range(size) * grid // size for size in (height, width))
    cell = (tf.range(batch) * grid**2)[:, None, None] + row[:, None] * grid + column
    counts, sums = quantized(images, tf.cast(~masked[..., 0], "float32"), cell, grid**2)
    tables = ((each, joined(each, grid**2)) for each in (counts, sums))
    centres, _ = clusters(*(tf.concat(each, axis=0) for each in tables), num_colors)
    of_cells, of_image = tf.split(centres[:, 0], [batch * grid**2, batch])
    is_empty = tf.reduce_sum(counts, axis=-1, keepdims=True) == 0
    colours = tf.where(is_empty, tf.repeat(of_image, grid**2, axis=0), of_cells)
    some = ~tf.reduce_all(masked, axis=(1, 2), keepdims=True)
    painted = tf.gather(tf.stop_gradient(colours), cell)
    return tf.ensure_shape(tf.where(masked & some, painted, images), images.shape)


# --- K-means ----------------------------------------------------------------------------------
