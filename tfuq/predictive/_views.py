"""Views of the same images: augmentations at test time, and what undoes them."""

import functools
import inspect
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, shown
from tfuq._models.outputs import input_spec
from tfuq._random.global_state import derived_seed, seeded

NUM_SAMPLES = 30


class View(NamedTuple):
    """`augment(images, seed)`, and `invert(predictions)` or None; the images themselves if None."""

    augment: object
    invert: object

    def look(self, images, seed):
        """The images as this view shows them; nothing else in the process notices."""
        if self.augment is None:
            return images
        with seeded(seed):
            return self.augment(images, seed)

    def undo(self, probs):
        """Predictions per pixel as of the images themselves."""
        return probs if self.invert is None else np.asarray(self.invert(probs, 0))


def make_views(augment, num_samples, include_original):
    """One `View` per sample, of what `test_time_augmentation` takes."""
    original = [View(None, None)] if include_original else []
    if isinstance(augment, list):
        if num_samples is not None:
            raise ValueError(
                "Argument `num_samples` must be None for a list of augmentations, which are one "
                f"sample each. Received: num_samples={shown(num_samples)}"
            )
        if not augment:
            raise ValueError("Argument `augment` must not be empty. Received: augment=[]")
        return original + [_view(each) for each in augment]
    num_samples = NUM_SAMPLES if num_samples is None else num_samples
    check_integer("num_samples", num_samples, 1 + len(original))
    return original + [View(_function(augment), None)] * (num_samples - len(original))


def _view(entry):
    if isinstance(entry, tuple) and len(entry) == 2:
        return View(*map(_function, entry))
    return View(_function(entry), None)


def _function(augment):
    """`augment` as a function of images and seed."""
    if isinstance(augment, keras.layers.Layer):
        return functools.partial(_call_layer, augment)
    if not callable(augment):
        raise ValueError(
            "Argument `augment` must be a Keras layer, a function of images, or a list of these "
            f"or of pairs (augmentation, inverse). Received: augment={shown(augment)}"
        )
    return functools.partial(_call_function, augment, "seed" in _parameters(augment))


def _parameters(function):
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some that are written in C do not say
        return ()


def _call_layer(layer, images, seed):
    """What the layer does in training; its random state, and all else it holds, is put back."""
    before = [(variable, variable.numpy()) for variable in layer.variables]
    try:
        if not layer.built:  # the first call makes what is missing
            layer(images, training=True)
        states = (v for v in layer.variables if v.name == "seed_generator_state")
        for number, state in enumerate(states):
            state.assign([seed, number])
        return layer(images, training=True)
    finally:
        for variable, value in before:
            variable.assign(value)


def _call_function(function, takes_seed, images, seed):
    # Copies, because functions on NumPy arrays like to change these in place.
    images = tf.nest.map_structure(lambda tensor: np.array(tensor), images)
    return function(images, seed=seed) if takes_seed else function(images)


def predictions(views, batch, number, predict, expected, seed):
    """`predict(images)` of each view of a batch, the one of this number: `(views, batch, ...)`."""
    stack, augmented = [], 0
    for view in views:
        images = batch
        if view.augment is not None:
            # 31 bits, which TensorFlow takes for an integer.
            images = view.look(batch, derived_seed(seed, augmented, number) >> 1)
            images = _checked(images, batch, expected)
            augmented += 1
        stack.append(view.undo(predict(images)))
    shapes = {probs.shape for probs in stack}
    if len(shapes) > 1:
        raise ValueError(
            "Argument `augment` must lead to predictions of one shape, which an inverse must "
            f"keep. Received: predictions of shapes {sorted(shapes)}"
        )
    return np.stack(stack)


def expected_inputs(model):
    """`tf.TensorSpec`s of what the model takes; None if it does not say."""
    try:
        return tf.nest.flatten(input_spec(model))
    except ValueError:
        return None


def _checked(images, batch, expected):
    """Augmented images in a type that the model takes; an error if they cannot be of this batch."""
    given = tf.nest.flatten(batch)
    returned = list(map(tf.convert_to_tensor, tf.nest.flatten(images)))
    if expected is None or len(expected) != len(given):
        expected = [None] * len(given)
    is_kept = len(returned) == len(given) and all(map(_is_view, returned, given, expected))
    if not is_kept:
        raise ValueError(
            "Argument `augment` must return as many images as it is given, in a shape that the "
            f"model takes. Received: shapes {[tuple(each.shape) for each in returned]} for "
            f"images of shapes {[tuple(each.shape) for each in given]}"
        )
    return tf.nest.pack_sequence_as(batch, list(map(_typed, returned, expected)))


def _is_view(new, old, spec):
    """Whether `new` can be `old` augmented: as many, and of its shape or one the model takes."""
    if new.shape.rank != old.shape.rank or new.shape[0] != old.shape[0]:
        return False
    return new.shape == old.shape or spec is None or spec.shape.is_compatible_with(new.shape)


def _typed(images, spec):
    """Real numbers in Keras' type; rounded for models of integers, where Keras cuts them off."""
    if not images.dtype.is_floating:
        return images
    if spec is not None and spec.dtype.is_integer:
        return tf.saturate_cast(tf.round(images), spec.dtype)
    return tf.cast(images, keras.config.floatx())
