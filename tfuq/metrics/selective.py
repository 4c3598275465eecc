"""Accuracy and coverage of a classifier that may reject where its confidence is low.

A prediction is accepted at a threshold if its confidence, the largest probability, is at least
that. Both are compared in float32, so that 0.7 reaches 0.7 in any precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfuq._arguments import ArrayLike, check_fraction, register
from tfuq._math.bins import bin_index, bin_sums
from tfuq._predictions.class_names import numbered
from tfuq._predictions.examples import summed
from tfuq.metrics._base import PredictionMetric


def acceptance_sums(examples, threshold):
    """Sums `(2, 3)` of the top labels: the rejected, then the accepted."""
    confidence, correct = examples.top_label()
    index = bin_index(confidence, [threshold])
    return bin_sums(index, 2, confidence, correct, examples.weight)


def accuracy_of_accepted(sums):
    """Correct weight over weight among the accepted; 0 / 0 = NaN if there are none."""
    return sums[1, 2] / sums[1, 0]


def share_of_accepted(sums):
    """Accepted weight over all weight."""
    return sums[1, 0] / (sums[0, 0] + sums[1, 0])


def share_of_rejected(sums):
    """Rejected weight over all weight."""
    return sums[0, 0] / (sums[0, 0] + sums[1, 0])


def _measure(compute, y_true, y_pred, threshold, from_logits, multi_label, sample_weight):
    check_fraction("threshold", threshold)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    data = y_true, y_pred, sample_weight
    return float(compute(summed(lambda each: acceptance_sums(each, threshold), *data, **flags)))


def selective_accuracy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    threshold: float = 0.5,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float:
    """Accuracy on the predictions whose confidence is at least `threshold`.

    Formula:
        sum_i w_i [c_i >= t][right_i] / sum_i w_i [c_i >= t]
    with the confidence c_i = max_k p_ik; max(p, 1 - p) for binary predictions and for each label of
    multi-label ones.

    Args:
        y_true: Labels, sparse `(n, ...)` or one-hot; 0 or 1 if binary or multi-label.
        y_pred: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`.
        threshold: Confidence in [0, 1] from which a prediction is accepted.
        from_logits: Whether `y_pred` are logits, not probabilities.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights `(n,)`, or with more of the leading axes. What has weight 0 is left
            out, whatever it holds.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float in [0, 1]. NaN if nothing is accepted: there is no accuracy then, neither 0 nor 1.

    Raises:
        ValueError: If `threshold` is outside [0, 1]; if arrays are empty or do not fit together; if
            they hold NaN, no probabilities, labels that are no class, or negative weights.

    Example:

    >>> import tfuq
    >>> y_true, y_pred = [0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
    >>> tfuq.metrics.selective_accuracy(y_true, y_pred, 0.7)
    1.0
    >>> tfuq.metrics.selective_accuracy(y_true, y_pred, 0.95)
    nan

    See also: `tfuq.metrics.SelectiveAccuracy`, `tfuq.metrics.rejection_table`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    data = (y_true, y_pred, threshold, from_logits, multi_label, sample_weight)
    return _measure(accuracy_of_accepted, *data)


def coverage(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    threshold: float = 0.5,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float:
    """Fraction of predictions whose confidence is at least `threshold`.

    Formula:
        sum_i w_i [c_i >= t] / sum_i w_i

    Args:
        y_true: Labels. All arguments are as for `selective_accuracy`; labels only have to be valid.
        y_pred: Predictions.
        threshold: Confidence in [0, 1] from which a prediction is accepted.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: As `selective_accuracy`.

    Example:

    >>> import tfuq
    >>> tfuq.metrics.coverage([0, 1], [[0.9, 0.1], [0.4, 0.6]], 0.7)
    0.5

    See also: `tfuq.metrics.Coverage`, `tfuq.metrics.rejection_table`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    data = (y_true, y_pred, threshold, from_logits, multi_label, sample_weight)
    return _measure(share_of_accepted, *data)


def rejection_rate(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    threshold: float = 0.5,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> float:
    """Fraction of predictions whose confidence is below `threshold`.

    Formula:
        sum_i w_i [c_i < t] / sum_i w_i = 1 - coverage

    Args:
        y_true: Labels. All arguments are as for `selective_accuracy`; labels only have to be valid.
        y_pred: Predictions.
        threshold: Confidence in [0, 1] from which a prediction is accepted.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: As `selective_accuracy`.

    Example:

    >>> import tfuq
    >>> tfuq.metrics.rejection_rate([0, 1, 0, 1], [0.1, 0.6, 0.0, 0.9], 0.7)
    0.25

    See also: `tfuq.metrics.RejectionRate`, `tfuq.metrics.rejection_table`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    data = (y_true, y_pred, threshold, from_logits, multi_label, sample_weight)
    return _measure(share_of_rejected, *data)


class _SelectiveMetric(PredictionMetric):
    """Base of the streaming metrics of what is accepted at one `threshold`."""

    _shape = (2, 3)

    def __init__(
        self,
        threshold: float = 0.5,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        check_fraction("threshold", threshold)
        super().__init__(from_logits, multi_label, name, dtype)
        self.threshold = float(threshold)

    def measure(self, examples: Any) -> Any:
        return acceptance_sums(examples, self.threshold)

    def get_config(self) -> dict[str, Any]:
        return {"threshold": self.threshold, **super().get_config()}


@register
class SelectiveAccuracy(_SelectiveMetric):
    """Accuracy on the predictions whose confidence is at least `threshold`; streaming.

    The formula is that of the function `selective_accuracy`.

    Args:
        threshold: Confidence in [0, 1] from which a prediction is accepted.
        name: Name in the logs. Name them apart if there is one for each of several thresholds.
            The other arguments are as at `__init__`.

    Returns:
        A scalar in [0, 1]; NaN while nothing is accepted, and as told at `result`.

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.SelectiveAccuracy(0.7)
    >>> metric.update_state([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> float(metric.result())
    1.0

    See also: `tfuq.metrics.selective_accuracy`, `tfuq.metrics.Coverage`.
    """

    _direction = "up"
    name = "selective_accuracy"

    def compute(self, sums: Any) -> Any:
        return accuracy_of_accepted(sums)


@register
class Coverage(_SelectiveMetric):
    """Fraction of predictions whose confidence is at least `threshold`; streaming.

    Args:
        threshold: Confidence in [0, 1] from which a prediction is accepted.
        name: Name in the logs. Name them apart if there is one for each of several thresholds.
            The other arguments are as at `__init__`.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.Coverage(0.7)
    >>> metric.update_state([0, 1], [[0.9, 0.1], [0.4, 0.6]])
    >>> float(metric.result())
    0.5

    See also: `tfuq.metrics.coverage`, `tfuq.metrics.RejectionRate`.
    """

    _direction = "up"
    name = "coverage"

    def compute(self, sums: Any) -> Any:
        return share_of_accepted(sums)


@register
class RejectionRate(_SelectiveMetric):
    """Fraction of predictions whose confidence is below `threshold`; streaming.

    Args:
        threshold: Confidence in [0, 1] from which a prediction is accepted.
        name: Name in the logs. Name them apart if there is one for each of several thresholds.
            The other arguments are as at `__init__`.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.RejectionRate(0.7)
    >>> metric.update_state([0, 1], [[0.9, 0.1], [0.4, 0.6]])
    >>> float(metric.result())
    0.5

    See also: `tfuq.metrics.rejection_rate`, `tfuq.metrics.Coverage`.
    """

    name = "rejection_rate"

    def compute(self, sums: Any) -> Any:
        return share_of_rejected(sums)
