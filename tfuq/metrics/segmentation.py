"""The Dice score: how far predicted masks and true ones overlap.

A table of overlaps has shape `(..., columns, 3)`: for each class the sums of `2 w p t` and `w (p +
t)` over the pixels, and their weight w, in float64. Tables of the same shape add up.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from tfuq._arguments import (
    ArrayLike,
    Tensor,
    check_choice,
    check_flags,
    check_fraction,
    register,
    shown,
    to_float64,
)
from tfuq._predictions.examples import from_arrays
from tfuq.metrics._base import PredictionMetric

AGGREGATES = ("image", "pool")
AVERAGES = ("macro", "micro", None)


def membership(probs, exclusive, soft, threshold):
    """How far, 0 to 1, each pixel is predicted to belong to each class: `(n, columns)`."""
    if soft:
        return probs
    if threshold is None and exclusive:
        return ops.one_hot(ops.argmax(probs, axis=-1), probs.shape[-1], dtype=probs.dtype)
    # Both in float32, so that 0.7 counts as 0.7 whichever precision it came in.
    above = ops.cast(probs, "float32") > np.float32(0.5 if threshold is None else threshold)
    return ops.cast(above, probs.dtype)


def overlaps(examples, images, pixels, soft, threshold):
    """Table of overlaps `(images, columns, 3)`."""
    probs, targets, weight = examples.one_vs_rest()
    predicted = membership(probs, examples.columns is None, soft, threshold)
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


def chosen_classes(table, ids):
    """The columns `ids` of a table of overlaps."""
    columns = table.shape[-2]
    if max(ids) >= columns:
        raise ValueError(
            f"Argument `target_class_ids` must be below the number of columns, {columns}. "
            f"Received: target_class_ids={ids}"
        )
    return ops.take(table, list(ids), axis=-2)


# --- Reading masks ----------------------------------------------------------------------------


def masks_of_raters(y_true, axis):
    """The masks of each rater, as a list."""
    if axis is None:
        return [y_true]
    rank = len(y_true.shape)
    if not -rank <= axis < rank or axis % rank == 0 or not y_true.shape[axis]:
        raise ValueError(
            "Argument `raters_axis` must be an axis of `y_true`, of known size, not the first. "
            f"Received: raters_axis={axis} with y_true of shape {tuple(y_true.shape)}"
        )
    return ops.unstack(y_true, axis=axis)


def without_ignored(y_true, y_pred, ignore_class, multi_label):
    """`y_true` with 0 in place of what is ignored, and which labels are kept, `(labels,)`."""
    one_hot = len(y_true.shape) == len(y_pred.shape) > 1 and y_pred.shape[-1] != 1
    if one_hot and not multi_label:
        return y_true, ops.reshape(ops.not_equal(ops.argmax(y_true, axis=-1), ignore_class), (-1,))
    kept = ops.not_equal(y_true, ignore_class)
    return ops.where(kept, y_true, 0), ops.reshape(kept, (-1,))


def leading_shape(y_pred):
    """How many images, and pixels in each: `(n, ..., classes)` has n and the product between."""
    images, *pixels = ops.shape(y_pred)[:-1] or ops.shape(y_pred)
    return images, math.prod(pixels)


def image_weights(examples, images, pixels, of_pixels):
    """Weights `(images,)`: the largest in each, or, if they are of pixels, 1 where one is not 0."""
    weight = ops.reshape(examples.weight, (images, pixels * (examples.columns or 1)))
    weight = ops.max(weight, axis=1, initial=0.0)
    return ops.cast(weight > 0, weight.dtype) if of_pixels else weight


def is_of_pixels(sample_weight):
    """Whether weights have more axes than that of the images; a last one of size 1 is none."""
    shape = () if sample_weight is None else sample_weight.shape
    return len(shape) > (2 if shape[-1:] == (1,) else 1)


# --- The score --------------------------------------------------------------------------------


class Rule(NamedTuple):
    """How Dice is counted: the arguments that `dice_score` and `DiceScore` share."""

    aggregate: str
    average: str | None
    soft: bool
    threshold: float | None
    empty: float | None
    target_class_ids: list | None
    ignore_class: int | None
    raters_axis: int | None
    multi_label: bool

    def check(self):
        """Raises ValueError unless all arguments can be used, and together."""
        check_choice("aggregate", self.aggregate, AGGREGATES)
        check_choice("average", self.average, AVERAGES)
        check_flags(soft=self.soft)
        if self.soft and self.threshold is not None:
            raise ValueError(
                "Argument `threshold` must be None with soft=True, which cuts nothing. "
                f"Received: threshold={shown(self.threshold)}"
            )
        for name in ("threshold", "empty"):
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name))
        for name in ("ignore_class", "raters_axis"):
            check_integer_or_none(name, getattr(self, name))
        check_class_ids("target_class_ids", self.target_class_ids)

    def sums(self, y_true, y_pred, sample_weight, read):
        """`(raters, columns, 3)`, where `read(mask)` gives the `Examples` of one rater's mask."""
        tables = []
        for mask in masks_of_raters(y_true, self.raters_axis):
            if self.ignore_class is None:
                examples = read(mask)
            else:
                mask, kept = without_ignored(mask, y_pred, self.ignore_class, self.multi_label)
                examples = read(mask)
                examples = examples._replace(weight=ops.where(kept, examples.weight, 0.0))
            tables.append(self._sums_of_rater(examples, y_pred, is_of_pixels(sample_weight)))
        return ops.stack(tables)

    def _sums_of_rater(self, examples, y_pred, of_pixels):
        shape = leading_shape(y_pred)
        table = overlaps(examples, *shape, self.soft, self.threshold)
        if self.target_class_ids is not None:
            table = chosen_classes(table, self.target_class_ids)
        if self.average == "micro":
            table = ops.sum(table, axis=1, keepdims=True)
        if self.aggregate == "pool":
            return ops.sum(table, axis=0)
        return sum_of_images(table, image_weights(examples, *shape, of_pixels), self.empty)


