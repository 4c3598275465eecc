"""Scores of logits `(n, classes)`, larger for the less certain: float64, of arrays and tensors."""

import numpy as np
import tensorflow as tf

from tfuq._predictions.probabilities import entropy_of_logits


def log_doubt(logits, temperature=1.0):
    """log(1 - max_c softmax(z / T)_c), from the sum of all others: next to 1, 1 - p is rounded.

    -softplus(max - log sum of the others), and no sigmoid: that of an ONNX runtime is exact to 1e-7
    of 1, and 0 from a gap of 17 on.
    """
    scaled = tf.cast(logits, "float64") / temperature
    is_top = tf.one_hot(tf.argmax(scaled, -1), scaled.shape[-1], True, False, dtype="bool")
    others = tf.where(is_top, tf.cast(-np.inf, scaled.dtype), scaled)
    return -tf.nn.softplus(tf.reduce_max(scaled, -1) - tf.reduce_logsumexp(others, -1))


def max_softmax(logits, temperature=1.0):
    """1 - max_c softmax(z / T)_c."""
    return tf.exp(log_doubt(logits, temperature))


def max_logit(logits):
    """-max_c z_c."""
    return -tf.reduce_max(tf.cast(logits, "float64"), -1)


def energy(logits, temperature=1.0):
    """-T log sum_c exp(z_c / T)."""
    return -temperature * tf.reduce_logsumexp(tf.cast(logits, "float64") / temperature, -1)


def entropy(logits):
    """H[softmax(z)] in nats."""
    return entropy_of_logits(tf.cast(logits, "float64"))


def generalized_entropy(logits, gamma=0.1, top=None):
    """sum_j p_j^g (1 - p_j)^g over the `top` largest p = softmax(z), or over all; float64.

    It is computed from logarithms: 1 - p is a sum over the other classes, which does not round to 0
    where p is next to 1.
    """
    z = tf.cast(logits, "float64")
    count = z.shape[-1]
    largest = tf.math.top_k(z, count if top is None else min(top, count)).values
    is_top = tf.one_hot(tf.argmax(z, -1), count, True, False, dtype="bool")
    others = tf.reduce_logsumexp(tf.where(is_top, tf.cast(-np.inf, z.dtype), z), -1)[:, None]
    total = tf.reduce_logsumexp(z, -1)[:, None]
    log_p = largest - total
    rest = tf.math.log(1 - tf.exp(log_p[:, 1:]))  # p is at most 1/2; ONNX has no log1p
    log_q = tf.concat([others - total, rest], -1)
    return tf.reduce_sum(tf.exp(gamma * (log_p + log_q)), -1)


def label_scores(logits, kind, temperature=1.0):
    """Scores of each label alone, `(n, ..., labels)`; with p = sigmoid(z / T):

    min(p, 1 - p), -z, -T log(1 + exp(z / T)), H[p].
    """
    scaled = tf.cast(logits, "float64") / temperature
    if kind == "max_softmax":
        return tf.exp(-tf.nn.softplus(tf.abs(scaled)))  # as in `log_doubt`
    if kind == "max_logit":
        return -scaled * temperature
    if kind == "energy":
        return -temperature * tf.nn.softplus(scaled)
    return entropy(tf.stack([tf.zeros_like(scaled), scaled], axis=-1))


def joint_score(logits, kind, temperature=1.0):
    """The score of all labels together, `(n, ...)`, which are independent given the input.

    1 - prod_l max(p_l, 1 - p_l), -max_l z_l, sum_l E_l (Wang et al. 2021), sum_l H_l.
    """
    each = label_scores(logits, kind, temperature)
    if kind == "max_softmax":
        return -tf.math.expm1(tf.reduce_sum(tf.math.log1p(-each), -1))
    return tf.reduce_min(each, -1) if kind == "max_logit" else tf.reduce_sum(each, -1)


LOGIT_SCORES = {
    "max_softmax": max_softmax,
    "max_logit": max_logit,
    "energy": energy,
    "entropy": entropy,
}
