"""Predictions of all members, batch by batch, and their mean."""

import functools

import keras
import numpy as np
import tensorflow as tf

from tfuq._models.batches import batches
from tfuq._models.outputs import any_batch, check_same_shapes, select_output


def stacks(members, data, batch_size, reading, verbose, reduce=None):
    """Probabilities, labels and weights of each batch; one graph holds all members.

    `reduce` makes of the probabilities `(members, batch, ..., classes)`, in the graph, what is
    yielded in their place.
    """
    functions, flags = {}, None
    for batch, *beside in batches(data, batch_size, verbose):
        spec = tf.nest.map_structure(any_batch, batch)
        flags = flags or [reading.is_logits(member, batch) for member in members]
        if str(spec) not in functions:
            stack = functools.partial(member_probs, members, reading, flags)
            functions[str(spec)] = tf.function(
                lambda batch, stack=stack: stack(batch) if reduce is None else reduce(stack(batch)),
                input_signature=[spec],
                autograph=False,  # it would wrap our errors
            )
        yield functions[str(spec)](batch).numpy(), *beside


def member_probs(members, reading, flags, batch):
    """Probabilities `(members, batch, ..., classes)` of one batch."""
    pairs = zip(members, flags, strict=True)
    probs = [reading.probs(member, batch, is_logits) for member, is_logits in pairs]
    check_same_shapes([[tuple(p.shape)] for p in probs], "models")
    return tf.stack(probs)


def mean_of_members(stack):
    return tf.reduce_mean(stack, axis=0)


def joined(rows, index, output):
    """Labels or weights of all batches as one array; None if there are none."""
    parts = [row[index] for row in rows]
    if parts[0] is None:
        return None
    parts = [select_output(p, output) if keras.tree.is_nested(p) else p for p in parts]
    return np.concatenate([np.asarray(part) for part in parts])
