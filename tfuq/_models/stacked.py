"""Several networks of one form as one, over stacked weights: `StackedForward`.

Inside, tensors have the axis of the members before the last, `(batch, ..., members, channels)`;
what comes before the first layer with weights is computed once. A convolution of all members is one
with groups over `members * channels`, a Dense layer one product of matrices for each member in one
operation. Layers of other kinds are called member by member. Weights are read from the members.
"""

import math

import keras
import tensorflow as tf
from keras import layers
from keras.src.models import Functional

from tfuq._arguments import shown
from tfuq._models.fingerprint import plain_config

LARGE = 2**21  # products of one convolution of one image, from which arithmetic bounds the time
FOLDED = (  # each channel by itself, along no axis of channels
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.UpSampling1D,
    layers.UpSampling2D,
)
ELEMENTWISE = (  # of any shape, without weights, the same for each member
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Rescaling,
    layers.Identity,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)


class StackedForward:
    """Outputs of all members for a batch, `(batch, ..., members, channels)`, by one walk.

    Args:
        members: Keras models, functional or `Sequential`, of the same layers.

    Raises:
        ValueError: If they are of another kind, or differ in more than weights.
    """

    def __init__(self, members):
        self.members = members
        _check_kinds(members)
        self._walk = self._one_by_one if _is_large(members[0]) else _walk_of(members)
        self._ranks = [len(tensor.shape) for tensor in members[0].outputs]

    def __call__(self, batch):
        """The outputs in the structure of the first member's."""
        outputs = self._walk(batch)
        pairs = zip(keras.tree.flatten(outputs), self._ranks, strict=True)
        stacked = [_stacked(tensor, rank, len(self.members)) for tensor, rank in pairs]
        return keras.tree.pack_sequence_as(outputs, stacked)

    def _one_by_one(self, batch):
        """Where arithmetic bounds the time a convolution in groups is the slower one."""
        outputs = [member(batch, training=False) for member in self.members]
        return keras.tree.map_structure(
            lambda *each: tf.stack(each, max(len(each[0].shape) - 1, 1)), *outputs
        )


def _is_large(model):
    """Whether a convolution of `model` takes `LARGE` products of an image."""
    for layer in model._flatten_layers():
        if isinstance(layer, (layers.Conv1D, layers.Conv2D)) and layer._inbound_nodes:
            places = layer._inbound_nodes[0].outputs[0].shape[1:-1]
            products = math.prod(each or LARGE for each in places) * math.prod(layer.kernel.shape)
            if products > LARGE:
                return True
    return False


# --- The walk ---------------------------------------------------------------------------------


def _check_kinds(members):
    for member in members:
        if not isinstance(member, (keras.Sequential, Functional)):
            raise ValueError(
                "Members must be functional or Sequential to be stacked: what a subclassed model "
                f"computes is not known. Received: {shown(member)}"
            )
    counts = sorted({len(list(member._flatten_layers())) for member in members})
    if len(counts) > 1:
        raise ValueError(
            f"Members must have the same layers to be stacked. Received: models of {counts} layers"
        )
    for one, *others in zip(*(member._flatten_layers() for member in members), strict=True):
        for other in others:
            if type(other) is not type(one) or _form(other) != _form(one):
                raise ValueError(
                    f"Members must have the same layers to be stacked. Received: {shown(one)} "
                    f"beside {shown(other)}, of other shapes or arguments"
                )
        if getattr(one, "mask_zero", False) or isinstance(one, layers.Masking):
            raise ValueError(
                "Members must not use masks to be stacked: a stack does not pass masks from layer "
                f"to layer. Received: layer {one.name!r}"
            )


def _form(layer):
    """What layers of one form share: shapes, and arguments, which few inputs need not show."""
    return [tuple(variable.shape) for variable in layer.weights], plain_config(layer)


def _walk_of(models):
    """A function of the inputs of one model, of all of them."""
    if isinstance(models[0], keras.Sequential):
        models = [model._functional for model in models]
    first, made = models[0], {}
    for operations in zip(*(model.operations for model in models), strict=True):
        if not isinstance(operations[0], layers.InputLayer):
            made[id(operations[0])] = _operation_of(operations)
    return lambda inputs, **beside: first._run_through_graph(inputs, lambda op: made[id(op)])


def _operation_of(operations):
    """What stands for the same operation of all members."""
    one = operations[0]
    if isinstance(one, (keras.Sequential, Functional)):
        return _walk_of(operations)
    if not isinstance(one, keras.layers.Layer):
        return one  # such as the sum of two tensors; what it does with an axis more is tried out
    kind = _FORMS.get(type(one))
    if kind is not None and kind.fits(one):
        return kind(operations)
    return _OneByOne(operations)


def _stacked(tensor, rank, count):
    """A tensor with the axis of members, which one that is the same for all does not have."""
    if len(tensor.shape) > rank:
        return tensor
    axis = max(len(tensor.shape) - 1, 1)
    return tf.repeat(tf.expand_dims(tensor, axis), count, axis)


