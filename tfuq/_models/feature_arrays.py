"""Logits, features and labels that came as arrays: checked, and brought into one shape."""

import numpy as np
from keras import ops

from tfuq._arguments import check_kind, shown

BLOCK = 4096  # rows at a time, so that float64 copies of all features are never there


def two_classes(columns):
    """A single column z as the logits (-z / 2, z / 2) of two classes: the same probabilities."""
    if columns.shape[-1] != 1:
        return columns
    return ops.concatenate([-columns / 2, columns / 2], axis=-1)


def pooled(features):
    """`(batch, ..., d)` as `(batch, d)`: means over the axes between."""
    axes = tuple(range(1, len(features.shape) - 1))
    return ops.mean(features, axis=axes) if axes else features


def check_rows(name, array, ndim=2, pool=False):
    """The array `(n, ..., d)` of `ndim` axes, float32 or float64, or a ValueError."""
    check_kind(name, array)
    try:
        array = np.asarray(array)
        array = array.astype(array.dtype if array.dtype in ("float32", "float64") else "float64")
    except (TypeError, ValueError):
        raise ValueError(
            f"Argument `{name}` must be an array of numbers. Received: {type(array).__name__}"
        ) from None
    if pool and array.ndim > ndim:
        array = np.asarray(pooled(array))
    if array.ndim != ndim or array.size == 0:
        raise ValueError(
            f"Argument `{name}` must have {ndim} axes, examples and columns among them, and not be "
            f"empty. Received: {name} of shape {array.shape}"
        )
    return array


def check_logits(name, logits):
    """Logits `(n, classes)` of at least two classes, or a ValueError."""
    return np.asarray(two_classes(check_rows(name, logits)))


def check_pair(name, pair):
    """Features `(n, d)`, averaged over axes between, and logits `(n, classes)`, or a ValueError."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise ValueError(
            f"Argument `{name}` must be a pair: features (n, d), and logits (n, classes). "
            f"Received: {name}={shown(pair)}"
        )
    rows, logits = check_rows(name, pair[0], pool=True), check_logits(name, pair[1])
    if len(rows) != len(logits):
        raise ValueError(
            f"Argument `{name}` must hold a row of logits for each row of features. "
            f"Received: lengths {[len(rows), len(logits)]}"
        )
    return rows, logits


def check_labels(y, count, classes=None):
    """Integers `(count,)`, below `classes`, of labels sparse or one-hot, or a ValueError."""
    if y is None:
        raise ValueError("Argument `y` must be given: this detector needs labels. Received: None")
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] > 1:
        if y.dtype.kind in "biuf" and not np.allclose(y.sum(axis=1), 1, atol=1e-3):
            raise ValueError(
                "Argument `y` must hold one class for each example: rows of one-hot labels sum to "
                f"1. Received: {shown(y.sum(axis=1))} as sums"
            )
        y = np.argmax(y, axis=1)
    if y.size != count or y.ndim > 2 or y.dtype.kind not in "biuf":
        raise ValueError(
            f"Argument `y` must hold a label for each of {count} examples, sparse or one-hot. "
            f"Received: y of shape {y.shape}, {y.dtype}"
        )
    labels = y.ravel()
    if not np.all(np.isfinite(labels)) or np.any(labels != np.floor(labels)):
        raise ValueError(f"Argument `y` must hold whole numbers. Received: y={shown(labels)}")
    if classes is not None and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"Argument `y` must hold classes from 0 to {classes - 1}, those of the logits. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    return labels.astype("int64")


def dtypes_of(arrays):
    """The names of the arrays' dtypes, None of what is no array."""
    return tuple(getattr(getattr(array, "dtype", None), "name", None) for array in arrays)


def rows_finite(arrays):
    """Whether each row is finite in all arrays, `(n,)`."""
    return np.logical_and.reduce([np.isfinite(a).reshape(len(a), -1).all(1) for a in arrays])


def in_blocks(function, *arrays):
    """`function(*arrays)` `(n, ...)`, a block of rows at a time."""
    starts = range(0, len(arrays[0]), BLOCK)
    return np.concatenate([function(*(a[i : i + BLOCK] for a in arrays)) for i in starts])
