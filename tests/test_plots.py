"""The pictures show the numbers that the metrics give, on the Axes that were asked for."""

import importlib
import sys

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tfuq import metrics, plots

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(4, 0.5), size=200)
OTHER = RNG.dirichlet(np.full(4, 0.2), size=200)
Y = np.where(RNG.random(200) < 0.6, PROBS.argmax(axis=-1), RNG.integers(4, size=200))
KINDS = {
    "binary": ((Y % 2), RNG.uniform(size=200), {}),
    "column": ((Y % 2), RNG.uniform(size=(200, 1)), {}),
    "logits": (Y, RNG.normal(size=(200, 4)), {"from_logits": True}),
    "pixels": (Y.reshape(2, 10, 10), PROBS.reshape(2, 10, 10, 4), {}),
    "labels": (RNG.integers(2, size=(50, 4)), RNG.uniform(size=(50, 4)), {"multi_label": True}),
}
DRAW = {
    "curve": plots.rejection_curve,
    "histogram": lambda y_true, y_pred, **kw: plots.confidence_histogram(
        y_pred, y_true=y_true, threshold=0.5, **kw
    ),
    "histogram without labels": lambda y_true, y_pred, **kw: plots.confidence_histogram(
        y_pred, **kw
    ),
    "diagram": plots.reliability_diagram,
}


@pytest.fixture(autouse=True)
def no_figure_is_left():
    pyplot.close("all")
    yield
    pyplot.close("all")


def free_axes():
    """Axes that pyplot knows nothing of."""
    return Figure().subplots()


def heights(container):
    return [bar.get_height() for bar in container]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("draw", DRAW)
def test_draws_on_the_given_axes_and_leaves_pyplot_alone(draw):
    current = pyplot.figure()
    ax = free_axes()
    assert DRAW[draw](Y, PROBS, ax=ax) is ax
    assert pyplot.get_fignums() == [current.number]
    assert pyplot.gcf() is current
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("draw", DRAW)
def test_makes_one_figure_of_its_own(draw):
    ax = DRAW[draw](Y, PROBS)
    assert isinstance(ax, Axes)
    assert pyplot.get_fignums() == [ax.figure.number]


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("kind", KINDS)
def test_draws_what_the_metrics_take(draw, kind):
    y_true, y_pred, options = KINDS[kind]
    ax = DRAW[draw](y_true, y_pred, ax=free_axes(), **options)
    assert ax.has_data()


@pytest.mark.parametrize("draw", DRAW)
def test_bad_input_raises_before_anything_is_drawn(draw):
    with pytest.raises(ValueError, match=r"Argument `ax` must be matplotlib Axes .*Received: ax=3"):
        DRAW[draw](Y, PROBS, ax=3)
    with pytest.raises(ValueError, match="Argument `y_pred` must"):
        DRAW[draw](Y, 2 * PROBS)
    with pytest.raises(ValueError, match=r"Argument `y_pred` must .*NaN"):
        DRAW[draw](Y, np.nan * PROBS)
    assert pyplot.get_fignums() == []


# --- rejection_curve ---------------------------------------------------------------------------


def test_curve_shows_the_table():
    ax = plots.rejection_curve(Y, PROBS, ax=free_axes(), sample_weight=Y + 1.0)
    accuracy, coverage = ax.get_lines()
    thresholds = np.linspace(0, 1, 101)
    table = metrics.rejection_table(Y, PROBS, thresholds, sample_weight=Y + 1.0)
    for line, field in ((accuracy, "accuracy"), (coverage, "coverage")):
        np.testing.assert_array_equal(line.get_xdata(), thresholds)
        np.testing.assert_array_equal(line.get_ydata(), table[field])
    assert np.isnan(accuracy.get_ydata()[-1])
    assert legend(ax) == ["accuracy on accepted", "coverage"]
    assert accuracy.get_linestyle() != coverage.get_linestyle()


def test_curve_of_several_models_tells_them_apart():
    ax = plots.rejection_curve(
        Y, {"Dense": PROBS, "FA": OTHER}, thresholds=[0.9, 0.5, 0.7], ax=free_axes()
    )
    lines = ax.get_lines()
    assert legend(ax) == [
        "Dense: accuracy on accepted",
        "Dense: coverage",
        "FA: accuracy on accepted",
        "FA: coverage",
    ]
    coverage = metrics.rejection_table(Y, OTHER, [0.5, 0.7, 0.9])["coverage"]
    np.testing.assert_array_equal(lines[3].get_ydata(), coverage)
    np.testing.assert_array_equal(lines[3].get_xdata(), [0.5, 0.7, 0.9])
    for of_one, of_other in ((lines[0], lines[2]), (lines[1], lines[3])):
        assert of_one.get_color() != of_other.get_color()
        assert of_one.get_marker() != of_other.get_marker()


