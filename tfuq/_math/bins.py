"""Bins of confidence, and sums over the examples in them.

A table of sums has shape `(..., bins, 3)`: for each bin the sums of `weight`, `weight *
confidence` and `weight * correct`, in float64, so that counts stay exact past 2^24. Tables of the
same shape add up, which is all that a streaming metric needs.
"""

import numpy as np
import tensorflow as tf
from keras import ops
from scipy.special import ndtr

# Log-odds of the fine bins of `fine_index`; float32 holds no confidence beyond them except 0 and 1.
_MAX_LOG_ODDS = 17.0


def bin_index(values, edges):
    """Number of `edges` (ascending) that are `<= values`: a value on an edge lies above it.

    Both are compared in float32, so that 0.7 counts as 0.7 whichever precision it came in.
    """
    edges = np.asarray(edges, dtype="float32")
    if edges.size == 0:
        return ops.zeros_like(values, dtype="int32")
    return tf.searchsorted(edges, ops.cast(values, "float32"), side="right")


def width_index(confidence, n_bins):
    """Index of the bin of equal width over [0, 1]: `[lower, upper)`, the last one closed."""
    return bin_index(confidence, np.linspace(0.0, 1.0, n_bins + 1)[1:-1])


def fine_index(confidence, n_bins):
    """Index of the bin of equal width in log-odds, log(c / (1 - c)), narrow near 0 and 1."""
    confidence = ops.cast(confidence, "float64")
    log_odds = ops.log(confidence) - ops.log1p(-confidence)
    log_odds = ops.clip(log_odds, -_MAX_LOG_ODDS, _MAX_LOG_ODDS)
    index = ops.floor((log_odds / _MAX_LOG_ODDS + 1) / 2 * n_bins)
    return ops.cast(ops.clip(index, 0, n_bins - 1), "int32")


def bin_sums(index, n_bins, confidence, correct, weight):
    """Table of sums `(n_bins, 3)` of examples `(n,)` that lie in the bins `index`."""
    confidence, correct, weight = (ops.cast(x, "float64") for x in (confidence, correct, weight))
    values = ops.stack([weight, weight * confidence, weight * correct], axis=-1)
    return ops.segment_sum(values, index, num_segments=n_bins)


def equal_mass(sums, n_bins):
    """Table `(n_bins, 3)` of bins of equal weight, from one of many narrow bins in order.

    The running sums are interpolated at the quantiles b / n_bins of the weight, so a narrow bin on
    a quantile is shared out between its two neighbours.
    """
    running = ops.pad(ops.cumsum(sums, axis=0), [[1, 0], [0, 0]])
    mass = running[:, 0]
    quantiles = np.linspace(0.0, 1.0, n_bins + 1) * mass[-1]
    upper = ops.clip(tf.searchsorted(mass, quantiles), 1, sums.shape[0])
    start, step = ops.take(running, upper - 1, axis=0), ops.take(sums, upper - 1, axis=0)
    share = ops.divide_no_nan(quantiles - start[:, 0], step[:, 0])
    at_quantiles = start + share[:, None] * step
    return at_quantiles[1:] - at_quantiles[:-1]


def calibration_error(sums):
    """sum_b (w_b / W) |accuracy_b - confidence_b| over the bins; NaN if they are all empty."""
    gap = ops.abs(sums[..., 2] - sums[..., 1])
    return ops.sum(gap, axis=-1) / ops.sum(sums[..., 0], axis=-1)


def debiased_calibration_error(sums):
    """`calibration_error` of arrays `(..., bins, 3)` without its bias, in NumPy.

    The gap of a bin is that of its accuracy, of variance a (1 - a) / n, and so above 0 by chance.
    Twice the plain error less what it would be on average if the accuracies found were the true
    ones: |N(g, s^2)| has the mean s sqrt(2 / pi) exp(-g^2 / 2 s^2) + g (1 - 2 Phi(-g / s)). Kumar
    et al. 2019 draw from that normal distribution. It can be below 0.
    """
    weight, confident, correct = np.moveaxis(np.asarray(sums, "float64"), -1, 0)
    held = np.where(weight > 0, weight, 1.0)
    accuracy = np.clip(correct / held, 0.0, 1.0)
    gap = np.abs(accuracy - confident / held)
    spread = np.sqrt(accuracy * (1 - accuracy) / held)
    ratio = gap / np.where(spread > 0, spread, 1.0)
    mean = spread * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + gap * (1 - 2 * ndtr(-ratio))
    mean = np.where(spread > 0, mean, gap)
    return np.sum(weight * (2 * gap - mean), axis=-1) / np.sum(weight, axis=-1)


def largest_gap(sums):
    """max_b |accuracy_b - confidence_b| over the bins that hold weight; NaN if none does."""
    gap = ops.abs(sums[..., 2] - sums[..., 1])
    gap = ops.max(ops.divide_no_nan(gap, sums[..., 0]), axis=-1, initial=0.0)
    return ops.where(ops.sum(sums[..., 0], axis=-1) > 0, gap, np.nan)
