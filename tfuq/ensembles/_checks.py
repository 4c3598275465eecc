"""Checks of an ensemble's members and arguments."""

import functools

import keras

from tfuq._arguments import shown
from tfuq._models.outputs import check_same_shapes
from tfuq.metrics import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    selective_accuracy,
)

METRICS = {
    "nll": negative_log_likelihood,
    "accuracy": functools.partial(selective_accuracy, threshold=0.0),
    "brier": brier_score,
    "ece": expected_calibration_error,
}


def check_function(name, function):
    if not callable(function) or isinstance(function, keras.Model):
        raise ValueError(
            f"Argument `{name}` must be a function that returns a new Keras model. "
            f"Received: {name}={shown(function)}"
        )


def check_members(members, name):
    """Raises ValueError unless `members` are different Keras models with outputs of one shape."""
    wrong = [member for member in members if not isinstance(member, keras.Model)]
    if wrong or not members:
        raise ValueError(
            f"Argument `{name}` must give Keras models. Received: {shown(wrong[0])}"
            if wrong
            else f"Argument `{name}` must give at least one Keras model. Received: none"
        )
    if len({id(member) for member in members}) < len(members):
        raise ValueError(
            f"Argument `{name}` must give a model of its own for each member. "
            "Received: the same model twice"
        )
    check_same_shapes([_output_shapes(member) for member in members], name)


def _output_shapes(model):
    """Shapes of all outputs, without the batch; None if the model does not know them."""
    outputs = getattr(model, "outputs", None)
    return None if outputs is None else [tuple(output.shape) for output in outputs]


def check_built(members, purpose):
    for number, member in enumerate(members):
        if not member.built:
            raise ValueError(
                f"Every member must be built to {purpose}: give the model an input shape, or call "
                f"it once. Received: member {number} without weights, {member}"
            )


def checked_metrics(metrics):
    metrics = METRICS if metrics is None else metrics
    if not isinstance(metrics, dict) or not metrics or not all(map(callable, metrics.values())):
        raise ValueError(
            f"Argument `metrics` must be a dict of functions. Received: metrics={shown(metrics)}"
        )
    return metrics
