"""Copies of models."""

import keras


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
