"""The pictures show the numbers that the metrics give, on the Axes that were asked for."""

import importlib
import itertools
import sys

import keras
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tfuq import metrics, plots
from tfuq._math.bounds import wilson_interval
from tfuq.callbacks import SGDR
from tfuq.callbacks._sweep_curve import read_sweep
from tfuq.corruptions import CorruptionReport
from tfuq.predictive import predictive_entropy

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


@pytest.mark.parametrize("count", [1, 2, 4])
def test_legend_hides_no_curve(count):
    """All curves are at most 1: the legend is above."""
    ax = free_axes()
    plots.rejection_curve(Y, {f"model {i}": PROBS for i in range(count)}, ax=ax)
    ax.figure.canvas.draw()
    legend_from = ax.get_legend().get_window_extent().y0
    assert ax.transData.inverted().transform((0, legend_from))[1] > 1


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
    accuracy, intervals, gap = ax.containers
    np.testing.assert_allclose(heights(accuracy), curve["accuracy"][filled])
    np.testing.assert_allclose([bar.get_x() for bar in accuracy], curve["lower"][filled])
    ends = [bar.get_y() + bar.get_height() for bar in gap]
    np.testing.assert_allclose(ends, curve["confidence"][filled])
    ends = wilson_interval(
        curve["accuracy"][filled] * curve["count"][filled], curve["count"][filled]
    )
    lines = [segment[:, 1] for segment in intervals.lines[2][0].get_segments()]
    np.testing.assert_allclose(np.transpose(lines), ends)
    thin = curve["count"][filled] < 10
    assert [bar.get_alpha() < 1 for bar in accuracy] == thin.tolist()
    few = plots.reliability_diagram(Y[:9], PROBS[:9], n_bins=1, ax=free_axes())
    assert few.containers[0][0].get_alpha() < 1
    counts = [text.get_text() for text in ax.texts]
    assert counts == [str(int(count)) for count in curve["count"][filled]]
    error = metrics.expected_calibration_error(Y, PROBS, n_bins=8)
    assert f"gap to confidence (ECE {error:.3f})" in legend(ax)
    assert "numbers: examples" in ax.get_legend().get_title().get_text()
    assert min(text.zorder for text in ax.texts) > 3  # above the lines of intervals


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


# --- error_map and uncertainty_maps ------------------------------------------------------------

BLANK = np.zeros((2, 3, 4))
TRUE = np.zeros((2, 3, 4), int)
TRUE[0, 0, :2] = TRUE[1, 2, 2:] = 1
STACK = np.clip(0.8 * TRUE[None, ..., None] + RNG.uniform(0, 0.4, (6, 2, 3, 4, 1)) - 0.1, 0, 1)
STACK[:, 0, 1, 1], STACK[:, 0, 0, 0] = 0.9, 0.1  # a false positive and a false negative
THREE = RNG.dirichlet(np.ones(3), size=(2, 3, 4))
OF_THREE = RNG.integers(3, size=(2, 3, 4))


def shown(ax, layer=0):
    return np.asarray(ax.get_images()[layer].get_array())


def maps(*data, **options):
    """The Axes of the rows, `(rows, 4)`, and of the colour bar, on a Figure of their own."""
    *axes, bar = plots.uncertainty_maps(*data, figure=Figure(), **options).axes
    return np.reshape(axes, (-1, 4)), bar


def titles(rows):
    return [ax.get_title() for ax in rows[0]]


def test_errors_are_told_apart():
    mask, prediction = np.mgrid[:3, :3]
    expected = [[0, 2, 2], [3, 1, 4], [3, 4, 1]]
    np.testing.assert_array_equal(plots.error_map(mask, prediction), expected)
    binary = plots.error_map(mask > 0, prediction > 0)
    assert [(binary == k).sum() for k in range(5)] == [1, 4, 2, 2, 0]


