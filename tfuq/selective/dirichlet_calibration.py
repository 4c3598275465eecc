"""Dirichlet calibration: a matrix and biases on the logarithms of the probabilities."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from keras import ops
from scipy.optimize import minimize

from tfuq._arguments import ArrayLike, Self, check_positive, register, shown
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._calibration import Calibration
from tfuq.selective._one_against_rest import all_or_none, numbers_in_a_row, warn_of_unseen
from tfuq.selective._scaling import log_probabilities, loss_and_gradient
from tfuq.selective.base import numbers

__all__ = ["DirichletCalibration"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # that "auto" tries
FOLDS = 5


@register
class DirichletCalibration(Calibration):
    """Multiplies the logarithms of the probabilities by a matrix, so that classes can trade.

    Formula: softmax(W log p + b), the W and b of the least negative log-likelihood with the penalty
    l (sum over i != j of w_ij^2 / (k (k - 1)) + sum of b_j^2 / k) for k classes, which leaves the
    diagonal free ("ODIR", Kull et al. 2019). Whatever l, `VectorScaling` is its special case of a
    diagonal W: what the matrix adds is that the probability of one class can move to another one
    that the network confuses with it. It has k^2 numbers: with few examples of a class a large l is
    chosen, and little is gained over `TemperatureScaling`.

    Args:
        weights: W, `(classes, classes)`: row i makes the logit of class i; None to be fitted.
        bias: b, `(classes,)`.
        strength: l of the penalty, above 0; `"auto"` takes that of 1e-4, 1e-3, ... 10 with the
            least loss in cross-validation over 5 folds, which `fitted_to` names as `penalty`.
        rank: As in `TemperatureScaling`.
        from_logits: As there. log p is at least log 2^-126, of logits also.
        average: As there. With `"after"`, the optimum next to no scaling is taken.
        fitted_to: As there.

    Raises:
        ValueError: If an argument is not as described. `fit` raises it also for binary and
            multi-label predictions, of which it would be `BetaCalibration`.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import DirichletCalibration
    >>> probs = np.repeat([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], 40, axis=0)
    >>> labels = np.repeat([0, 1, 2, 1], [40, 40, 20, 20])  # half of the last are of class 1
    >>> found = DirichletCalibration(strength=1e-4).fit(probs, labels)
    >>> found(probs[-1:]).round(2).tolist()
    [[0.0, 0.5, 0.5]]

    References:
        - Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multiclass
          probabilities with Dirichlet calibration", 2019.

    See also: `tfuq.selective.TemperatureScaling`, `tfuq.selective.VectorScaling`.
    """

    _parameters = ("weights", "bias")

    def __init__(
        self,
        weights: ArrayLike | None = None,
        bias: Any = None,
        *,
        strength: float | str = "auto",
        rank: int | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
        average: str = "before",
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(rank, from_logits, multi_label, average, fitted_to)
        if multi_label:
            raise ValueError(
                "Argument `multi_label` must be False: for labels, which are binary predictions, "
                "use BetaCalibration(multi_label=True). Received: multi_label=True"
            )
        if strength != "auto":
            check_positive("strength", strength)
        if all_or_none(weights=weights, bias=bias):
            weights, bias = numbers("weights", weights), numbers_in_a_row("bias", bias)
            if weights.shape != (len(bias), len(bias)) or not np.all(np.isfinite(weights)):
                raise ValueError(
                    "Argument `weights` must be a square of finite numbers, one row for each of "
                    f"`bias`. Received: weights={shown(weights)}, bias={shown(bias)}"
                )
            weights, bias = weights.tolist(), bias.tolist()
        self.weights = weights
        self.bias = bias
        self.strength = strength

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strength": self.strength}

    def _estimate(self, data):
        if data.is_binary:
            raise ValueError(
                "Argument `probs` must be of two or more classes, `(n, classes)`: for one number "
                "each use BetaCalibration(). Received: binary probs"
            )
        warn_of_unseen(data)
        problem = data.problem()
        strength = self.strength
        if strength == "auto":
            strength = chosen_strength(*problem)
        weights, bias, ended = fit_dirichlet(*problem, strength)
        if not ended:
            warnings.warn(
                f"The fit with strength={strength:g} did not converge, because the classes are "
                "separated without an error, or nearly so. Use a larger `strength`.",
                stacklevel=3,
            )
        self.weights, self.bias, self._strength_used = weights.tolist(), bias.tolist(), strength

    def fit(
        self,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        labels: ArrayLike,
        sample_weight: ArrayLike | None = None,
        **options: Any,
    ) -> Self:
        super().fit(probs, labels, sample_weight, **options)
        self.fitted_to["penalty"] = self._strength_used
        return self

    fit.__doc__ = Calibration.fit.__doc__

    def _num_columns(self):
        return len(self.bias)

    def _samples(self, probs, is_stack):
        return log_probabilities(super()._samples(probs, is_stack))

    def _scale(self, values):
        weights, bias = (ops.convert_to_tensor(p, "float32") for p in (self.weights, self.bias))
        return ops.matmul(values, ops.transpose(weights)) + bias


def fit_dirichlet(logits, labels, weight, strength):
    """W, b of the least penalized loss, and whether the minimization came to its end.

    Args:
        logits: log p, `(samples, n, classes)`.
        labels, weight: `(n,)`; the weights sum to 1.
        strength: l of the penalty.

    Classes without a label keep the row and column of no calibration.
    """
    size = logits.shape[-1]
    seen = np.bincount(labels, minlength=size) > 0
    if not seen.all():
        weights, bias, ended = np.eye(size), np.zeros(size), True
        if seen.sum() > 1:
            of_seen = logits[..., seen], (np.cumsum(seen) - 1)[labels], weight
            found, bias[seen], ended = fit_dirichlet(*of_seen, strength)
            weights[np.ix_(seen, seen)] = found
        return weights, bias, ended
    off = (1 - np.eye(size)) * strength / max(size * (size - 1), 1)
    on_bias = strength / size
    flat = np.ascontiguousarray(logits.reshape(-1, size))

    def objective(parameters):
        weights, bias = parameters[:-size].reshape(size, size), parameters[-size:]
        values = (flat @ weights.T + bias).reshape(logits.shape)
        loss, gradient = loss_and_gradient(values, labels, weight)
        gradient = gradient.reshape(-1, size)
        loss += np.sum(off * weights**2) + on_bias * bias @ bias
        slopes = gradient.T @ flat + 2 * off * weights, gradient.sum(axis=0) + 2 * on_bias * bias
        return loss, np.concatenate([part.ravel() for part in slopes])

    found = minimize(
        objective,
        np.append(np.eye(size), np.zeros(size)),  # no calibration
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 5000, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-8},
    )
    return found.x[:-size].reshape(size, size), found.x[-size:], bool(found.success)


def chosen_strength(logits, labels, weight):
    """The strength among `STRENGTHS` of the least loss in cross-validation.

    Folds take the examples of each class in turn, in their order, so that each has all classes of
    which there are enough, and the choice is the same each time.
    """
    order = np.argsort(labels, kind="stable")
    fold = np.empty(len(labels), "int64")
    fold[order] = np.arange(len(labels)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for part in range(FOLDS):
        rest, held_out = fold != part, fold == part
        if not rest.any() or not held_out.any():
            continue
        own = weight[rest] / weight[rest].sum()
        for place, strength in enumerate(STRENGTHS):
            weights, bias, _ = fit_dirichlet(logits[:, rest], labels[rest], own, strength)
            values = logits[:, held_out] @ weights.T + bias
            losses[place] += loss_and_gradient(values, labels[held_out], weight[held_out])[0]
    return STRENGTHS[int(np.argmin(losses))]
