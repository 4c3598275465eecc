"""Losses of numbers: values, reductions, masks, precision, files, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfuq import layers, losses
from tfuq._predictions.families import family_named

FAMILIES = {
    "normal": "normal",
    "laplace": "laplace",
    "student_t": "student_t",
    "evidential": "evidential",
    "bayesian_normal": "bayesian_normal",
    "bayesian_student_t": "bayesian_student_t",
    "mixture": {"name": "mixture", "num_components": 2},
    "multivariate_normal": {"name": "multivariate_normal", "num_factors": 1},
    "bayesian_multivariate_normal": {"name": "bayesian_multivariate_normal", "num_factors": 1},
}
QUANTILES = {"name": "quantiles", "levels": [0.1, 0.9]}
LOSSES = {
    **{f"nll {name}": lambda c=c: losses.NegativeLogLikelihood(c) for name, c in FAMILIES.items()},
    **{f"crps {name}": lambda c=c: losses.CRPS(c) for name, c in FAMILIES.items()},
    "crps quantiles": lambda: losses.CRPS(QUANTILES),
    "beta_nll": lambda: losses.BetaNLL(0.5),
    "beta_nll joint": lambda: losses.BetaNLL(1.0, FAMILIES["multivariate_normal"]),
    "pinball": lambda: losses.Pinball([0.1, 0.5, 0.9]),
    "evidential": lambda: losses.Evidential(0.1),
}
EVERY = pytest.mark.parametrize("name", LOSSES)


def data(loss, *leading, dtype="float32"):
    """Labels of two numbers, and parameters in their range."""
    rng, family = np.random.default_rng(0), loss.family
    raw = rng.normal(size=(*(leading or (6,)), 2 * family.size))
    if family.name.startswith("bayesian"):
        loc, *rest = np.split(raw, family.size, axis=-1)
        params = np.concatenate([loc, *(np.exp(each) + 2 for each in rest)], axis=-1)
    else:
        params = family.constrain(tf.constant(raw), 1e-6).numpy()
    return rng.normal(size=(*(leading or (6,)), 2)).astype(dtype), params.astype(dtype)


@EVERY
def test_is_the_mean_over_examples_and_numbers(name):
    """Also with weights, masks, and inputs of higher rank, as Keras' mean squared error."""
    loss = LOSSES[name]()
    y, params = data(loss, 3, 4)
    each = np.mean(loss._values(tf.constant(params), tf.constant(y)), axis=-1)
    assert each.shape == (3, 4)
    np.testing.assert_allclose(loss(y, params), each.mean(), rtol=1e-5)
    weights = np.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(loss(y, params, weights), (weights * each).mean(), rtol=1e-5)
    masked, mask = tf.constant(params), weights > 5
    masked._keras_mask = tf.constant(mask)
    np.testing.assert_allclose(loss(y, masked), each[mask].mean(), rtol=1e-5)
    config = {**loss.get_config(), "reduction": "none"}
    np.testing.assert_allclose(type(loss).from_config(config)(y, params), each, rtol=1e-5)


@EVERY
def test_comes_back_from_its_configuration(name):
    loss = LOSSES[name]()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    y, params = data(loss)
    np.testing.assert_array_equal(again(y, params), loss(y, params))


@EVERY
def test_is_computed_in_float32_from_half_precision(name):
    loss = LOSSES[name]()
    y, params = data(loss)
    half = params.astype("float16")
    found = loss(y.astype("float16"), half)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, loss(y, params), rtol=0.1, atol=0.1)


@EVERY
def test_refuses_labels_of_another_shape(name):
    loss = LOSSES[name]()
    y, params = data(loss)
    for bad in (y[:, 0], y[:, :1], y[:3], y[..., None], np.tile(y, 2)):
        with pytest.raises(ValueError, match=r"`y_true` must have shape.*Received"):
            loss(bad, params)


@EVERY
def test_refuses_labels_that_are_missing(name):
    loss = LOSSES[name]()
    y, params = data(loss)
    y[2, 1] = np.nan
    with pytest.raises(tf.errors.InvalidArgumentError, match="y_true"):
        loss(y, params)


@EVERY
def test_gradients_are_finite(name):
    loss = LOSSES[name]()
    y, params = data(loss)
    params = tf.constant(params)
    with tf.GradientTape() as tape:
        tape.watch(params)
        value = loss(y, params)
    gradient = tape.gradient(value, params).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient != 0).any(axis=0).all()


