"""Deterministic copies of models with random weights."""

from __future__ import annotations

import warnings

import keras

from tfuq._random.draws import random_layers
from tfuq.convert._copies import check_graph, cloned
from tfuq.convert._twins import TWINS
from tfuq.layers import MCDropout


def to_deterministic(model: keras.Model) -> keras.Model:
    """A copy of a model with random weights as plain Keras layers, with their means.

    Sparse Bayesian and variational layers become the Keras layers that they stand in for,
    `MCDropout` becomes `Dropout`, `MCLSTM` `LSTM` and so on; all other layers are copied as they
    are. The copy needs tfuq no more, if nothing else of tfuq is in it.

    The copy predicts what `model.predict` does, the outputs of the mean weights. If it does not, a
    warning names the layers: those that draw anew for each prediction (`resample=True`), and
    `MCDropout(predictive="thinned")`. A warning also names random layers that stay, such as
    `VBLLDense` heads, layers of your own classes and layers inside other layers.
    `predict_uncertainty` averages the predictions of many networks, as no single network can: it is
    less certain than the copy, and a rule that was fitted to it does not hold for the copy.

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

    See also: `tfuq.convert.variational`, `tfuq.convert.sparse_bayesian`, `tfuq.convert.mc_dropout`.
    """

    def make(layer):
        if type(layer) is MCDropout:
            config = {name: layer.get_config()[name] for name in ("name", "dtype")}
            return keras.layers.Dropout(layer.rate, layer.noise_shape, layer.seed, **config)
        twin = TWINS.get(type(layer))
        # The twin's own `get_config` knows nothing of what stands before it among the bases.
        return None if twin is None else twin.from_config(twin.get_config(layer))

    check_graph(model)
    copy, pairs = cloned(model, make)
    if not pairs:
        raise ValueError(
            "Argument `model` must hold layers with random weights that have a Keras counterpart, "
            "such as `tfuq.layers.SparseBayesDense`. Heads with a posterior or label noise (also "
            "as `last_layer`), layers of members, and weights trained by IVON or SWAG have no "
            "counterpart. Received: a model with "
            f"{sorted({type(x).__name__ for x in model._flatten_layers()})}"
        )
    _tell_differences(copy, [layer for layer, _ in pairs])
    return copy


def _tell_differences(copy, replaced):
    """Warns of each way in which the copy is not what the model predicts, or is random still."""
    fresh = [x.name for x in replaced if getattr(x, "resample", False)]
    thinned = [x.name for x in replaced if getattr(x, "predictive", "mean") == "thinned"]
    still = [f"{type(x).__name__} {x.name!r}" for x in random_layers(copy)]
    found = {
        "the model draws the weights of {} anew for each prediction (resample=True), the copy "
        "takes their means": fresh,
        'the model predicts with one mask of {} (predictive="thinned"), the copy drops nothing': [
            name for name in thinned if name not in fresh
        ],
        "{} are copied as they are, and are still random": still,
    }
    parts = [text.format(", ".join(map(str, who))) for text, who in found.items() if who]
    if parts:
        warnings.warn(f"to_deterministic: {'; '.join(parts)}", stacklevel=3)
