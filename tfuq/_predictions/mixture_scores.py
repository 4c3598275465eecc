"""CRPS of mixtures of the distributions that several draws of a network say."""

import tensorflow as tf

from tfuq._predictions.families import Mixture, Point
from tfuq._predictions.location_scale import Normal

KNOTS = 256  # of an integral over y
REACH = 6.0  # of its substitution y = centre + spread sinh(t)


def mixture_crps(family, stack, y):
    """CRPS `(n, ..., units)` of draws with the same weight, from parameters `(samples, n, ...)`.

    Of normals and their mixtures a closed form; of learned quantiles that of their mean; of others
    an integral, exact to about 1e-5 of the scale.
    """
    if stack.shape[0] == 1 or isinstance(family, Point):
        return family.crps(stack[0], y)
    if not family.has_density:
        return family.crps(tf.reduce_mean(stack, axis=0), y)
    normals = _normals(family, stack)
    if normals is not None:
        mixture, params = normals
        return mixture.crps(params, y)
    each = tf.reduce_mean(family.crps(stack, tf.broadcast_to(y, _stacked(stack, y))), axis=0)
    return each - _disagreement(family, stack, each)


def _stacked(stack, y):
    return tf.concat([tf.shape(stack)[:1], tf.shape(y)], axis=0)


def _normals(family, stack):
    """Draws of normals as one mixture and its parameters, or None."""
    if isinstance(family, Normal):
        loc = family.mean(stack)
        scale = tf.sqrt(family.variance(stack))
        parts = [tf.zeros_like(loc), loc, scale]
        count = stack.shape[0]
    elif isinstance(family, Mixture):
        logits, loc, scale = (
            tf.concat(tf.unstack(tf.cast(part, stack.dtype), axis=0), axis=-1)
            for part in _components(family, stack)
        )
        parts = [tf.linalg.matrix_transpose(part) for part in (logits, loc, scale)]
        params = tf.concat([_flat(part) for part in parts], axis=-1)
        return Mixture(stack.shape[0] * family.num_components), params
    else:
        return None
    parts = [tf.concat(tf.unstack(part, axis=0), axis=-1) for part in parts]
    return Mixture(count), tf.concat(parts, axis=-1)


def _components(family, stack):
    """Components `(samples, n, ..., units, components)`, their logits normalized in each draw."""
    logits, loc, scale = family.components(stack)
    return tf.nn.log_softmax(logits), loc, scale


def _flat(part):
    """`(..., components, units)` as blocks `(..., components * units)`."""
    shape = tf.concat([tf.shape(part)[:-2], [part.shape[-2] * part.shape[-1]]], axis=0)
    return tf.reshape(part, shape)


def _disagreement(family, stack, like):
    """Integral over y of the variance over the draws of P(number <= y).

    The CRPS of a mixture is the mean of those of its parts less this: expand the square of
    CRPS = integral (F - step)^2. By the trapezoid rule under y = centre + spread sinh(t), which
    reaches into heavy tails.
    """
    means = family.mean(stack)
    centre = tf.reduce_mean(means, axis=0)
    between = tf.math.reduce_std(means, axis=0)
    width = tf.reduce_mean(tf.sqrt(family.variance(stack)), axis=0)
    spread, total = (between + width) / 2, tf.zeros_like(like)
    step = 2 * REACH / KNOTS
    for knot in range(KNOTS + 1):
        t = tf.cast(-REACH + step * knot, stack.dtype)
        y = tf.broadcast_to(centre + spread * tf.sinh(t), _stacked(stack, centre))
        variance = tf.math.reduce_variance(family.cdf(stack, y), axis=0)
        total += step * variance * spread * tf.cosh(t)
    return total
