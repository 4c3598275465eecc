"""Heads: what their outputs mean, logits of the mean, masks, shapes, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.layers import (
    DenseVariational,
    EinsumDenseVariational,
    MCSigmoidDenseFA,
    MCSigmoidDenseXL,
    MCSoftmaxDenseFA,
    MCSoftmaxDenseXL,
    SparseBayesDense,
    VBLLDense,
    VBLLGenerativeDense,
    VBLLRegression,
)

SHARE = {"kl_weight": 0.01, "posterior_scale": 0.5}
HEADS = {
    "softmax": lambda **k: MCSoftmaxDenseFA(3, 2, temperature=2.0, **k),
    "sigmoid": lambda **k: MCSigmoidDenseFA(3, 2, compute_pred_variance=True, **k),
    "softmax_xl": lambda **k: MCSoftmaxDenseXL(3, 2, **k),
    "sigmoid_xl": lambda **k: MCSigmoidDenseXL(3, 2, compute_pred_variance=True, **k),
    "vbll": lambda **k: VBLLDense(3, **SHARE, **k),
    "vbll_probit": lambda **k: VBLLDense(3, predictive="probit", **SHARE, **k),
    "vbll_bernoulli": lambda **k: VBLLDense(3, likelihood="bernoulli", **SHARE, **k),
}
MULTI_LABEL = ("sigmoid", "sigmoid_xl", "vbll_bernoulli")


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape or (6, 5)).astype("float32")


@pytest.mark.parametrize("name", HEADS)
def test_heads_declare_what_their_numbers_are(name):
    head = HEADS[name](logits_only=False)
    outputs = head(inputs())
    for field in outputs._fields:
        meaning, values = head.output_meaning(field), np.asarray(getattr(outputs, field))
        assert meaning.multi_label == (name in MULTI_LABEL)
        assert meaning.from_logits == {"logits": True, "probabilities": False}.get(meaning.kind)
        if meaning.kind == "probabilities":
            assert ((values >= 0) & (values <= 1)).all()
        total = np.asarray(tf.reduce_logsumexp(values, -1)) if values.size else np.ones(1)
        assert meaning.normalized == (np.abs(total).max() < 1e-4)
    with pytest.raises(ValueError, match="Argument `field` must"):
        head.output_meaning("votes")


@pytest.mark.parametrize("name", HEADS)
def test_mean_logits_are_those_without_noise(name):
    head = HEADS[name](logits_only=True)
    found = head.mean_logits(inputs())  # builds, too
    kernel = head.kernel if name.startswith("vbll") else head.loc_kernel
    scale = 2.0 if name == "softmax" else 1.0
    np.testing.assert_allclose(found, inputs() @ kernel.numpy() / scale, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.mean_logits(inputs(2, 3, 5)).shape, (2, 3, 3))
    # Spread goes to nothing: the prediction is that of the mean logits, by the link.
    for weight in head.weights:
        if weight.name in ("kernel_rho", "scale_bias"):
            weight.assign(tf.fill(weight.shape, -30.0))
        elif weight.name in ("scale_kernel", "factor_kernel", "gain_kernel"):
            weight.assign(tf.zeros_like(weight))
    link = tf.sigmoid if name in MULTI_LABEL else tf.nn.softmax
    np.testing.assert_allclose(link(head(inputs())), link(found), atol=2e-3)


def test_mean_logits_tell_near_from_far_where_logits_do_not():
    head = HEADS["softmax"](logits_only=True)
    near, far = head.mean_logits(inputs()), head.mean_logits(100 * inputs())
    energies = [np.asarray(tf.reduce_logsumexp(each, -1)) for each in (near, far)]
    assert np.abs(energies[1]).mean() > 10 * np.abs(energies[0]).mean()
    assert np.abs(tf.reduce_logsumexp(head(100 * inputs()), -1)).max() < 1e-3


MASKED = {
    **HEADS,
    "dense": lambda **_: DenseVariational(3, kl_weight=0.01),
    "vbll_generative": lambda **_: VBLLGenerativeDense(3, **SHARE),
}


@pytest.mark.parametrize("logits_only", [True, False])
@pytest.mark.parametrize("name", MASKED)
def test_masks_stay_as_with_dense(name, logits_only):
    x = inputs(2, 4, 5)
    x[:, 2:] = 0
    inside = keras.Input((4, 5))
    outputs = MASKED[name](logits_only=logits_only)(keras.layers.Masking()(inside))
    model = keras.Model(inside, outputs)
    for tensor in tf.nest.flatten(model(x)):
        np.testing.assert_array_equal(tensor._keras_mask, [[True, True, False, False]] * 2)


@pytest.mark.parametrize("name", ["softmax", "vbll"])
def test_loss_does_not_train_on_padding(name):
    x = inputs(4, 6, 5)
    x[:, 3:] = 0
    y = np.random.default_rng(1).integers(3, size=(4, 6))
    other = np.where(np.arange(6) < 3, y, 2 - y)

    def loss(labels):
        head = HEADS[name](logits_only=True, seed=1)
        model = keras.Sequential([keras.Input((6, 5)), keras.layers.Masking(), head])
        model.set_weights([np.full(w.shape, 0.1) for w in model.weights])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
        return model.evaluate(x, labels, verbose=0)

    np.testing.assert_allclose(loss(y), loss(other), rtol=1e-6)


@pytest.mark.parametrize("logits_only", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_output_shapes_are_right(name, logits_only):
    head = HEADS[name](logits_only=logits_only)
    shape = head.compute_output_shape((2, 7, 5))
    outputs = head(inputs(2, 7, 5))
    assert type(shape).__name__ == type(outputs).__name__ or logits_only
    pairs = [(shape, outputs)] if logits_only else zip(shape, outputs, strict=True)
    assert all(tuple(found) == tuple(output.shape) for found, output in pairs)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"likelihood='bernoulli'.*Received: units=1"):
        VBLLDense(1, kl_weight=0.1)
    with pytest.raises(ValueError, match=r"MCSigmoidDenseFA.*Received: num_classes=1"):
        MCSoftmaxDenseFA(1, 0)
    VBLLDense(1, kl_weight=0.1, likelihood="bernoulli")
    MCSigmoidDenseFA(1)


INTEGERS = [
    (DenseVariational, {"units": 2, "kl_weight": 0.1}),
    (SparseBayesDense, {"units": 2, "kl_weight": 0.1}),
    (VBLLDense, {"units": 2, "kl_weight": 0.1}),
    (VBLLRegression, {"units": 2, "kl_weight": 0.1}),
    (EinsumDenseVariational, {"equation": "ab,bc->ac", "output_shape": 2, "kl_weight": 0.1}),
    (MCSoftmaxDenseFA, {"num_classes": 2, "num_factors": 1, "logits_only": True}),
]


@pytest.mark.parametrize("kind, options", INTEGERS)
def test_integers_are_the_numbers_that_they_are(kind, options):
    """As of Keras' `Dense`; a kernel in the dtype of the inputs would be 0 nearly everywhere."""
    layer = kind(**options)
    x = np.arange(12).reshape(3, 4)
    expected = np.asarray(layer(x.astype("float32")))
    for dtype in ("int32", "int64", "uint8", "bool"):
        found = np.asarray(layer(x.astype(dtype)))
        alike = np.asarray(layer(x.astype(dtype).astype("float32")))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, alike, rtol=1e-6)
