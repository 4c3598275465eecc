"""One threshold for several promises: it is where all of them are shown to hold.

Each of J promises has 1 / J of the error 1 - confidence (Bonferroni). For each, the levels are
found that its method shows to be safe, all of them together with that probability (`_guarantees`:
what a chain passes, what is under the curve). A level that is safe for every promise may be chosen
freely, so that the most lenient is; and a chain shows more than its levels: between two of them, a
threshold accepts the same examples of the promise, and its test has the same p-value as one at any
place between. Risks need not grow with the threshold: the strictest of the thresholds that the
promises would have by themselves need not keep them all.

Of few examples that all promises are of, one chain has the whole error for each (`_joint_chain`).

Of images, and where `thresholds` are declared, these are fixed beforehand. Each has the hypothesis
that any of the promises is broken there, whose p-value is the largest of theirs, and the chains of
`learn_then_test` go along these with all of the error (Angelopoulos et al. 2021; an intersection-
union test, Berger 1982), or one chain along those that were declared (`_declared_thresholds`).
"""

import functools
import warnings
from typing import NamedTuple

import numpy as np

from tfuq._arguments import shown
from tfuq._predictions.labelled import warn_of_sign
from tfuq._predictions.scores import GIVEN
from tfuq.selective._attainable import best_promise, examples_expected
from tfuq.selective._declared_thresholds import (
    declared_levels,
    fixed_thresholds,
    last_in_sequence,
    refusal_of_several,
    table_of,
)
from tfuq.selective._flat_walk import some_levels
from tfuq.selective._guarantees import (
    ImageSums,
    Sums,
    fewest_examples,
    learn_then_test,
    safe_levels,
)
from tfuq.selective._joint_chain import last_of_chain, start_of_chain
from tfuq.selective._losses import check_counts, costs_of, title
from tfuq.selective._rule_fitting import (
    REJECT_ALL,
    Part,
    UnattainableRisk,
    fit_part,
    image_sums,
    what_may_help,
)
from tfuq.selective._sorted_sums import sorted_sums


class Level(NamedTuple):
    """Sums of one promise over the levels of all examples, from the most trusted down."""

    table: object  # `Sums` of the levels that have some of the promise, or `ImageSums`
    place: np.ndarray  # of each level the last of these, -1 before the first
    weight: np.ndarray
    total: np.ndarray
    count: int  # examples of the promise


def reads_of(first, promises, read_again, fits=False):
    """What is read for each promise; `first` is what was read for errors.

    `read_again(loss)` reads for a function, which is given the probabilities. What is to be fitted
    needs examples of each.
    """
    found = []
    for promise in promises:
        loss = promise.loss
        if loss.kind == "function":
            read = read_again(loss=loss)._replace(score=first.score)
        elif loss.kind == "matrix":
            lost = costs_of(loss, first.predicted, first.labels, first.classes)
            read = first._replace(loss=lost, binary=loss.is_zero_one)
        else:
            lost, counts = loss.of_answers(first.predicted, first.labels)
            if fits:
                check_counts(loss, counts, first.predicted, first.labels, "loss")
            read = first._replace(loss=lost, counts=counts, binary=True)
        found.append(read._replace(loss=np.asarray(read.loss, "float64")))
    return found


def fit_of_part(rule, read, promises, read_again):
    """A function of rows, goal and `by` that fits one part; `promises` are several, or None."""
    if promises is None:
        return functools.partial(fit_part, rule, read)
    reads = reads_of(read, promises, read_again, True)
    return functools.partial(fit_together, rule, reads, promises)