def test_curve_needs_a_model_and_thresholds_in_range():
    with pytest.raises(ValueError, match="Argument `y_pred` must hold at least one model"):
        plots.rejection_curve(Y, {})
    for thresholds in ([0.5, 1.5], [], 2.0):
        with pytest.raises(ValueError, match=r"Argument `thresholds` must .*Received"):
            plots.rejection_curve(Y, PROBS, thresholds=thresholds)


# --- confidence_histogram ----------------------------------------------------------------------


def test_histogram_splits_the_counts():
    ax = plots.confidence_histogram(PROBS, y_true=Y, n_bins=10, ax=free_axes())
    wrong, right = ax.containers
    correct = PROBS.argmax(axis=-1) == Y
    confidence = PROBS.max(axis=-1)
    for bars, chosen in ((wrong, ~correct), (right, correct)):
        expected = np.histogram(confidence[chosen], np.linspace(0, 1, 11))[0]
        np.testing.assert_allclose(heights(bars), expected, atol=1e-9)
    np.testing.assert_allclose([bar.get_y() for bar in right], heights(wrong))
    assert wrong[0].get_hatch() != right[0].get_hatch()


def test_histogram_without_labels_counts_all():
    ax = plots.confidence_histogram(PROBS, n_bins=10, ax=free_axes())
    (bars,) = ax.containers
    expected = np.histogram(PROBS.max(axis=-1), np.linspace(0, 1, 11))[0]
    np.testing.assert_allclose(heights(bars), expected)
    assert ax.get_legend() is None


def test_histogram_marks_the_threshold_in_red_and_says_what_it_rejects():
    ax = plots.confidence_histogram(PROBS, threshold=0.7, ax=free_axes())
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [0.7, 0.7])
    assert line.get_linestyle() == "--"
    red, green, blue = to_rgb(line.get_color())
    assert red > 2 * max(green, blue)
    rejected = 100 * np.mean(PROBS.max(axis=-1) < 0.7)
    assert legend(ax) == [f"threshold 0.7: {rejected:.1f} % rejected"]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, np.nan, "0.5"])
def test_histogram_threshold_out_of_range_raises(threshold):
    with pytest.raises(ValueError, match=r"Argument `threshold` must .*Received: threshold="):
        plots.confidence_histogram(PROBS, threshold=threshold)


# --- reliability_diagram -----------------------------------------------------------------------


def test_diagram_shows_the_curve_its_gaps_and_counts():
    ax = plots.reliability_diagram(Y, PROBS, n_bins=8, ax=free_axes())
    curve = metrics.reliability_curve(Y, PROBS, n_bins=8)
    filled = curve["count"] > 0
    assert not filled.all()  # empty bins are left out, not drawn as 0
    accuracy, gap = ax.containers
    np.testing.assert_allclose(heights(accuracy), curve["accuracy"][filled])
    np.testing.assert_allclose([bar.get_x() for bar in accuracy], curve["lower"][filled])
    ends = [bar.get_y() + bar.get_height() for bar in gap]
    np.testing.assert_allclose(ends, curve["confidence"][filled])
    counts = [text.get_text() for text in ax.texts]
    assert counts == [str(int(count)) for count in curve["count"][filled]]
    error = metrics.expected_calibration_error(Y, PROBS, n_bins=8)
    assert f"gap to confidence (ECE {error:.3f})" in legend(ax)


def test_diagram_counts_are_weights():
    weight = np.full(200, 12.3)
    ax = plots.reliability_diagram(Y, PROBS, n_bins=1, sample_weight=weight, ax=free_axes())
    assert [text.get_text() for text in ax.texts] == ["2,460"]
    ax = plots.reliability_diagram(Y, PROBS, n_bins=1, sample_weight=weight / 200, ax=free_axes())
    assert [text.get_text() for text in ax.texts] == ["12.3"]


@pytest.mark.parametrize("draw", ["histogram", "diagram"])
@pytest.mark.parametrize("n_bins", [0, 2.5])
def test_bad_number_of_bins_raises(draw, n_bins):
    with pytest.raises(ValueError, match=r"Argument `n_bins` must .*Received: n_bins="):
        DRAW[draw](Y, PROBS, n_bins=n_bins)


# --- Without matplotlib ------------------------------------------------------------------------


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "tfuq.plots")
    with pytest.raises(ImportError, match=r'pip install "tfuq\[plots\]"'):
        importlib.import_module("tfuq.plots")
