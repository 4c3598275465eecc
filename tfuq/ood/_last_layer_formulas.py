"""Formulas of detectors that read the last layer, and checks of their arguments."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfuq._arguments import is_finite, shown
from tfuq._predictions.probabilities import probabilities
from tfuq.ood._gaussians import row_lengths, scatter


def residual_space(features, origin, dim):
    """Orthonormal `(d, d - dim)`: where features less `origin` vary least, but for `dim` axes."""
    if len(features) < len(origin):  # of few rows without a matrix (d, d), in d^2 n, not d^3
        rows = np.asarray(features, "float64") - origin
        return np.linalg.svd(rows, full_matrices=True)[2][dim:].T.copy()  # values descend
    index = np.zeros(len(features), "int64")
    total, _ = scatter(features, origin[None], index)
    return np.linalg.eigh(total)[1][:, : len(origin) - dim]  # eigenvalues ascend


def virtual_logit(features, origin, residual):
    """||R^T (f - o)||_2 of each row."""
    return row_lengths((tf.cast(features, "float64") - origin) @ residual)[:, 0]


def grad_norm(features, logits, temperature=1.0):
    """||d KL(u || softmax(z / T)) / d W||_1 = ||f||_1 ||softmax(z / T) - u||_1 / T, per row."""
    features = tf.cast(features, "float64")
    probs = probabilities(logits / temperature, from_logits=True, is_binary=False)
    gap = tf.reduce_sum(tf.abs(probs - 1 / logits.shape[1]), 1)
    return tf.reduce_sum(tf.abs(features), 1) * gap / temperature


def sparse_kernel(kernel, means, percentile):
    """The weights whose contribution mean(f_j) W_jc is above this percentile; 0 for the others."""
    contributions = means[:, None] * kernel
    return np.where(contributions > np.percentile(contributions, percentile), kernel, 0.0)


def check_percentile(percentile):
    """Raises ValueError unless it leaves some activations: a number of at least 0, below 100."""
    if not is_finite(percentile) or not 0 <= percentile < 100:
        raise ValueError(
            "Argument `percentile` must be at least 0 and below 100: values above that percentile "
            f"are kept. Received: percentile={shown(percentile)}"
        )
    check_percent(percentile)


def check_percent(percentile):
    """Raises ValueError for a fraction in place of a percentage."""
    if 0 < percentile < 1:
        raise ValueError(
            "Argument `percentile` must be in percent, as 90, and not a fraction, as 0.9. "
            f"Received: percentile={shown(percentile)}"
        )
