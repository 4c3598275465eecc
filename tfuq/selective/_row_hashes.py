"""Hashes of labelled predictions, by which rows are known again."""

import numpy as np

STEP = 1e-4  # of probabilities: graphs and arrays round the last bits differently
MOST = 10_000  # hashes that are remembered
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_known = {}  # hash of what a calibration gives for the rows that it was fitted to: its name


def rows_hash(probs, labels):
    """A text that does not depend on the order of the rows.

    Args:
        probs: Probabilities `(..., classes)`.
        labels: Classes, one for each row.
    """
    rows = np.asarray(probs, "float64").reshape(-1, np.shape(probs)[-1])
    rows = rows[:, 1:] if rows.shape[1] == 2 else rows
    labels = np.asarray(labels).ravel()
    found = labels.astype("int64").astype("uint64")
    with np.errstate(over="ignore", invalid="ignore"):
        for column in np.nan_to_num(np.round(rows / STEP)).astype("int64").astype("uint64").T:
            found = _mixed((found + column) * _PRIME)
        total = int(np.sum(found, dtype="uint64"))
    return f"{len(found)}-{total:016x}"


def _mixed(values):
    """Bits of uint64 spread over all others (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def remember(text, name):
    """Keeps the hash of the calibrated rows that a calibration of this name was fitted to."""
    _known[text] = name
    while len(_known) > MOST:
        del _known[next(iter(_known))]


def fitted_by(text):
    """The name of the calibration that was fitted to rows of this hash, or None."""
    return _known.get(text)
