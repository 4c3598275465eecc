"""Predictions and labels of a report, one for each example, from arrays or from a model.

An example whose prediction holds NaN or infinity is not usable: the metrics do without it, and any
threshold rejects it.
"""

from typing import NamedTuple

import keras
import numpy as np

from tfuq._arguments import check_flags, check_integer, shown, to_float64
from tfuq._models.predicting import predicted
from tfuq._predictions.labelled import LabelledPredictions, labelled_predictions
from tfuq._predictions.probabilities import is_binary, probabilities
from tfuq._predictions.scores import GIVEN, OF_STACKS
from tfuq._random.draws import num_draws, random_layers
from tfuq.predictive import sample_predictions
from tfuq.predictive.detector_marks import check_detector_of
from tfuq.selective.detector_scores import is_detector, predicted_and_scored

DRAWS = 30  # of a random model, for the score of a rule that needs a stack


class Given(NamedTuple):
    """What was given, and the usable part of it as the metrics take it."""

    probs: np.ndarray
    """All predictions, in the form that they had."""
    usable: np.ndarray
    """Which examples `(n,)` have a prediction that can be labelled."""
    labelled: LabelledPredictions
    """The usable ones."""
    rows: np.ndarray
    """The usable predictions, in the form that they had."""
    labels: np.ndarray
    """Of the usable ones, classes."""
    scores: np.ndarray
    """Their predictions, of a stack the mean: probabilities, or logits if `from_logits`."""
    from_logits: bool
    said: str = ""
    """Where the predictions of a random model come from."""
    beside: np.ndarray | None = None
    """Scores `(total,)` that were given beside the predictions, larger for the less certain."""
    beside_name: str = "given score"

    @property
    def total(self):
        """All examples."""
        return len(self.usable)

    def metric(self, function, **options):
        """A metric `function(labels, predictions)` of the usable examples."""
        return function(self.labels, self.scores, from_logits=self.from_logits, **options)


def given(source, data, output, batch_size, from_logits, rule, num_samples=None, score=None):
    """`Given` of the arguments of a report, or a ValueError that says what is wrong."""
    beside, name = scores_beside(score, rule, source, data)
    is_random = isinstance(source, keras.Model) and any(
        layer.is_random() for layer in random_layers(source)
    )
    if num_samples is not None and not is_random:
        raise ValueError(
            "Argument `num_samples` must be None unless `source` is a model with random layers. "
            f"Received: num_samples={shown(num_samples)}"
        )
    if is_random and num_samples is None and getattr(rule, "score", None) in OF_STACKS:
        num_samples = num_draws(source, None, DRAWS)
    said = ""
    if is_random:
        said = (
            "Predictions are those of the model itself, which is random: `num_samples` draws "
            "networks and reports their mean."
            if num_samples is None
            else f"Predictions are the mean of {num_samples} networks, drawn from the model."
        )
    if num_samples is not None:
        drawn = _drawn(source, data, output, num_samples, rule)
        beside = numbers_beside(beside.score(data[0])) if is_detector(beside) else beside
        source, data, from_logits = drawn, None, None
    found = _given(source, data, output, batch_size, from_logits, rule, beside)
    return found._replace(said=said, beside_name=name)


def scores_beside(score, rule, source, data):
    """Scores from beside the predictions, float32, the detector or None, and their name."""
    is_of_such = getattr(rule, "score", None) == GIVEN
    if score is None and not is_of_such:
        return None, ""
    if score is None or (rule is not None and not is_of_such):
        wanted = "the scores of these examples, or the detector" if is_of_such else "None"
        raise ValueError(
            f"Argument `score` must be {wanted} for a rule of the score {shown(rule.score)}. "
            f"Received: score={shown(score)}"
        )
    name = rule.fitted_to.get("detector", {}).get("class") if is_of_such else None
    if is_detector(score):
        if not isinstance(source, keras.Model):
            raise ValueError(
                "Argument `score` must be an array where `source` is not a model: the result of "
                f"the detector's `score(x)`. Received: score={shown(score)}"
            )
        check_detector_of(rule, score, "score")
        return score, f"{type(score).__name__} score"
    if isinstance(source, keras.Model) and not isinstance(data, (tuple, list)):
        raise ValueError(
            "Argument `score` must be a detector where `data` are not arrays (x, y): an array may "
            f"be in another order than the data. Received: score={shown(score)} with "
            f"data={shown(data)}"
        )
    return numbers_beside(score), f"{name} score" if name else "given score"


def numbers_beside(score):
    """Scores `(n,)`, float32."""
    values = to_float64("score", score)
    if values.ndim != 1:
        raise ValueError(
            f"Argument `score` must hold a number for each example, (n,). Received: scores of "
            f"shape {values.shape}"
        )
    return values.astype("float32")


def check_count(beside, count):
    """Raises ValueError unless there are so many scores."""
    if len(beside) != count:
        raise ValueError(
            f"Argument `score` must hold a number for each of {count} examples. "
            f"Received: {len(beside)}"
        )


