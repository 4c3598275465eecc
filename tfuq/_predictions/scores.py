"""Scores of trust and of uncertainty, of single predictions and of stacks, eagerly and in graphs.

A prediction that holds NaN or infinity has the score NaN, which no threshold accepts.
"""

import keras
import numpy as np
from keras import ops

from tfuq._predictions.examples import largest

CONFIDENCES = ("confidence", "margin")  # these grow with trust, all others with uncertainty
OF_STACKS = ("expected_entropy", "mutual_information", "variation_ratio")
SCORES = (*CONFIDENCES, "entropy", *OF_STACKS)


def probabilities(predictions, from_logits, is_binary):
    """Probabilities `(..., classes)` in float32; of class 1 and of class 0 if `is_binary`."""
    values = ops.cast(predictions, "float32")
    if is_binary:
        values = ops.sigmoid(values) if from_logits else values
        return ops.stack([1 - values, values], axis=-1)
    return ops.softmax(values) if from_logits else values


def stack_of(predictions, rank, from_logits, multi_label):
    """Probabilities `(samples, n, ..., classes)`, or `(..., labels, 2)`, float32, in graphs too.

    `rank` is how many axes a single prediction array has, which is a stack of one sample.
    """
    shape = tuple(predictions.shape)
    if len(shape) not in (rank, rank + 1):
        raise ValueError(
            f"Argument `probs` must have {rank} axes, or {rank + 1} if it is a stack of samples. "
            f"Received: probs of shape {shape}"
        )
    is_column = rank > 1 and not multi_label and shape[-1] == 1
    predictions = predictions[..., 0] if is_column else predictions
    probs = probabilities(predictions, from_logits, multi_label or rank == 1 or is_column)
    return probs if len(shape) > rank else probs[None]


def entropy(probs):
    """-sum p log p over the last axis, nats."""
    probs = ops.clip(probs, 0.0, 1.0)
    tiny = keras.config.epsilon() ** 4  # 0 log 0 is 0
    return -ops.sum(probs * ops.log(ops.maximum(probs, tiny)), axis=-1)


def margin(probs):
    """The largest probability less the second largest."""
    top, _ = ops.top_k(probs, 2)
    return top[..., 0] - top[..., 1]


def variation_ratio(stack):
    """Share of the samples that do not vote with the most of them."""
    votes = ops.one_hot(ops.argmax(stack, axis=-1), stack.shape[-1], dtype=stack.dtype)
    return 1 - largest(ops.mean(votes, axis=0), 0.0)


def score_of(name, stack):
    """The score `name`, `(n, ...)`, of probabilities `(samples, n, ..., classes)`."""
    mean = ops.mean(stack, axis=0)
    if name == "confidence":
        value = largest(mean, 0.0)
    elif name == "margin":
        value = margin(mean)
    elif name == "entropy":
        value = entropy(mean)
    elif name == "expected_entropy":
        value = ops.mean(entropy(stack), axis=0)
    elif name == "mutual_information":
        value = ops.maximum(entropy(mean) - ops.mean(entropy(stack), axis=0), 0.0)
    else:
        value = variation_ratio(stack)
    known = ops.all(ops.isfinite(mean), axis=-1)
    return ops.where(known, value, np.nan)