def test_error_map_refuses_what_are_no_classes():
    for bad in ([[0.5, 1]], [[-1, 0]], [[np.nan, 0]], [[np.inf, 0]], np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"Argument `mask` must hold classes.*Received: mask"):
            plots.error_map(bad, [[0, 1]])
    with pytest.raises(ValueError, match=r"`prediction` must have the shape of `mask`, \(1, 2\)"):
        plots.error_map([[0, 1]], [[0, 1, 1]])


def test_maps_show_image_mask_prediction_and_entropy():
    images = RNG.normal(size=(2, 3, 4))
    rows, bar = maps(images, TRUE, STACK)
    assert titles(rows) == ["input", "mask", "prediction", "entropy"]
    assert bar.get_ylabel() == "entropy (nats)"
    entropies = predictive_entropy(STACK)[..., 0]
    for image, mask, row, expected in zip(images, TRUE, rows, entropies, strict=True):
        stretched = (image - image.min()) / np.ptp(image)
        np.testing.assert_allclose(shown(row[0]), stretched)
        np.testing.assert_allclose(shown(row[2]), stretched)
        np.testing.assert_array_equal(shown(row[1]), mask)
        np.testing.assert_allclose(shown(row[3]), expected)
        assert row[3].get_images()[0].get_clim() == (0, np.log(2))


@pytest.mark.parametrize("palette", ["safe", "paper"])
def test_overlay_has_the_colours_of_its_errors(palette):
    rows, _ = maps(BLANK, TRUE, STACK, palette=palette)
    errors = plots.error_map(TRUE, STACK.mean(0)[..., 0] > 0.5)
    assert set(errors.ravel()) == {0, 1, 2, 3}
    legend_of = rows[-1, 2].get_legend()
    patches = dict(zip(legend(rows[-1, 2]), legend_of.get_patches(), strict=True))
    assert list(patches) == ["true positive", "false positive", "false negative"]
    for row, error in zip(rows, errors, strict=True):
        overlay = shown(row[2], 1)
        assert np.all(overlay[error == 0] == 0)  # where nothing is, nothing is drawn
        for code, patch in enumerate(patches.values(), 1):
            assert np.all(overlay[error == code, :3] == to_rgb(patch.get_facecolor()))
    strongest = [np.argmax(to_rgb(patch.get_facecolor())) for patch in patches.values()]
    assert strongest == [1, 2, 0]  # green, blue, red


def test_stack_and_its_mean_look_the_same():
    stacked, _ = maps(BLANK, TRUE, STACK)
    mean, _ = maps(BLANK, TRUE, STACK.mean(0))
    for one, other in zip(stacked.flat, mean.flat, strict=True):
        np.testing.assert_allclose(shown(one, -1), shown(other, -1))


def test_maps_of_several_classes():
    for masks in (OF_THREE, OF_THREE[..., None], np.eye(3)[OF_THREE]):
        rows, _ = maps(np.zeros((2, 3, 4, 3)), masks, THREE)
        np.testing.assert_array_equal(shown(rows[1, 1]), OF_THREE[1])
        error = plots.error_map(OF_THREE, THREE.argmax(-1))[1]
        overlay = shown(rows[1, 2], 1)
        np.testing.assert_array_equal(overlay[..., 3] > 0, error > 0)
        assert len(np.unique(overlay[error > 0], axis=0)) == len(np.unique(error[error > 0]))
        assert legend(rows[-1, 2])[-1] == "other class"
        assert rows[0, 3].get_images()[0].get_clim() == (0, np.log(3))


def test_maps_of_several_raters():
    raters = np.stack([TRUE, TRUE, np.zeros_like(TRUE)], axis=-1)
    rows, _ = maps(BLANK, raters, STACK, raters_axis=-1)
    assert titles(rows)[1] == "mean of raters"
    np.testing.assert_allclose(shown(rows[0, 1]), TRUE[0] * 2 / 3)
    of_majority, _ = maps(BLANK, TRUE, STACK)
    np.testing.assert_array_equal(shown(rows[0, 2], 1), shown(of_majority[0, 2], 1))
    votes = np.stack([OF_THREE, OF_THREE, np.zeros_like(OF_THREE)], axis=1)
    rows, _ = maps(BLANK, votes, THREE, raters_axis=1)
    assert titles(rows)[1] == "majority of raters"
    np.testing.assert_array_equal(shown(rows[0, 1]), OF_THREE[0])


