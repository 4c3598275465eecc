"""Deferral: what a model and an expert achieve together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfuq._arguments import ArrayLike, told
from tfuq._files.tables import markdown_table
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.selective import _experts, _number_experts
from tfuq.selective._deferral_arguments import (
    acceptance,
    check_rule,
    doubt_of,
    is_number,
    read_stages,
    read_thresholds,
)
from tfuq.selective._void import void_weight

_ROUNDING = 1e-12  # costs that are equal in exact arithmetic are equal here


class DeferralPoint(NamedTuple):
    """Accuracy and cost at one threshold, if an expert decides what the model refuses.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> tfuq.selective.simulate_deferral(0.7, probs, labels, expert=0.9).own.team_accuracy
    0.9666666666666667

    See also: `tfuq.selective.simulate_deferral`.
    """

    threshold: float
    """Where the score is cut, in its own units; None if there is no single threshold."""
    coverage: float
    """Fraction that the model answers."""
    model_accuracy: float
    """Of what it answers; NaN if that is nothing."""
    expert_accuracy: float
    """Expected of the rest; NaN if that is nothing."""
    team_accuracy: float
    """Expected of all."""
    model_cost: float
    """Mean cost of an answer of the model; NaN if there is none."""
    expert_cost: float
    """Expected cost of a referral: rejection, review and the expert's errors; NaN if none."""
    team_cost: float
    """Expected cost of an example, whoever answers it."""


@told
class Deferral(NamedTuple):
    """Model, expert and both over the threshold: arrays `(thresholds,)`, and four points.

    The arrays are as in `DeferralPoint`.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> team = tfuq.selective.simulate_deferral(0.7, probs, labels, expert=0.9)
    >>> team.coverage.round(4)
    array([0.    , 0.3333, 0.6667, 1.    ])
    >>> team.team_accuracy.round(4)
    array([0.9   , 0.9333, 0.9667, 0.6667])

    See also: `tfuq.selective.simulate_deferral`.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    model_accuracy: np.ndarray
    expert_accuracy: np.ndarray
    team_accuracy: np.ndarray
    model_cost: np.ndarray
    expert_cost: np.ndarray
    team_cost: np.ndarray
    own: DeferralPoint | None
    """At the rule's own threshold; None without a rule."""
    best: DeferralPoint
    """Where the team costs least, among the thresholds; of several, with the largest coverage."""
    model_alone: DeferralPoint
    """All answered by the model."""
    expert_alone: DeferralPoint
    """All referred to the expert."""

    def to_markdown(self) -> str:
        """A table of the four points, a row each."""
        points = {
            "model alone": self.model_alone,
            "expert alone": self.expert_alone,
            "the rule": self.own,
            "least cost": self.best,
        }
        names = "threshold", "coverage", "model", "expert", "team", "cost"
        rows = [_row(name, point) for name, point in points.items() if point is not None]
        return markdown_table(["", *names], rows)


class CascadeStage(NamedTuple):
    """One stage of a cascade: a model, or the expert at its end.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> tfuq.selective.cascade([(probs, 0.7)], labels, expert=0.9).stages[0].accuracy
    1.0

    See also: `tfuq.selective.cascade`.
    """

    reached: float
    """Fraction of all examples that come to this stage."""
    answered: float
    """Fraction of all examples that it answers."""
    accuracy: float
    """Of what it answers, expected if it is the expert; NaN if that is nothing."""
    cost: float
    """What it adds to the cost of an example, on average over all."""


@told
class Cascade(NamedTuple):
    """Accuracy and cost of a cascade: each stage answers what the stages before it refuse.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> found = tfuq.selective.cascade([(probs, 0.85), (probs, 0.7)], labels, expert=1.0)
    >>> [round(stage.answered, 4) for stage in found.stages], found.accuracy
    ([0.3333, 0.3333, 0.3333], 1.0)

    See also: `tfuq.selective.cascade`.
    """

    stages: tuple
    """A `CascadeStage` for each model in order, and the last one for the expert."""
    coverage: float
    """Fraction that the models answer."""
    accuracy: float
    """Expected of all."""
    cost: float
    """Expected of an example."""

    def to_markdown(self) -> str:
        """A table with a row for each stage, and one for all."""
        names = [f"model {i + 1}" for i in range(len(self.stages) - 1)] + ["expert"]
        whole = CascadeStage(1.0, 1.0, self.accuracy, self.cost)
        rows = [
            [name, *map(_percent, stage[:3]), f"{stage.cost:.4g}"]
            for name, stage in zip([*names, "all"], [*self.stages, whole], strict=True)
        ]
        return markdown_table(["", "reached", "answered", "accuracy", "cost"], rows)


