"""Parts of a combined score: what is taken as one, what it gives, and ranks among known rows."""

import copy

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import is_finite, shown, to_float64
from tfuq._predictions.probabilities import probabilities
from tfuq._predictions.scores import CONFIDENCES, GIVEN, OF_STACKS, RANKINGS, score_name, score_of
from tfuq.ood.base import Detector
from tfuq.ood.graph_scores import has_graph_form

PROBS = "probs"  # of features given as a dict, beside those of scores


class Taps:
    """One tap that reads for several detectors, whose own ones are ready where it is."""

    def __init__(self, tap, others):
        self._own, self._others = tap, others

    def __getattr__(self, name):
        return getattr(self._own, name)

    def __call__(self, batch):
        self.prepare(batch)
        return self._own(batch)

    def prepare(self, batch):
        for tap in (self._own, *self._others):
            tap.prepare(batch)


def at(place, name):
    return f"of_{place}_{name}"


def of_part(place, state):
    """What belongs to the detector at `place`, under its own names."""
    start = at(place, "")
    return {n.removeprefix(start): array for n, array in state.items() if n.startswith(start)}


def side_by_side(columns):
    return np.stack([np.asarray(column, "float64") for column in columns], axis=1)


def probs_of(logits):
    return probabilities(tf.cast(logits, "float64"), True, False)


def of_probs(name, score, probs):
    """A score `(n,)` of probabilities `(n, classes)` that grows with uncertainty."""
    probs = tf.convert_to_tensor(probs)
    if isinstance(score, str):
        return (-1 if score in CONFIDENCES else 1) * score_of(score, probs[None])
    found = tf.convert_to_tensor(score(probs))
    if found.shape.rank != 1 or not found.dtype.is_floating:
        raise ValueError(
            f"Argument `scores` must hold functions that return numbers (n,). Received: {name!r}, "
            f"which returns {found.dtype.name} of shape {tuple(found.shape)}"
        )
    return found


def scores_of_own(detector, scores):
    """Its scores of the rows that it was fitted to, as it knows them, else `scores`."""
    try:
        return detector._own_scores()
    except ValueError:  # inputs are moved with the model, or there are too few
        return scores


def rank(column, knots):
    """The share `(n,)` of rows with a smaller score, half of the equal ones, by `knots`.

    Between knots, quantiles at equal steps, it is linear. Counted, not searched for, as runtimes of
    exported graphs have no search.
    """
    last = tf.shape(knots)[0] - 1
    column = tf.clip_by_value(column, knots[0], knots[-1])[:, None]
    below = tf.reduce_sum(tf.cast(knots < column, "int32"), axis=1)
    upto = tf.reduce_sum(tf.cast(knots <= column, "int32"), axis=1)
    lower = tf.maximum(below - 1, 0)
    low, high = tf.gather(knots, lower), tf.gather(knots, tf.minimum(below, last))
    between = tf.cast(lower, "float64") + tf.math.divide_no_nan(column[:, 0] - low, high - low)
    middle = tf.cast(below + upto - 1, "float64") / 2  # of the knots that it is equal to
    return tf.where(upto > below, middle, between) / tf.cast(last, "float64")


def checked_scores(scores):
    """The argument `scores` as a dict of names, detectors, functions and `"given"`."""
    if isinstance(scores, (list, tuple)):
        named = [(_name_of(score), score) for score in scores]
        if len(dict(named)) < len(named):
            raise ValueError(
                "Argument `scores` must be a dict with a name for each, where two are of one kind. "
                f"Received: {[name for name, _ in named]}"
            )
        scores = dict(named)
    if not isinstance(scores, dict) or len(scores) < 2:
        raise ValueError(
            "Argument `scores` must hold two scores or more, in a list or a dict. "
            f"Received: scores={shown(scores)}"
        )
    if PROBS in scores or not all(isinstance(name, str) and name for name in scores):
        raise ValueError(
            f"Argument `scores` must have texts as names, none of them {shown(PROBS)}. "
            f"Received: {list(scores)}"
        )
    return {name: _checked_score(name, score) for name, score in scores.items()}


def _name_of(score):
    if isinstance(score, str):
        return score
    return getattr(score, "__name__", type(score).__name__)


def _checked_score(name, score):
    if isinstance(score, dict):
        score = _made(score)
    if isinstance(score, str):
        if score in OF_STACKS:
            raise ValueError(
                "Argument `scores` must hold scores of single predictions: a detector sees one "
                f"network, no stack. Received: {name!r} of {shown(score)}"
            )
        return GIVEN if score == GIVEN else score_name(score, RANKINGS, argument="scores")
    if isinstance(score, Detector):
        if not has_graph_form(type(score)) or getattr(score, "multi_label", None):
            raise ValueError(
                "Argument `scores` must hold detectors of single classes that run in a graph. "
                f"Received: {name!r} of {shown(score)}"
            )
        return copy.copy(score)  # what is done to theirs later changes nothing here
    if callable(score):
        known = keras.saving.get_registered_object(keras.saving.get_registered_name(score))
        if known is score:
            return score
        raise ValueError(
            "Argument `scores` must hold registered functions, so that a saved score finds them: "
            "put @keras.saving.register_keras_serializable() above the function, or let the score "
            f"be 'given'. Received: {name!r} of {shown(score)}"
        )
    raise ValueError(
        "Argument `scores` must hold names of scores, detectors, functions or 'given'; arrays are "
        f"what `fit_features` takes for a 'given' one. Received: {name!r} of {shown(score)}"
    )


def _made(content):
    """What `content_of` described."""
    kind = keras.saving.get_registered_object(content.get("class"))
    if "config" not in content:
        return kind if kind is not None else content
    is_detector = isinstance(kind, type) and issubclass(kind, Detector)
    return kind(**content["config"]) if is_detector else content


def content_of(score):
    if isinstance(score, str):
        return score
    if isinstance(score, Detector):
        name = keras.saving.get_registered_name(type(score))
        return {"class": name, "config": score.get_config()}
    return {"class": keras.saving.get_registered_name(score)}


def checked_weights(weights, scores):
    """A dict of a weight for each of the scores."""
    if weights is None:
        return dict.fromkeys(scores, 1.0)
    if isinstance(weights, dict):
        fits, values = list(weights) == list(scores) or set(weights) == set(scores), weights
        values = [weights.get(name) for name in scores]
    else:
        values = np.ravel(to_float64("weights", weights)).tolist()
        fits = len(values) == len(scores)
    known = [is_finite(value) and value >= 0 for value in values]
    if not fits or not all(known) or not any(values):
        raise ValueError(
            f"Argument `weights` must hold a number of at least 0 for each of {list(scores)}, not "
            f"all 0. Received: weights={shown(weights)}"
        )
    return {name: float(value) for name, value in zip(scores, values, strict=True)}


def common(name, value, detectors):
    """The argument `output` or `from_logits`, which must be that of all detectors."""
    found = {key: getattr(detector, name) for key, detector in detectors.items()}
    told = {repr(each): each for each in found.values() if each is not None}
    if value is not None:
        told[repr(value)] = value
    is_one = len(told) < 2 and not (name == "output" and told and None in found.values())
    if not is_one:
        raise ValueError(
            f"Argument `{name}` must be the same for all detectors and the whole. "
            f"Received: {name}={shown(value)}, of the detectors {found}"
        )
    return next(iter(told.values()), None)
