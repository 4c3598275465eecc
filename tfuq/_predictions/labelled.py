"""Labelled predictions of one network or of a stack, and how far each is trusted.

A stack `(samples, n, ..., classes)` has one axis more than the labels let a single prediction
have, and stands for its average. A decision is made on each entry `(n, ...)`, each label of
multi-label predictions `(n, ..., labels)`; scores and weights may have its leading axes alone.
"""

import warnings
from typing import NamedTuple

import numpy as np

from tfuq._arguments import check_flags, shown, to_float64
from tfuq._predictions.examples import Examples, Names, from_arrays
from tfuq._predictions.probabilities import (
    both_classes,
    check_probabilities,
    is_binary,
    probabilities,
)
from tfuq._predictions.scores import CONFIDENCES, OF_STACKS, RANKINGS, score_name, score_of

LOOKED_AT = 10_000  # entries, whether a score has the right sign
FAR = 4.0  # standard deviations


class Doubt(NamedTuple):
    """How little each entry is trusted."""

    values: np.ndarray  # (entries,), larger for less trust
    key: np.ndarray  # what is compared: float32 of the package's own, so that 0.7 equals 0.7
    sign: int  # -1 if the score is a confidence, so that `sign * values` is in its units

    def levels(self, used):
        """Level of each entry that is `used`, 0 for the most trusted, and each one's threshold.

        The threshold is the score of the least trusted entry of the level, in its own units.
        """
        keys, level = np.unique(self.key[used], return_inverse=True)
        last = np.full(len(keys), -np.inf)
        np.maximum.at(last, level, self.values[used])
        return level, self.sign * last


class LabelledPredictions(NamedTuple):
    """Flat predictions with their labels, and the shape `(n, ...)` that they had."""

    examples: Examples
    stack: object  # probabilities `(samples, n, ..., classes)`, or None
    shape: tuple

    usual_score = "confidence"

    @property
    def weight(self):
        """Weights, one for each entry."""
        return np.asarray(self.examples.weight)

    @property
    def error(self):
        """1.0 where the largest probability is not that of the true class, else 0.0."""
        return 1.0 - np.asarray(self.examples.top_label()[1], "float64")

    def spread(self, name, values):
        """The argument `name`, with one or more leading axes of the entries, for each of them."""
        return spread_over(name, values, self.shape, self.weight)

    def doubt(self, score):
        """`Doubt` by the argument `score`, a name or an array that grows with uncertainty."""
        if not isinstance(score, str):
            values = self.spread("score", score)
            warn_of_sign(values[self.weight > 0], self.error[self.weight > 0])
            return Doubt(values, values, 1)
        score = score_name(score, RANKINGS)
        if score in OF_STACKS and self.stack is None:
            raise ValueError(
                "Argument `probs` must be a stack (samples, n, ..., classes) for "
                f"score={shown(score)}. "
                "Received: probs with one prediction for each label"
            )
        values = np.asarray(score_of(score, self._flat_stack()))
        sign = -1 if score in CONFIDENCES else 1
        return Doubt(sign * values, (sign * values).astype("float32"), sign)

    def _flat_stack(self):
        """Probabilities `(samples, entries, classes)`, one sample if there is no stack."""
        if self.stack is None:
            return np.asarray(self.examples.probs())[None]
        rows = self.stack.reshape(len(self.stack), len(self.weight), -1)
        if self.examples.columns is None:
            return rows
        return np.asarray(both_classes(rows[..., 0]))


