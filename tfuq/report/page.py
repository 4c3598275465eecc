"""The report as a page: data, style and script in one file."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfuq._arguments import Data, Output, PathLike, check_integer, shown
from tfuq._files.writing import written_whole
from tfuq.report._accepted import HEADER, MOST_NAMED, NOTE
from tfuq.report._content import read
from tfuq.report._filling import (
    control_parts,
    filled,
    html_table,
    integers,
    payload_of,
)
from tfuq.report._number_inputs import are_numbers, check_classes, check_numbers
from tfuq.report._numbers import read_numbers
from tfuq.report._numbers_page import numbers_page
from tfuq.report._thumbnails import PICTURES, picture_of
from tfuq.selective.conformal import ConformalPredictor
from tfuq.selective.gap import SelectiveGap
from tfuq.selective.regression_rule import RegressionRule
from tfuq.selective.rule import RejectionRule
from tfuq.selective.shift import ShiftReport

SHOWN = 6  # on each side of the threshold
UNITS = dict.fromkeys(("predictive_entropy", "expected_entropy", "mutual_information"), " (nats)")


def html(
    source: Any,
    path: PathLike,
    *,
    data: Data | None = None,
    output: Output | None = None,
    batch_size: int | None = None,
    images: Any = None,
    names: Sequence[str] | None = None,
    groups: Any = None,
    rule: RejectionRule | RegressionRule | None = None,
    threshold: float | None = None,
    title: str = "Report",
    num_examples: int = 80,
    from_logits: bool | None = None,
    num_samples: int | None = None,
    ood: Mapping[str, Any] | None = None,
    shift: ShiftReport | Mapping[str, Any] | None = None,
    gap: SelectiveGap | None = None,
    sets: ConformalPredictor | None = None,
    score: Any = None,
    seed: int = 0,
    tolerance: float | None = None,
    quantity: str | None = None,
    unit: int | None = None,
) -> pathlib.Path:
    """Writes an HTML page with a slider for the rejection threshold.

    The slider updates coverage, accuracy, counts, the confusion matrix, each group and the examples
    just accepted and just rejected. The page is one file, opens from a disk, and loads nothing from
    anywhere. Its counts are exact, compared in float32 as in `tfuq.metrics.rejection_table`; of the
    examples it keeps a sample, spread over the scores.

    For a regression the slider moves the width of the intervals, or scores that are given. The page
    shows what share is accepted and how far off that is, the predicted numbers over the true ones,
    the largest errors, and the calibration of quantiles.

    Args:
        source: `(probs, labels)`: predictions `(n, classes)`, binary `(n,)` or `(n, 1)`, or a stack
            of them `(samples, n, ...)` whose mean is the prediction; labels `(n,)` or one-hot. Or a
            Keras model, with `data`. For a regression `(found, y)`, the result of
            `predict_uncertainty` and labels `(n, units)` or `(n,)`; or a model of numbers. A
            prediction that holds NaN or infinity is rejected by any threshold, and the page tells
            how many there are.
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
            tells what it does in each group. None for confidence. For a regression a
            `RegressionRule`; None for the width of the 90 % intervals.
        threshold: Where the slider stands at first; by default at the rule's threshold, or at 0.5;
            of a regression where 80 % are accepted.
        title: Title of the page.
        num_examples: How many examples the page keeps to show, 0 for none.
        from_logits: Whether predictions are logits; by default as the rule takes them, else as the
            compiled loss says, else not.
        num_samples: Of a random model and arrays: how many networks to draw, whose mean is
            reported, as in `sample_predictions`. By default 30 for the score of a rule that needs
            a stack, else none: the model's own prediction is reported, and the page says so. For a
            regression always 30 or so many.
        ood: Figures of detection: a dict as of `tfuq.metrics.ood_metrics`, or a dict of them, one
            for each detector or data set.
        shift: `ShiftReport` of `tfuq.selective.shift_report`, or a dict of figures.
        gap: `SelectiveGap` of `tfuq.selective.gap`, of classes.
        sets: `ConformalPredictor`, of classes: how often its sets hold the truth, of all, of each
            class and of each group, and how large they are.
        score: Scores `(n,)` from beside the predictions, larger for the less certain, such as a
            detector's `score(x)`, or the detector, for a model and its data. The slider moves them.
            A rule that was fitted to such scores needs them.
        seed: Of the choice of examples.
        tolerance: For a regression: how far off an answer is called wrong; by default the rule's.
        quantity: For a regression: what the number is, with its unit, such as "age (years)".
        unit: Which of the numbers of a regression, if it says several.

    Returns:
        The path of the page, a `pathlib.Path`.

    Raises:
        ValueError: If arrays are empty or do not fit together, there are no labels, no prediction
            is usable, or an argument is not as described.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> page = tfuq.report.html((probs, labels), "report.html", names=["healthy", "ill"])
    >>> page.name
    'report.html'

    See also: `tfuq.report.to_markdown`, `tfuq.selective.subgroup_report`.
    """
    path = _checked_path(path)
    check_integer("num_examples", num_examples, 0)
    check_integer("seed", seed, 0)
    options = {
        "data": data,
        "output": output,
        "batch_size": batch_size,
        "images": images,
        "names": names,
        "groups": groups,
        "rule": rule,
        "threshold": threshold,
        "title": title,
        "from_logits": from_logits,
        "num_samples": num_samples,
        "ood": ood,
        "shift": shift,
    }
    of_numbers = {"tolerance": tolerance, "quantity": quantity, "unit": unit}
    if are_numbers(source, output, from_logits):
        check_numbers(gap=gap, sets=sets)
        content = read_numbers(source, **options, **of_numbers, score=score)
        text = numbers_page(content, num_examples, seed)
    else:
        check_classes(**of_numbers)
        content = read(source, **options, gap=gap, sets=sets, score=score)
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
    """The text of a page of classes."""
    direction = "at least" if content.ranked.grows else "at most"
    parts = {
        **control_parts(content, direction, UNITS.get(content.ranked.name, "")),
        "summary": html_table(content.summary),
        "verdicts": "\n".join(map(html_table, content.verdicts)),
        "levels": html_table(content.level_table()),
        "reliability": html_table(content.reliability_table()),
        "sections": content.sections,
    }
    return filled("classes", content.title, parts, _payload(content, kept))


def _payload(content, kept):
    """What the script works on: numbers of all examples in the order of trust, base64."""
    ranked, budget = content.ranked, PICTURES / max(len(kept), 1)
    curve = {
        name: [None if np.isnan(value) else value for value in np.asarray(values).tolist()]
        for name, values in content.reliability.items()
    }
    return {
        **payload_of(content),
        "grows": ranked.grows,
        "shown": SHOWN,
        "wrong": "are wrong",
        "own": [each.payload() for each in content.own],
        "classHeader": HEADER,
        "classNote": NOTE,
        "mostNamed": MOST_NAMED,
        "names": content.names,
        "predicted": integers(ranked.predicted, len(content.names)),
        "labels": integers(ranked.labels, len(content.names)),
        "reliability": curve,
        "examples": [_example(content, rank, budget) for rank in kept.tolist()],
    }


def _example(content, rank, budget):
    index = int(content.ranked.index[rank])
    picture = None if content.images is None else picture_of(content.images[index], budget)
    return {"rank": rank, "index": index, "picture": picture}
