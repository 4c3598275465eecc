"""Data of a learning rate range test: what it trains on, and what it may measure the loss on."""

from collections.abc import Iterator

import keras
import tensorflow as tf

from tfuq._models.torch_data import keras_data
from tfuq._models.train_step import optimizer_chain
from tfuq.callbacks._kept_state import kept_attributes


def validation_loss(model, data, batch_size, test_function):
    """The loss of `model` on `data`, and the test function of single steps that it was found with.

    `test_function` is that of an earlier call, or None.
    """
    x, y, weight = data, None, None
    if isinstance(data, (tuple, list)):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(data))
    size = None if y is None else batch_size
    with kept_attributes(model, "test_function", "stop_evaluating"):
        model.test_function = test_function
        found = model.evaluate(x, y, size, verbose=0, sample_weight=weight, return_dict=True)
        return found["loss"], model.test_function


class _ByIndex(keras.utils.PyDataset):
    """The batches of a `PyDataset`, which does not learn of epochs."""

    def __init__(self, dataset):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset = dataset

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def __getitem__(self, index):
        return self.dataset[index]


def range_test_arguments(data, batch_size, shuffle):
    """`data` as arguments of `fit`, without those that it warns of."""
    data = keras_data(data)
    if isinstance(data, tf.data.Dataset):
        return {"x": data, "shuffle": False}
    if isinstance(data, keras.utils.PyDataset) and data.num_batches != 0:
        return {"x": _ByIndex(data), "shuffle": shuffle and data.num_batches is not None}
    if isinstance(data, (tuple, list)) and len(data) in (1, 2, 3):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(data))
        arrays = {"x": x, "y": y, "sample_weight": weight}
        return {**arrays, "batch_size": batch_size, "shuffle": shuffle}
    once = ", which can be read once only" if isinstance(data, Iterator) else ""
    raise ValueError(
        "Argument `data` must be (x, y[, sample_weight]) arrays, a tf.data.Dataset or a PyDataset, "
        f"and not be empty. Received: {type(data).__name__}{once}"
    )


def batches_per_step(optimizer):
    counts = (each.gradient_accumulation_steps for each in optimizer_chain(optimizer))
    return max(filter(None, counts), default=1)
