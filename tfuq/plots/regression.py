"""Pictures of predicted numbers: intervals over an input and against the truth, calibration, width.

All take what `tfuq.predictive.predict_uncertainty` gave of a regression. Those of intervals draw
others, such as those of a `tfuq.selective.ConformalRegressor`, where they are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from tfuq import metrics
from tfuq._arguments import ArrayLike, check_flags, check_integer
from tfuq._math.intervals import is_inside
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq.plots._axes import (
    COLOURS,
    GREY,
    MARKERS,
    PALE_BLUE,
    RED,
    Axes,
    add_legend_above,
    axes_of,
    line_style,
)
from tfuq.plots._numbers import checked_unit, input_of, read_numbers, refuse_classes
from tfuq.plots.examples import N_BINS, equal_bins

SURE = 0.95  # of bands of chance and of bars
MOST_DRAWN = 1000  # points; all of them count


def intervals_over(
    x: ArrayLike,
    y_pred: ArrayLike,
    y_true: ArrayLike | None = None,
    *,
    feature: int | None = None,
    level: float | None = None,
    intervals: tuple[ArrayLike, ArrayLike] | None = None,
    unit: int | None = None,
    bars: bool | None = None,
    xlabel: str = "input",
    quantity: str = "number",
    ax: Axes | None = None,
) -> Axes:
    """Draws predicted numbers and their intervals over one input.

    A line and a band where there is one prediction for each x; points and bars where several
    inputs differ, so that the prediction is no function of this one. Where the network knows its
    own doubt (several draws, or a head such as `VBLLRegression`) a darker band is that part
    alone: the interval times epistemic_std / std.

    Args:
        x: The input `(n,)` or `(n, 1)`, numbers or dates; or all inputs `(n, features)`, with
            `feature`.
        y_pred: The result of `predict_uncertainty`, in the order of `x`, which need not be sorted.
            Or means `(n, units)`, `(n,)` for one, with `intervals`.
        y_true: Labels `(n, units)`, `(n,)` for one, or None. The legend says how many are inside.
        feature: Which column of `x`.
        level: Probability of the central intervals, by default 0.9.
        intervals: A pair `(lower, upper)` to draw instead, as `ConformalRegressor.interval` gives;
            without `level`. Infinite ends go to the edge of the picture and are counted.
        unit: Which of the numbers, if a network predicts several.
        bars: Whether to draw bars; by default with `feature`, or if an x comes twice.
        xlabel: Name of the input, with its unit.
        quantity: Name of the number, with its unit.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: If arrays are empty, do not fit together or hold NaN; if the predictions are
            those of a classifier, or there are several numbers or columns and none is named.

    Example:

    >>> import numpy as np, tfuq
    >>> params = np.stack([np.arange(5.0), np.ones(5)], axis=-1)
    >>> found = tfuq.predictive.RegressionUncertainty(params[None], "normal")
    >>> ax = tfuq.plots.intervals_over(np.arange(5), found, [0, 1, 2, 3, 9], xlabel="day")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['90 % interval', 'predicted', 'true, inside: 4 of 5', 'true, outside: 1']

    See also: `tfuq.plots.predicted_against_true`, `tfuq.predictive.RegressionUncertainty`.
    """
    if bars is not None:
        check_flags(bars=bars)
    found = read_numbers(y_pred, level, intervals, unit)
    x = input_of(x, feature, found.shape)
    true = None if y_true is None else found.of("y_true", y_true)
    if bars is None:
        bars = feature is not None or len(np.unique(x)) < len(x)
    doubt = None if bars or intervals is not None else _own_doubt(y_pred, found.unit)
    order = np.argsort(x, kind="stable")
    x, mean, lower, upper = x[order], found.mean[order], found.lower[order], found.upper[order]
    ax = axes_of(ax)
    seen = np.concatenate([mean] if true is None else [mean, true])
    lower, upper = _within_picture(ax, lower, upper, seen)
    if bars:
        ax.vlines(x, lower, upper, color=PALE_BLUE, label=found.name, linewidth=1.5, zorder=1)
        ax.plot(x, mean, "o", color=COLOURS[0], label="predicted", markersize=3)
    else:
        style = {"color": PALE_BLUE, "linewidth": 0}
        ax.fill_between(x, lower, upper, alpha=0.5, label=found.name, **style)
        if doubt is not None:
            ends = (mean + doubt[order] * (end - mean) for end in (lower, upper))
            label = "its epistemic part"
            ax.fill_between(x, *ends, color=COLOURS[0], alpha=0.4, linewidth=0, label=label)
        ax.plot(x, mean, color=COLOURS[0], label="predicted")
    if true is not None:
        _draw_true(ax, x, true[order], is_inside(found.lower, found.upper, true)[order])
    ax.set(xlabel=xlabel, ylabel=quantity)
    ax.grid(alpha=0.3)
    add_legend_above(ax)
    return ax


def _own_doubt(y_pred, unit):
    """Share of the standard deviation that is epistemic, or None where the network knows none."""
    part, std = (each[..., unit].ravel() for each in (y_pred.epistemic_std, y_pred.std))
    share = np.divide(part, std, out=np.zeros_like(std), where=std > 0)
    return share if np.any(share > 0) else None


def _draw_true(ax, x, true, inside):
    """Labels, those inside their interval as dots, the others as red crosses."""
    label = f"true, inside: {inside.sum():,} of {len(true):,}"
    style = {"color": "black", "label": label, "markersize": 3, "linestyle": "none"}
    ax.plot(x[inside], true[inside], ".", **style)
    label = f"true, outside: {(~inside).sum():,}"
    style = {"color": RED, "label": label, "markersize": 5, "linestyle": "none"}
    ax.plot(x[~inside], true[~inside], "x", **style)


def predicted_against_true(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    level: float | None = None,
    intervals: tuple[ArrayLike, ArrayLike] | None = None,
    unit: int | None = None,
    quantity: str = "number",
    ax: Axes | None = None,
) -> Axes:
    """Draws predicted numbers with their intervals over the true ones.

    An interval that crosses the diagonal holds the true number; the others are red, with square
    markers. The legend counts both. Of more than 1,000 numbers 1,000 are drawn, chosen at random,
    and the legend says so; all are counted.

    Args:
        y_true: Labels `(n, ..., units)`, or without the last axis for one unit.
        y_pred: The result of `predict_uncertainty`; or means of the shape of the labels, with
            `intervals`.
        level, intervals, unit, quantity: As in `intervals_over`.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes; both axes have the unit of the labels.

    Raises:
        ValueError: As `intervals_over`.

    Example:

    >>> import numpy as np, tfuq
    >>> params = np.stack([np.arange(5.0), np.ones(5)], axis=-1)
    >>> found = tfuq.predictive.RegressionUncertainty(params[None], "normal")
    >>> ax = tfuq.plots.predicted_against_true([0, 1, 2, 3, 9], found, quantity="weight (kg)")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('true weight (kg)', 'predicted weight (kg)')

    See also: `tfuq.plots.intervals_over`, `tfuq.plots.error_against_width`.
    """
    found = read_numbers(y_pred, level, intervals, unit)
    true = found.of("y_true", y_true)
    inside = is_inside(found.lower, found.upper, true)
    drawn = _some_of(len(true))
    ax = axes_of(ax)
    mean, lower, upper = (part[drawn] for part in found[:3])
    lower, upper = _within_picture(ax, lower, upper, np.concatenate([found.mean, true]))
    ends = min(true.min(), found.mean.min()), max(true.max(), found.mean.max())
    ax.plot(ends, ends, "--", color=GREY, label="predicted = true", zorder=3)
    names = f"{found.name} holds it: {inside.sum():,} of {len(true):,}", f"not: {(~inside).sum():,}"
    styles = (COLOURS[0], PALE_BLUE, MARKERS[0]), (RED, RED, MARKERS[1])
    for rows, name, (colour, pale, marker) in zip((inside, ~inside), names, styles, strict=True):
        rows = rows[drawn]
        at = true[drawn][rows]
        ax.vlines(at, lower[rows], upper[rows], color=pale, alpha=0.6, linewidth=1, zorder=1)
        style = {"color": colour, "marker": marker, "markersize": 3, "linestyle": "none"}
        ax.plot(at, mean[rows], label=name, zorder=2, **style)
    ax.set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}")
    ax.grid(alpha=0.3)
    add_legend_above(ax, title=_some_drawn(drawn, true), title_fontsize="small")
    return ax


def quantile_calibration(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    levels: Sequence[float] | None = None,
    unit: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the share of the labels that are below the predicted quantiles, over their level.

    A calibrated network follows the diagonal. A curve that is flat in the middle says that the
    intervals are too narrow, a steep one that they are too wide; one above the diagonal that the
    numbers are too large. The band is where a calibrated network lies with 95 %, each level
    by itself (binomial). It counts examples: pixels or steps of one depend on each other.

    Args:
        y_true: Labels `(n, ..., units)`, or without the last axis for one unit.
        y_pred: The result of `predict_uncertainty`, or a dict from a network's name to its.
        levels: Probabilities in (0, 1) that increase; by default those of learned quantiles, else
            0.05, 0.1, ..., 0.95.
        unit: Which of the numbers, if a network predicts several.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes, of fractions; the legend gives the quantile calibration error (QCE).

    Raises:
        ValueError: As `tfuq.metrics.quantile_calibration_curve`; if there are no predictions, or
            several numbers and none is named.

    Example:

    >>> import numpy as np, tfuq
    >>> params = np.zeros((1, 99, 2)) + [0.0, 1.0]
    >>> found = tfuq.predictive.RegressionUncertainty(params, "normal")
    >>> ax = tfuq.plots.quantile_calibration(np.linspace(-2, 2, 99), found)
    >>> ax.get_xlabel()
    'level of the quantile'

    See also: `tfuq.metrics.quantile_calibration_curve`.
    """
    models = y_pred if isinstance(y_pred, dict) else {None: y_pred}
    if not models:
        raise ValueError("Argument `y_pred` must hold at least one network. Received: y_pred={}")
    curves = {name: _curve(y_true, found, levels, unit) for name, found in models.items()}
    count = len(next(iter(models.values())))
    ax = axes_of(ax)
    grid = np.linspace(0, 1, 201)[1:-1]
    band = [ends / count for ends in stats.binom.interval(SURE, count, grid)]
    label = f"chance, {count:,} labels ({100 * SURE:g} %)"
    ax.fill_between(grid, *band, color=GREY, alpha=0.2, linewidth=0, label=label)
    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    for i, (name, (curve, error)) in enumerate(curves.items()):
        name = "labels" if name is None else name
        style = {"markersize": 4, **line_style(i)}
        ax.plot(curve["level"], curve["share"], label=f"{name} (QCE {error:.3f})", **style)
    ax.set(xlabel="level of the quantile", xlim=(0, 1), ylim=(0, 1))
    ax.set_ylabel("labels below it (fraction)")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def _curve(y_true, found, levels, unit):
    """The curve of one of the numbers, and its error."""
    if isinstance(found, RegressionUncertainty):  # else the metric says what it is not
        unit = checked_unit(unit, found.units)
        only = np.broadcast_to(np.arange(found.units) == unit, found.shape)
        options = {"sample_weight": only.astype("float64")}
    else:
        refuse_classes(found)
        options = {}
    curve = metrics.quantile_calibration_curve(y_true, found, levels, **options)
    return curve, np.mean(np.abs(curve["share"] - curve["level"]))


