"""Heads of regressions: formulas, ranges, parameters that stay finite, losses that misread them.

What every layer must do (models, saving, precision, strategies) is in tests/contract; densities,
quantiles and CRPS are in tests/_predictions/test_families.py.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats
from tensorflow_probability import distributions as tfd

from tfuq import layers, losses
from tfuq.predictive import predict_uncertainty

FEATURES, UNITS = 4, 2
HEADS = {
    "normal": lambda **kw: layers.NormalDense(UNITS, **kw),
    "laplace": lambda **kw: layers.LaplaceDense(UNITS, **kw),
    "student_t": lambda **kw: layers.StudentTDense(UNITS, **kw),
    "mixture": lambda **kw: layers.MixtureDense(UNITS, 3, **kw),
    "quantiles": lambda **kw: layers.QuantileDense(UNITS, [0.1, 0.5, 0.9], **kw),
    "evidential": lambda **kw: layers.EvidentialDense(UNITS, **kw),
    "joint": lambda **kw: layers.MultivariateNormalDense(UNITS, 2, **kw),
}
EVERY = pytest.mark.parametrize("name", HEADS)


def inputs(*leading):
    return np.random.default_rng(0).normal(size=(*(leading or (6,)), FEATURES)).astype("float32")


def loss_of(head):
    return head.pinball() if hasattr(head, "pinball") else head.negative_log_likelihood()


def in_model(head):
    return keras.Sequential([keras.Input((FEATURES,)), head])


# --- Parameters --------------------------------------------------------------------------------


@EVERY
def test_parameters_are_a_linear_map_in_its_range(name):
    """For inputs of any rank: the map of `Dense`, then `constrain`."""
    head, x = HEADS[name](), inputs(2, 3, 5)
    params = head(x)
    assert params.shape == (2, 3, 5, UNITS * head.family.size)
    assert head.compute_output_shape(x.shape) == params.shape
    raw = x @ head.kernel.numpy() + head.bias.numpy()
    expected = head.family.constrain(tf.constant(raw), 1e-6)
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)
    means = HEADS[name](mean_only=True)
    means.build(x.shape)
    means.set_weights(head.get_weights())
    np.testing.assert_allclose(means(x), head.family.mean(params), rtol=1e-6)
    assert means.compute_output_shape(x.shape) == (2, 3, 5, UNITS)


@EVERY
def test_parameters_stay_in_range_however_large_the_inputs(name):
    """Of features up to 10^4 all parameters, the loss and its gradients are finite."""
    head = HEADS[name]()
    x = tf.constant(inputs() * np.array([[1e-4], [1.0], [1e2], [1e4], [-1e4], [0.0]], "float32"))
    loss, y = loss_of(head), np.zeros((6, UNITS), "float32")
    with tf.GradientTape() as tape:
        params = head(x, training=True)
        value = loss(y, params)
    assert np.isfinite(params).all()
    assert np.isfinite(value)
    for gradient in tape.gradient(value, [v.value for v in head.trainable_variables]):
        assert np.isfinite(gradient).all()
    if head.family.has_density:
        assert (head.family.aleatoric_variance(params).numpy() > 0).all()


def test_formulas_are_those_of_the_docstrings():
    x = inputs()

    def blocks(head):
        raw = x.astype("float64") @ head.kernel.numpy() + head.bias.numpy()
        return np.split(raw, head.family.size, axis=-1)

    softplus = lambda u: np.logaddexp(0, u)  # noqa: E731
    head = layers.NormalDense(UNITS, min_scale=0.1)
    params = head(x)
    loc, scale = blocks(head)
    np.testing.assert_allclose(params, np.hstack([loc, softplus(scale) + 0.1]), rtol=1e-5)
    head = layers.StudentTDense(UNITS)
    params = head(x)
    loc, scale, df = blocks(head)
    expected = np.hstack([loc, softplus(scale) + 1e-6, 2.01 + softplus(df)])
    np.testing.assert_allclose(params, expected, rtol=1e-5)
    head = layers.EvidentialDense(UNITS)
    params = head(x)
    loc, *rest = blocks(head)
    evidence, alpha, beta = (softplus(part) + 1e-6 for part in rest)
    np.testing.assert_allclose(params, np.hstack([loc, evidence, alpha + 1, beta]), rtol=1e-5)
    head = layers.QuantileDense(UNITS, [0.1, 0.5, 0.9])
    params = head(x)
    low, middle, high = blocks(head)
    expected = np.hstack([middle - softplus(low), middle, middle + softplus(high)])
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)


def test_distributions_are_tfps():
    x, y = inputs(), np.random.default_rng(1).normal(size=(6, UNITS)).astype("float32")
    head = layers.MultivariateNormalDense(UNITS, 2)
    params = head(x)
    found = head.distribution(params)
    assert isinstance(found, tfd.MultivariateNormalDiagPlusLowRankCovariance)
    assert found.batch_shape == (6,)
    assert found.event_shape == (UNITS,)
    np.testing.assert_allclose(head.covariance(params), found.covariance(), rtol=1e-5, atol=1e-6)
    loss = head.negative_log_likelihood()(y, params)
    np.testing.assert_allclose(loss, -np.mean(found.log_prob(y)) / UNITS, rtol=1e-5)
    head = layers.MixtureDense(UNITS, 3)
    params = head(x)
    logits, loc, scale = (part.numpy() for part in head.family.components(params))
    terms = special.log_softmax(logits, -1) + stats.norm.logpdf(y[..., None], loc, scale)
    expected = special.logsumexp(terms, axis=-1)
    np.testing.assert_allclose(head.distribution(params).log_prob(y), expected, rtol=1e-4)
    np.testing.assert_allclose(
        head.negative_log_likelihood()(y, params), -expected.mean(), rtol=1e-5
    )


def test_components_of_a_mixture_start_apart():
    """With the same biases all components would stay one."""
    head = layers.MixtureDense(1, 4)
    head.build((None, FEATURES))
    locs = head.bias.numpy()[4:8]
    assert np.ptp(locs) > 0.1


# --- Training ----------------------------------------------------------------------------------


@EVERY
def test_misreading_losses_and_metrics_are_refused(name):
    head = HEADS[name]()
    model, x, y = in_model(head), inputs(), np.zeros((6, UNITS))
    other = losses.CRPS("laplace" if name == "normal" else "normal")
    for wrong in ("mse", keras.losses.Huber(), keras.losses.mean_absolute_error, other):
        model.compile("sgd", wrong)
        with pytest.raises(ValueError, match=r"Argument `loss` must.*Received"):
            model.fit(x, y, verbose=0)
    model.compile("sgd", loss_of(head), metrics=["mae"])
    with pytest.raises(ValueError, match=r"Argument `metrics` must.*Received"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize("name", ["normal", "joint"])
def test_means_alone_are_trained_by_losses_of_keras(name):
    head = HEADS[name](mean_only=True)
    model = in_model(head)
    model.compile("sgd", "mse", metrics=["mae"], jit_compile=False)
    assert np.isfinite(model.fit(inputs(), np.zeros((6, UNITS)), verbose=0).history["loss"]).all()
    for method in ("negative_log_likelihood", "crps"):
        with pytest.raises(ValueError, match=rf"`mean_only` must be False for `{method}`"):
            getattr(head, method)()
    with pytest.raises(ValueError, match="`mean_only` must be False for `distribution`"):
        head.distribution(np.zeros((1, UNITS)))


@pytest.mark.slow
def test_correlated_noise_is_learned():
    """Of 4,000 pairs with a correlation of 0.8 the head says between 0.7 and 0.9.

    The standard error of the correlation is (1 - 0.64) / sqrt(4000) = 0.006.
    """
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, FEATURES)).astype("float32")
    noise = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=len(x))
    y = x[:, :2] + noise
    keras.utils.set_random_seed(1)
    head = layers.MultivariateNormalDense(2)
    model = in_model(head)
    model.compile(keras.optimizers.Adam(0.05), head.negative_log_likelihood(), jit_compile=False)
    model.fit(x, y, 500, epochs=30, verbose=0)
    covariance = head.covariance(model.predict(x, 4000, verbose=0)).numpy()
    correlation = covariance[:, 0, 1] / np.sqrt(covariance[:, 0, 0] * covariance[:, 1, 1])
    assert 0.7 < correlation.mean() < 0.9
    found = predict_uncertainty(model, x)
    lower, upper = found.interval(0.9)
    assert 0.87 < ((lower <= y) & (y <= upper)).mean() < 0.93
    drawn = found[:2000].samples(1)[0] - found[:2000].mean
    assert 0.7 < np.corrcoef(drawn.T)[0, 1] < 0.9


# --- Arguments ---------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    "argument, value",
    [("min_scale", 0.0), ("min_scale", -1.0), ("mean_only", "yes"), ("use_bias", None)],
)
def test_refuses_bad_arguments(name, argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}`.*Received: "):
        HEADS[name](**{argument: value})


@pytest.mark.parametrize(
    "argument, make",
    [
        ("units", lambda: layers.NormalDense(0)),
        ("units", lambda: layers.NormalDense(1.5)),
        ("num_components", lambda: layers.MixtureDense(1, 0)),
        ("levels", lambda: layers.QuantileDense(1, [0.5])),
        ("levels", lambda: layers.QuantileDense(1, [0.9, 0.1])),
        ("levels", lambda: layers.QuantileDense(1, [0.0, 0.5])),
        ("units", lambda: layers.MultivariateNormalDense(1)),
        ("num_factors", lambda: layers.MultivariateNormalDense(2, 0)),
        ("family", lambda: layers.QuantileDense(1).negative_log_likelihood()),
    ],
)
def test_refuses_what_is_out_of_range(argument, make):
    with pytest.raises(ValueError, match=rf"`{argument}`.*Received: "):
        make()
