"""Calibrations, rejection rules and conformal sets as the last layer of a model."""

from __future__ import annotations

from typing import Any

import keras

from tfuq._arguments import Tensor, register, shown
from tfuq._models.meaning import Meaning


@register
class PostProcessing(keras.layers.Layer):
    """Applies what was fitted after training: a calibration, a rejection rule, conformal sets.

    The layer has no weights to train. What it applies is part of its configuration, so that it is
    saved, loaded and exported with the model. It computes in float32 whatever the policy.

    Args:
        method: An object of `tfuq.selective` that has been fitted: a scaling, `RejectionRule`,
            `ConformalPredictor`; any object of a class registered with Keras that has
            `transform(tensor) -> tensors`, `get_config` and `from_config`. Not to be fitted again:
            what has been traced keeps the old numbers.

    Call arguments:
        inputs: Predictions of the kind that `method` was fitted to: `(batch, ..., classes)`, or a
            stack of them `(samples, batch, ..., classes)`.

    Returns:
        What `method.transform` gives: calibrated predictions, or a dict of tensors. A Keras mask
        of the inputs stays with it.

    Raises:
        ValueError: If `method` lacks `transform`, `get_config` or `from_config`.

    Example:

    ```python
    import keras
    from tfuq.layers import PostProcessing
    from tfuq.selective import TemperatureScaling

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model.add(PostProcessing(TemperatureScaling(temperature=1.5, from_logits=True)))
    ```

    See also: `tfuq.selective.TemperatureScaling`, `tfuq.selective.RejectionRule`.
    """

    def __init__(self, method: Any, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False, **kwargs})
        if isinstance(method, dict):
            method = keras.saving.deserialize_keras_object(method)
        needed = ("transform", "get_config", "from_config")
        if not all(callable(getattr(method, name, None)) for name in needed):
            raise ValueError(
                f"Argument `method` must be an object with the methods {', '.join(needed)}. "
                f"Received: method={shown(method)}"
            )
        self.method = method
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Any:
        return self.method.transform(inputs)

    def says_of_output(self) -> Meaning | None:
        """What the numbers are that a calibration gives; None of methods with other outputs."""
        is_logits = getattr(self.method, "gives_logits", None)
        if is_logits is None:
            return None
        return Meaning(is_logits, self.method.multi_label, f"the layer {self.name!r}")

    def compute_output_spec(self, inputs: Tensor) -> Any:
        # That of a layer asks `compute_output_shape`, which asks this.
        return keras.Operation.compute_output_spec(self, inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Shapes of what `call` returns, in its structure."""
        spec = self.compute_output_spec(
            keras.tree.map_shape_structure(
                lambda shape: keras.KerasTensor(shape, self.compute_dtype), input_shape
            )
        )
        return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), spec)

    def get_config(self) -> dict[str, Any]:
        method = keras.saving.serialize_keras_object(self.method)
        return {**super().get_config(), "method": method}
