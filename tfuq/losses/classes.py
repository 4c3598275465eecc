"""Losses of classifiers that are to know what they do not know."""

from __future__ import annotations

import contextvars
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import Tensor, check_positive, is_finite, shown
from tfuq.losses.base import register

OUTLIER = -1  # the sparse label of what is no class
_MASK = contextvars.ContextVar("mask", default=None)  # of the logits of the call, of each thread


def unit_logits(logits, temperature):
    """z / (temperature ||z||), with a gradient of 0 where z is 0."""
    squares = tf.reduce_sum(logits**2, axis=-1, keepdims=True)
    return logits * tf.math.rsqrt(tf.maximum(squares, 1e-14)) / temperature


def crossentropy(labels, logits):
    """-sum_c y_c log softmax(z)_c."""
    return -tf.reduce_sum(labels * tf.nn.log_softmax(logits), axis=-1)


def uniform_crossentropy(logits):
    """-1/C sum_c log softmax(z)_c, the crossentropy with the uniform distribution."""
    return tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)


def own_mean_weights(is_counted, mask=None):
    """Weights by which the mean over all rows is that over the rows that count; 0 of the others.

    With a mask of the rows "all" are those that it lets through, over which Keras takes the mean.
    """
    counted = tf.cast(is_counted, "float32")
    if mask is None:
        return tf.math.divide_no_nan(counted, tf.reduce_mean(counted))
    mask = tf.cast(mask, "float32")
    share = tf.math.divide_no_nan(tf.reduce_sum(counted * mask), tf.reduce_sum(mask))
    return tf.math.divide_no_nan(counted * mask, share)


class ClassLoss(keras.losses.Loss):
    """Base of losses of logits `(batch, ..., classes)` that exclude one another.

    A child names `_values(labels, is_outlier, logits)`, the loss of each row, and says in
    `_takes_outliers` whether rows may be of no class.
    """

    from_logits = True  # which says what the outputs of a model are that is compiled with it
    exclusive = True
    _takes_outliers = False

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if getattr(y_pred, "_keras_logits", None) is not None:
            raise ValueError(
                f"Argument `y_pred` must be logits for {type(self).__name__}: end the model in a "
                "layer without an activation. Received: the result of a soft-max or sigmoid"
            )
        token = _MASK.set(getattr(y_pred, "_keras_mask", None))
        try:
            return super().__call__(y_true, y_pred, sample_weight)
        finally:
            _MASK.reset(token)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Any:
        logits = tf.convert_to_tensor(y_pred)
        labels, is_outlier, is_known = self._labels(tf.convert_to_tensor(y_true), logits)
        losses = self._values(labels, is_outlier, logits)
        # XLA drops the check of the labels, but not the NaN.
        return tf.where(is_known, losses, tf.cast(np.nan, losses.dtype))

    def _labels(self, y, logits):
        """One-hot labels, which rows are of no class, and which are of either."""
        count = logits.shape[-1]
        if count is None or count < 2:
            raise ValueError(
                "Argument `y_pred` must hold logits (batch, ..., classes) of two or more classes. "
                f"Received: y_pred of shape {logits.shape}"
            )
        if y.shape.rank == logits.shape.rank and y.shape[-1] == 1:
            y = tf.squeeze(y, -1)
        y = tf.cast(y, logits.dtype)
        is_sparse = y.shape.rank == logits.shape.rank - 1
        expected = logits.shape[:-1] if is_sparse else logits.shape
        if not expected.is_compatible_with(y.shape):
            raise ValueError(
                f"Argument `y_true` must hold a class for each row, of shape {logits.shape[:-1]}, "
                f"or be one-hot, {logits.shape}. Received: y_true of shape {y.shape}"
            )
        if is_sparse:
            is_outlier = tf.equal(y, OUTLIER)
            is_class = (y >= 0) & (y < count) & tf.equal(y, tf.floor(y))
            labels = tf.one_hot(tf.cast(tf.where(is_class, y, 0), "int32"), count)
            labels *= tf.cast(is_class, labels.dtype)[..., None]
        else:
            sums = tf.reduce_sum(y, -1)
            is_outlier = tf.reduce_all(tf.equal(y, 0), -1)
            is_class = (tf.abs(sums - 1) < 1e-3) & tf.reduce_all(y >= 0, -1)
            labels = y
        is_known = is_class | is_outlier if self._takes_outliers else is_class
        beside = ", or -1 (of one-hot labels a row of zeros) of an outlier"
        check = tf.debugging.assert_equal(
            tf.reduce_all(is_known),
            True,
            f"Argument `y_true` must hold classes from 0 to {count - 1}"
            f"{beside if self._takes_outliers else ', or rows of probabilities that sum to 1'}.",
        )
        with tf.control_dependencies([check] if check is not None else []):
            return tf.identity(labels), is_outlier, is_known

    def _values(self, labels, is_outlier, logits):
        raise NotImplementedError


