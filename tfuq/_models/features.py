"""Logits of a classifier, and the features it computes on the way to them.

A model of any style is called as it is, while the layers of interest are watched; so what is read,
and the rest of the network behind a feature that is changed, are those of the model itself.
"""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfuq._arguments import check_model
from tfuq._models.changes import replaced, watched
from tfuq._models.feature_arrays import pooled, two_classes
from tfuq._models.meaning import Reading
from tfuq._predictions.probabilities import is_binary, probabilities

SAMPLE = 4  # examples that tell how a model is built
TINY = np.finfo("float32").tiny

# These have weights, but none of them is the layer that classifies.
_NOT_HEADS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
    keras.layers.RMSNormalization,
)
# Their `call` ends with the activation, so that without it there are the logits.
_ENDS_IN_ACTIVATION = (keras.layers.Dense.call, keras.layers.EinsumDense.call)


class Found(NamedTuple):
    """Of a batch: logits `(batch, classes)`, and features `(batch, d)` of the layers asked for."""

    logits: tf.Tensor
    features: tuple
    outputs: tf.Tensor  # the output itself, float32


class Linear(NamedTuple):
    """A last layer: logits = features kernel + bias."""

    kernel: np.ndarray
    bias: np.ndarray


class _LogitLayer(NamedTuple):
    """The layer whose input are the penultimate features, and what is known of it."""

    layer: keras.layers.Layer
    gives_logits: bool  # before its activation
    is_linear: bool  # a matrix product on `(batch, d)`


def without_nan(batch):
    """The batch with 0 in place of what is not finite."""

    def clean(leaf):
        if not leaf.dtype.is_floating:
            return leaf
        return tf.where(tf.math.is_finite(leaf), leaf, tf.zeros_like(leaf))

    return tf.nest.map_structure(clean, batch)


class Tap:
    """Reads logits and features from a model.

    Args:
        model: Keras model of any style.
        layers: Names (or paths) of the layers whose outputs to read; None stands for what the last
            layer takes, the penultimate features.
        output: Which output is the classification, when the model has several.
        from_logits: Whether that holds logits; None to find out.
        pool: Whether features of more axes are averaged over those between the first and the last;
            they are flattened otherwise.
    """

    def __init__(self, model, layers=(), output=None, from_logits=None, pool=True):
        check_model(model)
        self.model, self.layers, self.pool = model, tuple(layers), pool
        self.reading = Reading(output, from_logits, None)
        self._head = self._named = self._is_logits = None
        self._compiled = self.compiled(self.forward)

    def __call__(self, batch):
        """`Found` of a batch, as arrays."""
        self.prepare(batch)
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), self._compiled(batch))

    def compiled(self, function):
        """`function` as the model would run it, to be called once `prepare` was."""
        if self.model.run_eagerly:
            return function
        return tf.function(function, autograph=False, reduce_retracing=True)

    def prepare(self, batch):
        """Finds, at the first batch, the layers to read and what the outputs mean."""
        if self._head is None:
            rows = tf.nest.map_structure(lambda leaf: leaf[:SAMPLE], without_nan(batch))
            self._named = [
                None if layer is None else find_layer(self.model, layer) for layer in self.layers
            ]
            # Last, as it tells other threads that all is found.
            self._is_logits, self._head = _find_head(self.model, self.reading, rows)

    def forward(self, batch, rectify=None):
        """`Found` of a batch, as tensors.

        With `rectify`, the network goes on with what that makes of the features.
        """
        kept = {}  # of each layer its output, of None the input of the head
        with contextlib.ExitStack() as stack:
            for layer in set(self._named) - {None}:
                stack.enter_context(watched(layer, _keep_output(kept, layer, rectify)))
            change = rectify if None in self._named else None
            stack.enter_context(watched(self._head.layer, self._keep_head(kept, change)))
            outputs = self.reading.select(self.model, batch)
        pairs = zip(self.layers, self._named, strict=True)
        features = tuple(self._feature(kept, *pair) for pair in pairs)
        return Found(self._logits(kept["logits"], outputs), features, outputs)

    def _keep_head(self, kept, rectify):
        def handler(call, *args, **kwargs):
            kept[None] = _first(args, kwargs)
            args, kwargs = _changed(rectify, args, kwargs)
            kept["logits"], outputs = _before_activation(self._head.layer, call, args, kwargs)
            return outputs

        return handler

    def _feature(self, kept, name, layer):
        if layer not in kept:
            raise ValueError(
                "Argument `layer` must be a layer that runs when the model is called. "
                f"Received: {name!r}, which does not"
            )
        features = pooled(kept[layer]) if self.pool else keras.layers.Flatten()(kept[layer])
        return tf.cast(features, "float32")

    def _logits(self, before_activation, outputs):
        if self._head.gives_logits:
            logits = tf.cast(before_activation, "float32")
        else:
            logits = outputs if self._is_logits else tf.math.log(tf.maximum(outputs, TINY))
        return two_classes(logits)

    def check_knows_logits(self):
        """Raises ValueError if the logits are but logarithms of probabilities."""
        if not (self._head.gives_logits or self._is_logits):
            raise ValueError(
                "Argument `model` must return logits, or end in a Dense layer with a soft-max: "
                "probabilities tell logits up to a constant only. "
                f"Received: model={self.model!r}"
            )

    def last_layer(self):
        """`Linear` from the penultimate features to the logits, or None if it is not that."""
        if not self._head.is_linear:
            return None
        return linear(*_weights(self._head.layer))


