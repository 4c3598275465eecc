"""The report as a page: data, style and script in one file."""

import base64
import hashlib
import html as markup
import importlib.resources
import json
import pathlib
import string

import numpy as np

from tfuq._arguments import check_integer, shown
from tfuq._files.writing import written_whole
from tfuq._version import __version__
from tfuq.report._content import read
from tfuq.report._thumbnails import thumbnail

SHOWN = 6  # on each side of the threshold
UNITS = dict.fromkeys(("predictive_entropy", "expected_entropy", "mutual_information"), " (nats)")


def html(
    source,
    path,
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
    num_examples=80,
    from_logits=None,
    num_samples=None,
    ood=None,
    shift=None,
    seed=0,
):
    """Writes a page on which a person can try where to refuse a model's answers.

    A slider of the threshold shows coverage, accuracy, counts, the confusion matrix, each group and
    the examples just accepted and just rejected. The page is one file, opens from a disk, and can
    load nothing from anywhere. Its counts are exact, compared in float32 as in
    `tfuq.metrics.rejection_table`; of the examples it keeps a sample, spread over the scores.

    Args:
        source: `(probs, labels)`: predictions `(n, classes)`, binary `(n,)` or `(n, 1)`, or a stack
            of them `(samples, n, ...)` whose mean is the prediction; labels `(n,)` or one-hot. Or a
            Keras model, with `data`. A prediction that holds NaN or infinity is rejected by any
            threshold, and the page tells how many there are.
        path: File to write, in a folder that exists; an old one is replaced at once, or kept.
        data: For a model: `(x, y)` arrays, a `tf.data.Dataset` of such batches or a `PyDataset`,
            without sample weights.
        output: Which output of the model, if there are several: an index, a key or a function.
        batch_size: Examples in a batch of arrays.
        images: Pictures `(n, height, width[, 1 or 3])` of the examples, or a sequence of such of
            any sizes, in the order of the labels. Each is stretched from its least to its largest
            number. By default the `x` of `data`, if it is an array of pictures.
        names: Names of the classes, or None for their numbers.
        groups: The group of each example, such as a hospital, `(n,)`; or a dict or data frame of
            such columns.
        rule: `RejectionRule`: the slider moves its score, its threshold is marked, and a table
            tells what it does in each group. None for confidence.
        threshold: Where the slider stands at first; by default at the rule's threshold, or at 0.5.
        title: Title of the page.
        num_examples: How many examples the page keeps to show, 0 for none.
        from_logits: Whether predictions are logits; by default as the rule takes them, else as the
            compiled loss says, else not.
        num_samples: Of a random model and arrays: how many networks to draw, whose mean is
            reported, as in `sample_predictions`. By default 30 for the score of a rule that needs
            a stack, else none: the model's own prediction is reported, and the page says so.
        ood: Figures of detection: a dict as of `tfuq.metrics.ood_metrics`, or a dict of them, one
            for each detector or data set.
        shift: `ShiftReport` of `tfuq.selective.shift_report`, or a dict of figures.
        seed: Of the choice of examples.

    Returns:
        The path of the page, a `pathlib.Path`.

    Raises:
        ValueError: If arrays are empty or do not fit together, there are no labels, no prediction
            is usable, or an argument is none of those said.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> page = tfuq.report.html((probs, labels), "report.html", names=["healthy", "ill"])
    >>> page.name
    'report.html'
    """
    path = _checked_path(path)
    check_integer("num_examples", num_examples, 0)
    check_integer("seed", seed, 0)
    content = read(
        source,
        data=data,
        output=output,
        batch_size=batch_size,
        images=images,
        names=names,
        groups=groups,
        rule=rule,
        threshold=threshold,
        title=title,
        from_logits=from_logits,
        num_samples=num_samples,
        ood=ood,
        shift=shift,
    )
    text = _page(content, kept_examples(content, num_examples, seed))
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def _checked_path(path):
    try:
        path = pathlib.Path(path)
    except TypeError:
        raise ValueError(
            f"Argument `path` must name a file. Received: path={shown(path)}"
        ) from None
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            "Argument `path` must name a file in a folder that exists. "
            f"Received: path={str(path)!r}"
        )
    return path


