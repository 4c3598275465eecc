"""Dropout whose masks are draws of a network (Gal and Ghahramani, ICML 2016)."""

from __future__ import annotations

import zlib
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import (
    Tensor,
    check_choice,
    check_flags,
    check_fraction,
    check_integer,
    register,
    shown,
)
from tfuq._random import points
from tfuq._random.draws import TakesDraws, current_draw
from tfuq.layers.ways import resamples, wanted_way


@register
class MCDropout(TakesDraws, keras.layers.Dropout):
    """Dropout in training and in draws of the network.

    In training it is `keras.layers.Dropout`. A prediction (`predict`, `evaluate`) is that of the
    mean network, which drops nothing. `tfuq.predictive` draws thinned networks, each with one mask
    for all examples, and averages over them, which approximates a Bayesian posterior (Gal and
    Ghahramani 2016). Batch normalization and all else predict as usual.

    Args:
        rate: Fraction of the inputs to drop, in [0, 1).
        noise_shape: Shape of the mask, as in `keras.layers.Dropout`; `None` entries are those of
            the input.
        resample: Whether each prediction drops, with a new mask.
        seed: Integer that determines the masks.
        predictive: How it predicts, unless `resample`: `"mean"`, the network without dropout, or
            `"thinned"`, one thinned network, always the same one.

    Call arguments:
        inputs: Tensor of shape `(batch, ...)`.
        training: Boolean.

    Returns:
        Tensor of the shape of `inputs`: kept values, divided by 1 - rate, and zeros.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import keras
    from tfuq.layers import MCDropout

    hidden = keras.layers.Dense(16, activation="relu")
    model = keras.Sequential([keras.Input((8,)), hidden, MCDropout(0.5), keras.layers.Dense(3)])
    ```

    See also: `tfuq.convert.mc_dropout`, `tfuq.layers.MCGaussianDropout`,
    `tfuq.predictive.predict_uncertainty`.
    """

    ways = ("mean",)

    def __init__(
        self,
        rate: float,
        noise_shape: Any = None,
        resample: bool = False,
        seed: int | None = None,
        predictive: str = "mean",
        **kwargs: Any,
    ) -> None:
        check_fraction("rate", rate)
        if rate == 1:
            raise ValueError(f"Argument `rate` must be in [0, 1). Received: rate={shown(rate)}")
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        if seed is not None:
            check_integer("seed", seed, minimum=0)
        check_choice("predictive", predictive, ("mean", "thinned"))
        check_flags(resample=resample)
        self.resample = resample
        self.predictive = predictive

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        if self.rate == 0 or (wanted_way() == "mean" and not training):
            return inputs
        if not inputs.dtype.is_floating:
            raise ValueError(
                f"The inputs must be floating point. Received: inputs of dtype {inputs.dtype.name}"
            )
        draw = current_draw()
        if draw is not None:
            seed = draw.seed_of(self)
        elif training or resamples(self):
            seed = points.split_seed(self.seed_generator.next(), 1)[0]
        elif self.predictive == "thinned":
            seed = self._fixed_seed()
        else:
            return inputs
        shape = self._mask_shape(inputs, per_example=training and draw is None)
        return inputs * points.keep_mask(shape, self.rate, seed=seed, dtype=inputs.dtype)

    def _fixed_seed(self):
        """Follows from `seed`; without one from the name, of which each layer has its own."""
        given = self.seed is not None
        number = self.seed if given else zlib.crc32(self.name.encode()) & 0x7FFFFFFF
        return tf.constant([0 if given else 1, number], "int32")

    def _mask_shape(self, inputs, per_example):
        shape = keras.ops.shape(inputs)  # static where known: a mask then depends on no batch
        given = self.noise_shape or (None,) * len(shape)
        shape = [s if g is None else g for s, g in zip(shape, given, strict=True)]
        return tf.stack(shape if per_example else [1, *shape[1:]])

    def get_config(self) -> dict[str, Any]:
        own = {"resample": self.resample, "predictive": self.predictive}
        return {**super().get_config(), **own}


@register
class MCGaussianDropout(TakesDraws, keras.layers.GaussianDropout):
    """Gaussian dropout in training and in draws of the network.

    In training it is `keras.layers.GaussianDropout`: inputs times N(1, rate / (1 - rate)). A
    prediction is that of the mean network. `tfuq.predictive` draws networks, each with one noise
    for all examples.

    Args:
        rate: As in `keras.layers.GaussianDropout`, in [0, 1).
        seed: Integer that determines the noise.

    Call arguments:
        inputs: Tensor of shape `(batch, ...)`.
        training: Boolean.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import keras
    from tfuq.layers import MCGaussianDropout

    layers = [keras.layers.Dense(16, activation="relu"), MCGaussianDropout(0.5)]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(3)])
    ```

    See also: `tfuq.layers.MCDropout`, `tfuq.convert.mc_dropout`.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        check_fraction("rate", rate)
        if rate == 1:
            raise ValueError(f"Argument `rate` must be in [0, 1). Received: rate={shown(rate)}")
        super().__init__(rate, seed=seed, **kwargs)

    def is_random(self) -> bool:
        return self.rate > 0

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        draw = current_draw()
        if draw is None or self.rate == 0:
            return super().call(inputs, training=training)
        shape = tf.stack([1, *keras.ops.shape(inputs)[1:]])
        noise = points.normal(shape, seed=draw.seed_of(self))
        scale = (self.rate / (1 - self.rate)) ** 0.5
        return inputs * tf.cast(1 + scale * noise, inputs.dtype)
