"""Convolutions as products of matrices, for the kernels of many draws at once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq._random.draws import one_draw
from tfuq.layers import Conv1DVariational, Conv2DVariational, Conv3DVariational

KL = {"kl_weight": 0.01, "posterior_scale": 0.5}
PRODUCTS = {
    "1D": (Conv1DVariational(3, 4, strides=2, **KL), (9, 2)),
    "causal": (Conv1DVariational(3, 2, padding="causal", dilation_rate=3, **KL), (8, 2)),
    "2D": (Conv2DVariational(5, (3, 2), strides=(2, 1), activation="tanh", **KL), (8, 7, 3)),
    "one place": (Conv2DVariational(5, 1, strides=2, padding="same", **KL), (6, 7, 3)),
    "same": (Conv2DVariational(5, 4, strides=(2, 3), padding="same", **KL), (8, 9, 2)),
    "dilated": (Conv2DVariational(5, 3, dilation_rate=(2, 1), padding="same", **KL), (8, 7, 2)),
    "3D": (Conv3DVariational(4, 2, padding="same", **KL), (4, 5, 3, 2)),
}
OTHERS = {
    "groups": (Conv2DVariational(4, 3, groups=2, **KL), (6, 6, 2)),
    "any length": (Conv2DVariational(4, 3, **KL), (None, 6, 2)),
}


def graph_of(layer, shape, at_once):
    if not layer.built:
        layer.build((None, *shape))

    def drawn(x):
        with one_draw(tf.constant([3, 1]), at_once=at_once):
            return layer(x)

    return tf.function(drawn, autograph=False).get_concrete_function(tf.TensorSpec((None, *shape)))


def kinds(graph):
    return {operation.type for operation in graph.graph.get_operations()}


@pytest.mark.parametrize("case", PRODUCTS)
def test_product_is_the_convolution(case):
    layer, shape = PRODUCTS[case]
    one, at_once = (graph_of(layer, shape, flag) for flag in (False, True))
    assert "MatMul" in kinds(at_once) and not kinds(at_once) & {"Conv2D", "Conv3D", "If"}
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    np.testing.assert_allclose(at_once(tf.constant(x)), one(tf.constant(x)), rtol=0, atol=2e-6)
    assert at_once(tf.constant(x[:0])).shape == (0, *one(tf.constant(x)).shape[1:])


@pytest.mark.parametrize("case", OTHERS)
def test_other_convolutions_stay_as_they_are(case):
    assert "MatMul" not in kinds(graph_of(*OTHERS[case], at_once=True))


def test_training_keeps_the_convolution():
    layer, shape = PRODUCTS["same"]
    traced = tf.function(lambda x: layer(x, training=True), autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec((2, *shape)))
    assert "Conv2D" in kinds(graph) and "MatMul" not in kinds(graph)
    assert keras.ops.shape(layer.kernel) == (4, 4, 2, 5)
