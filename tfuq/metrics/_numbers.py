"""Reading of predictions of numbers, intervals and samples by the metrics of regression."""

import numpy as np
from keras import ops

from tfuq._arguments import is_finite, shown, to_float64
from tfuq._math.risk_coverage import loss_table, selective_area
from tfuq._predictions.numbers import Interval, RegressionUncertainty, numbers_like


def checked_level(level):
    """The argument `level`, a probability in (0, 1)."""
    if not is_finite(level) or not 0 < level < 1:
        raise ValueError(
            "Argument `level` must be a probability in (0, 1), such as 0.9. "
            f"Received: level={shown(level)}"
        )
    return float(level)


def check_found(y_pred, also=""):
    """Raises ValueError unless `y_pred` is a `RegressionUncertainty`."""
    if not isinstance(y_pred, RegressionUncertainty):
        raise ValueError(
            "Argument `y_pred` must be what `predict_uncertainty` gave of a regression"
            f"{also}. Received: y_pred={shown(y_pred)}"
        )


def read_interval(y_pred, level):
    """`(lower, upper)`, arrays `(n, ..., units)`, of a `RegressionUncertainty` or a pair."""
    if isinstance(y_pred, RegressionUncertainty):
        return y_pred.interval(level)
    if not isinstance(y_pred, (tuple, list)) or len(y_pred) != 2:
        raise ValueError(
            "Argument `y_pred` must be what `predict_uncertainty` gave of a regression, or a pair "
            f"of arrays (lower, upper). Received: y_pred={shown(y_pred)}"
        )
    ends = [to_float64("y_pred", end) for end in y_pred]
    if ends[0].shape != ends[1].shape or not ends[0].ndim or not ends[0].size:
        raise ValueError(
            "Argument `y_pred` must be a pair of arrays of one shape (n, ..., units). "
            f"Received: shapes {ends[0].shape} and {ends[1].shape}"
        )
    ends = [end[:, None] if end.ndim == 1 else end for end in ends]
    if np.any(ends[0] > ends[1]):
        raise ValueError(
            "Argument `y_pred` must be a pair (lower, upper), the lower end first. "
            f"Received: {np.count_nonzero(ends[0] > ends[1])} intervals whose ends cross"
        )
    return Interval(*ends)


def read_labels(y_true, shape):
    """Labels `(n, ..., units)` of a shape; a missing last axis of one is added, no more."""
    return numbers_like("y_true", y_true, shape)


def read_weights(sample_weight, shape):
    """Weights of the shape of the predictions."""
    if sample_weight is None:
        return np.ones(shape)
    weight = to_float64("sample_weight", sample_weight)
    fits = weight.shape == tuple(shape[: weight.ndim]) and weight.ndim > 0
    if not fits or not (weight >= 0).all() or not np.isfinite(weight).all() or not weight.any():
        raise ValueError(
            f"Argument `sample_weight` must hold weights of at least 0, not all 0, with one or "
            f"more of the leading axes of {tuple(shape)}. Received: {shown(weight)}"
        )
    return np.broadcast_to(weight.reshape(*weight.shape, *[1] * (len(shape) - weight.ndim)), shape)


def mean_of(weight, **values):
    """Weighted mean of the last of `values`; all have to be known where there is weight.

    Raises:
        ValueError: If one of them is NaN; its name is that of the argument.
    """
    used = weight > 0
    for name, part in values.items():
        faulty = np.isnan(part) & used
        if name == "y_true":
            faulty |= np.isinf(part) & used
        if faulty.any():
            raise ValueError(
                f"Argument `{name}` must hold finite numbers: leave out what is unknown, or give "
                f"it weight 0. Received: {np.count_nonzero(faulty)} that are not"
            )
    last = list(values.values())[-1]
    return float(np.sum(np.where(used, weight * np.where(used, last, 0), 0)) / np.sum(weight))


def weights_like(weight, mask, values):
    """Weights of a batch in the shape of `values`, tensors; a Keras mask is a weight of 0 or 1."""
    found = ops.ones_like(values)
    for name, part in (("sample_weight", weight), ("mask", mask)):
        if part is not None:
            found = found * _padded(name, ops.cast(part, values.dtype), tuple(values.shape))
    return found


def _padded(name, weight, shape):
    """A weight of leading axes with as many axes as `shape`."""
    found = tuple(weight.shape)
    same = [None in pair or pair[0] == pair[1] for pair in zip(found, shape, strict=False)]
    is_column = len(found) == 2 and found[1] == 1 and same[0]
    if not 0 < len(found) <= len(shape) or not (all(same) or is_column):
        raise ValueError(
            f"Argument `{name}` must have one or more of the leading axes of {shape}. "
            f"Received: {name} of shape {found}"
        )
    for _ in range(len(shape) - len(found)):
        weight = weight[..., None]
    return weight


def crps_of_samples(draws, y):
    """mean|x - y| - sum_i (2 i - m - 1) x_(i) / m^2 over m samples in order."""
    count = len(draws)
    rank = (2 * np.arange(1, count + 1) - count - 1).reshape(-1, *[1] * y.ndim)
    spread = np.sum(rank * np.sort(draws, axis=0), axis=0) / count**2
    return np.mean(np.abs(draws - y), axis=0) - spread


def error_area(doubt, errors, weight):
    """Mean over k of the mean error of the k with the least doubt."""
    levels, level = np.unique(doubt, return_inverse=True)
    table = loss_table(ops.convert_to_tensor(level), len(levels), weight, errors)
    return float(selective_area(table))
