"""Thresholds of conformal intervals, and the arguments they are fitted with."""

import numpy as np

from tfuq._arguments import check_choice, shown
from tfuq._math.intervals import beyond
from tfuq.selective._interval_sources import STEP, labelled_blocks
from tfuq.selective._row_hashes import raw_hashes
from tfuq.selective.conformal_scores import fewest_examples


def read_scores(source, y, asymmetric):
    """How far labels are beyond what was predicted, `(sides, n, entries, units)`, and a hash.

    With one side it is the larger of both.
    """
    units = source.shape[-1]
    scores = np.empty((1 + asymmetric, len(source), int(np.prod(source.shape[1:-1])), units))
    total = 0
    for rows, ends, labels in labelled_blocks(source, y):
        with np.errstate(divide="ignore"):  # of a scale of 0 any error is infinite
            below, above = beyond(ends, labels)
        sides = (below, above) if asymmetric else (np.maximum(below, above, out=below),)
        for place, side in zip(scores, sides, strict=True):
            place[rows] = side.reshape(place[rows].shape)
        total += _sum_of_hashes(ends[0], labels)
    return scores, total % 2**64


def _sum_of_hashes(*columns):
    """Of predictions and labels; sums of parts add up, whatever their order (modulo 2^64)."""
    rows = np.stack([column.ravel().astype("float32") for column in columns], axis=-1)
    return int(np.sum(raw_hashes(rows), dtype="uint64"))


def rows_hash(source, y):
    """The hash of labelled rows, as `read_scores` gives it."""
    parts = (_sum_of_hashes(ends[0], labels) for _, ends, labels in labelled_blocks(source, y))
    return sum(parts) % 2**64


def conformal_threshold(scores, examples, alpha):
    """The smallest t with sum_i (fraction of i's scores above t) <= alpha (n + 1) - 1.

    Of `examples` n with as many scores each. It is conformal risk control of the fraction that is
    missed (Angelopoulos et al. 2024); with one score each it is that of rank
    ceil((n + 1) (1 - alpha)), split conformal prediction. `scores` are put in another order.
    """
    budget = alpha * (examples + 1) - 1 + 1e-9 * (examples + 1)
    above = min(int(len(scores) / examples * budget), len(scores) - 1)
    rank = len(scores) - 1 - above
    scores.partition(rank)
    return float(scores[rank])


def thresholds(scores, rows, alpha):
    """Thresholds `(units, sides)` of the examples `rows`, a mask; None for all."""
    sides, _, _, units = scores.shape
    found = np.empty((units, sides))
    for unit in range(units):
        for side in range(sides):
            chosen = scores[side, ..., unit]
            chosen = chosen if rows is None else chosen[rows]
            found[unit, side] = conformal_threshold(chosen.reshape(-1), len(chosen), alpha / sides)
    return found


def group_names(groups, count, name="groups"):
    """The group of each example, texts `(n,)`.

    Raises:
        ValueError: If they are not as many as the examples, or some are missing.
    """
    found = np.asarray(groups)
    if found.shape != (count,):
        raise ValueError(
            f"Argument `{name}` must name the group of each of {count} examples. "
            f"Received: {name}={shown(found)}"
        )
    is_number = found.dtype.kind in "biuf"
    if is_number or found.dtype.kind in "US":
        missing = np.count_nonzero(found != found)
    else:
        missing = [None if x is None or x != x else x for x in found.tolist()].count(None)
    if missing:
        raise ValueError(
            f"Argument `{name}` must name the group of each example. Received: {missing} that are "
            "None or NaN"
        )
    return _texts_of_numbers(found) if is_number else found.astype(str)


def _texts_of_numbers(found):
    """As `astype(str)`, but no wider than the longest: of many rows 84 bytes each are much."""
    values = np.unique(found)
    texts = values.astype(str)
    texts = texts.astype(f"U{max(map(len, texts.tolist()), default=1)}")
    names = np.empty(found.shape, texts.dtype)
    for start in range(0, len(found), STEP):
        rows = slice(start, start + STEP)
        names[rows] = texts[np.searchsorted(values, found[rows])]
    return names


