"""Examples that stand in the data several times, each of which a promise would count."""

import math
import warnings

import numpy as np

from tfuq.selective._row_hashes import raw_hashes

LEAST = 32  # different rows; fewer may all be there twice by chance
SAMPLED = 2**16  # rows that are looked at, about
MOST_CLASSES = 256


def times_repeated(scores, labels):
    """How many times each row is there, or each of one class; 1 where any is there alone.

    It is the greatest common divisor of how often different rows occur. Rows that are equal by
    chance, as saturated probabilities and votes are, do not all come in twos: of k different rows
    with a probability of about 2^-k. Oversampling at random, or a few rows given again, is not
    seen.

    Args:
        scores: Numbers `(n,)`.
        labels: Classes or numbers `(n,)`.
    """
    scores, labels = np.ravel(scores), np.ravel(labels)
    if len(scores) < 2 * LEAST:
        return 1
    hashes, labels = _sample(scores, labels)
    classes = np.unique(labels)
    groups = [slice(None)]
    if len(classes) <= MOST_CLASSES:
        groups += [labels == each for each in classes]
    return max(_common(hashes[rows]) for rows in groups)


def _sample(scores, labels):
    """Hashes and labels of the rows whose hash is small: equal rows are there all or not at all."""
    limit = np.uint64(min(1.0, SAMPLED / len(scores)) * float(2**64 - 2**12))
    parts = []
    for start in range(0, len(scores), 2**18):
        rows = slice(start, start + 2**18)
        both = np.stack([scores[rows].astype("float64"), labels[rows].astype("float64")], axis=-1)
        hashes = raw_hashes(both)
        chosen = hashes <= limit
        parts.append((hashes[chosen], both[chosen, 1]))
    return (np.concatenate(each) for each in zip(*parts, strict=True))


def _common(hashes):
    counts = np.unique(hashes, return_counts=True)[1]
    return math.gcd(*counts.tolist()) if len(counts) >= LEAST else 1


def warn_of_repeated_in(read):
    """`warn_of_repeated` of a `Read`, but for rows that count nowhere: padding repeats others."""
    rows = slice(None) if read.known is None else read.known
    warn_of_repeated(read.score[rows], read.labels[rows])


def warn_of_repeated(scores, labels):
    """Warns if rows are there several times, which makes a promise of few examples look like more.

    Args:
        scores, labels: As for `times_repeated`.
    """
    times = times_repeated(scores, labels)
    if times > 1:
        warnings.warn(
            f"The promise does not hold: each example (of all classes, or of one) is there {times} "
            f"times and would count as {times} examples. Pass each example once: without `repeat`, "
            "oversampling or an array joined with itself.",
            stacklevel=5,
        )
