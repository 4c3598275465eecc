"""Copies of models whose dropout takes part in draws of the network."""

from __future__ import annotations

import inspect

import keras

from tfuq._random.draws import TakesDraws
from tfuq.convert._copies import (
    by_name,
    check_all_changed,
    cloned,
    conversions,
    leaves,
    recurrent_holders,
)
from tfuq.convert._report import told
from tfuq.convert._twins import DROPPING, is_quantized
from tfuq.layers import MCDropout

_SPATIAL = {
    keras.layers.SpatialDropout1D: 1,
    keras.layers.SpatialDropout2D: 2,
    keras.layers.SpatialDropout3D: 3,
}
_OWN_KIND = "its noise in training is of its own kind"
_KNOWN = ("keras", "tfuq")  # packages of which it is known which layers are random


def mc_dropout(model: keras.Model) -> keras.Model:
    """A copy of a model whose dropout takes part in draws of the network.

    `Dropout`, `SpatialDropout1D/2D/3D` and subclasses that drop as they do (their `call` is that of
    Keras) become `MCDropout`; `GaussianDropout` becomes `MCGaussianDropout`. `LSTM`, `GRU`,
    `SimpleRNN` and `MultiHeadAttention` with dropout of their own become `MCLSTM` and so on, inside
    `Bidirectional` and `TimeDistributed` too. Batch normalization and all other layers are copied
    as they are. One line says what was converted, and what else is random in training and was
    left; `tfuq.convert.report(copy)` names each layer. Draw and average with `tfuq.predictive`.

    Args:
        model: A functional or `Sequential` Keras model.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If `model` cannot be cloned, or holds no dropout that can be converted.

    Example:

    ```python
    import keras
    from tfuq.convert import mc_dropout

    layers = [keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    model = mc_dropout(keras.Sequential([keras.Input((8,)), *layers]))
    ```

    See also: `tfuq.layers.MCDropout`, `tfuq.convert.report`.
    """
    candidates = leaves(model, lambda layer: _kind(layer) is not None)
    if not candidates:
        raise ValueError(
            "Argument `model` must hold Dropout or SpatialDropout layers, or recurrent or "
            "attention layers that drop. Received: a model with "
            f"{sorted({type(x).__name__ for x in model._flatten_layers(include_self=False)})}"
        )
    chosen = {id(layer) for layer in candidates}
    copy, pairs = cloned(model, lambda layer: _dropping(layer) if id(layer) in chosen else None)
    check_all_changed(candidates, chosen, pairs)
    left = _left(model, candidates, pairs)
    return told(copy, "mc_dropout", conversions(pairs, chosen), left)


def _kind(layer):
    """The class of Keras as which a layer drops, or None."""
    if isinstance(layer, TakesDraws):
        return None
    if type(layer) in DROPPING:
        return type(layer) if _rate(layer) and not is_quantized(layer) else None
    for kind in (*_SPATIAL, keras.layers.Dropout):
        if isinstance(layer, kind):
            is_same = type(layer).call is kind.call
            shape = "_get_noise_shape"
            is_same &= getattr(type(layer), shape, None) is getattr(kind, shape, None)
            return kind if is_same else None
    return None


def _rate(layer):
    """The largest fraction that a layer drops by itself, or None if it names none."""
    rates = [getattr(layer, name, None) for name in ("rate", "dropout", "recurrent_dropout")]
    return max((rate for rate in rates if isinstance(rate, (int, float))), default=None)


def _dropping(layer):
    kind = _kind(layer)
    if kind in DROPPING:
        return DROPPING[kind].from_config(layer.get_config())
    shape = layer.noise_shape
    if kind in _SPATIAL:
        ones = (1,) * _SPATIAL[kind]
        first = getattr(layer, "data_format", None) == "channels_first"
        shape = (None, None, *ones) if first else (None, *ones, None)
    config = {"name": layer.name, "dtype": layer.get_config()["dtype"]}
    return MCDropout(layer.rate, noise_shape=shape, seed=layer.seed, **config)


def _left(model, candidates, pairs):
    """Of each layer that is random in training, and was not converted, `(class, why)`."""
    changed = {id(each) for old, _ in pairs for each in old._flatten_layers()}
    left, holders = [], recurrent_holders(model)
    for layer in model._flatten_layers(include_self=False):
        if id(layer) in changed or isinstance(layer, TakesDraws):
            continue
        why = None
        if any(layer is each for each in candidates):
            why = "another layer builds it"
        elif _is_noisy(layer):
            is_dropout = isinstance(layer, keras.layers.Dropout)
            why = "its class drops in a `call` of its own" if is_dropout else _OWN_KIND
        elif _may_be_noisy(layer):
            why = "its `call` takes `training`, and may be random then"
        if why:
            left.append((holders.get(id(layer), layer), why))
    return by_name((layer, (type(layer).__name__, why)) for layer, why in left)


def _is_noisy(layer):
    """Whether a layer draws random numbers in training, as far as can be seen."""
    held = vars(layer).values()
    return _rate(layer) != 0 and any(isinstance(x, keras.random.SeedGenerator) for x in held)


def _may_be_noisy(layer):
    """Whether a layer of somebody's own does something else in training."""
    if isinstance(layer, keras.Model) or type(layer).__module__.split(".")[0] in _KNOWN:
        return False
    return "training" in inspect.signature(type(layer).call).parameters
