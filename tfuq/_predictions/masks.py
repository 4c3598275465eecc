"""Images, masks and predictions of segmentation, read from the shapes that users hold."""

from __future__ import annotations

import numpy as np

from tfuq._arguments import ArrayLike, check_fraction, check_integer, shown, to_float64
from tfuq._predictions.probabilities import check_probabilities, is_binary


def error_map(mask: ArrayLike, prediction: ArrayLike) -> np.ndarray:
    """Marks each pixel of a predicted mask as right or wrong; class 0 is the background.

    Args:
        mask: True classes, integers `(..., height, width)`; 0 or 1 if binary.
        prediction: Predicted classes, of the same shape.

    Returns:
        Array of the same shape, int: 0 background in both, 1 true positive (the same class), 2
        false positive (background, predicted as a class), 3 false negative (a class, predicted as
        background), 4 one class predicted as another.

    Raises:
        ValueError: If the shapes differ, or there are values that are no class.

    Example:

    >>> import tfuq
    >>> tfuq.plots.error_map([[0, 1, 0, 2, 2]], [[0, 1, 1, 0, 1]])
    array([[0, 1, 2, 3, 4]])

    See also: `tfuq.plots.uncertainty_maps`.
    """
    mask, prediction = checked_classes("mask", mask), checked_classes("prediction", prediction)
    if mask.shape != prediction.shape:
        raise ValueError(
            f"Argument `prediction` must have the shape of `mask`, {mask.shape}. "
            f"Received: prediction of shape {prediction.shape}"
        )
    same, found, there = mask == prediction, prediction > 0, mask > 0
    return np.select([same & ~there, same, ~there, ~found], [0, 1, 2, 3], 4)


def checked_classes(name, values):
    """`values` as classes, or a ValueError about the argument `name`."""
    values = to_float64(name, values)
    fine = np.isfinite(values) & (values >= 0) & (values == np.floor(values))
    if values.size == 0 or not fine.all():
        raise ValueError(
            f"Argument `{name}` must hold classes, integers of at least 0. "
            f"Received: {name} of shape {values.shape} with {values[~fine][:3]}"
        )
    return values.astype("int64")


def mean_probs(probs):
    """Probabilities `(n, height, width, classes)`, those of a stack averaged over the samples."""
    probs = to_float64("probs", probs)
    if probs.ndim not in (4, 5) or probs.size == 0:
        raise ValueError(
            "Argument `probs` must have shape (n, height, width, classes) or (samples, n, height, "
            f"width, classes) and not be empty. Received: probs of shape {probs.shape}"
        )
    check_probabilities("probs", probs, is_binary(probs.shape, multi_label=False))
    probs = np.clip(probs, 0.0, 1.0)
    return probs if probs.ndim == 4 else probs.mean(0)


def predicted_classes(probs, threshold):
    """Predicted classes `(n, height, width)`."""
    binary = probs.shape[-1] == 1
    if threshold is None:
        return probs[..., 0] > 0.5 if binary else probs.argmax(-1)
    check_fraction("threshold", threshold)
    if not binary:
        raise ValueError(
            f"Argument `threshold` must be None for {probs.shape[-1]} classes: the most probable "
            f"one is predicted. Received: threshold={shown(threshold)}"
        )
    return probs[..., 0] > threshold


def read_masks(masks, shape, raters_axis):
    """What is drawn of the masks, `(n, height, width)`, and the classes that count as true."""
    masks = to_float64("masks", masks)
    raters = [masks] if raters_axis is None else masks_of_raters(masks, raters_axis)
    num_classes = max(2, shape[-1])
    raters = np.stack([sparse(mask, shape, num_classes) for mask in raters])
    votes = (raters[..., None] == np.arange(num_classes)).mean(0)
    true = votes.argmax(-1)
    return votes[..., 1] if num_classes == 2 else true, true


def masks_of_raters(masks, axis):
    """Masks `(raters, ...)`."""
    check_integer("raters_axis", axis, -masks.ndim)
    if axis >= masks.ndim or axis % masks.ndim == 0:
        raise ValueError(
            "Argument `raters_axis` must be an axis of `masks`, and not the first. "
            f"Received: raters_axis={axis} with masks of shape {masks.shape}"
        )
    return np.moveaxis(masks, axis, 0)


def sparse(mask, shape, num_classes):
    """Classes `(n, height, width)` of one rater's mask."""
    if mask.shape == shape and shape[-1] > 1:
        if not np.all(checked_classes("masks", mask).sum(-1) == 1):
            raise ValueError(
                "Argument `masks` must have one-hot rows. Received: masks of other sums"
            )
        return mask.argmax(-1)
    if mask.shape not in (shape[:3], (*shape[:3], 1)):
        raise ValueError(
            f"Argument `masks` must have shape {shape[:3]}, {(*shape[:3], 1)} or, one-hot, "
            f"{shape}, and one axis more with `raters_axis`. Received: masks of shape {mask.shape}"
        )
    found = checked_classes("masks", mask).reshape(shape[:3])
    if found.max() >= num_classes:
        raise ValueError(
            f"Argument `masks` must hold only classes 0 to {num_classes - 1}. "
            f"Received: masks with {found.max()}"
        )
    return found


def stretched(images, shape):
    """Images in [0, 1], `(n, height, width)` or `(n, height, width, 3)`."""
    images = to_float64("images", images)
    grey, channels = images.ndim == 3, images.shape[3:]
    if images.shape[:3] != shape or not (grey or channels in ((1,), (3,))):
        raise ValueError(
            f"Argument `images` must have shape {shape}, or that with a last axis of 1 or 3. "
            f"Received: images of shape {images.shape}"
        )
    if not np.isfinite(images).all():
        raise ValueError(
            "Argument `images` must hold finite numbers. Received: images with NaN or inf"
        )
    images = images[..., 0] if channels == (1,) else images
    axes = tuple(range(1, images.ndim))
    least = images.min(axes, keepdims=True)
    span = images.max(axes, keepdims=True) - least
    return (images - least) / np.where(span > 0, span, 1)
