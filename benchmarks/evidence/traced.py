"""Networks that are traced once and trained many times."""

import keras

from evidence import rows


def class_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, loss=class_loss):
    rows.compiled(model, "adam", loss())
    model.optimizer.learning_rate = rows.RATE
    model.optimizer.build(model.trainable_variables)
    return model


class Traced:
    """Networks that are traced already, by their shapes: they are given other weights."""

    def __init__(self, loss=class_loss):
        self.loss, self._known = loss, {}

    def of(self, kind, fresh):
        """A compiled network with the variables of `fresh`, and an optimizer that has no moments.

        Layers keep which weights are random in variables, so that networks with as many random
        weights in each layer are the same but for those. What else two networks of one `kind`
        differ by is lost: name it in `kind`.
        """
        key = kind, tuple(tuple(v.shape) for v in fresh.variables)
        if key not in self._known:
            model = compiled(fresh, self.loss)
            states = [keras.ops.convert_to_numpy(v).copy() for v in model.optimizer.variables]
            self._known[key] = model, states
            return model
        model, states = self._known[key]
        for old, new in zip(model.layers, fresh.layers, strict=True):
            for variable, value in zip(old.variables, new.variables, strict=True):
                variable.assign(value)
        for variable, value in zip(model.optimizer.variables, states, strict=True):
            variable.assign(value)
        for old, new in zip(rows.penalties(model), rows.penalties(fresh), strict=True):
            old.weight.assign(new.weight)
        return model