# --- Layers -----------------------------------------------------------------------------------


class _Layer:
    """A layer of all members, called as it is."""

    def __init__(self, operations):
        self.layers, self.count = operations, len(operations)
        self.layer = operations[0]
        self.ranks = [len(tensor.shape) for tensor in keras.tree.flatten(_inputs(self.layer))]
        self.dtype = self.layer.compute_dtype

    @staticmethod
    def fits(layer):
        """Whether a layer of this class is of the form that is meant."""
        del layer
        return True

    def __call__(self, inputs, *args, **kwargs):
        del args, kwargs  # `training`, which is False
        inputs = keras.tree.map_structure(
            lambda t: tf.cast(t, self.dtype) if t.dtype.is_floating else t, inputs
        )
        return self.call(inputs)

    def of_each(self, name):
        """Weights of that name, of all members, `(members, ...)`."""
        return tf.stack([tf.convert_to_tensor(getattr(layer, name)) for layer in self.layers])

    def is_stacked(self, tensor):
        return len(tensor.shape) > self.ranks[0]


class _Elementwise(_Layer):
    def call(self, inputs):
        if not isinstance(inputs, (list, tuple)):
            return self.layer.call(inputs)  # its `training` is False where nothing is said
        stacked = any(len(t.shape) > rank for t, rank in zip(inputs, self.ranks, strict=True))
        if stacked:
            inputs = [
                t if len(t.shape) > rank else tf.expand_dims(t, -2)
                for t, rank in zip(inputs, self.ranks, strict=True)
            ]
        return self.layer._merge_function(inputs)


class _LastAxis(_Elementwise):
    """What is made of the last axis, which has the channels of one member."""

    @staticmethod
    def fits(layer):
        return layer.axis == -1


class _Concatenate(_Layer):
    @staticmethod
    def fits(layer):
        return layer.axis in (-1, _rank(layer) - 1)

    def call(self, inputs):
        pairs = list(zip(inputs, self.ranks, strict=True))
        if any(len(t.shape) > rank for t, rank in pairs):
            inputs = [_stacked(t, rank, self.count) for t, rank in pairs]
        return tf.concat(inputs, -1)


class _Folded(_Layer):
    @staticmethod
    def fits(layer):
        return layer.data_format == "channels_last" if hasattr(layer, "data_format") else True

    def call(self, inputs):
        if not self.is_stacked(inputs):
            return self.layer.call(inputs)
        return _unfolded(self.layer.call(_folded(inputs)), self.count)


class _Flatten(_Folded):
    def call(self, inputs):
        if not self.is_stacked(inputs):
            return self.layer.call(inputs)
        rank = len(inputs.shape)  # to (batch, members, ..., channels)
        inputs = tf.transpose(inputs, [0, rank - 2, *range(1, rank - 2), rank - 1])
        size = 1
        for each in inputs.shape[2:]:
            size = None if size is None or each is None else size * each
        return tf.reshape(inputs, [-1, self.count, -1 if size is None else size])


class _BatchNormalization(_Layer):
    @staticmethod
    def fits(layer):
        return layer.axis in (-1, _rank(layer) - 1)

    def affine(self):
        """Scales and offsets, `(2, members, channels)`."""
        of_each = self.of_each
        scale = tf.math.rsqrt(of_each("moving_variance") + self.layer.epsilon)
        scale = scale * of_each("gamma") if self.layer.scale else scale
        offset = -of_each("moving_mean") * scale
        return tf.stack([scale, offset + of_each("beta") if self.layer.center else offset])

    def call(self, inputs):
        inputs = inputs if self.is_stacked(inputs) else tf.expand_dims(inputs, -2)
        scale, offset = tf.unstack(tf.cast(self.affine(), self.dtype))
        return inputs * scale + offset


class _WithKernel(_Layer):
    """A layer of a kernel and, if it has one, a bias over the last axis."""

    @staticmethod
    def fits(layer):
        is_last = getattr(layer, "data_format", "channels_last") == "channels_last"
        is_plain = getattr(layer, "quantization_mode", None) is None
        return is_last and is_plain and _padding(layer) != "CAUSAL"

    kernels = ("kernel",)

    def call(self, inputs):
        kernels = [tf.cast(self.of_each(name), self.dtype) for name in self.kernels]
        found = self.product(inputs, *kernels)
        if self.layer.use_bias:
            found += tf.cast(self.of_each("bias"), self.dtype)
        return self.layer.activation(found)


class _Dense(_WithKernel):
    def product(self, inputs, kernel):
        if not self.is_stacked(inputs):
            wide = tf.reshape(tf.transpose(kernel, [1, 0, 2]), [kernel.shape[1], -1])
            return _unfolded(tf.tensordot(inputs, wide, 1), self.count)
        rank = len(inputs.shape)  # to (members, ..., channels) and back
        moved = tf.transpose(inputs, [rank - 2, *range(rank - 2), rank - 1])
        shape = tf.shape(moved)
        flat = tf.reshape(moved, [self.count, -1, kernel.shape[1]])
        found = tf.reshape(flat @ kernel, tf.concat([shape[:-1], [kernel.shape[2]]], 0))
        found = tf.transpose(found, [*range(1, rank - 1), 0, rank - 1])
        return tf.ensure_shape(found, [*inputs.shape[:-1], kernel.shape[2]])


