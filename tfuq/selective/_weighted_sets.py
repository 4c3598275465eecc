"""Conformal sets under shift: each example counts as often as its like comes in the new data.

Formula, of calibration scores s_i, weights w_i >= 0 that say how many times as frequent the like of
example i is in the new data, and the weight w of a new example (Tibshirani et al. 2019):

```
threshold(w) = the smallest score t with sum of w_i over s_i <= t >= (1 - alpha) (sum_i w_i + w)
```

Under covariate shift w is of the new example's inputs. Under label shift it is of its label, so
that each label has a threshold, that of its own weight (Podkopaev and Ramdas 2021).
"""

import warnings

import numpy as np

from tfuq._arguments import shown, to_float64
from tfuq.selective._label_shift import LabelShift
from tfuq.selective.base import numbers
from tfuq.selective.conformal_scores import fewest_examples, with_tolerance


def checked_limits(weight_limits, threshold, **others):
    """The argument `weight_limits`, one for each threshold and ascending, or None."""
    if weight_limits is None:
        return None
    found = numbers("weight_limits", weight_limits)
    is_sound = found.shape == threshold.shape and found.ndim == 1 and np.all(np.diff(found) >= 0)
    if not is_sound or not np.all(np.diff(threshold) >= 0):
        raise ValueError(
            "Argument `weight_limits` must be ascending, one for each of as many ascending "
            f"thresholds. Received: weight_limits={shown(weight_limits)}"
        )
    check_without(weight_limits, "weight_limits", **others)
    return found


def check_alone(draft, weights, groups):
    """Raises ValueError for weights with groups, or for a predictor that they are not for."""
    if weights is None:
        return
    own = {"class_conditional": draft.class_conditional, "multi_label": draft.multi_label}
    check_without(weights, groups=groups, **own)
    if draft.rank > 2:
        raise ValueError(
            "Argument `weights` must be None for several decisions of an example, of pixels. "
            f"Received: weights with predictions of {draft.rank} axes"
        )


def check_without(weights, name="weights", **others):
    """Raises ValueError for weights together with what has thresholds of its own."""
    for other, value in others.items():
        if value is not None and value is not False:
            raise ValueError(
                f"Argument `{other}` must be left out with `{name}`, which are for one decision of "
                f"an example among classes. Received: {other}={shown(value)} with weights"
            )


def checked_weights(weights, shape, name="weights"):
    """Weights of examples `(n,)`, finite and at least 0; `shape` is that of the decisions."""
    found = to_float64(name, weights)
    if len(shape) != 1 or found.shape != shape or not np.all(np.isfinite(found) & (found >= 0)):
        raise ValueError(
            f"Argument `{name}` must hold a finite number of at least 0 for each of "
            f"{shape[0] if len(shape) == 1 else shape} examples with one decision each: how many "
            "times as frequent such examples are in the new data. Received: "
            f"{name}={shown(weights)}"
        )
    return found


def calibrated_by_weight(scores, labels, weights, alpha, classes):
    """Thresholds, their limits of new weights or None, and what they promise, a dict.

    Args:
        scores, labels: Of the calibration examples, `(n,)`.
        weights: Of these, `(n,)`, or a `LabelShift`.
        alpha: Fraction to miss.
        classes: How many there are.
    """
    is_of_labels = isinstance(weights, LabelShift)
    of_class = _class_weights(weights, labels, classes) if is_of_labels else None
    weights = of_class[labels] if is_of_labels else weights
    values, limits = limits_of(scores, weights, alpha)
    _check_enough(weights, limits, alpha)
    report = {"alpha": alpha, "examples": len(labels), "classes": np.unique(labels).tolist()}
    report["unseen_classes"] = np.setdiff1d(np.arange(classes), labels).tolist()
    report["weights"] = "label shift" if is_of_labels else "covariate shift"
    report["effective_examples"] = float(weights.sum() ** 2 / np.sum(weights**2))
    if not is_of_labels:
        return values, limits, report
    report["class_weights"] = [float(w) if np.isfinite(w) else None for w in of_class]
    return thresholds_at(values, limits, of_class), None, report


def limits_of(scores, weights, alpha):
    """Scores, ascending, and the largest weight of a new example that each is enough for."""
    values, level = np.unique(scores, return_inverse=True)
    total = weights.sum()
    below = np.cumsum(np.bincount(level, weights, len(values)))
    limits = below / (1 - alpha) - total + 1e-9 * total
    used = limits >= 0
    return values[used], limits[used]


def thresholds_at(values, limits, weights):
    """The threshold for each weight of a new example, inf where none is enough, or none known."""
    places = np.searchsorted(limits, np.nan_to_num(weights, nan=np.inf))
    return np.append(values, np.inf)[places]


def sets_of_weights(mean, scores, limits, allow_empty):
    """Sets `(n, classes)` by a threshold for each example; all classes where nothing is known."""
    found = scores <= with_tolerance(limits)[:, None]
    if not allow_empty:
        found |= np.eye(mean.shape[1], dtype=bool)[np.nan_to_num(mean).argmax(axis=-1)]
    return found | ~np.isfinite(mean).all(axis=-1, keepdims=True)


def asked_weights(weight_limits, weights, shape):
    """Weights of new examples, asked for where thresholds depend on them, and only there."""
    if weight_limits is None:
        if weights is not None:
            raise ValueError(
                "Argument `weights` must be None: the predictor was fitted without weights of "
                f"examples, or for label shift, which needs none. Received: {shown(weights)}"
            )
        return None
    if weights is None:
        raise ValueError(
            "Argument `weights` must hold the weight of each example, because the predictor was "
            "fitted with weights: `CovariateShift.weights(features)`. Received: weights=None"
        )
    return checked_weights(weights, shape)


def _class_weights(shift, labels, classes):
    found = np.asarray(shift.weights, "float64")
    if found.shape != (classes,) or not np.all(np.isfinite(shift.target_prior)):
        raise ValueError(
            f"Argument `weights` must be a LabelShift of {classes} classes that was found. "
            f"Received: one of {found.shape[0]} with frequencies {shown(shift.target_prior)}"
        )
    seen = np.unique(labels)
    if not np.all(np.isfinite(found[seen])):
        raise ValueError(
            "Argument `weights` must be a LabelShift estimated from rows with all classes of these "
            f"labels. Received: none of class {seen[~np.isfinite(found[seen])].tolist()}"
        )
    if not shift.reliable:
        warnings.warn(
            "Sets promise nothing, because the label shift that weights them is not estimated "
            "reliably (its classes are confused, or some were not seen).",
            stacklevel=5,
        )
    return found


def _check_enough(weights, limits, alpha):
    """Raises ValueError where an example of the mean weight would have no threshold."""
    needed, total = fewest_examples(alpha), weights.sum()
    if not total or not len(limits) or limits[-1] < total / len(weights):
        raise ValueError(
            f"Argument `probs` must hold at least {needed} examples, not all of weight 0, to miss "
            f"at most alpha={alpha:g}. Received: {len(weights)} of a total weight of {total:.4g}"
        )
    effective = total**2 / np.sum(weights**2)
    if effective < needed:
        warnings.warn(
            f"The weights leave {effective:.1f} effective examples of {len(weights)}: sets will "
            "often hold every class, and their coverage depends on a few examples.",
            stacklevel=5,
        )