def error_against_width(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    level: float | None = None,
    intervals: tuple[ArrayLike, ArrayLike] | None = None,
    n_bins: int = N_BINS,
    unit: int | None = None,
    quantity: str = "number",
    ax: Axes | None = None,
) -> Axes:
    """Draws how far off predictions are over the width of their intervals.

    A useful width has a mean error that climbs with it. Bins hold equally many numbers; the bar of
    each is the interval of its mean at 95 % (Student's t), the dashed line is half the width: what
    is above it is outside an interval that is symmetric. Of more than 1,000 numbers 1,000 are
    drawn as points; all are in the bins.

    Args:
        y_true: Labels `(n, ..., units)`, or without the last axis for one unit.
        y_pred: The result of `predict_uncertainty`; or means of the shape of the labels, with
            `intervals`.
        n_bins: Number of bins; fewer where many widths are equal.
        level, intervals, unit, quantity: As in `intervals_over`.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes, in the unit of the labels; the legend gives the area under the sparsification
        error (AUSE), 0 if the widths rank the errors perfectly.

    Raises:
        ValueError: As `intervals_over`; if a width is infinite, or all are the same, as those of
            `ConformalRegressor` with method="split".

    Example:

    >>> import numpy as np, tfuq
    >>> params = np.stack([np.zeros(6), np.arange(1.0, 7.0)], axis=-1)
    >>> found = tfuq.predictive.RegressionUncertainty(params[None], "normal")
    >>> ax = tfuq.plots.error_against_width([0.5, 1, 1, 2, 4, 7], found, n_bins=2)
    >>> ax.get_xlabel()
    'width of the 90 % interval'

    See also: `tfuq.plots.intervals_over`, `tfuq.metrics.ause`.
    """
    check_integer("n_bins", n_bins, 1)
    found = read_numbers(y_pred, level, intervals, unit)
    true = found.of("y_true", y_true)
    width, error = _checked_widths(found), np.abs(true - found.mean)
    bins = equal_bins(width, n_bins)
    middle = np.array([np.median(width[rows]) for rows in bins])
    means = np.array([error[rows].mean() for rows in bins])
    bars = np.array([_half_interval(error[rows]) for rows in bins])
    ause = metrics.ause(true, found.mean, width)
    drawn = _some_of(len(true))
    ax = axes_of(ax)
    some = _some_drawn(drawn, true)
    style = {"color": PALE_BLUE, "markersize": 4, "zorder": 1}
    ax.plot(width[drawn], error[drawn], ".", label=some or "each number", **style)
    ends = np.array([width.min(), width.max()])
    ax.plot(ends, ends / 2, "--", color=GREY, label="half the width")
    style = {"fmt": "o-", "color": COLOURS[0], "capsize": 3, "markersize": 4, "zorder": 3}
    ax.errorbar(middle, means, yerr=bars, label=f"mean of a bin (AUSE {ause:.2f})", **style)
    ax.set(xlabel=f"width of the {found.name}", ylabel=f"absolute error of the {quantity}")
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", loc="upper left")  # in the room above
    return ax


