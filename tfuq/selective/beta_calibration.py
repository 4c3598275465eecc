"""Beta calibration: a curve of three parameters for each class."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from keras import ops
from scipy.optimize import minimize

from tfuq._arguments import register, shown
from tfuq._predictions.probabilities import probabilities
from tfuq.selective._one_against_rest import OneAgainstRest, all_or_none, numbers_in_a_row
from tfuq.selective._scaling import (
    LARGEST_WEIGHT,
    LEAST,
    LEAST_REST,
    SEPARATED,
    loss_and_gradient,
)

__all__ = ["BetaCalibration"]


@register
class BetaCalibration(OneAgainstRest):
    """Beta calibration: maps each class probability by a beta curve and renormalizes.

    Formula: logit q = a log p - b log(1 - p) + c with a, b >= 0, the least negative log-likelihood
    of each class against the rest; then divided by the sum over the classes (Kull et al. 2017).
    With a = b it is Platt scaling; with a = b = 1 and c = 0 it changes nothing, which scaling of
    the logits by a bias and a weight has only as one of its curves: a network whose confidence has
    to be bent on one side alone is served better. Three numbers for each class need some hundred
    examples, where `IsotonicCalibration` needs a thousand. A binary prediction, and each label of a
    multi-label one, has one curve. Calibrated predictions are probabilities, those of logits also.
    The prediction can become another one. A class without a label keeps its probability, with a
    warning.

    Args:
        a: For each class or label, of a binary prediction for one, the weight of log p; None to be
            fitted. Fitted weights are held below 1000 divided by the standard deviation of what
            they multiply, with a warning that classes are separable.
        b: For each, the weight of -log(1 - p).
        c: For each, the intercept.
        rank: As in `TemperatureScaling`.
        from_logits: Whether predictions are logits, which become probabilities first. log p is at
            least that of 2^-126, log(1 - p) that of 2^-25.
        multi_label: As there; each label is calibrated by itself.
        average: As there. With `"after"`, the curves are fitted to all samples as examples of their
            own, not to their average.
        fitted_to: As there.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import BetaCalibration
    >>> probs, labels = np.repeat([0.1, 0.9], 4), [0, 0, 0, 1, 0, 1, 1, 1]
    >>> BetaCalibration().fit(probs, labels)([0.1, 0.9]).round(3).tolist()
    [0.25, 0.75]

    References:
        - Kull, Silva Filho and Flach, "Beta calibration: a well-founded and easily implemented
          improvement on logistic calibration for binary classifiers", 2017.

    See also: `tfuq.selective.TemperatureScaling`, `tfuq.selective.IsotonicCalibration`.
    """

    _parameters = ("a", "b", "c")
    _unseen = (1.0, 1.0, 0.0)  # the curve that leaves probabilities as they are

    def __init__(
        self,
        a: Any = None,
        b: Any = None,
        c: Any = None,
        *,
        rank: int | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
        average: str = "before",
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(rank, from_logits, multi_label, average, fitted_to)
        if all_or_none(a=a, b=b, c=c):
            found = [numbers_in_a_row(name, v) for name, v in (("a", a), ("b", b), ("c", c))]
            fit = len({part.shape for part in found}) == 1
            if not fit or np.any(found[0] < 0) or np.any(found[1] < 0):
                raise ValueError(
                    "Arguments `a`, `b` and `c` must be as many numbers each, `a` and `b` at least "
                    f"0. Received: a={shown(a)}, b={shown(b)}, c={shown(c)}"
                )
            a, b, c = (part.tolist() for part in found)
        self.a = a
        self.b = b
        self.c = c

    def _curve(self, values, targets, weight):
        found, is_finite = fit_beta(values, targets, weight)
        if not is_finite:
            warnings.warn(
                "The predictions separate a class from the rest without an error, so that the "
                "weights, and with them the confidence, grow to their limit.",
                stacklevel=5,
            )
        return found

    def _map(self, rows):
        a, b, c = (ops.convert_to_tensor(each, "float32") for each in (self.a, self.b, self.c))
        rest = 1 - rows
        log_p = ops.log(ops.where(rows < LEAST, LEAST, rows))
        log_rest = ops.log(ops.where(rest < LEAST_REST, LEAST_REST, rest))
        found = probabilities(a * log_p - b * log_rest + c, True, True)
        return ops.where(ops.isfinite(rows), found, np.nan)


def fit_beta(values, targets, weight):
    """`(a, b, c)` of the least loss, a and b at least 0, and whether that is a finite optimum.

    The loss is convex, and L-BFGS-B holds the bounds: what the authors reach by leaving out a
    weight that comes out negative. What is multiplied is brought to mean 0 and standard deviation
    1 first, where it converges fast.
    """
    values, labels = values.astype("float64"), targets.astype("int64")
    log_p, log_rest = np.log(np.maximum(values, LEAST)), np.log(np.maximum(1 - values, LEAST_REST))
    parts = np.stack([log_p, -log_rest])
    mean = parts @ weight / weight.sum()
    spread = np.sqrt((parts - mean[:, None]) ** 2 @ weight / weight.sum())
    spread[spread == 0] = 1
    parts = (parts - mean[:, None]) / spread[:, None]

    logits = np.zeros((1, len(labels), 2))

    def objective(parameters):
        logits[0, :, 1] = parameters[:2] @ parts + parameters[2]
        loss, gradient = loss_and_gradient(logits, labels, weight)
        slope = gradient[0, :, 1]
        return loss, np.append(parts @ slope, slope.sum())

    limits = [(0, LARGEST_WEIGHT)] * 2 + [(-LARGEST_WEIGHT, LARGEST_WEIGHT)]
    found = minimize(
        objective,
        np.clip(np.append(spread, mean.sum()), 0, LARGEST_WEIGHT),  # no calibration
        jac=True,
        method="L-BFGS-B",
        bounds=limits,
        options={"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-16, "gtol": 1e-10},
    )
    is_finite = found.fun > SEPARATED and np.all(np.abs(found.x) < LARGEST_WEIGHT)
    a, b = found.x[:2] / spread
    return (a, b, found.x[2] - np.array([a, b]) @ mean), bool(is_finite)
