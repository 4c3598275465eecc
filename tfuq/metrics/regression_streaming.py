"""Streaming metrics of predicted numbers, of the parameters that a head returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfuq._arguments import ArrayLike, Tensor, check_choice, check_integer, register, shown
from tfuq._math import intervals
from tfuq._math.rankings import squashed_index
from tfuq._math.risk_coverage import loss_table, selective_area
from tfuq._predictions.families import checked_levels, family_named
from tfuq._predictions.family import Family, labels_like
from tfuq.metrics._numbers import checked_level, weights_like
from tfuq.metrics.regression import ERRORS, LEVELS


class NumberMetric(keras.metrics.Metric):
    """Base of the streaming metrics of a family's parameters.

    A child says its `name` and the measure of each number, `values(params, y)`, of which it is the
    weighted mean; or `_shape`, `measure` and `compute` of other sums. Sums are kept in float64.
    """

    name = None
    _shape = (2,)
    _direction = "down"

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family = "normal",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        """Makes the metric, without any data.

        Args:
            family: Of the parameters: `head.family`, a name (`"normal"`, `"laplace"`,
                `"student_t"`, `"evidential"`), or a dict of a name and its arguments.
            name: Name in the logs; by default that of the class, in lower case.
            dtype: Dtype of the result.
        """
        super().__init__(name=type(self).name if name is None else name, dtype=dtype)
        self._family = family_named(family)
        self.family = family.get_config() if isinstance(family, Family) else family
        self.sums = self.add_weight(
            shape=self._shape, initializer="zeros", dtype="float64", name="sums"
        )

    def values(self, params: Any, y: Any) -> Any:
        """The measure of each number, `(batch, ..., units)`."""
        raise NotImplementedError

    def measure(self, params: Any, y: Any, weight: Any) -> Any:
        """Sums over a batch, float64, of the shape `_shape`."""
        return ops.stack([_total(weight, self.values(params, y)), _total(weight, None)])

    def compute(self, sums: Any) -> Any:
        """The metric, from the sums over all batches."""
        return sums[0] / sums[1]

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: ArrayLike | None = None
    ) -> None:
        """Adds a batch. A Keras mask on `y_pred` is a weight of 0 or 1.

        Args:
            y_true: Labels `(batch, ..., units)`, or `(batch, ...)` for one unit.
            y_pred: Parameters `(batch, ..., units * size)`, what the head returns.
            sample_weight: Weights `(batch,)`, or with more of the leading axes.

        Raises:
            ValueError: If shapes do not fit together.
        """
        mask = getattr(y_pred, "_keras_mask", None)
        dtype = "float64" if self.dtype == "float64" else "float32"
        params = tf.cast(tf.convert_to_tensor(y_pred), dtype)
        y = labels_like(tf.convert_to_tensor(y_true), params, self._family)
        weight = weights_like(sample_weight, mask, y)
        self.sums.assign_add(self.measure(params, y, weight))

    def result(self) -> Any:
        """The metric of all batches, a scalar of `dtype`; NaN before any data, and after a number
        of weight that is NaN, until `reset_state`.
        """
        return ops.cast(self.compute(ops.convert_to_tensor(self.sums)), self.dtype)

    def get_config(self) -> dict[str, Any]:
        family = self.family if isinstance(self.family, str) else self._family.get_config()
        return {**super().get_config(), "family": family}


def _total(weight, values):
    """Weighted sum, float64, over all axes; what has weight 0 is left out, whatever it is."""
    weight = ops.cast(weight, "float64")
    if values is None:
        return ops.sum(weight)
    return ops.sum(ops.where(weight > 0, weight * ops.cast(values, "float64"), 0.0))


class _IntervalMetric(NumberMetric):
    """Base of metrics of the central interval of a level."""

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family = "normal",
        level: float = 0.9,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        """Makes the metric, without any data.

        Args:
            family, name, dtype: As in `NumberMetric`.
            level: Probability of the central interval.
        """
        self.level = checked_level(level)
        super().__init__(family, name, dtype)

    def ends(self, params: Any) -> Any:
        tail = (1 - self.level) / 2
        return tuple(self._family.quantile(params, q) for q in (tail, 1 - tail))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "level": self.level}


@register
class PredictionIntervalCoverage(_IntervalMetric):
    """Share of the labels in their central interval; streaming.

    The formula is that of the function `prediction_interval_coverage`.

    Args:
        family: Of the parameters, `head.family` or a name.
        level: Probability of the interval, which the share is if the model is right.
        name, dtype: As in Keras.

    Raises:
        ValueError: If the family is unknown or `level` is not in (0, 1).

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.PredictionIntervalCoverage("normal", level=0.9)
    >>> metric.update_state([[0.0], [3.0]], [[0.0, 1.0], [0.0, 1.0]])
    >>> float(metric.result())
    0.5

    See also: `tfuq.metrics.prediction_interval_coverage`, `tfuq.selective.ConformalRegressor`.
    """

    name = "prediction_interval_coverage"
    _direction = "up"

    def values(self, params: Any, y: Any) -> Any:
        lower, upper = self.ends(params)
        inside = ops.cast(intervals.is_inside(lower, upper, y), y.dtype)
        return inside + 0 * (lower + y)  # NaN where one of them is


@register
class MeanIntervalWidth(_IntervalMetric):
    """Mean width of the central interval, in the unit of the labels; streaming.

    All arguments are as for `PredictionIntervalCoverage`. Of labels only the shape is looked at.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.MeanIntervalWidth("normal", level=0.9)
    >>> metric.update_state([[0.0]], [[0.0, 1.0]])
    >>> round(float(metric.result()), 4)
    3.2897

    See also: `tfuq.metrics.mean_interval_width`, `tfuq.metrics.PredictionIntervalCoverage`.
    """

    name = "mean_interval_width"

    def values(self, params: Any, y: Any) -> Any:
        lower, upper = self.ends(params)
        return upper - lower


@register
class IntervalScore(_IntervalMetric):
    """Interval score of Winkler of the central interval; streaming.

    The formula is that of the function `interval_score`. All arguments are as for
    `PredictionIntervalCoverage`.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.IntervalScore("normal", level=0.9)
    >>> metric.update_state([[0.0]], [[0.0, 1.0]])
    >>> round(float(metric.result()), 4)
    3.2897

    See also: `tfuq.metrics.interval_score`, `tfuq.metrics.PredictionIntervalCoverage`.
    """

    name = "interval_score"

    def values(self, params: Any, y: Any) -> Any:
        return intervals.interval_score(*self.ends(params), y, 1 - self.level, ops)


@register
class CRPS(NumberMetric):
    """Continuous ranked probability score, in the unit of the labels; streaming.

    The formula is that of the function `crps`.

    Args:
        family: Of the parameters, `head.family` or a name.
        name, dtype: As in Keras.

    Raises:
        ValueError: If the family is unknown.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.CRPS("normal")
    >>> metric.update_state([[0.0]], [[0.0, 1.0]])
    >>> round(float(metric.result()), 4)
    0.2337

    See also: `tfuq.metrics.crps`, `tfuq.losses.CRPS`.
    """

    name = "crps"

    def values(self, params: Any, y: Any) -> Any:
        return self._family.crps(params, y)


@register
class NumberNegativeLogLikelihood(NumberMetric):
    """Mean negative log-likelihood of numbers, in nats; streaming.

    The formula is that of the function `number_negative_log_likelihood`. Of a head with random
    weights it is that of its prediction, not the bound that it is trained with.

    Args:
        family: Of the parameters, `head.family` or a name; quantiles have no density.
        name, dtype: As in Keras.

    Raises:
        ValueError: If the family is unknown or has no density.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.NumberNegativeLogLikelihood("normal")
    >>> metric.update_state([[0.0]], [[0.0, 1.0]])
    >>> round(float(metric.result()), 4)
    0.9189

    See also: `tfuq.metrics.number_negative_log_likelihood`, `tfuq.losses.NegativeLogLikelihood`.
    """

    name = "number_negative_log_likelihood"

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family = "normal",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(family, name, dtype)
        if not self._family.has_density:
            raise ValueError(
                "Argument `family` must have a density: of quantiles take `CRPS`. "
                f"Received: family={shown(family)}"
            )

    def values(self, params: Any, y: Any) -> Any:
        return -self._family.log_prob(params, y)


@register
class Sharpness(NumberMetric):
    """Root of the mean predicted variance, in the unit of the labels; streaming.

    The formula is that of the function `sharpness`. All arguments are as for `CRPS`.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.Sharpness("normal")
    >>> metric.update_state([[0.0]], [[0.0, 3.0]])
    >>> float(metric.result())
    3.0

    See also: `tfuq.metrics.sharpness`, `tfuq.metrics.MeanIntervalWidth`.
    """

    name = "sharpness"

    def values(self, params: Any, y: Any) -> Any:
        return self._family.variance(params)

    def compute(self, sums: Any) -> Any:
        return ops.sqrt(super().compute(sums))


@register
class QuantileCalibrationError(NumberMetric):
    """Mean distance of levels and the shares of labels below their quantiles; streaming.

    The formula is that of the function `quantile_calibration_error`.

    Args:
        family: Of the parameters, `head.family` or a name.
        levels: Probabilities that increase; by default those of learned quantiles, else 0.05, 0.1,
            ..., 0.95.
        name, dtype: As in Keras.

    Raises:
        ValueError: If the family is unknown, or `levels` are none.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.QuantileCalibrationError("normal", levels=[0.25, 0.75])
    >>> metric.update_state([[0.0], [9.0]], [[0.0, 1.0], [0.0, 1.0]])
    >>> float(metric.result())
    0.25

    See also: `tfuq.metrics.quantile_calibration_error`.
    """

    name = "quantile_calibration_error"

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family = "normal",
        levels: Sequence[float] | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.levels = None if levels is None else list(checked_levels(levels))
        self._asked = self.levels or list(getattr(family_named(family), "levels", LEVELS))
        super().__init__(family, name, dtype)

    @property
    def _shape(self):
        return (len(self._asked) + 1,)

    def measure(self, params: Any, y: Any, weight: Any) -> Any:
        family = self._family
        reached = family.cdf(params, y) if family.has_density else None
        sums = []
        for level in self._asked:
            below = reached <= level if family.has_density else y <= family.quantile(params, level)
            known = 0 * (family.mean(params) + y)
            sums.append(_total(weight, ops.cast(below, y.dtype) + known))
        return ops.stack([*sums, _total(weight, None)])

    def compute(self, sums: Any) -> Any:
        return ops.mean(ops.abs(sums[:-1] / sums[-1] - np.array(self._asked)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "levels": self.levels}


@register
class AUSE(NumberMetric):
    """Area under the sparsification error by standard deviation, 0 is perfect; streaming.

    The formula is that of the function `ause`, for standard deviations and errors that are equal if
    they share a bin, by default what differs by less than 0.9 %.

    Args:
        family: Of the parameters, `head.family` or a name.
        error: `"absolute"` or `"squared"`.
        n_bins: Number of bins, at least 2; the state has four times as many numbers.
        name, dtype: As in Keras.

    Raises:
        ValueError: If the family is unknown, `error` neither of the two, or `n_bins` below 2.

    Example:

    >>> import tfuq
    >>> metric = tfuq.metrics.AUSE("normal")
    >>> metric.update_state([[0.0], [0.0], [0.0]], [[0.0, 0.1], [1.0, 0.2], [2.0, 0.3]])
    >>> float(metric.result())
    0.0

    See also: `tfuq.metrics.ause`, `tfuq.metrics.AURC`.
    """

    name = "ause"

    def __init__(
        self,
        family: str | Mapping[str, Any] | Family = "normal",
        error: str = "absolute",
        n_bins: int = 8192,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        check_choice("error", error, ERRORS)
        check_integer("n_bins", n_bins, 2)
        self.error = error
        self.n_bins = int(n_bins)
        super().__init__(family, name, dtype)

    @property
    def _shape(self):
        return 2, self.n_bins, 2

    def measure(self, params: Any, y: Any, weight: Any) -> Any:
        errors = ops.abs(y - self._family.mean(params))
        errors = ops.square(errors) if self.error == "squared" else errors
        doubt = ops.sqrt(self._family.variance(params))
        flat = [ops.reshape(part, (-1,)) for part in (doubt, errors, weight)]
        known = ops.isfinite(flat[0] + flat[1])
        loss = ops.where(flat[2] > 0, ops.where(known, flat[1], np.nan), 0.0)
        tables = []
        for rank in flat[:2]:
            index = squashed_index(ops.where(known, rank, 0.0), self.n_bins)
            tables.append(loss_table(index, self.n_bins, flat[2], loss))
        return ops.stack(tables)

    def compute(self, sums: Any) -> Any:
        by_doubt, by_error = (selective_area(sums[i]) for i in (0, 1))
        mean = ops.sum(sums[0, :, 1]) / ops.sum(sums[0, :, 0])
        area = ops.where(mean > 0, (by_doubt - by_error) / ops.where(mean > 0, mean, 1.0), mean)
        return ops.where(ops.isnan(area), area, ops.maximum(area, 0.0))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "error": self.error, "n_bins": self.n_bins}
