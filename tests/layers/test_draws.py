"""Draws of layers are draws of their weights: one law over all examples, batches and calls."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import layers
from tfuq._random.draws import one_draw
from tfuq.predictive import predict_uncertainty

KL = {"kl_weight": 0.01, "use_bias": False, "seed": 3}
SPREAD = {**KL, "posterior_scale": 0.5}
IMAGE, FLAT = (6, 6, 2), (5,)
CASES = {
    "vbll_diagonal": (layers.VBLLDense, {"units": 3, **SPREAD}, FLAT),
    "vbll_low_rank": (
        layers.VBLLDense,
        {"units": 3, "posterior": "low_rank", "rank": 2, **SPREAD},
        FLAT,
    ),
    "vbll_dense": (layers.VBLLDense, {"units": 3, "posterior": "dense", **SPREAD}, FLAT),
    "dense": (layers.DenseVariational, {"units": 3, **SPREAD}, FLAT),
    "conv1d": (layers.Conv1DVariational, {"filters": 3, "kernel_size": 2, **SPREAD}, (7, 2)),
    "conv2d": (layers.Conv2DVariational, {"filters": 3, "kernel_size": 2, **SPREAD}, IMAGE),
    "conv2d_transpose": (
        layers.Conv2DTransposeVariational,
        {"filters": 3, "kernel_size": 2, **SPREAD},
        IMAGE,
    ),
    "sparse_dense": (layers.SparseBayesDense, {"units": 3, "r_bayes": 0.5, **SPREAD}, FLAT),
    "sparse_conv2d": (
        layers.SparseBayesConv2D,
        {"filters": 3, "kernel_size": 2, "r_bayes": 0.5, **SPREAD},
        IMAGE,
    ),
    "sparse_conv1d": (
        layers.SparseBayesConv1D,
        {"filters": 3, "kernel_size": 2, "r_bayes": 0.5, **SPREAD},
        (7, 2),
    ),
    "sparse_conv3d": (
        layers.SparseBayesConv3D,
        {"filters": 3, "kernel_size": 2, "r_bayes": 0.5, **SPREAD},
        (3, 3, 3, 2),
    ),
    "sparse_conv2d_transpose": (
        layers.SparseBayesConv2DTranspose,
        {"filters": 3, "kernel_size": 2, "r_bayes": 0.5, **SPREAD},
        IMAGE,
    ),
    "sparse_depthwise": (
        layers.SparseBayesDepthwiseConv2D,
        {"kernel_size": 2, "r_bayes": 0.5, **SPREAD},
        IMAGE,
    ),
    "dropout": (layers.MCDropout, {"rate": 0.5}, FLAT),
}


def network(name):
    kind, kwargs, shape = CASES[name]
    layer = kind(**kwargs)
    model = keras.Sequential([keras.Input(shape), layer])
    if name.startswith("sparse"):
        layer.select(np.random.default_rng(4).uniform(size=layer.kernel.shape))
    for weight in layer.trainable_weights:
        if weight.name in ("kernel_factor", "kernel_tril"):  # far from their small start
            weight.assign(np.random.default_rng(5).normal(size=weight.shape))
    return model, layer, shape


def drawn(model, x, count=6, batch_size=1):
    """Outputs of `count` draws as they are, `(draws, n, ...)`, with the seeds of a sampler."""
    seeds = tf.constant([[0, number] for number in range(count)], "int32")

    def one(seed, batch):
        with one_draw(seed):
            return tf.cast(model(batch, training=False), "float32")

    @functools.partial(tf.function, autograph=False)
    def draws(batch):
        return tf.map_fn(lambda seed: one(seed, batch), seeds, fn_output_signature="float32")

    starts = range(0, len(x), batch_size)
    return np.concatenate([draws(x[i : i + batch_size]).numpy() for i in starts], axis=1)


@pytest.mark.slow_cases("*conv1d", "*conv3d", "*transpose", "*depthwise")
@pytest.mark.parametrize("name", CASES)
def test_outputs_at_x_and_minus_x_are_those_of_one_network(name):
    """Linear layers: each draw is a linear function, whatever the batch and the call.

    So outputs at x and -x correlate at -1, in each draw; no correct layer fails.
    """
    model, _, shape = network(name)
    rng = np.random.default_rng(1)
    x, other = rng.normal(size=(2, 1, *shape)).astype("float32")
    rows = np.concatenate([x, -x, other, x + other])
    alone, together = drawn(model, rows), drawn(model, rows, batch_size=4)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(drawn(model, -x)[:, 0], -alone[:, 0], atol=1e-5)
    at_x, at_minus, at_other, at_sum = np.moveaxis(alone, 1, 0)
    np.testing.assert_allclose(at_minus, -at_x, atol=1e-5)
    np.testing.assert_allclose(at_sum, at_x + at_other, atol=1e-5)
    assert at_x.std(0).max() > 0.1


@pytest.mark.parametrize("name", ["vbll_diagonal", "vbll_low_rank", "vbll_dense"])
def test_draws_of_last_layers_have_the_covariances_of_their_posterior(name):
    """cov(u_k(x), u_k(z)) = x^T S_k z, for 4,000 draws, inputs in batches of their own.

    The product of two Gaussians of variances a, b and covariance c has variance a b + c^2. Six
    standard errors: of the 27 entries of a form a correct layer fails one in 2e7 seeds.
    """
    model, layer, shape = network(name)
    x = np.random.default_rng(2).normal(size=(3, *shape)).astype("float32")
    count = 4000
    draws = drawn(model, x, count) - (x @ layer.kernel.numpy())
    found = np.einsum("sik,sjk->kij", draws, draws) / count
    covariance = layer.posterior_distribution().covariance().numpy()
    expected = np.einsum("if,kfg,jg->kij", x, covariance, x)
    variance = np.einsum("kii->ki", expected)
    error = np.sqrt((variance[:, :, None] * variance[:, None] + expected**2) / count)
    assert np.all(np.abs(found - expected) < 6 * error)


def test_two_unseeded_dropouts_of_one_width_have_two_masks():
    drop = [layers.MCDropout(0.5, predictive="thinned") for _ in range(2)]
    ones = np.ones((1, 64), "float32")
    # Equal masks of 64 fair coins: one pair of names in 2e19.
    assert np.any(np.asarray(drop[0](ones)) != np.asarray(drop[1](ones)))
    model = keras.Sequential([keras.Input((64,)), *(layers.MCDropout(0.5) for _ in range(2))])
    kept = drawn(model, ones, 50)[:, 0] > 0
    # Two masks keep a quarter, one mask a half. Six standard errors of 3,200 draws.
    assert abs(kept.mean() - 0.25) < 6 * np.sqrt(0.25 * 0.75 / kept.size)


def test_predictions_of_dropout_are_those_of_the_mean_network():
    x, y = np.random.default_rng(0).normal(size=(64, 8)).astype("float32"), np.arange(64) % 3
    hidden, top = keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((8,)), hidden, layers.MCDropout(0.5), top])
    plain = keras.Sequential([keras.Input((8,)), hidden, top])
    np.testing.assert_allclose(model.predict(x, verbose=0), plain.predict(x, verbose=0), rtol=1e-5)
    for each in (model, plain):
        each.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [each.evaluate(x, y, verbose=0) for each in (model, plain)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert predict_uncertainty(model, x, 10).mutual_information.max() > 0
