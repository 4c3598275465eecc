"""Mean-field variational layers: every weight of the kernel is an independent Gaussian.

An estimator says how a noisy operation is computed, a layer says which operation it is.
"""

import math

import tensorflow as tf
from keras import layers

from tfuq._arguments import check_choice, register
from tfuq.layers._estimators import Gaussian
from tfuq.layers._operations import (
    Conv1DOperation,
    ConvOperation,
    ConvTransposeOperation,
    DenseOperation,
)
from tfuq.layers.base import GaussianKernelLayer, constant_rho, distributions, kl_normal


class _MeanFieldLayer(GaussianKernelLayer):
    """A Keras layer with an independent Gaussian for each weight of its kernel."""

    def __init__(self, *args, trainable_prior=False, prior_mean="zero", **kwargs):
        super().__init__(*args, **kwargs)
        check_choice("prior_mean", prior_mean, ("zero", "initial"))
        self.trainable_prior = trainable_prior
        self.prior_mean = prior_mean

    def build(self, input_shape):
        super().build(input_shape)
        self.kernel_rho = self.add_weight(
            name="kernel_rho", shape=self.kernel.shape, initializer=self._rho_initializer()
        )
        if self.prior_mean == "initial":
            self.prior_loc = self.add_weight(
                name="prior_loc",
                shape=self.kernel.shape,
                initializer=lambda shape, dtype: tf.cast(self.kernel, dtype),
                trainable=False,
            )
        if self.trainable_prior:
            self.prior_rho = self.add_weight(
                name="prior_rho", shape=(), initializer=constant_rho(self.prior_scale)
            )
        self._add_beta()
        self._warn_if_heavy(math.prod(self.kernel.shape), self.posterior_scale)

    def _gaussian(self):
        return Gaussian(tf.convert_to_tensor(self.kernel), self._scale())

    def _scale(self):
        return tf.nn.softplus(tf.convert_to_tensor(self.kernel_rho))

    def _prior(self):
        """Mean and standard deviation of the prior."""
        loc = tf.convert_to_tensor(self.prior_loc) if self.prior_mean == "initial" else 0.0
        if self.trainable_prior:
            return loc, tf.nn.softplus(tf.convert_to_tensor(self.prior_rho))
        return loc, tf.cast(self.prior_scale, self.variable_dtype)

    def kl_divergence(self):
        """The KL divergence of the posterior from the prior in nats, a scalar tensor."""
        return kl_normal(*self._gaussian(), *self._prior())

    def posterior(self):
        """The posterior of the kernel, `tfp.distributions.Normal` of the kernel's shape."""
        if not self.built:
            raise ValueError("The layer has no weights before it is built. Received: built=False")
        return distributions().Normal(*self._gaussian())

    def get_config(self):
        own = ("trainable_prior", "prior_mean")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


@register
class DenseVariational(_MeanFieldLayer, DenseOperation, layers.Dense):
    """`keras.layers.Dense` with an independent Gaussian for each weight of its kernel.

    In training each call draws the weights and adds `kl_weight * beta * KL` to the loss. A
    prediction takes the means of the weights, and so repeats; `tfuq.predictive` draws whole
    networks and averages over them. Biases are not random. A layer that is called several times in
    one call of the model adds its KL divergence once.

    Formula:

    ```
    w ~ N(kernel, softplus(kernel_rho)^2)
    KL = sum KL(N(kernel, softplus(kernel_rho)^2) || N(prior mean, prior_scale^2))
    ```

    Args:
        units, activation, ...: The arguments of `keras.layers.Dense`.
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`, or
            `1 / (examples * labels or pixels)` where the loss is a mean over those, too:
            `tfuq.kl_weight_for(data, loss)`. Required.
        estimator: How noisy outputs are computed. `"flipout"` (Wen et al. 2018): a draw of the
            weights per batch, decorrelated by signs per example. `"reparameterization"` (Kingma
            and Welling 2014): a draw per batch. `"local_reparameterization"` (Kingma et al. 2015):
            the Gaussian of each output.
        prior_scale: Standard deviation of the prior.
        trainable_prior: Whether `prior_scale` is only where training starts from.
        prior_mean: `"zero"`, or `"initial"`: the prior has means of its own, which are saved with
            the weights and are those the kernel starts from.
        posterior_scale: Standard deviation that training starts from.
        resample: Whether each prediction draws the weights anew.
        seed: Integer from which the noise follows.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.

    Returns:
        Tensor of shape `(batch, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range, or `kl_weight` is missing.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import DenseVariational

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    layers = [
        DenseVariational(16, activation="relu", kl_weight=1 / 64),
        DenseVariational(3, kl_weight=1 / 64),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    ```
    """


@register
class Conv1DVariational(_MeanFieldLayer, Conv1DOperation, layers.Conv1D):
    """`keras.layers.Conv1D` with an independent Gaussian for each weight of its kernel.

    The arguments of `keras.layers.Conv1D`, then those of `DenseVariational`, where they are
    described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import Conv1DVariational

    layer = Conv1DVariational(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((32, 4)), layer])
    ```
    """


@register
class Conv2DVariational(_MeanFieldLayer, ConvOperation, layers.Conv2D):
    """`keras.layers.Conv2D` with an independent Gaussian for each weight of its kernel.

    The arguments of `keras.layers.Conv2D`, then those of `DenseVariational`, where they are
    described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import Conv2DVariational

    layer = Conv2DVariational(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```
    """


@register
class Conv2DTransposeVariational(_MeanFieldLayer, ConvTransposeOperation, layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with an independent Gaussian for each weight of its kernel.

    The arguments of `keras.layers.Conv2DTranspose`, then those of `DenseVariational`, where they
    are described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import Conv2DTransposeVariational

    layer = Conv2DTransposeVariational(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```
    """
