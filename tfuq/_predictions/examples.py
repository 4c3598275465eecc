"""Predictions and labels, read from all the shapes that Keras users hold.

The shape of `y_pred` tells the kinds of prediction apart:

- multi-class `(n, ..., classes)`; labels sparse, `(n, ...)` or `(n, ..., 1)`, or one-hot, where a
  soft row counts as its largest entry;
- binary `(n,)` or `(n, ..., 1)`, probability (or logit) of class 1; labels 0 or 1;
- multi-label `(n, ..., labels)`, only if asked for: each label a binary prediction of its own.

Weights have the leading axes of the labels, one or more; what has weight 0 is left out, whatever
it holds. What has no meaning (NaN, no probabilities, no class) raises in `from_arrays`.
`from_tensors` serves training, where a model may diverge: NaN and infinity are dropped and counted.
What is a number and has no meaning was misread; it raises, or is counted where XLA cannot raise.
"""

import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfuq._arguments import check_flags, to_float64
from tfuq._predictions.class_names import numbered
from tfuq._predictions.probabilities import (
    are_inside,
    both_classes,
    probabilities,
    sum_to_one,
)

# Products and sums of what lies between are numbers in float32 and float64; what is less counts 0.
LEAST_WEIGHT, LARGEST_WEIGHT = 1e-30, 1e30
BLOCK = 2**20  # numbers of predictions that are read at a time, of which several copies exist
MOST_DEMANDS = 5  # of `_read`


class Examples(NamedTuple):
    """Flat predictions over `classes` classes; a binary prediction has the classes 0 and 1."""

    scores: object  # (n, classes), probabilities or logits
    labels: object  # (n,), integers
    weight: object  # (n,)
    from_logits: bool
    columns: int | None  # 1 if binary, how many labels if multi-label, None if multi-class

    def probs(self):
        """Probabilities `(n, classes)`."""
        return probabilities(self.scores, self.from_logits, is_binary=False)

    def log_probs(self):
        """Their logarithms `(n, classes)` in nats; that of 0 is -inf."""
        return ops.log_softmax(self.scores) if self.from_logits else ops.log(self.scores)

    def top_label(self):
        """Confidence `(n,)`, the largest probability, and whether that class is the true one."""
        probs = self.probs()
        if isinstance(probs, np.ndarray):  # of many, of which no copy is made
            return probs.max(axis=-1, initial=0.0), probs.argmax(axis=-1) == self.labels
        predicted = ops.cast(ops.argmax(probs, axis=-1), "int32")
        return largest(probs, 0.0), ops.equal(predicted, self.labels)

    def one_vs_rest(self):
        """Probabilities, 0/1 targets and weights `(n, columns)`, a column per class or label.

        A binary prediction has one column, that of class 1.
        """
        probs = self.probs()
        if self.columns is None:
            targets = ops.one_hot(self.labels, probs.shape[-1], dtype=probs.dtype)
            return probs, targets, self.weight[:, None] * ops.ones_like(probs)
        parts = probs[:, 1], ops.cast(self.labels, probs.dtype), self.weight
        return tuple(ops.reshape(part, (-1, self.columns)) for part in parts)


def largest(values, least):
    """Maximum over the last axis of values >= `least`; without that, Keras refuses no rows."""
    return ops.max(values, axis=-1, initial=least)


class Names(NamedTuple):
    """What a caller calls the arguments, for messages."""

    y_true: str = "y_true"
    y_pred: str = "y_pred"
    sample_weight: str = "sample_weight"


class _Fault(NamedTuple):
    """What an argument must do, which examples `(n,)` do not, and what they hold instead."""

    argument: str
    expected: str
    found: object
    values: object

    def demand(self):
        """What the argument must do, as a sentence."""
        return f"Argument `{self.argument}` must {self.expected}."

    def misread(self):
        """This fault where the values are numbers; NaN and infinity are faults of the model."""
        finite = ops.isfinite(self.values)
        finite = ops.all(finite, axis=-1) if len(finite.shape) > 1 else finite
        return self._replace(found=self.found & finite)


