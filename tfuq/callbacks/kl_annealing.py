"""Annealing of the weight of the KL divergence, by epoch or by step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfuq._arguments import check_choice, check_fraction, check_integer, is_finite, shown, told
from tfuq.callbacks._neighbours import check_alone
from tfuq.layers.base import variational_layers

CYCLES = 4  # of "cyclical", and
RAMP = 0.5  # the part of a cycle that rises, as in Fu et al. 2019


def kl_beta(time, initial=0.0, target=1.0, duration=10, cycles=1, ramp=1.0):
    """Weight of the KL divergence at `time`, a count of epochs or steps from 0.

    ```
    tau  = (time mod (duration / cycles)) / (duration / cycles)
    beta = initial + (target - initial) * min(tau / ramp, 1),   target from `duration` on
    ```

    One cycle that rises to its end is linear annealing.
    """
    tau = np.where(time < duration, time * cycles % duration / duration, 1.0)
    return initial + (target - initial) * np.minimum(tau / ramp, 1.0)


def check_beta(name, value):
    """Raises ValueError unless `value` is a finite number >= 0."""
    if not is_finite(value) or value < 0:
        raise ValueError(
            f"Argument `{name}` must be a finite number of at least 0. "
            f"Received: {name}={shown(value)}"
        )


def check_cycles(schedule, duration, cycles, ramp):
    """Raises ValueError unless `cycles` and `ramp` fit the schedule; `None` always does."""
    for name, value in (("cycles", cycles), ("ramp", ramp)):
        if value is not None and schedule != "cyclical":
            raise ValueError(
                f"Argument `{name}` must be None unless `schedule` is 'cyclical'. "
                f"Received: {name}={shown(value)} with schedule={shown(schedule)}"
            )
    if cycles is not None:
        check_integer("cycles", cycles, 1)
    if schedule == "cyclical" and (cycles or CYCLES) > duration:
        raise ValueError(
            "Argument `cycles` must not be above `duration`. "
            f"Received: cycles={cycles or CYCLES} with duration={duration}"
        )
    if ramp is not None:
        check_fraction("ramp", ramp)
        if ramp == 0:
            raise ValueError(f"Argument `ramp` must be in (0, 1]. Received: ramp={shown(ramp)}")


@told
class KLAnnealing(keras.callbacks.Callback):
    """Anneals the weight of the KL divergence while a Bayesian model trains.

    It sets `beta` of every variational layer of the model, at any depth; a layer adds `kl_weight *
    beta * KL` to the loss. The weight depends only on the number of the epoch, or on the
    optimizer's count of steps, so a resumed training (`initial_epoch`,
    `keras.callbacks.BackupAndRestore`) follows the same curve. A training that starts again at
    epoch 0 starts again at `initial`; steps count on as long as the optimizer exists.

    `logs` get `kl_beta`, the latest weight, for the callbacks after this one. The layers keep the
    weight at the end of training. Files written during training (`ModelCheckpoint`,
    `SnapshotEnsemble`) hold `target`, not the weight of their epoch: a model loaded from them is
    evaluated, and trained further, with the final weight. The losses change their meaning with the
    weight: to stop early or keep the best, monitor the accuracy or another metric, not `val_loss`.

    Formula:

    ```
    linear:    beta = initial + (target - initial) * min(t / duration, 1)
    cyclical:  beta = initial + (target - initial) * min(tau / ramp, 1) while t < duration,
               tau  = (t mod (duration / cycles)) / (duration / cycles);   then target
    ```

    t counts epochs or steps from 0. Cyclical is that of Fu et al. 2019, where `initial` is 0 and
    `target` 1; each of its cycles starts at `initial`, rises for the fraction `ramp` of its length
    and then stays at `target`.

    Args:
        initial: Weight that the curve starts from, at least 0.
        target: Weight that it ends with, at least 0, higher or lower than `initial`.
        duration: Number of epochs or steps after which the weight stays at `target`. Epochs count
            from 0: with `duration=epochs - 1` the last epoch is the first to have `target`.
        unit: `"epoch"`, or `"step"`: the optimizer's steps. With `steps_per_execution` above 1 the
            weight moves once per execution.
        schedule: `"linear"` or `"cyclical"`.
        cycles: Number of cycles of `"cyclical"`, 4 if `None`.
        ramp: Fraction in (0, 1] of each cycle of `"cyclical"` that rises, 0.5 if `None`.

    Raises:
        ValueError: If an argument is not as described. When training begins: if the model holds
            no variational layer, or is not built, or there is another KLAnnealing.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import KLAnnealing
    from tfuq.layers import VBLLDense

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=1 / 64)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    annealing = KLAnnealing(initial=0.2, target=0.01, duration=2)
    history = model.fit(x, y, epochs=4, callbacks=[annealing], verbose=0).history
    print(history["kl_beta"])  # 0.2, 0.105, 0.01, 0.01
    ```

    References:
        - Fu, Li, Liu, Gao, Celikyilmaz and Carin, "Cyclical Annealing Schedule: A Simple Approach
          to Mitigating KL Vanishing", NAACL 2019.

    See also: `tfuq.kl_weight_for`, `tfuq.layers.DenseVariational`.
    """

    def __init__(
        self,
        initial: float = 0.0,
        target: float = 1.0,
        duration: float = 10,
        unit: str = "epoch",
        schedule: str = "linear",
        *,
        cycles: int | None = None,
        ramp: float | None = None,
    ) -> None:
        super().__init__()
        check_beta("initial", initial)
        check_beta("target", target)
        check_integer("duration", duration, 1)
        check_choice("unit", unit, ("epoch", "step"))
        check_choice("schedule", schedule, ("linear", "cyclical"))
        check_cycles(schedule, duration, cycles, ramp)
        self.initial = initial
        self.target = target
        self.duration = duration
        self.unit = unit
        self.schedule = schedule
        self.cycles = cycles
        self.ramp = ramp
        self._layers = []
        self._beta = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        check_alone(self, "the KL divergence has one weight")
        self._layers = variational_layers(self.model)
        if not self._layers:
            raise ValueError(
                "Argument `model` must hold variational layers, such as `tfuq.layers.VBLLDense` "
                f"or `DenseVariational`, for KLAnnealing. Received: model={shown(self.model)}"
            )
        if not all(layer.built for layer in self._layers):
            raise ValueError(
                "Argument `model` must be built before `fit`, for KLAnnealing: call it on a batch, "
                f"or give it an `Input`. Received: model={shown(self.model)}"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.unit == "epoch":
            self._move(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.unit == "step":
            self._move(int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["kl_beta"] = self._beta

    def _move(self, time):
        shape = (1, 1.0)
        if self.schedule == "cyclical":
            shape = (self.cycles or CYCLES, self.ramp or RAMP)
        self._beta = float(kl_beta(time, self.initial, self.target, self.duration, *shape))
        for layer in self._layers:
            layer.move_beta(self._beta, self.target)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        for layer in self._layers:
            layer.move_beta(self._beta, None)
