"""Command `tfuq evaluate`: metrics of a model, and whether a rule keeps its guarantee."""

import numpy as np

from tfuq import metrics
from tfuq.cli._inputs import (
    Numbers,
    interval_options,
    load_calibration,
    load_data,
    load_model,
    load_ood,
    load_rule,
    predict,
    scores_for,
)
from tfuq.cli._stderr import notice, progress
from tfuq.selective import aurc
from tfuq.selective.own_loss import is_known


def run(arguments):
    """The figures, and whether all is as promised and asked for."""
    if arguments.rule is None and not (arguments.max_risk is arguments.min_coverage is None):
        raise ValueError("--max-risk and --min-coverage must come with --rule. Received: no rule")
    rule, calibration = load_rule(arguments.rule), load_calibration(arguments.calibration)
    if calibration is not None and getattr(rule, "calibration", None) is not None:
        raise ValueError(
            "--calibration must be left out with a rule that has its own. "
            f"Received: --calibration {arguments.calibration}"
        )
    model = load_model(arguments)
    data = load_data(arguments, model, rule)
    progress(f"predicting {arguments.data}")
    ood = load_ood(arguments.ood, model)
    found = predict(model, data, arguments, rule, ood=ood, **interval_options(arguments))
    if isinstance(found, Numbers):
        check_is_asked_of_numbers(arguments)
        figures, failures = measured_numbers(found), []
        if rule is not None:
            judged = rule.evaluate(found.found, found.labels, **scores_for(rule, found))
            figures["rule"] = _judged(rule, judged, failures)
        elif "accept" in found.told:
            figures["accepted"] = float(found.told["accept"].mean())
        failures += unmet(arguments, figures)
        return {**figures, "failures": failures}, not failures
    if arguments.max_mae is not None:
        raise ValueError(f"--max-mae must be left out for classes. Received: {arguments.max_mae}")
    probs = found.probs if calibration is None else calibrated(calibration, found.probs)
    mean = probs.mean(0) if found.is_stack else probs
    figures = measured(found.labels, mean)
    failures = []
    if rule is not None:
        rule = type(rule)(**{**rule.get_config(), "from_logits": False})
        given = scores_for(rule, found)
        judged = rule.evaluate(probs, found.labels, loss="error", **given)
        figures["rule"] = _judged(rule, judged, failures)
        figures["rule"]["promises"] = _promises(rule, probs, found.labels, given, failures)
    failures += unmet(arguments, figures)
    return {**figures, "failures": failures}, not failures


def calibrated(calibration, probs):
    """Predictions as a calibration gives them; those that it is applied to are probabilities."""
    config = {**calibration.get_config(), "from_logits": False}
    return np.asarray(type(calibration)(**config).transform(probs))


def measured(labels, probs):
    """Figures of all examples, whatever is accepted."""
    return {
        "examples": len(labels),
        "accuracy": float(metrics.selective_accuracy(labels, probs, threshold=0.0)),
        "nll": float(metrics.negative_log_likelihood(labels, probs)),
        "brier": float(metrics.brier_score(labels, probs)),
        "ece": float(metrics.expected_calibration_error(labels, probs)),
        "aurc": float(aurc(probs, labels)),
    }


def check_is_asked_of_numbers(arguments):
    """Raises ValueError if something is asked for that numbers do not have."""
    for name in ("min_accuracy", "max_ece", "calibration"):
        given = getattr(arguments, name)
        if given is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be left out for a regression. Received: {given}")


def measured_numbers(found):
    """Figures of all numbers, as far as the model tells what they need."""
    told, labels = found.told, found.labels
    errors = told["mean"].astype("float64") - labels
    figures = {"examples": len(labels)}
    figures["mae"] = float(np.mean(np.abs(errors)))
    figures["rmse"] = float(np.sqrt(np.mean(np.square(errors))))
    if "lower" in told:
        inside = (told["lower"] <= labels) & (labels <= told["upper"])
        figures["interval_coverage"] = float(np.mean(inside))
        figures["interval_width"] = float(np.mean(told["upper"] - told["lower"]))
    if found.found is not None and found.found.family.has_noise:
        figures["crps"] = float(metrics.crps(labels, found.found))
        if found.found.family.has_density:
            nll = metrics.number_negative_log_likelihood(labels, found.found)
            figures["nll"] = float(nll)
    return figures


