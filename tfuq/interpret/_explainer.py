"""Explainer: scores or uncertainty of a model for images, and their gradients.

A score is a mean over draws of a random network, or that of the one network that a model is; so
memory does not grow with the number of draws. Where a score is no mean, as the entropy of the mean
prediction, that prediction q = mean_s p_s is computed first, and held fixed in

    H[q] = mean_s -sum_c p_sc log q_c,    I = mean_s sum_c p_sc log(p_sc / q_c)

The gradients of these are right, too, because the p_sc sum to 1. All comes from the logits before a
soft-max or sigmoid, where a layer shows them: next to a certain prediction the gradient of what is
after it is 0.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, check_model, shown
from tfuq._models.batches import batches
from tfuq._models.finite import known_only
from tfuq._models.logit_layer import call_kept, calls_of, like_outputs, logit_layer
from tfuq._models.outputs import any_batch
from tfuq._models.taken import check_shapes, spec_of
from tfuq._predictions.probabilities import cross_entropy
from tfuq._predictions.scores import class_probabilities, score_name
from tfuq._random.draws import num_draws, one_draw, random_layers
from tfuq.interpret._spatial_layers import few_rows, output_kept

TARGETS = ("class", "probability", "predictive_entropy", "expected_entropy", "mutual_information")
_OF_CLASSES = ("class", "probability")
_OF_THE_MEAN = ("predictive_entropy", "mutual_information")
SEED = tf.TensorSpec((2,), "int32")


class Explainer:
    """Scores of images by a model, and their gradients.

    Args:
        model: Keras model.
        class_index: None, an integer, or integers `(k,)` or `(images, k)`.
        target: One of `TARGETS`.
        num_samples: Number of draws of a random network, or None for the model as it predicts.
        seed: Integer from which these are drawn.
        reading: `Reading`, the output and what it holds.
    """

    def __init__(self, model, class_index, target, num_samples, seed, reading):
        check_model(model)
        target = score_name(target, TARGETS, argument="target")
        self.model, self.target, self.reading = model, target, reading
        self.classes = _read_classes(class_index, target)
        self.is_single = self.classes is None or np.ndim(class_index) == 0
        self.seeds = _seeds(num_samples, seed, target)
        if num_samples is not None:
            num_draws(model, num_samples, num_samples)
        self.is_binary = self._logit_layer = None
        self._run_scores, self._run_probs = _graph(self._scores), _graph(self._probs)

    # --- Batches ------------------------------------------------------------------------------

    def over(self, images, batch_size, name="images"):
        """Of all batches inputs, classes asked for (None: the predicted), labels and weights."""
        start = 0
        for batch, *beside in batches(images, batch_size, 0, name, model=self.model):
            batch = with_image(batch, _as_float, name)
            check_shapes(spec_of(self.model), batch, name, exact=True)
            if self.is_binary is None:
                self._prepare(batch)
            count = len(image_of(batch))
            yield batch, self._classes_of(start, count), *beside
            start += count
        self._check_rows(start)

    def _prepare(self, batch):
        rows = few_rows(batch)
        self.reading.select(self.model, rows)  # builds what is not built
        outputs, calls = calls_of(self.model, self.reading, rows, only_heads=False)
        if outputs.shape.rank < 2:
            raise ValueError(
                "Argument `model` must return predictions (batch, ..., classes). "
                f"Received: outputs of shape {tuple(outputs.shape)}"
            )
        self.reading = self.reading.known(self.model, rows)
        self.reading.checked(outputs)
        self._logit_layer = logit_layer(calls, outputs, self.reading)
        self.is_binary = self.reading.is_binary(outputs.shape)
        count = 2 if outputs.shape[-1] == 1 and not self.reading.multi_label else outputs.shape[-1]
        if self.classes is not None and not np.all((self.classes >= 0) & (self.classes < count)):
            raise ValueError(
                f"Argument `class_index` must hold classes from 0 to {count - 1}. "
                f"Received: class_index from {self.classes.min()} to {self.classes.max()}"
            )

    def _classes_of(self, start, count):
        if self.classes is None:
            return None
        if self.classes.ndim == 1:
            return tf.tile(self.classes[None], (count, 1))
        if start + count > len(self.classes):
            self._check_rows(start + count)
        return tf.constant(self.classes[start : start + count])

    def _check_rows(self, count):
        if np.ndim(self.classes) == 2 and count != len(self.classes):
            raise ValueError(
                "Argument `class_index` must be None, an integer, integers (k,) for all images or "
                f"(images, k). Received: class_index of shape {self.classes.shape} for {count} "
                "images or more"
            )

    # --- Scores -------------------------------------------------------------------------------

    def mean(self, batch):
        """The mean prediction, `(batch, ..., classes)`; `(batch, ..., labels, 2)` if binary."""
        return sum(self._run_probs(batch, seed) for seed in self.seeds) / len(self.seeds)

    def predicted(self, batch):
        """The predicted classes `(batch, 1)`; None where no class is asked for."""
        return self.most_probable(self.mean(batch)) if self.target in _OF_CLASSES else None

    def scores(self, batch, classes):
        """Scores `(batch, k)` of classes `(batch, k)`; `(batch, 1)` of an uncertainty."""
        return self._averaged(self._run_scores, batch, classes)

    def _averaged(self, function, batch, classes):
        """Mean over the draws of `function(batch, seed, mean prediction or None, classes)`."""
        needs_mean = self.target in _OF_THE_MEAN or classes is None
        mean = self.mean(batch) if needs_mean and self.seeds[0] is not None else None
        return sum(function(batch, s, mean, classes) for s in self.seeds) / len(self.seeds)

    def _probs(self, batch, seed):
        return self._as_probs(self._outputs(batch, seed)[0])

    def _as_probs(self, outputs):
        if self._are_logits and self.is_binary:  # 1 - p would be rounded next to 0
            return tf.sigmoid(tf.stack([-outputs, outputs], axis=-1))
        return class_probabilities(outputs, self._are_logits, self.is_binary)

    @property
    def _are_logits(self):
        """Whether `_outputs` are logits: the model's, or those that it makes probabilities from."""
        return self.reading.from_logits or self._logit_layer is not None

    def _scores(self, batch, seed, mean, classes):
        outputs, own_logits = self._outputs(batch, seed)
        probs = self._as_probs(outputs)
        mean = tf.stop_gradient(probs) if mean is None else mean
        if self.target not in _OF_CLASSES:
            return self._uncertainty(probs, mean)
        classes = self.most_probable(mean) if classes is None else classes
        if self.target == "class" and self._are_logits and seed is None:
            columns = _without_places(self._both_classes(own_logits))
        else:
            columns = self._columns(probs)
        return tf.gather(columns, classes, batch_dims=1)

    def _outputs(self, batch, seed):
        """Logits, or else probabilities; and the logits before a head averages or normalizes."""
        if seed is None:
            return self._run_model(batch)
        with one_draw(seed, self.model) as draw:
            outputs = self._run_model(batch)
        layers = [layer for layer in random_layers(self.model) if id(layer) in draw.layers]
        if not any(layer.is_random() for layer in layers):
            raise ValueError(
                "Argument `num_samples` must be None for a model without random layers: all of "
                f"its draws are the same. Received: model={shown(self.model)}"
            )
        return outputs

    def _run_model(self, batch):
        if self._logit_layer is None:
            found = [self.reading.select(self.model, batch)] * 2
        else:
            with call_kept(self._logit_layer.layer) as kept:
                outputs = self.reading.select(self.model, batch)
            found = [tf.cast(each, "float32") for each in (kept[0].logits, kept[0].own_logits)]
            found = [like_outputs(each, outputs) for each in found]
        return [known_only(batch, each) for each in found]

    def outputs(self, batch):
        """Logits where they show, else probabilities, `(batch, ..., classes)`."""
        return self._run_model(batch)[0]

    def _columns(self, probs):
        """Probabilities `(batch, classes)`, or `(batch, labels)` of multi-label predictions."""
        if self.is_binary:
            probs = probs[..., 1] if self.reading.multi_label else probs[..., 0, :]
        return _without_places(probs)

    def _both_classes(self, logits):
        """Logits with a column for each class: -z and z where one output tells two classes."""
        is_one = self.is_binary and not self.reading.multi_label
        return tf.concat([-logits, logits], axis=-1) if is_one else logits

    def most_probable(self, mean):
        return tf.argmax(self._columns(mean), axis=-1, output_type="int32")[:, None]

    def _uncertainty(self, probs, mean):
        """What is `(batch, 1)`, and over the draws on average the uncertainty, in nats."""
        of_mean = cross_entropy(probs, mean)
        of_draw = cross_entropy(probs, probs)
        values = {"predictive_entropy": of_mean, "expected_entropy": of_draw}
        found = values.get(self.target, of_mean - of_draw)
        labels = found if self.is_binary else found[..., None]
        return tf.reduce_sum(_without_places(labels), axis=-1, keepdims=True)

    # --- Gradients ----------------------------------------------------------------------------

    def attribution(self, combine, layer=None, context=contextlib.nullcontext):
        """A function of batch and classes: the mean over draws of `combine(tensor, gradients)`.

        The tensor is the output of `layer`, or the image if that is None. The gradients of the
        scores `(batch, k)` are `(batch, k, ...)`. The model runs inside `context()`.
        """

        def of_one_draw(batch, seed, mean, classes):
            image = contextlib.nullcontext([image_of(batch)])
            with context(), image if layer is None else output_kept(layer) as kept:
                scores = tf.unstack(self._scores(batch, seed, mean, classes), axis=1)
            columns = [tf.gradients(score, kept)[0] for score in scores] if kept else [None]
            if any(column is None for column in columns):
                raise ValueError(
                    "Argument `model` must have a gradient with respect to "
                    f"{'its images' if layer is None else layer.name}. Received: "
                    f"model={shown(self.model)}, in which it cannot be followed"
                )
            gradients = tf.stack(list(map(tf.convert_to_tensor, columns)), axis=1)
            return combine(tf.cast(kept[0], "float32"), tf.cast(gradients, "float32"))

        function = _graph(of_one_draw)
        return lambda batch, classes: self._averaged(function, batch, classes)


