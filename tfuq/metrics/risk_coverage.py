"""Streaming metrics of risk against coverage, with a state of fixed size.

They agree with the functions of `tfuq.selective` but for confidences that share a bin, which count
as equal.
"""

from __future__ import annotations

from typing import Any

from tfuq._arguments import check_flags, check_fraction, register
from tfuq._math.bins import fine_index
from tfuq._math.rankings import check_rate
from tfuq._math.risk_coverage import (
    generalized_area,
    largest_coverage,
    loss_table,
    risk_at,
    selective_area,
)
from tfuq.metrics._base import BinnedMetric

N_BINS = 8192


class _RiskCoverageMetric(BinnedMetric):
    """Base of the streaming metrics of a table `(n_bins, 2)`; a child names `compute(table)`."""

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

    def measure(self, examples: Any) -> Any:
        confidence, correct = examples.top_label()
        level = self.n_bins - 1 - fine_index(confidence, self.n_bins)
        return loss_table(level, self.n_bins, examples.weight, ~correct)


@register
class AURC(_RiskCoverageMetric):
    """Area under the risk-coverage curve of the errors, by confidence; streaming.

    The formula is that of the function `tfuq.selective.aurc`, for predictions that are equal if
    their confidences share a bin of equal width in log-odds: by default what differs by less than
    0.42 % in the odds. A bin in which all are right, or all are wrong, changes nothing inside it.

    Args:
        n_bins: Number of bins, at least 2. The state has twice as many numbers. The other arguments
            are as at `__init__`.

    Call arguments:
        sample_weight: Weights. They count equal examples, and should be about 1 on average. The
            others are as at `update_state`.

    Returns:
        A scalar in [0, 1], less is better.

    Raises:
        ValueError: If `n_bins` is below 2.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.AURC()
    >>> metric.update_state([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> round(float(metric.result()), 4)
    0.1111

    See also: `tfuq.metrics.AUGRC`, `tfuq.selective.aurc`.
    """

    name = "aurc"

    def compute(self, sums: Any) -> Any:
        return selective_area(sums)


@register
class AUGRC(_RiskCoverageMetric):
    """Area under the generalized risk-coverage curve of the errors, by confidence; streaming.

    The formula is that of the function `tfuq.selective.augrc`; the confidences of one bin count as
    equal.

    All arguments are as for `AURC`; of weights only ratios count.

    Returns:
        A scalar in [0, 0.5], less is better.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.AUGRC()
    >>> metric.update_state([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> round(float(metric.result()), 4)
    0.0556

    See also: `tfuq.metrics.AURC`, `tfuq.selective.augrc`.
    """

    name = "augrc"

    def compute(self, sums: Any) -> Any:
        return generalized_area(sums)


@register
class CoverageAtRisk(_RiskCoverageMetric):
    """The largest coverage whose error rate is at most `risk`, by confidence; streaming.

    The formula is that of the function `tfuq.selective.coverage_at_risk`; the confidences of one
    bin count as equal. With `attainable`, thresholds are the ends of the bins, so the coverage is
    never above the exact one.

    Args:
        risk: The error rate in [0, 1] that is allowed.
        attainable: Whether a bin is accepted as a whole or not at all. Otherwise some of the
            predictions in it may be, at random.
        n_bins: Number of bins. The other arguments are as for `AURC`.

    Returns:
        A scalar in [0, 1], 0 if no coverage has so small a risk.

    Raises:
        ValueError: As `AURC`; if `risk` is outside [0, 1] or `attainable` not True or False.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.CoverageAtRisk(0.25)
    >>> metric.update_state([1, 1, 0, 0], [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    >>> float(metric.result())
    1.0

    See also: `tfuq.metrics.RiskAtCoverage`, `tfuq.selective.coverage_at_risk`.
    """

    _direction = "up"
    name = "coverage_at_risk"

    def __init__(
        self,
        risk: float = 0.05,
        attainable: bool = False,
        n_bins: int = N_BINS,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        check_fraction("risk", risk)
        check_flags(attainable=attainable)
        super().__init__(n_bins, from_logits, multi_label, name, dtype)
        self.risk = float(risk)
        self.attainable = attainable

    def compute(self, sums: Any) -> Any:
        return largest_coverage(sums, self.risk, self.attainable)

    def get_config(self) -> dict[str, Any]:
        return {"risk": self.risk, "attainable": self.attainable, **super().get_config()}


@register
class RiskAtCoverage(_RiskCoverageMetric):
    """The error rate of the most confident predictions, a fraction `coverage` of all; streaming.

    The formula is that of the function `tfuq.selective.risk_at_coverage`; the confidences of one
    bin count as equal.

    Args:
        coverage: The fraction in (0, 1] that is accepted at least.
        attainable: Whether a bin is accepted as a whole. Otherwise as many predictions in it are,
            at random, as the coverage needs.
        n_bins: Number of bins. The other arguments are as for `AURC`.

    Returns:
        A scalar in [0, 1], less is better.

    Raises:
        ValueError: As `AURC`; if `coverage` is not in (0, 1] or `attainable` not True or False.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.RiskAtCoverage(0.5)
    >>> metric.update_state([0, 1, 0, 0], [[0.9, 0.1], [0.2, 0.8], [0.2, 0.8], [0.6, 0.4]])
    >>> float(metric.result())
    0.25

    See also: `tfuq.metrics.CoverageAtRisk`, `tfuq.selective.risk_at_coverage`.
    """

    name = "risk_at_coverage"

    def __init__(
        self,
        coverage: float = 0.8,
        attainable: bool = False,
        n_bins: int = N_BINS,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        check_rate("coverage", coverage)
        check_flags(attainable=attainable)
        super().__init__(n_bins, from_logits, multi_label, name, dtype)
        self.coverage = float(coverage)
        self.attainable = attainable

    def compute(self, sums: Any) -> Any:
        return risk_at(sums, self.coverage, self.attainable)

    def get_config(self) -> dict[str, Any]:
        return {"coverage": self.coverage, "attainable": self.attainable, **super().get_config()}
