"""Lowest risk that could be promised, and how many examples like these would show a risk."""

import numpy as np

from tfuq._math.bounds import binomial_p_value
from tfuq.selective._guarantees import (
    METHODS,
    MOST_BLOCK,
    Sums,
    chain_and_curve,
    passes,
    selection_with_guaranteed_risk,
    shared_starts,
    smallest_where,
    starts_without_error,
)


def examples_expected(sums, risk, delta):
    """About how many examples would show `risk`, were they as these; None if the risk is above it.

    The least of all levels: the number for which the binomial p-value of the level's own rate (half
    an error and half a right answer added) is at most a tenth of `delta`.
    """
    if not (isinstance(sums, Sums) and sums.binary):
        return None
    levels = _levels_under(sums, risk)
    if not len(levels):
        return None
    levels = levels[np.unique(np.linspace(0, len(levels) - 1, 200).astype(int))]
    total, chosen = int(sums.accepted[-1]), sums.accepted[levels]
    rate = _rates(sums, levels)
    counts = np.geomspace(1.1 * total, 1000 * total, 100)[:, None]
    accepted = np.ceil(counts * chosen / total)
    p_values = binomial_p_value(np.ceil(accepted * rate), accepted, risk)
    enough = np.any(p_values <= delta / 10, axis=1)
    return int(np.ceil(counts[enough.argmax(), 0])) if enough.any() else None


def _rates(sums, levels):
    return (sums.loss[levels] + 0.5) / (sums.accepted[levels] + 1.0)


def _levels_under(sums, risk):
    """The levels whose rate is below `risk`, looked at in blocks."""
    found = [np.zeros(0, int)]
    for start in range(0, len(sums.accepted), MOST_BLOCK):
        rates = _rates(sums, slice(start, start + MOST_BLOCK))
        found.append(start + np.flatnonzero(rates < risk))
    return np.concatenate(found)


def best_promise(sums, delta, method, above=0.0):
    """The lowest risk that could be promised from these examples, and for which level, or None.

    It is above a risk that was found not to be: tests of other risks start elsewhere, and may pass.
    Whether any level passes shows at the few where tests start, so that `ltt` looks at no others.
    """

    def can_be_promised(risk):
        if method == "auto" and isinstance(sums, Sums) and sums.binary:
            return starts_without_error(sums, risk, delta) or (
                chain_and_curve(sums, risk, delta) is not None
            )
        if method == "sgr":
            return selection_with_guaranteed_risk(sums, risk, delta) is not None
        starts, shares = shared_starts(sums, risk, delta)
        return bool(starts) and bool(np.any(passes(sums, risk, starts, shares)))

    risk = smallest_where(can_be_promised, 25, above)
    return risk, METHODS[method](sums, risk, delta) if risk < 1 else None
