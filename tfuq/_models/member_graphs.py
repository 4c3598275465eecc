"""Probabilities of all members of an ensemble, in graphs that are kept from call to call."""

import functools

import tensorflow as tf

from tfuq._models.outputs import any_batch, check_same_shapes, select_output
from tfuq._random.draws import random_layers

KEPT = 4  # of each ensemble: what is returned, and how it is read
_NAME = "_tfuq_graphs"


def member_probs(members, readings, batch, forward=None):
    """Probabilities `(members, batch, ..., classes)` of one batch.

    `forward` is None, or a `StackedForward` of the members, which gives their outputs at once.
    """
    if forward is not None:
        return _probs_of_stacked(forward, members[0], readings, batch)
    pairs = zip(members, readings, strict=True)
    probs = [known.probs(member, batch) for member, known in pairs]
    check_same_shapes([[tuple(p.shape)] for p in probs], "models")
    return tf.stack(probs)


def _probs_of_stacked(forward, model, readings, batch):
    scores = tf.cast(select_output(forward(batch), readings[0].output, model), "float32")
    axis = len(scores.shape) - 2
    if len(set(readings)) == 1:
        probs = readings[0].as_probs(batch, scores)
    else:  # logits of some, probabilities of others
        parts = zip(readings, tf.unstack(scores, axis=axis), strict=True)
        probs = tf.stack([known.as_probs(batch, part) for known, part in parts], axis)
    return tf.transpose(probs, [axis, *range(axis), axis + 1])


def mean_of_members(stack):
    return tf.reduce_mean(stack, axis=0)


def member_graph(ensemble, members, readings, reduce=None, told=()):
    """A function from a batch to the probabilities of all members, or what `reduce` makes of them.

    It is the one of an earlier call if nothing has changed since: the members, their variables,
    what they are said to return, the `resample` of their random layers, and `told`, whatever else
    the caller knows. Like Keras' own `predict_function`, it does not see other attributes change.
    """
    variables = tuple(id(variable) for member in members for variable in member.variables)
    random = [layer for member in members for layer in random_layers(member)]
    state = (variables, tuple(getattr(layer, "resample", None) for layer in random), told)
    forward = getattr(ensemble, "forward", None)
    key = (state, tuple(readings), reduce)
    kept = vars(ensemble).setdefault(_NAME, {})
    found = kept.pop(key, None) or _Graphs(
        functools.partial(_reduced, members, readings, reduce or tf.identity, forward)
    )
    # Graphs of other members or variables would keep these in memory.
    latest = [(k, v) for k, v in kept.items() if k[0][0] == variables][1 - KEPT :]
    vars(ensemble)[_NAME] = dict([*latest, (key, found)])
    return found


def _reduced(members, readings, reduce, forward, batch):
    return reduce(member_probs(members, readings, batch, forward))


class _Graphs:
    """A function of a batch, as graphs that take any size along the axes that have changed."""

    def __init__(self, function):
        self.function = function
        self.known = {}  # by structure, dtypes and ranks: the spec and its graph

    def __call__(self, batch):
        spec = tf.nest.map_structure(any_batch, batch)
        key = str(tf.nest.map_structure(lambda each: (each.dtype, each.shape.rank), spec))
        known, graph = self.known.get(key, (spec, None))
        both = tf.nest.map_structure(_covering, known, spec)
        if graph is None or both != known:
            # Autograph would wrap our errors.
            graph = tf.function(self.function, input_signature=[both], autograph=False)
            self.known[key] = both, graph
        return graph(batch)


def _covering(one, other):
    """The narrowest spec that fits both."""
    shape = one.shape.most_specific_compatible_shape(other.shape)
    return tf.TensorSpec(shape, one.dtype)
