"""Layers whose weights are Gaussian: the terms of the evidence lower bound that they share."""

import keras
import numpy as np
import tensorflow as tf

from tfuq import _sampling
from tfuq._draws import TakesDraws, current_draw


def kl_normal(loc, scale, prior_loc, prior_scale):
    """KL(N(loc, scale^2) || N(prior_loc, prior_scale^2)), summed over all weights, in nats.

    = sum log(prior_scale / scale) + (scale^2 + (loc - prior_loc)^2) / (2 prior_scale^2) - 1/2
    """
    squares = tf.square(scale) + tf.square(loc - prior_loc)
    terms = tf.math.log(prior_scale / scale) + squares / (2 * tf.square(prior_scale)) - 0.5
    return tf.reduce_sum(terms)


def softplus_inverse(value):
    """rho with softplus(rho) = `value`, for numbers or arrays above 0."""
    value = np.asarray(value, "float64")
    return value + np.log(-np.expm1(-value))


def check_kl_weight(kl_weight):
    """Raises ValueError unless `kl_weight` is a finite number >= 0; it has no default."""
    if kl_weight is None:
        raise ValueError(
            "Argument `kl_weight` is required: the weight of the KL divergence in the loss, "
            "normally 1 / number of training examples. Received: kl_weight=None"
        )
    is_number = isinstance(kl_weight, (int, float, np.number)) and not isinstance(kl_weight, bool)
    if not is_number or not np.isfinite(kl_weight) or kl_weight < 0:
        raise ValueError(
            "Argument `kl_weight` must be a finite number of at least 0, normally "
            f"1 / number of training examples. Received: kl_weight={kl_weight!r}"
        )


class VariationalLayer(TakesDraws, keras.layers.Layer):
    """A layer with Gaussian weights: adds `kl_weight * beta * KL` to the loss of its model.

    A subclass passes `kl_weight` on, calls `_add_beta` when it is built and `_add_kl` when it is
    called, and has the attributes `seed`, `resample` and `seed_generator`. `beta` is a weight,
    1 unless something like `tfuq.callbacks.KLAnnealing` moves it.
    """

    def _add_beta(self):
        self.beta = self.add_weight(
            name="beta", shape=(), initializer="ones", trainable=False, autocast=False
        )

    def _add_kl(self, kl):
        self.add_loss(float(self.kl_weight) * tf.cast(self.beta, kl.dtype) * kl)

    def _noise_seed(self, training):
        """The seed `(2,)` of this call's noise, or None if it is to repeat."""
        draw = current_draw()
        if draw is not None:
            return draw.seed_of(self)
        if training or self.resample:
            return _sampling.split_seed(self.seed_generator.next(), 1)[0]
        return None


def variational_layers(model):
    """The layers of `model`, at any depth, whose KL divergence is in its loss."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, VariationalLayer)]
