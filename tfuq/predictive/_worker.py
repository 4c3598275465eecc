"""The rows that a worker of a pipeline makes of batches, with a model of its own."""

import keras
import numpy as np

from tfuq._arguments import shown
from tfuq._files.reading import load_keras
from tfuq.predictive.inputs import Batch
from tfuq.predictive.number_rows import rows_of


def checked_paths(model):
    """The argument `model` as a list of paths of `.keras` files, or a ValueError."""
    paths = list(model) if isinstance(model, (list, tuple)) else [model]
    if not paths or not all(str(path).endswith(".keras") for path in paths):
        raise ValueError(
            "Argument `model` must be the path of a .keras file, or a list of such. "
            f"Received: model={shown(model)}"
        )
    return [str(path) for path in paths]


class Worker:
    """What a worker knows once it has loaded the files of a model or ensemble."""

    def __init__(self, paths, options):
        models = [load_keras(path) for path in paths]
        self._model = models[0] if len(models) == 1 else _Members(models)
        self._options, self._scorer = options, None

    def rows(self, inputs, labels=None):
        """Columns of a batch of inputs, an array, but their numbers."""
        if inputs.dtype.kind == "f":
            inputs = inputs.astype(keras.config.floatx())
        if self._scorer is None:
            self._scorer = rows_of(self._model, inputs, **self._options)
        batch = Batch(keras.ops.convert_to_tensor(inputs), labels, None)
        rows = self._scorer.rows(0, batch)
        return {name: np.asarray(values) for name, values in rows.items() if name != "index"}


class _Members:
    """An ensemble, as far as scoring looks at it."""

    def __init__(self, members):
        self.members = members
