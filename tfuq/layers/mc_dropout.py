"""Dropout that stays on when predicting (Gal and Ghahramani, ICML 2016)."""

import keras
import tensorflow as tf

from tfuq._arguments import check_fraction, check_integer, register
from tfuq._random import points
from tfuq._random.draws import TakesDraws, current_draw
from tfuq.layers.ways import resamples, wanted_way


@register
class MCDropout(TakesDraws, keras.layers.Dropout):
    """Dropout in training and in prediction.

    In training it is `keras.layers.Dropout`. A prediction drops, too: one mask for all examples of
    the batch, that is, one thinned network, and by default always the same one, so that
    predictions repeat. `tfuq.predictive` draws many thinned networks and averages over them, which
    approximates a Bayesian posterior (Gal and Ghahramani 2016). Batch normalization and all else
    predict as ever.

    Args:
        rate: Fraction of the inputs to drop, in [0, 1).
        noise_shape: Shape of the mask, as in `keras.layers.Dropout`; `None` entries are those of
            the input.
        resample: Whether each prediction draws a new mask.
        seed: Integer from which the masks follow.

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
    """

    ways = ("mean",)

    def __init__(self, rate, noise_shape=None, resample=False, seed=None, **kwargs):
        check_fraction("rate", rate)
        if rate == 1:
            raise ValueError(f"Argument `rate` must be in [0, 1). Received: rate={rate!r}")
        super().__init__(rate, noise_shape=noise_shape, seed=seed, **kwargs)
        if seed is not None:
            check_integer("seed", seed, minimum=0)
        self.resample = resample

    def call(self, inputs, training=False):
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
        else:
            seed = tf.constant([0, self.seed or 0], "int32")
        shape = self._mask_shape(inputs, per_example=training and draw is None)
        return inputs * points.keep_mask(shape, self.rate, seed=seed, dtype=inputs.dtype)

    def _mask_shape(self, inputs, per_example):
        shape = keras.ops.shape(inputs)  # static where known: a mask then depends on no batch
        given = self.noise_shape or (None,) * len(shape)
        shape = [s if g is None else g for s, g in zip(shape, given, strict=True)]
        return tf.stack(shape if per_example else [1, *shape[1:]])

    def get_config(self):
        return {**super().get_config(), "resample": self.resample}
