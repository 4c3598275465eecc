"""Metric base class."""

import keras
import numpy as np
from keras import ops

from tfuq._arguments import check_flags
from tfuq._predictions.examples import from_tensors


class PredictionMetric(keras.metrics.Metric):
    """Base of the streaming metrics of `Examples`.

    A child names two things: `measure(examples)`, a tensor of sums, of one shape for any batch,
    and `compute(sums)`, the scalar that the total of these sums stands for. The total is kept in
    float64, so that counts stay exact past 2^24. As soon as one prediction cannot be judged (NaN,
    not a probability, a label that is no class, a negative weight) the result is NaN until
    `reset_state`, because a graph cannot raise. A Keras mask on `y_pred` is a weight of 0 or 1.

    Args:
        shape: Shape of the sums; None to learn it from the first batch.
        from_logits: Whether predictions are logits.
        multi_label: Whether the last axis holds labels, each a binary prediction.
        name: Name in the logs.
        dtype: Dtype of the result and, if it is float64, of the probabilities; these are float32
            otherwise.
    """

    _direction = "down"  # what Keras' monitors read when told mode="auto": less is better

    def __init__(self, shape, *, from_logits, multi_label, name, dtype):
        super().__init__(name=name, dtype=dtype)
        check_flags(from_logits=from_logits, multi_label=multi_label)
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.faulty = self.add_weight(shape=(), initializer="zeros", dtype="float64", name="faulty")
        self.sums = None
        if shape is not None:
            self._add_sums(shape)

    def _add_sums(self, shape):
        self.sums = self.add_weight(shape=shape, initializer="zeros", dtype="float64", name="sums")

    def measure(self, examples):
        """Sums over the examples, float64."""
        raise NotImplementedError

    def compute(self, sums):
        """The metric, from the sums over all examples."""
        raise NotImplementedError

    def update_state(self, y_true, y_pred, sample_weight=None):
        examples, faulty = from_tensors(
            y_true,
            y_pred,
            sample_weight,
            getattr(y_pred, "_keras_mask", None),
            from_logits=self.from_logits,
            multi_label=self.multi_label,
            dtype="float64" if self.dtype == "float64" else "float32",
        )
        sums = self.measure(examples)
        if self.sums is None:
            self._add_sums(sums.shape)
        self.sums.assign_add(sums)
        self.faulty.assign_add(faulty)

    def result(self):
        if self.sums is None:
            return ops.cast(np.nan, self.dtype)
        value = ops.where(self.faulty > 0, np.nan, self.compute(ops.convert_to_tensor(self.sums)))
        return ops.cast(value, self.dtype)

    def get_config(self):
        flags = {"from_logits": self.from_logits, "multi_label": self.multi_label}
        return {**super().get_config(), **flags}
