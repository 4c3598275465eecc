"""Scores of the parts of an example: of its labels, of its pixels."""

import numpy as np

from tfuq._models.batches import batches
from tfuq._models.finite import finite_rows


def scores_of_parts(detector, x, of_batch, batch_size, verbose):
    """`of_batch(batch)` `(batch, ...)` of all of `x`; inf of what is not finite."""
    detector._check_to_score()
    scores = []
    for batch, *_ in batches(x, batch_size, verbose, model=detector.model):
        found = np.asarray(of_batch(batch))
        found = np.where(np.isnan(found), np.inf, found)
        rows = np.reshape(finite_rows(batch), (-1,) + (1,) * (found.ndim - 1))
        scores.append(np.where(rows, found, np.inf))
    return np.concatenate(scores)
