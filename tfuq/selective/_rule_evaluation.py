"""Evaluation and description of a rejection rule."""

from typing import NamedTuple

import numpy as np

from tfuq._math.bounds import clopper_pearson_interval
from tfuq._predictions.class_names import called
from tfuq.selective._losses import SEVERAL, classes_of, title


class Evaluation(NamedTuple):
    """Coverage and risk of a rule on labelled data.

    Example:

    >>> from tfuq.selective import RejectionRule
    >>> rule = RejectionRule("confidence", 0.7)
    >>> print(rule.evaluate([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1]).risk)
    0.5

    See also: `tfuq.selective.RejectionRule`.
    """

    examples: int
    """Decisions, accepted or not."""
    accepted: int
    coverage: float
    """Accepted fraction."""
    risk: float
    """Mean loss of the accepted; NaN if there are none."""
    risk_lower: float
    """Lower end of its interval at 95 % (Clopper and Pearson); NaN unless losses are 0 or 1 by
    definition and each example is one decision, since decisions of one image are no sample."""
    risk_upper: float
    """Upper end."""
    accuracy: float
    """Accuracy over all, accepted or not."""
    losses: tuple = ()
    """Of what a rule promised, of each loss a dict: `"loss"`, its `"target_risk"`, the accepted
    `"cases"` that belong to it, their `"risk"`, `"risk_lower"` and `"risk_upper"`."""


def evaluation_of(read, accepted, promises=(), reads=(), class_names=None):
    """`Evaluation` of entries that were `Read`, and which of them are accepted.

    `promises` and `reads` are those of several losses.
    """
    reads = reads or [read] * len(promises)
    if read.known is not None:
        accepted = accepted[read.known]
    losses = [
        {"loss": title(loss.said(), class_names), "target_risk": target, **_figures(each, accepted)}
        for (loss, target), each in zip(promises, reads, strict=True)
        if target is not None
    ]
    _, *risks = _figures(read, accepted).values()
    whole = len(accepted), int(accepted.sum()), float(accepted.mean())
    return Evaluation(*whole, *risks, float(read.known_alone().right.mean()), tuple(losses))


def _figures(read, accepted):
    """How many of the accepted belong to the risk, that, and its interval."""
    is_sample = read.binary and read.has_one_each
    read = read.known_alone()
    losses = read.loss[accepted & read.counts]
    lower = upper = np.nan
    if is_sample:
        lower, upper = clopper_pearson_interval(losses.sum(), len(losses))
    risk = float(losses.mean()) if len(losses) else np.nan
    ends = {"risk_lower": float(lower), "risk_upper": float(upper)}
    return {"cases": len(losses), "risk": risk, **ends}


def description(rule):
    """What a rule does and what was promised, as text."""
    report = rule.fitted_to
    if "goal" not in report:
        verb = "at least" if rule.grows_with_trust else "at most"
        return f"The model answers where its {rule.score} is {verb} {rule.threshold}."
    answered = round(100 * report["coverage"])
    noun = "cases" if report["decisions"] == report["examples"] else "decisions"
    text = (
        f"Of 100 {noun} like these the model answers about {answered} and refers "
        f"{100 - answered} to a person"
    )
    if report["goal"] == "risk":
        text += _promise(rule, report)
    elif report.get("risk") is not None and report["loss"] == "error":
        known = report["decisions"]
        text += f". Of its answers to {known} known {noun} {report['risk']:.1%} were wrong"
    said = _ranked(report), _declared(report), _calibration(rule, report), _gaps(rule, report)
    return f"{text}.{''.join(said)}"


def _promise(rule, report):
    """What `describe` says of the risk."""
    entries = report["losses"] if report["loss"] == SEVERAL else [report]
    where, sure = "", " for all together" if len(entries) > 1 else ""
    if rule.by is not None:
        where = " in each group" if rule.by == "group" else f" of each {rule.by}"
        sure = " for all together" if report["simultaneous"] else " for each by itself"
    names = getattr(rule, "class_names", None)
    said = ", ".join(f"of its answers{_kept(entry, where, names)}" for entry in entries)
    return (
        f". With {100 * report['confidence']:g} % confidence{sure}, for cases like the "
        f"{report['examples']} that this was checked on: {said}"
    )


def _kept(entry, where, class_names):
    """What is promised of one loss, after "of its answers"."""
    risk = 100 * entry["target_risk"]
    classes = " or ".join(str(name) for name in called(classes_of(entry), class_names))
    least = f"at least {round(100 - risk, 9):g} in 100"
    most = f"at most {risk:g} in 100"
    if entry["loss"] == "precision":
        return f" that say class {classes}{where} {least} are right"
    if entry["loss"] == "recall":
        return f" to true cases of class {classes}{where} {least} find it"
    if entry["loss"] == "false_negative":
        return f" to true cases of class {classes}{where} {most} miss it"
    if entry["loss"] != "error":
        return f"{where} {most} are lost (by the chosen loss)"
    if "tolerance" in entry:
        return f"{where} {most} are off by more than {entry['tolerance']:g}"
    return f"{where} {most} are wrong"


def _ranked(report):
    """What `describe` says of a score that comes from beside the predictions."""
    if "detector" not in report:
        return ""
    return f" Cases are ranked by the detector {report['detector']['class']} that goes with it."


def _declared(report):
    """What `describe` says of thresholds that were known before the examples."""
    count = len(report.get("thresholds", []))
    if not count:
        return ""
    end = f"one of {count} that were" if count > 1 else "one that was"
    return f" Its threshold is {end} declared before these cases were seen."


def _calibration(rule, report):
    """What `describe` says of rows that a calibration has used."""
    if not hasattr(rule, "calibration"):  # of numbers
        return ""
    if rule.calibration is not None:
        count = (rule.calibration.fitted_to or {}).get("examples", "some")
        return f" Its probabilities are calibrated on {count} other cases."
    if report["goal"] == "risk":
        return " If its probabilities were calibrated, that must have used other cases than these."
    return ""


def _gaps(rule, report):
    """What `describe` says of classes and groups of which nothing is known."""
    silent = [key for key, part in report.get("parts", {}).items() if not part["accepted"]]
    unseen = [] if rule.multi_label else report["unseen_classes"]
    unseen = called(unseen, rule.class_names)
    silent = called(silent, rule.class_names) if rule.by in ("class", "label") else silent
    text = f" It answers nothing in {rule.by} {_listed(silent)}." if silent else ""
    return text + (f" No case of class {_listed(unseen)} was among them." if unseen else "")


def _listed(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more
