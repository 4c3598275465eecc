"""Content of a report, and the effect of a threshold on it.

Examples are kept in the order of trust: what any threshold accepts stands at the front.
"""

from typing import NamedTuple

import numpy as np

from tfuq import metrics
from tfuq._arguments import shown
from tfuq._files.tables import group_columns, names_of
from tfuq._math.risk_coverage import loss_table, selective_area
from tfuq.predictive import declared
from tfuq.report._accepted import class_counts, own_risks_text
from tfuq.report._inputs import given, pictures
from tfuq.report._own_losses import own_losses
from tfuq.report._sets import checked_sets, set_tables
from tfuq.report._slider import slider_of, smallest_of
from tfuq.report._tables import Table, given_sections, number, percent, with_interval
from tfuq.selective import RejectionRule, subgroup_report
from tfuq.selective.own_loss import LOSSES, own_values, title

N_BINS = 15
MOST_GROUPS = 50
LEVELS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
IN_UNIT_INTERVAL = ("confidence", "margin", "variation_ratio")
COUNTED = ["coverage", "accuracy of accepted", "accepted", "rejected", "right", "wrong"]


class Decision(NamedTuple):
    """What a threshold accepts, and how much of that is right."""

    accepted: int
    rejected: int
    right: int
    """Of the accepted."""
    wrong: int
    coverage: float
    accuracy: float
    """Of the accepted; NaN if there are none."""

    def cells(self):
        """Texts under `COUNTED`."""
        return [percent(self.coverage), percent(self.accuracy), *map(number, self[:4])]


class Ranked(NamedTuple):
    """The usable examples, the most trusted first; arrays `(k,)`."""

    name: str
    """Of the score."""
    grows: bool
    """Whether a larger score is trusted more."""
    score: np.ndarray
    """float32, as thresholds are compared with it."""
    predicted: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    """Which of all examples it is."""

    @property
    def right(self):
        """Whether the answer is the true class."""
        return self.predicted == self.labels

    def count(self, threshold):
        """How many are accepted: the first so many."""
        sign = -1 if self.grows else 1
        return int(np.searchsorted(sign * self.score, sign * np.float32(threshold), side="right"))


class Content(NamedTuple):
    """All that a report shows."""

    title: str
    names: list
    """Of the classes."""
    total: int
    """Examples, those without a usable prediction included."""
    ranked: Ranked
    threshold: float
    """The one that was chosen."""
    marks: list
    """`(name, threshold)` of the rule."""
    rule: str
    """What the rule does, in sentences."""
    promises: bool
    """Whether the rule promises a risk."""
    verdicts: list
    """`Table`s of what the rule does in each group, beside its promise."""
    groups: dict
    """`{column: (names, number of each example's group (total,))}`."""
    summary: Table
    reliability: dict
    sections: list
    """`(heading, tables)` of what does not depend on the threshold."""
    images: object
    """Pictures of the examples, or None."""
    own: list
    """`OwnLoss` of each loss of the rule, unless these are errors."""

    def decision(self, threshold, of=None):
        """`Decision` at a threshold, of all examples or of those that are True in `of (total,)`."""
        accepted = self.ranked.count(threshold)
        chosen = slice(None) if of is None else of[self.ranked.index[:accepted]]
        right = self.ranked.right[:accepted][chosen]
        total = self.total if of is None else int(of.sum())
        accepted, correct = len(right), int(right.sum())
        counts = accepted, total - accepted, correct, accepted - correct
        return Decision(*counts, accepted / total, correct / accepted if accepted else np.nan)

    def classes(self, threshold):
        """Of each class: its examples, the accepted ones, those called so, and its answers."""
        return class_counts(self.ranked, len(self.names), threshold)

    def confusion(self, threshold):
        """Counts of the accepted `(classes, classes)`, by true (rows) and predicted class."""
        accepted, counts = self.ranked.count(threshold), np.zeros([len(self.names)] * 2, int)
        np.add.at(counts, (self.ranked.labels[:accepted], self.ranked.predicted[:accepted]), 1)
        return counts

    def slider(self):
        """The largest threshold to choose, from 0 up, and the digits after the point of a step."""
        if self.ranked.name in IN_UNIT_INTERVAL:
            return 1.0, 3
        return slider_of(self.threshold, self.marks, self.ranked.score)

    @property
    def smallest(self):
        return smallest_of(self.marks, self.ranked.score, self.slider()[1])

    def level_table(self):
        """`Table` of what some thresholds accept."""
        levels = LEVELS
        if self.ranked.name not in ("confidence", "margin"):
            levels = [
                float(f"{level:.3g}") for level in np.linspace(self.smallest, self.slider()[0], 9)
            ]
        header = ["threshold", *COUNTED, *(own.name for own in self.own)]
        rows = [
            [f"{level:g}", *found.cells(), *(own.text(found.accepted) for own in self.own)]
            for level, found in zip(levels, map(self.decision, levels), strict=True)
        ]
        return Table(f"What a threshold of the {self.score} accepts", header, rows)

    def reliability_table(self):
        """`Table` of the bins that are not empty."""
        columns = ("lower", "upper", "confidence", "accuracy", "count")
        bins = zip(*(self.reliability[column] for column in columns), strict=True)
        rows = [
            [f"{lower:.3f} to {upper:.3f}", percent(mean), percent(accuracy), number(int(count))]
            for lower, upper, mean, accuracy, count in bins
            if count
        ]
        header = ["confidence", "mean confidence", "accuracy", "examples"]
        return Table("Accuracy at each confidence", header, rows)

    @property
    def score(self):
        """Name of the score in words."""
        return self.ranked.name.replace("_", " ")