def _row(name, point):
    threshold = "" if point.threshold is None else f"{point.threshold:.4g}"
    shares = point.coverage, point.model_accuracy, point.expert_accuracy, point.team_accuracy
    return [name, threshold, *map(_percent, shares), f"{point.team_cost:.4g}"]


def _percent(share):
    return "" if np.isnan(share) else f"{share:.1%}".replace("%", " %")


def simulate_deferral(
    rule: Any,
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike,
    *,
    expert: Any,
    costs: Mapping[str, Any] | None = None,
    thresholds: Sequence[float] | None = None,
    score: Any = None,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
    tolerance: float | None = None,
) -> Deferral:
    """Accuracy and cost of model, expert and both together, over the threshold of rejection.

    The model answers what the rule accepts, the expert the rest. For a regression an answer is
    right if it is within `tolerance` of the label. Nothing is drawn at random: with an accuracy or
    a confusion matrix the figures are expectations over such an expert.

    Formula:
        team_accuracy = coverage model_accuracy + (1 - coverage) expert_accuracy
        team_cost = mean_i (C[y_i, answer_i] if accepted_i, else
                            rejection + review + E[C[y_i, expert's answer]])
    with the cost C of the argument `costs["error"]`, of a function that cost(answer_i, y_i).

    Args:
        rule: A `RejectionRule`; or a number, the threshold of `score`; or None for no rule of one's
            own.
        probs: Predictions, `(n, ..., classes)`; binary `(n,)` or `(n, ..., 1)`, for class 1;
            multi-label `(n, ..., labels)`; or a stack `(samples, n, ..., classes)`. For a
            regression the result of `predict_uncertainty`.
        labels: Labels, sparse `(n, ...)` or one-hot; numbers `(n, ..., units)`, or `(n, ...)` of
            one.
        expert: A number in [0, 1], the accuracy on any example; or a confusion matrix `(classes,
            classes)`, rows for the true class, of counts or probabilities; or the expert's answers
            themselves, classes `(n, ...)` of the shape of sparse labels. (What has both shapes is
            taken for answers.) For a regression an accuracy, or answers, numbers of the shape of
            the labels.
        costs: A dict of `"error"`, what a wrong answer costs (default 1), or a matrix `(classes,
            classes)` of the cost of each answer (column) for each true class (row), or, of a
            regression, a function `cost(answers, y)` of arrays `(k,)`; `"rejection"` and
            `"review"`, both paid for each referral (default 0).
        thresholds: Thresholds to look at, in the units of the score; None for every one that
            makes a difference, from none accepted to all.
        score: Where `rule` has no score of its own: a name (default `"confidence"`; of a regression
            `"std"`, and those of `RegressionRule`), or an array that grows with uncertainty, as for
            `risk_coverage_curve`.
        groups: For a rule by group, handed to `rule.accept`; only `own` depends on it.
        sample_weight: Weights `(n,)`, or with more of the leading axes.
        ignore_class: Label of what is left out, or None.
        from_logits: Whether `probs` are logits.
        multi_label: Whether each entry of `probs` is a binary prediction of its own.
        tolerance: For a regression, how far from its label a number is wrong; by default the
            rule's.

    Returns:
        A `Deferral`. Its best threshold is chosen on the data of its figures, and looks too good if
        these are few.

    Raises:
        ValueError: If arrays do not fit together or hold what is no prediction; if the expert or
            the costs are none of those said; if a cost matrix or function comes with an accuracy,
            which does not say which wrong answers the expert gives; if an option does not go with
            the rule.

    Example:

    >>> import tfuq
    >>> probs, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    >>> costs = {"error": 10, "review": 2}
    >>> team = tfuq.selective.simulate_deferral(0.85, probs, labels, expert=0.9, costs=costs)
    >>> print(team.to_markdown())
    |  | threshold | coverage | model | expert | team | cost |
    | --- | --: | --: | --: | --: | --: | --: |
    | model alone | 0.6 | 100.0 % | 66.7 % |  | 66.7 % | 3.333 |
    | expert alone | inf | 0.0 % |  | 90.0 % | 90.0 % | 3 |
    | the rule | 0.85 | 33.3 % | 100.0 % | 90.0 % | 93.3 % | 2 |
    | least cost | 0.8 | 66.7 % | 100.0 % | 90.0 % | 96.7 % | 1 |

    See also: `tfuq.selective.cascade`, `tfuq.selective.expected_cost`.
    """
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    check_rule(rule, score, groups, flags)
    experts = _kind_of(probs)
    sample_weight = void_weight(probs, labels, sample_weight, ignore_class, multi_label)
    labelled = experts.labelled_answers(probs, labels, sample_weight, [rule], tolerance, **flags)
    doubt = doubt_of(rule, probs, labelled, score)
    used = labelled.weight > 0
    costs = experts.read_costs(costs, labelled)
    sums = _sums(experts, labelled, expert, costs)[used]
    keys, level = np.unique(doubt.key[used], return_inverse=True)
    table = np.stack([np.bincount(level, column, len(keys)) for column in sums.T], axis=-1)
    count, cuts = read_thresholds(thresholds, doubt, used, keys)
    nothing = np.zeros((1, table.shape[1]))
    accepted = np.concatenate([nothing, np.cumsum(table, axis=0)])
    referred = np.concatenate([np.cumsum(table[::-1], axis=0)[::-1], nothing])
    fields = _fields(accepted[count], referred[count])
    every = DeferralPoint(cuts, *fields)
    ends = _fields(accepted[[-1, 0]], referred[[-1, 0]])
    outside = doubt.levels(used)[1][-1], -doubt.sign * np.inf
    alone = DeferralPoint(np.array(outside), *ends)
    own = _own(rule, probs, labelled, doubt, groups, sums, used)
    return Deferral(*every, own, _at(every, _cheapest(every)), _at(alone, 0), _at(alone, 1))


