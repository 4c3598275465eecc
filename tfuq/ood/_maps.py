"""Feature maps of all layers, and their Gram matrices."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfuq.ensembles import DeepEnsemble

SMALL = 1e-6  # of a bound, which a deviation is divided by
MAPS = (
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.DepthwiseConv2D),
    *(keras.layers.SeparableConv2D, keras.layers.Dense),
)


def inner_layers(model):
    """Names of layers inside a model: batch normalizations, or else convolutions and Dense ones.

    What makes the logits, the last of the latter or a head, is none of them. There may be none.
    """
    first = model.members[0] if isinstance(model, DeepEnsemble) else model
    leaves = [
        layer
        for layer in dict.fromkeys(first._flatten_layers(include_self=False))
        if not list(layer._flatten_layers(include_self=False))
    ]
    found = [layer for layer in leaves if isinstance(layer, keras.layers.BatchNormalization)]
    found = found or [each for each in leaves if isinstance(each, MAPS) or ends(each)][:-1]
    names = [layer.name for layer in leaves]
    return [layer.name if names.count(layer.name) == 1 else layer.path for layer in found]


def ends(layer):
    """Whether a layer is a head, of classes or of numbers."""
    return hasattr(layer, "output_meaning")


def positions(maps):
    """Maps `(n, ..., channels)` as `(n, positions, channels)`, float64."""
    return tf.cast(tf.reshape(maps, (tf.shape(maps)[0], -1, maps.shape[-1])), "float64")


def gram_rows(maps, powers):
    """Sums of the rows of the Gram matrices of maps, `(n, powers * channels)`.

    (F^p F^pT)^(1/p), summed over the second channel before the root, which needs no matrix.
    """
    flat, found = positions(maps), []
    for power in powers:
        raised = flat**power
        sums = tf.reduce_sum(raised * tf.reduce_sum(raised, 2, keepdims=True), 1)
        found.append(tf.sign(sums) * tf.abs(sums) ** (1 / power))
    return tf.concat(found, 1)


def deviation(rows, least, most):
    """How far outside its bounds each number is, relative to them, summed: `(n,)`."""
    below = tf.nn.relu(least - rows) / tf.abs(least + SMALL)
    return tf.reduce_sum(below + tf.nn.relu(rows - most) / tf.abs(most + SMALL), 1)