def from_arrays(
    y_true, y_pred, sample_weight=None, *, from_logits=False, multi_label=False, names=()
):
    """`Examples` in float64 of anything like arrays, or a ValueError that says what is wrong.

    `names` are what the caller calls these arguments, in their order; the rest keep theirs.
    """
    options = {"from_logits": from_logits, "multi_label": multi_label, "names": names}
    if _step(y_true, y_pred, sample_weight):
        shape = np.shape(y_pred)
        entries = math.prod(shape if multi_label or len(shape) == 1 else shape[:-1])
        blocks = in_blocks(y_true, y_pred, sample_weight, **options)
        return _joined(blocks, entries, _as_scores(y_pred, multi_label))
    examples = _checked(y_true, y_pred, sample_weight, **options)
    if not np.any(examples.weight):
        raise _no_weight(Names(*names))
    return examples


def in_blocks(
    y_true, y_pred, sample_weight=None, *, from_logits=False, multi_label=False, names=()
):
    """`Examples` of `from_arrays` in blocks of rows, one after the other; their copies stay small.

    What adds up over examples is the same, but for the order of sums.
    """
    options = {"from_logits": from_logits, "multi_label": multi_label, "names": names}
    step = _step(y_true, y_pred, sample_weight)
    if not step:
        yield from_arrays(y_true, y_pred, sample_weight, **options)
        return
    arrays = [None if each is None else _plain(each) for each in (y_true, y_pred, sample_weight)]
    rows = len(arrays[1])
    has_weight = False
    for start in range(0, rows, step):
        parts = (None if each is None else each[start : start + step] for each in arrays)
        examples = _checked(*parts, **options, start=start)
        has_weight = has_weight or bool(np.any(examples.weight))
        yield examples
    if not has_weight:
        raise _no_weight(Names(*names))


