"""Thresholds that are declared before the labels are seen, tested one after the other.

Let t_1, ..., t_K be values of a score, from the most trusted on, that depend on none of the
examples, and R(t) the risk of what t accepts of all that can be drawn. Given how many of the
examples t_j accepts, these are independent draws of that, whatever the scores are and whichever are
equal; so the p-value of the hypothesis that R(t_j) is above the target is a valid one. All are
tested in their order, each with all that it accepts and with the whole error, up to the first that
fails; the rule ends at the last that passes. Let t_i be the first that is too lenient: which one
that is depends on no example. A rule that ends at any that is too lenient has passed t_i, which
happens with at most that error. (Fixed sequences: Maurer, Hothorn and Lehmacher 1995; Bauer 1991;
of risks Angelopoulos et al. 2021.) Of images it is the mean over them that is tested, as in
`_guarantees.ImageSums`.

Of several promises a threshold is too lenient if it breaks any, and its p-value is the largest of
theirs. Let t_i be the first such: which promise it breaks depends on no example, either, and a rule
that ends at any has passed the test of that promise at t_i. So each promise has the whole error, of
which there is nothing to share (an intersection-union test: Berger 1982).

None is passed over, not even one that accepts too few to pass. That would begin at the first that
accepts enough, a draw that says something of what is accepted: that the stricter ones held few.
Where these err more often than what comes after, the errors at the beginning are fewer than a
binomial count, and which too lenient threshold comes first is a draw, too.
"""

import numpy as np

from tfuq._arguments import shown
from tfuq._predictions.scores import CONFIDENCES, power_of
from tfuq.selective._guarantees import ImageSums, Sums, fewest_examples, smallest_where
from tfuq.selective.base import numbers

# Thresholds that are looked at where an image has many entries, as parts of the whole range from
# perfect trust to none: networks are sure of most pixels, so that half of them are close to 0.
IMAGE_LEVELS = np.concatenate([[0.0], np.geomspace(1e-6, 0.1, 200), np.linspace(0.1, 1, 201)[1:]])
MOST = 1000  # thresholds, all of which the rule keeps
COPIED = 0.9  # share of different scores from which on thresholds that are all scores are copies


def fixed_thresholds(score, classes):
    """Values of a score from perfect trust to none, in float32, that depend on no data.

    The last accepts everything.
    """
    if power_of(score):  # from -1 to 0
        values = IMAGE_LEVELS - 1
    elif score in CONFIDENCES:
        least = 1 / classes if score == "confidence" else 0.0
        values = 1 - (1 - least) * IMAGE_LEVELS
        values[-1] = 0.0
    else:
        values = IMAGE_LEVELS * (1.0 if score == "variation_ratio" else np.log(classes))
        values[-1] *= 1.01  # rows of a model in bfloat16 may sum to more than 1
    return values.astype("float32").astype("float64")


def declared_thresholds(thresholds, wanted, method, grows_with_trust):
    """The argument `thresholds` from the most trusted on, float64, or None."""
    if thresholds is None:
        return None
    goes_with = {"target_risk=None": wanted == "risk", f"method={method!r}": method == "auto"}
    for said, is_fine in goes_with.items():
        if not is_fine:
            raise ValueError(
                "Argument `thresholds` works only with `target_risk` and method='auto'; "
                f"leave it out. Received: thresholds={shown(thresholds)} with {said}"
            )
    found = numbers("thresholds", thresholds)
    with np.errstate(over="ignore"):
        single = np.atleast_1d(found.astype("float32"))
    steps = np.diff(single[np.isfinite(single)])
    in_order = found.ndim == 1 and (np.all(steps > 0) or np.all(steps < 0))
    if not in_order or not found.size or not np.all(np.isfinite(single)):
        raise ValueError(
            "Argument `thresholds` must be a list of finite numbers, ascending or descending, that "
            "differ in float32: np.unique(thresholds) sorts them. "
            f"Received: thresholds={shown(thresholds)}"
        )
    if len(found) > MOST:
        raise ValueError(
            f"Argument `thresholds` must hold at most {MOST} numbers: use wider steps. Received: "
            f"{len(found)}"
        )
    doubts = -found if grows_with_trust else found
    return found[np.argsort(doubts)]


