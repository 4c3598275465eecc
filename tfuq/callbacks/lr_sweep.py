"""The learning rate range test: a short training with rates that grow, and nothing left of it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Data, check_choice, check_integer, shown, told
from tfuq._models.predicting import check_validation_data
from tfuq._models.train_step import build_optimizer, callbacks_of_fit, remake_train_function
from tfuq._random.global_state import kept_random_state, seeded
from tfuq.callbacks._kept_state import Copies, copy_of, kept_attributes
from tfuq.callbacks._neighbours import check_alone, names_of
from tfuq.callbacks._sweep_curve import (
    MIN_STEPS,
    RangeTestResult,
    check_curve,
    check_sweep,
    exponential_sweep,
    is_diverged,
    read_sweep,
    smooth,
)
from tfuq.callbacks._sweep_data import batches_per_step, range_test_arguments, validation_loss

SET_BY_FIT = (
    "train_function",
    "stop_training",
    "history",
    "_initial_epoch",
    "_eval_epoch_iterator",
)


def check_trainable(model):
    """Raises ValueError unless `model` is built and has a learning rate that can be set."""
    if not isinstance(model, keras.Model) or not model.built or not model.compiled:
        raise ValueError(
            "Argument `model` must be a Keras model that is built and compiled: give it an `Input` "
            f"or call it on a batch, and call `compile`. Received: model={shown(model)}"
        )
    rate = getattr(model.optimizer, "learning_rate", None)
    if not isinstance(rate, keras.Variable):
        raise ValueError(
            "Argument `optimizer` of `compile` must have a number as its learning rate, for the "
            f"range test to change, not a schedule. Received: learning_rate={shown(rate)}"
        )


@told
class LRRangeTest(keras.callbacks.Callback):
    """Learning rate range test: trains with a growing rate, then restores the model.

    The curve of loss over rate shows which rates are worth trying. The test takes the first
    `num_steps` batches of `fit`, over several epochs if needed, and then stops the training. It
    restores everything, to the bit, also after an error or an interruption: weights and other state
    of the model, its seeds and metrics, the optimizer's moments, steps, learning rate and loss
    scale, and the global random state. An unbuilt optimizer is built afterwards, with fresh
    moments.

    Other callbacks see the model only between the test's epochs, in its original state. To train,
    call `fit` again without this callback. `tfuq.lr_range_test` does the same in one call, and
    leaves no trace of `fit` either.

    One point of the curve is one step of the optimizer: where it accumulates gradients, the mean
    over the batches that it accumulates. With `LossScaleOptimizer`, a step that is skipped because
    its gradients are not finite counts with its loss. With layer-wise rates
    (`tfuq.optimizers.DiscriminativeLearningRate`) the base rate is the one that grows.

    Formula (Smith 2017; Mishra 2020, section 3.2.2):

    ```
    rate_t = start * (stop / start)^(t / (num_steps - 1))
    m_t    = smoothing * m_(t-1) + (1 - smoothing) * loss_t
    smoothed_t = m_t / (1 - smoothing^(t + 1))
    ```

    The test ends early when the smoothed loss is above `stop_factor` times the lowest one (if that
    is negative: above it by `stop_factor - 1` times its size), or when a loss is not finite; that
    loss does not count. A warning says so if the loss is lowest where the sweep ends: then `stop`
    has decided, and not the model.

    Args:
        start: Rate of the first step.
        stop: Rate of the last step, above `start`.
        num_steps: Number of steps, at least 5.
        smoothing: Weight of the past in the moving average, in [0, 1). 0 is none.
        stop_factor: Limit of the loss as a multiple of the lowest, above 1. `None`: only losses
            that are not finite end the test.
        validation_data: Data `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`: the curve then shows the loss on all of them after each step
            (Mishra 2020, figure 3-2). `None`: the loss of each step's batch.
        validation_batch_size: Examples at a time, of arrays.
        verbose: 1 shows a progress bar, 2 a line, 0 nothing.

    Attributes:
        result: The result, a `RangeTestResult`, or `None` before: `learning_rates`, `losses`,
            `smoothed_losses`, `minimum`, `minimum_over_10`, `steepest`, `bracket`, `suggestion` and
            `plot()`.

    Raises:
        ValueError: If an argument is not as described. In training, after everything is put back:
            if there are fewer batches than steps, another callback ends the training before, the
            loss is not finite from the first step or diverges before the fifth, or the learning
            rate is a schedule or another callback's.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import LRRangeTest

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    test = LRRangeTest(start=1e-4, stop=1e4, num_steps=20)
    model.fit(x, y, batch_size=16, epochs=5, callbacks=[test], verbose=0)
    print(test.result.suggestion, test.result.bracket)
    ```

    References:
        - Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
        - Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020.

    See also: `tfuq.lr_range_test`, `tfuq.callbacks.SGDR`, `tfuq.plots.lr_range_test`.
    """

    def __init__(
        self,
        start: float = 1e-7,
        stop: float = 10.0,
        num_steps: int = 100,
        *,
        smoothing: float = 0.9,
        stop_factor: float | None = 4.0,
        validation_data: Data | None = None,
        validation_batch_size: int = 32,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        check_sweep(start, stop, num_steps)
        check_curve(smoothing, stop_factor)
        if validation_data is not None:
            validation_data = check_validation_data(validation_data)
        check_integer("validation_batch_size", validation_batch_size, 1)
        check_choice("verbose", verbose, (0, 1, 2))
        self.start = start
        self.stop = stop
        self.num_steps = num_steps
        self.smoothing = smoothing
        self.stop_factor = stop_factor
        self.validation_data = validation_data
        self.validation_batch_size = validation_batch_size
        self.verbose = verbose
        self.result = None

    # --- The training around the test ---------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.result = None
        check_alone(self, "each takes the batches of the other")
        check_trainable(self.model)
        self._per_step = batches_per_step(self.model.optimizer)
        needed, steps = self.num_steps * self._per_step, self.params["steps"]
        if steps and steps * self.params["epochs"] < needed:
            raise self._too_short(f"{steps} batches in {self.params['epochs']} epochs")
        self._rates, self._losses, self._batches, self._diverged = [], [], 0, False
        self._before = self._between = self._traced = self._tested = None
        self._bar = keras.utils.Progbar(
            self.num_steps, verbose=self.verbose, stateful_metrics=["learning_rate", "loss"]
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._left = self.params["steps"] or math.inf

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.result is None:  # here, because other callbacks make train functions before
            self._original = self.model.train_function
            self.model.train_function = self._take_epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._batches:
            raise ValueError(
                "Argument `data` (`x` of `fit`) must hold at least one batch. Received: none"
            )
        if logs is not None:
            logs["loss"] = float(self._logs["loss"])  # the metrics are those from before

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._put_back()  # `fit` has since moved weights to their average, if there is one
        self._forget()
        if self.result is None and self.model.stop_training:
            raise ValueError(
                "Argument `callbacks` of `fit` must hold no callback that ends the training before "
                "LRRangeTest does, such as EarlyStopping: run the test first, in a `fit` of its "
                "own. Received: a training that ended after "
                f"{self._batches} of {self.num_steps * self._per_step} batches, with "
                f"{', '.join(names_of(callbacks_of_fit(self)))}"
            )
        if self.result is None:
            raise self._too_short(f"{self._batches} batches")

    def _too_short(self, received):
        needed = self.num_steps * self._per_step
        return ValueError(
            f"Argument `epochs` of `fit` must make {needed} batches at least, for "
            f"LRRangeTest(num_steps={self.num_steps}). Received: {received}"
        )

    # --- The test -----------------------------------------------------------------------------

    def _take_epoch(self, iterator):
        """Stands for the train function of `fit`: takes all batches of an epoch in one call.

        So the model is as before whenever `fit` does something else, which may fail.
        """
        self.model.train_function = self._original
        history = getattr(self.model, "history", None)
        if history and history.params is not self.params:  # another callback broke that `fit` off
            return self._original(iterator)
        if not self._left:  # `fit` still counts the batches that were taken
            return self._logs
        try:
            with (
                kept_random_state(),
                kept_attributes(self.model, "steps_per_execution", "train_function"),
            ):
                self._swap_in()
                try:
                    self._take_batches(iterator)
                    self._between = None if self._is_over() else copy_of(self.model)
                finally:
                    self._put_back()
            if self._is_over():
                self._conclude()
        except (tf.errors.OutOfRangeError, StopIteration):  # to `fit`, the end of the data
            raise
        except BaseException:
            self._forget()
            raise
        return self._logs

    def _swap_in(self):
        """Goes on where the last epoch ended, with a train function of single steps."""
        build_optimizer(self.model)
        if self._before is None:
            self._before = copy_of(self.model)
        if self._between is not None:
            self._between.put_back()
        self.model.steps_per_execution = 1
        if self._traced is None or self._traced[0] is not self._original:
            remake_train_function(self.model, self)
            self._traced = self._original, self.model.train_function

    def _put_back(self):
        if self._before is not None:
            self.model.reset_metrics()  # those that were made since
            self._before.put_back()

    def _forget(self):
        self._before = self._between = self._traced = self._original = None

    def _is_over(self):
        return self._diverged or len(self._losses) == self.num_steps

    def _take_batches(self, iterator):
        before = self._batches
        while self._left and not self._is_over():
            if self._batches % self._per_step == 0:
                self._begin_step()
            try:
                self._logs = self._traced[1](iterator)
            except (tf.errors.OutOfRangeError, StopIteration):
                if self._batches == before:
                    raise
                break
            self._left -= 1
            self._batches += 1
            if self._batches % self._per_step == 0:
                self._end_step()

    def _begin_step(self):
        # `logs["loss"]` is a mean since the metrics were last reset: now the step's own.
        self.model.reset_metrics()
        step = len(self._losses)
        self._rate = float(exponential_sweep(step, self.start, self.stop, self.num_steps))
        self.model.optimizer.learning_rate = self._rate

    def _end_step(self):
        if "loss" not in self._logs:
            raise ValueError(
                "Argument `model` must return its loss from `train_step` under the name 'loss'. "
                f"Received: {sorted(self._logs)}"
            )
        used = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if not math.isclose(used, self._rate, rel_tol=1e-2):
            raise ValueError(
                "Argument `callbacks` of `fit` must hold no other callback that sets the learning "
                "rate, such as SGDR, with LRRangeTest. "
                f"Received: a rate of {used:g} instead of {self._rate:g}"
            )
        loss = self._logs["loss"]
        if self.validation_data is not None:
            data = self.validation_data, self.validation_batch_size
            loss, self._tested = validation_loss(self.model, *data, self._tested)
        self._note(float(loss))

    def _note(self, loss):
        self._diverged = not math.isfinite(loss)
        if not self._diverged:
            self._rates.append(self._rate)
            self._losses.append(loss)
            if self.stop_factor is not None:
                smoothed = smooth(self._losses, self.smoothing)
                self._diverged = is_diverged(smoothed, self.stop_factor)
        shown = [("learning_rate", self._rate), ("loss", loss)]
        self._bar.update(max(1, len(self._losses)), shown, finalize=self._is_over())

    def _conclude(self):
        count = len(self._losses)
        if count == 0:
            raise ValueError(
                "Argument `model` must have a finite loss in the first step, on these data. "
                f"Received: loss={float(self._logs['loss'])} before any step"
            )
        if count < MIN_STEPS:
            raise ValueError(
                "Argument `start` must be lower: the loss grew too far, or was not finite, after "
                f"{count} steps; the test needs at least {MIN_STEPS}. Received: "
                f"start={shown(self.start)}"
            )
        self.result = read_sweep(self._rates, self._losses, self.smoothing, self._diverged)
        if self.result.is_open:
            warnings.warn(
                f"The range test ended at stop={self.stop:g} before the loss grew: `minimum` and "
                "`suggestion` depend on `stop`, not on the model. Raise `stop`.",
                stacklevel=2,
            )
        self.model.stop_training = True


def lr_range_test(
    model: keras.Model,
    data: Data,
    start: float = 1e-7,
    stop: float = 10.0,
    num_steps: int = 100,
    *,
    batch_size: int = 32,
    smoothing: float = 0.9,
    stop_factor: float | None = 4.0,
    validation_data: Data | None = None,
    class_weight: dict[str, Any] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    verbose: int = 0,
) -> RangeTestResult:
    """Finds learning rates worth trying: the callback `LRRangeTest` in one call, on any data.

    It trains the model for `num_steps` steps, with rates that grow from `start` to `stop`, and then
    restores it: see `tfuq.callbacks.LRRangeTest`. Shorter data are read again.

    Two things change: an unbuilt optimizer is built, with fresh moments; a dataset's own shuffling
    (`tf.data.Dataset.shuffle` that reshuffles) has advanced. A `PyDataset` is read by index,
    without its hooks for the beginning and end of epochs.

    Args:
        model: A built and compiled Keras model.
        data: `(x, y)` or `(x, y, sample_weight)` of arrays, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches. Not a generator, which the test would use up.
        start: Rate of the first step.
        stop: Rate of the last step, above `start`.
        num_steps: Number of steps, at least 5.
        batch_size: Examples in a batch, of arrays.
        smoothing: Weight of the past in the moving average of losses, in [0, 1). 0 is none.
        stop_factor: Limit of the smoothed loss as a multiple of the lowest, above 1. `None`: only
            losses that are not finite end the test.
        validation_data: Data like `data`: the curve then shows their loss after each step, as in
            `LRRangeTest`; or `None`.
        class_weight: Dict from class to weight, as `keras.Model.fit` takes it, or `None`.
        shuffle: Whether arrays are shuffled, and the batches of a `PyDataset` that ends.
        seed: Integer that determines the order and all unseeded random numbers.
        verbose: 1 shows a progress bar, 2 a line, 0 nothing.

    Returns:
        A `RangeTestResult`, with `learning_rates`, `losses`, `smoothed_losses`, `minimum`,
        `minimum_over_10`, `steepest`, `bracket`, `suggestion` and `plot()`.

    Raises:
        ValueError: If an argument is not as described, the model is not built or not compiled, or
            its learning rate is a schedule. After everything is put back: if the loss is not finite
            from the first step, or diverges before the fifth.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks.lr_sweep import lr_range_test

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(momentum=0.9), loss, jit_compile=False)
    found = lr_range_test(model, (x, y), start=1e-4, stop=1e4, num_steps=30)
    print(found.suggestion, found.steepest, found.bracket)
    ```

    See also: `tfuq.callbacks.LRRangeTest`, `tfuq.callbacks.SGDR`, `tfuq.training.rapid_fit`.
    """
    options = {"smoothing": smoothing, "stop_factor": stop_factor, "verbose": verbose}
    check_integer("batch_size", batch_size, 1)
    options |= {"validation_data": validation_data, "validation_batch_size": batch_size}
    test = LRRangeTest(start, stop, num_steps, **options)
    check_trainable(model)
    check_integer("seed", seed, 0)
    arguments = range_test_arguments(data, batch_size, shuffle)
    metrics = Copies(*model.metrics_variables)
    with (
        seeded(seed),
        kept_attributes(model, *SET_BY_FIT),
        warnings.catch_warnings(),
    ):
        # Keras says this of any dataset whose length it does not know, read to its end as asked.
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        model._initial_epoch = None
        try:
            model.fit(
                **arguments,
                epochs=num_steps * batches_per_step(model.optimizer),
                class_weight=class_weight,
                callbacks=[test],
                verbose=0,
            )
        finally:
            metrics.put_back()
    return test.result
