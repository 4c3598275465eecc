"""Pictures of explanations: maps over their images, and pairs of confused classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfuq._arguments import ArrayLike, check_flags, check_fraction, shown, to_float64
from tfuq._files.tables import check_top, names_of
from tfuq._predictions.masks import stretched
from tfuq.interpret.confusions import ConfusedPairs
from tfuq.interpret.label_noise import LabelNoisePairs
from tfuq.plots._axes import (
    COLOURS,
    Axes,
    Figure,
    SubFigure,
    axes_of,
    figure_of,
    name_classes,
    write_cells,
)

COLOUR_MAPS = {"positive": "magma", "signed": "RdBu"}  # the first grows lighter throughout
FEWEST_RUNS = 3  # of which a deviation is drawn
LARGEST_LABELLED = 12  # classes; more of them have no number in each cell


def explanation_maps(
    images: ArrayLike,
    maps: ArrayLike | Mapping[str, ArrayLike],
    *,
    titles: Sequence[str] | None = None,
    alpha: float = 0.55,
    same_scale: bool = False,
    figure: Figure | SubFigure | None = None,
) -> Any:
    """Draws images beside maps of what supports a class or makes the model unsure.

    A map that is never below 0 goes from dark to light, with a line at half of its maximum; a map
    with signs from red, below 0, to blue, with lines at half of the largest size, dashed below 0. A
    map with channels, as guided backpropagation gives, is drawn alone, summed over them.

    Args:
        images: `(n, height, width)`, or with a last axis of 1 (grey) or 3 (RGB); any numbers, each
            image is stretched from its least to its largest.
        maps: What `tfuq.interpret` gives for one class: `(n, height, width)` or `(n, height,
            width, channels)`; or a dict of such arrays by name, a column each.
        titles: What stands beside each image, `n` texts; None for their numbers.
        alpha: Opacity of a map over its image, in [0, 1].
        same_scale: Whether all images of a column share a scale, which shows how strong a map is;
            otherwise each has its own, which shows where it is strongest.
        figure: Figure or SubFigure to draw on, or None for a new one.

    Returns:
        The figure. Its Axes are those of the rows: the image, then a map each.

    Raises:
        ValueError: If there are no images or no maps, they do not fit together, or hold what is not
            finite.

    Example:

    >>> import numpy as np, tfuq
    >>> images, maps = np.zeros((2, 8, 8, 3)), np.random.rand(2, 8, 8)
    >>> figure = tfuq.plots.explanation_maps(images, {"Grad-CAM": maps}, titles=["a", "b"])
    >>> [ax.get_title() for ax in figure.axes[:2]]
    ['image', 'Grad-CAM']

    See also: `tfuq.interpret.grad_cam`, `tfuq.interpret.occlusion`.
    """
    check_fraction("alpha", alpha)
    check_flags(same_scale=same_scale)
    images = np.asarray(images)
    columns = _checked_maps(maps, images.shape)
    images = stretched(images, images.shape[:3])
    given = range(len(images)) if titles is None else titles
    if not np.iterable(given) or len(titles := [str(title) for title in given]) != len(images):
        raise ValueError(
            f"Argument `titles` must hold one for each of {len(images)} images. "
            f"Received: titles={shown(titles)}"
        )
    figure = figure_of(figure, len(images))
    axes = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for row, image, title in zip(axes, images, titles, strict=True):
        row[0].imshow(image, cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(title, fontsize="small")
    for number, (name, values) in enumerate(columns.items(), start=1):
        axes[0, number].set_title(name, fontsize="medium")
        _draw_column(axes[:, number], images, values, alpha, same_scale)
    axes[0, 0].set_title("image", fontsize="medium")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    colours = "blue: for it, red: against it; " if any(map(_is_signed, columns.values())) else ""
    figure.supxlabel(f"{colours}lines: half of the largest size", fontsize="small")
    return figure


def _is_signed(values):
    return values.ndim == 4 or values.min() < 0


def _checked_maps(maps, shape):
    """Arrays `(n, height, width)` or with channels, by name, for images of `shape`."""
    if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise ValueError(
            "Argument `images` must have shape (n, height, width[, 1 or 3]) and not be empty. "
            f"Received: images of shape {shape}"
        )
    columns = maps if isinstance(maps, dict) else {"map": maps}
    if not columns:
        raise ValueError("Argument `maps` must hold at least one map. Received: maps={}")
    columns = {str(name): to_float64("maps", values) for name, values in columns.items()}
    for name, values in columns.items():
        if values.ndim not in (3, 4) or values.shape[:3] != shape[:3]:
            raise ValueError(
                f"Argument `maps` must hold maps {shape[:3]} as the images, or these with "
                f"channels. Received: {name!r} of shape {values.shape}"
            )
        if not np.all(np.isfinite(values)):
            raise ValueError(f"Argument `maps` must hold finite numbers. Received: {name!r} with")
    return columns


def _draw_column(axes, images, values, alpha, same_scale):
    is_alone = values.ndim == 4
    is_signed = _is_signed(values)
    values = values.sum(axis=-1) if is_alone else values
    ends = np.abs(values).max(axis=(1, 2))
    ends = np.full(len(values), ends.max()) if same_scale else ends
    for ax, image, layer, end in zip(axes, images, values, ends, strict=True):
        end = end or 1.0  # a map of zeros has no scale of its own
        style = {"cmap": COLOUR_MAPS["signed" if is_signed else "positive"], "vmax": end}
        if not is_alone:
            grey = image if image.ndim == 2 else image.mean(axis=-1)
            ax.imshow(grey, cmap="gray", vmin=0, vmax=1)
            style["alpha"] = alpha
        ax.imshow(layer, vmin=-end if is_signed else 0, **style)
        if is_alone:
            continue
        levels = [-end / 2, end / 2] if is_signed else [end / 2]
        levels = [level for level in levels if layer.min() < level < layer.max()]
        if levels:
            colour = "black" if is_signed else "white"
            ax.contour(layer, levels, colors=colour, linewidths=1)  # below 0 dashed


# --- Pairs of classes -------------------------------------------------------------------------


def confused_pairs(found: ConfusedPairs, *, top: int | None = 10, ax: Axes | None = None) -> Axes:
    """Draws how often pairs of classes are taken for each other, as Mishra (2020, figure 4-5).

    A bar is the mean over the runs; from three runs on, the line on it is one standard deviation to
    each side.

    Args:
        found: What `tfuq.interpret.confused_pairs` has returned.
        top: How many pairs at most, the most confused on top; None for all.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes; without any pair it says so.

    Raises:
        ValueError: If `found` holds no pairs of this kind, or `top` is out of its range.

    Example:

    >>> import tfuq
    >>> found = tfuq.interpret.confused_pairs([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    >>> [text.get_text() for text in tfuq.plots.confused_pairs(found).get_yticklabels()]
    ['0 and 1']

    See also: `tfuq.interpret.confused_pairs`, `tfuq.plots.confusion_matrix`.
    """
    check_top(top)
    if not hasattr(found, "counts") or not hasattr(found, "directed"):
        raise ValueError(
            "Argument `found` must be the result of tfuq.interpret.confused_pairs. Received: "
            f"found={shown(found)}"
        )
    pairs, runs = found.pairs[:top], len(found.counts)
    word = "as" if found.directed else "and"
    ax = axes_of(ax)
    style = {"color": COLOURS[4], "edgecolor": COLOURS[5], "ecolor": COLOURS[5], "capsize": 3}
    means = [pair.mean for pair in pairs]
    known = runs >= FEWEST_RUNS
    ax.barh(range(len(pairs)), means, xerr=[p.std for p in pairs] if known else None, **style)
    ax.set_yticks(range(len(pairs)), [f"{p.first} {word} {p.second}" for p in pairs])
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    said = f", mean{' and deviation' if known else ''} of {runs} runs" if runs > 1 else ""
    ax.set(xlabel=f"errors{said}", ylabel="pair of classes")
    if not pairs:
        ax.text(0.5, 0.5, "no pair is confused", ha="center", transform=ax.transAxes)
    return ax


def label_noise_pairs(
    found: LabelNoisePairs, *, names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draws how the label noise of classes is related: the mean correlations of their logits.

    Args:
        found: What `tfuq.interpret.label_noise_pairs` has returned.
        names: Names of the classes, or None for their numbers.
        ax: Axes to draw on, or None for a new figure.

    Returns:
        The Axes. Red is below 0, blue above; up to 12 classes, each cell has its number, a class
        without noise none.

    Raises:
        ValueError: If `found` holds no correlations, or the names are not as many as the classes.

    Example:

    >>> import numpy as np, tfuq
    >>> found = tfuq.interpret.LabelNoisePairs((), np.eye(2), np.eye(2), 5)
    >>> ax = tfuq.plots.label_noise_pairs(found, names=["castle", "palace"])
    >>> [text.get_text() for text in ax.texts]
    ['+1.00', '+0.00', '+0.00', '+1.00']

    See also: `tfuq.interpret.label_noise_pairs`.
    """
    correlation = np.asarray(getattr(found, "correlation", None))
    if correlation.ndim != 2:
        raise ValueError(
            "Argument `found` must be the result of tfuq.interpret.label_noise_pairs. Received: "
            f"found={shown(found)}"
        )
    names = names_of(names, len(correlation))
    ax = axes_of(ax)
    drawn = ax.imshow(correlation, cmap=COLOUR_MAPS["signed"], vmin=-1, vmax=1)
    if len(correlation) <= LARGEST_LABELLED:
        write_cells(ax, correlation, np.abs(correlation) > 0.6, "{:+.2f}")
    name_classes(ax, names)
    ax.set(xlabel="class", ylabel="class")
    ax.figure.colorbar(drawn, ax=ax, label="correlation of the label noise")
    return ax
