"""Tables in Markdown and as CSV, and the names of what stands in them."""

import csv
import io
import pathlib

import numpy as np

from tfuq._arguments import check_integer, shown
from tfuq._files.writing import written_whole


def markdown_table(header, rows):
    """A table in Markdown: a line of names, a line for each row; the first column is text."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value):
    return " ".join(str(value).replace("|", "\\|").split())


def write_csv(path, header, rows):
    """Writes a table whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with written_whole(pathlib.Path(path)) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8")


def names_of(names, count):
    """The argument `names` as texts, one for each of `count` classes; their numbers if None."""
    given = range(count) if names is None else names
    if not np.iterable(given) or len(found := [str(name) for name in given]) != count:
        raise ValueError(
            f"Argument `names` must hold one for each of {count} classes. "
            f"Received: names={shown(names)}"
        )
    return found


def check_top(top):
    """Raises ValueError unless `top`, how many rows a table has at most, is None or positive."""
    if top is not None:
        check_integer("top", top, 1)


def group_columns(groups, count):
    """The argument `groups` as columns `(count,)` by their names, which numpy can sort."""
    columns = {key: groups[key] for key in groups} if hasattr(groups, "keys") else {"group": groups}
    found = {str(name): np.asarray(column) for name, column in columns.items()}
    for name, column in found.items():
        if column.shape != (count,):
            raise ValueError(
                f"Argument `groups` must name the group of each of {count} examples. "
                f"Received: column {name!r} of shape {column.shape}"
            )
        if column.dtype.kind not in "biufU":
            found[name] = column.astype(str)
    if not found:
        raise ValueError("Argument `groups` must hold at least one column. Received: none")
    return found
