"""Uncertainty of numbers: mixtures over draws against TFP, quantiles, moments, bad input."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfuq._predictions.families import family_named
from tfuq._predictions.numbers import RegressionUncertainty

RNG = np.random.default_rng(0)
FAMILIES = [
    "normal",
    "laplace",
    "student_t",
    "evidential",
    {"name": "mixture", "num_components": 2},
]
SAMPLES, ROWS, UNITS = 4, 7, 2


def stack_of(family, samples=SAMPLES):
    raw = RNG.normal(size=(samples, ROWS, UNITS * family.size))
    return family.constrain(tf.constant(raw), 1e-6).numpy()


def mixture(family, stack):
    """TFP's mixture of the draws, with the batch shape `(rows, units)`."""
    moved = tf.constant(np.moveaxis(stack, 0, 1))  # (rows, samples, parameters)
    tfd = tfp.distributions
    parts = [tf.reshape(p, (ROWS, len(stack), UNITS)) for p in family.split(moved)]
    moved = tf.concat([tf.transpose(part, (0, 2, 1)) for part in parts], axis=-1)
    each = family.distribution(moved)  # the "units" are the samples
    even = tfd.Categorical(probs=np.full(len(stack), 1 / len(stack)))
    return tfd.MixtureSameFamily(even, each)


@pytest.mark.parametrize("name", FAMILIES, ids=str)
def test_draws_are_the_mixture_of_tfp(name):
    family = family_named(name)
    stack = stack_of(family)
    found, other = RegressionUncertainty(stack, name), mixture(family, stack)
    y = RNG.normal(size=(ROWS, UNITS)) * 2
    np.testing.assert_allclose(found.mean, other.mean(), atol=1e-10)
    np.testing.assert_allclose(found.std**2, other.variance(), rtol=1e-10)
    np.testing.assert_allclose(found.log_prob(y), other.log_prob(y), atol=1e-10)
    np.testing.assert_allclose(found.cdf(y), other.cdf(y), atol=1e-10)
    for level in (0.05, 0.5, 0.9):
        np.testing.assert_allclose(other.cdf(found.quantile(level)), level, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES, ids=str)
def test_samples_have_the_moments(name):
    family = family_named(name)
    stack = stack_of(family)
    if "df" in family.parameters or family.name == "evidential":
        stack = np.repeat(stack[:, :, :UNITS], family.size, axis=-1)
        stack[..., UNITS:] = 6.0  # so that the fourth moment is finite
    found = RegressionUncertainty(stack, name)
    drawn = found.samples(4000, seed=1)
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    # 14 means of one family: a right sampler fails once in 10^7 runs by the normal law.
    assert (np.abs(drawn.mean(axis=0) - found.mean) < 6 * error).all()
    below = (drawn <= found.quantile(0.9)).mean(axis=0)
    assert (np.abs(below - 0.9) < 6 * np.sqrt(0.09 / len(drawn))).all()


def test_parts_of_the_variance():
    stack = np.array([[[0.0, 1.0]], [[2.0, 3.0]]])
    found = RegressionUncertainty(stack, "normal")
    assert found.mean.item() == 1.0
    assert found.aleatoric_std.item() == pytest.approx(np.sqrt(5))
    assert found.epistemic_std.item() == pytest.approx(1.0)
    assert found.std.item() == pytest.approx(np.sqrt(6))


def test_one_network_has_the_family_s_own_quantiles():
    found = RegressionUncertainty(np.array([[[1.0, 2.0]]]), "normal")
    lower, upper = found.interval(0.95)
    assert upper.item() == pytest.approx(1 + 2 * 1.959963984540054, abs=1e-9)
    assert lower.item() == pytest.approx(1 - 2 * 1.959963984540054, abs=1e-9)


def test_quantiles_reach_as_far_as_their_levels():
    family = {"name": "quantiles", "levels": [0.05, 0.5, 0.95]}
    found = RegressionUncertainty(np.array([[[-1.0, 0.0, 3.0]]]), family)
    assert [end.item() for end in found.interval(0.9)] == [-1.0, 3.0]
    with pytest.raises(ValueError, match="levels"):
        found.interval(0.95)
    with pytest.raises(ValueError, match="no density"):
        found.log_prob([0.0])


def test_blocks_change_nothing(monkeypatch):
    stack = stack_of(family_named("normal"))
    whole = RegressionUncertainty(stack, "normal")
    expected = whole.quantile(0.3)
    monkeypatch.setattr("tfuq._predictions.numbers.BLOCK", 1)
    found = RegressionUncertainty(stack, "normal")
    np.testing.assert_array_equal(found.quantile(0.3), expected)
    np.testing.assert_array_equal(found.mean, whole.mean)


def test_rows_are_chosen():
    found = RegressionUncertainty(stack_of(family_named("normal")), "normal")
    np.testing.assert_array_equal(found[2:4].mean, found.mean[2:4])
    np.testing.assert_array_equal(found[-1].mean, found.mean[-1:])
    assert len(found[np.arange(ROWS) > 4]) == 2 and found.shape == (ROWS, UNITS)


def test_what_is_not_known_is_nan():
    stack = stack_of(family_named("normal"))
    stack[:, 1] = np.nan
    found = RegressionUncertainty(stack, "normal")
    for values in (found.mean, found.std, *found.interval(0.9)):
        assert np.isnan(values[1]).all() and np.isfinite(np.delete(values, 1, axis=0)).all()


def test_repr_is_short():
    text = repr(RegressionUncertainty(stack_of(family_named("normal")), "normal", note="a note"))
    assert "7 examples, 4 draws of normal()" in text and "a note" in text and len(text) < 300


@pytest.mark.parametrize(
    "params, family, match",
    [
        (np.zeros((1, 3, 3)), "normal", "multiple of 2"),
        (np.zeros((3,)), "normal", "params"),
        (np.zeros((1, 3, 2), int), "normal", "floating"),
        (np.zeros((1, 0, 2)), "normal", "empty"),
        (np.ones((1, 3, 2)), "gauss", "family"),
        (np.ones((1, 3, 2)), "mixture", "num_components"),
        (np.ones((1, 3, 2)), {"name": "quantiles", "levels": [0.9, 0.1]}, "levels"),
    ],
)
def test_bad_parameters(params, family, match):
    with pytest.raises(ValueError, match=match):
        RegressionUncertainty(params, family)


@pytest.mark.parametrize("level", [0, 1, 90, "half", None, np.nan])
def test_bad_levels(level):
    with pytest.raises(ValueError, match="`level`"):
        RegressionUncertainty(np.ones((1, 3, 2)), "normal").interval(level)


@pytest.mark.parametrize("y", [np.ones((3, 2)), np.ones(4), ["a"] * 3, 1.0])
def test_labels_of_another_shape(y):
    with pytest.raises(ValueError, match="`y`"):
        RegressionUncertainty(np.ones((1, 3, 2)), "normal").log_prob(y)
