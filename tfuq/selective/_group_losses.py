"""Loss and target of a report by group: as asked for, or those of its rule."""

import numpy as np

from tfuq._arguments import check_fraction, shown
from tfuq.selective._losses import (
    MATRIX,
    SEVERAL,
    classes_of,
    is_several,
    losses_of,
    own_promises,
    read_loss,
    titles,
)


def _fitted_to(rule):
    return getattr(rule, "fitted_to", None) or {}


def target_of(rule, target_risk, loss, positive_class):
    """The risk to be kept; of a rule that was fitted to another loss none but the one given."""
    said = _fitted_to(rule)
    if target_risk is None and (loss is None or _is_of(said, loss, positive_class, rule)):
        target_risk = said.get("target_risk")
    if target_risk is None:
        return None
    check_fraction("target_risk", target_risk)
    if target_risk in (0, 1):
        raise ValueError(f"Argument `target_risk` must be in (0, 1). Received: {target_risk}")
    return float(target_risk)


def _is_of(said, loss, positive_class, rule):
    """Whether a report is of that loss."""
    asked = read_loss(loss, positive_class, getattr(rule, "class_names", None))
    if (said.get("loss", "error"), classes_of(said)) != (asked.word, asked.classes):
        return False
    return asked.kind != "matrix" or np.array_equal(said.get(MATRIX, asked.value), asked.value)


def losses_in_groups(labelled, rule, loss, positive_class):
    """The loss of each decision, and whether it belongs to the risk, `(entries,)`."""
    names = getattr(rule, "class_names", None)
    said = _fitted_to(rule)
    if loss is None and said.get("loss") == SEVERAL:
        raise ValueError(
            "Argument `loss` must name one loss, with its `target_risk`, of a rule that was "
            f"fitted to several. Received: loss=None with {shown(titles(said, rule))}"
        )
    if is_several(loss):
        raise ValueError(
            f"Argument `loss` must be one loss: ask for each. Received: loss={shown(loss)}"
        )
    if loss is None and said:
        read = own_promises(rule, positive_class=positive_class)[0].loss
    else:
        read = read_loss("error" if loss is None else loss, positive_class, names)
    probs = np.asarray(labelled.examples.probs())
    return losses_of(read, probs, np.asarray(labelled.examples.labels))
