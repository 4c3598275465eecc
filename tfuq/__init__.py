"""tfuq: uncertainty for Keras 3 models on TensorFlow.

`tfuq.layers` holds the heads that stand in for `Dense`, `tfuq.metrics` and `tfuq.callbacks` what
judges them, `tfuq.plots` (extra `plots`) what shows them.
"""

import importlib

# Imported here, not on first use: importing registers the classes with Keras, so that `import
# tfuq` is all that `keras.models.load_model` needs.
from tfuq import callbacks, layers, metrics
from tfuq._version import __version__

__all__ = ["__version__", "callbacks", "layers", "metrics", "plots"]


def __getattr__(name):
    if name == "plots":  # on first use, because matplotlib is optional
        return importlib.import_module("tfuq.plots")
    raise AttributeError(f"module 'tfuq' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
