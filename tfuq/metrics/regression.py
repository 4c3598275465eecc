"""Scores of predicted numbers: coverage, width, interval score, CRPS, quantiles, sparsification.

Predictions are what `tfuq.predictive.predict_uncertainty` gave of a regression, whose numbers have
the shape `(n, ..., units)`; labels have it too, or lack the last axis if there is one unit. Of
several numbers a score is the mean, as Keras' mean squared error is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfuq._arguments import ArrayLike, check_choice, shown, to_float64
from tfuq._math import intervals
from tfuq._predictions.families import checked_levels
from tfuq._predictions.mixture_scores import mixture_crps
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq.metrics._numbers import (
    check_found,
    checked_level,
    crps_of_samples,
    error_area,
    mean_of,
    read_interval,
    read_labels,
    read_weights,
)

LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
ERRORS = ("absolute", "squared")


def prediction_interval_coverage(
    y_true: ArrayLike,
    y_pred: ArrayLike | RegressionUncertainty,
    level: float = 0.9,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of the labels that are in their interval (PICP): `level` if the model is right.

    Formula:
        PICP = 1 / W sum_i w_i [l_i <= y_i <= u_i]

    Args:
        y_true: Labels `(n, ..., units)`, or `(n, ...)` for one unit.
        y_pred: The result of `predict_uncertainty`, or a pair of arrays `(lower, upper)`.
        level: Of the interval of the result of `predict_uncertainty`; not looked at for a pair.
        sample_weight: Weights `(n,)`, or with more of the leading axes. What has weight 0 is left
            out, whatever it holds.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: If arrays are empty, do not fit together or hold NaN; if ends cross, or `level`
            is not in (0, 1).

    Example:

    >>> import tfuq
    >>> tfuq.metrics.prediction_interval_coverage([1.0, 5.0], ([0.0, 0.0], [2.0, 2.0]))
    0.5

    See also: `tfuq.metrics.PredictionIntervalCoverage`, `tfuq.selective.ConformalRegressor`.
    """
    lower, upper = read_interval(y_pred, checked_level(level))
    y = read_labels(y_true, lower.shape)
    weight = read_weights(sample_weight, y.shape)
    inside = intervals.is_inside(lower, upper, y).astype("float64")
    unknown = np.where(np.isnan(lower) | np.isnan(upper), np.nan, 0.0)  # ends may be infinite
    return mean_of(weight, y_true=y, y_pred=unknown, inside=inside)


