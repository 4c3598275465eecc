"""Cosine cycles of the learning rate with warm restarts, at every step of the optimizer."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    check_integer,
    check_positive,
    is_finite,
    shown,
    to_float64,
    told,
)
from tfuq._models.train_step import announce_cycles, optimizer_chain, unwrap_step, wrap_step
from tfuq.callbacks._neighbours import check_alone

TOLERANCE = 1e-12  # of the count of steps: 10 epochs of 0.1 * 30 steps each end at step 30
TABLE = 4096  # rates that are computed at once, unless one execution takes more steps


# --- The curve, in steps ----------------------------------------------------------------------


def cycle_at(step, cycle_length, cycle_mult=1.0, warmup=0.0):
    """The number of the cycle that `step` lies in, from 0, and the fraction of it that is over.

    ```
    cycle i begins at  warmup + cycle_length * (1 + cycle_mult + ... + cycle_mult^(i - 1))
    and lasts          cycle_length * cycle_mult^i
    ```
    """
    step = np.asarray(step, "float64")
    time = np.maximum(step - warmup, 0.0)
    late = time + TOLERANCE * step  # what rounding puts right before a cycle is in it
    if cycle_mult == 1:
        cycle = np.floor(late / cycle_length)
        begin, length = cycle * cycle_length, cycle_length
    else:
        grown = math.log(cycle_mult)

        def begins(cycle):
            return cycle_length * np.expm1(cycle * grown) / (cycle_mult - 1)

        cycle = np.floor(np.log1p(late / cycle_length * (cycle_mult - 1)) / grown)
        cycle = np.where(begins(cycle + 1) <= late, cycle + 1, cycle)
        cycle = np.where(begins(cycle) > late, cycle - 1, cycle)
        begin, length = begins(cycle), cycle_length * cycle_mult**cycle
    return cycle.astype("int64"), np.clip((time - begin) / length, 0.0, 1.0)


def sgdr(
    step,
    max_learning_rate,
    min_learning_rate=0.0,
    cycle_length=1,
    cycle_mult=1,
    cycle_decay=1,
    warmup=0,
):
    """Learning rate of the step after `step` others, in float64; lengths are in steps.

    ```
    rate = min + cycle_decay^i * (max - min) / 2 * (1 + cos(pi * T_cur / T_i))
    and before the cycles, while step < warmup:  min + (max - min) * step / warmup
    ```
    """
    step = np.asarray(step, "float64")
    cycle, over = cycle_at(step, cycle_length, cycle_mult, warmup)
    swing = max_learning_rate - min_learning_rate
    falling = np.power(float(cycle_decay), cycle) * swing / 2 * (1 + np.cos(np.pi * over))
    rising = swing * step / warmup if warmup else falling
    return min_learning_rate + np.where(in_warmup(step, warmup), rising, falling)


def in_warmup(step, warmup):
    """Whether the cycles have not begun yet."""
    return step < warmup * (1 - TOLERANCE)


def completed_cycles(step, **lengths):
    """How many cycles have ended once `step` steps are taken: an integer, or an array of them."""
    cycle, _ = cycle_at(step, **lengths)
    return cycle if cycle.ndim else int(cycle)


def check_range(name, value, lowest, highest=math.inf):
    """Raises ValueError unless `value` is a finite number from `lowest` to `highest`."""
    if not is_finite(value) or not lowest <= value <= highest:
        end = "" if highest == math.inf else f" and at most {highest:g}"
        raise ValueError(
            f"Argument `{name}` must be a finite number of at least {lowest:g}{end}. "
            f"Received: {name}={shown(value)}"
        )


@told
class SGDR(keras.callbacks.Callback):
    """Learning rate schedule: cosine cycles with warm restarts (SGDR).

    The rate depends only on the optimizer's count of steps, and is set inside the training step. So
    the curve is the same to the bit for any `steps_per_execution`, compiled or not, and a resumed
    training continues it (`keras.callbacks.BackupAndRestore`, or `initial_epoch` with a loaded
    optimizer). A second `fit` with the same optimizer continues it, too: to start from the
    beginning, `compile` with a new one.

    A restart comes at the step that ends a cycle, even within an epoch. A model is best at the end
    of a cycle and worse for a while after it: let early stopping wait for a cycle. Callbacks such
    as `tfuq.callbacks.SnapshotEnsemble` ask this one where cycles end.

    `logs` get `learning_rate`, that of the epoch's last step, for the callbacks after this one.
    After training the optimizer keeps the rate of its last step. A callback that sets the rate as
    well, such as `ReduceLROnPlateau`, has no effect beside this one.

    Formula (Loshchilov and Hutter 2017, equation 5; Mishra 2020, equations 2.5 and 3.2):

    ```
    rate = min + cycle_decay^i * (max - min) / 2 * (1 + cos(pi * T_cur / T_i)),
    T_i  = cycle_length * cycle_mult^i
    ```

    i counts the cycles from 0, T_cur the epochs in this one, in fractions: it grows with every
    step. T_i is not rounded to whole steps. During `warmup` the rate rises in a straight line from
    `min_learning_rate` to `max_learning_rate`. The curve is that of
    `keras.optimizers.schedules.CosineDecayRestarts`, with `alpha` the ratio min / max, `t_mul` and
    `m_mul`; what it calls decay shrinks the height above the minimum, so that no rate falls below
    that.

    Args:
        max_learning_rate: Rate that the first cycle starts with, such as the suggestion of
            `tfuq.lr_range_test`.
        min_learning_rate: Rate that cycles fall to, at least 0.
        cycle_length: Length of the first cycle in epochs, fractions allowed.
        cycle_mult: How many times longer each cycle is than the one before, at least 1. 2 is the
            paper's cycle length multiplication.
        cycle_decay: Factor in (0, 1] of the height of each cycle to that of the one before.
        warmup: Epochs before the first cycle, fractions allowed.
        steps_per_epoch: Batches in an epoch. `None`: as many as `fit` says there are; it does not
            say so of a dataset whose length it does not know.
        verbose: 1 prints a line when a cycle begins.

    Raises:
        ValueError: If an argument is not as described. When training begins: if the number of steps
            is unknown or 0, the optimizer's learning rate is a schedule already, or there is
            another SGDR.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import SGDR

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(momentum=0.9), loss, jit_compile=False)
    schedule = SGDR(0.1, cycle_mult=2)
    model.fit(x, y, epochs=3, callbacks=[schedule], verbose=0)  # cycles of 1 and 2 epochs
    print(schedule.learning_rates, schedule.completed_cycles(6))  # of 6 steps; 2
    ```

    References:
        - Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
        - Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020.

    See also: `tfuq.callbacks.SnapshotEnsemble`, `tfuq.lr_range_test`, `tfuq.training.rapid_fit`.
    """

    def __init__(
        self,
        max_learning_rate: float,
        min_learning_rate: float = 0.0,
        cycle_length: float = 1,
        cycle_mult: float = 1,
        cycle_decay: float = 1,
        warmup: float = 0,
        *,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        check_positive("max_learning_rate", max_learning_rate)
        check_range("min_learning_rate", min_learning_rate, 0, max_learning_rate)
        check_positive("cycle_length", cycle_length)
        check_range("cycle_mult", cycle_mult, 1)
        check_positive("cycle_decay", cycle_decay)
        check_range("cycle_decay", cycle_decay, 0, 1)
        check_range("warmup", warmup, 0)
        if steps_per_epoch is not None:
            check_integer("steps_per_epoch", steps_per_epoch, 1)
        self.max_learning_rate = max_learning_rate
        self.min_learning_rate = min_learning_rate
        self.cycle_length = cycle_length
        self.cycle_mult = cycle_mult
        self.cycle_decay = cycle_decay
        self.warmup = warmup
        self.steps_per_epoch = steps_per_epoch
        self.verbose = verbose
        self._epoch_steps = steps_per_epoch  # of the optimizer, not always whole
        self._begun = self._ended = None

    # --- Questions ----------------------------------------------------------------------------

    def learning_rate_at(self, step: int | ArrayLike) -> np.ndarray:
        """The learning rate of the step that the optimizer takes after `step` others.

        Args:
            step: Count of steps, or an array of counts.

        Returns:
            The rates, float64, in the shape of `step`.

        Raises:
            ValueError: If `steps_per_epoch` was not given and there was no training yet, or a step
                is no count.
        """
        step = to_float64("step", step)
        if not np.all((step >= 0) & np.isfinite(step)):
            raise ValueError(
                f"Argument `step` must be counts of steps. Received: step={shown(step)}"
            )
        height = (self.max_learning_rate, self.min_learning_rate)
        return sgdr(step, *height, cycle_decay=self.cycle_decay, **self._lengths())

    def completed_cycles(self, step: int | ArrayLike) -> Any:
        """How many cycles have ended once the optimizer has taken `step` steps.

        Args:
            step: Count of steps, or an array of counts.

        Returns:
            Integer, or an array of them; 0 in the warm-up and the first cycle.

        Raises:
            ValueError: If `steps_per_epoch` was not given and there was no training yet.
        """
        return completed_cycles(step, **self._lengths())

    @property
    def steps(self) -> np.ndarray:
        """The steps of the latest training, up to now: their numbers, from 0 in all of training.

        Optimizer's steps count: not the batches that are accumulated, nor those whose gradients
        `LossScaleOptimizer` finds not to be finite.
        """
        return np.arange(0) if self._begun is None else np.arange(self._begun, self._step())

    @property
    def learning_rates(self) -> np.ndarray:
        """The rates of `steps`, an array."""
        return self.learning_rate_at(self.steps) if len(self.steps) else np.zeros(0)

    # --- In training --------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        check_alone(self, "a step has one learning rate")
        optimizer = self.model.optimizer
        if not isinstance(getattr(optimizer, "learning_rate", None), keras.Variable):
            raise ValueError(
                "Argument `optimizer` of `compile` must have a number as its learning rate, which "
                "SGDR changes, not a schedule. Received: "
                f"learning_rate={getattr(optimizer, 'learning_rate', None)!r}"
            )
        batches = self._batches()
        accumulated = (each.gradient_accumulation_steps for each in optimizer_chain(optimizer))
        self._epoch_steps = batches / max(filter(None, accumulated), default=1)
        self._begun = self._ended = self._cycle = None
        self._table = max(self.model.steps_per_execution, min(batches, TABLE))
        with self.model.distribute_strategy.scope():
            self._first = tf.Variable(0, trainable=False, dtype="int64")
            rates = np.zeros(self._table, optimizer.learning_rate.dtype)
            self._rates = tf.Variable(rates, trainable=False)
        wrap_step(self.model, self, self._wrap)
        announce_cycles(self.model, self, functools.partial(completed_cycles, **self._lengths()))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._left = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._left < self.model.steps_per_execution:
            self._fill()
        self._left -= self.model.steps_per_execution
        if self.verbose:
            self._print()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            rate = self.model.optimizer.learning_rate
            logs["learning_rate"] = float(keras.ops.convert_to_numpy(rate))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._ended = self._step()
        announce_cycles(self.model, self, None)
        unwrap_step(self.model, self)

    def _batches(self):
        batches = self.steps_per_epoch or self.params["steps"]
        if batches is None:
            raise ValueError(
                "Argument `steps_per_epoch` must be given to SGDR for data whose length is "
                "unknown. Received: steps_per_epoch=None"
            )
        if batches == 0:
            raise ValueError(
                "Argument `x` of `fit` must hold at least one batch, for SGDR. Received: 0 steps"
            )
        return batches

    def _lengths(self):
        """The arguments of `cycle_at`: epochs as steps of the optimizer."""
        if self._epoch_steps is None:
            raise ValueError(
                "Argument `steps_per_epoch` must be given to SGDR to know its rates before "
                "training. Received: steps_per_epoch=None"
            )
        return {
            "cycle_length": self.cycle_length * self._epoch_steps,
            "cycle_mult": self.cycle_mult,
            "warmup": self.warmup * self._epoch_steps,
        }

    def _step(self):
        """The steps that the optimizer has taken when training ended, or until now."""
        if self._ended is not None:
            return self._ended
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _fill(self):
        """Puts the rates of the next steps where the training step finds them.

        They are not computed there: XLA's cosine is not NumPy's to the last bit.
        """
        first = self._step()
        self._begun = first if self._begun is None else self._begun
        self._first.assign(first)
        rates = self.learning_rate_at(first + np.arange(self._table))
        self._rates.assign(rates.astype(self._rates.dtype.as_numpy_dtype))
        self._left = self._table

    def _wrap(self, step):
        def scheduled_step(data):
            optimizer = self.model.optimizer
            index = tf.cast(optimizer.iterations, "int64") - self._first
            optimizer.learning_rate = tf.gather(self._rates, index)
            return step(data)

        return scheduled_step

    def _print(self):
        step, lengths = self._step(), self._lengths()
        cycle = completed_cycles(step, **lengths)
        if cycle != self._cycle and not in_warmup(step, lengths["warmup"]):
            self._cycle = cycle
            print(
                f"\nEpoch {self._epoch + 1}: SGDR begins cycle {cycle + 1} (epochs: "
                f"{self.cycle_length * self.cycle_mult**cycle:g}) at a learning rate of "
                f"{self.learning_rate_at(step):.4g}"
            )
