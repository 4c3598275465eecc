"""Calibration errors of the top label: how far confidence is from accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from tfuq._arguments import ArrayLike, check_flags, check_integer, register
from tfuq._math.bins import (
    bin_sums,
    calibration_error,
    debiased_calibration_error,
    equal_mass,
    fine_index,
    largest_gap,
    width_index,
)
from tfuq._predictions.class_names import numbered
from tfuq._predictions.examples import in_blocks, summed
from tfuq.metrics._base import BinnedMetric

# Resolution of the streaming adaptive error: 0.0083 in log-odds, at most 0.0021 in confidence.
FINE_BINS = 4096


def top_label_sums(examples, n_bins):
    """Sums `(n_bins, 3)` of the top labels, by bins of equal width in confidence."""
    confidence, correct = examples.top_label()
    index = width_index(confidence, n_bins)
    return bin_sums(index, n_bins, confidence, correct, examples.weight)


def _top_label_total(n_bins, *data, **flags):
    """`top_label_sums` of arrays."""
    return summed(lambda examples: top_label_sums(examples, n_bins), *data, **flags)


def exact_sums(*data, **flags):
    """Sums `(distinct confidences, 3)` of the top labels of arrays, in the order of confidence."""
    rows = ((*each.top_label(), each.weight) for each in in_blocks(*data, **flags))
    parts = zip(*(map(np.asarray, row) for row in rows), strict=True)
    confidence, correct, weight = map(np.concatenate, parts)
    values, index = np.unique(confidence, return_inverse=True)
    sums = (weight, weight * confidence, weight * correct)
    return ops.stack([np.bincount(index, each, len(values)) for each in sums], axis=-1)


def fine_sums(examples):
    """Sums `(FINE_BINS, 3)` of the top labels, by narrow bins in the order of confidence."""
    confidence, correct = examples.top_label()
    index = fine_index(confidence, FINE_BINS)
    return bin_sums(index, FINE_BINS, confidence, correct, examples.weight)


def expected_calibration_error(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    n_bins: int = 15,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    debiased: bool = False,
) -> float:
    """Expected calibration error of the top label, over bins of equal width.

    Confidence is the largest probability: max(p, 1 - p) for a binary prediction, and for each
    label of a multi-label one. The true class is the label, and soft one-hot rows count as their
    largest entry.

    Formula:
        ECE = sum_b (w_b / W) |accuracy_b - confidence_b|   (Guo et al. 2017)
    with w_b the weight in bin b and W all weight. Bin b of B is [(b - 1) / B, b / B), the last one
    closed: a confidence that equals an edge in float32 lies above it. Netcal does the same (in the
    precision of its input); Guo et al. and scikit-learn close the bins on the right, which differs
    only for confidences exactly on an edge.

    Args:
        y_true: Labels, sparse `(n, ...)` or one-hot; 0 or 1 if binary or multi-label.
        y_pred: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`.
        n_bins: Number of bins.
        from_logits: Whether `y_pred` are logits, not probabilities.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights `(n,)`, or with more of the leading axes. What has weight 0 is left
            out, whatever it holds.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.
        debiased: Whether to take off what calibrated predictions would have by chance, from the
            variance a (1 - a) / w_b of each bin's accuracy (Kumar et al. 2019): for few examples.
            Weights count examples then. It can be below 0.

    Returns:
        A float in [0, 1]; 0 is calibrated.

    Raises:
        ValueError: If `n_bins` is below 1; if arrays are empty or do not fit together; if they
            hold NaN, probabilities outside [0, 1] or not summing to 1 (to 0.01, the rounding of
            bfloat16), labels that are no class, or negative weights.

    Example:

    >>> import tfuq
    >>> y_pred = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.4, 0.6]]
    >>> round(tfuq.metrics.expected_calibration_error([0, 1, 0, 1], y_pred), 6)
    0.125

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
        Kumar, Liang, Ma: Verified Uncertainty Calibration, NeurIPS 2019.

    See also: `tfuq.metrics.ExpectedCalibrationError`,
    `tfuq.metrics.expected_calibration_error_interval`, `tfuq.metrics.reliability_curve`,
    `tfuq.selective.TemperatureScaling`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    check_integer("n_bins", n_bins, 1)
    data = y_true, y_pred, sample_weight
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    check_flags(debiased=debiased)
    error = debiased_calibration_error if debiased else calibration_error
    return float(error(_top_label_total(n_bins, *data, **flags)))


def adaptive_calibration_error(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    n_bins: int = 15,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float:
    """Calibration error of the top label over bins that hold equal weight.

    Formula:
        as `expected_calibration_error`, with W / n_bins in each bin, in the order of confidence
    An example at the border of two bins is shared out between them, and equal confidences are one
    group, shared out as a whole: the result does not depend on the order of the data. (Netcal's
    ACE is another measure, the average over bins of equal width.)

    Args:
        y_true: As for `expected_calibration_error`, and so are the other arguments.
        y_pred: Predictions.
        n_bins: Number of bins.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: As `expected_calibration_error`.

    Example:

    >>> import tfuq
    >>> y_pred = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]
    >>> round(tfuq.metrics.adaptive_calibration_error([0, 1, 0, 1], y_pred, n_bins=2), 6)
    0.15

    References:
        Nixon et al., Measuring Calibration in Deep Learning, CVPR workshops 2019 (bins of equal
        mass; theirs are taken per class).

    See also: `tfuq.metrics.AdaptiveCalibrationError`, `tfuq.metrics.expected_calibration_error`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    check_integer("n_bins", n_bins, 1)
    data = y_true, y_pred, sample_weight
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    return float(calibration_error(equal_mass(exact_sums(*data, **flags), n_bins)))


def maximum_calibration_error(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    n_bins: int = 15,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float:
    """Largest calibration error of the top label in any bin of equal width that is not empty.

    Formula:
        MCE = max_b |accuracy_b - confidence_b|   (Guo et al. 2017)

    Args:
        y_true: As for `expected_calibration_error`, and so are the other arguments.
        y_pred: Predictions.
        n_bins: Number of bins.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: As `expected_calibration_error`.

    Example:

    >>> import tfuq
    >>> y_pred = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.4, 0.6]]
    >>> round(tfuq.metrics.maximum_calibration_error([0, 1, 0, 1], y_pred), 6)
    0.2

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017.

    See also: `tfuq.metrics.MaximumCalibrationError`, `tfuq.metrics.expected_calibration_error`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    check_integer("n_bins", n_bins, 1)
    data = y_true, y_pred, sample_weight
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    return float(largest_gap(_top_label_total(n_bins, *data, **flags)))


def reliability_curve(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    n_bins: int = 15,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Accuracy against confidence, bin by bin: what a reliability diagram shows.

    Args:
        y_true: As for `expected_calibration_error`, and so are the other arguments and the bins.
        y_pred: Predictions.
        n_bins: Number of bins.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A dict of arrays `(n_bins,)`: `"lower"` and `"upper"`, the edges of the bins;
        `"confidence"`, the mean confidence, and `"accuracy"` of their examples, fractions, NaN in
        an empty bin; `"count"`, their number, or total weight.

    Raises:
        ValueError: As `expected_calibration_error`.

    Example:

    >>> import tfuq
    >>> y_pred = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.4, 0.6]]
    >>> curve = tfuq.metrics.reliability_curve([0, 1, 0, 1], y_pred, n_bins=4)
    >>> curve["accuracy"]
    array([nan, nan, 0.5, 1. ])
    >>> curve["count"]
    array([0., 0., 2., 2.])

    See also: `tfuq.plots.reliability_diagram`, `tfuq.metrics.expected_calibration_error`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    check_integer("n_bins", n_bins, 1)
    data = y_true, y_pred, sample_weight
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    count, confidence, correct = np.asarray(_top_label_total(n_bins, *data, **flags)).T
    filled = np.where(count > 0, count, np.nan)
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    return {
        "lower": edges[:-1],
        "upper": edges[1:],
        "confidence": confidence / filled,
        "accuracy": correct / filled,
        "count": count,
    }


@register
class ExpectedCalibrationError(BinnedMetric):
    """Expected calibration error of the top label, over bins of equal width; streaming.

    The formula, the bins and the kinds of prediction are those of the function
    `expected_calibration_error`; whatever the batches, the result is the same.

    Returns:
        A scalar in [0, 1]; 0 is calibrated. What all metrics share is told at `__init__`,
        `update_state` and `result`.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.ExpectedCalibrationError(n_bins=10)
    >>> metric.update_state([0, 1], [[0.9, 0.1], [0.4, 0.6]])
    >>> metric.update_state([0, 0], [[0.8, 0.2], [0.3, 0.7]])
    >>> round(float(metric.result()), 6)
    0.35

    See also: `tfuq.metrics.expected_calibration_error`, `tfuq.metrics.AdaptiveCalibrationError`,
    `tfuq.selective.TemperatureScaling`.
    """

    name = "expected_calibration_error"

    @property
    def _shape(self):
        return self.n_bins, 3

    def measure(self, examples: Any) -> Any:
        return top_label_sums(examples, self.n_bins)

    def compute(self, sums: Any) -> Any:
        return calibration_error(sums)


@register
class AdaptiveCalibrationError(BinnedMetric):
    """Calibration error of the top label over bins that hold equal weight; streaming.

    The function `adaptive_calibration_error` sorts all confidences. This keeps the sums of 4,096
    narrow bins, of equal width in log-odds (0.002 wide in confidence at 0.5, narrower at the ends),
    and merges them to equal weight. The two differ by no more than half of the weight in those
    narrow bins that hold a border, as a fraction of all weight (times 1.005): less than 0.001 where
    confidences spread, and 0 where a narrow bin holds one distinct confidence.

    Returns:
        A scalar in [0, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.AdaptiveCalibrationError(n_bins=2)
    >>> metric.update_state([0, 1, 0, 1], [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    >>> round(float(metric.result()), 6)
    0.15

    See also: `tfuq.metrics.adaptive_calibration_error`, `tfuq.metrics.ExpectedCalibrationError`.
    """

    name = "adaptive_calibration_error"
    _shape = (FINE_BINS, 3)

    def measure(self, examples: Any) -> Any:
        return fine_sums(examples)

    def compute(self, sums: Any) -> Any:
        return calibration_error(equal_mass(sums, self.n_bins))


@register
class MaximumCalibrationError(BinnedMetric):
    """Largest calibration error of the top label in any bin that is not empty; streaming.

    The formula is that of the function `maximum_calibration_error`.

    Returns:
        A scalar in [0, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.MaximumCalibrationError(n_bins=10)
    >>> metric.update_state([0, 0], [[0.9, 0.1], [0.4, 0.6]])
    >>> round(float(metric.result()), 6)
    0.6

    See also: `tfuq.metrics.maximum_calibration_error`, `tfuq.metrics.ExpectedCalibrationError`.
    """

    name = "maximum_calibration_error"

    @property
    def _shape(self):
        return self.n_bins, 3

    def measure(self, examples: Any) -> Any:
        return top_label_sums(examples, self.n_bins)

    def compute(self, sums: Any) -> Any:
        return largest_gap(sums)
