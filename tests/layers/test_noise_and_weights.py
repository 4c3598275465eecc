"""Label noise over an uncertain mean: `last_layer` of the heteroscedastic heads.

Its two limits are layers that are compared with their authors' packages elsewhere; between them
the oracle is brute force in NumPy.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfuq.layers import (
    MCSigmoidDenseFA,
    MCSoftmaxDenseFA,
    SNGPDense,
    VBLLDense,
)
from tfuq.layers.ways import predicting
from tfuq.predictive import predict_uncertainty, sample_predictions

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3
VBLL = {"last_layer": "vbll", "kl_weight": 0.1}
MEANS = {
    "vbll": lambda: VBLL,
    "low_rank": lambda: {"last_layer": VBLLDense(3, kl_weight=0.1, posterior="low_rank", rank=2)},
    "sngp": lambda: {"last_layer": SNGPDense(3, num_features=32, seed=1)},
    "momentum": lambda: {"last_layer": SNGPDense(3, num_features=32, momentum=0.9)},
}


def built(kind=MCSoftmaxDenseFA, *, noise=1.0, spread=1.0, factors=2, **options):
    """A head whose weights are far from their start, its noise and the spread of its mean's."""
    options = {"train_mc_samples": 64, "test_mc_samples": 512, **VBLL, **options}
    head = kind(3, factors, **options)
    head.build((None, 4))
    rng = np.random.default_rng(1)
    for weight in head.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    if noise == 0:  # no factors, and d(x) = 0.001
        head.scale_kernel.assign(np.zeros(head.scale_kernel.shape))
        head.scale_bias.assign(np.full(3, -30.0))
    if hasattr(head.mean_layer, "kernel_rho"):
        shape = head.mean_layer.kernel_rho.shape
        rho = np.log(np.expm1(spread * rng.uniform(0.3, 0.6, shape))) if spread else -40.0
        head.mean_layer.kernel_rho.assign(np.broadcast_to(rho, shape))
    return head


def loss_of(logits, head, likelihood="categorical"):
    """What training adds up, less the divergence: cross-entropy and the head's terms."""
    labels = Y if likelihood == "categorical" else np.stack([k == Y for k in range(3)], 1) * 1.0
    kind = "SparseCategoricalCrossentropy" if likelihood == "categorical" else "BinaryCrossentropy"
    loss = getattr(keras.losses, kind)(from_logits=True)(labels, logits)
    mean = getattr(head, "mean_layer", None) or head
    return float(loss + sum(head.losses) - mean.kl_weight * mean.kl_divergence())


