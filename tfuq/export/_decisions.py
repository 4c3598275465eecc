"""Answers of an exported model, as tensors: from outputs of networks to decisions."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._predictions.probabilities import entropy, is_binary, probabilities
from tfuq._predictions.scores import GIVEN, OF_STACKS
from tfuq.predictive.detector_marks import check_detector_of
from tfuq.selective import (
    ConformalPredictor,
    ConformalRegressor,
    MaskRiskControl,
    RegressionRule,
    RejectionRule,
)
from tfuq.selective.conformal_scores import ROUNDING

MEANINGS = {
    "probabilities": (
        "mean probability of each class, calibrated where a calibration was given; NaN for inputs "
        "that are not finite"
    ),
    "label": "the most probable class; 0 or 1 for predictions of one column and for multi_label; "
    "-1 if the probabilities are not numbers",
    "confidence": "the largest of the probabilities; of binary ones, of p and 1 - p",
    "predictive_entropy": "total uncertainty, H[probabilities], nats",
    "expected_entropy": "aleatoric part, mean of H over the samples, not calibrated, nats",
    "mutual_information": "epistemic part, disagreement of the samples, not calibrated, nats",
    "accept": "whether the rule (without one, the conformal set) accepts the prediction",
    "prediction_set": "whether each class is in the conformal set",
    "mask": "which pixels are in the mask whose recall is promised; True where nothing is known",
    "mean": "E[y] of each number, the median of quantiles; NaN for inputs that are not finite",
    "std": "standard deviation of y, both parts added as variances, in the unit of y",
    "aleatoric_std": "that of the noise in the labels",
    "epistemic_std": "that of the mean, over networks or as the head says it",
    "lower": "lower end of the interval, conformal or central; -inf or NaN if nothing is known",
    "upper": "upper end of the interval; inf or NaN if nothing is known",
    "score": "what the rule compares with its threshold, in the unit of y",
    "ood_score": "how far out of distribution the input is, larger is further; inf if unknown",
}


class Decisions(NamedTuple):
    """What is made of the outputs of networks."""

    is_logits: bool
    multi_label: bool
    calibration: object
    rule: RejectionRule | None
    conformal: ConformalPredictor | MaskRiskControl | None

    def __call__(self, outputs, is_stack):
        """Dict of tensors, of outputs `(samples, batch, ..., classes)` or `(batch, ..., classes)`.

        `is_stack` says which.
        """
        binary = is_binary(outputs.shape, self.multi_label)
        samples = probabilities(outputs, self.is_logits, binary)
        mean = tf.reduce_mean(samples, 0) if is_stack else samples
        probs = mean if self.calibration is None else self._calibrated(outputs, samples, binary)
        said = {"probabilities": probs}
        if binary:
            known, label = tf.math.is_finite(probs), tf.cast(probs > 0.5, "int64")
            said["confidence"] = tf.maximum(probs, 1 - probs)
        else:
            known = tf.reduce_all(tf.math.is_finite(probs), -1)
            label = tf.argmax(probs, -1, output_type="int64")
            said["confidence"] = tf.reduce_max(probs, -1)
        said["label"] = tf.where(known, label, -tf.ones_like(label))
        said["predictive_entropy"] = entropy(probs, binary)
        if is_stack:
            expected = tf.reduce_mean(entropy(samples, binary), 0)
            said["expected_entropy"] = expected
            said["mutual_information"] = tf.maximum(entropy(mean, binary) - expected, 0.0)
        return said | self._decided(probs, samples)

    def _calibrated(self, outputs, samples, binary):
        """Probabilities that the calibration makes, of the kind of predictions it was fitted to."""
        given = outputs if self.calibration.from_logits else samples
        if self.calibration.rank == 1:  # it was fitted to `(n,)`, which is one column here
            calibrated = self.calibration.transform(given[..., 0])[..., None]
        else:
            calibrated = self.calibration.transform(given)
        return probabilities(calibrated, self.calibration.from_logits, binary)

    def by_score(self, said, score):
        """What a rule of a detector's score says of predictions with it, `(batch, ...)`."""
        probs = _of_rank(self.rule, said["probabilities"])
        return {"accept": self.rule.transform([probs, score])["accept"]}

    @property
    def needs_score(self):
        return self.rule is not None and self.rule.score == GIVEN

    def _decided(self, probs, samples):
        decided = {}
        if isinstance(self.conformal, MaskRiskControl):
            decided["mask"] = self.conformal.transform(probs)["mask"]
        elif self.conformal is not None:
            known = tf.reduce_all(tf.math.is_finite(probs), -1)
            sets = self.conformal.transform(_of_rank(self.conformal, probs))["prediction_set"]
            decided["prediction_set"] = sets
            known = known[..., None] if self.multi_label else known
            known = tf.broadcast_to(known, tf.shape(sets)[:-1])
            decided["accept"] = known & (tf.reduce_sum(tf.cast(sets, "int32"), -1) == 1)
        if self.rule is not None and not self.needs_score:
            scored = samples if self.rule.score in OF_STACKS else probs
            decided["accept"] = self.rule.transform(_of_rank(self.rule, scored))["accept"]
        return decided


def _of_rank(fitted, probs):
    """Predictions of one column as `(n,)`, where that is what an object was fitted to."""
    return probs[..., 0] if fitted.rank == 1 else probs


