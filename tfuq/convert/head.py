"""Replacement of a model's last layer."""

import keras

from tfuq._arguments import shown
from tfuq.convert._copies import check_graph, cloned

# Means of the weights and the bias, as heads name them.
_HEAD_WEIGHTS = (("kernel", "bias"), ("loc_kernel", "loc_bias"))

_ACTIVATIONS = (keras.layers.Activation, keras.layers.Softmax)


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
    check_graph(model)
    if not isinstance(head, keras.layers.Layer) or (head.built and head.weights):
        raise ValueError(
            "Argument `head` must be a Keras layer that is not built yet. "
            f"Received: head={shown(head)}"
        )
    if len(model.outputs) != 1:
        raise ValueError(
            "Argument `model` must have one output. "
            f"Received: a model with {len(model.outputs)} outputs"
        )
    if copy:
        model = cloned(model, lambda layer: None)[0]
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
            f"activation. Received: a model that ends in {shown(layer)}"
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
            f"initialize=False otherwise. Received: head={shown(head)}"
        )
    kernel, bias = names[0]
    new, given = getattr(head, kernel), getattr(old, "kernel", None)
    if given is None or tuple(new.shape) != tuple(given.shape):
        raise ValueError(
            "Argument `head` must have as many units as the layer it replaces, or "
            f"initialize=False. Received: a head with a kernel of shape {tuple(new.shape)} for "
            f"{shown(old)} with {None if given is None else tuple(given.shape)}"
        )
    new.assign(given)
    old_bias, new_bias = getattr(old, "bias", None), getattr(head, bias, None)
    if old_bias is not None and new_bias is None:
        raise ValueError(
            "Argument `head` must have a bias, as the layer it replaces has one. "
            f"Received: head={shown(head)}"
        )
    if old_bias is not None:
        new_bias.assign(old_bias)
