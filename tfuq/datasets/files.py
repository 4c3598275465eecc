"""Local `.npz` files in the form of the public sets."""

from __future__ import annotations

import contextlib
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import PathLike
from tfuq._files.reading import DAMAGE, open_arrays
from tfuq._images.files import reason_of
from tfuq.datasets._pipelines import Form


def from_npz(
    path: PathLike,
    split: str | Sequence[str] | None = "train",
    *,
    label: str | None = None,
    batch_size: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    crop_to_aspect_ratio: bool = False,
    shuffle: bool | int = False,
    seed: int = 0,
    cache: bool = False,
) -> Any:
    """A `tf.data.Dataset` of pairs `(image, label)` from an `.npz` file, or a folder of such files.

    For `split="train"` a file holds, as Keras' `mnist.npz`, MedMNIST's files and others do:

    - images: `x_train`, `images_train` or `train_images`;
    - or JPEG files that stand end to end: `train_bytes`, and `train_offsets`, where each begins and
      the last one ends;
    - labels: `y_train`, `labels_train` or `train_labels`.

    With `split=None`, and in a file that is called `train.npz`, the names are `x`, `images` or
    `bytes` and `offsets`, and `y` or `labels`. Nothing pickled is read.

    Args:
        path: The file; or a folder that holds a file `<split>.npz`, or one `.npz` file alone.
        split: Name of the part, such as `"train"`, `"val"` or `"test"`; None for a file that is not
            split; or a list of names, for a list of datasets.
        label: Name of other labels in the file: `"dme"` stands for `dme_train` or `train_dme`.
        batch_size: Examples in a batch; None for single examples.
        image_size: `(height, width)`, or one number for both, that images are resized to
            (bilinear, antialiased); labels per pixel too (nearest).
        crop_to_aspect_ratio: Whether resizing cuts off what is too long, instead of squeezing it.
        shuffle: Whether each epoch has an order of its own; a number shuffles no further than
            this many examples.
        seed: Integer that determines the orders.
        cache: Whether to keep what is decoded and resized in memory, from the first epoch on.

    Returns:
        `tf.data.Dataset` of `(image, label)`. Images are `(height, width, channels)`, in the dtype
        of the file (JPEG: uint8, 3 channels); integer labels are int64, `(n, 1)` as `(n,)`, real
        ones float32, and masks as they are.

    Raises:
        ValueError: If a file or a name is missing (the error says what there is), images and labels
            do not fit together, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.datasets import from_npz

    x, y = np.zeros((6, 8, 8), "uint8"), np.arange(6) % 2
    np.savez("digits.npz", x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    train, test = from_npz("digits.npz", ["train", "test"], batch_size=2)
    for images, labels in train:
        print(images.shape, labels.numpy())  # (2, 8, 8, 1) [0 1]
    ```

    See also: `tfuq.datasets.load`.
    """
    form = Form(batch_size, image_size, crop_to_aspect_ratio, shuffle, seed, cache)
    form.check()
    if isinstance(split, (list, tuple)):
        return [_dataset(pathlib.Path(path), part, label, form) for part in split]
    return _dataset(pathlib.Path(path), split, label, form)


def _dataset(path, split, label, form):
    """Numbers of examples, shuffled where these alone have to be kept, then read."""
    images, labels = _read_split(_file(path, split), split, label)
    count = len(labels)
    if len(images) != count:
        raise ValueError(
            "Argument `path` must hold as many labels as images. "
            f"Received: {len(images)} images and {count} labels"
        )
    dataset, labels = tf.data.Dataset.range(count), tf.constant(labels)
    if not form.cache:  # numbers are cheap to shuffle; a cache has to stand before
        dataset, form = form.shuffled(dataset, count), form._replace(shuffle=False)
    one_size = form.batch_size is not None and form.image_size is None

    def read(index):
        return images.read(index, one_size), tf.gather(labels, index)

    return form.finished(dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE), count)


class _Arrays:
    """Images `(n, height, width)` or `(n, height, width, channels)`."""

    def __init__(self, images):
        if images.ndim not in (3, 4) or images.dtype.kind not in "fiu":
            raise ValueError(
                "Argument `path` must hold images (n, height, width[, channels]) of numbers. "
                f"Received: shape {images.shape}, dtype {images.dtype}"
            )
        self.images = tf.constant(images[..., None] if images.ndim == 3 else images)

    def __len__(self):
        return len(self.images)

    def read(self, index, one_size):
        return tf.gather(self.images, index)


