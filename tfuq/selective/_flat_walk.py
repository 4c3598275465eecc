"""Counts of errors that are too few to be luck, for all thresholds at once.

The flat walk is the count of errors when each example errs with the same probability, the risk that
is to be excluded. `_guarantees` says why the errors of no threshold that is too lenient are fewer
than those of such a walk, wherever in the order the threshold lies. So whatever the walk does with
a small probability only, at whichever of its steps, shows a safe threshold, at whichever level.

Of few expected errors the probability that the walk ever meets a curve is computed step by step. Of
many, Ville's inequality bounds it: a mixture of likelihood ratios against lower risks is a
martingale of mean 1 under the flat walk, and is ever above 1 / eps with a probability of at most
eps (Robbins 1970).
"""

import functools

import numpy as np
from scipy import stats
from scipy.special import logsumexp

MOST_ERRORS = 800  # expected, up to which the probability is computed
MOST_LEVELS = 4096  # that the martingale looks at
TILT = 0.4  # levels of the curve grow with the examples to this power
RATIOS = 48  # lower risks in the mixture
STEPS = 9  # of the bisection


def last_under_curve(accepted, errors, risk, eps):
    """The last level with too few errors for a flat walk of `risk`, or None.

    `accepted` and `errors` are counts of each level, `(levels,)`. A walk has as few at any of its
    steps with a probability of at most `eps`.
    """
    total = int(accepted[-1])
    if not np.any(stats.binom.cdf(errors, accepted, risk) <= eps):
        return None  # all of the curve is stricter than that
    if risk * total <= MOST_ERRORS:
        few = errors <= curve(total, risk, eps)[np.asarray(accepted, int) - 1]
        levels = np.flatnonzero(few)
    else:
        looked = np.unique(np.linspace(0, len(accepted) - 1, MOST_LEVELS).astype(int))
        levels = looked[_is_rare(accepted[looked], errors[looked], risk, eps, total)]
    return int(levels[-1]) if len(levels) else None


@functools.lru_cache(64)
def curve(total, risk, eps):
    """The most errors among the first m examples, m = 1 to `total`; -1 for none.

    The largest c(m) with P(Bin(m, risk) <= c(m)) <= a (m / total)^TILT for all m, with the largest
    a of a bisection for which a flat walk ever meets c with a probability of at most `eps`.
    """
    places = np.arange(1, total + 1)
    shape = (places / total) ** TILT
    low, high, found = 0.0, eps, np.full(total, -1)
    for _ in range(STEPS):
        middle = np.sqrt(low * high) if low else high / 8
        tried = _quantiles(places, risk, middle * shape)
        if meets(tried, risk) <= eps:
            low, found = middle, tried
        else:
            high = middle
    found.setflags(write=False)
    return found


def _quantiles(places, risk, level):
    """The largest c with P(Bin(m, risk) <= c) <= level."""
    guess = stats.binom.ppf(level, places, risk)
    return np.where(stats.binom.cdf(guess, places, risk) <= level, guess, guess - 1).astype(int)


def meets(most, risk):
    """P(a flat walk has at most `most[m - 1]` errors after m steps, for any m), `most` ascending.

    That can only happen where `most` rises to c, and with c errors: with fewer it happened before.
    """
    looks = np.searchsorted(most, np.arange(most[-1] + 1)) + 1
    alive, met, before = np.ones(1), 0.0, 0  # `alive[i]`: c + i errors and not met yet
    for c, look in enumerate(looks):
        step = _steps(int(look) - before, risk)
        alive = np.convolve(alive, step)[: len(looks) - c]
        met, alive, before = met + alive[0], alive[1:], int(look)
        if not len(alive):
            break
    return met


@functools.lru_cache(4096)
def _steps(count, risk):
    return stats.binom.pmf(np.arange(count + 1), count, risk)


def _is_rare(accepted, errors, risk, eps, total):
    """Whether the mean of the likelihood ratios against lower risks reaches 1 / eps."""
    lower = risk * (1 - np.geomspace(0.5 / np.sqrt(total * risk), 0.98, RATIOS))
    errors, right = errors[:, None], (accepted - errors)[:, None]
    ratios = errors * np.log(lower / risk) + right * np.log((1 - lower) / (1 - risk))
    return logsumexp(ratios, axis=1) - np.log(RATIOS) >= -np.log(eps)
