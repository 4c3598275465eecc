"""Predictions for labelled and for new data, checked, and what their estimates share."""

import numpy as np

from tfuq._arguments import check_fraction, check_integer, to_float64
from tfuq._predictions.labelled import labelled_predictions


def read_source_and_target(probs_source, labels, probs_target, from_logits):
    """Probabilities `(n, classes)` and labels of the source, probabilities of the target."""
    source, labels = _read_one("probs_source", probs_source, labels, from_logits)
    target = read_unlabelled("probs_target", probs_target, from_logits)
    if source.shape[1] != target.shape[1]:
        raise ValueError(
            f"Argument `probs_target` must have the {source.shape[1]} classes of `probs_source`. "
            f"Received: {target.shape[1]}"
        )
    return source, labels, target


def read_unlabelled(name, probs, from_logits):
    shape = to_float64(name, probs).shape
    count = shape[-2] if len(shape) > 1 else np.size(probs)
    return _read_one(name, probs, np.zeros(count), from_logits)[0]


def _read_one(name, probs, labels, from_logits):
    labelled = labelled_predictions(probs, labels, from_logits=from_logits, names=(name,))
    if len(labelled.shape) > 1:
        raise ValueError(
            f"Argument `{name}` must have one prediction for each example. "
            f"Received: {labelled.shape} of them"
        )
    return np.asarray(labelled.examples.probs()), np.asarray(labelled.examples.labels)


def confusion_of(labels, probs):
    """Counts by true (rows) and predicted class."""
    classes = probs.shape[1]
    cells = labels * classes + probs.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def interval_of(draws, confidence):
    side = (1 - confidence) / 2
    return np.quantile(draws, [side, 1 - side], axis=0)


def check_draws(confidence, n_bootstrap, seed):
    check_fraction("confidence", confidence)
    check_integer("n_bootstrap", n_bootstrap, 1)
    check_integer("seed", seed, 0)
