"""One draw of a network: random weights and masks that all layers of a call take from one seed.

A layer with random weights looks here, while it is called, whether somebody wants a draw of the
whole network and not its prediction. Who wants one calls the model inside `one_draw(seed)`.
"""

import contextlib
import contextvars

import tensorflow as tf

from tfuq._random.points import ALGORITHM

_CURRENT = contextvars.ContextVar("tfuq_draw", default=None)


class TakesDraws:
    """Marks a layer that looks for `current_draw()` when it is called."""

    closed_form = False
    """Whether its output says how draws of it would differ, so that nobody has to draw."""

    def is_random(self):
        """Whether draws of the layer differ."""
        return True


def random_layers(model):
    """The layers of `model`, at any depth, that take part in draws of the network."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, TakesDraws)]


class Draw:
    """Gives each layer a seed of its own: the same one each time the layer is called."""

    def __init__(self, seed):
        self.seed = seed
        self.layers = {}

    def seed_of(self, layer):
        """Seed `(2,)` of `layer`, numbered by the order of first calls."""
        number = self.layers.setdefault(id(layer), len(self.layers))
        return tf.random.fold_in(self.seed, number, alg=ALGORITHM)


@contextlib.contextmanager
def one_draw(seed):
    """While it is open, layers with random weights take one draw from `seed`, int32 `(2,)`.

    Yields the `Draw`; its `layers` are those that took part.
    """
    draw = Draw(seed)
    token = _CURRENT.set(draw)
    try:
        yield draw
    finally:
        _CURRENT.reset(token)


def current_draw():
    """The `Draw` that is wanted now, or None."""
    return _CURRENT.get()
