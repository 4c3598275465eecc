"""The loss that a rule is judged by: as asked for, or that which it was fitted to."""

from tfuq.selective._losses import (
    LOSSES,
    Loss,
    first_of,
    losses_of,
    own_promises,
    read_loss,
    title,
)

__all__ = [
    "LOSSES",
    "is_known",
    "losses_of",
    "own_loss",
    "own_loss_of_numbers",
    "own_promises",
    "own_values",
    "risk_in_words",
    "title",
]


def own_loss(rule, loss=None):
    """The `Loss` that is asked for, else that of the rule; errors of several losses and of none."""
    if loss is not None:
        return read_loss(loss, 1, getattr(rule, "class_names", None))
    return first_of(own_promises(rule)) if getattr(rule, "fitted_to", None) else Loss("error")


def own_loss_of_numbers(rule, loss=None):
    """`"error"` or a function, as asked for, else that of the rule."""
    if loss is not None:
        return loss
    loss = own_loss(rule)
    return loss.value if loss.kind == "function" else "error"


def is_known(rule):
    """Whether the losses of a rule are known here: of a file a function may not be."""
    try:
        own_promises(rule)
    except ValueError:
        return False
    return True


def own_values(rule):
    """Of each loss of a rule its costs or function; None of all others and of unknown ones."""
    report = rule.fitted_to
    if is_known(rule):
        return [promise.loss.value for promise in own_promises(rule)]
    return [None] * len(report.get("losses", [report]))


def risk_in_words(loss, class_names=None):
    """What the risk of the accepted is, such as "fraction wrong of the accepted"."""
    if loss.kind == "error":
        return "fraction wrong of the accepted"
    if loss.kind == "matrix":
        return "mean cost of the accepted, by the cost matrix"
    if loss.kind == "function":
        return f"mean loss of the accepted, {loss.word.removeprefix('function ')}"
    named = title(loss.said(), class_names)
    return f"1 - {named}, of the accepted" if loss.grows_with_good else f"{named}, of the accepted"
