"""The layer of a classifier that makes its logits, found by calling the model as it is.

It shows what a model does not return: the logits before a soft-max or sigmoid, and before a head
averages over its weights, of which what comes out is normalized.
"""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfuq._models.changes import replaced, watched
from tfuq._models.feature_arrays import pooled
from tfuq._predictions.probabilities import probabilities

# These have weights, but none of them is the layer that classifies.
_NOT_HEADS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
    keras.layers.RMSNormalization,
)
# Their `call` ends with the activation, so that without it there are the logits.
_ENDS_IN_ACTIVATION = (
    keras.layers.Activation.call,
    keras.layers.Conv2D.call,
    keras.layers.Conv2DTranspose.call,
    keras.layers.Dense.call,
    keras.layers.EinsumDense.call,
)


class LogitLayer(NamedTuple):
    """A layer that makes the logits of a model; or, where none shows them, its last layer."""

    layer: keras.layers.Layer
    gives_logits: bool  # before its activation, averaged over positions that the output has not
    is_linear: bool  # a matrix product on `(batch, d)`, as of a 1x1 convolution on pooled inputs

    def weights(self):
        """Kernel and bias of the logits' map as arrays of float64, or None if it is not that."""
        return _weights(self.layer) if self.is_linear else None


class Call(NamedTuple):
    """A call of a layer: what it took, and what it gave before its activation."""

    layer: keras.layers.Layer
    inputs: tf.Tensor
    logits: tf.Tensor
    own_logits: tf.Tensor  # of a head, those of its mean; else the same
    outputs: object = None  # all that it gave


def calls_of(model, reading, batch, only_heads=True):
    """The output of a model, and each `Call` of a layer that may make its logits, in order."""
    calls = []

    def note(layer):
        def handler(call, *args, **kwargs):
            seen, outputs = _called(layer, call, args, kwargs)
            if tf.executing_eagerly():  # not what the body of a loop holds
                calls.append(seen._replace(outputs=outputs))
            return outputs

        return handler

    with contextlib.ExitStack() as stack:
        for layer in dict.fromkeys(model._flatten_layers(include_self=False)):
            is_leaf = is_head(layer) or not list(layer._flatten_layers(include_self=False))
            if is_leaf and (not only_heads or _may_classify(layer)):
                stack.enter_context(watched(layer, note(layer)))
        outputs = reading.select(model, batch)
    return outputs, calls


def logit_layer(calls, outputs, reading):
    """The `LogitLayer` of the last call from whose logits the outputs come, or None.

    Args:
        calls: `Call`s of a model.
        outputs: Its output.
        reading: `Reading` of it, both flags known.
    """
    call = logit_call(calls, outputs, reading)
    return None if call is None else LogitLayer(call.layer, True, _is_linear(call))


def logit_call(calls, outputs, reading):
    """The last of `calls` from whose logits the outputs come, or None."""
    found = (call for call in reversed(calls) if _agree(call.logits, outputs, reading))
    return next(found, None)


def number_call(calls, outputs):
    """The last of `calls` that gives what a regression returns, whatever its shape, or None."""
    count = outputs.shape[0]

    def gives(call):
        for tensor in tf.nest.flatten(call.outputs):
            if (
                tensor.dtype.is_floating
                and tensor.shape.num_elements() == outputs.shape.num_elements()
            ):
                rows = [
                    tf.reshape(tf.cast(each, "float32"), (count, -1)) for each in (tensor, outputs)
                ]
                if _are_close(*rows, tensor.dtype):
                    return True
        return False

    return next((call for call in reversed(calls) if gives(call)), None)


def like_outputs(logits, outputs):
    """Logits `(batch, ..., classes)` averaged over positions, where the outputs have none."""
    return pooled(logits) if outputs.shape.rank == 2 and logits.shape.rank > 2 else logits


def are_normalized(calls, outputs):
    """Whether logits whose layer does not show are on no scale of their own.

    They come from a head that normalizes, or are logarithms of probabilities.
    """
    sums = ops.convert_to_numpy(ops.logsumexp(outputs, axis=-1))
    from_head = any(is_head(c.layer) and c.layer.output_meaning().normalized for c in calls)
    return from_head or (outputs.shape[-1] > 1 and bool(np.all(np.abs(sums) < 1e-4)))


