"""VBLLRegression: the authors' package, brute force, draws; prediction in closed form; errors.

What every layer must do (models, saving, export, precision, strategies) is in tests/contract.
`fixtures/make_vbll_regression.py` wrote what the authors' package answers.
"""

import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfuq
from tfuq._random.draws import one_draw
from tfuq.layers import EvidentialDense, MCDropout, NormalDense, VBLLRegression
from tfuq.layers.base import softplus_inverse
from tfuq.predictive import predict_uncertainty, sample_predictions

FEATURES, UNITS = 5, 3
FORMS = {"diagonal": {}, "low_rank": {"rank": 2}, "dense": {}}
FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures/vbll_regression.npz")
PRECISIONS = pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-10)])


def inputs(*leading):
    return np.random.default_rng(0).normal(size=(*(leading or (4,)), FEATURES))


def labels(*leading):
    return np.random.default_rng(2).normal(size=(*(leading or (4,)), UNITS))


def built(form="diagonal", **options):
    """A layer whose weights are all far from their start, so that every term counts."""
    options = {"units": UNITS, "kl_weight": 0.1, **FORMS[form], **options}
    layer = VBLLRegression(posterior=form, **options)
    layer.build((None, FEATURES))
    rng = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        weight.assign(0.5 * rng.normal(size=weight.shape))
    return layer


def sequential(*layers):
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


# --- The authors' package ----------------------------------------------------------------------


def authors_layer(form, units, dtype, likelihood="normal"):
    """The head of the fixture, and what it answers, by name."""
    is_student = likelihood == "student_t"
    prefix = f"{'t/' * is_student}{form}/{units}/"
    found = {n.removeprefix(prefix): FIXTURE[n] for n in FIXTURE.files if n.startswith(prefix)}
    features = found["mean"].shape[-1]
    layer = VBLLRegression(
        units,
        kl_weight=float(FIXTURE["regularization_weight"]),
        posterior=form.replace("lowrank", "low_rank"),
        rank=2 if form == "lowrank" else None,
        likelihood=likelihood,
        prior_scale=math.sqrt(FIXTURE["prior_scale"] * (1 + is_student) / features),
        wishart_scale=float(FIXTURE["wishart_scale"]) ** (-1 if is_student else 1),
        dof=float(FIXTURE["dof"]),
        min_scale=1e-15,
        use_bias=False,
        dtype=dtype,
    )
    layer.build((None, features))
    diagonal = np.sqrt(found["diagonal"]) if layer.rank else found["diagonal"]
    layer.kernel.assign(found["mean"].T)
    layer.kernel_rho.assign(softplus_inverse(diagonal).T)
    if is_student:
        layer.noise_df_rho.assign(softplus_inverse(2 * found["concentration"] - 2.01))
        found["sigma"] = np.sqrt(found["rate"] / found["concentration"])
    layer.noise_rho.assign(softplus_inverse(found["sigma" if is_student else "scale"]))
    if layer.rank:
        layer.kernel_factor.assign(found["off_diagonal"].transpose(1, 0, 2))
    if form == "dense":
        layer.kernel_tril.assign(found["off_diagonal"])
    return layer, found


@PRECISIONS
@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("form", ["diagonal", "lowrank", "dense"])
def test_agrees_with_the_authors_package(form, units, dtype, rtol):
    """Prediction, its density, KL; the whole loss of one output: see `make_vbll_regression.py`."""
    layer, theirs = authors_layer(form, units, dtype)
    x, y = FIXTURE["x"].astype(dtype), FIXTURE["y"][:, :units].astype(dtype)
    params = layer(x, training=True)
    (kl_loss,) = layer.losses
    family, constant = layer.family, -layer.kernel.shape[0] * units / 2
    wishart = theirs["wishart"]
    pairs = [
        (family.mean(params), theirs["loc"]),
        (family.variance(params), theirs["std"] ** 2),
        (family.aleatoric_variance(params), np.broadcast_to(theirs["scale"] ** 2, y.shape)),
        (family.log_prob(params, y), theirs["log_prob"]),
        (layer.distribution(params).log_prob(y), theirs["log_prob"]),
        (layer.kl_divergence(), theirs["kl"] + constant - wishart),
    ]
    if units == 1:
        loss = layer.negative_log_likelihood(dtype=dtype)(y, params) + kl_loss
        pairs += [(loss, theirs["loss"] + layer.kl_weight * constant)]
    for ours, expected in pairs:
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=rtol)