# --- Values ------------------------------------------------------------------------------------


def test_likelihoods_are_scipys():
    y, params = data(losses.NegativeLogLikelihood("normal"))
    expected = -stats.norm.logpdf(y, params[:, :2], params[:, 2:]).mean()
    np.testing.assert_allclose(losses.NegativeLogLikelihood()(y, params), expected, rtol=1e-5)
    loss = LOSSES["nll multivariate_normal"]()
    y, params = data(loss)
    covariance = loss.family.covariance(tf.constant(params)).numpy()
    rows = zip(y, params[:, :2], covariance, strict=True)
    joint = [stats.multivariate_normal(loc, c).logpdf(label) for label, loc, c in rows]
    np.testing.assert_allclose(loss(y, params), -np.mean(joint) / 2, rtol=1e-5)


def test_beta_weighs_by_the_variance():
    """beta 0 is the likelihood; with beta 1 the gradient of the mean is that of half the squared
    error (Seitzer et al. 2022, section 4).
    """
    y, params = data(losses.BetaNLL())
    nll = losses.NegativeLogLikelihood()
    np.testing.assert_allclose(losses.BetaNLL(0.0)(y, params), nll(y, params), rtol=1e-6)
    variable = tf.constant(params)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = losses.BetaNLL(1.0)(y, variable)
    expected = (params[:, :2] - y) / y.size
    np.testing.assert_allclose(tape.gradient(value, variable)[:, :2], expected, rtol=1e-4)


def test_evidential_loss_is_its_formula():
    loss = losses.Evidential(0.3)
    y, params = data(loss)
    loc, evidence, alpha, beta = np.split(params.astype("float64"), 4, axis=-1)
    scale = np.sqrt(beta * (1 + evidence) / (evidence * alpha))
    expected = -stats.t.logpdf(y, 2 * alpha, loc, scale)
    expected += 0.3 * np.abs(y - loc) * (2 * evidence + alpha)
    np.testing.assert_allclose(loss(y, params), expected.mean(), rtol=1e-4)


def test_pinball_finds_the_quantile():
    """Of 999 labels the constant with the least loss is their empirical quantile."""
    y = np.random.default_rng(1).exponential(size=(999, 1)).astype("float32")
    loss, grid = losses.Pinball([0.25, 0.75]), np.linspace(0, 3, 601)
    for index, level in enumerate((0.25, 0.75)):
        other = np.quantile(y, 1 - level)
        pairs = [[u, other] if index == 0 else [other, u] for u in grid]
        values = [float(loss(y, np.tile(pair, (999, 1)).astype("float32"))) for pair in pairs[::10]]
        best = grid[::10][np.argmin(values)]
        assert abs(best - np.quantile(y, level)) <= 0.05


# --- In models ---------------------------------------------------------------------------------


def test_trains_saves_and_loads_under_mixed_precision(tmp_path):
    """Loss scaling and all; the loaded model is compiled with the same loss."""
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    # Loading, too: Keras scales the loss of a loaded model by the policy of that moment.
    keras.config.set_dtype_policy("mixed_float16")
    try:
        head = layers.MultivariateNormalDense(2)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), head])
        model.compile("adam", head.negative_log_likelihood(), jit_compile=False)
        history = model.fit(x, x[:, :2], epochs=3, verbose=0).history["loss"]
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(again.optimizer, keras.optimizers.LossScaleOptimizer)
    assert history[-1] < history[0]
    assert again.loss.get_config() == model.loss.get_config()
    expected = model.evaluate(x, x[:, :2], verbose=0)
    np.testing.assert_allclose(again.evaluate(x, x[:, :2], verbose=0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "name, make",
    [
        ("family", lambda: losses.NegativeLogLikelihood("gauss")),
        (
            "family",
            lambda: losses.NegativeLogLikelihood(QUANTILES),
        ),
        ("family", lambda: losses.BetaNLL(0.5, "point")),
        ("beta", lambda: losses.BetaNLL(1.5)),
        ("levels", lambda: losses.Pinball([0.9, 0.1])),
        ("levels", lambda: losses.Pinball([0.5])),
        ("coefficient", lambda: losses.Evidential(-1.0)),
    ],
)
def test_refuses_bad_arguments(name, make):
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: "):
        make()


def test_a_loss_says_its_family():
    assert losses.CRPS("laplace").family == family_named("laplace")
    assert losses.Pinball([0.1, 0.9]).family.levels == (0.1, 0.9)
