"""Bounds for means of bounded losses that hold for any number of examples."""

import numpy as np
from scipy import stats
from scipy.special import rel_entr


def clopper_pearson_upper(errors, n, confidence):
    """The largest rate under which `errors` or fewer of `n` have a probability 1 - confidence.

    Clopper and Pearson 1934, one-sided; 1 for no examples.
    """
    errors, n = np.asarray(errors, "float64"), np.asarray(n, "float64")
    bound = stats.beta.ppf(confidence, errors + 1, np.maximum(n - errors, 1e-300))
    return np.where(errors >= n, 1.0, bound)


def clopper_pearson_interval(errors, n, confidence=0.95):
    """Two-sided interval of a rate, `(lower, upper)`; (0, 1) for no examples."""
    side = (1 + confidence) / 2
    return (
        1 - clopper_pearson_upper(np.asarray(n) - errors, n, side),
        clopper_pearson_upper(errors, n, side),
    )


def wilson_interval(successes, n, confidence=0.95):
    """Two-sided interval of a rate, `(lower, upper)` (Wilson 1927); (0, 1) for no examples."""
    successes, n = np.asarray(successes, "float64"), np.asarray(n, "float64")
    z2 = stats.norm.ppf((1 + confidence) / 2) ** 2
    rate = np.divide(successes, n, out=np.full(np.broadcast(successes, n).shape, 0.5), where=n > 0)
    centre = (rate * n + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (rate * (1 - rate) * n + z2 / 4)) / (n + z2)
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def binomial_p_value(errors, n, risk):
    """P(Bin(n, risk) <= errors): small where a rate above `risk` is hard to believe."""
    return stats.binom.cdf(errors, n, risk)


def hoeffding_bentkus_p_value(mean, n, risk):
    """The same for the mean of `n` losses in [0, 1] (Bates et al. 2021, proposition 3).

    min(exp(-n h(min(mean, risk), risk)), e P(Bin(n, risk) <= ceil(n mean)))
    with h(a, b) = a log(a / b) + (1 - a) log((1 - a) / (1 - b)).
    """
    mean, n = np.asarray(mean, "float64"), np.asarray(n, "float64")
    low = np.clip(np.minimum(mean, risk), 0, 1)
    divergence = rel_entr(low, risk) + rel_entr(1 - low, 1 - risk)
    bentkus = np.e * stats.binom.cdf(np.ceil(np.round(n * mean, 9)), n, risk)
    return np.minimum(np.minimum(np.exp(-n * divergence), bentkus), 1.0)
