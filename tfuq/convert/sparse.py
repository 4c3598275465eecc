"""Sparse Bayesian copies of trained models, and the saliency of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfuq._arguments import Data, check_choice, shown
from tfuq._models.gradients import METHODS, squared_gradients
from tfuq.convert._copies import (
    check_all_changed,
    chosen_layers,
    cloned,
    conversions,
    leaves,
    left_over,
)
from tfuq.convert._report import told
from tfuq.convert._twins import SPARSE, configuration, is_quantized
from tfuq.layers import SparseBayesDense
from tfuq.layers.base import check_kl_weight
from tfuq.layers.saliency import SCOPES
from tfuq.layers.selection import (
    BY_DEPTH,
    check_which,
    choose_layers,
    less_than_one,
    needs_gradients,
    select_layers,
)
from tfuq.optimizers.ivon import hessians_of


def sparse_bayesian(
    model: keras.Model,
    data: Data,
    loss: Any = None,
    r_bayes: float | None = None,
    kl_weight: float | None = None,
    scope: str = "layer",
    layers: Sequence[str] | None = None,
    *,
    which: str = "saliency",
    saliency: str = "gradient",
    bias_r_bayes: float = 0.0,
    method: str = "gradient",
    estimator: str = "reparameterization",
    prior_scale: float = 1.0,
    posterior_scale: float = 0.05,
    batch_size: int = 32,
    seed: int = 0,
    verbose: int = 0,
) -> keras.Model:
    """A copy of a trained model in which only the most salient weights are Gaussian.

    `Dense`, `Conv1D`, `Conv2D`, `Conv3D`, `Conv2DTranspose` and `DepthwiseConv2D` become
    `SparseBayesDense` and so on; all other layers are copied as they are. Nested models and shared
    layers are kept. One line says what was converted; `tfuq.convert.report(copy)` names each layer.
    Train the copy on: steps 2 and 3 of Abboud et al. 2024 are then done.

    Args:
        model: A functional or `Sequential` Keras model.
        data: Data for the gradients: `(x, y)` or `(x, y, sample_weight)` arrays, a
            `tf.data.Dataset` or a `keras.utils.PyDataset`. `None` if another `which` or `saliency`
            needs no gradients.
        loss: Keras loss, its name, or a function of y_true and y_pred; of several outputs a dict or
            list of them, which are added. `None`: the loss that `model` is compiled with.
        r_bayes: Fraction of the weights of the kernels that become random, in [0, 1]; of each
            kernel at least one weight, unless it is 0. By default 0.01, and for
            `which="first"` or `"last"` the whole kernel of that layer.
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`;
            `tfuq.kl_weight_for(data, loss)` computes it. Required.
        scope: `"layer"`: that fraction of each kernel. `"global"`: of all kernels together, those
            with the largest gradients.
        layers: Names of the layers to convert; by default all that can be.
        which: Which weights those are (Sharma et al. 2023 compare them). `"saliency"`: the most
            salient. `"magnitude"`: the largest. `"random"`: any, by `seed`. `"first"`, `"last"`:
            those of the first or last layer; with `r_bayes` that fraction of all kernels together,
            from the first or last layer on. `"biases"`: the fraction `bias_r_bayes` of the biases,
            all of them if that is 0, and no weight of a kernel.
        saliency: `"gradient"`: squared gradients, see `method`. `"ivon"`: the Hessian of the
            `tfuq.optimizers.IVON` that has trained `model`.
        bias_r_bayes: As `r_bayes`, of the biases.
        method: `"gradient"` or `"fisher"`; see `saliency`.
        estimator: Of the new layers, as in `tfuq.layers.SparseBayesDense`; by default one draw of
            the weights for each batch, whose training steps take the time and the memory of the
            plain network's. `"local_reparameterization"` draws for each example: gradients of less
            variance, for about 2 times the time and 1.5 times the memory.
        prior_scale, posterior_scale: Of the new layers.
        batch_size: Examples at a time, where `data` are arrays.
        seed: Integer that determines which weights chance chooses.
        verbose: 1 shows a progress bar.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If an argument is out of its range, `kl_weight` is missing, `model` cannot be
            cloned or holds nothing to convert, a name in `layers` is not that of a layer that can
            be converted, the loss gives no gradient for a layer, or one that is not finite, or no
            IVON has trained the model whose Hessian is asked for.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.convert import sparse_bayesian

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    bayesian = sparse_bayesian(model, (x, y), loss, r_bayes=0.05, kl_weight=1 / 64)
    bayesian.compile("adam", loss)
    bayesian.fit(x, y, verbose=0)
    ```

    References:
        - Abboud, Lombaert and Kadoury, "Sparse Bayesian Networks: Efficient Uncertainty
          Quantification in Medical Image Analysis", MICCAI 2024.
        - Sharma, Farquhar, Nalisnick and Rainforth, "Do Bayesian Neural Networks Need To Be Fully
          Stochastic?", AISTATS 2023.

    See also: `tfuq.convert.saliency`, `tfuq.callbacks.SaliencySelection`,
    `tfuq.convert.variational`.
    """
    check_kl_weight(kl_weight)
    check_choice("scope", scope, SCOPES)
    _check_choice(which, saliency, method, seed, r_bayes, data)
    options = {
        "kl_weight": kl_weight,
        "r_bayes": 0.01 if r_bayes is None else r_bayes,
        "bias_r_bayes": bias_r_bayes,
        "estimator": estimator,
        "prior_scale": prior_scale,
        "posterior_scale": posterior_scale,
    }
    SparseBayesDense(1, **options)  # says what is wrong with them, if anything is
    model, loss = _without_lora(model, loss)
    candidates = leaves(model, _can_be_sparse)
    chosen = chosen_layers(model, candidates, layers)
    named = chosen
    if r_bayes is None and which in (*BY_DEPTH, "biases"):
        chosen, options["r_bayes"] = _whole(which, [x for x in candidates if id(x) in chosen])

    def make(layer):
        if id(layer) in chosen:
            return SPARSE[type(layer)].from_config({**layer.get_config(), **options})
        return None

    copy, pairs = cloned(model, make)
    check_all_changed(candidates, chosen, pairs)
    news = [new for _, new in pairs]
    few = less_than_one(news, which, scope)
    if which == "saliency":
        weights = [getattr(layer, name) for layer, new in pairs for name in new.ranked_weights()]
        reading = {"method": method, "batch_size": batch_size, "verbose": verbose}
        found = _saliencies(model, weights, data, loss, saliency, reading)
        found = [{name: next(found) for name in new.ranked_weights()} for new in news]
        select_layers(news, found, scope)
    else:
        choose_layers(news, which, scope, seed)
    why_not = {"why_not": f"which={which!r}"} if chosen != named else {}
    left = left_over(model, candidates, chosen, pairs, SPARSE, **why_not)
    return told(copy, "sparse_bayesian", conversions(pairs, chosen), left, few)


def _check_choice(which, saliency, method, seed, r_bayes, data):
    """Raises ValueError unless the arguments say which weights are random."""
    check_which(which, saliency, method, seed)
    if which == "biases" and r_bayes is not None:
        raise ValueError(
            "Argument `r_bayes` must be left out for which='biases', where no weight of a kernel "
            "is random: set the share of the biases with `bias_r_bayes`. Received: "
            f"r_bayes={shown(r_bayes)}"
        )
    if data is None and needs_gradients(which, saliency):
        raise ValueError(
            "Argument `data` must be given where gradients choose the weights. Received: data=None"
        )


def _saliencies(model, weights, data, loss, saliency, reading):
    """An iterator over the saliencies of `weights`, arrays."""
    if saliency == "ivon":
        return iter(hessians_of(model, weights))
    return iter(squared_gradients(model, weights, data, loss, **reading))


def _whole(which, layers):
    """Ids of those of `layers` that have random weights, and the share of their kernels."""
    if which == "biases":
        return {id(each) for each in layers if each.use_bias} or set(map(id, layers)), 0.0
    return {id(layers[-1 if which == "last" else 0])}, 1.0


def _can_be_sparse(layer):
    return type(layer) in SPARSE and not is_quantized(layer)


def _without_lora(model, loss):
    """The model with what LoRA has added in its kernels, of which gradients are then taken."""
    if not leaves(model, _has_lora):
        return model, loss

    def make(layer):
        if _can_be_sparse(layer) and _has_lora(layer):
            return type(layer).from_config(configuration(layer))
        return None

    return cloned(model, make)[0], model.loss if loss is None else loss


def _has_lora(layer):
    return getattr(layer, "lora_enabled", False)


def saliency(
    model: keras.Model,
    data: Data,
    loss: Any = None,
    *,
    method: str = "gradient",
    batch_size: int = 32,
    verbose: int = 0,
) -> dict[str, np.ndarray]:
    """Saliency of each weight of a model: squared gradients of the loss, in one pass.

    The model runs in inference mode: no dropout, batch statistics frozen.

    Args:
        model: A built Keras model of any style.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`.
        loss: Keras loss, its name, or a function of y_true and y_pred; of several outputs a dict or
            list of them, which are added. `None`: the loss that `model` is compiled with, and what
            its layers add.
        method: `"gradient"`: (dL / dw)^2 of each batch's loss, averaged over the batches (Abboud
            et al. 2024). `"fisher"`: of each example's loss, averaged over the examples: the
            diagonal of the empirical Fisher information; one example at a time.
        batch_size: Examples at a time, where `data` are arrays.
        verbose: 1 shows a progress bar.

    Returns:
        Dict from the path of each trainable variable to an array of its shape, float32. Of
        variables that share a path, the second has `"_1"` behind it, and so on.

    Raises:
        ValueError: If an argument is not as described, or the loss gives no gradient for a
            variable, or one that is not finite.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.convert import saliency

    x, y = np.random.rand(64, 8), np.random.rand(64, 3)
    head = keras.layers.Dense(3, name="head")
    model = keras.Sequential([keras.Input((8,)), head], name="net")
    print(saliency(model, (x, y), "mse")["net/head/kernel"].shape)  # (8, 3)
    ```

    See also: `tfuq.convert.sparse_bayesian`, `tfuq.callbacks.SaliencySelection`.
    """
    check_choice("method", method, METHODS)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"Argument `model` must be a built Keras model. Received: {shown(model)}")
    variables = model.trainable_variables
    found = squared_gradients(
        model, variables, data, loss, method=method, batch_size=batch_size, verbose=verbose
    )
    named, seen = {}, {}
    for variable, squares in zip(variables, found, strict=True):
        number = seen[variable.path] = seen.get(variable.path, -1) + 1
        named[f"{variable.path}_{number}" if number else variable.path] = squares
    return named