def _step(y_true, y_pred, sample_weight):
    """How many rows are a block, or 0 where all of them are one."""
    arrays = [_plain(y_true), _plain(y_pred)]
    arrays += [] if sample_weight is None else [_plain(sample_weight)]
    rows = _rows_of(arrays)
    step = max(1, BLOCK * rows // max(1, arrays[1].size))
    return step if step < rows else 0


def _joined(blocks, entries, given=None):
    """One `Examples` of all blocks, of arrays of so many entries: there is one copy of each.

    There is none of the scores where they are `given` `(entries, classes)`: nobody writes to them.
    """
    names, whole, filled = ("scores", "labels", "weight"), {}, 0
    for examples in blocks:
        end = filled + len(examples.labels)
        if given is not None and not np.array_equal(given[filled:end], examples.scores):
            whole["scores"] = np.empty(given.shape)
            whole["scores"][:filled], given = given[:filled], None
        for name in names[given is not None :]:
            part = np.asarray(getattr(examples, name))
            if name not in whole:
                whole[name] = np.empty((entries, *part.shape[1:]), part.dtype)
            whole[name][filled:end] = part
        filled = end
    return examples._replace(**whole, **({} if given is None else {"scores": given}))


def _as_scores(y_pred, multi_label):
    """Predictions as `scores`, where that takes no copy; else None."""
    array = _plain(y_pred)
    is_flat = array.ndim < 2 or array.shape[-1] == 1 or multi_label
    if is_flat or array.dtype != "float64" or not array.flags.c_contiguous:
        return None
    rows = np.asarray(array).reshape(-1, array.shape[-1])
    rows.flags.writeable = False
    return rows


def summed(measure, y_true, y_pred, sample_weight=None, **options):
    """The sum over `in_blocks` of `measure(examples)`, a tensor that adds up over examples."""
    blocks = in_blocks(y_true, y_pred, sample_weight, **options)
    total = measure(next(blocks))
    for examples in blocks:
        total = total + measure(examples)
    return total


def _plain(values):
    """An array as it is, without a copy if it is one; 0-dimensional where nothing can be told."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError):  # the last of tensors that record gradients
        return np.zeros(())


def _rows_of(arrays):
    """The length that all of the arrays have, or 0."""
    lengths = {each.shape[0] if each.ndim else 0 for each in arrays if each is not None}
    return lengths.pop() if len(lengths) == 1 else 0


def _no_weight(names):
    return ValueError(
        f"Argument `{names.sample_weight}` must not be 0 everywhere. Received: only zeros"
    )


def _checked(
    y_true, y_pred, sample_weight=None, *, from_logits=False, multi_label=False, names=(), start=0
):
    """`Examples` as of `from_arrays`, which may all weigh 0; `start` rows came before."""
    check_flags(from_logits=from_logits, multi_label=multi_label)
    names = Names(*names)
    y_true = numbered(y_true, None, names.y_true)  # an error that says what to pass
    y_true = to_float64(names.y_true, y_true, copy=False)
    y_pred = to_float64(names.y_pred, y_pred, copy=False)
    weights = [] if sample_weight is None else [to_float64(names.sample_weight, sample_weight)]
    if y_pred.size == 0:
        raise ValueError(
            f"Argument `{names.y_pred}` must not be empty. "
            f"Received: {names.y_pred} of shape {y_pred.shape}"
        )
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    examples, faults = _read(y_true, y_pred, *weights, **flags, names=names)
    for fault in faults:
        _raise_if_found(fault, start * (len(examples.labels) // len(y_pred)))
    return _drop(examples, faults)[0]


class Dropped(NamedTuple):
    """What `from_tensors` has dropped."""

    faulty: object  # how many examples, float64
    misread: object  # for each demand how many that are numbers, float64 `(MOST_DEMANDS,)`
    demands: tuple  # what the arguments must do, sentences


def from_tensors(y_true, y_pred, *weights, from_logits, multi_label, dtype):
    """`Examples` in `dtype`, and the `Dropped` ones. Several weights are multiplied; None is none.

    Raises:
        ValueError: If shapes are wrong; if a number has no meaning, as logits taken for
            probabilities have none. In a graph the latter is an `InvalidArgumentError` when it
            runs, and under XLA only counted.
    """
    if keras.backend.standardize_dtype(getattr(y_true, "dtype", "float32")) == "string":
        raise ValueError(
            "Argument `y_true` must hold numbers: replace the names of classes by their places "
            "before training. Received: y_true of texts"
        )
    given = [ops.cast(x, dtype) for x in (y_true, y_pred, *weights) if x is not None]
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    examples, faults = _read(*given, **flags, names=Names())
    misread = [_refuse(fault.misread()) for fault in faults]
    misread += [ops.zeros_like(misread[0])] * (MOST_DEMANDS - len(faults))
    examples, faulty = _drop(examples, faults)
    demands = tuple(fault.demand() for fault in faults)
    return examples, Dropped(faulty, ops.cast(ops.stack(misread), "float64"), demands)


def _refuse(fault):
    """How many have the fault, int32; raises if any has, but under XLA."""
    if tf.executing_eagerly():
        _raise_if_found(fault)
        return ops.zeros((), "int32")
    count = ops.sum(ops.cast(fault.found, "int32"))
    received = f"{fault.demand()} Received others, in this batch:"
    tf.debugging.Assert(tf.equal(count, 0), [received, count])  # XLA drops it
    return count


def _raise_if_found(fault, before=0):
    found = np.flatnonzero(fault.found)
    if found.size:
        value = np.asarray(fault.values)[found[0]]
        raise ValueError(
            f"{fault.demand()} Received: {fault.argument}={value} at example {before + found[0]} "
            f"({found.size} such)"
        )


def _drop(examples, faults):
    """Gives faulty examples weight 0 and harmless values, and counts them."""
    scores, labels, weight = examples.scores, examples.labels, examples.weight
    faulty = ops.any(ops.stack([fault.found for fault in faults]), axis=0)
    kept = ~faulty & ops.not_equal(weight, 0)
    scores = ops.where(kept[:, None], scores, 1 / scores.shape[-1])
    scores = scores if examples.from_logits else ops.clip(scores, 0, 1)
    labels = ops.cast(ops.where(kept, labels, 0), "int32")
    examples = examples._replace(scores=scores, labels=labels, weight=ops.where(kept, weight, 0))
    return examples, ops.sum(ops.cast(faulty, "float64"))


def _read(y_true, y_pred, *weights, from_logits, multi_label, names):
    """`Examples` as they came, with labels still floating point, and the list of faults."""
    _check_axes(y_pred.shape, multi_label, names)
    binary = len(y_pred.shape) == 1 or y_pred.shape[-1] == 1
    columns = y_pred.shape[-1] if multi_label else 1 if binary else None
    if binary and not multi_label and len(y_pred.shape) > 1:
        y_pred = y_pred[..., 0]
    if columns is not None:
        y_pred = _logits_of_both(y_pred) if from_logits else both_classes(y_pred)
    classes = y_pred.shape[-1]
    labels, label_fault = _read_labels(y_true, y_pred.shape, names)
    weight = _read_weight(weights, y_pred[..., 0], names.sample_weight)
    scores = ops.reshape(y_pred, (-1, classes))
    faults = [*_score_faults(scores, from_logits, names.y_pred), label_fault]
    faults.append(_weight_fault(weight, names.sample_weight))
    used = ops.not_equal(weight, 0)
    faults = [fault._replace(found=fault.found & used) for fault in faults]
    return Examples(scores, labels, weight, from_logits, columns), faults


def _check_axes(shape, multi_label, names):
    if len(shape) < 1 + multi_label or (not shape[-1] and len(shape) > 1):
        expected = "(n, ..., labels)" if multi_label else "(n,), (n, ..., 1) or (n, ..., classes)"
        raise ValueError(
            f"Argument `{names.y_pred}` must have shape {expected}, with the last axis known. "
            f"Received: {names.y_pred} of shape {tuple(shape)}"
        )


def _logits_of_both(logits):
    """Logits `(..., 2)` of the classes 0 and 1 from those of class 1."""
    return ops.stack([ops.zeros_like(logits), ops.convert_to_tensor(logits)], axis=-1)


def _read_labels(y_true, shape, names):
    """Labels `(n,)` for scores of `shape`, and their fault, whether sparse or one-hot."""
    classes = shape[-1]
    if _fits(y_true.shape, shape):
        rows = ops.reshape(y_true, (-1, classes))
        fine = sum_to_one(rows) & ops.all(rows >= 0, axis=-1)
        expected = "have one-hot rows that sum to 1, or pass multi_label=True"
        labels = ops.cast(ops.argmax(rows, axis=-1), rows.dtype)
        return labels, _Fault(names.y_true, expected, ~fine, rows)
    if not (_fits(y_true.shape, shape[:-1]) or _fits(y_true.shape, (*shape[:-1], 1))):
        raise ValueError(
            f"Argument `{names.y_true}` must have shape {tuple(shape[:-1])}, {(*shape[:-1], 1)} "
            f"or, one-hot, {tuple(shape)}. Received: {names.y_true} of shape {tuple(y_true.shape)}"
        )
    labels = ops.reshape(y_true, (-1,))
    fine = (labels >= 0) & (labels < classes) & ops.equal(labels, ops.floor(labels))
    return labels, _Fault(names.y_true, f"hold only classes 0 to {classes - 1}", ~fine, labels)


def _read_weight(weights, like, name):
    """The product `(n,)` of the weights, spread over the examples of the tensor `like`."""
    total = ops.ones_like(like)
    for weight in weights:
        if len(weight.shape) > 1 and weight.shape[-1] == 1:
            weight = weight[..., 0]
        rank = len(weight.shape)
        if rank == 0 or not _fits(weight.shape, like.shape[:rank]):
            raise ValueError(
                f"Argument `{name}` must have one or more leading axes of "
                f"{tuple(like.shape)}. Received: {name} of shape {tuple(weight.shape)}"
            )
        total = total * weight[(..., *[None] * (len(like.shape) - rank))]
    total = ops.where(ops.abs(total) < LEAST_WEIGHT, 0, total)
    return ops.reshape(total, (-1,))


def _fits(shape, expected):
    """Whether two shapes can be the same, None being any size."""
    if len(shape) != len(expected):
        return False
    return all(a == b or None in (a, b) for a, b in zip(shape, expected, strict=True))


def _score_faults(scores, from_logits, name):
    """Faults of the scores `(n, classes)`."""
    yield _Fault(name, "hold no NaN", ops.any(ops.isnan(scores), axis=-1), scores)
    if from_logits:
        infinite = ~ops.isfinite(largest(scores, -np.inf))
        yield _Fault(name, "hold no +inf, nor -inf for all classes", infinite, scores)
        return
    expected = "hold probabilities in [0, 1], or logits with from_logits=True"
    yield _Fault(name, expected, ~are_inside(scores), scores)
    expected = "sum to 1 over the classes, or pass multi_label=True"
    yield _Fault(name, expected, ~sum_to_one(scores), scores)


def _weight_fault(weight, name):
    fine = (weight >= 0) & (weight <= LARGEST_WEIGHT)
    expected = f"hold finite numbers of at least 0, and at most {LARGEST_WEIGHT:g}"
    return _Fault(name, expected, ~fine, weight)
