"""A corruption as a Keras layer, for pipelines and models."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import (
    Self,
    Tensor,
    check_choice,
    check_flags,
    check_fraction,
    check_integer,
    checked_range,
    register,
    shown,
)
from tfuq._images.pieces import Shared, as_unit, from_unit
from tfuq._random import points
from tfuq.corruptions._registry import CIFAR, CORRUPTIONS, names
from tfuq.layers.ways import resamples


@register
class CorruptionLayer(keras.layers.Layer):
    """Corrupts images: as augmentation, in a `tf.data` pipeline, or inside a model.

    In training each call draws anew, for each image by itself. A prediction repeats: its noise
    follows from `seed` alone, and is the same for all images, so that an image's answer does not
    depend on its batch. For independent noise outside training say `training=True` in the call, or
    `resample=True`.

    Images of another range than `value_range` are refused, in a graph when it runs; XLA drops the
    check. Shot noise and JPEG pass no gradient on to layers before, and need `jit_compile=False`.

    Args:
        corruption: One of `tfuq.corruptions.names()`.
        severity: Integer from 1 to 5; None if `options` say how strong the corruption is.
        options: Dict of further arguments of that corruption, such as `{"amount": 0.05}`.
        rate: Probability in [0, 1] with which a call that draws anew corrupts an image.
        training_only: Whether predictions leave images as they are.
        resample: Whether predictions draw anew as well.
        value_range: Black and white of floating-point images, `(0, 255)` as in Keras' own image
            layers; `(0, 1)` for those that were rescaled. That of uint8 is known.
        seed: Integer of at least 0, from which all noise follows.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size, which has to be known then.

    Call arguments:
        inputs: `(batch, height, width, 1 or 3)`, uint8 or floating point.
        training: Boolean.

    Returns:
        Tensor of the shape and dtype of `inputs`.

    Raises:
        ValueError: If an argument is out of its range, the corruption refuses it, or images are of
            another range.

    Example:

    ```python
    import keras
    import numpy as np
    import tensorflow as tf
    from tfuq.corruptions import CorruptionLayer

    x, y = 255 * np.random.rand(8, 32, 32, 3), np.zeros(8)
    specks = CorruptionLayer("impulse_noise", options={"amount": 0.05, "salt": 0.25}, seed=1)
    train = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    train = train.map(lambda x, y: (specks(x, training=True), y))

    augment = CorruptionLayer("gaussian_noise", 2, rate=0.5, training_only=True)
    model = keras.Sequential([keras.Input((32, 32, 3)), augment, keras.layers.Flatten()])
    ```

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.corruption_report`.
    """

    def __init__(
        self,
        corruption: str,
        severity: int | None = None,
        options: dict[str, Any] | None = None,
        rate: float = 1.0,
        training_only: bool = False,
        resample: bool = False,
        value_range: tuple[float, float] = (0.0, 255.0),
        seed: int | Tensor | None = None,
        severity_of: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("corruption", corruption, names())
        check_fraction("rate", rate)
        check_flags(training_only=training_only, resample=resample)
        if seed is not None:
            check_integer("seed", seed, 0)
        if options is not None and not isinstance(options, dict):
            raise ValueError(
                "Argument `options` must be None or a dict of arguments of the corruption. "
                f"Received: options={shown(options)}"
            )
        self.corruption = corruption
        self.severity = severity
        self.severity_of = severity_of
        self.options = options
        self.rate = rate
        self.training_only = training_only
        self.resample = resample
        self.value_range = checked_range(value_range)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        with tf.init_scope():  # what the corruption refuses is refused here
            self._corrupt(tf.zeros((1, 8, 8, 3)), 0)

    def _corrupt(self, images, seed):
        function, options = CORRUPTIONS[self.corruption], dict(self.options or {})
        if self.severity_of is not None:
            options["severity_of"] = self.severity_of
        return function(images, self.severity, seed=seed, **options)

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        if self.training_only and not training:
            return inputs
        if not (training or resamples(self)):
            return self._scaled(inputs, Shared(self.seed or 0))
        noise, choice = points.split_seed(self.seed_generator.next(), 2)
        corrupted = self._scaled(inputs, noise)
        if self.rate == 1:
            return corrupted
        shape = (tf.shape(inputs)[0], 1, 1, 1)
        kept = points.keep_mask(shape, 1 - self.rate, seed=choice)
        return tf.where(kept > 0, corrupted, inputs)

    def _scaled(self, inputs, seed):
        """The corruption of images in `value_range`, instead of [0, 1]."""
        if not inputs.dtype.is_floating:
            return self._corrupt(inputs, seed)
        images = self._corrupt(as_unit(inputs, self.value_range), seed)
        return from_unit(images, self.value_range, inputs.dtype)

    def compute_output_spec(self, inputs: Tensor, training: bool = False) -> Any:
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "corruption": self.corruption,
            "severity": self.severity,
            "options": self.options,
            "rate": self.rate,
            "training_only": self.training_only,
            "resample": self.resample,
            "value_range": self.value_range,
            "seed": self.seed,
            "severity_of": self.severity_of,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        if "severity_of" not in config and config.get("severity") is not None:
            # A file of a time when there were no others, whatever the size of images.
            config = {**config, "severity_of": CIFAR}
        return super().from_config(config)
