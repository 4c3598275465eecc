"""Draws of a model with random weights, which is cut where randomness enters."""

import collections.abc
import functools

import numpy as np
import tensorflow as tf

from tfuq._arguments import check_flags, check_integer, check_model
from tfuq._models.finite import known_only
from tfuq._models.outputs import Reading, loss_takes_logits, select_output
from tfuq._predictions.probabilities import entropy, is_binary, probabilities
from tfuq._random.cut import cut
from tfuq._random.draws import one_draw, random_layers

KEPT_SAMPLERS = 4  # of each model, with what they have traced


def sampler_of(model, *arguments):
    """A `Sampler` of `model`, the one of an earlier call if nothing has changed since.

    What it has traced knows the model's variables and whether its loss takes logits, so these are
    compared. Like Keras' own `predict_function`, it does not see other attributes change.
    """
    check_model(model)
    num_samples, output, from_logits, multi_label, seed = arguments
    if not isinstance(output, collections.abc.Hashable):
        raise ValueError(
            "Argument `output` must be None, an index, a key or a function. "
            f"Received: output={output!r}"
        )
    check_integer("num_samples", num_samples, 1)
    check_integer("seed", seed, 0)
    check_flags(multi_label=multi_label)
    if from_logits is not None:
        check_flags(from_logits=from_logits)
    variables = tuple(id(variable) for variable in model.variables)
    key = (*arguments, variables, loss_takes_logits(model, output))
    kept = vars(model).get("_tfuq_samplers", {})
    sampler = kept.get(key) or Sampler(model, *arguments)
    latest = [(k, v) for k, v in kept.items() if k != key][1 - KEPT_SAMPLERS :]
    # Past Keras' own `__setattr__`, which tracks what is set as a part of the model.
    object.__setattr__(model, "_tfuq_samplers", dict([*latest, (key, sampler)]))
    return sampler


class Sampler:
    """A model cut in two where randomness enters: a prefix that runs once, and the rest."""

    def __init__(self, model, num_samples, output, from_logits, multi_label, seed):
        self.model, self.output, self.multi_label = model, output, multi_label
        self.from_logits = loss_takes_logits(model, output) if from_logits is None else from_logits
        numbers = np.arange(num_samples)
        self.seeds = tf.constant(np.stack([np.full_like(numbers, seed), numbers], 1), "int32")
        self._cut = {}

    def stack(self, batch):
        """Probabilities `(samples, batch, ..., classes)`."""
        prefix, rest, _ = self._parts(batch)
        return rest(*prefix(batch))

    def sums(self, batch):
        """`Sums` of one batch, with memory for one sample."""
        prefix, _, sums = self._parts(batch)
        return [part.numpy() for part in sums(*prefix(batch))]

    def _parts(self, batch):
        spec = tf.nest.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), batch)
        key = str(spec)
        if key not in self._cut:
            if self.from_logits is None:
                reading = Reading(self.output, None, self.multi_label)
                self.from_logits = reading.is_logits(self.model, batch)
            self._cut[key] = self._make_parts(spec)
        return self._cut[key]

    def _make_parts(self, spec):
        parts = cut(self._draw, spec)

        @functools.partial(tf.function, input_signature=[spec], autograph=False)
        def prefix(batch):
            return parts.prefix(batch)[0]

        @functools.partial(tf.function, autograph=False)
        def rest(frontier, seed):
            return parts.rest(*frontier, *parts.noise(seed))

        @functools.partial(tf.function, autograph=False, reduce_retracing=True)
        def stack(*frontier):
            return tf.map_fn(
                lambda seed: rest(frontier, seed), self.seeds, fn_output_signature="float32"
            )

        @functools.partial(tf.function, autograph=False, reduce_retracing=True)
        def sums(*frontier):
            first = self._terms(rest(frontier, self.seeds[0]))
            start = (*first, tf.zeros_like(first[0]))

            def add(state, number):
                mean, entropies, votes, squares = state
                probs, *more = self._terms(rest(frontier, self.seeds[number]))
                step = probs - mean  # Welford's recursion
                mean += step / tf.cast(number + 1, "float32")
                return mean, entropies + more[0], votes + more[1], squares + step * (probs - mean)

            count = self.seeds.shape[0]
            mean, *totals = tf.foldl(add, tf.range(1, count), start)
            return (mean, *(total / count for total in totals))

        return prefix, stack, sums

    def _draw(self, batch, seed):
        """Probabilities of one network, NaN for inputs that are not finite, and nothing beside."""
        with one_draw(seed) as draw:
            outputs = self.model(batch, training=False)
        taking = [layer for layer in random_layers(self.model) if id(layer) in draw.layers]
        if not any(layer.is_random() for layer in taking):
            raise ValueError(
                "Argument `model` must hold layers with random weights, such as "
                "`tfuq.layers.VBLLDense`, `DenseVariational`, `MCDropout` or, once weights are "
                "selected, `SparseBayesDense`; its predictions would all be the same. "
                f"Received: {self.model}"
            )
        outputs = known_only(batch, tf.cast(select_output(outputs, self.output), "float32"))
        binary = is_binary(outputs.shape, self.multi_label)
        return probabilities(outputs, self.from_logits, binary), []

    def _terms(self, probs):
        """A sample's probabilities, entropy and votes."""
        if is_binary(probs.shape, self.multi_label):
            return probs, entropy(probs, is_binary=True), tf.cast(probs > 0.5, "float32")
        return probs, entropy(probs), tf.one_hot(tf.argmax(probs, -1), probs.shape[-1])
