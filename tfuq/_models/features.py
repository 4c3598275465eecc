"""Logits of a classifier, and the features it computes on the way to them, or to numbers.

A model of any style is called as it is, while the layers of interest are watched; so what is read,
and the rest of the network behind a feature that is changed, are those of the model itself.
"""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_model, shown
from tfuq._models.changes import floats_kept, watched
from tfuq._models.feature_arrays import pooled, two_classes
from tfuq._models.logit_layer import (
    LogitLayer,
    are_normalized,
    call_kept,
    calls_of,
    like_outputs,
    logit_call,
    logit_layer,
    number_call,
)
from tfuq._models.meaning import Reading, said_by_head
from tfuq._models.numbers import NumberReading, number_reading

SAMPLE = 4  # examples that tell how a model is built
TINY = np.finfo("float32").tiny


class Found(NamedTuple):
    """Of a batch: logits `(batch, ..., classes)`, and features `(batch, d)` of the layers.

    A regression has one class, with a logit of 0.
    """

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
        multi_label: True where the logits of several labels are taken.
        pool: Whether features of more axes are averaged over those between the first and the last;
            they are flattened otherwise.
        takes: Words for what else than one prediction of classes is taken: `"labels"`, `"pixels"`,
            `"numbers"`, the features of a regression.
        reader: The name of what reads, for errors.
    """

    def __init__(
        self,
        model,
        layers=(),
        output=None,
        from_logits=None,
        multi_label=None,
        pool=True,
        takes=(),
        reader="what reads it",
    ):
        check_model(model)
        self.reader = reader
        self.model, self.layers, self.pool, self.takes = model, tuple(layers), pool, takes
        self.reading = Reading(output, from_logits, multi_label)
        self.compute_dtype = model.compute_dtype
        self.is_spatial = False  # whether the head takes more than one position of an example
        self._head = self._body = self._named = self._has_scale = None
        self.dtypes = (None,) * len(self.layers)  # of features, once a batch was seen
        self._compiled = self.compiled(self.forward)

    def __call__(self, batch):
        """`Found` of a batch, as arrays."""
        self.prepare(batch)
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), self._compiled(batch))

    @property
    def body(self):
        """The layer whose inputs are the penultimate features, once a batch was seen."""
        return self._body

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
            found = self._find_number_head(rows)
            found = found or _find_head(self.model, self.reading, rows, self.takes)
            self.reading, self._has_scale, self._body, self._head = found

    @property
    def is_of_numbers(self):
        """Whether the model is a regression, once a batch was seen."""
        return isinstance(self.reading, NumberReading)

    def _find_number_head(self, batch):
        """What `_find_head` gives, of a regression; None of a classifier."""
        self.reading.select(self.model, batch)  # builds what is not built
        reading = number_reading(self.model, self.reading, None, batch)
        if reading is None:
            return None
        if "numbers" not in self.takes:
            raise not_of_classes(self.reader, self.model, reading)
        outputs, calls = calls_of(self.model, reading, batch)
        call = number_call(calls, outputs)
        if call is None and (reading.output is not None or not calls):
            raise ValueError(
                "Argument `output` must be the output of a layer with weights: the features are "
                f"that layer's inputs. Received: output={shown(reading.output)} of model "
                f"{self.model.name!r}"
            )
        layer = (call or calls[-1]).layer
        return reading, False, layer, LogitLayer(layer, False, False)

    def forward(self, batch, rectify=None, moved=False):
        """`Found` of a batch, as tensors.

        With `rectify`, the network goes on with what that makes of the features. A batch that was
        `moved` stays the floats that it is, where the model takes integers.
        """
        kept = {}  # of each layer its output, of None the input of the head
        with contextlib.ExitStack() as stack:
            if moved:
                stack.enter_context(floats_kept(self.model))
            for layer in set(self._named) - {None}:
                stack.enter_context(watched(layer, _keep_output(kept, layer, rectify)))
            change = rectify if None in self._named else None
            bodies = heads = stack.enter_context(call_kept(self._body, change))
            if self._head.layer is not self._body:
                heads = stack.enter_context(call_kept(self._head.layer))
            outputs = self.reading.select(self.model, batch)
        head = heads[0]
        kept[None] = inputs = bodies[0].inputs
        self.is_spatial = inputs.shape.rank > 2 and inputs.shape[1:-1].num_elements() != 1
        pairs = zip(self.layers, self._named, strict=True)
        features = tuple(self._feature(kept, *pair) for pair in pairs)
        self.dtypes = tuple(kept[layer].dtype.name for layer in self._named)
        if self.is_of_numbers:
            logits = [tf.zeros((tf.shape(outputs)[0], 1))] * 2
        else:
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
            logits = like_outputs(tf.cast(before_activation, "float32"), outputs)
        elif self.reading.from_logits:
            logits = outputs
        else:
            logits = tf.math.log(tf.maximum(outputs, TINY))
            if self.reading.is_binary(outputs.shape):
                logits -= tf.math.log(tf.maximum(1 - outputs, TINY))
        return logits if self.reading.multi_label else two_classes(logits)

    def check_knows_logits(self):
        """Raises ValueError if the logits are but logarithms of probabilities."""
        if not self._has_scale:
            raise ValueError(
                "Argument `model` must return logits, or end in a Dense layer with a soft-max or "
                "in a head with `mean_logits`: probabilities and normalized logits determine the "
                f"logits only up to a constant. Received: model={shown(self.model)}"
            )

    def last_layer(self):
        """`Linear` from the penultimate features to the own logits, or None if it is not that."""
        weights = self._head.weights()
        return None if weights is None else linear(*weights)


def not_of_classes(reader, model, reading):
    """The ValueError for a regression where classes are needed."""
    return ValueError(
        f"Argument `model` must be a classifier for {reader}: this one predicts numbers of the "
        f"family {shown(reading.family)}. For a regression use KNN, Mahalanobis or Gram, which "
        "score features, or GradientDensity or GradientDetector with GradientFeatures(model, "
        "label, loss=...). If the outputs are classes, pass from_logits=True or False. Received: "
        f"model {model.name!r}"
    )


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


def _find_head(model, reading, batch, takes):
    """The `Reading`, whether own logits are known, and two layers: of the features, of the logits.

    The features are what the last layer with weights takes whose outputs, before the activation,
    are the logits. Where there is none, another layer may show them (a pooling, an activation); or
    none does (logits are normalized after it, say), and both are the last with weights.
    """
    reading.select(model, batch)  # builds what is not built
    outputs, calls = calls_of(model, reading, batch)
    reading = reading.known(model, batch)
    _check_outputs(model, reading, outputs, takes)
    found = logit_layer(calls, outputs, reading)
    if found is not None:
        return reading, True, found.layer, found
    if not calls:
        raise ValueError(
            f"Argument `model` must have a layer with weights. Received: model={shown(model)}"
        )
    last = calls[-1].layer
    call = logit_call(calls_of(model, reading, batch, only_heads=False)[1], outputs, reading)
    if call is not None and not are_normalized(calls, like_outputs(call.logits, outputs)):
        return reading, True, last, LogitLayer(call.layer, True, False)
    has_scale = reading.from_logits and not are_normalized(calls, outputs)
    return reading, has_scale, last, LogitLayer(last, False, False)


def _check_outputs(model, reading, outputs, takes):
    has_pixels = "pixels" in takes and outputs.shape.rank > 2
    if outputs.shape.rank != 2 and not has_pixels:
        raise ValueError(
            "Argument `model` must return one prediction per example, (batch, classes); for one "
            "per pixel use MaxSoftmax, MaxLogit, Energy, Entropy or MutualInformation. "
            f"Received: outputs of shape {tuple(outputs.shape)}"
        )
    several = outputs.shape[-1] > 1
    if reading.multi_label and several and "labels" not in takes:
        raise ValueError(
            "Argument `model` must predict classes that exclude one another; for labels that do "
            "not, pass `multi_label=True` to MaxSoftmax, MaxLogit, Energy or Entropy, or use KNN. "
            f"Received: model {model.name!r} with {outputs.shape[-1]} labels that do not"
        )
    if (
        reading.multi_label
        and several
        and said_by_head(model, reading.output)[:2] == (False, False)
    ):
        raise ValueError(
            "Argument `multi_label` must be False or left out for a model that ends in a soft-max. "
            f"Received: multi_label=True with model {model.name!r}"
        )
    reading.checked(outputs.numpy())
