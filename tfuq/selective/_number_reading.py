"""Predicted numbers and labels as fits of rejection rules read them."""

import numpy as np

from tfuq._arguments import check_choice, is_finite, shown, to_float64
from tfuq.selective._interval_sources import labels_of
from tfuq.selective._rule_fitting import Read

ROWS = 2**16  # numbers that are read together
LEVELS = 400  # thresholds that are looked at where an example has many numbers
LEVEL_SHARE = 0.2  # of the examples, which give them


def scores_of_numbers(given, shape):
    """Scores `(n,)` from beside numbers of that shape, as theirs, float32."""
    values = np.asarray(given)
    if values.shape != (shape[0],) or values.dtype.kind not in "fiu":
        raise ValueError(
            f"Argument `score` must hold a number for each of {shape[0]} examples. "
            f"Received: {values.dtype} of shape {values.shape}"
        )
    values = values.astype("float32").reshape(-1, *[1] * (len(shape) - 1))
    return np.broadcast_to(values, shape)


def read_numbers(rule, found, y, loss, given=None):
    """Scores, losses and all else that fitting and evaluation ask for, an entry a number.

    Some rows at a time, which keeps nothing but scores and losses of them: of 10^7 numbers each
    further array is 80 MB.
    """
    rule.check_kind(found)
    given = given if given is None else scores_of_numbers(given, found.shape[:1])
    y, entries = labels_of(y, found.shape), int(np.prod(found.shape[1:]))
    step, size = max(1, ROWS // entries), len(found) * entries
    score, losses, parts = np.empty(size, "float32"), np.empty(size, "bool"), []
    for start in range(0, len(found), step):
        part, labels = found[start : start + step], y[start : start + step]
        some = given if given is None else given[start : start + step]
        of_part, mean = rule.score_of(part, some).ravel(), part.mean.ravel()
        labels = labels.ravel().astype("float64")
        of_score = "found" if given is None else "score"
        for name, values in (("y", labels), ("found", mean), (of_score, of_part)):
            if not np.isfinite(values).all():
                raise ValueError(
                    f"Argument `{name}` must hold finite numbers. Received: "
                    f"{np.count_nonzero(~np.isfinite(values))} of {values.size} that are not"
                )
        rows = slice(start * entries, start * entries + len(mean))
        score[rows] = of_part
        if callable(loss):
            parts.append((mean, labels))
        else:
            losses[rows] = losses_of_numbers(loss, mean, labels, rule.tolerance)
    if callable(loss):
        losses = losses_of_numbers(loss, *map(np.concatenate, zip(*parts, strict=True)), None)
    nothing, counts = np.zeros(0, int), np.ones(size, bool)
    right = losses == 0
    return Read(score, losses, counts, right, nothing, nothing, len(found), 0, not callable(loss))


def check_tolerance(tolerance):
    """Raises ValueError unless it is a number above 0."""
    if not is_finite(tolerance) or tolerance <= 0:
        raise ValueError(
            "Argument `tolerance` must be a number above 0, in the unit of y. "
            f"Received: tolerance={shown(tolerance)}"
        )


def check_varies(score, name):
    """Raises ValueError if the score `name` is the same for all, of several."""
    if len(score) > 1 and np.ptp(score) == 0:
        raise ValueError(
            f"Argument `score` must differ between examples: {name!r} is {score[0]:g} for all, "
            "which ranks nothing (one network has no epistemic part; a family without noise has "
            f"no aleatoric part). Received: score={name!r}"
        )


def losses_of_numbers(loss, mean, y, tolerance):
    """Losses of numbers: of "error" True or False, of a function in [0, 1]."""
    if callable(loss):
        values = to_float64("loss", loss(mean, y))
        if values.shape != y.shape or not np.all((values >= 0) & (values <= 1)):
            raise ValueError(
                f"Argument `loss` must return {len(y)} numbers in [0, 1]. Received: {shown(values)}"
            )
        return values
    check_choice("loss", loss, ("error",))
    if tolerance is None:
        raise ValueError(
            "Argument `tolerance` is required: how far from y an answer is wrong, in its unit. "
            "Received: tolerance=None with loss='error'"
        )
    check_tolerance(tolerance)
    return np.abs(y - mean) > tolerance


def set_aside(read, groups, seed):
    """Thresholds from some examples, and what was read of all others."""
    count, entries = read.images, len(read.score) // read.images
    taken = int(np.ceil(LEVEL_SHARE * count))
    if taken >= count:
        raise ValueError(
            "Argument `found` must hold at least 2 examples, one of which gives thresholds. "
            f"Received: {count}"
        )
    order = np.random.default_rng(seed).permutation(count)
    by_example = read.score.reshape(count, entries)
    chosen = by_example[order[:taken]].astype("float64")
    levels = np.quantile(chosen, np.linspace(0, 1, LEVELS + 1)[1:])
    fixed = np.unique(np.append(levels, np.inf).astype("float32").astype("float64"))
    rows = np.sort(order[taken:])
    names = ("score", "loss", "counts", "right")
    kept = {n: getattr(read, n).reshape(count, entries)[rows].ravel() for n in names}
    groups = None if groups is None else np.asarray(groups)[rows]
    return fixed, read._replace(**kept, images=len(rows)), groups
