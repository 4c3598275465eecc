"""Report by group of examples, such as hospital or device, of a model and its rule."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfuq._arguments import (
    ArrayLike,
    PathLike,
    check_choice,
    check_fraction,
    check_integer,
    shown,
    told,
)
from tfuq._files.tables import group_columns, markdown_table, write_csv
from tfuq._math.bins import width_index
from tfuq._math.bounds import wilson_interval
from tfuq._predictions.labelled import labelled_predictions
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective._group_losses import losses_in_groups, target_of
from tfuq.selective._group_verdicts import ALL, CORRECTIONS, verdicts_of
from tfuq.selective._number_groups import table_of_numbers
from tfuq.selective._void import known_alone

__all__ = ["GroupRow", "SubgroupReport", "subgroup_report"]

_BINS = 15
_OF_NUMBERS = ("mean_error", "interval_coverage")  # the last fields of a row


class GroupRow(NamedTuple):
    """Accuracy, coverage and risk in one group; intervals are Wilson's.

    Example:

    >>> from tfuq.selective import subgroup_report
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [0, 1, 0]
    >>> report = subgroup_report(None, probs, labels, ["A", "B", "B"], target_risk=0.3)
    >>> [(row.group, row.n, row.accuracy, row.verdict) for row in report.rows[1:]]
    [('A', 1, 1.0, 'not shown'), ('B', 2, 0.5, 'not shown')]

    See also: `tfuq.selective.subgroup_report`.
    """

    column: str
    group: str
    n: int
    """Examples."""
    accuracy: float
    """Of all decisions, accepted or not."""
    accuracy_lower: float
    accuracy_upper: float
    coverage: float
    """Accepted fraction."""
    coverage_lower: float
    coverage_upper: float
    accepted: int
    """Decisions that are accepted and belong to the risk."""
    risk: float
    """Their mean loss, 1 - selective accuracy for errors; NaN if there are none."""
    risk_lower: float
    risk_upper: float
    ece: float
    """Expected calibration error of all decisions; of numbers, that of their quantiles, or NaN."""
    verdict: str
    """Of the target risk: `"holds"`, `"fails"`, `"not shown"` where there are too few examples to
    tell, `"nothing accepted"`, or `"no target"`."""
    mean_error: float = np.nan
    """Of all numbers, the mean distance from their labels; NaN of classes."""
    interval_coverage: float = np.nan
    """Of all numbers, the share in their intervals, of the rule's level or 0.9."""

    @property
    def fails(self) -> bool:
        """Whether the risk is shown to be above the target."""
        return self.verdict == "fails"


@told
@dataclasses.dataclass(frozen=True)
class SubgroupReport:
    """The rows of all groups, `GroupRow` each; the first is of all examples.

    Example:

    >>> from tfuq.selective import subgroup_report
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], [0, 1, 0]
    >>> report = subgroup_report(None, probs, labels, ["A", "B", "B"], target_risk=0.3)
    >>> [row.group for row in report], report.failing
    (['all', 'A', 'B'], [])

    See also: `tfuq.selective.subgroup_report`.
    """

    rows: tuple
    target_risk: float | None
    confidence: float
    correction: str | None

    def _told_arguments(self):
        return {"groups": len(self.rows) - 1, "target_risk": self.target_risk}

    def _told_lines(self):
        named = ", ".join(str(row.group) for row in self.failing)
        return [f"failing: {named or 'none'}"]

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    @property
    def failing(self) -> list[GroupRow]:
        """The rows of the groups whose risk is shown to be above the target."""
        return [row for row in self.rows if row.fails]

    def to_markdown(self) -> str:
        """A table with a row for each group, and a line that says what the verdicts mean."""
        names = ["group", "n", "accuracy", "coverage", "risk of accepted", "ECE", "verdict"]
        if self._are_numbers:
            names[2] = "within tolerance"
            names[6:6] = ["mean error", "in interval"]
        lines = [markdown_table(names, (_cells(row, self._are_numbers) for row in self.rows))]
        if self.target_risk is not None:
            tests = (
                f"{self.correction.title()}'s correction" if self.correction else "no correction"
            )
            lines += ["", f"Target risk {self.target_risk:g}, confidence {self.confidence:g}, "]
            lines[-1] += f"{tests} for {len(self.rows) - 1} groups."
        return "\n".join(lines)

    def to_csv(self, path: PathLike) -> None:
        """Writes a line for each row, and one with their names, to the file `path`.

        Args:
            path: Name of the file.
        """
        fields = GroupRow._fields if self._are_numbers else GroupRow._fields[: -len(_OF_NUMBERS)]
        write_csv(path, fields, [row[: len(fields)] for row in self.rows])

    @property
    def _are_numbers(self):
        return any(np.isfinite(row.mean_error) for row in self.rows)


