"""The contract of callbacks: they work, and train nothing, wherever a model trains."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
from contract import (
    CLASSES,
    COMPILED,
    KINDS,
    POLICIES,
    LayerCase,
    assert_close,
    copy_variables,
    policy,
    two_devices,
)

BATCH = 4
DENSE = LayerCase("dense", keras.layers.Dense, {"units": 3, "activation": "softmax"})


@dataclasses.dataclass(frozen=True)
class CallbackCase:
    """One configuration of a callback.

    Args:
        name: Of the case in the test's id.
        make: `make(x, y)` gives a new callback; `x` is `(batch, 4)`, `y` one of three classes.
        logs: Names that stand in the history after each epoch, with finite values.
        observes: Whether training goes on as if the callback were not there.
        layer: The layer that a model of this case ends with.
        is_example: Whether `make test` runs all checks of it: see `callback_checks`.
        optimizer: `optimizer(learning_rate)`, what the model is compiled with.
    """

    name: str
    make: Callable
    logs: tuple
    observes: bool = True
    layer: LayerCase = DENSE
    is_example: bool = False
    optimizer: Callable = keras.optimizers.SGD


def trained(case, model, with_callback=True):
    """The history of two epochs and the weights they led to."""
    x, y = case.layer.data(model, 5 * BATCH + 1)
    callbacks = [case.make(x, y)] if with_callback else []
    history = model.fit(
        x, y, BATCH, epochs=2, shuffle=False, callbacks=callbacks, verbose=0
    ).history
    return history, model.get_weights()


def assert_logged(case, history, epochs=2):
    for name in case.logs:
        assert len(history[name]) == epochs
        assert np.isfinite(history[name]).all(), name


def compiled(case, kind="functional", learning_rate=0.1, **kwargs):
    model = KINDS[kind](case.layer)
    model.compile(case.optimizer(learning_rate), CLASSES.loss(), **kwargs)
    return model


def callback_trains(case, kind, jit):
    watched, alone = (compiled(case, kind, jit_compile=jit) for _ in range(2))
    copy_variables(watched, alone)
    history, weights = trained(case, watched)
    assert_logged(case, history)
    if case.observes:
        assert_close(weights, trained(case, alone, with_callback=False)[1])


def callback_mixed_precision(case, name):
    with policy(name):
        history, _ = trained(case, compiled(case))
    assert_logged(case, history)


def callback_two_devices(case):
    """Weights stand still, so that both models are judged as one."""
    single = compiled(case, learning_rate=0.0)
    with two_devices().scope():
        mirrored = compiled(case, learning_rate=0.0)
    copy_variables(single, mirrored)
    expected, found = (trained(case, model)[0] for model in (single, mirrored))
    assert_logged(case, found)
    for name in case.logs:
        assert_close(found[name], expected[name])


def callback_again(case):
    """One callback serves two trainings, and another model after that."""
    model, other = compiled(case), compiled(case, "sequential")
    x, y = case.layer.data(model)
    callback = case.make(x, y)
    for each in (model, model, other):
        history = each.fit(x, y, BATCH, epochs=2, callbacks=[callback], verbose=0).history
        assert_logged(case, history)


CALLBACK_CHECKS = {
    "two_devices": callback_two_devices,
    "again": callback_again,
    **{name: functools.partial(callback_mixed_precision, name=name) for name in POLICIES},
    **{
        f"{kind}_{how}": functools.partial(callback_trains, kind=kind, jit=jit)
        for kind in KINDS
        for how, jit in COMPILED.items()
    },
}
# Of every callback; what trains in another way is for the examples.
PLAIN_CHECKS = ("functional_plain",)
# Of an example: kinds of model beside XLA, which `LAYERS` and `METRICS` run; `again` trains the
# sequential one; of two precisions the one with scaled losses.
EXAMPLE_CHECKS = (*PLAIN_CHECKS, "again", "two_devices", "mixed_float16", "subclassed_plain")


def callback_checks(cases):
    """Every check to run, as `(case, name, check, whether it is slow)`."""
    for case in cases:
        quick = EXAMPLE_CHECKS if case.is_example else PLAIN_CHECKS
        for name, check in CALLBACK_CHECKS.items():
            yield case, name, check, name not in quick
