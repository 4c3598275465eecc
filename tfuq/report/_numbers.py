"""Content of a report of predicted numbers, and the effect of a threshold on it.

Examples are kept in the order of trust: the narrowest first, or those of the smallest score.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from tfuq import metrics
from tfuq._files.tables import group_columns
from tfuq._math.intervals import is_inside
from tfuq._predictions.numbers import usual_level
from tfuq._predictions.scores import GIVEN
from tfuq.report._content import (
    check_title,
    checked_threshold,
    coded,
    marks_of,
    promises_risk,
    rule_groups,
)
from tfuq.report._inputs import pictures
from tfuq.report._number_inputs import (
    check_arguments,
    checked_unit,
    given_numbers,
    read_tolerance,
)
from tfuq.report._slider import slider_of, smallest_of
from tfuq.report._tables import Table, given_sections, number, percent
from tfuq.selective import RegressionRule
from tfuq.selective.regression_rule import SCORES

FIRST = 0.8  # share that is accepted where no rule says otherwise
SURE = 0.95
WORST = 10
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Decision(NamedTuple):
    """What a threshold accepts, and how far off that is."""

    accepted: int
    rejected: int
    inside: int
    """Of the accepted, how many are in their interval."""
    wrong: int
    """Of the accepted, how many are off by more than the tolerance; 0 if there is none."""
    coverage: float
    error: float
    """Mean absolute error of the accepted; NaN if there are none."""


class Ranked(NamedTuple):
    """The usable examples, the most trusted first; arrays `(k,)`."""

    name: str
    """Of the score."""
    score: np.ndarray
    """float32, as thresholds are compared with it."""
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    y: np.ndarray
    index: np.ndarray
    """Which of all examples it is."""

    @property
    def error(self):
        return np.abs(self.y - self.mean)

    @property
    def inside(self):
        return is_inside(self.lower, self.upper, self.y)

    def count(self, threshold):
        """How many are accepted: the first so many."""
        return int(np.searchsorted(self.score, np.float32(threshold), side="right"))


class NumbersContent(NamedTuple):
    """All that a report of numbers shows."""

    title: str
    quantity: str
    """Name of the number."""
    total: int
    """Examples, those without a usable prediction included."""
    ranked: Ranked
    level: float
    """Of the intervals."""
    tolerance: object
    """How far off an answer is called wrong, or None."""
    threshold: float
    marks: list
    rule: str
    promises: bool
    """Whether the rule promises a risk."""
    groups: dict
    summary: Table
    calibration: dict
    """`"level"`, `"share"`, and the ends of chance, `"low"` and `"high"`."""
    sections: list
    images: object

    @property
    def score(self):
        """Name of the score in words."""
        return self.ranked.name.replace("_", " ")

    @property
    def counted(self):
        """The header of what `cells` gives."""
        off = [] if self.tolerance is None else [f"off by more than {self.tolerance:g}"]
        inside = f"in their {100 * self.level:g} % interval"
        return ["coverage", "mean error of accepted", inside, "accepted", "rejected", *off]

    def cells(self, found):
        """Texts of a `Decision`."""
        share = found.inside / found.accepted if found.accepted else np.nan
        off = [] if self.tolerance is None else [number(found.wrong)]
        counts = map(number, (found.accepted, found.rejected))
        return [percent(found.coverage), number(found.error), percent(share), *counts, *off]

    @property
    def wrong(self):
        """What answers are that count as wrong, or None without a tolerance."""
        return None if self.tolerance is None else f"are off by more than {self.tolerance:g}"

    def is_wrong(self):
        """Whether each usable example is off by more than the tolerance."""
        limit = np.inf if self.tolerance is None else self.tolerance
        return self.ranked.error > limit

    def decision(self, threshold, of=None):
        """`Decision` at a threshold, of all examples or of those that are True in `of (total,)`."""
        accepted = self.ranked.count(threshold)
        chosen = slice(None) if of is None else of[self.ranked.index[:accepted]]
        error, inside, wrong = (
            part[:accepted][chosen]
            for part in (self.ranked.error, self.ranked.inside, self.is_wrong())
        )
        total, count = self.total if of is None else int(of.sum()), len(error)
        counts = count, total - count, int(inside.sum()), int(wrong.sum())
        return Decision(*counts, count / total, float(error.mean()) if count else np.nan)

    def slider(self):
        """The largest threshold to choose, and the digits after the point of a step."""
        return slider_of(self.threshold, self.marks, self.ranked.score)

    @property
    def smallest(self):
        """The smallest threshold to choose: 0 of widths, below the scores if some are below 0."""
        return smallest_of(self.marks, self.ranked.score, self.slider()[1])

    def level_table(self):
        """`Table` of what some thresholds accept."""
        score = self.ranked.score
        at = [score[max(int(np.ceil(share * len(score))) - 1, 0)] for share in SHARES]
        levels = list(dict.fromkeys(float(f"{level:.3g}") for level in at))
        rows = [[f"{level:g}", *self.cells(self.decision(level))] for level in levels]
        title = f"What a threshold of the {self.score} accepts"
        return Table(title, ["threshold", *self.counted], rows)

    def calibration_table(self):
        """`Table` of the shares of labels below each quantile."""
        rows = [
            [f"{level:g}", percent(share), f"{percent(low)} to {percent(high)}"]
            for level, share, low, high in zip(*self.calibration.values(), strict=True)
        ]
        header = ["quantile", "labels below it", f"by chance, if right ({100 * SURE:g} %)"]
        return Table("Labels below each quantile", header, rows)

    def worst_table(self):
        """`Table` of the largest errors, accepted or not."""
        ranked = self.ranked
        rows = [
            [
                str(ranked.index[i]),
                *map(number, (ranked.y[i], ranked.mean[i])),
                number((ranked.lower[i], ranked.upper[i])),
                *map(number, (ranked.error[i], float(ranked.score[i]))),
            ]
            for i in self.worst()
        ]
        header = ["example", "true", "predicted", f"{100 * self.level:g} % interval", "error"]
        return Table("Largest errors of all", [*header, self.score], rows)

    def worst(self, accepted=None, count=WORST):
        """Ranks of the largest errors, of the first so many."""
        return np.argsort(-self.ranked.error[:accepted], kind="stable")[:count]


def read_numbers(
    source,
    *,
    data=None,
    output=None,
    batch_size=None,
    images=None,
    groups=None,
    rule=None,
    threshold=None,
    title="Report",
    num_samples=None,
    ood=None,
    shift=None,
    tolerance=None,
    quantity=None,
    unit=None,
    score=None,
    **of_classes,
):
    """`NumbersContent` of the arguments that `tfuq.report.html` and `to_markdown` share."""
    check_arguments(rule, quantity, of_classes)
    check_title(title)
    threshold, tolerance = checked_threshold(threshold), read_tolerance(tolerance, rule)
    given = given_numbers(source, data, output, batch_size, num_samples, rule, score)
    found, y = given.found, given.y
    unit = checked_unit(unit, found)
    ranking = _ranking(given) if rule is None else rule
    usable, ranked = _rank(given, unit, ranking)
    columns = {} if groups is None else group_columns(groups, len(found))
    columns = {name: column.astype(str) for name, column in columns.items()}
    images = pictures(source, data) if images is None else images
    if images is not None and len(images) != len(found):
        raise ValueError(
            f"Argument `images` must hold one for each of {len(found)} examples. "
            f"Received: images with {len(images)}"
        )
    marks = marks_of(rule, ())
    known, labels = found[usable], y[usable]
    only = np.broadcast_to(np.arange(found.units) == unit, labels.shape).astype("float64")
    sections = given_sections(shift, ood)
    content = NumbersContent(
        title,
        quantity or "number",
        len(found),
        ranked,
        ranking.level,
        tolerance,
        _first_threshold(marks, ranked) if threshold is None else threshold,
        marks,
        "",
        promises_risk(rule),
        {name: coded(column) for name, column in columns.items()},
        Table("", [], []),
        _calibration(known, labels, only),
        [(heading, tables) for heading, tables in sections.items() if tables],
        images,
    )
    summary = _summary(content, known, labels, only)
    return content._replace(summary=summary, rule=_rule_text(content, rule, given, unit, columns))


def _ranking(given):
    """What ranks predictions where no rule does: scores beside, or the width of their intervals."""
    found, score = given.found, "interval_width" if given.beside is None else GIVEN
    kind = {"family": found.family, "units": found.units, "rank": found.params.ndim - 1}
    return RegressionRule(score, np.inf, level=usual_level(found.family), **kind)


def _rank(given, unit, rule):
    """Which examples are usable, and these, `Ranked`."""
    found, y, beside, name = given
    score = rule.score_of(found, beside)[:, unit]
    lower, upper = (end[:, unit] for end in found.interval(rule.level))
    usable = np.isfinite(score) & np.isfinite(found.mean).all(-1) & np.isfinite(upper - lower)
    if not usable.any():
        raise ValueError(
            "Argument `source` must hold a prediction that is finite. "
            f"Received: none among {len(usable)}"
        )
    index = np.flatnonzero(usable)
    index = index[np.argsort(score[index], kind="stable")]
    parts = (part[index] for part in (score, found.mean[:, unit], lower, upper, y[:, unit]))
    return usable, Ranked(name or rule.score, *parts, index)


def _first_threshold(marks, ranked):
    known = [mark for _, mark in marks if np.isfinite(mark)]
    return float(np.median(known)) if known else float(np.quantile(ranked.score, FIRST))


def _calibration(known, labels, only):
    """Shares of labels below each quantile, and where chance leaves those that are right."""
    curve = metrics.quantile_calibration_curve(labels, known, sample_weight=only)
    low, high = stats.binom.interval(SURE, len(labels), curve["level"])
    return {**curve, "low": low / len(labels), "high": high / len(labels)}


def _rule_text(content, rule, given, unit, columns):
    if rule is None:
        return ""
    options = {"unknown_group": "reject", "score": given.beside}
    accepted = rule.accept(given.found, rule_groups(rule, columns), **options)
    accepted = accepted[content.ranked.index, unit]
    count = int(accepted.sum())
    off = ""
    if content.tolerance is not None and count:
        wrong = int(np.count_nonzero(accepted & content.is_wrong()))
        share = percent(wrong / count)
        off = f", of which {wrong:,} are off by more than {content.tolerance:g} ({share})"
    return (
        f"{rule.describe()} Of the {content.total:,} examples of this report the rule accepts "
        f"{count:,} ({percent(count / content.total)}){off}."
    )


def _summary(content, known, labels, only):
    ranked, weights = content.ranked, {"sample_weight": only}
    rows = [
        ["Examples", number(content.total)],
        ["Mean absolute error", number(ranked.error.mean())],
        ["Root of the mean squared error", number(np.sqrt(np.mean(ranked.error**2)))],
        ["Continuous ranked probability score", number(metrics.crps(labels, known, **weights))],
    ]
    if known.family.has_density and not known.family.is_joint:
        nll = metrics.number_negative_log_likelihood(labels, known, **weights)
        rows.append(["Negative log-likelihood (nats)", number(nll)])
    width = ranked.upper - ranked.lower
    gap = np.mean(np.abs(content.calibration["share"] - content.calibration["level"]))
    rows += [
        [f"In their {100 * content.level:g} % interval", percent(ranked.inside.mean())],
        ["Mean width of these intervals", number(width.mean())],
        ["Quantile calibration error", number(gap)],
        ["Area under the sparsification error (AUSE)", number(_ause(ranked))],
    ]
    if content.tolerance is not None:
        wrong = content.is_wrong().mean()
        rows.append([f"Off by more than {content.tolerance:g}", percent(wrong)])
    missing = content.total - len(ranked.score)
    what = "predictions" if ranked.name in SCORES else "predictions or their scores"
    note = (
        f"{missing:,} of {content.total:,} {what} hold NaN or infinity. Any threshold rejects "
        f"them; the figures are of the other {len(ranked.score):,}."
    )
    notes = [known.note, note if missing else ""]
    title = f"All examples, accepted or not; errors in the unit of the {content.quantity}"
    return Table(title, ["figure", "value"], rows, " ".join(filter(None, notes)))


def _ause(ranked):
    return metrics.ause(ranked.y, ranked.mean, ranked.score.astype("float64"))
