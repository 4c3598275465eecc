"""Reading of predictions by what was fitted to others: their kind, their mean, their score."""

import numpy as np
from keras import ops

from tfuq._predictions.scores import OF_STACKS, score_of
from tfuq._predictions.stacks import Kind, is_stack_shape, is_stacked, read_stack
from tfuq._predictions.uncertainty import Uncertainty


def kind_of(fitted, report):
    """The `Kind` of predictions of a fitted object; its report names the classes, if it is one."""
    names = getattr(fitted, "class_names", None)
    classes = len(names) if names else None
    if classes is None and "unseen_classes" in report and not fitted.multi_label:
        classes = len(report["classes"]) + len(report["unseen_classes"])
    return Kind(fitted.rank, fitted.from_logits, fitted.multi_label, classes)


def array_of(probs):
    """Mean probabilities of an `Uncertainty`, or what else it is, as it is."""
    return probs.probs if isinstance(probs, Uncertainty) else probs


def flags_of(probs, from_logits, multi_label):
    """Both flags, which an `Uncertainty` knows itself."""
    if isinstance(probs, Uncertainty):
        return {"from_logits": False, "multi_label": probs.multi_label}
    return {"from_logits": from_logits, "multi_label": multi_label}


def mean_of(probs, kind, stacked=None):
    """Mean probabilities `(n, ..., classes)`, float32, of predictions, a stack or `Uncertainty`."""
    if isinstance(probs, Uncertainty):
        _check_labels(probs, kind)
        kind = Kind(kind.rank, False, kind.multi_label, kind.classes)
        return read_stack(probs.probs, kind, stacked=False)[0]
    return ops.convert_to_numpy(ops.mean(read_stack(probs, kind, stacked), axis=0))


def scored(probs, kind, score, stacked=None):
    """The score `(n, ...)` and the mean probabilities `(n, ..., classes)` of predictions."""
    if isinstance(probs, Uncertainty):
        mean = mean_of(probs, kind)
        if score in OF_STACKS:
            values = np.asarray(getattr(probs, score), "float32").reshape(mean.shape[:-1])
            return values, mean
        return ops.convert_to_numpy(score_of(score, mean[None])), mean
    stack = read_stack(probs, kind, stacked)
    if score in OF_STACKS and not is_stack_shape(np.shape(probs), kind, is_stacked(probs, stacked)):
        raise ValueError(
            f"Argument `probs` must be a stack (samples, n, ..., classes) for the score {score!r}, "
            f"or what `predict_uncertainty` gave. Received: probs of shape {np.shape(probs)}"
        )
    mean = ops.convert_to_numpy(ops.mean(stack, axis=0))
    return ops.convert_to_numpy(score_of(score, stack)), mean


def _check_labels(found, kind):
    if found.multi_label != kind.multi_label:
        raise ValueError(
            f"Argument `probs` must hold predictions with multi_label={kind.multi_label}, as those "
            f"that it was fitted to. Received: predictions with multi_label={found.multi_label}"
        )
