"""Functions of a batch and a seed, cut in three where randomness enters."""

import math
from typing import NamedTuple

import tensorflow as tf

# What cannot be done for all samples at once.
_CONTROL = ("If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase")
_CONTROL += ("PartitionedCall", "StatefulPartitionedCall")


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
    of_batch, of_seed, size = _frontier(wrapped.graph, inputs, seed)
    beside = [*beside]
    first = _part(wrapped.graph, inputs, [*of_batch, *beside])

    def prefix(batch):
        tensors = first(*tf.nest.flatten(batch))
        return tensors[: len(of_batch)], tensors[len(of_batch) :]

    rest = _part(wrapped.graph, [*of_batch, *of_seed], [result])
    noise = tf.function(_part(wrapped.graph, [seed], of_seed), autograph=False)
    return Cut(prefix, noise, lambda *tensors: rest(*tensors)[0], size)


def _frontier(graph, inputs, seed):
    """What the operations that depend on `inputs` and on `seed` take from those that do not.

    Lists of the tensors that do not depend on the seed, and of those that do; and how many numbers
    these operations compute for an example.
    """
    moving, random = _dependents(inputs), _dependents([seed])
    both = moving & random
    of_batch, of_seed, size = {}, {}, 0.0
    for op in [op for op in graph.get_operations() if id(op) in both]:
        size += math.inf if op.type in _CONTROL else sum(map(_size, op.outputs))
        for tensor in op.inputs:
            if id(tensor.op) in both or tensor.dtype == tf.resource:
                continue
            if id(tensor.op) in random:
                of_seed[id(tensor)] = tensor
            elif tensor.op.type != "Const":  # of the batch, or of weights alone: once for all
                of_batch[id(tensor)] = tensor
    return [*of_batch.values()], [*of_seed.values()], size


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


def _dependents(tensors):
    """Ids of the operations that make `tensors`, and of those that depend on them."""
    found, waiting = set(), [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if id(op) not in found:
            found.add(id(op))
            waiting += [consumer for output in op.outputs for consumer in output.consumers()]
    return found
