"""Mean-field variational layers: every weight of the kernel is an independent Gaussian.

An estimator says how a noisy operation is computed, a layer says which operation it is.
"""

import keras
import tensorflow as tf
from keras import ops
from tensorflow_probability import distributions as tfd

from tfuq import _sampling
from tfuq._draws import current_draw
from tfuq._keras import check_choice, check_integer, check_positive, register
from tfuq._variational import VariationalLayer, check_kl_weight, kl_normal, softplus_inverse

MIN_VARIANCE = 1e-12  # below it the square root has no useful gradient


def reparameterization(op, x, loc, scale, *, seed, channel_axis=-1):
    """op(x, loc + scale e) with one draw e for the whole batch (Kingma and Welling 2014)."""
    del channel_axis
    kernel = loc + scale * _sampling.normal(tf.shape(loc), seed=seed, dtype=loc.dtype)
    return op(x, tf.cast(kernel, x.dtype))


def local_reparameterization(op, x, loc, scale, *, seed, channel_axis=-1):
    """op(x, loc) + sqrt(op(x^2, scale^2)) e, a draw e per output (Kingma et al. 2015).

    Exact for one output of a linear operation; outputs that share weights, such as the places of a
    convolution, are drawn as if they did not.
    """
    del channel_axis
    mean = op(x, tf.cast(loc, x.dtype))
    variance = op(tf.square(tf.cast(x, loc.dtype)), tf.square(scale))
    noise = _sampling.normal(tf.shape(mean), seed=seed, dtype=loc.dtype)
    return mean + tf.cast(tf.sqrt(tf.maximum(variance, MIN_VARIANCE)) * noise, mean.dtype)


def flipout(op, x, loc, scale, *, seed, channel_axis=-1):
    """op(x, loc) + op(x s, scale e) r, with one draw e and signs s and r per example.

    Wen et al. 2018, equation 4. Signs are per channel of the input and of the output.
    """
    noise_seed, in_seed, out_seed = _sampling.split_seed(seed, 3)
    mean = op(x, tf.cast(loc, x.dtype))
    e = tf.cast(scale * _sampling.normal(tf.shape(loc), seed=noise_seed, dtype=loc.dtype), x.dtype)
    noise = op(x * _channel_signs(x, channel_axis, seed=in_seed), e)
    return mean + noise * _channel_signs(mean, channel_axis, seed=out_seed)


def _channel_signs(x, channel_axis, *, seed):
    """Signs that broadcast over all axes of `x` but the batch and the channels."""
    kept = (0, channel_axis % x.shape.rank)
    shape = [tf.shape(x)[axis] if axis in kept else 1 for axis in range(x.shape.rank)]
    return _sampling.random_signs(tf.stack(shape), seed=seed, dtype=x.dtype)


ESTIMATORS = {
    "flipout": flipout,
    "reparameterization": reparameterization,
    "local_reparameterization": local_reparameterization,
}


