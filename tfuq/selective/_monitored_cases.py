"""Cases of a rule in use, as its monitor takes them: scores, decisions, and losses where known."""

import numpy as np

from tfuq._arguments import to_float64
from tfuq._predictions.scores import GIVEN
from tfuq.selective._interval_sources import labels_of
from tfuq.selective._losses import Loss, own_promises
from tfuq.selective._number_reading import losses_of_numbers
from tfuq.selective._reading import scored
from tfuq.selective._rule_reading import read_labelled
from tfuq.selective.own_loss import own_loss_of_numbers


def cases_of_classes(rule, probs, labels, groups, stacked, score):
    """Scores, whether accepted, and losses `(n,)`, NaN without a label or outside of the risk."""
    given, score = score, scored(rule, probs, stacked, score)[0]
    groups = {} if groups is None else {"groups": groups, "unknown_group": "reject"}
    accepted = rule.accept(probs, stacked=stacked, score=given, **groups)
    losses = np.full(len(accepted), np.nan)
    if labels is None:
        return score, accepted, losses
    if stacked and rule.rank == 1 and np.ndim(probs) == 2:
        probs = np.asarray(probs)[..., None]  # which is read as a stack from its shape
    labels = _one_for_each(np.ma.masked_array(labels, dtype=object), len(accepted))
    known = np.array([not (label is None or label != label) for label in labels], bool)
    if known.any():
        filled = labels.copy()
        filled[~known] = labels[known][0]
        given = np.zeros(len(labels)) if rule.score == GIVEN else None
        (promise,) = own_promises(rule)
        loss, labels = promise.loss, np.array(filled.tolist())
        by_answers = loss.is_named  # of which no case may belong to the risk
        read = Loss("error") if by_answers else loss
        read = read_labelled(rule, probs, labels, read, given=given)
        lost, counts = read.loss, read.counts
        if by_answers:
            lost, counts = loss.of_answers(read.predicted, read.labels)
        known &= counts
        losses[known] = lost[known]
    return score, accepted, losses


def cases_of_numbers(rule, found, labels, groups, stacked, score):
    """The same of numbers, one for each example."""
    if stacked is not None:
        raise ValueError(
            "Argument `stacked` must be left out for numbers: `found` knows whether it holds "
            f"several draws. Received: stacked={stacked}"
        )
    groups = {} if groups is None else {"groups": groups, "unknown_group": "reject"}
    accepted = rule.accept(found, score=score, **groups).ravel()
    score = rule.score_of(found, score=score).ravel()
    losses = np.full(len(accepted), np.nan)
    if labels is None:
        return score, accepted, losses
    values = np.ma.masked_array(labels, dtype=object).reshape(-1)
    filled = np.ma.filled(values, None)
    labels = to_float64("labels", [np.nan if each is None else each for each in filled])
    labels = labels_of(labels, found.shape, "labels").ravel()
    known = np.isfinite(found.mean.ravel()) & ~np.isnan(labels)
    mean = found.mean.ravel()[known].astype("float64")
    losses[known] = losses_of_numbers(
        own_loss_of_numbers(rule), mean, labels[known], rule.tolerance
    )
    return score, accepted, losses


def _one_for_each(labels, count):
    labels = np.ma.filled(labels, None)
    if np.shape(labels) != (count,):
        raise ValueError(
            f"Argument `labels` must hold one for each of {count} cases, None for those "
            f"without. Received: labels of shape {np.shape(labels)}"
        )
    return labels
