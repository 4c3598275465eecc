"""Correctness and cost of the answers of a model and of an expert."""

import numpy as np

from tfuq._arguments import check_fraction, shown, to_float64
from tfuq._predictions.labelled import labelled_predictions

COSTS = {"error": 1.0, "rejection": 0.0, "review": 0.0}


def labelled_answers(probs, labels, sample_weight, rules, tolerance, **flags):
    """`LabelledPredictions` of the arguments."""
    del rules  # which say themselves what they do not take
    if tolerance is not None:
        raise ValueError(
            "Argument `tolerance` must be None for classes, which are right or wrong. "
            f"Received: tolerance={shown(tolerance)}"
        )
    return labelled_predictions(probs, labels, sample_weight, **flags)


def check_alike(labelled, first):
    """Raises ValueError unless two stages tell the same classes apart."""
    classes = [j.examples.scores.shape[-1] for j in (labelled, first)]
    if classes[0] != classes[1] or labelled.shape != first.shape:
        raise ValueError(
            "Argument `stages` must have predictions of the same classes for the same examples. "
            f"Received: {classes[1]} classes for {first.shape}, then {classes[0]} for "
            f"{labelled.shape}"
        )


def graded_model(labelled, costs):
    """Whether each class of the largest probability is right, and what it costs."""
    answers = np.asarray(labelled.examples.probs()).argmax(axis=-1)
    return _graded_answers(labelled, answers, costs)


def _graded_answers(labelled, answers, costs):
    """Whether each answer is right, and what it costs."""
    labels = np.asarray(labelled.examples.labels)
    return (answers == labels).astype(float), costs["error"][labels, answers]


def graded_expert(labelled, expert, costs):
    """Probability that the expert is right on each entry, and the expected cost of the answer."""
    expert = to_float64("expert", expert)
    labels, classes = np.asarray(labelled.examples.labels), labelled.examples.scores.shape[-1]
    if expert.ndim == 0:
        check_fraction("expert", float(expert))
        if costs["is_matrix"]:
            raise ValueError(
                "Argument `expert` must be a confusion matrix or answers if costs['error'] is a "
                "matrix: an accuracy does not tell which errors the expert makes. Received: "
                f"{expert}"
            )
        wrong = costs["error"][0, 1]  # the same for any wrong answer
        everywhere = np.ones(len(labels))
        return expert * everywhere, (1 - expert) * wrong * everywhere
    if expert.shape in (labelled.shape, (*labelled.shape, 1)):
        return _graded_answers(labelled, _read_answers(expert, labelled, classes), costs)
    if expert.shape == (classes, classes):
        chances = _read_confusion(expert, labels[labelled.weight > 0])
        return np.diag(chances)[labels], (chances * costs["error"]).sum(axis=1)[labels]
    raise ValueError(
        f"Argument `expert` must be an accuracy, a confusion matrix {(classes, classes)} or "
        f"answers {labelled.shape}. Received: expert of shape {expert.shape}"
    )


def _read_answers(expert, labelled, classes):
    answers = expert.ravel()
    used = labelled.weight > 0
    fine = (answers >= 0) & (answers < classes) & (answers == np.floor(answers))
    if not np.all(fine[used]):
        raise ValueError(
            f"Argument `expert` must hold only classes 0 to {classes - 1}. "
            f"Received: expert={answers[used & ~fine][0]} ({(used & ~fine).sum()} such)"
        )
    return np.where(used, answers, 0).astype(int)


def _read_confusion(matrix, labels):
    """Probabilities of the expert's answers (columns) for each true class (rows)."""
    if not np.all(np.isfinite(matrix) & (matrix >= 0)):
        raise ValueError(
            f"Argument `expert` must hold finite numbers of at least 0. Received: expert={matrix}"
        )
    rows = matrix.sum(axis=1, keepdims=True)
    missing = np.setdiff1d(labels, np.flatnonzero(rows[:, 0] > 0))
    if missing.size:
        raise ValueError(
            "Argument `expert` must say how the expert answers each class that occurs. "
            f"Received: a confusion matrix with no answer in row {missing[0]}"
        )
    return np.divide(matrix, rows, out=np.zeros_like(matrix), where=rows > 0)


def check_cost_names(costs):
    """The argument `costs`, a dict that is the caller's own no more."""
    costs = {} if costs is None else costs
    if not isinstance(costs, dict) or not costs.keys() <= COSTS.keys():
        raise ValueError(
            f"Argument `costs` must be a dict with some of the keys {', '.join(COSTS)}. "
            f"Received: costs={shown(costs)}"
        )
    return dict(costs)


def read_costs(costs, labelled):
    """The cost matrix, whether it was one, and what a referral costs before it is answered."""
    costs = check_cost_names(costs)
    costs = {name: to_float64("costs", value) for name, value in (COSTS | costs).items()}
    classes = labelled.examples.scores.shape[-1]
    for name, value in costs.items():
        is_matrix = name == "error" and value.shape == (classes, classes)
        if (value.ndim and not is_matrix) or not np.all(np.isfinite(value) & (value >= 0)):
            kind = f"a number or a {(classes, classes)} matrix" if name == "error" else "a number"
            raise ValueError(
                f"Argument `costs` must have for {name!r} {kind}, finite and at least 0. "
                f"Received: costs[{name!r}]={value}"
            )
    error = costs["error"]
    matrix = error if error.ndim else error * (1 - np.eye(classes))
    referral = float(costs["rejection"] + costs["review"])
    return {"error": matrix, "is_matrix": error.ndim > 0, "referral": referral}