@register
class LogitNorm(ClassLoss):
    """Crossentropy of logits of one length, so that confidence does not come from their size.

    Training by crossentropy makes logits longer and longer, also of what the network does not know.
    Here the length has no influence on the loss. Predictions are made from the logits as they are.

    Formula: `-log softmax(z / (temperature ||z||))_y`   (Wei et al. 2022).

    Args:
        temperature: Above 0. Of C classes the loss is at least
            `log(1 + (C - 1) exp(-sqrt(C / (C - 1)) / temperature))`.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Call arguments:
        y_true: Classes `(batch, ...)`, or one-hot `(batch, ..., classes)`.
        y_pred: Logits `(batch, ..., classes)`.

    Raises:
        ValueError: If `temperature` is not above 0; in the call, if shapes do not fit or the model
            ends in a soft-max. Labels that are no classes are an `InvalidArgumentError`, where XLA
            compiles the step a loss of NaN.

    Example:

    >>> from tfuq.losses import LogitNorm
    >>> loss = LogitNorm(temperature=1.0)
    >>> print(f"{loss([0], [[3.0, 4.0]]).numpy():.4f} {loss([0], [[30.0, 40.0]]).numpy():.4f}")
    0.7981 0.7981

    References:
        - Wei, Xie, Cheng, Feng, An and Li, "Mitigating Neural Network Overconfidence with Logit
          Normalization", ICML 2022.

    See also: `tfuq.losses.OutlierExposure`, `tfuq.ood.MaxSoftmax`.
    """

    def __init__(
        self,
        temperature: float = 0.04,
        reduction: str = "sum_over_batch_size",
        name: str = "logit_norm",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def _values(self, labels, is_outlier, logits):
        return crossentropy(labels, unit_logits(logits, self.temperature))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}


@register
class OutlierExposure(ClassLoss):
    """Crossentropy of examples, and of outliers that with a prediction that knows nothing.

    Outliers stand in the same batches, with the label -1 (of one-hot labels a row of zeros): images
    of anything that is none of the classes. The network learns to be uncertain of them, and is so
    of others that are like neither.

    Formula:

    ```
    loss = mean over examples of -log p_y + weight mean over outliers of -1/C sum_c log p_c
                                                                 (Hendrycks et al. 2019)
    ```

    with p = softmax(z). Each mean is over its own rows of a batch (of a replica), however many they
    are, without those that a mask of the model leaves out; `reduction="none"` gives rows whose mean
    over the batch is the loss. A row of weight 0 counts with a loss of 0, as in Keras. Metrics
    count outliers, too: judge classes on data without.

    Args:
        weight: Of the outliers, at least 0; 0.5 in the paper.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Call arguments:
        y_true: Classes `(batch, ...)`, or one-hot `(batch, ..., classes)`; -1 or zeros of outliers.
        y_pred: Logits `(batch, ..., classes)`.

    Raises:
        ValueError: If `weight` is negative; else as `LogitNorm`.

    Example:

    >>> from tfuq.losses import OutlierExposure
    >>> print(f"{OutlierExposure(0.5)([0, -1], [[2.0, 0.0], [2.0, 0.0]]).numpy():.4f}")
    0.6904

    References:
        - Hendrycks, Mazeika and Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR
          2019.

    See also: `tfuq.losses.EnergyMargin`, `tfuq.losses.LogitNorm`, `tfuq.ood.MaxSoftmax`.
    """

    _takes_outliers = True

    def __init__(
        self,
        weight: float = 0.5,
        reduction: str = "sum_over_batch_size",
        name: str = "outlier_exposure",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        _check_weight(weight)
        self.weight = weight

    def _values(self, labels, is_outlier, logits):
        own, other = (own_mean_weights(rows, _MASK.get()) for rows in (~is_outlier, is_outlier))
        outside = self.weight * uniform_crossentropy(logits)
        return own * crossentropy(labels, logits) + other * outside

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight}


