"""Pictures of calibration: confidence against accuracy."""

from __future__ import annotations

import numpy as np

from tfuq._arguments import ArrayLike
from tfuq._math.bounds import wilson_interval
from tfuq.metrics import expected_calibration_error, reliability_curve
from tfuq.plots._axes import GREY, PALE_BLUE, RED, Axes, axes_of

THIN = 10  # examples of a bin; of fewer little is known


def reliability_diagram(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    n_bins: int = 15,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the accuracy of the predictions made with each confidence, and how many they are.

    A calibrated model's bars end on the diagonal; bars below it are over-confident. The hatched
    piece of a bin is its gap between accuracy and mean confidence, the number is its count. Lines
    are Wilson's intervals of the accuracy at 95 %; bins of fewer than 10 examples are pale.

    Args:
        y_true: Labels, as `tfuq.metrics.reliability_curve` takes them.
        y_pred: Predicted probabilities (or logits).
        n_bins: Number of bins of equal width on [0, 1].
        from_logits: Whether `y_pred` holds logits.
        multi_label: Whether each entry of `y_pred` is a binary prediction of its own.
        sample_weight: Weights of the examples, or `None`. The counts are sums of them.
        ax: Axes to draw on, or `None` for a new figure.

    Returns:
        The Axes; the legend gives the expected calibration error (fraction).

    Raises:
        ValueError: If the metric refuses the data.

    Example:

    >>> import numpy as np, tfuq
    >>> probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    >>> ax = tfuq.plots.reliability_diagram([0, 1, 1], probs, n_bins=5)
    >>> ax.get_ylabel()
    'accuracy (fraction correct)'

    See also: `tfuq.metrics.reliability_curve`, `tfuq.selective.TemperatureScaling`.
    """
    options = {"n_bins": n_bins, "from_logits": from_logits, "multi_label": multi_label}
    options["sample_weight"] = sample_weight
    curve = reliability_curve(y_true, y_pred, **options)
    error = expected_calibration_error(y_true, y_pred, **options)
    ax = axes_of(ax)
    _draw_reliability(ax, curve, f"gap to confidence (ECE {error:.3f})")
    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    ax.set(xlabel="confidence (probability of the predicted class)", xlim=(0, 1))
    ax.set(ylabel="accuracy (fraction correct)", ylim=(0, 1.4), yticks=np.linspace(0, 1, 6))
    note = {"title": f"numbers: examples (pale: under {THIN})", "title_fontsize": "small"}
    legend = ax.legend(loc="upper left", fontsize="small", **note)  # in the room above 1
    for handle in legend.legend_handles:
        handle.set_alpha(1)  # the first bin may be pale
    return ax


def _draw_reliability(ax, curve, gap_label):
    curve = {name: values[curve["count"] > 0] for name, values in curve.items()}
    left, accuracy, count = curve["lower"], curve["accuracy"], curve["count"]
    width = curve["upper"] - left
    style = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    bars = ax.bar(left, accuracy, color=PALE_BLUE, label="accuracy", **style)
    for bar, n in zip(bars, count, strict=True):
        bar.set_alpha(1.0 if n >= THIN else 0.4)
    ends = wilson_interval(accuracy * count, count)
    reach = np.clip([accuracy - ends[0], ends[1] - accuracy], 0, None)
    lines = {"fmt": "none", "ecolor": "black", "capsize": 3, "linewidth": 1, "zorder": 3}
    ax.errorbar(left + width / 2, accuracy, yerr=reach, label="95 % interval", **lines)
    style.update(color="none", edgecolor=RED, hatch="////")
    ax.bar(left, curve["confidence"] - accuracy, bottom=accuracy, label=gap_label, **style)
    box = {"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 1}
    style = {"rotation": 90, "ha": "center", "va": "bottom", "size": "small", "bbox": box}
    style["zorder"] = 4  # above the lines of intervals, which reach down to 0
    for x, n in zip(left + width / 2, count, strict=True):
        ax.text(x, 0.02, f"{n:,.1f}".removesuffix(".0"), **style)
