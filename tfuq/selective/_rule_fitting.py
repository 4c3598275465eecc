"""Fitting of a rejection rule: targets, losses, and the threshold of each part of the examples."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from tfuq._arguments import check_fraction, is_finite, shown
from tfuq._math.bounds import clopper_pearson_interval
from tfuq._predictions.labelled import warn_of_sign
from tfuq._predictions.scores import GIVEN
from tfuq.selective._attainable import best_promise, examples_expected
from tfuq.selective._declared_thresholds import (
    best_in_sequence,
    declared_levels,
    fixed_thresholds,
    last_in_sequence,
    refusal,
    table_of,
)
from tfuq.selective._guarantees import METHODS, Sums, fewest_examples
from tfuq.selective._losses import SEVERAL, faults_of_losses
from tfuq.selective._reading import checked_classes
from tfuq.selective._sorted_sums import image_sums, sorted_sums
from tfuq.selective.base import warn_of_complement

REJECT_ALL = {True: np.inf, False: -np.inf}  # by whether the score grows with trust


class UnattainableRisk(ValueError):
    """No threshold keeps the risk under the target with the confidence that was asked for.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import RejectionRule, UnattainableRisk
    >>> probs = np.tile([[0.9, 0.1]], (30, 1))
    >>> try:
    ...     RejectionRule.fit(probs, np.zeros(30, int), target_risk=0.05)
    ... except UnattainableRisk as refusal:
    ...     print(refusal.examples_needed, round(refusal.best_risk, 2))
    59 0.1

    See also: `tfuq.selective.RejectionRule`, `tfuq.selective.gap`.
    """

    def __init__(
        self,
        message: str,
        best_risk: float,
        coverage: float,
        examples_needed: int,
        examples_expected: float | None = None,
    ) -> None:
        super().__init__(message)
        self.best_risk = best_risk
        """The lowest risk that can be promised from these examples with that confidence."""
        self.coverage = coverage
        """The fraction of them that would be accepted with that promise."""
        self.examples_needed = examples_needed
        """The fewest examples that can show the target, if all are right."""
        self.examples_expected = examples_expected
        """About how many like these would show it; None if at no threshold errors are that rare."""


class Read(NamedTuple):
    """Predictions with labels, an entry for each decision."""

    score: np.ndarray  # (entries,), in the score's own direction
    loss: np.ndarray  # (entries,), in [0, 1]
    counts: np.ndarray  # (entries,), whether the entry belongs to the risk
    right: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    images: int
    classes: int
    binary: bool  # whether no loss can be other than 0 or 1
    known: np.ndarray | None = None  # (entries,), whether the label is; None if all are

    def of(self, rows):
        """The same of some of the entries, as many of each example."""
        known = None if self.known is None else self.known[rows]
        return Read(*(part[rows] for part in self[:6]), *self[6:9], known)

    @property
    def has_one_each(self):
        """Whether each example is one decision."""
        return len(self.score) == self.images

    def known_rows(self, rows):
        """Those of some rows, or of all if None, whose label is known."""
        if self.known is None:
            return rows
        return np.flatnonzero(self.known) if rows is None else rows[self.known[rows]]

    def known_alone(self):
        """What is known, of as many examples as have any."""
        if self.known is None:
            return self
        images = self.known.reshape(self.images, -1).any(axis=1).sum()
        return self.of(self.known)._replace(images=int(images), known=None)


class Goal(NamedTuple):
    wanted: str  # "risk", "coverage" or "cost"
    target_risk: float | None
    target_coverage: float | None
    costs: dict | None
    confidence: float
    delta: float  # the error of each part, 1 - confidence or a share of that
    method: str
    thresholds: np.ndarray | None = None  # declared, from the most trusted on

    def said(self):
        """What was asked for, for the record."""
        if self.wanted == "risk":
            names = ("target_risk", "confidence", "method")
            found = {name: getattr(self, name) for name in names}
            if self.thresholds is not None:
                found |= {"method": "fixed_sequence", "thresholds": self.thresholds.tolist()}
            return {name: value for name, value in found.items() if value is not None}
        if self.wanted == "coverage":
            return {"target_coverage": self.target_coverage}
        return {"costs": dict(self.costs)}


class Part(NamedTuple):
    threshold: float
    sums: dict


def check_targets(target_risk, target_coverage, costs, confidence, several=False):
    """Which of them is wanted; of `several` losses, which bring their targets, the risk."""
    given = {"risk": target_risk, "coverage": target_coverage, "cost": costs}
    given = {name: value for name, value in given.items() if value is not None}
    if several and given:
        raise ValueError(
            "Arguments `target_risk`, `target_coverage` and `costs` must be None for several "
            "losses: each has its target in `loss`. "
            f"Received: target_risk={shown(target_risk)}, "
            f"target_coverage={shown(target_coverage)}, costs={shown(costs)}"
        )
    given = {"risk": True} if several else given
    if len(given) != 1:
        raise ValueError(
            "One of the arguments `target_risk`, `target_coverage` and `costs` must be given. "
            f"Received: target_risk={shown(target_risk)}, "
            f"target_coverage={shown(target_coverage)}, "
            f"costs={shown(costs)}"
        )
    for name, value in (("target_risk", target_risk), ("confidence", confidence)):
        if value is not None:
            check_fraction(name, value)
            if value in (0, 1):
                raise ValueError(
                    f"Argument `{name}` must be in (0, 1). Received: {name}={shown(value)}"
                )
    if confidence < 0.5:
        warn_of_complement("confidence", confidence, "holds more seldom than it fails")
    if target_coverage is not None:
        check_fraction("target_coverage", target_coverage)
        if target_coverage == 0:
            raise ValueError(
                "Argument `target_coverage` must be in (0, 1]. Received: target_coverage=0"
            )
    if costs is not None:
        _check_costs(costs)
    return next(iter(given))


def _check_costs(costs):
    known = ("error", "rejection", "review")
    fine = isinstance(costs, dict) and set(costs) <= set(known) and costs.get("error")
    if fine:
        values = np.array([costs.get(name, 0) for name in known], "float64")
        fine = np.all(np.isfinite(values)) and np.all(values >= 0)
    if not fine:
        raise ValueError(
            'Argument `costs` must be a dict of finite numbers >= 0, "error" above 0 among '
            f"{known}. Received: costs={shown(costs)}"
        )


def report_of(found, read, goal, said):
    """What a rule of these parts was fitted to, for `fitted_to`; `said` is of its loss."""
    has_one_each, read = read.has_one_each, read.known_alone()
    decisions = len(read.score)
    accepted = int(sum(part.sums["accepted"] for part in found.values()))
    seen = np.unique(read.labels)
    report = {
        "goal": goal.wanted,
        "loss": said["loss"],
        "examples": int(read.images),
        "decisions": decisions,
        "accepted": accepted,
        "coverage": accepted / decisions,
        "classes": seen.tolist(),
        "unseen_classes": np.setdiff1d(np.arange(read.classes), seen).tolist(),
    }
    if has_one_each:
        ends = clopper_pearson_interval(accepted, decisions, goal.confidence)
        report["coverage_interval"] = [float(end) for end in ends]
    return report | said | goal.said()


def rank_of(probs, labels, multi_label, is_stack=None):
    """Axes of a single prediction, from predictions and labels, and whether they are a stack."""
    shape, of_labels = np.shape(probs), np.shape(labels)
    if is_stack:
        return max(1, len(shape) - 1)
    for rank, single in ((len(shape), shape), (len(shape) - 1, shape[1:])):
        if rank < 1 or (rank < len(shape) and len(shape) < 3):
            break
        entries = single if multi_label or rank == 1 else single[:-1]
        if of_labels in (entries, (*entries, 1), single):
            return rank
    raise ValueError(
        "Argument `labels` must have the shape of `probs` without the classes, or that of one of "
        f"its samples. Received: labels of shape {of_labels}, probs of shape {shape}"
    )


def check_known(score):
    """Raises ValueError if scores that a rule is to be fitted to hold NaN or infinity."""
    unknown = ~np.isfinite(score)
    if unknown.any():
        raise ValueError(
            f"Argument `score` must hold finite numbers. Received: {score[unknown][0]} "
            f"({unknown.sum()} of {len(score)})"
        )


def checked_report(fitted_to, by):
    """The argument `fitted_to` as a dict of which, if it tells a goal, all can be told."""
    try:
        report = checked_classes(dict(fitted_to or {}))
        if "goal" in report:
            for fault in _faults_of_report(report, by):
                raise ValueError(fault)
        return report
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Argument `fitted_to` must be None or what `fit` reports, a dict. "
            f"Received: fitted_to={shown(fitted_to)} ({error})"
        ) from None


def _faults_of_report(report, by):
    numbers = ["coverage", "decisions", "examples"]
    if report["goal"] == "risk":
        numbers += (
            ["confidence"] if report.get("loss") == SEVERAL else ["target_risk", "confidence"]
        )
    yield from faults_of_losses(report)
    yield from (f"no number {n!r}" for n in numbers if not is_finite(report.get(n)))
    shares = ("coverage", "confidence", "target_coverage")
    known = {n: report[n] for n in shares if is_finite(report.get(n))}
    yield from (f"{n!r} that is no share" for n, value in known.items() if not 0 <= value <= 1)
    if report.get("risk") is not None and not is_finite(report["risk"]):
        yield "the risk is no number"
    if not isinstance(report.get("loss"), str):
        yield "no loss"
    if not isinstance(report.get("unseen_classes"), list):
        yield "no list of unseen classes"
    declared = report.get("thresholds", [])
    if not isinstance(declared, list) or not all(is_finite(each) for each in declared):
        yield "thresholds that are no numbers"
    parts = report.get("parts", {} if by is None else None)
    if not isinstance(parts, dict) or not all(_is_part(part) for part in parts.values()):
        yield "parts that are none"
    if by is not None and not isinstance(report.get("simultaneous"), bool):
        yield "not whether its promises hold together"


def _is_part(part):
    return isinstance(part, dict) and is_finite(part.get("accepted"))


def parts_of(read, by, groups, columns=1):
    """Rows of each class, label (of which there are `columns`) or group, or of all."""
    if by != "group" and groups is not None:
        raise ValueError(
            'Argument `groups` must be None unless by="group". '
            f"Received: groups with by={shown(by)}"
        )
    if by is None:
        return {None: None}
    if by == "class":
        return {int(k): np.flatnonzero(read.predicted == k) for k in np.unique(read.predicted)}
    if by == "label":
        return {label: np.arange(label, len(read.score), columns) for label in range(columns)}
    names = np.asarray(groups if groups is not None else [], dtype=str)
    if names.shape != (read.images,):
        raise ValueError(
            f"Argument `groups` must name the group of each of {read.images} examples. "
            f"Received: groups={shown(groups)}"
        )
    names = np.repeat(names, len(read.score) // read.images)
    return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


def known_parts(read, parts, by):
    """Those of the parts that have known labels; each label needs some."""
    found = {k: rows for k, rows in parts.items() if by is None or len(read.known_rows(rows))}
    if by == "label" and len(found) < len(parts):
        raise ValueError(
            "Argument `labels` must hold known labels of each label with by='label'. Received: "
            f"none of {sorted(set(parts) - set(found))}"
        )
    return found


def fit_part(rule, read, rows, goal, by, fixed=None):
    """The threshold for some of the entries, and what it was found from.

    `rows` are those of the entries, None for all. `fixed` thresholds, from the most trusted on,
    depend on none of the entries; by default those of a score of classes.
    """
    if by == "label":  # one decision of each example, if it has no pixels
        read, rows = read.of(rows), None
    rows = read.known_rows(rows)
    sign = 1 if rule.grows_with_trust else -1
    score, counts, loss = (part if rows is None else part[rows] for part in _parts(read))
    count, level = len(score), None
    if rule.score == GIVEN:
        warn_of_sign(score[counts], loss[counts])
    if goal.thresholds is not None:
        values = -sign * goal.thresholds
        level, sums = declared_levels(goal.thresholds, score, counts, loss, sign)
    elif goal.wanted == "risk" and len(read.score) > read.images:
        fixed = fixed_thresholds(rule.score, read.classes) if fixed is None else fixed
        rows = np.arange(count) if rows is None else rows
        values = -sign * fixed
        level = np.searchsorted(values, -sign * score)
        sums = [np.bincount(level, part, len(values)).cumsum() for part in (counts, loss * counts)]
        sums = np.bincount(level, minlength=len(values)).cumsum(), *sums
    else:
        values, *sums = sorted_sums(score, counts, loss, sign)
    accepted, weight, total = sums
    if goal.wanted == "coverage":
        wanted = np.ceil(goal.target_coverage * count * (1 - 1e-12)).astype(accepted.dtype)
        index = int(np.searchsorted(accepted, wanted))
    elif goal.wanted == "cost":
        index = _cheapest(accepted, total, count, goal.costs)
    elif goal.thresholds is not None:
        index = _last_declared(read, rows, level, sums, goal, by)
    else:
        index = _safe(read, rows, level, sums, goal, by)
    bound = None
    if index is None:
        threshold, kept, risk = REJECT_ALL[rule.grows_with_trust], 0, None
    else:
        threshold, kept = float(-sign * values[index]), int(accepted[index])
        risk = float(total[index] / weight[index]) if weight[index] else None
        bound = goal.target_risk
    said = {"examples": count, "accepted": kept, "risk": risk, "risk_bound": bound}
    return Part(threshold, said)


def _parts(read):
    return read.score, read.counts, read.loss


def _cheapest(accepted, total, count, costs):
    """The level of the lowest mean cost, the most lenient of several; None for no acceptance."""
    of_rejection = costs.get("rejection", 0) + costs.get("review", 0)
    found = costs["error"] * total.astype("float64") + of_rejection * (count - accepted * 1.0)
    best = len(found) - 1 - int(np.argmin(found[::-1]))
    return best if found[best] <= of_rejection * count else None


def _safe(read, rows, level, sums, goal, by):
    """The most lenient level that keeps the target, or an error, or None if it has siblings."""
    accepted, weight, total = sums
    if len(read.score) > read.images:
        table, back = image_sums(read, rows, level, len(accepted)), range(len(accepted))
        count = len(table.loss)
    elif weight is accepted:  # each level has some that belong to the risk
        table, back = Sums(weight, total, read.binary), range(len(accepted))
        count = int(weight[-1])
    else:
        back = np.flatnonzero(np.diff(weight, prepend=0) > 0)  # a level without any is no test
        table, count = Sums(weight[back], total[back], read.binary), int(weight[-1])
    index = METHODS[goal.method](table, goal.target_risk, goal.delta) if len(back) else None
    if index is not None:
        return int(back[index])
    plan = goal.delta, goal.method, goal.target_risk
    best, index = best_promise(table, *plan) if len(back) else (1.0, None)
    coverage = 0.0 if index is None else float(accepted[back[index]] / accepted[-1])
    needed = fewest_examples(goal.target_risk, goal.delta)
    is_small = len(read.score) == read.images and count < needed
    expected = examples_expected(table, goal.target_risk, goal.delta) if len(back) else None
    message = _refusal(goal, count, best, coverage, needed if is_small else None, expected)
    if by is None:
        raise UnattainableRisk(message, best, coverage, needed, expected)
    warnings.warn(f"{message} Its predictions are all rejected.", stacklevel=6)
    return None


def _last_declared(read, rows, level, sums, goal, by):
    """The same of thresholds that were declared, of which the first has to pass."""
    table, count = None, len(level)
    if len(read.score) > read.images:
        rows = np.arange(count) if rows is None else rows
        table = image_sums(read, rows, level, len(goal.thresholds) + 1)
    table = table_of(table, *sums[1:], read.binary)
    index = last_in_sequence(table, goal.target_risk, goal.delta)
    if index is not None:
        return index
    best, index = best_in_sequence(table, goal.delta)
    message = refusal(goal, count, best, sums)
    if by is None:
        coverage = 0.0 if index is None else float(sums[0][index] / count)
        needed = fewest_examples(goal.target_risk, goal.delta)
        raise UnattainableRisk(message, best, coverage, needed)
    warnings.warn(f"{message} Its predictions are all rejected.", stacklevel=6)
    return None


def _refusal(goal, count, best, coverage, needed, expected):
    text = (
        f"No threshold keeps the risk under target_risk={goal.target_risk} with "
        f"confidence={goal.confidence}: the lowest that these {count} examples can promise is "
        f"{best:.3f}, at a coverage of {coverage:.3f}."
    )
    if needed:
        return f"{text} At least {needed} examples are needed, all of them right."
    return text + what_may_help(expected)


def what_may_help(expected):
    """More examples, if known how many, and another score, as a sentence or two."""
    more = f" About {expected} examples like these would show the target." if expected else ""
    return f"{more} Another score may rank the errors better: compare scores with `best_score`."
