"""Images and their labels on the way to `fit`: resized, kept, shuffled, batched."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfuq._arguments import check_integer, shown


class Form(NamedTuple):
    """What `tfuq.datasets` makes of examples `(image, label)`."""

    batch_size: object
    image_size: object
    crop_to_aspect_ratio: bool
    shuffle: object
    seed: int
    cache: bool

    def check(self):
        """Raises ValueError unless all that is asked for can be done."""
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        if self.image_size is not None:
            for side in self.sides():
                check_integer("image_size", side, 1)
        if not isinstance(self.shuffle, bool):
            check_integer("shuffle", self.shuffle, 1)
        check_integer("seed", self.seed, 0)

    def sides(self):
        """`image_size` as `(height, width)`."""
        size = self.image_size
        sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        if len(sides) != 2:
            raise ValueError(
                "Argument `image_size` must be a number of pixels or a pair (height, width). "
                f"Received: image_size={shown(size)}"
            )
        return sides

    def buffer(self, all_examples):
        """How many examples are shuffled among each other; 0 for the order that they have."""
        return all_examples if self.shuffle is True else int(self.shuffle)

    def shuffled(self, dataset, all_examples):
        """`dataset` in another order in each epoch, if asked for."""
        buffer = self.buffer(all_examples)
        return dataset.shuffle(buffer, seed=self.seed) if buffer else dataset

    def finished(self, dataset, all_examples):
        """Examples as asked for; `all_examples` of them are what `shuffle=True` mixes."""
        if self.image_size is not None:
            dataset = dataset.map(self._resized, num_parallel_calls=tf.data.AUTOTUNE)
        elif self.batch_size is not None and not _is_of_one_size(dataset):
            raise ValueError(
                "Argument `image_size` must be given to batch images of different sizes. "
                "Received: image_size=None"
            )
        if self.cache:
            dataset = dataset.cache()
        dataset = self.shuffled(dataset, all_examples)
        if self.batch_size is not None:
            dataset = dataset.batch(self.batch_size)
        return dataset.prefetch(tf.data.AUTOTUNE)

    def _resized(self, image, label):
        height, width = self.sides()
        image = self._resize(image, height, width, "bilinear")
        if label.shape.rank == 2:
            label = self._resize(label[..., None], height, width, "nearest")[..., 0]
        elif label.shape.rank == 3:
            label = self._resize(label, height, width, "nearest")
        return image, label

    def _resize(self, image, height, width, interpolation):
        resized = keras.ops.image.resize(
            tf.cast(image, "float32"),
            (height, width),
            interpolation=interpolation,
            antialias=interpolation == "bilinear",
            crop_to_aspect_ratio=self.crop_to_aspect_ratio,
            data_format="channels_last",
        )
        if image.dtype.is_integer:
            resized = tf.round(resized)
        return tf.saturate_cast(resized, image.dtype)


def _is_of_one_size(dataset):
    image, label = dataset.element_spec
    return image.shape.is_fully_defined() and label.shape.is_fully_defined()