def _graph(function):
    """`function(batch, seed, ...)` as graphs, traced once for all sizes of a batch."""
    compiled, traced = tf.function(function, autograph=False), {}

    def run(batch, seed, *others):
        batch_spec, *specs = tf.nest.map_structure(_any_batch, (batch, *others))
        arguments = (batch_spec, None if seed is None else SEED, *specs)
        key = str(arguments)
        if key not in traced:
            traced[key] = compiled.get_concrete_function(*arguments)
        return traced[key](batch, seed, *others)

    return run


def _any_batch(tensor):
    return None if tensor is None else any_batch(tensor)


def _without_places(values):
    """`(batch, ..., columns)`, averaged over all axes but the first and the last."""
    return tf.reduce_mean(values, axis=tuple(range(1, values.shape.rank - 1)))


# --- Arguments --------------------------------------------------------------------------------


def _seeds(num_samples, seed, target):
    """A seed for each draw, those of `tfuq.predictive.sample_predictions`; [None] for no draw."""
    check_integer("seed", seed, 0)
    if target == "mutual_information" or num_samples is not None:
        check_integer("num_samples", num_samples, 2 if target == "mutual_information" else 1)
    if num_samples is None:
        return [None]
    return [tf.constant([seed, number], "int32") for number in range(num_samples)]


