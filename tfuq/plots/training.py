"""Pictures of learning rates."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfuq._arguments import shown, to_float64
from tfuq.plots._axes import COLOURS, GREY, PALE_BLUE, RED, Axes, axes_of


def lr_range_test(result: Any, ax: Axes | None = None) -> Axes:
    """Draws the losses of a learning rate range test over the rate, and what it suggests.

    Points are the losses of single steps, the line is their moving average. The view ends at twice
    the height from which the average falls: where a test diverges, they leave it.

    Args:
        result: What `tfuq.lr_range_test` or `tfuq.callbacks.LRRangeTest` found.
        ax: Axes to draw on, or `None` for a new figure.

    Returns:
        The Axes; the rate is on a log scale. Marked are the lowest average, the bracket around it,
        the suggestion and, if there is one, the steepest descent.

    Raises:
        ValueError: If `result` is not that of a range test, or `ax` no Axes.

    Example:

    >>> import numpy as np, tfuq
    >>> from tfuq.callbacks.lr_sweep import read_sweep
    >>> rates = np.geomspace(1e-4, 1, 9)
    >>> found = read_sweep(rates, [3, 3, 2.9, 2.5, 2, 1.6, 1.4, 1.5, 4], 0.5, diverged=True)
    >>> ax = tfuq.plots.lr_range_test(found)
    >>> ax.get_xlabel(), ax.get_xscale()
    ('learning rate', 'log')

    See also: `tfuq.lr_range_test`, `tfuq.callbacks.LRRangeTest`.
    """
    rates, losses, smoothed = _sweep_of(result)
    ax = axes_of(ax)
    ax.axvspan(*result.bracket, color=PALE_BLUE, alpha=0.3, linewidth=0, label="bracket")
    ax.plot(rates, losses, ".", color=GREY, alpha=0.6, label="loss of each step")
    ax.plot(rates, smoothed, "-", color=COLOURS[0], linewidth=2, label="moving average")
    lowest = smoothed.min()
    style = {"markersize": 9, "markeredgecolor": "white", "linestyle": "none"}
    label = f"minimum {result.minimum:.2g}"
    ax.plot(result.minimum, lowest, "o", color=COLOURS[0], label=label, **style)
    if result.steepest is not None:
        height = smoothed[np.searchsorted(rates, result.steepest)]
        label = f"steepest {result.steepest:.2g}"
        ax.plot(result.steepest, height, "^", color=COLOURS[2], label=label, **style)
    label = f"suggestion {result.suggestion:.2g}"
    ax.axvline(result.suggestion, color=RED, linestyle="--", linewidth=2, label=label)
    ax.set(xlabel="learning rate", ylabel="loss", xscale="log")
    ax.set_ylim(*_view(losses, smoothed))
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def _sweep_of(result):
    """Rates, losses and smoothed losses of a range test's result."""
    names = ("learning_rates", "losses", "smoothed_losses", "minimum", "bracket", "suggestion")
    if not all(hasattr(result, name) for name in (*names, "steepest")):
        raise ValueError(
            "Argument `result` must be the result of a learning rate range test. "
            f"Received: result={shown(result)}"
        )
    return (np.asarray(getattr(result, name)) for name in names[:3])


def _view(losses, smoothed):
    """Limits that show the fall, not how far the loss grew after it."""
    lowest = min(losses.min(), smoothed.min())
    span = smoothed[: smoothed.argmin() + 1].max() - lowest
    highest = min(losses.max(), lowest + 2 * span) if span > 0 else losses.max()
    margin = 0.05 * max(highest - lowest, 1e-12)
    return lowest - margin, highest + margin


def learning_rate_curve(rates: Any, ax: Axes | None = None) -> Axes:
    """Draws the learning rate over the steps of a training.

    Args:
        rates: The callback `tfuq.callbacks.SGDR` after training, whose cycles' ends are marked
            then; or the rates themselves, one per step.
        ax: Axes to draw on, or `None` for a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: If there are no rates, or `ax` is no Axes.

    Example:

    >>> import numpy as np, tfuq
    >>> ax = tfuq.plots.learning_rate_curve(np.linspace(0.1, 0, 20))
    >>> ax.get_xlabel()
    'step'

    See also: `tfuq.callbacks.SGDR`.
    """
    rates, steps, ends = _curve_of(rates)
    if rates.ndim != 1 or not rates.size or not np.isfinite(rates).all():
        raise ValueError(
            "Argument `rates` must hold at least one rate, finite numbers, or be SGDR after "
            f"training. Received: rates={shown(rates)}"
        )
    ax = axes_of(ax)
    ax.plot(steps, rates, "-", color=COLOURS[0], linewidth=2, label="learning rate")
    for number, end in enumerate(ends):
        label = None if number else "end of a cycle"
        ax.axvline(end, color=RED, linestyle=":", linewidth=1.5, label=label)
    ax.set(xlabel="step", ylabel="learning rate")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    if len(ends):
        ax.legend(loc="upper right", fontsize="small")
    return ax


def _curve_of(rates):
    """Rates, the steps they belong to, and the steps at which a cycle is over."""
    if not hasattr(rates, "completed_cycles"):
        rates = to_float64("rates", rates)
        return rates, np.arange(rates.size), ()
    schedule, steps = rates, rates.steps
    if not len(steps):
        return np.zeros(0), steps, ()
    counts = np.append(steps, steps[-1] + 1)
    ended = np.diff(schedule.completed_cycles(counts)) > 0
    return schedule.learning_rates, steps, counts[1:][ended]
