"""CPU time of a training, without that of tracing it."""

import time

import keras
import numpy as np


class Watch(keras.callbacks.Callback):
    """CPU seconds of an epoch: the median of those after the first, which holds the tracing."""

    def __init__(self):
        super().__init__()
        self.spent = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self.spent.append(time.process_time() - self._start)

    @property
    def of_epoch(self):
        return float(np.median(self.spent[1:] or self.spent))
