"""Arguments of a report of predicted numbers: predictions, labels and scores of all examples."""

from typing import NamedTuple

import keras
import numpy as np

from tfuq._arguments import check_integer, check_positive, shown
from tfuq._models.numbers import declared_family
from tfuq._predictions.numbers import RegressionUncertainty, numbers_like, warn_of_unit
from tfuq.predictive import uncertainty_with_labels
from tfuq.report._inputs import DRAWS, check_count, numbers_beside, scores_beside
from tfuq.selective import RegressionRule
from tfuq.selective.detector_scores import is_detector, scores_of_batches


class GivenNumbers(NamedTuple):
    """What was given of all examples."""

    found: RegressionUncertainty
    y: np.ndarray
    """Labels, `(n, units)`."""
    beside: np.ndarray | None
    """Scores `(n,)` that were given beside the predictions, larger for the less certain."""
    beside_name: str


def are_numbers(source, output=None, from_logits=None):
    """Whether a source of a report says numbers, not classes."""
    if isinstance(source, keras.Model):
        family = None if from_logits is not None else declared_family(source, output)
        return family is not None and family.has_noise  # a squared error may train classes
    is_pair = isinstance(source, (tuple, list)) and len(source) == 2
    return is_pair and isinstance(source[0], RegressionUncertainty)


def check_classes(**of_numbers):
    """Raises ValueError of an argument that only a report of numbers has."""
    for name, value in of_numbers.items():
        if value is not None:
            raise ValueError(
                f"Argument `{name}` must be None unless `source` is a regression, such as "
                f"`(predict_uncertainty(model, x), y)`. Received: {name}={shown(value)}"
            )


def check_numbers(**of_classes):
    """Raises ValueError of an argument that only a report of classes has."""
    for name, value in of_classes.items():
        if value is not None:
            raise ValueError(
                f"Argument `{name}` must be None for a regression. Received: {name}={shown(value)}"
            )


def check_arguments(rule, quantity, of_classes):
    if rule is not None and not isinstance(rule, RegressionRule):
        raise ValueError(
            "Argument `rule` must be a RegressionRule, as `RejectionRule.fit` makes of a "
            f"regression, or None. Received: rule={shown(rule)}"
        )
    if quantity is not None and (not isinstance(quantity, str) or not quantity.strip()):
        raise ValueError(
            f"Argument `quantity` must be a text or None. Received: quantity={shown(quantity)}"
        )
    for name, value in of_classes.items():
        if value is not None:
            raise ValueError(
                f"Argument `{name}` must be None for numbers, which are not classes. Received: "
                f"{name}={shown(value)}"
            )


def read_tolerance(tolerance, rule):
    if tolerance is None:
        return None if rule is None else rule.tolerance
    check_positive("tolerance", tolerance)
    return float(tolerance)


def given_numbers(source, data, output, batch_size, num_samples, rule, score):
    """`GivenNumbers` of the arguments of a report, or a ValueError that says what is wrong."""
    beside, name = scores_beside(score, rule, source, data)
    if isinstance(source, keras.Model):
        found, y, beside = _predicted(source, data, output, batch_size, num_samples, beside)
    else:
        found, y = source
        for argument, value in (("data", data), ("output", output), ("num_samples", num_samples)):
            if value is not None:
                raise ValueError(
                    f"Argument `{argument}` must be None unless `source` is a Keras model. "
                    f"Received: {argument}={shown(value)}"
                )
    if len(found.shape) != 2 or not found.family.has_noise:
        raise ValueError(
            "Argument `source` must give one distribution for each example: a report needs its "
            f"intervals. Received: numbers of shape {found.shape} of the family "
            f"{found.family.name!r}"
        )
    labels = numbers_like("labels", y, found.shape)
    if not np.isfinite(labels).all():
        raise ValueError(
            "Argument `labels` must hold finite numbers. "
            f"Received: {np.count_nonzero(~np.isfinite(labels))} that are not"
        )
    warn_of_unit(found, labels, "labels")
    if beside is not None:
        check_count(beside, len(found))
    return GivenNumbers(found, labels, beside, name)


def _predicted(model, data, output, batch_size, num_samples, beside):
    """What a model says of labelled data, the labels, and scores, in one pass over it."""
    options = {"output": output, "takes_numbers": True}
    if is_detector(beside):
        options["also"], notes = scores_of_batches(beside, model)
    asked = model, data, num_samples or DRAWS, batch_size or 32
    found, y, weight, *scores = uncertainty_with_labels(*asked, **options)
    if y is None or weight is not None:
        raise ValueError(
            "Argument `data` must hold labels and no sample weights. Received: data "
            + ("without labels" if y is None else "with weights")
        )
    if scores:
        if notes:
            beside.note_scores(scores[0])
        beside = numbers_beside(scores[0])
    return found, y, beside


def checked_unit(unit, found):
    if unit is None and found.units == 1:
        return 0
    if unit is None or (found.units == 1 and unit != 0):
        raise ValueError(
            f"Argument `unit` must be the index of the one of {found.units} numbers that is "
            f"reported. Received: unit={shown(unit)}"
        )
    check_integer("unit", unit, 0)
    if unit >= found.units:
        raise ValueError(
            f"Argument `unit` must be below {found.units}. Received: unit={shown(unit)}"
        )
    return int(unit)
