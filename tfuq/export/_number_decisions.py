"""Answers of an exported regression, as tensors: from parameters of numbers to decisions."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._predictions.family import Family
from tfuq._predictions.numbers import mixture_quantile, moments
from tfuq._predictions.scores import GIVEN
from tfuq.export._decisions import unbounded
from tfuq.predictive.detector_marks import check_detector_of
from tfuq.selective import ConformalRegressor, RegressionRule
from tfuq.selective.conformal_scores import ROUNDING
from tfuq.selective.detector_scores import given_scores


class NumberDecisions(NamedTuple):
    """What is made of the parameters that networks return."""

    family: Family
    draws: int  # networks
    level: float | None  # of the central interval; None without one
    rule: RegressionRule | None
    conformal: ConformalRegressor | None

    def __call__(self, outputs, is_stack):
        """Dict of tensors `(batch, ..., units)`, of parameters with or without an axis of samples.

        `is_stack` says which. Pixels and steps are rows here: runtimes know few axes.
        """
        axes = tf.shape(outputs)[int(is_stack) : -1]
        stack = tf.reshape(outputs, [self.draws, -1, outputs.shape[-1]])
        said = self._numbers(stack, is_stack) | self._decided(stack)
        # Some runtimes take the smaller of NaN and a number for the number.
        known = tf.math.is_finite(said["mean"])
        for name in said.keys() - {"accept"}:
            said[name] = tf.where(known, said[name], float("nan"))
        if self.conformal is not None:  # the whole line, of what is unknown
            given = said["mean"] if self.conformal.family is None else self._as_fitted(stack)
            ends = self.conformal.transform(given)
            said |= {name: unbounded(ends[name]) for name in ("lower", "upper")}
        shape = tf.concat([axes, [self.family.units(outputs.shape[-1])]], axis=0)
        return {name: tf.reshape(value, shape) for name, value in said.items()}

    def _numbers(self, stack, is_stack):
        mean, aleatoric, epistemic = moments(self.family, stack)
        is_spread = is_stack or self.family.has_epistemic
        said = {"mean": mean}
        if is_spread or self.family.has_noise:
            said["std"] = tf.sqrt(aleatoric + epistemic)
        if self.family.has_noise:
            said["aleatoric_std"] = tf.sqrt(aleatoric)
        if is_spread:
            said["epistemic_std"] = tf.sqrt(epistemic)
        if self.level is not None:
            tail = (1 - self.level) / 2
            for name, level in (("lower", tail), ("upper", 1 - tail)):
                said[name] = mixture_quantile(self.family, stack, level)
        return said

    def _decided(self, stack):
        if self.rule is None or self.needs_score:
            return {}
        decided = self.rule.transform(self._as_fitted(stack))
        return {name: decided[name] for name in ("score", "accept")}

    @property
    def needs_score(self):
        return self.rule is not None and self.rule.score == GIVEN

    def by_score(self, said, score):
        """What a rule of a detector's score says of numbers with it, `(batch, ..., units)`."""
        score = given_scores(score, said["mean"])
        known = tf.math.is_finite(said["mean"])
        return {"score": score, "accept": known & (score <= np.float32(self.rule.threshold))}

    def _as_fitted(self, stack):
        return stack if self.draws > 1 else stack[0]


# --- Checks -----------------------------------------------------------------------------------