def _checked_widths(found):
    width = found.upper - found.lower
    if not np.isfinite(width).all():
        raise ValueError(
            "Argument `intervals` must have finite widths: leave out what is unknown. "
            f"Received: {np.count_nonzero(~np.isfinite(width))} that are infinite"
        )
    if len(width) > 1 and np.ptp(width) <= 1e-9 * width.max():
        raise ValueError(
            "Argument `intervals` must have widths that differ; those of one width for all, such "
            f"as of ConformalRegressor's 'split', rank no errors. Received: all {width.max():.4g}"
        )
    return width


def _half_interval(error):
    """Half the interval of a mean, NaN of one number."""
    count = len(error)
    if count < 2:
        return np.nan
    return stats.t.ppf((1 + SURE) / 2, count - 1) * error.std(ddof=1) / np.sqrt(count)


# --- Drawing ----------------------------------------------------------------------------------


def _within_picture(ax, lower, upper, seen):
    """Ends of intervals, those that are infinite at the edge of the picture."""
    ends = np.concatenate([lower, upper])
    if np.isfinite(ends).all():
        return lower, upper
    known = np.concatenate([ends[np.isfinite(ends)], seen])
    space = 0.05 * (np.ptp(known) or 1.0)
    edges = known.min() - space, known.max() + space
    ax.set_ylim(edges)
    above = edges[1] + np.ptp(edges)  # the legend's room is at most as high
    return np.clip(lower, *edges), np.clip(upper, edges[0], above)


def _some_of(count):
    """Which of so many numbers are drawn, indices."""
    if count <= MOST_DRAWN:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST_DRAWN, replace=False))


def _some_drawn(drawn, numbers):
    """What a legend says where not all are drawn."""
    return None if len(drawn) == len(numbers) else f"{len(drawn):,} of {len(numbers):,} drawn"