def fit_together(rule, reads, promises, rows, goal, by):
    """The threshold at which all promises hold, of some of the entries or, if None, of all."""
    if by == "label":
        reads, rows = [read.of(rows) for read in reads], None
    rows = reads[0].known_rows(rows)
    sign = 1 if rule.grows_with_trust else -1
    are_images = len(reads[0].score) > reads[0].images
    found = of_images if are_images else of_single
    if goal.thresholds is not None:
        found = functools.partial(of_declared, thresholds=goal.thresholds)
    values, accepted, levels = found(rule, reads, rows, sign)
    start = None  # of a chain that has the whole error for each promise
    if goal.thresholds is not None:
        index = last_in_sequence(_joint(levels, promises), None, goal.delta)
    elif are_images:
        index = learn_then_test(_joint(levels, promises), None, goal.delta)
    else:
        start = start_of_chain(reads, promises, rows, goal.delta)
        if start is None:
            index = last_of_all(levels, promises, goal.delta / len(promises))
        else:
            index = last_of_chain(levels, reads, promises, rows, sign, start, goal.delta)
    count = len(reads[0].score) if rows is None else len(rows)
    if index is None:
        refused = functools.partial(_refused, start=start)
        refused = refused if goal.thresholds is None else _refused_sequence
        message = refused(levels, promises, goal, accepted, count, rule.class_names)
        if by is None:
            raise message
        warnings.warn(f"{message} Its predictions are all rejected.", stacklevel=5)
        kept, threshold = 0, REJECT_ALL[rule.grows_with_trust]
    else:
        kept, threshold = int(accepted[index]), float(-sign * values[index])
    entries = [
        {**promise.loss.said(), "target_risk": promise.target_risk, **_found(each, index, promise)}
        for promise, each in zip(promises, levels, strict=True)
    ]
    sums = {"examples": count, "accepted": kept, "risk": None, "risk_bound": None}
    return Part(threshold, {**sums, "losses": entries})


def _found(level, index, promise):
    if index is None or not level.weight[index]:
        return {"risk": None, "risk_bound": None if index is None else promise.target_risk}
    risk = float(level.total[index] / level.weight[index])
    return {"risk": risk, "risk_bound": promise.target_risk}


def check_together(method, by, losses):
    """Raises ValueError unless losses go with the method and with `by`.

    Args:
        method, by: As in `RejectionRule.fit`.
        losses: A list of `Loss`.
    """
    if len(losses) > 1 and method != "auto":
        raise ValueError(
            "Argument `method` must be 'auto' for several losses, for which only that method has "
            f"a proof. Received: method={shown(method)} with {len(losses)} losses"
        )
    if by == "class" and any(loss.kind == "precision" for loss in losses):
        raise ValueError(
            "Argument `loss` must not be a precision with by='class': loss='error' promises the "
            f"precision of each class there. Received: loss={shown('precision')} with by='class'"
        )


# --- Levels -------------------------------------------------------------------------------------


def of_single(rule, reads, rows, sign):
    """Values of the score, how many are accepted up to each, and a `Level` of each promise."""
    found = []
    for read in reads:
        parts = (read.score, read.counts, read.loss)
        score, counts, loss = (part if rows is None else part[rows] for part in parts)
        if rule.score == GIVEN:
            warn_of_sign(score[counts], loss[counts])
        values, accepted, weight, total = sorted_sums(score, counts, loss, sign)
        back = np.flatnonzero(np.diff(weight, prepend=0) > 0)
        table = Sums(weight[back], total[back], read.binary)
        place = np.searchsorted(back, np.arange(len(weight)), side="right") - 1
        found.append(Level(table, place, weight, total, int(weight[-1])))
    return values, accepted, found


def of_images(rule, reads, rows, sign):
    """The same of images, at thresholds that are fixed beforehand."""
    values = -sign * fixed_thresholds(rule.score, reads[0].classes)
    rows = np.arange(len(reads[0].score)) if rows is None else rows
    level = np.searchsorted(values, -sign * reads[0].score[rows])
    accepted, found = np.bincount(level, minlength=len(values)).cumsum(), []
    for read in reads:
        counts, loss = read.counts[rows], read.loss[rows]
        parts = (counts, loss * counts)
        sums = [np.bincount(level, part, len(values)).cumsum() for part in parts]
        table = image_sums(read, rows, level, len(values))
        found.append(Level(table, np.arange(len(values)), *sums, len(table.loss)))
    return values, accepted, found


