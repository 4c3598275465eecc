"""Operations of Keras' layers as functions of their kernel.

`op(inputs, kernel)` of a layer is its operation without bias and activation, for inputs and a
kernel of one dtype. A class here stands before the Keras layer among the bases of ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops

from tfuq._arguments import Tensor
from tfuq._random.draws import current_draw


class DenseOperation:
    """That of `keras.layers.Dense`."""

    def op(self, inputs: Tensor, kernel: Tensor) -> Any:
        return ops.matmul(inputs, kernel)


class ConvOperation:
    """That of `keras.layers.Conv2D`, `Conv3D` and what a subclass calls `_convolution`."""

    def op(self, inputs: Tensor, kernel: Tensor) -> Any:
        draw = current_draw()
        if draw is not None and draw.at_once and self._is_product_of(inputs):
            return as_product(
                inputs, kernel, self.strides, self.padding.upper(), self.dilation_rate
            )
        return of_any_batch(self._convolution, inputs, kernel)

    def _is_product_of(self, inputs):
        """Whether it is, of `inputs`, what `as_product` computes."""
        is_plain = self.data_format == "channels_last" and self.groups == 1
        return is_plain and None not in inputs.shape[1:]

    def _convolution(self, inputs, kernel):
        return self.convolution_op(inputs, kernel)


class Conv1DOperation(ConvOperation):
    """That of `keras.layers.Conv1D`, which may be causal."""

    def _convolution(self, inputs, kernel):
        if self.padding != "causal":
            return self.convolution_op(inputs, kernel)
        before = self.dilation_rate[0] * (self.kernel_size[0] - 1)
        padding = [[0, 0], [0, 0], [0, 0]]
        padding[1 if self.data_format == "channels_last" else 2] = [before, 0]
        return ops.conv(
            ops.pad(inputs, padding),
            kernel,
            strides=list(self.strides),
            padding="valid",
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


class ConvTransposeOperation(ConvOperation):
    """That of `keras.layers.Conv2DTranspose`."""

    def _is_product_of(self, inputs):
        return False

    def _convolution(self, inputs, kernel):
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


class EinsumOperation:
    """That of `keras.layers.EinsumDense`, whose bias may have several axes."""

    @property
    def use_bias(self) -> bool:
        return self.bias is not None

    def op(self, inputs: Tensor, kernel: Tensor) -> Any:
        return ops.einsum(self.equation, inputs, kernel)

    def _along_channels(self, vector, outputs):
        return tf.cast(vector, outputs.dtype)


class DepthwiseConvOperation(ConvOperation):
    """That of `keras.layers.DepthwiseConv1D` and `DepthwiseConv2D`."""

    def _is_product_of(self, inputs):
        return False

    def _convolution(self, inputs, kernel):
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


class SeparableConvOperation:
    """Those of `keras.layers.SeparableConv1D` and `SeparableConv2D`: two, one after the other."""

    def operations(self) -> list[Callable[..., Any]]:
        """Functions of inputs and a kernel: the depthwise convolution, and the pointwise one."""

        def depthwise(inputs, kernel):
            return ops.depthwise_conv(
                inputs,
                kernel,
                strides=self.strides,
                padding=self.padding,
                dilation_rate=self.dilation_rate,
                data_format=self.data_format,
            )

        def pointwise(inputs, kernel):
            return ops.conv(inputs, kernel, data_format=self.data_format)

        return [
            lambda inputs, kernel, of=of: of_any_batch(of, inputs, kernel)
            for of in (depthwise, pointwise)
        ]


def as_product(inputs, kernel, strides, padding, dilations):
    """A convolution as a product of matrices, which one operation does for many kernels.

    What each place of the kernel sees is cut out once and serves all of its filters.

    Args:
        inputs: `(batch, *lengths, channels)`; all but the batch is known.
        kernel: `(*size, channels, filters)`.
        strides, dilations: Integers, one for each length.
        padding: `"VALID"`, `"SAME"` or `"CAUSAL"`, as Keras pads.
    """
    *size, channels, filters = kernel.shape
    spans = [dilation * (places - 1) + 1 for places, dilation in zip(size, dilations, strict=True)]
    of_axes = list(zip(inputs.shape[1:-1], spans, strides, strict=True))
    pads = [_padding(*axis, padding) for axis in of_axes]
    if any(map(sum, pads)):
        inputs = tf.pad(inputs, [[0, 0], *pads, [0, 0]])
    lengths = [
        (length + sum(pad) - span) // stride + 1
        for (length, span, stride), pad in zip(of_axes, pads, strict=True)
    ]
    seen = []
    for place in itertools.product(*map(range, size)):
        along = [
            slice(at * dilation, at * dilation + (length - 1) * stride + 1, stride)
            for at, dilation, length, stride in zip(place, dilations, lengths, strides, strict=True)
        ]
        seen.append(inputs[(slice(None), *along)])
    rows = tf.reshape(tf.concat(seen, -1), (-1, math.prod(size) * channels))
    found = tf.matmul(rows, tf.reshape(kernel, (-1, filters)))
    return tf.reshape(found, (-1, *lengths, filters))


def _padding(length, span, stride, padding):
    """Zeros before and after an axis."""
    if padding == "CAUSAL":
        return span - 1, 0
    missing = (-(-length // stride) - 1) * stride + span - length
    missing = max(missing, 0) if padding == "SAME" else 0
    return missing // 2, missing - missing // 2


def of_any_batch(convolution, inputs, kernel):
    """convolution(inputs, kernel), of no examples, too.

    TensorFlow's own, built with oneDNN, gives an empty batch the shape of its input, forward or
    (of a transposed one) in the gradient. Such a batch is what a device gets when there are fewer
    examples than devices.
    """
    if inputs.shape[0]:
        return convolution(inputs, kernel)

    def of_none():
        one = tf.zeros(tf.concat([[1], tf.shape(inputs)[1:]], axis=0), inputs.dtype)
        return convolution(tf.ensure_shape(one, (1, *inputs.shape[1:])), kernel)[:0]

    is_empty = tf.equal(tf.shape(inputs)[0], 0)
    return tf.cond(is_empty, of_none, lambda: convolution(inputs, kernel))
