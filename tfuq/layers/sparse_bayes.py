"""Sparse Bayesian layers: only the most salient weights are random (Abboud et al. 2024)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfuq._arguments import ArrayLike, Tensor, check_fraction, register
from tfuq._random.draws import current_draw
from tfuq._random.points import split_seed
from tfuq.layers._estimators import SparseGaussian
from tfuq.layers._operations import (
    Conv1DOperation,
    ConvOperation,
    ConvTransposeOperation,
    DenseOperation,
    DepthwiseConvOperation,
)
from tfuq.layers.base import GaussianKernelLayer, distributions, kl_normal
from tfuq.layers.saliency import check_saliency, count_bayesian, top_indices

ARGUMENTS = {"kernel": "saliency", "bias": "bias_saliency"}  # of `select`
RATES = {"kernel": "r_bayes", "bias": "bias_r_bayes"}  # which weights can be random, how many


class _SparseBayesLayer(GaussianKernelLayer):
    """A Keras layer of whose weights a fraction is Gaussian, once it has been told which."""

    def __init__(
        self,
        *args: Any,
        r_bayes: float = 0.01,
        bias_r_bayes: float = 0.0,
        estimator: str = "local_reparameterization",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, estimator=estimator, **kwargs)
        check_fraction("r_bayes", r_bayes)
        check_fraction("bias_r_bayes", bias_r_bayes)
        self.r_bayes = r_bayes
        self.bias_r_bayes = bias_r_bayes

    @staticmethod
    def when_resized() -> Any:
        """Called when loading has changed the variables: whoever trains the layer replaces it."""

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._add_beta()
        self.selected = self.add_weight(
            name="selected", shape=(), dtype="bool", initializer="zeros", trainable=False
        )
        for name, weight in self._candidates().items():
            self._add_random(
                name, count_bayesian(getattr(self, RATES[name]), np.prod(weight.shape))
            )
        self._warn_if_heavy(sum(map(self.num_bayesian, RATES)), self.posterior_scale)

    def _candidates(self):
        """The weights that can be random, by name."""
        return (
            {"kernel": self.kernel, "bias": self.bias} if self.use_bias else {"kernel": self.kernel}
        )

    def _add_random(self, name, count):
        """Makes room for `count` random weights: their indices and rho, or None for none."""
        indices = rho = None
        if count:
            indices = self.add_weight(
                name=f"{name}_indices",
                shape=(count,),
                dtype="int32",
                initializer=lambda shape, dtype: tf.range(shape[0], dtype=dtype),
                trainable=False,
            )
            rho = self.add_weight(
                name=f"{name}_rho", shape=(count,), initializer=self._rho_initializer()
            )
        setattr(self, f"{name}_indices", indices)
        setattr(self, f"{name}_rho", rho)

    def num_bayesian(self, name: str = "kernel") -> int:
        """Number of weights of the kernel, or of the `"bias"`, that are random once selected."""
        rho = getattr(self, f"{name}_rho", None)
        return 0 if rho is None else rho.shape[0]

    def resize(self, count: int, name: str = "kernel") -> None:
        """Makes room for `count` random weights of the kernel, or of the `"bias"`.

        `r_bayes` (or `bias_r_bayes`) becomes their share. The variables are new: whoever trains
        the layer has to tell its optimizer, and trace the training step again.
        """
        if count == self.num_bayesian(name):
            return
        self._tracker.unlock()  # as Keras' own `enable_lora` does
        for old in (getattr(self, f"{name}_indices"), getattr(self, f"{name}_rho")):
            if old is not None:
                self._untrack_variable(old)
        self._add_random(name, count)
        self._tracker.lock()
        setattr(self, RATES[name], count / int(np.prod(getattr(self, name).shape)))

    def is_selected(self) -> bool:
        """Whether `select` has said which weights are random."""
        with tf.init_scope():  # also while a graph is built
            return self.built and bool(self.selected.numpy())

    def is_random(self) -> bool:
        return self.is_selected() and bool(self._random())

    def select(self, saliency: ArrayLike, bias_saliency: ArrayLike | None = None) -> None:
        """Makes the most salient weights random, from here on: N(kernel, posterior_scale^2).

        Args:
            saliency: Array of the kernel's shape. The `ceil(r_bayes * size)` largest are chosen;
                of equal ones, the first.
            bias_saliency: Array of the bias's shape. Needed if `bias_r_bayes` is above 0.

        Raises:
            ValueError: If the layer is not built, or an array is missing, has another shape or
                holds NaN or infinity.
        """
        if not self.built:
            raise ValueError("The layer must be built before `select`. Received: built=False")
        given = dict(zip(self.ranked_weights(), (saliency, bias_saliency), strict=False))
        for name, values in given.items():
            given[name] = check_saliency(ARGUMENTS[name], values, getattr(self, name).shape)
        for name, values in given.items():
            if self.num_bayesian(name):
                indices, rho = getattr(self, f"{name}_indices"), getattr(self, f"{name}_rho")
                indices.assign(top_indices(values, self.num_bayesian(name)))
                rho.assign(self._rho_initializer()(rho.shape, rho.dtype))
        self.selected.assign(True)

    def _gaussian(self, name="kernel"):
        loc, indices, rho = (getattr(self, name + part) for part in ("", "_indices", "_rho"))
        scale = tf.nn.softplus(tf.convert_to_tensor(rho))
        return SparseGaussian(tf.convert_to_tensor(loc), tf.convert_to_tensor(indices), scale)

    def ranked_weights(self) -> dict[str, Any]:
        """The weights that `select` ranks by saliency, by name."""
        names = ["kernel"] + ["bias"] * bool(self.num_bayesian("bias"))
        return {name: getattr(self, name) for name in names}

    judged = ranked_weights  # the name of version 0.1

    def _random(self):
        """The weights of which some are random."""
        return [name for name in RATES if self.num_bayesian(name)]

    def _noise_seed(self, training):
        return super()._noise_seed(training) if self._random() else None

    def _linear(self, inputs, seed):
        if seed is None or not self.num_bayesian():
            return self._mean(inputs)
        if current_draw() is not None:
            return self._of_draw(inputs, seed)
        return tf.cond(self.selected, lambda: self._noisy(inputs, seed), lambda: self._mean(inputs))

    def _of_draw(self, inputs, seed):
        """One operation, not one in each branch: exports trace it once, and are half as large."""
        kernel = self._gaussian()
        noise = tf.where(self.selected, kernel.noise(seed=seed), 0)
        return self.op(inputs, tf.cast(kernel.loc + noise, inputs.dtype))

    def _drawn_bias(self, seed):
        bias = tf.convert_to_tensor(self.bias)
        if seed is None or not self.num_bayesian("bias"):
            return bias
        (seed,) = split_seed(seed, 1)  # another than the kernel's
        if current_draw() is not None:
            return bias + tf.where(self.selected, self._gaussian("bias").noise(seed=seed), 0)
        return tf.cond(
            self.selected, lambda: bias + self._gaussian("bias").noise(seed=seed), lambda: bias
        )

    def kl_divergence(self) -> Tensor:
        """The KL divergence of the random weights' posterior from their prior in nats, a scalar.

        0 before `select`.
        """
        kl, prior_scale = tf.zeros([], self.variable_dtype), float(self.prior_scale)
        for name in self._random():
            gaussian = self._gaussian(name)
            kl += kl_normal(gaussian.selected(), gaussian.scale, 0.0, prior_scale)
        return kl * tf.cast(self.selected, kl.dtype)

    def posterior(self, name: str = "kernel") -> Any:
        """The posterior of the random weights, `tfp.distributions.Normal` of shape `(k,)`.

        They are those at `kernel_indices` of the flat kernel; with `"bias"`, those of the bias.

        Raises:
            ValueError: If no weight is random: the layer is not built, nothing is selected yet,
                or `r_bayes` is 0.
        """
        if not self.is_selected() or not self.num_bayesian(name):
            raise ValueError(
                f"The layer has no random weights of its {name} yet. Received: "
                f"built={self.built}, r_bayes={self.r_bayes}, bias_r_bayes={self.bias_r_bayes}"
            )
        gaussian = self._gaussian(name)
        return distributions().Normal(gaussian.selected(), gaussian.scale)

    def _saved(self):
        names = ["beta", "selected", *self._candidates()]
        names += [f"{name}_{part}" for name in self._random() for part in ("indices", "rho")]
        return {name: getattr(self, name) for name in names}

    def save_own_variables(self, store: Any) -> None:
        for name, variable in self._saved().items():
            is_beta = variable is self.beta
            store[name] = self.beta_to_save() if is_beta else keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        for name in self._candidates():  # a selection over the whole network moves the shares
            rho = f"{name}_rho"
            count = store[rho].shape[0] if rho in store.keys() else 0  # noqa: SIM118 (no dict)
            if count != self.num_bayesian(name):
                self.resize(count, name)
                self.when_resized()
        for name, variable in self._saved().items():
            variable.assign(store[name])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **{rate: getattr(self, rate) for rate in RATES.values()}}


def sparse_bayes_layers(model):
    """The sparse Bayesian layers of `model`, at any depth."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, _SparseBayesLayer)]