def of_declared(rule, reads, rows, sign, thresholds):
    """The same at thresholds that were declared, from the most trusted on."""
    parts = [(read.score, read.counts, read.loss) for read in reads]
    rows = np.arange(len(parts[0][0])) if rows is None else rows
    found = []
    for read, (score, counts, loss) in zip(reads, parts, strict=True):
        level, sums = declared_levels(thresholds, score[rows], counts[rows], loss[rows], sign)
        table = None
        if len(read.score) > read.images:
            table = image_sums(read, rows, level, len(thresholds) + 1)
        table = table_of(table, *sums[1:], read.binary)
        found.append(Level(table, np.arange(len(thresholds)), *sums[1:], int(counts[rows].sum())))
    return -sign * thresholds, sums[0], found


def last_of_all(levels, promises, delta):
    """The most lenient level that is safe for each promise, or None."""
    safe = np.ones(len(levels[0].place), bool)
    some = some_levels(len(safe))  # the same of each promise
    for level, promise in zip(levels, promises, strict=True):
        if not len(level.table.accepted):
            return None
        looked = np.unique(level.place[some])
        looked = looked[looked >= 0]
        shown = safe_levels(level.table, promise.target_risk, delta, looked)
        safe &= (level.place >= 0) & shown[level.place]
    found = np.flatnonzero(safe)
    return int(found[-1]) if found.size else None


class _Joint(NamedTuple):
    """Fixed levels, at each of which the hypothesis is that any of the promises is broken there."""

    tables: list
    risks: list

    @property
    def loss(self):
        return self.tables[0].loss

    def starts(self, risk, delta):
        return self.tables[0].starts(risk, delta)

    def p_values(self, risk, levels):
        pairs = zip(self.tables, self.risks, strict=True)
        return np.max([table.p_values(own, levels) for table, own in pairs], axis=0)


def _joint(levels, promises):
    return _Joint([level.table for level in levels], [each.target_risk for each in promises])


# --- Refusals -----------------------------------------------------------------------------------


def _refused_sequence(levels, promises, goal, accepted, count, class_names):
    """`UnattainableRisk` of declared thresholds: which promise the first of them cannot keep."""
    names = [title(promise.loss.said(), class_names) for promise in promises]
    sums = [(level.weight, level.total) for level in levels]
    tables = [level.table for level in levels]
    message, best, least = refusal_of_several(goal, tables, accepted, sums, promises, names)
    return UnattainableRisk(message, best, float(accepted[0] / count), least)


def _refused(levels, promises, goal, accepted, count, class_names, start):
    """`UnattainableRisk` that tells which of the promises cannot be kept, or that all can alone."""
    are_images = isinstance(levels[0].table, ImageSums)
    has_whole = are_images or start is not None
    delta = goal.delta / (1 if has_whole else len(promises))
    worst, alone, more = None, [], int(start is not None)
    needed = more + max(fewest_examples(promise.target_risk, delta) for promise in promises)
    for level, promise in zip(levels, promises, strict=True):
        name, table = title(promise.loss.said(), class_names), level.table
        has_any = table.accepted.shape[-1] > 0
        best, index = best_promise(table, delta, "auto") if has_any else (1.0, None)
        if index is not None and best <= promise.target_risk:
            alone.append(name)
            continue
        place = None if index is None else int(np.searchsorted(level.place, index))
        share = 0.0 if place is None else float(accepted[place] / accepted[-1])
        least = more + fewest_examples(promise.target_risk, delta)
        few = (
            ""
            if level.count >= least or isinstance(table, ImageSums)
            else (f", of which at least {least} are needed, all of them right")
        )
        text = (
            f"of {name!r} the lowest risk that these {level.count} examples of it can promise is "
            f"{best:.3f}, above {promise.target_risk:g}{few}."
        )
        expected = None if few else examples_expected(table, promise.target_risk, delta)
        text += "" if few else what_may_help(expected)
        worst = worst or (text, best, share, needed, expected)
    all_of_them = f"all {len(promises)} promises" if len(promises) > 1 else "the promise"
    start = f"No threshold keeps {all_of_them} with confidence={goal.confidence}: "
    if worst is None:
        tail = "each can be kept by itself, but not at one threshold: fit a rule for each."
        return UnattainableRisk(start + tail, 1.0, 0.0, needed)
    tail = f" Kept by themselves can be: {', '.join(alone)}." if alone else ""
    return UnattainableRisk(f"{start}{worst[0]}{tail}", *worst[1:])
