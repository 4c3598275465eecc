"""VBLLDense with Student's t noise: the authors' package, NumPy's draws, and misuse.

`fixtures/make_vbll_student.py` wrote what vbll 0.4.9 answers for the same weights.
"""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tfuq._random.draws import one_draw
from tfuq.layers import VBLLDense
from tfuq.layers._student_logits import TRIES, gamma_of
from tfuq.layers.base import softplus_inverse
from tfuq.predictive import sample_predictions

FIXTURE = dict(np.load(pathlib.Path(__file__).parents[1] / "fixtures/vbll_student.npz"))
X, Y, KL_WEIGHT = FIXTURE["x"], FIXTURE["y"], float(FIXTURE["regularization_weight"])
LEAST_DF = 2.0


def given(form):
    return {k.split("/")[1]: v for k, v in FIXTURE.items() if k.startswith(f"{form}/")}


def head(form="diagonal", dtype="float64", **options):
    """One with the weights of the fixture."""
    own = given(form)
    layer = VBLLDense(
        4,
        kl_weight=KL_WEIGHT,
        posterior=form,
        noise="student_t",
        prior_scale=float(own["prior_variance"]) ** 0.5,
        wishart_scale=1 / float(FIXTURE["wishart_scale"]),
        dof=float(FIXTURE["dof"]),
        use_bias=False,
        dtype=dtype,
        **options,
    )
    layer.build((None, 6))
    layer.kernel.assign(own["kernel"].T)
    layer.kernel_rho.assign(softplus_inverse(own["diagonal"].T))
    layer.noise_rho.assign(softplus_inverse(np.sqrt(own["rate"] / own["shape"])))
    least = float(layer_df(layer)[0]) - np.log1p(np.exp(float(layer.noise_df_rho[0])))
    layer.noise_df_rho.assign(softplus_inverse(2 * own["shape"] - least))
    layer.tilt.assign(FIXTURE["tilt"] * own["shape"] / own["rate"])  # theirs is one for all units
    if form == "dense":
        layer.kernel_tril.assign(own["off_diagonal"])
    return layer


def layer_df(layer):
    return np.asarray(layer.logit_distribution(X).distribution.df)


@pytest.mark.parametrize("dtype, rtol", [("float32", 2e-5), ("float64", 1e-8)])
@pytest.mark.parametrize("form", ["diagonal", "dense"])
def test_agrees_with_the_authors_package(form, dtype, rtol):
    layer, own = head(form, dtype), given(form)
    np.testing.assert_allclose(layer_df(layer), 2 * own["shape"], rtol=rtol)
    kl = own["kl"] - 4 * 6 / 2  # theirs leaves the constant out
    np.testing.assert_allclose(layer.kl_divergence(), kl, rtol=10 * rtol)
    logits = layer(X.astype(dtype), training=True)
    np.testing.assert_allclose(logits, own["mean"], rtol=rtol, atol=rtol)
    log_probs = special.log_softmax(np.asarray(logits, "float64"), axis=-1)
    cross_entropy = -log_probs[np.arange(len(Y)), Y].mean()
    gap = float(sum(layer.losses)) - KL_WEIGHT * float(layer.kl_divergence())
    inverse = own["rate"] / (own["shape"] - 1)
    spread = own["variance"] + 1
    bound = own["bound"] + np.sum(spread * (own["their_inverse"] - inverse), axis=-1) / 8
    np.testing.assert_allclose(cross_entropy + gap, -bound.mean(), rtol=10 * rtol)


def students(mean, spread, own, count, rng):
    """Draws of the logits, `(count, rows, units)`, each with its own precision."""
    precision = rng.gamma(own["shape"], 1 / own["rate"], size=(count, *mean.shape))
    return mean + np.sqrt(spread / precision) * rng.normal(size=precision.shape)


def test_the_bound_is_above_the_loss():
    """The mean of 200,000 draws is below it, but no more than a fifth of a nat."""
    layer, own = head(), given("diagonal")
    logits = np.asarray(layer(X, training=True))
    gap = float(sum(layer.losses)) - KL_WEIGHT * float(layer.kl_divergence())
    drawn = students(logits, own["variance"] + 1, own, 200_000, np.random.default_rng(0))
    exact = special.logsumexp(drawn, axis=-1).mean(axis=0) - special.logsumexp(logits, axis=-1)
    assert exact.mean() - 0.01 < gap