def test_colour_images_keep_their_colours_and_are_grey_under_the_overlay():
    images = RNG.uniform(0, 255, size=(2, 3, 4, 3))
    rows, _ = maps(images, TRUE, STACK)
    stretched = (images[0] - images[0].min()) / np.ptp(images[0])
    np.testing.assert_allclose(shown(rows[0, 0]), stretched)
    np.testing.assert_allclose(shown(rows[0, 2]), stretched.mean(-1))


def test_threshold_and_end_of_the_bar():
    rows, _ = maps(BLANK, TRUE, STACK, threshold=0.95, max_entropy=0.3)
    error = plots.error_map(TRUE[0], STACK.mean(0)[0, ..., 0] > 0.95)
    np.testing.assert_array_equal(shown(rows[0, 2], 1)[..., 3] > 0, error > 0)
    assert rows[0, 3].get_images()[0].get_clim() == (0, 0.3)


def test_maps_draw_on_the_given_figure_or_on_one_of_their_own():
    current = pyplot.figure()
    figure = Figure()
    assert plots.uncertainty_maps(BLANK, TRUE, STACK, figure=figure) is figure
    left, _ = figure.subfigures(1, 2)
    assert plots.uncertainty_maps(BLANK, TRUE, STACK, figure=left) is left
    assert pyplot.get_fignums() == [current.number]
    made = plots.uncertainty_maps(BLANK, TRUE, STACK)
    assert pyplot.get_fignums() == [current.number, made.number]
    made.canvas.draw()


