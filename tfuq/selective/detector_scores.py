"""Scores of a detector as those of a rule: found in the pass that predicts, and remembered."""

import numpy as np

from tfuq._models.predicting import predicted_beside
from tfuq.ood.base import Detector
from tfuq.predictive.detector_marks import mark_of_detector


def is_detector(score):
    """Whether the argument `score` scores inputs."""
    return isinstance(score, Detector)


def predicted_and_scored(model, data, detector, output, batch_size, verbose, given):
    """`Predicted` of a model and data, and the detector's scores `(n,)` of the same rows."""
    detector._check_fitted()
    if detector.model is None:
        detector.model = model
    detector._check_to_score()

    def scores(batch, count):
        return np.asarray(detector.score(batch, batch_size=count))

    return predicted_beside(model, data, scores, output, batch_size, verbose, given=given)


def with_mark(rule, detector):
    """The rule, fitted to scores of the detector, that knows it again."""
    report = {**rule.fitted_to, "detector": mark_of_detector(detector)}
    return type(rule)(**{**rule.get_config(), "fitted_to": report})
