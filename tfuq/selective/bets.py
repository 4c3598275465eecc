"""Wealth of bets against a promise, case by case, of one stream or of several.

Formula, of losses L in [0, 1] whose mean is at most r, betting on a mean of q > r:

```
factor = 1 + (q - r) (L - r) / (r (1 - r)),   E[factor] <= 1
wealth = sum over q and starts k of v_q w_k * product of the factors since start k + sum of the
         weights of the starts to come
```

with a start at every 64th case, so that a change is seen however late it comes (Waudby-Smith and
Ramdas 2024; mixtures over starts: Shin et al. 2024).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln

BLOCK = 64  # cases between two starts
RATIOS = np.array([1.3, 1.6, 2.0, 3.0])  # q / r, as far as q is below 1
WEIGHTS = np.array([0.2, 0.2, 0.5, 0.1])
SLOPES = np.array([-1.6, 0.0, 1.6])
JUMP = 0.01
MOST = 1e100  # wealth stops there
NORM = 2.11  # at least the sum of 1 / (k log(k)^2) from k = 2 on


def start_weight(block):
    """Weight of the start of a block, 0 for the first; all together are at most 1."""
    return 1 / (NORM * (block + 2) * np.log(block + 2) ** 2)


class Bets:
    """Wealth of bets that the mean of losses is above `bound`, of one stream or several.

    `sums` are those of the starts so far, `(..., bets)`, after `count` cases.
    """

    def __init__(self, bound, count=0, sums=None):
        self.bound, self.count = bound, count
        self.spent = sum(map(start_weight, range(-(-count // BLOCK))), 0.0)
        means = np.minimum(RATIOS * bound, (1 + bound) / 2)
        self.slopes = (means - bound) / (bound * (1 - bound))
        self.sums = np.zeros(len(RATIOS)) if sums is None else np.asarray(sums, "float64")

    def take(self, loss):
        """One more case of each stream: its loss, a number or `(streams,)`."""
        if self.count % BLOCK == 0:
            weight = start_weight(self.count // BLOCK)
            self.sums, self.spent = self.sums + weight * WEIGHTS, self.spent + weight
        factors = 1 + self.slopes * (np.asarray(loss, "float64")[..., None] - self.bound)
        self.sums, self.count = np.minimum(self.sums * factors, MOST), self.count + 1

    @property
    def wealth(self):
        return np.sum(self.sums, axis=-1) + 1 - self.spent


def jumped(sums, p_value):
    """Wealths `(..., slopes)` after one more p-value, which is uniform if scores are exchangeable.

    The simple jumper (Vovk et al. 2021): bets 1 + slope (p - 1/2), a hundredth changing slopes.
    """
    sums = (1 - JUMP) * sums + JUMP * np.mean(sums, axis=-1, keepdims=True)
    factors = 1 + SLOPES * (np.asarray(p_value, "float64")[..., None] - 0.5)
    return np.minimum(sums * factors, MOST)


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
