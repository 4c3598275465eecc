"""What the tables of `evidence/pages.py` and the sentences of `evidence/answers.py` are made of."""

import statistics

from evidence import measures
from evidence.rows import ROWS


def mean_of(runs, column):
    values = [run[column] for run in runs.values() if run.get(column) is not None]
    return statistics.fmean(values) if values else None


def mark(task, row, column):
    """+ or - where the interval of the difference with Dense has only better or only worse."""
    found = task["differences"].get(row, {}).get(column)
    return "" if found is None else sign(found, column)


def sign(difference, column):
    """+ or - of a difference with its interval, "" where that has 0 in it."""
    _, low, high = difference
    if low <= 0 <= high:
        return ""
    return " +" if (low > 0) == measures.COLUMNS[column][2] else " −"


def cell(task, row, column):
    value = mean_of(task["runs"][row], column)
    if value is None:
        return "-"
    return f"{value:.{measures.COLUMNS[column][1]}f}{mark(task, row, column)}"


def ordered(names):
    """Rows in the order of `ROWS`, and after them those that only one script has."""
    return [row for row in ROWS if row in names] + [row for row in names if row not in ROWS]


def complete(task):
    """The rows of a set that have as many seeds as Dense."""
    count, runs = len(task["runs"].get("Dense", {})), task["runs"]
    return [row for row in ordered(runs) if len(runs[row]) == count > 0]


def known_columns(task, columns):
    return [c for c in columns if any(c in run for run in task["runs"]["Dense"].values())]


def judged_sets(found):
    return {n: t for n, t in found["tasks"].items() if t["differences"]}
