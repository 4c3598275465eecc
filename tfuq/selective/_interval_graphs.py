"""Conformal intervals of numbers in graphs."""

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._math.intervals import widened
from tfuq._models.numbers import declared_family
from tfuq._predictions.families import family_named
from tfuq._predictions.numbers import mixture_quantile, moments


def interval_tensors(fitted, limits, predictions):
    """Tensors `mean`, `std`, `lower` and `upper`, `(batch, ..., units)`, of predictions.

    Args:
        fitted: A `ConformalRegressor`.
        limits: Its thresholds `(1, units, 2)`.
        predictions: Parameters, or a stack of them.
    """
    _check_graph(fitted)
    family = family_named(fitted.family or "point")
    stack = _stack(fitted, tf.cast(tf.convert_to_tensor(predictions), "float32"))
    units = family.units(stack.shape[-1])
    if units != limits.shape[1]:
        raise ValueError(
            f"Argument `predictions` must hold parameters of {limits.shape[1]} numbers of the "
            f"family {shown(family)}. Received: predictions of shape {tuple(predictions.shape)}"
        )
    mean, noise, between = moments(family, stack)
    std, one = tf.sqrt(noise + between), tf.ones_like(mean)
    ends = (mean, mean, std if fitted.method == "normalized" else one)
    if fitted.method == "cqr":
        ends = (*(mixture_quantile(family, stack, level) for level in fitted.levels), one)
    below, above = (tf.constant(limits[0, :, side], "float32") for side in (0, 1))
    lower, upper = widened(ends, below, above, float(np.finfo("float32").eps), keras.ops)
    return {"mean": mean, "std": std, "lower": lower, "upper": upper}


def _check_graph(fitted):
    if fitted.keys is not None:
        raise ValueError(
            "A regressor with a threshold for each group cannot be part of a model, which does not "
            f"know the groups. Received: keys={shown(fitted.keys)}"
        )
    if fitted.family is None and fitted.method != "split":
        raise ValueError(
            "A regressor of pairs of arrays cannot be part of a model: fit it to what "
            "`predict_uncertainty` gives. Received: family=None"
        )


def _stack(fitted, predictions):
    """Parameters `(samples, batch, ...)`."""
    draws = fitted.fitted_to.get("draws") or 1
    several = draws > 1
    if len(predictions.shape) != fitted.rank + several:
        axes = "(samples, batch, ..., parameters)" if several else "(batch, ..., parameters)"
        raise ValueError(
            f"Argument `predictions` must have {fitted.rank + several} axes, {axes}: it was fitted "
            f"to {draws} {'draws' if several else 'draw'}. "
            f"Received: predictions of shape {tuple(predictions.shape)}"
        )
    return predictions if several else predictions[None]


def check_model_family(fitted, model, output):
    """Raises ValueError if a model declares another family than a regressor was fitted to."""
    said, own = declared_family(model, output), family_named(fitted.family or "point")
    if said is not None and said != own:
        raise ValueError(
            f"Argument `model` must give parameters of the family {shown(own)}, that of the fit. "
            f"Received: those of {shown(said)}, of {shown(model)}"
        )
