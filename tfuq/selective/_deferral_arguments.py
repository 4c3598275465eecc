"""Arguments of deferral: rules, stages and thresholds, checked and read."""

import numpy as np

from tfuq._arguments import check_fraction, is_finite, shown, to_float64
from tfuq._predictions.labelled import Doubt, LabelledPredictions
from tfuq._predictions.scores import CONFIDENCES


def read_stages(stages, costs):
    """Pairs of predictions and rule, the costs without `"model"`, and these, one for each pair."""
    is_sequence = isinstance(stages, (list, tuple)) and len(stages) > 0
    if not is_sequence or not all(isinstance(s, (list, tuple)) and len(s) == 2 for s in stages):
        raise ValueError(
            "Argument `stages` must be a sequence of at least one pair (probs, rule). "
            f"Received: stages={shown(stages)}"
        )
    if not isinstance(costs, dict):
        return stages, costs, np.zeros(len(stages))
    rest = {name: value for name, value in costs.items() if name != "model"}
    prices = to_float64("costs", costs.get("model", 0.0))
    fits = prices.shape in ((), (len(stages),))
    if not fits or not np.all(np.isfinite(prices) & (prices >= 0)):
        raise ValueError(
            "Argument `costs` must have for 'model' a number or one for each stage, finite and at "
            f"least 0. Received: costs['model']={prices}"
        )
    return stages, rest, np.broadcast_to(prices, len(stages))


def read_thresholds(thresholds, doubt, used, keys):
    """How many levels each threshold accepts, and the thresholds."""
    if thresholds is None:
        last = doubt.levels(used)[1]
        return np.arange(len(keys) + 1), np.concatenate([[-doubt.sign * np.inf], last])
    thresholds = np.atleast_1d(to_float64("thresholds", thresholds))
    if thresholds.ndim != 1 or not thresholds.size or np.any(np.isnan(thresholds)):
        raise ValueError(
            "Argument `thresholds` must be a sequence of at least one number, no NaN. "
            f"Received: thresholds={thresholds}"
        )
    cuts = (doubt.sign * thresholds).astype(doubt.key.dtype)
    return np.searchsorted(keys, cuts, side="right"), thresholds


def is_number(value):
    return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))


def check_rule(rule, score, groups, flags):
    """Raises ValueError if the arguments do not go with the rule."""
    has_score = hasattr(rule, "accept")
    if has_score and score is not None:
        raise ValueError(
            "Argument `score` must be None with a rule that has one. "
            f"Received: score={shown(score)}"
        )
    if groups is not None and not has_score:
        raise ValueError(
            "Argument `groups` must be None without a rule by group. Received: groups of some kind"
        )
    for name, value in flags.items():
        if hasattr(rule, name) and getattr(rule, name) != value:
            raise ValueError(
                f"Argument `{name}` must be what the rule was fitted with, {getattr(rule, name)}. "
                f"Received: {name}={shown(value)}"
            )


def doubt_of(rule, probs, labelled, score):
    """How little each entry is trusted, by the rule's score or the argument `score`."""
    if hasattr(rule, "score_of"):
        sign = -1 if rule.score in CONFIDENCES else 1
        values = sign * labelled.spread("probs", np.asarray(rule.score_of(probs)))
        return Doubt(values, values.astype("float32"), sign)
    if rule is not None and not is_finite(rule):
        raise ValueError(
            "Argument `rule` must be a RejectionRule, a finite number or None. "
            f"Received: rule={shown(rule)}"
        )
    return labelled.doubt(labelled.usual_score if score is None else score)


def acceptance(rule, probs, labelled, groups=None):
    """1.0 for each entry that the rule accepts, 0.0 for the others."""
    if hasattr(rule, "accept"):
        accepted = rule.accept(probs) if groups is None else rule.accept(probs, groups=groups)
        return labelled.spread("rule", accepted)
    if is_number(rule) and isinstance(labelled, LabelledPredictions):
        check_fraction("rule", rule)
        doubt = labelled.doubt("confidence")
        return (doubt.key <= np.float32(-rule)).astype(float)
    accepted = np.asarray(rule)
    if accepted.dtype != bool:
        raise ValueError(
            "Argument `stages` must pair each model's predictions with a RejectionRule, an array "
            "of True and False, or (for classes) a number in [0, 1]. "
            f"Received: rule={shown(rule)}"
        )
    return labelled.spread("rule", accepted)
