"""Predicted numbers with labels, and answers of a model and an expert to them, for deferral."""

from typing import NamedTuple

import numpy as np

from tfuq._arguments import check_choice, check_fraction, check_positive, shown, to_float64
from tfuq._predictions.labelled import Doubt, spread_over, weights_over
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq.selective._experts import COSTS, check_cost_names
from tfuq.selective._number_reading import check_varies
from tfuq.selective.regression_rule import SCORES, RegressionRule


class LabelledNumbers(NamedTuple):
    """Numbers with their labels, an entry each, and the shape `(n, ...)` that they had."""

    found: RegressionUncertainty
    mean: np.ndarray  # (entries,)
    y: np.ndarray
    weight: np.ndarray
    shape: tuple
    tolerance: float

    usual_score = "std"

    def spread(self, name, values):
        """The argument `name`, with one or more leading axes of the entries, for each of them."""
        return spread_over(name, values, self.shape, self.weight)

    def doubt(self, score):
        """`Doubt` by the argument `score`, a name or an array that grows with uncertainty."""
        if not isinstance(score, str):
            values = self.spread("score", score)
            return Doubt(values, values, 1)
        check_choice("score", score, SCORES)
        found = self.found
        kind = {"family": found.family, "units": found.units, "rank": found.params.ndim - 1}
        rule = RegressionRule(score, **kind)
        values = self.spread("probs", rule.score_of(found))
        check_varies(values[self.weight > 0], rule.score)
        return Doubt(values, values.astype("float32"), 1)


def labelled_answers(found, y, sample_weight, rules, tolerance, **flags):
    """`LabelledNumbers` of the arguments, or a ValueError that says what is wrong."""
    for name, value in flags.items():
        if value:
            raise ValueError(
                f"Argument `{name}` must be False for numbers, which are not classes. Received: "
                f"{name}={shown(value)}"
            )
    for rule in rules:
        if hasattr(rule, "accept") and not isinstance(rule, RegressionRule):
            raise ValueError(
                "Argument `rule` must be a RegressionRule for numbers, as `RejectionRule.fit` "
                f"makes of them. Received: rule={shown(rule)}"
            )
    if not isinstance(found, RegressionUncertainty):
        raise ValueError(
            "Argument `probs` must be what `predict_uncertainty` gave of a regression, in all "
            f"stages or in none. Received: probs={shown(found)}"
        )
    labels = found.labels(y, "labels")
    shape = labels.shape[:-1] if found.units == 1 else labels.shape
    weight = weights_over(sample_weight, shape)
    mean, labels = found.mean.ravel(), labels.ravel()
    for name, values in (("labels", labels), ("probs", mean)):
        faulty = ~np.isfinite(values) & (weight > 0)
        if faulty.any():
            raise ValueError(
                f"Argument `{name}` must hold finite numbers. Received: {values[faulty][0]} "
                f"({faulty.sum()} such)"
            )
    return LabelledNumbers(found, mean, labels, weight, shape, _tolerance(tolerance, rules))


def _tolerance(tolerance, rules):
    if tolerance is None:
        said = {rule.tolerance for rule in rules if isinstance(rule, RegressionRule)} - {None}
        if len(said) != 1:
            raise ValueError(
                "Argument `tolerance` is required: how far from its label a number is wrong, in "
                f"its unit. Received: tolerance=None with {sorted(said) or 'none'} of the rules"
            )
        return said.pop()
    check_positive("tolerance", tolerance)
    return float(tolerance)


def check_alike(labelled, first):
    """Raises ValueError unless two stages say the same numbers."""
    if labelled.shape != first.shape:
        raise ValueError(
            "Argument `stages` must have predictions of the same numbers for the same examples. "
            f"Received: {first.shape}, then {labelled.shape}"
        )


def read_costs(costs, labelled):
    """What an answer costs, a number or a function, and a referral before it is answered."""
    costs = check_cost_names(costs)
    error = costs.pop("error", COSTS["error"])
    costs = {name: to_float64("costs", value) for name, value in (COSTS | costs).items()}
    if not callable(error):
        costs["error"] = error = to_float64("costs", error)
    for name, value in costs.items():
        if value.ndim or not np.isfinite(value) or value < 0:
            also = " or a function" if name == "error" else ""
            raise ValueError(
                f"Argument `costs` must have for {name!r} a number{also}, finite and at least 0. "
                f"Received: costs[{name!r}]={value}"
            )
    return {"error": error, "referral": float(costs["rejection"] + costs["review"])}


def graded_model(labelled, costs):
    """Whether each number of the model is within the tolerance, and what it costs."""
    return _graded(labelled, labelled.mean, costs)


def graded_expert(labelled, expert, costs):
    """Probability that the expert is right on each entry, and the expected cost of the answer."""
    expert = to_float64("expert", expert)
    if expert.ndim == 0:
        check_fraction("expert", float(expert))
        if callable(costs["error"]):
            raise ValueError(
                "Argument `expert` must be answers if costs['error'] is a function: an accuracy "
                f"does not tell how far off the expert is. Received: {expert}"
            )
        everywhere = np.ones(len(labelled.y))
        return expert * everywhere, (1 - expert) * costs["error"] * everywhere
    if expert.shape not in (labelled.shape, (*labelled.shape, 1)):
        raise ValueError(
            f"Argument `expert` must be an accuracy, or answers {labelled.shape}, numbers. "
            f"Received: expert of shape {expert.shape}"
        )
    faulty = ~np.isfinite(expert.ravel()) & (labelled.weight > 0)
    if faulty.any():
        raise ValueError(
            "Argument `expert` must hold finite numbers. "
            f"Received: {expert.ravel()[faulty][0]} ({faulty.sum()} such)"
        )
    return _graded(labelled, expert.ravel(), costs)


def _graded(labelled, answers, costs):
    used, y = labelled.weight > 0, labelled.y
    with np.errstate(invalid="ignore"):
        right = np.abs(answers - y) <= labelled.tolerance
    if not callable(costs["error"]):
        return right.astype(float), np.where(right, 0.0, costs["error"])
    paid = to_float64("costs", costs["error"](answers[used], y[used]))
    if paid.shape != y[used].shape or not np.all(np.isfinite(paid) & (paid >= 0)):
        raise ValueError(
            f"Argument `costs` must have for 'error' a function that returns {used.sum()} finite "
            f"numbers of at least 0. Received: {shown(paid)}"
        )
    every = np.zeros(len(y))
    every[used] = paid
    return right.astype(float), every
