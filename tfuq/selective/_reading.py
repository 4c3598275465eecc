"""Reading of predictions by what was fitted to others: their kind, their mean, their score."""

import warnings

import numpy as np
from keras import ops

from tfuq._arguments import shown
from tfuq._models.meaning import smoothing_of_loss
from tfuq._predictions.scores import GIVEN, OF_STACKS, RANKINGS, score_name, score_of
from tfuq._predictions.stacks import (
    Kind,
    is_stack_shape,
    is_stacked,
    only_probabilities,
    read_stack,
    stack_of,
)
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.ood.base import Detector


def kind_of(fitted, report):
    """The `Kind` of predictions of a fitted object; its report names the classes, if it is one."""
    names = getattr(fitted, "class_names", None)
    classes = len(names) if names else None
    if classes is None and "unseen_classes" in report and not fitted.multi_label:
        classes = len(report["classes"]) + len(report["unseen_classes"])
    return Kind(fitted.rank, fitted.from_logits, fitted.multi_label, classes)


def checked_classes(report):
    """A report whose lists of classes are lists, if it has them, or a ValueError."""
    if "unseen_classes" in report:
        for name in ("classes", "unseen_classes"):
            if not isinstance(report.get(name), list):
                raise ValueError(
                    f"Argument `fitted_to` must hold a list of `{name}`. "
                    f"Received: {name}={shown(report.get(name))}"
                )
    return report


def array_of(probs):
    """Mean probabilities of an `Uncertainty`, or what else it is, as it is."""
    return probs.probs if isinstance(probs, Uncertainty) else probs


def columns_of(probs):
    """How many classes or labels predictions have."""
    return np.shape(array_of(probs))[-1]


def flags_of(probs, from_logits, multi_label):
    """Both flags, which an `Uncertainty` knows itself."""
    if isinstance(probs, Uncertainty):
        return {"from_logits": False, "multi_label": probs.multi_label}
    return {"from_logits": from_logits, "multi_label": multi_label}


def mean_of(fitted, probs, stacked=None):
    """Mean probabilities `(n, ..., classes)`, float32, of predictions, a stack or `Uncertainty`.

    They are calibrated if what was `fitted` has a calibration.
    """
    return ops.convert_to_numpy(ops.mean(_stack(fitted, probs, stacked), axis=0))


def warn_of_smoothing(model, output):
    """Warns of a loss under which the largest probability tells errors apart less well."""
    smoothing = smoothing_of_loss(model, output)
    if smoothing > 0:
        warnings.warn(
            f"The model was compiled with label_smoothing={smoothing:g}. Label smoothing makes "
            "errors harder to tell by their probability (Xia et al. 2025), so that a rule accepts "
            "less. Train without it, or compare scores with `best_score`; score='pnorm' repairs "
            "part of it.",
            stacklevel=3,
        )


def rule_score(score):
    """The word for the argument `score` of a rule."""
    is_given = isinstance(score, str) and score == GIVEN
    return GIVEN if is_given else score_name(score, RANKINGS)


def check_for_models(rule):
    """Raises ValueError for a rule that asks for what a model does not know."""
    if rule.by == "group":
        raise ValueError(
            "A rule with a threshold for each group cannot be part of a model, which does not "
            "know the groups. Received: by='group'"
        )
    if rule.score == GIVEN and "detector" not in rule.fitted_to:
        raise ValueError(
            "A rule for your own scores cannot be part of a model, which does not compute them. A "
            "rule for a detector's score can, if it was fitted with "
            "`RejectionRule.fit_model(model, data, score=detector)`. Received: score='given'"
        )


def name_and_given(score, default):
    """The name of a score, and the score itself if the argument is an array or a function."""
    if score is None or isinstance(score, str):
        return score or default, None
    check_is_no_detector(score)
    several = list(score.values()) if isinstance(score, dict) else score
    is_list = isinstance(several, (list, tuple))
    if isinstance(score, dict) or (
        is_list and any(isinstance(each, str | Detector) or callable(each) for each in several)
    ):
        raise ValueError(
            "Argument `score` must be one score. `CombinedScore` joins several, on rows of its "
            "own: `fit(model, x)`, then `RejectionRule.fit_model(..., score=combined)`. Received: "
            f"score={shown(score)}"
        )
    return GIVEN, score


def check_is_no_detector(score):
    """Raises ValueError for a detector, where there are no inputs that it could score."""
    if isinstance(score, Detector):
        raise ValueError(
            "Argument `score` must be a name, an array or a function of probabilities; for a "
            "detector pass the array `detector.score(x)`, or the detector itself to "
            "`RejectionRule.fit_model(model, data, score=detector)`, which has the inputs. "
            f"Received: score={shown(score)}"
        )


