"""Conformal intervals of numbers: coverage as the theory says, in arrays, files and models.

A fit to many units is as many simulations: each has a threshold of its own. Where the noise is
known, what a threshold covers is too, and its distribution over the fits is Beta(k, n + 1 - k).
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfuq.layers import NormalDense
from tfuq.predictive import RegressionUncertainty, predict_uncertainty
from tfuq.selective import ConformalRegressor

SIMULATIONS, ALPHA = 2000, 0.1
RNG = np.random.default_rng(11)
SIZES = [20, 100, 1000]


def rank(n, alpha):
    return int(np.ceil((n + 1) * (1 - alpha) - 1e-9))


def check_mean(covered, expected):
    """A right procedure fails 1 time in 5e8: six standard errors, and some for few levels."""
    error = 6 * covered.std() / np.sqrt(len(covered)) + 1e-9
    assert abs(covered.mean() - expected) <= error, (covered.mean(), expected, error)


def check_beta(covered, n, alpha):
    """Mean and distribution; the Kolmogorov-Smirnov test fails a right one 1 time in 1e6."""
    k = rank(n, alpha)
    check_mean(covered, k / (n + 1))
    assert stats.kstest(covered, stats.beta(k, n + 1 - k).cdf).pvalue > 1e-6


def simulated(n, *shape):
    """Means, and labels around them with normal noise."""
    mean = RNG.normal(size=(n, *shape, SIMULATIONS))
    return mean, mean + RNG.normal(size=mean.shape)


@pytest.mark.parametrize("n", SIZES)
def test_split_covers_as_promised(n):
    mean, y = simulated(n)
    t = ConformalRegressor.fit(mean, y, ALPHA).threshold
    np.testing.assert_allclose(t, np.sort(np.abs(y - mean), axis=0)[rank(n, ALPHA) - 1])
    check_beta(2 * stats.norm.cdf(t) - 1, n, ALPHA)


@pytest.mark.parametrize("n", SIZES)
def test_normalized_covers_as_promised(n):
    mean, y = simulated(n)
    scale = np.exp(RNG.normal(size=mean.shape))
    fitted = ConformalRegressor.fit((mean, scale), mean + scale * (y - mean), ALPHA, "normalized")
    check_beta(2 * stats.norm.cdf(fitted.threshold) - 1, n, ALPHA)


@pytest.mark.parametrize("n", SIZES)
def test_quantiles_that_are_wrong_are_put_right(n):
    mean, y = simulated(n)
    low, high = -0.5, 2.0  # of a network that is sure, and biased
    fitted = ConformalRegressor.fit((mean + low, mean + high), y, ALPHA, "cqr")
    t = fitted.threshold
    check_beta(stats.norm.cdf(high + t) - stats.norm.cdf(low - t), n, ALPHA)


@pytest.mark.parametrize("n", SIZES)
def test_both_sides_miss_their_half(n):
    mean, y = simulated(n)
    biased = mean - 1.0
    t = ConformalRegressor.fit(biased, y, ALPHA, asymmetric=True).threshold
    check_beta(stats.norm.cdf(1.0 + t[:, 0]), n, ALPHA / 2)
    check_beta(stats.norm.cdf(t[:, 1] - 1.0), n, ALPHA / 2)


@pytest.mark.parametrize("n", SIZES)
def test_each_group_is_covered(n):
    mean, y = simulated(2 * n)
    groups = np.where(np.arange(2 * n) % 2, "loud", "quiet")
    loud = (groups == "loud")[:, None]
    fitted = ConformalRegressor.fit(mean, np.where(loud, mean + 3 * (y - mean), y), groups=groups)
    assert fitted.keys == ["loud", "quiet"]
    check_beta(2 * stats.norm.cdf(fitted.threshold[0] / 3) - 1, n, ALPHA)
    check_beta(2 * stats.norm.cdf(fitted.threshold[1]) - 1, n, ALPHA)


@pytest.mark.parametrize("n", [20, 100])
def test_the_share_of_pixels_that_is_missed_is_controlled(n):
    """Pixels of an image share most of their noise."""
    mean, y = simulated(n, 4)
    shared = RNG.normal(size=(n, 1, SIMULATIONS))
    y = mean + 0.9 * shared + np.sqrt(1 - 0.9**2) * (y - mean)
    t = ConformalRegressor.fit(mean, y, ALPHA).threshold
    missed = 2 * stats.norm.sf(t)
    error = 6 * missed.std() / np.sqrt(SIMULATIONS)  # fails a right procedure 1 time in 1e9
    assert ALPHA - 2 / (n + 1) - error <= missed.mean() <= ALPHA + error


def test_a_level_of_ten_million_rows_is_a_rank(counts):
    """Memory and time are those of one array: `np.partition`, rows a part at a time."""
    n = 2**20 + 7  # several parts
    mean, y = np.zeros(n, "float32"), RNG.normal(size=n).astype("float32")
    t = ConformalRegressor.fit(mean, y, 0.05).threshold
    assert t == np.sort(np.abs(y.astype("float64")))[rank(n, 0.05) - 1]


# --- What intervals are -------------------------------------------------------------------------

X = RNG.normal(size=400)
SCALE = 0.2 + np.abs(X)
Y = X + SCALE * RNG.normal(size=400)
FOUND = RegressionUncertainty(np.stack([X, SCALE], -1)[None].astype("float32"), "normal")
DRAWS = RegressionUncertainty(np.stack([np.stack([X + d, SCALE], -1) for d in (0, 0.2)]), "normal")
OLD, NEW = slice(0, 200), slice(200, 400)
KINDS = [(m, a) for m in ("split", "normalized", "cqr") for a in (False, True)]


def fitted(method="split", found=FOUND, **options):
    return ConformalRegressor.fit(found[OLD], Y[OLD], method=method, **options)


@pytest.mark.parametrize("method, asymmetric", KINDS)
def test_intervals_are_those_of_the_formula(method, asymmetric):
    sets = fitted(method, asymmetric=asymmetric)
    lower, upper = sets.interval(FOUND[NEW])
    ends = FOUND[NEW].interval(0.9) if method == "cqr" else (FOUND[NEW].mean, FOUND[NEW].mean)
    scale = FOUND[NEW].std if method == "normalized" else 1.0
    below, above = sets.threshold[0] if asymmetric else sets.threshold.repeat(2)
    np.testing.assert_allclose(lower, ends[0] - below * scale, rtol=1e-9)
    np.testing.assert_allclose(upper, ends[1] + above * scale, rtol=1e-9)
    found = sets.evaluate(FOUND[NEW], Y[NEW])
    assert found.coverage == np.mean((Y[NEW] >= lower[:, 0]) & (Y[NEW] <= upper[:, 0]))
    assert 0.8 < found.coverage < 1 and found.unbounded == 0  # 4.7 sigma
    np.testing.assert_allclose(found.mean_width, (upper - lower).mean())
    assert sets.coverage(FOUND[NEW], Y[NEW])[:3] == found[1:4]


@pytest.mark.slow_cases("*-True-*", "*-2_draws")
@pytest.mark.parametrize(
    "method, asymmetric, found",
    [(*kind, FOUND) for kind in KINDS] + [(*kind, DRAWS) for kind in KINDS[::2]],
    ids=lambda part: f"{part.num_samples}_draws" if hasattr(part, "num_samples") else None,
)
def test_graphs_and_files_say_the_same(method, asymmetric, found, tmp_path):
    sets = fitted(method, found, asymmetric=asymmetric)
    assert type(sets).from_json(sets.to_json()) == sets
    sets.save(tmp_path / "sets.json")
    again = ConformalRegressor.load(tmp_path / "sets.json")
    params = found.params[0] if found.num_samples == 1 else found.params
    tensors = again.transform(tf.constant(params))
    lower, upper = sets.interval(found)
    for name, array in (
        ("lower", lower),
        ("upper", upper),
        ("mean", found.mean),
        ("std", found.std),
    ):
        np.testing.assert_allclose(tensors[name], array, rtol=1e-5, atol=1e-5)


def test_learned_quantiles_serve_for_levels_that_are_further_out():
    params = np.stack([X - SCALE, X, X + SCALE], -1)[None]
    found = RegressionUncertainty(params, {"name": "quantiles", "levels": [0.2, 0.5, 0.8]})
    sets = fitted("cqr", found)
    assert sets.levels == [0.2, 0.8]
    assert 0.8 < sets.evaluate(found[NEW], Y[NEW]).coverage < 1


def test_ties_are_inside_whichever_way_they_round():
    """Whole labels, and means with a digit: scores repeat, and a threshold is one of them."""
    mean = np.round(RNG.normal(size=1000) * 3, 1)
    y = np.round(mean + RNG.normal(size=1000))
    sets = ConformalRegressor.fit(mean[:500], y[:500], 0.2)
    lower, upper = sets.interval(mean)
    inside = ((y >= lower[:, 0]) & (y <= upper[:, 0]))[:500].mean()
    assert inside >= 0.8


def test_what_is_not_known_has_no_ends():
    for method in ("split", "normalized", "cqr"):
        sets = fitted(method)
        params = FOUND.params.copy()
        params[:, 0], params[:, 1, 0] = np.nan, np.inf
        found = RegressionUncertainty(params, "normal")
        lower, upper = sets.interval(found)
        assert np.isneginf(lower[:2]).all() and np.isposinf(upper[:2]).all()
        assert np.isfinite(lower[2:]).all()
        assert not sets.accept(found, 1e9)[:2].any() and sets.accept(found, 1e9)[2:].all()
        told = sets.evaluate(found[0:10], Y[0:10])
        assert told.unbounded == 0.2 and np.isfinite(told.mean_width)
        tensors = sets.transform(tf.constant(params[0]))
        assert np.isneginf(tensors["lower"][:2]).all() and np.isfinite(tensors["lower"][2:]).all()


def test_an_interval_whose_ends_cross_is_a_point():
    """Quantiles that are far too wide are moved inwards, past each other where they are close."""
    low, high = -np.where(X > 0, 9, 0.1), np.where(X > 0, 9, 0.1)
    sets = ConformalRegressor.fit((low[OLD], high[OLD]), np.zeros(200), method="cqr")
    lower, upper = sets.interval((low, high))
    assert (lower <= upper).all()


def test_groups():
    groups = np.where(X > 0, "a", "b")
    sets = fitted(groups=groups[OLD])
    told = sets.evaluate(FOUND[NEW], Y[NEW], groups[NEW])
    assert set(told.by_group) == {"a", "b"}
    assert sum(part.examples for part in told.by_group.values()) == 200
    lower, _ = sets.interval(FOUND[NEW], np.full(200, "c"), unknown_group="unbounded")
    assert np.isneginf(lower).all()
    again = ConformalRegressor.from_json(sets.to_json())
    np.testing.assert_array_equal(
        again.interval(FOUND, groups).upper, sets.interval(FOUND, groups).upper
    )
    assert set(fitted().evaluate(FOUND[NEW], Y[NEW], groups[NEW]).by_group) == {"a", "b"}


def test_accepts_what_is_narrow():
    sets = fitted("normalized")
    lower, upper = sets.interval(FOUND)
    np.testing.assert_array_equal(sets.accept(FOUND, 2.0), upper - lower <= 2.0)


def test_in_a_model_and_fitted_to_one(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), NormalDense(1)])
    x = RNG.normal(size=(100, 3)).astype("float32")
    y = (x[:, 0] + 0.3 * RNG.normal(size=100)).astype("float32")
    sets = ConformalRegressor.fit_model(model, (x, y), method="normalized", alpha=0.2)
    found = predict_uncertainty(model, x)
    same = ConformalRegressor.fit(found, y, 0.2, "normalized")
    assert sets.fitted_to == same.fitted_to
    np.testing.assert_allclose(sets.threshold, same.threshold, rtol=1e-6)
    whole = sets.append_to(model)
    whole.save(tmp_path / "model.keras")
    x[0] = np.nan
    answers = keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0)
    lower, upper = sets.interval(predict_uncertainty(model, x))
    np.testing.assert_allclose(answers["lower"], lower, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answers["upper"], upper, rtol=1e-5, atol=1e-5)
    assert np.isposinf(answers["upper"][0])
    with pytest.raises(ValueError, match="family"):
        ConformalRegressor("normalized", 1.0, family="laplace").append_to(model)


def test_it_says_what_it_promises():
    text = fitted("normalized").describe()
    assert "0.9" in text and "with the 200 that" in text and "standard deviations" in text
    assert "promises nothing" in ConformalRegressor("split", 1.0).describe()
    assert "ConformalRegressor" in repr(fitted())
