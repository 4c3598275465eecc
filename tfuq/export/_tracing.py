"""Traces of networks: what they return, and which layer fails."""

import contextlib

import keras
import tensorflow as tf

from tfuq._models.features import watched
from tfuq.export._unrolled import without_loops


def traced(specs, function):
    """What `function(batch)` returns of a batch that is `specs`, of which nothing is computed."""
    found = []

    def call(batch):
        found.append(function(batch))

    tf.function(call, autograph=False).get_concrete_function(specs)
    return found[0]


@contextlib.contextmanager
def tracing(request):
    """While it is open, networks are traced as the format asks for; errors name the layer."""
    with contextlib.ExitStack() as stack:
        if request.is_unrolled:
            stack.enter_context(without_loops())
        if request.runtime == "LiteRT":
            stack.enter_context(steps_unrolled(request.members))
        try:
            yield
        except Exception as error:
            layer = failing_layer(request.members, request.inner)
            if layer is None:
                raise
            raise ValueError(
                "Argument `model` must be made of layers that TensorFlow can trace. Received: "
                f"layer {layer.name!r} of class {type(layer).__name__}, whose call fails with "
                f"{type(error).__name__}: {error}"
            ) from error


@contextlib.contextmanager
def steps_unrolled(models):
    """While it is open, recurrent layers (LSTM, GRU, ...) have the operations of each time step.

    Keras' loops over steps keep lists of tensors, which LiteRT has for batches of one size alone.
    """
    layers = {layer for model in models for layer in model._flatten_layers()}
    looping = [each for each in layers if isinstance(each, keras.layers.RNN) and not each.unroll]
    for layer in looping:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in looping:
            layer.unroll = False


def failing_layer(models, specs):
    """The innermost layer whose call cannot be traced, or None if all can."""
    failed = []

    def handler(layer):
        def handle(call, *args, **kwargs):
            try:
                return call(*args, **kwargs)
            except Exception:
                failed.append(layer)  # the innermost comes first
                raise

        return handle

    for model in models:
        with contextlib.ExitStack() as stack, contextlib.suppress(Exception):
            for layer in dict.fromkeys(model._flatten_layers(include_self=False)):
                stack.enter_context(watched(layer, handler(layer)))
            traced(specs, lambda batch, model=model: model(batch, training=False))
    return failed[0] if failed else None
