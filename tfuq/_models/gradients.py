"""Squared gradients of a loss over data: how much each weight matters to it."""

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_choice, shown
from tfuq._models.batches import batches

METHODS = ("gradient", "fisher")
FLOAT16_SCALE = 2.0**12  # keeps small gradients of a mixed_float16 model above underflow


def squared_gradients(
    model, variables, data, loss=None, *, method="gradient", batch_size=32, verbose=0
):
    """Means over the data of (dL / dw)^2, arrays of the shapes of `variables`, in one pass.

    `"gradient"`: L is the loss of a batch, and the mean goes over batches. `"fisher"`: L is the
    loss of one example, and the mean goes over examples. The model runs as when it predicts: no
    dropout, batch statistics frozen. `loss=None` is the model's own, with all that layers add.

    Raises ValueError that names the variable if the loss gives it no gradient, or one that is not
    finite.
    """
    check_choice("method", method, METHODS)
    loss_of = _loss(model, loss)
    sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]
    values = [_on_first_device(v) for v in variables]
    scale = FLOAT16_SCALE if model.compute_dtype == "float16" else 1.0

    def gradients(x, y, weight=None):
        with tf.GradientTape() as tape:
            tape.watch(values)  # frozen ones, too
            value = scale * loss_of(x, y, model(x, training=False), weight)
        found = tape.gradient(value, values)
        for variable, gradient in zip(variables, found, strict=True):
            if gradient is None:
                raise ValueError(
                    "Argument `loss` must depend on every layer that is looked at. Received: "
                    f"loss={shown(loss)}, which gives no gradient for {variable.path}"
                )
        return [tf.square(tf.convert_to_tensor(g) / scale) for g in found]

    def of_examples(parts, count):
        def add(i, totals):
            squares = gradients(*tf.nest.map_structure(lambda t: t[i : i + 1], parts))
            return i + 1, [total + square for total, square in zip(totals, squares, strict=True)]

        start = [tf.zeros(v.shape) for v in variables]
        return tf.while_loop(lambda i, _: i < count, add, [0, start], parallel_iterations=1)[1]

    @tf.function(reduce_retracing=True)
    def add_batch(parts):
        count = tf.shape(tf.nest.flatten(parts)[0])[0]
        found = of_examples(parts, count) if method == "fisher" else gradients(*parts)
        for total, square in zip(sums, found, strict=True):
            total.assign_add(square)
        return count

    number = 0
    for x, y, weight in batches(data, batch_size, verbose, "data", model=model, finite=True):
        if y is None:
            raise ValueError("Argument `data` must hold labels: (x, y). Received: no labels")
        parts = tf.nest.map_structure(
            tf.convert_to_tensor, (x, y) if weight is None else (x, y, weight)
        )
        examples = add_batch(parts)
        number += int(examples) if method == "fisher" else 1
    means = [(total / number).numpy() for total in sums]
    for variable, mean in zip(variables, means, strict=True):
        if not np.all(np.isfinite(mean)):
            raise ValueError(
                "Argument `data` must give finite gradients. Received: "
                f"NaN or infinity in those of {variable.path}"
            )
    return means


def _on_first_device(variable):
    """The TensorFlow variable; of one per device, that which a model outside replicas reads."""
    return getattr(variable.value, "values", (variable.value,))[0]


def _loss(model, loss):
    """`loss_of(x, y, y_pred, weight)`, a scalar: the mean over the batch."""
    # Under a strategy Keras divides losses by the number of replicas, which add them up.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if loss is None:
        if not model.compiled:
            raise ValueError(
                "Argument `loss` must be given for a model that is not compiled. "
                "Received: loss=None"
            )
        return lambda x, y, y_pred, weight: (
            replicas * model.compute_loss(x, y, y_pred, weight, training=False)
        )
    if keras.tree.is_nested(loss):
        return _sum_of_losses(model, loss, replicas)
    of_outputs = _of_outputs(loss, replicas)
    return lambda x, y, y_pred, weight: of_outputs(y, y_pred, weight)


def _of_outputs(loss, replicas):
    """`loss_of(y, y_pred, weight)` of one output."""
    function = keras.losses.get(loss)
    if not callable(function):
        raise ValueError(
            "Argument `loss` must be a Keras loss, its name, or a function of y_true and y_pred. "
            f"Received: loss={shown(loss)}"
        )

    def of_batch(y, y_pred, weight):
        if isinstance(function, keras.losses.Loss):
            return replicas * function(y, y_pred, sample_weight=weight)
        values = tf.convert_to_tensor(function(y, y_pred))
        return tf.reduce_mean(values if weight is None else values * tf.cast(weight, values.dtype))

    return of_batch


def _sum_of_losses(model, losses, replicas):
    """`loss_of(x, y, y_pred, weight)` of a dict or list of losses, as Keras adds them in `fit`."""
    names = _names_of_outputs(model)
    by_name = losses if isinstance(losses, dict) else dict(zip(names, losses, strict=False))
    by_name = {name: loss for name, loss in by_name.items() if loss is not None}
    is_whole = isinstance(losses, dict) or len(losses) == len(names)
    if not is_whole or not by_name or not set(by_name) <= set(names):
        raise ValueError(
            f"Argument `loss` must hold losses of the model's outputs, {names}. "
            f"Received: loss={shown(losses)}"
        )
    functions = {name: _of_outputs(loss, replicas) for name, loss in by_name.items()}

    def of_batch(x, y, y_pred, weight):
        del x
        labels, outputs = _named("labels", y, names), _named("outputs", y_pred, names)
        weights = dict.fromkeys(names, weight)
        if keras.tree.is_nested(weight):
            weights = {**dict.fromkeys(names), **_named("weights", weight, names)}
        for name in functions:
            if name not in labels:
                raise ValueError(
                    f"Argument `data` must hold labels of {sorted(functions)}. "
                    f"Received: labels of {sorted(labels)}"
                )
        return tf.add_n([f(labels[n], outputs[n], weights[n]) for n, f in functions.items()])

    return of_batch


def _names_of_outputs(model):
    output = getattr(model, "output", None)
    return list(output) if isinstance(output, dict) else list(getattr(model, "output_names", []))


def _named(what, values, names):
    """Labels, outputs or weights of several outputs by the names of these."""
    if isinstance(values, dict):
        return values
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(values) != len(names):
        raise ValueError(
            f"Argument `data` must hold {what} of the outputs {names}. Received: {len(values)}"
        )
    return dict(zip(names, values, strict=True))
