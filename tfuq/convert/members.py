"""Copies of trained models with many members, which share the trained kernels."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfuq.convert._copies import (
    check_all_changed,
    chosen_layers,
    cloned,
    conversions,
    leaves,
    left_over,
)
from tfuq.convert._report import told
from tfuq.convert._twins import MEMBERS, configuration, is_quantized
from tfuq.layers import BatchEnsembleDense


def batch_ensemble(
    model: keras.Model,
    num_members: int,
    *,
    factor_scale: float = 0.1,
    layers: Sequence[str] | None = None,
    seed: int | None = None,
) -> keras.Model:
    """A copy of a trained model with `num_members` members, all near the trained one.

    `Dense` and `Conv2D` become `tfuq.layers.BatchEnsembleDense` and `BatchEnsembleConv2D`: the
    kernel is shared, each member starts from the trained bias and from factors N(1,
    factor_scale^2). Train the copy on, so that the members differ by what they have learned. All
    other layers, batch normalization among them, are copied as they are and shared by all members.
    Nested models, shared layers, and layers inside `TimeDistributed` are kept. What LoRA has added
    to a kernel becomes part of it. One line says what was converted and what was left;
    `tfuq.convert.report(copy)` names each layer.

    Args:
        model: A functional or `Sequential` Keras model.
        num_members: Number of members, at least 2.
        factor_scale: Standard deviation of the factors.
        layers: Names of the layers to convert; by default all that can be.
        seed: Integer that determines the factors, different in each layer.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If an argument is out of its range, `model` cannot be cloned, a name in `layers`
            is not that of a layer that can be converted, or there is none.

    Example:

    ```python
    import keras
    from tfuq.convert import batch_ensemble

    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    members = batch_ensemble(model, num_members=4)
    ```

    References:
        - Wen et al.: "BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong
          Learning", ICLR 2020.

    See also: `tfuq.layers.BatchEnsembleDense`, `tfuq.ensembles.DeepEnsemble`.
    """
    options = {"num_members": num_members, "factors": "normal", "factor_scale": factor_scale}
    BatchEnsembleDense(1, seed=seed, **options)  # says what is wrong with them, if anything is
    candidates = leaves(model, lambda x: type(x) in MEMBERS and not is_quantized(x))
    chosen = chosen_layers(model, candidates, layers)
    numbers = {id(layer): number for number, layer in enumerate(candidates)}

    def make(layer):
        if id(layer) not in chosen:
            return None
        own = None if seed is None else seed * len(numbers) + numbers[id(layer)]
        given = {**configuration(layer), **options, "seed": own}
        return MEMBERS[type(layer)].from_config(given)

    copy, pairs = cloned(model, make)
    check_all_changed(candidates, chosen, pairs)
    left = left_over(model, candidates, chosen, pairs, MEMBERS)
    return told(copy, "batch_ensemble", conversions(pairs, chosen), left)
