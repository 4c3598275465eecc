"""Conformal sets on labelled data, and what was promised of them."""

from __future__ import annotations

import numpy as np

from tfuq._arguments import ArrayLike, check_choice
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._set_evaluation import (
    SetCoverage,
    SetEvaluation,
    class_coverage,
    described_sets,
    set_coverage,
    set_evaluation,
)
from tfuq.selective._void import filled
from tfuq.selective.conformal_scores import by_example, true_scores


class JudgedSets:
    """Conformal predictors that accept, and can be held against labels."""

    def set_size(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        groups: ArrayLike | None = None,
        *,
        unknown_group: str = "error",
        stacked: bool | None = None,
        weights: ArrayLike | None = None,
    ) -> np.ndarray:
        """How many labels are in each set of `predict_set`, int `(n, ...)`."""
        options = {"unknown_group": unknown_group, "stacked": stacked, "weights": weights}
        return self.predict_set(probs, groups, **options).sum(axis=-1)

    def accept(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        groups: ArrayLike | None = None,
        *,
        unknown_group: str = "error",
        stacked: bool | None = None,
        weights: ArrayLike | None = None,
    ) -> np.ndarray:
        """Which predictions are accepted, bool `(n, ...)`: those whose set has one label.

        An empty set is rejected as well: no label is likely enough.

        Args:
            probs, groups, weights: As in `predict_set`.
            unknown_group: `"error"`, or `"reject"` for a group that fitting never saw.
        """
        check_choice("unknown_group", unknown_group, ("error", "reject"))
        mean = self._mean(probs, stacked)
        of_unknown = "error" if unknown_group == "error" else "all"
        sizes = self._sets(mean, groups, of_unknown, weights).sum(axis=-1)
        return (sizes == 1) & np.isfinite(mean).all(axis=-1)

    def coverage(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike,
        groups: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_class: int | str | None = None,
    ) -> SetCoverage:
        """How often sets hold the true class, a `SetCoverage`.

        Args:
            probs, groups, weights: As in `predict_set`; unknown groups have sets of all labels.
            labels: Labels, sparse or one-hot.
            sample_weight, ignore_class: As in `fit`.

        Raises:
            ValueError: If arrays do not fit together, or hold NaN or a label that is no class.
        """
        asked = sample_weight, ignore_class
        _, _, _, covered, known = self._judged(probs, labels, groups, weights, *asked)
        return set_coverage(covered, known)

    def evaluate(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike,
        groups: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_class: int | str | None = None,
    ) -> SetEvaluation:
        """Coverage, sizes and singletons of the sets on labelled data, a `SetEvaluation`.

        Args:
            probs, groups, weights: As in `coverage`.
            labels: Labels, sparse or one-hot.
            sample_weight, ignore_class: As in `fit`.

        Raises:
            ValueError: If arrays do not fit together, or hold NaN or a label that is no class.
        """
        asked = sample_weight, ignore_class
        mean, labels, *found = self._judged(probs, labels, groups, weights, *asked)
        sets, covered, known = found
        entries = [
            None if part is None else by_example(part, self.multi_label, classes=False)
            for part in (labels, covered, known)
        ]
        by_class = class_coverage(*entries[:2], mean.shape[-1], entries[2])
        by_class = by_class if self.multi_label else by_class[0]
        return set_evaluation(sets, covered, by_class, known)

    def _judged(self, probs, labels, groups, weights, sample_weight, ignore_class):
        """Mean probabilities, labels, sets, whether they hold the true class, what is known."""
        probs, labels, _, known = filled(self, probs, labels, None, sample_weight, ignore_class)
        mean, labels = self._read(probs, labels)
        sets = self._sets(mean, groups, weights=weights)
        return mean, labels, sets, true_scores(sets, labels), known

    def describe(self) -> str:
        """The promise, in a sentence for the person who relies on it."""
        return described_sets(self)
