"""Scores of trust and of uncertainty, of single predictions and of stacks, eagerly and in graphs.

A prediction that holds NaN or infinity has the score NaN, which no threshold accepts.
"""

import re

import numpy as np
from keras import ops

from tfuq._arguments import check_choice
from tfuq._predictions.examples import largest
from tfuq._predictions.probabilities import both_classes, entropy, probabilities

CONFIDENCES = ("confidence", "margin")  # these grow with trust, all others with uncertainty
OF_STACKS = ("expected_entropy", "mutual_information", "variation_ratio")
SCORES = (*CONFIDENCES, "predictive_entropy", *OF_STACKS)
RANKINGS = (*SCORES, "pnorm")  # which order examples; the last has no scale of its own
LEAST = 2.0**-126  # below which float32 has no probability of full precision
GIVEN = "given"  # a score that came beside the predictions; it grows with uncertainty
_OLD_WORDS = {"entropy": "predictive_entropy", "max_probability": "confidence"}


def new_word(score):
    """The name of a score, for an older word of it."""
    return _OLD_WORDS.get(score, score) if isinstance(score, str) else score


def power_of(name):
    """p of the score `"pnorm(p)"`, 2 of `"pnorm"`; None of another name."""
    if not isinstance(name, str) or not re.fullmatch(r"pnorm(\([0-9.e+-]+\))?", name):
        return None
    try:
        power = float(name[6:-1] or 2)
    except ValueError:
        return None
    return power if 0 < power < np.inf else None


def pnorm_name(power):
    """The name of the score of that p."""
    return "pnorm" if power == 2 else f"pnorm({int(power) if power == int(power) else power!r})"


def score_name(score, known=SCORES, *, argument="score"):
    """The name in `known` of a score, of which older words are accepted, or a ValueError.

    Where `"pnorm"` is known, so is `"pnorm(3)"`.
    """
    name, power = new_word(score), power_of(score)
    if power is not None and "pnorm" in known:
        return pnorm_name(power)
    if name not in known:
        check_choice(argument, score, known)
    return name


def class_probabilities(predictions, from_logits, is_binary):
    """Probabilities `(..., classes)` in float32; of the classes 0 and 1 if `is_binary`."""
    probs = probabilities(ops.cast(predictions, "float32"), from_logits, is_binary)
    return both_classes(probs) if is_binary else probs


def margin(probs):
    """The largest probability less the second largest."""
    top, _ = ops.top_k(probs, 2)
    return top[..., 0] - top[..., 1]


def pnorm(logits, p=2):
    """Less the largest of centred logits over their p-norm (Cattelan and Silva 2023).

    A number added to all logits of an example changes nothing: log-probabilities are logits, too.
    """
    if logits.shape[-1] < 3:
        raise ValueError(
            "The score 'pnorm' needs three classes or more: with two it is the same for all. "
            f"Received: {logits.shape[-1]} classes"
        )
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    most = ops.max(ops.abs(centred), axis=-1, keepdims=True)
    scaled = ops.divide_no_nan(centred, most)
    norm = ops.sum(ops.abs(scaled) ** p, axis=-1) ** (1 / p)
    return -ops.divide_no_nan(ops.max(scaled, axis=-1), norm)


def variation_ratio(stack):
    """Share of the samples that do not vote with the most of them."""
    votes = ops.one_hot(ops.argmax(stack, axis=-1), stack.shape[-1], dtype=stack.dtype)
    return 1 - largest(ops.mean(votes, axis=0), 0.0)


def mutual_information(stack, mean):
    """H[mean] less the mean of H over the samples, never below 0, in nats."""
    return ops.maximum(entropy(mean) - ops.mean(entropy(stack), axis=0), 0.0)


_FORMULAS = {  # of the samples and of their mean
    "confidence": lambda stack, mean: largest(mean, 0.0),
    "margin": lambda stack, mean: margin(mean),
    "predictive_entropy": lambda stack, mean: entropy(mean),
    "expected_entropy": lambda stack, mean: ops.mean(entropy(stack), axis=0),
    "mutual_information": mutual_information,
    "variation_ratio": lambda stack, mean: variation_ratio(stack),
}


def score_of(name, stack):
    """The score `name`, `(n, ...)`, of probabilities `(samples, n, ..., classes)`."""
    mean, power = ops.mean(stack, axis=0), power_of(name)
    if power is None:
        value = _FORMULAS[name](stack, mean)
    else:
        value = pnorm(ops.log(ops.maximum(mean, LEAST)), power)
    known = ops.all(ops.isfinite(mean), axis=-1)
    return ops.where(known, value, np.nan)
