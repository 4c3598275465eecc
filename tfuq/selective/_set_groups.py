"""Conformal sets with thresholds for each group of examples: Mondrian conformal prediction."""

import warnings

import numpy as np

from tfuq._arguments import check_choice, shown
from tfuq.selective._conformal_fitting import calibrated
from tfuq.selective._interval_fitting import group_names
from tfuq.selective.conformal_scores import fewest_examples


def checked_keys(keys, threshold):
    """The argument `keys`, names of groups, one for each row of the thresholds, or None."""
    if keys is None:
        return None
    names = [str(key) for key in keys]
    if len(set(names)) < len(names) or len(names) != len(threshold):
        raise ValueError(
            f"Argument `keys` must name the {len(threshold)} groups of `threshold`, each once. "
            f"Received: keys={shown(keys)}"
        )
    return names


def places_of(keys, groups, count, unknown_group="error"):
    """The row of the thresholds of each of `count` examples, -1 of a group that nobody knows."""
    check_choice("unknown_group", unknown_group, ("error", "all"))
    if keys is None and groups is not None:
        raise ValueError(
            "Argument `groups` must be None, because the predictor was fitted without groups. "
            f"Received: groups={shown(groups)}"
        )
    if keys is None:
        return None
    if groups is None:
        raise ValueError(
            "Argument `groups` must name the group of each example: there are thresholds for each "
            f"of {shown(keys)}. Received: groups=None"
        )
    names = group_names(groups, count)
    known = {key: place for place, key in enumerate(keys)}
    unknown = sorted(set(names.tolist()) - set(known))
    if unknown and unknown_group == "error":
        raise ValueError(
            f"Argument `groups` must hold groups that the predictor was fitted to, {shown(keys)}, "
            'or pass unknown_group="all", for sets of all labels. '
            f"Received: {shown(unknown[:5])}"
        )
    return np.array([known.get(name, -1) for name in names])


def sets_by_group(sets_of, places, scores):
    """Sets of each group by its own thresholds; all labels for a group that nobody knows.

    Args:
        sets_of: A function of rows and the place of their thresholds.
        places: As `places_of` gives them.
        scores: `(n, ..., classes)`, for their shape.
    """
    found = np.ones(np.shape(scores), bool)
    for place in np.unique(places[places >= 0]):
        rows = np.flatnonzero(places == place)
        found[rows] = sets_of(rows, place)
    return found


def calibrated_by_group(
    scores, labels, names, alpha, classes, class_conditional, multi_label, known=None
):
    """Thresholds with a leading axis of groups, what they promise, a dict, and the groups' names.

    A group with too few examples to promise anything has sets of all labels, and a warning says so.
    """
    keys, needed = np.unique(names).tolist(), fewest_examples(alpha)
    counts = {key: int(np.sum(names == key)) for key in keys}
    most = counts
    if class_conditional and not multi_label:
        most = {key: int(np.bincount(labels[names == key].ravel()).max()) for key in keys}
    few = {key: counts[key] for key in keys if most[key] < needed}
    if len(few) == len(keys):
        raise ValueError(
            f"Argument `groups` must have at least one group of {needed} examples, to miss at most "
            f"alpha={alpha:g} of each. Received: {shown(few)}"
        )
    if few:
        warnings.warn(
            f"Groups with fewer than {needed} calibration examples get sets of all labels: "
            f"{shown(few)}.",
            stacklevel=4,
        )
    flags = (alpha, class_conditional, multi_label)
    parts = {}
    for key in set(keys) - set(few):
        rows = names == key
        of_key = None if known is None else known[rows]
        parts[key] = calibrated(scores[rows], labels[rows], classes, *flags, of_key)
    shape = next(iter(parts.values()))[0].shape
    found = [parts[key][0] if key in parts else np.full(shape, np.inf) for key in keys]
    report = {"alpha": alpha, "examples": len(labels), "classes": np.unique(labels).tolist()}
    report["unseen_classes"] = np.setdiff1d(np.arange(classes), labels).tolist()
    report |= {"examples_of_group": counts, "groups_without_promise": sorted(few)}
    return np.stack(found), report, keys
