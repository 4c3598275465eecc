"""Stacks of predictions, told from single ones by what is said of them, not by counting axes."""

import numpy as np
from keras import ops

from tfuq._arguments import check_flags, to_float64
from tfuq._predictions.probabilities import are_inside, check_probabilities, sum_to_one
from tfuq._predictions.scores import class_probabilities

SURELY_PROBS = 1e-4  # logits do not sum to 1 in each row, this closely


class Samples(np.ndarray):
    """A stack of predictions `(samples, n, ...)` that says so itself.

    What is cut out of it or computed from it is a plain array again.
    """

    is_stack = False

    def __array_finalize__(self, source):
        self.is_stack = False

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array[()] if return_scalar else np.asarray(array)

    def __getitem__(self, key):
        return np.asarray(self)[key]


def samples(array):
    """The array `(samples, n, ...)` as `Samples`."""
    stack = np.asarray(array).view(Samples)
    stack.is_stack = True
    return stack


def is_stacked(predictions, stacked=None):
    """True or False where the argument `stacked` or the predictions say it, else None."""
    if stacked is not None:
        check_flags(stacked=stacked)
        return stacked
    return True if getattr(predictions, "is_stack", False) else None


def read_stack(predictions, kind, stacked=None, name="probs"):
    """Probabilities `(samples, n, ..., classes)` of float32, of an array that a caller gave.

    Args:
        predictions: Anything like an array.
        kind: `Kind` that is expected.
        stacked: What the caller says: True, False, or None if nothing.
        name: Of the argument, for errors.

    Raises:
        ValueError: If they are of another shape or other classes, leave two readings, or hold no
            probabilities. Rows that hold NaN are left.
    """
    stacked = is_stacked(predictions, stacked)
    values = to_float64(name, predictions)
    if kind.from_logits:
        _check_logits(name, values, kind)
    stack = np.asarray(stack_of(values, kind, stacked, name))
    if not kind.from_logits:
        _check_values(name, stack)
    return stack


class Kind:
    """The kind of predictions that a rule, sets or a calibration were fitted to.

    Args:
        rank: Axes of a single prediction array; 1 for binary ones `(n,)`.
        from_logits: Whether they are logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        classes: Number of classes, or of labels; None if it is not known.
    """

    def __init__(self, rank, from_logits, multi_label, classes=None):
        self.rank, self.from_logits, self.multi_label = rank, from_logits, multi_label
        self.classes = classes

    def of_probabilities(self):
        """The same of probabilities."""
        return Kind(self.rank, False, self.multi_label, self.classes)

    @property
    def is_of_numbers(self):
        """Whether a prediction may be one number, the probability of class 1 of two."""
        return self.rank == 1 or (self.rank == 2 and self.classes == 2 and not self.multi_label)


def stack_of(predictions, kind, stacked=None, name="probs"):
    """Probabilities `(samples, n, ..., classes)`, or `(..., labels, 2)`, float32, in graphs too.

    A column `(n, 1)` is as good as `(n,)`. Values are not looked at.
    """
    shape = tuple(predictions.shape)
    several, is_column = _read_shape(shape, kind, stacked, name)
    predictions = predictions[..., 0] if is_column else predictions
    is_flat = len(shape) - several - is_column < kind.rank
    is_binary = kind.multi_label or kind.rank == 1 or is_flat
    probs = class_probabilities(predictions, kind.from_logits, is_binary)
    _check_classes(shape, probs, kind, name)
    return probs if several else ops.expand_dims(probs, 0)


def is_stack_shape(shape, kind, stacked=None, name="probs"):
    """Whether predictions of a shape are a stack, as `read_stack` takes them."""
    return _read_shape(tuple(shape), kind, stacked, name)[0]


def _read_shape(shape, kind, stacked, name):
    """Whether a shape is that of a stack, and whether its last axis is a column to be dropped."""
    single = _column_of(shape, kind)
    several = None
    if len(shape) > 2 or stacked is True:  # (samples, n) of numbers is not told from (n, classes)
        several = _column_of(shape[1:], kind)
    if single is not None and stacked is not True:
        return False, single
    if several is not None and stacked is not False:
        return True, several
    raise ValueError(
        f"Argument `{name}` must have {kind.rank} axes, or {kind.rank + 1} if it is a stack of "
        "samples; pass stacked=True for a stack (samples, n) of binary predictions (n,). "
        f"Received: {name} of shape {shape}, stacked={stacked}"
    )


def _column_of(shape, kind):
    """Whether single predictions of a shape have a column to be dropped; None if they are none."""
    is_column = not kind.multi_label and shape[-1:] == (1,) and len(shape) > 1
    if len(shape) == kind.rank:
        return is_column
    if kind.is_of_numbers and len(shape) in (1, 2):
        return is_column if len(shape) == 1 or is_column else None
    return None


def _check_classes(shape, probs, kind, name):
    found = probs.shape[-2] if kind.multi_label else probs.shape[-1]
    if kind.classes is not None and found is not None and found != kind.classes:
        raise ValueError(
            f"Argument `{name}` must hold predictions of {kind.classes} classes, as many as its "
            f"`class_names` or those that it was fitted to. Received: {name} of shape {shape}"
        )


def _check_values(name, stack):
    """Raises ValueError unless the rows `(..., classes)` that are known hold probabilities."""
    known = np.isfinite(stack).all(axis=-1)
    check_probabilities(name, stack[known], False, ("from_logits",))


def _check_logits(name, values, kind):
    """Raises ValueError for rows that are all probabilities where logits are expected."""
    if kind.multi_label or kind.rank == 1 or values.shape[-1:] == (1,) or values.ndim < 2:
        return
    if not values.size:
        return
    inside = (values >= 0).all() and (np.abs(values.sum(axis=-1) - 1) < SURELY_PROBS).all()
    if inside:
        raise ValueError(
            f"Argument `{name}` must hold logits, as those that it was fitted to "
            "(from_logits=True). Received: rows of probabilities, which sum to 1"
        )


def only_probabilities(probs, is_binary=False):
    """`probs` `(..., classes)`, NaN in the rows that hold none: for graphs, which cannot refuse.

    NaN is never accepted, and is in no set but the whole one.
    """
    fine = are_inside(probs) if is_binary else are_inside(probs) & sum_to_one(probs)
    return ops.where(ops.expand_dims(fine, -1), probs, np.nan)
