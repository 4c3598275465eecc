"""Scores of a detector as those of a rule: found in the pass that predicts, and remembered."""

import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._models.predicting import predicted_beside
from tfuq.ood.base import Detector
from tfuq.predictive.detector_marks import mark_of_detector
from tfuq.selective._losses import known_by


def is_detector(score):
    """Whether the argument `score` scores inputs."""
    return isinstance(score, Detector)


def predicted_and_scored(model, data, detector, output, batch_size, verbose, given):
    """`Predicted` of a model and data, and the detector's scores `(n,)` of the same rows."""
    scores, notes = scores_of_batches(detector, model)
    found, values = predicted_beside(model, data, scores, output, batch_size, verbose, given=given)
    if notes:
        detector.note_scores(values)
    return found, values


def scores_of_batches(detector, model):
    """A function of inputs and their number that gives scores `(n,)`, and whether to note them.

    What notes scores notes those of the whole, not batch by batch.
    """
    detector._check_fitted()
    if detector.model is None:
        detector.model = model
    detector._check_to_score()
    notes = hasattr(detector, "note_scores")
    score = Detector.score if notes else type(detector).score

    def scores(batch, count):
        return np.asarray(score(detector, batch, batch_size=count))

    return scores, notes


def given_scores(given, mean):
    """Scores `(n,)` as those of the numbers `mean` `(n, ..., units)`, NaN where these are."""
    shape = tf.concat([[-1], tf.ones(mean.shape.rank - 1, "int32")], axis=0)
    values = tf.broadcast_to(tf.reshape(tf.cast(given, "float32"), shape), tf.shape(mean))
    return tf.where(tf.math.is_finite(mean), values, float("nan"))


def with_mark(rule, detector):
    """The rule, fitted to scores of the detector, that knows it again."""
    report = {**rule.fitted_to, "detector": mark_of_detector(detector)}
    made = type(rule)(**{**rule.get_config(), "fitted_to": report})
    return known_by(made, getattr(rule, "_promises", None))


def check_is_in_order(score, data):
    """Raises ValueError for scores of their own beside data that may come in another order."""
    is_own = score is not None and not isinstance(score, str) and not callable(score)
    if is_own and not isinstance(data, (tuple, list)):
        raise ValueError(
            "Argument `score` must be a name, a detector or a function where `data` are not "
            "arrays: an array of scores may be in another order than the data. Received: "
            f"score={shown(score)} with data={shown(data)}"
        )
