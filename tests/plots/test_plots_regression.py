"""Pictures of numbers show what the arrays, the metrics and SciPy say."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import stats

from tfuq import metrics, plots
from tfuq.predictive import RegressionUncertainty
from tfuq.selective import ConformalRegressor

RNG = np.random.default_rng(3)
N = 120
X = RNG.uniform(-2, 2, N)
SCALE = 0.3 + 0.2 * (X + 2)
Y = np.sin(X) + SCALE * RNG.normal(size=N)


def normal(*blocks, family="normal"):
    """One network's numbers, of means and scales."""
    return RegressionUncertainty(np.stack(blocks, -1)[None], family)


FOUND = normal(np.sin(X), SCALE)
DRAWS = RegressionUncertainty(
    np.stack([np.stack([np.sin(X) + d * X, SCALE], -1) for d in (-0.2, 0, 0.2)]), "normal"
)
TWO = normal(np.sin(X), 5 + X, SCALE, SCALE)
LOWER, UPPER = (end[:, 0] for end in FOUND.interval(0.9))
INSIDE = (LOWER <= Y) & (Y <= UPPER)
DRAW = {
    "over": lambda found, y, **kw: plots.intervals_over(X, found, y, **kw),
    "against": lambda found, y, **kw: plots.predicted_against_true(y, found, **kw),
    "calibration": lambda found, y, **kw: plots.quantile_calibration(y, found, **kw),
    "width": lambda found, y, **kw: plots.error_against_width(y, found, **kw),
}


@pytest.fixture(autouse=True)
def no_figure_is_left():
    pyplot.close("all")
    yield
    pyplot.close("all")


def free_axes():
    """Axes that pyplot knows nothing of."""
    return Figure().subplots()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def points(ax, label):
    """The points of the line whose label begins so, `(2, k)`."""
    (line,) = [line for line in ax.get_lines() if str(line.get_label()).startswith(label)]
    return np.array(line.get_data(), "float64")


def band(ax, index=0):
    """Corners `(k, 2)` of a filled band."""
    return ax.collections[index].get_paths()[0].vertices


@pytest.mark.parametrize("name", DRAW)
def test_draws_on_the_given_axes_or_on_one_figure_of_its_own(name):
    current = pyplot.figure()
    ax = free_axes()
    assert DRAW[name](FOUND, Y, ax=ax) is ax
    assert pyplot.get_fignums() == [current.number]
    assert ax.get_xlabel() and ax.get_ylabel()
    ax.figure.canvas.draw()
    own = DRAW[name](FOUND, Y)
    assert pyplot.get_fignums() == [current.number, own.figure.number]


@pytest.mark.parametrize("name", DRAW)
def test_columns_are_as_good_as_rows_and_units_are_chosen(name):
    expected = DRAW[name](FOUND, Y, ax=free_axes())
    both = np.stack([Y, Y + 9], -1)
    forms = [(FOUND, Y[:, None], {}), (TWO, both, {"unit": 0}), (TWO, both, {"unit": -2})]
    for found, y, options in forms:
        ax = DRAW[name](found, y, ax=free_axes(), **options)
        assert legend(ax) == legend(expected)
        for line, other in zip(ax.get_lines(), expected.get_lines(), strict=True):
            np.testing.assert_allclose(line.get_xydata(), other.get_xydata())


# --- intervals_over ----------------------------------------------------------------------------


def test_intervals_are_a_band_around_a_line_in_the_order_of_the_input():
    ax = plots.intervals_over(X, FOUND, Y, xlabel="age (years)", ax=free_axes())
    order = np.argsort(X)
    np.testing.assert_allclose(points(ax, "predicted"), [X[order], np.sin(X)[order]])
    corners = {tuple(corner) for corner in band(ax).round(9)}
    for ends in (LOWER, UPPER):
        assert corners >= set(zip(X.round(9), ends.round(9), strict=True))
    np.testing.assert_allclose(
        points(ax, "true, in"), [X[order][INSIDE[order]], Y[order][INSIDE[order]]]
    )
    assert points(ax, "true, out").shape == (2, (~INSIDE).sum())
    told = [f"true, inside: {INSIDE.sum()} of {N}", f"true, outside: {(~INSIDE).sum()}"]
    assert legend(ax) == ["90 % interval", "predicted", *told]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("age (years)", "number")
    red, green, blue = to_rgb(ax.get_lines()[-1].get_color())
    assert red > 1.8 * max(green, blue)