def subgroup_report(
    rule: Any,
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    target_risk: float | None = None,
    confidence: float = 0.95,
    correction: str | None = "holm",
    loss: Any = None,
    positive_class: int | str | Sequence[int | str] = 1,
    rule_groups: ArrayLike | None = None,
    n_bins: int = _BINS,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    tolerance: float | None = None,
    score: str | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
) -> SubgroupReport:
    """Accuracy, coverage, risk and calibration of each group, and whether a target risk is kept.

    A group fails if a test shows that its risk is above the target, and holds if a test shows that
    it is below. For errors these are exact binomial tests on the accepted answers; for other
    losses, and if an example has several decisions (pixels, labels), tests of means over examples
    by Hoeffding and Bentkus. With a correction, the probability that any group within the target is
    reported to fail is at most 1 - `confidence`; the same holds for groups that are reported to
    hold. The row of all examples has its own test.

    Args:
        rule: A `RejectionRule`, a `ConformalPredictor`, or any object with `accept(probs) -> bool
            (n, ...)`; for a regression a `RegressionRule`. None accepts all.
        probs: Predictions, or a stack of them whose mean is the prediction, as the rule takes them;
            for a regression the result of `predict_uncertainty`.
        labels: Labels, sparse or one-hot; or numbers.
        groups: The group of each example, `(n,)` texts or numbers; or a dict (or a data frame) of
            such columns. Missing values (None, NaN) form their own group.
        target_risk: Risk to keep in every group, in (0, 1); by default the rule's target. Without a
            target there are no verdicts.
        confidence: Of intervals and, with the correction, of verdicts.
        correction: For the number of groups: `"holm"`, `"bonferroni"` (weaker), or None.
        loss: `"error"`, `"false_negative"`, costs or a function, as in `RejectionRule.fit`, of a
            regression `"error"` or a function `loss(mean, y)`; by default what the rule was
            fitted to, else `"error"`.
        positive_class: For `loss="false_negative"`; the rule's own if `loss` is None.
        rule_groups: For a rule with a threshold for each group, the groups of the examples; by
            default `groups`, if that is one column. What the rule does not know is rejected.
        n_bins: Bins of the calibration error of classes.
        from_logits: Whether `probs` are logits; by default as the rule says, else not.
        multi_label: Whether labels do not exclude one another; by default as the rule says.
        tolerance: For a regression, how far from its label a number is wrong; by default the
            rule's.
        score: For a rule of scores that are given: those of these predictions, `(n,)`.
        sample_weight: Weights of 0 (counts nowhere) and 1, `(n,)` or with more axes of the labels.
        ignore_class: Label of what counts nowhere, such as void pixels, or None.

    Returns:
        `SubgroupReport`.

    Raises:
        ValueError: If arrays do not fit together, are empty or hold NaN; if an argument is wrong.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import RejectionRule, subgroup_report
    >>> probs = np.tile([[0.9, 0.1], [0.6, 0.4]], (100, 1))
    >>> labels = np.where(np.arange(200) < 150, 0, 1)
    >>> hospital = np.where(np.arange(200) < 150, "own", "other")
    >>> rule = RejectionRule("confidence", 0.7)
    >>> report = subgroup_report(rule, probs, labels, hospital, target_risk=0.1)
    >>> [(row.group, row.coverage, row.verdict) for row in report]
    [('all', 0.5, 'fails'), ('other', 0.5, 'fails'), ('own', 0.5, 'holds')]

    See also: `tfuq.selective.SubgroupReport`, `tfuq.selective.shift_report`.
    """
    _check(rule, confidence, correction, n_bins)
    known = None
    if sample_weight is not None or ignore_class is not None:
        flag = getattr(rule, "multi_label", False) if multi_label is None else multi_label
        asked = sample_weight, ignore_class, flag
        given = rule_groups, score
        found = known_alone(probs, labels, groups, *asked, *given)
        probs, labels, groups, known, rule_groups, score = found
    target_risk = target_of(rule, target_risk, loss, positive_class)
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    if isinstance(probs, RegressionUncertainty):
        _check_is_of_numbers(n_bins, **flags)
        columns = group_columns(groups, len(probs))

        def accepted_of(accept, shape):
            return _asked(accept, rule, probs, shape, columns, rule_groups, score)

        table = table_of_numbers(rule, probs, labels, loss, tolerance, accepted_of)
    else:
        options = flags, loss, positive_class, n_bins, tolerance, score, known
        table, columns = _table_of_classes(rule, probs, labels, groups, rule_groups, *options)
    count = len(table.correct)
    keys, members = [(ALL, ALL)], [np.ones(count, bool)]
    for name, column in columns.items():
        names, index = np.unique(column, return_inverse=True)
        keys += [(name, str(group)) for group in names.tolist()]
        members += [index == k for k in range(len(names))]
    parts = [table.rows(chosen) for chosen in members]
    verdicts = verdicts_of(parts, target_risk, confidence, correction)
    rows = [
        _row(key, part, verdict, confidence)
        for key, part, verdict in zip(keys, parts, verdicts, strict=True)
    ]
    return SubgroupReport(tuple(rows), target_risk, float(confidence), correction)


