"""VBLLDense: the authors' package, TFP, brute force and integrals; options and errors.

What every layer must do (models, saving, export, precision, strategies) is in tests/contract,
draws of whole networks are in tests/predictive. `fixtures/make_vbll.py` wrote what the
authors' package answers.
"""

import copy
import json
import math
import pathlib
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, optimize, special
from tensorflow_probability import distributions as tfd

from tfuq._math import logistic_normal, point_blocks
from tfuq.layers import VBLLDense
from tfuq.layers.base import softplus_inverse

FEATURES, UNITS = 5, 3
FORMS = {"diagonal": {}, "low_rank": {"rank": 2}, "dense": {}}
LIKELIHOODS = ("categorical", "bernoulli")
REFERENCE_SAMPLES = 10**6
FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures/vbll.npz")


def inputs(*leading):
    return np.random.default_rng(0).normal(size=(*(leading or (4,)), FEATURES))


def built(form="diagonal", **options):
    """A layer whose weights are all far from their start, so that every term counts."""
    options = {"units": UNITS, "kl_weight": 0.1, **FORMS[form], **options}
    layer = VBLLDense(posterior=form, **options)
    layer.build((None, FEATURES))
    rng = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        weight.assign(0.5 * rng.normal(size=weight.shape))
    return layer


def covariances(layer):
    """The covariance matrices `(units, features, features)`, from the formulas of the docstring."""
    scale = np.log1p(np.exp(np.asarray(layer.kernel_rho, "float64")))
    diagonal = np.stack([np.diag(s) for s in scale.T])
    if layer.posterior == "dense":
        root = np.tril(np.asarray(layer.kernel_tril, "float64"), -1) + diagonal
        return root @ root.transpose(0, 2, 1)
    if layer.posterior == "low_rank":
        factor = np.asarray(layer.kernel_factor, "float64").transpose(1, 0, 2)
        return diagonal**2 + factor @ factor.transpose(0, 2, 1)
    return diagonal**2


def labels_and_loss(likelihood):
    """Labels for four examples, and the loss that a user would compile with, in float64."""
    losses = keras.losses
    if likelihood == "categorical":
        loss = losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
        return np.array([0, 2, 1, 2]), loss
    labels = np.random.default_rng(2).integers(2, size=(4, UNITS))
    return labels, losses.BinaryCrossentropy(from_logits=True, dtype="float64")


# --- The authors' package ----------------------------------------------------------------------


class _GivenPoints:
    """Points of the test's own, in place of `NormalPoints`."""

    mirrored = fresh = False

    def __init__(self, points):
        self.points = points

    def __call__(self, seed=None):
        return tf.constant(self.points)


