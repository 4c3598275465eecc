"""Inputs that a model says it takes: their shapes, and what is declared of images."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from tfuq._files.declared import recalled
from tfuq._images.inputs import InputSpec
from tfuq._models.outputs import input_spec


def inputs_of(model):
    """`InputSpec` of the images that are declared of a model or ensemble, or None."""
    content = recalled(_one_of(model)).get("inputs")
    return None if content is None else InputSpec.from_config(content)


def taken_by(model):
    """A function `check(batch, name)`: ValueError unless a model or ensemble says it takes that.

    `Sequential` models do not ask: without a layer that knows its inputs, as behind a global
    average, they answer to images of any size. What the model says is read once, for all batches.
    """
    specs, declared = spec_of(model), inputs_of(model)
    has_bytes = divides_pixels(_one_of(model)) if declared is None else declared.takes_integers()

    def check(batch, name):
        check_shapes(specs, batch, name)
        for leaf in () if declared is None else tf.nest.flatten(batch):
            declared.check(leaf, name)
        if has_bytes:
            warn_of_scaled(batch, name)

    return check


def divides_pixels(model):
    """Whether the first that a model does with its one input is to divide pixels of 0 to 255.

    As the networks of `keras.applications` do that have a `Rescaling` of their own.
    """
    while isinstance(model, keras.Model) and isinstance(getattr(model, "inputs", None), list):
        if len(model.inputs) != 1:
            return False
        first = (x for x in model.layers if not isinstance(x, keras.layers.InputLayer))
        model = next((x for x in first if not type(x).__name__.startswith("Random")), None)
    scale = model.scale if isinstance(model, keras.layers.Rescaling) else 0.0
    return any(np.ndim(scale) == 0 and abs(scale * of - 1) < 0.05 for of in (255.0, 127.5))


def warn_of_scaled(batch, name):
    """Warns of images of 0 to 1 for a model that takes 0 to 255, to which they are all but black.

    Whole numbers are taken as they are: they may be black pixels.
    """
    for leaf in tf.nest.flatten(batch):
        array = np.asarray(leaf) if hasattr(leaf, "shape") and len(leaf.shape) == 4 else np.zeros(0)
        if array.dtype.kind != "f" or not array.size:
            continue
        low, high = np.min(array), np.max(array)
        if low >= 0 and 0 < high <= 1 and np.any(array % 1):
            warnings.warn(
                f"Argument `{name}` holds images of {low:g} to {high:g}, and the model takes 0 to "
                "255: to it they are black. If white is 1, multiply them by 255.",
                stacklevel=5,
            )


def spec_of(model):
    """`tf.TensorSpec`s of what a model or ensemble takes, named; None if it does not say."""
    model = _one_of(model)
    if not isinstance(model, keras.Model) or not isinstance(getattr(model, "inputs", None), list):
        return None
    specs, names = input_spec(model), iter(tensor.name for tensor in model.inputs)
    if isinstance(specs, dict):
        return specs
    return tf.nest.map_structure(lambda s: tf.TensorSpec(s.shape, s.dtype, next(names)), specs)


def check_shapes(specs, batch, name, *, exact=False):
    """Raises ValueError if a batch has other sizes than `spec_of` says, as far as both are known.

    As in Keras, a last axis of 1 may be there or not, unless it has to be `exact`.
    """
    for spec, leaf in _pairs(specs, batch):
        if not _fits(spec.shape, leaf.shape, exact):
            raise ValueError(
                f"Argument `{name}` must have the shape that the model takes, "
                f"{tuple(spec.shape)}. Received: {name} of shape {tuple(leaf.shape)}"
            )


def sizes_fit(specs, batch):
    """In graphs: whether sizes that are not known when it is traced fit, a bool.

    None if all are known, so that `check_shapes` has looked at them.
    """
    open_ones = [(spec, leaf) for spec, leaf in _pairs(specs, batch) if _is_open(spec, leaf)]
    if not open_ones:
        return None
    specs, leaves = zip(*open_ones, strict=True)
    return has_sizes(list(leaves), list(specs))


def has_sizes(batch, specs):
    """In graphs: whether a batch has the sizes that `specs` say, of as many axes, a bool.

    Runtimes do not ask: convolutions of LiteRT take any number of channels and answer, and so do
    signatures of a SavedModel with images of another size.
    """
    fits = tf.constant(True)
    for leaf, each in zip(tf.nest.flatten(batch), tf.nest.flatten(specs), strict=True):
        sizes = each.shape.as_list() if each.shape.rank is not None else [None]
        if any(size is not None for size in sizes[1:]):
            free = [size is None for size in sizes]
            told = [size or 0 for size in sizes]
            fits &= tf.reduce_all(tf.equal(tf.shape(leaf), told) | free)
    return fits


def _one_of(model):
    """A model, or the first member of an ensemble."""
    return getattr(model, "members", [model])[0]


def _pairs(specs, batch):
    """Pairs of what is taken and what is given; none where it is for Keras to match them."""
    if specs is None:
        return []
    if isinstance(batch, dict):
        flat = tf.nest.flatten(specs)
        named = specs if isinstance(specs, dict) else {spec.name: spec for spec in flat}
        pairs = [(named[name], batch[name]) for name in named if name in batch]
    else:
        taken, given = tf.nest.flatten(specs), tf.nest.flatten(batch)
        is_clear = len(taken) == len(given) and (len(taken) == 1 or not isinstance(specs, dict))
        pairs = zip(taken, given, strict=True) if is_clear else []
    return [(spec, leaf) for spec, leaf in pairs if hasattr(leaf, "shape")]


def _fits(shape, given, exact):
    """Whether a batch can have a shape, but for how many examples it holds."""
    given = tf.TensorShape(given)
    if None in (given.rank, shape.rank):
        return True
    axes, sizes = shape[1:], given[1:]
    if exact:
        return axes.is_compatible_with(sizes)
    if sizes.rank == axes.rank + 1 and sizes[-1] in (1, None):
        sizes = sizes[:-1]
    elif sizes.rank == axes.rank - 1 and axes[-1] == 1:
        axes = axes[:-1]
    return given.rank > 0 and axes.is_compatible_with(sizes)


def _is_open(spec, leaf):
    if None in (leaf.shape.rank, spec.shape.rank) or leaf.shape.rank != spec.shape.rank:
        return False
    sizes = zip(spec.shape[1:], leaf.shape[1:], strict=True)
    return any(size is None and axis is not None for axis, size in sizes)