class _JPEGs:
    """JPEG files that stand end to end in one array of bytes."""

    def __init__(self, data, offsets):
        steps = np.diff(offsets)
        fits = offsets.ndim == 1 and len(steps) and offsets[0] == 0 and offsets[-1] == data.size
        if data.dtype != np.uint8 or not fits or (steps <= 0).any():
            raise ValueError(
                "Argument `path` must hold bytes (uint8), and offsets that rise from 0 to their "
                f"number. Received: {data.size} of dtype {data.dtype}, offsets {offsets}"
            )
        self.data, self.offsets = tf.constant(data.tobytes()), tf.constant(offsets, "int64")
        try:
            self.first = tf.io.extract_jpeg_shape(self._file(0))[:2]
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                "Argument `path` must hold JPEG files in its bytes. Received: a first one that "
                f"cannot be read ({reason_of(error)})"
            ) from error

    def __len__(self):
        return len(self.offsets) - 1

    def _file(self, index):
        start, end = self.offsets[index], self.offsets[index + 1]
        return tf.strings.substr(self.data, start, end - start)

    def read(self, index, one_size):
        # As Pillow decodes it, to the bit.
        image = tf.io.decode_jpeg(self._file(index), channels=3, dct_method="INTEGER_ACCURATE")
        if one_size:
            message = "Argument `image_size` must be given to batch images of different sizes."
            tf.debugging.assert_equal(tf.shape(image)[:2], self.first, message)
            image.set_shape((*self.first.numpy(), 3))
        return image


def _file(path, split):
    """The file that holds `split`."""
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.npz"))
        if f"{split}.npz" in files:
            return path / f"{split}.npz"
        if len(files) != 1:
            raise ValueError(
                f"Argument `path` must be a folder that holds {split}.npz, or one .npz file alone; "
                f"or name a file. Received: path={str(path)!r}, which holds {files}"
            )
        return path / files[0]
    if not path.is_file() or not zipfile.is_zipfile(path):
        beside = sorted(file.name for file in path.parent.glob("*.npz"))
        raise ValueError(
            "Argument `path` must be an .npz file or a folder. "
            f"Received: path={str(path)!r}; beside it there is {beside}"
        )
    return path


def _read_split(path, split, label):
    """Images and labels of a split."""
    with _whole(path), open_arrays(path) as arrays:
        there = arrays.files

    def first(*parts):
        names = [] if split is None else [f"{part}_{split}" for part in parts]
        names += [] if split is None else [f"{split}_{part}" for part in parts]
        names += parts if split is None or path.stem == split else []
        return next((name for name in names if name in there), None)

    images, data, offsets = first("x", "images"), first("bytes"), first("offsets")
    labels = first("y", "labels") if label is None else first(label)
    labels = label if labels is None and label in there else labels
    if images is None and None in (data, offsets):
        raise _missing("images", path, split, label, there)
    if labels is None:
        raise _missing("labels", path, split, label, there)
    names = [data, offsets] if images is None else [images]
    with _whole(path), open_arrays(path) as arrays:
        *found, given = [arrays[name] for name in (*names, labels)]
    return (_JPEGs if images is None else _Arrays)(*found), _labels(given, labels)


@contextlib.contextmanager
def _whole(path):
    """Says of arrays that cannot be read which file it is, and what to do."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            "Argument `path` must be a whole .npz file of arrays that need no pickle: restore it, "
            f"or write it again. Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error


def _missing(what, path, split, label, there):
    return ValueError(
        f"Argument `path` must hold {what} for split={split!r} and label={label!r}. "
        f"Received: {path}, which holds {there}"
    )


def _labels(labels, name):
    if labels.ndim == 0 or labels.dtype.kind not in "fiub":
        raise ValueError(
            f"Argument `label` must name an array of numbers. Received: {name!r} of shape "
            f"{labels.shape} and dtype {labels.dtype}"
        )
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if labels.ndim > 2:  # masks, which int64 would make eight times as large
        return labels
    return labels.astype("float32" if labels.dtype.kind == "f" else "int64")
