"""Labels and scores of metrics of detectors, checked."""

from __future__ import annotations

import numpy as np

from tfuq._arguments import to_float64
from tfuq._predictions.examples import LARGEST_WEIGHT, LEAST_WEIGHT


def labels_and_scores(y_true, y_score, sample_weight):
    """Labels, scores and weights `(n,)` of what has weight, both classes among them.

    Labels are Booleans and arrays of float64 are not copied; weights are None where all are 1.
    """
    y_true, y_score = as_given("y_true", y_true), as_given("y_score", y_score)
    if y_score.ndim == 0 or y_score.size == 0:
        raise ValueError(
            "Argument `y_score` must be an array of at least one score. "
            f"Received: y_score of shape {y_score.shape}"
        )
    weight = None if sample_weight is None else as_given("sample_weight", sample_weight)
    for name, array in (("y_true", y_true), ("sample_weight", weight)):
        if array is not None and array.shape != y_score.shape:
            raise ValueError(
                f"Argument `{name}` must have the shape of `y_score`, {y_score.shape}. "
                f"Received: {name} of shape {array.shape}"
            )
    y_true, y_score = y_true.ravel(), y_score.ravel()
    if weight is not None:
        weight = weight.ravel()
        if weight.dtype == "float16":  # in which the limits are infinite and 0
            weight = weight.astype("float32")
        expected = f"hold finite numbers of at least 0, and at most {LARGEST_WEIGHT:g}"
        refuse("sample_weight", expected, weight, ~((weight >= 0) & (weight <= LARGEST_WEIGHT)))
        used = weight >= LEAST_WEIGHT
        y_true, y_score, weight = y_true[used], y_score[used], weight[used]
    return checked_classes(y_true, y_score), y_score, weight


def as_given(name, values):
    """An array of real numbers without a copy, else as `to_float64` makes it or refuses it."""
    is_plain = isinstance(values, np.ndarray) and values.dtype.kind in "biuf"
    return values if is_plain and values.dtype.itemsize <= 8 else to_float64(name, values)


def checked_classes(y_true, y_score):
    """Whether each example is out of distribution."""
    if y_score.dtype.kind == "f":
        refuse("y_score", "hold no NaN", y_score, np.isnan(y_score))
    outside = y_true == 1
    expected = "hold only 0 (in distribution) and 1 (out of distribution)"
    refuse("y_true", expected, y_true, ~outside & (y_true != 0))
    count = int(np.count_nonzero(outside))
    if count in (0, outside.size):
        found = [1.0] * bool(count) + [0.0] * (count < outside.size)
        raise ValueError(
            "Argument `y_true` must hold both 0 (in distribution) and 1 (out of distribution) with "
            f"weights above 0. Received: only {found}"
        )
    return outside


def refuse(name, expected, values, faulty):
    if np.any(faulty):
        value = values[faulty].flat[0]
        raise ValueError(
            f"Argument `{name}` must {expected}. Received: {name}={value} ({faulty.sum()} such)"
        )
