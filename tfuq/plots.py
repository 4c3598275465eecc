"""Pictures of rejection, calibration, masks, learning rates and detection (extra `plots`).

Each function draws with matplotlib on the Axes it is given, or on those of a new figure, and
returns them; `uncertainty_maps` does the same with a Figure. The colours are told apart by
colour-blind eyes (Okabe and Ito 2008), and line styles, markers and hatches by those who print in
grey.
"""

import numpy as np

from tfuq._keras import check_choice, check_fraction, check_positive
from tfuq._log_features import squared_norms
from tfuq._masks import error_map, mean_probs, predicted_classes, read_masks, stretched
from tfuq.metrics import (
    expected_calibration_error,
    rejection_rate,
    rejection_table,
    reliability_curve,
)
from tfuq.predictive import entropy

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgba
    from matplotlib.figure import FigureBase
    from matplotlib.patches import Patch
except ImportError as error:
    raise ImportError(
        'tfuq.plots draws with matplotlib. Install it with: pip install "tfuq[plots]"'
    ) from error

__all__ = [
    "confidence_histogram",
    "corruption_heat_map",
    "error_map",
    "gradient_distributions",
    "learning_rate_curve",
    "lr_range_test",
    "rejection_curve",
    "reliability_diagram",
    "uncertainty_maps",
]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
NORM_BINS = 25
RED, PALE_BLUE, GREY = "#D55E00", "#8DC0E0", "#595959"
ERRORS = ("true positive", "false positive", "false negative", "other class")
# The colours of `ERRORS`, and the colour map of entropies.
PALETTES = {
    "safe": ((COLOURS[2], COLOURS[0], RED, COLOURS[3]), "cividis"),
    "paper": (("#00C000", "#0000FF", "#FF0000", "#FFD700"), "turbo"),
}


