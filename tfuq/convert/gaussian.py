"""Variational copies of trained models: Gaussian weights around the trained ones."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from tfuq._arguments import check_flags, check_positive
from tfuq.convert._copies import (
    check_all_changed,
    chosen_layers,
    cloned,
    conversions,
    leaves,
    left_over,
)
from tfuq.convert._report import told
from tfuq.convert._twins import VARIATIONAL, configuration, is_quantized
from tfuq.layers import DenseVariational, GRUVariational, LSTMVariational, SimpleRNNVariational
from tfuq.layers.base import check_kl_weight
from tfuq.layers.variational import MeanFieldLayer

# A sequence has one draw of the weights, whatever the estimator of the other layers.
_ONE_DRAW = (GRUVariational, LSTMVariational, SimpleRNNVariational)


def variational(
    model: keras.Model,
    kl_weight: float | None = None,
    *,
    estimator: str = "flipout",
    prior_scale: float = 1.0,
    posterior_scale: float = 0.05,
    trainable_prior: bool = False,
    moped: bool = False,
    moped_delta: float = 0.1,
    layers: Sequence[str] | None = None,
) -> keras.Model:
    """A copy of a trained model whose weights are Gaussian around the trained ones.

    `Dense`, `EinsumDense`, convolutions (depthwise, separable and transposed ones too, but
    `Conv1DTranspose` and `Conv3DTranspose`), `MultiHeadAttention`'s projections, `GRU`, `LSTM` and
    `SimpleRNN` become `DenseVariational` and so on; biases and all other layers are copied as they
    are. Nested models, shared layers, and layers inside `TimeDistributed` or `Bidirectional` are
    kept. What LoRA has added to a kernel becomes part of it. One line says what was converted and
    what was left; `tfuq.convert.report(copy)` names each layer.

    Args:
        model: A functional or `Sequential` Keras model.
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`;
            `tfuq.kl_weight_for(data, loss)` computes it. Required.
        estimator, prior_scale, posterior_scale, trainable_prior: Of the new layers; see
            `tfuq.layers.DenseVariational`.
        moped: Whether prior and posterior follow the trained weights w (MOPED, Krishnan et al.
            2020): prior N(w, prior_scale^2), posterior N(w, (moped_delta |w|)^2). The prior's
            means are weights of the layers and saved with them.
        moped_delta: Standard deviation of MOPED's posterior, relative to the weight.
        layers: Names of the layers to convert; by default all that can be.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If `kl_weight` is missing, `model` cannot be cloned, a name in `layers` is not
            that of a layer that can be converted, or there is none.

    Example:

    ```python
    import keras
    from tfuq.convert import variational

    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    bayesian = variational(model, kl_weight=0.001, moped=True)
    ```

    See also: `tfuq.convert.sparse_bayesian`, `tfuq.convert.to_deterministic`,
    `tfuq.layers.DenseVariational`.
    """
    check_kl_weight(kl_weight)
    check_positive("moped_delta", moped_delta)
    check_flags(moped=moped)
    options = {
        "kl_weight": kl_weight,
        "estimator": estimator,
        "prior_scale": prior_scale,
        "posterior_scale": posterior_scale,
        "trainable_prior": trainable_prior,
        "prior_mean": "initial" if moped else "zero",
    }
    DenseVariational(1, **options)  # says what is wrong with them, if anything is
    candidates = leaves(model, lambda x: type(x) in VARIATIONAL and not is_quantized(x))
    chosen = chosen_layers(model, candidates, layers)

    def make(layer):
        if id(layer) not in chosen:
            return None
        kind = VARIATIONAL[type(layer)]
        given = {**options, "estimator": "reparameterization"} if kind in _ONE_DRAW else options
        return kind.from_config({**configuration(layer), **given})

    copy, pairs = cloned(model, make)
    check_all_changed(candidates, chosen, pairs)
    if moped:
        for _, new in pairs:
            if isinstance(new, MeanFieldLayer):
                new.start_around(moped_delta)
    left = left_over(model, candidates, chosen, pairs, VARIATIONAL)
    return told(copy, "variational", conversions(pairs, chosen), left)