def cascade(
    stages: Sequence[tuple[ArrayLike, Any]],
    labels: ArrayLike,
    *,
    expert: Any,
    costs: Mapping[str, Any] | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_class: int | str | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
    tolerance: float | None = None,
) -> Cascade:
    """Accuracy, coverage and cost of models that follow each other, with an expert at the end.

    Each model answers what its rule accepts; what it rejects goes to the next, a second opinion,
    and what the last one rejects to the expert. With one model this is `simulate_deferral` at one
    threshold.

    Args:
        stages: A sequence of pairs `(probs, rule)`, in order, with the predictions of a model for
            all examples (what does not reach it may be NaN), and a `RejectionRule`, of classes a
            number (the least confidence that is accepted), or an array of True and False, one for
            each label.
            Predictions are as for `simulate_deferral`.
        labels: Labels.
        expert: An accuracy, a confusion matrix or answers, as for `simulate_deferral`.
        costs: A dict as for `simulate_deferral`; with `"model"`, what asking a model costs for each
            example that comes to it: a number, or one for each stage (default 0). `"rejection"` and
            `"review"` are paid for what comes to the expert.
        sample_weight: Weights `(n,)`, or with more of the leading axes.
        ignore_class: Label of what is left out, or None.
        from_logits: Whether all predictions are logits.
        multi_label: Whether each entry of the predictions is a binary prediction of its own.
        tolerance: As for `simulate_deferral`; by default that of the rules, if they have one.

    Returns:
        A `Cascade`.

    Raises:
        ValueError: As `simulate_deferral`; if there is no stage, or a stage is no such pair.

    Example:

    >>> import tfuq
    >>> labels = [0, 1, 1, 0]
    >>> fast = [[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.5, 0.5]]
    >>> slow = [[0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4]]
    >>> costs = {"error": 10, "review": 5, "model": [0.1, 1]}
    >>> found = tfuq.selective.cascade([(fast, 0.8), (slow, 0.7)], labels, expert=0.9, costs=costs)
    >>> print(found.to_markdown())
    |  | reached | answered | accuracy | cost |
    | --- | --: | --: | --: | --: |
    | model 1 | 100.0 % | 25.0 % | 100.0 % | 0.1 |
    | model 2 | 75.0 % | 50.0 % | 100.0 % | 0.75 |
    | expert | 25.0 % | 25.0 % | 90.0 % | 1.5 |
    | all | 100.0 % | 100.0 % | 97.5 % | 2.35 |

    See also: `tfuq.selective.simulate_deferral`.
    """
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    stages, costs, prices = read_stages(stages, costs)
    experts, rules = _kind_of(stages[0][0]), [rule for _, rule in stages]

    def labelled_of(probs, weight):
        return experts.labelled_answers(probs, labels, weight, rules, tolerance, **flags)

    first, flag = stages[0][0], multi_label
    sample_weight = void_weight(first, labels, sample_weight, ignore_class, flag)
    first = labelled_of(first, sample_weight)
    left, total = first.weight, first.weight.sum()
    costs, rows, right = experts.read_costs(costs, first), [], 0.0
    for (probs, rule), price in zip(stages, prices, strict=True):
        reached = left.sum()
        if not reached:
            rows.append(CascadeStage(0.0, 0.0, np.nan, 0.0))
            continue
        check_rule(rule, None, None, flags)
        labelled = labelled_of(probs, left.reshape(first.shape))
        experts.check_alike(labelled, first)
        answered = left * acceptance(rule, probs, labelled)
        correct, paid = experts.graded_model(labelled, costs)
        rows.append(_stage(reached, answered, correct, paid, price * reached, total))
        right, left = right + answered @ correct, left - answered
    correct, paid = experts.graded_expert(first, expert, costs)
    rows.append(_stage(left.sum(), left, correct, paid + costs["referral"], 0.0, total))
    accuracy = float((right + left @ correct) / total)
    coverage = float(1 - left.sum() / total) if left.any() else 1.0
    return Cascade(tuple(rows), coverage, accuracy, sum(row.cost for row in rows))