def mean_interval_width(
    y_pred: ArrayLike | RegressionUncertainty,
    level: float = 0.9,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean width of intervals, in the unit of the labels; to be read beside their coverage.

    Args:
        y_pred, level, sample_weight: As in `prediction_interval_coverage`.

    Returns:
        A float of at least 0; infinite if an interval is.

    Raises:
        ValueError: As `prediction_interval_coverage`.

    Example:

    >>> import tfuq
    >>> tfuq.metrics.mean_interval_width(([0.0, 0.0], [2.0, 3.0]))
    2.5

    See also: `tfuq.metrics.MeanIntervalWidth`, `tfuq.metrics.prediction_interval_coverage`.
    """
    lower, upper = read_interval(y_pred, checked_level(level))
    return mean_of(read_weights(sample_weight, lower.shape), y_pred=upper - lower)


def interval_score(
    y_true: ArrayLike,
    y_pred: ArrayLike | RegressionUncertainty,
    level: float = 0.9,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Interval score of Winkler: width, and a penalty for labels outside; proper, less is better.

    Formula:
        (u - l) + 2 / alpha max(l - y, 0) + 2 / alpha max(y - u, 0),   alpha = 1 - level
    It is 2 / alpha times the sum of both ends' pinball losses, at alpha / 2 and 1 - alpha / 2.

    Args:
        y_true, y_pred, sample_weight: As in `prediction_interval_coverage`.
        level: Probability with which the intervals are to hold the label; also of a pair.

    Returns:
        A float of at least 0, in the unit of the labels.

    Raises:
        ValueError: As `prediction_interval_coverage`.

    Example:

    >>> import tfuq
    >>> round(tfuq.metrics.interval_score([1.0, 3.0], ([0.0, 0.0], [2.0, 2.0]), level=0.8), 6)
    7.0

    References:
        Winkler, A decision-theoretic approach to interval estimation, 1972.
        Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation, 2007.

    See also: `tfuq.metrics.IntervalScore`, `tfuq.metrics.prediction_interval_coverage`.
    """
    alpha = 1 - checked_level(level)
    lower, upper = read_interval(y_pred, level)
    y = read_labels(y_true, lower.shape)
    weight = read_weights(sample_weight, y.shape)
    with np.errstate(invalid="ignore"):
        score = intervals.interval_score(lower, upper, y, alpha)
    return mean_of(weight, y_true=y, y_pred=score)


def crps(
    y_true: ArrayLike,
    y_pred: ArrayLike | RegressionUncertainty,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Continuous ranked probability score, in the unit of the labels; proper, less is better.

    Formula:
        CRPS = integral (F(x) - [y <= x])^2 dx = E|Y - y| - E|Y - Y'| / 2
    over independent draws Y and Y' of the prediction. Of several draws of a network it is that of
    the mixture of their distributions; of samples that of their empirical distribution; of learned
    quantiles twice their mean pinball loss.

    Args:
        y_true: Labels `(n, ..., units)`, or `(n, ...)` for one unit.
        y_pred: The result of `predict_uncertainty`; or samples of the label, noise included,
            `(samples, n, ..., units)`, such as its `samples()`.
        sample_weight: As in `prediction_interval_coverage`.

    Returns:
        A float of at least 0.

    Raises:
        ValueError: If arrays are empty, do not fit together or hold NaN; if the predictions say no
            distribution.

    Example:

    >>> import numpy as np
    >>> import tfuq
    >>> found = tfuq.predictive.RegressionUncertainty(np.array([[[0.0, 1.0]]]), "normal")
    >>> round(tfuq.metrics.crps([0.0], found), 4)
    0.2337

    References:
        Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation, 2007.

    See also: `tfuq.metrics.CRPS`, `tfuq.losses.CRPS`.
    """
    if isinstance(y_pred, RegressionUncertainty):
        y = read_labels(y_true, y_pred.shape)
        scores = y_pred.scored(mixture_crps, y)
    else:
        draws = to_float64("y_pred", y_pred)
        if draws.ndim < 2 or not draws.size:
            raise ValueError(
                "Argument `y_pred` must be what `predict_uncertainty` gave, or samples "
                f"(samples, n, ..., units). Received: y_pred={shown(draws)}"
            )
        draws = draws[..., None] if draws.ndim == 2 else draws
        y = read_labels(y_true, draws.shape[1:])
        scores = crps_of_samples(draws, y)
    return mean_of(read_weights(sample_weight, y.shape), y_true=y, y_pred=scores)


def number_negative_log_likelihood(
    y_true: ArrayLike,
    y_pred: ArrayLike | RegressionUncertainty,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean negative log-likelihood of numbers, in nats; proper, less is better.

    Formula:
        -1 / W sum_i w_i log p_i(y_i)
    Of several draws p is the mean of their densities. It depends on the unit of the labels: in
    thousandths of it all values are larger by log 1000. Of classes:
    `negative_log_likelihood`.

    Args:
        y_true, sample_weight: As in `prediction_interval_coverage`.
        y_pred: The result of `predict_uncertainty`.

    Returns:
        A float, which may be negative.

    Raises:
        ValueError: As `crps`; if the predictions are quantiles, which have no density.

    Example:

    >>> import numpy as np
    >>> import tfuq
    >>> found = tfuq.predictive.RegressionUncertainty(np.array([[[0.0, 1.0]]]), "normal")
    >>> round(tfuq.metrics.number_negative_log_likelihood([0.0], found), 4)
    0.9189

    See also: `tfuq.metrics.NumberNegativeLogLikelihood`, `tfuq.metrics.crps`.
    """
    check_found(y_pred)
    y = read_labels(y_true, y_pred.shape)
    weight = read_weights(sample_weight, y.shape)
    return mean_of(weight, y_true=y, y_pred=-y_pred.log_prob(y))


def quantile_calibration_curve(
    y_true: ArrayLike,
    y_pred: ArrayLike | RegressionUncertainty,
    levels: Sequence[float] | None = None,
    *,
    sample_weight: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """Share of the labels that are below the quantile of each level: the level, if all is right.

    Args:
        y_true, sample_weight: As in `prediction_interval_coverage`.
        y_pred: The result of `predict_uncertainty`.
        levels: Probabilities in (0, 1) that increase; by default those of learned quantiles, else
            0.05, 0.1, ..., 0.95.

    Returns:
        A dict of arrays `(levels,)`: `"level"` and `"share"`, fractions.

    Raises:
        ValueError: As `crps`; if `levels` are none, or beyond those that were learned.

    Example:

    >>> import numpy as np
    >>> import tfuq
    >>> found = tfuq.predictive.RegressionUncertainty(np.array([[[0.0, 1.0]] * 4]), "normal")
    >>> curve = tfuq.metrics.quantile_calibration_curve([-2.0, -1.0, 1.0, 2.0], found, [0.1, 0.5])
    >>> curve["share"].tolist()
    [0.25, 0.5]

    See also: `tfuq.plots.quantile_calibration`, `tfuq.metrics.quantile_calibration_error`.
    """
    check_found(y_pred)
    learned = getattr(y_pred.family, "levels", LEVELS)
    levels = learned if levels is None else checked_levels(levels)
    y = read_labels(y_true, y_pred.shape)
    weight = read_weights(sample_weight, y.shape)
    if y_pred.family.has_density:
        reached = y_pred.cdf(y)
        mean_of(weight, y_true=y, y_pred=reached)  # both are known
        shares = [mean_of(weight, below=(reached <= q).astype("float64")) for q in levels]
    else:
        ends = [y_pred.quantile(q) for q in levels]
        mean_of(weight, y_true=y, y_pred=sum(ends))
        shares = [mean_of(weight, below=(y <= end).astype("float64")) for end in ends]
    return {"level": np.array(levels, "float64"), "share": np.array(shares)}


def quantile_calibration_error(
    y_true: ArrayLike,
    y_pred: ArrayLike | RegressionUncertainty,
    levels: Sequence[float] | None = None,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean distance of levels and the shares of labels that are below the quantiles of these.

    Formula:
        1 / L sum_q |share of labels <= quantile(q) - q|
    0 if all quantiles are right; the area between the calibration curve of quantiles and the
    diagonal (Kuleshov et al. 2018 take squares).

    Args:
        y_true, y_pred, levels, sample_weight: As in `quantile_calibration_curve`.

    Returns:
        A float in [0, 1).

    Raises:
        ValueError: As `quantile_calibration_curve`.

    Example:

    >>> import numpy as np
    >>> import tfuq
    >>> found = tfuq.predictive.RegressionUncertainty(np.zeros((1, 99, 2)) + [0, 1], "normal")
    >>> y = found.quantile(0.5) + np.linspace(-9, 9, 99)[:, None]  # far more spread
    >>> round(tfuq.metrics.quantile_calibration_error(y, found), 2)
    0.2

    References:
        Kuleshov et al., Accurate uncertainties for deep learning using calibrated regression, 2018.

    See also: `tfuq.metrics.QuantileCalibrationError`, `tfuq.metrics.quantile_calibration_curve`.
    """
    curve = quantile_calibration_curve(y_true, y_pred, levels, sample_weight=sample_weight)
    return float(np.mean(np.abs(curve["share"] - curve["level"])))


def sharpness(
    y_pred: ArrayLike | RegressionUncertainty, *, sample_weight: ArrayLike | None = None
) -> float:
    """Root of the mean predicted variance, in the unit of the labels: how much is left unsaid.

    Less is better among predictions that are calibrated alike.

    Args:
        y_pred: The result of `predict_uncertainty`, or standard deviations `(n, ..., units)`.
        sample_weight: As in `prediction_interval_coverage`.

    Returns:
        A float of at least 0.

    Raises:
        ValueError: If arrays are empty, hold NaN or numbers below 0, or do not fit together.

    Example:

    >>> import tfuq
    >>> tfuq.metrics.sharpness([3.0, 3.0])
    3.0

    References:
        Gneiting, Balabdaoui and Raftery, Probabilistic forecasts, calibration and sharpness, 2007.

    See also: `tfuq.metrics.Sharpness`, `tfuq.metrics.mean_interval_width`.
    """
    is_found = isinstance(y_pred, RegressionUncertainty)
    std = y_pred.std if is_found else to_float64("y_pred", y_pred)
    if not std.ndim or not std.size or np.any(std < 0):
        raise ValueError(
            "Argument `y_pred` must be what `predict_uncertainty` gave, or standard deviations of "
            f"at least 0. Received: y_pred={shown(std)}"
        )
    std = std[:, None] if std.ndim == 1 else std
    return mean_of(read_weights(sample_weight, std.shape), y_pred=std**2) ** 0.5


def ause(
    y_true: ArrayLike,
    y_pred: ArrayLike | RegressionUncertainty,
    uncertainty: ArrayLike | None = None,
    *,
    error: str = "absolute",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Area under the sparsification error: how well an uncertainty ranks errors, 0 is perfect.

    The most uncertain predictions are taken away, one after another; beside that those with the
    largest errors, the best that any ranking could do.

    Formula:
        AUSE = 1 / n sum_{k=1}^n (error of the k least uncertain - error of the k best) / error
    with mean errors, that of all below the line (Ilg et al. 2018, normalized). An uncertainty that
    says nothing has that of a random order; ties count as such.

    Args:
        y_true, sample_weight: As in `prediction_interval_coverage`. Weights count equal examples.
        y_pred: The result of `predict_uncertainty`, or means `(n, ..., units)`.
        uncertainty: What grows with doubt, of the shape of the predictions; by default the standard
            deviation of the result of `predict_uncertainty`.
        error: `"absolute"` or `"squared"`, of each prediction.

    Returns:
        A float of at least 0; 0 if no prediction has an error.

    Raises:
        ValueError: If arrays are empty, do not fit together or hold NaN; if `error` is neither, or
            there is no uncertainty.

    Example:

    >>> import tfuq
    >>> y, mean = [0.0, 0.0, 0.0], [0.0, 1.0, 2.0]
    >>> tfuq.metrics.ause(y, mean, [0.1, 0.2, 0.3])
    0.0
    >>> round(tfuq.metrics.ause(y, mean, [0.3, 0.2, 0.1]), 6)
    1.0

    References:
        Ilg et al., Uncertainty estimates and multi-hypotheses networks for optical flow, 2018.

    See also: `tfuq.metrics.AUSE`, `tfuq.plots.error_against_width`.
    """
    check_choice("error", error, ERRORS)
    is_found = isinstance(y_pred, RegressionUncertainty)
    mean = y_pred.mean if is_found else to_float64("y_pred", y_pred)
    mean = mean[:, None] if mean.ndim == 1 else mean
    if mean.ndim < 2 or not mean.size or (uncertainty is None and not is_found):
        raise ValueError(
            "Argument `uncertainty` must be given with means (n, ..., units). "
            f"Received: uncertainty={shown(uncertainty)}, y_pred of shape {mean.shape}"
        )
    doubt = y_pred.std if uncertainty is None else to_float64("uncertainty", uncertainty)
    doubt = doubt[..., None] if doubt.shape == mean.shape[:-1] and mean.shape[-1] == 1 else doubt
    if doubt.shape != mean.shape:
        raise ValueError(
            f"Argument `uncertainty` must have the shape of the predictions, {mean.shape}. "
            f"Received: uncertainty of shape {doubt.shape}"
        )
    y = read_labels(y_true, mean.shape)
    weight = read_weights(sample_weight, y.shape)
    errors = np.abs(y - mean) ** (2 if error == "squared" else 1)
    total = mean_of(weight, y_true=y, uncertainty=doubt, y_pred=errors)
    if total == 0:
        return 0.0
    used = weight > 0
    parts = errors[used], weight[used]
    return max(0.0, (error_area(doubt[used], *parts) - error_area(errors[used], *parts)) / total)
