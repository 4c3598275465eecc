"""Draws of a model with random weights, which is cut where randomness enters."""

import collections.abc
import functools

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, check_model, shown
from tfuq._models.meaning import reading_of, readings_of, said
from tfuq._models.member_graphs import member_graph
from tfuq._models.numbers import (
    NumberReading,
    is_closed_form,
    number_reading,
    number_readings,
)
from tfuq._models.outputs import select_output
from tfuq._predictions.families import family_named
from tfuq._predictions.numbers import WHY_NO_NOISE, RegressionUncertainty
from tfuq._predictions.probabilities import entropy
from tfuq._predictions.uncertainty import Sums, concatenated, uncertainty_of
from tfuq._random.cut import cut
from tfuq._random.draws import num_draws, one_draw, random_layers


class DefaultCount(int):
    """A number of draws that nobody has asked for, so that it may follow the model."""


NUM_SAMPLES = DefaultCount(30)
NO_NUMBERS = object()  # of a sampler of classifiers alone
KEPT_SAMPLERS = 4  # of each model, with what they have traced


def sampler_of(model, *arguments, takes_one=False, takes_numbers=False):
    """A `Sampler` of `model`, the one of an earlier call if nothing has changed since.

    With `takes_one` a model in which nothing is random is one network (`Single`), and no error.
    With `takes_numbers` a regression is read as such, and no error; the last argument is then what
    the caller says of its family, or None.

    What it has traced knows the model's variables and what its outputs are said to be, so these are
    compared. Like Keras' own `predict_function`, it does not see other attributes change.
    """
    if not isinstance(model, keras.Model) and getattr(model, "members", None):
        return Members(model, *arguments, takes_numbers=takes_numbers)
    check_model(model)
    num_samples, output, from_logits, multi_label, seed, *family = arguments
    if not isinstance(output, collections.abc.Hashable):
        raise ValueError(
            "Argument `output` must be None, an index, a key or a function. "
            f"Received: output={shown(output)}"
        )
    check_integer("num_samples", num_samples, 1)
    check_integer("seed", seed, 0)
    reading = reading_of(output, from_logits, multi_label)
    family = _read_family(*family) if takes_numbers else NO_NUMBERS
    variables = tuple(id(part) for part in [*model.variables, *random_layers(model)])
    is_single = takes_one and not any(layer.is_random() for layer in random_layers(model))
    key = (*arguments, is_single, takes_numbers, variables, *said(model, output))
    kept = vars(model).get("_tfuq_samplers", {})
    wanted = None if isinstance(num_samples, DefaultCount) else num_samples
    count = 1 if is_single else num_draws(model, wanted, NUM_SAMPLES)
    make = Single if is_single else functools.partial(Sampler, num_samples=count, seed=seed)
    sampler = kept.get(key) or make(model, reading, family)
    latest = [(k, v) for k, v in kept.items() if k != key][1 - KEPT_SAMPLERS :]
    # Past Keras' own `__setattr__`, which tracks what is set as a part of the model.
    object.__setattr__(model, "_tfuq_samplers", dict([*latest, (key, sampler)]))
    return sampler


def _read_family(family):
    return None if family is None else family_named(family)


