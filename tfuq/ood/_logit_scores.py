"""Scores of logits `(n, classes)`, larger for the less certain: float64, of arrays and tensors."""

import numpy as np
import tensorflow as tf

from tfuq._predictions.probabilities import entropy_of_logits


def max_softmax(logits, temperature=1.0):
    """1 - max_c softmax(z / T)_c, as the sum of all others: next to 1, 1 - p would be rounded."""
    scaled = tf.cast(logits, "float64") / temperature
    is_top = tf.one_hot(tf.argmax(scaled, -1), scaled.shape[-1], True, False, dtype="bool")
    others = tf.where(is_top, tf.cast(-np.inf, scaled.dtype), scaled)
    return tf.sigmoid(tf.reduce_logsumexp(others, -1) - tf.reduce_max(scaled, -1))


def max_logit(logits):
    """-max_c z_c."""
    return -tf.reduce_max(tf.cast(logits, "float64"), -1)


def energy(logits, temperature=1.0):
    """-T log sum_c exp(z_c / T)."""
    return -temperature * tf.reduce_logsumexp(tf.cast(logits, "float64") / temperature, -1)


def entropy(logits):
    """H[softmax(z)] in nats."""
    return entropy_of_logits(tf.cast(logits, "float64"))


LOGIT_SCORES = {
    "max_softmax": max_softmax,
    "max_logit": max_logit,
    "energy": energy,
    "entropy": entropy,
}
