"""VBLLGenerativeDense: the authors' package, TFP, draws and misuse.

`fixtures/make_vbll_generative.py` wrote what vbll 0.4.9 answers for the same weights.
"""

import contextlib
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tfuq import ood
from tfuq._random.draws import one_draw
from tfuq.layers import VBLLGenerativeDense
from tfuq.layers.base import softplus_inverse
from tfuq.layers.ways import predicting

FIXTURE = dict(np.load(pathlib.Path(__file__).parents[1] / "fixtures/vbll_generative.npz"))
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def head(dtype="float64", **options):
    """One with the weights of the fixture."""
    layer = VBLLGenerativeDense(
        4,
        kl_weight=float(FIXTURE["regularization_weight"]),
        prior_scale=float(FIXTURE["prior_scale"]) ** 0.5,
        wishart_scale=float(FIXTURE["wishart_scale"]),
        dof=float(FIXTURE["dof"]),
        dtype=dtype,
        **options,
    )
    layer.build((None, 6))
    layer.kernel.assign(FIXTURE["mean"].T)
    layer.kernel_rho.assign(softplus_inverse(FIXTURE["scale"].T))
    layer.noise_rho.assign(softplus_inverse(FIXTURE["noise"]))
    return layer


@pytest.mark.parametrize("dtype, rtol", [("float32", 2e-5), ("float64", 1e-10)])
def test_agrees_with_the_authors_package(dtype, rtol):
    layer, x, y = head(dtype), FIXTURE["x"].astype(dtype), FIXTURE["y"]
    logits = layer(x)
    np.testing.assert_allclose(logits, FIXTURE["logits"], rtol=rtol)
    np.testing.assert_allclose(tf.nn.softmax(logits), FIXTURE["probs"], rtol=20 * rtol)
    constant = 4 * 6 / 2  # theirs leaves it out
    kl = FIXTURE["kl"] - constant - FIXTURE["wishart"]
    np.testing.assert_allclose(layer.kl_divergence(), kl, rtol=rtol)
    trained = layer(x, training=True)
    log_probs = special.log_softmax(np.asarray(trained, "float64"), axis=-1)
    cross_entropy = -log_probs[np.arange(len(y)), y].mean()
    kl_weight, (gap, weighted) = FIXTURE["regularization_weight"], sorted(map(float, layer.losses))
    if not np.isclose(weighted, kl_weight * kl, rtol=1e-3):
        gap, weighted = weighted, gap
    np.testing.assert_allclose(weighted, kl_weight * kl, rtol=rtol)
    np.testing.assert_allclose(cross_entropy + gap, -FIXTURE["bound"].mean(), rtol=5 * rtol)
    loss = cross_entropy + gap + weighted + kl_weight * constant
    np.testing.assert_allclose(loss, FIXTURE["loss"], rtol=5 * rtol)


@pytest.mark.parametrize("way", [None, "mean"])
@pytest.mark.parametrize("scale, shift", [(1, 1000), (1000, 0)])
def test_densities_far_away_keep_their_differences(way, scale, shift):
    """At 1,000 they are millions, and what tells classes apart is 0 to thousands.

    Of float32 it is as exact as two such numbers can be: half of the last bit of each.
    """
    layer, exact = head("float32"), head("float64")
    x = scale * FIXTURE["x"] + shift
    with predicting(way) if way else contextlib.nullcontext():
        found, expected = np.asarray(layer(x.astype("float32")), "float64"), np.asarray(exact(x))
    last_bit = np.spacing(np.abs(expected).max().astype("float32"))
    assert last_bit > 0.03
    gaps, exact_gaps = (each - each[:, :1] for each in (found, expected))
    of_rounded_inputs = 1e-6 * np.abs(exact_gaps).max()
    assert np.abs(gaps - exact_gaps).max() <= last_bit + of_rounded_inputs


def test_distribution_of_features():
    layer, x = head(), FIXTURE["x"]
    found = layer.feature_distribution().log_prob(x[:, None])
    np.testing.assert_allclose(found, layer(x), rtol=1e-10)
    with pytest.raises(ValueError, match="before it is built"):
        VBLLGenerativeDense(3, kl_weight=0.1).feature_distribution()


def test_a_draw_has_one_mean_for_each_class():
    """Class means that solve for the logits of a draw are N(m, S): Kolmogorov and Smirnov.

    p above 1e-7, so that a correct layer fails once in 10^7.
    """
    layer, size = head(), 6
    x = np.concatenate([np.zeros((1, size)), np.eye(size)])
    noise = FIXTURE["noise"] ** 2

    def logits(seed):
        with one_draw(seed):
            return layer(x)

    seeds = tf.constant([[5, i] for i in range(300)])
    together = tf.function(lambda: tf.map_fn(logits, seeds, fn_output_signature="float64"))
    drawn = together().numpy()
    # log N(e_d; mu) - log N(0; mu) = (mu_d - 1/2) / sigma_d^2
    means = (drawn[:, 1:] - drawn[:, :1]) * noise[:, None] + 0.5
    normals = (means - FIXTURE["mean"].T) / FIXTURE["scale"].T
    assert stats.kstest(normals.ravel(), "norm").pvalue > 1e-7
    assert normals.shape == (300, 6, 4)


def test_without_doubt_it_is_the_mean_way():
    layer, x = head(), FIXTURE["x"]
    expected = stats.norm.logpdf(x[:, None], FIXTURE["mean"], FIXTURE["noise"]).sum(axis=-1)
    with predicting("mean"):
        np.testing.assert_allclose(layer(x), expected, rtol=1e-10)
    np.testing.assert_allclose(layer.mean_logits(x), expected, rtol=1e-10)


@pytest.mark.slow
def test_bias_learns_how_frequent_classes_are_and_energy_sees_what_is_far():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = rng.choice(3, size=600, p=[0.8, 0.15, 0.05])
    x = (2 * np.eye(3, 5)[y] + rng.normal(size=(600, 5))).astype("float32")
    model = keras.Sequential(
        [keras.Input((5,)), VBLLGenerativeDense(3, kl_weight=1 / 600, use_bias=True)]
    )
    model.compile(keras.optimizers.Adam(0.05), LOSS, jit_compile=False)
    model.fit(x, y, epochs=30, batch_size=100, verbose=0)
    probs = special.softmax(model.predict(x, verbose=0), axis=-1)
    np.testing.assert_allclose(probs.mean(axis=0), np.bincount(y) / 600, atol=0.03)
    assert np.mean(probs.argmax(axis=-1) == y) > 0.88
    energy = ood.Energy().fit(model, x)
    assert energy.score(x + 8).min() > energy.score(x).max()


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("units", {"units": 1}),
        ("kl_weight", {"kl_weight": None}),
        ("noise_scale", {"noise_scale": 0.0}),
        ("dof", {"dof": -1.0}),
        ("use_bias", {"use_bias": "no"}),
    ],
)
def test_bad_arguments(name, arguments):
    with pytest.raises(ValueError, match=f"Argument `{name}`"):
        VBLLGenerativeDense(**{"units": 3, "kl_weight": 0.1, **arguments})
    with pytest.raises(TypeError, match="no argument 'posterior'"):
        VBLLGenerativeDense(3, kl_weight=0.1, posterior="dense")


def test_a_loss_of_probabilities_is_refused():
    model = keras.Sequential([keras.Input((5,)), VBLLGenerativeDense(3, kl_weight=0.1)])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    with pytest.raises(ValueError, match="`from_logits` of the loss must be True"):
        model.fit(np.zeros((4, 5)), np.zeros(4), verbose=0)
