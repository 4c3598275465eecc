"""Pictures of rejection by a threshold of the confidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfuq._arguments import ArrayLike, check_fraction
from tfuq.metrics import rejection_rate, rejection_table, reliability_curve
from tfuq.plots._axes import COLOURS, MARKERS, PALE_BLUE, RED, Axes, add_legend_above, axes_of


def rejection_curve(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    thresholds: Sequence[float] | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws accuracy on accepted and coverage against the threshold, for one model or several.

    Where nothing is accepted any more there is no accuracy, and its line ends.

    Args:
        y_true: Labels, as `tfuq.metrics.rejection_table` takes them.
        y_pred: Predicted probabilities (or logits), or a dict from a model's name to its.
        thresholds: Confidences in [0, 1]; by default 0, 0.01, ... 1.
        from_logits: Whether `y_pred` holds logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights of the examples, or `None`.
        ax: Axes to draw on, or `None` for a new figure.

    Returns:
        The Axes. Both curves are fractions in [0, 1].

    Raises:
        ValueError: If `rejection_table` refuses the data, or there is no model to draw.

    Example:

    >>> import numpy as np, tfuq
    >>> probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    >>> ax = tfuq.plots.rejection_curve([0, 1, 1], {"Dense": probs})
    >>> ax.get_xlabel()
    'confidence threshold'

    See also: `tfuq.metrics.rejection_table`, `tfuq.plots.risk_coverage`.
    """
    models = y_pred if isinstance(y_pred, dict) else {None: y_pred}
    if not models:
        raise ValueError("Argument `y_pred` must hold at least one model. Received: y_pred={}")
    default = np.linspace(0, 1, 101)
    thresholds = default if thresholds is None else np.sort(np.atleast_1d(thresholds))
    options = {"from_logits": from_logits, "multi_label": multi_label}
    options["sample_weight"] = sample_weight
    tables = {k: rejection_table(y_true, v, thresholds, **options) for k, v in models.items()}
    ax = axes_of(ax)
    for i, (name, table) in enumerate(tables.items()):
        _draw_curves(ax, thresholds, table, "" if name is None else f"{name}: ", i)
    ax.set(xlabel="confidence threshold", ylabel="fraction", ylim=(-0.02, 1.03))
    ax.set_yticks(np.linspace(0, 1, 6))  # none beside the legend
    ax.grid(alpha=0.3)
    add_legend_above(ax)
    return ax


def _draw_curves(ax, thresholds, table, prefix, i):
    style = {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markevery": max(1, len(thresholds) // 10),
    }
    ax.plot(thresholds, table["accuracy"], "-", label=f"{prefix}accuracy on accepted", **style)
    hollow = {"markerfacecolor": "white", "label": f"{prefix}coverage"}
    ax.plot(thresholds, table["coverage"], "--", **hollow, **style)


def confidence_histogram(
    y_pred: ArrayLike,
    *,
    y_true: ArrayLike | None = None,
    threshold: float | None = None,
    n_bins: int = 20,
    from_logits: bool = False,
    multi_label: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draws how many predictions were made with what confidence, and what a threshold rejects.

    With labels, each bar is split into correct (plain) and wrong (hatched) predictions.

    Args:
        y_pred: Predicted probabilities (or logits), as `tfuq.metrics.reliability_curve` takes.
        y_true: Labels, or `None`.
        threshold: Confidence in [0, 1] from which a prediction is accepted, a red dashed line.
        n_bins: Number of bars, of equal width on [0, 1].
        from_logits: Whether `y_pred` holds logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        ax: Axes to draw on, or `None` for a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: If the metric refuses the data, or `threshold` lies outside [0, 1].

    Example:

    >>> import numpy as np, tfuq
    >>> probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    >>> ax = tfuq.plots.confidence_histogram(probs, y_true=[0, 1, 1], threshold=0.7)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['threshold 0.7: 33.3 % rejected', 'wrong', 'correct']

    See also: `tfuq.plots.reliability_diagram`, `tfuq.plots.rejection_curve`.
    """
    if threshold is not None:
        check_fraction("threshold", threshold)
    # Where confidence alone is drawn, any valid labels will do.
    labels = np.zeros(_labels_shape(y_pred, multi_label)) if y_true is None else y_true
    kind = {"from_logits": from_logits, "multi_label": multi_label}
    curve = reliability_curve(labels, y_pred, n_bins=n_bins, **kind)
    ax = axes_of(ax)
    _draw_bars(ax, curve, split=y_true is not None)
    if threshold is not None:
        rejected = 100 * rejection_rate(labels, y_pred, threshold, **kind)
        label = f"threshold {threshold:g}: {rejected:.1f} % rejected"
        ax.axvline(threshold, color=RED, linestyle="--", linewidth=2, label=label)
    ax.set(xlabel="confidence (probability of the predicted class)", ylabel="number of examples")
    ax.set_xlim(0, 1)
    if y_true is not None or threshold is not None:
        add_legend_above(ax)
    return ax


def _labels_shape(y_pred, multi_label):
    shape = np.shape(y_pred)
    return shape if multi_label or len(shape) == 1 else shape[:-1]


def _draw_bars(ax, curve, *, split):
    left, count = curve["lower"], curve["count"]
    style = {"align": "edge", "edgecolor": "white", "linewidth": 0.5}
    style["width"] = curve["upper"] - left
    if not split:
        ax.bar(left, count, color=PALE_BLUE, **style)
        return
    right = np.nan_to_num(curve["accuracy"]) * count  # an empty bin has no accuracy
    ax.bar(left, count - right, color=COLOURS[1], hatch="////", label="wrong", **style)
    ax.bar(left, right, bottom=count - right, color=PALE_BLUE, label="correct", **style)
