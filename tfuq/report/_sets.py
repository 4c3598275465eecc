"""Tables of prediction sets: how often they hold the truth, and how large they are."""

import numpy as np

from tfuq._arguments import shown
from tfuq.report._tables import Table, number, percent, with_interval
from tfuq.selective import ConformalPredictor


def checked_sets(sets, rule):
    """The argument `sets`, a `ConformalPredictor` of one decision for each example, or None."""
    if sets is None:
        return None
    if not isinstance(sets, ConformalPredictor) or sets.multi_label:
        raise ValueError(
            "Argument `sets` must be a ConformalPredictor of one decision for each example, or "
            f"None. Received: sets={shown(sets)}"
        )
    if sets.weight_limits is not None:
        raise ValueError(
            "Argument `sets` must not be weighted by example, as the report does not know the "
            "weights; weighted for a label shift they may be. Received: sets with weight_limits of "
            f"{len(sets.weight_limits)} thresholds"
        )
    if rule is not None and sets.from_logits != rule.from_logits:
        raise ValueError(
            f"Argument `sets` must take logits if and only if `rule` does, {rule.from_logits}. "
            f"Received: sets with from_logits={sets.from_logits}"
        )
    return sets


def set_tables(sets, found, names, columns, own_groups=None):
    """`Table`s of all, of each class and of each group.

    Args:
        sets: `ConformalPredictor`, or None.
        found: `Given`.
        names: Of the classes.
        columns: `{column: group of each example}`.
        own_groups: Those that the sets have thresholds for, `(examples,)`, or None.
    """
    if sets is None:
        return []
    own = None if own_groups is None else own_groups[found.usable]
    everything = sets.evaluate(found.rows, found.labels, own)
    promised = sets.fitted_to.get("alpha")
    note = (
        "" if promised is None else f"Promised: the truth in {percent(1 - promised)} of the sets."
    )
    rows = [
        ["sets that hold the truth", with_interval(*everything[1:4])],
        ["labels in a set, on average", number(everything.mean_size)],
        ["sets of one label, which are answers", percent(everything.singletons)],
        ["of these right", percent(everything.singleton_accuracy)],
        ["empty sets", percent(everything.empty)],
    ]
    tables = [Table("Sets of labels", ["figure", "value"], rows, note)]
    parts = [(f"true class: {name}", found.labels == k) for k, name in enumerate(names)]
    for column, values in columns.items():
        values = values[found.usable]
        parts += [(f"{column}: {group}", values == group) for group in np.unique(values)]
    rows = [
        [name, number(int(of.sum())), with_interval(*_coverage(sets, found, of, own))]
        for name, of in parts
        if of.any()
    ]
    return [*tables, Table("Sets that hold the truth", ["of", "examples", "share"], rows)]


def _coverage(sets, found, of, own):
    rows = found.rows[:, of] if found.labelled.stack is not None else found.rows[of]
    return sets.coverage(rows, found.labels[of], None if own is None else own[of])
