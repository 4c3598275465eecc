"""Occlusion: predictions of a model for images of which a part is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    Data,
    ModelLike,
    Output,
    check_flags,
    check_fraction,
    check_integer,
    shown,
    to_float64,
    told,
)
from tfuq._files.tables import markdown_table
from tfuq._models.meaning import reading_of
from tfuq._models.outputs import select_output
from tfuq._predictions.examples import from_arrays
from tfuq.interpret._explainer import Explainer, image_of, with_image


def occlusion(
    model: ModelLike,
    images: Data,
    patch: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    value: float | Sequence[float] = 0.0,
    *,
    class_index: int | Sequence[int] | np.ndarray | None = None,
    target: str = "probability",
    num_samples: int | None = None,
    upsample: bool = True,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> np.ndarray:
    """Occlusion: how much a score falls when a patch hides a part of the image.

    Formula (Zeiler and Fergus 2014, section 4.2), for a score y:

    ```
    drop(patch) = y(image) - y(image with `value` inside the patch)
    map_ij      = mean of drop over the patches that cover the pixel (i, j)
    ```

    It needs no gradients, so it works for any network, but it needs one prediction per patch. The
    last patch of each row and column ends at the border, so that each pixel is hidden.

    Args:
        model: Keras model, channels last. This and what is not said here is as for `grad_cam`.
        images: Images.
        patch: Side of the patch in pixels, or `(height, width)`.
        stride: Pixels from one patch to the next, or `(down, right)`, from 1 to those of the patch;
            None for the side of the patch.
        value: Value of the pixels in the patch: a number, or one for each channel. In images
            normalized to mean 0, black is not 0.
        class_index: Classes. The predicted one is that of the whole image.
        target: What falls. `"class"`, the logit of the class, where a layer shows it;
            `"probability"`; `"predictive_entropy"`, `"expected_entropy"`, `"mutual_information"`
            (nats).
        num_samples: Number of draws, of which the score is one of the mean prediction.
        upsample: Whether to return maps of the size of the images, or else the drops.
        output: Which output.
        from_logits: Whether the output holds logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        batch_size: Images at a time.
        seed: Integer that determines the drawn networks.

    Returns:
        Array `(n, height, width)`, float32, in units of the score; without `upsample` `(n, rows,
        columns)`, one value for each patch. For several classes the axes are `(n, k, ...)`. It is
        positive where what was hidden raises the score: speaks for the class, or makes the
        prediction uncertain. NaN of images that are not finite.

    Raises:
        ValueError: If a patch does not fit into the images, `value` is not finite or does not fit
            the channels, or as `grad_cam`.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.interpret import occlusion

    layers = [keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    images = np.random.rand(2, 8, 8, 1)
    print(occlusion(model, images, patch=4, stride=2).shape)  # (2, 8, 8)
    print(occlusion(model, images, patch=4, stride=2, upsample=False).shape)  # (2, 3, 3)
    ```

    References:
        - Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.

    See also: `tfuq.interpret.center_occlusion`, `tfuq.interpret.grad_cam`.
    """
    check_flags(upsample=upsample)
    patch = _pair("patch", patch)
    stride = patch if stride is None else _pair("stride", stride)
    if stride[0] > patch[0] or stride[1] > patch[1]:
        raise ValueError(
            f"Argument `stride` must be at most the side of the patch, {patch}. "
            f"Received: stride={stride}"
        )
    reading = reading_of(output, from_logits, multi_label)
    explainer = Explainer(model, class_index, target, num_samples, seed, reading)
    found = []
    for batch, classes, *_ in explainer.over(images, batch_size):
        size = tuple(image_of(batch).shape[1:3])
        lines = [_starts(*sides) for sides in zip(size, patch, stride, strict=True)]
        drops = _drops(explainer, batch, classes, lines, patch, value)
        found.append(_spread(drops, lines, patch, size) if upsample else drops)
    found = np.concatenate(found)
    return found[:, 0] if explainer.is_single else found


def _drops(explainer, batch, classes, lines, patch, value):
    """Falls of the scores, `(batch, k, rows, columns)`."""
    classes = explainer.predicted(batch) if classes is None else classes
    whole = explainer.scores(batch, classes)

    def drop(top, left):
        box = (top, left, top + patch[0], left + patch[1])
        return whole - explainer.scores(_hidden(batch, box, value), classes)

    rows = [tf.stack([drop(top, left) for left in lines[1]], axis=-1) for top in lines[0]]
    return tf.stack(rows, axis=2).numpy()


def _starts(size, patch, stride):
    """Where patches start on a line of `size` pixels; the last one ends with the line."""
    if patch > size:
        raise ValueError(
            f"Argument `patch` must fit into the images, of side {size}. Received: patch={patch}"
        )
    return sorted({*range(0, size - patch + 1, stride), size - patch})


def _spread(drops, lines, patch, size):
    """For each pixel the mean of the drops whose patches cover it."""
    down, right = (
        (np.arange(s) >= np.array(starts)[:, None]) & (np.arange(s) < np.array(starts)[:, None] + p)
        for s, starts, p in zip(size, lines, patch, strict=True)
    )
    down, right = (covers / covers.sum(axis=0) for covers in (down, right))
    return np.einsum("nkrc,rh,cw->nkhw", drops, down, right).astype("float32")


def _pair(name, value):
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(
            f"Argument `{name}` must be an integer or two. Received: {name}={shown(value)}"
        )
    for side in pair:
        check_integer(name, side, 1)
    return pair


# --- Hiding -----------------------------------------------------------------------------------


def _hidden(batch, box, value, outside=False):
    """The batch with `value` inside, or outside, the box (top, left, bottom, right) of images."""

    def change(image):
        rows, columns = (tf.range(side) for side in image.shape[1:3])
        top, left, bottom, right = box
        is_inside = ((rows >= top) & (rows < bottom))[:, None, None]
        is_inside &= ((columns >= left) & (columns < right))[:, None]
        hides = ~is_inside if outside else is_inside
        return tf.where(hides, _pixel(value, image), image)

    return with_image(batch, change)


def _pixel(value, image):
    pixel = to_float64("value", value)
    if pixel.shape not in ((), (1,), (image.shape[-1],)) or not np.all(np.isfinite(pixel)):
        raise ValueError(
            "Argument `value` must be a finite number, or one for each of "
            f"{image.shape[-1]} channels. Received: value={shown(value)}"
        )
    return tf.cast(pixel, image.dtype)


# --- The centre -------------------------------------------------------------------------------


@told
class CenterOcclusion(NamedTuple):
    """Accuracy of a model on images without their centre, and on the centre alone.

    Arrays have an entry for each size; what has no unit is a fraction.

    Example:

    >>> from tfuq.interpret import CenterOcclusion
    >>> print(CenterOcclusion([0.5], [0.4], [0.8], [0.3], [0.7], 10).to_markdown())
    | side of the centre | accuracy, hidden | accuracy, kept | p(true), hidden | p(true), kept |
    | --- | --: | --: | --: | --: |
    | 0.5 | 0.400 | 0.800 | 0.300 | 0.700 |

    See also: `tfuq.interpret.center_occlusion`.
    """

    size: np.ndarray
    """Side of the centre, as a fraction of the image's."""
    hidden_accuracy: np.ndarray
    """Accuracy with the centre hidden."""
    kept_accuracy: np.ndarray
    """Accuracy with all but the centre hidden."""
    hidden_probability: np.ndarray
    """Mean probability of the true class with the centre hidden."""
    kept_probability: np.ndarray
    """Mean probability of the true class with all but the centre hidden."""
    n: int
    """Decisions that were counted: images, or labels or pixels of them."""

    def to_markdown(self) -> str:
        """A table with a line for each size.

        Returns:
            A string.
        """
        header = ["accuracy, hidden", "accuracy, kept", "p(true), hidden", "p(true), kept"]
        rows = [
            [f"{size:.3g}", *(f"{number:.3f}" for number in row)]
            for size, *row in zip(*self[:5], strict=True)
        ]
        return markdown_table(["side of the centre", *header], rows)


def center_occlusion(
    model: ModelLike,
    data: Data,
    sizes: Sequence[float] = (0, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1),
    value: float | Sequence[float] = 0.0,
    *,
    num_samples: int | None = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> CenterOcclusion:
    """Accuracy of a model when the centre of the images is hidden, or everything but the centre.

    Does the background alone tell the class? Mishra (2020, section 4.3) hides the lesion, in the
    centre, behind a black rectangle of a third of the sides. An accuracy that stays up says that
    the model looks at something else.

    Args:
        model: Keras model, channels last. This and what is not said here is as for `grad_cam`.
        data: `(images, labels)` or `(images, labels, weights)`, or a `tf.data.Dataset` or
            `keras.utils.PyDataset` of such batches. Labels are sparse or one-hot.
        sizes: Sides of the centre, as fractions of those of the images, from 0 to 1; rounded to
            pixels.
        value: What hidden pixels hold: a number, or one for each channel.
        num_samples: Number of draws, of which the mean prediction is used.
        output: Which output.
        from_logits: Whether the output holds logits.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        batch_size: Images at a time.
        seed: Integer that determines the drawn networks.

    Returns:
        `CenterOcclusion`. Size 0 hides nothing and keeps nothing, size 1 the other way round.

    Raises:
        ValueError: If labels are missing or do not fit, there are no sizes, or an argument is out
            of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.interpret import center_occlusion

    layers = [keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    images, labels = np.random.rand(9, 8, 8, 1), np.arange(9) % 3
    print(center_occlusion(model, (images, labels), sizes=[0, 0.5]).to_markdown())
    ```

    See also: `tfuq.interpret.CenterOcclusion`, `tfuq.interpret.occlusion`.
    """
    sizes = np.atleast_1d(to_float64("sizes", sizes))
    if sizes.ndim != 1 or not sizes.size:
        raise ValueError(f"Argument `sizes` must hold one number or more. Received: sizes={sizes}")
    for size in sizes:
        check_fraction("sizes", size)
    reading = reading_of(output, from_logits, multi_label)
    explainer = Explainer(model, None, "probability", num_samples, seed, reading)
    sums = []
    for batch, _, labels, weight in explainer.over(data, batch_size, name="data"):
        if labels is None:
            raise ValueError("Argument `data` must hold labels. Received: data without labels")
        labels = select_output(labels, output) if keras.tree.is_nested(labels) else labels
        if weight is None or np.any(weight):  # a batch that counts for nothing is no fault
            sums.append(_sums(explainer, batch, labels, weight, sizes, value))
    if not sums:
        raise ValueError("Argument `data` must hold a weight above 0. Received: only zeros")
    counts, weight, *totals = np.moveaxis(np.sum(sums, axis=0), -1, 0)
    (hidden_right, kept_right), (hidden_true, kept_true) = ((each / weight).T for each in totals)
    n = int(counts[0, 0])
    return CenterOcclusion(sizes, hidden_right, kept_right, hidden_true, kept_true, n)


def _sums(explainer, batch, labels, weight, sizes, value):
    """Sums `(sizes, 2, 4)`, without the centre and without all else, as of `_sums_of_batch`."""
    height, width = image_of(batch).shape[1:3]
    found = []
    for size in sizes:
        high, wide = round(size * height), round(size * width)
        top, left = (height - high) // 2, (width - wide) // 2
        box = (top, left, top + high, left + wide)
        pair = [_hidden(batch, box, value, outside) for outside in (False, True)]
        found.append([_sums_of_batch(explainer, images, labels, weight) for images in pair])
    return np.array(found)


def _sums_of_batch(explainer, batch, labels, weight):
    """Decisions, their weight, that of the right ones, and of all times p(true class)."""
    probs = explainer.mean(batch).numpy()
    probs = probs[..., 1] if explainer.is_binary else probs
    names, multi_label = ("data", "model", "data"), explainer.reading.multi_label
    examples = from_arrays(labels, probs, weight, multi_label=multi_label, names=names)
    weight = np.asarray(examples.weight)
    right = np.asarray(examples.top_label()[1])
    labels = np.asarray(examples.labels)
    true = np.asarray(examples.probs())[np.arange(len(labels)), labels]
    return np.count_nonzero(weight), weight.sum(), weight @ right, weight @ true