class Sampler:
    """A model cut in two where randomness enters: a prefix that runs once, and the rest."""

    note = ""

    def __init__(self, model, reading, family, num_samples, seed):
        self.model, self.reading, self.family = model, reading, family
        self._one = Single(model, reading, family)
        self.num_samples, self.seed = num_samples, seed
        self._cut = {}

    def stack(self, batch):
        """Probabilities `(samples, batch, ..., classes)`."""
        prefix, rest, _ = self._parts(batch)
        return self.reading.checked(rest(*prefix(batch)).numpy())

    def found(self, batch):
        """`Sums` of one batch, with memory for one sample; of numbers a stack of parameters, of
        one network if its output says itself how draws would differ.
        """
        self.reading = self.reading if self._cut else _known(self, batch)
        if not is_of_numbers(self.reading):
            return self.sums(batch)
        if is_closed_form(self.model, self.reading.family):
            return self._one.found(batch)
        return [self.stack(batch)]

    def sums(self, batch):
        """`Sums` of one batch, with memory for one sample."""
        prefix, _, sums = self._parts(batch)
        found = [part.numpy() for part in sums(*prefix(batch))]
        self.reading.checked(found[0])  # the mean, which is out of range where a sample is far out
        return found

    def _parts(self, batch):
        spec = tf.nest.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), batch)
        key = str(spec)
        if key not in self._cut:
            self.reading = _known(self, batch)
            self._cut[key] = self._make_parts(spec)
        return self._cut[key]

    def _make_parts(self, spec):
        parts, numbers = cut(self._draw, spec), np.arange(self.num_samples)
        seeds = tf.constant(np.stack([np.full_like(numbers, self.seed), numbers], 1), "int32")

        @functools.partial(tf.function, input_signature=[spec], autograph=False)
        def prefix(batch):
            return parts.prefix(batch)[0]

        @functools.partial(tf.function, autograph=False)
        def rest(frontier, seed):
            return parts.rest(*frontier, *parts.noise(seed))

        @functools.partial(tf.function, autograph=False, reduce_retracing=True)
        def stack(*frontier):
            return tf.map_fn(
                lambda seed: rest(frontier, seed), seeds, fn_output_signature="float32"
            )

        @functools.partial(tf.function, autograph=False, reduce_retracing=True)
        def sums(*frontier):
            first = self._terms(rest(frontier, seeds[0]))
            start = (*first, tf.zeros_like(first[0]))

            def add(state, number):
                mean, entropies, votes, squares = state
                probs, *more = self._terms(rest(frontier, seeds[number]))
                step = probs - mean  # Welford's recursion
                mean += step / tf.cast(number + 1, "float32")
                return mean, entropies + more[0], votes + more[1], squares + step * (probs - mean)

            count = seeds.shape[0]
            mean, *totals = tf.foldl(add, tf.range(1, count), start)
            return (mean, *(total / count for total in totals))

        return prefix, stack, sums

    def _draw(self, batch, seed):
        """Probabilities of one network, NaN for inputs that are not finite, and nothing beside."""
        with one_draw(seed, self.model) as draw:
            outputs = self.model(batch, training=False)
        taking = [layer for layer in random_layers(self.model) if id(layer) in draw.layers]
        if not any(layer.is_random() for layer in taking):
            raise ValueError(
                "Argument `model` must hold layers with random weights, such as "
                "`tfuq.layers.VBLLDense`, `DenseVariational`, `MCDropout` or, once weights are "
                "selected, `SparseBayesDense`, members, as of `BatchEnsembleDense`, or be trained "
                "by `tfuq.optimizers.IVON` or with `tfuq.callbacks.SWAG`: without any of these "
                f"all its predictions are the same. Received: {shown(self.model)}"
            )
        outputs = select_output(outputs, self.reading.output, self.model)
        return self.reading.as_probs(batch, tf.cast(outputs, "float32")), []

    def _terms(self, probs):
        return _terms(probs, self.reading.is_binary(probs.shape))


class Single:
    """A model in which nothing is random: one network, whose epistemic uncertainty is 0."""

    note = "no epistemic part: nothing in the model is random, so it is a single network"

    def __init__(self, model, reading, family):
        self.model, self.reading, self.family = model, reading, family
        # Autograph would wrap our errors.
        self._compiled = tf.function(self._probs, autograph=False, reduce_retracing=True)

    def found(self, batch):
        """`Sums` of one batch; of numbers a stack of parameters, of one network."""
        self.reading = _known(self, batch)
        if is_of_numbers(self.reading):
            return [self._compiled(batch).numpy()[None]]
        return self.sums(batch)

    def sums(self, batch):
        """`Sums` of one batch."""
        self.reading = self.reading.known(self.model, batch)
        probs = self.reading.checked(self._compiled(batch).numpy()).astype("float64")
        # In float64, so that the total and its aleatoric part are the same number.
        terms = _terms(probs, self.reading.is_binary(probs.shape))
        return [*(np.asarray(term) for term in terms), np.zeros_like(probs)]

    def _probs(self, batch):
        return self.reading.probs(self.model, batch)


