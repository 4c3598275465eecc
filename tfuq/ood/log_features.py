"""Squared gradient norms as features: checked, and standardised on a log scale."""

from typing import NamedTuple

import numpy as np

from tfuq._arguments import to_float64
from tfuq._math.pseudo_inverse import ULPS, inverse_above

ROUNDING = ULPS * float(np.finfo("float32").eps)  # of a norm, relative
RELATIVE = (64 * float(np.finfo("float32").eps)) ** 2  # of all columns, below which is rounding
FLOOR = 1e-20  # of a squared norm, so that 0 has a logarithm


def squared_norms(name, array):
    """The argument `name` as float64 `(n, columns)` of at least 0, NaN among them, or an error."""
    array = to_float64(name, array)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"Argument `{name}` must have shape (n, columns) and not be empty. "
            f"Received: {name} of shape {array.shape}"
        )
    if np.any(array < 0):
        raise ValueError(
            f"Argument `{name}` must hold squared norms of at least 0, not their logarithms. "
            f"Received: {name} with {np.nanmin(array)}"
        )
    return array


def log_norms(features):
    """log(f_k + 1e-20 + r sum_j f_j) of squared norms f `(n, columns)`, r = (64 eps)^2 of float32.

    What is 0 in exact arithmetic (the gradients of the biases of an attention's keys) is rounding
    of the others, which a logarithm would make as large as they are.
    """
    return np.log(features + FLOOR + RELATIVE * features.sum(axis=1, keepdims=True))


class Scale(NamedTuple):
    """z = (x - mean) / spread for each column; 0 in a column without spread."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, x):
        """The scale on which the columns of `x` have mean 0 and standard deviation 1."""
        mean, spread = x.mean(axis=0), x.std(axis=0)
        # Equal norms have logarithms whose spread is that of float32 errors.
        inverse = inverse_above(spread**2, ROUNDING**2) * spread
        return cls(mean, np.where(inverse > 0, 1 / np.where(inverse > 0, inverse, 1.0), 0.0))

    def __call__(self, x):
        """Standardised columns."""
        return (x - self.mean) / np.where(self.spread > 0, self.spread, np.inf)
