"""Fits to predictions of numbers: what is left out, and the way from a rule of classes."""

from __future__ import annotations

import numpy as np

from tfuq._arguments import shown
from tfuq.predictive import uncertainty_with_labels
from tfuq.selective.detector_scores import (
    check_is_in_order,
    is_detector,
    scores_of_batches,
    with_mark,
)


def check_left_out(kind, **arguments):
    """Raises ValueError if one of `arguments` is given, which such predictions do not have."""
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise ValueError(
                f"Argument `{name}` must be left out for predictions of {kind}. "
                f"Received: {name}={shown(value)}"
            )


def fit_of_numbers(fit, asked, options):
    """The rule that `fit` makes, with `options`, of what a regression says of labelled data.

    `asked` are model, data, output, batch_size and verbose, as `RejectionRule.fit_model` takes
    them; the score may be a detector.
    """
    model, data, *_ = asked
    detector = options.get("score")
    if not is_detector(detector):
        check_is_in_order(detector, data)
        return fit(*labelled_numbers(*asked), **options)
    scores, notes = scores_of_batches(detector, model)
    found, y, values = labelled_numbers(*asked, scores)
    if notes:
        detector.note_scores(values)
    return with_mark(fit(found, y, **{**options, "score": values}), detector)


def labelled_numbers(model, data, output, batch_size, verbose, also=None):
    """What a regression says of labelled data, in one pass over it, and the numbers beside.

    With a function `also` of inputs and their number, what that gives, too.
    """
    options = {"batch_size": batch_size, "output": output, "verbose": verbose, "also": also}
    found, y, weights, *more = uncertainty_with_labels(model, data, takes_numbers=True, **options)
    if y is None or weights is not None:
        received = "no labels" if y is None else f"weights of shape {np.shape(weights)}"
        raise ValueError(
            "Argument `data` must give (x, y), without sample weights: each example counts once. "
            f"Received: {received}"
        )
    return found, y, *more
