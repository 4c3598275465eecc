"""Families of distributions of a number, against TFP, SciPy, integrals and their own samples."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfuq._predictions.families import FAMILIES, family_named
from tfuq._predictions.family import labels_like
from tfuq.predictive import RegressionUncertainty

ROWS, UNITS = 7, 2
CONFIGS = {
    "normal": "normal",
    "bayesian_normal": "bayesian_normal",
    "bayesian_student_t": "bayesian_student_t",
    "laplace": "laplace",
    "student_t": "student_t",
    "evidential": "evidential",
    "mixture": {"name": "mixture", "num_components": 3},
    "multivariate_normal": {"name": "multivariate_normal", "num_factors": 2},
    "bayesian_multivariate_normal": {"name": "bayesian_multivariate_normal", "num_factors": 2},
}
QUANTILES = {"name": "quantiles", "levels": [0.05, 0.25, 0.5, 0.9]}
DENSITIES = pytest.mark.parametrize("name", CONFIGS)
MARGINALS = pytest.mark.parametrize("name", [n for n in CONFIGS if "multivariate" not in n])


def family_and_params(name, dtype="float64"):
    """A family and parameters of two numbers, in their range, none like another."""
    family = family_named({**CONFIGS, "quantiles": QUANTILES}[name])
    raw = np.random.default_rng(0).normal(size=(ROWS, UNITS * family.size))
    if name.startswith("bayesian"):
        loc, *rest = np.split(raw, family.size, axis=-1)
        lifts = [3.0 * (part == "df") for part in family.parameters[1:]]
        rest = [np.exp(each) + lift for each, lift in zip(rest, lifts, strict=True)]
        return family, tf.constant(np.concatenate([loc, *rest], -1), dtype)
    return family, tf.cast(family.constrain(tf.constant(raw), 1e-6), dtype)


def labels(dtype="float64"):
    return tf.constant(2 * np.random.default_rng(1).normal(size=(ROWS, UNITS)), dtype)


def frozen(name, family, params):
    """The distribution of SciPy, for all but mixtures."""
    blocks = [block.numpy() for block in family.split(params)]
    if name == "evidential":
        loc, evidence, alpha, beta = blocks
        return stats.t(2 * alpha, loc, np.sqrt(beta * (1 + evidence) / (evidence * alpha)))
    if name == "multivariate_normal":
        loc, scale, *factors = blocks
        return stats.norm(loc, np.sqrt(scale**2 + np.square(factors).sum(0)))
    if name == "bayesian_multivariate_normal":
        loc, *others = blocks
        return stats.norm(loc, np.sqrt(np.square(others).sum(0)))
    return {
        "normal": lambda loc, scale: stats.norm(loc, scale),
        "bayesian_normal": lambda loc, scale, more: stats.norm(loc, np.hypot(scale, more)),
        "bayesian_student_t": lambda loc, scale, df, ratio: stats.t(
            df, loc, scale * np.hypot(1, ratio)
        ),
        "laplace": lambda loc, scale: stats.laplace(loc, scale),
        "student_t": lambda loc, scale, df: stats.t(df, loc, scale),
    }[name](*blocks)


def test_every_family_is_here():
    assert {*CONFIGS, "quantiles", "point"} == set(FAMILIES)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-10)])
@DENSITIES
def test_densities_are_tfps(name, dtype, rtol):
    family, params = family_and_params(name, dtype)
    y = labels(dtype)
    expected = family.distribution(params).log_prob(y)
    found = family.log_prob(params, y)
    found = found[..., 0] if family.is_joint else found
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol)
    if not name.startswith("bayesian"):
        terms = family.training_log_prob(params, y)
        shape = (ROWS, 1) if family.is_joint else (ROWS, UNITS)
        assert terms.shape == shape
        per_number = np.mean(expected) / (UNITS if family.is_joint else 1)
        np.testing.assert_allclose(np.mean(terms), per_number, rtol=10 * rtol)


@DENSITIES
def test_moments_are_tfps(name):
    family, params = family_and_params(name)
    distribution = family.distribution(params)
    np.testing.assert_allclose(family.mean(params), distribution.mean(), rtol=1e-10)
    np.testing.assert_allclose(family.variance(params), distribution.variance(), rtol=1e-10)
    if family.is_joint:
        np.testing.assert_allclose(family.covariance(params), distribution.covariance())


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "mixture"])
def test_distribution_functions_are_scipys(name):
    family, params = family_and_params(name)
    y, distribution = labels(), frozen(name, family, params)
    np.testing.assert_allclose(family.cdf(params, y), distribution.cdf(y), rtol=1e-8, atol=1e-12)
    for level in (0.001, 0.25, 0.5, 0.95):
        found = family.quantile(params, level)
        np.testing.assert_allclose(found, distribution.ppf(level), rtol=1e-6, atol=1e-9)


def test_mixture_is_the_sum_of_its_normals():
    family, params = family_and_params("mixture")
    logits, loc, scale = (part.numpy() for part in family.components(params))
    y, probs = labels(), np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (probs * stats.norm(loc, scale).cdf(y[..., None])).sum(-1)
    np.testing.assert_allclose(family.cdf(params, y), expected, rtol=1e-10)
    for level in (0.001, 0.25, 0.95):
        found = family.quantile(params, level)
        np.testing.assert_allclose(family.cdf(params, found), level, rtol=1e-8)


@MARGINALS
def test_crps_is_the_integral(name):
    """Of (F(u) - 1[u >= y])^2, by Gauss-Legendre on 200 pieces of u = y -+ t / (1 - t)."""
    family, params = family_and_params(name)
    y = labels()
    node, weight = np.polynomial.legendre.leggauss(8)
    start, width = np.linspace(0, 1, 200, endpoint=False)[:, None], 1 / 200
    t = (start + width * (node + 1) / 2).ravel()
    weights = np.tile(weight * width / 2, 200) / (1 - t) ** 2
    points = (t / (1 - t))[:, None, None]
    many = tf.broadcast_to(params, (len(t), *params.shape))
    above = 1 - family.cdf(many, y + points).numpy()
    below = family.cdf(many, y - points).numpy()
    expected = np.tensordot(weights, above**2 + below**2, axes=1)
    np.testing.assert_allclose(family.crps(params, y), expected, rtol=1e-5)


def test_joint_crps_is_of_the_marginals():
    family, params = family_and_params("multivariate_normal")
    loc, scale = family.mean(params), tf.sqrt(family.variance(params))
    marginal = family_named("normal").crps(tf.concat([loc, scale], -1), labels())
    np.testing.assert_allclose(family.crps(params, labels()), marginal, rtol=1e-10)


@pytest.mark.parametrize("name", [*CONFIGS, "quantiles"])
def test_samples_have_the_distribution(name):
    """20,000 draws of one number: a Kolmogorov-Smirnov test that fails one correct seed in 10^6."""
    family, params = family_and_params(name)
    count = 20_000
    many = tf.repeat(params[:1], count, axis=0)
    drawn = family.sample(many, tf.constant([1, 2]))[:, 0]
    if name == "quantiles":
        low, high = family.levels[0], family.levels[-1]
        cdf = family.cdf(params[:1], tf.stack([drawn, drawn], -1))[:, 0].numpy()
        found = stats.kstest((cdf - low) / (high - low), "uniform")
    else:
        cdf = family.cdf(many, tf.stack([drawn, drawn], -1))[:, 0].numpy()
        found = stats.kstest(cdf, "uniform")
    assert found.pvalue > 1e-6


def test_joint_samples_have_the_covariance():
    """40,000 draws: six standard errors, sqrt((C_ij^2 + C_ii C_jj) / n) of a Gaussian's.

    Of three entries and two means a correct sampler fails one seed in 1e8.
    """
    family, params = family_and_params("multivariate_normal")
    count = 40_000
    drawn = family.sample(tf.repeat(params[:1], count, axis=0), tf.constant([3, 4])).numpy()
    covariance = family.covariance(params)[0].numpy()
    variance = np.diag(covariance)
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / count)
    assert (np.abs(np.cov(drawn.T) - covariance) <= 6 * error).all()
    mean_error = np.abs(drawn.mean(0) - family.mean(params)[0].numpy())
    assert (mean_error <= 6 * np.sqrt(variance / count)).all()


@pytest.mark.parametrize("num_factors", [1, 3])
def test_joint_density_stays_exact_where_the_noise_is_shared(num_factors):
    """float32, with factors a thousand times the independent noise: no cancellation."""
    rng, units = np.random.default_rng(4), 5
    loc, scale = rng.normal(size=(2, 6, units))
    factors = 1000 * rng.normal(size=(6, num_factors, units))
    scale = np.exp(0.1 * scale)
    params = np.concatenate([loc, scale, factors.reshape(6, -1)], -1)
    family = family_named({"name": "multivariate_normal", "num_factors": num_factors})
    y = loc + np.einsum("nru,nr->nu", factors, rng.normal(size=(6, num_factors)))
    y += scale * rng.normal(size=y.shape)
    exact = family.log_prob(tf.constant(params), tf.constant(y))
    covariance = family.covariance(tf.constant(params)).numpy()
    for row in range(6):
        expected = stats.multivariate_normal(loc[row], covariance[row]).logpdf(y[row])
        np.testing.assert_allclose(exact[row, 0], expected, rtol=1e-5)
    single = family.log_prob(tf.constant(params, "float32"), tf.constant(y, "float32"))
    np.testing.assert_allclose(single, exact, rtol=1e-3)


def test_bayesian_normal_bound_is_the_expectation():
    """E over the mean of log N(y; mean, scale^2), by quadrature."""
    family, params = family_and_params("bayesian_normal")
    loc, scale, epistemic = (block.numpy()[..., None] for block in family.split(params))
    node, weight = np.polynomial.hermite_e.hermegauss(20)
    y = labels().numpy()[..., None]
    terms = stats.norm.logpdf(y, loc + epistemic * node, scale)
    expected = terms @ (weight / weight.sum())
    np.testing.assert_allclose(family.training_log_prob(params, labels()), expected, rtol=1e-10)
    assert (expected <= family.log_prob(params, labels()).numpy() + 1e-12).all()


def test_bayesian_multivariate_normal_bound_is_the_expectation():
    """E over both means of log N(y; means, C), by quadrature, divided by the two numbers."""
    family, params = family_and_params("bayesian_multivariate_normal")
    node, weight = np.polynomial.hermite_e.hermegauss(12)
    weight /= weight.sum()
    noise, epistemic = np.split(params.numpy(), [-UNITS], axis=-1)
    covariance = family.plain.covariance(tf.constant(noise)).numpy()
    for row, y in enumerate(labels().numpy()):
        total = 0.0
        for one, other in np.ndindex(12, 12):
            means = noise[row, :UNITS] + epistemic[row] * node[[one, other]]
            log_prob = stats.multivariate_normal(means, covariance[row]).logpdf(y)
            total += weight[one] * weight[other] * log_prob
        found = family.training_log_prob(params[row : row + 1], tf.constant(y[None]))
        np.testing.assert_allclose(found, [[total / UNITS]], rtol=1e-8)


def test_bayesian_student_t_bound_is_the_expectation():
    """E over the mean and the precision of log N(y; mean, 1 / precision), by quadrature."""
    family, params = family_and_params("bayesian_student_t")
    loc, scale, df, ratio = (block.numpy()[..., None] for block in family.split(params))
    shape, y = df / 2, labels().numpy()[..., None]
    share = (np.arange(20_000) + 0.5) / 20_000
    precision = stats.gamma.ppf(share, shape, scale=1 / (shape * scale**2))
    # given the precision the mean has the variance ratio^2 / precision
    terms = stats.norm.logpdf(y, loc, precision**-0.5) - ratio**2 / 2
    expected = terms.mean(axis=-1)
    np.testing.assert_allclose(family.training_log_prob(params, labels()), expected, rtol=1e-3)


def test_quantiles_do_not_cross_and_are_linear_between():
    family, params = family_and_params("quantiles")
    blocks = np.stack([block.numpy() for block in family.split(params)])
    assert (np.diff(blocks, axis=0) > 0).all()
    np.testing.assert_allclose(family.quantile(params, 0.25), blocks[1], rtol=1e-12)
    np.testing.assert_allclose(family.quantile(params, 0.15), blocks[:2].mean(0), rtol=1e-12)
    np.testing.assert_allclose(family.cdf(params, tf.constant(blocks[1])), 0.25, rtol=1e-10)
    assert np.isnan(family.cdf(params, tf.constant(blocks[0] - 1))).all()
    for level in (0.01, 0.95):
        with pytest.raises(ValueError, match=r"levels.*Received: 0\.\d+"):
            family.quantile(params, level)
    y = labels().numpy()
    losses = [
        np.maximum(q * (y - u), (q - 1) * (y - u))
        for q, u in zip(family.levels, blocks, strict=True)
    ]
    np.testing.assert_allclose(family.pinball(params, labels()), np.mean(losses, 0), rtol=1e-10)
    np.testing.assert_allclose(family.crps(params, labels()), 2 * np.mean(losses, 0), rtol=1e-10)


def test_joint_draws_mix_as_joint_distributions():
    """log of the mean over the draws of the joint density; marginals mix one by one."""
    family, params = family_and_params("multivariate_normal")
    stack = np.stack([params, params.numpy()[::-1]])
    found, y = RegressionUncertainty(stack, family), labels().numpy()
    each = np.stack([family.log_prob(tf.constant(p), labels()) for p in stack])
    expected = np.log(np.exp(each).mean(0))
    np.testing.assert_allclose(found.log_prob(y), expected, rtol=1e-10)
    cdf = np.mean([family.cdf(tf.constant(p), labels()) for p in stack], axis=0)
    np.testing.assert_allclose(found.cdf(y), cdf, rtol=1e-10)
    samples = found.samples(3)
    assert samples.shape == (3, ROWS, UNITS)


# --- Names and shapes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CONFIGS, "quantiles"])
def test_family_comes_back_from_its_configuration(name):
    family = family_and_params(name)[0]
    assert family_named(family.get_config()) == family
    assert family_named(family) is family
    assert hash(family_named(family.get_config())) == hash(family)


@pytest.mark.parametrize(
    "family",
    [
        "gauss",
        None,
        3,
        {"name": "mixture"},
        {"name": "normal", "df": 3},
        {"name": "multivariate_normal"},
    ],
)
def test_unknown_families_are_refused(family):
    with pytest.raises(ValueError, match=r"`family` must be one of.*Received: family="):
        family_named(family)


@pytest.mark.parametrize("num_factors", [0, -1, 1.5, "2", None])
def test_number_of_factors_is_checked(num_factors):
    with pytest.raises(ValueError, match="`num_factors`"):
        family_named({"name": "multivariate_normal", "num_factors": num_factors})


def test_labels_are_not_broadcast():
    family, params = family_named("normal"), tf.zeros((4, 2))
    assert labels_like(tf.zeros(4), params, family).shape == (4, 1)
    for shape in ((2,), (1, 4), (4, 2), (4, 1, 1), ()):
        with pytest.raises(ValueError, match=r"`y_true` must have shape.*Received"):
            labels_like(tf.zeros(shape), params, family)
    with pytest.raises(ValueError, match="multiple of 2"):
        family.split(tf.zeros((4, 3)))