@register
class SparseBayesDense(_SparseBayesLayer, DenseOperation, layers.Dense):
    """`keras.layers.Dense` with random weights only where they are most salient.

    It holds a mean for each weight of the kernel, and an index and a standard deviation for the
    fraction `r_bayes` of them. Until `select` chooses these, it equals `Dense`, to the bit.
    `tfuq.callbacks.SaliencySelection` selects during a `fit`, `tfuq.convert.sparse_bayesian`
    selects in a trained model.

    In training each call draws the random weights and adds `kl_weight * beta * KL` to the loss. A
    prediction takes the means of the weights, and so repeats; `tfuq.predictive` draws whole
    networks and averages over them.

    Formula (Abboud et al. 2024, section 2.2):

    ```
    random     = the ceil(r_bayes * size) weights of the largest saliency
    w[random]  ~ N(kernel[random], softplus(kernel_rho)^2),   all other weights = kernel
    KL         = sum over random KL(N(kernel, softplus(kernel_rho)^2) || N(0, prior_scale^2))
    ```

    Args:
        units, activation, ...: The arguments of `keras.layers.Dense`.
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`, or
            `1 / (examples * labels or pixels)` where the loss is a mean over those, too:
            `tfuq.kl_weight_for(data, loss)`. Required.
        r_bayes: Fraction of the kernel's weights that are random, in [0, 1]: 0 is `Dense`, 1 is
            fully Bayesian.
        bias_r_bayes: As `r_bayes`, of the bias. Its random entries are drawn once per call.
        estimator: How noisy outputs are computed. `"local_reparameterization"` (Kingma et al.
            2015): the Gaussian of each output. `"reparameterization"` (Kingma and Welling 2014): a
            draw of the weights per batch, and the fastest. `"flipout"` (Wen et al. 2018): a draw
            per batch, decorrelated by signs per example.
        prior_scale: Standard deviation of the prior.
        posterior_scale: Standard deviation that random weights start from.
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
    from tfuq.callbacks import SaliencySelection
    from tfuq.layers import SparseBayesDense

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    layers = [
        SparseBayesDense(16, activation="relu", kl_weight=1 / 64, r_bayes=0.05),
        SparseBayesDense(3, kl_weight=1 / 64, r_bayes=0.05),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=4, callbacks=[SaliencySelection(after_epoch=2)], verbose=0)
    ```

    References:
        - Abboud, Lombaert and Kadoury, "Sparse Bayesian Networks: Efficient Uncertainty
          Quantification in Medical Image Analysis", MICCAI 2024.

    See also: `tfuq.convert.sparse_bayesian`, `tfuq.callbacks.SaliencySelection`,
    `tfuq.layers.DenseVariational`.
    """


