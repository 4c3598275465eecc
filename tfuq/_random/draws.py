"""One draw of a network: random weights and masks that all layers of a call take from one seed.

A layer with random weights looks here, while it is called, whether somebody wants a draw of the
whole network and not its prediction. Who wants one calls the model inside `one_draw(seed)`.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import warnings

import keras
import tensorflow as tf

from tfuq._random.points import ALGORITHM

_CURRENT = contextvars.ContextVar("tfuq_draw", default=None)


class TakesDraws:
    """Marks a layer that looks for `current_draw()` when it is called."""

    num_members = 1
    """Of how many networks the draws are, which come in turn; 1 where there is no end of them."""
    kept_by = "The optimizer"
    """Of an optimizer, what users call it."""
    closed_form = False
    """Whether its output says how draws of it would differ, so that nobody has to draw."""

    def is_random(self) -> bool:
        """Whether draws of the layer differ."""
        return True


def random_layers(model):
    """The layers of `model`, at any depth, that take part in draws of the network.

    And the optimizer, if it has a posterior of the weights.
    """
    found = [layer for layer in model._flatten_layers() if isinstance(layer, TakesDraws)]
    posterior = weight_posterior(model)
    return found if posterior is None else [*found, posterior]


def weight_posterior(model):
    """The optimizer of `model` that has a posterior of its weights, `drawn(seed)`, or None.

    It may stand inside others, such as one that scales the loss.
    """
    optimizer = posterior_optimizer(model)
    return optimizer if optimizer is not None and optimizer.is_random() else None


def posterior_optimizer(model):
    """The optimizer of `model` that keeps a posterior or may come to one, or None."""
    optimizer = getattr(model, "optimizer", None)
    while optimizer is not None and not isinstance(optimizer, TakesDraws):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def posterior_state(model):
    """Arrays that draws of `model` follow from beside its weights; none without a posterior."""
    posterior = weight_posterior(model)
    return [] if posterior is None else posterior.posterior_state()


def warn_of_lost_posterior(models, what):
    """Warns if the optimizer of one of `models` keeps a posterior, which `what` has not."""
    found = [each for each in map(weight_posterior, models) if each is not None]
    if found:
        warnings.warn(
            f"{what[0].upper()}{what[1:]} has no posterior of the weights, which "
            f"{found[0].kept_by} keeps: it takes the weights as they are (their mean after `fit` "
            "or `to_mean()`). Draw networks from the trained model with `tfuq.predictive`",
            stacklevel=4,
        )


def num_draws(model, wanted, default):
    """How many networks to draw from `model`: `wanted`, or about `default` if that is None.

    Where layers have members, all draws are of these in turn, so that the number is a multiple of
    theirs; ValueError if `wanted` is not.
    """
    random = [layer for layer in random_layers(model) if layer.is_random()]
    members = math.lcm(*(layer.num_members for layer in random))
    if wanted is None:
        is_all = members > 1 and all(layer.num_members > 1 for layer in random)
        return members if is_all else math.ceil(default / members) * members
    if wanted % members:
        raise ValueError(
            f"Argument `num_samples` must be left out or a multiple of {members}, the number of "
            "members of the model's layers, so that all count alike. Received: "
            f"num_samples={wanted}"
        )
    return wanted


class Draw:
    """Gives each layer a seed of its own: the same one each time the layer is called.

    With `at_once`, a layer with random weights computes in operations that TensorFlow can do for
    the weights of many draws at once, if it can.
    """

    def __init__(self, seed, at_once=False):
        self.seed, self.at_once = seed, at_once
        self.layers = {}

    def seed_of(self, layer):
        """Seed `(2,)` of `layer`, numbered by the order of first calls."""
        number = self.layers.setdefault(id(layer), len(self.layers))
        return tf.random.fold_in(self.seed, number, alg=ALGORITHM)

    def member(self, layer, num_members):
        """Which member of `layer` this draw is of, int32 `()`: draws come in their order."""
        self.layers.setdefault(id(layer), len(self.layers))
        return tf.math.floormod(self.seed[1], num_members)


@contextlib.contextmanager
def one_draw(seed, model=None, at_once=False):
    """While it is open, layers with random weights take one draw from `seed`, int32 `(2,)`.

    With `model`, its weights are drawn from the posterior that its optimizer has, if it has one;
    `at_once` is for `tf.vectorized_map` over seeds. Yields the `Draw`; its `layers` are those that
    took part.
    """
    draw = Draw(seed, at_once)
    token = _CURRENT.set(draw)
    posterior = None if model is None else weight_posterior(model)
    try:
        if posterior is None:
            yield draw
        else:
            with keras.StatelessScope(state_mapping=posterior.drawn(draw.seed_of(posterior))):
                yield draw
    finally:
        _CURRENT.reset(token)


def current_draw():
    """The `Draw` that is wanted now, or None."""
    return _CURRENT.get()
