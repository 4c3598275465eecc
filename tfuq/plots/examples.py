"""Pictures of single examples, accepted and rejected, and of their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from tfuq._arguments import ArrayLike, check_fraction, check_integer, shown, to_float64
from tfuq._files.tables import names_of
from tfuq._predictions.examples import from_arrays
from tfuq._predictions.masks import stretched
from tfuq.plots._axes import COLOURS, GREY, RED, Axes, Figure, SubFigure, axes_of, figure_of

BORDER = 4  # points
N_BINS = 10


def accept_reject_grid(
    images: ArrayLike,
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    threshold: float = 0.5,
    accepted: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    count: int = 6,
    from_logits: bool = False,
    figure: Figure | SubFigure | None = None,
) -> Any:
    """Draws examples just above and just below the line between accepted and rejected.

    The upper row are the accepted of the lowest confidence, nearest to the line first; the lower
    row the rejected of the highest. A solid blue frame is a right answer, a dashed red one a wrong
    answer.

    Args:
        images: `(n, height, width)`, or with a last axis of 1 (grey) or 3 (RGB); any numbers, each
            image is stretched from its least to its largest.
        y_true: Labels `(n,)`, or one-hot.
        y_pred: Predicted probabilities (or logits) `(n, classes)`, or binary `(n,)`.
        threshold: Confidence in [0, 1] from which an answer is accepted.
        accepted: Booleans `(n,)` instead of the threshold, as `RejectionRule.accept` gives them.
        names: Names of the classes, or None for their numbers.
        count: Images in each row, at most.
        from_logits: Whether `y_pred` holds logits.
        figure: Figure or SubFigure to draw on, or None for a new one.

    Returns:
        The figure; a row without any image says so.

    Raises:
        ValueError: If arrays do not fit together, are empty, or hold no labels or predictions.

    Example:

    >>> import numpy as np, tfuq
    >>> images, probs = np.zeros((3, 8, 8)), [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]
    >>> figure = tfuq.plots.accept_reject_grid(images, [0, 0, 1], probs, threshold=0.7, count=2)
    >>> [ax.get_title() for ax in figure.axes if ax.get_title()]
    ['1, 0.80', '0, 0.90', '1 (true: 0), 0.60']

    See also: `tfuq.plots.rejection_curve`, `tfuq.selective.RejectionRule`.
    """
    check_fraction("threshold", threshold)
    check_integer("count", count, 1)
    examples = from_arrays(y_true, y_pred, from_logits=from_logits)
    confidence, right = (np.asarray(part) for part in examples.top_label())
    images = stretched(_checked_images(images, len(confidence)), np.shape(images)[:3])
    accepted = confidence >= threshold if accepted is None else _flags(accepted, len(confidence))
    names = names_of(names, examples.scores.shape[-1])
    predicted = np.asarray(examples.scores).argmax(-1)
    order = np.argsort(confidence, kind="stable")
    rows = {"accepted": order[accepted[order]], "rejected": order[~accepted[order]][::-1]}
    figure = figure_of(figure, 2)
    axes = figure.subplots(2, count, squeeze=False)
    for row, (title, chosen) in zip(axes, rows.items(), strict=True):
        for ax in row:
            ax.set(xticks=[], yticks=[], frame_on=False)
        row[0].set_ylabel(f"{title}\n{len(chosen)} of {len(confidence)}")
        for ax, i in zip(row, chosen, strict=False):
            ax.imshow(images[i], cmap="gray", vmin=0, vmax=1)
            true = "" if right[i] else f" (true: {names[int(examples.labels[i])]})"
            ax.set_title(f"{names[predicted[i]]}{true}, {confidence[i]:.2f}", fontsize="small")
            _frame(ax, right[i])
        if not len(chosen):
            row[0].text(0.5, 0.5, "none", ha="center", transform=row[0].transAxes)
    return figure


def uncertainty_against_error(
    uncertainty: ArrayLike,
    errors: ArrayLike,
    *,
    n_bins: int = N_BINS,
    xlabel: str = "uncertainty",
    ax: Axes | None = None,
) -> Axes:
    """Draws how often answers are wrong at each level of an uncertainty.

    A useful uncertainty climbs. Bins hold equally many examples; the bar of each is the Wilson
    interval of its error rate at 95 %, and the line across is the error rate of all.

    Args:
        uncertainty: Numbers `(n,)` that grow with uncertainty, such as entropies.
        errors: Booleans `(n,)`, whether the answer is wrong.
        n_bins: Number of bins; fewer where many scores are equal.
        xlabel: Name of the uncertainty, with its unit.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: If arrays are empty, do not fit together, or hold NaN.

    Example:

    >>> import tfuq
    >>> ax = tfuq.plots.uncertainty_against_error([0.1, 0.2, 0.6, 0.7], [0, 0, 1, 1], n_bins=2)
    >>> ax.lines[0].get_ydata()
    array([0., 1.])

    See also: `tfuq.plots.confidence_histogram`, `tfuq.selective.aurc`.
    """
    values = to_float64("uncertainty", uncertainty).ravel()
    wrong = to_float64("errors", errors).ravel()
    check_integer("n_bins", n_bins, 1)
    if values.size == 0 or values.shape != wrong.shape or np.any(np.isnan(values)):
        raise ValueError(
            "Argument `uncertainty` must hold a number, no NaN, for each of `errors`. "
            f"Received: {values.size} uncertainties ({np.isnan(values).sum()} NaN) and "
            f"{wrong.size} errors"
        )
    if not np.isin(wrong, (0, 1)).all():
        raise ValueError(
            f"Argument `errors` must hold True or False. Received: errors={shown(errors)}"
        )
    bins = equal_bins(values, n_bins)
    middle = np.array([np.median(values[rows]) for rows in bins])
    rates = np.array([wrong[rows].mean() for rows in bins])
    ends = np.array([_wilson(wrong[rows]) for rows in bins]).T
    ax = axes_of(ax)
    bars = np.maximum(np.abs(ends - rates), 0)
    style = {"fmt": "o-", "color": COLOURS[0], "capsize": 3}
    ax.errorbar(middle, rates, yerr=bars, label="error rate, 95 % interval", **style)
    label = f"all examples: {wrong.mean():.3f}"
    ax.axhline(wrong.mean(), color=GREY, linestyle="--", label=label)
    ax.set(xlabel=xlabel, ylabel="error rate (fraction wrong)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def equal_bins(values, n_bins):
    """Rows of each bin, from the lowest values up; equal values share a bin."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1], method="higher"))
    index = np.searchsorted(edges, values, side="right")
    return [np.flatnonzero(index == i) for i in np.unique(index)]


def _wilson(wrong):
    interval = binomtest(int(wrong.sum()), len(wrong)).proportion_ci(method="wilson")
    return interval.low, interval.high


def _frame(ax, right):
    colour, line = (COLOURS[0], "-") if right else (RED, "--")
    ax.set_frame_on(True)
    for spine in ax.spines.values():
        spine.set(color=colour, linestyle=line, linewidth=BORDER)


def _checked_images(images, count):
    images = np.asarray(images)
    channels = images.shape[3:]
    if (
        images.ndim not in (3, 4)
        or (channels and channels[0] not in (1, 3))
        or len(images) != count
    ):
        raise ValueError(
            f"Argument `images` must have shape ({count}, height, width[, 1 or 3]). "
            f"Received: images of shape {images.shape}"
        )
    return images


def _flags(accepted, count):
    accepted = np.asarray(accepted)
    if accepted.dtype != bool or accepted.shape != (count,):
        raise ValueError(
            f"Argument `accepted` must hold {count} booleans. "
            f"Received: {accepted.dtype} of shape {accepted.shape}"
        )
    return accepted
