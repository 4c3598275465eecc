"""Data loaders of PyTorch, which is no dependency: known by their name, as to Keras."""

import itertools

import keras
import numpy as np
import tensorflow as tf

_LOOKED_AT = 2  # batches, of which the last may be smaller


def keras_data(data):
    """`data`, but a `torch.utils.data.DataLoader` as a `tf.data.Dataset` of the same batches."""
    if not is_loader(data):
        return data
    first = [_as_arrays(batch) for batch in itertools.islice(data, _LOOKED_AT)]
    if not first:
        raise ValueError("Argument `data` must hold at least one batch. Received: an empty one")
    dataset = tf.data.Dataset.from_generator(
        lambda: map(_as_arrays, data), output_signature=tf.nest.map_structure(_spec, *first)
    )
    try:
        return dataset.apply(tf.data.experimental.assert_cardinality(len(data)))
    except TypeError:  # of what is read in one go nobody knows the length
        return dataset


def is_loader(data):
    """Whether `data` are a `torch.utils.data.DataLoader`."""
    return any(
        kind.__name__ == "DataLoader" and "torch.utils.data" in str(kind.__module__)
        for kind in type(data).__mro__
    )


def _as_arrays(batch):
    """A batch as Keras takes it: `(x, y[, sample_weight])`, or inputs alone."""
    batch = tuple(batch) if isinstance(batch, list) else batch
    arrays = keras.tree.map_structure(_as_array, batch)
    return arrays[0] if isinstance(arrays, tuple) and len(arrays) == 1 else arrays


def _as_array(tensor):
    tensor = tensor.detach().cpu() if hasattr(tensor, "detach") else tensor
    return np.asarray(tensor)


def _spec(array, *others):
    """The spec of a leaf, with a batch of any size, and any size along axes that differ."""
    shape = tf.TensorShape((None, *array.shape[1:]))
    for other in others:
        shape = shape.most_specific_compatible_shape(tf.TensorShape((None, *other.shape[1:])))
    return tf.TensorSpec(shape, array.dtype)
