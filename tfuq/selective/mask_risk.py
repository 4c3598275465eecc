"""Segmentation masks that find as much of what is there as was asked."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    Self,
    Tensor,
    check_flags,
    check_fraction,
    check_integer,
    register,
    shown,
)
from tfuq._math.bounds import hoeffding_bentkus_p_value
from tfuq._models.predicting import predicted
from tfuq._predictions.numbers import RegressionUncertainty
from tfuq._predictions.stacks import Kind, is_stacked, only_probabilities, read_stack, stack_of
from tfuq._predictions.uncertainty import Uncertainty
from tfuq.layers import PostProcessing
from tfuq.selective._conformal_fitting import checked_alpha
from tfuq.selective._guarantees import smallest_where
from tfuq.selective._interval_sources import labels_of
from tfuq.selective._reading import array_of, flags_of
from tfuq.selective._repeated_rows import warn_of_repeated
from tfuq.selective.base import Fitted, config_of, numbers, with_outputs
from tfuq.selective.conformal_scores import ROUNDING, fewest_examples, smallest_threshold

__all__ = ["MaskEvaluation", "MaskRiskControl"]

_CONFIDENCE = 0.95  # of intervals


class MaskEvaluation(NamedTuple):
    """Recall of masks on labelled images.

    Example:

    >>> from tfuq.selective import MaskRiskControl
    >>> found = MaskRiskControl(0.4).evaluate([[[0.9, 0.5, 0.1]]], [[[1, 1, 1]]])
    >>> round(found.recall, 4), found.precision
    (0.6667, 1.0)

    See also: `tfuq.selective.MaskRiskControl`.
    """

    examples: int
    """Masks that are not empty: of several labels each counts for itself."""
    empty_masks: int
    """Masks in which nothing is marked; they have no recall."""
    recall: float
    """Mean over the masks of the share of their pixels that is found."""
    recall_lower: float
    """Lower end of its interval at 95 %, by Hoeffding and Bentkus, of images."""
    recall_upper: float
    precision: float
    """Of all pixels that are found, the share that is marked; NaN if none are."""
    mean_size: float
    """Share of all pixels that is found."""


@register
class MaskRiskControl(Fitted):
    """Masks that miss, on average, at most a stated share of the marked pixels.

    `MaskRiskControl.fit` makes one from images that the model was not trained on. A pixel is in the
    mask if its probability is at least a threshold, or if it is NaN, because an unknown pixel may
    belong to it.

    Args:
        threshold: Probability in [0, 1]; with `multi_label` one for each label.
        rank: Axes of the predictions: 4 for `(n, height, width, 1)`, whose last axis may be
            missing. An array with one axis more is a stack.
        from_logits: Whether predictions are logits.
        multi_label: Whether each entry of the last axis is a label with masks of its own.
        fitted_to: What the threshold was fitted to, a dict.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> from tfuq.selective import MaskRiskControl
    >>> MaskRiskControl(0.3).predict([[[0.9, 0.31, 0.1]]])
    array([[[ True,  True, False]]])

    References:
        - Angelopoulos et al., "Conformal risk control", 2022.

    See also: `tfuq.selective.MaskEvaluation`, `tfuq.metrics.dice_score`.
    """

    def __init__(
        self,
        threshold: Any = 0.5,
        *,
        rank: int = 4,
        from_logits: bool = False,
        multi_label: bool = False,
        fitted_to: dict[str, Any] | None = None,
    ) -> None:
        check_integer("rank", rank, 3)
        check_flags(from_logits=from_logits, multi_label=multi_label)
        self.threshold = numbers("threshold", threshold)
        if self.threshold.ndim != int(multi_label) or not self.threshold.size:
            kind = "one number for each label" if multi_label else "a number"
            raise ValueError(
                f"Argument `threshold` must be {kind} with multi_label={multi_label}. "
                f"Received: threshold={shown(self.threshold)}"
            )
        for value in self.threshold.ravel():
            check_fraction("threshold", float(value))
        self.rank = rank
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.fitted_to = dict(fitted_to or {})

    def get_config(self) -> dict[str, Any]:
        return config_of(self, ("threshold", "rank", "from_logits", "multi_label", "fitted_to"))

    # --- Fitting ------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        probs: ArrayLike | Uncertainty | RegressionUncertainty,
        masks: ArrayLike,
        target_recall: float | None = None,
        *,
        alpha: float | None = None,
        stacked: bool | None = None,
        from_logits: bool = False,
        multi_label: bool = False,
    ) -> Self:
        """The largest threshold whose masks miss on average at most `alpha` of what is marked.

        For n images and a new one that are exchangeable, whatever the model:

        ```
        E[share of the new image's marked pixels that its mask misses] <= alpha
        sum_i share missed of image i <= alpha (n + 1) - 1
        ```

        The expectation is over the images of the fit too; it is promised on average over images,
        not for each. Images in which nothing is marked have no recall: they are left out, of the
        fit and of the promise, and `fitted_to["empty_masks"]` counts them.

        Args:
            probs: Probabilities that a pixel is marked, of images that the model has not been
                trained on: `(n, height, width)`, `(n, height, width, 1)`, with `multi_label` `(n,
                height, width, labels)`; the result of `predict_uncertainty`; or a stack of them,
                whose mean is the prediction.
            masks: What is marked, 0 or 1, of the same shape; a last axis of 1 may be missing.
            target_recall: Share in (0, 1) to find, by default 0.9.
            alpha: 1 - `target_recall`, instead of it.
            stacked: Whether `probs` are a stack, as in `RejectionRule.score_of`.
            from_logits: Whether `probs` are logits.
            multi_label: Whether each entry of the last axis is a label, which has a threshold of
                its own.

        Returns:
            The fitted object; `fitted_to` says what it was fitted to.

        Raises:
            ValueError: If there are fewer than ceil(1 / alpha) - 1 masks that are not empty: it
                tells that number. If arrays do not fit together, hold NaN, no probabilities (such
                as logits) or other labels than 0 and 1.

        Example:

        >>> import numpy as np
        >>> from tfuq.selective import MaskRiskControl
        >>> rng = np.random.default_rng(0)
        >>> probs = rng.random((100, 8, 8)) ** 2
        >>> masks = rng.random((100, 8, 8)) < probs
        >>> found = MaskRiskControl.fit(probs[:50], masks[:50], target_recall=0.9)
        >>> bool(found.evaluate(probs[50:], masks[50:]).recall > 0.87)
        True
        """
        alpha = _alpha_of(target_recall, alpha)
        flags = flags_of(probs, from_logits, multi_label)
        rank, labels = _axes_of(np.shape(array_of(probs)), is_stacked(probs, stacked), **flags)
        draft = cls(np.full(labels, 0.5) if flags["multi_label"] else 0.5, rank=rank, **flags)
        mean, marked = draft._read(probs, masks, stacked)
        warn_of_repeated(mean, marked)
        found, counts = zip(
            *(_threshold(mean[..., k], marked[..., k], alpha) for k in range(labels)), strict=True
        )
        report = {"alpha": alpha, "examples": len(mean)}
        report["empty_masks"] = [len(mean) - count for count in counts]
        found = found if draft.multi_label else found[0]
        return cls(found, rank=rank, **flags, fitted_to=report)

    @classmethod
    def fit_model(
        cls,
        model: ModelLike,
        data: Data,
        *,
        output: Output | None = None,
        batch_size: int = 32,
        verbose: int = 0,
        **options: Any,
    ) -> Self:
        """As `fit`, of the predictions that a model makes for `data`, in one pass over it.

        Args:
            model: A Keras model of masks.
            data: `(x, masks)` arrays, a `tf.data.Dataset` of such pairs, or a `PyDataset`.
            output: Which output, if there are several: an index, a key or a function.
            batch_size: Examples in a batch of arrays.
            verbose: As in Keras' `predict`.
            **options: Arguments of `fit`. `from_logits` and `multi_label` are by default what the
                last layer declares, else what the compiled loss says.

        Returns:
            The fitted object.

        Raises:
            ValueError: As `fit`; if the data are of another kind, have no labels or have weights.

        Example:

        ```python
        import keras, numpy as np
        from tfuq.selective import MaskRiskControl

        layer = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")
        model = keras.Sequential([keras.Input((8, 8, 1)), layer])
        images = np.random.default_rng(0).random((20, 8, 8, 1))
        found = MaskRiskControl.fit_model(model, (images, images > 0.5))
        ```
        """
        found = predicted(model, data, output, batch_size, verbose, given=options)
        return cls.fit(found.probs, found.labels, **{**found.flags(), **options})

    def _kind(self):
        """Of predictions with an axis of labels, each of which is a binary one."""
        return Kind(self.rank, self.from_logits, True, self.threshold.size)

    def _mean(self, probs, stacked=None):
        """Probabilities of what is marked, `(n, ..., labels)`."""
        kind = self._kind()
        if isinstance(probs, Uncertainty):
            kind, stacked, probs = kind.of_probabilities(), False, probs.probs
        stacked = is_stacked(probs, stacked)
        probs = _with_labels(np.asarray(probs), self, stacked)
        return read_stack(probs, kind, stacked).mean(axis=0)[..., 1]

    def _read(self, probs, masks, stacked=None):
        """Mean probabilities and what is marked, both `(n, ..., labels)`, checked."""
        mean = self._mean(probs, stacked)
        marked = labels_of(masks, mean.shape, "masks")
        if not np.isin(marked, (0, 1)).all():
            raise ValueError(
                f"Argument `masks` must hold 0 and 1. Received: masks={shown(np.unique(marked))}"
            )
        if not np.isfinite(mean).all():
            raise ValueError(
                "Argument `probs` must hold finite numbers: leave out the other images. "
                f"Received: {np.count_nonzero(~np.isfinite(mean))} that are not"
            )
        return mean, marked.astype(bool)

    # --- Use ----------------------------------------------------------------------------------

    def _masks(self, mean, xp):
        # Not `| isnan(mean)`: converters make `abs(mean) > inf` of it, which NaN is not.
        marked = mean >= (self.threshold - ROUNDING).astype("float32")
        return xp.where(xp.isfinite(mean), marked, True)

    def predict(
        self, probs: ArrayLike | Uncertainty | RegressionUncertainty, *, stacked: bool | None = None
    ) -> np.ndarray:
        """The masks, bool, in the shape of the predictions `(n, height, width, ...)`.

        Args:
            probs: Predictions of the kind that it was fitted to, or a stack of them.
            stacked: Whether they are a stack.

        Raises:
            ValueError: If shapes or labels do not fit, or `probs` hold no probabilities.
        """
        mean = self._mean(probs, stacked)
        found, given = self._masks(mean, np), np.shape(array_of(probs))
        has_labels = len(given) == self.rank + (1 if is_stacked(probs, stacked) else 0)
        return found if has_labels or len(given) > self.rank else found[..., 0]

    def evaluate(
        self, probs: ArrayLike | Uncertainty | RegressionUncertainty, masks: ArrayLike
    ) -> MaskEvaluation:
        """Recall, precision and size of the masks on labelled images, a `MaskEvaluation`.

        Args:
            probs: As in `predict`.
            masks: What is marked, as in `fit`.

        Raises:
            ValueError: As `fit`; if nothing is marked in any image.
        """
        mean, marked = self._read(probs, masks)
        found = self._masks(mean, np)
        axes = tuple(range(1, mean.ndim - 1))
        pixels = marked.sum(axis=axes)
        if not pixels.any():
            raise ValueError(
                "Argument `masks` must mark at least one pixel of one image: without any there is "
                f"no recall. Received: {len(masks)} empty masks"
            )
        hits = (found & marked).sum(axis=axes)
        recalls = hits[pixels > 0] / pixels[pixels > 0]
        return MaskEvaluation(
            int((pixels > 0).sum()),
            int((pixels == 0).sum()),
            *_recall(recalls, int((pixels > 0).any(axis=-1).sum())),
            float(hits.sum() / found.sum()) if found.any() else np.nan,
            float(found.mean()),
        )

    def describe(self) -> str:
        """The promise, in a sentence for the person who relies on it."""
        limits = ", ".join(f"{value:.4g}" for value in self.threshold.ravel())
        how = f"A pixel is in the mask from a probability of {limits} on."
        if "alpha" not in self.fitted_to:
            return f"A threshold set by hand, which promises nothing. {how}"
        told = self.fitted_to
        return (
            f"Of what is marked in a new image, an expected share of at least "
            f"{1 - told['alpha']:.4g} is in its mask, if it is exchangeable with the "
            f"{told['examples']} images that it was fitted to, of which those without any mark "
            f"({told['empty_masks']}) were left out. {how}"
        )

    def transform(self, predictions: Tensor) -> dict[str, Tensor]:
        """Tensors `"probabilities"`, means over a stack, and `"mask"`, bool, of predictions."""
        kind = self._kind()
        stack = stack_of(_with_labels(predictions, self, None), kind)
        stack = stack if self.from_logits else only_probabilities(stack)
        mean = ops.mean(stack, axis=0)[..., 1]
        return {"probabilities": mean, "mask": self._masks(mean, ops)}

    def append_to(self, model: keras.Model, output: Output | None = None) -> keras.Model:
        """A functional model of the same inputs whose outputs are those of `transform`.

        Args:
            model, output: As in `RejectionRule.append_to`.

        Raises:
            ValueError: If the model does not know its inputs.

        Example:

        ```python
        import keras
        from tfuq.selective import MaskRiskControl

        layer = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")
        model = keras.Sequential([keras.Input((8, 8, 1)), layer])
        whole = MaskRiskControl(0.2).append_to(model)
        print(sorted(whole.output))  # ['mask', 'probabilities']
        ```
        """
        return with_outputs(model, PostProcessing(self, name="mask_risk"), output)


def _axes_of(shape, stacked, from_logits, multi_label):
    """Axes of a prediction, that of labels counted, and how many labels there are."""
    del from_logits
    axes, several = len(shape), 1 if stacked else 0
    if multi_label and axes - several >= 3:
        return axes - several, shape[-1]
    if not multi_label and axes - several == 3:
        return 4, 1
    if not multi_label and axes - several > 3 and shape[-1] == 1:
        return axes - several, 1
    raise ValueError(
        "Argument `probs` must have shape (n, height, width) or (n, height, width, 1), the "
        "probability of one label (of two classes that of class 1, probs[..., 1]); with "
        "multi_label=True (n, height, width, labels); one axis more with stacked=True. "
        f"Received: probs of shape {shape}, multi_label={multi_label}, stacked={stacked}"
    )


def _with_labels(probs, fitted, stacked):
    """Predictions with an axis of labels, which may be missing if there is one."""
    is_missing = len(probs.shape) == fitted.rank + (1 if stacked else 0) - 1
    return probs[..., None] if is_missing and not fitted.multi_label else probs


def _alpha_of(target_recall, alpha):
    if target_recall is not None and alpha is not None:
        raise ValueError(
            "Argument `target_recall` must be None if `alpha` is given. "
            f"Received: target_recall={shown(target_recall)}, alpha={shown(alpha)}"
        )
    if target_recall is not None:
        check_fraction("target_recall", target_recall)
        if target_recall in (0, 1):
            raise ValueError(
                "Argument `target_recall` must be in (0, 1). "
                f"Received: target_recall={shown(target_recall)}"
            )
    return checked_alpha(alpha, target_recall)


def _threshold(probs, marked, alpha):
    """The threshold of one label, and how many masks are not empty."""
    marked = marked.reshape(len(marked), -1)
    pixels = marked.sum(axis=1)
    count, needed = int(np.count_nonzero(pixels)), fewest_examples(alpha)
    if count < needed:
        raise ValueError(
            f"Argument `masks` must hold at least {needed} masks that are not empty to miss at "
            f"most alpha={alpha:g} of what is marked. "
            f"Received: {count}, and {len(marked) - count} that are empty"
        )
    weights = np.repeat(1 / np.maximum(pixels, 1), pixels)
    missing = 1 - probs.reshape(marked.shape)[marked].astype("float64")
    found = smallest_threshold(missing, weights, count, alpha)
    return min(max(1 - found, 0.0), 1.0), count


def _recall(recalls, images):
    """Mean of recalls with its interval, which counts images."""
    side, mean = (1 - _CONFIDENCE) / 2, float(recalls.mean())

    def bound(value):
        return smallest_where(lambda risk: hoeffding_bentkus_p_value(value, images, risk) <= side)

    return mean, 1 - bound(1 - mean), bound(mean)
