"""Replacement of a model's last layer."""

from __future__ import annotations

import keras

from tfuq._arguments import Output, check_flags, shown
from tfuq._random.draws import warn_of_lost_posterior
from tfuq.convert._copies import check_graph, cloned
from tfuq.convert._twins import is_quantized

# Means of the weights and the bias, as heads name them.
_HEAD_WEIGHTS = (("kernel", "bias"), ("loc_kernel", "loc_bias"))

_ACTIVATIONS = (keras.layers.Activation, keras.layers.Softmax)
_RESHAPING = (keras.layers.Flatten, keras.layers.Reshape)
_POOLING = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)


def replace_head(
    model: keras.Model,
    head: keras.layers.Layer,
    *,
    initialize: bool = True,
    copy: bool = False,
    output: Output | None = None,
) -> keras.Model:
    """The model with `head` in place of its last layer.

    The last layer is the last one with weights, a `Dense` or a convolution as a rule, even inside a
    nested model; a soft-max or other activation after it goes with it, so that the new model
    returns what `head` returns: logits. The means of the head's weights start from the old layer's.

    If a 1x1 convolution is replaced, a head like `Dense` acts at each place. If the convolution had
    only one place, as in MobileNet, its features are flattened first; if an average over all places
    followed, they are averaged first: the function stays the same.

    Args:
        model: A functional or `Sequential` Keras model.
        head: The new last layer, not built yet, such as `VBLLDense` or `MCSoftmaxDenseFA`.
        initialize: Whether to set the means of the head's weights to those of the old layer.
        copy: Whether the new model gets copies of the other layers. By default the two models
            share them: training one trains the other.
        output: The output to replace, if the model has several: its name, its key or its index. The
            others stay as they are.

    Returns:
        A functional `keras.Model`, not compiled.

    Raises:
        ValueError: If the model cannot be taken apart, or `head` is built already, or does not fit
            the old layer's weights, or the model has several outputs and none is named.

    Example:

    ```python
    import keras
    from tfuq.convert import replace_head
    from tfuq.layers import VBLLDense

    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    bayesian = replace_head(model, VBLLDense(3, kl_weight=0.001))
    ```

    See also: `tfuq.layers.VBLLDense`, `tfuq.convert.laplace_head`, `tfuq.convert.report`.
    """
    check_flags(initialize=initialize, copy=copy)
    check_graph(model)
    if not isinstance(head, keras.layers.Layer) or (head.built and head.weights):
        raise ValueError(
            "Argument `head` must be a Keras layer that is not built yet. "
            f"Received: head={shown(head)}"
        )
    number = _number_of(model, output)
    if copy:
        model = cloned(model, lambda layer: None)[0]
    else:
        warn_of_lost_posterior([model], "the new model")
    new_model, old_head = with_head(model, number, head)
    if initialize:
        start_from(head, old_head)
    return new_model


def layer_at_end(model):
    """The layer with weights that makes the one output of a model, even inside a nested one.

    Raises:
        ValueError: If the model ends in none.
    """
    layer = _last_layer(model.outputs[0])[0]
    return layer_at_end(layer) if isinstance(layer, keras.Model) else layer


def _number_of(model, output):
    """Which of the model's outputs is meant: its index."""
    is_sequential = isinstance(model, keras.Sequential)
    names = [model.layers[-1].name] if is_sequential else list(model.output_names)
    if isinstance(getattr(model, "output", None), dict):
        names = sorted(model.output)  # the order of `model.outputs`
    if output is None and len(names) == 1:
        return 0
    is_index = isinstance(output, int) and not isinstance(output, bool)
    if is_index and 0 <= output < len(names):
        return output
    if isinstance(output, str) and names.count(output) == 1:
        return names.index(output)
    raise ValueError(
        "Argument `output` must name one output of the model, or be its index, as it has several: "
        f"{names}. Received: output={shown(output)}"
    )


def with_head(model, number, head):
    """The new model, and the layer whose place `head` took in output `number`."""
    old = model.outputs[number]
    layer, inputs, between = _last_layer(old)
    if isinstance(layer, keras.Model):
        if len(layer.outputs) > 1:
            raise ValueError(
                "Argument `model` must have no model inside with several outputs, one of which is "
                f"to be replaced. Received: {layer.name!r}"
            )
        inner, old_head = with_head(layer, 0, head)
        new = _after(inner(inputs), between)
    else:
        old_head, new = layer, _placed(head, layer, inputs, between)
    if isinstance(model, keras.Sequential) or len(model.outputs) == 1:
        return keras.Model(_inputs_of(model), new, name=model.name), old_head
    outputs = keras.tree.map_structure(lambda each: new if each is old else each, model.output)
    return keras.Model(_inputs_of(model), outputs, name=model.name), old_head


