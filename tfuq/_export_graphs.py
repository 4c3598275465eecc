"""Functions cut where randomness enters, and what in a graph cannot leave this process."""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._graphs import dependents

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

# What cannot be done for all samples at once.
_CONTROL = ("If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase")
_CONTROL += ("PartitionedCall", "StatefulPartitionedCall")
_OF_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction")
_RANDOM = (
    *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal"),
    *(
        "RandomGamma",
        "RandomPoissonV2",
        "RandomShuffle",
        "Multinomial",
        "ParameterizedTruncatedNormal",
    ),
    *(
        "StatefulUniform",
        "StatefulStandardNormalV2",
        "StatefulTruncatedNormal",
        "StatefulUniformInt",
    ),
    *("StatefulUniformFullInt", "StatefulRandomBinomial", "RngReadAndSkip", "RngSkip"),
)
_ASSIGNING = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")


class Cut(NamedTuple):
    """`function(batch, seed)` in three parts, as graphs.

    `function(batch, seed) = rest(*frontier, *noise(seed)), beside` with
    `frontier, beside = prefix(batch)`.
    """

    prefix: object
    noise: object
    rest: object
    size: float  # numbers that `rest` computes for an example; inf if unknown


def cut(function, spec):
    """`Cut` of `function(batch, seed)`, which returns `(result, beside)`, tensors.

    `result` depends on the seed, and `beside`, a list, does not. Cut are the edges of the graph
    where what depends on both batch and seed meets what does not; so it works for a model of any
    style.
    """
    placeholders = []

    def traced(batch, seed):
        placeholders.append((batch, seed))
        return function(batch, seed)

    wrapped = tf.compat.v1.wrap_function(traced, [spec, tf.TensorSpec((2,), "int32")])
    batch, seed = placeholders[0]
    inputs = tf.nest.flatten(batch)
    result, beside = wrapped.structured_outputs
    moving, random = dependents(inputs), dependents([seed])
    both = moving & random
    of_batch, of_seed, size = {}, {}, 0.0
    for op in wrapped.graph.get_operations():
        if id(op) in both:
            size += math.inf if op.type in _CONTROL else sum(map(_size, op.outputs))
            for tensor in op.inputs:
                if id(tensor.op) in both or tensor.dtype == tf.resource:
                    continue
                if id(tensor.op) in random:
                    of_seed[id(tensor)] = tensor
                elif tensor.op.type != "Const":  # of the batch, or of weights alone: once for all
                    of_batch[id(tensor)] = tensor
    of_batch, of_seed, beside = [*of_batch.values()], [*of_seed.values()], [*beside]
    first = _part(wrapped.graph, inputs, [*of_batch, *beside])

    def prefix(batch):
        found = first(*tf.nest.flatten(batch))
        return found[: len(of_batch)], found[len(of_batch) :]

    rest = _part(wrapped.graph, [*of_batch, *of_seed], [result])
    noise = tf.function(_part(wrapped.graph, [seed], of_seed), autograph=False)
    return Cut(prefix, noise, lambda *tensors: rest(*tensors)[0], size)


def _part(graph, feeds, fetches):
    """What leads from the tensors `feeds` to `fetches`, as a function of tensors, to be traced.

    It holds no operation beside these, which the pruned functions of TensorFlow do.
    """
    fed, needed = {tensor.name for tensor in feeds}, {}
    waiting = [tensor.op for tensor in fetches if tensor.name not in fed]
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed[op.name] = op
            waiting += [tensor.op for tensor in op.inputs if tensor.name not in fed]
    captures = [(held, inside) for held, inside in graph.captures if inside.op.name in needed]
    given = {inside.op.name for _, inside in captures}
    definition = graph.as_graph_def()
    nodes = [node for node in definition.node if node.name in needed and node.name not in given]
    for node in nodes:
        kept = [name for name in node.input if not name.startswith("^") or name[1:] in needed]
        node.input[:] = kept
    definition = tf.compat.v1.GraphDef(
        node=nodes, versions=definition.versions, library=definition.library
    )
    taken = {name if ":" in name else f"{name}:0" for node in nodes for name in node.input}

    def call(*tensors):
        within = tf.compat.v1.get_default_graph().capture
        values = {tensor.name: within(v) for tensor, v in zip(feeds, tensors, strict=True)}
        values |= {inside.name: within(held) for held, inside in captures}
        names = [tensor.name for tensor in fetches if tensor.name not in values]
        used = {name: tensor for name, tensor in values.items() if name in taken}
        found = tf.graph_util.import_graph_def(definition, used, names, name="network")
        made = dict(zip(names, found, strict=True)) | values
        for tensor in fetches:
            made[tensor.name].set_shape(tensor.shape)
        return [made[tensor.name] for tensor in fetches]

    return call


def _size(tensor):
    """Numbers of a tensor for a single example; inf if nobody knows."""
    if tensor.dtype in (tf.resource, tf.variant):
        return 0
    if tensor.shape.rank is None or any(axis is None for axis in tensor.shape[1:]):
        return math.inf
    return math.prod([1, *tensor.shape[1:]])


def samples(parts, seeds, hold):
    """A function of a frontier that gives the results of all `seeds` `(samples, 2)`, stacked.

    `seeds` are an array, or a function that gives a tensor, new in each call. `hold` makes a
    variable of an array that is to be part of the file.
    """
    is_fixed = not callable(seeds)
    count = len(seeds) if is_fixed else seeds.count
    specs, numbers = _noise_of(parts)
    is_baked = is_fixed and numbers * count <= BAKED_BYTES
    at_once = parts.size * count <= AT_ONCE and numbers * count <= BAKED_BYTES
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
            f"Argument `num_samples` must be so small that the draws take {BAKED_BYTES >> 20} MB "
            "at most, as they are written into the file; fewer layers with random weights take "
            f"less. Received: {len(seeds)} samples of {size / len(seeds) / 2**20:.1f} MB"
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


# --- What a graph holds -----------------------------------------------------------------------


def operations(function):
    """`(type, name)` of all operations of a concrete function, those it calls included."""
    graph = function.graph.as_graph_def()
    for part in (graph.node, *(each.node_def for each in graph.library.function)):
        yield from ((node.op, node.name) for node in part)


def of_python(function):
    """Names of the operations that call back into Python, which a file cannot hold."""
    return [name for kind, name in operations(function) if kind in _OF_PYTHON]


def unrepeatable(function):
    """Names of the operations that make two calls differ."""
    return [n for kind, n in operations(function) if kind in (*_RANDOM, *_ASSIGNING)]


def layer_of(name, layers):
    """The innermost of `layers` in whose scope the operation `name` stands, or None."""
    parts = name.split("/")
    found = [layer for part in reversed(parts) for layer in layers if _is_named(part, layer.name)]
    return found[0] if found else None


def _is_named(part, name):
    """Whether a scope is that of a layer; a second call has `_1` behind its name."""
    return part == name or (part.startswith(f"{name}_") and part[len(name) + 1 :].isdigit())
