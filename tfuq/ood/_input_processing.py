"""Inputs moved along the sign of a gradient, before they are scored."""

import keras
import tensorflow as tf

from tfuq._arguments import is_finite, shown
from tfuq._models.gradients import FLOAT16_SCALE


def check_epsilon(epsilon):
    """Raises ValueError unless the step `epsilon` of inputs is a finite number >= 0."""
    if not is_finite(epsilon) or epsilon < 0:
        raise ValueError(
            "Argument `epsilon` must be a finite number of at least 0. "
            f"Received: epsilon={shown(epsilon)}"
        )


def descended(batch, value, epsilon, compute_dtype):
    """x - epsilon sign(d value(x) / dx), for all inputs that `value`, per example, depends on.

    Integers, such as bytes of images, are moved as floats, which `value` has to take.
    """

    def as_float(leaf):
        return tf.cast(leaf, keras.backend.floatx()) if leaf.dtype.is_integer else leaf

    batch = tf.nest.map_structure(as_float, batch)
    leaves = tf.nest.flatten(batch)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([leaf for leaf in leaves if leaf.dtype.is_floating])
        scale = FLOAT16_SCALE if compute_dtype == "float16" else 1.0
        total = scale * tf.reduce_sum(value(batch))
    gradients = tape.gradient(total, leaves)
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            "Argument `epsilon` must be 0 for a model without a gradient at its inputs, such as "
            f"one of tokens. Received: epsilon={shown(epsilon)}"
        )
    moved = [
        x if g is None else x - tf.cast(epsilon, x.dtype) * tf.sign(tf.convert_to_tensor(g))
        for x, g in zip(leaves, gradients, strict=True)
    ]
    return tf.nest.pack_sequence_as(batch, moved)
