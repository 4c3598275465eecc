"""A model that changes while it trains: its training step, and what its optimizer knows."""

import contextlib
import weakref

import keras
import tensorflow as tf

_STEPS = weakref.WeakKeyDictionary()  # of each model: the train function made here, its wrappers


def wrap_step(model, owner, wrap):
    """Makes `model` a train function of the step `wrap(train_step)`; `wrap=None` ends that.

    Each `owner`, a callback, has one wrapper; those that came later stand around those before
    them. What a wrapper changes while the step is traced (or runs eagerly) it has to put back.
    Wrappers of a train function that is no longer the model's (`compile` drops it) are forgotten.
    """
    wraps = _wraps(model)
    wraps.pop(owner, None)
    if wrap is not None:
        wraps[owner] = wrap
    original, is_set = model.train_step, "train_step" in vars(model)
    step = original
    for each in wraps.values():
        step = each(step)
    model.train_step = step
    try:
        model.make_train_function(force=True)
    finally:
        if is_set:
            model.train_step = original
        else:
            del model.train_step
    _STEPS[model] = model.train_function, wraps


def _wraps(model):
    function, wraps = _STEPS.get(model, (None, {}))
    is_current = function is not None and function is model.train_function
    return dict(wraps) if is_current else {}


def unwrap_step(model, owner):
    """Drops the wrapper of `owner`; with the last one, the train function that `fit` would keep."""
    wraps = _wraps(model)
    wraps.pop(owner, None)
    if wraps:
        wrap_step(model, owner, None)
    else:
        model.train_function = None


def forget_functions(model):
    """Lets `model` trace all that it has compiled anew, because it has other variables now."""
    model.test_function = model.predict_function = None
    wrap_step(model, None, None)


def optimizer_chain(optimizer):
    """`optimizer` and, of a `LossScaleOptimizer`, the one inside, which applies the gradients."""
    found = [optimizer]
    while hasattr(found[-1], "inner_optimizer"):
        found.append(found[-1].inner_optimizer)
    return found


@contextlib.contextmanager
def intercepted(optimizer, apply):
    """While it is open, `optimizer.apply(gradients, variables)` calls `apply` instead.

    `apply(original, gradients, variables)` gets what it stands for first.
    """
    original, own = optimizer.apply, vars(optimizer).get("apply")

    def instead(grads, trainable_variables=None):
        if trainable_variables is None:
            trainable_variables = optimizer._trainable_variables
        return apply(original, list(grads), list(trainable_variables))

    optimizer.apply = instead
    try:
        yield
    finally:
        del optimizer.apply  # behind it is the class's own
        if own is not None:
            optimizer.apply = own


def build_optimizer(model):
    """Builds the optimizer on all trainable variables, if it is not built yet."""
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)


def sum_over_replicas(gradients):
    """Gradients of the whole batch, where each replica has those of its part."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradients
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def rebuild_optimizer(optimizer, variables):
    """Builds `optimizer` on other trainable variables, and keeps its state of those it knows.

    Counters and the learning rate stay; what it holds of a new variable starts as always.
    """
    *outer, inner = optimizer_chain(optimizer)
    index = {id(variable): i for i, variable in enumerate(inner._trainable_variables)}
    scalars, slots = _scalars(inner), _slots(inner)
    inner._variables[:] = [
        v for v in inner._variables if v is inner._iterations or v is inner._learning_rate
    ]
    inner._trainable_variables_indices, inner.built = {}, False
    inner.build(variables)
    for name, old in scalars.items():
        getattr(inner, name).assign(old)
    for name, new in _slots(inner).items():
        for variable, slot in zip(variables, new, strict=True):
            if slot is not None and id(variable) in index:
                slot.assign(slots[name][index[id(variable)]])
    for each in outer:  # their own `build` would add their counters once more
        each._trainable_variables_indices = {}
        keras.optimizers.Optimizer.build(each, variables)


def _scalars(optimizer):
    return {k: v for k, v in vars(optimizer).items() if isinstance(v, keras.Variable)}


def _slots(optimizer):
    """What the optimizer holds of each trainable variable: `{name: variables or None}`."""
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in ("_variables", "_trainable_variables")
        and isinstance(value, (list, tuple))
        and len(value) == len(optimizer._trainable_variables)
        and all(v is None or isinstance(v, keras.Variable) for v in value)
    }