def _drawn(model, data, output, num_samples, rule):
    """A stack of predictions and the labels of `data`, as the rule takes them."""
    check_integer("num_samples", num_samples, 1)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            "Argument `data` must be (x, y) arrays for draws of a random model. "
            f"Received: {type(data).__name__}"
        )
    if getattr(rule, "from_logits", False):
        raise ValueError(
            "Argument `rule` must be fitted to probabilities, as draws of a model are. Received: a "
            "rule of from_logits=True"
        )
    return sample_predictions(model, data[0], num_samples, output=output), data[1]


def _given(source, data, output, batch_size, from_logits, rule, beside=None):
    if isinstance(source, keras.Model):
        told = True if getattr(rule, "from_logits", False) and from_logits is None else from_logits
        given = {"from_logits": told}
        if is_detector(beside):
            asked = source, data, beside, output, batch_size or 32, 0, given
            read, values = predicted_and_scored(*asked)
            beside = numbers_beside(values)
        else:
            read = predicted(source, data, output, batch_size, given=given)
        probs, labels, said = read.probs, read.labels, read.from_logits
        if said and rule is not None and not rule.from_logits:  # fitted to an `Uncertainty`, say
            binary = is_binary(np.shape(probs), read.multi_label)
            probs = np.asarray(probabilities(np.asarray(probs, "float32"), True, binary))
            from_logits = said = False
    else:
        probs, labels = _arrays(source, data)
        said = False
    from_logits = _is_logits(from_logits, rule, said)
    probs, labels = to_float64("probs", probs, False), to_float64("labels", labels, False)
    usable = _usable(probs, len(labels), from_logits)
    if beside is not None:
        check_count(beside, len(usable))
        usable &= ~np.isnan(beside)
    elif rule is not None:  # it computes in float32, where large logits are infinite
        usable &= ~np.isnan(rule.score_of(probs))
    if not usable.any():
        raise ValueError(
            "Argument `probs` must hold a prediction without NaN or infinity. "
            f"Received: none among {len(usable)}"
        )
    chosen = slice(None) if usable.all() else usable  # no copy of what is usable altogether
    rows = probs[:, chosen] if probs.ndim == 3 else probs[chosen]
    labelled = labelled_predictions(rows, labels[chosen], from_logits=from_logits)
    if labelled.shape != (len(labelled.error),):
        raise ValueError(
            "Argument `labels` must hold one class for each example. "
            f"Received: labels of shape {labels.shape} with probs of shape {probs.shape}"
        )
    known = np.asarray(labelled.examples.labels)
    if labelled.stack is None:
        return Given(probs, usable, labelled, rows, known, rows, from_logits, beside=beside)
    mean = np.asarray(labelled.examples.probs())
    mean = mean[:, 1] if labelled.examples.columns else mean
    return Given(probs, usable, labelled, rows, known, mean, False, beside=beside)


def pictures(source, data):
    """The inputs of a model, if they are one array of pictures; else None."""
    if not isinstance(source, keras.Model) or not isinstance(data, (tuple, list)):
        return None
    shape = getattr(data[0], "shape", ())
    return data[0] if len(shape) == 4 and shape[-1] in (1, 3) else None


def _arrays(source, data):
    if data is not None:
        raise ValueError(
            "Argument `data` must be None unless `source` is a Keras model. "
            f"Received: data with source of type {type(source).__name__}"
        )
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise ValueError(
            "Argument `source` must be (probs, labels), or a Keras model with `data`. "
            f"Received: source of type {type(source).__name__}"
        )
    if not np.ndim(source[1]):
        raise ValueError(
            "Argument `labels` must be an array: a report needs to know what was true. "
            f"Received: labels={shown(source[1])}"
        )
    return source


def _is_logits(from_logits, rule, said):
    """Whether predictions are logits: as told, as the rule takes them, as the loss said."""
    if from_logits is None:
        return said if rule is None else rule.from_logits
    check_flags(from_logits=from_logits)
    if rule is not None and rule.from_logits != from_logits:
        raise ValueError(
            "Argument `from_logits` must be what the rule was fitted to. "
            f"Received: from_logits={from_logits} with a rule of from_logits={rule.from_logits}"
        )
    return from_logits


def _usable(probs, total, from_logits):
    """Which examples `(n,)` have a prediction that can be labelled."""
    stacked = probs.ndim == 3
    if probs.ndim not in (1, 2, 3) or probs.size == 0 or probs.shape[stacked] != total:
        raise ValueError(
            f"Argument `probs` must have shape ({total}, classes) for {total} labels, ({total},) "
            f"if binary, or (samples, {total}, classes), and not be empty. "
            f"Received: probs of shape {probs.shape}"
        )
    several = probs.ndim > 1 and probs.shape[-1] > 1
    known = np.isfinite(probs.max(-1) if from_logits and several else probs)  # exp(-inf) is 0
    axes = tuple(axis for axis in range(known.ndim) if axis != stacked)
    return known.all(axis=axes)
