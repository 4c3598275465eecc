"""Deterministic copies of models with random weights."""

import keras

from tfuq.convert._copies import TWINS, cloned, leaves
from tfuq.layers import MCDropout


def to_deterministic(model):
    """A copy of a model with random weights as plain Keras layers, with their means.

    Sparse Bayesian and variational layers become the Keras layers that they stand in for,
    `MCDropout` becomes `Dropout`; all other layers are copied as they are. The copy predicts what
    the model predicts, and needs tfuq no more, if nothing else of tfuq is in it. Layers that draw
    anew for each prediction (`resample=True`) and `MCDropout(predictive="thinned")` do not predict
    with their means; the copy does.

    Args:
        model: A functional or `Sequential` Keras model.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If `model` cannot be cloned, or holds no such layers.

    Example:

    ```python
    import keras
    from tfuq.convert import to_deterministic
    from tfuq.layers import SparseBayesDense

    model = keras.Sequential([keras.Input((8,)), SparseBayesDense(3, kl_weight=0.001)])
    print(to_deterministic(model).layers)  # [<Dense name=...>]
    ```
    """
    if not leaves(model, (*TWINS, MCDropout)):
        raise ValueError(
            "Argument `model` must hold layers with random weights, such as "
            "`tfuq.layers.SparseBayesDense`. "
            f"Received: a model with {sorted({type(x).__name__ for x in model.layers})}"
        )

    def make(layer):
        if type(layer) is MCDropout:
            config = {name: layer.get_config()[name] for name in ("name", "dtype")}
            return keras.layers.Dropout(layer.rate, layer.noise_shape, layer.seed, **config)
        twin = TWINS.get(type(layer))
        # The twin's own `get_config` knows nothing of what stands before it among the bases.
        return None if twin is None else twin.from_config(twin.get_config(layer))

    return cloned(model, make)[0]
