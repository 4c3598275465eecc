"""Spiegelhalter's test of calibration, and an interval of the calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops
from scipy.stats import norm

from tfuq._arguments import ArrayLike, check_fraction, check_integer, shown
from tfuq._math.bins import calibration_error, debiased_calibration_error, width_index
from tfuq._predictions.class_names import numbered
from tfuq._predictions.examples import in_blocks, summed

__all__ = [
    "CalibrationErrorInterval",
    "SpiegelhalterTest",
    "expected_calibration_error_interval",
    "spiegelhalter_test",
]

DRAWS_AT_ONCE = 2**22  # numbers
ROUNDING = 1e-9  # of sums over examples, in float64


class SpiegelhalterTest(NamedTuple):
    """What `spiegelhalter_test` found.

    Example:

    >>> import tfuq
    >>> tfuq.metrics.spiegelhalter_test([1, 0], [0.75, 0.25]).p_value > 0.05
    True

    See also: `tfuq.metrics.spiegelhalter_test`.
    """

    statistic: float
    """Standard normal if the predictions are calibrated; above 0 if they are too confident."""
    p_value: float
    """Two-sided. Below 0.05, say: probabilities such as these are not the ones of the labels."""


class CalibrationErrorInterval(NamedTuple):
    """What `expected_calibration_error_interval` found.

    Example:

    >>> import tfuq
    >>> found = tfuq.metrics.expected_calibration_error_interval([1, 0, 1], [0.75, 0.25, 0.5])
    >>> found.lower <= found.error <= found.upper
    True

    See also: `tfuq.metrics.expected_calibration_error_interval`.
    """

    error: float
    """The debiased calibration error, at least 0."""
    lower: float
    upper: float


def spiegelhalter_test(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> SpiegelhalterTest:
    """Tests whether probabilities are those of the labels, by the Brier score that they imply.

    It needs no bins. It sees confidence that is too high or too low on average, not errors of both
    signs that cancel.

    Formula:
        Z = sum_i (B_i - E[B_i]) / sqrt(sum_i Var[B_i])
    with B_i = sum_c (p_ic - [c = y_i])^2 the Brier score of an example, and mean and variance over
    labels drawn from p_i: B_i - E[B_i] = 2 (sum_c p_ic^2 - p_i(y_i)) and Var[B_i] = 4 (sum_c p_ic^3
    - (sum_c p_ic^2)^2). Of two classes that is Spiegelhalter's own (1986, equation 6).

    Args:
        y_true: Labels, sparse `(n, ...)` or one-hot; 0 or 1 if binary or multi-label.
        y_pred: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`. Labels of one example and pixels of one image count as
            independent, which they are not: p-values are too small then.
        from_logits: Whether `y_pred` are logits, not probabilities.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights `(n,)` that are 0 or 1: 0 leaves out.
        class_names: Names of the classes in the order of `y_pred`: labels may be names then.

    Returns:
        A `SpiegelhalterTest`.

    Raises:
        ValueError: If arrays are empty or do not fit together, or hold what is no prediction; if a
            weight is neither 0 nor 1; if all predictions are uniform, or certain and right, of
            which the test can say nothing.

    Example:

    >>> import numpy as np
    >>> import tfuq
    >>> y_pred, y_true = np.full(100, 0.9), np.repeat([1, 0], [70, 30])  # sure of 90 %, right in 70
    >>> found = tfuq.metrics.spiegelhalter_test(y_true, y_pred)
    >>> round(found.statistic, 2), found.p_value < 1e-6
    (6.67, True)

    References:
        Spiegelhalter, Probabilistic prediction in patient management and clinical trials, 1986.

    See also: `tfuq.metrics.expected_calibration_error_interval`, `tfuq.metrics.brier_score`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    _check_zero_or_one(sample_weight)
    excess, variance = np.asarray(summed(_brier_excess, y_true, y_pred, sample_weight, **flags))
    # Rounding of uniform predictions is no evidence.
    varies, differs = variance > ROUNDING**2, abs(excess) > ROUNDING
    if not (varies or differs):
        raise ValueError(
            "Argument `y_pred` must hold predictions for the test to judge. Received: predictions "
            "that are all uniform, or certain and right, whose Brier score does not vary"
        )
    statistic = float(excess / np.sqrt(variance)) if varies else np.inf
    return SpiegelhalterTest(statistic, float(2 * norm.sf(abs(statistic))))


def _brier_excess(examples):
    """Sums `(2,)` of B - E[B] and Var[B] over the examples."""
    probs = ops.cast(examples.probs(), "float64")
    probs = probs / ops.sum(probs, axis=-1, keepdims=True)  # of float32 they sum to 1 + 1e-7
    weight = ops.cast(examples.weight, "float64")
    of_label = ops.take_along_axis(probs, ops.cast(examples.labels, "int32")[:, None], axis=-1)
    square = ops.sum(probs**2, axis=-1)
    excess = 2 * (square - of_label[:, 0])
    variance = 4 * ops.maximum(ops.sum(probs**3, axis=-1) - square**2, 0.0)
    return ops.stack([ops.sum(weight * excess), ops.sum(weight * variance)])


def expected_calibration_error_interval(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    n_bins: int = 15,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> CalibrationErrorInterval:
    """The calibration error without its bias, and a bootstrap interval of it.

    The plain error of finite data is above 0 though predictions be calibrated. The bias is taken
    off, as with `expected_calibration_error(..., debiased=True)`, and the interval is the basic
    bootstrap's around that.

    Formula:
        [D - q_{1 - a/2}, D - q_{a/2}], cut to [0, 1], where q are quantiles of D*_r - E
    with E the plain error of the data, D the debiased one, and D*_r the debiased error of a
    resample, whose truth E is.

    Args:
        y_true: As for `expected_calibration_error`, and so are `y_pred`, `from_logits`,
            `multi_label` and `class_names`.
        y_pred: Predictions.
        n_bins: Number of bins of equal width.
        num_resamples: Number of resamples of whole examples, drawn with replacement.
        confidence: Probability in (0, 1) that the interval is meant to have.
        seed: Integer from which the resamples follow.
        from_logits: Whether `y_pred` are logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights `(n,)` that are 0 or 1: 0 leaves out.
        class_names: Names of the classes.

    Returns:
        A `CalibrationErrorInterval`.

    Raises:
        ValueError: As `expected_calibration_error`; if an option is out of its range; if a weight
            is neither 0 nor 1.

    Example:

    >>> import numpy as np
    >>> import tfuq
    >>> y_pred, y_true = np.full(100, 0.9), np.repeat([1, 0], [70, 30])  # sure of 90 %, right in 70
    >>> found = tfuq.metrics.expected_calibration_error_interval(y_true, y_pred)
    >>> round(found.error, 3), 0.1 < found.lower < 0.2 < found.upper < 0.3
    (0.2, True)

    References:
        Kumar, Liang, Ma: Verified Uncertainty Calibration, NeurIPS 2019.
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2.

    See also: `tfuq.metrics.expected_calibration_error`, `tfuq.metrics.spiegelhalter_test`.
    """
    y_true = numbered(y_true, class_names, "y_true")
    check_integer("n_bins", n_bins, 1)
    check_integer("num_resamples", num_resamples, 1)
    check_integer("seed", seed, 0)
    check_fraction("confidence", confidence)
    if confidence in (0, 1):
        raise ValueError(
            f"Argument `confidence` must be in (0, 1). Received: confidence={shown(confidence)}"
        )
    _check_zero_or_one(sample_weight)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    data = y_true, y_pred, sample_weight
    tables = _tables(n_bins, *data, **flags)
    whole = tables.sum(axis=0)
    plain = float(calibration_error(whole))
    debiased = float(debiased_calibration_error(whole))
    rng, drawn = np.random.default_rng(seed), []
    at_once = max(1, DRAWS_AT_ONCE // len(tables))
    flat = tables.reshape(len(tables), -1)
    for start in range(0, num_resamples, at_once):
        count = min(at_once, num_resamples - start)
        times = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), size=count)
        drawn.append(debiased_calibration_error((times @ flat).reshape(count, n_bins, 3)))
    low, high = np.quantile(
        np.concatenate(drawn) - plain, [(1 - confidence) / 2, (1 + confidence) / 2]
    )
    ends = np.clip([debiased - high, debiased - low], 0.0, 1.0)
    return CalibrationErrorInterval(max(0.0, debiased), *map(float, ends))


def _tables(n_bins, *data, **flags):
    """Sums `(examples of weight above 0, n_bins, 3)` of each example's own predictions."""
    found = []
    for examples in in_blocks(*data, **flags):
        confidence, correct = (np.asarray(part, "float64") for part in examples.top_label())
        weight = np.asarray(examples.weight, "float64")
        index = np.asarray(width_index(confidence, n_bins))
        sums = np.zeros((len(index), n_bins, 3))
        sums[np.arange(len(index)), index] = np.stack(
            [weight, weight * confidence, weight * correct], -1
        )
        found.append(sums)
    whole = np.concatenate(found)
    whole = whole.reshape(len(np.asarray(data[1])), -1, n_bins, 3).sum(
        axis=1
    )  # the entries of an example
    return whole[whole[..., 0].sum(axis=-1) > 0]


def _check_zero_or_one(sample_weight):
    if sample_weight is None:
        return
    weight = np.asarray(sample_weight)
    if not np.all((weight == 0) | (weight == 1)):
        raise ValueError(
            "Argument `sample_weight` must hold only 0 and 1 here: the test counts examples. "
            f"Received: sample_weight={shown(sample_weight)}"
        )
