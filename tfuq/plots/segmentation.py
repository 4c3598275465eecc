"""Pictures of masks and their uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.patches import Patch

from tfuq._arguments import ArrayLike, check_choice, check_positive
from tfuq._predictions.masks import error_map, mean_probs, predicted_classes, read_masks, stretched
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.plots._axes import COLOURS, RED, Figure, SubFigure, figure_of
from tfuq.predictive import entropy

ERRORS = ("true positive", "false positive", "false negative", "other class")
# The colours of `ERRORS`, and the colour map of entropies.
PALETTES = {
    "safe": ((COLOURS[2], COLOURS[0], RED, COLOURS[3]), "cividis"),
    "paper": (("#00C000", "#0000FF", "#FF0000", "#FFD700"), "turbo"),
}


def uncertainty_maps(
    images: ArrayLike,
    masks: ArrayLike,
    probs: ArrayLike | Uncertainty | RegressionUncertainty,
    *,
    raters_axis: int | None = None,
    threshold: float | None = None,
    palette: str = "safe",
    max_entropy: float | None = None,
    figure: Figure | SubFigure | None = None,
) -> Any:
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
            probabilities; if an option is not as described.

    Example:

    >>> import numpy as np, tfuq
    >>> images, masks = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), int)
    >>> figure = tfuq.plots.uncertainty_maps(images, masks, np.full((5, 2, 8, 8, 1), 0.2))
    >>> [ax.get_title() for ax in figure.axes[:4]]
    ['input', 'mask', 'prediction', 'entropy']

    References:
        Abboud et al., Sparse Bayesian Networks: Efficient Uncertainty Quantification in Medical
        Image Analysis.

    See also: `tfuq.plots.error_map`, `tfuq.predictive.predict_uncertainty`.
    """
    check_choice("palette", palette, tuple(PALETTES))
    if max_entropy is not None:
        check_positive("max_entropy", max_entropy)
    probs = mean_probs(probs)
    masks, true = read_masks(masks, probs.shape, raters_axis)
    predicted = predicted_classes(probs, threshold)
    images = stretched(images, probs.shape[:3])
    figure = figure_of(figure, len(images))
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
