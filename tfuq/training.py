"""Rapid and robust training in one call: range test, warm restarts, rates by layer, snapshots."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Data, PathLike, check_choice, check_integer, public_dir, shown
from tfuq._models.batches import repeated
from tfuq._models.optimizers import exchange_optimizer, renewed
from tfuq._models.torch_data import keras_data
from tfuq._models.train_step import optimizer_chain
from tfuq.callbacks import SGDR, SnapshotEnsemble
from tfuq.callbacks.lr_sweep import lr_range_test
from tfuq.ensembles.processes import fit_arguments
from tfuq.optimizers import DiscriminativeLearningRate

__all__ = ["rapid_fit"]
__dir__ = public_dir(__all__)

POLICIES = ("mixed_float16", "mixed_bfloat16")
TESTED_WITH = ("class_weight", "shuffle")  # arguments of `fit` that the range test has to know
GIVEN = {
    "epochs": "the cycles give it, see `num_cycles`",
    "x": "the data are `train`",
    "y": "the labels stand in `train`, as (x, y)",
    "validation_data": "it is called `validation` here",
}


def epochs_of(num_cycles, cycle_length, cycle_mult, warmup=0.0):
    """Whole epochs that hold `num_cycles` cycles: the last one may end before its last epoch."""
    lengths = (cycle_length * cycle_mult**cycle for cycle in range(num_cycles))
    return math.ceil(round(warmup + math.fsum(lengths), 9))


def rapid_fit(
    model: keras.Model,
    train: Data,
    validation: Data | None = None,
    *,
    num_cycles: int = 3,
    cycle_length: float = 1,
    cycle_mult: float = 2,
    cycle_decay: float = 1,
    warmup: float = 0,
    max_learning_rate: float | None = None,
    min_learning_rate: float = 0.0,
    layer_rates: str | None = "log",
    min_factor: float = 0.01,
    groups: Mapping[str, float] | None = None,
    snapshots: PathLike | None = None,
    keep: int | None = None,
    monitor: str = "val_loss",
    patience: int | None = None,
    mixed_precision: str | None = None,
    batch_size: int = 32,
    steps_per_epoch: int | None = None,
    range_test: dict[str, Any] | None = None,
    callbacks: list[keras.callbacks.Callback] | None = None,
    seed: int = 0,
    verbose: int | str = 1,
    **fit_kwargs: Any,
) -> keras.callbacks.History:
    """Trains a compiled model by the recipe of Mishra (2020, chapter 3), and reports its choices.

    It combines public parts: `tfuq.lr_range_test` finds the learning rate (on the model to be
    trained, and then restores everything), `tfuq.optimizers.DiscriminativeLearningRate` gives lower
    layers lower rates, the callback `SGDR` lets the rate fall and restart in cycles that grow
    longer, `SnapshotEnsemble` keeps the weights of each cycle's end, and Keras' `EarlyStopping`
    ends with the best epoch's weights.

    A new optimizer with the same configuration replaces the compiled one: its moments and its count
    of steps, which drives the cycles, start at 0. The model stays compiled with the new optimizer;
    after an error it has its own again. A learning rate schedule of its own is dropped, because the
    cycles set the rate. Training starts from the model's weights, so this is for transfer as well
    as for training from scratch, where `layer_rates=None` is usual.

    Args:
        model: A built and compiled Keras model.
        train: Training data: `(x, y)` or `(x, y, sample_weight)` of arrays, a `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches.
        validation: Validation data in any of these forms, or None: then nothing stops early.
        num_cycles: Number of cycles. The epochs follow: 3 cycles of 1, 2 and 4 epochs are 7.
        cycle_length: Length of the first cycle in epochs, fractions allowed.
        cycle_mult: How many times longer each cycle is than the one before, at least 1. 2 is the
            paper's cycle length multiplication.
        cycle_decay: Factor in (0, 1] of the highest rate from cycle to cycle.
        warmup: Epochs before the first cycle in which the rate rises, fractions allowed.
        max_learning_rate: Rate that each cycle starts with (of the last layer); None: the range
            test's suggestion.
        min_learning_rate: Rate that each cycle ends with.
        layer_rates: `"log"`, `"linear"` or `"thirds"`, as the `scheme` of
            `DiscriminativeLearningRate`; None: one rate for all layers. A model that is compiled
            with that optimizer keeps its own scheme.
        min_factor: Rate of the first layer, relative to the last one's.
        groups: Dict of path pattern to factor: rates of single layers.
        snapshots: Folder for the weights at the end of each cycle; None keeps none. What they
            predict together: `history.snapshots.ensemble()`.
        keep: How many snapshots stay, the latest; None: all.
        monitor: What `EarlyStopping` looks at.
        patience: Epochs without improvement after which training ends; None: as many as the
            longest cycle has, because after each restart the model is worse for a while.
        mixed_precision: `"mixed_float16"` or `"mixed_bfloat16"`: the precision of all float32
            layers while this trains; None leaves them. Weights are float32 throughout. Slower where
            the hardware does not have it (`benchmarks/README.md`).
        batch_size: Examples at a time, for arrays.
        steps_per_epoch: Batches per epoch, for data that do not say. A dataset that ends begins
            again, so that no epoch is without data.
        range_test: Dict of further arguments of `tfuq.lr_range_test`, such as
            `{"start": 1e-5, "num_steps": 200}` or `{"validation_data": validation}`.
        callbacks: List of further callbacks; they run before those of the recipe.
        seed: Integer, for the range test's order of arrays.
        verbose: 0 is silent; 1 prints what was chosen, and Keras' progress bars; 2 its lines.
        **fit_kwargs: Further arguments of `keras.Model.fit`, such as `shuffle`, `class_weight` and
            `sample_weight`, which the range test gets as well; not `epochs`, which the cycles give.

    Returns:
        `keras.callbacks.History`, with `schedule` (the callback `SGDR`), `range_test` (the test's
        result, or None) and `snapshots` (the callback, or None).

    Raises:
        ValueError: If an argument is not as described, the model is not built or not compiled, or
            the loss is not finite from the first step.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x, y = np.random.rand(96, 8), np.random.randint(3, size=96)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(momentum=0.9), loss, metrics=["accuracy"])
    train, validation = (x[:64], y[:64]), (x[64:], y[64:])
    history = tfuq.training.rapid_fit(
        model, train, validation, num_cycles=2, snapshots="cycles", range_test={"stop": 1e4}
    )
    ensemble = history.snapshots.ensemble()
    print(history.range_test.suggestion, ensemble.evaluate(x[64:], y[64:]))
    ```

    References:
        - Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020, chapter 3.
        - Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
        - Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
        - Howard and Ruder, "Universal Language Model Fine-tuning", ACL 2018 (rates by layer).
        - Huang et al., "Snapshot Ensembles: Train 1, Get M for Free", ICLR 2017.

    See also: `tfuq.lr_range_test`, `tfuq.callbacks.SGDR`, `tfuq.callbacks.SnapshotEnsemble`,
    `tfuq.optimizers.DiscriminativeLearningRate`.
    """
    _check(model, num_cycles, mixed_precision, fit_kwargs)
    train, validation = keras_data(train), keras_data(validation)
    _check_length(train, steps_per_epoch)
    schedule_options = {
        "min_learning_rate": min_learning_rate,
        "cycle_length": cycle_length,
        "cycle_mult": cycle_mult,
        "cycle_decay": cycle_decay,
        "warmup": warmup,
        "steps_per_epoch": steps_per_epoch,
    }
    # What is wrong with these stops here, before the range test has run.
    SGDR(max_learning_rate or max(1.0, min_learning_rate), **schedule_options)
    kept = None if snapshots is None else SnapshotEnsemble(snapshots, keep=keep)
    epochs = epochs_of(num_cycles, cycle_length, cycle_mult, warmup)
    longest = math.ceil(cycle_length * cycle_mult ** (num_cycles - 1))
    stopping = _early_stopping(validation, monitor, longest if patience is None else patience)
    train = _with_weights(train, fit_kwargs)
    recipe = {"validation_data": validation, "steps_per_epoch": steps_per_epoch, "epochs": epochs}
    arguments = _arguments(train, batch_size, {**fit_kwargs, **recipe, "verbose": verbose})
    with _new_optimizer(model, mixed_precision, (layer_rates, min_factor, groups)):
        found = None
        if max_learning_rate is None:
            told = {"batch_size": batch_size, "seed": seed, "verbose": verbose}
            found = _tested(model, train, fit_kwargs, told | (range_test or {}))
            max_learning_rate = found.suggestion
        schedule = SGDR(max_learning_rate, **schedule_options)
        if verbose:
            print(_summary(model, schedule, num_cycles, epochs, found, stopping, kept))
        own = [schedule, *([kept] if kept else []), *stopping]
        history = model.fit(**arguments, callbacks=[*(callbacks or []), *own])
    history.schedule, history.range_test, history.snapshots = schedule, found, kept
    return history


# --- Parts of the recipe ----------------------------------------------------------------------


def _check(model, num_cycles, mixed_precision, fit_kwargs):
    """Raises ValueError unless the model can be trained, and the arguments are as described."""
    if not isinstance(model, keras.Model) or not model.built or not model.compiled:
        raise ValueError(
            "Argument `model` must be a Keras model that is built and compiled: give it an `Input` "
            f"or call it on a batch, and call `compile`. Received: model={shown(model)}"
        )
    check_integer("num_cycles", num_cycles, 1)
    check_choice("mixed_precision", mixed_precision, (None, *POLICIES))
    for name in set(fit_kwargs) & set(GIVEN):
        raise ValueError(
            f"Argument `{name}` must be left out: {GIVEN[name]}. "
            f"Received: {name}={shown(fit_kwargs[name])}"
        )


def _check_length(train, steps_per_epoch):
    """Raises ValueError if nobody says how many batches an epoch has."""
    if steps_per_epoch is not None:
        return
    is_unknown = isinstance(train, keras.utils.PyDataset) and train.num_batches is None
    if isinstance(train, tf.data.Dataset):
        is_unknown = int(train.cardinality()) < 0
    if is_unknown:
        raise ValueError(
            "Argument `steps_per_epoch` must be given for data whose length is unknown: the cycles "
            f"are counted in epochs. Received: steps_per_epoch=None with {type(train).__name__}"
        )


def _with_weights(train, fit_kwargs):
    """The training data with the `sample_weight` of `fit_kwargs`, which goes from there."""
    weight = fit_kwargs.pop("sample_weight", None)
    if weight is None:
        return train
    if not isinstance(train, tuple) or len(train) != 2:
        raise ValueError(
            "Argument `sample_weight` must be None unless `train` is (x, y); datasets hold their "
            f"own. Received: sample_weight={shown(weight)} with {type(train).__name__}"
        )
    return (*train, weight)


def _arguments(train, batch_size, options):
    """Arguments of `fit`: the data, their batches, and `options`."""
    arguments = fit_arguments(train, None, options)
    arguments["x"] = repeated(arguments["x"], options["steps_per_epoch"])
    arguments["batch_size"] = batch_size if isinstance(train, tuple) else None
    if isinstance(train, tf.data.Dataset):
        arguments["shuffle"] = False  # it shuffles as it says; Keras warns of its own default
    return arguments


@contextlib.contextmanager
def _new_optimizer(model, mixed_precision, rates):
    """Gives `model` a new optimizer like its own, with rates by layer if there are to be some.

    `rates` are the arguments `scheme`, `min_factor` and `groups` of `DiscriminativeLearningRate`.
    While it is open, the model computes in `mixed_precision`. After an error the optimizer is the
    one that the model was compiled with.
    """
    before, named = model.optimizer, model._compile_config.config["optimizer"]
    try:
        with _precision(model, mixed_precision):
            exchange_optimizer(model, _with_rates(renewed(model), rates))
            yield
    except BaseException:
        model.optimizer = before
        model.train_function = model.test_function = model.predict_function = None
        model._compile_config.config["optimizer"] = named
        raise


def _with_rates(optimizer, rates):
    scheme, _, groups = rates
    has_none = scheme is None and groups is None
    if isinstance(optimizer, DiscriminativeLearningRate) or has_none:
        return optimizer
    return DiscriminativeLearningRate(optimizer, *rates)


def _tested(model, train, fit_kwargs, options):
    """The result of the range test, which knows of `fit_kwargs` what changes the loss."""
    known = {name: fit_kwargs[name] for name in TESTED_WITH if name in fit_kwargs}
    return lr_range_test(model, train, **{**known, **options})


def _early_stopping(validation, monitor, patience):
    """Ends with the best epoch's weights, if there are data to tell."""
    if validation is None:
        return []
    return [keras.callbacks.EarlyStopping(monitor, patience=patience, restore_best_weights=True)]


