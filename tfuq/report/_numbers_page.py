"""The page of predicted numbers."""

import html as markup

import numpy as np

from tfuq.report._filling import (
    control_parts,
    encoded,
    filled,
    floats,
    html_table,
    payload_of,
)
from tfuq.report._thumbnails import PICTURES, picture_of

DRAWN = 400  # points over the true numbers
SHOWN = 6  # of the largest errors
STEPS = 20  # of the share that is accepted, whose largest errors have pictures
INSIDE, WRONG = 1, 2  # bits of an example


def numbers_page(content, num_examples, seed):
    """The text of a page of `NumbersContent` that keeps so many pictures."""
    off = ""
    if content.tolerance is not None:
        said = f"Off by more than {content.tolerance:g}"
        off = f'<div><dt>{said}</dt><dd><data id="wrong"></data></dd></div>'
    parts = {
        **control_parts(content, "at most"),
        "quantity": markup.escape(content.quantity),
        "level": f"{100 * content.level:g}",
        "off": off,
        "summary": html_table(content.summary),
        "levels": html_table(content.level_table()),
        "calibration": html_table(content.calibration_table()),
        "worst": html_table(content.worst_table()),
        "sections": content.sections,
    }
    return filled("numbers", content.title, parts, _payload(content, num_examples, seed))


def _payload(content, num_examples, seed):
    ranked = content.ranked
    bits = INSIDE * ranked.inside + WRONG * content.is_wrong()
    return {
        **payload_of(content),
        "grows": False,
        "shown": SHOWN,
        "quantity": content.quantity,
        "level": content.level,
        "tolerance": content.tolerance,
        "wrong": content.wrong,
        "means": floats(ranked.mean),
        "lowers": floats(ranked.lower),
        "uppers": floats(ranked.upper),
        "trues": floats(ranked.y),
        "bits": encoded(bits.astype("uint8").tobytes()),
        "index": ranked.index.tolist(),
        "drawn": _drawn(len(ranked.score), seed),
        "calibration": {name: values.tolist() for name, values in content.calibration.items()},
        "pictures": _pictures(content, num_examples),
    }


def _drawn(count, seed):
    """Ranks of the examples that are drawn, some of many."""
    if count <= DRAWN:
        return list(range(count))
    return np.sort(np.random.default_rng(seed).choice(count, DRAWN, replace=False)).tolist()


def _pictures(content, num_examples):
    """Pictures by rank of the largest errors, of all and of ever fewer that are accepted."""
    if content.images is None:
        return {}
    total = len(content.ranked.score)
    ends = np.unique(np.ceil(np.linspace(1, 0, STEPS, endpoint=False) * total).astype(int))[::-1]
    worst = np.concatenate([content.worst(end, SHOWN) for end in ends])
    first = np.sort(np.unique(worst, return_index=True)[1])[:num_examples]
    chosen, budget = worst[first], PICTURES / max(len(first), 1)
    return {str(i): picture_of(content.images[content.ranked.index[i]], budget) for i in chosen}