BAD_MAPS = {
    "image size": (BLANK[:1], TRUE, STACK, {}, "images"),
    "image channels": (np.zeros((2, 3, 4, 2)), TRUE, STACK, {}, "images"),
    "image nan": (np.nan * BLANK, TRUE, STACK, {}, "images"),
    "mask size": (BLANK, TRUE[:, :2], STACK, {}, "masks"),
    "mask values": (BLANK, 2 * TRUE, STACK, {}, "masks"),
    "mask void": (BLANK, TRUE - 1, STACK, {}, "masks"),
    "mask rows": (BLANK, np.ones((2, 3, 4, 3)), THREE, {}, "masks"),
    "probs axes": (BLANK, TRUE, STACK[0, ..., 0], {}, "probs"),
    "probs empty": (BLANK[:0], TRUE[:0], STACK[0, :0], {}, "probs"),
    "probs range": (BLANK, TRUE, 2 * STACK, {}, "probs"),
    "probs nan": (BLANK, TRUE, np.nan * STACK, {}, "probs"),
    "probs sum": (BLANK, TRUE, THREE / 2, {}, "probs"),
    "raters axis": (BLANK, TRUE, STACK, {"raters_axis": 3}, "raters_axis"),
    "raters first": (BLANK, TRUE, STACK, {"raters_axis": -3}, "raters_axis"),
    "threshold": (BLANK, TRUE, STACK, {"threshold": 2}, "threshold"),
    "threshold of many": (BLANK, OF_THREE, THREE, {"threshold": 0.5}, "threshold"),
    "palette": (BLANK, TRUE, STACK, {"palette": "grey"}, "palette"),
    "max entropy": (BLANK, TRUE, STACK, {"max_entropy": 0}, "max_entropy"),
    "figure": (BLANK, TRUE, STACK, {"figure": 3}, "figure"),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_bad_maps_raise_before_anything_is_drawn(case):
    *data, options, name = BAD_MAPS[case]
    with pytest.raises(ValueError, match=f"Argument `{name}` must .*Received: {name}"):
        plots.uncertainty_maps(*data, **options)
    assert pyplot.get_fignums() == []


# --- Learning rates ----------------------------------------------------------------------------

RATES = np.geomspace(1e-4, 10, 40)
LOSSES = np.concatenate([np.linspace(2, 1, 30), np.geomspace(1, 1e4, 10)])
FOUND = read_sweep(RATES, LOSSES, smoothing=0.5, diverged=True)


def test_range_test_shows_what_was_found():
    ax = FOUND.plot(free_axes())
    points, average, lowest, steepest, suggestion = ax.get_lines()
    np.testing.assert_array_equal(points.get_xydata().T, [RATES, LOSSES])
    np.testing.assert_array_equal(average.get_xydata().T, [RATES, FOUND.smoothed_losses])
    assert lowest.get_xydata().tolist() == [[FOUND.minimum, FOUND.smoothed_losses.min()]]
    at = np.flatnonzero(FOUND.steepest == RATES)
    np.testing.assert_array_equal(
        steepest.get_xydata()[0], [FOUND.steepest, *FOUND.smoothed_losses[at]]
    )
    np.testing.assert_array_equal(suggestion.get_xdata(), [FOUND.suggestion] * 2)
    (bracket,) = ax.patches
    np.testing.assert_allclose(
        [bracket.get_x(), bracket.get_x() + bracket.get_width()], FOUND.bracket
    )
    assert ax.get_xscale() == "log"
    assert f"suggestion {FOUND.suggestion:.2g}" in legend(ax)
    low, high = ax.get_ylim()
    assert 0.8 < low < 1 and 2 < high < 4  # not 10,000


def test_range_test_of_a_loss_that_never_falls():
    ax = read_sweep(RATES, np.linspace(1, 2, 40), 0.5, False).plot()
    assert isinstance(ax, Axes)
    assert not any(text.startswith("steepest") for text in legend(ax))
    assert ax.get_ylim()[1] >= 2
    constant = read_sweep(RATES, np.ones(40), 0.5, False).plot(free_axes())
    constant.figure.canvas.draw()


def trained_schedule():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    schedule = SGDR(0.1, 0.01, cycle_mult=2)
    x = np.ones((4, 1))
    model.fit(x, x, batch_size=1, epochs=4, callbacks=[schedule], verbose=0)
    return schedule


def test_learning_rates_and_the_ends_of_cycles():
    schedule = trained_schedule()
    ax = plots.learning_rate_curve(schedule, ax=free_axes())
    curve, *ends = ax.get_lines()
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(16))
    np.testing.assert_array_equal(curve.get_ydata(), schedule.learning_rates)
    assert [line.get_xdata()[0] for line in ends] == [4, 12]
    assert legend(ax) == ["learning rate", "end of a cycle"]
    plain = plots.learning_rate_curve(list(schedule.learning_rates), ax=free_axes())
    (same,) = plain.get_lines()
    np.testing.assert_array_equal(same.get_xydata(), curve.get_xydata())
    assert plain.get_legend() is None


def test_learning_rates_on_one_figure_of_their_own():
    for ax in (plots.learning_rate_curve([0.1, 0.2]), plots.lr_range_test(FOUND)):
        assert ax.figure.number in pyplot.get_fignums()
        assert ax.get_xlabel() and ax.get_ylabel()


def test_what_holds_no_learning_rates():
    for rates in ([], [[0.1]], [np.nan], SGDR(0.1)):
        with pytest.raises(ValueError, match=r"Argument `rates` must .*Received: rates="):
            plots.learning_rate_curve(rates)
    with pytest.raises(ValueError, match=r"Argument `result` must .*Received: result="):
        plots.lr_range_test(LOSSES)
    for draw in (plots.learning_rate_curve, plots.lr_range_test):
        with pytest.raises(ValueError, match=r"Argument `ax` must .*Received: ax=3"):
            draw(FOUND if draw is plots.lr_range_test else [0.1], ax=3)
    assert pyplot.get_fignums() == []


# --- Corruptions -------------------------------------------------------------------------------

FIGURES = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")