@contextlib.contextmanager
def _precision(model, name):
    """While it is open, the float32 layers of `model` compute in the policy `name`.

    Keras scales the loss of a model in float16, and not of one in float32: nor does this.
    """
    layers = [] if name is None else model._flatten_layers()
    layers = [layer for layer in layers if layer.dtype_policy.name == "float32"]
    for layer in layers:
        layer.dtype_policy = name
    try:
        yield
    finally:
        for layer in layers:
            layer.dtype_policy = "float32"
        if layers:
            model.train_function = model.test_function = model.predict_function = None
            if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
                model.optimizer = model.optimizer.inner_optimizer


def _summary(model, schedule, num_cycles, epochs, found, stopping, kept):
    """What was chosen, in a few lines."""
    optimizer = optimizer_chain(model.optimizer)
    rates = [o for o in optimizer if isinstance(o, DiscriminativeLearningRate)]
    tested = "as given" if found is None else "by the range test"
    growth = f", each {schedule.cycle_mult:g} times as long" if schedule.cycle_mult > 1 else ""
    lines = [
        f"optimizer: {type(optimizer[-1]).__name__}, in {model.dtype_policy.name}",
        f"learning rate: {schedule.max_learning_rate:.3g} {tested}, falling to "
        f"{schedule.min_learning_rate:.3g}",
        f"cycles: {num_cycles}, the first of {schedule.cycle_length:g} epochs{growth}; "
        f"{epochs} epochs in all",
    ]
    if rates:
        scheme, lowest = rates[0].scheme, rates[0].min_factor
        lines.append(f"rates by layer: {scheme}, {lowest:g} of the last one's at the first layer")
    if stopping:
        lines.append(f"early stopping: {stopping[0].monitor}, patience {stopping[0].patience}")
    if kept:
        lines.append(f"snapshots: {kept.directory}")
    return "\n".join(f"rapid_fit: {line}" for line in lines)
