"""Ranking of weights by saliency: counts and indices, per layer or over a whole network."""

import numpy as np

from tfuq._math.rounding import rounded_up

SCOPES = ("layer", "global")


def count_bayesian(rate, size):
    """ceil(rate * size), of a product that rounding may have put just above an integer."""
    return rounded_up(rate * size)


def top_indices(saliency, count):
    """Flat indices of the `count` largest, ascending; of equal ones, the first."""
    flat = np.ravel(saliency)
    if count == 0:
        return np.zeros(0, "int32")
    least = np.partition(flat, -count)[-count]
    above, equal = np.flatnonzero(flat > least), np.flatnonzero(flat == least)
    return np.sort(np.concatenate([above, equal[: count - len(above)]])).astype("int32")


def global_counts(saliencies, count):
    """How many of each array are among the `count` largest of all; of equal ones, the first."""
    ends = np.cumsum([np.size(saliency) for saliency in saliencies])
    together = np.concatenate([np.ravel(saliency) for saliency in saliencies])
    chosen = top_indices(together, count)
    return np.diff(np.searchsorted(chosen, ends), prepend=0).tolist()


def check_saliency(name, saliency, shape):
    """The array, or ValueError unless it has `shape` and is finite."""
    saliency = np.asarray(saliency)
    if saliency.shape != tuple(shape):
        raise ValueError(
            f"Argument `{name}` must have the shape of the weights, {tuple(shape)}. "
            f"Received: {name} of shape {saliency.shape}"
        )
    if not np.all(np.isfinite(saliency)):
        raise ValueError(
            f"Argument `{name}` must be finite. Received: {name} with "
            f"{np.count_nonzero(~np.isfinite(saliency))} values that are NaN or infinite"
        )
    return saliency
