"""Tables of Markdown, and their places in pages: between `<!-- NAME -->` and `<!-- end -->`."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def markdown(titles, rows):
    """A table whose first column is text and whose others are figures."""
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_table(text, name, table):
    """The text of a page with `table` between its markers; ValueError if it has none."""
    marked = re.compile(rf"(<!-- {re.escape(name)} -->\n)(.*?)(<!-- end -->)", re.DOTALL)
    found, times = marked.subn(lambda m: m[1] + table + m[3], text)
    if times != 1:
        raise ValueError(f"The page must have one place <!-- {name} -->. Received: {times}")
    return found


def write_table(page, name, table):
    """Writes `table` at its place in a page, whose path is from the root of the project."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    path.write_text(with_table(text, name, table), encoding="utf-8")
