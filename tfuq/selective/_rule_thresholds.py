"""Thresholds of a rule: for each class or group, and which scores pass them."""

import numpy as np

from tfuq._arguments import check_choice, check_integer, shown
from tfuq.selective._rule_fitting import REJECT_ALL
from tfuq.selective.base import numbers


def check_by(by, multi_label):
    """Raises ValueError unless `by` says of what there are thresholds, and predictions have it."""
    check_choice("by", by, (None, "class", "label", "group"))
    if by == "label" and not multi_label:
        raise ValueError(
            "Argument `by` must not be 'label' unless multi_label=True: single classes have no "
            "labels of their own. Use by='class'. Received: by='label' with multi_label=False"
        )


def checked_thresholds(threshold, by, keys):
    """A threshold, or one for each of `keys` with `by`, and these."""
    found = numbers("threshold", threshold)
    if found.shape != (() if by is None else (len(keys or ()),)) or found.size == 0:
        raise ValueError(
            "Argument `threshold` must be a number or, with `by`, one for each of `keys`. "
            f"Received: threshold={shown(threshold)} with by={shown(by)}, keys={shown(keys)}"
        )
    keys = None if by is None else [str(key) for key in keys] if by == "group" else list(keys)
    for key in keys if by in ("class", "label") else ():
        check_integer("keys", key, 0)
    if len(set(keys or ())) < len(keys or ()):
        raise ValueError(f"Argument `keys` must not repeat. Received: keys={shown(keys)}")
    return float(found) if by is None else found, keys


def passes(rule, score, threshold):
    """Which scores are trusted enough, compared in float32; NaN is not."""
    threshold = np.asarray(threshold, "float32")
    with np.errstate(invalid="ignore"):
        found = score >= threshold if rule.grows_with_trust else score <= threshold
    return found & ~np.isnan(score)


def of_classes(rule, classes):
    """The threshold of each class; one that fitting never saw is rejected."""
    known = dict(zip(rule.keys, rule.threshold, strict=True))
    nothing = REJECT_ALL[rule.grows_with_trust]
    return np.array([known.get(k, nothing) for k in range(classes)])


def of_labels(rule, count):
    """The threshold of each label, `(labels,)`."""
    if sorted(rule.keys) != list(range(count)):
        raise ValueError(
            f"Argument `probs` must have the labels that the rule was fitted to, {len(rule.keys)}. "
            f"Received: predictions of {count} labels"
        )
    return np.asarray(rule.threshold)[np.argsort(rule.keys)]


def of_groups(rule, groups, count, unknown_group):
    """The threshold of the group of each of `count` examples."""
    names = np.asarray(groups if groups is not None else [], dtype=str)
    if names.shape != (count,):
        raise ValueError(
            f"Argument `groups` must name the group of each of {count} examples. "
            f"Received: groups={shown(groups)}"
        )
    known = dict(zip(rule.keys, rule.threshold, strict=True))
    unknown = sorted(set(names.tolist()) - set(known))
    if unknown and unknown_group == "error":
        raise ValueError(
            f"Argument `groups` must hold groups that the rule was fitted to, {shown(rule.keys)}, "
            f'or pass unknown_group="reject". Received: {unknown[:5]}'
        )
    return np.array([known.get(name, REJECT_ALL[rule.grows_with_trust]) for name in names])
