"""Thresholds of conformal sets, found from labelled examples."""

from __future__ import annotations

import numpy as np

from tfuq._arguments import to_float64
from tfuq._predictions.class_names import numbered
from tfuq.selective._conformal_fitting import calibrated, warn_if_saturated
from tfuq.selective._repeated_rows import warn_of_repeated
from tfuq.selective._rule_reading import read_examples
from tfuq.selective._set_groups import calibrated_by_group
from tfuq.selective._weighted_sets import calibrated_by_weight
from tfuq.selective.conformal_scores import true_scores


class FittedSets:
    """Sets that find their thresholds."""

    def _calibrated(self, probs, labels, alpha, tuned_on, names, weights, known):
        """The predictor with the thresholds of these examples, and what they promise."""
        scores = true_scores(self._scores(probs), labels)
        warn_of_repeated(scores, labels)
        classes, flags = probs.shape[-1], (self.class_conditional, self.multi_label)
        config = self.get_config()
        if weights is not None:
            given = (scores, labels, weights, alpha, classes)
            found, config["weight_limits"], report = calibrated_by_weight(*given)
            config["class_conditional"] = config["weight_limits"] is None
        elif names is None:
            found, report = calibrated(scores, labels, classes, alpha, *flags, known)
        else:
            given = (scores, labels, names, alpha, classes)
            found, report, config["keys"] = calibrated_by_group(*given, *flags, known)
        warn_if_saturated(self.score, found)
        report |= {"tuned_on": tuned_on} if tuned_on else {}
        return type(self)(**{**config, "threshold": found, "fitted_to": report})

    def _read(self, probs, labels, stacked=None):
        """Mean probabilities `(n, ..., classes)` and labels `(n, ...)`, checked."""
        mean = self._mean(probs, stacked)
        examples = read_examples(
            mean.astype("float64"), to_float64("labels", numbered(labels, self.class_names))
        )
        return mean, np.asarray(examples.labels).reshape(mean.shape[:-1])