class _Convolution(_WithKernel):
    def product(self, inputs, kernel):
        if not self.is_stacked(inputs) and self.layer.groups == 1:  # one input for all filters
            return _unfolded(self.convolved(inputs, _wide(kernel)), self.count)
        inputs = _folded(_stacked(inputs, self.ranks[0], self.count))
        return _unfolded(self.convolved(inputs, _wide(kernel)), self.count)

    def convolved(self, inputs, kernel):
        strides, padding = self.layer.strides, _padding(self.layer)
        return tf.nn.convolution(inputs, kernel, strides, padding, dilations=_dilation(self.layer))


class _Depthwise(_WithKernel):
    def product(self, inputs, kernel):
        found = _depthwise(self, _stacked(inputs, self.ranks[0], self.count), kernel)
        return _unfolded(found, self.count)


class _Separable(_WithKernel):
    kernels = ("depthwise_kernel", "pointwise_kernel")

    def product(self, inputs, kernel, pointwise):
        found = _depthwise(self, _stacked(inputs, self.ranks[0], self.count), kernel)
        return _unfolded(tf.nn.convolution(found, _wide(pointwise), 1, "VALID"), self.count)


class _OneByOne(_Layer):
    """Any other layer: of each member, of its part."""

    def __call__(self, *args, **kwargs):
        tensors = [t for t in keras.tree.flatten((args, kwargs)) if tf.is_tensor(t)]
        ranks = self.ranks if len(self.ranks) == len(tensors) else self.ranks[:1] * len(tensors)
        of_id = {id(t): rank for t, rank in zip(tensors, ranks, strict=True)}

        def part(number):
            def chosen(value):
                if tf.is_tensor(value) and len(value.shape) > of_id[id(value)]:
                    return value[..., number, :]
                return value

            return keras.tree.map_structure(chosen, (args, kwargs))

        kwargs.pop("training", None)
        found = []
        for number, layer in enumerate(self.layers):
            given, named = part(number)
            found.append(layer(*given, **named))
        return keras.tree.map_structure(
            lambda *each: tf.stack(each, max(len(each[0].shape) - 1, 1)), *found
        )


# --- Parts ------------------------------------------------------------------------------------


def _rank(layer):
    return len(keras.tree.flatten(_inputs(layer))[0].shape)


def _inputs(layer):
    """What a layer takes where it is called first, symbolic tensors."""
    return layer._inbound_nodes[0].input_tensors


def _folded(tensor):
    """`(..., members, channels)` as `(..., members * channels)`."""
    shape = tensor.shape
    end = shape[-2] * shape[-1]
    return tf.reshape(tensor, tf.concat([tf.shape(tensor)[:-2], [end]], 0))


def _unfolded(tensor, count):
    """`(..., members * channels)` as `(..., members, channels)`."""
    end = tensor.shape[-1] // count
    found = tf.reshape(tensor, tf.concat([tf.shape(tensor)[:-1], [count, end]], 0))
    return tf.ensure_shape(found, [*tensor.shape[:-1], count, end])


def _wide(kernel):
    """Kernels `(members, ..., channels, filters)` as one of `members * filters`."""
    rank = len(kernel.shape)
    kernel = tf.transpose(kernel, [*range(1, rank - 1), 0, rank - 1])
    return tf.reshape(kernel, [*kernel.shape[:-2], kernel.shape[-2] * kernel.shape[-1]])


def _depthwise(form, inputs, kernel):
    """Each channel of each member by itself, `(..., members * channels * multiplier)`."""
    kernel = tf.transpose(kernel, [1, 2, 0, 3, 4])
    kernel = tf.reshape(kernel, [*kernel.shape[:2], -1, kernel.shape[-1]])
    strides = form.layer.strides
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    return tf.nn.depthwise_conv2d(
        _folded(inputs),
        kernel,
        (1, *strides, 1),
        _padding(form.layer),
        dilations=_dilation(form.layer),
    )


def _padding(layer):
    return getattr(layer, "padding", "same").upper()


def _dilation(layer):
    return getattr(layer, "dilation_rate", 1)


_FORMS = {
    **dict.fromkeys(FOLDED, _Folded),
    **dict.fromkeys(ELEMENTWISE, _Elementwise),
    layers.Softmax: _LastAxis,
    layers.Concatenate: _Concatenate,
    layers.Flatten: _Flatten,
    layers.BatchNormalization: _BatchNormalization,
    layers.Dense: _Dense,
    layers.Conv1D: _Convolution,
    layers.Conv2D: _Convolution,
    layers.DepthwiseConv2D: _Depthwise,
    layers.SeparableConv2D: _Separable,
}
