"""Training step and optimizer state of a model that changes while it trains."""

import contextlib
import functools
import sys
import types
import weakref

import keras
import tensorflow as tf

_STEPS = weakref.WeakKeyDictionary()  # of each model: whose `fit` it is, and the wrappers


def wrap_step(model, owner, wrap):
    """Makes `model` a train function of the step `wrap(train_step)`; `wrap=None` ends that.

    Each `owner`, a callback, has one wrapper; those that came later stand around those before
    them. What a wrapper changes while the step is traced (or runs eagerly) it has to put back.
    Wrappers that an earlier `fit` left behind, as after an interruption, are forgotten.
    """
    wraps = _wraps(model, owner)
    wraps.pop(owner, None)
    if wrap is not None:
        wraps[owner] = wrap
    remake_train_function(model, owner, wraps)


def remake_train_function(model, owner, wraps=None):
    """Traces the training step of the `fit` that `owner` is in anew, with the wrappers it has."""
    wraps = _wraps(model, owner) if wraps is None else wraps
    original, is_set = model.train_step, "train_step" in vars(model)
    step = original
    for wrap in wraps.values():
        step = wrap(step)
    model.train_step = step
    try:
        model.make_train_function(force=True)
    finally:
        if is_set:
            model.train_step = original
        else:
            del model.train_step
    _STEPS[model] = owner.params, wraps


def _wraps(model, owner):
    params, wraps = _STEPS.get(model, (None, {}))
    return dict(wraps) if params is owner.params else {}  # one `fit`, one dict of parameters


def unwrap_step(model, owner):
    """Drops the wrapper of `owner`; with the last one, the train function that `fit` would keep."""
    wraps = _wraps(model, owner)
    wraps.pop(owner, None)
    if wraps:
        remake_train_function(model, owner, wraps)
    else:
        _STEPS.pop(model, None)
        model.train_function = None


def forget_functions(model, owner):
    """Lets `model` trace all that it has compiled anew, because it has other variables now."""
    model.test_function = model.predict_function = None
    remake_train_function(model, owner)


def adapt(model):
    """Lets optimizer and functions of `model` learn of its variables, in a `fit` and outside."""
    if getattr(model, "optimizer", None) is not None and model.optimizer.built:
        with model.distribute_strategy.scope():
            rebuild_optimizer(model.optimizer, model.trainable_variables)
    model.test_function = model.predict_function = None
    if getattr(model, "train_function", None) is not None:
        params, wraps = _STEPS.get(model, (None, {}))
        remake_train_function(model, types.SimpleNamespace(params=params), wraps)


def optimizer_chain(optimizer):
    """`optimizer` and, of a `LossScaleOptimizer`, the one inside, which applies the gradients."""
    found = [optimizer]
    while hasattr(found[-1], "inner_optimizer"):
        found.append(found[-1].inner_optimizer)
    return found


class _Interceptor:
    """Stands for `optimizer.apply` while somebody wants to see what is applied."""

    def __init__(self, original):
        self.original = original
        self.handlers = {}  # of each owner: how many have it open, and its function

    def __call__(self, grads, trainable_variables):
        apply = self.original
        for _, handler in self.handlers.values():
            apply = functools.partial(handler, apply)
        return apply(list(grads), list(trainable_variables))


@contextlib.contextmanager
def intercepted(optimizer, owner, handler):
    """While it is open, `optimizer.apply(gradients, variables)` calls `handler` instead.

    `handler(apply, gradients, variables)` gets what it stands for first. The replicas of a strategy
    take turns inside one step: an `owner` that is there already is not taken twice.
    """
    if not isinstance(optimizer.apply, _Interceptor):
        optimizer.apply = _Interceptor(optimizer.apply)
    handlers = optimizer.apply.handlers
    count, handler = handlers.get(owner, (0, handler))
    handlers[owner] = count + 1, handler
    try:
        yield
    finally:
        count, _ = handlers.pop(owner)
        if count > 1:
            handlers[owner] = count - 1, handler
        if not handlers:
            del optimizer.apply  # behind it is the class's own


def build_optimizer(model):
    """Builds the optimizer on all trainable variables, if it is not built yet."""
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)


def sum_over_replicas(gradients):
    """Gradients of the whole batch, where each replica has those of its part."""
    if not gradients or not has_replicas():
        return gradients
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def has_replicas():
    """Whether this runs in one of several replicas."""
    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


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


_CYCLES = weakref.WeakKeyDictionary()  # of each model: whose `fit` it is, and how cycles count


def announce_cycles(model, owner, completed):
    """Tells the callbacks of a `fit` how many cycles of the learning rate are over.

    `owner` is a callback of that `fit`; `completed(step)` is the number of cycles that have ended
    once the optimizer has taken `step` steps. `None` takes the announcement back.
    """
    _CYCLES.pop(model, None)
    if completed is not None:
        _CYCLES[model] = owner.params, completed


def completed_cycles(model, asker):
    """What was announced in the `fit` that the callback `asker` is in, or None."""
    params, completed = _CYCLES.get(model, (None, None))
    return completed if params is asker.params else None


def callbacks_of_fit(callback):
    """The callbacks of the `fit` that `callback` is in, while one of its hooks runs.

    Keras tells a callback the model and the parameters, not its neighbours; the list of them is the
    one that calls it. Without a list the answer is `callback` alone.
    """
    found = list_of_fit(callback)
    return [callback] if found is None else list(found.callbacks)


def list_of_fit(callback):
    """The `CallbackList` that calls a hook of `callback` now, or None."""
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and callback in caller.callbacks:
            return caller
        frame = frame.f_back
    return None
