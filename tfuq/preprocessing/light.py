"""Correction of gamma, and of uneven light from a pair of pictures with and without flash."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_fraction, check_positive, register
from tfuq._images.arithmetic import smoothed
from tfuq.preprocessing._layers import ImageLayer, computed

SATURATED = 0.99  # brightness from which a pixel no longer says how much light it got


def _power(values, exponent):
    """values^exponent of values >= 0, with a finite gradient at 0."""
    safe = tf.where(values > 0, values, 1.0)
    return tf.where(values > 0, safe**exponent, 0.0)


# --- Gamma ------------------------------------------------------------------------------------


def adjust_gamma(images: ArrayLike, gamma: float = 1.0, gain: float = 1.0) -> Tensor:
    """Images with another gamma: darker in the middle for `gamma` above 1, brighter below.

    Formula:
        new = clip(gain * old^gamma, 0, 1)
    as scikit-image's `adjust_gamma`, which does not clip floating-point images. Mishra (2020,
    section 4.5.3) corrects uneven exposure with 1.2 to 1.5.

    Args:
        images: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8, or floating
            point in [0, 1].
        gamma: Exponent, above 0.
        gain: Factor, above 0.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If the inputs are not images, or an argument is not a finite number above 0.

    Example:

    >>> import numpy as np
    >>> from tfuq.preprocessing import adjust_gamma
    >>> adjust_gamma(np.uint8([0, 128, 255]).reshape(1, 3, 1), 2.0).numpy().ravel()
    array([  0,  64, 255], dtype=uint8)

    References:
        Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020.

    See also: `tfuq.preprocessing.Gamma`, `tfuq.preprocessing.clahe`.
    """
    check_positive("gamma", gamma)
    check_positive("gain", gain)
    return computed(lambda images: gain * _power(images, gamma), images)


@register
class Gamma(ImageLayer):
    """Correction of gamma, as a layer: see `adjust_gamma`.

    Args:
        gamma: Exponent, above 0.
        gain: Factor, above 0.
        value_range: Black and white of floating-point images, `(0, 255)` as in Keras' own image
            layers; `(0, 1)` for those that were rescaled. Images of another range are refused.

    Call arguments:
        inputs: `(batch, height, width, 1 or 3)` or `(height, width, 1 or 3)`, uint8 or floating
            point.

    Returns:
        Tensor of the shape and dtype of `inputs`.

    Raises:
        ValueError: If the inputs are no images, or an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from tfuq.preprocessing import Gamma
    >>> Gamma(2.0, value_range=(0, 10))(np.float32([0, 5, 10]).reshape(1, 1, 3, 1)).numpy().ravel()
    array([ 0. ,  2.5, 10. ], dtype=float32)

    See also: `tfuq.preprocessing.adjust_gamma`, `tfuq.preprocessing.CLAHE`.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        gain: float = 1.0,
        value_range: tuple[float, float] = (0.0, 255.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(value_range, **kwargs)
        check_positive("gamma", gamma)
        check_positive("gain", gain)
        self.gamma = gamma
        self.gain = gain

    def prepare(self, images: ArrayLike) -> Tensor:
        return adjust_gamma(images, self.gamma, self.gain)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma, "gain": self.gain}


# --- Illumination -----------------------------------------------------------------------------