class _MeanFieldLayer(VariationalLayer):
    """A Keras layer whose kernel is Gaussian; stands before that layer among the bases.

    A subclass says what its operation is, `_op(inputs, kernel)`.
    """

    def __init__(
        self,
        *args,
        kl_weight=None,
        estimator="flipout",
        prior_scale=1.0,
        trainable_prior=False,
        prior_mean="zero",
        posterior_scale=0.05,
        resample=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        check_kl_weight(kl_weight)
        check_choice("estimator", estimator, tuple(ESTIMATORS))
        check_positive("prior_scale", prior_scale)
        check_choice("prior_mean", prior_mean, ("zero", "initial"))
        check_positive("posterior_scale", posterior_scale)
        if seed is not None:
            check_integer("seed", seed, minimum=0)
        self.kl_weight = kl_weight
        self.estimator = estimator
        self.prior_scale = prior_scale
        self.trainable_prior = trainable_prior
        self.prior_mean = prior_mean
        self.posterior_scale = posterior_scale
        self.resample = resample
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def add_weight(self, *args, autocast=False, **kwargs):
        """As Keras', but read in the variable dtype: noise and KL stay in float32."""
        return super().add_weight(*args, autocast=autocast, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        self.kernel_rho = self.add_weight(
            name="kernel_rho",
            shape=self.kernel.shape,
            initializer=_rho_initializer(self.posterior_scale),
        )
        if self.prior_mean == "initial":
            self.prior_loc = self.add_weight(
                name="prior_loc",
                shape=self.kernel.shape,
                initializer=lambda shape, dtype: ops.cast(self.kernel, dtype),
                trainable=False,
            )
        if self.trainable_prior:
            self.prior_rho = self.add_weight(
                name="prior_rho", shape=(), initializer=_rho_initializer(self.prior_scale)
            )
        self._add_beta()

    def _op(self, inputs, kernel):
        """The layer's operation, for inputs and a kernel of one dtype."""
        raise NotImplementedError

    def call(self, inputs, training=False):
        self._add_kl(self.kl_divergence())
        loc, scale = tf.convert_to_tensor(self.kernel), self._scale()
        seed = self._noise_seed(training)
        axis = self._channel_axis()
        if seed is None:
            outputs = self._op(inputs, tf.cast(loc, inputs.dtype))
        else:
            # One draw of a network has one kernel, whatever the batch.
            estimator = "reparameterization" if current_draw() else self.estimator
            outputs = ESTIMATORS[estimator](
                self._op, inputs, loc, scale, seed=seed, channel_axis=axis
            )
        if self.use_bias:
            shape = [1] * outputs.shape.rank
            shape[axis] = -1
            outputs += tf.reshape(tf.cast(self.bias, outputs.dtype), shape)
        return outputs if self.activation is None else self.activation(outputs)

    def _channel_axis(self):
        return 1 if getattr(self, "data_format", None) == "channels_first" else -1

    def _scale(self):
        return tf.nn.softplus(tf.convert_to_tensor(self.kernel_rho))

    def _prior(self):
        """Mean and standard deviation of the prior."""
        loc = tf.convert_to_tensor(self.prior_loc) if self.prior_mean == "initial" else 0.0
        if self.trainable_prior:
            return loc, tf.nn.softplus(tf.convert_to_tensor(self.prior_rho))
        return loc, tf.cast(self.prior_scale, self.variable_dtype)

    def save_own_variables(self, store):
        # Dense and Conv of Keras save the kernel and the bias alone.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def kl_divergence(self):
        """The KL divergence of the posterior from the prior in nats, a scalar tensor."""
        return kl_normal(tf.convert_to_tensor(self.kernel), self._scale(), *self._prior())

    def posterior(self):
        """The posterior of the kernel, `tfp.distributions.Normal` of the kernel's shape."""
        if not self.built:
            raise ValueError("The layer has no weights before it is built. Received: built=False")
        return tfd.Normal(tf.convert_to_tensor(self.kernel), self._scale())

    def get_config(self):
        own = (
            "kl_weight",
            "estimator",
            "prior_scale",
            "trainable_prior",
            "prior_mean",
            "posterior_scale",
            "resample",
            "seed",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def _rho_initializer(scale):
    return keras.initializers.Constant(float(softplus_inverse(scale)))


@register
class DenseVariational(_MeanFieldLayer, keras.layers.Dense):
    """`keras.layers.Dense` with an independent Gaussian for each weight of its kernel.

    In training each call draws the weights and adds `kl_weight * beta * KL` to the loss. A
    prediction takes the means of the weights, and so repeats; `tfuq.predictive` draws whole
    networks and averages over them. Biases are not random.

    Formula:

    ```
    w ~ N(kernel, softplus(kernel_rho)^2)
    KL = sum KL(N(kernel, softplus(kernel_rho)^2) || N(prior mean, prior_scale^2))
    ```

    Args:
        units, activation, ...: The arguments of `keras.layers.Dense`.
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`.
            Required.
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

    def _op(self, inputs, kernel):
        return ops.matmul(inputs, kernel)


class _ConvVariational(_MeanFieldLayer):
    def _op(self, inputs, kernel):
        return _of_any_batch(self._convolution, inputs, kernel)

    def _convolution(self, inputs, kernel):
        return self.convolution_op(inputs, kernel)


def _of_any_batch(convolution, inputs, kernel):
    """convolution(inputs, kernel), of no examples, too.

    TensorFlow's own, built with oneDNN, gives an empty batch the shape of its input, forward or
    (of a transposed one) in the gradient. Such a batch is what a device gets when there are fewer
    examples than devices.
    """
    if inputs.shape[0]:
        return convolution(inputs, kernel)

    def of_none():
        one = tf.zeros(tf.concat([[1], tf.shape(inputs)[1:]], axis=0), inputs.dtype)
        return convolution(tf.ensure_shape(one, (1, *inputs.shape[1:])), kernel)[:0]

    is_empty = tf.equal(tf.shape(inputs)[0], 0)
    return tf.cond(is_empty, of_none, lambda: convolution(inputs, kernel))


@register
class Conv1DVariational(_ConvVariational, keras.layers.Conv1D):
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

    def _convolution(self, inputs, kernel):
        if self.padding != "causal":
            return self.convolution_op(inputs, kernel)
        before = self.dilation_rate[0] * (self.kernel_size[0] - 1)
        padding = [[0, 0], [0, 0], [0, 0]]
        padding[1 if self.data_format == "channels_last" else 2] = [before, 0]
        return ops.conv(
            ops.pad(inputs, padding),
            kernel,
            strides=list(self.strides),
            padding="valid",
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@register
class Conv2DVariational(_ConvVariational, keras.layers.Conv2D):
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
class Conv2DTransposeVariational(_ConvVariational, keras.layers.Conv2DTranspose):
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

    def _convolution(self, inputs, kernel):
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
