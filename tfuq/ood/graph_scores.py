"""The score of a detector as a part of a graph, in float64 as elsewhere in `tfuq.ood`."""

import numpy as np
import tensorflow as tf

from tfuq._models.finite import finite_rows
from tfuq.ood.base import Detector


def has_graph_form(kind):
    """Whether a class of detectors scores in graphs, too."""
    return kind._graph_score not in (None, Detector._graph_score)


class GraphScore:
    """The score of a detector as a function of a batch, in a graph.

    Args:
        detector: A fitted detector, of a class that `has_graph_form`.
        inputs: A batch to find the layers with, where the detector has not seen one.
        hold: Makes a variable of an array that is to be part of the graph's file.
        held: Variables that are there already, by name, instead of `hold`.
    """

    def __init__(self, detector, inputs, hold=None, held=None):
        self.detector = detector
        # Now, because a function that is traced must not make variables.
        if held is None:
            held = {name: hold(array) for name, array in detector._graph_state().items()}
        self.held = held
        self.tap = detector._tap
        self.tap.prepare(inputs)

    def reads(self, output):
        """Whether it looks at this output of the model."""
        return self.detector.output == output

    def read(self, batch):
        """Logits, features and outputs of a batch: `tfuq._models.features.Found`."""
        return self.tap.forward(batch)

    def __call__(self, batch, found):
        """Scores `(batch,)`, float32, of a batch and what `read` gave for it."""
        state = {name: tf.convert_to_tensor(array) for name, array in self.held.items()}
        score, arrays = self.detector._graph_score(state, found, batch)
        known = finite_rows(batch) & finite_rows(list(arrays)) & (score <= score.dtype.max)
        # What is not finite is unknown, and further out than all else.
        return tf.cast(tf.where(known, score, tf.cast(np.inf, score.dtype)), "float32")
