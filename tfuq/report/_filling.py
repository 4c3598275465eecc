"""Filling of a page: its templates, what may run in it, tables and arrays of numbers."""

import base64
import hashlib
import html as markup
import importlib.resources
import json
import string

import numpy as np

from tfuq._version import __version__


def filled(kind, title, parts, payload):
    """The text of a page. Nothing but the style and the scripts of this package may run in it.

    Args:
        kind: `"classes"` or `"numbers"`, whose template and script it has.
        title: A text.
        parts: Texts of that template.
        payload: What the script works on.
    """
    scripts = _file("shared.js"), _file(f"{kind}.js")
    style, script = _file("page.css"), '"use strict";\n(() => {\n' + "\n".join(scripts) + "})();\n"
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_digest(style)}",
            f"script-src {_digest(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    texts = {"title": markup.escape(title), "version": __version__, "policy": policy}
    sections = "\n".join(html_section(*each) for each in parts.pop("sections"))
    main = string.Template(_file(f"{kind}.html")).substitute(parts)
    return string.Template(_file("page.html")).substitute(
        texts, main=main, sections=sections, style=style, script=script, content=_as_json(payload)
    )


def control_parts(content, direction, unit=""):
    """Texts around the slider: what it moves, how far, and where it begins."""
    largest, digits = content.slider()
    step, digits = 10.0**-digits, max(digits, 0)
    return {
        "score": content.score + unit,
        "direction": direction,
        "smallest": f"{content.smallest:.{digits}f}",
        "largest": f"{largest:.{digits}f}",
        "step": f"{step:.{digits}f}",
        "start": f"{min(max(content.threshold, content.smallest), largest):.{digits}f}",
        "rule": f"<p>{markup.escape(content.rule)}</p>" if content.rule else "",
    }


def _file(name):
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def _digest(text):
    """How a content security policy names the one text that may stand in a tag."""
    return f"'sha256-{encoded(hashlib.sha256(text.encode()).digest())}'"


def encoded(content):
    return base64.b64encode(content).decode()


def _as_json(content):
    """JSON that can stand in a script tag, whatever the texts in it are."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def html_table(table):
    head = "".join(f'<th scope="col">{markup.escape(text)}</th>' for text in table.header)
    rows = "".join(
        f'<tr><th scope="row">{markup.escape(first)}</th>'
        + "".join(f"<td>{markup.escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    note = f'<p class="note">{markup.escape(table.note)}</p>' if table.note else ""
    title = markup.escape(table.title)
    return (
        f'<div class="scroll" role="region" aria-label="{title}"><table>'
        f"<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"</div>{note}"
    )


def html_section(heading, tables):
    name = "h-" + heading.lower().replace(" ", "-")
    found = "\n".join(map(html_table, tables))
    title = markup.escape(heading)
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>\n{found}\n</section>'


def payload_of(content):
    """What both kinds of pages work on: scores and groups of all usable examples, the marks."""
    ranked = content.ranked
    groups = [
        {
            "column": column,
            "names": names,
            "totals": np.bincount(codes, minlength=len(names)).tolist(),
            "codes": integers(codes[ranked.index], len(names)),
        }
        for column, (names, codes) in content.groups.items()
    ]
    return {
        "total": content.total,
        "score": content.score,
        "threshold": number_text(content.threshold),
        "smallest": content.smallest,
        "largest": content.slider()[0],
        "promises": content.promises,
        "marks": [[name, number_text(mark)] for name, mark in content.marks],
        "scores": floats(ranked.score),
        "groups": groups,
    }


def floats(values):
    """Base64 of numbers as float32."""
    return encoded(np.asarray(values).astype("<f4").tobytes())


def number_text(value):
    """A number as JavaScript reads it of a text: JSON has no infinity."""
    return repr(float(value)).replace("inf", "Infinity")


def integers(values, count):
    """Base64 of integers below `count` in as few bytes as hold them."""
    dtype = np.min_scalar_type(count - 1).newbyteorder("<")
    return encoded(np.asarray(values).astype(dtype).tobytes())