def linear(kernel, bias):
    """`Linear` with a column for each of at least two classes."""
    columns = np.concatenate([kernel, bias[None]])
    columns = np.asarray(two_classes(columns), "float64")
    return Linear(columns[:-1], columns[-1])


def find_layer(model, name):
    """The layer at any depth with this name or path, or a ValueError that lists the names."""
    layers = list(dict.fromkeys(model._flatten_layers(include_self=False)))
    found = [layer for layer in layers if name in (layer.name, layer.path)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(repr(layer.path if found else layer.name) for layer in found or layers)
    raise ValueError(
        f"Argument `layer` must name {'just ' if found else ''}one layer of the model: {known}. "
        f"Received: layer={name!r}"
    )


def _first(args, kwargs):
    """The tensor that a layer is called on."""
    return tf.nest.flatten(args[0] if args else next(iter(kwargs.values())))[0]


def _changed(change, args, kwargs):
    """The arguments, with the first as `change` makes it."""
    if change is None:
        return args, kwargs
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name, value = next(iter(kwargs.items()))
    return args, {**kwargs, name: change(value)}


def _keep_output(kept, layer, rectify):
    def handler(call, *args, **kwargs):
        outputs = call(*args, **kwargs)
        kept[layer] = tf.nest.flatten(outputs)[0]
        return outputs if rectify is None else rectify(outputs)

    return handler


def _before_activation(layer, call, args, kwargs):
    """What `layer` gives without its activation (the first tensor of it), and what it gives."""
    if type(layer).call not in _ENDS_IN_ACTIVATION or layer.activation is None:
        outputs = call(*args, **kwargs)
        return tf.nest.flatten(outputs)[0], outputs
    activation = layer.activation
    with replaced(layer, "activation", lambda _: keras.activations.linear):
        logits = call(*args, **kwargs)
    return logits, activation(logits)


def _find_head(model, reading, batch):
    """Whether a model returns logits, and its `_LogitLayer`.

    That is the last layer with weights whose outputs, before the activation, are the logits. Where
    there is none (logits are averaged, say, or normalized after it) it is the last of all.
    """
    outputs = reading.select(model, batch)  # builds what is not built
    calls = _calls(model, reading, batch)
    reading = reading.known(model, batch)
    is_logits = reading.from_logits
    _check_outputs(model, reading, outputs)
    for layer, features, logits in reversed(calls):
        if _agree(logits, outputs, is_logits):
            return is_logits, _LogitLayer(layer, True, _is_linear(layer, features, logits))
    if not calls:
        raise ValueError(
            f"Argument `model` must have a layer with weights. Received: model={model!r}"
        )
    return is_logits, _LogitLayer(calls[-1][0], False, False)


def _calls(model, reading, batch):
    """`(layer, its input, its output before the activation)` of what may be a head, in order."""
    calls = []

    def note(layer):
        def handler(call, *args, **kwargs):
            logits, outputs = _before_activation(layer, call, args, kwargs)
            calls.append((layer, _first(args, kwargs), logits))
            return outputs

        return handler

    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers(include_self=False):
            is_leaf = not list(layer._flatten_layers(include_self=False))
            if layer.weights and is_leaf and not isinstance(layer, _NOT_HEADS):
                stack.enter_context(watched(layer, note(layer)))
        reading.select(model, batch)
    return calls


def _check_outputs(model, reading, outputs):
    if outputs.shape.rank != 2:
        raise ValueError(
            "Argument `model` must return one prediction per example, (batch, classes). "
            f"Received: outputs of shape {tuple(outputs.shape)}"
        )
    if reading.multi_label and outputs.shape[-1] > 1:
        raise ValueError(
            "Argument `model` must give classes that exclude one another. Received: model "
            f"{model.name!r} with {outputs.shape[-1]} labels that do not"
        )
    reading.checked(outputs.numpy())


def _agree(logits, outputs, is_logits):
    """Whether the outputs are these logits or, of a model of probabilities, come from them."""
    if logits.shape != outputs.shape:
        return False
    binary = is_binary(outputs.shape, multi_label=False)
    expected = probabilities(tf.cast(logits, "float32"), not is_logits, binary)
    return _are_close(expected, outputs, logits.dtype)


def _is_linear(layer, features, logits):
    """Whether the logits are what the kernel and bias of `layer` make of the features."""
    if not isinstance(layer, keras.layers.Dense) or features.shape.rank != 2:
        return False
    kernel, bias = _weights(layer)
    return _are_close(np.asarray(features, "float64") @ kernel + bias, logits, logits.dtype)


def _weights(layer):
    """Kernel and bias of a `Dense`, as arrays of float64."""
    kernel = ops.convert_to_numpy(layer.kernel).astype("float64")
    bias = np.zeros(kernel.shape[1]) if layer.bias is None else ops.convert_to_numpy(layer.bias)
    return kernel, bias.astype("float64")


def _are_close(found, expected, dtype):
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    return np.allclose(found, expected, rtol=tolerance, atol=tolerance)