def _axes(ax):
    """`ax` itself, or the Axes of a new pyplot figure."""
    if ax is None:
        from matplotlib import pyplot  # chooses a backend: only when a figure is asked for

        return pyplot.subplots(figsize=(5.5, 4), layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise ValueError(f"Argument `ax` must be matplotlib Axes or None. Received: ax={ax!r}")
    return ax


def rejection_curve(
    y_true,
    y_pred,
    *,
    thresholds=None,
    from_logits=False,
    multi_label=False,
    sample_weight=None,
    ax=None,
):
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
    """
    models = y_pred if isinstance(y_pred, dict) else {None: y_pred}
    if not models:
        raise ValueError("Argument `y_pred` must hold at least one model. Received: y_pred={}")
    default = np.linspace(0, 1, 101)
    thresholds = default if thresholds is None else np.sort(np.atleast_1d(thresholds))
    options = {"from_logits": from_logits, "multi_label": multi_label}
    options["sample_weight"] = sample_weight
    tables = {k: rejection_table(y_true, v, thresholds, **options) for k, v in models.items()}
    ax = _axes(ax)
    for i, (name, table) in enumerate(tables.items()):
        _draw_curves(ax, thresholds, table, "" if name is None else f"{name}: ", i)
    ax.set(xlabel="confidence threshold", ylabel="fraction", ylim=(-0.02, 1.03))
    ax.grid(alpha=0.3)
    ax.legend()
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
    y_pred,
    *,
    y_true=None,
    threshold=None,
    n_bins=20,
    from_logits=False,
    multi_label=False,
    ax=None,
):
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
    """
    if threshold is not None:
        check_fraction("threshold", threshold)
    # Where confidence alone is drawn, any valid labels will do.
    labels = np.zeros(_labels_shape(y_pred, multi_label)) if y_true is None else y_true
    kind = {"from_logits": from_logits, "multi_label": multi_label}
    curve = reliability_curve(labels, y_pred, n_bins=n_bins, **kind)
    ax = _axes(ax)
    _draw_bars(ax, curve, split=y_true is not None)
    if threshold is not None:
        rejected = 100 * rejection_rate(labels, y_pred, threshold, **kind)
        label = f"threshold {threshold:g}: {rejected:.1f} % rejected"
        ax.axvline(threshold, color=RED, linestyle="--", linewidth=2, label=label)
    ax.set(xlabel="confidence (probability of the predicted class)", ylabel="number of examples")
    ax.set_xlim(0, 1)
    if y_true is not None or threshold is not None:
        ax.legend()
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


def reliability_diagram(
    y_true,
    y_pred,
    *,
    n_bins=15,
    from_logits=False,
    multi_label=False,
    sample_weight=None,
    ax=None,
):
    """Draws the accuracy of the predictions made with each confidence, and how many they are.

    A calibrated model's bars end on the diagonal; bars below it are over-confident. The hatched
    piece of a bin is its gap between accuracy and mean confidence, the number is its count.

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
    """
    options = {"n_bins": n_bins, "from_logits": from_logits, "multi_label": multi_label}
    options["sample_weight"] = sample_weight
    curve = reliability_curve(y_true, y_pred, **options)
    error = expected_calibration_error(y_true, y_pred, **options)
    ax = _axes(ax)
    _draw_reliability(ax, curve, f"gap to confidence (ECE {error:.3f})")
    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    ax.set(xlabel="confidence (probability of the predicted class)", xlim=(0, 1), ylim=(0, 1.02))
    ax.set_ylabel("accuracy (fraction correct)")
    ax.legend(loc="upper left")
    return ax


def _draw_reliability(ax, curve, gap_label):
    curve = {name: values[curve["count"] > 0] for name, values in curve.items()}
    left, accuracy, count = curve["lower"], curve["accuracy"], curve["count"]
    width = curve["upper"] - left
    style = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    ax.bar(left, accuracy, color=PALE_BLUE, label="accuracy", **style)
    style.update(color="none", edgecolor=RED, hatch="////")
    ax.bar(left, curve["confidence"] - accuracy, bottom=accuracy, label=gap_label, **style)
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
    style = {"rotation": 90, "ha": "center", "va": "bottom", "size": "small", "bbox": box}
    for x, n in zip(left + width / 2, count, strict=True):
        ax.text(x, 0.02, f"{n:,.1f}".removesuffix(".0"), **style)


# --- Masks -------------------------------------------------------------------------------------


def uncertainty_maps(
    images,
    masks,
    probs,
    *,
    raters_axis=None,
    threshold=None,
    palette="safe",
    max_entropy=None,
    figure=None,
):
    """Draws image, mask, prediction and entropy of each example, a row for each.

    The prediction lies over the image in the colours of `error_map`: true positives green, false
    positives blue, false negatives red, as in figure 3 of Abboud et al. The entropy is that of the
    expectation, the mean over samples: the total uncertainty.

    Args:
        images: `(n, height, width)`, or with a last axis of 1 (grey) or 3 (RGB); any numbers, each
            image is stretched from its least to its largest.
        masks: True classes: integers `(n, height, width)` or `(n, height, width, 1)`, or one-hot
            `(n, height, width, classes)`. With several raters, one axis more.
        probs: Mean probabilities `(n, height, width, classes)`, the last axis 1 if binary; or a
            stack `(samples, n, height, width, classes)`. Of several labels that are not exclusive,
            draw one at a time: `probs[..., k : k + 1]`.
        raters_axis: Axis of `masks` that holds several raters' masks. Shown is their mean if
            binary, otherwise the class that most chose (the lowest of several), and the prediction
            is judged by that class.
        threshold: Number in [0, 1] above which a binary prediction is positive; by default 0.5.
        palette: `"safe"` for colour-blind eyes (Okabe and Ito 2008, entropies in cividis), or
            `"paper"`: plain green, blue and red, entropies from blue to red.
        max_entropy: End of the colour bar, nats; by default log(classes), which compares models.
        figure: Figure or SubFigure to draw on, or `None` for a new one.

    Returns:
        The figure. Its Axes are those of the rows, four each, then the colour bar.

    Raises:
        ValueError: If arrays are empty, do not fit together, or hold no numbers, no classes or no
            probabilities; if an option is none of those said.

    Example:

    >>> import numpy as np, tfuq
    >>> images, masks = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), int)
    >>> figure = tfuq.plots.uncertainty_maps(images, masks, np.full((5, 2, 8, 8, 1), 0.2))
    >>> [ax.get_title() for ax in figure.axes[:4]]
    ['input', 'mask', 'prediction', 'entropy']

    References:
        Abboud et al., Sparse Bayesian Networks: Efficient Uncertainty Quantification in Medical
        Image Analysis.
    """
    check_choice("palette", palette, tuple(PALETTES))
    if max_entropy is not None:
        check_positive("max_entropy", max_entropy)
    probs = mean_probs(probs)
    masks, true = read_masks(masks, probs.shape, raters_axis)
    predicted = predicted_classes(probs, threshold)
    images = stretched(images, probs.shape[:3])
    figure = _figure(figure, len(images))
    axes = figure.subplots(len(images), 4, squeeze=False)
    classes = max(2, probs.shape[-1])
    colours, colour_map = PALETTES[palette]
    colours = colours[:3] if classes == 2 else colours
    _draw_masks(axes[:, 1], masks, classes)
    _draw_overlays(axes[:, [0, 2]], images, error_map(true, predicted), colours)
    end = np.log(classes) if max_entropy is None else max_entropy
    for ax, values in zip(axes[:, 3], entropy(probs).reshape(probs.shape[:3]), strict=True):
        drawn = ax.imshow(values, cmap=colour_map, vmin=0, vmax=end)
    several = "mean of raters" if classes == 2 else "majority of raters"
    _label_maps(figure, axes, drawn, colours, "mask" if raters_axis is None else several)
    return figure


def _draw_masks(axes, masks, classes):
    colour_map = "gray" if classes == 2 else "viridis"
    for ax, mask in zip(axes, masks, strict=True):
        ax.imshow(mask, cmap=colour_map, vmin=0, vmax=classes - 1)


def _draw_overlays(axes, images, errors, colours):
    """Each image twice, the second time in grey, under the colours of its errors."""
    for (plain, overlaid), image, error in zip(axes, images, errors, strict=True):
        grey = image if image.ndim == 2 else image.mean(-1)
        plain.imshow(image, cmap="gray", vmin=0, vmax=1)
        overlaid.imshow(grey, cmap="gray", vmin=0, vmax=1)
        overlaid.imshow(_overlay(error, colours))


def _figure(figure, rows):
    """`figure` itself, or a new pyplot figure."""
    if figure is None:
        from matplotlib import pyplot

        return pyplot.figure(figsize=(9, 2.2 * rows + 0.8), layout="constrained")
    if not isinstance(figure, FigureBase):
        raise ValueError(
            "Argument `figure` must be a matplotlib Figure, SubFigure or None. "
            f"Received: figure={figure!r}"
        )
    return figure


def _overlay(errors, colours):
    """Colours with opacity, `(height, width, 4)`, for an `error_map`; no error has none."""
    return np.array([(0, 0, 0, 0), *(to_rgba(colour, 0.6) for colour in colours)])[errors]


def _label_maps(figure, axes, drawn, colours, mask_title):
    for ax, title in zip(axes[0], ("input", mask_title, "prediction", "entropy"), strict=True):
        ax.set_title(title)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=list(axes[:, 3]), label="entropy (nats)")
    patches = [Patch(color=c, alpha=0.6, label=n) for c, n in zip(colours, ERRORS, strict=False)]
    style = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.03), "fontsize": "small"}
    axes[-1, 2].legend(handles=patches, frameon=False, **style)