class _Table(NamedTuple):
    """What is known of each decision, `(n, entries)`."""

    bins: np.ndarray  # of its confidence
    confidence: np.ndarray
    correct: np.ndarray
    accepted: np.ndarray
    at_risk: np.ndarray  # accepted, and belongs to the risk
    loss: np.ndarray
    known: np.ndarray  # whether its label is; void ones count nowhere

    def rows(self, chosen):
        """The table of some examples, a mask `(n,)`."""
        return type(self)(*(values[chosen] for values in self))

    def quality(self):
        """The calibration error, alone: sum_b (w_b / W) |accuracy_b - confidence_b|."""
        gaps = np.bincount(self.bins[self.known], (self.correct - self.confidence)[self.known])
        return (float(np.abs(gaps).sum() / np.count_nonzero(self.known)),)


def _check_is_of_numbers(n_bins, **flags):
    given = {**flags, **({} if n_bins == _BINS else {"n_bins": n_bins})}
    for name, value in given.items():
        if value:
            raise ValueError(
                f"Argument `{name}` must be left out for numbers, which are no classes. "
                f"Received: {name}={shown(value)}"
            )


def _check(rule, confidence, correction, n_bins):
    if rule is not None and not callable(getattr(rule, "accept", None)):
        raise ValueError(
            f"Argument `rule` must be None or have a method `accept`. Received: rule={shown(rule)}"
        )
    if getattr(rule, "weight_limits", None) is not None:
        raise ValueError(
            "Argument `rule` must not be weighted by example, as the report does not know the "
            "weights; weighted for a label shift it may be. Received: a rule with weight_limits of "
            f"{len(rule.weight_limits)} thresholds"
        )
    check_fraction("confidence", confidence)
    if confidence in (0, 1):
        raise ValueError(f"Argument `confidence` must be in (0, 1). Received: {confidence}")
    check_choice("correction", correction, CORRECTIONS)
    check_integer("n_bins", n_bins, 1)


