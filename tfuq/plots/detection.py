"""Pictures of corruption and of out-of-distribution detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfuq._arguments import ArrayLike, check_choice, shown
from tfuq.corruptions.evaluation import CorruptionReport
from tfuq.ood.log_features import squared_norms
from tfuq.plots._axes import (
    PALE_BLUE,
    Axes,
    Figure,
    SubFigure,
    axes_of,
    figure_of,
    label_decades,
    line_style,
)

NORM_BINS = 25


def corruption_heat_map(
    report: CorruptionReport, figure: str = "accuracy", *, ax: Axes | None = None
) -> Axes:
    """Draws one figure of a corruption report: a row per corruption, a column per severity.

    Args:
        report: What `tfuq.corruptions.corruption_report` returned.
        figure: `"accuracy"`, `"nll"`, `"ece"`, `"coverage"` or `"selective_accuracy"`.
        ax: Axes to draw on, or `None` for a new figure.

    Returns:
        The Axes. The first column is that of clean images, one number for all; colours reach from
        the least to the largest number, and NaN has none.

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

    See also: `tfuq.corruptions.corruption_report`.
    """
    if not all(hasattr(report, name) for name in ("corruptions", "severities", "clean")):
        raise ValueError(
            "Argument `report` must be the result of corruption_report. Received: "
            f"report={shown(report)}"
        )
    check_choice("figure", figure, tuple(report.clean))
    clean = np.full((len(report.corruptions), 1), report.clean[figure])
    values = np.concatenate([clean, getattr(report, figure)], axis=1)
    ax = axes_of(ax)
    drawn = ax.imshow(values, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if column or row == 0:
            place = row if column else (len(values) - 1) / 2
            style = {"ha": "center", "va": "center", "size": "small"}
            style["color"] = "white" if drawn.norm(value) < 0.5 else "black"
            ax.text(column, place, f"{value:.2f}", **style)
    ax.axvline(0.5, color="white", linewidth=3)  # what is clean has no severity
    ax.set_xticks(range(values.shape[1]), ["clean", *map(str, report.severities)])
    ax.set_yticks(range(values.shape[0]), report.corruptions)
    ax.set(xlabel="severity", ylabel="corruption")
    label = f"{figure.replace('_', ' ')} ({'nats' if figure == 'nll' else 'fraction'})"
    ax.figure.colorbar(drawn, ax=ax, label=label)
    return ax


def gradient_distributions(
    features_by_set: Mapping[str, ArrayLike],
    names: Sequence[str] | None = None,
    *,
    labels_by_set: Mapping[str, ArrayLike] | None = None,
    columns: Sequence[int | str] | None = None,
    figure: Figure | SubFigure | None = None,
) -> Any:
    """Draws how the squared gradient norms of several sets are distributed, a panel per column.

    As figure 3(a) of Lee and AlRegib: where the sets lie apart, this part of the model tells them
    apart. There it is averages over classes that are distributed, which `labels_by_set` gives; a
    column of the loss (`GradientFeatures(..., with_loss=True)`) is figure 3(b). A point is one of
    25 bins of equal width on a log scale, from the least to the largest norm of all sets; the first
    set is filled. Norms of 0 are drawn at the least norm above it.

    Args:
        features_by_set: Dict from a set's name to its squared norms `(n, columns)`, as
            `tfuq.ood.GradientFeatures` gives them; first the in-distribution set.
        names: Names of the columns, such as the paths of the model's weights, or `None`.
        labels_by_set: Dict from a set's name to the labels `(n,)` of its examples: what is drawn of
            these sets are the averages of each class. `None` draws single examples.
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

    See also: `tfuq.ood.GradientFeatures`.
    """
    sets = _sets_of(features_by_set)
    width = next(iter(sets.values())).shape[1]
    if labels_by_set is not None:
        sets = _class_averages(sets, labels_by_set)
    names = _names_of(names, width)
    chosen = _chosen_columns(columns, names)
    wide = 2 if len(chosen) == 4 else min(3, len(chosen))
    rows = -(-len(chosen) // wide)
    figure = figure_of(figure, rows)
    axes = figure.subplots(rows, wide, squeeze=False).ravel()
    for ax in axes[len(chosen) :]:
        ax.remove()
    for ax, column in zip(axes, chosen, strict=False):
        _draw_norms(ax, {name: features[:, column] for name, features in sets.items()})
        ax.set_title(names[column], fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
    figure.supxlabel("squared L2 norm of the gradient")
    figure.supylabel("fraction of examples" if labels_by_set is None else "fraction")
    return figure


def _sets_of(features_by_set):
    """Each set's name and finite norms, all of the same columns."""
    if not isinstance(features_by_set, dict) or not features_by_set:
        raise ValueError(
            "Argument `features_by_set` must be a dict from names to arrays (n, columns). "
            f"Received: features_by_set={shown(features_by_set)}"
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


def _class_averages(sets, labels_by_set):
    """The sets, with rows of class averages where there are labels."""
    if not isinstance(labels_by_set, dict) or not set(labels_by_set) <= set(sets):
        raise ValueError(
            f"Argument `labels_by_set` must be a dict from names of sets, {sorted(sets)}, to "
            f"labels. Received: labels_by_set={shown(labels_by_set)}"
        )
    averages = dict(sets)
    for name, labels in labels_by_set.items():
        labels = np.asarray(labels)
        if labels.shape != sets[name].shape[:1]:
            raise ValueError(
                f"Argument `labels_by_set` must hold a label for each of {len(sets[name])} "
                f"examples of {name!r}. Received: labels of shape {labels.shape}"
            )
        classes = [sets[name][labels == each].mean(axis=0) for each in np.unique(labels)]
        averages[name] = np.stack(classes)
    return averages


def _names_of(names, width):
    if names is None:
        return [f"column {column}" for column in range(width)]
    if not np.iterable(names) or len(found := [str(name) for name in names]) != width:
        raise ValueError(
            f"Argument `names` must hold one for each of {width} columns. "
            f"Received: names={shown(names)}"
        )
    return found


def _chosen_columns(columns, names):
    """Indices of the columns to draw."""
    if columns is None:
        return np.unique(np.linspace(0, len(names) - 1, 6).round().astype(int)).tolist()
    given = [columns] if isinstance(columns, (int, str)) else columns
    columns = list(given) if np.iterable(given) else []
    known = [*range(-len(names), len(names)), *names]
    if not columns or any(column not in known for column in columns):
        raise ValueError(
            f"Argument `columns` must hold indices or names of {len(names)} columns. "
            f"Received: columns={shown(given)}"
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
        ax.plot(centres, fractions, markersize=4, label=name, **line_style(i))
    ax.set_xscale("log")
    label_decades(ax, edges[0], edges[-1])
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