@PRECISIONS
@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("form", ["diagonal", "lowrank", "dense"])
def test_student_form_agrees_with_the_authors_package(form, units, dtype, rtol):
    """As above; their loss leaves out log(2 pi) / 2, and is a sum over the outputs."""
    layer, theirs = authors_layer(form, units, dtype, "student_t")
    x, y = FIXTURE["x"].astype(dtype), FIXTURE["y"][:, :units].astype(dtype)
    params = layer(x, training=True)
    (kl_loss,) = layer.losses
    constant = -layer.kernel.shape[0] * units / 2
    total = layer.distribution(params)
    pairs = [
        (layer.family.mean(params), theirs["loc"]),
        (total.scale, theirs["scale"]),
        (total.df, np.broadcast_to(theirs["df"], y.shape)),
        (layer.family.log_prob(params, y), theirs["log_prob"]),
        (layer.kl_divergence(), theirs["kl"] + theirs["gamma_kl"] + constant),
    ]
    if units == 1:
        loss = layer.negative_log_likelihood(dtype=dtype)(y, params) + kl_loss
        left_out = math.log(2 * math.pi) / 2
        pairs += [(loss, theirs["loss"] + layer.kl_weight * constant + left_out)]
    for ours, expected in pairs:
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=rtol)


# --- Brute force and draws ---------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_its_gradients_are_the_formulas(form):
    """The docstring's loss, from whole covariance matrices, for inputs of rank 3."""
    layer = built(form, dtype="float64")
    x, y = tf.constant(inputs(2, 4)), tf.constant(labels(2, 4))
    variables = [x, *(v.value for v in layer.trainable_variables)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        params = layer(x, training=True)
        total = layer.negative_log_likelihood(dtype="float64")(y, params) + sum(layer.losses)
        posterior = layer.posterior_distribution()
        mean = x @ tf.transpose(posterior.mean()) + layer.bias
        variance = tf.einsum("...f,kfg,...g->...k", x, posterior.covariance(), x)
        noise = tf.square(tf.nn.softplus(tf.convert_to_tensor(layer.noise_rho)) + 1e-6)
        terms = tf.square(y - mean) / noise + tf.math.log(noise) + math.log(2 * math.pi)
        bound = tf.reduce_mean(terms + variance / noise) / 2
        expected = bound + 0.1 * layer.kl_divergence()
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    for found, gradient in zip(
        tape.gradient(total, variables), tape.gradient(expected, variables), strict=True
    ):
        np.testing.assert_allclose(found, gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.slow_cases("diagonal", "dense")
@pytest.mark.parametrize("form", FORMS)
def test_draws_have_the_moments_of_the_closed_form(form):
    """4,000 draws of the network: means and variances within six standard errors.

    A Gaussian's sample variance has standard error sqrt(2 / n). Of the 24 comparisons of a form a
    correct layer fails one in 2e7 seeds.
    """
    layer, count = built(form), 4000
    model, x = sequential(layer), inputs().astype("float32")
    draws = np.asarray(sample_predictions(model, x, count), "float64")
    loc, noise, epistemic = np.split(layer(x).numpy(), 3, axis=-1)
    np.testing.assert_array_equal(draws[..., 2 * UNITS :], 0.0)
    np.testing.assert_allclose(draws[..., UNITS : 2 * UNITS], np.broadcast_to(noise, (count, 4, 3)))
    means = draws[..., :UNITS]
    assert (np.abs(means.mean(0) - loc) <= 6 * epistemic / math.sqrt(count)).all()
    assert (np.abs(means.var(0) / epistemic**2 - 1) <= 6 * math.sqrt(2 / count)).all()


@pytest.mark.slow_cases("diagonal")
@pytest.mark.slow_cases("low_rank", "dense")
@pytest.mark.parametrize("form", FORMS)
def test_student_draws_have_the_moments_of_the_closed_form(form):
    """4,000 draws of weights whose posterior is Student's t of 40 degrees of freedom.

    A sample variance has the standard error sqrt((kurtosis - 1) / n), kurtosis 3 + 6 / 36: six of
    them, as above. The posterior that TFP knows has the same covariance.
    """
    layer, count = built(form, likelihood="student_t"), 4000
    layer.noise_df_rho.assign(np.full(UNITS, 40 - 2.01))
    model, x = sequential(layer), inputs().astype("float32")
    draws = np.asarray(sample_predictions(model, x, count), "float64")
    family = layer.family
    deviation = np.sqrt(family.epistemic_variance(layer(x)))
    means = draws[..., :UNITS]
    assert (np.abs(means.mean(0) - family.mean(layer(x))) <= 6 * deviation / math.sqrt(count)).all()
    ratios = means.var(0) / deviation**2
    assert (np.abs(ratios - 1) <= 6 * math.sqrt((2 + 6 / 36) / count)).all()
    covariance = layer.posterior_distribution().covariance()
    variance = np.einsum("nf,kfg,ng->nk", x, covariance, x)
    np.testing.assert_allclose(variance, deviation**2, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_one_draw_has_one_set_of_weights(form):
    """Means at x and -x are opposite, whatever the batch."""
    layer, x = built(form, use_bias=False), inputs(2, 3)
    with one_draw(tf.constant([1, 2])):
        one = layer(x)[..., :UNITS]
    with one_draw(tf.constant([1, 2])):
        other = layer(-x[1])[..., :UNITS]
    np.testing.assert_allclose(one[1], -other, rtol=1e-5)


def test_a_draw_has_a_likelihood_and_gradients():
    """Its means are known, so that the bound is the likelihood, without a division by 0."""
    layer, x, y = built(), inputs(), labels()
    with tf.GradientTape() as tape, one_draw(tf.constant([1, 2])):
        params = layer(x)
        loss = layer.negative_log_likelihood()(y, params)
    loc, noise, _ = np.split(params.numpy(), 3, axis=-1)
    np.testing.assert_allclose(loss, -stats.norm.logpdf(y, loc, noise).mean(), rtol=1e-5)
    gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_one_weight_has_the_exact_posterior():
    """Bayesian linear regression with known noise: where training ends is the conjugate posterior.

    y = w x + e: 1 / s^2 = 1 / prior^2 + sum x^2 / sigma^2, m = s^2 sum x y / sigma^2.
    """
    rng = np.random.default_rng(5)
    x = rng.normal(size=(20, 1))
    y, sigma, prior = 0.7 * x + 0.5 * rng.normal(size=x.shape), 0.5, 1.5
    options = {"prior_scale": prior, "noise_scale": sigma, "use_bias": False, "dtype": "float64"}
    layer = VBLLRegression(1, kl_weight=1 / len(x), **options)
    layer.build(x.shape)
    loss_of = layer.negative_log_likelihood(dtype="float64")
    variables = [layer.kernel.value, layer.kernel_rho.value]

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_of(y, layer(x, training=True)) + sum(layer.losses)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.05 * gradient)

    for _ in range(3000):
        step()
    precision = 1 / prior**2 + (x**2).sum() / sigma**2
    scale = layer.posterior_distribution().stddev().numpy()
    np.testing.assert_allclose(scale, [[precision**-0.5]], rtol=1e-4)
    mean = (x * y).sum() / sigma**2 / precision
    np.testing.assert_allclose(layer.kernel.numpy(), [[mean]], rtol=1e-4)


@pytest.mark.slow
def test_student_form_has_the_exact_posterior():
    """Of one weight and the noise, where training ends: the conjugate normal-gamma posterior.

    a = dof + n / 2, b = wishart_scale + (sum y^2 - m^2 / s) / 2, s = 1 / (1 / prior^2 + sum x^2),
    m = s sum x y; w has the variance s / precision.
    """
    rng = np.random.default_rng(6)
    x = rng.normal(size=(20, 1))
    y, prior, dof, rate = 0.7 * x + 0.5 * rng.normal(size=x.shape), 1.5, 1.2, 0.3
    layer = VBLLRegression(
        1,
        kl_weight=1 / len(x),
        likelihood="student_t",
        prior_scale=prior,
        dof=dof,
        wishart_scale=rate,
        use_bias=False,
        dtype="float64",
    )
    layer.build(x.shape)
    loss_of = layer.negative_log_likelihood(dtype="float64")
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(layer.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_of(y, layer(x, training=True)) + sum(layer.losses)
        variables = layer.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    for rate_of_training in (0.3, 0.03, 0.003):
        optimizer.learning_rate.assign(rate_of_training)
        for _ in range(1000):
            step()
    s = 1 / (prior**-2 + (x**2).sum())
    m, a = s * (x * y).sum(), dof + len(x) / 2
    b = rate + ((y**2).sum() - m**2 / s) / 2
    _, sigma, df, ratio = (each[0] for each in layer(np.ones((1, 1))).numpy().T)
    np.testing.assert_allclose(layer.kernel.numpy().item(), m, rtol=1e-3)
    np.testing.assert_allclose(df / 2, a, rtol=1e-2)
    np.testing.assert_allclose(sigma**2, b / a, rtol=1e-3)
    np.testing.assert_allclose(ratio**2, s, rtol=1e-3)


@pytest.mark.slow
def test_joint_form_learns_the_covariance_of_the_noise():
    """Of 4,000 examples: entries of C have a standard error of at most sqrt(2 / n) times the
    largest variance, .03; off by six of them about one seed in 10^8 fails. The penalty is the
    formula of whole matrices.
    """
    rng = np.random.default_rng(8)
    covariance = np.array([[1.0, -0.8, 0.2], [-0.8, 1.2, 0.0], [0.2, 0.0, 0.6]])
    x = rng.normal(size=(4000, FEATURES)).astype("float32")
    y = x @ rng.normal(size=(FEATURES, 3)) + rng.multivariate_normal(np.zeros(3), covariance, 4000)
    options = {"likelihood": "multivariate_normal", "num_factors": 3, "seed": 1}
    head = VBLLRegression(3, kl_weight=1 / (3 * len(x)), **options)
    model = sequential(head)
    model.compile(keras.optimizers.Adam(0.03), head.negative_log_likelihood(), jit_compile=False)
    model.fit(x, y, 500, epochs=40, verbose=0)
    found = predict_uncertainty(model, x)
    assert "closed form" in repr(found)
    learned = head.family.covariance(tf.constant(found.params[0, :1]))[0].numpy()
    np.testing.assert_allclose(learned, covariance, atol=0.2)
    noise = learned - np.diag(found.epistemic_std[0] ** 2)
    inverse, log_det = np.linalg.inv(noise), np.linalg.slogdet(noise)[1]
    expected = (0.01 * np.trace(inverse) + (1 + 3 + 1) * log_det) / 2
    np.testing.assert_allclose(head._noise_penalty(head._noise_scale()), expected, rtol=1e-3)


# --- Prediction --------------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self, head):
        super().__init__()
        self.body, self.head = keras.layers.Dense(4), head

    def call(self, x, training=False):
        return self.head(self.body(x), training=training)


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
def test_prediction_is_in_closed_form(kind):
    """One set of parameters, those of the output, whatever the number of samples."""
    head, x = VBLLRegression(2, kl_weight=0.1), inputs(7).astype("float32")
    if kind == "subclassed":
        model = Subclassed(head)
    else:
        model = sequential(keras.layers.Dense(4), head)
        model = model if kind == "sequential" else keras.Model(model.inputs[0], model.outputs[0])
    found = predict_uncertainty(model, x, num_samples=10**9)
    np.testing.assert_allclose(found.params, model(x).numpy()[None], rtol=1e-6)
    loc, noise, epistemic = np.split(model(x).numpy(), 3, axis=-1)
    np.testing.assert_allclose(found.mean, loc, rtol=1e-6)
    np.testing.assert_allclose(found.aleatoric_std, noise, rtol=1e-6)
    np.testing.assert_allclose(found.epistemic_std, epistemic, rtol=1e-5)
    assert found.note == ""
    assert "closed form" in repr(found)
    lower, upper = found.interval(0.9)
    within = stats.norm.interval(0.9, loc, np.hypot(noise, epistemic))
    np.testing.assert_allclose([lower, upper], within, rtol=1e-5, atol=1e-6)


def test_other_random_layers_are_drawn_with_the_weights():
    model = sequential(MCDropout(0.5), VBLLRegression(1, kl_weight=0.1))
    found = predict_uncertainty(model, inputs(3), 6)
    assert found.num_samples == 6
    assert found.note == ""
    assert (found.epistemic_std > 0).all()


def test_a_head_that_is_not_the_output_is_drawn():
    """What it knows of itself is not in the output of another layer."""
    last = EvidentialDense(1)
    model = sequential(VBLLRegression(1, kl_weight=0.1), last)
    assert predict_uncertainty(model, inputs(3), 6).num_samples == 6


def test_means_alone_are_drawn():
    model = sequential(VBLLRegression(1, kl_weight=0.1, mean_only=True))
    found = predict_uncertainty(model, inputs(3), 6)
    assert found.num_samples == 6
    assert (found.epistemic_std > 0).all()


def test_the_note_tells_of_a_missing_epistemic_part():
    """Of a normal head, and not of one that knows its own."""
    x = inputs(3)
    assert "no epistemic part" in predict_uncertainty(sequential(NormalDense(1)), x).note
    assert predict_uncertainty(sequential(EvidentialDense(1)), x).note == ""


# --- Training ----------------------------------------------------------------------------------


def test_kl_weight_is_one_over_the_numbers():
    head = VBLLRegression(UNITS, kl_weight=0.0)
    for y, count in ((labels(6), 18), (labels(6, 2), 36), (np.zeros(6), 6), (np.zeros((6, 1)), 6)):
        data = (np.zeros((6, 1)), y)
        for loss in (head.negative_log_likelihood(), head.crps(), tfuq.losses.Pinball([0.1, 0.9])):
            np.testing.assert_allclose(tfuq.kl_weight_for(data, loss), 1 / count)


def test_kl_is_added_once_by_a_head_that_is_called_twice():
    head = VBLLRegression(1, kl_weight=0.1)
    one, two = keras.Input((FEATURES,)), keras.Input((FEATURES,))
    model = keras.Model([one, two], [head(one), head(two)])
    model([inputs(), inputs()], training=True)
    np.testing.assert_allclose(model.losses, [0.1 * head.kl_divergence()], rtol=1e-6)


@pytest.mark.slow
def test_learns_the_noise_and_beats_its_start(counts):
    """With 4,000 examples the learned sigma is within 10 % (its standard error is 1.1 %)."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, FEATURES)).astype("float32")
    y = x.sum(axis=1) + 0.5 * rng.normal(size=len(x))
    head = VBLLRegression(1, kl_weight=1 / len(x), seed=1)
    model = sequential(head)
    model.compile(keras.optimizers.Adam(0.05), head.negative_log_likelihood(), jit_compile=False)
    model.fit(x, y, 500, epochs=20, verbose=0)
    found = predict_uncertainty(model, x)
    np.testing.assert_allclose(found.aleatoric_std, 0.5, rtol=0.1)
    assert found.epistemic_std.max() < 0.1
    lower, upper = found.interval(0.9)
    assert 0.87 < ((lower[:, 0] <= y) & (y <= upper[:, 0])).mean() < 0.93
    counts("numbers with intervals", len(x))


def test_refuses_what_would_be_learned_wrongly():
    x, y = inputs(8), labels(8)
    head = VBLLRegression(UNITS, kl_weight=0.1, mean_only=True)
    model = sequential(head)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"mean_only.*must be False in training"):
        model.fit(x, y, verbose=0)
    assert np.isfinite(model.evaluate(x, y, verbose=0))
    model = sequential(VBLLRegression(UNITS, kl_weight=0.1))
    for loss in ("mse", NormalDense(UNITS).negative_log_likelihood()):
        model.compile("sgd", loss)
        with pytest.raises(ValueError, match=r"Argument `loss` must"):
            model.fit(x, y, verbose=0)


@pytest.mark.parametrize(
    "name, options",
    [
        ("units", {"units": 0}),
        ("kl_weight", {"kl_weight": None}),
        ("kl_weight", {"kl_weight": -1.0}),
        ("posterior", {"posterior": "full"}),
        ("likelihood", {"likelihood": "poisson"}),
        ("num_factors", {"num_factors": 1}),
        ("num_factors", {"likelihood": "multivariate_normal"}),
        ("num_factors", {"likelihood": "multivariate_normal", "num_factors": 0}),
        ("units", {"likelihood": "multivariate_normal", "num_factors": 1}),
        ("rank", {"rank": 2}),
        ("rank", {"posterior": "low_rank"}),
        ("prior_scale", {"prior_scale": 0.0}),
        ("noise_scale", {"noise_scale": -1.0}),
        ("wishart_scale", {"wishart_scale": 0.0}),
        ("dof", {"dof": float("nan")}),
        ("min_scale", {"min_scale": 0.0}),
        ("mean_only", {"mean_only": "yes"}),
        ("use_bias", {"use_bias": None}),
        ("seed", {"seed": -1}),
    ],
)
def test_refuses_bad_arguments(name, options):
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: "):
        VBLLRegression(**{"units": 1, "kl_weight": 0.1, **options})


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_stays_finite_without_noise_in_the_labels(form):
    """Labels that a linear map explains, and a prior that does not hold sigma up."""
    x = inputs(64).astype("float32")
    head = VBLLRegression(1, kl_weight=0.0, posterior=form, **FORMS[form])
    model = sequential(head)
    model.compile(keras.optimizers.Adam(0.1), head.negative_log_likelihood(), jit_compile=False)
    history = model.fit(x, x.sum(axis=1), 64, epochs=100, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert np.isfinite(predict_uncertainty(model, x).std).all()
