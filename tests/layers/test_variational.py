"""Mean-field layers: KL divergence, the laws of the estimators, and bad input."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from tensorflow_probability import distributions as tfd

from tfuq.layers import (
    Conv1DVariational,
    Conv2DTransposeVariational,
    Conv2DVariational,
    DenseVariational,
)
from tfuq.layers._estimators import ESTIMATORS, Gaussian

SAME = {"padding": "same", "activation": "tanh"}
TWINS = {
    "dense": (DenseVariational, keras.layers.Dense, {"units": 3}, (5,)),
    "conv1d": (Conv1DVariational, keras.layers.Conv1D, {"filters": 3, "kernel_size": 2}, (6, 2)),
    "causal": (
        Conv1DVariational,
        keras.layers.Conv1D,
        {"filters": 3, "kernel_size": 2, "padding": "causal", "dilation_rate": 2},
        (6, 2),
    ),
    "conv2d": (
        Conv2DVariational,
        keras.layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "groups": 2, "strides": 2, **SAME},
        (6, 6, 2),
    ),
    "transpose": (
        Conv2DTransposeVariational,
        keras.layers.Conv2DTranspose,
        {"filters": 3, "kernel_size": 3, "strides": 2, **SAME},
        (4, 4, 2),
    ),
}


def inputs(shape, batch=4):
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype("float32")


def dense(**kwargs):
    layer = DenseVariational(3, kl_weight=0.1, posterior_scale=0.4, seed=3, **kwargs)
    layer.build((None, 5))
    keras.utils.set_random_seed(1)
    layer.kernel_rho.assign_add(0.5 * keras.random.normal((5, 3), seed=2))
    layer.bias.assign([0.1, 0.2, 0.3])
    return layer


@pytest.mark.parametrize("layer, twin, kwargs, shape", TWINS.values(), ids=TWINS)
def test_prediction_is_that_of_the_keras_twin(layer, twin, kwargs, shape):
    layer, twin = layer(kl_weight=0.1, **kwargs), twin(**kwargs)
    layer.build((None, *shape))
    twin.build((None, *shape))
    twin.set_weights([layer.kernel.numpy(), layer.bias.numpy() + 0.1])
    layer.bias.assign_add(0.1 * tf.ones_like(layer.bias))
    np.testing.assert_allclose(layer(inputs(shape)), twin(inputs(shape)), atol=1e-5)


def test_channels_first_signs_and_bias():
    layer = Conv2DVariational(3, 2, kl_weight=0.1, data_format="channels_first")
    assert layer._channel_axis() == 1


@pytest.mark.parametrize("trainable_prior", [False, True])
@pytest.mark.parametrize("prior_mean", ["zero", "initial"])
def test_kl_is_that_of_tfp(prior_mean, trainable_prior):
    layer = dense(prior_mean=prior_mean, trainable_prior=trainable_prior, prior_scale=0.7)
    start = layer.kernel.numpy()
    layer.kernel.assign_add(0.3 * tf.ones((5, 3)))
    loc = start if prior_mean == "initial" else np.zeros((5, 3), "float32")
    prior = tfd.Normal(loc, 0.7)
    expected = tf.reduce_sum(tfd.kl_divergence(layer.posterior(), prior))
    np.testing.assert_allclose(layer.kl_divergence(), expected, rtol=1e-5)
    layer.beta.assign(0.25)
    layer(inputs((5,)))
    np.testing.assert_allclose(layer.losses, [0.1 * 0.25 * expected], rtol=1e-5)


def test_trainable_prior_has_a_gradient():
    layer = dense(trainable_prior=True)
    with tf.GradientTape() as tape:
        loss = layer.kl_divergence()
    assert tape.gradient(loss, layer.prior_rho.value) != 0
    assert any(v is layer.prior_rho for v in layer.trainable_weights)


def draws(estimator, x, op, loc, scale, count):
    @tf.function
    def all_draws():
        return tf.map_fn(
            lambda i: ESTIMATORS[estimator](op, x, Gaussian(loc, scale), seed=tf.stack([7, i])),
            tf.range(count),
            fn_output_signature="float32",
        )

    return all_draws().numpy()


OPERATIONS = {
    "dense": (ops.matmul, (5,), (5, 3)),
    "conv": (lambda x, k: ops.conv(x, k, padding="same"), (4, 4, 2), (3, 3, 2, 3)),
}


@pytest.mark.slow_product
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_have_the_moments_of_random_weights(estimator, operation):
    op, shape, kernel_shape = OPERATIONS[operation]
    rng = np.random.default_rng(0)
    loc = tf.constant(rng.normal(size=kernel_shape), "float32")
    scale = tf.constant(rng.uniform(0.2, 0.6, size=kernel_shape), "float32")
    x = tf.constant(inputs(shape, 2))
    count = 3000
    found = draws(estimator, x, op, loc, scale, count)
    mean, variance = op(x, loc).numpy(), op(x**2, scale**2).numpy()
    # Outputs are Gaussian, or (flipout) of no larger kurtosis: six standard errors, about 1 of 5e8
    # entries of a correct estimator lies outside.
    np.testing.assert_array_less(np.abs(found.mean(0) - mean), 6 * np.sqrt(variance / count))
    np.testing.assert_array_less(np.abs(found.var(0) / variance - 1), 6 * np.sqrt(2 / count))


@pytest.mark.parametrize("estimator, shared", [("flipout", False), ("reparameterization", True)])
def test_flipout_decorrelates_examples(estimator, shared):
    x = tf.ones((2, 5))
    loc, scale = tf.zeros((5, 3)), tf.ones((5, 3))
    found = draws(estimator, x, ops.matmul, loc, scale, 2000)
    correlation = np.corrcoef(found[:, 0].ravel(), found[:, 1].ravel())[0, 1]
    # 6 / sqrt(n) for n = 6,000 independent pairs: a correct estimator fails 1 seed in 5e8.
    assert correlation > 0.999 if shared else abs(correlation) < 6 / np.sqrt(6000)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_training_draws_anew_and_a_prediction_repeats(estimator):
    layer, x = dense(estimator=estimator), inputs((5,))
    assert not np.allclose(layer(x, training=True), layer(x, training=True))
    np.testing.assert_array_equal(layer(x), layer(x))
    fresh = dense(estimator=estimator, resample=True)
    assert not np.allclose(fresh(x), fresh(x))
    np.testing.assert_array_equal(  # the same seed, the same noise
        dense(estimator=estimator)(x, training=True), dense(estimator=estimator)(x, training=True)
    )


def test_local_reparameterization_of_nothing_has_a_gradient():
    layer = dense(estimator="local_reparameterization")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.zeros((2, 5)), training=True))
    for gradient in tape.gradient(loss, [layer.kernel.value, layer.kernel_rho.value]):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"kl_weight": None},
            r"1 / number of training examples, or .*kl_weight_for.* Received: kl_weight=None",
        ),
        ({"kl_weight": -1}, "Argument `kl_weight` must"),
        ({"kl_weight": float("nan")}, "Argument `kl_weight` must"),
        ({"estimator": "mean_field"}, "Argument `estimator` must be one of 'flipout'"),
        ({"prior_scale": 0}, "Argument `prior_scale` must"),
        ({"prior_mean": "one"}, "Argument `prior_mean` must"),
        ({"posterior_scale": -1}, "Argument `posterior_scale` must"),
        ({"seed": -1}, "Argument `seed` must"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        DenseVariational(3, **{"kl_weight": 0.1, **change})
    with pytest.raises(ValueError, match=message):
        Conv2DVariational(3, 2, **{"kl_weight": 0.1, **change})


def test_posterior_before_there_is_one():
    with pytest.raises(ValueError, match="before it is built"):
        DenseVariational(3, kl_weight=0.1).posterior()
