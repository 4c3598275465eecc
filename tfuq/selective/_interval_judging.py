"""Conformal intervals on labelled data."""

from __future__ import annotations

import numpy as np

from tfuq._arguments import ArrayLike
from tfuq._math.intervals import is_inside
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq.selective._interval_evaluation import (
    IntervalEvaluation,
    by_group,
    check_other_rows,
    interval_evaluation,
)
from tfuq.selective._interval_fitting import group_names
from tfuq.selective._interval_sources import labels_of
from tfuq.selective._set_evaluation import SetCoverage, set_coverage


class JudgedIntervals:
    """Intervals that can be held against labels."""

    def coverage(
        self,
        found: ArrayLike | RegressionUncertainty,
        y: ArrayLike,
        groups: ArrayLike | None = None,
    ) -> SetCoverage:
        """How often intervals hold the true number, a `SetCoverage`.

        Args:
            found, groups: As in `interval`; unknown groups are unbounded.
            y: Labels, as in `fit`.

        Raises:
            ValueError: As `evaluate`.
        """
        lower, upper, y = self._judged(found, y, groups)
        return set_coverage(is_inside(lower, upper, y))

    def evaluate(
        self,
        found: ArrayLike | RegressionUncertainty,
        y: ArrayLike,
        groups: ArrayLike | None = None,
    ) -> IntervalEvaluation:
        """Coverage, width and score of the intervals on labelled data, an `IntervalEvaluation`.

        Args:
            found: As in `interval`, of other rows than it was fitted to.
            y: Labels, as in `fit`.
            groups: The group of each example, also where all have one threshold: the figures are
                told of each. Groups that fitting never saw are unbounded.

        Raises:
            ValueError: As `interval`; if labels are NaN or do not fit; if these are the rows that
                it was fitted to, of which coverage says nothing.
        """
        own = groups if self.keys is not None else None
        lower, upper, y = self._judged(found, y, own)
        alpha = self.fitted_to.get("alpha", np.nan)
        parts = {}
        if groups is not None:
            parts = by_group(lower, upper, y, alpha, group_names(groups, len(y)))
        return interval_evaluation(lower, upper, y, alpha, parts)

    def _judged(self, found, y, groups):
        source = self._source(found)
        y = labels_of(y, source.shape).astype("float64")
        if not np.isfinite(y).all():
            raise ValueError(
                "Argument `y` must hold finite numbers. "
                f"Received: {np.count_nonzero(~np.isfinite(y))} that are not"
            )
        lower, upper = self.interval(found, groups, unknown_group="unbounded")
        check_other_rows(self, source, y, lower, upper)
        return lower, upper, y
