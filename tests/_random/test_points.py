"""Standard normal points: fixed, fresh, evenly spread."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfuq._random.points import (
    RULES,
    NormalPoints,
    keep_mask,
    normal,
    random_signs,
    shifted_points,
    sobol_cells,
    split_seed,
    whitened,
)


def seed(number):
    return tf.constant([number, 7], "int32")


@pytest.mark.parametrize("rule", RULES)
def test_fixed_points_repeat_and_follow_the_seed(rule):
    first = NormalPoints(rule, 50, 6, seed=3)()
    np.testing.assert_array_equal(first, NormalPoints(rule, 50, 6, seed=3)())
    assert not np.allclose(first, NormalPoints(rule, 50, 6, seed=4)())


def test_fixed_sobol_points_do_not_change_between_versions():
    # A saved model does not hold its points: it makes them again. These figures are SciPy 1.17's.
    cells = sobol_cells(3, 3, seed=0)
    expected = [
        [3972403, 1221940, 5356980],
        [4817161, 6735596, 1721180],
        [6677815, 3771221, 7258323],
    ]
    np.testing.assert_array_equal(cells, expected)


@pytest.mark.parametrize("samples, dimensions", [(4, 1), (8, 3), (34, 16), (256, 110)])
def test_fixed_sobol_points_have_exact_second_moments(samples, dimensions):
    points = NormalPoints("sobol", samples, dimensions)().numpy().astype("float64")
    np.testing.assert_allclose(points.T @ points / len(points), np.eye(dimensions), atol=1e-5)


def test_whitening_spares_points_no_more_than_their_dimensions():
    points = np.random.default_rng(0).standard_normal((5, 5))
    assert whitened(points) is points


def test_whitened_points_stay_near_the_quantiles_they_came_from():
    points = stats.norm.ppf((sobol_cells(512, 6) + 0.5) / 2**23)
    assert np.abs(whitened(points) - points).max() < 0.25


@pytest.mark.parametrize("rule, samples, stored", [("iid", 7, 7), ("sobol", 7, 4), ("sobol", 8, 4)])
def test_mirrored_rules_store_half(rule, samples, stored):
    points = NormalPoints(rule, samples, 3)
    assert points().shape == (stored, 3)
    assert points.mirrored == (rule != "iid")


@pytest.mark.parametrize("rule", RULES)
def test_fresh_points_are_standard_normal(rule):
    # Kolmogorov-Smirnov at 1e-9: a correct sampler fails one seed in a billion. One point of each
    # draw, because the points of one draw are dependent by design.
    points = NormalPoints(rule, 16, 5, fresh=True)
    seeds = tf.stack([tf.range(3000), tf.fill(3000, 7)], axis=1)
    draw = tf.function(lambda seeds: tf.map_fn(lambda s: points(s)[3], seeds, dtype="float32"))
    draws = draw(seeds).numpy()
    for column in draws.T:
        assert stats.kstest(column, "norm").pvalue > 1e-9
    # Columns are independent: |correlation| < 6.1 / sqrt(n) fails one pair in 1e9.
    correlation = np.corrcoef(draws.T) - np.eye(5)
    assert np.abs(correlation).max() < 6.1 / np.sqrt(3000)


def test_shifted_sobol_points_stay_evenly_spread():
    # In each dimension, 64 Sobol points have one point in each 64th of the unit interval.
    points = shifted_points(tf.constant(sobol_cells(64, 8)), seed=seed(5))
    cells = np.floor(stats.norm.cdf(points) * 64).astype(int)
    for column in cells.T:
        assert sorted(column) == list(range(64))


def test_dimensions_beyond_scipys_limit_are_independent_draws():
    cells = sobol_cells(4, 21_203)
    assert cells.shape == (4, 21_203)
    assert cells.min() >= 0
    assert cells.max() < 2**23


def test_extreme_cells_give_finite_points():
    cells = tf.constant([[0], [2**23 - 1]])
    assert np.isfinite(shifted_points(cells, seed=seed(0))).all()


def test_signs_are_fair_and_independent():
    signs = random_signs((20_000, 4), seed=seed(1)).numpy()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    # Six standard deviations: a correct sampler fails one mean or product in 5e8.
    limit = 6 / np.sqrt(20_000)
    assert np.abs(signs.mean(axis=0)).max() < limit
    products = signs.T @ signs / 20_000 - np.eye(4)
    assert np.abs(products).max() < limit


def test_split_seeds_differ():
    seeds = [tuple(s.numpy()) for s in split_seed(tf.constant([1, 0], "uint32"), 5)]
    seeds += [tuple(s.numpy()) for s in split_seed(tf.constant([1, 1], "uint32"), 5)]
    assert len(set(seeds)) == 10


@pytest.mark.parametrize("rule", ["sobol", "antithetic"])
def test_algorithm_of_random_numbers_is_philox(rule):
    # The default, "auto_select", is tens of times slower compiled on a CPU.
    points = NormalPoints(rule, 8, 3, fresh=True)

    @tf.function
    def draw(value):
        first, second = split_seed(value, 2)
        return points(first), random_signs((2,), seed=second)

    graph = draw.get_concrete_function(tf.TensorSpec((2,), "int32")).graph
    draws = [op for op in graph.get_operations() if op.type.startswith("StatelessRandom")]
    algorithms = [int(tf.get_static_value(op.inputs[3])) for op in draws if op.type.endswith("V2")]
    assert len(algorithms) >= 3
    assert set(algorithms) == {tf.random.Algorithm.PHILOX.value}


def test_draws_are_the_same_compiled_or_not():
    """Of one seed XLA made other normals and other masks, so that trainings differed."""

    def draws():
        return normal((2001,), seed=seed(2)), keep_mask((2001,), 0.3, seed=seed(3))

    plain = tf.function(draws)()
    compiled = tf.function(draws, jit_compile=True)()
    np.testing.assert_allclose(compiled[0], plain[0], atol=1e-4)
    np.testing.assert_array_equal(compiled[1], plain[1])
    # They are TensorFlow's own, as without XLA.
    given = {"seed": seed(2), "alg": "philox"}
    expected = tf.random.stateless_normal((2001,), **given)
    np.testing.assert_allclose(plain[0], expected, atol=1e-5)
    np.testing.assert_allclose(
        normal((3, 5), seed=seed(2)), expected[:15].numpy().reshape(3, 5), atol=1e-5
    )
    uniform = tf.random.stateless_uniform((2001,), seed(3), alg="philox")
    np.testing.assert_array_equal(plain[1], tf.cast(uniform >= 0.3, "float32") / 0.7)
