"""CPU and clock time of a training, without that of tracing it."""

import time

import keras
import numpy as np


class Watch(keras.callbacks.Callback):
    """CPU seconds of an epoch: the median of those after the first, which holds the tracing."""

    def __init__(self):
        super().__init__()
        self.spent, self.clock = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._begin = time.process_time(), time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.spent.append(time.process_time() - self._start)
        self.clock.append(time.perf_counter() - self._begin)

    @property
    def of_epoch(self):
        return steady(self.spent)


def steady(times):
    """The median of those after the first, which holds the tracing."""
    return float(np.median(times[1:] or times))