# --- Learning rates ----------------------------------------------------------------------------


def lr_range_test(result, ax=None):
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
    >>> from tfuq.callbacks.lr_range_test import read_sweep
    >>> rates = np.geomspace(1e-4, 1, 9)
    >>> found = read_sweep(rates, [3, 3, 2.9, 2.5, 2, 1.6, 1.4, 1.5, 4], 0.5, diverged=True)
    >>> ax = tfuq.plots.lr_range_test(found)
    >>> ax.get_xlabel(), ax.get_xscale()
    ('learning rate', 'log')
    """
    rates, losses, smoothed = _sweep_of(result)
    ax = _axes(ax)
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
            f"Received: result={result!r}"
        )
    return (np.asarray(getattr(result, name)) for name in names[:3])


def _view(losses, smoothed):
    """Limits that show the fall, not how far the loss grew after it."""
    lowest = min(losses.min(), smoothed.min())
    span = smoothed[: smoothed.argmin() + 1].max() - lowest
    highest = min(losses.max(), lowest + 2 * span) if span > 0 else losses.max()
    margin = 0.05 * max(highest - lowest, 1e-12)
    return lowest - margin, highest + margin


def learning_rate_curve(rates, ax=None):
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
    """
    rates, steps, ends = _curve_of(rates)
    if rates.ndim != 1 or not rates.size or not np.isfinite(rates).all():
        raise ValueError(
            "Argument `rates` must hold at least one rate, finite numbers, or be SGDR after "
            f"training. Received: rates={rates!r}"
        )
    ax = _axes(ax)
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
        rates = np.asarray(rates, "float64")
        return rates, np.arange(rates.size), ()
    schedule, steps = rates, rates.steps
    if not len(steps):
        return np.zeros(0), steps, ()
    counts = np.append(steps, steps[-1] + 1)
    ended = np.diff(schedule.completed_cycles(counts)) > 0
    return schedule.learning_rates, steps, counts[1:][ended]