def check_against_scores(thresholds, score, grows_with_trust):
    """Raises ValueError if declared thresholds accept none of the scores, or are some of them."""
    if thresholds is None:
        return
    least, most = float(np.min(score)), float(np.max(score))
    last = np.float32(thresholds[-1])
    if not (most >= last if grows_with_trust else least <= last):
        raise ValueError(
            "Argument `thresholds` must be in the unit of the score, which goes from "
            f"{least:.6g} to {most:.6g} here: none of these thresholds accepts an example. "
            f"Received: thresholds={shown(thresholds.tolist())}"
        )
    values = np.unique(score)
    are_scores = np.isin(thresholds.astype("float32"), values.astype("float32"))
    if len(thresholds) > 2 and len(values) > COPIED * len(score) and are_scores.all():
        raise ValueError(
            "Argument `thresholds` must be chosen before these examples are seen: use a grid, or "
            "quantiles of scores of other rows. Received: "
            f"thresholds={shown(thresholds.tolist())}, all of them scores of these examples"
        )


def declared_levels(thresholds, score, counts, loss, sign):
    """The first threshold that accepts each entry, K if none does, and sums over thresholds.

    Sums are those of `sorted_sums`, `(K,)`: how many are accepted, their weight and loss.
    """
    doubts = -sign * thresholds.astype("float32").astype("float64")
    level = np.searchsorted(doubts, -sign * score)
    count = len(thresholds)
    parts = (None, counts, loss * counts)
    sums = [np.bincount(level, part, count + 1).cumsum()[:count] for part in parts]
    return level, sums


def table_of(table, weight, total, binary):
    """What is tested: `table` of images without what no threshold accepts, or else sums."""
    if table is None:
        return Sums(weight, total, binary)
    return ImageSums(table.accepted[:, :-1], table.loss[:, :-1])


def last_in_sequence(table, risk, delta):
    """The last threshold before the first whose test fails, or None."""
    failed = np.flatnonzero(table.p_values(risk, slice(None)) > delta * (1 + 1e-12))
    end = int(failed[0]) if failed.size else table.loss.shape[-1]
    return end - 1 if end else None


def best_in_sequence(table, delta):
    """The lowest risk that the first threshold could promise, and where the sequence ends then."""
    risk = smallest_where(lambda risk: table.p_values(risk, [0])[0] <= delta, 25)
    return risk, last_in_sequence(table, risk, delta) if risk < 1 else None


def refusal_of_several(goal, tables, accepted, sums, promises, names):
    """`refusal` of several promises, of the first that cannot be kept there.

    Also the lowest risk that could be promised of that, and the fewest examples of it.
    """
    found = [best_in_sequence(table, goal.delta)[0] for table in tables]
    bad = next(i for i, p in enumerate(promises) if found[i] > p.target_risk)
    weight, total = (float(part[0]) for part in sums[bad])
    loss = f", with a mean loss of {total / weight:.3f}" if weight else ""
    least = fewest_examples(promises[bad].target_risk, goal.delta)
    few = f" At least {least} are needed there, all of them right." if weight < least else ""
    message = (
        f"No threshold keeps all {len(promises)} promises with confidence={goal.confidence}: the "
        f"test of the first of {len(goal.thresholds)} `thresholds`, {goal.thresholds[0]:g}, fails "
        f"for {names[bad]!r}. It accepts {accepted[0]:g}, {weight:g} of them of this promise"
        f"{loss}, for which {found[bad]:.3f} can be promised, above "
        f"{promises[bad].target_risk:g}.{few} Another first threshold, or a better score, needs "
        "other rows now: these have been looked at."
    )
    return message, found[bad], least


def refusal(goal, count, best, sums):
    """Why nothing is accepted, with the figures of the first threshold, which is where it ends."""
    accepted, weight, total = (float(part[0]) for part in sums)
    loss = f", with a mean loss of {total / weight:.3f}" if weight else ""
    least = fewest_examples(goal.target_risk, goal.delta)
    few = f" At least {least} are needed there, all of them right." if weight < least else ""
    return (
        f"No threshold keeps the risk under target_risk={goal.target_risk} with "
        f"confidence={goal.confidence}: the test of the first of {len(goal.thresholds)} "
        f"`thresholds`, {goal.thresholds[0]:g}, fails. It accepts {accepted:g} of {count}{loss}, "
        f"for which {best:.3f} can be promised.{few} Another first threshold, or a better score, "
        "needs other rows now: these have been looked at."
    )
