"""Hashes of rows, by which labelled predictions and their calibrated copies are known again."""

import base64
import binascii
import hashlib
import math
from typing import NamedTuple

import numpy as np

STEP = 1e-4  # of probabilities: graphs and arrays round the last bits differently
FINE = 2.0**-20  # of single rows, of which more must be told apart; one in ten is not known again
FEW = 2**17  # numbers that are hashed at a time
MOST = 10_000  # hashes that are remembered
KEPT = 512  # rows of each calibration that are remembered, those of the smallest hashes
MOST_SKETCHES = 256  # calibrations whose rows are remembered one by one
MOST_BEHIND = 32  # sets of rows behind the same scores, or the same name
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_known = {}  # hash of what a calibration gives for the rows that it was fitted to: its name
_scored = {}  # digest of scores or of a choice: `Behind`s, what made it of which rows
_sketches = {}  # the same hash: the name, and the sketch of those rows


def rows_hash(probs, labels):
    """A text that does not depend on the order of the rows.

    Args:
        probs: Probabilities `(..., classes)`.
        labels: Classes, one for each row.
    """
    found = labelled_hashes(probs, labels, STEP)
    return text_of_sum(len(found), sum_of_hashes(found))


def sum_of_hashes(found):
    """The sum of hashes, an integer, which adds up over rows."""
    with np.errstate(over="ignore"):
        return int(np.sum(found, dtype="uint64"))


def text_of_sum(count, total):
    """The text of `count` rows, whose hashes have this sum."""
    return f"{count}-{total % 2**64:016x}"


def labelled_hashes(probs, labels, step=FINE):
    """A hash for each row, uint64 `(rows,)`, of its label and its probabilities in steps."""
    rows = np.asarray(probs).reshape(-1, np.shape(probs)[-1])
    rows = rows[:, 1:] if rows.shape[1] == 2 else rows
    labels = np.asarray(labels).ravel()
    return _in_parts(lambda some, of: _labelled(some, of, step), rows, labels)


def _labelled(rows, labels, step):
    columns = np.divide(rows.T, step, dtype="float64", order="C")
    np.rint(columns, out=columns)
    if not np.isfinite(columns.sum()):
        columns = np.nan_to_num(columns)
    columns = columns.astype("int64").view("uint64")
    return _hashes(labels.astype("int64").astype("uint64"), columns)


def score_hashes(scores):
    """A hash for each row, uint64 `(n,)`, of its score in steps."""
    return labelled_hashes(np.reshape(scores, (-1, 1)), np.zeros(np.size(scores)))


def raw_hashes(values):
    """A hash for each entry of the first axis, uint64 `(n,)`, of all of its bits."""
    values = np.asarray(values)
    return _in_parts(_raw, values.reshape(len(values), math.prod(values.shape[1:])))


def _raw(rows):
    columns = np.ascontiguousarray(rows.T, "float64").view("uint64")
    return _hashes(np.zeros(len(rows), "uint64"), columns)


