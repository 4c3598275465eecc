"""Equal scores in an order that is drawn: alike for the same sums, anew for others.

`sums` are those of `_guarantees.Sums` whose losses are errors, 0 or 1.
"""

import zlib

import numpy as np
from scipy import stats

from tfuq._math.bounds import binomial_p_value

MOST_BLOCK = 2**16  # levels at a time


def places_of_errors(sums, most):
    """Where the first errors are, up to `most`, counted from 1, equal scores in a drawn order."""
    wanted = np.arange(1, min(most, int(sums.loss[-1])) + 1)
    levels = np.searchsorted(sums.loss, wanted.astype(sums.loss.dtype))
    places = sums.accepted[levels].astype("int64")
    above = np.where(levels > 0, sums.accepted[levels - 1], 0).astype("int64")
    tied = np.unique(levels[places - above > 1])
    rng = np.random.default_rng(seed_of(sums)) if len(tied) else None
    for level in tied:
        first, stop = np.searchsorted(levels, [level, level + 1])
        wrong = sums.loss[level] - (sums.loss[level - 1] if level else 0)
        ties = places[first] - above[first]
        drawn = np.sort(rng.choice(ties, int(wrong), replace=False))
        places[first:stop] = above[first] + 1 + drawn[: stop - first]
    return places


def errors_of_first(sums, level, count):
    """Errors of the first `count` examples, which end in `level`, its ties in a drawn order."""
    above = (sums.accepted[level - 1], sums.loss[level - 1]) if level else (0, 0)
    ties, wrong = int(sums.accepted[level] - above[0]), int(sums.loss[level] - above[1])
    drawn = int(count - above[0])
    if drawn in (0, ties):
        return above[1] + (wrong if drawn else 0)
    uniform = np.random.default_rng(seed_of(sums)).random()
    return above[1] + int(stats.hypergeom.ppf(uniform, ties, wrong, drawn))


def first_failure_within(sums, risk, start, end, passed, delta):
    """The first level from `start` to `end` within which a test fails, or `end`.

    The first `passed` examples, which end in `start`, hold no error. An example without an error
    fails no test, so those with one are tested, each with all before it. Errors that come first in
    their tie make the largest p-value: where that passes, no order is drawn.
    """
    rng = None
    for first in range(start, end, MOST_BLOCK):
        levels = slice(first, min(first + MOST_BLOCK, end))
        count, wrong, above, errors = _ties(sums, levels, passed if first == start else None)
        tied = np.flatnonzero((count > wrong) & (wrong > 0))
        worst = binomial_p_value((errors + wrong)[tied], (above + wrong)[tied], risk)
        for level in tied[worst > delta]:
            rng = rng or np.random.default_rng([*seed_of(sums), first])
            drawn = np.sort(rng.choice(count[level], wrong[level], replace=False))
            places, found = above[level] + 1 + drawn, errors[level] + 1 + np.arange(wrong[level])
            if np.any(binomial_p_value(found, places, risk) > delta):
                return first + int(level)
    return end


def _ties(sums, levels, passed):
    """Examples and errors of each level, and those above it; of the first after `passed`."""
    accepted, errors = (part[levels].astype("int64") for part in sums[:2])
    before = levels.start - 1
    top = (sums.accepted[before], sums.loss[before]) if levels.start else (0, 0)
    top = top if passed is None else (passed, 0)
    above, errors_above = (
        np.concatenate([[int(value)], part[:-1]])
        for value, part in zip(top, (accepted, errors), strict=True)
    )
    return accepted - above, errors - errors_above, above, errors_above


def seed_of(sums):
    """Of what is drawn: anew for each set of examples, alike whatever their order."""
    return [_crc32(part) for part in sums[:2]]


def _crc32(values):
    """That of all of them in float64, of which a block is copied at a time."""
    found = 0
    for start in range(0, len(values), MOST_BLOCK):
        part = np.asarray(values[start : start + MOST_BLOCK], "float64")
        found = zlib.crc32(part.tobytes(), found)
    return found