@contextlib.contextmanager
def call_kept(layer, change=None):
    """While it is open, the last `Call` of `layer` is kept: yields a list of it.

    With `change`, the layer takes what that makes of its inputs.
    """
    kept = []

    def handler(call, *args, **kwargs):
        inputs = _first(args, kwargs)
        seen, outputs = _called(layer, call, *_changed(change, args, kwargs))
        kept[:] = [seen._replace(inputs=inputs)]
        return outputs

    with watched(layer, handler):
        yield kept


def is_head(layer):
    """Whether a layer follows the protocol of `tfuq.layers.heads`."""
    return hasattr(layer, "output_meaning") and hasattr(layer, "mean_logits")


def linear_map(layer):
    """Kernel and bias (or None) of a layer's logits, of a head those of its mean; or None.

    Of a 1x1 convolution they are those of its map at each position.
    """
    if hasattr(layer, "linear_map"):
        return layer.linear_map()
    if isinstance(layer, keras.layers.Dense):
        return _dense_kernel(layer), layer.bias
    if _is_pointwise(layer):
        return ops.reshape(layer.kernel, layer.kernel.shape[-2:]), layer.bias
    return None


def _dense_kernel(layer):
    """The kernel that a Dense layer multiplies by: of int8 weights, what they stand for."""
    if layer.quantization_mode != "int8":
        return layer.kernel
    scale = ops.convert_to_numpy(layer.kernel_scale)
    return ops.convert_to_numpy(layer.kernel).astype("float32") / scale


def _is_pointwise(layer):
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    if not isinstance(layer, kinds) or layer.data_format == "channels_first":
        return False
    return set(layer.kernel_size) == set(layer.strides) == {1} and layer.groups == 1


def _may_classify(layer):
    return layer.weights and not isinstance(layer, _NOT_HEADS)


def _called(layer, call, args, kwargs):
    """The `Call` of a layer, and all that it gives."""
    inputs = _first(args, kwargs)
    logits, outputs = _before_activation(layer, call, args, kwargs)
    own = layer.mean_logits(inputs) if is_head(layer) else logits
    return Call(layer, inputs, logits, own), outputs


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


def _before_activation(layer, call, args, kwargs):
    """What `layer` gives without its activation (the first tensor of it), and what it gives."""
    if type(layer).call is keras.layers.Softmax.call:
        return _first(args, kwargs), call(*args, **kwargs)
    if type(layer).call not in _ENDS_IN_ACTIVATION or layer.activation is None:
        outputs = call(*args, **kwargs)
        return tf.nest.flatten(outputs)[0], outputs
    activation = layer.activation
    with replaced(layer, "activation", lambda _: keras.activations.linear):
        logits = call(*args, **kwargs)
    return logits, activation(logits)


def _agree(logits, outputs, reading):
    """Whether the outputs are these logits, as they are or normalized, or probabilities of them."""
    if not logits.dtype.is_floating or logits.shape.rank is None or logits.shape.rank < 2:
        return False
    scores = tf.cast(like_outputs(logits, outputs), "float32")
    if scores.shape != outputs.shape:
        return False
    if reading.from_logits:
        expected = [scores, tf.nn.log_softmax(scores)]
    else:
        expected = [probabilities(scores, True, reading.is_binary(outputs.shape))]
    return any(_are_close(each, outputs, logits.dtype) for each in expected)


def _is_linear(call):
    """Whether the logits are what the kernel and bias of the layer make of the features."""
    weights = _weights(call.layer)
    if weights is None:
        return False
    found = np.asarray(pooled(tf.cast(call.inputs, "float32")), "float64") @ weights[0] + weights[1]
    logits = np.asarray(pooled(tf.cast(call.own_logits, "float32")))
    if getattr(call.layer, "quantization_mode", None):  # which rounds its inputs, too
        return np.allclose(found, logits, rtol=0, atol=5e-2 * max(1.0, np.abs(logits).max()))
    return _are_close(found, logits, call.logits.dtype)


def _weights(layer):
    """Kernel and bias that `linear_map` gives, as arrays of float64; or None."""
    kernel, bias = linear_map(layer) or (None, None)
    if kernel is None:
        return None
    kernel = ops.convert_to_numpy(kernel).astype("float64")
    bias = np.zeros(kernel.shape[1]) if bias is None else ops.convert_to_numpy(bias)
    return kernel, bias.astype("float64")


def _are_close(found, expected, dtype):
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    return np.allclose(found, expected, rtol=tolerance, atol=tolerance)
