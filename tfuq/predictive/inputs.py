"""Data of any kind as batches that can be read again from the middle: inputs, labels and files."""

import concurrent.futures
import itertools
import os
import pathlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, shown
from tfuq._files.reading import open_arrays
from tfuq._images.files import IMAGES, UnreadableImage, read_image
from tfuq._images.inputs import InputSpec
from tfuq._models.batches import batches
from tfuq._models.torch_data import keras_data
from tfuq.predictive.declarations import declared, is_of_images
from tfuq.predictive.identity import identity_of_arrays, identity_of_dataset, identity_of_files

_NAMES = (("x", "images"), ("y", "labels"))
_READERS = 8  # threads that decode images: most of their time they wait for disks


class Batch(NamedTuple):
    """Examples that are scored together."""

    inputs: object
    labels: object  # or None
    files: list | None  # names

    def __len__(self):
        return len(tf.nest.flatten(self.inputs)[0])


class Stream:
    """Batches that are read from the beginning, whatever of them is wanted.

    `identity` is a function: what is known of the data before they are read. `is_known` says
    whether that is all, so that no batch need be compared with one that was read before.
    """

    def __init__(self, found, identity, is_known):
        self._found = iter(found)
        self.first = next(self._found)
        self.identity, self.is_known = identity, is_known

    def after(self, rows):
        """Pairs of the number of a batch's first example and the batch, for all after `rows`.

        `examples` is the number of all that were read, at the end of it that of all.
        """
        self.examples = 0
        for batch in itertools.chain([self.first], self._found):
            start, self.examples = self.examples, self.examples + len(batch)
            if self.examples > rows:
                yield start, batch


class Files:
    """Batches of files, of which only those that are wanted are read."""

    is_known = True

    def __init__(self, names, batch_size, decode, verbose, labels=None):
        self._labels = labels
        self._names, self._batch_size = names, batch_size
        self._decode, self._verbose = decode, verbose
        self.examples = len(names)
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            self.first = self._read(0, pool)

    def identity(self):
        """As of `Stream`."""
        return identity_of_files(self._names, self._labels)

    def after(self, rows):
        """As of `Stream`."""
        starts = range(0, len(self._names), self._batch_size)
        bar = keras.utils.Progbar(len(starts), verbose=self._verbose, unit_name="batch")
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            for number in range(rows // self._batch_size, len(starts)):
                yield starts[number], self._read(starts[number], pool)
                bar.update(number + 1)

    def _read(self, start, pool):
        rows = slice(start, start + self._batch_size)
        chosen = self._names[rows]
        labels = None if self._labels is None else self._labels[rows]
        return Batch(_stacked(chosen, list(pool.map(self._decode, chosen))), labels, chosen)


def source_of(data, batch_size, model, decode, verbose):
    """`Stream` or `Files` of any data: `first`, a batch, and `after(rows)`."""
    check_integer("batch_size", batch_size, 1)
    if decode is not None and not callable(decode):
        raise ValueError(f"Argument `decode` must be a function. Received: decode={shown(decode)}")
    if isinstance(data, (Stream, Files)):
        return data
    data = keras_data(data)
    if not is_files(data):
        if decode is not None:
            raise ValueError(
                "Argument `decode` must be None unless `data` are files. Received: "
                f"decode={shown(decode)}"
            )
        return _stream(data, batch_size, verbose)
    files = _checked_files(data)
    kinds = {file.suffix.lower() for file in files}
    if kinds == {".npz"} and decode is None:
        found = _npz_batches(files, batch_size)
        return Stream(found, lambda: identity_of_files(files), is_known=True)
    others = sorted(kinds - set(IMAGES))
    if others and decode is None:
        raise ValueError(
            f"Argument `data` must name only images ({', '.join(IMAGES)}) or .npz files, unless "
            f"`decode` reads them. Received: files that end in {others}"
        )
    return Files([str(file) for file in files], batch_size, decode or decoder(model), verbose)


def _stream(data, batch_size, verbose):
    """`Stream` of arrays, or of a dataset."""
    found = map(_batch, batches(data, batch_size, verbose, "data"))
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        return Stream(found, lambda: identity_of_dataset(data), is_known=False)
    x, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    x = x[0] if isinstance(x, tuple) and len(x) == 1 else x
    return Stream(found, lambda: identity_of_arrays(x, y), is_known=True)


def _batch(triple):
    inputs, labels, weights = triple
    if weights is not None:
        raise ValueError(
            "Argument `data` must have no sample weights: each example has a row of its own. "
            "Received: (x, y, sample_weight)"
        )
    return Batch(inputs, labels, None)


def is_files(data):
    """Whether `data` is a list of names of files."""
    is_list = isinstance(data, (list, tuple)) and len(data) > 0
    return is_list and all(isinstance(item, (str, os.PathLike)) for item in data)


# --- Files ------------------------------------------------------------------------------------


def _checked_files(data):
    files = [pathlib.Path(os.fspath(file)) for file in data]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"Argument `data` must name files that exist. Received: {len(missing)} that do not, "
            f"such as {shown(missing[0])}"
        )
    return files


