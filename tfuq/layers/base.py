"""Layers whose weights are Gaussian: the terms of the evidence lower bound that they share."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    Tensor,
    check_choice,
    check_flags,
    check_integer,
    check_positive,
    is_finite,
    shown,
)
from tfuq._random import points
from tfuq._random.draws import TakesDraws, current_draw
from tfuq.layers._estimators import ESTIMATORS
from tfuq.layers._training import exempt_from_decay, first_in_call
from tfuq.layers.shapes import floating
from tfuq.layers.ways import resamples, wanted_way

HEAVY = 1e4  # nats that the KL term of one layer adds to the loss, where a mistake is likely
# Variables that are spread, not means: weight decay would pull them towards softplus(0) = 0.69.
SPREADS = ("_rho", "kernel_factor", "kernel_tril")
WHAT_KL_WEIGHT_IS = (
    "normally 1 / number of training examples, or 1 / (examples * labels or pixels) where the loss "
    "is a mean over those, too: `tfuq.kl_weight_for(data, loss)` computes it"
)


def kl_normal(loc, scale, prior_loc, prior_scale):
    """KL(N(loc, scale^2) || N(prior_loc, prior_scale^2)), summed over all weights, in nats.

    = sum log(prior_scale / scale) + (scale^2 + (loc - prior_loc)^2) / (2 prior_scale^2) - 1/2
    """
    squares = tf.square(scale) + tf.square(loc - prior_loc)
    terms = tf.math.log(prior_scale / scale) + squares / (2 * tf.square(prior_scale)) - 0.5
    return tf.reduce_sum(terms)


def distributions():
    """`tensorflow_probability.distributions`, imported by the first call.

    TFP imports `tf_keras` and takes seconds; training and prediction use neither.
    """
    from tensorflow_probability import distributions

    return distributions


def softplus_inverse(value):
    """rho with softplus(rho) = `value`, for numbers or arrays above 0."""
    value = np.asarray(value, "float64")
    return value + np.log(-np.expm1(-value))


def check_kl_weight(kl_weight):
    """Raises ValueError unless `kl_weight` is a finite number >= 0; it has no default."""
    if kl_weight is None:
        raise ValueError(
            "Argument `kl_weight` is required: the weight of the KL divergence in the loss, "
            f"{WHAT_KL_WEIGHT_IS}. Received: kl_weight=None"
        )
    if not is_finite(kl_weight) or kl_weight < 0:
        raise ValueError(
            "Argument `kl_weight` must be a finite number of at least 0, "
            f"{WHAT_KL_WEIGHT_IS}. Received: kl_weight={shown(kl_weight)}"
        )


class VariationalLayer(TakesDraws, keras.layers.Layer):
    """A layer with Gaussian weights: adds `kl_weight * beta * KL` to the loss of its model.

    The KL divergence is that of the weights: a layer that is called several times in one call of
    the model (siamese networks, `TimeDistributed`) adds it once. Weight decay of the optimizer that
    the model is compiled with leaves the spread of the weights alone.

    A subclass passes `kl_weight` on, calls `_add_beta` when it is built and `_add_kl` when it is
    called, and has the attributes `seed`, `resample` and `seed_generator`. `beta` is a weight,
    1 unless something like `tfuq.callbacks.KLAnnealing` moves it.
    """

    def _add_beta(self):
        self.beta = self.add_weight(
            name="beta", shape=(), initializer="ones", trainable=False, autocast=False
        )

    beta = None  # until it is built
    _annealed = None  # the weight that annealing has come to, and the one that it leads to

    def move_beta(self, value: Any, target: float) -> None:
        """Sets `beta` on its way to `target`, which is what files of the layer hold meanwhile.

        With `target=None` it has arrived.
        """
        if value is not None:
            self.beta.assign(value)
        self._annealed = None if target is None else (value, target)

    def beta_to_save(self) -> Any:
        """What a file of the layer holds as `beta`: what annealing leads to, else what it is."""
        beta = keras.ops.convert_to_numpy(self.beta)
        is_moving = self._annealed is not None and np.isclose(beta, self._annealed[0])
        return np.asarray(self._annealed[1], beta.dtype) if is_moving else beta

    def save_own_variables(self, store: Any) -> None:
        # Stores take a name once. Dense and Conv of Keras would save the kernel and the bias alone.
        for number, each in enumerate([*self._trainable_variables, *self._non_trainable_variables]):
            store[str(number)] = self.beta_to_save() if each is self.beta else each

    def _add_kl(self, kl_divergence, training):
        """Adds what `kl_divergence()` returns to the loss, once per call of the model.

        Not to that of a draw or of an export, which has none.
        """
        is_asked_otherwise = current_draw() is not None or wanted_way() is not None
        if (is_asked_otherwise and not training) or not first_in_call(self):
            return
        if training:
            exempt_from_decay([v for v in self.trainable_variables if v.name.endswith(SPREADS)])
        kl = kl_divergence()
        self.add_loss(float(self.kl_weight) * tf.cast(self.beta, kl.dtype) * kl)

    def _warn_if_heavy(self, count, posterior_scale):
        """Warns if the KL divergence that `count` random weights start with outweighs any loss."""
        ratio = posterior_scale / self.prior_scale
        term = self.kl_weight * count * (ratio**2 / 2 - 0.5 - math.log(ratio))
        if term > HEAVY:
            warnings.warn(
                f"The KL divergence of layer {self.name!r} starts as {term:.3g} in the loss, which "
                f"the data can hardly change. `kl_weight` is {WHAT_KL_WEIGHT_IS}. "
                f"Received: kl_weight={self.kl_weight!r} with {int(count)} random weights",
                stacklevel=2,
            )

    def _noise_seed(self, training):
        """The seed `(2,)` of this call's noise, or None if it is to repeat."""
        draw = current_draw()
        if draw is not None:
            return draw.seed_of(self)
        if training or resamples(self):
            return points.split_seed(self.seed_generator.next(), 1)[0]
        return None


