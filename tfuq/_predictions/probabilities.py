"""Probabilities: the link from logits, their entropy, and the check that they are probabilities.

All is written with `keras.ops`: it takes arrays and tensors, eagerly, in graphs and in exports, and
keeps float64. A binary prediction is the probability of class 1 alone, in one column or in each of
several labels.
"""

import numpy as np
from keras import ops

# A soft-max in bfloat16 rounds four times, by 2^-9 each (exp, sum, quotient, result): its rows are
# this far from [0, 1] and, in sum, from 1.
TOLERANCE = 1e-2
TINY = float(np.finfo("float32").tiny)


def is_binary(shape, multi_label):
    """Whether each entry of the last axis of `shape` is a binary prediction of its own."""
    return bool(multi_label) or shape[-1] == 1


def probabilities(values, from_logits, is_binary):
    """Probabilities of the shape of `values`, which are logits or already probabilities.

    p = sigmoid(z) if `is_binary`, else softmax(z) over the last axis.
    """
    if not from_logits:
        return values
    return ops.sigmoid(values) if is_binary else ops.softmax(values)


def both_classes(probs):
    """Probabilities `(..., 2)` of the classes 0 and 1, from those of class 1."""
    return ops.stack([1 - probs, ops.convert_to_tensor(probs)], axis=-1)


def entropy(probs, is_binary=False):
    """H[p] = -sum_c p_c log p_c in nats, with 0 log 0 = 0.

    Args:
        probs: Probabilities `(..., classes)`, or of class 1 if `is_binary`. What the tolerance lets
            through outside of [0, 1] counts as 0 and 1.
        is_binary: Whether each entry is a distribution over two classes.

    Returns:
        Tensor `(...)` of the dtype of `probs`; if `is_binary`, of the shape of `probs`. NaN where
        `probs` hold NaN.
    """
    probs = ops.clip(ops.convert_to_tensor(probs), 0.0, 1.0)
    # Runtimes of exports take what is smaller for 0, but do not say that it equals 0.
    probs = ops.where(probs <= TINY, ops.zeros_like(probs), probs)
    if is_binary:
        return _surprise(probs, probs) + _surprise(1 - probs, 1 - probs)
    return cross_entropy(probs, probs)


def cross_entropy(probs, others):
    """-sum_c p_c log q_c over the last axis in nats, without the classes of q_c = 0."""
    return ops.sum(_surprise(probs, others), axis=-1)


def entropy_of_logits(logits):
    """H[softmax(z)] in nats, over the last axis.

    Next to a certain prediction it keeps the digits that 1 - p loses.
    """
    log_probs = ops.log_softmax(ops.convert_to_tensor(logits))
    return ops.sum(entropy_terms(ops.exp(log_probs), log_probs), axis=-1)


def entropy_terms(probs, log_probs):
    """-p log p of each class, with 0 log 0 = 0, of probabilities whose logarithms are known."""
    return -probs * ops.where(ops.isinf(log_probs), ops.zeros_like(log_probs), log_probs)


def _surprise(probs, others):
    """-p log q, and 0 where q = 0."""
    return -probs * ops.log(ops.where(others > 0, others, ops.ones_like(others)))


# --- The check --------------------------------------------------------------------------------


def are_inside(probs):
    """Whether each row `(...)` of `probs` `(..., classes)` is in [0, 1]; not so with NaN."""
    return ops.all((probs >= -TOLERANCE) & (probs <= 1 + TOLERANCE), axis=-1)


def sum_to_one(probs):
    """Whether each row `(...)` of `probs` `(..., classes)` has the sum 1; not so with NaN."""
    return ops.abs(ops.sum(probs, axis=-1) - 1) <= TOLERANCE


def check_probabilities(name, probs, is_binary, flags=()):
    """Raises ValueError unless the array `name`, `(..., classes)`, holds probabilities.

    They are in [0, 1] and, unless `is_binary`, sum to 1 over the last axis. `flags` are those of
    the arguments `from_logits` and `multi_label` that the caller has, and may be told to pass.
    """
    rows = np.asarray(probs)
    if not rows.size:
        return
    rows = rows.reshape(-1, rows.shape[-1])
    inside = np.asarray(are_inside(rows))
    if not inside.all():
        otherwise = ", or logits with from_logits=True" if "from_logits" in flags else ""
        raise ValueError(
            f"Argument `{name}` must hold probabilities in [0, 1], no NaN{otherwise}. "
            f"Received: {name}={rows[~inside][0]} ({(~inside).sum()} such)"
        )
    fine = inside if is_binary else np.asarray(sum_to_one(rows))
    if not fine.all():
        otherwise = ", or pass multi_label=True" if "multi_label" in flags else ""
        raise ValueError(
            f"Argument `{name}` must hold probabilities that sum to 1 over the classes{otherwise}. "
            f"Received: {name}={rows[~fine][0]} ({(~fine).sum()} such)"
        )
