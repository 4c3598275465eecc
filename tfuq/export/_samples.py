"""Samples of a network inside an exported graph."""

import math

import numpy as np
import tensorflow as tf

# Numbers that all samples of a network compute for an example, up to which all run at once. Above
# it they run one after the other, in the memory of a few.
AT_ONCE = 2**20

# Draws of weights and masks are written into the file, up to this size; above it the file would be
# too large, and each call makes them again. For one example through two Bayesian layers of 256
# units, a head of 10 and 30 samples, that takes 38 ms, and to read them 1.8 ms; for 64 examples 21
# and 4.4 ms.
BAKED_BYTES = 2**28

# The scope of what is made of a network's outputs: what is quantized are its weights alone.
EXACT = "exact"


def are_at_once(parts, count):
    """Whether `count` samples of a `Cut` are small enough to be computed at once."""
    return parts.size * count <= AT_ONCE and _noise_of(parts)[1] * count <= BAKED_BYTES


def samples(parts, seeds, hold):
    """A function of a frontier that gives the results of all `seeds` `(samples, 2)`, stacked.

    `seeds` are an array, or a function that gives a tensor, new in each call. `hold` makes a
    variable of an array that is to be part of the file.
    """
    is_fixed = not callable(seeds)
    count = len(seeds) if is_fixed else seeds.count
    specs, numbers = _noise_of(parts)
    is_baked = is_fixed and numbers * count <= BAKED_BYTES
    at_once = are_at_once(parts, count)
    held = None
    if is_baked:
        held = [hold(np.stack(column)) for column in zip(*_draws(parts, seeds), strict=True)]

    def stacked_noise():
        if is_baked:
            return [tf.convert_to_tensor(variable) for variable in held]
        return tf.map_fn(parts.noise, _as_tensor(seeds), fn_output_signature=specs)

    def stack(frontier):
        if at_once:
            return tf.vectorized_map(lambda noise: parts.rest(*frontier, *noise), stacked_noise())
        if is_baked:
            noise, draw = stacked_noise(), lambda noise: noise
        else:  # one draw at a time, not all of them in memory
            noise, draw = _as_tensor(seeds), parts.noise
        # A function of its own: TensorFlow 2.21 writes wrong names for loops within the body of a
        # loop, if that was imported, and such a file cannot be read.
        rest = tf.function(parts.rest, autograph=False)
        return tf.map_fn(
            lambda one: rest(*frontier, *draw(one)), noise, fn_output_signature="float32"
        )

    return stack


def unrolled_samples(parts, seeds, hold):
    """As `samples`, with all draws as constants, and all operations at once or one after the other.

    A graph without loops is what LiteRT and ONNX can have.
    """
    del hold
    size = _noise_of(parts)[1] * len(seeds)
    if size > BAKED_BYTES:
        raise ValueError(
            "Argument `num_samples` must be smaller: the draws are written into the file and may "
            f"take {BAKED_BYTES >> 20} MB at most. Fewer layers with random weights take less. "
            f"Received: {len(seeds)} samples of {size / len(seeds) / 2**20:.1f} MB"
        )
    rows = _draws(parts, seeds)

    def one_by_one(frontier):
        return tf.stack([parts.rest(*frontier, *map(tf.constant, row)) for row in rows])

    def stack(frontier):
        if parts.size * len(seeds) > AT_ONCE:
            return one_by_one(frontier)
        noise = [tf.constant(np.stack(column)) for column in zip(*rows, strict=True)]
        try:
            return tf.vectorized_map(
                lambda one: parts.rest(*frontier, *one), noise, fallback_to_while_loop=False
            )
        except ValueError:  # an operation that TensorFlow cannot vectorize, as some convolutions
            return one_by_one(frontier)

    return stack


def _noise_of(parts):
    """What enters a network as noise: `tf.TensorSpec`s, and their bytes in one draw."""
    probe = parts.noise.get_concrete_function(tf.TensorSpec((2,), "int32"))
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in probe.outputs]
    return specs, sum(math.prod(spec.shape) * spec.dtype.size for spec in specs)


def _draws(parts, seeds):
    """Noise of each draw, a list of lists of arrays."""
    return [[t.numpy() for t in parts.noise(tf.constant(seed, "int32"))] for seed in seeds]


def _as_tensor(seeds):
    return seeds() if callable(seeds) else tf.constant(seeds, "int32")


class FreshSeeds:
    """Seeds `(count, 2)` that are new in each call of a graph, from a counter that it keeps."""

    def __init__(self, seed, count, hold):
        self.seed, self.count = seed, count
        self.counter = hold(np.zeros((), "int32"))

    def __call__(self):
        end = self.counter.assign_add(self.count)  # goes round at 2^31
        numbers = end - self.count + tf.range(self.count)
        return tf.stack([tf.fill([self.count], self.seed), numbers], axis=1)
