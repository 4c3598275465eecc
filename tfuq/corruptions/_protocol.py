"""Evaluation protocol of a model on clean and corrupted images, and its five figures."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._files.tables import markdown_table
from tfuq._images.pieces import checked_images
from tfuq._models.batches import batches
from tfuq._models.meaning import Reading
from tfuq._models.outputs import any_batch, select_output
from tfuq._models.taken import taken_by
from tfuq._random.global_state import derived_seed
from tfuq.corruptions._registry import corrupt
from tfuq.metrics import (
    coverage,
    expected_calibration_error,
    negative_log_likelihood,
    selective_accuracy,
)

FIGURES = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")
TRAIN, TEST = 1, 2  # what the noise is for: no image of one has the noise of another


class EvaluationProtocol(NamedTuple):
    """How a model is evaluated, the same on every set of images."""

    reading: Reading
    threshold: float
    n_bins: int
    batch_size: int
    preprocess: object
    seed: int

    def scores(self, model):
        """What `model` answers to images, as a function of their batches."""
        if isinstance(model, keras.Model):
            return _ModelOutputs(model, self.reading, self.inputs)
        if callable(model):
            return _FunctionOutputs(model, self.inputs, self.reading.multi_label)
        raise ValueError(
            "Argument `model` must be a Keras model or a function from inputs to probabilities. "
            f"Received: model={shown(model)}"
        )

    def inputs(self, images):
        """What the model takes, from images."""
        return images if self.preprocess is None else self.preprocess(images)

    def figures(self, scores, data, corruption=None, options=None):
        """The five figures on `data`, by name, with or without a corruption."""
        rows = []
        for number, (images, *beside) in enumerate(batches(data, self.batch_size, verbose=0)):
            images = self._corrupted(
                images, corruption, options, derived_seed(self.seed, number, TEST)
            )
            rows.append((scores(images), *map(self._chosen, beside)))
        predicted, labels, weight = (
            None if part[0] is None else np.concatenate(part) for part in zip(*rows, strict=True)
        )
        if labels is None:
            raise ValueError("Argument `y` must hold labels, or `x` pairs. Received: no labels")
        data = (labels, predicted)
        flags = {"from_logits": scores.from_logits, "multi_label": scores.multi_label}
        flags["sample_weight"] = weight
        return {
            "accuracy": selective_accuracy(*data, 0.0, **flags),
            "nll": negative_log_likelihood(*data, **flags),
            "ece": expected_calibration_error(*data, n_bins=self.n_bins, **flags),
            "coverage": coverage(*data, self.threshold, **flags),
            "selective_accuracy": selective_accuracy(*data, self.threshold, **flags),
        }

    def _chosen(self, beside):
        """Labels or weights of the evaluated output, as an array or None."""
        nested = keras.tree.is_nested(beside)
        beside = select_output(beside, self.reading.output) if nested else beside
        return None if beside is None else np.asarray(beside)

    def _corrupted(self, images, corruption, options, seed):
        if corruption is None:
            return checked_images(images)
        return corrupt(images, corruption, **options, seed=seed)

    def training_data(self, data, corruption, options):
        """Arguments of `fit`: `data`, corrupted once if asked for, and ready for the model."""
        seed = derived_seed(self.seed, 0, TRAIN) >> 1

        def changed(number, images, *beside):
            pair = tf.stack([seed, tf.cast(number, "int32")])
            return self.inputs(self._corrupted(images, corruption, options, pair)), *beside

        if isinstance(data, tf.data.Dataset):
            return {"x": data.enumerate().map(lambda number, each: changed(number, *each))}
        parts = [
            changed(number, images)[0]
            for number, (images, *_) in enumerate(batches(data, self.batch_size, verbose=0))
        ]
        _, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x = tf.nest.map_structure(lambda *each: np.concatenate(each), *parts)
        return {"x": x, "y": y, "sample_weight": weight, "batch_size": self.batch_size}


class _FunctionOutputs:
    """Probabilities that a function gives."""

    from_logits = False

    def __init__(self, function, inputs, multi_label):
        self._function, self._inputs, self.multi_label = function, inputs, bool(multi_label)

    def __call__(self, images):
        return np.asarray(self._function(self._inputs(images)))


class _ModelOutputs:
    """Logits or probabilities of a Keras model; logits as they are, where soft-max underflows."""

    from_logits = multi_label = None

    def __init__(self, model, reading, inputs):
        self._model, self._reading, self._inputs = model, reading, inputs
        self._check_taken = taken_by(model)

    def __call__(self, images):
        batch = self._inputs(images)
        self._check_taken(batch, "x")
        if self.from_logits is None:
            known = self._reading.known(self._model, batch)
            self.from_logits, self.multi_label = known.from_logits, known.multi_label
            self._function = tf.function(
                lambda batch: self._reading.select(self._model, batch),
                input_signature=[tf.nest.map_structure(any_batch, batch)],
                autograph=False,
            )
        return self._function(batch).numpy()


def figure_table(header, rows):
    """A table in Markdown; numbers with four digits after the point."""
    cells = [[f"{c:.4f}" if isinstance(c, float) else c for c in row] for row in rows]
    return markdown_table(header, cells)
