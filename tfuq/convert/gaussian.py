"""Variational copies of trained models: Gaussian weights around the trained ones."""

import numpy as np

from tfuq._arguments import check_positive
from tfuq.convert._copies import VARIATIONAL, chosen_layers, cloned, leaves
from tfuq.layers import DenseVariational
from tfuq.layers.base import check_kl_weight, softplus_inverse

_SMALLEST_SCALE = 1e-6  # of MOPED's posterior, where a weight is 0


def variational(
    model,
    kl_weight=None,
    *,
    estimator="flipout",
    prior_scale=1.0,
    posterior_scale=0.05,
    trainable_prior=False,
    moped=False,
    moped_delta=0.1,
    layers=None,
):
    """A copy of a trained model whose weights are Gaussian around the trained ones.

    `Dense`, `Conv1D`, `Conv2D` and `Conv2DTranspose` become `DenseVariational` and so on; biases
    and all other layers are copied as they are. Nested models and shared layers are kept.

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
    """
    check_kl_weight(kl_weight)
    check_positive("moped_delta", moped_delta)
    options = {
        "kl_weight": kl_weight,
        "estimator": estimator,
        "prior_scale": prior_scale,
        "posterior_scale": posterior_scale,
        "trainable_prior": trainable_prior,
        "prior_mean": "initial" if moped else "zero",
    }
    DenseVariational(1, **options)  # says what is wrong with them, if anything is
    candidates = leaves(model, tuple(VARIATIONAL))
    chosen = chosen_layers(candidates, layers)

    def make(layer):
        if id(layer) in chosen:
            return VARIATIONAL[type(layer)].from_config({**layer.get_config(), **options})
        return None

    copy, pairs = cloned(model, make)
    if moped:
        for layer, new in pairs:
            scale = np.maximum(moped_delta * np.abs(layer.kernel.numpy()), _SMALLEST_SCALE)
            new.kernel_rho.assign(softplus_inverse(scale))
            new.prior_loc.assign(layer.kernel)
    return copy
