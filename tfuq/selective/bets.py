"""Wealth of games that are fair while nothing has changed, one begun at every 64th case.

A game multiplies what it began with by a factor at each case, whose mean is at most 1 given all
cases before. Game k begins after 64 k cases with w_k, all fixed beforehand and together at most 1;
what no game has begun with is kept:

```
wealth(t) = sum over k with 64 k < t of w_k * (its factors from case 64 k + 1 to case t)
            + 1 - sum over the same k of w_k
```

Why an alarm at a wealth of 1 / alpha is false with a probability of at most alpha, over the whole
stream, however long it is and however often one looks. Given the cases up to t, the mean of each
game's part after case t + 1 is at most the part, or w_k of a game that begins there, which leaves
what is kept. So the mean of wealth(t + 1) is at most wealth(t): a supermartingale of at least 0
that is 1 at first, which ever reaches 1 / alpha with a probability of at most alpha (Ville 1939).
That wealth stops at `MOST` only makes it less. Tests beside each other add up their parts of alpha.

Why a change is seen however late it comes. Games that began in quiet times lose all they have, as
fast as they bet; those to come lose nothing. After a change at case t the next game needs to grow
by 1 / (alpha w_k) with k = t / 64, which is as k log(k)^2: after 50,000 quiet cases the logarithm
of that is 16. A single game has lost by then, and would need hundreds.

`Bets` play with losses in [0, 1] whose mean is at most r given those before: factors are
1 + (q - r) (L - r) / (r (1 - r)) for some q > r (Waudby-Smith and Ramdas 2024; mixtures over
starts: Shin et al. 2024). `Jumps` play with p-values, each of them uniform given those before if
scores are exchangeable: factors are 1 + slope (p - 1/2), and a part of the wealth changes its slope
at each case, of which the sum stays (Vovk et al. 2021).
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln

BLOCK = 64  # cases between two starts
RATIOS = np.array([1.3, 1.6, 2.0, 3.0])  # q / r, as far as q is below 1
WEIGHTS = np.array([0.2, 0.2, 0.5, 0.1])
SLOPES, JUMP = np.array([-1.6, -0.6, 0.6, 1.6]), 0.001
MOST = 1e100  # wealth stops there
_NORM = 2.11  # at least the sum of 1 / (k log(k)^2) from k = 2 on


def start_weight(block):
    """What the game of a block begins with, 0 for the first; all together at most 1."""
    return 1 / (_NORM * (block + 2) * np.log(block + 2) ** 2)


def spent_after(count):
    """What all games have begun with that are played after so many cases."""
    return float(np.cumsum([0.0, *start_weight(np.arange(-(-count // BLOCK)))])[-1])


class Games:
    """Games of one stream or of several, begun after every 64th case.

    Args:
        parts: Share of each way to bet, `(ways,)`, together 1.
        count: Number of cases so far.
        sums: Wealth of the games so far, `(..., ways)`.
    """

    def __init__(self, parts, count=0, sums=None):
        self.parts, self.count, self.spent = parts, count, spent_after(count)
        self.sums = np.zeros(len(parts)) if sums is None else np.asarray(sums, "float64")

    def _play(self, factors):
        self.sums, self.count = np.minimum(self.sums * factors, MOST), self.count + 1

    def _begin(self):
        if self.count % BLOCK == 0:
            weight = start_weight(self.count // BLOCK)
            self.sums, self.spent = self.sums + weight * self.parts, self.spent + weight

    @property
    def wealth(self):
        return np.sum(self.sums, axis=-1) + 1 - self.spent


class Bets(Games):
    """Bets that the mean of losses is above `bound`."""

    def __init__(self, bound, count=0, sums=None):
        super().__init__(WEIGHTS, count, sums)
        self.bound = bound
        means = np.minimum(RATIOS * bound, (1 + bound) / 2)
        self.slopes = (means - bound) / (bound * (1 - bound))

    def take(self, loss):
        """One more case of each stream: its loss, a number or `(streams,)`."""
        self._begin()
        self._play(1 + self.slopes * (np.asarray(loss, "float64")[..., None] - self.bound))


class Jumps(Games):
    """Bets that p-values are not uniform: that they are large, or small."""

    def __init__(self, count=0, sums=None):
        super().__init__(np.full(len(SLOPES), 1 / len(SLOPES)), count, sums)

    def take(self, p_value):
        """One more case of each stream: its p-value, a number or `(streams,)`."""
        self._begin()
        mean = np.mean(self.sums, axis=-1, keepdims=True)
        self.sums = (1 - JUMP) * self.sums + JUMP * mean
        self._play(1 + SLOPES * (np.asarray(p_value, "float64")[..., None] - 0.5))


def mean_upper_bound(total, count, alpha):
    """A bound above the mean of losses in [0, 1], valid at all counts together with 1 - alpha.

    The largest q that the mixture of q'^L (1 - q')^(1 - L) over uniform q' does not exclude:
    B(S + 1, n - S + 1) < q^S (1 - q)^(n - S) / alpha (Robbins 1970).
    """

    def excess(q):
        right = total * np.log(q) + (count - total) * np.log1p(-q)
        return betaln(total + 1, count - total + 1) - right + np.log(alpha)

    if not count or total >= count:
        return 1.0
    return float(brentq(excess, max(total / count, 1e-12), 1 - 1e-12))
