"""Rapid and robust training in one call: range test, warm restarts, rates by layer, snapshots."""

import contextlib
import math

import keras
import tensorflow as tf

from tfuq._arguments import check_choice, check_integer, public_dir, shown
from tfuq._models.train_step import optimizer_chain, recompile
from tfuq.callbacks import SGDR, SnapshotEnsemble
from tfuq.callbacks.lr_sweep import lr_range_test
from tfuq.ensembles.processes import fit_arguments
from tfuq.optimizers import DiscriminativeLearningRate

__all__ = ["rapid_fit"]
__dir__ = public_dir(__all__)

POLICIES = ("mixed_float16", "mixed_bfloat16")


def epochs_of(num_cycles, cycle_length, cycle_mult, warmup=0.0):
    """Whole epochs that hold `num_cycles` cycles: the last one may end before its last epoch."""
    lengths = (cycle_length * cycle_mult**cycle for cycle in range(num_cycles))
    return math.ceil(round(warmup + math.fsum(lengths), 9))


def rapid_fit(
    model,
    train,
    validation=None,
    *,
    num_cycles=3,
    cycle_length=1,
    cycle_mult=2,
    cycle_decay=1,
    warmup=0,
    max_learning_rate=None,
    min_learning_rate=0.0,
    layer_rates="log",
    min_factor=0.01,
    groups=None,
    snapshots=None,
    keep=None,
    monitor="val_loss",
    patience=None,
    mixed_precision=None,
    batch_size=32,
    steps_per_epoch=None,
    range_test=None,
    callbacks=None,
    seed=0,
    verbose=1,
    **fit_kwargs,
):
    """Trains a compiled model by the recipe of Mishra (2020, chapter 3), and says what it chose.

    Only public parts are put together here: `tfuq.lr_range_test` finds the learning rate (on the
    model as it is to be trained; everything is put back after it),
    `tfuq.optimizers.DiscriminativeLearningRate` gives lower layers lower rates, the callback `SGDR`
    lets the rate fall and restart in cycles that grow longer, `SnapshotEnsemble` keeps the weights
    of each cycle's end, and Keras' `EarlyStopping` ends with the best epoch's weights.

    The optimizer that the model is compiled with is replaced by a new one of the same
    configuration: its moments and its count of steps, by which the cycles go, start at 0. The
    model stays compiled with that new optimizer. The weights are trained on as they are, so this is
    for transfer as well as for training from scratch; there, `layer_rates=None` is usual.

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
            layers while this trains; None leaves them. Weights are float32 throughout.
        batch_size: Examples at a time, for arrays.
        steps_per_epoch: Batches per epoch, for data that do not say.
        range_test: Dict of further arguments of `tfuq.lr_range_test`, such as
            `{"start": 1e-5, "num_steps": 200}`.
        callbacks: List of further callbacks; they run before those of the recipe.
        seed: Integer, for the range test's order of arrays.
        verbose: 0 is silent; 1 prints what was chosen, and Keras' progress bars; 2 its lines.
        **fit_kwargs: What else `keras.Model.fit` takes, such as `class_weight` and `shuffle`; not
            `epochs`, which the cycles give.

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
    history = tfuq.training.rapid_fit(
        model, (x[:64], y[:64]), (x[64:], y[64:]), num_cycles=2, snapshots="cycles"
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
    """
    _check(model, num_cycles, mixed_precision, fit_kwargs)
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
    recipe = {"validation_data": validation, "steps_per_epoch": steps_per_epoch, "epochs": epochs}
    arguments = _arguments(train, batch_size, {**fit_kwargs, **recipe, "verbose": verbose})
    with _precision(model, mixed_precision):
        recompile(model, _new_optimizer(model, layer_rates, min_factor, groups))
        found = None
        if max_learning_rate is None:
            options = {"batch_size": batch_size, "seed": seed, "verbose": verbose}
            found = lr_range_test(model, train, **options, **(range_test or {}))
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
    if "epochs" in fit_kwargs:
        raise ValueError(
            "Argument `epochs` must be left out: the cycles give it, see `num_cycles`. "
            f"Received: epochs={shown(fit_kwargs['epochs'])}"
        )


def _arguments(train, batch_size, options):
    """Arguments of `fit`: the data, their batches, and `options`."""
    arguments = fit_arguments(train, None, options)
    arguments["batch_size"] = batch_size if isinstance(train, tuple) else None
    if isinstance(train, tf.data.Dataset):
        arguments["shuffle"] = False  # it shuffles as it says; Keras warns of its own default
    return arguments


def _new_optimizer(model, layer_rates, min_factor, groups):
    """A new optimizer like the model's, with rates by layer if there are to be some."""
    own = model.optimizer
    if isinstance(own, keras.optimizers.LossScaleOptimizer):  # `compile` scales the loss again
        own = own.inner_optimizer
    new = type(own).from_config(own.get_config())
    if isinstance(new, DiscriminativeLearningRate) or (layer_rates is None and groups is None):
        return new
    return DiscriminativeLearningRate(new, scheme=layer_rates, min_factor=min_factor, groups=groups)


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
            model.optimizer = optimizer_chain(model.optimizer)[int(name == "mixed_float16")]


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
