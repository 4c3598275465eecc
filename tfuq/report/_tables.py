"""Tables of texts that a report shows, of whatever a metric, a detector or a shift report found."""

import numbers
from typing import NamedTuple

import numpy as np

from tfuq._arguments import shown
from tfuq.selective import SelectiveGap, ShiftReport

INTERVAL = "_interval"


class Table(NamedTuple):
    """Texts in rows and columns; the first column names the row."""

    title: str
    header: list
    rows: list
    note: str = ""


def number(value):
    """A count as it is, any other number with four digits, a pair as an interval."""
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        return "–" if np.isnan(value) else f"{float(value):.4g}"
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return "[" + ", ".join(map(number, value)) + "]"
    return str(value)


def percent(value):
    """A fraction in percent; a dash for NaN."""
    return "–" if value is None or np.isnan(value) else f"{100 * value:.1f} %"


def with_interval(value, lower, upper):
    """A fraction with its interval in percent; a dash for NaN."""
    return "–" if np.isnan(value) else f"{percent(value)} [{percent(lower)}, {percent(upper)}]"


def _in_words(name):
    return str(name).replace("_", " ")


def section(argument, title, found):
    """`Table`s of the argument of that name: a `ShiftReport`, or a dict of figures or of dicts."""
    if found is None:
        return []
    if isinstance(found, ShiftReport):
        return _shift_tables(found)
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"Argument `{argument}` must be a dict of figures, or of such dicts, not empty"
            f"{', or a ShiftReport' if argument == 'shift' else ''}. "
            f"Received: {argument}={shown(found)}"
        )
    nested = {k: v for k, v in found.items() if isinstance(v, dict)}
    flat = {k: v for k, v in found.items() if k not in nested}
    tables = [_figures(title, flat)] if flat else []
    return tables + ([_side_by_side(title, nested)] if nested else [])


def given_sections(shift, ood, gap=None):
    """`{heading: tables}` of what a report is given beside the predictions."""
    return {
        "Shift": section("shift", "Figures of the shift", shift),
        "Out of distribution": section("ood", "Figures of detection", ood),
        "Where the gap comes from": gap_tables(gap),
    }


def gap_tables(found):
    """`Table`s of the argument `gap`, a `SelectiveGap` or None."""
    if found is None:
        return []
    if not isinstance(found, SelectiveGap):
        raise ValueError(
            "Argument `gap` must be what tfuq.selective.gap gave, or None. "
            f"Received: gap={shown(found)}"
        )
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in found.to_markdown().splitlines()
    )
    said = f"Of {found.examples:,} examples, in percent of the accepted. {found.sentence()}"
    return [Table("Parts of the gap to the oracle, which sum to it", header, rows, said)]


def _figures(title, found):
    """A row for each figure, with its interval beside it where `found` holds one."""
    names = _names(found)
    header, rows = ["figure", "value"], [[_in_words(k), number(found[k])] for k in names]
    if len(names) < len(found):
        header.append("interval")
        rows = [
            [*row, number(found.get(f"{k}{INTERVAL}"))] for k, row in zip(names, rows, strict=True)
        ]
    return Table(title, header, rows)


def _side_by_side(title, found):
    """A row for each dict, a column for each figure that any of them holds."""
    columns = list(dict.fromkeys(k for figures in found.values() for k in _names(figures)))
    rows = [[str(k), *(_cell(figures, c) for c in columns)] for k, figures in found.items()]
    return Table(title, ["", *map(_in_words, columns)], rows)


def _names(found):
    """Names of the figures, without those of intervals that belong to another."""
    return [k for k in found if not (_is_interval(k) and k.removesuffix(INTERVAL) in found)]


def _is_interval(name):
    return isinstance(name, str) and name.endswith(INTERVAL)


def _cell(figures, name):
    ends = figures.get(f"{name}{INTERVAL}")
    return f"{number(figures.get(name))} {number(ends) if ends is not None else ''}".strip()


def _shift_tables(report):
    shift, test = report.label_shift, report.feature_shift
    rows = [
        ["labelled examples", number(report.source_examples)],
        ["new examples", number(report.target_examples)],
        ["predicted frequencies as before, p", number(shift.p_value)],
        ["features alike, p", number(test.p_value)],
        ["accuracy on the labelled data", percent(report.source_accuracy)],
        ["estimated on the new data (ATC)", with_interval(*report.thresholded_confidence[:3])],
        ["estimated on the new data (DoC)", with_interval(*report.confidence_difference[:3])],
    ]
    if report.target_accuracy is not None:
        rows += [
            ["true on the new data", percent(report.target_accuracy)],
            ["true, corrected for label shift", percent(report.corrected_accuracy)],
            ["left out, without a known label", number(report.left_out)],
        ]
    known = "ATC: average thresholded confidence. DoC: difference of confidences."
    doubt = "" if shift.reliable else "The estimates are unreliable: classes are confused."
    before, *now = shift.source_prior, shift.target_prior, shift.lower, shift.upper
    classes = [
        [name, percent(before[k]), with_interval(*(values[k] for values in now))]
        for k, name in enumerate(report.groups)
    ]
    header = ["class", "frequency before", "now, estimated"]
    return [
        Table("New data beside the labelled", ["figure", "value"], rows, known),
        Table("Frequency of the classes", header, classes, doubt),
    ]