def warn_of_sign(doubt, error):
    """Warns of scores `(n,)` that are smaller where answers are wrong, as confidences are.

    By a test of the ranks (Mann and Whitney) of at most `LOOKED_AT` entries, which a score that
    says nothing fails once in 30,000.
    """
    step = -(-len(doubt) // LOOKED_AT)
    doubt, wrong = doubt[::step], np.asarray(error)[::step] > 0
    known = ~np.isnan(doubt)
    doubt, wrong = doubt[known], wrong[known]
    count = int(wrong.sum()) * int((~wrong).sum())
    if not count:
        return
    _, level, members = np.unique(doubt, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(members) - (members - 1) / 2)[level]
    area = (ranks[wrong].sum() - wrong.sum() * (wrong.sum() + 1) / 2) / count
    if area - 0.5 < -FAR * np.sqrt((len(doubt) + 1) / (12 * count)):
        warnings.warn(
            "The scores are smaller where answers are wrong, larger where they are right (AUROC of "
            f"errors {area:.2f}): a score has to grow with uncertainty. Negate confidences.",
            stacklevel=4,
        )


def spread_over(name, values, shape, weight):
    """The argument `name`, with one or more of the leading axes `shape`, for each entry of it.

    Raises:
        ValueError: If it has other axes, or is NaN where an entry has a weight.
    """
    values = to_float64(name, values)
    if values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    rank = values.ndim
    if rank == 0 or values.shape != shape[:rank]:
        raise ValueError(
            f"Argument `{name}` must have one or more leading axes of {shape}. "
            f"Received: {name} of shape {values.shape}"
        )
    values = values.reshape(values.shape + (1,) * (len(shape) - rank))
    values = np.broadcast_to(values, shape).ravel()
    if np.any(np.isnan(values[weight > 0])):
        raise ValueError(
            f"Argument `{name}` must hold no NaN. Received: {name} with "
            f"{np.isnan(values).sum()} such"
        )
    return values


def weights_over(sample_weight, shape):
    """The argument `sample_weight` for each entry of `shape`; 1 where there is none."""
    everywhere = np.ones(int(np.prod(shape)))
    if sample_weight is None:
        return everywhere
    weight = spread_over("sample_weight", sample_weight, shape, everywhere)
    if not np.all(np.isfinite(weight) & (weight >= 0)) or not weight.any():
        raise ValueError(
            "Argument `sample_weight` must hold finite numbers of at least 0, not all 0. "
            f"Received: sample_weight={shown(sample_weight)}"
        )
    return weight


def labelled_predictions(
    probs, labels, sample_weight=None, *, from_logits=False, multi_label=False, names=()
):
    """`LabelledPredictions` of anything like arrays, or a ValueError that says what is wrong.

    `names` are what the caller calls these arguments, in their order; the rest keep theirs.
    """
    check_flags(from_logits=from_logits, multi_label=multi_label)
    names = (*names, *("probs", "labels", "sample_weight")[len(names) :])
    names = Names(names[1], names[0], names[2])
    probs = to_float64(names.y_pred, probs, copy=False)
    labels = to_float64(names.y_true, labels, copy=False)
    stack = None
    if probs.size and is_stack(probs.shape, labels.shape, multi_label):
        binary = is_binary(probs.shape, multi_label)
        stack = np.asarray(probabilities(probs, from_logits, binary))
        _check_stack(names.y_pred, stack, binary)
        probs, from_logits = stack.mean(axis=0), False
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    examples = from_arrays(labels, probs, sample_weight, **flags, names=names)
    return LabelledPredictions(examples, stack, _entries(probs.shape, multi_label))


def _check_stack(name, stack, binary):
    """Raises ValueError unless all samples are probabilities; NaN is left to what is not used."""
    known = ~np.isnan(stack).any(axis=-1)
    check_probabilities(name, stack[known], binary, ("from_logits", "multi_label"))


def _entries(shape, multi_label):
    """The axes `(n, ...)` of what is decided on, for single predictions of `shape`."""
    return shape if multi_label or len(shape) == 1 else shape[:-1]


def is_stack(shape, labels, multi_label):
    """Whether predictions of `shape` are a stack, to labels of the shape `labels`."""
    if len(shape) < 3 or _fits(shape, labels, multi_label):
        return False
    return _fits(shape[1:], labels, multi_label)


def _fits(shape, labels, multi_label):
    """Whether labels of that shape, sparse or one-hot, belong to single predictions of `shape`."""
    entries = _entries(shape, multi_label)
    classes = 2 if is_binary(shape, multi_label) else shape[-1]
    return labels in (entries, (*entries, 1), (*entries, classes))