def authors_layer(form, case, dtype):
    """The head of the fixture, and what it answers, by name."""
    found = {
        name.removeprefix(f"{form}/{case}/"): FIXTURE[name]
        for name in FIXTURE.files
        if name.startswith(f"{form}/{case}/")
    }
    mean, diagonal = FIXTURE[f"{form}/mean"], FIXTURE[f"{form}/diagonal"]
    units, features = mean.shape
    layer = VBLLDense(
        units,
        kl_weight=float(FIXTURE["regularization_weight"]),
        posterior=form.replace("lowrank", "low_rank"),
        rank=2 if form == "lowrank" else None,
        prior_scale=math.sqrt(FIXTURE["prior_scale"] * 2 / features),
        noise="learned" if case == "noise" else "none",
        wishart_scale=float(FIXTURE["wishart_scale"]),
        dof=float(FIXTURE["dof"]),
        use_bias=False,
        logits_only=False,
        dtype=dtype,
    )
    layer.build((None, features))
    layer.kernel.assign(mean.T)
    layer.kernel_rho.assign(softplus_inverse(np.sqrt(diagonal) if layer.rank else diagonal).T)
    if layer.rank:
        layer.kernel_factor.assign(FIXTURE["lowrank/off_diagonal"].transpose(1, 0, 2))
    if form == "dense":
        layer.kernel_tril.assign(FIXTURE["dense/off_diagonal"])
    if case == "noise":
        layer.noise_rho.assign(softplus_inverse(found["scale"]))
    return layer, found


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("case", ["noise", "no_noise"])
@pytest.mark.parametrize("form", ["diagonal", "lowrank", "dense"])
def test_agrees_with_the_authors_package(form, case, dtype, rtol):
    """Moments, bound, KL and loss. Their `gaussian_kl` leaves out the constant -K D / 2."""
    layer, theirs = authors_layer(form, case, dtype)
    x, y = FIXTURE["x"].astype(dtype), FIXTURE["y"]
    logits, mean, variance = layer(x, training=True)
    kl_loss, gap = layer.losses
    constant = -layer.kernel.shape[0] * layer.units / 2
    wishart = theirs.get("wishart", 0.0)
    bound = mean.numpy()[np.arange(len(y)), y] - special.logsumexp(mean + variance / 2, axis=-1)
    cross_entropy = labels_and_loss("categorical")[1](y, logits)
    gap, kl_loss = (tf.cast(value, "float64") for value in (gap, kl_loss))
    for ours, expected in (
        (logits, mean),
        (mean, theirs["mean"]),
        (variance, theirs["variance"]),
        (bound, theirs["bound"]),
        (layer.kl_divergence(), theirs["kl"] + constant - wishart),
        (cross_entropy + gap, -theirs["bound"].mean()),
        (cross_entropy + gap + kl_loss, theirs["loss"] + layer.kl_weight * constant),
    ):
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("case", ["noise", "no_noise"])
@pytest.mark.parametrize("form", ["diagonal", "lowrank", "dense"])
def test_predictive_agrees_with_the_authors_package(form, case, dtype, rtol):
    """Row by row, for their draws differ from row to row."""
    layer, theirs = authors_layer(form, case, dtype)
    for row, expected in enumerate(theirs["probs"]):
        layer._test_points = _GivenPoints(theirs["draws"][:, row])
        logits = layer(FIXTURE["x"][row : row + 1]).logits
        np.testing.assert_allclose(tf.nn.softmax(logits)[0], expected, rtol=rtol)


# --- TFP, brute force, plain differentiation ---------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_kl_is_tfps(form):
    """Value and gradients. TFP knows the KL of a low rank only as that of a full covariance."""
    layer = built(form, prior_scale=0.7, dtype="float64")
    variables = [v.value for v in layer.trainable_variables if v.name != "bias"]
    with tf.GradientTape(persistent=True) as tape:
        posterior = layer.posterior_distribution()
        root = tf.linalg.cholesky(posterior.covariance())
        full = tfd.MultivariateNormalTriL(posterior.mean(), root)
        prior = tfd.MultivariateNormalDiag(
            tf.zeros_like(full.mean()), 0.7 * tf.ones(FEATURES, "float64")
        )
        expected = tf.reduce_sum(tfd.kl_divergence(full, prior))
        kl = layer.kl_divergence()
    np.testing.assert_allclose(kl, expected, rtol=1e-12)
    if form != "low_rank":
        same = tf.reduce_sum(tfd.kl_divergence(posterior, prior))
        np.testing.assert_allclose(kl, same, rtol=1e-12)
    for found, gradient in zip(
        tape.gradient(kl, variables), tape.gradient(expected, variables), strict=True
    ):
        np.testing.assert_allclose(found, gradient, rtol=1e-8, atol=1e-10)


