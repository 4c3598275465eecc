"""Pictures of a monitor: the wealth of its tests while cases come."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfuq._arguments import ArrayLike, shown
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.plots._axes import GREY, Axes, axes_of, line_style
from tfuq.selective import Monitor
from tfuq.selective.monitor import SHARES

MOST_POINTS = 2000  # cases that are drawn
LEAST = 1e-3  # wealth; less says no more


def monitor_process(
    monitor: Monitor,
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    score: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the wealth of each test of a monitor while cases come, and where it raises an alarm.

    A test's wealth stays about 1 or falls while nothing has changed; its alarm is raised where it
    reaches the dashed line of its colour, 1 / (its share of alpha). What is drawn goes on from
    where the monitor stands, which itself is left as it is.

    Args:
        monitor: A `tfuq.selective.Monitor`, such as `rule.monitor()`.
        probs, labels, groups, score: Cases in the order in which they came, as for its `update`.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes, the wealth in a log scale; the legend says at which case an alarm was raised.

    Raises:
        ValueError: If `monitor` is none, or as its `update`.

    Example:

    >>> import numpy as np, tfuq
    >>> rng = np.random.default_rng(0)
    >>> probs = rng.uniform(0.5, 1, size=1000)
    >>> labels = (rng.random(1000) < probs).astype(int)
    >>> rule = tfuq.selective.RejectionRule.fit(probs, labels, target_risk=0.25)
    >>> ax = tfuq.plots.monitor_process(rule.monitor(), probs[:200], rng.random(200) < 0.3)
    >>> ax.get_xlabel(), ax.get_yscale()
    ('cases', 'log')

    See also: `tfuq.selective.Monitor`.
    """
    if not isinstance(monitor, Monitor):
        raise ValueError(
            "Argument `monitor` must be a Monitor, from rule.monitor(). Received: "
            f"monitor={shown(monitor)}"
        )
    copy = Monitor.from_json(monitor.to_json())
    wealth = copy.follow(probs, labels, groups, score=score)
    cases = copy.fitted_to["cases"] - len(wealth["risk"]) + 1 + np.arange(len(wealth["risk"]))
    ax = axes_of(ax)
    for i, (name, values) in enumerate(wealth.items()):
        _draw_test(ax, cases, values, name, 1 / (SHARES[name] * copy.alpha), line_style(i))
    ax.axhline(1, color=GREY, linewidth=1, linestyle=(0, (1, 3)), label="_start")
    ax.set(xlabel="cases", ylabel="wealth (evidence against the promise)", yscale="log")
    ax.grid(alpha=0.3)
    note = {"title": "thin dashed: an alarm from there on", "title_fontsize": "small"}
    ax.legend(fontsize="small", loc="upper left", **note)
    return ax


def _draw_test(ax, cases, values, name, limit, style):
    reached = np.flatnonzero(values >= limit)
    said = f"alarm at case {cases[reached[0]]:,}" if reached.size else "no alarm"
    kept = np.unique(np.linspace(0, len(cases) - 1, min(len(cases), MOST_POINTS)).astype(int))
    style = {key: style[key] for key in ("color", "linestyle")}
    ax.plot(cases[kept], np.maximum(values[kept], LEAST), label=f"{name}: {said}", **style)
    ax.axhline(limit, color=style["color"], linewidth=1, linestyle="--", label="_limit")
    if reached.size:
        ax.plot(cases[reached[0]], limit, "o", color=style["color"], label="_alarm")