def _in_parts(function, rows, *others):
    """`function` of some rows at a time, so many that they stay close to the processor."""
    size = max(1, FEW // max(1, rows.shape[1]))
    found = np.empty(len(rows), "uint64")
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        found[part] = function(rows[part], *(each[part] for each in others))
    return found


def _hashes(found, columns):
    with np.errstate(over="ignore"):
        for column in columns:
            found = _mixed((found + column) * _PRIME)
    return found


def _mixed(values):
    """Bits of uint64 spread over all others (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# --- Sketches: single rows known again ----------------------------------------------------------


def sketch(hashes):
    """What is kept of rows: how many there are, how many differ from all others, and 512 of these.

    Those of the smallest hashes, which are a random sample that any other data set can be compared
    with. Rows that are equal, as saturated probabilities and votes are, say nothing of whether the
    same examples stand behind them.
    """
    distinct, counts = np.unique(hashes, return_counts=True)
    single, pairs = distinct[counts == 1], int((counts == 2).sum())
    kept = base64.b64encode(single[:KEPT].astype("<u8").tobytes()).decode()
    return {"rows": len(hashes), "single": len(single), "pairs": pairs, "hashes": kept}


def shared_rows(known, hashes):
    """How many of `hashes` are of rows of a sketch, beyond what chance explains; estimated.

    A new row is equal to one that differs from all other known ones with a probability of about
    2 pairs / rows (Good and Turing). Taken is more than that: 3 pairs / rows, four standard
    deviations, and 12 / rows for pairs that were not seen. What chance explains is 0.
    """
    distinct, counts = np.unique(hashes, return_counts=True)
    kept = np.frombuffer(base64.b64decode(known["hashes"]), "<u8")
    if not len(kept):
        return 0
    share = len(kept) / known["single"]
    found = np.isin(distinct[counts == 1], kept).sum()
    pairs = known["pairs"]
    rate = (3 * pairs + 8 * pairs**0.5 + 12) / known["rows"]
    if found <= 4 + share * rate * len(hashes):
        return 0
    return min(len(hashes), round(found / share * known["rows"] / known["single"]))


def is_sketch(found):
    """Whether `found`, from a file, is what `sketch` makes."""
    if not isinstance(found, dict) or set(found) != {"rows", "single", "pairs", "hashes"}:
        return False
    counts = found["rows"], found["single"], found["pairs"]
    if not all(type(count) is int and 0 <= count <= counts[0] for count in counts):
        return False
    try:
        kept = base64.b64decode(found["hashes"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        return False
    return counts[0] > 0 and len(kept) == 8 * min(KEPT, counts[1])


def floats_of_sketch(known):
    """A sketch as two arrays of float64: its counts `(3,)`, and halves of its hashes `(k, 2)`."""
    hashes = np.frombuffer(base64.b64decode(known["hashes"]), "<u8")
    halves = np.stack([hashes >> np.uint64(32), hashes & np.uint64(2**32 - 1)], -1)
    halves = halves.astype("float64") if len(hashes) else np.zeros((1, 2))
    counts = [known[name] for name in ("rows", "single", "pairs")]
    return np.array(counts, "float64"), halves


def sketch_of_floats(counts, halves):
    """The sketch that `floats_of_sketch` wrote so."""
    rows, single, pairs = (int(count) for count in counts)
    high, low = np.asarray(halves)[: min(KEPT, single)].astype("uint64").T
    kept = base64.b64encode(((high << np.uint64(32)) | low).astype("<u8").tobytes()).decode()
    return {"rows": rows, "single": single, "pairs": pairs, "hashes": kept}


# --- What this process knows --------------------------------------------------------------------


def remember(text, name, known=None):
    """Keeps what is known of the calibrated rows that a calibration of this name was fitted to."""
    _known[text] = name
    while len(_known) > MOST:
        del _known[next(iter(_known))]
    if known is not None:
        _sketches[text] = name, known
    while len(_sketches) > MOST_SKETCHES:
        del _sketches[next(iter(_sketches))]


class Behind(NamedTuple):
    """What gave scores, and the sketch of the rows that it has seen."""

    name: str
    known: dict
    of_scores: bool  # whether hashes are of the scores of those rows, not of their predictions


def remember_scores(scores, name, known, of_scores=False):
    """Keeps of scores the sketch of the rows that what gives them was fitted to, or chosen on.

    What was kept before stays: the same score may have been chosen on several sets of rows.

    Args:
        scores: An array, or the name of a score of predictions, which was chosen.
        name: What has seen the rows.
        known: The sketch of them.
        of_scores: Whether that is of `score_hashes`.
    """
    digest, one = _digest(scores), Behind(name, known, of_scores)
    others = [each for each in _scored.pop(digest, ()) if each != one]
    _scored[digest] = [*others, one][-MOST_BEHIND:]
    while len(_scored) > MOST_SKETCHES:
        del _scored[next(iter(_scored))]


def behind_scores(scores):
    """A `Behind` for each of what gave the scores."""
    return list(_scored.get(_digest(scores), ()))


def _digest(scores):
    is_name = isinstance(scores, str)
    found = scores.encode() if is_name else np.ascontiguousarray(scores, "float64").tobytes()
    return hashlib.sha256(found).digest()


def what_is_known():
    """Whether calibrated rows are known as a whole, and whether single ones are."""
    return bool(_known), bool(_sketches)


def fitted_by(text):
    """The name of the calibration that was fitted to rows of this hash, or None."""
    return _known.get(text)


def most_shared(hashes):
    """The name of the calibration that was fitted to the most of these rows, and how many."""
    found = [(shared_rows(known, hashes), name) for name, known in list(_sketches.values())]
    count, name = max(found, default=(0, None), key=lambda pair: pair[0])
    return (name, count) if count else (None, 0)
