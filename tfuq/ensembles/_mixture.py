"""Predictions of all members, batch by batch, and their mean."""

import functools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._models.batches import batches
from tfuq._models.meaning import readings_of
from tfuq._models.outputs import any_batch, check_same_shapes, select_output


class Part(NamedTuple):
    """What the members predict for a batch, and what stands beside its inputs."""

    probs: np.ndarray
    labels: object
    weight: object
    multi_label: bool  # whether the entries of the last axis do not exclude one another


def stacks(members, data, batch_size, reading, verbose, reduce=None):
    """A `Part` for each batch; one graph holds all members.

    `reduce` makes of the probabilities `(members, batch, ..., classes)`, in the graph, what is
    yielded in their place.
    """
    functions, readings = {}, None
    for batch, labels, weight in batches(data, batch_size, verbose, model=members[0]):
        spec = tf.nest.map_structure(any_batch, batch)
        readings = readings or readings_of(members, reading, batch)
        if str(spec) not in functions:
            stack = functools.partial(member_probs, members, readings)
            functions[str(spec)] = tf.function(
                lambda batch, stack=stack: stack(batch) if reduce is None else reduce(stack(batch)),
                input_signature=[spec],
                autograph=False,  # it would wrap our errors
            )
        found = functions[str(spec)](batch).numpy()
        for known in readings:
            known.checked(found)
        yield Part(found, labels, weight, readings[0].multi_label)


def member_probs(members, readings, batch):
    """Probabilities `(members, batch, ..., classes)` of one batch."""
    pairs = zip(members, readings, strict=True)
    probs = [known.probs(member, batch) for member, known in pairs]
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
