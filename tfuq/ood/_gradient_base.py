"""Base of the detectors on the squared gradient norms of a trained model."""

import keras

from tfuq._arguments import shown
from tfuq._models.features import without_nan
from tfuq.ood.base import Detector
from tfuq.ood.log_features import Scale, log_norms, squared_norms

MIN_EXAMPLES = 10  # of each class: two in each part of a split


class GradientNormDetector(Detector):
    """Base of the detectors whose features are squared norms, from a function of the inputs."""

    _graph_score = None  # features are gradients, which a function outside of the graph computes

    def _bind(self, model):
        if isinstance(model, keras.Model) or not callable(model):
            raise ValueError(
                "Argument `model` must be a function from inputs to squared gradient norms, such "
                f"as tfuq.ood.GradientFeatures(model). Received: model={shown(model)}"
            )
        self._model = model

    def _read(self, batch):
        return (squared_norms("model", self.model(batch)),)

    def _score_batch(self, batch):
        return super()._score_batch(without_nan(batch))

    def _check(self, features):
        return (squared_norms("features", features),)

    def _standardised(self, features):
        return Scale(self._state["mean"], self._state["spread"])(log_norms(features))


def scale_of(name, features):
    """`Scale` of log features, or a ValueError if there is nothing to standardise."""
    scale = Scale.of(log_norms(features))
    if not scale.spread.any():
        raise ValueError(
            f"Argument `{name}` must have columns that differ between examples. "
            "Received: the same numbers for all"
        )
    return scale


def check_enough(name, count):
    """Raises ValueError unless there are examples enough."""
    if count < MIN_EXAMPLES:
        raise ValueError(
            f"Argument `{name}` must hold at least {MIN_EXAMPLES} examples. Received: {count}"
        )