def unbounded(values):
    """Values of which infinities stay infinite: LiteRT makes the largest float of such constants.

    What is above 3e38 becomes infinite.
    """
    return values * tf.where(tf.abs(values) < 3e38, 1.0, 2.0)


# --- Checks -----------------------------------------------------------------------------------


def make_decisions(request, shape, is_stack, is_logits):
    """`Decisions` on outputs of `shape` `(batch, ..., classes)`, or a ValueError."""
    _check_is_of_classes(request)
    rank, columns, multi_label = len(shape), shape[-1], request.multi_label
    calibration, rule, conformal = request.calibration, request.rule, request.conformal
    if rank < 2:
        raise ValueError(
            "Argument `model` must return predictions of shape (batch, ..., classes). "
            f"Received: outputs of shape {tuple(shape)}"
        )
    _check_rule(rule, columns, is_stack)
    check_detector_of(rule, request.detector)
    if getattr(conformal, "keys", None) is not None:
        raise ValueError(
            "Argument `conformal` must not have thresholds for each group, which an exported model "
            f"does not know. Received: keys={shown(conformal.keys)}"
        )
    if getattr(conformal, "weight_limits", None) is not None:
        raise ValueError(
            "Argument `conformal` must not need weights of examples, which an exported model does "
            "not know. One weighted for a label shift needs none. Received: weight_limits of "
            f"{len(conformal.weight_limits)} thresholds"
        )
    known = {"rule": rule, "conformal": conformal, "calibration": calibration}
    for name, fitted in known.items():
        if fitted is not None:
            _check_kind(name, fitted, rank, columns, multi_label)
    if calibration is not None and calibration.from_logits and not is_logits:
        raise ValueError(
            "Argument `calibration` must be fitted to probabilities, which the model returns. "
            f"Received: one fitted to logits, {shown(calibration)}"
        )
    # What they are given are probabilities, whatever they were fitted to.
    rule, conformal = (_with(fitted, from_logits=False) for fitted in (rule, conformal))
    rule = _with(rule, threshold=None if rule is None else _lenient(rule))
    if calibration is not None and calibration.rank is None:
        calibration = _with(calibration, rank=rank)
    return Decisions(is_logits, multi_label, calibration, rule, conformal)


def _check_is_of_classes(request):
    kinds = {"rule": (request.rule, RegressionRule, "RejectionRule")}
    kinds["conformal"] = (request.conformal, ConformalRegressor, "ConformalPredictor")
    for name, (fitted, of_numbers, of_classes) in kinds.items():
        if isinstance(fitted, of_numbers):
            raise ValueError(
                f"Argument `{name}` must be a {of_classes}: the model is read as a classifier; if "
                "it is a regression, leave out `from_logits` and `multi_label` and pass its "
                f"`family`. Received: a {of_numbers.__name__}, of numbers"
            )
    if request.level is not None:
        raise ValueError(
            "Argument `level` must be left out for a classifier, whose predictions have no "
            f"intervals. Received: level={shown(request.level)}"
        )


def _with(fitted, **changes):
    if fitted is None:
        return None
    return type(fitted).from_config({**fitted.get_config(), **changes})


def _lenient(rule):
    """Thresholds that a score passes which equals them in Python, however it is rounded here.

    The example that a threshold was fitted to has just this score, and would be lost half the time.
    """
    threshold = np.asarray(rule.threshold, "float64")
    slack = ROUNDING * np.maximum(1, np.abs(np.nan_to_num(threshold, posinf=0, neginf=0)))
    return (threshold - slack if rule.grows_with_trust else threshold + slack).tolist()


def _check_kind(name, fitted, rank, columns, multi_label):
    needed = ("transform", "get_config", "from_config", "from_logits", "rank", "multi_label")
    if not all(hasattr(fitted, attribute) for attribute in needed):
        raise ValueError(
            f"Argument `{name}` must be a fitted object of `tfuq.selective`. "
            f"Received: {name}={shown(fitted)}"
        )
    fits = fitted.rank in (None, rank) or (fitted.rank == 1 and rank == 2 and columns == 1)
    if not fits or fitted.multi_label != multi_label:
        raise ValueError(
            f"Argument `{name}` must be fitted to predictions of {rank} axes with "
            f"multi_label={multi_label}, as the model's are. Received: one of {fitted.rank} axes "
            f"with multi_label={fitted.multi_label}"
        )


def _check_rule(rule, columns, is_stack):
    if rule is None:
        return
    if rule.score in OF_STACKS and not is_stack:
        raise ValueError(
            f"Argument `rule` must be fitted to a score of single predictions: {shown(rule.score)} "
            "is a score of several samples, and this model gives one; export it with "
            "predictive='fixed_samples' or as an ensemble. Received: a rule with "
            f"score={shown(rule.score)}"
        )
    if rule.by == "group":
        raise ValueError(
            "Argument `rule` must not have a threshold for each group, which an exported model "
            "does not know. Received: by='group'"
        )
    if rule.by == "label" and len(rule.keys) != columns:
        raise ValueError(
            f"Argument `rule` must know all {columns} labels of the model. "
            f"Received: keys={shown(rule.keys)}"
        )
    if rule.by == "class" and max(rule.keys) >= max(columns, 2):
        raise ValueError(
            f"Argument `rule` must know all {columns} classes of the model. "
            f"Received: keys={shown(rule.keys)}"
        )
