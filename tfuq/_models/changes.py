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


@contextlib.contextmanager
def floats_kept(model):
    """While it is open, inputs that are floats stay so, where a model declares them integers.

    An image of bytes has no gradient; one that takes the way behind `Input(dtype="uint8")` has.
    """

    def kept(original):
        def convert(inputs):
            pairs = zip(inputs, original(inputs), strict=True)
            return [x if _is_float(x) and not _is_float(took) else took for x, took in pairs]

        return convert

    name, layers = "_convert_inputs_to_tensors", list(model._flatten_layers())
    layers += [getattr(layer, "_functional", None) for layer in layers]  # of Sequential models
    with contextlib.ExitStack() as stack:
        for layer in {id(each): each for each in layers if hasattr(each, name)}.values():
            stack.enter_context(replaced(layer, name, kept))
        for layer in layers:
            if isinstance(layer, keras.Sequential):
                stack.enter_context(_not_converting(layer))
        yield


@contextlib.contextmanager
def _not_converting(model):
    """While it is open, a Sequential model leaves it to the graph inside to convert inputs."""
    with _LOCK:
        before = model._convert_input_args
        object.__setattr__(model, "_convert_input_args", False)
        try:
            yield
        finally:
            object.__setattr__(model, "_convert_input_args", before)


def _is_float(tensor):
    dtype = getattr(tensor, "dtype", "int32")  # None stands for an optional input
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype))


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