# --- Corruptions -------------------------------------------------------------------------------


def corruption_heat_map(report, figure="accuracy", *, ax=None):
    """Draws one figure of a corruption report: a row per corruption, a column per severity.

    Args:
        report: What `tfuq.corruptions.corruption_report` returned.
        figure: `"accuracy"`, `"nll"`, `"ece"`, `"coverage"` or `"selective_accuracy"`.
        ax: Axes to draw on, or `None` for a new figure.

    Returns:
        The Axes. The first column is that of clean images; colours reach from the least to the
        largest number, and NaN has none.

    Raises:
        ValueError: If `report` is none, has no such figure, or `ax` is no Axes.

    Example:

    >>> import numpy as np, tfuq
    >>> from tfuq.corruptions import CorruptionReport
    >>> figures = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")
    >>> corrupted = dict.fromkeys(figures, np.array([[0.9, 0.8], [0.7, 0.4]]))
    >>> clean = dict.fromkeys(figures, 0.95)
    >>> report = CorruptionReport(("fog", "snow"), (1, 5), clean, **corrupted, threshold=0.5)
    >>> ax = tfuq.plots.corruption_heat_map(report)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['fog', 'snow']
    """
    if not all(hasattr(report, name) for name in ("corruptions", "severities", "clean")):
        raise ValueError(
            "Argument `report` must be what corruption_report returned. "
            f"Received: report={report!r}"
        )
    check_choice("figure", figure, tuple(report.clean))
    clean = np.full((len(report.corruptions), 1), report.clean[figure])
    values = np.concatenate([clean, getattr(report, figure)], axis=1)
    ax = _axes(ax)
    drawn = ax.imshow(values, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        dark = drawn.norm(value) < 0.5
        style = {"ha": "center", "va": "center", "size": "small"}
        ax.text(column, row, f"{value:.2f}", color="white" if dark else "black", **style)
    ax.set_xticks(range(values.shape[1]), ["clean", *map(str, report.severities)])
    ax.set_yticks(range(values.shape[0]), report.corruptions)
    ax.set(xlabel="severity")
    label = f"{figure.replace('_', ' ')} ({'nats' if figure == 'nll' else 'fraction'})"
    ax.figure.colorbar(drawn, ax=ax, label=label)
    return ax


# --- Gradients ---------------------------------------------------------------------------------


def gradient_distributions(features_by_set, names=None, *, columns=None, figure=None):
    """Draws how the squared gradient norms of several sets are distributed, a panel per column.

    As figure 3(a) of Lee and AlRegib: where the sets lie apart, this part of the model tells them
    apart. A point is one of 25 bins of equal width on a log scale, from the least to the largest
    norm of all sets; the first set is filled. Norms of 0 are drawn at the least norm above it.

    Args:
        features_by_set: Dict from a set's name to its squared norms `(n, columns)`, as
            `tfuq.ood.GradientFeatures` gives them; first the in-distribution set.
        names: Names of the columns, such as the paths of the model's weights, or `None`.
        columns: Which columns to draw, by index or by name; by default at most six, from the first
            to the last.
        figure: Figure or SubFigure to draw on, or `None` for a new one.

    Returns:
        The figure, whose Axes are the columns drawn, in their order.

    Raises:
        ValueError: If sets are missing, empty, of different columns, or hold what is no squared
            norm; if `names` or `columns` do not fit them.

    Example:

    >>> import numpy as np, tfuq
    >>> rng = np.random.default_rng(0)
    >>> sets = {"in": np.exp(rng.normal(size=(99, 3))), "out": np.exp(rng.normal(2, size=(99, 3)))}
    >>> figure = tfuq.plots.gradient_distributions(sets, ["conv", "dense", "logits"])
    >>> [ax.get_title() for ax in figure.axes]
    ['conv', 'dense', 'logits']

    References:
        Lee and AlRegib, Gradients as a Measure of Uncertainty in Neural Networks.
    """
    sets = _sets_of(features_by_set)
    width = next(iter(sets.values())).shape[1]
    names = _names_of(names, width)
    chosen = _chosen_columns(columns, names)
    rows = -(-len(chosen) // 3)
    figure = _figure(figure, rows)
    axes = figure.subplots(rows, min(3, len(chosen)), squeeze=False).ravel()
    for ax in axes[len(chosen) :]:
        ax.remove()
    for ax, column in zip(axes, chosen, strict=False):
        _draw_norms(ax, {name: features[:, column] for name, features in sets.items()})
        ax.set_title(names[column], fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
    figure.supxlabel("squared L2 norm of the gradient")
    figure.supylabel("fraction of examples")
    return figure


def _sets_of(features_by_set):
    """Each set's name and finite norms, all of the same columns."""
    if not isinstance(features_by_set, dict) or not features_by_set:
        raise ValueError(
            "Argument `features_by_set` must be a dict from names to arrays (n, columns). "
            f"Received: features_by_set={features_by_set!r}"
        )
    sets = {k: squared_norms("features_by_set", array) for k, array in features_by_set.items()}
    shapes = {name: array.shape for name, array in sets.items()}
    if len({shape[1] for shape in shapes.values()}) > 1:
        raise ValueError(
            "Argument `features_by_set` must hold arrays of the same columns. "
            f"Received: features_by_set of shapes {shapes}"
        )
    for name, array in sets.items():
        if not np.isfinite(array).all():
            raise ValueError(
                "Argument `features_by_set` must hold finite numbers. "
                f"Received: features_by_set with NaN or infinity in {name!r}"
            )
    return sets


def _names_of(names, width):
    if names is None:
        return [f"column {column}" for column in range(width)]
    names = [str(name) for name in names]
    if len(names) != width:
        raise ValueError(
            f"Argument `names` must hold one for each of {width} columns. Received: names={names}"
        )
    return names


def _chosen_columns(columns, names):
    """Indices of the columns to draw."""
    if columns is None:
        return np.unique(np.linspace(0, len(names) - 1, 6).round().astype(int)).tolist()
    columns = [columns] if isinstance(columns, (int, str)) else list(columns)
    known = [*range(-len(names), len(names)), *names]
    if not columns or any(column not in known for column in columns):
        raise ValueError(
            f"Argument `columns` must hold indices or names of {len(names)} columns. "
            f"Received: columns={columns!r}"
        )
    return [names.index(c) if isinstance(c, str) else range(len(names))[c] for c in columns]


def _draw_norms(ax, norms):
    every = np.concatenate(list(norms.values()))
    above = every[every > 0]
    low, high = (above.min(), above.max()) if above.size else (1.0, 1.0)
    margin = 1.0 if low < high else 2.0  # equal norms have a bin around them
    edges = np.geomspace(low / margin, high * margin, NORM_BINS + 1)
    edges[[0, -1]] = low / margin, high * margin
    centres = np.sqrt(edges[:-1] * edges[1:])
    for i, (name, values) in enumerate(norms.items()):
        fractions = np.histogram(np.maximum(values, low), edges)[0] / values.size
        if i == 0:
            ax.fill_between(centres, fractions, color=PALE_BLUE, alpha=0.5)
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i % len(LINES)]}
        style |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "label": name}
        ax.plot(centres, fractions, **style)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
