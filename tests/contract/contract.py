"""The contract battery: what every layer, metric and callback of tfuq must do.

A part joins with one line in the tables of `test_contract.py`. The checks stand in
`contract_layers.py`, `contract_metrics.py`, `contract_callbacks.py` and `contract_process.py`; here
is what they share. They know nothing of a part, except that the first tensor a layer returns is
the one to train on.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import ops

POLICIES = ("mixed_float16", "mixed_bfloat16")
COMPILED = {"plain": False, "jit": True}


# --- What there is to learn -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Target:
    """A loss, and labels for outputs of a shape, so that `side` (0 or 1) can be learned."""

    loss: type
    classes: bool

    def labels(self, side, shape):
        """`side` `(batch,)` repeated to the labels of outputs of `shape`."""
        shape = shape[:-1] if self.classes else shape
        side = np.reshape(side, (-1,) + (1,) * (len(shape) - 1))
        return np.broadcast_to(side, shape).astype("int32")


CLASSES = Target(keras.losses.SparseCategoricalCrossentropy, classes=True)
LABELS = Target(keras.losses.BinaryCrossentropy, classes=False)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """A loss of `tfuq.losses`, and numbers for outputs of a shape, which hold its parameters."""

    of: keras.losses.Loss

    def loss(self, from_logits):
        del from_logits  # there are none
        return self.of

    def labels(self, side, shape):
        shape = (*shape[:-1], self.of.family.units(shape[-1]))
        return np.broadcast_to(np.reshape(side, (-1,) + (1,) * (len(shape) - 1)), shape).astype(
            "float32"
        )


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """One configuration of a layer.

    Args:
        name: Of the case in the test's id.
        layer: Class of the layer.
        kwargs: Its constructor arguments; `dtype` and `name` come on top.
        shape: Shape of one input example.
        more_shapes: Other shapes of an example, given to Keras with unknown extents.
        target: What the first output is trained on, `CLASSES`, `LABELS` or `Numbers`.
        repeats: Whether two predictions of one example are the same.
        idle: Names of trainable weights that no gradient reaches yet.
        takes_none: Whether it takes an empty batch; Keras' own batch normalization does not.
        prepare: `prepare(layer)` brings a layer that is built into the state to be tested.
        is_twin: Whether it differs from another case in its operation alone, as `Conv3DVariational`
            does from `Conv2DVariational`: `make test` takes it for a further case of that class.
        is_example: Whether `make test` runs all checks of it. Of other cases it leaves those that
            take seconds to `make test-slow`: see `layer_checks`.
    """

    name: str
    layer: type
    kwargs: dict
    shape: tuple = (4,)
    more_shapes: tuple = ((3, 4), (2, 3, 4))
    target: Target | Numbers = CLASSES
    repeats: bool = True
    idle: tuple = ()
    takes_none: bool = True
    prepare: Callable = lambda layer: None
    is_twin: bool = False
    is_example: bool = False

    def prepared(self, model):
        """`model`, its layers of this case's class brought into the state to be tested."""
        for layer in model._flatten_layers():
            if isinstance(layer, self.layer):
                self.prepare(layer)
        return model

    def make(self, **kwargs):
        return self.layer(**self.kwargs, **kwargs)

    def inputs(self, batch=9, shape=None):
        rng = np.random.default_rng(0)
        return rng.normal(size=(batch, *(shape or self.shape))).astype("float32")

    def data(self, model, batch=32):
        x = self.inputs(batch)
        side = x.mean(axis=tuple(range(1, x.ndim))) > 0
        return x, self.target.labels(side, np.shape(model(x)))


@dataclasses.dataclass(frozen=True)
class ModelCase(LayerCase):
    """A whole network in the place of a layer: `build()` makes one, always the same."""

    layer: type = keras.Model
    kwargs: dict = dataclasses.field(default_factory=dict)
    takes_none: bool = False
    build: Callable = None

    def make(self):
        return self.build()


# --- Models -----------------------------------------------------------------------------------


class First(keras.layers.Layer):
    """The first tensor of a structure, because `Sequential` passes a layer's whole output on."""

    def call(self, structure):
        return tensors(structure)[0]


class Subclassed(keras.Model):
    """A model whose layers Keras finds as attributes."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head, self.first = body, head, First()

    def call(self, x, training=False):
        return self.first(self.head(self.body(x), training=training))


def tensors(structure):
    """The tensors of a layer's output, in order."""
    return [tensor for tensor in keras.tree.flatten(structure) if tensor is not None]


def arrays(structure):
    return [ops.convert_to_numpy(ops.cast(tensor, "float32")) for tensor in tensors(structure)]


def whole(case, shape=None):
    """A functional model that returns all that the layer returns."""
    inputs = keras.Input(shape or case.shape)
    return case.prepared(keras.Model(inputs, case.make()(inputs)))


def body(case):
    return keras.layers.Dense(case.shape[-1], name="body")


def functional(case):
    inputs = keras.Input(case.shape)
    return case.prepared(keras.Model(inputs, tensors(case.make()(body(case)(inputs)))[0]))


def sequential(case):
    layers = [body(case), case.make(), First()]
    return case.prepared(keras.Sequential([keras.Input(case.shape), *layers]))


def subclassed(case):
    model = Subclassed(body(case), case.make())
    model(case.inputs(1))
    return case.prepared(model)


KINDS = {"functional": functional, "sequential": sequential, "subclassed": subclassed}


def perturb(model):
    """Moves all weights away from where the constructor puts them (a zero bias hides much)."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.1 * rng.normal(size=variable.shape))


def copy_variables(source, target):
    """Copies weights and seeds: `set_weights` leaves the seeds out."""
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = arrays(actual), arrays(expected)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_finite(structure):
    assert all(np.isfinite(array).all() for array in arrays(structure))


@contextlib.contextmanager
def policy(name):
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


@functools.cache
def two_devices():
    """MirroredStrategy over both logical CPUs: one per process, or their reductions mix.

    A model in its scope must leave `jit_compile` at "auto": XLA cannot read the second device's
    variables here, and "auto" does not compile under a strategy (nor without a GPU).
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
