"""Arithmetic of calibration after training: logits of probabilities, and what is fitted to them.

A binary prediction is a softmax over the logits (0, z). Fitting takes logits `(samples, n,
classes)` in float64, labels `(n,)` and weights `(n,)` that sum to 1.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import log_softmax, logsumexp

from tfuq._predictions.examples import BLOCK

# A model in float32 gives no probability between 0 and the first, none between 1 and 1 - 2 * the
# second.
LEAST = 2.0**-126
LEAST_REST = 2.0**-25
LOWEST_LOGIT = -1e6  # what -inf, a class that is ruled out, counts as
TEMPERATURES = (1e-3, 1e3)
LARGEST_WEIGHT = 1e3  # of vector scaling, for logits of standard deviation 1
FIRST_ROWS = 2**14  # that a temperature for many is fitted to at first
FEW = 2**15  # numbers that stay close to the processor
MOST_STEPS = 8  # of Newton's method from there; three are usual
SEPARATED = 1e-6  # nats; no larger loss than this means that the parameters grow for ever


# --- What is fitted to ----------------------------------------------------------------------


class Entries(NamedTuple):
    """What is fitted to: entries of weight above 0, the weights summing to 1."""

    values: np.ndarray  # (samples, entries, classes), or (samples, entries) if binary
    labels: np.ndarray  # (entries,)
    weight: np.ndarray
    column: np.ndarray  # which label of multi-label predictions, else 0
    num_columns: int
    is_binary: bool

    def rows(self, chosen):
        """The `chosen` entries, with weights that sum to 1 again."""
        weight = self.weight[chosen] / self.weight[chosen].sum()
        return self._replace(
            values=self.values[:, chosen],
            labels=self.labels[chosen],
            weight=weight,
            column=self.column[chosen],
        )

    def columns(self):
        """`Entries` of each label of multi-label predictions; else of all."""
        found = np.bincount(self.column, minlength=self.num_columns)
        if not found.all():
            raise ValueError(
                "Argument `sample_weight` must leave an entry to each label. "
                f"Received: none for label {np.flatnonzero(found == 0).tolist()}"
            )
        return [self.rows(self.column == k) for k in range(self.num_columns)]

    def used(self):
        """Those of weight above 0."""
        if np.all(self.weight > 0):  # spares a copy of all
            return self._replace(weight=self.weight / self.weight.sum())
        return self.rows(self.weight > 0)

    def blocks(self, numbers):
        """Logits `(samples, some entries, classes)`, labels and weights, one after the other."""
        size = max(1, numbers * self.values.shape[1] // self.values.size)
        for start in range(0, len(self.labels), size):
            part = slice(start, start + size)
            values, labels, weight = self.values[:, part], self.labels[part], self.weight[part]
            yield self._replace(values=values, labels=labels, weight=weight).problem()

    def problem(self):
        """Logits `(samples, entries, classes)`, labels and weights."""
        logits = self.values
        if self.is_binary:
            logits = np.stack([np.zeros_like(logits), logits], axis=-1)
        return logits, self.labels, self.weight

    def seen(self):
        """Which classes occur, `(classes,)` of bool."""
        classes = 2 if self.is_binary else self.values.shape[-1]
        return np.bincount(self.labels, minlength=classes) > 0


# --- On tensors and on arrays -----------------------------------------------------------------


def to_logits(probs, is_binary):
    """log p, or log p - log(1 - p) if `is_binary`; finite for 0 and 1, NaN for what is not."""
    value = ops.log(ops.where(probs < LEAST, LEAST, probs))
    if is_binary:
        rest = 1 - probs
        value = value - ops.log(ops.where(rest < LEAST_REST, LEAST_REST, rest))
    return ops.where(ops.isfinite(probs), value, np.nan)


def bounded(logits):
    """Logits with a large negative number for -inf, so that 0 times them is 0."""
    return ops.where(logits < LOWEST_LOGIT, LOWEST_LOGIT, logits)


def log_probabilities(logits):
    """log softmax(z), no less than `to_logits` gives for 0."""
    values = ops.log_softmax(logits)
    least = -126 * math.log(2)
    return ops.where(values < least, least, values)


def interpolate(values, knots, heights):
    """Piecewise linear curves, one for each column of `values` `(n, columns)`, float32.

    Curve `c` goes through `(knots[c], heights[c])`, sequences that ascend, and is constant outside;
    it is NaN where the value is not finite.
    """
    size = max(2, *map(len, knots))
    table = [[(*row, *[row[-1]] * (size - len(row))) for row in rows] for rows in (knots, heights)]
    knots, heights = (ops.convert_to_tensor(np.array(rows, "float32")) for rows in table)
    x = ops.transpose(ops.where(ops.isfinite(values), values, 0))
    x = ops.clip(x, knots[:, :1], knots[:, -1:])
    upper = ops.clip(count_up_to(knots, x), 1, size - 1)
    upper = upper + size * np.arange(len(table[0]), dtype="int32")[:, None]
    left, low = ops.take(knots, upper - 1), ops.take(heights, upper - 1)
    width, step = ops.take(knots, upper) - left, ops.take(heights, upper) - low
    found = ops.transpose(low + step * ops.divide_no_nan(x - left, width))
    return ops.where(ops.isfinite(values), found, np.nan)


def count_up_to(knots, values):
    """How many of the ascending `knots` `(curves, m)` are at most each value `(curves, n)`."""
    # The operation of `tf.searchsorted`, which takes no empty batch.
    return tf.raw_ops.UpperBound(sorted_inputs=knots, values=values)


def count_below(knots, values):
    """How many of the ascending `knots` are below each value; shapes as in `count_up_to`."""
    return tf.raw_ops.LowerBound(sorted_inputs=knots, values=values)


# --- Fitting ----------------------------------------------------------------------------------


def loss_and_gradient(logits, labels, weight):
    """-sum_i w_i log mean_s p_si(y_i), and its gradient in the logits `(samples, n, classes)`."""
    log_probs, rows = log_softmax(logits, axis=-1), np.arange(len(labels))
    of_label = log_probs[:, rows, labels]
    total = logsumexp(of_label, axis=0)
    share = weight * np.exp(of_label - total)
    gradient = share[..., None] * np.exp(log_probs)
    gradient[:, rows, labels] -= share
    return weight @ (np.log(len(logits)) - total), gradient


def fit_temperature(logits, labels, weight):
    """The T in `TEMPERATURES` of the least loss of logits / T.

    The root of the loss' derivative in b = 1 / T. For one sample the loss is convex in b, and there
    is no more than one; for several, all between the points of a grid are compared.
    """
    logits = logits - logits.max(axis=-1, keepdims=True)

    def loss(temperature):
        return loss_and_gradient(logits / temperature, labels, weight)[0]

    def slope(log_b):
        return np.sum(logits * loss_and_gradient(np.exp(log_b) * logits, labels, weight)[1])

    least, most = TEMPERATURES
    grid = np.linspace(-np.log(most), -np.log(least), 2 if len(logits) == 1 else 61)
    slopes = np.array([slope(log_b) for log_b in grid])
    if not np.any(slopes):  # predictions that no temperature changes
        return 1.0
    found = [most] * int(slopes[0] >= 0) + [least] * int(slopes[-1] <= 0)
    for i in np.flatnonzero((slopes[:-1] < 0) & (slopes[1:] >= 0)):
        found.append(float(np.exp(-brentq(slope, grid[i], grid[i + 1], xtol=1e-12))))
    return found[0] if len(found) == 1 else min(found, key=loss)


def temperature_of(data):
    """`fit_temperature` of `Entries`, in blocks if they are many: three passes over them.

    The loss of one sample is convex in b = 1 / T, so the root that Newton's method reaches from the
    optimum of some rows is the only one. Its last step is below 1e-6 of b, its error of the order
    of that squared, and of the rounding of the sums.
    """
    if len(data.values) > 1 or data.values.size <= BLOCK:
        return fit_temperature(*data.problem())
    step = -(-len(data.labels) // FIRST_ROWS)
    b = 1 / fit_temperature(*data.rows(slice(None, None, step)).problem())
    for _ in range(MOST_STEPS):
        first, second = _derivatives(data, b)
        if not second > 0:
            break
        move = -first / second
        b += move
        if not 1 / TEMPERATURES[1] < b < 1 / TEMPERATURES[0]:
            break
        if abs(move) <= 1e-6 * b:
            return float(1 / b)
    return _bracketed_temperature(data)


def _bracketed_temperature(data):
    """The T of one sample of many entries, by its bracket: some twenty passes over them."""

    def slope(log_b):
        return _derivatives(data, np.exp(log_b))[0]

    least, most = TEMPERATURES
    low, high = -np.log(most), -np.log(least)
    slopes = slope(low), slope(high)
    if not np.any(slopes):
        return 1.0
    if slopes[0] >= 0 or slopes[1] <= 0:
        return most if slopes[0] >= 0 else least
    return float(np.exp(-brentq(slope, low, high, xtol=1e-12)))


def _derivatives(data, b):
    """The first two in b of -sum_i w_i log softmax(b z_i)(y_i), for one sample, in blocks."""
    first = second = 0.0
    for (logits,), labels, weight in data.blocks(FEW):
        z = np.ascontiguousarray(logits.T)  # sums over classes are of whole rows then
        z -= z.max(axis=0)
        likely = np.exp(b * z)
        total = likely.sum(axis=0)
        likely *= z
        mean = likely.sum(axis=0) / total
        likely *= z
        square = likely.sum(axis=0) / total
        first += weight @ (mean - z[labels, np.arange(len(labels))])
        second += weight @ (square - mean**2)
    return first, second


def fit_vector(logits, labels, weight, is_binary):
    """Weights and biases, of class 1 alone if `is_binary`, and whether a finite optimum was found.

    Classes without a label are left out, and get the mean weight and bias of the others. The logits
    are brought to mean 0 and standard deviation 1 first, where L-BFGS converges fast.
    """
    seen = np.bincount(labels, minlength=logits.shape[-1]) > 0
    if seen.sum() < 2:  # nothing to tell apart
        count = 1 if is_binary else len(seen)
        return np.ones(count), np.zeros(count), True
    if not seen.all():
        of_seen = logits[..., seen], (np.cumsum(seen) - 1)[labels], weight
        scale, bias, is_finite = fit_vector(*of_seen, is_binary=False)
        scales, biases = np.full(len(seen), scale.mean()), np.full(len(seen), bias.mean())
        scales[seen], biases[seen] = scale, bias
        return scales, biases, is_finite
    free = logits[..., 1:] if is_binary else logits
    mean = np.einsum("snc,n->c", free, weight) / len(free)
    spread = np.sqrt(np.einsum("snc,n->c", (free - mean) ** 2, weight) / len(free))
    spread[spread == 0] = 1
    free = (free - mean) / spread
    scaled = np.zeros_like(logits)

    def objective(parameters):
        scale, bias = np.split(parameters, 2)
        scaled[..., -len(scale) :] = scale * free + bias
        loss, gradient = loss_and_gradient(scaled, labels, weight)
        gradient = gradient[..., -len(scale) :]
        of_scale, of_bias = np.sum(gradient * free, axis=(0, 1)), np.sum(gradient, axis=(0, 1))
        return loss, np.concatenate([of_scale, of_bias])

    start = np.concatenate([spread, mean if is_binary else mean - mean.mean()])
    start = np.clip(start, -LARGEST_WEIGHT, LARGEST_WEIGHT)  # no scaling
    found = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-LARGEST_WEIGHT, LARGEST_WEIGHT)] * len(start),
        options={"maxiter": 5000, "maxfun": 20_000, "maxcor": 20, "ftol": 1e-16, "gtol": 1e-10},
    )
    scale, bias = np.split(found.x, 2)
    is_finite = found.fun > SEPARATED and np.all(np.abs(found.x) < LARGEST_WEIGHT)
    scale, bias = scale / spread, bias - scale * mean / spread
    return scale, bias if is_binary else bias - bias.mean(), bool(is_finite)


def fit_isotonic(values, targets, weight):
    """Knots and heights of the isotonic least squares of 0/1 `targets` on `values`, all `(n,)`.

    Equal values are averaged first, and knots inside of constant stretches are left out.
    """
    knots, index = np.unique(values, return_inverse=True)
    mass = np.bincount(index, weight)
    rate = np.bincount(index, weight * targets) / mass
    heights = np.clip(isotonic_regression(rate, weights=mass).x, 0, 1)
    moves = heights[1:] != heights[:-1]
    kept = np.r_[True, moves] | np.r_[moves, True]
    return knots[kept], heights[kept]
