"""Thresholds at the values of a score that has few, of which some examples tell which they are.

A chain that has to start at a count of examples walks through equal scores one by one, and ends at
errors that are early among them by chance. Whole values have no such order. But which thresholds
they are must not be told by the examples that are tested: the first of them that is too lenient
might just not have been seen. So a few examples are drawn and not used again (`without_some`); the
others are independent draws, and the values that the few have are thresholds fixed beforehand. If
these are `MOST_DRAWN` at most, each is tested with a binomial p-value, from strict to lenient, with
its share of the error and that of the one before if that passed (Wiens 2003); of all that pass none
is too lenient with a probability of at least 1 - delta. Else the others are tested as examples of a
score of many values are, which holds whatever was drawn.

Examples of a score of many values should not pay for this, and whether a score has many is seen in
the same examples. Let T be the number of values that n examples have. Up to `FEW` they are tested
with some drawn and left out, from `many_values` on as they are, and in between both ways, and what
both accept is accepted. Which values are seen are negatively associated indicators (Dubhashi and
Ranjan 1998; of a part without ties, by ever finer cells), so that with m = E[T] Chernoff's bounds
hold as for independent ones:

    P(T <= t) <= exp(-m) (e m / t)^t for t <= m,    P(T >= t) <= the same for t >= m

and T changes by at most 1 with one of n independent examples: P(|T - m| >= x) <= exp(-2 x^2 / n) on
either side (McDiarmid 1989). `many_values` is so far from `FEW` that, whatever m is, either one or
the other has a probability of at most eps. If T <= FEW has, an error is one of the test of all
examples, or T <= FEW; if T >= `many_values` has, it is one of the test without some, or that. So
both are tested with an error of delta - eps, and the error is at most delta.
"""

import numpy as np

FEW = 10  # values of so many examples, up to which some are left out
SPENT = 1e-3  # of the error, on telling few values from many
DRAWN = 8, 16  # examples that tell the thresholds: a 25th, but no fewer and no more
MOST_DRAWN = 3  # values of those drawn, up to which each is tested
LEAST_TIMES = 2  # examples over the fewest that can pass, below which none are left out
# By examples over the fewest that can pass: the share of the strictest of three thresholds; the
# next has the rest, and the last what these hand on.
SHARES = ((5, 0.0), (20, 0.05), (np.inf, 1.0))


def many_values(total, eps):
    """So many values that a score has not both seldom as many and seldom no more than `FEW`."""
    room = -np.log(eps)
    means = np.linspace(FEW, 10 * (FEW + room), 4000)
    mean = means[np.argmax(means - FEW * (1 + np.log(means / FEW)) >= room)]
    values = np.arange(np.ceil(mean), 20 * (FEW + room))
    by_chernoff = values[np.argmax(mean - values * (1 + np.log(mean / values)) >= room)]
    by_differences = np.ceil(FEW + 2 * np.sqrt(total * room / 2))
    return int(min(by_chernoff, by_differences))


def without_some(accepted, errors, rng):
    """The levels of some examples drawn, ascending, and both sums over the others, `(levels,)`.

    They are drawn one by one, and no more once they have more than `MOST_DRAWN` values.
    """
    sizes, wrong = np.diff(accepted, prepend=0), np.diff(errors, prepend=0).astype("int64")
    cells = np.concatenate([sizes - wrong, wrong]).astype("int64")
    count = int(np.clip(accepted[-1] // 25, *DRAWN))
    drawn = np.repeat(np.arange(len(cells)), rng.multivariate_hypergeometric(cells, count))
    drawn = rng.permutation(drawn)
    seen = [len(np.unique(drawn[: i + 1] % len(sizes))) for i in range(count)]
    drawn = drawn[: np.searchsorted(seen, MOST_DRAWN + 1) + 1]
    cells = cells - np.bincount(drawn, minlength=len(cells))
    right, wrong = cells.reshape(2, -1).cumsum(axis=1)
    return np.unique(drawn % len(sizes)), right + wrong, wrong.astype(errors.dtype)


def shares_of(count, times):
    """Shares of the error of `count` thresholds, the strictest first, `times` as in `SHARES`."""
    first = next(share for most, share in SHARES if times < most) if count > 2 else 1.0
    return np.array([first, 1 - first, 0.0])[:count]


def passed_in_turn(p_values, shares, delta):
    """Which pass, each with its share of `delta` and that of the one before if that passed."""
    found, budget = np.zeros(len(p_values), bool), 0.0
    for i, (p_value, share) in enumerate(zip(p_values, shares, strict=True)):
        budget += share
        found[i] = budget > 0 and p_value <= budget * delta * (1 + 1e-12)
        budget = budget if found[i] else 0.0
    return found
