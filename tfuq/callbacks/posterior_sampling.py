"""Training steps that average over several draws of the random weights."""

from __future__ import annotations

import threading
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import check_integer, shown, told
from tfuq._models.train_step import (
    build_optimizer,
    has_replicas,
    intercepted,
    unwrap_step,
    wrap_step,
)
from tfuq._random.draws import random_layers


@told
class PosteriorSampling(keras.callbacks.Callback):
    """Averages each training step over several draws of a network with random weights.

    Each batch runs through the model `num_samples` times, with new noise each time, one after the
    other: the optimizer gets the mean of the gradients, and memory is that of one. Metrics are
    means over the draws. Batch normalization updates its moving statistics with each.

    Formula (the Monte Carlo estimate of the evidence lower bound; Abboud et al. 2024 take 5):

    ```
    gradient = 1 / num_samples * sum_s d/dw (loss(x, y, noise_s) + kl_weight * beta * KL)
    ```

    Args:
        num_samples: Number of draws per step.

    Raises:
        ValueError: If `num_samples` is not a positive integer. When training begins: if the model
            has no random layers, or is not built.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import PosteriorSampling
    from tfuq.layers import DenseVariational

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), DenseVariational(3, kl_weight=1 / 64)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=2, callbacks=[PosteriorSampling(5)], verbose=0)
    ```

    See also: `tfuq.layers.DenseVariational`, `tfuq.convert.sparse_bayesian`.
    """

    def __init__(self, num_samples: int = 5) -> None:
        super().__init__()
        check_integer("num_samples", num_samples, 1)
        self.num_samples = num_samples
        self._caught = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        layers = [x for x in random_layers(self.model) if isinstance(x, keras.layers.Layer)]
        if not self.model.built or not layers:
            raise ValueError(
                "Argument `model` must be built and hold layers with random weights, such as "
                "`tfuq.layers.DenseVariational`, for PosteriorSampling. "
                f"Received: model={shown(self.model)}, built={self.model.built}"
            )
        build_optimizer(self.model)
        wrap_step(self.model, self, self._wrap)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        unwrap_step(self.model, self)

    def _wrap(self, step):
        def sampled_step(data):
            optimizer, variables = self.model.optimizer, self.model.trainable_variables
            reached = set()  # variables that have gradients: not those that wait to be unfrozen

            def add(sums):
                found = self._gradients(optimizer, variables, step, data)
                reached.update(i for i, g in enumerate(found) if g is not None)
                return [
                    total if g is None else total + tf.convert_to_tensor(g)
                    for total, g in zip(sums, found, strict=True)
                ]

            sums = self._repeat(add, [tf.zeros(v.shape, v.dtype) for v in variables])
            means = [sums[i] / self.num_samples for i in sorted(reached)]
            optimizer.apply(means, [variables[i] for i in sorted(reached)])
            return self.model.get_metrics_result()

        return sampled_step

    def _gradients(self, optimizer, variables, step, data):
        """What one training step would apply, without applying it."""

        def catch(apply, gradients, variables):
            self._caught[threading.get_ident()] = dict(
                zip(map(id, variables), gradients, strict=True)
            )

        with intercepted(optimizer, self, catch):
            step(data)
        found = self._caught.pop(threading.get_ident())  # of this replica
        return [found.get(id(variable)) for variable in variables]

    def _repeat(self, add, sums):
        if has_replicas():  # they cannot speak to each other inside a loop of the graph
            for _ in range(self.num_samples):
                sums = add(sums)
            return sums
        return tf.while_loop(
            lambda number, _: number < self.num_samples,
            lambda number, sums: (number + 1, add(sums)),
            [0, sums],
            parallel_iterations=1,
        )[1]
