"""Pictures of errors: confusion matrices and ROC curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfuq._arguments import ArrayLike, check_choice, shown
from tfuq._files.tables import names_of
from tfuq._predictions.examples import from_arrays
from tfuq.plots._axes import GREY, Axes, axes_of, line_style, name_classes, write_cells

SHARES_OF = (None, "true", "predicted")
LARGEST_LABELLED = 20  # classes; more of them have no number in each cell


def confusion_matrix(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    normalize: str | None = "true",
    from_logits: bool = False,
    sample_weight: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws how often each true class (row) was predicted as each class (column).

    Args:
        y_true: Labels `(n, ...)`, or one-hot.
        y_pred: Predicted probabilities (or logits) `(n, ..., classes)`; binary `(n,)` or
            `(n, ..., 1)`.
        names: Names of the classes, or None for their numbers.
        normalize: `"true"`: each row is a fraction of its true class; `"predicted"`: each column of
            what was predicted as its class; None: counts.
        from_logits: Whether `y_pred` holds logits.
        sample_weight: Weights of the examples, or None.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes. A row or column without examples is empty. Up to 20 classes, each cell has its
        number.

    Raises:
        ValueError: If arrays do not fit together or hold no labels or predictions, or an option is
            not as described.

    Example:

    >>> import tfuq
    >>> probs = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]
    >>> ax = tfuq.plots.confusion_matrix([0, 1, 1], probs, names=["well", "ill"])
    >>> [text.get_text() for text in ax.texts]
    ['1.00', '0.00', '0.50', '0.50']

    See also: `tfuq.plots.confusion_difference`, `tfuq.interpret.confused_pairs`.
    """
    check_choice("normalize", normalize, SHARES_OF)
    counts = _counts(y_true, y_pred, from_logits, sample_weight)
    values = _shares(counts, normalize)
    names = names_of(names, len(values))
    ax = axes_of(ax)
    end = 1.0 if normalize else max(counts.max(), 1.0)
    drawn = ax.imshow(values, cmap="Blues", vmin=0, vmax=end)
    if len(values) <= LARGEST_LABELLED:
        write_cells(ax, values, values > 0.5 * end, "{:.2f}" if normalize else "{:g}")
    label = f"fraction of the {normalize} class" if normalize else "number of examples"
    ax.figure.colorbar(drawn, ax=ax, label=label)
    return _label_classes(ax, names)


