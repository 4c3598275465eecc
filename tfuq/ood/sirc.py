"""A detector joined with the confidence, so that either can tell that an answer is wrong."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import register, shown
from tfuq._models.feature_arrays import check_logits
from tfuq._models.features import not_of_classes
from tfuq._predictions.scores import LEAST
from tfuq.ood._logit_scores import log_doubt
from tfuq.ood.base import Detector
from tfuq.ood.graph_scores import has_graph_form

__all__ = ["SIRC", "sirc"]

FAR = 3  # standard deviations from the mean, at which a score begins to count
_OF = "of_"  # begins the names of what the detector inside has fitted


def sirc(log_doubt, score, a, b):
    """log((1 - confidence) (1 + exp(b (score - a)))) of log(1 - confidence), in float64."""
    log_doubt = tf.maximum(tf.cast(log_doubt, "float64"), np.log(LEAST))
    return log_doubt + tf.nn.softplus(b * (tf.cast(score, "float64") - a))


@register
class SIRC(Detector):
    """Softmax information retaining combination: the largest probability and another detector.

    While the other score looks in distribution, the probability alone ranks answers, which finds
    errors best there; beyond that, the score grows with strangeness. Use it for a rule that has to
    reject both wrong answers and strange inputs: `RejectionRule.fit_model(model, data,
    score=SIRC(ViM()).fit(model, x))`.

    Formula:

    ```
    score = log (1 - max_c p_c) + log(1 + exp(b (s - a)))       (Xia and Bouganis 2022)
    a = mean of s + 3 standard deviations,   b = 1 / standard deviation
    ```

    with the score s of the other detector; its mean and deviation come from the data of `fit`. This
    is the logarithm of the paper's score and orders inputs the same way; the paper's s falls with
    strangeness, this one grows.

    `fit_features` and `score_features` take a pair: what the other detector takes, and logits `(n,
    classes)`.

    Args:
        detector: A detector of `tfuq.ood` that runs in a graph, fitted or not: `fit` fits it.

    Attributes:
        a, b: Where the other score begins to count, and how fast; None before `fit`.

    Raises:
        ValueError: If `detector` does not run in a graph, is for several labels, or is a SIRC.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import KNN, SIRC

    x = np.random.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
    detector = SIRC(KNN(k=5)).fit(model, x)
    print(detector.score(9 * x).mean() > detector.score(x).mean())
    ```

    References:
        - Xia and Bouganis, "Augmenting Softmax Information for Selective Classification with
          Out-of-Distribution Data", ACCV 2022.

    See also: `tfuq.selective.sirc_score`, `tfuq.selective.CombinedScore`.
    """

    def __init__(self, detector: Any) -> None:
        detector = _made(detector) if isinstance(detector, dict) else detector
        is_known = isinstance(detector, Detector) and has_graph_form(type(detector))
        if not is_known or isinstance(detector, SIRC) or getattr(detector, "multi_label", None):
            raise ValueError(
                "Argument `detector` must be a detector of tfuq.ood of single classes that runs in "
                f"a graph, and no SIRC. Received: detector={shown(detector)}"
            )
        self.detector = detector
        super().__init__(output=detector.output, from_logits=detector.from_logits)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON."""
        name = keras.saving.get_registered_name(type(self.detector))
        return {"detector": {"class": name, "config": self.detector.get_config()}}

    @property
    def a(self) -> float | None:
        return float(self._state["a"][0]) if "a" in self._state else None

    @property
    def b(self) -> float | None:
        return float(self._state["b"][0]) if "b" in self._state else None

    def _bind(self, model):
        self.detector._bind(model)
        self._tap, self._model = self.detector._tap, model

    def _read(self, batch):
        arrays, logits = self.detector._read(batch), self._tap(batch).logits
        if self._tap.is_of_numbers:
            raise not_of_classes("SIRC", self.model, self._tap.reading)
        if logits.ndim != 2 or (self._tap.reading.multi_label and logits.shape[1] > 2):
            raise ValueError(
                "Argument `model` must make one prediction of classes per example for SIRC. "
                f"Received: logits of shape {logits.shape}"
            )
        return *arrays, logits

    def _from_model(self):
        return self.detector._from_model()

    def _check(self, features):
        if not isinstance(features, (list, tuple)) or len(features) != 2:
            raise ValueError(
                "Argument `features` must be a pair: what the detector takes, and logits "
                f"(n, classes). Received: features={shown(features)}"
            )
        arrays = *self.detector._check(features[0]), check_logits("features", features[1])
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(
                "Argument `features` must hold a row of logits for each of the others. "
                f"Received: lengths {[len(array) for array in arrays]}"
            )
        return arrays

    def _shapes(self):
        shapes = {_OF + name: axes for name, axes in self.detector._shapes().items()}
        return {**shapes, "a": ("one",), "b": ("one",)}

    def _fit(self, arrays, y, **more):
        inner, logits = self.detector, arrays[-1]
        inner._dtypes = tuple(self._dtypes[: len(arrays) - 1])
        inner._learn("features", arrays[:-1], y, **more)
        scores = np.asarray(inner._own_scores(), "float64")
        spread = scores.std()
        if not spread > 1e-12 * max(1.0, np.abs(scores).max()):
            raise ValueError(
                "Argument `x` must hold examples whose scores differ. "
                f"Received: {len(scores)} examples with the score {scores[0]:g}"
            )
        a, b = scores.mean() + FAR * spread, 1 / spread
        self._first_scores = np.asarray(sirc(log_doubt(logits), scores, a, b))
        state = {_OF + name: array for name, array in inner._state.items()}
        return {**state, "a": np.array([a]), "b": np.array([b])}

    def _scores_of_fit(self, arrays):
        return self._first_scores  # each without itself, where the detector looks so

    def _restore(self, header, arrays):
        super()._restore(header, arrays)
        state = {name: array for name, array in self._state.items() if name.startswith(_OF)}
        self.detector._state = {name.removeprefix(_OF): array for name, array in state.items()}
        self.detector._widths = None if self._widths is None else self._widths[:-1]

    def _score(self, arrays):
        scores = self.detector._score(arrays[:-1])
        return np.asarray(sirc(log_doubt(arrays[-1]), scores, self.a, self.b))

    def _graph_state(self):
        state = {_OF + name: array for name, array in self.detector._graph_state().items()}
        return {**state, "a": self._state["a"], "b": self._state["b"]}

    def _graph_score(self, state, found, batch):
        inner = {n.removeprefix(_OF): array for n, array in state.items() if n.startswith(_OF)}
        scores, arrays = self.detector._graph_score(inner, found, batch)
        score = sirc(log_doubt(found.logits), scores, state["a"], state["b"])
        return score, [*arrays, found.logits]


def _made(content):
    kind = keras.saving.get_registered_object(content.get("class"))
    is_detector = isinstance(kind, type) and issubclass(kind, Detector)
    return kind(**content["config"]) if is_detector else content
