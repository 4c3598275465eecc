"""Classwise calibration error: of the probability of each class, not only of the top one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tfuq._arguments import ArrayLike, check_flags, check_integer, register
from tfuq._math.bins import bin_sums, calibration_error, width_index
from tfuq._predictions.class_names import numbered
from tfuq._predictions.examples import summed
from tfuq.metrics._base import BinnedMetric


def classwise_sums(examples, n_bins):
    """Sums `(columns, n_bins, 3)`: each class, or label, against the rest."""
    probs, targets, weight = (ops.transpose(x) for x in examples.one_vs_rest())
    columns = probs.shape[0]
    first = ops.arange(columns, dtype="int32")[:, None] * n_bins
    index = first + ops.reshape(width_index(ops.ravel(probs), n_bins), ops.shape(probs))
    flat = (ops.ravel(x) for x in (index, probs, targets, weight))
    return ops.reshape(bin_sums(next(flat), columns * n_bins, *flat), (columns, n_bins, 3))


def classwise_calibration_error(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    n_bins: int = 15,
    from_logits: bool = False,
    multi_label: bool = False,
    per_class: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float | np.ndarray:
    """Calibration error of the probability of each class, not only of the top one.

    Formula:
        classwise-ECE = 1 / K sum_k sum_b (w_bk / W) |frequency_bk - probability_bk|
    over K classes, with the bins of `expected_calibration_error` on the probability of class k and
    the frequency of class k in them (Kull et al. 2019). A binary prediction has one column, the
    probability of class 1; a multi-label one a column per label.

    Args:
        y_true: As for `expected_calibration_error`, and so are the other arguments.
        y_pred: Predictions.
        n_bins: Number of bins.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        per_class: Whether to return the error of each class instead of the mean.
        sample_weight: Weights.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float in [0, 1], or an array `(classes,)` of them, `(1,)` if binary. With weights per
        label, a label without any weight has no error: NaN, and so is the mean.

    Raises:
        ValueError: As `expected_calibration_error`.

    Example:

    >>> import tfuq
    >>> y_pred = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.1, 0.8]]
    >>> tfuq.metrics.classwise_calibration_error([0, 1, 2], y_pred, per_class=True).round(6)
    array([0.133333, 0.133333, 0.066667])

    References:
        Kull et al., Beyond temperature scaling, NeurIPS 2019.

    See also: `tfuq.metrics.ClasswiseCalibrationError`, `tfuq.metrics.expected_calibration_error`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    check_integer("n_bins", n_bins, 1)
    check_flags(per_class=per_class)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    data = y_true, y_pred, sample_weight
    sums = summed(lambda examples: classwise_sums(examples, n_bins), *data, **flags)
    errors = np.asarray(calibration_error(sums))
    return errors if per_class else float(errors.mean())


@register
class ClasswiseCalibrationError(BinnedMetric):
    """Calibration error of the probability of each class, averaged over classes; streaming.

    The formula is that of the function `classwise_calibration_error`. The state, `(classes, n_bins,
    3)`, is made when the first batch tells the number of classes.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: If the number of classes changes.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.ClasswiseCalibrationError()
    >>> metric.update_state([0, 1, 2], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.1, 0.8]])
    >>> round(float(metric.result()), 6)
    0.111111

    See also: `tfuq.metrics.classwise_calibration_error`, `tfuq.metrics.ExpectedCalibrationError`.
    """

    name = "classwise_calibration_error"

    def measure(self, examples: Any) -> Any:
        sums = classwise_sums(examples, self.n_bins)
        if self.sums is not None and self.sums.shape[0] != sums.shape[0]:
            raise ValueError(
                "Argument `y_pred` must have as many classes, or labels, as before, "
                f"{self.sums.shape[0]}. Received: y_pred with {sums.shape[0]}"
            )
        return sums

    def compute(self, sums: Any) -> Any:
        return ops.mean(calibration_error(sums))
