"""Rejection table: accuracy, coverage, risk and calibration for many thresholds in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from keras import ops

from tfuq._arguments import ArrayLike, check_fraction, check_integer, to_float64
from tfuq._math.bins import bin_index, bin_sums, calibration_error, width_index
from tfuq._predictions.class_names import numbered
from tfuq._predictions.examples import from_arrays


def rejection_table(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    thresholds: Sequence[float] | ArrayLike,
    *,
    confidence: ArrayLike | None = None,
    n_bins: int = 15,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Accuracy, coverage, risk and calibration of what is accepted, for many thresholds.

    One pass over the data serves all thresholds: predictions are counted between neighbouring
    thresholds, and these counts are added up from the highest threshold down.

    Args:
        y_true: Labels. Arguments not described here are as for `selective_accuracy`.
        y_pred: Predictions.
        thresholds: Sequence of numbers in [0, 1], in any order.
        confidence: What is compared with the thresholds, one number in [0, 1] per label, growing
            with confidence; default the largest probability. The calibration error is that of the
            largest probability all the same.
        n_bins: Number of bins of the calibration error.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A dict of arrays `(len(thresholds),)`, in the order of `thresholds`: `"threshold"`;
        `"accuracy"` of the accepted; `"coverage"`, the accepted fraction; `"rejection_rate"`, the
        rest; `"risk"`, the error rate of the accepted; `"ece"`, the expected calibration error of
        the accepted. Where nothing is accepted, accuracy, risk and ECE are NaN.

    Raises:
        ValueError: As `selective_accuracy`; if there are no thresholds; if `n_bins` is below 1; if
            `confidence` is outside [0, 1], NaN, or not of the shape of the labels.

    Example:

    >>> import tfuq
    >>> y_true, y_pred = [0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> table = tfuq.metrics.rejection_table(y_true, y_pred, [0.5, 0.85, 0.95])
    >>> table["accuracy"].round(4)
    array([0.6667, 1.    ,    nan])
    >>> table["coverage"].round(4)
    array([1.    , 0.3333, 0.    ])

    See also: `tfuq.callbacks.RejectionEvaluator`, `tfuq.plots.rejection_curve`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    thresholds = _check_thresholds(thresholds)
    check_integer("n_bins", n_bins, 1)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    examples = from_arrays(y_true, y_pred, sample_weight, **flags)
    rank = _read_confidence(confidence, examples)
    levels, position = np.unique(thresholds, return_inverse=True)
    between = np.asarray(_sums_between(examples, rank, levels, n_bins))
    reached = np.cumsum(between[::-1], axis=0)[::-1]  # the first row is everything
    fields = {name: field[1:][position] for name, field in _fields(reached).items()}
    return {"threshold": thresholds, **fields}


def _sums_between(examples, confidence, levels, n_bins):
    """Sums `(levels + 1, n_bins, 3)`: below the first level, between neighbours, from the last."""
    top, correct = examples.top_label()
    index = bin_index(confidence, levels) * n_bins + width_index(top, n_bins)
    sums = bin_sums(index, (len(levels) + 1) * n_bins, top, correct, examples.weight)
    return ops.reshape(sums, (len(levels) + 1, n_bins, 3))


def _fields(sums):
    """The fields of the table from sums `(..., n_bins, 3)`, of which the first are everything."""
    weight, _, correct = sums.sum(axis=1).T
    accuracy = correct / np.where(weight > 0, weight, np.nan)
    return {
        "accuracy": accuracy,
        "coverage": weight / weight[0],
        "rejection_rate": (weight[0] - weight) / weight[0],
        "risk": 1 - accuracy,
        "ece": np.asarray(calibration_error(sums)),
    }


def _check_thresholds(thresholds):
    thresholds = np.atleast_1d(to_float64("thresholds", thresholds))
    if thresholds.ndim != 1 or thresholds.size == 0:
        raise ValueError(
            "Argument `thresholds` must be a sequence of at least one number in [0, 1]. "
            f"Received: thresholds of shape {thresholds.shape}"
        )
    for threshold in thresholds:
        check_fraction("thresholds", threshold)
    return thresholds


def _read_confidence(confidence, examples):
    """The confidences `(n,)`; given ones are 0 for the examples that are left out."""
    if confidence is None:
        return examples.top_label()[0]
    flat = to_float64("confidence", confidence).ravel()
    if flat.shape != tuple(examples.weight.shape):
        raise ValueError(
            "Argument `confidence` must hold one number for each label, "
            f"{examples.weight.shape[0]} in all. Received: confidence with {flat.size}"
        )
    flat = np.where(np.asarray(examples.weight) > 0, flat, 0.0)
    outside = np.flatnonzero(~((flat >= 0) & (flat <= 1)))
    if outside.size:
        raise ValueError(
            "Argument `confidence` must hold numbers in [0, 1]. "
            f"Received: confidence={flat[outside[0]]} at example {outside[0]}"
        )
    return flat