def make_number_decisions(request, shape):
    """`NumberDecisions` on parameters of `shape` `(batch, ..., parameters)`, of each network.

    Raises:
        ValueError: If what goes with the model is not fitted to such numbers.
    """
    family, rule, conformal = request.family, request.rule, request.conformal
    draws = sum(request.draws_of(member) or 1 for member in request.members)
    if len(shape) < 2:
        raise ValueError(
            "Argument `model` must return numbers of shape (batch, ..., parameters). "
            f"Received: outputs of shape {tuple(shape)}"
        )
    if request.calibration is not None:
        raise ValueError(
            "Argument `calibration` must be None for a regression: it calibrates probabilities of "
            "classes. To calibrate intervals pass a ConformalRegressor as `conformal`. Received: "
            f"calibration={shown(request.calibration)}"
        )
    units = family.units(shape[-1])
    if rule is not None:
        _check_rule(rule, request, len(shape), units, draws)
        config = {**rule.get_config(), "threshold": _lenient(rule), "rank": 2}
        rule = RegressionRule.from_config(config)
    if conformal is not None:
        _check_conformal(conformal, family, len(shape), units, draws)
        taken = {"draws": 1 if conformal.family is None else draws}
        config = {**conformal.get_config(), "rank": 2, "fitted_to": taken}
        conformal = ConformalRegressor.from_config(config)
    return NumberDecisions(family, draws, request.level, rule, conformal)


def _lenient(rule):
    """The threshold that a score passes which equals it in Python, however it is rounded here."""
    return rule.threshold + ROUNDING * abs(rule.threshold)


def _check_rule(rule, request, rank, units, draws):
    family = request.family
    if not isinstance(rule, RegressionRule):
        raise ValueError(
            f"Argument `rule` must be for numbers: the model predicts those of {shown(family)}. "
            "Fit one with `RejectionRule.fit(predict_uncertainty(model, x), y, tolerance=...)`. "
            f"Received: a {type(rule).__name__}, for classes"
        )
    if rule.by == "group":
        raise ValueError(
            "Argument `rule` must not have a threshold for each group, which an exported model "
            "does not know. Received: by='group'"
        )
    if (rule.family, rule.units, rule.rank) != (family, units, rank):
        raise ValueError(
            f"Argument `rule` must be fitted to {units} numbers of the family {shown(family)} with "
            f"{rank} axes, as the model's are. Received: a rule of {rule.units} numbers of "
            f"{shown(rule.family)} with {rule.rank} axes"
        )
    check_detector_of(rule, request.detector)
    has_spread = draws > 1 or family.has_epistemic
    lacks_noise = rule.score in ("aleatoric_std", "interval_width") and not family.has_noise
    lacks_spread = rule.score == "epistemic_std" and not has_spread
    has_any = family.has_noise or has_spread or rule.score == GIVEN
    if lacks_noise or lacks_spread or not has_any:
        raise ValueError(
            "Argument `rule` must have a score that the model gives: one network has no epistemic "
            "part, and a family without noise has no aleatoric part and no interval. Received: "
            f"score={shown(rule.score)} with the family {shown(family)} and {draws} draws"
        )
    _check_draws("rule", rule, draws)


def _check_conformal(conformal, family, rank, units, draws):
    if not isinstance(conformal, ConformalRegressor):
        raise ValueError(
            "Argument `conformal` must be a ConformalRegressor: the model predicts numbers of "
            f"{shown(family)}. Received: conformal={shown(conformal)}"
        )
    given = (conformal.family, conformal.units, conformal.rank)
    wanted = (family.get_config(), units, rank)
    if given[1:] != wanted[1:] or given[0] not in (None, wanted[0]):
        raise ValueError(
            f"Argument `conformal` must be fitted to {units} numbers of the family "
            f"{shown(family)} with {rank} axes, as the model's are. Received: one of "
            f"{given[1]} numbers of {given[0]} with {given[2]} axes"
        )
    if conformal.family is not None:
        _check_draws("conformal", conformal, draws)


def _check_draws(name, fitted, draws):
    """Raises ValueError if a fit has seen predictions of another number of networks."""
    known = fitted.fitted_to.get("draws")
    if known not in (None, draws):
        raise ValueError(
            f"Argument `{name}` must be fitted to the predictions that are exported: choose "
            f"`num_samples` or `predictive` so that they are of {known} networks, or fit it again. "
            f"Received: one fitted to {known}, with {draws} exported"
        )