def confusion_difference(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    other: ArrayLike,
    *,
    models: Sequence[str] = ("first", "second"),
    names: Sequence[str] | None = None,
    normalize: str | None = "true",
    from_logits: bool = False,
    sample_weight: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the confusion matrix of one model minus that of another.

    As figure 3-13 of Mishra (2020), "our method vs. SGD". Cells where the first model is better are
    blue (more on the diagonal, fewer off it), cells where it is worse are red.

    Args:
        y_true: Labels. All arguments not described here are as for `confusion_matrix`.
        y_pred: Predictions of the model.
        other: Predictions of the model that it is compared with.
        models: Names of both, for the title: "first minus second".
        names: Names of the classes, or None.
        normalize: `"true"`, `"predicted"` or None.
        from_logits: Whether both hold logits.
        sample_weight: Weights of the examples, or None.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes.

    Raises:
        ValueError: As `confusion_matrix`; if the models have other classes.

    Example:

    >>> import tfuq
    >>> probs, other = [[0.9, 0.1], [0.4, 0.6]], [[0.9, 0.1], [0.8, 0.2]]
    >>> ax = tfuq.plots.confusion_difference([0, 1], probs, other)
    >>> [text.get_text() for text in ax.texts]
    ['+0.00', '+0.00', '-1.00', '+1.00']

    See also: `tfuq.plots.confusion_matrix`.
    """
    check_choice("normalize", normalize, SHARES_OF)
    first, second = (_counts(y_true, y, from_logits, sample_weight) for y in (y_pred, other))
    if first.shape != second.shape:
        raise ValueError(
            f"Argument `other` must have the {len(first)} classes of `y_pred`. "
            f"Received: other of {len(second)} classes"
        )
    if isinstance(models, str) or len(models) != 2:
        raise ValueError(
            "Argument `models` must be the names of the two models. Received: "
            f"models={shown(models)}"
        )
    values = _shares(first, normalize) - _shares(second, normalize)
    names = names_of(names, len(values))
    ax = axes_of(ax)
    end = max(np.nanmax(np.abs(values), initial=0.0), 1e-9)
    better = np.where(np.eye(len(values)), values, -values)
    drawn = ax.imshow(better, cmap="RdBu", vmin=-end, vmax=end)
    if len(values) <= LARGEST_LABELLED:
        dark = np.abs(values) > 0.6 * end
        write_cells(ax, values, dark, "{:+.2f}" if normalize else "{:+g}")
    what = "fractions" if normalize else "counts"
    ax.figure.colorbar(drawn, ax=ax, label=f"difference of the {what}: worse (red) to better")
    ax.set_title(f"{models[0]} minus {models[1]}", fontsize="medium")
    return _label_classes(ax, names)


def roc_curves(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[int] | None = None,
    from_logits: bool = False,
    multi_label: bool = False,
    sample_weight: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the ROC of each class against all others, with its area.

    Args:
        y_true: Labels `(n, ...)`, or one-hot; 0 or 1 for each label if `multi_label`.
        y_pred: Predicted probabilities (or logits) `(n, ..., classes)`; binary `(n,)` or
            `(n, ..., 1)`, whose one curve is that of class 1.
        names: Names of the classes, or None for their numbers.
        classes: Numbers of the classes to draw; None for all.
        from_logits: Whether `y_pred` holds logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        sample_weight: Weights of the examples, or None.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes. A class that all examples or none belong to has no curve; the legend says so.

    Raises:
        ValueError: If arrays do not fit together or hold no labels or predictions; if `classes`
            holds a class out of range.

    Example:

    >>> import tfuq
    >>> ax = tfuq.plots.roc_curves([0, 1, 0, 1], [0.1, 0.8, 0.3, 0.6])
    >>> ax.get_legend().get_texts()[0].get_text()
    '1: AUROC 1.000'

    See also: `tfuq.metrics.auroc`, `tfuq.plots.detection_histograms`.
    """
    flags = {"from_logits": from_logits, "multi_label": multi_label}
    examples = from_arrays(y_true, y_pred, sample_weight, **flags)
    scores, targets, weight = map(np.asarray, examples.one_vs_rest())
    count = scores.shape[1]
    first = 1 if examples.columns == 1 else 0  # the one column of a binary prediction is class 1
    names = names_of(names, count + first)
    chosen = _chosen_classes(classes, range(first, first + count))
    ax = axes_of(ax)
    for i, k in enumerate(chosen):
        column = k - first
        points = _roc(scores[:, column], targets[:, column], weight[:, column])
        style = line_style(i) | {"markevery": 0.1, "markersize": 4}
        if points is None:
            ax.plot([], [], label=f"{names[k]}: one class alone", **style)
            continue
        area = np.trapezoid(points[1], points[0])
        ax.plot(*points, label=f"{names[k]}: AUROC {area:.3f}", **style)
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (1, 3)), label="_chance")
    ax.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", fontsize="small")
    return ax


def _roc(scores, targets, weight):
    """False and true positive rates `(2, levels + 1)`, ties as one step; None for one class."""
    levels, index = np.unique(-scores, return_inverse=True)
    sums = [np.bincount(index, weight * part, len(levels)) for part in (1 - targets, targets)]
    if not all(part.sum() > 0 for part in sums):
        return None
    return np.array([np.append(0, np.cumsum(part)) / part.sum() for part in sums])


def _counts(y_true, y_pred, from_logits, sample_weight):
    """Weights `(classes, classes)`: rows true, columns predicted."""
    examples = from_arrays(y_true, y_pred, sample_weight, from_logits=from_logits)
    classes = examples.scores.shape[-1]
    predicted = np.asarray(examples.scores).argmax(-1)
    cells = np.asarray(examples.labels) * classes + predicted
    counts = np.bincount(cells, np.asarray(examples.weight), classes**2)
    return counts.reshape(classes, classes)


def _shares(counts, normalize):
    if normalize is None:
        return counts
    total = counts.sum(axis=1 if normalize == "true" else 0, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def _label_classes(ax, names):
    name_classes(ax, names)
    ax.set(xlabel="predicted class", ylabel="true class")
    return ax


def _chosen_classes(classes, known):
    if classes is None:
        return list(known)
    chosen = list(classes) if np.iterable(classes) else []
    if not chosen or any(k not in known for k in chosen):
        raise ValueError(
            f"Argument `classes` must hold numbers from {known[0]} to {known[-1]}. "
            f"Received: classes={shown(classes)}"
        )
    return chosen
