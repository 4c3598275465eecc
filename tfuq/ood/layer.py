"""Detectors as layers: a model and the score of its inputs, in one file of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import ModelLike, Output, Tensor, register, shown
from tfuq._models.finite import known_only
from tfuq._models.outputs import input_spec, sample_inputs, select_output
from tfuq.ood.base import Detector
from tfuq.ood.graph_scores import GraphScore, has_graph_form

__all__ = ["DetectorLayer"]


@register
class DetectorLayer(keras.layers.Layer):
    """A model as a layer that returns its predictions and a detector's scores of the same inputs.

    The fitted state of the detector becomes weights of the layer, which are not trained. So it is
    saved in `.keras` files, loaded and exported with the model. The layer computes in the dtypes of
    the detector, whatever the policy.

    Args:
        detector: A fitted detector of `model`, of a class that runs in a graph: all but
            `GradientDensity`, `GradientDetector` and `MutualInformation`.
        model: A functional or `Sequential` model; by default the one the detector was fitted to.

    Call arguments:
        inputs: What the model takes.

    Returns:
        A list of two float32 tensors: the predictions `(batch, ...)` of the output that the
        detector looks at, NaN for inputs that are not finite; and the scores `(batch,)`, larger for
        stranger inputs, inf for inputs that are not finite.

    Raises:
        ValueError: If the detector is not fitted, has no graph form or is of other weights; if the
            model does not know its inputs.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import DetectorLayer, Energy

    x = np.random.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
    detector = Energy().fit(model, x)
    inputs = keras.Input((8,))
    whole = keras.Model(inputs, DetectorLayer(detector)(inputs))
    predictions, score = whole.predict(x, verbose=0)
    print(np.allclose(score, detector.score(x), atol=1e-5))  # True
    ```

    See also: `tfuq.selective.RejectionRule`, `tfuq.export.export`.
    """

    def __init__(
        self, detector: Any, model: ModelLike | Callable[..., Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        state = None
        if isinstance(detector, dict):
            detector, state = _remade(detector)
        _check_detector(detector)
        model = keras.saving.deserialize_keras_object(model) if isinstance(model, dict) else model
        self.model = _checked_model(detector, model)
        if state is None:
            detector._check_model()
            arrays = detector._graph_state()
        else:
            detector._bind(self.model)
            arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in state.items()}
        self._detector = detector
        self._held = {name: self._weight(name, np.asarray(a)) for name, a in arrays.items()}
        self._score = None
        self.built = True

    def _weight(self, name, array):
        options = {"trainable": False, "autocast": False, "name": name}
        weight = self.add_weight(shape=array.shape, dtype=array.dtype.name, **options)
        weight.assign(array)
        return weight

    def call(self, inputs: Tensor) -> Any:
        if self._score is None:
            with tf.init_scope():  # to find the layers takes numbers
                rows = sample_inputs(input_spec(self.model))
                self._score = GraphScore(self._detector, rows, held=self._held)
        found = self._score.read(inputs)
        return [known_only(inputs, found.outputs), self._score(inputs, found)]

    def compute_output_spec(self, inputs: Tensor) -> Any:
        outputs = self.model.compute_output_spec(inputs)
        shape = select_output(outputs, self._detector.output, self.model).shape
        return [keras.KerasTensor(shape, "float32"), keras.KerasTensor(shape[:1], "float32")]

    def with_outputs(self, layer: keras.layers.Layer, output: Output | None = None) -> keras.Model:
        """A functional model of the same inputs: `layer` of the predictions and the scores.

        Args:
            layer: What takes a list of both.
            output: None, or the output that the detector looks at.
        """
        if output not in (None, self._detector.output):
            raise ValueError(
                "Argument `output` must be the one that the detector looks at, "
                f"{shown(self._detector.output)}. Received: output={shown(output)}"
            )
        is_one = isinstance(self.model, keras.Sequential)
        inputs = self.model.inputs[0] if is_one else self.model.input
        return keras.Model(inputs, layer(self(inputs)))

    def get_config(self) -> dict[str, Any]:
        detector = {
            "class": keras.saving.get_registered_name(type(self._detector)),
            "config": self._detector.get_config(),
            "widths": self._detector._widths,
            "state": {name: [list(w.shape), w.dtype] for name, w in self._held.items()},
        }
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "detector": detector, "model": model}


def _remade(content):
    """The detector of a configuration, without what it has fitted, and the shapes of that."""
    kind = keras.saving.get_registered_object(content.get("class"))
    if not (isinstance(kind, type) and issubclass(kind, Detector)):
        raise ValueError(
            "Argument `detector` must be of a class of tfuq.ood. "
            f"Received: {shown(content.get('class'))}"
        )
    detector = kind(**content["config"])
    detector._widths = content["widths"]
    return detector, content["state"]


def _check_detector(detector):
    if not isinstance(detector, Detector) or not has_graph_form(type(detector)):
        raise ValueError(
            "Argument `detector` must be a fitted detector of tfuq.ood that runs in a graph: not "
            "GradientDensity, GradientDetector or MutualInformation. "
            f"Received: detector={shown(detector)}"
        )


def _checked_model(detector, model):
    if model is None:
        model = detector.model
    is_known = isinstance(getattr(model, "inputs", None), list)
    if not isinstance(model, keras.Model) or not is_known:
        raise ValueError(
            "Argument `model` must be a functional or Sequential model: call a subclassed one in a "
            f"functional one (`keras.Model(inputs, model(inputs))`). Received: model={shown(model)}"
        )
    if detector.model is None:
        detector.model = model
    return model