def read(
    source,
    *,
    data=None,
    output=None,
    batch_size=None,
    images=None,
    names=None,
    groups=None,
    rule=None,
    threshold=None,
    title="Report",
    from_logits=None,
    num_samples=None,
    ood=None,
    shift=None,
    gap=None,
    sets=None,
    score=None,
):
    """`Content` of the arguments that `tfuq.report.html` and `to_markdown` share."""
    if rule is not None and (not isinstance(rule, RejectionRule) or rule.multi_label):
        raise ValueError(
            "Argument `rule` must be a RejectionRule of one decision for each example, or None. "
            f"Received: rule={shown(rule)}"
        )
    sets = checked_sets(sets, rule)
    check_title(title)
    threshold = checked_threshold(threshold)
    reader = sets if rule is None and from_logits is None else None
    from_logits = from_logits if reader is None else reader.from_logits
    found = given(source, data, output, batch_size, from_logits, rule, num_samples, score)
    ranked = _rank(found, rule)
    if names is None:
        names = getattr(rule, "class_names", None) or declared(source).class_names
    names = names_of(names, found.labelled.examples.scores.shape[-1])
    columns = {} if groups is None else group_columns(groups, found.total)
    columns = {name: column.astype(str) for name, column in columns.items()}
    marks = marks_of(rule, names)
    images = _pictures(images, source, data, found.total)
    sections = {
        **given_sections(shift, ood, gap),
        "Prediction sets": set_tables(sets, found, names, columns, rule_groups(sets, columns)),
    }
    return Content(
        title,
        names,
        found.total,
        ranked,
        _first_threshold(rule, ranked, marks) if threshold is None else threshold,
        marks,
        _rule_text(rule, found, ranked, columns),
        promises_risk(rule),
        _rule_tables(rule, found, columns),
        {name: coded(column) for name, column in columns.items()},
        _summary(found, ranked, len(names)),
        found.metric(metrics.reliability_curve, n_bins=N_BINS),
        [(heading, tables) for heading, tables in sections.items() if tables],
        images,
        own_losses(rule, found, ranked),
    )


def _pictures(images, source, data, total):
    images = pictures(source, data) if images is None else images
    if images is not None and len(images) != total:
        raise ValueError(
            f"Argument `images` must hold one for each of {total} examples. "
            f"Received: images with {len(images)}"
        )
    return images


