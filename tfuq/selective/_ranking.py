"""Predictions in order of trust, and the points of their risk-coverage curve."""

from typing import NamedTuple

import numpy as np

from tfuq._arguments import shown
from tfuq._math.risk_coverage import loss_table
from tfuq._predictions.labelled import labelled_predictions
from tfuq.selective._void import void_weight

_LEAST_MEAN_WEIGHT = 0.1


class Ranked(NamedTuple):
    """What is left of the data once they are in order of trust."""

    loss: np.ndarray  # (n,)
    weight: np.ndarray  # (n,)
    threshold: np.ndarray  # (levels,), in the units of the score
    level: np.ndarray  # (n,), 0 for the most trusted
    table: np.ndarray  # (levels, 2)


def rank(probs, labels, score, loss, sample_weight, from_logits, multi_label, ignore_class):
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    sample_weight = void_weight(probs, labels, sample_weight, ignore_class, multi_label)
    labelled = labelled_predictions(probs, labels, sample_weight, **flags)
    used = labelled.weight > 0
    weight, loss = labelled.weight[used], _read_loss(loss, labelled)[used]
    doubt = labelled.doubt(score)
    del labelled  # as large as the predictions
    level, threshold = doubt.levels(used)
    table = np.asarray(loss_table(level, len(threshold), weight, loss))
    return Ranked(loss, weight, threshold, level, table)


def _read_loss(loss, labelled):
    if loss is None:
        return labelled.error
    if callable(loss):
        examples = labelled.examples
        found = np.asarray(loss(np.asarray(examples.probs()), np.asarray(examples.labels)))
        if found.shape != labelled.weight.shape:
            raise ValueError(
                f"Argument `loss` must return an array of shape {labelled.weight.shape}. "
                f"Received: one of shape {found.shape}"
            )
        loss = found.reshape(labelled.shape)
    loss = labelled.spread("loss", loss)
    outside = ~(np.isfinite(loss) & (loss >= 0)) & (labelled.weight > 0)
    if np.any(outside):
        raise ValueError(
            "Argument `loss` must hold finite numbers of at least 0. "
            f"Received: loss={loss[outside][0]} ({outside.sum()} such)"
        )
    return np.where(labelled.weight > 0, loss, 0.0)


def curve_points(ranked):
    """Coverage and generalized risk of each point, and whether a threshold reaches it."""
    members = np.bincount(ranked.level)
    group = np.repeat(np.arange(len(members)), members)
    place = np.arange(1, len(group) + 1) - np.repeat(np.cumsum(members) - members, members)
    share = (place / members[group])[:, None]
    down_to = np.cumsum(ranked.table, axis=0)
    above = np.concatenate([np.zeros((1, 2)), down_to[:-1]])
    points = np.where(share == 1, down_to[group], above[group] + share * ranked.table[group])
    coverage, generalized = (points / down_to[-1, 0]).T
    return coverage, generalized, share[:, 0] == 1


def check_counts(weight):
    if weight.mean() < _LEAST_MEAN_WEIGHT:
        raise ValueError(
            "Argument `sample_weight` must have a mean of 1, because weights count examples: "
            f"divide them by their mean. Received: sample_weight of mean {weight.mean():.3g}"
        )


def check_risk(risk):
    is_number = isinstance(risk, (int, float, np.integer, np.floating))
    if not is_number or isinstance(risk, bool) or not 0 <= risk < np.inf:
        raise ValueError(
            f"Argument `risk` must be a finite number of at least 0. Received: risk={shown(risk)}"
        )
