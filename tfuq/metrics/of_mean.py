"""Metrics of Keras of the mean that a head of numbers says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import ArrayLike, Self, Tensor, register, shown
from tfuq._predictions.families import family_named
from tfuq._predictions.family import Family, labels_like


@register
class OfMean(keras.metrics.Metric):
    """A metric of Keras of the mean that a head says.

    What is compiled beside the loss of a head gets all parameters; this hands on the mean.

    Args:
        metric: A metric of Keras, a function or a name such as `"mae"`.
        family: Of the parameters, `head.family` or a name.
        name: Name in the logs; by default that of `metric`.
        dtype: Dtype of the result.

    Raises:
        ValueError: If `metric` or `family` are unknown.

    Example:

    ```python
    import keras
    import tfuq

    head = tfuq.layers.NormalDense(1)
    model = keras.Sequential([keras.Input((8,)), head])
    mae = tfuq.metrics.OfMean("mae", head.family)
    model.compile("adam", head.negative_log_likelihood(), metrics=[mae])
    ```

    See also: `tfuq.layers.NormalDense`.
    """

    def __init__(
        self,
        metric: Any = "mean_absolute_error",
        family: str | Mapping[str, Any] | Family = "normal",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        self._family = family_named(family)
        inner = _metric_of(metric)
        own = metric if isinstance(metric, str) else inner.name
        super().__init__(name=own if name is None else name, dtype=dtype)
        self.metric = metric
        self.inner = inner
        self.family = family.get_config() if isinstance(family, Family) else family
        self._direction = getattr(inner, "_direction", None)

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: ArrayLike | None = None
    ) -> None:
        """Adds a batch: arguments as at `NumberMetric.update_state`."""
        mask = getattr(y_pred, "_keras_mask", None)
        params = tf.convert_to_tensor(y_pred)
        if params.dtype != tf.float64:  # labels are not rounded to half precision
            params = tf.cast(params, "float32")
        y = labels_like(tf.convert_to_tensor(y_true), params, self._family)
        mean = self._family.mean(params)
        if mask is not None:
            mean._keras_mask = mask
        return self.inner.update_state(y, mean, sample_weight)

    def result(self) -> Any:
        """What the metric says of the means."""
        return self.inner.result()

    def reset_state(self) -> None:
        """Forgets all data."""
        self.inner.reset_state()

    def get_config(self) -> dict[str, Any]:
        metric = self.metric
        if not isinstance(metric, str):
            metric = keras.saving.serialize_keras_object(metric)
        family = self.family if isinstance(self.family, str) else self._family.get_config()
        return {**super().get_config(), "metric": metric, "family": family}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        metric = config["metric"]
        if isinstance(metric, dict):
            metric = keras.saving.deserialize_keras_object(metric)
        return cls(**{**config, "metric": metric})


def _metric_of(metric):
    """A metric of its name, of a function, or as it is."""
    try:
        found = keras.metrics.get(metric)
    except ValueError as error:
        raise ValueError(
            f"Argument `metric` must be a metric of Keras. Received: metric={shown(metric)}"
        ) from error
    if isinstance(found, keras.metrics.Metric):
        return found
    if not callable(found):
        raise ValueError(
            f"Argument `metric` must be a metric of Keras. Received: metric={shown(metric)}"
        )
    return keras.metrics.MeanMetricWrapper(found, name=getattr(found, "__name__", "metric"))