def check_integer_or_none(name, value):
    """Raises ValueError unless `value` is an integer or None."""
    if value is not None and (not isinstance(value, numbers.Integral) or isinstance(value, bool)):
        raise ValueError(
            f"Argument `{name}` must be an integer or None. Received: {name}={shown(value)}"
        )


def check_class_ids(name, ids):
    """Raises ValueError unless `ids` is None or holds different integers of at least 0."""
    if ids is None:
        return
    fine = isinstance(ids, (list, tuple)) and all(
        isinstance(k, numbers.Integral) and not isinstance(k, bool) and k >= 0 for k in ids
    )
    if not fine or not len(ids) == len(set(ids)) > 0:
        raise ValueError(
            f"Argument `{name}` must be a list of different integers of at least 0, or None. "
            f"Received: {name}={shown(ids)}"
        )


def plain(value):
    """An argument as JSON holds it."""
    if isinstance(value, (list, tuple)):
        return [int(k) for k in value]
    return value.item() if isinstance(value, np.generic) else value


def dice_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    aggregate: str = "image",
    average: str | None = "macro",
    soft: bool = False,
    threshold: float | None = None,
    empty: float | None = 1.0,
    target_class_ids: Sequence[int] | None = None,
    ignore_class: int | str | None = None,
    raters_axis: int | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
) -> float | np.ndarray:
    """Dice score of predicted masks: the overlap with the true ones, relative to their size.

    Formula:
        Dice = 2 sum_i w_i p_i t_i / sum_i w_i (p_i + t_i)        (Dice 1945)
    over pixels i, for each class, with t 0 or 1, and p 0 or 1 or, if soft, the probability. For
    hard masks it is the F1 score of pixels, 2 TP / (2 TP + FP + FN). A binary prediction has one
    class, a multi-class one all of its classes, the background too: leave that out with
    `target_class_ids`.

    Args:
        y_true: Masks, sparse `(n, ...)` or `(n, ..., 1)`, or one-hot `(n, ..., classes)`; 0 or 1
            if binary or multi-label. With several raters, one axis more.
        y_pred: Predictions, `(n, ..., classes)`; binary `(n, ..., 1)`, for class 1; multi-label
            `(n, ..., labels)`. The first axis is that of images.
        aggregate: `"image"`: the mean of the Dice of each image. `"pool"`: one Dice of all pixels
            of all images.
        average: `"macro"`: the mean over classes. `"micro"`: one Dice of the sums over classes.
            `None`: an array with a Dice per class.
        soft: Whether p is the probability itself.
        threshold: Number in [0, 1]: a pixel is predicted to be of a class if its probability is
            above it. By default each is of its most probable class: above 0.5 if binary.
        empty: Number in [0, 1], the Dice of a class that neither mask of an image holds (with
            `"pool"`, of no image); `None` leaves it out of the means.
        target_class_ids: List of the classes (or labels) that count, or `None` for all.
        ignore_class: Pixels whose true label is this integer are left out; any integer, such as -1
            or 255. `None` ignores nothing.
        raters_axis: Axis of `y_true` that holds several raters' masks, never the first. The result
            is the mean of the Dice with each.
        from_logits: Whether `y_pred` are logits, not probabilities.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights of images, `(n,)`, or, with more of the leading axes, of pixels: then
            each image counts as 1. What has weight 0 is left out, whatever it holds.

    Returns:
        A float in [0, 1], 1 is perfect; or, with `average=None`, an array `(classes,)`. NaN where
        nothing has a score: all is ignored, or empty and left out.

    Raises:
        ValueError: If an argument is not as described; if arrays are empty or do not fit
            together; if they hold NaN, no probabilities, labels that are no class, or negative
            weights.

    Example:

    >>> import tfuq
    >>> mask = [[1, 1, 0, 0], [0, 0, 0, 0]]
    >>> probs = [[[0.9], [0.4], [0.2], [0.1]], [[0.1], [0.2], [0.1], [0.3]]]
    >>> round(tfuq.metrics.dice_score(mask, probs), 6)
    0.833333
    >>> round(tfuq.metrics.dice_score(mask, probs, aggregate="pool", soft=True), 6)
    0.604651

    References:
        Dice, Measures of the amount of ecologic association between species, Ecology 26, 1945.

    See also: `tfuq.metrics.DiceScore`, `tfuq.selective.MaskRiskControl`.
    """
    check_flags(from_logits=from_logits, multi_label=multi_label)
    rule = Rule(
        aggregate,
        average,
        soft,
        threshold,
        empty,
        target_class_ids,
        ignore_class,
        raters_axis,
        multi_label,
    )
    rule.check()
    y_true, y_pred = to_float64("y_true", y_true), to_float64("y_pred", y_pred)
    weight = None if sample_weight is None else to_float64("sample_weight", sample_weight)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    sums = rule.sums(
        y_true, y_pred, weight, lambda mask: from_arrays(mask, y_pred, weight, **flags)
    )
    result = np.asarray(dice_of_sums(sums, average, empty))
    return result if average is None else float(result)


