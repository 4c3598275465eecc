"""Weights at the mean of a posterior that an optimizer keeps, while nobody trains."""

from __future__ import annotations

from typing import Any

import keras

from tfuq._arguments import shown, told
from tfuq._models.train_step import build_optimizer, optimizer_chain
from tfuq.optimizers import IVON


@told
class PosteriorMean(keras.callbacks.Callback):
    """Lets validation, checkpoints and early stopping see the mean weights of `IVON`.

    While a model trains with `tfuq.optimizers.IVON`, its weights are a draw. This callback sets
    them to the mean when validation begins, at the latest at the end of each epoch, and to a new
    draw when the next epoch begins. Without validation, put it before callbacks that read the
    weights at the end of an epoch.

    Raises:
        ValueError: In `fit`, if the model's optimizer is not `IVON` and does not wrap one.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x, y = np.random.rand(64, 8), np.random.rand(64, 1)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(tfuq.optimizers.IVON(0.1, num_data=64), "mse")
    model.fit(x, y, validation_split=0.2, callbacks=[tfuq.callbacks.PosteriorMean()], verbose=0)
    ```

    See also: `tfuq.optimizers.IVON`.
    """

    _optimizer = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        found = optimizer_chain(self.model.optimizer)[-1]
        if not isinstance(found, IVON):
            raise ValueError(
                "Argument `optimizer` of `compile` must be `tfuq.optimizers.IVON` for "
                f"PosteriorMean. Received: optimizer={shown(self.model.optimizer)}"
            )
        build_optimizer(self.model)
        self._optimizer = found

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._optimizer.to_sample()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._optimizer is not None:
            self._optimizer.to_mean()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._optimizer.to_mean()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._optimizer.to_mean()
        self._optimizer = None
