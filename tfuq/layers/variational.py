"""Mean-field variational layers: every weight of their kernels is an independent Gaussian.

An estimator says how a noisy operation is computed, a layer says which operation it is.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from keras import layers

from tfuq._arguments import Tensor, check_choice, check_flags, register
from tfuq._random.points import split_seed
from tfuq.layers._estimators import Gaussian
from tfuq.layers._operations import (
    Conv1DOperation,
    ConvOperation,
    ConvTransposeOperation,
    DenseOperation,
    DepthwiseConvOperation,
    EinsumOperation,
    SeparableConvOperation,
)
from tfuq.layers.base import (
    GaussianKernelLayer,
    constant_rho,
    distributions,
    kl_normal,
    softplus_inverse,
)

_SMALLEST_SCALE = 1e-6  # of a posterior that is relative to a weight, where that is 0


class MeanFieldLayer(GaussianKernelLayer):
    """A Keras layer with an independent Gaussian for each weight of its kernels."""

    kernels = ("kernel",)

    def __init__(
        self, *args: Any, trainable_prior: bool = False, prior_mean: str = "zero", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_choice("prior_mean", prior_mean, ("zero", "initial"))
        check_flags(trainable_prior=trainable_prior)
        self.trainable_prior = trainable_prior
        self.prior_mean = prior_mean

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        for name in self.kernels:
            self._add_spread(name, getattr(self, name))
        if self.trainable_prior:
            self.prior_rho = self.add_weight(
                name="prior_rho", shape=(), initializer=constant_rho(self.prior_scale)
            )
        self._add_beta()
        count = sum(math.prod(getattr(self, name).shape) for name in self.kernels)
        self._warn_if_heavy(count, self.posterior_scale)

    def _add_spread(self, name, kernel):
        rho = self.add_weight(
            name=f"{name}_rho", shape=kernel.shape, initializer=self._rho_initializer()
        )
        setattr(self, f"{name}_rho", rho)
        if self.prior_mean == "initial":
            loc = self.add_weight(
                name=_prior_loc(name),
                shape=kernel.shape,
                initializer=lambda shape, dtype: tf.cast(kernel, dtype),
                trainable=False,
            )
            setattr(self, _prior_loc(name), loc)

    def _gaussian(self, name="kernel"):
        return Gaussian(tf.convert_to_tensor(getattr(self, name)), self._scale(name))

    def _scale(self, name="kernel"):
        return tf.nn.softplus(tf.convert_to_tensor(getattr(self, f"{name}_rho")))

    def _prior(self, name="kernel"):
        """Mean and standard deviation of the prior."""
        has_means = self.prior_mean == "initial"
        loc = tf.convert_to_tensor(getattr(self, _prior_loc(name))) if has_means else 0.0
        if self.trainable_prior:
            return loc, tf.nn.softplus(tf.convert_to_tensor(self.prior_rho))
        return loc, tf.cast(self.prior_scale, self.variable_dtype)

    def kl_divergence(self) -> Tensor:
        """The KL divergence of the posterior from the prior in nats, a scalar tensor."""
        terms = [kl_normal(*self._gaussian(name), *self._prior(name)) for name in self.kernels]
        return tf.add_n(terms) if len(terms) > 1 else terms[0]

    def posterior(self, name: str | None = None) -> Any:
        """The posterior of a kernel, `tfp.distributions.Normal` of the kernel's shape.

        Args:
            name: Which kernel, of a layer that has several; by default the first.
        """
        if not self.built:
            raise ValueError("The layer has no weights before it is built. Received: built=False")
        name = self.kernels[0] if name is None else name
        check_choice("name", name, self.kernels)
        return distributions().Normal(*self._gaussian(name))

    def start_around(self, relative_scale: float) -> None:
        """Makes the posterior N(w, (relative_scale |w|)^2), and w the prior's means if it has any.

        MOPED, Krishnan et al. 2020.
        """
        for name in self.kernels:
            kernel = getattr(self, name)
            scale = tf.maximum(relative_scale * tf.abs(kernel), _SMALLEST_SCALE)
            getattr(self, f"{name}_rho").assign(softplus_inverse(scale))
            if self.prior_mean == "initial":
                getattr(self, _prior_loc(name)).assign(kernel)

    def get_config(self) -> dict[str, Any]:
        own = ("trainable_prior", "prior_mean")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def _prior_loc(kernel):
    """Name of the variable that holds the prior's means of a kernel."""
    return "prior_loc" if kernel == "kernel" else f"{kernel}_prior_loc"


