"""Squared norms of each example's gradients of the weights of any model, in one pass.

While the model is traced, the layers that hold its weights note what they take and give. The
gradients of what they give are found by one backward pass, which needs no weight's gradient.
"""

import contextlib
import functools
import itertools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._models.changes import replaced
from tfuq.ood._norm_layers import Use, known_norms, of_square, replayed_norms, rule_of, width_of

PROBE = 7919  # a batch of as many examples is traced, not run: no other axis is as long


class Unit(NamedTuple):
    """A layer, the variables whose gradients are worked out from its calls, and how."""

    layer: Any
    variables: list
    rule: Any
    rows: list = ()  # for each call, which inputs belong to the examples


def gradient_norms(model, units, variables, x, loss_of, measure=None):
    """Squared norms `(batch, variables)` of each example's gradients; or what `measure` makes.

    Args:
        model: Built Keras model. It runs as when it predicts.
        units: What `find_units` has found of the model and the variables.
        variables: List of variables: the columns.
        x: A batch, of a shape that is known.
        loss_of: Function from the model's outputs to losses `(batch,)`.
        measure: Function from a gradient to numbers `(columns,)`; None for the squared norm. The
            units then have no rules.
    """
    uses, _ = _uses(model, units, x, loss_of)
    norms, last = {}, []
    for unit, found in reversed(list(zip(units, uses, strict=True))):  # as gradients become known
        found = [use._replace(rows=r) for use, r in zip(found, unit.rows, strict=True)]
        found = [use for use in found if use.gradients]
        with tf.control_dependencies(last):  # one layer after the other, to save memory
            columns = _unit_norms(unit, found, measure or of_square)
        last = [column for column in columns if column is not None] or last
        norms.update(zip(map(id, unit.variables), columns, strict=True))
    count = tf.nest.flatten(x)[0].shape[0]
    found = []
    for variable in variables:
        column = norms[id(variable)]
        width = width_of(variable, measure or of_square)
        found.append(tf.zeros((count, width)) if column is None else column)
    return tf.concat([tf.reshape(column, (count, -1)) for column in found], axis=1)


def _unit_norms(unit, uses, measure):
    if not uses:  # the loss does not depend on the layer
        return [None] * len(unit.variables)
    if unit.rule is None:
        return replayed_norms(unit.layer, unit.variables, uses, measure)
    return known_norms(unit.rule, unit.layer, unit.variables, uses)


# --- One pass through the model ------------------------------------------------------------------


