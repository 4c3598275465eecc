"""Counts of errors that are too few to be luck, for all thresholds at once.

The flat walk is the count of errors when each example errs with the same probability, the risk that
is to be excluded. `_guarantees` says why the errors of no threshold that is too lenient are fewer
than those of such a walk, wherever in the order the threshold lies. So whatever the walk does with
a small probability only, at whichever of its steps, shows a safe threshold, at whichever level.

Of few expected errors the probability that the walk ever meets a curve is computed step by step,
and that it meets the curve or passes one test of a chain beside it, too. That is less than the sum:
often it is the same walk, and of the curve only what comes after the test counts. Of many, Ville's
inequality bounds it: a mixture of likelihood ratios against lower risks is a martingale of mean 1
under the flat walk, and is ever above 1 / eps with a probability of at most eps (Robbins 1970).
"""

import functools

import numpy as np
from scipy import stats
from scipy.special import logsumexp

MOST_ERRORS = 800  # expected, up to which the probability is computed
MOST_LEVELS = 4096  # that the martingale looks at
SOME_LEVELS = 256  # at a time
TILT = 0.4  # levels of the curve grow with the examples to this power, if no other is asked for
RATIOS = 48  # lower risks in the mixture
STEPS = 12  # of the bisection
POINTS = 2000  # at which a chain may begin to allow an error more


@functools.lru_cache(64)
def curve_from(total, risk, start, eps, tilt=TILT):
    """After how many examples, of `total`, c errors are too few: `start` for c = 0, then ascending.

    From c = 1 on the first m with P(Bin(m, risk) <= c) <= a (m / total)^tilt, with the largest a of
    a bisection for which a flat walk ever meets that, or has no error up to `start`, with a
    probability of at most `eps`; none but `start` where that alone takes `eps`.
    """
    low, high, found = 0.0, eps, np.array([start])
    for _ in range(STEPS):
        middle = np.sqrt(low * high) if low else high / 8
        tried = first_looks(total, risk, middle, tilt)
        tried = np.concatenate([[start], np.maximum(tried[1:], start)])
        if meets(tried, risk) <= eps * (1 + 1e-9):
            low, found = middle, tried
        else:
            high = middle
    found.setflags(write=False)
    return found


@functools.lru_cache(64)
def chain_beside_curve(total, risk, start, eps, tilt=TILT):
    """After how many examples a chain may go on with c errors: `start` for c = 0, then ascending.

    The first a with P(W(a) <= c, or W meets `curve_from` at a or later) <= eps for a flat walk W;
    that falls with a, and is computed from the last to the first of the places, the curve's looks
    among them. So whatever one test of the chain and the curve from there on say together is wrong
    with a probability of at most `eps`.
    """
    curve = curve_from(total, risk, start, eps, tilt)
    places = np.geomspace(start, total, POINTS).astype(int)
    if total - start < POINTS:
        places = np.arange(start, total + 1)
    places = np.unique(np.concatenate([places, curve, [total]]))
    most = max(len(curve), int(stats.binom.ppf(eps, total, risk)) + 1)
    errors, found = np.arange(most + 1), np.full(most + 1, total + 1)
    meeting = np.zeros(most + 1)  # P(W meets the curve at the place or later | its errors so far)
    allowed = np.searchsorted(curve, places, side="right") - 1
    for i in range(len(places) - 1, -1, -1):
        if i + 1 < len(places):
            step = _steps(int(places[i + 1] - places[i]), risk, most)
            meeting = np.convolve(meeting, step[::-1])[len(step) - 1 :]
        meeting[: allowed[i] + 1] = 1
        here = stats.binom.pmf(errors, places[i], risk)
        passes = here @ meeting + np.cumsum(here * (1 - meeting)) <= eps * (1 + 1e-9)
        found[passes] = places[i]
    found[0] = start
    found = found[found <= total]
    found.setflags(write=False)
    return found


def first_looks(total, risk, level, tilt=0.0):
    """The first m with P(Bin(m, risk) <= c) <= level (m / total)^tilt, of each c that has one.

    The left side falls with m, the right side does not.
    """
    most = int(stats.binom.ppf(level, total, risk))
    errors = np.arange(most + 1)
    errors = errors[stats.binom.cdf(errors, total, risk) <= level]
    low, high = np.zeros(len(errors), int), np.full(len(errors), total)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        enough = stats.binom.cdf(errors, middle, risk) <= level * (middle / total) ** tilt
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def meets(looks, risk):
    """P(a flat walk has c or fewer errors after `looks[c]` steps, for any c), `looks` ascending.

    That can only happen with c errors: with fewer it happened before.
    """
    alive, met, before = np.ones(1), 0.0, 0  # `alive[i]`: c + i errors and not met yet
    for c, look in enumerate(looks):
        step = _steps(int(look) - before, risk, len(looks))
        alive = np.convolve(alive, step)[: len(looks) - c]
        met, alive, before = met + alive[0], alive[1:], int(look)
        if not len(alive):
            break
    return met


@functools.lru_cache(4096)
def _steps(count, risk, most):
    """Probabilities of 0, 1, ... errors in `count` steps, no more than can matter."""
    return stats.binom.pmf(np.arange(min(count, most) + 1), count, risk)


def levels_of_rare_errors(accepted, errors, risk, eps, looked=None):
    """The levels whose errors are too few for a flat walk of `risk`, of many, ascending.

    `accepted` and `errors` are counts of each level, `(levels,)`; those `looked` are looked at, by
    default some. The martingale is above 1 / eps at any of a walk's steps with a probability of
    at most `eps`.
    """
    if looked is None:
        looked = some_levels(len(accepted))
    return looked[_is_rare(accepted[looked], errors[looked], risk, eps, int(accepted[-1]))]


def some_levels(count):
    """Up to `MOST_LEVELS` of so many levels, at equal steps."""
    return np.unique(np.linspace(0, count - 1, MOST_LEVELS).astype(int))


def _is_rare(accepted, errors, risk, eps, total):
    """Whether the mean of the likelihood ratios against lower risks reaches 1 / eps."""
    lower = risk * (1 - np.geomspace(0.5 / np.sqrt(total * risk), 0.98, RATIOS))
    found = []
    for start in range(0, len(errors), SOME_LEVELS):
        wrong = errors[start : start + SOME_LEVELS, None]
        right = accepted[start : start + SOME_LEVELS, None] - wrong
        ratios = wrong * np.log(lower / risk) + right * np.log((1 - lower) / (1 - risk))
        found.append(logsumexp(ratios, axis=1) - np.log(RATIOS) >= -np.log(eps))
    return np.concatenate(found)