def _last_layer(tensor):
    """The layer or model with weights that a tensor comes from, what it took, and what came after.

    Activations after it are left out, if nothing but a change of shape came after them.
    """
    between = []
    while True:
        layer, inputs = _made_by(tensor)
        is_activation = isinstance(layer, _ACTIVATIONS)
        if not is_activation and not isinstance(layer, (*_RESHAPING, *_POOLING)):
            break
        if not is_activation:
            between.insert(0, layer)
        elif any(isinstance(each, _POOLING) for each in between):
            raise ValueError(
                "Argument `model` must end in a layer with weights, and no activation before an "
                f"average over places. Received: a model with {layer.name!r} before "
                f"{between[0].name!r}"
            )
        tensor = inputs
    if not getattr(layer, "weights", None) or not isinstance(inputs, keras.KerasTensor):
        raise ValueError(
            "Argument `model` must end in a layer with weights, such as Dense, and perhaps an "
            f"activation. Received: a model that ends in {shown(layer)}"
        )
    return layer, inputs, between


def _placed(head, layer, inputs, between):
    """What `head` makes in place of `layer`, with the layers that come after it."""
    is_dense = not hasattr(head, "kernel_size")
    if is_dense and getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(
            "Argument `head` must be a convolution in place of one with channels first. "
            f"Received: head={shown(head)} for {shown(layer)}"
        )
    if is_dense and any(isinstance(each, _POOLING) for each in between):
        first = [each for each in between if isinstance(each, _POOLING)]
        if len(first) == len(between) and _is_pointwise(layer):
            return head(_after(inputs, [type(x).from_config(x.get_config()) for x in between]))
    places = inputs.shape[1:-1]
    is_flat = between and all(isinstance(each, _RESHAPING) for each in between)
    if (
        is_dense
        and is_flat
        and places
        and set(places) == {1}
        and len(between[-1].output.shape) == 2
    ):
        return head(keras.layers.Flatten()(inputs))
    return _after(head(inputs), between)


def _after(outputs, layers):
    """What layers make of the outputs of a head, one after the other."""
    if layers and not isinstance(outputs, keras.KerasTensor):
        raise ValueError(
            "Argument `head` must return its logits alone, as `logits_only=True` has it, as "
            f"{[layer.name for layer in layers]} comes after it. Received: a head with several "
            "outputs"
        )
    for layer in layers:
        outputs = layer(outputs)
    return outputs


def _is_pointwise(layer):
    size = getattr(layer, "kernel_size", ())
    return set(size) <= {1} and getattr(layer, "activation", None) in (
        None,
        keras.activations.linear,
    )


def _inputs_of(model):
    """The symbolic inputs in the structure that the model is called with."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _made_by(tensor):
    """The layer that made a symbolic tensor, and from what."""
    layer, node_index, _ = tensor._keras_history
    arguments = layer._inbound_nodes[node_index].arguments.args
    return layer, arguments[0] if arguments else None


def start_from(head, old):
    """Sets the means of the weights of `head` to those of the layer whose place it took."""
    kernel, bias = _weights_of(head)
    if kernel is None:
        raise ValueError(
            "Argument `head` must have a kernel to start from the old weights; pass "
            f"initialize=False otherwise. Received: head={shown(head)}"
        )
    if is_quantized(old):
        raise ValueError(
            "Argument `initialize` must be False for a layer with quantized weights. "
            f"Received: initialize=True for {shown(old)}"
        )
    if getattr(old, "num_members", 1) > 1:
        raise ValueError(
            "Argument `initialize` must be False in the place of a layer whose members have "
            f"weights of their own. Received: initialize=True for {shown(old)}"
        )
    given, old_bias = _weights_of(old)
    if given is None:
        raise ValueError(
            "Argument `initialize` must be False in the place of a layer without a kernel. "
            f"Received: initialize=True for {shown(old)}"
        )
    shape = tuple(given.shape)
    if len(shape) > len(kernel.shape) and set(shape[:-2]) == {1}:  # of a convolution of one pixel
        given, shape = keras.ops.reshape(given, shape[-2:]), shape[-2:]
    if shape != tuple(kernel.shape):
        raise ValueError(
            "Argument `head` must have as many units as the layer it replaces, or "
            f"initialize=False. Received: a head with a kernel of shape {tuple(kernel.shape)} for "
            f"{shown(old)} with {shape}"
        )
    kernel.assign(given)
    if old_bias is not None and bias is None:
        raise ValueError(
            "Argument `head` must have a bias, as the layer it replaces has one. "
            f"Received: head={shown(head)}"
        )
    if old_bias is not None:
        # Of a head with members, who all start from it.
        bias.assign(keras.ops.broadcast_to(keras.ops.convert_to_tensor(old_bias), bias.shape))


def _weights_of(layer):
    """Kernel and bias, or None for what a layer has not; of the `last_layer` of a noisy head."""
    layer = getattr(layer, "mean_layer", None) or layer
    for kernel, bias in _HEAD_WEIGHTS:
        if hasattr(layer, kernel):
            return getattr(layer, kernel), getattr(layer, bias, None)
    return None, None