class Members:
    """The members of an ensemble, each by its prediction."""

    note = ""

    def __init__(
        self,
        ensemble,
        num_samples,
        output,
        from_logits,
        multi_label,
        seed,
        family=None,
        takes_numbers=False,
    ):
        self.ensemble, self.members = ensemble, tuple(ensemble.members)
        for member in self.members:
            check_model(member)
        if not isinstance(num_samples, DefaultCount):
            raise ValueError(
                "Argument `num_samples` must be left out for an ensemble: its members are the "
                f"networks, here {len(self.members)}. Received: num_samples={shown(num_samples)}"
            )
        check_integer("seed", seed, 0)
        self.reading = reading_of(output, from_logits, multi_label)
        self.family = _read_family(family) if takes_numbers else NO_NUMBERS
        self._graph = None

    def found(self, batch):
        """`Sums` of one batch; of numbers a stack of parameters."""
        stack = self.stack(batch)
        return [stack] if is_of_numbers(self.reading) else self._sums(stack)

    def _known(self, batch):
        """The reading of each member; all say numbers of one family, or none."""
        numbers = [None]
        if self.family is not NO_NUMBERS:
            numbers = number_readings(self.members, self.reading, self.family, batch)
        return readings_of(self.members, self.reading, batch) if numbers[0] is None else numbers

    def stack(self, batch):
        """Probabilities `(members, batch, ..., classes)`; of numbers parameters."""
        if self._graph is None:
            readings = self._known(batch)
            self._graph = member_graph(self.ensemble, self.members, readings)
            self._readings, self.reading = readings, readings[0]
        found = self._graph(batch).numpy()
        for reading in self._readings:
            reading.checked(found)
        return found

    def sums(self, batch):
        """`Sums` of one batch."""
        return self._sums(self.stack(batch))

    def _sums(self, stack):
        stack = stack.astype("float64")
        terms = _terms(stack, self.reading.is_binary(stack.shape))
        return [*(np.mean(term, axis=0) for term in terms), np.var(stack, axis=0)]


def _known(sampler, batch):
    """The reading of a sampler, with all known: of a classifier, or of numbers."""
    if is_of_numbers(sampler.reading):
        return sampler.reading
    numbers = None
    if sampler.family is not NO_NUMBERS:
        numbers = number_reading(sampler.model, sampler.reading, sampler.family, batch)
    return sampler.reading.known(sampler.model, batch) if numbers is None else numbers


def is_of_numbers(reading):
    """Whether a model was found to say numbers, not classes."""
    return isinstance(reading, NumberReading)


def uncertainty(sampler, parts):
    """`Uncertainty` or `RegressionUncertainty` of what a sampler has found in all batches."""
    if is_of_numbers(sampler.reading):
        family = sampler.reading.family
        notes = [sampler.note] if sampler.note and not family.has_epistemic else []
        notes += [] if family.has_noise else [WHY_NO_NOISE]
        params = np.concatenate([part[0] for part in parts], axis=1)
        return RegressionUncertainty(params, family, "; ".join(notes))
    found = uncertainty_of(Sums(*concatenated(parts)), sampler.reading.multi_label)
    return found.told(found.multi_label, sampler.note)


def _terms(probs, is_binary):
    """A sample's probabilities, entropy and votes."""
    if is_binary:
        return probs, entropy(probs, is_binary=True), tf.cast(probs > 0.5, "float32")
    return probs, entropy(probs), tf.one_hot(tf.argmax(probs, -1), probs.shape[-1])
