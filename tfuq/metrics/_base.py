"""Base classes of the streaming metrics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfuq._arguments import ArrayLike, Tensor, check_flags, check_integer
from tfuq._predictions.examples import MOST_DEMANDS, from_tensors


class PredictionMetric(keras.metrics.Metric):
    """Base of the streaming metrics of `Examples`.

    A child names its `name`; `_shape`, the shape of its sums, unless the first batch tells it;
    `measure(examples)`, a tensor of sums, of one shape for any batch; and `compute(sums)`, what the
    total of these sums stands for. The total is kept in float64, so that counts stay exact past
    2^24. What all metrics share is documented here: at `__init__`, `update_state` and `result`.
    """

    name = None
    _shape = None
    _direction = "down"  # what Keras' monitors read when told mode="auto": less is better

    def __init__(
        self,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        """Makes the metric, without any data.

        Args:
            from_logits: Whether predictions are logits, not probabilities.
            multi_label: Whether each entry of the last axis is a binary prediction of its own.
            name: Name in the logs; by default that of the class, in lower case.
            dtype: Dtype of the result. Probabilities are float64 if it is, else float32; sums are
                float64.
        """
        check_flags(from_logits=from_logits, multi_label=multi_label)
        super().__init__(name=type(self).name if name is None else name, dtype=dtype)
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.faulty = self._add_counts((), "faulty")
        self.misread = self._add_counts((MOST_DEMANDS,), "misread")
        self._demands = None
        self.sums = None
        if self._shape is not None:
            self._add_sums(self._shape)

    def _add_sums(self, shape):
        self.sums = self._add_counts(shape, "sums")

    def _add_counts(self, shape, name):
        return self.add_weight(shape=shape, initializer="zeros", dtype="float64", name=name)

    def measure(self, examples: Any) -> Any:
        """Sums over the examples, float64."""
        raise NotImplementedError

    def compute(self, sums: Any) -> Any:
        """The metric, from the sums over all examples."""
        raise NotImplementedError

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: ArrayLike | None = None
    ) -> None:
        """Adds a batch. A Keras mask on `y_pred` is a weight of 0 or 1.

        Args:
            y_true: Labels, sparse `(batch, ...)` or one-hot.
            y_pred: Predictions `(batch, ..., classes)`, binary `(batch,)` or `(batch, ..., 1)`,
                multi-label `(batch, ..., labels)`.
            sample_weight: Weights `(batch,)`, or with more of the leading axes.

        Raises:
            ValueError: If shapes do not fit together; if predictions are no probabilities, for
                instance logits without `from_logits`; if labels are no classes, or weights
                negative. In a graph the latter are a `tf.errors.InvalidArgumentError` when it runs;
                under XLA, which cannot raise, `result` raises instead, at the end of the epoch.
        """
        mask = getattr(y_pred, "_keras_mask", None)
        sums = self.measure(self._read(y_true, y_pred, sample_weight, mask))
        if self.sums is None:
            self._add_sums(sums.shape)
        self.sums.assign_add(sums)

    def _read(self, y_true, y_pred, *weights):
        """`Examples` of a batch; what was dropped of it is counted."""
        examples, dropped = from_tensors(
            y_true,
            y_pred,
            *weights,
            from_logits=self.from_logits,
            multi_label=self.multi_label,
            dtype="float64" if self.dtype == "float64" else "float32",
        )
        self._demands = dropped.demands
        self.faulty.assign_add(dropped.faulty)
        self.misread.assign_add(dropped.misread)
        return examples

    def _check_read(self):
        """Raises what a graph under XLA could not raise."""
        counts = np.asarray(self.misread)
        if counts.any():
            demands = self._demands or ("Argument `y_pred` must hold what the flags say.",)
            broken = [said for said, count in zip(demands, counts, strict=False) if count]
            raise ValueError(
                f"{' '.join(broken or demands)} Received: {counts.sum():.0f} examples for which "
                f"that is not so, in the metric {self.name!r} since `reset_state`"
            )

    def result(self) -> Any:
        """The metric of all batches, a scalar of `dtype`.

        NaN before any data; and from one prediction on that is NaN or infinite, or a label or
        weight that is, until `reset_state`: so does the loss of a model that diverges.

        Raises:
            ValueError: If an earlier batch was refused where nothing could be raised.
        """
        if tf.executing_eagerly():
            self._check_read()
        if self.sums is None:
            return ops.cast(np.nan, self.dtype)
        value = ops.where(self.faulty > 0, np.nan, self.compute(ops.convert_to_tensor(self.sums)))
        return ops.cast(value, self.dtype)

    def get_config(self) -> dict[str, Any]:
        flags = {"from_logits": self.from_logits, "multi_label": self.multi_label}
        return {**super().get_config(), **flags}


class BinnedMetric(PredictionMetric):
    """Base of the metrics that count in `n_bins` bins."""

    _least_bins = 1

    def __init__(
        self,
        n_bins: int = 15,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        """Makes the metric, without any data.

        Args:
            n_bins: Number of bins.
            from_logits: Whether predictions are logits, not probabilities.
            multi_label: Whether each entry of the last axis is a binary prediction of its own.
            name: Name in the logs; by default that of the class, in lower case.
            dtype: Dtype of the result. Probabilities are float64 if it is, else float32; sums are
                float64.
        """
        check_integer("n_bins", n_bins, self._least_bins)
        self.n_bins = int(n_bins)  # before the state, whose shape it may be
        super().__init__(from_logits, multi_label, name, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"n_bins": self.n_bins, **super().get_config()}
