"""Sums over the most trusted: what each value of a score accepts, and the losses among that."""

import numpy as np

from tfuq.selective._guarantees import ImageSums

BLOCK = 2**18  # entries that are summed together
# A level in the place of one of the entries, which are no fewer; the value is in the upper half.
LEVEL = np.dtype([("loss", "<i4"), ("value", "<f4")])
SIGN = np.uint32(2**31)


def sorted_sums(score, counts, loss, sign):
    """Doubts from the most trusted on; how many are accepted up to each, their weight and loss.

    In few copies: of 10^7 scores each is 80 MB. Where all entries count the weight is the very
    array of how many are accepted.

    Args:
        score: Finite, `(n,)`.
        counts: Whether each belongs to the risk.
        loss: Its loss, numbers or bool.
        sign: 1 where a score grows with trust, so that doubt is minus that; -1 where it is doubt.
    """
    if score.dtype == "float32" and loss.dtype == bool and len(score) < 2**31:
        return _of_packed(_packed(score, counts, loss, sign), counts.all())
    doubt = -score if sign == 1 else score
    order = np.argsort(doubt)
    values = doubt[order]
    is_last = np.append(values[1:] != values[:-1], True)
    values, accepted = values[is_last], np.flatnonzero(is_last)
    accepted += 1
    counts_all = counts.all()
    sums = [_running_sum(loss if counts_all else loss * counts, order)]
    sums += [] if counts_all else [_running_sum(counts, order)]
    del order
    total, *weight = (sums.pop(0)[is_last] for _ in range(len(sums)))
    return values, accepted, *(weight or [accepted]), total


def _running_sum(values, order):
    """cumsum(values[order]) in float64, in blocks, where NumPy would convert all of it first."""
    found, before = np.empty(len(order)), 0.0
    for start in range(0, len(order), BLOCK):
        rows = slice(start, start + BLOCK)
        found[rows] = np.cumsum(values[order[rows]], dtype="float64") + before
        before = found[rows][-1]
    return found


# --- Of 0 and 1, in one array of eight bytes an entry -------------------------------------------


def _packed(score, counts, loss, sign):
    """Entries in ascending order, uint64: bits of the doubt that sort as it does, then both flags.

    Of a number above 0 the sign bit is turned, of one below 0 all bits are: unsigned integers in
    the order of the numbers.
    """
    found = np.empty(len(score), "uint64")
    for start in range(0, len(score), BLOCK):
        rows = slice(start, start + BLOCK)
        bits = (np.float32(-sign) * score[rows] + np.float32(0)).view("uint32")  # -0 is 0
        bits ^= np.where(bits & SIGN, ~np.uint32(0), SIGN)
        found[rows] = bits
        found[rows] <<= np.uint64(2)
        found[rows] |= 2 * counts[rows].astype("uint64")
        found[rows] |= (loss[rows] & counts[rows]).astype("uint64")
    found.sort()
    return found


def _of_packed(packed, counts_all):
    """Those of `sorted_sums`; the values and losses take the place of the entries."""
    levels, count = packed.view(LEVEL), len(packed)
    num = sum(len(_ends(packed, start)) for start in range(0, count, BLOCK))
    accepted = np.empty(num, "int32")
    weight = accepted if counts_all else np.empty(num, "int32")
    lost = counted = filled = 0
    for start in range(0, count, BLOCK):
        ends = _ends(packed, start)
        part = packed[start : start + BLOCK]
        losses = np.cumsum(part & np.uint64(1), dtype="int32") + np.int32(lost)
        flags = np.cumsum(part >> np.uint64(1) & np.uint64(1), dtype="int32") + np.int32(counted)
        bits = (part[ends] >> np.uint64(2)).astype("uint32")
        bits ^= np.where(bits & SIGN, SIGN, ~np.uint32(0))
        lost, counted, rows = losses[-1], flags[-1], slice(filled, filled + len(ends))
        weight[rows] = flags[ends]
        accepted[rows] = start + ends + 1
        levels["value"][rows], levels["loss"][rows] = bits.view("float32"), losses[ends]
        filled = rows.stop
    return levels["value"][:num], accepted, weight, levels["loss"][:num]


def _ends(packed, start):
    """Places in the block from `start` of the last entries of equal scores."""
    keys = packed[start : start + BLOCK + 1] >> np.uint64(2)
    found = np.flatnonzero(keys[1:] != keys[:-1])
    is_last = start + BLOCK >= len(packed)
    return np.append(found, len(keys) - 1) if is_last else found


def image_sums(read, rows, level, count):
    """`ImageSums` of the images that have any of the entries `rows`."""
    entries = len(read.score) // read.images
    images, image = np.unique(rows // entries, return_inverse=True)
    shape = (len(images), count)
    cell = image * count + level
    tables = [
        np.bincount(cell, values[rows], shape[0] * shape[1]).reshape(shape).cumsum(axis=1) / entries
        for values in (read.counts.astype("float64"), read.loss * read.counts)
    ]
    return ImageSums(*tables)
