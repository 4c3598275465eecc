"""Base of losses of a number, whose distribution is the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor
from tfuq._predictions.families import family_named
from tfuq._predictions.family import Family, labels_like


def register(loss):
    """Registers a class with Keras beside a metric of the same name."""
    name = f"{loss.__name__}Loss"
    return keras.saving.register_keras_serializable(package="tfuq", name=name)(loss)


class FamilyLoss(keras.losses.Loss):
    """A loss of numbers `(batch, ..., units)` under parameters `(batch, ..., units * size)`.

    A subclass says the loss of each number, `_values(params, y)`.
    """

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family,
        reduction: str = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.family = family_named(family)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        # Keras makes numbers of whatever labels there are before `call` sees them.
        kinds = [getattr(part, "dtype", type(part)) for part in keras.tree.flatten(y_true)]
        if any(kind in (bool, tf.bool) for kind in kinds):
            raise ValueError(
                "Argument `y_true` must hold numbers. Received: booleans, which are classes: end "
                "the model with a head of classes, or pass y.astype('float32') if they are numbers"
            )
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Any:
        params = tf.convert_to_tensor(y_pred)
        y = labels_like(tf.convert_to_tensor(y_true), params, self.family)
        # A label that is missing trains a network into NaN. (XLA drops the check, not the NaN.)
        y = tf.debugging.check_numerics(y, "Argument `y_true` must hold finite numbers")
        return tf.reduce_mean(self._values(params, y), axis=-1)

    def _values(self, params, y):
        """The loss of each number, `(batch, ..., units)`."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "family": self.family.get_config()}
