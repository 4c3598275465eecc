"""Calibrated predictions that know which raw rows they were made of."""

import numpy as np

from tfuq.selective._row_hashes import raw_hashes, shared_rows


class Calibrated(np.ndarray):
    """Calibrated predictions `(n, ...)`, with hashes of the raw rows.

    Steps of an isotonic fit make equal predictions of different rows, so that values alone cannot
    tell whether the calibration has seen a row. Rows that are chosen from the array keep their
    hashes; what is computed from it is a plain array.
    """

    rows = source = None

    def __array_finalize__(self, other):
        rows = getattr(other, "rows", None)
        if rows is not None and self.shape[:1] == rows.shape:
            self.rows, self.source = rows, other.source

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return array[()] if return_scalar else np.asarray(array)

    def __getitem__(self, key):
        found = np.asarray(self)[key]
        first = key[0] if isinstance(key, tuple) and key else key
        if self.rows is None or not isinstance(first, (slice, list, np.ndarray)):
            return found
        rows = self.rows[first] if np.ndim(first) < 2 else None
        if rows is None or rows.shape != found.shape[:1]:
            return found
        return tagged(found, rows, self.source)

    def __repr__(self):
        return repr(np.asarray(self))


def tagged(array, rows, source):
    """The array with the hashes of its raw rows; `source` is a calibration's name and sketch."""
    found = np.asarray(array).view(Calibrated)
    found.rows, found.source = rows, source
    return found


def hashes_of_raw(values, is_stack):
    """A hash for each example of raw predictions, `(n, ...)` or a stack of them."""
    return raw_hashes(np.mean(values, axis=0) if is_stack else values)


def seen(predictions):
    """The name of the calibration that made `predictions`, and how many rows it was fitted to."""
    if getattr(predictions, "rows", None) is None:
        return None, 0
    name, known = predictions.source
    return name, shared_rows(known, predictions.rows)