def _judged(rule, found, failures):
    """What a rule accepts, and what was promised of it; a broken promise is a failure."""
    figures = rule_figures(rule, found)
    if figures["promise_broken"]:
        failures.append(
            f"the rule promised a risk of at most {figures['promised_risk']:g}; the risk here is "
            f"{figures['risk']:.4g}, and its 95 % interval starts at "
            f"{figures['risk_interval'][0]:.4g}"
        )
    return figures


def _promises(rule, probs, labels, given, failures):
    """Of a rule of other losses than errors alone, what was promised of each and what is found."""
    report = rule.fitted_to
    entries = report.get("losses", [report])
    names = [entry.get("loss", "error") for entry in entries]
    if report.get("goal") != "risk" or names == ["error"]:
        return []
    if not is_known(rule):
        notice(f"the promises of {names} are not checked: the file of a rule holds no functions")
        return []
    found = list(rule.evaluate(probs, labels, **given).losses)
    for each in found:
        each["promise_broken"] = bool(each["risk_lower"] > each["target_risk"])
        if each["promise_broken"]:
            failures.append(
                f"the rule promised a risk of at most {each['target_risk']:g} of {each['loss']}; "
                f"the risk here is {each['risk']:.4g}, and its 95 % interval starts at "
                f"{each['risk_lower']:.4g}"
            )
    return found


def rule_figures(rule, found):
    """What a rule accepts of an `Evaluation`, and what was promised of it."""
    promised = rule.fitted_to.get("target_risk")
    is_error = rule.fitted_to.get("loss", "error") == "error"
    lower = found.risk_lower
    return {
        "score": rule.score,
        "threshold": rule.threshold if rule.by is None else list(map(float, rule.threshold)),
        "coverage": found.coverage,
        "accepted": found.accepted,
        "risk": found.risk,
        "risk_interval": [found.risk_lower, found.risk_upper],
        "promised_risk": promised,
        "promised_confidence": rule.fitted_to.get("confidence"),
        "promise_broken": bool(promised is not None and is_error and lower > promised),
        "says": rule.describe(),
    }


def unmet(arguments, figures):
    """What was asked for and is not so, as lines; a figure that is NaN is not so."""
    rule = figures.get("rule", {})
    values = {**figures, "risk": rule.get("risk"), "coverage": rule.get("coverage")}
    for name in ("accuracy", "coverage"):
        wanted = getattr(arguments, f"min_{name}")
        if wanted is not None and not values.get(name, np.nan) >= wanted:
            yield f"{name} is {values.get(name, np.nan):.4g}; at least {wanted:g} was asked for"
    for name in ("ece", "nll", "mae", "risk"):
        wanted = getattr(arguments, f"max_{name}")
        if wanted is not None and not values.get(name, np.nan) <= wanted:
            yield f"{name} is {values.get(name, np.nan):.4g}; at most {wanted:g} was asked for"


def text_of(figures):
    """The figures for a person."""
    names = ("accuracy", "nll", "brier", "ece", "aurc")
    if "mae" in figures:
        names = ("mae", "rmse", "interval_coverage", "interval_width", "crps", "nll", "accepted")
    width = max(10, *(len(name) for name in names if name in figures))
    lines = [f"{'examples':{width}} {figures['examples']}"]
    lines += [f"{name:{width}} {figures[name]:.4f}" for name in names if name in figures]
    rule = figures.get("rule")
    if rule:
        low, high = rule["risk_interval"]
        lines += [
            "",
            f"accepted   {rule['accepted']} of {figures['examples']} ({rule['coverage']:.1%})",
            f"risk       {rule['risk']:.4f}  (95 % interval {low:.4f} to {high:.4f})",
        ]
        if rule["promised_risk"] is not None:
            kept = "broken" if rule["promise_broken"] else "not contradicted"
            lines.append(f"promised   {rule['promised_risk']:.4f}  ({kept})")
        for each in rule.get("promises", ()):
            kept = "broken" if each["promise_broken"] else "not contradicted"
            kept = "not tested" if np.isnan(each["risk_lower"]) else kept
            lines.append(
                f"of {each['cases']} accepted, {each['loss']}: risk {each['risk']:.4f}, promised "
                f"at most {each['target_risk']:.4f} ({kept})"
            )
        lines += ["", rule["says"]]
    return "\n".join(lines)
