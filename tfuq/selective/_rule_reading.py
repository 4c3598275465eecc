"""Labelled predictions as fits and evaluations of rejection rules read them."""

import math

import numpy as np

from tfuq._arguments import to_float64
from tfuq._predictions.class_names import numbered
from tfuq._predictions.examples import from_arrays
from tfuq._predictions.stacks import is_stack_shape, is_stacked
from tfuq.selective._losses import losses_of
from tfuq.selective._own_rows import OwnRows
from tfuq.selective._reading import choice_of, kind_of, scored
from tfuq.selective._rule_fitting import Read, check_known

BLOCK = 2**18  # numbers of predictions that are read at a time, of which a dozen copies exist


def read_examples(mean, labels):
    """`Examples` of mean probabilities `(n, ..., classes)`, two classes for each binary one."""
    shape = mean.shape[:-1]
    if labels.ndim == len(shape) + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    return from_arrays(labels, mean, names=("labels", "probs"))


def read_labelled(rule, probs, labels, loss, fits=False, given=None, known=None):
    """`Read` of predictions and labels, in blocks where they are many.

    Args:
        rule: What reads them.
        probs, labels: As the caller gave them.
        loss: A `Loss`.
        fits: Whether a rule is to be fitted to them, which asks for rows of its own and scores.
        given: Scores, or a function that gives them, of the score `"given"`.
        known: Which labels are, or None for all.
    """
    labels = numbered(labels, rule.class_names)
    try:
        read = _in_blocks(rule, probs, labels, loss, fits, given)
    except ValueError:  # which an error of the whole tells with its place
        read = None
    read = read or _whole(rule, probs, labels, loss, fits, given)
    return read if known is None else read._replace(known=np.ravel(known))


def _whole(rule, probs, labels, loss, fits, given):
    score, flat, true, count = _one(rule, probs, labels, given)
    if fits:
        own = OwnRows(choice_of(rule, given))
        own.add(flat, true)
        own.check(probs)
        check_known(score)
    predicted = flat.argmax(-1)
    right = predicted == true
    losses, counts = losses_of(loss, flat, true)
    classes = flat.shape[-1]
    return Read(score, losses, counts, right, predicted, true, count, classes, loss.is_zero_one)


def _one(rule, probs, labels, given):
    """Scores, probabilities `(entries, classes)`, labels and how many examples there are."""
    score, mean = scored(rule, probs, None, given)
    mean, score = np.asarray(mean, "float64"), np.asarray(score, "float64").ravel()
    examples = read_examples(mean, to_float64("labels", labels))
    return score, np.asarray(examples.scores), np.asarray(examples.labels), mean.shape[0]


def _in_blocks(rule, probs, labels, loss, fits, given):
    """`Read` of single predictions that are many, or None: of 10^7 each array is 80 MB.

    Nothing is kept of the probabilities, scores are float32, as they are computed, and losses bool.
    """
    size = _rows_at_a_time(rule, probs, labels, loss, given)
    if not size:
        return None
    own = OwnRows(choice_of(rule, given)) if fits else None
    parts, filled = None, 0
    for start in range(0, len(probs), size):
        rows = slice(start, start + size)
        some = None if given is None else given[rows]
        score, flat, true, count = _one(rule, probs[rows], labels[rows], some)
        if fits:
            own.add(flat, true)
        if parts is None:
            entries, kind = len(probs) * (len(score) // count), np.min_scalar_type(flat.shape[-1])
            dtypes = ("float32", kind, kind)
            parts = [np.empty(entries, dtype) for dtype in dtypes]
        end = filled + len(score)
        for whole, part in zip(parts, (score, flat.argmax(-1), true), strict=True):
            whole[filled:end] = part
        filled = end
    if fits:
        own.check(probs)
        check_known(parts[0])
    score, predicted, true = parts
    lost, counts = loss.of_answers(predicted, true)
    if not counts.any():
        return None
    sizes = len(probs), flat.shape[-1]
    return Read(score, lost, counts, predicted == true, predicted, true, *sizes, True)


def _rows_at_a_time(rule, probs, labels, loss, given):
    """How many rows make a block; 0 where all are read at once."""
    arrays = [probs, labels, *([] if given is None else [given])]
    if not all(isinstance(each, np.ndarray) and each.ndim for each in arrays):
        return 0
    if len(probs) != len(labels) or not loss.is_named:
        return 0
    if given is not None and (len(given) != len(labels) or given.dtype.kind not in "fiu"):
        return 0
    if is_stack_shape(probs.shape, kind_of(rule, rule.fitted_to), is_stacked(probs)):
        return 0
    size = max(1, BLOCK // max(2, math.prod(probs.shape[1:])))
    return size if size < len(probs) else 0