def limits_by_group(keys, limits, groups, count, unknown_group):
    """Thresholds `(1 or n, units, 2)` of examples, from those of the groups `keys`.

    Raises:
        ValueError: If groups are given and not expected, missing, or unknown.
    """
    check_choice("unknown_group", unknown_group, ("error", "unbounded"))
    if keys is None and groups is not None:
        raise ValueError(
            "Argument `groups` must be None, because the regressor was fitted without groups. "
            f"Received: groups={shown(groups)}"
        )
    if keys is None:
        return limits
    if groups is None:
        raise ValueError(
            "Argument `groups` must name the group of each example: there is a threshold for each "
            f"of {shown(keys)}. Received: groups=None"
        )
    names = group_names(groups, count)
    unknown = ~np.isin(names, keys)
    if unknown.any() and unknown_group == "error":
        raise ValueError(
            f"Argument `groups` must be among {shown(keys)}, or unknown_group='unbounded'. "
            f"Received: {shown(np.unique(names[unknown]).tolist())}"
        )
    order = np.argsort(keys)
    place = np.searchsorted(np.asarray(keys)[order], names).clip(max=len(order) - 1)
    return np.where(unknown[:, None, None], np.inf, limits[order[place]])


def check_scores(scores, method):
    """Raises ValueError where no prediction says a scale."""
    if method == "normalized" and np.isinf(scores).all():
        raise ValueError(
            "Argument `found` must give a scale above 0 with method='normalized'. Received: a std "
            "of 0 for every example"
        )


def check_unweighted(y, weight):
    """Raises ValueError unless data have labels and no weights."""
    if y is None:
        raise ValueError("Argument `data` must have labels, (x, y). Received: inputs alone")
    if weight is not None:
        raise ValueError(
            "Argument `data` must have no sample weights: each example counts once. "
            f"Received: weights of shape {np.shape(weight)}"
        )


def check_counts(counts, alpha, sides):
    """Raises ValueError if groups, or all examples, are too few for a threshold.

    Args:
        counts: How many examples there are, by group; the group None is that of all.
        alpha: Fraction to miss.
        sides: On how many sides it is shared.
    """
    needed = fewest_examples(alpha / sides)
    few = {name: count for name, count in counts.items() if count < needed}
    if few:
        of_each = " on the two sides together" if sides == 2 else ""
        named = (
            few[None] if None in few else ", ".join(f"{c} of {shown(g)}" for g, c in few.items())
        )
        in_group = "" if None in few else " of each group"
        raise ValueError(
            f"Argument `y` must hold at least {needed} examples{in_group} to miss at most "
            f"alpha={alpha:g}{of_each}. Received: {named}"
        )


def limits_of(threshold, keys, asymmetric):
    """The argument `threshold` as `(groups, units, 2)`.

    Raises:
        ValueError: If it has other axes than `keys` and `asymmetric` ask for.
    """
    axes = bool(keys) + 1 + asymmetric
    sizes = ([len(keys)] if keys else []) + [None] + ([2] if asymmetric else [])
    is_scalar = threshold.ndim == 0 and axes == 1
    fits = threshold.ndim == axes and all(
        size in (None, found) for size, found in zip(sizes, threshold.shape, strict=True)
    )
    if not (is_scalar or fits) or not threshold.size:
        shape = ["groups"] * bool(keys) + ["units"] + ["2"] * asymmetric
        raise ValueError(
            f"Argument `threshold` must have shape ({', '.join(shape)}) with keys="
            f"{shown(keys)} and asymmetric={asymmetric}. Received: threshold={shown(threshold)}"
        )
    found = threshold.reshape(len(keys) if keys else 1, -1, 1 + asymmetric)
    return np.broadcast_to(found, (*found.shape[:2], 2))
