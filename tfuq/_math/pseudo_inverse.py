"""Inverses that leave out what is rounding, and are continuous in what they invert."""

import numpy as np

ULPS = 8  # of errors in numbers that come from a network
RAMP = 100.0  # from `least`, where the inverse is 0, to where it is that of the number
# Of layers that sum in float32 and round once: `ULPS` of these are one rounding.
_COARSE = {"float16": 2.0**-10 / ULPS, "bfloat16": 2.0**-7 / ULPS}


def precision(array, dtype=None):
    """The relative distance of numbers next to each other, from how they are given.

    Float64 that holds float32 is no more precise than that. `dtype` names the floating type that
    numbers had before they were brought into that of `array`.
    """
    array = np.asarray(array)
    is_single = array.dtype == "float32" or np.array_equal(array, array.astype("float32"))
    return max(_COARSE.get(dtype, 0.0), np.finfo("float32" if is_single else "float64").eps)


def inverse_above(values, least):
    """1 / v of values above 100 `least`, 0 of those below `least`, continuous between."""
    safe = np.maximum(values, least)
    t = np.minimum(np.log(safe / least) / np.log(RAMP), 1.0)
    return t**2 * (3 - 2 * t) / safe


def inverse_root(covariance, moments, eps):
    """A `(d, d)` with A A^T the pseudo-inverse of a covariance of numbers known to `eps`.

    Rounding errors are relative to the size of a column, so that all is measured in that: R = D^-1
    S D^-1 with D^2 the mean squares. A direction in which R is that of errors weighs 0; the others
    are those of the inverse. A column that is 0 changes no other.

    Args:
        covariance: S `(d, d)`, float64.
        moments: Means `(d,)` of the squares of each column, about 0.
        eps: Relative precision of the numbers that S is of.
    """
    sizes = np.sqrt(moments)
    inverse = np.where(sizes > 0, 1 / np.where(sizes > 0, sizes, 1), 0)
    values, vectors = np.linalg.eigh(covariance * inverse[:, None] * inverse)
    own = 4 * len(values) * np.finfo("float64").eps * max(values[-1], np.finfo("float64").tiny)
    gains = inverse_above(values, max((ULPS * eps) ** 2, own))
    return inverse[:, None] * vectors * np.sqrt(gains)


def pseudo_inverse(matrix):
    """M^+ of a matrix, of the singular values that are more than the rounding of its numbers."""
    left, values, right = np.linalg.svd(np.asarray(matrix, "float64"), full_matrices=False)
    least = (ULPS * precision(matrix) * max(values[0], np.finfo("float64").tiny)) ** 2
    return (right.T * (values * inverse_above(values**2, least))) @ left.T
