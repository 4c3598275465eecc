"""Data of any kind that Keras takes, batch by batch."""

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import as_array, check_integer, shown
from tfuq._models.finite import finite_rows
from tfuq._models.taken import taken_by
from tfuq._models.torch_data import keras_data


def batches(x, batch_size, verbose, name="x", *, model=None, finite=False):
    """Inputs, as tensors, labels and weights of all batches; None for what is not given.

    Others than the `model` that they are for says it takes are refused. `finite` refuses
    NaN and infinity: for fits, in which one would spoil all, or hide behind a `relu`.
    """
    check_integer("batch_size", batch_size, 1)
    count, found = _count_and_batches(x, batch_size, name)
    bar = keras.utils.Progbar(count, verbose=verbose, unit_name="batch")
    seen, check_taken = 0, taken_by(model)
    for number, (batch, *beside) in enumerate(found):
        check_taken(batch, name)
        batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
        if finite and not np.all(finite_rows(batch)):
            raise ValueError(
                f"Argument `{name}` must hold finite inputs. "
                f"Received: NaN or infinity in the batch from example {seen} on"
            )
        seen += tf.nest.flatten(batch)[0].shape[0] or 0
        yield batch, *beside
        bar.update(number + 1)
    if not seen:
        raise ValueError(f"Argument `{name}` must hold at least one example. Received: no examples")


def _count_and_batches(x, batch_size, name):
    """How many batches there are, None if unknown, and triples `(x, y, weight)`."""
    x = keras_data(x)
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        if count == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"Argument `{name}` must end. Received: an infinite dataset")
        return (count if count >= 0 else None), map(_unpacked, x)
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise ValueError(f"Argument `{name}` must end. Received: an infinite PyDataset")
        return x.num_batches, (_unpacked(x[i]) for i in range(x.num_batches))
    parts = tf.nest.map_structure(lambda array: _as_array(array, name), tuple(_unpacked(x)))
    lengths = {array.shape[0] for array in tf.nest.flatten(parts) if array is not None}
    if len(lengths) != 1:
        raise ValueError(
            f"Argument `{name}` must hold arrays of one length. Received: lengths {sorted(lengths)}"
        )
    starts = range(0, lengths.pop(), batch_size)

    def rows(start):
        return tf.nest.map_structure(
            lambda array: None if array is None else _in_floatx(array[start : start + batch_size]),
            parts,
        )

    return len(starts), map(rows, starts)


def repeated(data, steps_per_epoch):
    """`data` as `fit` takes them with `steps_per_epoch`, so that no epoch is without batches.

    Keras has one iterator over a dataset for all epochs then: one that ends would leave nothing to
    later epochs.
    """
    if steps_per_epoch is None or not isinstance(data, tf.data.Dataset):
        return data
    ends = int(data.cardinality()) != tf.data.INFINITE_CARDINALITY
    return data.repeat() if ends else data


def _unpacked(element):
    """`(x, y, weight)` of what a dataset yields or a user gives."""
    if isinstance(element, tuple):
        return keras.utils.unpack_x_y_sample_weight(element)
    return element, None, None


def _as_array(array, name):
    if array is None:
        return None
    array = as_array(name, array)
    if array.ndim == 0:
        raise ValueError(f"Argument `{name}` must hold arrays. Received: {name}={shown(array)}")
    return array


def _in_floatx(array):
    """Real numbers as `model.predict` takes them; a batch at a time, so that memory is bounded."""
    return array.astype(keras.backend.floatx(), copy=False) if array.dtype.kind == "f" else array