def test_predictions_are_means_over_students_t():
    """20,000 points against 200,000 draws: 6 standard errors of both, one failure in 10^7."""
    layer, own = head(test_mc_samples=20_000, sampling="iid", seed=3), given("diagonal")
    found = np.asarray(tf.nn.softmax(layer(X)))
    rng = np.random.default_rng(0)
    drawn = students(np.asarray(own["mean"]), own["variance"] + 1, own, 200_000, rng)
    probs = special.softmax(drawn, axis=-1)
    error = probs.std(axis=0) * np.sqrt(1 / 200_000 + 1 / 20_000)
    assert np.all(np.abs(found - probs.mean(axis=0)) < 6 * error)
    np.testing.assert_array_equal(layer(X), layer(X))


@pytest.mark.parametrize("a", [1.01, 2.5, 40.0])
def test_gamma_variables(a):
    """Kolmogorov and Smirnov, p above 1e-7."""
    rng = np.random.default_rng(0)
    normals, uniforms = rng.normal(size=(TRIES, 50_000)), rng.uniform(size=(TRIES, 50_000))
    found = gamma_of(tf.constant(a, "float64"), normals, uniforms)
    assert stats.kstest(found, stats.gamma(a).cdf).pvalue > 1e-7


def test_distribution_and_variance_of_logits():
    layer, own = head(logits_only=False), given("diagonal")
    found = layer(X)
    scale = np.sqrt((own["variance"] + 1) * own["rate"] / own["shape"])
    exact = stats.t(2 * own["shape"], own["mean"], scale)
    np.testing.assert_allclose(found.variance, exact.var(), rtol=1e-8)
    values = own["mean"] + 0.7
    log_probs = layer.logit_distribution(X).log_prob(values)
    np.testing.assert_allclose(log_probs, exact.logpdf(values).sum(axis=-1), rtol=1e-8)


def test_a_draw_is_of_students_t():
    """Weights of draws over their scales are Student's t: Kolmogorov and Smirnov, p above 1e-7."""
    layer, own = head(), given("diagonal")

    def mean_of(seed):
        with one_draw(seed) as draw:
            spread = layer._form.read(layer)
            x = tf.eye(6, dtype=tf.float64)
            return layer._drawn(x, layer._mean(x), spread, draw.seed_of(layer))

    seeds = tf.constant([[7, i] for i in range(400)])
    together = tf.function(lambda: tf.map_fn(mean_of, seeds, fn_output_signature="float64"))
    drawn = together().numpy()
    scale = own["diagonal"].T * np.sqrt(own["rate"] / own["shape"])
    units = (drawn - own["kernel"].T) / scale
    for unit in range(4):  # weights of one unit share a precision: one of them is looked at
        exact = stats.t(2 * own["shape"][unit])
        assert stats.kstest(units[:, 0, unit], exact.cdf).pvalue > 1e-7


@pytest.mark.slow
def test_learns_saves_and_draws(tmp_path):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    y = np.argmax(x[:, :3], axis=-1)
    top = VBLLDense(3, kl_weight=1 / 64, noise="student_t", seed=1)
    model = keras.Sequential([keras.Input((4,)), top])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, jit_compile=False)
    start = [w.numpy() for w in top.trainable_weights]
    history = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for old, new in zip(start, top.trainable_weights, strict=True):
        assert np.any(old != new.numpy()), new.path
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert np.ptp(sample_predictions(model, x, 4), axis=0).max() > 0.01


@pytest.mark.parametrize("posterior", ["diagonal", "dense"])
def test_plain_gradient_descent_stays_finite(posterior):
    """With the authors' t it went to NaN at this rate."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    y = np.argmax(x[:, :4], axis=-1)
    top = VBLLDense(4, kl_weight=1 / 64, noise="student_t", posterior=posterior)
    model = keras.Sequential([keras.Input((8,)), top])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    history = model.fit(x, y, epochs=15, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_the_bound_starts_at_its_lowest():
    """Where all classes are as likely: no other t, one for all classes, is better."""
    layer = VBLLDense(10, kl_weight=1.0, noise="student_t", kernel_initializer="zeros")
    layer.build((None, 6))
    gaps = []
    for shift in (0.0, -0.02, 0.02):
        layer.tilt.assign(np.full(10, 0.4 + shift))
        layer(X.astype("float32"), training=True)
        gaps.append(float(sum(layer.losses)))
    assert min(gaps) == gaps[0]


def test_labels():
    layer = VBLLDense(2, kl_weight=0.1, noise="student_t", likelihood="bernoulli")
    layer(X, training=True)
    assert all(np.isfinite(float(term)) for term in layer.losses)


def test_bad_arguments():
    with pytest.raises(ValueError, match="Argument `objective` must be 'closed_form' with"):
        VBLLDense(3, kl_weight=0.1, noise="student_t", objective="monte_carlo")
    with pytest.raises(ValueError, match=r"Argument `noise` must be one of.*Received: noise='t'"):
        VBLLDense(3, kl_weight=0.1, noise="t")
