"""Last layer that is a Gaussian process, by random features (Liu et al., JMLR 2023)."""

from __future__ import annotations

import collections
import math
import sys
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import (
    Tensor,
    check_choice,
    check_flags,
    check_integer,
    check_positive,
    is_finite,
    register,
    shown,
)
from tfuq._math.logistic_normal import probit
from tfuq._random import points
from tfuq._random.draws import TakesDraws, current_draw
from tfuq.layers.heads import Head, OutputMeaning
from tfuq.layers.shapes import checked_features, floating, with_leading
from tfuq.layers.ways import wanted_way

SNGPOutput = collections.namedtuple("SNGPOutput", ["logits", "mean", "variance"])
LIKELIHOODS = ("categorical", "bernoulli")
PROBIT = math.pi / 8

_ARGUMENTS = (
    "units", "num_features", "length_scale", "ridge", "momentum", "mean_field_factor",
    "likelihood", "logits_only", "use_bias", "seed",
)  # fmt: skip


class _EpochStart(keras.metrics.Metric):
    """Tells its layer when Keras resets metrics, which it does as each epoch starts; no metric."""

    def __init__(self, layer):
        super().__init__(name="epoch_start")
        # Not the layer itself: what saves a layer walks through its metrics.
        self._begin, self._warn = layer._begin_epoch, layer._warn_of_no_epochs

    def update_state(self, *args, **kwargs):
        pass

    def reset_state(self):
        asked_by = _resetting()
        if asked_by == "train_on_batch":
            self._warn()
        elif asked_by not in _WITHIN_AN_EPOCH:
            self._begin()

    def result(self):
        return {}


# What resets metrics, too, and may stand in the middle of an epoch.
_WITHIN_AN_EPOCH = ("evaluate", "test_on_batch")


def _resetting():
    """Name of the function that has called `Model.reset_metrics`, or None."""
    frame, is_within = sys._getframe(), False
    while frame is not None:
        is_reset = frame.f_code.co_name == "reset_metrics"
        if is_within and not is_reset:
            return frame.f_code.co_name
        frame, is_within = frame.f_back, is_reset
    return None


