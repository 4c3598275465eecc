"""PosteriorSampling: the mean gradient of several draws, in the memory of one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.callbacks import PosteriorSampling
from tfuq.layers import DenseVariational, MCDropout

UNITS = 4000


class Sum(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_sum(y_pred, axis=-1)


def wide(**kwargs):
    """One input, so that d loss / d rho of each weight is softplus'(rho) times its own noise."""
    layer = DenseVariational(UNITS, kl_weight=0.0, estimator="reparameterization", seed=1)
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(1.0), Sum(), **{"jit_compile": False, **kwargs})
    return model, layer


@pytest.mark.slow_after(2)
@pytest.mark.slow_cases("options2-1")
@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"jit_compile": True}])
def test_step_is_the_mean_of_independent_draws(num_samples, options):
    model, layer = wide(**options)
    rho = layer.kernel_rho.numpy()
    kernel = layer.kernel.numpy()
    one = np.ones((1, 1), "float32")
    model.fit(one, one, callbacks=[PosteriorSampling(num_samples)], verbose=0)
    np.testing.assert_allclose(layer.kernel, kernel - 1, rtol=1e-5, atol=1e-5)
    noise = (rho - layer.kernel_rho.numpy()) / tf.sigmoid(rho).numpy()
    # Mean of num_samples standard normals, 4,000 of them; six standard errors: 1 seed in 5e8.
    assert abs(noise.mean()) < 6 / np.sqrt(UNITS * num_samples)
    assert abs(noise.var() * num_samples - 1) < 6 * np.sqrt(2 / UNITS)


@pytest.mark.slow
def test_without_noise_it_is_plain_training():
    def trained(*callbacks):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(12, 4)).astype("float32")
        layer = DenseVariational(3, kl_weight=0.01, posterior_scale=1e-7, seed=1)
        model = keras.Sequential([keras.Input((4,)), layer])
        layer.kernel.assign(rng.normal(size=(4, 3)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], jit_compile=False)
        history = model.fit(
            x, np.arange(12) % 3, 4, 3, verbose=0, shuffle=False, callbacks=list(callbacks)
        ).history
        return history, layer.kernel.numpy(), model.optimizer.iterations.numpy()

    plain, sampled = trained(), trained(PosteriorSampling(3))
    assert plain[2] == sampled[2] == 9
    np.testing.assert_allclose(plain[1], sampled[1], atol=1e-5)
    for name, values in plain[0].items():
        np.testing.assert_allclose(sampled[0][name], values, rtol=1e-4)


@pytest.mark.slow
def test_next_fit_is_plain_again():
    model, layer = wide()
    one = np.ones((1, 1), "float32")
    model.fit(one, one, callbacks=[PosteriorSampling(400)], verbose=0)
    before = layer.kernel_rho.numpy()
    model.fit(one, one, verbose=0)
    noise = (before - layer.kernel_rho.numpy()) / tf.sigmoid(before).numpy()
    assert noise.std() > 0.5 and "apply" not in vars(model.optimizer)


@pytest.mark.slow
def test_float16_and_batch_normalization():
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), MCDropout(0.5)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model.compile(scaled, loss, jit_compile=False)
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    before = model.get_weights()
    model.fit(x, np.arange(12) % 3, callbacks=[PosteriorSampling(2)], verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.weights)
    assert np.any(before[0] != model.weights[0].numpy())


@pytest.mark.parametrize("num_samples", [0, 1.5, "many"])
def test_bad_number_of_samples(num_samples):
    with pytest.raises(ValueError, match="Argument `num_samples` must be an integer"):
        PosteriorSampling(num_samples)


def test_model_without_random_layers():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match="Argument `model` must be built and hold layers with"):
        model.fit(one, one, callbacks=[PosteriorSampling()], verbose=0)
