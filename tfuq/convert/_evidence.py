"""Laplace's estimate of the marginal likelihood of a last layer, and where it is largest.

```
log p(y) = log p(y | theta) - precision |theta|^2 / 2 - sum_i log(h_i / precision + 1) / 2
```

with h_i the eigenvalues of the curvature (MacKay 1992; Daxberger et al. 2021).
"""

import math
import warnings

import numpy as np
from scipy import optimize

LOWEST, HIGHEST = 1e-3, 1e3  # prior scales that are looked at
STEPS = 49


def evidence(log_likelihood, squares, eigenvalues, precision):
    """The formula above; `squares` is |theta|^2."""
    log_ratio = np.sum(np.log1p(eigenvalues / precision))
    return log_likelihood - precision * squares / 2 - log_ratio / 2


class Fixed:
    """A likelihood with nothing of its own to be found: of classes, or with noise that is known.

    Args:
        log_likelihood: Of all rows, at the trained weights.
    """

    def __init__(self, log_likelihood):
        self.log_likelihood = log_likelihood

    def noise(self, gaussian, precision):
        """The precisions of the noise `(units,)` that scale the curvature; 1 without any."""
        return 1.0

    def value(self, noise):
        """The log-likelihood."""
        return self.log_likelihood


class ConstantNoise:
    """Normal noise of one precision for each unit, at which the evidence is largest.

    Args:
        count: How many rows there are.
        residuals: Sums over the rows of squared residuals, `(units,)`.
    """

    def __init__(self, count, residuals):
        self.count, self.residuals = count, residuals

    def noise(self, gaussian, precision):
        """Where the derivative of the evidence is 0, which it is once:

        count - residuals / variance - sum_i h_i / (h_i + precision * variance)
        """
        values = gaussian.by_unit()
        low = np.log(self.residuals / self.count)  # the noise without weights to be found
        high = low + 30.0
        for _ in range(60):
            middle = (low + high) / 2
            variance = np.exp(middle)
            fitted = np.sum(values / (values + precision * variance), axis=0)
            above = self.count - self.residuals / variance - fitted > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return np.exp(-(low + high) / 2)

    def value(self, noise):
        logs = self.count * np.log(noise / (2 * math.pi)) - self.residuals * noise
        return np.sum(logs) / 2


def best_precision(likelihood, squares, gaussian):
    """The prior precision at which the evidence is largest."""

    def loss(log_precision):
        precision = math.exp(log_precision)
        noise = likelihood.noise(gaussian, precision)
        found = evidence(likelihood.value(noise), squares, gaussian.eigenvalues(noise), precision)
        return -found

    ends = [-2 * math.log(HIGHEST), -2 * math.log(LOWEST)]
    grid = np.linspace(*ends, STEPS)
    place = int(np.argmin([loss(each) for each in grid]))
    if place in (0, STEPS - 1):
        warn_of_end("the marginal likelihood", math.exp(-grid[place] / 2))
        return math.exp(grid[place])
    around = (grid[place - 1], grid[place + 1])
    found = optimize.minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def warn_of_end(criterion, scale):
    """Says that the search has come to an end of what it looks at."""
    warnings.warn(
        f"laplace_head: {criterion} is largest at an end of the prior scales that are tried, "
        f"{LOWEST:g} to {HIGHEST:g}: the network may be untrained, or the data may not be its "
        f"training data. Used: prior_scale={scale:.3g}",
        stacklevel=5,
    )
