"""Predictions of all members, batch by batch, and their mean."""

from typing import NamedTuple

import keras
import numpy as np

from tfuq._models.batches import batches
from tfuq._models.meaning import readings_of
from tfuq._models.member_graphs import mean_of_members, member_graph
from tfuq._models.outputs import select_output
from tfuq.layers.ways import wanted_way


class Part(NamedTuple):
    """What the members predict for a batch, and what stands beside its inputs."""

    probs: np.ndarray
    labels: object
    weight: object
    multi_label: bool  # whether the entries of the last axis do not exclude one another


def stacks(ensemble, data, batch_size, reading, verbose, reduce=None):
    """A `Part` for each batch; one graph holds all members, and is kept with the ensemble.

    `reduce` makes of the probabilities `(members, batch, ..., classes)`, in the graph, what is
    yielded in their place.
    """
    graph, members = None, ensemble.members
    for batch, labels, weight in batches(data, batch_size, verbose, model=members[0]):
        if graph is None:
            readings = readings_of(members, reading, batch)
            graph = member_graph(ensemble, members, readings, reduce, told=wanted_way())
        found = graph(batch).numpy()
        for known in readings:
            known.checked(found)
        yield Part(found, labels, weight, readings[0].multi_label)


def mean_as_stack(stack):
    """The mean of the members, as a stack of one."""
    return mean_of_members(stack)[None]


def joined(rows, index, output):
    """Labels or weights of all batches as one array; None if there are none."""
    parts = [row[index] for row in rows]
    if parts[0] is None:
        return None
    parts = [select_output(p, output) if keras.tree.is_nested(p) else p for p in parts]
    return np.concatenate([np.asarray(part) for part in parts])
