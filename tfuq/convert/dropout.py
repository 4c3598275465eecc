"""Copies of models whose dropout takes part in draws of the network."""

import keras

from tfuq.convert._copies import cloned, leaves
from tfuq.layers import MCDropout

_SPATIAL = {
    keras.layers.SpatialDropout1D: 1,
    keras.layers.SpatialDropout2D: 2,
    keras.layers.SpatialDropout3D: 3,
}


def mc_dropout(model):
    """A copy of a model whose dropout takes part in draws of the network.

    `Dropout` and `SpatialDropout1D/2D/3D` become `MCDropout`; batch normalization and all other
    layers are copied as they are. Draw and average with `tfuq.predictive`.

    Args:
        model: A functional or `Sequential` Keras model.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If `model` cannot be cloned, or holds no dropout.

    Example:

    ```python
    import keras
    from tfuq.convert import mc_dropout

    layers = [keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    model = mc_dropout(keras.Sequential([keras.Input((8,)), *layers]))
    ```
    """
    kinds = (keras.layers.Dropout, *_SPATIAL)
    if not leaves(model, kinds):
        raise ValueError(
            "Argument `model` must hold Dropout or SpatialDropout layers. "
            f"Received: a model with {sorted({type(x).__name__ for x in model.layers})}"
        )
    return cloned(model, lambda layer: _as_mc_dropout(layer) if type(layer) in kinds else None)[0]


def _as_mc_dropout(layer):
    shape = getattr(layer, "noise_shape", None)
    if type(layer) in _SPATIAL:
        ones = (1,) * _SPATIAL[type(layer)]
        first = getattr(layer, "data_format", None) == "channels_first"
        shape = (None, None, *ones) if first else (None, *ones, None)
    config = {"name": layer.name, "dtype": layer.get_config()["dtype"]}
    return MCDropout(layer.rate, noise_shape=shape, seed=layer.seed, **config)
