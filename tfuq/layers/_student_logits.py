"""Logits with Student's t noise: their bound, their moments and draws of the noise."""

import numpy as np
import tensorflow as tf

from tfuq._random import points
from tfuq.layers.vbll_regression import NOISES

STUDENT = NOISES["student_t"]  # the Gamma posterior of a precision, as a regression has it
TRIES = 4


def first_tilt(units, is_bernoulli):
    """The best tilt where all answers are as likely, which training starts from."""
    return 0.0 if is_bernoulli else 0.5 - 1 / units


def tilted_gap(log_partition, mean, spread, slack, tilt):
    """A bound on E[a(u)] - a(mean) for u_k ~ N(mean_k, spread_k / (sigma_k^2 l_k)), by label.

    ```
    a(mean + t spread) - a(mean) + sum spread (slack / 4 - t + t^2) / 2
    ```

    Knowles and Minka (2011) with alpha = 1/2 - t sigma^2 l, for a = log-sum-exp, or softplus of
    each logit, E[l] = sigma^-2 and `slack` = E[l] E[1 / l]. It is no steeper in t than `spread`;
    in t sigma^2, which the authors learn, it is sigma^-4 times as steep, and SGD diverges.
    """
    penalty = spread * (slack / 4 - tilt + tf.square(tilt)) / 2
    moved, start = log_partition(mean + tilt * spread), log_partition(mean)
    is_joint = moved.shape.rank < mean.shape.rank
    return moved - start + (tf.reduce_sum(penalty, axis=-1) if is_joint else penalty)


def slack(head):
    """E[l] E[1 / l] = a / (a - 1) of l ~ Gamma(a, a sigma^2), `(units,)`."""
    a = _shape(head)
    return a / (a - 1)


def gamma_of(a, normals, uniforms):
    """Gamma(a, 1), a > 1, from `TRIES` normals and uniforms along the first axis.

    v = (1 + z / sqrt(9 d))^3 with d = a - 1/3 is taken if log u < z^2 / 2 + d (1 - v + log v)
    (Marsaglia and Tsang 2000). The first that is taken counts; of 10^5 there are fewer than one
    where none is, and the last counts. Noise that knows no weights: files hold it as constants.
    """
    d = a - 1 / 3
    v = tf.maximum((1 + normals / tf.sqrt(9 * d)) ** 3, 1e-12)
    bound = tf.square(normals) / 2 + d * (1 - v + tf.math.log(v))
    is_taken = tf.math.log(tf.maximum(uniforms, 1e-12)) < bound
    found = v[-1]
    for number in reversed(range(TRIES - 1)):
        found = tf.where(is_taken[number], v[number], found)
    return d * found


def roots(head, shape, seed=None):
    """sqrt(a / g), g ~ Gamma(a, 1), `shape` with units at its end: of each precision's inverse.

    Without a seed they are the same in each call.
    """
    a, shape = _shape(head), (TRIES, *shape)
    if seed is None:
        rng = np.random.default_rng([head.seed or 0, 1])
        noise = rng.standard_normal(shape), rng.uniform(size=shape)
    else:
        seed, other = points.split_seed(seed, 2)
        noise = points.normal(shape, seed=seed), points.uniform(shape, seed=other)
    normals, uniforms = (tf.cast(tf.convert_to_tensor(each), a.dtype) for each in noise)
    return tf.sqrt(a / gamma_of(a, normals, uniforms))


def degrees_of_freedom(head):
    """2 a, `(units,)`."""
    return 2 * _shape(head)


def _shape(head):
    _, df = STUDENT.parameters(head, None)
    return df / 2