@register
class SNGPDense(Head, TakesDraws, keras.layers.Layer):
    """Gaussian process in place of the last `Dense` of a classifier (SNGP).

    Far from the training data its logits have the variance of the prior, and the probabilities
    approach even odds. For that the hidden layers must keep distances: bound them with
    `tfuq.convert.spectral_normalize`. It needs one pass and no samples.

    Formula (Liu et al. 2023, sections 3.1 and 3.3; random features of Rahimi and Recht, 2007):

    ```
    phi(x)    = sqrt(2 / M) cos(W x / length_scale + b),   W ~ N(0, I), b ~ U(0, 2 pi), fixed
    mean_k    = phi(x)^T beta_k + bias_k
    P         = ridge I + sum over the examples of an epoch of phi phi^T
    variance  = ridge phi(x)^T P^-1 phi(x)
    logits    = mean / sqrt(1 + mean_field_factor * variance)
    ```

    In training the logits are the mean, and P is summed along the way. The sum restarts with the
    first step after Keras has reset the metrics of the model, as `fit` does at each epoch: when
    training ends it is that of the last epoch, without a callback. In your own training loop, and
    with `train_on_batch`, call `start_anew()` before each epoch. With a `momentum` P is a moving
    average over batches, `momentum P + (1 - momentum) mean of phi phi^T`, for training without
    epochs.

    As in the authors' code an example counts fully, whatever its label (their Gaussian likelihood),
    and all units share P. Masked positions do not count; sample weights are not known here.

    Args:
        units: Integer K, the number of classes (at least 2) or labels.
        num_features: Integer M, the number of random features. P has M^2 entries.
        length_scale: Number above 0, of the radial kernel: inputs much nearer than this are alike,
            and inputs much further from all others are unknown. None: the square root of the number
            of features, which suits features of about unit variance, as after a
            `LayerNormalization` or a `Normalization`; the authors' code has 1.
        ridge: Number above 0 that P starts at.
        momentum: None for the sum over an epoch, or a fraction in (0, 1), as .999.
        mean_field_factor: Number >= 0; pi / 8 by default (MacKay 1992). 0: the logits are the mean.
        likelihood: `"categorical"`, or `"bernoulli"` for labels that do not exclude each other
            (and for two classes in one unit).
        logits_only: Whether to return the logits alone.
        use_bias: Whether to add a bias, which has no variance.
        kernel_initializer, kernel_regularizer, bias_initializer: Of beta and the bias, as in
            `keras.layers.Dense`.
        seed: Integer from which the random features follow; without one they are new in each layer.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean.
        mask: Boolean tensor `(batch, ...)`, as Keras passes it on.

    Returns:
        Logits `(batch, ..., units)`, float32 also under a mixed precision policy. With
        `logits_only=False` a named tuple `(logits, mean, variance)` of three such tensors.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import SNGPDense

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), SNGPDense(3, num_features=64)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=2, verbose=0)
    logits = model.predict(x, verbose=0)
    ```

    References:
        - Liu, Padhy, Ren, Lin, Wen, Jerfel, Nado, Snoek, Tran, Lakshminarayanan: A Simple Approach
          to Improve Single-Model Deep Uncertainty via Distance-Awareness. JMLR 24, 2023.

    See also: `tfuq.convert.spectral_normalize`, `tfuq.layers.VBLLDense`.
    """

    ways = ("probit", "mean")
    output_type = SNGPOutput

    def __init__(
        self,
        units: int,
        num_features: int = 1024,
        length_scale: float | None = None,
        ridge: float = 1.0,
        momentum: float | None = None,
        mean_field_factor: float = PROBIT,
        likelihood: str = "categorical",
        logits_only: bool = True,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        kernel_regularizer: Any = None,
        bias_initializer: Any = "zeros",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units, self.num_features = units, num_features
        self.length_scale, self.ridge, self.momentum = length_scale, ridge, momentum
        self.mean_field_factor, self.likelihood = mean_field_factor, likelihood
        self.logits_only, self.use_bias, self.seed = logits_only, use_bias, seed
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self._check_arguments()
        self._epoch_start, self._knows_epochs = _EpochStart(self), False
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    def _check_arguments(self):
        check_integer("units", self.units, minimum=1)
        check_integer("num_features", self.num_features, minimum=1)
        if self.length_scale is not None:
            check_positive("length_scale", self.length_scale)
        check_positive("ridge", self.ridge)
        momentum, factor = self.momentum, self.mean_field_factor
        if momentum is not None and not (is_finite(momentum) and 0 < momentum < 1):
            raise ValueError(
                "Argument `momentum` must be None, for the sum over an epoch, or in (0, 1). "
                f"Received: momentum={shown(momentum)}"
            )
        if not is_finite(factor) or factor < 0:
            raise ValueError(
                "Argument `mean_field_factor` must be a finite number of at least 0. "
                f"Received: mean_field_factor={shown(factor)}"
            )
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        if self.units == 1 and self.likelihood == "categorical":
            raise ValueError(
                "Argument `units` must be at least 2 for likelihood='categorical', where one class "
                "has probability 1 whatever the input. For two classes in one logit, or one label, "
                "pass likelihood='bernoulli'. Received: units=1 with likelihood='categorical'"
            )
        check_flags(logits_only=self.logits_only, use_bias=self.use_bias)
        if self.seed is not None:
            check_integer("seed", self.seed, minimum=0)

    def build(self, input_shape: Any) -> None:
        features, size = checked_features(self, input_shape), self.num_features
        initializers = keras.initializers
        seeds = (None, None) if self.seed is None else (self.seed, self.seed + 1)
        fixed = {"trainable": False, "autocast": False}
        self.random_kernel = self.add_weight(
            name="random_kernel",
            shape=(features, size),
            initializer=initializers.RandomNormal(stddev=1.0, seed=seeds[0]),
            **fixed,
        )
        self.random_bias = self.add_weight(
            name="random_bias",
            shape=(size,),
            initializer=initializers.RandomUniform(0.0, 2 * math.pi, seed=seeds[1]),
            **fixed,
        )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(size, self.units),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            autocast=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.units,), initializer=self.bias_initializer, autocast=False
            )
        # Replicas of a strategy add what they have seen: the mean over them of as many times that.
        self.precision = self.add_weight(
            name="precision",
            shape=(size, size),
            initializer=initializers.Identity(gain=self.ridge),
            aggregation="mean",
            **fixed,
        )
        self.is_past = self.add_weight(
            name="is_past", shape=(), initializer="zeros", aggregation="mean", **fixed
        )

    def start_anew(self) -> None:
        """The next step of training starts the sum over examples anew; predictions stay.

        `fit` does so by itself at each epoch. With a `momentum` there is nothing to start anew.
        """
        self._knows_epochs = True
        self._begin_epoch()

    def _begin_epoch(self):
        if self.built:
            self.is_past.assign(1.0)

    def _warn_of_no_epochs(self):
        """Once, if `train_on_batch` sums over all of its calls and nobody says what an epoch is."""
        if self.momentum is None and not self._knows_epochs:
            self._knows_epochs = True
            warnings.warn(
                f"`train_on_batch` has no epochs: {self.name!r} sums over all examples of all "
                "calls, and its variance becomes too small where they come again. Call its "
                "`start_anew()` before each epoch, or pass `momentum`.",
                stacklevel=2,
            )

    def _sampling_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def random_features(self, inputs: Tensor) -> Tensor:
        """phi(x), the random features.

        Args:
            inputs: Inputs of the layer, `(batch, ..., features)`.

        Returns:
            Tensor `(batch, ..., num_features)`, float32 also under a mixed precision policy.
        """
        inputs = floating(inputs, self._sampling_dtype())
        if not self.built:
            self.build(inputs.shape)
        return with_leading(self._phi(inputs), inputs)

    def _phi(self, inputs):
        dtype = self._sampling_dtype()
        rows = tf.cast(tf.reshape(inputs, (-1, inputs.shape[-1])), dtype)
        rows /= math.sqrt(rows.shape[-1]) if self.length_scale is None else self.length_scale
        angle = tf.matmul(rows, tf.cast(self.random_kernel, dtype))
        angle += tf.cast(self.random_bias, dtype)
        return math.sqrt(2 / self.num_features) * tf.cos(angle)

    def _mean(self, phi):
        mean = tf.matmul(phi, tf.cast(tf.convert_to_tensor(self.kernel), phi.dtype))
        return mean + tf.cast(tf.convert_to_tensor(self.bias), phi.dtype) if self.use_bias else mean

    def call(self, inputs: Tensor, training: bool = False, mask: Tensor | None = None) -> Any:
        inputs = floating(inputs, self.compute_dtype)
        self._check_loss(training)
        phi = self._phi(inputs)
        mean = self._mean(phi)
        if training:
            self._add_to_precision(tf.stop_gradient(phi), mask)
        draw = current_draw()
        if self.logits_only and training and draw is None:
            return with_leading(mean, inputs)
        root = self._root()
        variance = self._variance(phi, root)
        if draw is not None:
            logits = mean + self._drawn(phi, root, draw.seed_of(self))
        elif training:
            logits = mean
        else:
            logits = self._predictive_logits(mean, variance)
        if self.logits_only:
            return with_leading(logits, inputs)
        variance = tf.broadcast_to(variance, tf.shape(mean))
        variance = tf.ensure_shape(variance, mean.shape)
        return SNGPOutput(*(with_leading(t, inputs) for t in (logits, mean, variance)))

    def _uncertain_mean(self, inputs, training, mask):
        """Mean of the logits and its variance, `(rows, units)`, for a head that adds noise; in
        training the mean alone, and examples count. In a draw of the network, that draw and None.
        """
        phi = self._phi(floating(inputs, self.compute_dtype))
        mean, draw = self._mean(phi), current_draw()
        if training:
            self._add_to_precision(tf.stop_gradient(phi), mask)
        if draw is not None:
            return mean + self._drawn(phi, self._root(), draw.seed_of(self)), None
        if training:
            return mean, None
        variance = self.mean_field_factor / PROBIT * self._variance(phi, self._root())
        return mean, variance * tf.ones_like(mean)

    def _add_to_precision(self, phi, mask):
        count = tf.cast(tf.shape(phi)[0], phi.dtype)
        if mask is not None:
            weights = tf.cast(tf.reshape(mask, (-1, 1)), phi.dtype)
            phi, count = phi * weights, tf.reduce_sum(weights)
        # Numbers go into phi and the choice into a branch: each pass over M^2 entries takes as long
        # as a third of the product.
        precision = tf.cast(tf.convert_to_tensor(self.precision), phi.dtype)
        if self.momentum is not None:
            phi *= tf.sqrt((1 - self.momentum) / tf.maximum(count, 1))
            precision *= tf.where(count > 0, tf.cast(self.momentum, phi.dtype), 1)
        else:
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            phi = phi if replicas == 1 else phi * math.sqrt(replicas)
            precision = tf.cond(
                tf.convert_to_tensor(self.is_past) > 0,
                lambda: self.ridge * tf.eye(self.num_features, dtype=phi.dtype),
                lambda: precision,
            )
        new = precision + tf.matmul(phi, phi, transpose_a=True)
        self.precision.assign(new)
        self.is_past.assign(tf.zeros_like(self.is_past))

    def _root(self):
        """The Cholesky factor of P."""
        precision = tf.convert_to_tensor(self.precision)
        return tf.linalg.cholesky(tf.cast(precision, self._sampling_dtype()))

    def _variance(self, phi, root):
        """ridge phi^T P^-1 phi, `(rows, 1)`."""
        whitened = tf.linalg.triangular_solve(root, tf.transpose(phi))
        return self.ridge * tf.reduce_sum(tf.square(whitened), axis=0)[:, None]

    def _drawn(self, phi, root, seed):
        """phi^T (a draw of beta less its mean): the same draw for all examples and batches."""
        shape = (self.num_features, self.units)
        normals = points.normal(shape, seed=seed, dtype=phi.dtype)
        draw = tf.linalg.triangular_solve(root, normals, adjoint=True)
        return math.sqrt(self.ridge) * tf.matmul(phi, draw)

    def _predictive_logits(self, mean, variance):
        way = wanted_way() if wanted_way() in self.ways else None
        factor = {"mean": 0.0, "probit": PROBIT}.get(way, self.mean_field_factor)
        return probit(mean, factor / PROBIT * variance)

    def _widths(self):
        return [self.units] * len(SNGPOutput._fields)

    def _meanings(self):
        of_labels = self.likelihood == "bernoulli"
        return {
            "logits": OutputMeaning("logits", of_labels),
            "mean": OutputMeaning("logits", of_labels),
            "variance": OutputMeaning("variance", of_labels),
        }

    def mean_logits(self, inputs: Tensor) -> Tensor:
        inputs = tf.convert_to_tensor(inputs)
        if not self.built:
            self.build(inputs.shape)
        return with_leading(self._mean(self._phi(inputs)), inputs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update({name: getattr(self, name) for name in _ARGUMENTS})
        for name in ("kernel_initializer", "bias_initializer"):
            config[name] = keras.initializers.serialize(getattr(self, name))
        config["kernel_regularizer"] = keras.regularizers.serialize(self.kernel_regularizer)
        return config