def test_the_epistemic_part_is_a_band_within():
    ax = plots.intervals_over(X, DRAWS, level=0.8, ax=free_axes())
    assert legend(ax) == ["80 % interval", "its epistemic part", "predicted"]
    share = DRAWS.epistemic_std / DRAWS.std
    upper = (DRAWS.mean + share * (DRAWS.quantile(0.9) - DRAWS.mean))[:, 0]
    corners = {tuple(corner) for corner in band(ax, 1).round(9)}
    assert corners >= set(zip(X.round(9), upper.round(9), strict=True))


def test_bars_where_the_input_is_one_of_several_or_repeats():
    both = np.stack([Y, X], -1)
    for x, options in ((both, {"feature": 1}), (X, {"bars": True})):
        ax = plots.intervals_over(x, FOUND, ax=free_axes(), **options)
        segments = np.array(ax.collections[0].get_segments())
        order = np.argsort(X)
        np.testing.assert_allclose(segments[:, 0], np.stack([X, LOWER], -1)[order])
        np.testing.assert_allclose(segments[:, 1], np.stack([X, UPPER], -1)[order])
        assert legend(ax) == ["90 % interval", "predicted"]
    ax = plots.intervals_over(X.round(1), FOUND, ax=free_axes())
    assert len(ax.collections[0].get_segments()) == N
    ax = plots.intervals_over(X.round(1), FOUND, bars=False, ax=free_axes())
    assert not hasattr(ax.collections[0], "get_segments")


def test_dates_are_inputs():
    days = np.datetime64("2026-01-01") + np.arange(N)
    ax = plots.intervals_over(days, FOUND, Y, ax=free_axes())
    assert points(ax, "predicted").shape == (2, N)
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match=r"Argument `x` must .*Received: 1 in x"):
        plots.intervals_over(np.where(np.arange(N) == 3, np.datetime64("NaT"), days), FOUND)


def test_series_are_read_step_by_step():
    steps = RegressionUncertainty(FOUND.params.reshape(1, 10, 12, 2), "normal")
    ax = plots.intervals_over(X.reshape(10, 12), steps, Y.reshape(10, 12), ax=free_axes())
    expected = plots.intervals_over(X, FOUND, Y, ax=free_axes())
    np.testing.assert_allclose(points(ax, "predicted"), points(expected, "predicted"))


def test_conformal_intervals_are_drawn_and_infinite_ones_told():
    sets = ConformalRegressor.fit(FOUND[:60], Y[:60], method="normalized", alpha=0.2)
    lower, upper = sets.interval(FOUND)
    ax = plots.intervals_over(X, FOUND, intervals=(lower, upper), bars=True, ax=free_axes())
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, 1, 1], upper[np.argsort(X), 0])
    upper[3], lower[3] = np.inf, -np.inf
    for draw in ("over", "against"):
        y = Y.copy()
        y[3] = 50.0
        ax = DRAW[draw](FOUND, y, intervals=(lower, upper), ax=free_axes())
        assert any("interval (1 unbounded)" in text for text in legend(ax))
        assert ax.get_ylim()[1] > 50
        ax.figure.canvas.draw()


# --- predicted_against_true --------------------------------------------------------------------


def test_predicted_against_true_tells_who_is_inside():
    ax = plots.predicted_against_true(Y, FOUND, quantity="weight (kg)", ax=free_axes())
    named = [f"90 % interval holds it: {INSIDE.sum()} of {N}", f"not: {(~INSIDE).sum()}"]
    assert legend(ax) == ["predicted = true", *named]
    for rows, name, index in ((INSIDE, named[0], 0), (~INSIDE, named[1], 1)):
        np.testing.assert_allclose(points(ax, name), [Y[rows], np.sin(X)[rows]])
        segments = np.array(ax.collections[index].get_segments())
        np.testing.assert_allclose(segments[:, :, 1].T, [LOWER[rows], UPPER[rows]])
    inside, outside = ax.get_lines()[1:]
    assert inside.get_marker() != outside.get_marker()
    diagonal = points(ax, "predicted = true")
    np.testing.assert_array_equal(diagonal[0], diagonal[1])


@pytest.mark.parametrize("draw", ["over", "against"])
@pytest.mark.parametrize("size", [(6.4, 4.8), (5.5, 2.8)])
def test_the_legend_hides_nothing(draw, size):
    """All ends of intervals and all points stay below the legend, infinite ends in its room."""
    figure = Figure(figsize=size, layout="constrained")
    upper = np.where(np.arange(N) == 3, np.inf, UPPER)
    for ax, ends in zip(figure.subplots(1, 2), (UPPER, upper), strict=True):
        DRAW[draw](FOUND, Y, intervals=(LOWER, ends), ax=ax)
        ax.set_title("a title")
    figure.canvas.draw()
    for ax in figure.axes:
        legend_from = ax.get_legend().get_window_extent().y0
        _, bottom = ax.transData.inverted().transform((0, legend_from))
        assert max(Y.max(), UPPER.max()) < bottom < ax.get_ylim()[1]
    tops = [path.vertices[:, 1].max() for each in ax.collections for path in each.get_paths()]
    assert max(tops) >= ax.get_ylim()[1]  # the infinite end reaches the edge of the picture