def choice_of(rule, given):
    """What the score of a rule that is being fitted is known by: its numbers, or its name."""
    if given is None:
        return rule.score
    return None if callable(given) else np.asarray(given)


def check_given(score, given):
    """Raises ValueError unless scores are given where a rule is of such, and only then."""
    if (score == GIVEN) != (given is not None):
        wanted = "the scores of these predictions" if score == GIVEN else "None"
        raise ValueError(
            f"Argument `score` must be {wanted}: the rule was fitted to the score {shown(score)}. "
            f"Received: score={shown(given)}"
        )


def scored(fitted, probs, stacked=None, given=None):
    """The score `(n, ...)` and the mean probabilities `(n, ..., classes)` of predictions."""
    score, kind = fitted.score, kind_of(fitted, fitted.fitted_to)
    check_given(score, given)
    if score == GIVEN:
        mean = mean_of(fitted, probs, stacked)
        return _given_scores(given, mean, fitted.multi_label), mean
    if score in OF_STACKS:
        if isinstance(probs, Uncertainty):
            mean = mean_of(fitted, probs)
            values = np.asarray(getattr(probs, score), "float32").reshape(mean.shape[:-1])
            return values, mean
        if not is_stack_shape(np.shape(probs), kind, is_stacked(probs, stacked)):
            raise ValueError(
                "Argument `probs` must be a stack (samples, n, ..., classes) for the score "
                f"{shown(score)}, or what `predict_uncertainty` gave. "
                f"Received: probs of shape {np.shape(probs)}"
            )
    stack = _stack(fitted, probs, stacked)
    mean = ops.convert_to_numpy(ops.mean(stack, axis=0))
    return ops.convert_to_numpy(score_of(score, stack)), mean


def _given_scores(given, mean, multi_label):
    """Scores `(n,)` in float32 of one decision each; NaN where the predictions hold NaN."""
    check_is_no_detector(given)
    values = np.asarray(given(mean) if callable(given) else given)
    values = values[:, 0] if values.shape == (len(mean), 1) else values
    is_number = values.dtype.kind in "fiu"
    if mean.ndim != 2 or multi_label or values.shape != (len(mean),) or not is_number:
        raise ValueError(
            f"Argument `score` must hold a number for each of {len(mean)} examples, each with one "
            f"decision. Received: {values.dtype} of shape {values.shape}, for predictions of shape "
            f"{mean.shape}{' of several labels' if multi_label else ''}"
        )
    return np.where(np.isfinite(mean).all(axis=-1), values.astype("float32"), np.nan)


def _stack(fitted, probs, stacked):
    """Probabilities `(samples, n, ..., classes)`; of calibrated ones one sample."""
    kind, calibration = kind_of(fitted, fitted.fitted_to), fitted.calibration
    if isinstance(probs, Uncertainty):
        _check_labels(probs, kind)
        kind, stacked = kind.of_probabilities(), False
        probs = probs.probs
    stack = read_stack(probs, kind, stacked)
    if calibration is None:
        return stack
    if calibration.from_logits != kind.from_logits:
        config = {**calibration.get_config(), "from_logits": kind.from_logits}
        calibration = type(calibration)(**config)
    several = is_stack_shape(np.shape(probs), kind, is_stacked(probs, stacked))
    values = np.asarray(probs, "float32")
    if several and kind.rank == 1 and values.ndim == 2:
        values = values[..., None]  # which the calibration reads as a stack
    return ops.convert_to_numpy(
        _calibrated(calibration, ops.convert_to_tensor(values), stack, kind)
    )


def _calibrated(calibration, predictions, stack, kind):
    """`(1, n, ..., classes)`; NaN where the raw `stack` is."""
    found = stack_of(calibration.probabilities(predictions), kind.of_probabilities(), False)
    known = ops.isfinite(ops.sum(stack, axis=(0, -1)))
    return ops.where(ops.expand_dims(known, (0, -1)), found, np.nan)


def graph_stack(fitted, predictions):
    """Probabilities `(samples, n, ..., classes)` of tensors; NaN in rows that hold none."""
    kind = kind_of(fitted, fitted.fitted_to)
    stack = stack_of(predictions, kind)
    stack = stack if kind.from_logits else only_probabilities(stack)
    if fitted.calibration is None:
        return stack
    return _calibrated(fitted.calibration, predictions, stack, kind)


def _check_labels(found, kind):
    if found.multi_label != kind.multi_label:
        raise ValueError(
            f"Argument `probs` must hold predictions with multi_label={kind.multi_label}, as those "
            f"that it was fitted to. Received: predictions with multi_label={found.multi_label}"
        )