def check_title(title):
    """Raises ValueError unless a title is a text."""
    if not isinstance(title, str) or not title.strip():
        raise ValueError(f"Argument `title` must be a text. Received: title={shown(title)}")


def checked_threshold(threshold):
    """The argument `threshold`, a float or None."""
    is_number = np.isscalar(threshold) and not isinstance(threshold, (str, bytes, bool, complex))
    if threshold is not None and (not is_number or np.isnan(threshold)):
        raise ValueError(
            f"Argument `threshold` must be a number. Received: threshold={shown(threshold)}"
        )
    return None if threshold is None else float(threshold)


def _rank(found, rule):
    """`Ranked` by the score of the rule, or by confidence."""
    examples = found.labelled.examples
    grows = found.beside is None and (rule is None or rule.grows_with_trust)
    if found.beside is not None:
        score = found.beside[found.usable]
    else:
        score = examples.top_label()[0] if rule is None else rule.score_of(found.rows)
    score = np.asarray(score, "float32")
    order = np.argsort(-score if grows else score, kind="stable")
    predicted = np.asarray(examples.scores).argmax(-1)
    name = "confidence" if rule is None else rule.score
    name = name if found.beside is None else found.beside_name
    index = np.flatnonzero(found.usable)
    parts = (part[order] for part in (score, predicted, found.labels, index))
    return Ranked(name, grows, *parts)


def coded(column):
    """Names of the groups, and each example's; those beyond the largest `MOST_GROUPS` are one."""
    names, codes, counts = np.unique(column, return_inverse=True, return_counts=True)
    if len(names) <= MOST_GROUPS:
        return names.tolist(), codes
    largest = np.sort(np.argsort(-counts, kind="stable")[:MOST_GROUPS])
    renamed = np.full(len(names), MOST_GROUPS)
    renamed[largest] = np.arange(MOST_GROUPS)
    smaller = f"{len(names) - MOST_GROUPS} smaller groups"
    return [*names[largest].tolist(), smaller], renamed[codes]


# --- The rule -----------------------------------------------------------------------------------


def promises_risk(rule):
    """Whether a rule, or None, was fitted to a target risk."""
    return rule is not None and rule.fitted_to.get("goal") == "risk"


def marks_of(rule, names):
    """`(name, threshold)` of a rule."""
    if rule is None:
        return []
    if rule.by is None:
        return [("rule", rule.threshold)]
    thresholds = np.asarray(rule.threshold).tolist()
    keys = rule.keys
    if rule.by == "class":
        if max(keys) >= len(names):
            raise ValueError(
                f"Argument `rule` must know only classes 0 to {len(names) - 1}. "
                f"Received: a rule of the classes {keys}"
            )
        keys = [names[key] for key in keys]
    return list(zip((f"rule, {key}" for key in keys), thresholds, strict=True))


def _first_threshold(rule, ranked, marks):
    """The threshold that a report begins with, if it is not told."""
    if rule is None:
        return 0.5
    known = [mark for _, mark in marks if np.isfinite(mark) or rule.by is None]
    return float(np.median(known or ranked.score))


def _rule_text(rule, found, ranked, columns):
    if rule is None:
        return ""
    given = {"unknown_group": "reject", "score": found.beside}
    groups = rule_groups(rule, columns)
    accepted = rule.accept(found.probs, groups, **given)
    accepted = accepted[ranked.index]
    count, wrong = int(accepted.sum()), int(np.count_nonzero(accepted & ~ranked.right))
    share = f", of which {wrong:,} are wrong ({percent(wrong / count)})" if count else ""
    return (
        f"{rule.describe()} Of the {found.total:,} examples of this report the rule accepts "
        f"{count:,} ({percent(count / found.total)}){share}.{own_risks_text(rule, found, groups)}"
    )


def rule_groups(rule, columns):
    """The groups that a rule or a conformal predictor goes by, of each example, or None."""
    if rule is None or rule.by != "group":
        return None
    if len(columns) != 1:
        raise ValueError(
            "Argument `groups` must be the one column by which the rule or the sets were fitted. "
            f"Received: {len(columns)} columns"
        )
    return next(iter(columns.values()))