def _uses(model, units, x, loss_of):
    """The uses of each unit, with gradients, and which variables have others: ids."""
    watched = [variable for unit in units for variable in unit.variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([variable.value for variable in watched])
        with _recorded(units, tape) as uses:
            outputs = model(x, training=False)
        loss = tf.reduce_sum(loss_of(outputs))
    tensors = [[use.outputs for use in found] for found in uses]
    gradients, beside = tape.gradient(loss, [tensors, [v.value for v in watched]])
    uses = [
        [use._replace(gradients=_given(g)) for use, g in zip(found, of_found, strict=True)]
        for found, of_found in zip(uses, gradients, strict=True)
    ]
    leaks = {id(v) for v, g in zip(watched, beside, strict=True) if g is not None}
    return uses, leaks


def _given(gradients):
    return {
        number: tf.cast(tf.convert_to_tensor(gradient), "float32")
        for number, gradient in gradients.items()
        if gradient is not None
    }


@contextlib.contextmanager
def _recorded(units, tape):
    """While it is open, the layers of `units` note each call; yields the list of each one's uses.

    The gradient with respect to a variable stops where its unit is called: what is left of it
    comes from elsewhere.
    """
    recorder = _Recorder(units, tape)
    with contextlib.ExitStack() as stack:
        for unit, found in zip(units, recorder.uses, strict=True):
            wrap = functools.partial(recorder.wrap, unit, found)
            stack.enter_context(replaced(unit.layer, "call", wrap))
        # Nothing that the model counts or adds to losses stays.
        stack.enter_context(keras.StatelessScope())
        yield recorder.uses


class _Recorder:
    def __init__(self, units, tape):
        self.uses = [[] for _ in units]
        self.tape = tape
        self.graph = tf.compat.v1.get_default_graph()
        self.fixed = {
            id(v): (v, tf.stop_gradient(tf.convert_to_tensor(v.value)))
            for unit in units
            for v in unit.variables
        }
        self.opened = []  # variables of the units that are being called

    def wrap(self, unit, uses, original):
        def call(*args, **kwargs):
            if tf.compat.v1.get_default_graph() is not self.graph:  # what loops and branches hold
                return original(*args, **kwargs)  # cannot be taken out of them
            with self._stopped(unit.variables), _bare(unit) as activation:
                outputs = original(*args, **kwargs)
            flat = _distinct_floats(outputs)
            self.tape.watch(flat)
            uses.append(Use(args, kwargs, flat))
            return outputs if activation is None else activation(outputs)

        return call

    @contextlib.contextmanager
    def _stopped(self, variables):
        self.opened.append(variables)
        try:
            with keras.StatelessScope([self.fixed[id(v)] for each in self.opened for v in each]):
                yield
        finally:
            self.opened.pop()


def _distinct_floats(outputs):
    """The tensors that have a gradient, by their place; one that stands twice, as what a recurrent
    cell gives and its state, has its whole gradient in the first place."""
    tensors = {}
    for number, tensor in enumerate(tf.nest.flatten(outputs)):
        if _is_float(tensor) and not any(tensor is other for other in tensors.values()):
            tensors[number] = tensor
    return tensors


@contextlib.contextmanager
def _bare(unit):
    """While it is open, a layer with a rule applies no activation; yields what it would apply."""
    activation = vars(unit.layer).get("activation") if unit.rule else None
    if activation is None:
        yield None
        return
    with replaced(unit.layer, "activation", lambda _: keras.activations.linear):
        yield activation


def _is_float(value):
    return isinstance(value, tf.Tensor) and value.dtype.is_floating


# --- Which calls tell the gradients of which variables -------------------------------------------


def find_units(model, variables, x, loss_of):
    """The `Unit`s from whose calls the gradients of `variables` can be worked out.

    A variable belongs to the layer that holds it, unless that is called where it cannot be
    followed (in the body of a loop), or with examples that do not come first (windows of images
    one after the other), or is not all that uses the variable (tied weights). It then belongs to
    the layer around that one, and so on; the last one is the model.

    Raises ValueError if not even the model's own outputs have the examples first.
    """
    around = {}
    for layer in model._flatten_layers():
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            around.setdefault(id(inner), layer)
    place = {id(v): layer for layer in model._flatten_layers() for v in layer._trainable_variables}
    specs = tf.nest.map_structure(lambda t: tf.TensorSpec((PROBE, *t.shape[1:]), t.dtype), x)
    while True:
        units, lost = _probe(model, _units(variables, place), specs, loss_of)
        if not lost:
            return units
        for variable in lost:
            if place[id(variable)] is model:
                raise ValueError(
                    "Argument `model` must treat each example on its own, and have the examples "
                    f"first in all that it takes and gives. Received: {shown(model)}, in which the "
                    f"gradient of {variable.path} cannot be followed"
                )
            place[id(variable)] = around[id(place[id(variable)])]


def _units(variables, place):
    layers, groups = {}, {}
    for variable in variables:
        layer = place[id(variable)]
        layers[id(layer)] = layer
        groups.setdefault(id(layer), []).append(variable)
    return [Unit(layers[k], held, rule_of(layers[k], held)) for k, held in groups.items()]


def _probe(model, units, specs, loss_of):
    """Traces a batch through the model: the units, completed, and variables that need another."""
    result = []

    @tf.function(autograph=False)
    def trace(x):
        uses, leaks = _uses(model, units, x, loss_of)
        is_silent = [not any(use.gradients for use in found) for found in uses]
        silent = [v for unit in itertools.compress(units, is_silent) for v in unit.variables]
        hidden = _hidden(model, silent, x, loss_of)
        completed, lost = [], []
        for unit, found in zip(units, uses, strict=True):
            rows = [_rows(use) for use in found]
            if None in rows:
                lost += unit.variables
            else:
                lost += [v for v in unit.variables if id(v) in leaks | hidden]
                rule = unit.rule if all(map(_is_known, found)) else None
                completed.append(unit._replace(rule=rule, rows=rows))
        result.append((completed, lost))

    trace.get_concrete_function(specs)
    return result[0]


def _hidden(model, variables, x, loss_of):
    """Variables that matter to the loss although no output of theirs does: ids."""
    if not variables:
        return set()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([variable.value for variable in variables])
        with keras.StatelessScope():
            loss = tf.reduce_sum(loss_of(model(x, training=False)))
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    return {id(v) for v, g in zip(variables, gradients, strict=True) if g is not None}


def _rows(use):
    """Which inputs belong to the examples; None if examples are not first in all of them."""
    if not use.gradients:
        return ()
    values = use.inputs()
    tensors = [(i, value) for i, value in enumerate(values) if isinstance(value, tf.Tensor)]
    outputs = [use.outputs[number] for number in use.gradients]
    come_first = {i: _examples_come_first(value) for i, value in tensors}
    if None in come_first.values() or not all(map(_examples_come_first, outputs)):
        return None
    return tuple(i for i, first in come_first.items() if first)


def _examples_come_first(tensor):
    """Whether a tensor has the examples on its first axis (True), on none (False), or elsewhere."""
    if tensor.shape.rank is None or tensor.shape[:1] == [None]:
        return None
    sizes = [size for size in tensor.shape if size and size % PROBE == 0]
    if sizes and (len(sizes) > 1 or tensor.shape[0] != PROBE):
        return None
    return bool(sizes)


def _is_known(use):
    """Whether all shapes are known, as rules want them."""
    tensors = [value for value in use.inputs() if isinstance(value, tf.Tensor)]
    return all(value.shape.is_fully_defined() for value in [*tensors, *use.outputs.values()])