def kept_examples(content, count, seed):
    """Ranks of the examples that the page can show, ascending.

    A third at equal steps of the score, a third drawn from equal parts of the order of trust, and
    those next to the first threshold and at the ends, so that some stand on each side of any other.
    """
    score = content.ranked.score
    total = len(score)
    if total <= count:
        return np.arange(total)
    rng, at = np.random.default_rng(seed), content.ranked.count(content.threshold)
    near = at + np.stack([np.arange(SHOWN), -1 - np.arange(SHOWN)], axis=-1)
    levels = np.linspace(score[0], score[-1], max(count // 3, 2))
    sign = -1 if content.ranked.grows else 1
    steps = np.searchsorted(sign * score, sign * levels)
    edges = np.linspace(0, total, max(count // 3, 1) + 1).astype(int)
    parts = rng.integers(edges[:-1], edges[1:])
    wanted = np.concatenate([[0, total - 1], near.ravel(), steps, parts, rng.permutation(total)])
    wanted = wanted[(wanted >= 0) & (wanted < total)]
    first = np.sort(np.unique(wanted, return_index=True)[1])[:count]
    return np.sort(wanted[first])


# --- Filling the page -----------------------------------------------------------------------------


def _page(content, kept):
    """The text of the page. Nothing but the style and the script of this package may run in it."""
    style, script = _file("page.css"), _file("page.js")
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
    largest, digits = content.slider()
    ranked = content.ranked
    parts = {
        "title": markup.escape(content.title),
        "score": content.score + UNITS.get(ranked.name, ""),
        "direction": "at least" if ranked.grows else "at most",
        "largest": f"{largest:.{max(digits, 0)}f}",
        "step": f"{10.0**-digits:.{max(digits, 0)}f}",
        "start": f"{min(max(content.threshold, 0.0), largest):.{max(digits, 0)}f}",
        "rule": f"<p>{markup.escape(content.rule)}</p>" if content.rule else "",
        "summary": _table(content.summary),
        "levels": _table(content.level_table()),
        "reliability": _table(content.reliability_table()),
        "sections": "\n".join(_section(*section) for section in content.sections),
        "version": __version__,
        "content": _as_json(_payload(content, kept, largest)),
    }
    page = string.Template(_file("page.html"))
    return page.substitute(parts, policy=policy, style=style, script=script)


def _file(name):
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def _digest(text):
    """How a content security policy names the one text that may stand in a tag."""
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"


def _base64(content):
    return base64.b64encode(content).decode()


def _as_json(content):
    """JSON that can stand in a script tag, whatever the texts in it are."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _table(table):
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


def _section(heading, tables):
    name = "h-" + heading.lower().replace(" ", "-")
    found = "\n".join(map(_table, tables))
    title = markup.escape(heading)
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>\n{found}\n</section>'


def _payload(content, kept, largest):
    """What the script works on: numbers of all examples in the order of trust, base64."""
    ranked = content.ranked
    groups = [
        {
            "column": column,
            "names": names,
            "totals": np.bincount(codes, minlength=len(names)).tolist(),
            "codes": _integers(codes[ranked.index], len(names)),
        }
        for column, (names, codes) in content.groups.items()
    ]
    curve = {
        name: [None if np.isnan(value) else value for value in np.asarray(values).tolist()]
        for name, values in content.reliability.items()
    }
    return {
        "total": content.total,
        "score": content.score,
        "grows": ranked.grows,
        "threshold": _number(content.threshold),
        "largest": largest,
        "shown": SHOWN,
        "names": content.names,
        "marks": [[name, _number(mark)] for name, mark in content.marks],
        "scores": _base64(ranked.score.astype("<f4").tobytes()),
        "predicted": _integers(ranked.predicted, len(content.names)),
        "labels": _integers(ranked.labels, len(content.names)),
        "groups": groups,
        "reliability": curve,
        "examples": [_example(content, rank) for rank in kept.tolist()],
    }


def _number(value):
    """A number as JavaScript reads it of a text: JSON has no infinity."""
    return repr(float(value)).replace("inf", "Infinity")


def _integers(values, count):
    """Base64 of integers below `count` in as few bytes as hold them."""
    dtype = np.min_scalar_type(count - 1).newbyteorder("<")
    return _base64(np.asarray(values).astype(dtype).tobytes())


def _example(content, rank):
    index = int(content.ranked.index[rank])
    picture = None if content.images is None else thumbnail(content.images[index])
    return {"rank": rank, "index": index, "picture": picture}
