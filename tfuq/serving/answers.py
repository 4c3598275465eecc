"""Answers of the server, from the outputs of an exported model: a decision and its reasons."""

import math
from typing import NamedTuple

import numpy as np

REFER = "refer to an expert"
PARTS = ("predictive_entropy", "expected_entropy", "mutual_information")
NUMBERS = ("mean", "std", "aleatoric_std", "epistemic_std", "lower", "upper", "ood_score")
# A rule's score that has another name as an output.
OUTPUT_OF = {"entropy": "predictive_entropy", "given": "ood_score"}
GROW_WITH_TRUST = ("confidence", "margin")
ROUNDING = 1e-6  # a score this close to its threshold passes, as in the exported model


class Decision(NamedTuple):
    """What decides: parts of the model's metadata, each None where there is none."""

    rule: dict | None
    conformal: dict | None
    ood_threshold: float | None
    class_names: tuple | None = None
    of_numbers: bool = False

    @classmethod
    def of(cls, metadata, class_names=None):
        rule, conformal, ood = (metadata[name] for name in ("rule", "conformal", "ood"))
        is_regression = metadata.get("family") is not None
        if is_regression:
            conformal = None  # its intervals decide nothing
        threshold = ood and ood["threshold"]
        return cls(
            rule and with_numbers(rule["config"]),
            conformal and conformal["config"],
            None if threshold is None else float(threshold),
            class_names,
            is_regression,
        )

    @property
    def decides(self):
        return any(part is not None for part in self[:3])


def with_numbers(config):
    """The config of a rule; the metadata have infinity, of what accepts nothing, as a text."""
    return {**config, "threshold": np.asarray(config["threshold"], float).tolist()}


def answers(outputs, decision):
    """A dict for each row of the outputs, `{name: array (batch, ...)}`, ready for JSON."""
    count = len(outputs["mean" if decision.of_numbers else "probabilities"])
    answer = _number_answer if decision.of_numbers else _answer
    return [answer({k: v[i] for k, v in outputs.items()}, decision) for i in range(count)]


def _answer(row, decision):
    probs = np.atleast_1d(row["probabilities"])
    row = {k: v if k in ("probabilities", "prediction_set") else v.item() for k, v in row.items()}
    is_known = bool(np.all(np.isfinite(probs)))
    found = list(_checks(row, probs, decision)) if is_known else []
    accept = is_known and all(passed for passed, _ in found)
    reasons = [text for passed, text in found if passed is accept]
    if not is_known:
        reasons = ["the model's probabilities are not finite numbers"]
    answer = {
        "decision": "accepted" if accept else REFER,
        "accept": accept,
        "reasons": reasons,
        "label": row["label"] if is_known else None,
        "confidence": _number(row["confidence"]),
        "probabilities": [_number(p) for p in probs.tolist()],
        "uncertainty": {name: _number(row[name]) for name in PARTS if name in row},
    }
    if decision.class_names is not None:
        answer["class"] = decision.class_names[row["label"]] if is_known else None
    if "ood_score" in row:
        answer["ood_score"] = _number(row["ood_score"])
    if "prediction_set" in row:
        answer["prediction_set"] = np.flatnonzero(row["prediction_set"]).tolist()
    return answer


def _number_answer(row, decision):
    """For a regression: the number, how far off it may be, and whether to rely on it."""
    row = {name: value.item() for name, value in row.items()}
    is_known = math.isfinite(row["mean"])
    found = []
    if is_known and decision.rule is not None:
        found.append((row["accept"], _of_score(row, decision.rule)))
    if is_known and decision.ood_threshold is not None:
        found.append(_of_ood(row["ood_score"], decision.ood_threshold))
    accept = is_known and all(passed for passed, _ in found)
    reasons = [text for passed, text in found if passed is accept]
    return {
        "decision": "accepted" if accept else REFER,
        "accept": accept,
        "reasons": reasons if is_known else ["the model's numbers are not finite"],
        **{name: _number(row[name]) for name in NUMBERS if name in row},
    }


def _of_score(row, rule):
    side = "at most" if row["accept"] else "above"
    name = OUTPUT_OF.get(rule["score"], rule["score"]).replace("_", " ")
    return f"{name} {row['score']:.6g} {side} the threshold {rule['threshold']:.6g}"


def _number(value):
    """JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def _checks(row, probs, decision):
    """Whether each part that decides is content, and why."""
    if decision.rule is not None:
        yield row["accept"], _of_rule(row, probs, decision.rule)
    elif decision.conformal is not None:
        size = int(np.sum(row["prediction_set"]))
        yield row["accept"], f"the prediction set holds {size} classes; it must hold 1"
    if decision.ood_threshold is not None:
        yield _of_ood(row["ood_score"], decision.ood_threshold)


def _of_rule(row, probs, rule):
    name, threshold = rule["score"], rule["threshold"]
    if rule["by"] == "class":
        known = dict(zip(rule["keys"], threshold, strict=True))
        if row["label"] not in known:
            return f"class {row['label']} has no threshold: it is never accepted"
        threshold = known[row["label"]]
    value = score_of(row, probs, name)
    name = OUTPUT_OF["given"] if name == "given" else name
    sides = ("below", "at least") if name in GROW_WITH_TRUST else ("above", "at most")
    said = name.replace("_", " ") if value is None else f"{name.replace('_', ' ')} {value:.6g}"
    return f"{said} {sides[row['accept']]} the threshold {threshold:.6g}"


def score_of(row, probs, name):
    """The score `name` of a rule, of the outputs of one input; None if they do not say it."""
    if name == "margin":
        top = np.sort(probs) if len(probs) > 1 else np.sort([probs[0], 1 - probs[0]])
        return top[-1] - top[-2]
    return row.get(OUTPUT_OF.get(name, name))


def _of_ood(score, threshold):
    if not math.isfinite(score):
        return False, "the out-of-distribution score is not finite: the input is unlike any known"
    passed = score <= threshold + ROUNDING * max(1.0, abs(threshold))
    side = "at most" if passed else "above"
    return passed, f"out-of-distribution score {score:.6g} {side} the threshold {threshold:.6g}"
