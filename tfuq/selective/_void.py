"""Void labels, masks and weights of 0: one mechanism, a weight of 0, for all that takes labels."""

import numpy as np

from tfuq._arguments import shown, to_float64
from tfuq._files.tables import group_columns
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.stacks import is_stacked
from tfuq.selective._reading import array_of


def is_one_hot(labels, probs):
    """Whether labels of that shape, for predictions (or a stack of them) of that, are one-hot."""
    if labels == probs[:-1] or len(labels) < 2 or labels[-1] == 1:
        return False
    return labels == probs or (labels == probs[1:] and labels != probs[1:-1])


def void_weight(probs, labels, sample_weight, ignore_class, multi_label=False):
    """The argument `sample_weight`, 0 where labels are of `ignore_class`; as it is if that is None.

    Of one-hot labels the largest entry is the class. Texts are compared as texts.
    """
    if ignore_class is None:
        return sample_weight
    if isinstance(probs, RegressionUncertainty):
        raise ValueError(
            "Argument `ignore_class` must be None for numbers, which are no classes: take a "
            f"`sample_weight` of 0. Received: ignore_class={shown(ignore_class)}"
        )
    labels = np.asarray(labels)
    _check_ignored(ignore_class, labels)
    if not multi_label and is_one_hot(labels.shape, np.shape(probs)):
        kept = labels.argmax(axis=-1) != ignore_class
    else:
        labels = labels[..., 0] if labels.ndim > 1 and labels.shape[-1] == 1 else labels
        kept = np.asarray(labels != ignore_class, bool)
    if sample_weight is None:
        return kept.astype("float64")
    weight = to_float64("sample_weight", sample_weight)
    weight = weight[..., 0] if weight.ndim > 1 and weight.shape[-1] == 1 else weight
    if weight.ndim == 0 or weight.shape != kept.shape[: weight.ndim]:
        raise ValueError(
            f"Argument `sample_weight` must have one or more leading axes of {kept.shape}. "
            f"Received: sample_weight of shape {weight.shape}"
        )
    return kept * weight.reshape(weight.shape + (1,) * (kept.ndim - weight.ndim))


def _check_ignored(ignore_class, labels):
    is_integer = isinstance(ignore_class, (int, np.integer)) and not isinstance(ignore_class, bool)
    if not is_integer and not isinstance(ignore_class, str):
        raise ValueError(
            "Argument `ignore_class` must be None or the void label: an integer, or a text where "
            f"labels are names. Received: ignore_class={shown(ignore_class)}"
        )
    if labels.dtype.kind in ("biuf" if isinstance(ignore_class, str) else "SU"):
        raise ValueError(
            "Argument `ignore_class` must be of the kind of the labels: a text among names, an "
            f"integer among numbers. Received: ignore_class={shown(ignore_class)} with labels of "
            f"{labels.dtype}"
        )


def known_entries(probs, labels, sample_weight, ignore_class, multi_label=False):
    """Labels without what is void, and which are known, bool in the shape of the labels, or None.

    A promise counts examples: weights are 0 and 1, or a mask. Void labels become one of the others,
    so that all can be read; whoever reads them leaves out what is not known.
    """
    weight = void_weight(probs, labels, sample_weight, ignore_class, multi_label)
    if weight is None:
        return labels, None
    weight = to_float64("sample_weight", weight)
    labels = np.array(labels)
    one_hot = not multi_label and is_one_hot(labels.shape, np.shape(probs))
    shape = labels.shape[:-1] if one_hot or labels.shape[-1:] == (1,) else labels.shape
    weight = weight[..., 0] if weight.shape == (*shape, 1) else weight
    if (
        weight.ndim == 0
        or weight.shape != shape[: weight.ndim]
        or not np.isin(weight, (0, 1)).all()
    ):
        raise ValueError(
            "Argument `sample_weight` must be a mask of 0 and 1, with one or more leading axes of "
            f"{shape}: no promise can be made with other weights. Received: "
            f"sample_weight={shown(weight)}"
        )
    known = weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim)) > 0
    known = np.broadcast_to(known, shape)
    if not known.any():
        raise ValueError(
            "Arguments `labels` and `sample_weight` must leave known labels. Received: "
            f"{known.size} labels, all of weight 0 or ignore_class={shown(ignore_class)}"
        )
    if known.all():
        return labels, None
    flat = labels.reshape(*shape, -1)
    flat[~known] = flat[known][0]
    return flat.reshape(labels.shape), known


def filled_predictions(values, known, rank):
    """Predictions, or scores, with those of void entries where theirs are not finite.

    Args:
        values: Plain arrays; all else as it is.
        known: `(n, ...)` or None, in the shape of the decisions.
        rank: Axes of single predictions; with one more they are a stack.
    """
    if known is None or not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return values
    if np.isfinite(values).all():
        return values
    values = np.array(values)
    lead = (slice(None),) * (values.ndim > rank)
    first = values[(*lead, known)]
    has_classes = values.ndim - len(lead) > known.ndim
    values[(*lead, ~known)] = first[..., :1, :] if has_classes else first[..., :1]
    return values


def filled(rule, probs, labels, score, sample_weight, ignore_class):
    """Predictions, labels and given scores as they can be read, and which labels are known.

    Args:
        rule: What reads them: its `rank` and `multi_label`.
        probs, labels: As the caller gave them.
        score: Scores of the examples, a function, or None.
        sample_weight, ignore_class: As in `known_entries`.
    """
    asked = sample_weight, ignore_class, rule.multi_label
    labels, known = known_entries(array_of(probs), labels, *asked)
    if known is None:
        return probs, labels, score, None
    of_examples = known.reshape(len(known), -1).any(axis=1)
    score = filled_predictions(score, of_examples, 1)
    return filled_predictions(probs, known, rule.rank), labels, score, known


def rows_known(known, count):
    """The examples that have any known label, of so many."""
    if known is None:
        return np.arange(count)
    return np.flatnonzero(known.reshape(count, -1).any(axis=1))


def check_untuned(known, tuned):
    """Raises ValueError if something is to be tuned on examples with some void labels."""
    if known is not None and known.ndim > 1:
        raise ValueError(
            f"Argument `{tuned[0]}` must be a number if pixels have void labels, on which it "
            f"cannot be tuned. Received: {tuned[0]}='tuned' with {int((~known).sum())} void labels"
        )


def known_alone(probs, labels, groups, sample_weight, ignore_class, multi_label, *given):
    """Predictions, labels, groups, which entries are known, and what else is `given` of examples.

    Examples of which nothing is known are left out; void entries of others, pixels or labels, are
    filled, and which are known is None where all are.
    """
    if isinstance(probs, RegressionUncertainty):
        raise ValueError(
            "Arguments `sample_weight` and `ignore_class` must be None for numbers: pass only the "
            f"rows that count. Received: sample_weight={shown(sample_weight)}"
        )
    values, labels = np.asarray(array_of(probs)), np.asarray(labels)
    filled_in, known = known_entries(values, labels, sample_weight, ignore_class, multi_label)
    if known is None:
        return probs, filled_in, groups, None, *given
    rows = known.reshape(len(known), -1).any(axis=1)
    has_samples = len(values) != len(rows) or bool(is_stacked(probs))
    values = values[:, rows] if has_samples else values[rows]
    known = None if known[rows].all() else known[rows]
    values = filled_predictions(values, known, values.ndim - has_samples)
    columns = {name: column[rows] for name, column in group_columns(groups, len(rows)).items()}
    given = (None if each is None else np.asarray(each)[rows] for each in given)
    return values, filled_in[rows], columns, known, *given