def corruption_report(values):
    corrupted, clean = dict.fromkeys(FIGURES, np.array(values)), dict.fromkeys(FIGURES, 0.95)
    return CorruptionReport(("fog", "snow"), (1, 3, 5), clean, **corrupted, threshold=0.5)


def test_heat_map_shows_the_report():
    values = [[0.9, 0.8, 0.7], [0.6, 0.5, np.nan]]
    ax = plots.corruption_heat_map(corruption_report(values), ax=free_axes())
    (image,) = ax.get_images()
    drawn = np.ma.filled(image.get_array(), np.nan)
    np.testing.assert_array_equal(drawn, [[0.95, *values[0]], [0.95, *values[1]]])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["clean", "1", "3", "5"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["fog", "snow"]
    texts = {text.get_position(): text for text in ax.texts}
    assert texts[2, 0].get_text() == "0.80" and texts[3, 1].get_text() == "nan"
    assert (texts[0, 0.5].get_color(), texts[2, 1].get_color()) == ("black", "white")
    assert [text.get_text() for text in ax.texts].count("0.95") == 1  # clean once
    assert pyplot.get_fignums() == []
    ax.figure.canvas.draw()


def test_heat_map_names_the_unit():
    report = corruption_report([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
    for figure, label in (("nll", "nll (nats)"), ("coverage", "coverage (fraction)")):
        ax = plots.corruption_heat_map(report, figure)
        assert ax.get_images()[0].colorbar.ax.get_ylabel() == label


def test_heat_map_refuses_what_it_cannot_draw():
    report = corruption_report([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
    with pytest.raises(ValueError, match=r"Argument `report` must .*Received: report=3"):
        plots.corruption_heat_map(3)
    with pytest.raises(ValueError, match=r"Argument `figure` must .*Received: figure='auroc'"):
        plots.corruption_heat_map(report, "auroc")
    with pytest.raises(ValueError, match=r"Argument `ax` must .*Received: ax=3"):
        plots.corruption_heat_map(report, ax=3)
    assert pyplot.get_fignums() == []


# --- Gradients ---------------------------------------------------------------------------------

NORMS = {
    "in": np.exp(RNG.normal(size=(150, 8)) * 2),
    "out": np.exp(RNG.normal(2, size=(90, 8))),
    "far": np.exp(RNG.normal(4, size=(40, 8))),
}


def distributions(*args, **options):
    return plots.gradient_distributions(*args, figure=Figure(), **options).axes


def test_distributions_are_histograms_of_each_set():
    axes = distributions(NORMS, columns=[2, -1])
    assert [ax.get_title() for ax in axes] == ["column 2", "column 7"]
    for ax, column in zip(axes, (2, 7), strict=True):
        logs = {name: np.log(norms[:, column]) for name, norms in NORMS.items()}
        ends = min(map(np.min, logs.values())), max(map(np.max, logs.values()))
        for name, drawn in zip(NORMS, ax.get_lines(), strict=True):
            counts, edges = np.histogram(logs[name], 25, ends)
            assert drawn.get_label() == name
            np.testing.assert_allclose(np.log(drawn.get_xdata()), (edges[1:] + edges[:-1]) / 2)
            np.testing.assert_allclose(drawn.get_ydata(), counts / len(NORMS[name]))
            assert drawn.get_ydata().sum() == pytest.approx(1)
        (filled,) = ax.collections
        outline = {tuple(point) for point in filled.get_paths()[0].vertices}
        assert outline >= {tuple(point) for point in ax.get_lines()[0].get_xydata()}
        assert ax.get_xscale() == "log"
    (legend_of,) = axes[0].figure.legends
    assert [text.get_text() for text in legend_of.get_texts()] == list(NORMS)


def test_distributions_of_averages_of_classes():
    """As figures 3(a) and 3(b): a point of a set is a class."""
    labels = np.arange(150) % 5
    (ax,) = distributions(NORMS, labels_by_set={"in": labels}, columns=1)
    means = [NORMS["in"][labels == c, 1].mean() for c in range(5)]
    plain = {**NORMS, "in": np.repeat(np.array(means)[:, None], 8, axis=1)}
    (expected,) = distributions(plain, columns=1)
    for line, other in zip(ax.get_lines(), expected.get_lines(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), other.get_xydata())
    for bad in ([], {"other": labels}, {"in": labels[:3]}):
        with pytest.raises(ValueError, match="Argument `labels_by_set` must"):
            distributions(NORMS, labels_by_set=bad)


def test_sets_are_told_apart_in_grey():
    (ax,) = distributions(dict(enumerate([NORMS["in"]] * 6)), columns=0)
    lines = ax.get_lines()
    assert len({line.get_marker() for line in lines}) == 6
    assert len({line.get_color() for line in lines}) == 6


def test_columns_are_chosen_by_name_or_spread_over_the_model():
    names = [f"layer_{i}/kernel" for i in range(8)]
    axes = distributions(NORMS, names, columns="layer_3/kernel")
    assert [ax.get_title() for ax in axes] == ["layer_3/kernel"]
    titles_of = [ax.get_title() for ax in distributions(NORMS, names)]
    assert titles_of == [names[i] for i in (0, 1, 3, 4, 6, 7)]
    few = {name: norms[:, :4] for name, norms in NORMS.items()}
    assert len(distributions(few)) == 4


def test_norms_of_zero_and_equal_norms():
    norms = np.array([[0.0, 0.0, 3.0], [2.0, 0.0, 3.0], [8.0, 0.0, 3.0]])
    for column, ends in ((0, (2, 8)), (1, (0.5, 2)), (2, (1.5, 6))):
        (ax,) = distributions({"in": norms}, columns=column)
        (line,) = ax.get_lines()
        edges = np.geomspace(*ends, 26)
        np.testing.assert_allclose(line.get_xdata(), np.sqrt(edges[1:] * edges[:-1]))
        assert line.get_ydata().sum() == pytest.approx(1)
        ax.figure.canvas.draw()


@pytest.mark.parametrize("factor", [3, 30, 3000])
def test_labels_of_a_log_axis_do_not_lie_one_over_the_other(factor):
    """Four panels side by side, of less than a decade and of more."""
    norms = {"in": np.geomspace(20, 20 * factor, 40).reshape(10, 4) ** 0.5}
    figure = Figure(figsize=(9, 3))
    axes = plots.gradient_distributions(norms, figure=figure).axes
    figure.canvas.draw()
    for ax in axes:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels(which="both") if t.get_text()]
        low, high = ax.get_window_extent().intervalx
        seen = sorted(box.intervalx.tolist() for box in boxes if low <= box.x0 and box.x1 <= high)
        assert seen
        assert all(left[1] < right[0] for left, right in itertools.pairwise(seen))


@pytest.mark.slow
def test_distributions_draw_on_a_figure_of_their_own():
    figure = plots.gradient_distributions(NORMS)
    assert figure.number in pyplot.get_fignums()
    figure.canvas.draw()


def test_distributions_refuse_what_they_cannot_draw():
    nan = NORMS["in"] * np.nan
    sets = (None, {}, {"in": NORMS["in"][0]}, {"in": -NORMS["in"]}, {"in": nan}, {"in": nan[:0]})
    for bad in (*sets, {**NORMS, "other": NORMS["in"][:, :3]}):
        with pytest.raises(ValueError, match=r"`features_by_set` must .*Received: features_by_set"):
            plots.gradient_distributions(bad)
    bad = {"names": (["a"],), "columns": ([], [8], ["a"], -9, [1.5]), "figure": (3,)}
    for argument, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=f"`{argument}` must .*Received: {argument}="):
                plots.gradient_distributions(NORMS, **{argument: value})
    assert pyplot.get_fignums() == []


# --- Without matplotlib ------------------------------------------------------------------------


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    for name in [name for name in sys.modules if name.startswith("tfuq.plots")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "tfuq\[plots\]"'):
        importlib.import_module("tfuq.plots")
