"""Values and attributes of a model that are put back after a while."""

import contextlib

import tensorflow as tf

from tfuq._models.train_step import optimizer_chain


def _parts(variables):
    """The TensorFlow variables behind Keras', each once: one per replica."""
    values = {id(variable): variable.value for variable in variables}.values()
    return [part for value in values for part in getattr(value, "values", (value,))]


class Copies:
    """Values of Keras variables as they are now."""

    def __init__(self, *variables):
        self.copies = [(part, tf.identity(part)) for part in _parts(variables)]

    def put_back(self):
        for part, value in self.copies:
            part.assign(value)


def copy_of(model):
    """All that training changes: weights and other state, seeds, metrics, optimizer."""
    return Copies(*model.variables, *model.metrics_variables, *model.optimizer.variables)


@contextlib.contextmanager
def averaged(model):
    """While it is open, `model` has the moving averages of its weights, if its optimizer has any.

    They are what `fit` ends with (`use_ema=True`).
    """
    inner = optimizer_chain(model.optimizer)[-1]
    averages = inner._model_variables_moving_average if getattr(inner, "use_ema", False) else []
    pairs = zip(inner._trainable_variables, averages, strict=False)
    pairs = [(variable, average) for variable, average in pairs if average is not None]
    kept = Copies(*(variable for variable, _ in pairs))
    try:
        for variable, average in pairs:
            variable.assign(average)
        yield
    finally:
        kept.put_back()


@contextlib.contextmanager
def kept_attributes(thing, *names):
    """Puts back, or takes away, attributes that are set meanwhile."""
    kept = {name: vars(thing)[name] for name in names if name in vars(thing)}
    try:
        yield
    finally:
        for name in names:
            if name in kept:
                setattr(thing, name, kept[name])
            elif name in vars(thing):
                delattr(thing, name)
