"""Logits of a classifier, and the features it computes on the way to them.

A model of any style is called as it is, while the layers of interest are watched; so what is read,
and the rest of the network behind a feature that is changed, are those of the model itself.
"""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_model, shown
from tfuq._models.changes import watched
from tfuq._models.feature_arrays import pooled, two_classes
from tfuq._models.logit_layer import (
    LogitLayer,
    are_normalized,
    call_kept,
    calls_of,
    logit_layer,
)
from tfuq._models.meaning import Reading

SAMPLE = 4  # examples that tell how a model is built
TINY = np.finfo("float32").tiny


class Found(NamedTuple):
    """Of a batch: logits `(batch, classes)`, and features `(batch, d)` of the layers asked for."""

    logits: tf.Tensor  # of the probabilities that the model predicts
    own_logits: tf.Tensor  # of a head that averages or normalizes, before it does: of its mean
    features: tuple
    outputs: tf.Tensor  # the output itself, float32


class Linear(NamedTuple):
    """A last layer: logits = features kernel + bias."""

    kernel: np.ndarray
    bias: np.ndarray


def without_nan(batch):
    """The batch with 0 in place of what is not finite."""

    def clean(leaf):
        if not leaf.dtype.is_floating:
            return leaf
        return tf.where(tf.math.is_finite(leaf), leaf, tf.zeros_like(leaf))

    return tf.nest.map_structure(clean, batch)


class Tap:
    """Reads logits and features from a model.

    Args:
        model: Keras model of any style.
        layers: Names (or paths) of the layers whose outputs to read; None stands for what the last
            layer takes, the penultimate features.
        output: Which output is the classification, when the model has several.
        from_logits: Whether that holds logits; None to find out.
        pool: Whether features of more axes are averaged over those between the first and the last;
            they are flattened otherwise.
    """

    def __init__(self, model, layers=(), output=None, from_logits=None, pool=True):
        check_model(model)
        self.model, self.layers, self.pool = model, tuple(layers), pool
        self.reading = Reading(output, from_logits, None)
        self._head = self._named = self._is_logits = self._has_scale = None
        self.dtypes = (None,) * len(self.layers)  # of features, once a batch was seen
        self._compiled = self.compiled(self.forward)

    def __call__(self, batch):
        """`Found` of a batch, as arrays."""
        self.prepare(batch)
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), self._compiled(batch))

    def compiled(self, function):
        """`function` as the model would run it, to be called once `prepare` was."""
        if self.model.run_eagerly:
            return function
        return tf.function(function, autograph=False, reduce_retracing=True)

    def prepare(self, batch):
        """Finds, at the first batch, the layers to read and what the outputs mean."""
        if self._head is None:
            rows = tf.nest.map_structure(lambda leaf: leaf[:SAMPLE], without_nan(batch))
            self._named = [
                None if layer is None else find_layer(self.model, layer) for layer in self.layers
            ]
            # Last, as it tells other threads that all is found.
            found = _find_head(self.model, self.reading, rows)
            self._is_logits, self._has_scale, self._head = found

    def forward(self, batch, rectify=None):
        """`Found` of a batch, as tensors.

        With `rectify`, the network goes on with what that makes of the features.
        """
        kept = {}  # of each layer its output, of None the input of the head
        with contextlib.ExitStack() as stack:
            for layer in set(self._named) - {None}:
                stack.enter_context(watched(layer, _keep_output(kept, layer, rectify)))
            change = rectify if None in self._named else None
            heads = stack.enter_context(call_kept(self._head.layer, change))
            outputs = self.reading.select(self.model, batch)
        head = heads[0]
        kept[None] = head.inputs
        pairs = zip(self.layers, self._named, strict=True)
        features = tuple(self._feature(kept, *pair) for pair in pairs)
        self.dtypes = tuple(kept[layer].dtype.name for layer in self._named)
        logits = [self._logits(each, outputs) for each in (head.logits, head.own_logits)]
        return Found(*logits, features, outputs)

    def _feature(self, kept, name, layer):
        if layer not in kept:
            raise ValueError(
                "Argument `layer` must be a layer that runs when the model is called. "
                f"Received: {name!r}, which does not"
            )
        features = pooled(kept[layer]) if self.pool else keras.layers.Flatten()(kept[layer])
        return tf.cast(features, "float32")

    def _logits(self, before_activation, outputs):
        if self._head.gives_logits:
            logits = tf.cast(before_activation, "float32")
        else:
            logits = outputs if self._is_logits else tf.math.log(tf.maximum(outputs, TINY))
        return two_classes(logits)

    def check_knows_logits(self):
        """Raises ValueError if the logits are but logarithms of probabilities."""
        if not self._has_scale:
            raise ValueError(
                "Argument `model` must return logits, or end in a Dense layer with a soft-max or "
                "in a head with `mean_logits`: probabilities, and logits that are normalized, tell "
                f"logits up to a constant only. Received: model={shown(self.model)}"
            )

    def last_layer(self):
        """`Linear` from the penultimate features to the own logits, or None if it is not that."""
        weights = self._head.weights()
        return None if weights is None else linear(*weights)


def linear(kernel, bias):
    """`Linear` with a column for each of at least two classes."""
    columns = np.concatenate([kernel, bias[None]])
    columns = np.asarray(two_classes(columns), "float64")
    return Linear(columns[:-1], columns[-1])


def find_layer(model, name):
    """The layer at any depth with this name or path, or a ValueError that lists the names."""
    layers = list(dict.fromkeys(model._flatten_layers(include_self=False)))
    found = [layer for layer in layers if name in (layer.name, layer.path)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(repr(layer.path if found else layer.name) for layer in found or layers)
    raise ValueError(
        f"Argument `layer` must name {'just ' if found else ''}one layer of the model: {known}. "
        f"Received: layer={name!r}"
    )


def _keep_output(kept, layer, rectify):
    def handler(call, *args, **kwargs):
        outputs = call(*args, **kwargs)
        kept[layer] = tf.nest.flatten(outputs)[0]
        return outputs if rectify is None else rectify(outputs)

    return handler


def _find_head(model, reading, batch):
    """Whether a model returns logits, whether own logits are known, and its `LogitLayer`.

    That is the last layer with weights whose outputs, before the activation, are the logits. Where
    there is none (logits are averaged, say, or normalized after it) it is the last of all.
    """
    reading.select(model, batch)  # builds what is not built
    outputs, calls = calls_of(model, reading, batch)
    reading = reading.known(model, batch)
    _check_outputs(model, reading, outputs)
    found = logit_layer(calls, outputs, reading)
    if found is not None:
        return reading.from_logits, True, found
    if not calls:
        raise ValueError(
            f"Argument `model` must have a layer with weights. Received: model={shown(model)}"
        )
    has_scale = reading.from_logits and not are_normalized(calls, outputs)
    return reading.from_logits, has_scale, LogitLayer(calls[-1].layer, False, False)


def _check_outputs(model, reading, outputs):
    if outputs.shape.rank != 2:
        raise ValueError(
            "Argument `model` must return one prediction per example, (batch, classes). "
            f"Received: outputs of shape {tuple(outputs.shape)}"
        )
    if reading.multi_label and outputs.shape[-1] > 1:
        raise ValueError(
            "Argument `model` must give classes that exclude one another. Received: model "
            f"{model.name!r} with {outputs.shape[-1]} labels that do not"
        )
    reading.checked(outputs.numpy())