class GaussianKernelLayer(VariationalLayer):
    """A Keras layer whose kernel is Gaussian; stands before that layer among the bases.

    A subclass has an operation `op(inputs, kernel)`, says what its kernel is, `_gaussian()`, and
    its `kl_divergence()`.
    """

    def __init__(
        self,
        *args: Any,
        kl_weight: float | None = None,
        estimator: str = "flipout",
        prior_scale: float = 1.0,
        posterior_scale: float = 0.05,
        resample: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_kl_weight(kl_weight)
        check_choice("estimator", estimator, tuple(ESTIMATORS))
        check_positive("prior_scale", prior_scale)
        check_positive("posterior_scale", posterior_scale)
        check_flags(resample=resample)
        if seed is not None:
            check_integer("seed", seed, minimum=0)
        self.kl_weight = kl_weight
        self.estimator = estimator
        self.prior_scale = prior_scale
        self.posterior_scale = posterior_scale
        self.resample = resample
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def add_weight(self, *args: Any, autocast: bool = False, **kwargs: Any) -> Any:
        """As Keras', but read in the variable dtype: noise and KL stay in float32."""
        return super().add_weight(*args, autocast=autocast, **kwargs)

    def _gaussian(self):
        """The kernel as `Gaussian` or `SparseGaussian`."""
        raise NotImplementedError

    def kl_divergence(self) -> Tensor:
        """The KL divergence of the posterior from the prior in nats, a scalar tensor."""
        raise NotImplementedError

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        self._add_kl(self.kl_divergence, training)
        seed = self._noise_seed(training)
        outputs = self._linear(inputs, seed)
        if self.use_bias:
            outputs += self._along_channels(self._drawn_bias(seed), outputs)
        return outputs if self.activation is None else self.activation(outputs)

    def _linear(self, inputs, seed):
        """The operation, with noise from `seed` unless that is None."""
        return self._mean(inputs) if seed is None else self._noisy(inputs, seed)

    def _drawn_bias(self, seed):
        return self.bias

    def _mean(self, inputs):
        return self.op(inputs, tf.cast(tf.convert_to_tensor(self.kernel), inputs.dtype))

    def _noisy(self, inputs, seed):
        return self._estimate(self.op, inputs, self._gaussian(), seed)

    def _estimate(self, op, inputs, kernel, seed):
        # One draw of a network has one kernel, whatever the batch.
        estimator = "reparameterization" if current_draw() else self.estimator
        axis = self._channel_axis()
        return ESTIMATORS[estimator](op, inputs, kernel, seed=seed, channel_axis=axis)

    def _channel_axis(self):
        return 1 if getattr(self, "data_format", None) == "channels_first" else -1

    def _along_channels(self, vector, outputs):
        """`vector` in the shape and dtype in which it is added to `outputs`."""
        shape = [1] * outputs.shape.rank
        shape[self._channel_axis()] = -1
        return tf.reshape(tf.cast(vector, outputs.dtype), shape)

    def _rho_initializer(self):
        return constant_rho(self.posterior_scale)

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        own = ("kl_weight", "estimator", "prior_scale", "posterior_scale", "resample", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def constant_rho(scale):
    """Initializer of rho with softplus(rho) = `scale`."""
    return keras.initializers.Constant(float(softplus_inverse(scale)))


def variational_layers(model):
    """The layers of `model`, at any depth, whose KL divergence is in its loss."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, VariationalLayer)]
