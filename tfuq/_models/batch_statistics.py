"""Statistics of batch normalizations, computed anew for weights that no training has seen."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from tfuq._models.batches import batches


def batch_normalizations(model):
    """The layers of `model`, at any depth, that follow the statistics of batches."""
    found = dict.fromkeys(model._flatten_layers())
    return [x for x in found if isinstance(x, keras.layers.BatchNormalization) and x.trainable]


def renew_batch_statistics(model, data, batch_size=32, verbose=0):
    """Sets moving means and variances to the means of those of the batches of `data`.

    Each batch counts by its examples. The model runs as in training, and all else that this moves
    (states of random numbers, of other layers) is put back.
    """
    layers = batch_normalizations(model)
    moving = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    own = {id(v) for v in moving}
    others = [v for v in model.non_trainable_variables if id(v) not in own]
    kept = [(v, keras.ops.copy(v)) for v in others]
    sums, total = [np.zeros(v.shape) for v in moving], 0
    with _following_at_once(layers):
        run = tf.function(functools.partial(model, training=True), reduce_retracing=True)
        for batch, *_ in batches(data, batch_size, verbose, "data", model=model, finite=True):
            run(batch)
            size = len(tf.nest.flatten(batch)[0])
            total += size
            for index, variable in enumerate(moving):
                sums[index] += size * keras.ops.convert_to_numpy(variable).astype("float64")
    for variable, value in zip(moving, sums, strict=True):
        variable.assign(value / total)
    for variable, value in kept:
        variable.assign(value)


@contextlib.contextmanager
def _following_at_once(layers):
    """While it is open, moving statistics are those of the last batch."""
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
