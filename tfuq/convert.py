"""A deterministic model in, one that knows what it does not know out."""

import keras
import numpy as np

from tfuq._arguments import check_choice, check_positive
from tfuq._models.changes import clone_uncompiled
from tfuq._models.gradients import METHODS, squared_gradients
from tfuq.layers import (
    Conv1DVariational,
    Conv2DTransposeVariational,
    Conv2DVariational,
    DenseVariational,
    MCDropout,
    SparseBayesConv1D,
    SparseBayesConv2D,
    SparseBayesConv2DTranspose,
    SparseBayesConv3D,
    SparseBayesDense,
    SparseBayesDepthwiseConv2D,
)
from tfuq.layers.base import check_kl_weight, softplus_inverse
from tfuq.layers.saliency import SCOPES
from tfuq.layers.sparse_bayes import select_layers

__all__ = [
    "mc_dropout",
    "replace_head",
    "saliency",
    "sparse_bayesian",
    "to_deterministic",
    "variational",
]

# Means of the weights and the bias, as heads name them.
_HEAD_WEIGHTS = (("kernel", "bias"), ("loc_kernel", "loc_bias"))
_VARIATIONAL = {
    keras.layers.Dense: DenseVariational,
    keras.layers.Conv1D: Conv1DVariational,
    keras.layers.Conv2D: Conv2DVariational,
    keras.layers.Conv2DTranspose: Conv2DTransposeVariational,
}
_SPARSE = {
    keras.layers.Dense: SparseBayesDense,
    keras.layers.Conv1D: SparseBayesConv1D,
    keras.layers.Conv2D: SparseBayesConv2D,
    keras.layers.Conv3D: SparseBayesConv3D,
    keras.layers.Conv2DTranspose: SparseBayesConv2DTranspose,
    keras.layers.DepthwiseConv2D: SparseBayesDepthwiseConv2D,
}
_TWINS = {ours: twin for table in (_VARIATIONAL, _SPARSE) for twin, ours in table.items()}
_SPATIAL = {
    keras.layers.SpatialDropout1D: 1,
    keras.layers.SpatialDropout2D: 2,
    keras.layers.SpatialDropout3D: 3,
}
_ACTIVATIONS = (keras.layers.Activation, keras.layers.Softmax)
_SMALLEST_SCALE = 1e-6  # of MOPED's posterior, where a weight is 0


# --- The last layer ---------------------------------------------------------------------------


def replace_head(model, head, *, initialize=True, copy=False):
    """The model with `head` in place of its last layer.

    The last layer is the last one with weights, a `Dense` as a rule, even inside a nested model; a
    soft-max or other activation after it goes with it, so that the new model returns what `head`
    returns: logits. The means of the head's weights start from the old layer's.

    Args:
        model: A functional or `Sequential` Keras model with one output.
        head: The new last layer, not built yet, such as `VBLLDense` or `MCSoftmaxDenseFA`.
        initialize: Whether to set the means of the head's weights to those of the old layer.
        copy: Whether the new model gets copies of the other layers. By default the two models
            share them: training one trains the other.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: If the model cannot be taken apart, or `head` is built already, or does not fit
            the old layer's weights.

    Example:

    ```python
    import keras
    from tfuq.convert import replace_head
    from tfuq.layers import VBLLDense

    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    bayesian = replace_head(model, VBLLDense(3, kl_weight=0.001))
    ```
    """
    _check_graph(model)
    if not isinstance(head, keras.layers.Layer) or (head.built and head.weights):
        raise ValueError(
            f"Argument `head` must be a Keras layer that is not built yet. Received: head={head!r}"
        )
    if len(model.outputs) != 1:
        raise ValueError(
            "Argument `model` must have one output. "
            f"Received: a model with {len(model.outputs)} outputs"
        )
    if copy:
        model = _cloned(model, lambda layer: None)[0]
    new_model, old_head = _with_head(model, head)
    if initialize:
        _initialize(head, old_head)
    return new_model


def _with_head(model, head):
    """The new model, and the layer whose place `head` took."""
    tensor = model.outputs[0]
    while True:
        layer, inputs = _made_by(tensor)
        if isinstance(layer, keras.Model):
            inner, old_head = _with_head(layer, head)
            return keras.Model(_inputs_of(model), inner(inputs), name=model.name), old_head
        if not isinstance(layer, _ACTIVATIONS):
            break
        tensor = inputs
    if not layer.weights or not isinstance(inputs, keras.KerasTensor):
        raise ValueError(
            "Argument `model` must end in a layer with weights, such as Dense, and perhaps an "
            f"activation. Received: a model that ends in {layer!r}"
        )
    return keras.Model(_inputs_of(model), head(inputs), name=model.name), layer