# --- Limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_without_noise_it_is_a_vbll(likelihood):
    kind = MCSoftmaxDenseFA if likelihood == "categorical" else MCSigmoidDenseFA
    head = built(kind, noise=0, factors=0, logits_only=True)
    alone = VBLLDense(3, kl_weight=0.1, likelihood=likelihood, test_mc_samples=512)
    alone.build((None, 4))
    alone.set_weights(head.mean_layer.get_weights())
    found = loss_of(head(X, training=True), head, likelihood)
    expected = loss_of(alone(X, training=True), alone, likelihood)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(head(X), alone(X), rtol=1e-3, atol=2e-3)  # other points
    np.testing.assert_allclose(head.mean_logits(X), alone.mean_logits(X), rtol=1e-6)
    for one, other in zip(head.linear_map(), alone.linear_map(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("kind", [MCSoftmaxDenseFA, MCSigmoidDenseFA])
@pytest.mark.parametrize("training", [False, True])
def test_with_certain_weights_it_is_the_noise_alone(kind, training):
    head = built(kind, spread=0, temperature=1.5, compute_pred_variance=True, seed=3)
    alone = kind(3, 2, temperature=1.5, train_mc_samples=64, test_mc_samples=512, seed=3,
                 compute_pred_variance=True)  # fmt: skip
    alone.build((None, 4))
    for name in ("scale", "factor"):
        for part in ("kernel", "bias"):
            getattr(alone, f"{name}_{part}").assign(getattr(head, f"{name}_{part}"))
    alone.loc_kernel.assign(head.mean_layer.kernel)
    alone.loc_bias.assign(head.mean_layer.bias)
    for found, expected in zip(
        head(X, training=training), alone(X, training=training), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.covariance(X), alone.covariance(X), rtol=1e-5, atol=1e-6)


# --- Between them ------------------------------------------------------------------------------


def drawn(head, count, likelihood, noises):
    """p(y | x, w) for `count` draws of the weights, each a mean over `noises`, in NumPy."""
    rng, mean = np.random.default_rng(7), head.mean_layer
    scale = np.log1p(np.exp(np.asarray(mean.kernel_rho, "float64")))
    weights = np.asarray(mean.kernel) + scale * rng.normal(size=(count, *scale.shape))
    loc = X @ weights + np.asarray(mean.bias)
    root = np.linalg.cholesky(np.asarray(head.covariance(X), "float64"))
    noise = np.einsum("bkj,wsbj->wsbk", root, rng.normal(size=(count, noises, len(X), 3)))
    logits = (loc[:, None] + noise) / head.temperature
    link = special.expit if likelihood == "bernoulli" else lambda u: special.softmax(u, axis=-1)
    return link(logits).mean(1)


@pytest.mark.parametrize("kind", [MCSoftmaxDenseFA, MCSigmoidDenseFA])
def test_prediction_is_the_mean_over_weights_and_noise(kind):
    """The mean of 4,000 draws is within 5 of its standard errors but 2 times in 100,000 (of 36)."""
    likelihood = "categorical" if kind is MCSoftmaxDenseFA else "bernoulli"
    head = built(kind, temperature=1.5)
    draws = drawn(head, 4000, likelihood, noises=10)
    within = 0.003 + 5 * draws.std(0) / np.sqrt(len(draws))  # and the error of the head's points
    assert within.max() < 0.03
    assert np.all(np.abs(head(X).probs - draws.mean(0)) < within)


@pytest.mark.parametrize("kind", [MCSoftmaxDenseFA, MCSigmoidDenseFA])
def test_the_loss_is_a_bound(kind):
    """At least E_w[-log p(y | x, w)], and near it where weights are nearly certain."""
    likelihood = "categorical" if kind is MCSoftmaxDenseFA else "bernoulli"
    for spread, slack in ((1.0, 1.0), (0.1, 0.02)):
        head = built(kind, spread=spread, temperature=1.5, logits_only=True, train_mc_samples=1024)
        probs = drawn(head, 200, likelihood, noises=1000)
        if likelihood == "categorical":
            exact = -np.log(probs[:, np.arange(12), Y]).mean()
        else:
            labels = np.stack([k == Y for k in range(3)], 1)
            exact = -np.log(np.where(labels, probs, 1 - probs)).mean()
        found = loss_of(head(X, training=True), head, likelihood)
        assert exact - 0.01 < found < exact + slack, (spread, exact, found)


def model_of(**options):
    keras.utils.set_random_seed(0)
    head = MCSoftmaxDenseFA(3, 2, train_mc_samples=16, test_mc_samples=64, logits_only=True,
                            **options)  # fmt: skip
    model = keras.Sequential([keras.Input((4,)), head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    return model


def test_noise_is_aleatoric_and_weights_are_epistemic():
    def parts(noise, spread):
        model = model_of(**VBLL)
        head = model.layers[-1]
        head.scale_bias.assign(np.full(3, noise))
        head.factor_kernel.assign(np.zeros(head.factor_kernel.shape))
        head.mean_layer.kernel_rho.assign(np.full((4, 3), spread))
        found = predict_uncertainty(model, X, 64)
        return found.expected_entropy.mean(), found.mutual_information.mean()

    calm, noisy, unsure = parts(-5.0, -9.0), parts(5.0, -9.0), parts(-5.0, 0.5)
    assert noisy[0] > calm[0] + 0.05 and calm[1] < 1e-4 and noisy[1] < 1e-4
    assert unsure[1] > 0.05 > 100 * calm[1]


@pytest.mark.parametrize("mean", MEANS)
def test_draws_of_the_network_are_those_of_the_mean(mean):
    model = model_of(**MEANS[mean]())
    model.fit(X, Y, epochs=2, verbose=0)
    found = np.asarray(sample_predictions(model, X, 200))
    assert found.std(0).max() > 0.01
    # Draws are of probabilities in [0, 1]: the mean of 200 is within 6 standard errors.
    probs = special.softmax(model.predict(X, verbose=0), axis=-1)
    within = 0.01 + 6 * found.std(0) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - probs) < within)


def test_sngp_counts_examples_and_starts_anew():
    """Trains on the mean alone, as the authors of HetSNGP; predicts with the variance."""
    options = {"last_layer": SNGPDense(3, num_features=32, seed=1)}
    model = model_of(**options)
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(X, Y, 4, epochs=3, verbose=0)
    mean = model.layers[-1].mean_layer
    phi = np.asarray(mean.random_features(X))
    np.testing.assert_allclose(mean.precision, np.eye(32) + phi.T @ phi, rtol=1e-4, atol=1e-5)
    before = model.layers[-1].mean_layer.get_weights()
    model.predict(X, verbose=0)
    for old, new in zip(before, mean.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_masked_positions_add_nothing():
    for mean in ("vbll", "sngp"):
        found = []
        for size in (6, 12):
            options = {"kl_weight": None, **MEANS[mean]()}
            head = built(noise=0, factors=0, logits_only=True, **options)
            x = np.where(np.arange(size)[:, None] < 6, X[:size], 9.0).reshape(1, size, 4)
            mask = tf.constant((np.arange(size) < 6)[None])
            head(tf.constant(x, tf.float32), training=True, mask=mask)
            found.append(
                [*map(float, head.losses), np.sum([np.sum(w) for w in head.get_weights()])]
            )
        np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("mean", MEANS)
def test_ways(mean):
    head = built(test_mc_samples=64, **{**VBLL, "kl_weight": None, **MEANS[mean]()})
    with predicting("probit"):
        found = head(X).logits
    parts = head.mean_layer.mean_logits(X), np.asarray(head.covariance(X)).diagonal(0, 1, 2)
    variance = parts[1] + np.asarray(head.mean_layer._uncertain_mean(X, False, None)[1])
    expected = parts[0] / np.sqrt(1 + np.pi / 8 * variance)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with predicting("mean"):
        calm = head(X).probs
    assert np.abs(calm - head(X).probs).max() > 1e-3


# --- Configuration and errors ------------------------------------------------------------------


@pytest.mark.parametrize("mean", MEANS)
def test_configuration(mean):
    head = MCSoftmaxDenseFA(3, 2, **MEANS[mean]())
    again = MCSoftmaxDenseFA.from_config(head.get_config())
    assert again.get_config() == head.get_config()
    assert again.mean_layer.get_config() == head.mean_layer.get_config()
    head(X)
    model = keras.Sequential([keras.Input((4,)), MCSoftmaxDenseFA(3, 2, logits_only=True,
                                                                  **MEANS[mean]())])  # fmt: skip
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(X), model(X))


@pytest.mark.parametrize("kind", [VBLLDense, SNGPDense])
def test_a_name_is_a_layer_of_the_heads_options(kind):
    name = {VBLLDense: "vbll", SNGPDense: "sngp"}[kind]
    options = {"kl_weight": 0.5} if kind is VBLLDense else {}
    head = MCSigmoidDenseFA(
        2, 1, last_layer=name, seed=7, kernel_initializer="zeros", dtype="float64", **options
    )
    assert type(head.mean_layer) is kind and head.last_layer == name
    config = head.mean_layer.get_config()
    assert (config["units"], config["likelihood"], config["seed"]) == (2, "bernoulli", 7)
    assert config["kernel_initializer"]["class_name"] == "Zeros"
    assert head(X.astype("float64")).probs.dtype == "float64"


def test_a_mean_belongs_to_one_head():
    mean = VBLLDense(3, kl_weight=0.1)
    heads = [MCSoftmaxDenseFA(3, 1, last_layer=mean) for _ in range(2)]
    heads[0](X)
    with pytest.raises(ValueError, match="`last_layer` must be a layer of its own"):
        heads[1](X)
