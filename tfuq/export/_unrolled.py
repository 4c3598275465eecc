"""Means over the noise of logits in a few operations, without the branches and loops of training.

These save memory and time where gradients are needed; tf2onnx cannot convert all of them, and on a
small device one step that is always the same is faster.
"""

import numpy as np
import tensorflow as tf

from tfuq._math import logistic_normal
from tfuq._predictions.probabilities import probabilities

_TINY = np.finfo("float32").tiny  # the least probability that a logarithm is taken of


def without_loops():
    """While it is open, layers that are traced in this thread average over noise by `log_means`."""
    return logistic_normal.means_by(log_means)


def log_means(link, loc, scale, factors, points, mirrored, power, kernel=None, turn=None):
    """As `tfuq._math.logistic_normal._log_means`; probabilities below 1e-38 count as that."""
    noise = _noise(scale, factors, points)
    noise = noise if kernel is None else tf.matmul(noise, kernel)
    noise = noise if turn is None else noise * turn[:, None]
    means = None
    for sign in (1, -1) if mirrored else (1,):
        probs = _probs(link, loc[:, None] + sign * noise)
        found = [tf.reduce_mean(p if power == 1 else p**power, axis=1) for p in probs]
        means = found if means is None else [(a + b) / 2 for a, b in zip(means, found, strict=True)]
    return tuple(tf.math.log(tf.maximum(mean, _TINY)) for mean in means)


def _probs(link, logits):
    if link is logistic_normal.Softmax:
        return (probabilities(logits, from_logits=True, is_binary=False),)
    return tuple(probabilities(z, from_logits=True, is_binary=True) for z in (logits, -logits))


def _noise(scale, factors, points):
    """scale * e + F z: `(rows, points, classes)`."""
    split = points.shape[1] - scale.shape[-1]
    z, e = points[:, :split], points[:, split:]
    noise = scale[:, None] * e
    if len(factors) == 2:
        gain, loadings = factors
        noise += gain[:, None] * tf.matmul(z, loadings)
    elif factors:
        noise += tf.matmul(z, factors[0], transpose_b=True)
    return noise