@register
class DenseVariational(MeanFieldLayer, DenseOperation, layers.Dense):
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
        seed: Integer that determines the noise.

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

    See also: `tfuq.convert.variational`, `tfuq.layers.Conv2DVariational`,
    `tfuq.layers.SparseBayesDense`, `tfuq.kl_weight_for`, `tfuq.callbacks.KLAnnealing`.
    """


@register
class Conv1DVariational(MeanFieldLayer, Conv1DOperation, layers.Conv1D):
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

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


@register
class Conv2DVariational(MeanFieldLayer, ConvOperation, layers.Conv2D):
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

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


@register
class Conv2DTransposeVariational(MeanFieldLayer, ConvTransposeOperation, layers.Conv2DTranspose):
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

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


@register
class Conv3DVariational(MeanFieldLayer, ConvOperation, layers.Conv3D):
    """`keras.layers.Conv3D` with an independent Gaussian for each weight of its kernel.

    The arguments of `keras.layers.Conv3D`, then those of `DenseVariational`, where they are
    described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import Conv3DVariational

    layer = Conv3DVariational(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 8, 2)), layer])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


@register
class DepthwiseConv1DVariational(MeanFieldLayer, DepthwiseConvOperation, layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with an independent Gaussian for each weight of its kernel.

    The arguments of `keras.layers.DepthwiseConv1D`, then those of `DenseVariational`, where they
    are described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import DepthwiseConv1DVariational

    layer = DepthwiseConv1DVariational(3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((32, 4)), layer])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


@register
class DepthwiseConv2DVariational(MeanFieldLayer, DepthwiseConvOperation, layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with an independent Gaussian for each weight of its kernel.

    The arguments of `keras.layers.DepthwiseConv2D`, then those of `DenseVariational`, where they
    are described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import DepthwiseConv2DVariational

    layer = DepthwiseConv2DVariational(3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


@register
class EinsumDenseVariational(EinsumOperation, MeanFieldLayer, layers.EinsumDense):
    """`keras.layers.EinsumDense` with an independent Gaussian for each weight of its kernel.

    The arguments of `keras.layers.EinsumDense`, then those of `DenseVariational`, where they are
    described. In `"flipout"` the signs are those of the last axes.

    Example:

    ```python
    import keras
    from tfuq.layers import EinsumDenseVariational

    layer = EinsumDenseVariational("abc,cd->abd", (None, 16), kl_weight=0.001)
    model = keras.Sequential([keras.Input((32, 4)), layer])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


class _SeparableLayer(SeparableConvOperation, MeanFieldLayer):
    """A depthwise and a pointwise convolution, both with Gaussian kernels."""

    kernels = ("depthwise_kernel", "pointwise_kernel")

    def _linear(self, inputs, seed):
        outputs = inputs
        seeds = (None, None) if seed is None else split_seed(seed, 2)
        for op, name, seed in zip(self.operations(), self.kernels, seeds, strict=True):
            kernel = tf.convert_to_tensor(getattr(self, name))
            if seed is None:
                outputs = op(outputs, tf.cast(kernel, outputs.dtype))
            else:
                outputs = self._estimate(op, outputs, self._gaussian(name), seed)
        return outputs


@register
class SeparableConv1DVariational(_SeparableLayer, layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with an independent Gaussian for each weight of its kernels.

    The arguments of `keras.layers.SeparableConv1D`, then those of `DenseVariational`, where they
    are described. The estimator is applied to one convolution after the other.

    Example:

    ```python
    import keras
    from tfuq.layers import SeparableConv1DVariational

    layer = SeparableConv1DVariational(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((32, 4)), layer])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """


@register
class SeparableConv2DVariational(_SeparableLayer, layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with an independent Gaussian for each weight of its kernels.

    The arguments of `keras.layers.SeparableConv2D`, then those of `DenseVariational`, where they
    are described. The estimator is applied to one convolution after the other.

    Example:

    ```python
    import keras
    from tfuq.layers import SeparableConv2DVariational

    layer = SeparableConv2DVariational(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.variational`, `tfuq.kl_weight_for`.
    """
