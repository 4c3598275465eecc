"""Uncertainty of predicted numbers: means, the parts of their variance, intervals, quantiles."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, check_integer, is_finite, shown, to_float64
from tfuq._predictions.families import family_named
from tfuq._predictions.family import Family, bisected, labels_like

BLOCK = 2**18  # parameters at a time
LEVEL = 0.9  # of intervals where nobody says another
FAR = 100  # standard deviations: a half is within 0.7 if they are right
LOOKED_AT = 10_000  # examples, for a warning
WHY_NO_NOISE = (
    "no aleatoric part: the network was trained to predict numbers, not their noise; end it with "
    "a head such as tfuq.layers.NormalDense"
)


class Interval(NamedTuple):
    """Both ends of intervals, arrays `(n, ..., units)`.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import RegressionUncertainty
    >>> found = RegressionUncertainty(np.array([[[0.0, 1.0]]]), "normal")
    >>> lower, upper = found.interval(0.9)
    >>> print(lower.round(3), upper.round(3))
    [[-1.645]] [[1.645]]

    See also: `tfuq.predictive.RegressionUncertainty`.
    """

    lower: np.ndarray
    upper: np.ndarray


def moments(family, stack):
    """Mean, aleatoric and epistemic variance `(n, ..., units)` of parameters `(samples, n, ...)`.

    Law of total variance: Var y = E Var[y | w] + Var E[y | w].
    """
    means = family.mean(stack)
    mean = tf.reduce_mean(means, axis=0)
    between = tf.reduce_mean(tf.square(means - mean), axis=0)
    within = tf.reduce_mean(family.epistemic_variance(stack), axis=0)
    return mean, tf.reduce_mean(family.aleatoric_variance(stack), axis=0), between + within


def mixture_cdf(family, stack, y):
    """P(number <= y) under draws with the same weight, `(n, ..., units)`."""
    y = tf.broadcast_to(y, tf.concat([tf.shape(stack)[:1], tf.shape(y)], axis=0))
    return tf.reduce_mean(family.cdf(stack, y), axis=0)


def mixture_quantile(family, stack, level):
    """The quantile of draws with the same weight; of learned quantiles their mean."""
    each = family.quantile(stack, level)
    if stack.shape[0] == 1 or not family.has_density:
        return tf.reduce_mean(each, axis=0)
    low, high = tf.reduce_min(each, axis=0), tf.reduce_max(each, axis=0)

    def cdf(y):  # of points, which stand behind the draws
        return tf.reduce_mean(family.cdf(stack[:, None], y[None]), axis=0)

    return bisected(cdf, level, low, high)


class RegressionUncertainty:
    """Predicted numbers and their uncertainty: float64 arrays `(n, ..., units)`.

    With several draws of the network, a number follows the mixture of their distributions, with
    equal weights. Its variance has two parts (law of total variance):

    ```
    aleatoric_std^2 = mean over the draws of the variance of the noise
    epistemic_std^2 = variance over the draws of the mean, and what heads know of it themselves
    ```

    Rows that are not finite are unknown: NaN everywhere.

    Args:
        params: Parameters of a stack of predictions, `(samples, n, ..., units * size)`.
        family: Their family: a name, or a configuration.
        note: Text that says why a part is missing.

    Raises:
        ValueError: If the family is unknown, `params` have another shape, or are out of range: a
            scale below 0, quantiles that cross.

    Example:

    >>> import numpy as np
    >>> from tfuq.predictive import RegressionUncertainty
    >>> found = RegressionUncertainty(np.array([[[0.0, 1.0]], [[2.0, 1.0]]]), "normal")
    >>> print(found.mean, found.aleatoric_std, found.epistemic_std)
    [[1.]] [[1.]] [[1.]]

    See also: `tfuq.predictive.predict_uncertainty`, `tfuq.selective.RegressionRule`,
    `tfuq.selective.ConformalRegressor`.
    """

    def __init__(
        self, params: ArrayLike, family: str | Mapping[str, Any] | Family, note: str = ""
    ) -> None:
        self.family = family_named(family)
        self.params = np.asarray(params)
        if self.params.ndim < 2 or not self.params.size or self.params.dtype.kind not in "fV":
            raise ValueError(
                "Argument `params` must be floating point numbers of shape (samples, n, ..., "
                f"parameters) and not be empty. Received: params={shown(self.params)}"
            )
        self.units = self.family.units(self.params.shape[-1])
        self.family.check_range(self.params)
        self.note = note

    def __len__(self):
        return self.params.shape[1]

    @property
    def num_samples(self) -> int:
        """How many draws of the network there are."""
        return len(self.params)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers, `(n, ..., units)`."""
        return (*self.params.shape[1:-1], self.units)

    def __getitem__(self, rows):
        """The uncertainty of some examples: a slice, a mask or indices of the first axis."""
        if isinstance(rows, (int, np.integer)):
            rows = slice(rows, rows + 1 or None)
        return type(self)(self.params[:, rows], self.family, self.note)

    # --- Moments ----------------------------------------------------------------------------------

    @functools.cached_property
    def _moments(self):
        """Mean and both variances, `(3, n, ..., units)`."""

        def parts(params):
            return tf.stack(moments(self.family, params), axis=-1)

        return np.moveaxis(self._blocks(parts), -1, 0)

    def _blocks(self, function, *arrays):
        """`function` of some rows of the parameters and arrays at a time, in float64."""
        row = max(1, int(np.prod(self.params.shape[2:])) * len(self.params))
        step = max(1, BLOCK // row)
        parts = []
        for start in range(0, len(self), step):
            rows = slice(start, start + step)
            params = tf.constant(self.params[:, rows].astype("float64"))
            parts.append(function(params, *(tf.constant(a[rows]) for a in arrays)).numpy())
        return np.concatenate(parts)

    @property
    def mean(self) -> np.ndarray:
        """E[y], `(n, ..., units)`; the median of quantiles."""
        return self._moments[0]

    @property
    def aleatoric_std(self) -> np.ndarray:
        """Standard deviation of the noise in the labels; 0 where the network says none (`note`)."""
        return np.sqrt(self._moments[1])

    @property
    def epistemic_std(self) -> np.ndarray:
        """Standard deviation of the mean over networks; 0 of a single network (`note`)."""
        return np.sqrt(self._moments[2])

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of y: both parts, added as variances."""
        return np.sqrt(self._moments[1] + self._moments[2])

    # --- The distribution -------------------------------------------------------------------------

    def quantile(self, level: float) -> np.ndarray:
        """The number that y does not exceed with the probability `level`, `(n, ..., units)`.

        Of several draws that of their mixture, to 1e-12 of the distance of their quantiles; of
        quantiles that were learned the mean over the draws.

        Raises:
            ValueError: If `level` is not in (0, 1), if the family says no distribution, or, of
                quantiles, none so far out.
        """
        level = _checked_level(level)

        return self._blocks(lambda params: mixture_quantile(self.family, params, level))

    def interval(self, level: float = 0.9) -> Interval:
        """Central intervals that hold y with the probability `level`, if the model is right.

        `tfuq.selective.ConformalRegressor` makes intervals of a promise that does not depend on
        that.

        Args:
            level: Probability in (0, 1).

        Returns:
            Named tuple `(lower, upper)` of arrays `(n, ..., units)`.

        Raises:
            ValueError: As `quantile`.
        """
        tail = (1 - _checked_level(level)) / 2
        return Interval(self.quantile(tail), self.quantile(1 - tail))

    def cdf(self, y: ArrayLike) -> np.ndarray:
        """P(number <= y), `(n, ..., units)`: of labels uniform in [0, 1] if the model is right."""
        return self._of_labels(lambda params, y: mixture_cdf(self.family, params, y), y)

    def log_prob(self, y: ArrayLike) -> np.ndarray:
        """log p(y), nats, `(n, ..., units)`; of `MultivariateNormalDense` that of all numbers
        together, `(n, ..., 1)`.
        """

        def log_prob(params, y):
            stacked = tf.broadcast_to(y, (len(self.params), *y.shape))
            each = self.family.log_prob(params, stacked)
            return tf.reduce_logsumexp(each, axis=0) - np.log(len(self.params))

        return self._of_labels(log_prob, y)

    def scored(self, function: Callable[..., Any], y: ArrayLike) -> Any:
        """`function(family, stack, y)` of all examples, some at a time, as arrays of float64."""
        return self._of_labels(lambda params, y: function(self.family, params, y), y)

    def _of_labels(self, function, y):
        return self._blocks(function, self.labels(y))

    def labels(self, y: ArrayLike, name: str = "y") -> Any:
        """Labels in the shape of the numbers, float64; a missing last axis of one is added.

        Raises:
            ValueError: If `y` has another shape or is not numeric.
        """
        try:
            y = np.asarray(y, "float64")
        except (TypeError, ValueError):
            raise ValueError(
                f"Argument `{name}` must hold numbers. Received: {name}={shown(y)}"
            ) from None
        like = tf.constant(self.params[0].astype("float64"))
        return labels_like(tf.constant(y), like, self.family, name).numpy()

    def samples(self, num_samples: int = 100, seed: int = 0) -> np.ndarray:
        """Draws of y, noise included: `(num_samples, n, ..., units)`.

        Args:
            num_samples: How many. The draws of the network are gone through in turn.
            seed: Integer from which they follow.
        """
        check_integer("num_samples", num_samples, 1)
        check_integer("seed", seed, 0)
        step = max(1, BLOCK // self.params[0].size)
        parts = []
        for start in range(0, num_samples, step):
            drawn = np.arange(start, min(start + step, num_samples)) % len(self.params)
            params = tf.constant(self.params[drawn].astype("float64"))
            parts.append(self.family.sample(params, tf.constant([seed, start], "int32")).numpy())
        return np.concatenate(parts)

    def __repr__(self):
        one = "in closed form" if self.family.has_epistemic else "one network"
        draws = f"{len(self.params)} draws" if len(self.params) > 1 else one
        lines = [f"RegressionUncertainty of {len(self)} examples, {draws} of {self.family!r}:"]
        with np.errstate(invalid="ignore"):
            names = ("mean", "std", "aleatoric_std", "epistemic_std")
            told = [f"{name} {_mean_of(getattr(self, name)):.3g}" for name in names]
        lines.append("  on average " + ", ".join(told))
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def numbers_like(name, values, shape):
    """The argument `name` as float64 of the shape `(n, ..., units)` of predicted numbers.

    A missing last axis of one is added, no more.

    Raises:
        ValueError: If the shape is another one, or these are no numbers.
    """
    found = to_float64(name, values)
    found = found[..., None] if shape[-1] == 1 and found.shape == shape[:-1] else found
    if found.shape != tuple(shape):
        also = f" or {tuple(shape[:-1])}" if shape[-1] == 1 else ""
        raise ValueError(
            f"Argument `{name}` must have the shape of the predictions, {tuple(shape)}{also}. "
            f"Received: {name} of shape {found.shape}"
        )
    return found


def warn_of_unit(found, labels, name="y"):
    """Warns where a half of the labels are further than `FAR` standard deviations from their means.

    So are labels of another unit, as those of which the network learned a standardized form, and
    those of a network that has not come near them. At most `LOOKED_AT` examples are looked at.
    Nothing is said of a network that knows no noise: its draws need not reach the labels.
    """
    if not found.family.has_noise:
        return
    step = -(-len(found) // LOOKED_AT)
    found, labels = found[::step], np.asarray(labels[::step], "float64").reshape(-1)
    std = np.asarray(found.std, "float64").reshape(-1)
    error = np.abs(labels - np.asarray(found.mean, "float64").reshape(-1))
    known = np.isfinite(error) & np.isfinite(std) & (std > 0)
    if not known.any():
        return
    middle = np.median(error[known] / std[known])
    if middle > FAR:
        warnings.warn(
            f"Half of the labels `{name}` are more than {middle:.3g} predicted standard deviations "
            f"from their prediction (labels about {np.median(labels[known]):.3g}, standard "
            f"deviations about {np.median(std[known]):.3g}): either the labels are of another unit "
            "than those of the training, or the network has not learned. It learns labels far from "
            "0 and 1 slowly: standardize them for training, and pass predictions and labels in one "
            "unit.",
            stacklevel=3,
        )


def interval_level(family, level=None, rule=None, has_own=False):
    """The level of the central interval that is told of numbers; None if there is none.

    Args:
        family: `Family`.
        level: What the caller says, or None for that of the rule, else 0.9.
        rule: A rule for numbers, or None.
        has_own: Whether the intervals are conformal ones.

    Raises:
        ValueError: If the family does not know such an interval.
    """
    if level is not None:
        level = _checked_level(level)
    if has_own or not family.has_noise:
        if level is not None:
            why = "`conformal` gives the intervals" if family.has_noise else "no noise is known"
            raise ValueError(
                f"Argument `level` must be left out: {why}. Received: level={shown(level)}"
            )
        return None
    own = getattr(rule, "level", LEVEL)
    if rule is not None and level not in (None, own):
        raise ValueError(
            f"Argument `level` must be left out, or that of the rule, {own}. "
            f"Received: level={shown(level)}"
        )
    level = own if level is None else level
    learned = getattr(family, "levels", (0.0, 1.0))
    if (1 - level) / 2 < learned[0] - 1e-9 or (1 + level) / 2 > learned[-1] + 1e-9:
        raise ValueError(
            "Argument `level` must be of an interval within the `levels` of the head, "
            f"{list(learned)}; or pass a ConformalRegressor as `conformal`. "
            f"Received: level={level:g}"
        )
    return level


def usual_level(family, rule=None):
    """The level of intervals that nobody has said: the rule's, or as much of 0.9 as was learned."""
    if rule is not None:
        return rule.level
    learned = getattr(family, "levels", (0.0, 1.0))
    return min(LEVEL, 1 - 2 * learned[0], 2 * learned[-1] - 1)


def said_of(found, level=None):
    """Dict of what a `RegressionUncertainty` knows, by name, and of its interval of `level`."""
    is_spread = found.num_samples > 1 or found.family.has_epistemic
    said = {"mean": found.mean}
    if is_spread or found.family.has_noise:
        said["std"] = found.std
    if found.family.has_noise:
        said["aleatoric_std"] = found.aleatoric_std
    if is_spread:
        said["epistemic_std"] = found.epistemic_std
    return said if level is None else {**said, **found.interval(level)._asdict()}


def _mean_of(values):
    known = values[np.isfinite(values)]
    return known.mean() if known.size else np.nan


def _checked_level(level):
    if not is_finite(level) or not 0 < level < 1:
        raise ValueError(
            "Argument `level` must be a probability in (0, 1), such as 0.9. "
            f"Received: level={shown(level)}"
        )
    return float(level)