def _kind_of(predictions):
    """What grades answers: numbers or classes."""
    return _number_experts if isinstance(predictions, RegressionUncertainty) else _experts


def _sums(experts, labelled, expert, costs):
    """Columns of each entry: weight; right and cost of the model's answer; of a referral."""
    model = experts.graded_model(labelled, costs)
    right, paid = experts.graded_expert(labelled, expert, costs)
    columns = [np.ones_like(labelled.weight), *model, right, paid + costs["referral"]]
    return labelled.weight[:, None] * np.stack(columns, axis=-1)


def _fields(accepted, referred):
    """All of a `DeferralPoint` but the threshold, from sums `(..., 5)` of both parts."""
    total = accepted[..., 0] + referred[..., 0]

    def mean(sums, weight):
        return np.divide(sums, weight, out=np.full(sums.shape, np.nan), where=weight > 0)

    return (
        accepted[..., 0] / total,
        mean(accepted[..., 1], accepted[..., 0]),
        mean(referred[..., 3], referred[..., 0]),
        (accepted[..., 1] + referred[..., 3]) / total,
        mean(accepted[..., 2], accepted[..., 0]),
        mean(referred[..., 4], referred[..., 0]),
        (accepted[..., 2] + referred[..., 4]) / total,
    )


def _at(every, index):
    return DeferralPoint(*(float(field[index]) for field in every))


def _cheapest(every):
    cost = every.team_cost
    equal = cost <= cost.min() * (1 + _ROUNDING)
    return np.argmax(np.where(equal, every.coverage, -1))


def _own(rule, probs, labelled, doubt, groups, sums, used):
    """The `DeferralPoint` at the rule's own threshold."""
    if rule is None:
        return None
    if hasattr(rule, "accept"):
        accepted = acceptance(rule, probs, labelled, groups)[used] > 0
        threshold = rule.threshold
    else:
        accepted = doubt.key[used] <= np.asarray(doubt.sign * rule, doubt.key.dtype)
        threshold = rule
    parts = sums[accepted].sum(axis=0), sums[~accepted].sum(axis=0)
    threshold = float(threshold) if is_number(threshold) else None
    return DeferralPoint(threshold, *map(float, _fields(*parts)))


def _stage(reached, answered, correct, paid, price, total):
    share = answered.sum()
    accuracy = float(answered @ correct / share) if share else np.nan
    cost = float((answered @ paid + price) / total)
    return CascadeStage(float(reached / total), float(share / total), accuracy, cost)