def test_kl_of_the_prior_is_zero():
    layer = VBLLDense(UNITS, kl_weight=1.0, prior_scale=0.3, posterior_scale=0.3, use_bias=False)
    layer.build((None, FEATURES))
    layer.kernel.assign(np.zeros((FEATURES, UNITS)))
    np.testing.assert_allclose(layer.kl_divergence(), 0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_posterior_has_the_covariance_of_the_formula(form):
    posterior = built(form).posterior_distribution()
    assert posterior.batch_shape == (UNITS,)
    assert posterior.event_shape == (FEATURES,)
    layer = built(form)
    np.testing.assert_allclose(posterior.mean(), np.transpose(layer.kernel), rtol=1e-6)
    np.testing.assert_allclose(posterior.covariance(), covariances(layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("noise", ["none", "learned"])
@pytest.mark.parametrize("form", FORMS)
def test_logit_distribution_is_exact(form, noise):
    """Mean W x + b, variance x^T S x + sigma^2, for inputs of rank 3."""
    layer = built(form, noise=noise, logits_only=False)
    x = inputs(2, 3)
    mean = x @ layer.kernel.numpy() + layer.bias.numpy()
    variance = np.einsum("...f,kfg,...g->...k", x, covariances(layer), x)
    if noise == "learned":
        variance += np.log1p(np.exp(layer.noise_rho.numpy())) ** 2
    distribution, output = layer.logit_distribution(x), layer(x)
    assert distribution.batch_shape == (2, 3)
    for found, expected in (
        (distribution.mean(), mean),
        (output.mean, mean),
        (distribution.variance(), variance),
        (output.variance, variance),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_logits_have_the_moments_of_drawn_weights(form):
    """40,000 draws of the weights: means and variances within six standard errors.

    A Gaussian's sample variance has standard error sqrt(2 / n). Of the 24 comparisons of a form, a
    correct layer fails one in 2e7 seeds.
    """
    layer, x, count = built(form, use_bias=False), inputs(), 40_000
    weights = layer.posterior_distribution().sample(count, seed=(3, 4)).numpy()
    draws = np.einsum("skf,bf->sbk", weights, x)
    distribution = layer.logit_distribution(x)
    mean, variance = distribution.mean().numpy(), distribution.variance().numpy()
    assert (np.abs(draws.mean(0) - mean) <= 6 * np.sqrt(variance / count)).all()
    assert (np.abs(draws.var(0) / variance - 1) <= 6 * math.sqrt(2 / count)).all()


def plain_loss(layer, x, y, loss):
    """The docstring's loss, from whole covariance matrices."""
    mean = x @ tf.convert_to_tensor(layer.kernel) + layer.bias
    covariance = layer.posterior_distribution().covariance()
    variance = tf.einsum("bf,kfg,bg->bk", x, covariance, x)
    variance += tf.square(tf.nn.softplus(tf.convert_to_tensor(layer.noise_rho)))
    bernoulli = layer.likelihood == "bernoulli"
    partition = tf.nn.softplus if bernoulli else lambda u: tf.reduce_logsumexp(u, -1)
    gap = tf.reduce_mean(partition(mean + variance / 2) - partition(mean))
    return loss(y, mean) + gap + layer.kl_weight * layer.kl_divergence()


@pytest.mark.slow_product
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_its_gradients_are_the_formulas(form, likelihood):
    layer = built(form, likelihood=likelihood, noise="learned", dtype="float64")
    x = tf.constant(inputs())
    y, loss = labels_and_loss(likelihood)
    variables = [x, *(v.value for v in layer.trainable_variables)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        total = loss(y, layer(x, training=True)) + sum(layer.losses)
        expected = plain_loss(layer, x, y, loss)
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    for found, gradient in zip(
        tape.gradient(total, variables), tape.gradient(expected, variables), strict=True
    ):
        np.testing.assert_allclose(found, gradient, rtol=1e-8, atol=1e-10)


def test_beta_scales_the_kl_alone():
    layer = built()
    layer(inputs(), training=True)
    kl, gap = (float(value) for value in layer.losses)
    np.testing.assert_allclose(kl, 0.1 * float(layer.kl_divergence()), rtol=1e-6)
    layer.beta.assign(0.25)
    layer(inputs(), training=True)
    np.testing.assert_allclose(layer.losses, [kl / 4, gap], rtol=1e-6)
    layer(inputs(), training=False)
    np.testing.assert_allclose(layer.losses, [kl / 4], rtol=1e-6)


# --- Sampled objective and prediction ----------------------------------------------------------


def exact_gap(mean, variance, likelihood, nodes=48):
    """E[a(u)] - a(mean) by Gauss-Hermite quadrature, `(rows,)` or `(rows, units)`."""
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight /= weight.sum()
    scale = np.sqrt(variance)
    if likelihood == "bernoulli":
        u = mean[..., None] + scale[..., None] * node
        return np.logaddexp(0, u) @ weight - np.logaddexp(0, mean)
    grid = np.stack(np.meshgrid(*[node] * 3, indexing="ij"), -1).reshape(-1, 3)
    weights = np.prod(np.stack(np.meshgrid(*[weight] * 3, indexing="ij"), -1), -1).ravel()
    u = mean[:, None] + scale[:, None] * grid
    return special.logsumexp(u, axis=-1) @ weights - special.logsumexp(mean, axis=-1)


def gaps(layer, x, steps):
    """The term that the layer adds to the loss, over `steps` training steps."""

    @tf.function
    def gap():
        layer(x, training=True)
        return layer.losses[1]

    return np.array([gap() for _ in range(steps)], "float64")


@pytest.mark.slow_cases("categorical-iid", "bernoulli-antithetic")
@pytest.mark.slow_product
@pytest.mark.parametrize("sampling", ["sobol", "antithetic", "iid"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sampled_objective_is_unbiased(likelihood, sampling):
    """Mean over 800 steps of 4 samples, against an integral; a few samples are not near it.

    Six standard errors: a correct layer fails one seed in 5e8.
    """
    options = {"likelihood": likelihood, "sampling": sampling, "seed": 1}
    layer = built(objective="monte_carlo", train_mc_samples=4, **options)
    x = inputs().astype("float32")
    distribution = layer.logit_distribution(x)
    moments = distribution.mean().numpy(), distribution.variance().numpy()
    draws, expected = gaps(layer, x, 800), exact_gap(*moments, likelihood).mean()
    error = abs(draws.mean() - expected)
    assert error <= 6 * draws.std() / math.sqrt(len(draws)) + 1e-5
    assert draws.std() > 1e-3 * expected


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sampled_objective_converges_below_the_bound(likelihood):
    """2^14 independent draws: within six standard errors, one seed in 5e8 fails.

    The standard deviation of a(u) is at most that of the largest logit's noise, for a is Lipschitz
    with constant 1; and the bound of the closed form is larger by far more than the error.
    """
    samples = 2**14
    options = {"likelihood": likelihood, "sampling": "iid", "train_mc_samples": samples}
    layer = built(objective="monte_carlo", **options)
    x = inputs().astype("float32")
    distribution = layer.logit_distribution(x)
    mean, variance = distribution.mean().numpy(), distribution.variance().numpy()
    expected = exact_gap(mean, variance, likelihood).mean()
    tolerance = 6 * math.sqrt(variance.max() / samples) + 1e-5
    assert abs(gaps(layer, x, 1)[0] - expected) <= tolerance
    bound = built(likelihood=likelihood)
    assert gaps(bound, x, 1)[0] > expected + tolerance


@pytest.mark.slow_product
@pytest.mark.parametrize("block, points", [(None, None), (1, 1), (60, 4)])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", ["mean_log_sum_exp", "mean_softplus"])
def test_means_of_log_partitions_have_plain_gradients(name, mirrored, block, points, monkeypatch):
    """Whatever the size of the blocks."""
    if block is not None:
        monkeypatch.setattr(point_blocks, "BLOCK", block)
        monkeypatch.setattr(point_blocks, "POINTS", points)
        monkeypatch.setattr(point_blocks.Blocks, "small", 0)
    rng = np.random.default_rng(3)
    loc, scale = tf.constant(rng.normal(size=(4, 3))), tf.constant(rng.normal(size=(4, 3)))
    e = tf.constant(rng.normal(size=(7, 3)))
    upstream = rng.normal(size=(4, 3) if name == "mean_softplus" else (4,))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([loc, scale])
        both = tf.concat([e, -e], 0) if mirrored else e
        u = loc + scale * both[:, None]
        terms = tf.nn.softplus(u) if name == "mean_softplus" else tf.reduce_logsumexp(u, -1)
        expected = tf.reduce_mean(terms, 0)
        value = getattr(logistic_normal, name)(loc, scale, e, mirrored=mirrored)
        totals = [tf.reduce_sum(upstream * t) for t in (value, expected)]
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    found, plain = (tape.gradient(total, [loc, scale]) for total in totals)
    for gradient, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-10, atol=1e-14)


LINKS = {"categorical": tf.nn.softmax, "bernoulli": tf.sigmoid}


@pytest.mark.slow_cases("bernoulli")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_prediction_agrees_with_drawn_logits(likelihood):
    """Against 10^6 draws of `logit_distribution` by TFP.

    Six standard deviations of the difference of two means of independent samples; the layer's
    Sobol points are at least as accurate. Over the 24 probabilities a correct layer fails one seed
    in 2e7.
    """
    samples = 2**13
    layer = built("dense", likelihood=likelihood, noise="learned", test_mc_samples=samples)
    x = inputs()
    drawn = layer.logit_distribution(x).sample(REFERENCE_SAMPLES, seed=(5, 6))
    probs = LINKS[likelihood](drawn)
    variance = np.var(probs, axis=0, dtype="float64")
    tolerance = 6 * np.sqrt(variance * (1 / samples + 1 / REFERENCE_SAMPLES)) + 1e-6
    mean = np.mean(probs, axis=0, dtype="float64")
    assert (np.abs(LINKS[likelihood](layer(x)) - mean) <= tolerance).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_predictions_without_samples(likelihood):
    x = inputs()
    options = {"likelihood": likelihood, "logits_only": False}
    logits, mean, variance = built(predictive="probit", **options)(x)
    expected = mean.numpy() / np.sqrt(1 + np.pi / 8 * variance.numpy())
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    output = built(predictive="mean", **options)(x)
    np.testing.assert_array_equal(output.logits, output.mean)


def test_predictions_repeat_unless_resampled():
    x = inputs()
    layer, fresh = built(), built(resample=True)
    np.testing.assert_array_equal(layer(x), layer(x))
    assert not np.allclose(fresh(x), fresh(x))
    assert not np.allclose(layer(x), layer(x, training=True))


# --- A problem with a known answer -------------------------------------------------------------
# Labels y of one feature x with one weight w: p(y = 1) = sigmoid(w x), w ~ N(0, prior^2).

PRIOR = 1.5


def one_weight_data():
    rng = np.random.default_rng(8)
    x = rng.normal(size=20)
    return x, (rng.random(20) < special.expit(1.2 * x)).astype("float64")


def negative_elbo(mean, scale):
    """KL(q || prior) - E_q log p(y | x, w) for q = N(mean, scale^2), by quadrature."""
    x, y = one_weight_data()
    node, weight = np.polynomial.hermite_e.hermegauss(64)
    u = x * (mean + scale * node)[:, None]
    log_likelihood = (y * u - np.logaddexp(0, u)).sum(1) @ weight / weight.sum()
    kl = math.log(PRIOR / scale) + (scale**2 + mean**2) / (2 * PRIOR**2) - 0.5
    return kl - log_likelihood


def one_weight_model(samples, seed=0):
    x, _ = one_weight_data()
    head = VBLLDense(
        1,
        kl_weight=1 / len(x),
        prior_scale=PRIOR,
        objective="monte_carlo",
        likelihood="bernoulli",
        train_mc_samples=samples,
        use_bias=False,
        posterior_scale=0.2,
        seed=seed,
    )
    return keras.Sequential([keras.Input((1,)), head]), head


def test_loss_times_examples_is_the_negative_bound():
    x, y = one_weight_data()
    model, head = one_weight_model(samples=2**14)
    head.kernel.assign([[0.8]])
    logits = model(x[:, None], training=True)
    bce = keras.losses.BinaryCrossentropy(from_logits=True)(y[:, None], logits)
    loss = float(bce + sum(model.losses))
    scale = float(head.posterior_distribution().stddev()[0, 0])
    np.testing.assert_allclose(loss * len(x), negative_elbo(0.8, scale), rtol=1e-4)


def test_learned_posterior_is_the_best_gaussian_and_near_the_exact_one():
    """The best Gaussian: SciPy's minimum of the bound by quadrature, to 1 % of its scale.

    256 Sobol samples per step and a learning rate that ends at 0 leave an error of about 0.1 %. The
    exact posterior, by quadrature, is not Gaussian: its mean and scale agree to 5 %.
    """
    x, y = one_weight_data()
    best = optimize.minimize(
        lambda p: negative_elbo(p[0], math.exp(p[1])), [0.0, 0.0], options={"gtol": 1e-8}
    ).x
    model, head = one_weight_model(samples=256)
    rate = keras.optimizers.schedules.CosineDecay(0.1, 400)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    data = tf.data.Dataset.from_tensors((x[:, None], y[:, None])).repeat()
    model.fit(data, steps_per_epoch=400, shuffle=False, verbose=0)
    mean, scale = float(head.kernel[0, 0]), float(head.posterior_distribution().stddev()[0, 0])
    np.testing.assert_allclose([mean, scale], [best[0], math.exp(best[1])], atol=0.01 * scale)

    def density(w):
        log_likelihood = (y * w * x - np.logaddexp(0, w * x)).sum()
        return math.exp(log_likelihood - w**2 / (2 * PRIOR**2))

    moments = [integrate.quad(lambda w, k=k: w**k * density(w), -10, 10)[0] for k in range(3)]
    exact = moments[1] / moments[0]
    exact_scale = math.sqrt(moments[2] / moments[0] - exact**2)
    np.testing.assert_allclose([mean, scale], [exact, exact_scale], atol=0.05 * exact_scale)


# --- Memory and errors -------------------------------------------------------------------------

BATCH, WIDE, CLASSES, SAMPLES = 11, 37, 5, 23  # primes: a size tells what it is made of


def sizes(function, *arguments):
    """Numbers of elements of all tensors in the graph of a function; it must hold no loop."""
    graph = tf.function(function).get_concrete_function(*arguments).graph
    operations = graph.get_operations()
    assert not any("While" in op.type or "PartitionedCall" in op.type for op in operations)
    shapes = [tensor.shape for op in operations for tensor in op.outputs]
    return {shape.num_elements() for shape in shapes if shape.is_fully_defined()} - {0}


def too_large(found):
    drawn_weights, whole_covariances = SAMPLES * WIDE * CLASSES, BATCH * CLASSES * WIDE * WIDE
    return [n for n in found if n % drawn_weights == 0 or n % whole_covariances == 0]


@pytest.mark.slow_product
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("objective", ["closed_form", "monte_carlo"])
@pytest.mark.parametrize("form", FORMS)
def test_no_tensor_holds_drawn_weights_or_products_of_covariances(form, objective, training):
    counts = {"train_mc_samples": SAMPLES, "test_mc_samples": SAMPLES, "sampling": "iid"}
    options = {"posterior": form, **FORMS[form], "objective": objective, **counts}
    layer = VBLLDense(CLASSES, kl_weight=0.1, predictive="probit", **options)
    x = tf.zeros((BATCH, WIDE))
    layer.build(x.shape)

    def step(x):
        variables = [v.value for v in layer.trainable_variables]
        with tf.GradientTape() as tape:
            logits = layer(x, training=training)
            loss = tf.reduce_sum(logits) + sum(layer.losses)
        return tape.gradient(loss, variables)

    found = sizes(step, x)
    assert WIDE * CLASSES in found
    assert not too_large(found)


@pytest.mark.parametrize("equation", ["sfk,bf->sbk", "bf,kfg,bg->bk"])
def test_large_tensors_are_found(equation):
    def drawn(x):
        return tf.reduce_sum(tf.zeros((SAMPLES, WIDE, CLASSES)) * x[0, :, None])

    def whole(x):
        return tf.reduce_sum(tf.zeros((CLASSES, WIDE, WIDE)) * x[:, None, :, None], [2, 3])

    assert too_large(sizes(drawn if equation.startswith("s") else whole, tf.ones((BATCH, WIDE))))


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("units", {"units": 0}),
        ("units", {"units": 2.0}),
        ("kl_weight", {"kl_weight": -1.0}),
        ("kl_weight", {"kl_weight": float("nan")}),
        ("kl_weight", {"kl_weight": float("inf")}),
        ("kl_weight", {"kl_weight": "auto"}),
        ("kl_weight", {"kl_weight": True}),
        ("posterior", {"posterior": "lowrank"}),
        ("rank", {"posterior": "low_rank"}),
        ("rank", {"rank": 2}),
        ("rank", {"posterior": "dense", "rank": 2}),
        ("rank", {"posterior": "low_rank", "rank": 0}),
        ("objective", {"objective": "jensen"}),
        ("noise", {"noise": True}),
        ("likelihood", {"likelihood": "gaussian"}),
        ("predictive", {"predictive": "laplace"}),
        ("sampling", {"sampling": "halton"}),
        ("prior_scale", {"prior_scale": 0}),
        ("posterior_scale", {"posterior_scale": -1.0}),
        ("noise_scale", {"noise_scale": float("nan")}),
        ("wishart_scale", {"wishart_scale": 0.0}),
        ("dof", {"dof": -2}),
        ("train_mc_samples", {"train_mc_samples": 0}),
        ("test_mc_samples", {"test_mc_samples": 1.5}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 0.5}),
    ],
)
def test_bad_arguments_are_refused(name, arguments):
    with pytest.raises(ValueError, match=rf"`{name}` must be .* Received: {name}="):
        VBLLDense(**{"units": 3, "kl_weight": 0.1, **arguments})


def test_missing_kl_weight_says_what_it_is():
    with pytest.raises(ValueError, match=r"`kl_weight` is required.* 1 / number of training"):
        VBLLDense(3)


def test_rank_above_features_is_refused():
    layer = VBLLDense(3, kl_weight=0.1, posterior="low_rank", rank=6)
    with pytest.raises(ValueError, match=r"`rank` must not .* Received: rank=6 with 5 features"):
        layer.build((None, FEATURES))


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match=r"last dimension .* Received: input_shape"):
        VBLLDense(3, kl_weight=0.1).build((None, None))


def test_posterior_needs_weights():
    with pytest.raises(ValueError, match=r"before it is built"):
        VBLLDense(3, kl_weight=0.1).posterior_distribution()


def test_posterior_is_the_argument_and_its_call_the_former_method():
    layer = built("low_rank")
    assert layer.posterior == "low_rank" and layer.posterior_form == "low_rank"
    with pytest.warns(DeprecationWarning, match=r"posterior_distribution\(\)"):
        found = layer.posterior()
    expected = layer.posterior_distribution()
    np.testing.assert_array_equal(found.covariance(), expected.covariance())
    config = layer.get_config()
    assert json.loads(json.dumps(config))["posterior"] == "low_rank"
    for copied in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(copied["posterior"]) is str  # and so holds no layer
    assert type(VBLLDense.from_config(config)._posterior) is str


def test_kl_is_that_of_the_unrounded_weights_in_mixed_precision():
    layer = built(dtype="mixed_float16")
    layer(inputs().astype("float16"))  # in a call, where Keras casts what it may
    expected = layer.kl_weight * layer.kl_divergence()
    np.testing.assert_allclose(layer.losses, [expected], rtol=1e-6)
    distribution = layer.logit_distribution(inputs())
    assert distribution.dtype == "float32"
