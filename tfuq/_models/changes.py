"""Methods of layers, replaced for a while, in one thread alone."""

import contextlib
import functools
import threading

import keras

# A layer can be replaced in by one thread at a time: each puts back what it has found. The lock is
# held while a model is traced or run, and taken before those of functions that this calls.
_LOCK = threading.RLock()


@contextlib.contextmanager
def replaced(layer, name, make):
    """While it is open, `layer.name` is `make(what it was)`: in this thread; in others as it was.

    So a model can be called, or traced for the first time, elsewhere at the same time.
    """
    with _LOCK:
        mine, before = threading.get_ident(), vars(layer).get(name)
        original = getattr(layer, name)
        other = make(original)

        def chosen(*args, **kwargs):
            function = other if threading.get_ident() == mine else original
            return function(*args, **kwargs)

        # Past Keras' own `__setattr__`, which locks and tracks.
        object.__setattr__(layer, name, chosen)
        try:
            yield
        finally:
            object.__delattr__(layer, name)
            if before is not None:
                object.__setattr__(layer, name, before)


def clone_uncompiled(model, **kwargs):
    """`keras.models.clone_model`, of which the copy is not compiled.

    Keras compiles it from the configuration of the original, and fails where a loss, a metric or an
    optimizer is not registered.
    """
    compiled = [layer for layer in model._flatten_layers() if getattr(layer, "compiled", False)]
    for layer in compiled:
        layer.compiled = False
    try:
        return keras.models.clone_model(model, **kwargs)
    finally:
        for layer in compiled:
            layer.compiled = True


def watched(layer, handler):
    """While it is open, calls of `layer` go to `handler(call, *args, **kwargs)` instead."""
    name = "quantized_call" if getattr(layer, "quantization_mode", None) else "call"
    return replaced(layer, name, lambda call: functools.partial(handler, call))