def _read_classes(class_index, target):
    """The argument as an array `(k,)` or `(images, k)`, or None."""
    if class_index is None:
        return None
    if target not in _OF_CLASSES:
        raise ValueError(
            f"Argument `class_index` must be None for target={shown(target)}, which concerns all "
            f"classes. Received: class_index={shown(class_index)}"
        )
    try:
        classes = np.atleast_1d(np.asarray(class_index))
    except ValueError:  # ragged lists
        classes = np.zeros(0)
    if classes.dtype.kind not in "iu" or classes.ndim > 2 or classes.size == 0:
        raise ValueError(
            "Argument `class_index` must be None, an integer, integers (k,) for all images or "
            f"(images, k). Received: class_index={shown(class_index)}"
        )
    return classes.astype("int32")


# --- Images -----------------------------------------------------------------------------------


def image_of(batch, name="images"):
    """The first input `(batch, height, width, channels)`."""
    return tf.nest.flatten(batch)[_place(batch, name)]


def with_image(batch, change, name="images"):
    """The batch with `change(image)` in place of its image."""
    leaves, place = list(tf.nest.flatten(batch)), _place(batch, name)
    leaves[place] = change(leaves[place])
    return tf.nest.pack_sequence_as(batch, leaves)


def _place(batch, name):
    shapes = [leaf.shape for leaf in tf.nest.flatten(batch)]
    places = [number for number, shape in enumerate(shapes) if shape.rank == 4]
    if not places:
        raise ValueError(
            f"Argument `{name}` must hold images (batch, height, width, channels). "
            f"Received: shapes {list(map(tuple, shapes))}"
        )
    return places[0]


def _as_float(image):
    return image if image.dtype.is_floating else tf.cast(image, keras.backend.floatx())
