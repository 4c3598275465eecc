"""Declarations of the models of an export: names of classes, and a look at the range of inputs."""

import tensorflow as tf

from tfuq._predictions.class_names import agreed_names
from tfuq.predictive.declarations import Declared, declared


def declared_of(members, rule):
    """`Declared` on which all members, and the rule, agree; ValueError where they do not."""
    found = [declared(member) for member in members]
    given = {f"member {number}": each.class_names for number, each in enumerate(found)}
    names = agreed_names({**given, "`rule`": getattr(rule, "class_names", None)})
    inputs = {each.inputs for each in found}
    if len(inputs) > 1:
        raise ValueError(
            "Argument `model` must have members of which the same inputs are declared. Received: "
            f"{sorted(map(str, inputs))}"
        )
    return Declared(names, inputs.pop())


def rows_in_range(inputs, batch):
    """Whether each example of a batch, bool `(batch,)`, lies in the range that is declared."""
    low, high = inputs.bounds()
    rows = True
    for leaf in tf.nest.flatten(batch):
        axes = tf.range(1, tf.rank(leaf))
        values = tf.cast(leaf, "float32")
        rows &= (tf.reduce_min(values, axes) >= low) & (tf.reduce_max(values, axes) <= high)
    return rows
