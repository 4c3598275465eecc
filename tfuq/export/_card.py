"""The model card of an export: what a person must know of a model before it is used."""

import numbers
import pathlib

from tfuq._arguments import shown
from tfuq.selective import Monitor

CARD = "MODEL_CARD.md"
PARTS = ("use", "data", "figures", "groups", "not_tested_on")
_UNSAID = "*Not said when this was exported.*"


def checked_card(card):
    """The argument `card` as a dict of texts, or a ValueError."""
    if card is None:
        return {}
    is_known = isinstance(card, dict) and set(card) <= set(PARTS)
    if not is_known:
        received = sorted(map(str, card)) if isinstance(card, dict) else shown(card)
        raise ValueError(
            f"Argument `card` must be a dict with some of {', '.join(PARTS)}. Received: {received}"
        )
    return {name: _text_of(name, part) for name, part in card.items()}


def _text_of(name, part):
    if hasattr(part, "to_markdown"):  # of `tfuq.selective.subgroup_report`
        return part.to_markdown()
    if isinstance(part, dict) and name == "figures":
        return "\n".join(f"- {key}: {_number(value)}" for key, value in part.items())
    if isinstance(part, (list, tuple)) and all(isinstance(each, str) for each in part):
        return "\n".join(f"- {each}" for each in part)
    if isinstance(part, str) and part.strip():
        return part.strip()
    raise ValueError(
        "Argument `card` must hold texts, lists of texts, `figures` as a dict of numbers, or "
        f"`groups` as a `SubgroupReport`. Received: {name}={shown(part)}"
    )


def _number(value):
    is_real = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    return f"{value:.4g}" if is_real else str(value)


def loaded_monitor(monitor):
    """The argument `monitor` as a `Monitor`, from its file if need be, or a ValueError."""
    if monitor is None or isinstance(monitor, Monitor):
        return monitor
    if isinstance(monitor, (str, pathlib.Path)):
        return Monitor.load(monitor)
    raise ValueError(
        f"Argument `monitor` must be a Monitor or the path of one. Received: {shown(monitor)}"
    )


def card_text(about, card):
    """The card of an export in Markdown, of its metadata and what the caller says."""
    names = ", ".join(model["name"] for model in about["models"][:5])
    outputs = [f"- `{name}`: {info['meaning']}" for name, info in about["outputs"].items()]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    parts = {
        "What it is": f"{len(about['models'])} network(s): {names}. Weights SHA-256 "
        f"`{about['weights_sha256'][:16]}`. Written by {versions}.",
        "What it is for": card.get("use", _UNSAID),
        "What goes in": _inputs(about),
        "What comes out": "\n".join([*outputs, "", _classes(about)]),
        "Data": card.get("data", _UNSAID),
        "Figures": card.get("figures", _UNSAID),
        "Figures by group": card.get("groups", _UNSAID),
        "Promise": _promise(about),
        "Since then": _monitored(about),
        "What it was not tested on": card.get("not_tested_on", _UNSAID),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in parts.items())
    return f"# Model card\n\n{text}\n"


def _inputs(about):
    lines = [
        f"- `{name}`: {info['dtype']}, {info['shape']}"
        for name, info in about["signature"]["inputs"].items()
    ]
    images = about["model_inputs"]
    if about["preprocessing"] is not None:
        lines.append(f"- prepared by {about['preprocessing']}")
    if images is None:
        return "\n".join([*lines, "", "Range, size and order of colours are not declared."])
    low, high = images["value_range"]
    size = "any size" if images["size"] is None else "{} by {} pixels".format(*images["size"])
    colours = images["channels"] or "channels as the shape says"
    return "\n".join(
        [*lines, "", f"The network takes {size}, {colours}, from {low:g} to {high:g}."]
    )


def _classes(about):
    names = about["class_names"]
    return "Classes are not named." if names is None else f"Classes, in order: {', '.join(names)}."


def _promise(about):
    lines = [about["rule"]["says"]] if about["rule"] else []
    if about["conformal"]:
        config = about["conformal"]["config"]
        lines.append(
            f"Sets: {about['conformal']['name']}, alpha {config.get('alpha', 'not said')}."
        )
    if not lines:
        return "None: no rule and no sets were exported, so every answer is given."
    return "\n\n".join([*lines, "It holds for cases that come as those it was fitted to did."])


def _monitored(about):
    state = about["monitor"]
    if state is None:
        return "No monitor was exported with it."
    alarms = ", ".join(state["alarms"]) or "none"
    seen = f"{state['cases']} cases were watched, of which {state['accepted']} accepted"
    return f"{seen}. Alarms: {alarms}."