def _rule_tables(rule, found, columns):
    """What the rule as fitted does in each group, with intervals and verdicts."""
    if rule is None or not columns:
        return []
    usable = {name: column[found.usable] for name, column in columns.items()}
    return [
        _rule_table(rule, entry, value, found, usable)
        for entry, value in zip(
            rule.fitted_to.get("losses", [rule.fitted_to]), own_values(rule), strict=True
        )
    ]


def _rule_table(rule, entry, value, found, usable):
    """The same of one loss, as a rule's report says it, and its `value`, costs or a function.

    A function that the rule's file does not hold is not known: errors stand for it, as is said.
    """
    loss = entry.get("loss", "error")
    is_kept = loss in LOSSES or value is not None
    given = {"positive_class": entry["positive_class"]} if "positive_class" in entry else {}
    given |= (
        {"loss": loss if value is None else value, "target_risk": entry.get("target_risk")}
        if is_kept
        else {}
    )
    given["score"] = None if found.beside is None else found.beside[found.usable]
    report = subgroup_report(rule, found.rows, found.labels, usable, **{"loss": "error", **given})
    rows = [
        [
            row.group if row.column == "all" else f"{row.column}: {row.group}",
            number(row.n),
            row.verdict,
            with_interval(*row[10:13]),
            with_interval(*row[6:9]),
            with_interval(*row[3:6]),
            number(row.ece),
        ]
        for row in report
    ]
    # The verdict first: a telephone shows three columns before one has to move the table.
    header = ["group", "n", "verdict", "risk of accepted", "coverage", "accuracy of all", "ECE"]
    note = "Intervals are Wilson's at 95 %."
    if report.target_risk is not None:
        note += f" Verdicts are of the target risk {report.target_risk:g}, Holm's correction."
    failing = ", ".join(f"{row.column}: {row.group}" for row in report.failing)
    if failing:
        note = f"The promise is broken in {failing}. {note}"
    caption = "The rule as fitted, in each group"
    if not is_kept:
        caption += f"; the risk is of errors, not of the {loss} that it was fitted to"
    elif loss != "error":
        name = title(entry, rule.class_names)
        caption += f"; the risk is of {'the ' * (value is not None)}{name}"
    return Table(caption, header, rows, note)


# --- Figures of all -----------------------------------------------------------------------------


def _summary(found, ranked, classes):
    steps = ranked.score[1:] != ranked.score[:-1]  # no difference, which of infinities is NaN
    level = np.append(0, np.cumsum(steps))
    table = loss_table(level, level[-1] + 1, np.ones(len(level), "float32"), ~ranked.right)
    area = float(selective_area(table))  # `aurc` of what is in the order of trust already
    nll, brier = (
        found.metric(function)
        for function in (metrics.negative_log_likelihood, metrics.brier_score)
    )
    ece = found.metric(metrics.expected_calibration_error, n_bins=N_BINS)
    by = "" if ranked.name == "confidence" else f", by {ranked.name.replace('_', ' ')}"
    rows = [
        ["Examples", number(found.total)],
        ["Classes", number(classes)],
        ["Accuracy", percent(ranked.right.mean())],
        ["Negative log-likelihood (NLL, nats)", number(nll)],
        ["Brier score", number(brier)],
        [f"Expected calibration error (ECE, {N_BINS} bins)", number(ece)],
        [f"Area under the risk-coverage curve (AURC{by})", number(area)],
    ]
    usable = len(ranked.score)
    missing = found.total - usable
    note = (
        f"{missing:,} of {found.total:,} predictions hold NaN or infinity. Any threshold rejects "
        f"them; accuracy and the figures below it are of the other {usable:,}."
    )
    notes = [found.said, note if missing else ""]
    title = "All examples, accepted or not"
    return Table(title, ["figure", "value"], rows, " ".join(filter(None, notes)))
