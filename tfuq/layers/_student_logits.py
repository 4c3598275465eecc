"""Logits with Student's t noise: their bound, their moments and draws of the noise."""

import tensorflow as tf

from tfuq._random import points
from tfuq.layers.vbll_regression import NOISES

STUDENT = NOISES["student_t"]  # the Gamma posterior of a precision, as a regression has it
TILT = 0.1  # what the authors' package starts from


def tilted_gap(log_partition, mean, spread, precision, inverse, tilt):
    """A bound on E[a(u)] - a(mean) for u_k ~ N(mean_k, spread_k / l_k) and random l_k, by label.

    ```
    a(mean + t spread) - a(mean) + sum spread (E[1 / l] / 4 - t + t^2 E[l]) / 2
    ```

    Knowles and Minka (2011) with alpha = 1/2 - t l, for a = log-sum-exp, or softplus of each logit.
    `precision` and `inverse` are E[l] and E[1 / l].
    """
    penalty = spread * (inverse / 4 - tilt + tf.square(tilt) * precision) / 2
    moved, start = log_partition(mean + tilt * spread), log_partition(mean)
    is_joint = moved.shape.rank < mean.shape.rank
    return moved - start + (tf.reduce_sum(penalty, axis=-1) if is_joint else penalty)


def moments(head, sigma):
    """E[l] and E[1 / l] of l ~ Gamma(a, a sigma^2), each `(units,)`."""
    a = _shape(head)
    return 1 / tf.square(sigma), tf.square(sigma) * a / (a - 1)


def heavy_tailed(head, normals, seed):
    """Standard normal points `(samples, units)` over roots of Gamma(a, a): Student's t."""
    shape = tf.broadcast_to(_shape(head), tf.shape(normals))
    return normals * tf.cast(tf.sqrt(shape / points.gamma(shape, seed=seed)), normals.dtype)


def degrees_of_freedom(head):
    """2 a, `(units,)`."""
    return 2 * _shape(head)


def _shape(head):
    _, df = STUDENT.parameters(head, None)
    return df / 2
