"""Streaming metrics of detectors of what is out of distribution, with a state of fixed size.

They agree with the functions of `tfuq.metrics.ood` but for scores that share a bin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from tfuq._arguments import check_choice, register
from tfuq._math.rankings import (
    POSITIVE,
    average_precision_in,
    average_precision_out,
    best_accuracy,
    check_rate,
    false_positive_rate,
    roc_area,
    squashed_index,
)
from tfuq.metrics._base import BinnedMetric

N_BINS = 16384


class _OODMetric(BinnedMetric):
    """Base of the streaming metrics of a table `(n_bins, 2)`; a child names `of_table(table)`.

    `keras.metrics.AUC` would count in float32, in thresholds that are even in probability, which
    cannot tell apart what a good detector says, and interpolates precision.
    """

    _direction = "up"
    _least_bins = 2

    def __init__(
        self,
        n_bins: int = N_BINS,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(n_bins, from_logits, multi_label, name, dtype)

    @property
    def _shape(self):
        return self.n_bins, 2

    def of_table(self, table: Any) -> Any:
        """The metric of a table that holds both classes."""
        raise NotImplementedError

    def measure(self, examples: Any) -> Any:
        if examples.columns is None:
            raise ValueError(
                "Argument `y_pred` must have shape (n,) or (n, ..., 1), one score for each label, "
                f"or pass multi_label=True. Received: {examples.scores.shape[-1]} for each"
            )
        scores = ops.cast(examples.scores, "float64")
        scores = scores if examples.from_logits else ops.log(scores)
        index = squashed_index(scores[:, 1] - scores[:, 0], self.n_bins)
        weight, label = (ops.cast(x, "float64") for x in (examples.weight, examples.labels))
        values = ops.stack([weight * (1 - label), weight * label], axis=-1)
        return ops.segment_sum(values, index, num_segments=self.n_bins)

    def compute(self, sums: Any) -> Any:
        both = ops.all(ops.sum(sums, axis=0) > 0)
        return ops.where(both, self.of_table(sums), np.nan)


@register
class AUROC(_OODMetric):
    """Area under the receiver operating characteristic; streaming.

    Scores are counted in bins of equal width in sign(s) log(1 + 10^6 |s|) of the score s, which is
    the log-odds of a probability. By default a bin holds what differs by less than 0.5 % in s, from
    10^-6 to 10^9. Scores of one bin count as equal. That moves the area by at most
    sum_b in_b out_b / 2 over the bins, with the shares of the classes in each: mostly below 10^-4.
    The function `auroc` is exact.

    Args:
        n_bins: Number of bins, at least 2. The state has twice as many numbers.
        from_logits: Whether `y_pred` are scores of any size, not probabilities of being out of
            distribution.
        multi_label: Whether each entry of the last axis is a score of its own, all counted
            together: maps of scores `(batch, height, width)`.
        dtype: Dtype of the result; sums are float64.

    Call arguments:
        y_true: Labels, 1 for out of distribution and 0 for in distribution.
        y_pred: Scores `(batch,)` or `(batch, ..., 1)`, larger for out of distribution.
        sample_weight: Weights `(batch,)`, or with more of the leading axes.

    Returns:
        A scalar in [0, 1]. NaN while one class is missing, and after a score that is NaN or +inf,
        until `reset_state`.

    Raises:
        ValueError: If `n_bins` is below 2, or shapes do not fit together; if a score is no
            probability and `from_logits` is False.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.AUROC(from_logits=True)
    >>> metric.update_state([0, 0, 1, 1], [1.5, 20.0, 20.0, 300.0])
    >>> float(metric.result())
    0.875

    See also: `tfuq.metrics.auroc`, `tfuq.metrics.AUPRIn`, `tfuq.metrics.FPRAtTPR`.
    """

    name = "auroc"

    def of_table(self, table: Any) -> Any:
        return roc_area(table)


@register
class AUPRIn(_OODMetric):
    """Average precision with **in** distribution as the positive class; streaming.

    The formula is that of the function `aupr_in`; the scores of one bin count as equal.
    All arguments are as for `AUROC`.

    Returns:
        A scalar in [0, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.AUPRIn()
    >>> metric.update_state([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9])
    >>> round(float(metric.result()), 4)
    0.8333

    See also: `tfuq.metrics.aupr_in`, `tfuq.metrics.AUPROut`, `tfuq.metrics.AUROC`.
    """

    name = "aupr_in"

    def of_table(self, table: Any) -> Any:
        return average_precision_in(table)


@register
class AUPROut(_OODMetric):
    """Average precision with **out of** distribution as the positive class; streaming.

    The formula is that of the function `aupr_out`; the scores of one bin count as equal.
    All arguments are as for `AUROC`.

    Returns:
        A scalar in [0, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.AUPROut()
    >>> metric.update_state([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9])
    >>> round(float(metric.result()), 4)
    0.8333

    See also: `tfuq.metrics.aupr_out`, `tfuq.metrics.AUPRIn`, `tfuq.metrics.AUROC`.
    """

    name = "aupr_out"

    def of_table(self, table: Any) -> Any:
        return average_precision_out(table)


@register
class FPRAtTPR(_OODMetric):
    """Rate of false positives where at least `tpr` of the positive class is found; streaming.

    The formula is that of the function `fpr_at_tpr`. A bin lies on one side of the threshold as a
    whole, the positive one if the threshold is in it: the rate is never below the exact one.

    Args:
        tpr: Rate of true positives in (0, 1].
        positive: `"in"` or `"out"`, the class whose true positives are meant.
        n_bins: Number of bins. The other arguments are as for `AUROC`.

    Returns:
        A scalar in [0, 1], less is better.

    Raises:
        ValueError: As `AUROC`; if `tpr` or `positive` is none of those said.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.FPRAtTPR()
    >>> metric.update_state([0, 0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.6, 0.6, 0.9])
    >>> float(metric.result())
    0.5

    See also: `tfuq.metrics.fpr_at_tpr`, `tfuq.metrics.AUROC`.
    """

    _direction = "down"
    name = "fpr_at_tpr"

    def __init__(
        self,
        tpr: float = 0.95,
        positive: str = "in",
        n_bins: int = N_BINS,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        check_rate("tpr", tpr)
        check_choice("positive", positive, POSITIVE)
        super().__init__(n_bins, from_logits, multi_label, name, dtype)
        self.tpr = float(tpr)
        self.positive = positive

    def of_table(self, table: Any) -> Any:
        return false_positive_rate(self.tpr, self.positive)(table)

    def get_config(self) -> dict[str, Any]:
        return {"tpr": self.tpr, "positive": self.positive, **super().get_config()}


@register
class DetectionAccuracy(_OODMetric):
    """Accuracy of telling the classes apart at the best threshold, both as probable; streaming.

    The formula is that of the function `detection_accuracy`. Thresholds are the ends of the bins,
    so the accuracy is never above the exact one. All arguments are as for `AUROC`.

    Returns:
        A scalar in [0.5, 1].

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.DetectionAccuracy()
    >>> metric.update_state([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9])
    >>> float(metric.result())
    0.75

    See also: `tfuq.metrics.detection_accuracy`, `tfuq.metrics.AUROC`.
    """

    name = "detection_accuracy"

    def of_table(self, table: Any) -> Any:
        return best_accuracy(table)