def _inputs_of(model):
    """The symbolic inputs in the structure that the model is called with."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _made_by(tensor):
    """The layer that made a symbolic tensor, and from what."""
    layer, node_index, _ = tensor._keras_history
    arguments = layer._inbound_nodes[node_index].arguments.args
    return layer, arguments[0] if arguments else None


def _initialize(head, old):
    names = [pair for pair in _HEAD_WEIGHTS if hasattr(head, pair[0])]
    if not names:
        raise ValueError(
            "Argument `head` must have a kernel to start from the old weights; pass "
            f"initialize=False otherwise. Received: head={head!r}"
        )
    kernel, bias = names[0]
    new, given = getattr(head, kernel), getattr(old, "kernel", None)
    if given is None or tuple(new.shape) != tuple(given.shape):
        raise ValueError(
            "Argument `head` must have as many units as the layer it replaces, or "
            f"initialize=False. Received: a head with a kernel of shape {tuple(new.shape)} for "
            f"{old!r} with {None if given is None else tuple(given.shape)}"
        )
    new.assign(given)
    old_bias, new_bias = getattr(old, "bias", None), getattr(head, bias, None)
    if old_bias is not None and new_bias is None:
        raise ValueError(
            "Argument `head` must have a bias, as the layer it replaces has one. "
            f"Received: head={head!r}"
        )
    if old_bias is not None:
        new_bias.assign(old_bias)


# --- Whole networks ---------------------------------------------------------------------------


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
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`.
            Required.
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
    candidates = _leaves(model, tuple(_VARIATIONAL))
    chosen = _chosen(candidates, layers)

    def make(layer):
        if id(layer) in chosen:
            return _VARIATIONAL[type(layer)].from_config({**layer.get_config(), **options})
        return None

    copy, pairs = _cloned(model, make)
    if moped:
        for layer, new in pairs:
            scale = np.maximum(moped_delta * np.abs(layer.kernel.numpy()), _SMALLEST_SCALE)
            new.kernel_rho.assign(softplus_inverse(scale))
            new.prior_loc.assign(layer.kernel)
    return copy


def sparse_bayesian(
    model,
    data,
    loss=None,
    r_bayes=0.01,
    kl_weight=None,
    scope="layer",
    layers=None,
    *,
    bias_r_bayes=0.0,
    method="gradient",
    estimator="reparameterization",
    prior_scale=1.0,
    posterior_scale=0.05,
    batch_size=32,
    verbose=0,
):
    """A copy of a trained model of whose weights only the most salient are Gaussian.

    `Dense`, `Conv1D`, `Conv2D`, `Conv3D`, `Conv2DTranspose` and `DepthwiseConv2D` become
    `SparseBayesDense` and so on; all other layers are copied as they are. Nested models and shared
    layers are kept. Train the copy on: steps 2 and 3 of Abboud et al. 2024 are then done.

    Args:
        model: A functional or `Sequential` Keras model.
        data: What the gradients are computed on: `(x, y)` or `(x, y, sample_weight)` arrays, a
            `tf.data.Dataset` or a `keras.utils.PyDataset`.
        loss: Keras loss, its name, or a function of y_true and y_pred. `None`: the loss that
            `model` is compiled with.
        r_bayes: Fraction of the weights of the kernels that become random, in [0, 1].
        kl_weight: Weight of the KL divergence, normally `1 / number of training examples`.
            Required.
        scope: `"layer"`: that fraction of each kernel. `"global"`: of all kernels together, those
            with the largest gradients.
        layers: Names of the layers to convert; by default all that can be.
        bias_r_bayes: As `r_bayes`, of the biases.
        method: `"gradient"` or `"fisher"`; see `saliency`.
        estimator: Of the new layers, as in `tfuq.layers.SparseBayesDense`; by default one draw of
            the weights for each batch, whose training steps take the time and the memory of the
            plain network's. `"local_reparameterization"` draws for each example: gradients of less
            variance, for about 2 times the time and 1.5 times the memory.
        prior_scale, posterior_scale: Of the new layers.
        batch_size: Examples at a time, where `data` are arrays.
        verbose: 1 shows a progress bar.

    Returns:
        A model of the same kind and names, not compiled.

    Raises:
        ValueError: If an argument is out of its range, `kl_weight` is missing, `model` cannot be
            cloned or holds nothing to convert, a name in `layers` is not that of a layer that can
            be converted, or the loss gives no gradient for a layer, or one that is not finite.

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
    """
    check_kl_weight(kl_weight)
    check_choice("scope", scope, SCOPES)
    options = {
        "kl_weight": kl_weight,
        "r_bayes": r_bayes,
        "bias_r_bayes": bias_r_bayes,
        "estimator": estimator,
        "prior_scale": prior_scale,
        "posterior_scale": posterior_scale,
    }
    SparseBayesDense(1, **options)  # says what is wrong with them, if anything is
    chosen = _chosen(_leaves(model, tuple(_SPARSE)), layers)

    def make(layer):
        if id(layer) in chosen:
            return _SPARSE[type(layer)].from_config({**layer.get_config(), **options})
        return None

    copy, pairs = _cloned(model, make)
    weights = [getattr(layer, name) for layer, new in pairs for name in new.ranked_weights()]
    found = iter(
        squared_gradients(
            model, weights, data, loss, method=method, batch_size=batch_size, verbose=verbose
        )
    )
    found = [{name: next(found) for name in new.ranked_weights()} for _, new in pairs]
    select_layers([new for _, new in pairs], found, scope)
    return copy


def saliency(model, data, loss=None, *, method="gradient", batch_size=32, verbose=0):
    """How much each weight of a model matters to its loss: the squared gradients, in one pass.

    The model runs as when it predicts: no dropout, batch statistics frozen.

    Args:
        model: A built Keras model of any style.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`.
        loss: Keras loss, its name, or a function of y_true and y_pred. `None`: the loss that
            `model` is compiled with, and what its layers add.
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
    """
    check_choice("method", method, METHODS)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"Argument `model` must be a built Keras model. Received: {model!r}")
    variables = model.trainable_variables
    found = squared_gradients(
        model, variables, data, loss, method=method, batch_size=batch_size, verbose=verbose
    )
    named, seen = {}, {}
    for variable, squares in zip(variables, found, strict=True):
        number = seen[variable.path] = seen.get(variable.path, -1) + 1
        named[f"{variable.path}_{number}" if number else variable.path] = squares
    return named


def to_deterministic(model):
    """A copy of a model with random weights as plain Keras layers, with their means.

    Sparse Bayesian and variational layers become the Keras layers that they stand in for,
    `MCDropout` becomes `Dropout`; all other layers are copied as they are. The copy predicts what
    the model predicts, and needs tfuq no more, if nothing else of tfuq is in it.

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
    if not _leaves(model, (*_TWINS, MCDropout)):
        raise ValueError(
            "Argument `model` must hold layers with random weights, such as "
            "`tfuq.layers.SparseBayesDense`. "
            f"Received: a model with {sorted({type(x).__name__ for x in model.layers})}"
        )

    def make(layer):
        if type(layer) is MCDropout:
            config = {name: layer.get_config()[name] for name in ("name", "dtype")}
            return keras.layers.Dropout(layer.rate, layer.noise_shape, layer.seed, **config)
        twin = _TWINS.get(type(layer))
        # The twin's own `get_config` knows nothing of what stands before it among the bases.
        return None if twin is None else twin.from_config(twin.get_config(layer))

    return _cloned(model, make)[0]


def mc_dropout(model):
    """A copy of a model whose dropout stays on when predicting.

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
    if not _leaves(model, kinds):
        raise ValueError(
            "Argument `model` must hold Dropout or SpatialDropout layers. "
            f"Received: a model with {sorted({type(x).__name__ for x in model.layers})}"
        )
    return _cloned(model, lambda layer: _as_mc_dropout(layer) if type(layer) in kinds else None)[0]


def _as_mc_dropout(layer):
    shape = getattr(layer, "noise_shape", None)
    if type(layer) in _SPATIAL:
        ones = (1,) * _SPATIAL[type(layer)]
        first = getattr(layer, "data_format", None) == "channels_first"
        shape = (None, None, *ones) if first else (None, *ones, None)
    config = {"name": layer.name, "dtype": layer.get_config()["dtype"]}
    return MCDropout(layer.rate, noise_shape=shape, seed=layer.seed, **config)


def _check_graph(model):
    """Raises ValueError unless `model` is a graph of layers that is there already."""
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "Argument `model` must be built: call it, or give it an Input. "
            f"Received: {model!r}, which is not"
        )
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None):
        raise ValueError(
            f"Argument `model` must be a functional or Sequential Keras model. Received: {model!r}"
        )


def _leaves(model, kinds):
    """The layers of exactly these kinds, at any depth, each once."""
    _check_graph(model)
    return [layer for layer in model._flatten_layers() if type(layer) in kinds]


def _chosen(candidates, names):
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
            f"{sorted(found)}. Received: layers={names!r}"
        )
    return {id(layer) for layer in candidates if names is None or layer.name in names}


def _cloned(model, make):
    """A copy with the same weights, and the pairs of layers for which `make` gave a new one."""
    pairs = []

    def clone(layer):
        new = make(layer)
        if new is not None:
            pairs.append((layer, new))
            return new
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
