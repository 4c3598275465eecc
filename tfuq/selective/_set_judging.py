"""Conformal sets on labelled data, and what was promised of them."""

from tfuq.selective._set_evaluation import (
    class_coverage,
    described_sets,
    set_coverage,
    set_evaluation,
)
from tfuq.selective.conformal_scores import by_example, true_scores


class JudgedSets:
    """Conformal predictors that can be held against labels."""

    def set_size(self, probs, groups=None, *, unknown_group="error", stacked=None, weights=None):
        """How many labels are in each set of `predict_set`, int `(n, ...)`."""
        options = {"unknown_group": unknown_group, "stacked": stacked, "weights": weights}
        return self.predict_set(probs, groups, **options).sum(axis=-1)

    def coverage(self, probs, labels, groups=None, *, weights=None):
        """How often sets hold the true class, a `SetCoverage`.

        Args:
            probs, groups, weights: As in `predict_set`; unknown groups have sets of all labels.
            labels: Labels, sparse or one-hot.

        Raises:
            ValueError: If arrays do not fit together, or hold NaN or a label that is no class.
        """
        mean, labels = self._read(probs, labels)
        return set_coverage(true_scores(self._sets(mean, groups, weights=weights), labels))

    def evaluate(self, probs, labels, groups=None, *, weights=None):
        """Coverage, sizes and singletons of the sets on labelled data, a `SetEvaluation`.

        Args:
            probs, groups, weights: As in `coverage`.
            labels: Labels, sparse or one-hot.

        Raises:
            ValueError: If arrays do not fit together, or hold NaN or a label that is no class.
        """
        mean, labels = self._read(probs, labels)
        sets = self._sets(mean, groups, weights=weights)
        covered = true_scores(sets, labels)
        entries = (by_example(part, self.multi_label, classes=False) for part in (labels, covered))
        by_class = class_coverage(*entries, mean.shape[-1])
        return set_evaluation(sets, covered, by_class if self.multi_label else by_class[0])

    def describe(self):
        """What was promised, in a sentence for who has to rely on it."""
        return described_sets(self)