def decoder(model, inputs=None):
    """A function from the name of an image to what `model` takes, float32.

    As `inputs`, an `InputSpec`, says; by default what is declared of the model. Of one that nothing
    is declared of, from 0 to 255 as `keras.utils.image_dataset_from_directory`, but antialiased, as
    `tfuq.datasets` resizes.
    """
    shape = getattr(model, "input_shape", None)
    if not is_of_images(shape):
        raise ValueError(
            "Argument `model` must take images (height, width, 1 or 3) if `data` are files, or "
            f"`decode` must read them. Received: inputs of shape {shape}"
        )
    inputs = (inputs or declared(model).inputs or InputSpec()).for_shape(shape)

    def decode(file):
        try:
            image = read_image(file, shape[-1])
        except UnreadableImage as error:
            raise ValueError(
                f"Argument `data` must name images that can be read. Received: {shown(file)} "
                f"({error})"
            ) from None
        return inputs.prepared(image)

    return decode


def _stacked(names, images):
    shapes = {tuple(np.shape(image)) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            "Argument `data` must name images of one size if the model takes any size: pass "
            f"`batch_size=1` or a `decode` that resizes. Received: shapes {sorted(shapes)} in a "
            f"batch from {shown(names[0])}"
        )
    return tf.stack([tf.convert_to_tensor(image) for image in images])


def _npz_batches(files, batch_size):
    for file in files:
        x, y = read_npz(file)
        for inputs, labels, _ in batches((x, y), batch_size, 0, "data"):
            yield Batch(inputs, labels, [str(file)] * len(tf.nest.flatten(inputs)[0]))


def read_npz(path, split=None):
    """Inputs and labels (or None) of an `.npz` file, by the names of `tfuq.datasets.from_npz`.

    With `split=None` these are `x` or `images`, and `y` or `labels`; if there are none, those of
    the test, validation or training part. With `split="test"` they are `x_test`, `images_test`,
    `test_images` and so on, or, in a file that holds one part only, `x`.
    """
    try:
        with open_arrays(path) as arrays:
            names = [_name_in(arrays.files, kinds, split) for kinds in _NAMES]
            if names[0] is None:
                raise ValueError(f"it holds {arrays.files}")
            x, y = (None if name is None else arrays[name] for name in names)
    except Exception as error:  # zipfile and numpy raise of all kinds at what is damaged
        wanted = "x" if split is None else f"x_{split}"
        raise ValueError(
            f"Argument `data` must name .npz files with inputs {shown(wanted)} and no "
            "pickled arrays. "
            f"Received: {str(path)!r} ({error})"
        ) from error
    if x.ndim == 3 and x.dtype == np.uint8:
        x = x[..., None]  # grey images, as `from_npz` gives them
    if y is not None and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    return x, y


def _name_in(names, kinds, split):
    wanted = [*kinds] if split is None else []
    for part in (split,) if split else ("test", "val", "train"):
        wanted += [f"{kind}_{part}" for kind in kinds] + [f"{part}_{kind}" for kind in kinds]
    wanted += [] if split is None else [*kinds]
    return next((name for name in wanted if name in names), None)
