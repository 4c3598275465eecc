"""Ways to predict that a caller can ask for, whatever the layers were made with.

Layers look for `wanted_way()` when they are called, as they look for a draw of the network
(`tfuq._random.draws`): no layer is changed, and other threads predict as before.
"""

import contextlib
import contextvars

_WANTED = contextvars.ContextVar("tfuq_way", default=None)


@contextlib.contextmanager
def predicting(way):
    """While it is open, layers that are called in this thread predict in the given way.

    Args:
        way: `"probit"`: logits in closed form; `"mean"`: the means of weights, no dropout;
            `"fresh_samples"`: new noise in each call; `"fixed_samples"`: the same noise in each
            call. A layer that does not know the way keeps its own, with fixed noise.
    """
    token = _WANTED.set(way)
    try:
        yield
    finally:
        _WANTED.reset(token)


def wanted_way():
    """The way that is asked for now, or None."""
    return _WANTED.get()


def knows(layer, way):
    """Whether the layer names `way` in its attribute `ways`: it may predict otherwise in it."""
    return way in getattr(layer, "ways", ())


def resamples(layer):
    """Whether predictions of the layer draw noise anew: its `resample`, unless noise is fixed."""
    return layer.resample and wanted_way() in (None, "fresh_samples")