@register
class SparseBayesConv1D(_SparseBayesLayer, Conv1DOperation, layers.Conv1D):
    """`keras.layers.Conv1D` with random weights only where they are most salient.

    The arguments of `keras.layers.Conv1D`, then those of `SparseBayesDense`, where they are
    described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import SparseBayesConv1D

    layer = SparseBayesConv1D(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((32, 4)), layer])
    ```

    See also: `tfuq.layers.SparseBayesDense`, `tfuq.convert.sparse_bayesian`,
    `tfuq.callbacks.SaliencySelection`.
    """


@register
class SparseBayesConv2D(_SparseBayesLayer, ConvOperation, layers.Conv2D):
    """`keras.layers.Conv2D` with random weights only where they are most salient.

    The arguments of `keras.layers.Conv2D`, then those of `SparseBayesDense`, where they are
    described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import SparseBayesConv2D

    layer = SparseBayesConv2D(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```

    See also: `tfuq.layers.SparseBayesDense`, `tfuq.convert.sparse_bayesian`,
    `tfuq.callbacks.SaliencySelection`.
    """


@register
class SparseBayesConv3D(_SparseBayesLayer, ConvOperation, layers.Conv3D):
    """`keras.layers.Conv3D` with random weights only where they are most salient.

    The arguments of `keras.layers.Conv3D`, then those of `SparseBayesDense`, where they are
    described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import SparseBayesConv3D

    layer = SparseBayesConv3D(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 8, 2)), layer])
    ```

    See also: `tfuq.layers.SparseBayesDense`, `tfuq.convert.sparse_bayesian`,
    `tfuq.callbacks.SaliencySelection`.
    """


@register
class SparseBayesConv2DTranspose(_SparseBayesLayer, ConvTransposeOperation, layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with random weights only where they are most salient.

    The arguments of `keras.layers.Conv2DTranspose`, then those of `SparseBayesDense`, where they
    are described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import SparseBayesConv2DTranspose

    layer = SparseBayesConv2DTranspose(16, 3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```

    See also: `tfuq.layers.SparseBayesDense`, `tfuq.convert.sparse_bayesian`,
    `tfuq.callbacks.SaliencySelection`.
    """


@register
class SparseBayesDepthwiseConv2D(_SparseBayesLayer, DepthwiseConvOperation, layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with random weights only where they are most salient.

    The arguments of `keras.layers.DepthwiseConv2D`, then those of `SparseBayesDense`, where they
    are described. With `estimator="local_reparameterization"` the noise of each place is its own.

    Example:

    ```python
    import keras
    from tfuq.layers import SparseBayesDepthwiseConv2D

    layer = SparseBayesDepthwiseConv2D(3, activation="relu", kl_weight=0.001)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    ```

    See also: `tfuq.layers.SparseBayesDense`, `tfuq.convert.sparse_bayesian`,
    `tfuq.callbacks.SaliencySelection`.
    """
