"""The Dice score: how far predicted masks and true ones overlap.

A table of overlaps has shape `(..., columns, 3)`: for each class the sums of `2 w p t` and `w (p +
t)` over the pixels, and their weight w, in float64. Tables of the same shape add up.
"""

import functools
import math
import numbers

import numpy as np
from keras import ops

from tfuq._keras import check_choice, check_fraction, check_integer, register
from tfuq._predictions import PredictionMetric, check_flags, from_arrays, from_tensors, to_float64

AGGREGATES = ("image", "pool")
AVERAGES = ("macro", "micro", None)


def membership(examples, soft, threshold):
    """How far, 0 to 1, each pixel belongs to each class as predicted: `(n, columns)`."""
    probs, _, _ = examples.one_vs_rest()
    if soft:
        return probs
    if threshold is None and examples.columns is None:
        return ops.one_hot(ops.argmax(probs, axis=-1), probs.shape[-1], dtype=probs.dtype)
    # Both in float32, so that 0.7 counts as 0.7 whichever precision it came in.
    above = ops.cast(probs, "float32") > np.float32(0.5 if threshold is None else threshold)
    return ops.cast(above, probs.dtype)


def overlaps(examples, images, pixels, soft, threshold):
    """Table of overlaps `(images, columns, 3)`."""
    _, targets, weight = examples.one_vs_rest()
    predicted = membership(examples, soft, threshold)
    p, t, w = (
        ops.reshape(ops.cast(x, "float64"), (images, pixels, targets.shape[-1]))
        for x in (predicted, targets, weight)
    )
    sums = [ops.sum(term, axis=1) for term in (2 * w * p * t, w * (p + t), w)]
    return ops.stack(sums, axis=-1)


def ratio(table, empty):
    """Dice `(..., columns)`: 2 |P T| / (|P| + |T|); `empty`, or NaN, if there is neither.

    What has no weight has no score: NaN.
    """
    overlap, size, weight = ops.unstack(table, axis=-1)
    neither = ops.where(weight > 0, np.nan if empty is None else float(empty), np.nan)
    return ops.where(size > 0, overlap / ops.where(size > 0, size, 1.0), neither)


def sum_of_images(table, image_weight, empty):
    """`(columns, 3)`, whose `ratio` is the mean Dice of the images that have one."""
    scores = ratio(table, empty)
    known = ~ops.isnan(scores)
    weight = ops.where(known, ops.cast(image_weight, "float64")[:, None], 0.0)
    total = ops.sum(weight * ops.where(known, scores, 0.0), axis=0)
    count = ops.sum(weight, axis=0)
    return ops.stack([total, count, count], axis=-1)


def mean_of_known(values, axis=None):
    """Mean of what is not NaN; NaN if all is."""
    known = ~ops.isnan(values)
    total = ops.sum(ops.where(known, values, 0.0), axis=axis)
    return total / ops.sum(ops.cast(known, values.dtype), axis=axis)


def dice_of_sums(sums, average, empty):
    """Dice of sums `(raters, columns, 3)`: the mean over raters, and over classes if asked for."""
    scores = mean_of_known(ratio(sums, empty), axis=0)
    return scores if average is None else mean_of_known(scores)


# --- Reading masks ----------------------------------------------------------------------------


def masks_of_raters(y_true, axis):
    """The masks of each rater, as a list."""
    if axis is None:
        return [y_true]
    rank = len(y_true.shape)
    if not -rank <= axis < rank or axis % rank == 0 or y_true.shape[axis] is None:
        raise ValueError(
            f"Argument `raters_axis` must be an axis of `y_true`, of known size, and not the first. "
            f"Received: raters_axis={axis} with y_true of shape {tuple(y_true.shape)}"
        )
    return ops.unstack(y_true, axis=axis)


def without_ignored(y_true, y_pred, ignore_class, multi_label):
    """`y_true` with class 0 in place of what is ignored, and which labels are kept, `(labels,)`."""
    one_hot = len(y_true.shape) == len(y_pred.shape) and y_pred.shape[-1] != 1
    if one_hot and not multi_label and len(y_pred.shape) > 1:
        kept = ops.not_equal(ops.argmax(y_true, axis=-1), ignore_class)
        return y_true, ops.reshape(kept, (-1,))
    kept = ops.not_equal(y_true, ignore_class)
    return ops.where(kept, y_true, ops.zeros_like(y_true)), ops.reshape(kept, (-1,))


def leading_shape(y_pred):
    """How many images, and pixels in each: `(n, ..., classes)` has n and the product between."""
    images, *pixels = ops.shape(y_pred)[:-1] or ops.shape(y_pred)
    return images, math.prod(pixels)


def image_weights(weight, images, per_pixel):
    """Weights `(images,)`, from those of what each image holds; an image without pixels has 0."""
    largest = ops.max(ops.reshape(weight, (images, -1)), axis=1, initial=0.0)
    return ops.cast(largest > 0, "float64") if per_pixel else largest


def is_per_pixel(sample_weight):
    """Whether weights have more axes than that of the images; a last one of size 1 is none."""
    shape = () if sample_weight is None else sample_weight.shape
    return len(shape) > (2 if shape[-1:] == (1,) else 1)
