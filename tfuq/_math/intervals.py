"""Intervals of a number: their ends from thresholds, misses, and the interval score.

All is arithmetic that NumPy and `keras.ops` name alike, so that arrays and graphs share it; `xp` is
one of the two.
"""

import numpy as np


def widened(ends, below, above, epsilon, xp=np):
    """`(lower, upper)` of the interval [low - below * scale, high + above * scale].

    An empty interval, whose ends cross, is its middle. What is not finite is unknown: (-inf, inf).
    Ends move by some `epsilon` of their size, so that a score equal to a threshold is inside
    whichever way it was rounded.

    Args:
        ends: `(low, high, scale)`, of one shape or a scalar `scale`.
        below, above: Thresholds, which broadcast against the ends.
        epsilon: Of the dtype.
        xp: `numpy` or `keras.ops`.
    """
    low, high, scale = ends
    down, up = below * scale, above * scale
    lower = low - down - 4 * epsilon * (xp.abs(low) + xp.abs(down))
    upper = high + up + 4 * epsilon * (xp.abs(high) + xp.abs(up))
    middle = (lower + upper) / 2
    lower, upper = xp.minimum(lower, middle), xp.maximum(upper, middle)
    known = xp.isfinite(low) & xp.isfinite(high) & xp.isfinite(scale + 0 * low)
    return (
        xp.where(known & ~xp.isnan(lower), lower, -np.inf),
        xp.where(known & ~xp.isnan(upper), upper, np.inf),
    )


def beyond(ends, y, xp=np):
    """How far y is below and above an interval, in units of its scale; negative inside.

    Args:
        ends: As in `widened`.
        y: Numbers of the shape of the ends.
        xp: `numpy` or `keras.ops`.
    """
    low, high, scale = ends
    return tuple(
        xp.where(gap == 0, 0.0, gap / xp.where(gap == 0, 1.0, scale)) for gap in (low - y, y - high)
    )


def is_inside(lower, upper, y):
    """Whether y is in the closed interval."""
    return (y >= lower) & (y <= upper)


def interval_score(lower, upper, y, alpha, xp=np):
    """(u - l) + 2 / alpha (l - y)_+ + 2 / alpha (y - u)_+   (Winkler 1972)."""
    outside = xp.maximum(lower - y, 0.0) + xp.maximum(y - upper, 0.0)
    return upper - lower + 2 / alpha * outside