@register
class DiceScore(PredictionMetric):
    """Dice score of predicted masks: the overlap with the true ones, relative to size; streaming.

    The formula and the arguments are those of the function `dice_score`: per image or pooled over
    all that it has seen, the result is the same whatever the batches. The state, `(raters, classes,
    3)`, is made when the first batch tells their numbers.

    Args:
        aggregate: `"image"` or `"pool"`: the mean over images, or one Dice of all their pixels.
        average: `"macro"`, `"micro"` or `None`: over classes, of their sums, or one for each.
        soft: Whether probabilities are taken as they are.
        threshold: Number in [0, 1], `None` for the most probable class.
        empty: Number in [0, 1], the Dice of two empty masks; `None` leaves them out.
        target_class_ids: List of the classes (or labels) that count, or `None` for all.
        ignore_class: Integer, the label of pixels that are left out, or `None`.
        raters_axis: Axis of `y_true` that holds several raters' masks, or `None`. The other
            arguments are those of all metrics.

    Call arguments:
        y_true: Masks, sparse `(batch, ...)` or one-hot; with several raters, one axis more.
        y_pred: Predictions `(batch, ..., classes)`, binary `(batch, ..., 1)`.
        sample_weight: Weights of images, `(batch,)`, or of pixels.

    Returns:
        A scalar in [0, 1], 1 is perfect; or `(classes,)` with `average=None`. NaN before any data,
        and after a pixel that is NaN or infinite, until `reset_state`.

    Raises:
        ValueError: If an argument is not as described, or shapes do not fit together; if
            predictions are no probabilities, or labels no classes (as for all metrics).

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.DiceScore()
    >>> metric.update_state([[1, 1, 0, 0]], [[[0.9], [0.4], [0.2], [0.1]]])
    >>> metric.update_state([[0, 0, 0, 0]], [[[0.1], [0.2], [0.1], [0.3]]])
    >>> round(float(metric.result()), 6)
    0.833333

    See also: `tfuq.metrics.dice_score`.
    """

    _direction = "up"
    name = "dice_score"

    def __init__(
        self,
        aggregate: str = "image",
        average: str | None = "macro",
        soft: bool = False,
        threshold: float | None = None,
        empty: float | None = 1.0,
        target_class_ids: Sequence[int] | None = None,
        ignore_class: int | str | None = None,
        raters_axis: int | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(from_logits, multi_label, name, dtype)
        self.aggregate = aggregate
        self.average = average
        self.soft = soft
        self.threshold = threshold
        self.empty = empty
        self.target_class_ids = target_class_ids
        self.ignore_class = ignore_class
        self.raters_axis = raters_axis
        self._rule().check()

    def _rule(self):
        return Rule(*(getattr(self, name) for name in Rule._fields))

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: ArrayLike | None = None
    ) -> None:
        dtype = "float64" if self.dtype == "float64" else "float32"
        weights = sample_weight, getattr(y_pred, "_keras_mask", None)
        y_true, y_pred = ops.cast(y_true, dtype), ops.cast(y_pred, dtype)
        sample_weight = None if sample_weight is None else ops.cast(sample_weight, dtype)
        sums = self._rule().sums(
            y_true, y_pred, sample_weight, lambda mask: self._read(mask, y_pred, *weights)
        )
        if self.sums is None:
            self._add_sums(sums.shape)
        if self.sums.shape != sums.shape:
            raise ValueError(
                "Arguments `y_true` and `y_pred` must have as many raters and classes as before, "
                f"{tuple(self.sums.shape[:2])}. Received: {tuple(sums.shape[:2])}"
            )
        self.sums.assign_add(sums)

    def compute(self, sums: Any) -> Any:
        return dice_of_sums(sums, self.average, self.empty)

    def get_config(self) -> dict[str, Any]:
        own = {name: plain(value) for name, value in self._rule()._asdict().items()}
        return {**own, **super().get_config()}
