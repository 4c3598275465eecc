"""Reading of what pictures of numbers draw: predictions, intervals, labels and an input."""

from typing import NamedTuple

import numpy as np

from tfuq._arguments import shown, to_float64
from tfuq._predictions.numbers import RegressionUncertainty, numbers_like
from tfuq._predictions.uncertainty import Uncertainty

LEVEL = 0.9


class Numbers(NamedTuple):
    """One of the numbers of all examples, flat arrays `(k,)`."""

    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    name: str
    """Of the intervals."""
    unit: int
    """Which of the numbers."""
    shape: tuple
    """Of the predictions, `(n, ..., units)`."""

    def of(self, name, array):
        """Another array of the shape of the predictions, that one number of it, without NaN."""
        if isinstance(array, RegressionUncertainty):
            raise ValueError(f"Argument `{name}` must hold the true numbers. Received: predictions")
        return _known(name, numbers_like(name, array, self.shape)[..., self.unit].ravel())


def read_numbers(y_pred, level, intervals, unit):
    """`Numbers` of the arguments that these pictures share.

    Raises:
        ValueError: If they do not fit together, hold NaN, or leave open which number is meant.
    """
    refuse_classes(y_pred)
    is_found = isinstance(y_pred, RegressionUncertainty)
    if intervals is None and not is_found:
        raise ValueError(
            "Argument `intervals` must be given with means; or `y_pred` be what "
            f"`predict_uncertainty` gave of a regression. Received: y_pred={shown(y_pred)}"
        )
    if intervals is not None and level is not None:
        raise ValueError(
            "Argument `level` must be None with `intervals`, which have a level of their own. "
            f"Received: level={shown(level)}"
        )
    mean = y_pred.mean if is_found else to_float64("y_pred", y_pred)
    mean = mean[:, None] if mean.ndim == 1 else mean
    if mean.ndim < 2 or not mean.size:
        raise ValueError(
            "Argument `y_pred` must hold means (n, ..., units), at least one. "
            f"Received: y_pred={shown(mean)}"
        )
    unit = checked_unit(unit, mean.shape[-1])
    level = LEVEL if level is None else level
    ends = y_pred.interval(level) if intervals is None else _pair(intervals, mean.shape)
    lower, upper = (end[..., unit].ravel() for end in ends)
    name = "interval" if intervals is not None else f"{100 * level:.4g} % interval"
    unbounded = np.count_nonzero(np.isinf(lower) | np.isinf(upper))
    name += f" ({unbounded:,} unbounded)" if unbounded else ""
    mean = _known("y_pred", mean[..., unit].ravel())
    numbers = Numbers(mean, lower, upper, name, unit, ends[0].shape)
    if intervals is not None and np.any(lower > upper):
        raise ValueError(
            "Argument `intervals` must be a pair (lower, upper), the lower end first. "
            f"Received: {np.count_nonzero(lower > upper)} intervals whose ends cross"
        )
    return numbers


def refuse_classes(y_pred):
    if isinstance(y_pred, Uncertainty):
        raise ValueError(
            "Argument `y_pred` must be numbers, but the model is a classifier: "
            "`reliability_diagram` and `risk_coverage` draw its probabilities. "
            "Received: an Uncertainty of classes"
        )
    if getattr(y_pred, "is_stack", False):
        raise ValueError(
            "Argument `y_pred` must be what `predict_uncertainty` gives. "
            f"Received: a stack of draws of shape {np.shape(y_pred)}"
        )


def _pair(intervals, shape):
    if not isinstance(intervals, (tuple, list)) or len(intervals) != 2:
        raise ValueError(
            "Argument `intervals` must be None or a pair of arrays (lower, upper), as "
            f"`ConformalRegressor.interval` gives. Received: intervals={shown(intervals)}"
        )
    return [_known("intervals", numbers_like("intervals", end, shape)) for end in intervals]


def _known(name, values):
    unknown = np.isnan(values) if name == "intervals" else ~np.isfinite(values)
    if unknown.any():
        raise ValueError(
            f"Argument `{name}` must hold finite numbers: leave out the other rows. "
            f"Received: {np.count_nonzero(unknown)} of {unknown.size} that are not"
        )
    return values


def checked_unit(unit, units):
    if unit is None and units == 1:
        return 0
    is_integer = isinstance(unit, (int, np.integer)) and not isinstance(unit, bool)
    if not is_integer or not -units <= unit < units:
        raise ValueError(
            f"Argument `unit` must be the index of one of {units} numbers to draw, 0 to "
            f"{units - 1}. Received: unit={shown(unit)}"
        )
    return int(unit) % units


def input_of(x, feature, shape):
    """The input `(k,)`, numbers or dates, of predictions of that shape."""
    is_date = getattr(x, "dtype", None) is not None and np.asarray(x).dtype.kind == "M"
    x = np.asarray(x) if is_date else to_float64("x", x)
    expected = shape[:-1]
    columns = x.shape[-1] if len(expected) == 1 and x.ndim == 2 else 1
    if x.shape[:1] != expected[:1] or x.shape not in (expected, (*expected, columns)):
        raise ValueError(
            f"Argument `x` must have shape {expected}, an input of each prediction. "
            f"Received: x of shape {x.shape}"
        )
    if columns == 1 and feature is not None:
        raise ValueError(
            f"Argument `feature` must be None for one input. Received: feature={shown(feature)}"
        )
    if columns > 1:
        is_integer = isinstance(feature, (int, np.integer)) and not isinstance(feature, bool)
        if not is_integer or not -columns <= feature < columns:
            raise ValueError(
                f"Argument `feature` must be the index of one of {columns} columns of `x` to draw "
                f"over, 0 to {columns - 1}. Received: feature={shown(feature)}"
            )
        x = x[:, feature]
    unknown = np.isnat(x) if is_date else ~np.isfinite(x)
    if unknown.any():
        raise ValueError(
            f"Argument `x` must hold no NaN. Received: {np.count_nonzero(unknown)} in x"
        )
    return x.ravel()
