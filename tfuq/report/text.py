"""The report as text, at one threshold."""

from __future__ import annotations

import re
from typing import Any

from tfuq._files.tables import markdown_table
from tfuq.report._accepted import class_table, only_text, promise_text
from tfuq.report._content import COUNTED, read
from tfuq.report._number_inputs import are_numbers, check_classes, check_numbers
from tfuq.report._numbers import read_numbers
from tfuq.report._tables import Table, number

MOST_CLASSES = 20
OF_NUMBERS = ("tolerance", "quantity", "unit")


def to_markdown(
    source: Any, *, threshold: float | None = None, title: str = "Report", **options: Any
) -> str:
    """The figures of `tfuq.report.html` as Markdown, at one threshold.

    Args:
        source: `(probs, labels)`, or a Keras model with `data`, as for `html`.
        threshold: Of the confidence, or of the score of the rule; by default that of the rule, or
            0.5.
        title: Title of the report.
        **options: `data`, `output`, `batch_size`, `names`, `groups`, `rule`, `from_logits`,
            `num_samples`, `ood`, `shift`, `gap`, `sets` and `score`, as for `html`; of a regression
            `tolerance`, `quantity` and `unit`, and no `gap` or `sets`.

    Returns:
        A text of tables: figures of all examples, what the threshold and others accept, the
        confusion matrix of the accepted (of more than 20 classes the most frequent errors), the
        calibration, each group, shift and detection where given; of a regression the largest
        errors instead of the confusion matrix.

    Raises:
        ValueError: As `html`.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> text = tfuq.report.to_markdown((probs, labels), threshold=0.7, names=["no", "yes"])
    >>> print(text[text.index("**What is accepted**"):].splitlines()[4])
    | 66.7 % | 100.0 % | 2 | 1 | 2 | 0 |

    See also: `tfuq.report.html`.
    """
    if are_numbers(source, options.get("output"), options.get("from_logits")):
        check_numbers(gap=options.pop("gap", None), sets=options.pop("sets", None))
        return _of_numbers(read_numbers(source, threshold=threshold, title=title, **options))
    check_classes(**{name: options.pop(name, None) for name in OF_NUMBERS})
    content = read(source, threshold=threshold, title=title, **options)
    threshold = content.threshold
    direction = "at least" if content.ranked.grows else "at most"
    chosen = Table("What is accepted", COUNTED, [content.decision(threshold).cells()])
    blocks = [f"# {_escaped(title)}", _table(content.summary)]
    blocks += [_escaped(content.rule)] if content.rule else []
    blocks += [_table(table) for table in content.verdicts]
    score = content.score[:1].upper() + content.score[1:]
    blocks += [f"## {score} of {direction} {threshold:g}"]
    said = promise_text(threshold, content.decision(threshold), content.marks, content.promises)
    blocks += [_escaped(said)]
    counts = content.classes(threshold)
    only = only_text(counts, content.names)
    blocks += [_escaped(only)] if only else []
    blocks += [_table(class_table(counts, content.names)), _table(chosen)]
    blocks += [_table(_confusion(content)), _table(content.level_table())]
    blocks += ["## Calibration", _table(content.reliability_table())]
    blocks += ["## Groups at this threshold"] * bool(content.groups)
    blocks += [_table(table) for table in _groups(content)]
    for heading, tables in content.sections:
        blocks += [f"## {heading}", *map(_table, tables)]
    return "\n\n".join(blocks) + "\n"


def _of_numbers(content):
    """The text of a report of numbers."""
    threshold = content.threshold
    chosen = Table("", content.counted, [content.cells(content.decision(threshold))])
    blocks = [f"# {_escaped(content.title)}", _table(content.summary)]
    blocks += [_escaped(content.rule)] if content.rule else []
    blocks += [f"## {content.score.capitalize()} of at most {threshold:g}"]
    given = content.marks, content.promises, content.wrong
    said = promise_text(threshold, content.decision(threshold), *given)
    blocks += [_escaped(said), _table(chosen), _table(content.level_table())]
    blocks += ["## Calibration", _table(content.calibration_table())]
    blocks += ["## Largest errors", _table(content.worst_table())]
    blocks += ["## Groups at this threshold"] * bool(content.groups)
    for column, (names, codes) in content.groups.items():
        rows = [
            [name, *content.cells(content.decision(threshold, of=codes == k))]
            for k, name in enumerate(names)
        ]
        blocks.append(_table(Table(f"By {column}", [column, *content.counted], rows)))
    for heading, tables in content.sections:
        blocks += [f"## {heading}", *map(_table, tables)]
    return "\n\n".join(blocks) + "\n"


def _confusion(content):
    """The matrix of the accepted, or the most frequent errors if classes are many."""
    counts, names = content.confusion(content.threshold), content.names
    if len(names) <= MOST_CLASSES:
        rows = [[name, *map(number, row)] for name, row in zip(names, counts.tolist(), strict=True)]
        return Table("Accepted, by true (rows) and predicted class", ["", *names], rows)
    pairs = sorted(
        ((int(counts[i, j]), i, j) for i, j in zip(*counts.nonzero(), strict=True) if i != j),
        key=lambda pair: (-pair[0], *pair[1:]),
    )
    rows = [[names[i], names[j], number(count)] for count, i, j in pairs[:MOST_CLASSES]]
    return Table("Most frequent errors of the accepted", ["true", "predicted", "count"], rows)


def _groups(content):
    for column, (names, codes) in content.groups.items():
        rows = [
            [name, *content.decision(content.threshold, of=codes == k).cells()]
            for k, name in enumerate(names)
        ]
        yield Table(f"By {column}", [column, *COUNTED], rows)


def _table(table):
    """A Markdown table under its title, over its note."""
    header, *rows = ([_escaped(cell) for cell in row] for row in (table.header, *table.rows))
    title = f"**{_escaped(table.title)}**" if table.title else ""
    return "\n\n".join(filter(None, [title, markdown_table(header, rows), _escaped(table.note)]))


def _escaped(text):
    """A text that Markdown shows as it is: names may hold anything."""
    return re.sub(r"([\\`*_{}\[\]<>#~&])", r"\\\1", " ".join(text.split()))
