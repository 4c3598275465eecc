"""Optimizers that are made again, with what their configuration does not tell."""

import re
from typing import NamedTuple

import keras

from tfuq._models.train_step import optimizer_chain
from tfuq._random.draws import TakesDraws

_SCALED = "mixed_float16"  # the policy of models whose loss Keras scales


class Exclusions(NamedTuple):
    """What an optimizer leaves out of its weight decay, which is in no configuration."""

    places: tuple  # of the variables, among the model's weights
    pattern: str | None  # of names


def exclusions_of(model):
    """`Exclusions` of the optimizer that `model` is compiled with."""
    inner = optimizer_chain(model.optimizer)[-1]
    keys = getattr(inner, "_exclude_from_weight_decay", ())
    pattern = getattr(inner, "_exclude_from_weight_decay_pattern", None)
    places = [i for i, weight in enumerate(model.weights) if inner._var_key(weight) in keys]
    return Exclusions(tuple(places), pattern and pattern.pattern)


def exclude(optimizer, model, exclusions):
    """Leaves the weights of `model` that `exclusions` name out of the weight decay."""
    inner = optimizer_chain(optimizer)[-1]
    keys = {inner._var_key(model.weights[place]) for place in exclusions.places}
    # Keras' own `exclude_from_weight_decay` refuses once the optimizer is built.
    inner._exclude_from_weight_decay = keys
    inner._exclude_from_weight_decay_pattern = (
        None if exclusions.pattern is None else re.compile(exclusions.pattern)
    )
    inner._exclude_from_weight_decay_cache = {}


def renewed(model):
    """A new optimizer like that of `model`, not built, whose learning rate is a number.

    Of a schedule that is the first rate. What scales the loss of the model, and what keeps a
    posterior beside its optimizer, is left out.
    """
    own = model.optimizer
    if isinstance(own, keras.optimizers.LossScaleOptimizer):
        own = own.inner_optimizer
    if isinstance(own, TakesDraws) and hasattr(own, "inner_optimizer"):
        own = own.inner_optimizer  # SWAG's, whose posterior is not one of what will be trained
    inner = optimizer_chain(own)[-1]
    with model.distribute_strategy.scope():
        new = _with_a_number(inner)
        if own is not inner:
            within = keras.saving.serialize_keras_object(new)
            new = type(own).from_config({**own.get_config(), "optimizer": within})
    exclude(new, model, exclusions_of(model))
    return new


def _with_a_number(optimizer):
    """A new optimizer of the same configuration, with the first rate of its schedule, if any."""
    config, rate = optimizer.get_config(), optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        config["learning_rate"] = float(rate(0))
    return type(optimizer).from_config(config)


def exchange_optimizer(model, optimizer):
    """Compiles `model` as it was compiled, but with `optimizer`.

    Not by `compile`, which may take arguments of the model's own.
    """
    config = model._compile_config.config
    config["optimizer"] = optimizer
    with model.distribute_strategy.scope():
        if config.get("auto_scale_loss", True) and model.dtype_policy.name == _SCALED:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.optimizer = optimizer
    model.train_function = model.test_function = model.predict_function = None
    model._compiled_trainable_state = {layer: layer.trainable for layer in model._flatten_layers()}