def _table_of_classes(
    rule,
    probs,
    labels,
    groups,
    rule_groups,
    flags,
    loss,
    positive_class,
    n_bins,
    tolerance,
    score,
    known=None,
):
    """`_Table` of predicted classes, and the columns of groups."""
    if tolerance is not None:
        raise ValueError(
            "Argument `tolerance` must be None for classes, which are right or wrong. "
            f"Received: tolerance={shown(tolerance)}"
        )
    flags = {n: getattr(rule, n, False) if v is None else v for n, v in flags.items()}
    is_told = isinstance(probs, Uncertainty)
    flags |= {"from_logits": False} if is_told else {}
    labelled = labelled_predictions(probs.probs if is_told else probs, labels, **flags)
    columns = group_columns(groups, labelled.shape[0])
    accepted = np.ones(labelled.shape, bool).ravel()
    if rule is not None:
        probs = probs if is_told else np.asarray(probs)
        accepted = _asked(rule.accept, rule, probs, labelled.shape, columns, rule_groups, score)
    loss, counts = losses_in_groups(labelled, rule, loss, positive_class)
    known = np.ones(accepted.shape, bool) if known is None else known.ravel()
    accepted = accepted & known
    return _table(labelled, n_bins, accepted, accepted & counts, loss, known), columns


def _asked(accept, rule, predictions, shape, columns, rule_groups, score=None):
    """What the rule accepts of predictions of that shape, `(entries,)`."""
    accept = accept if score is None else functools.partial(accept, score=score)
    if getattr(rule, "by", None) != "group":
        accepted = np.asarray(accept(predictions))
    else:
        if rule_groups is None and len(columns) == 1:
            (rule_groups,) = columns.values()
        if np.shape(rule_groups) != shape[:1]:
            raise ValueError(
                f"Argument `rule_groups` must name the group of each of {shape[0]} "
                f"examples for a rule with by='group'. Received: rule_groups={shown(rule_groups)}"
            )
        accepted = accept(predictions, rule_groups, unknown_group="reject")
    if np.size(accepted) != np.prod(shape):
        raise ValueError(
            f"Argument `rule` must accept or reject each of {tuple(shape)} decisions. "
            f"Received: {np.shape(accepted)}"
        )
    return np.ravel(accepted)


def _table(labelled, n_bins, *of_entries):
    """`_Table` of what was labelled, and of what else is known of the entries."""
    confidence, correct = (np.asarray(part) for part in labelled.examples.top_label())
    bins = np.asarray(width_index(confidence, n_bins))
    parts = bins, confidence, correct.astype("float64"), *of_entries
    return _Table(*(np.reshape(part, (labelled.shape[0], -1)) for part in parts))


def _row(key, part, verdict, confidence):
    error, *of_numbers = part.quality()
    return GroupRow(*key, *_figures(part, confidence), error, verdict, *of_numbers)


def _figures(part, confidence):
    """The shares of a `GroupRow`."""
    count = len(part.correct)
    known = getattr(part, "known", slice(None))
    accuracy, coverage = float(part.correct[known].mean()), float(part.accepted[known].mean())
    at_risk = int(part.at_risk.sum())
    risk = float(part.loss[part.at_risk].mean()) if at_risk else np.nan
    return (
        count,
        *_with_interval(accuracy, count, confidence),
        *_with_interval(coverage, count, confidence),
        at_risk,
        *_with_interval(risk, np.count_nonzero(part.at_risk.any(axis=1)), confidence),
    )


def _with_interval(rate, count, confidence):
    """A rate with its interval, which counts examples, however many decisions each has."""
    if not count:
        return rate, 0.0, 1.0
    lower, upper = wilson_interval(rate * count, count, confidence)
    return rate, float(lower), float(upper)


def _cells(row, is_of_numbers):
    def percent(name):
        value, lower, upper = (getattr(row, name + end) for end in ("", "_lower", "_upper"))
        return "-" if np.isnan(value) else f"{value:.1%} [{lower:.1%}, {upper:.1%}]"

    name = row.group if row.column == ALL else f"{row.column}: {row.group}"
    figures = [percent(name) for name in ("accuracy", "coverage", "risk")]
    inside = "-" if np.isnan(row.interval_coverage) else f"{row.interval_coverage:.1%}"
    own = [f"{row.mean_error:.4g}", inside] if is_of_numbers else []
    return [name, row.n, *figures, f"{row.ece:.3f}", *own, row.verdict]
