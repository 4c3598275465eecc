"""Copies of models with other layers in place of some, and the same weights."""

import keras

from tfuq._arguments import shown
from tfuq._models.changes import clone_uncompiled
from tfuq.layers import (
    Conv1DVariational,
    Conv2DTransposeVariational,
    Conv2DVariational,
    DenseVariational,
    SparseBayesConv1D,
    SparseBayesConv2D,
    SparseBayesConv2DTranspose,
    SparseBayesConv3D,
    SparseBayesDense,
    SparseBayesDepthwiseConv2D,
)

VARIATIONAL = {
    keras.layers.Dense: DenseVariational,
    keras.layers.Conv1D: Conv1DVariational,
    keras.layers.Conv2D: Conv2DVariational,
    keras.layers.Conv2DTranspose: Conv2DTransposeVariational,
}
SPARSE = {
    keras.layers.Dense: SparseBayesDense,
    keras.layers.Conv1D: SparseBayesConv1D,
    keras.layers.Conv2D: SparseBayesConv2D,
    keras.layers.Conv3D: SparseBayesConv3D,
    keras.layers.Conv2DTranspose: SparseBayesConv2DTranspose,
    keras.layers.DepthwiseConv2D: SparseBayesDepthwiseConv2D,
}
TWINS = {ours: twin for table in (VARIATIONAL, SPARSE) for twin, ours in table.items()}


def check_graph(model):
    """Raises ValueError unless `model` is a graph of layers that is there already."""
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "Argument `model` must be built: call it, or give it an Input. "
            f"Received: {shown(model)}, which is not"
        )
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None):
        raise ValueError(
            "Argument `model` must be a functional or Sequential Keras model. "
            f"Received: {shown(model)}"
        )


def leaves(model, kinds):
    """The layers of exactly these kinds that a copy can replace, at any depth, each once."""
    check_graph(model)
    return [layer for layer in _reached(model) if type(layer) in kinds]


def _reached(model):
    """Layers of models and within `TimeDistributed`; not what other layers hold for themselves."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.TimeDistributed):
            layer = layer.layer
        is_graph = isinstance(layer, keras.Model) and bool(getattr(layer, "outputs", None))
        inner = _reached(layer) if is_graph else [layer]
        found |= {id(each): each for each in inner}
    return list(found.values())


def chosen_layers(candidates, names):
    """Ids of the layers to convert."""
    found = {layer.name: layer for layer in candidates}
    if not found:
        raise ValueError(
            "Argument `model` must hold layers that can be converted, such as Dense or Conv2D, "
            "and of Keras' own classes. Received: a model with none"
        )
    missing = sorted(set(names or ()) - set(found))
    if missing or (names is not None and not names):
        raise ValueError(
            "Argument `layers` must name layers that can be converted, among "
            f"{sorted(found)}. Received: layers={shown(names)}"
        )
    return {id(layer) for layer in candidates if names is None or layer.name in names}


def cloned(model, make):
    """A copy with the same weights, and the pairs of layers for which `make` gave a new one."""
    pairs = []

    def made(layer):
        new = make(layer)
        if new is not None:
            pairs.append((layer, new))
        return new

    def clone(layer):
        wraps = type(layer) is keras.layers.TimeDistributed
        new = made(layer.layer if wraps else layer)
        if new is not None:
            name = {"name": layer.name}
            return keras.layers.TimeDistributed(new, **name) if wraps else new
        new = layer.__class__.from_config(layer.get_config())
        if isinstance(layer, keras.layers.Layer):  # and no operation, as `x * 2` is
            copied.append((layer, new))
        return new

    copied = []
    new_model = clone_uncompiled(model, clone_function=clone, recursive=True)
    for layer, new in copied:
        new.trainable = layer.trainable
        new.set_weights(layer.get_weights())
    for layer, new in pairs:
        new.trainable = layer.trainable
        for name in ("kernel", "bias"):
            if getattr(layer, name, None) is not None:
                getattr(new, name).assign(getattr(layer, name))
    return new_model, pairs
