"""Scores of logits `(n, classes)`, larger for what is less certain, in float64."""

import numpy as np
from scipy.special import expit, log_softmax, logsumexp


def max_softmax(logits, temperature=1.0):
    """1 - max_c softmax(z / T)_c, as the sum of all others: next to 1, 1 - p would be rounded."""
    ordered = np.partition(np.asarray(logits, "float64") / temperature, -1, axis=-1)
    return expit(logsumexp(ordered[..., :-1], axis=-1) - ordered[..., -1])


def max_logit(logits):
    """-max_c z_c."""
    return -np.asarray(logits, "float64").max(-1)


def energy(logits, temperature=1.0):
    """-T log sum_c exp(z_c / T)."""
    return -temperature * logsumexp(np.asarray(logits, "float64") / temperature, axis=-1)


def entropy(logits):
    """H[p] = -sum_c p_c log p_c in nats, for p = softmax(z)."""
    log_probs = log_softmax(np.asarray(logits, "float64"), axis=-1)
    return -(np.exp(log_probs) * log_probs).sum(-1)


LOGIT_SCORES = {
    "max_softmax": max_softmax,
    "max_logit": max_logit,
    "energy": energy,
    "entropy": entropy,
}