@register
class EnergyMargin(ClassLoss):
    """Crossentropy, and energies of examples below one margin, of outliers above another.

    It trains the score of `tfuq.ood.Energy`. Outliers stand in the same batches, as for
    `OutlierExposure`.

    Formula:

    ```
    loss = mean over examples of -log p_y + weight max(0, E - margin_in)^2
         + mean over outliers of            weight max(0, margin_out - E)^2    (Liu et al. 2020)
    ```

    with p = softmax(z) and E = -log sum_c exp(z_c). The means are as for `OutlierExposure`.

    Args:
        margin_in: What the energy of examples is to be below.
        margin_out: What that of outliers is to be above; larger than `margin_in`.
        weight: Of both margins, at least 0.
        reduction, name, dtype: As in `keras.losses.Loss`.

    Call arguments:
        y_true: Classes `(batch, ...)`, or one-hot `(batch, ..., classes)`; -1 or zeros of outliers.
        y_pred: Logits `(batch, ..., classes)`.

    Raises:
        ValueError: If `margin_in` is not below `margin_out`, or `weight` is negative; else as
            `LogitNorm`.

    Example:

    >>> from tfuq.losses import EnergyMargin
    >>> loss = EnergyMargin(margin_in=-3.0, margin_out=-1.0)
    >>> print(f"{loss([0, -1], [[2.0, 0.0], [2.0, 0.0]]).numpy():.4f}")
    0.3302

    References:
        - Liu, Wang, Owens and Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020.

    See also: `tfuq.losses.OutlierExposure`, `tfuq.ood.Energy`.
    """

    _takes_outliers = True

    def __init__(
        self,
        margin_in: float = -25.0,
        margin_out: float = -7.0,
        weight: float = 0.1,
        reduction: str = "sum_over_batch_size",
        name: str = "energy_margin",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not (is_finite(margin_in) and is_finite(margin_out) and margin_in < margin_out):
            raise ValueError(
                "Argument `margin_in` must be a finite number below `margin_out`: known inputs "
                f"have lower energies. Received: margin_in={shown(margin_in)}, "
                f"margin_out={shown(margin_out)}"
            )
        _check_weight(weight)
        self.margin_in = margin_in
        self.margin_out = margin_out
        self.weight = weight

    def _values(self, labels, is_outlier, logits):
        energy = -tf.reduce_logsumexp(logits, axis=-1)
        above, below = tf.nn.relu(energy - self.margin_in), tf.nn.relu(self.margin_out - energy)
        inside = crossentropy(labels, logits) + self.weight * above**2
        outside = self.weight * below**2
        own, other = (own_mean_weights(rows, _MASK.get()) for rows in (~is_outlier, is_outlier))
        return own * inside + other * outside

    def get_config(self) -> dict[str, Any]:
        own = {"margin_in": self.margin_in, "margin_out": self.margin_out, "weight": self.weight}
        return {**super().get_config(), **own}


def _check_weight(weight):
    if not is_finite(weight) or weight < 0:
        raise ValueError(
            "Argument `weight` must be a finite number of at least 0. "
            f"Received: weight={shown(weight)}"
        )