def test_of_many_numbers_some_are_drawn_and_all_are_counted():
    params = np.tile(FOUND.params, (1, 20, 1))
    found, y = RegressionUncertainty(params, "normal"), np.tile(Y, 20)
    ax = plots.predicted_against_true(y, found, ax=free_axes())
    assert ax.get_legend().get_title().get_text() == "1,000 of 2,400 drawn"
    assert legend(ax)[1].endswith(f": {20 * INSIDE.sum():,} of 2,400")
    assert sum(line.get_xdata().size for line in ax.get_lines()[1:]) == 1000
    ax = plots.error_against_width(y, found, ax=free_axes())
    assert legend(ax)[0] == "1,000 of 2,400 drawn"


# --- quantile_calibration ----------------------------------------------------------------------


def test_calibration_shows_the_curve_and_the_interval_of_chance():
    ax = plots.quantile_calibration(Y, FOUND, ax=free_axes())
    curve = metrics.quantile_calibration_curve(Y, FOUND)
    np.testing.assert_array_equal(points(ax, "labels (QCE"), [curve["level"], curve["share"]])
    error = metrics.quantile_calibration_error(Y, FOUND)
    assert f"labels (QCE {error:.3f})" in legend(ax)
    assert f"chance, {N} labels (95 %)" in legend(ax)
    corners = band(ax)
    at_half = np.unique(corners[np.isclose(corners[:, 0], 0.5), 1])
    np.testing.assert_allclose(at_half * N, stats.binom.interval(0.95, N, 0.5))


def test_calibration_of_several_networks_and_of_learned_quantiles():
    quantiles = np.stack([LOWER, np.sin(X), UPPER], -1)[None]
    learned = RegressionUncertainty(quantiles, {"name": "quantiles", "levels": [0.05, 0.5, 0.95]})
    ax = plots.quantile_calibration(Y, {"normal": FOUND, "learned": learned}, ax=free_axes())
    np.testing.assert_allclose(points(ax, "learned")[0], [0.05, 0.5, 0.95])
    shares = [np.mean(end >= Y) for end in (LOWER, np.sin(X), UPPER)]
    np.testing.assert_allclose(points(ax, "learned")[1], shares)
    assert points(ax, "normal").shape == (2, 19)
    one, other = ax.get_lines()[1:]
    assert one.get_color() != other.get_color() and one.get_marker() != other.get_marker()


def test_chance_counts_examples():
    steps = RegressionUncertainty(FOUND.params.reshape(1, 10, 12, 2), "normal")
    ax = plots.quantile_calibration(Y.reshape(10, 12), steps, ax=free_axes())
    assert "chance, 10 labels (95 %)" in legend(ax)


# --- error_against_width -----------------------------------------------------------------------


def test_errors_and_their_mean_in_each_bin():
    ax = plots.error_against_width(Y, FOUND, n_bins=4, ax=free_axes())
    width, error = UPPER - LOWER, np.abs(Y - np.sin(X))
    np.testing.assert_allclose(points(ax, "each number"), [width, error])
    order = np.split(np.argsort(width), 4)
    means = [error[rows].mean() for rows in order]
    (bars,) = ax.containers
    np.testing.assert_allclose(bars[0].get_data()[1], means)
    np.testing.assert_allclose(bars[0].get_data()[0], [np.median(width[rows]) for rows in order])
    first = error[order[0]]
    low, high = np.array(bars[2][0].get_segments())[0, :, 1]
    expected = stats.t.interval(0.95, len(first) - 1, first.mean(), stats.sem(first))
    np.testing.assert_allclose([low, high], expected)
    ause = metrics.ause(Y, np.sin(X), width)
    assert f"mean of a bin (AUSE {ause:.2f})" in legend(ax)
    half = points(ax, "half the width")
    np.testing.assert_allclose(half[1], half[0] / 2)


def test_one_number_is_a_bin_without_a_bar():
    ax = plots.error_against_width(Y[:2], FOUND[:2], n_bins=2, ax=free_axes())
    ax.figure.canvas.draw()
    assert len(ax.containers) == 1
