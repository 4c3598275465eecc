"""SWAG: a Gaussian over the weights from the last part of a training (Maddox et al. 2019)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras

from tfuq._arguments import (
    Data,
    check_choice,
    check_flags,
    check_fraction,
    check_integer,
    shown,
    told,
)
from tfuq._models.batch_statistics import batch_normalizations, renew_batch_statistics
from tfuq._models.optimizers import exchange_optimizer
from tfuq._models.train_step import build_optimizer, callbacks_of_fit
from tfuq._random.draws import posterior_optimizer
from tfuq.callbacks._neighbours import check_alone
from tfuq.optimizers.swag import LEAST, SWAGMoments, check_moments


def first_epoch(start, epochs):
    """How many of `epochs` come before the first whose weights count."""
    return start if isinstance(start, int) else math.ceil(start * epochs - 1e-9)


@told
class SWAG(keras.callbacks.Callback):
    """Builds a posterior from the weights of the last epochs of a training (SWAG).

    The mean of the weights, their variances and their last `rank` deviations from the mean are a
    Gaussian over all trainable weights. When `fit` ends the model has the mean, which is stochastic
    weight averaging, and `tfuq.predictive.sample_predictions`, `predict_uncertainty` and exports
    draw networks from the Gaussian. It is saved and loaded with the model, as the state of its
    optimizer. `fit` without this callback drops it, with a warning.

    Keep the learning rate constant and rather high in those epochs, so that the weights move
    around: if it has decayed to nothing, the Gaussian shrinks to a point. During training the model
    has the weights of each step; validation and checkpoints see these.

    Formula (Maddox et al. 2019, equation 1):

    ```
    w ~ N(mean, scale / 2 * (diag(var) + D D^T / (K - 1)))          D: the last K = rank deviations
    ```

    Memory and files grow by `rank + 2` copies of the weights.

    Args:
        data: Inputs such as those of the training: an array, `(x, y)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`. The statistics of batch normalizations are recomputed on them
            for the mean. Models with `BatchNormalization` need them: otherwise the statistics are
            those of the last weights, and a warning says so. All drawn networks have the statistics
            of the mean.
        start: When collecting begins: after a number of epochs, or after a share of the epochs of
            `fit`, below 1.
        frequency: `"epoch"`: at the end of each epoch. An integer: after each so many batches, in
            each epoch from its first batch on.
        rank: Number of deviations that are kept, at least 2; 0 for a diagonal covariance,
            `scale * diag(var)`.
        scale: Factor of the covariance; 1 is that of the paper.
        set_mean: Whether the model gets the mean of the weights when `fit` ends. Otherwise it keeps
            the last weights, and only draws use the mean.
        batch_size: Examples at a time, where `data` are arrays.
        verbose: 1 shows a progress bar over `data`, and says how many networks were collected.

    Raises:
        ValueError: If an argument is not as described. When training begins: if fewer than two
            networks would be collected, the model's optimizer has a posterior of its own (IVON), or
            another callback of the same `fit` would put back other weights at its end.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    model.fit(x, y, epochs=8, callbacks=[tfuq.callbacks.SWAG(start=0.5)], verbose=0)
    print(tfuq.predictive.sample_predictions(model, x, num_samples=4).shape)  # (4, 64, 3)
    ```

    References:
        - Maddox, Garipov, Izmailov, Vetrov, Wilson: "A Simple Baseline for Bayesian Uncertainty in
          Deep Learning", NeurIPS 2019.

    See also: `tfuq.optimizers.IVON`, `tfuq.predictive.predict_uncertainty`.
    """

    def __init__(
        self,
        data: Data | None = None,
        start: float = 0.75,
        frequency: str | int = "epoch",
        rank: int = 20,
        scale: float = 1.0,
        *,
        set_mean: bool = True,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(start, int) and not isinstance(start, bool):
            check_integer("start", start, 0)
        else:
            check_fraction("start", start)
            if start == 1:
                raise ValueError(
                    "Argument `start` must be a number of epochs (an integer) or a share of them "
                    f"below 1. Received: start={shown(start)}"
                )
        if frequency != "epoch":
            if isinstance(frequency, str):
                check_choice("frequency", frequency, ("epoch", "an integer number of batches"))
            check_integer("frequency", frequency, 1)
        check_moments(rank, scale)
        check_flags(set_mean=set_mean)
        check_integer("batch_size", batch_size, 1)
        check_choice("verbose", verbose, (0, 1))
        self.data, self.start, self.frequency = data, start, frequency
        self.rank, self.scale = rank, scale
        self.set_mean = set_mean
        self.batch_size, self.verbose = batch_size, verbose
        self._moments = None
        self._is_counting = False

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if getattr(model, "optimizer", None) is None or not model.built:
            return  # `on_train_begin` says so
        posterior = posterior_optimizer(model)
        if posterior is None or isinstance(posterior, SWAGMoments):
            # Before another callback restores what an interrupted training had.
            with model.distribute_strategy.scope():
                self._moments = self._installed(model)
                if not self._moments.is_random():  # `evaluate` comes here, too
                    self._moments.begin()

    def _installed(self, model):
        """The `SWAGMoments` of the model's optimizer, put there if there are none like these."""
        build_optimizer(model)
        *outer, own = self._before_inner(model.optimizer)
        if isinstance(own, SWAGMoments) and (own.rank, own.scale) == (self.rank, self.scale):
            return own
        inner = own.inner_optimizer if isinstance(own, SWAGMoments) else own
        moments = SWAGMoments(inner, self.rank, self.scale)
        if outer:  # which scales the loss, and keeps its state
            outer[-1].inner_optimizer = moments
            config = model._compile_config.config
            is_own = config["optimizer"] is outer[0]
            config["optimizer"] = outer[0] if is_own else moments
            model.train_function = None
        else:
            exchange_optimizer(model, moments)
        return moments

    @staticmethod
    def _before_inner(optimizer):
        """What scales the loss, if anything does, and what it scales the loss for."""
        found = [optimizer]
        while isinstance(found[-1], keras.optimizers.LossScaleOptimizer):
            found.append(found[-1].inner_optimizer)
        return found

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                "Argument `model` must be built before `fit`, for SWAG: call it on a batch, or "
                f"give it an `Input`. Received: model={shown(self.model)}"
            )
        if self._moments is None:
            raise ValueError(
                "Argument `optimizer` of `compile` must be one that keeps no posterior of the "
                f"weights, for SWAG. Received: optimizer={shown(self.model.optimizer)}"
            )
        check_alone(self, "a model has one posterior")
        self._check_neighbours()
        self._check_count()
        if self._moments.is_random():  # of an earlier `fit`
            self._moments.begin()

    def _check_neighbours(self):
        callbacks = callbacks_of_fit(self)
        place = callbacks.index(self)
        for each in callbacks[:place]:
            if isinstance(each, keras.callbacks.BackupAndRestore):
                raise ValueError(
                    "Argument `callbacks` of `fit` must hold SWAG before Keras' BackupAndRestore, "
                    f"which would miss the network of each epoch. Received: {shown(each)} before "
                    "SWAG"
                )
        behind = callbacks[place + 1 :]
        for each in behind if self.set_mean else ():
            if isinstance(each, keras.callbacks.EarlyStopping) and each.restore_best_weights:
                raise ValueError(
                    "Argument `callbacks` of `fit` must hold SWAG after EarlyStopping, or "
                    "EarlyStopping with restore_best_weights=False: it would replace the mean by "
                    f"its best weights. Received: {shown(each)}"
                )

    def _check_count(self):
        """Raises ValueError if too few networks would be collected, as far as that is known."""
        epochs, steps = self.params["epochs"], self.params.get("steps")
        counted = epochs - first_epoch(self.start, epochs)
        if self.frequency != "epoch":
            counted = counted if steps is None else max(counted, 0) * (steps // self.frequency)
        if counted < LEAST:
            raise ValueError(
                "Arguments `start` and `frequency` must leave at least two networks to collect, "
                f"for SWAG. Received: start={self.start}, frequency={shown(self.frequency)}, with "
                f"epochs={epochs} of {shown(steps)} batches"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._is_counting = epoch >= first_epoch(self.start, self.params["epochs"])
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.frequency == "epoch" or not self._is_counting:
            return
        before, self._batches = self._batches, batch + 1
        if self._batches // self.frequency > before // self.frequency:
            self._collect()

    def _collect(self):
        with self.model.distribute_strategy.scope():
            self._moments.collect()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._is_counting and self.frequency == "epoch":
            self._collect()
        if logs is not None:
            logs["swag_networks"] = self._moments.num_networks()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        count = self._moments.num_networks()
        if not self._moments.end():
            warnings.warn(
                f"SWAG collected {count} of the two networks that it needs before the training "
                "ended. The model keeps its last weights and has no posterior",
                stacklevel=2,
            )
            return
        self.model.train_function = (
            None  # so that the next `fit` sees the posterior, which it drops
        )
        if self.verbose:
            print(f"\nSWAG: {count} networks")
        if not self.set_mean:
            return
        self._moments.set_means()
        if self.data is not None:
            renew_batch_statistics(self.model, self.data, self.batch_size, self.verbose)
        elif batch_normalizations(self.model):
            warnings.warn(
                "Batch normalizations have the statistics of the last weights, not of the mean "
                "that SWAG has set, which makes predictions worse: pass `data` to SWAG",
                stacklevel=2,
            )
