"""Command `tfuq monitor`: whether a rule's promise still holds, batch after batch."""

import pathlib

from tfuq.cli._inputs import (
    Numbers,
    load_data,
    load_model,
    load_ood,
    load_rule,
    predict,
    scores_for,
)
from tfuq.cli._stderr import progress
from tfuq.selective import Monitor


def run(arguments):
    """What has been seen, and whether there is no alarm."""
    rule, path = load_rule(arguments.rule), pathlib.Path(arguments.state)
    fits = {} if not hasattr(rule, "from_logits") else {"from_logits": False}
    rule = type(rule)(**{**rule.get_config(), **fits})
    monitor = _resumed(path, rule, arguments.alpha) if path.exists() else None
    if monitor is None:
        monitor = rule.monitor(0.05 if arguments.alpha is None else arguments.alpha)
    model = load_model(arguments)
    data = load_data(arguments, model, rule)
    progress(f"predicting {arguments.data}")
    found = predict(model, data, arguments, rule, ood=load_ood(arguments.ood, model))
    if isinstance(found, Numbers):
        whole = checked_whole(found, arguments.model)
        monitor.update(whole, found.labels, **scores_for(rule, found))
    else:
        monitor.update(found.probs, found.labels, stacked=found.is_stack, **scores_for(rule, found))
    monitor.save(path)
    figures = {**monitor.fitted_to, "risk_bound": monitor.risk_bound, "alarms": monitor.alarms}
    figures |= {"promised_risk": rule.fitted_to["target_risk"], "wealth": monitor.wealth}
    failures = [f"the test of the {name} raised an alarm" for name in monitor.alarms]
    return {**figures, "failures": failures}, not failures


def checked_whole(found, path):
    """The distributions of numbers, which a SavedModel does not tell."""
    if found.found is None:
        raise ValueError(
            "MODEL must be a Keras model or an ensemble for numbers, not a SavedModel. Received: "
            f"{path}"
        )
    return found.found


def _resumed(path, rule, alpha):
    monitor = Monitor.load(path)
    if monitor.rule != rule or alpha not in (None, monitor.alpha):
        raise ValueError(
            f"STATE must be of the same --rule and --alpha, or not be there. Received: {path}, "
            f"of a rule fitted to {monitor.rule.fitted_to.get('examples')} examples and of "
            f"alpha={monitor.alpha:g}"
        )
    return monitor


def text_of(figures):
    """The figures for a person."""
    risk = figures["loss"] / figures["labelled"] if figures["labelled"] else float("nan")
    return "\n".join(
        [
            f"cases      {figures['cases']}, accepted {figures['accepted']}, "
            f"of these with labels {figures['labelled']}",
            f"risk       {risk:.4f}  (so far at most {figures['risk_bound']:.4f})",
            f"promised   {figures['promised_risk']:.4f}",
            f"alarms     {', '.join(figures['alarms']) or 'none'}",
        ]
    )