def correct_illumination(
    ambient: ArrayLike,
    flash: ArrayLike,
    sigma: float = 16.0,
    gamma: float = 2.2,
    threshold: float = 0.02,
) -> Tensor:
    """Corrects the ambient light of pictures to white and even.

    A second picture of the same scene, with flash, tells light from surface: the flash alone lit
    what it adds, and its light is known, so that its ratio to the ambient picture is a map of the
    ambient light (DiCarlo, Xiao and Wandell 2001). What is returned is the ambient picture over
    that map, with its shadows and colour cast gone, and without the highlights that the flash makes
    on wet skin.

    Formula, with A = ambient^gamma and F = flash^gamma, pixel by pixel and colour by colour:
        D = F - A                                              light of the flash alone
        w = 1 if D > threshold and flash < 0.99, else 0
        M = blur(w A) / blur(w D)                              ambient light
        new = (A * (sum w A / sum w D) / M)^(1 / gamma)
    with a Gaussian `blur`, and with sums over all pixels and colours of an image, which keep its
    brightness. Where no pixel within 4 `sigma` has w = 1, or where M is 0, the division is not done
    and the picture stays as it is.

    Args:
        ambient: Pictures without flash, `(batch, height, width, 1 or 3)` or `(height, width, 1 or
            3)`, uint8, or floating point in [0, 1].
        flash: Pictures with flash of the same scenes, of the same shape and dtype.
        sigma: Standard deviation of the blur in pixels, above 0: how evenly ambient light varies.
        gamma: Exponent that makes values proportional to light: 2.2 for usual pictures, 1 for raw
            ones.
        threshold: Light in [0, 1] that the flash must add to a pixel to be counted.

    Returns:
        Tensor of the shape and dtype of `ambient`.

    Raises:
        ValueError: If the inputs are not images or do not match, or an argument is out of its
            range.

    Example:

    ```python
    import numpy as np
    from tfuq.preprocessing import correct_illumination

    skin = np.random.uniform(0.2, 0.8, (1, 32, 32, 3))
    light = np.linspace(0.2, 0.8, 32)[:, None]  # a shadow on the left
    ambient = light * skin
    even = correct_illumination(ambient, ambient + 0.2 * skin, sigma=2.0, gamma=1.0)
    print(np.corrcoef(even.numpy().ravel(), skin.ravel())[0, 1])  # nearly 1
    ```

    References:
        DiCarlo, Xiao and Wandell, Illuminating Illumination, Color Imaging Conference, 2001.
        Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020, section 4.5.3.

    See also: `tfuq.preprocessing.IlluminationCorrection`, `tfuq.preprocessing.clahe`.
    """
    _check_light(sigma, gamma, threshold)

    def body(ambient, flash):
        light = _power(ambient, gamma)
        added = _power(flash, gamma) - light
        counted = tf.cast((added > threshold) & (flash < SATURATED), "float32")
        ambient_sum, flash_sum = counted * light, counted * added
        nearby = smoothed(tf.concat([ambient_sum, flash_sum], axis=-1), sigma)
        field = tf.math.divide_no_nan(*tf.split(nearby, 2, axis=-1))
        level = tf.math.divide_no_nan(
            *(tf.reduce_sum(each, (1, 2, 3), keepdims=True) for each in (ambient_sum, flash_sum))
        )
        even = tf.where(field > 0, tf.math.divide_no_nan(light * level, field), light)
        return _power(tf.minimum(even, 1.0), 1 / gamma)

    return computed(body, ambient, flash)


@register
class IlluminationCorrection(ImageLayer):
    """Even, white light from pictures without and with flash, as a layer: `correct_illumination`.

    Args:
        sigma: Standard deviation of the blur in pixels, above 0: how evenly ambient light varies.
        gamma: Exponent that makes values proportional to light: 2.2 for usual pictures, 1 for raw
            ones.
        threshold: Light in [0, 1] that the flash must add to a pixel to be counted.
        value_range: Black and white of floating-point images, `(0, 255)` as in Keras' own image
            layers; `(0, 1)` for those that were rescaled. Images of another range are refused.

    Call arguments:
        inputs: The pair `[ambient, flash]` of pictures, each `(batch, height, width, 1 or 3)` or
            `(height, width, 1 or 3)`, uint8 or floating point; or one tensor with the channels of
            both, first the ambient ones: `(..., 2 or 6)`.

    Returns:
        Tensor of the shape and dtype of the ambient pictures.

    Raises:
        ValueError: If the inputs are no such images, or an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.preprocessing import IlluminationCorrection

    ambient, flash = (keras.Input((32, 32, 3), dtype="uint8") for _ in range(2))
    model = keras.Model([ambient, flash], IlluminationCorrection(sigma=4.0)([ambient, flash]))
    pair = np.random.randint(256, size=(2, 1, 32, 32, 3), dtype="uint8")
    print(model(list(pair)).dtype)
    ```

    See also: `tfuq.preprocessing.correct_illumination`, `tfuq.preprocessing.CLAHE`.
    """

    def __init__(
        self,
        sigma: float = 16.0,
        gamma: float = 2.2,
        threshold: float = 0.02,
        value_range: tuple[float, float] = (0.0, 255.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(value_range, **kwargs)
        _check_light(sigma, gamma, threshold)
        self.sigma = sigma
        self.gamma = gamma
        self.threshold = threshold

    def prepare(self, images: ArrayLike) -> Tensor:
        return correct_illumination(*_pair(images), self.sigma, self.gamma, self.threshold)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sigma": self.sigma,
            "gamma": self.gamma,
            "threshold": self.threshold,
        }


def _pair(images):
    """The ambient and the flash pictures of what the layer takes."""
    if isinstance(images, (tuple, list)) and len(images) == 2:
        return images
    is_one = not keras.tree.is_nested(images) and images.shape.rank != 0
    if not is_one or images.shape[-1] not in (2, 6):
        received = keras.tree.map_structure(lambda each: tuple(each.shape), images)
        raise ValueError(
            "Argument `inputs` must be a pair [ambient, flash], or a tensor with the 2 or 6 "
            f"channels of both. Received: inputs of shape {received}"
        )
    return tf.split(images, 2, axis=-1)


def _check_light(sigma, gamma, threshold):
    check_positive("sigma", sigma)
    check_positive("gamma", gamma)
    check_fraction("threshold", threshold)
