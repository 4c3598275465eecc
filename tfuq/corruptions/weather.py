"""Corruptions between camera and scene: snow, frost, fog, and dirt on the lens."""

import math

import tensorflow as tf

from tfuq._arguments import check_fraction
from tfuq._images.arithmetic import grey, magnified, plasma, sides, tint, trailed
from tfuq._images.pieces import applied
from tfuq.corruptions._registry import constant, listed, size_of, strength

RIME = (0.86, 0.94, 1.0)
DIRT = (0.34, 0.29, 0.22)


@listed
def snow(images, severity, *, seed=0):
    """Falling flakes, each image its own, on a scene that grows paler.

    Formula:
        x' = m x + (1 - m) max(x, 1.5 grey(x) + 0.5) + flakes + flakes turned by 180 degrees
    Flakes are Gaussian noise, enlarged, cut off below a threshold and blurred along a direction
    within 45 degrees of the vertical, with the numbers of CIFAR-10-C. They are as many pixels long
    in images of any size.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import snow

    snowy = snow(np.random.rand(2, 32, 32, 3), 2, seed=1)
    ```

    References:
        Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019 (CIFAR-10-C).
    """
    mean, stddev, factor, threshold, radius, sigma, mix = constant(
        severity,
        (
            (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    )

    def body(x, noise):
        _, height, width, _ = size_of(x)
        (flakes,) = magnified(mean + stddev * noise.normal(height, width, 1), [factor])
        flakes = tf.where(flakes < threshold, 0.0, tf.minimum(flakes, 1.0))
        angles = noise.uniform(low=-0.75 * math.pi, high=-0.25 * math.pi)
        flakes = trailed(flakes, radius, sigma, angles)
        pale = mix * x + (1 - mix) * tf.maximum(x, 1.5 * grey(x) + 0.5)
        return pale + flakes + tf.reverse(flakes, axis=[1, 2])

    return applied(body, images, seed)


@listed
def frost(images, severity, *, seed=0):
    """Ice on the lens, each image its own.

    Formula:
        x' = a x + b ice
    with (a, b) = (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45) at severities 1 to 5.
    CIFAR-10-C cuts the ice from six photographs. None is shipped here: what stands in for them is
    made of two plasma fractals, one for the cover and one whose contour lines are the veins of the
    crystals. Figures are thus near those on CIFAR-10-C's files, not the same.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import frost

    frozen = frost(np.random.rand(2, 32, 32, 3), 2, seed=1)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).
    """
    scene, ice = constant(severity, ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)))

    def body(x, noise):
        size = sides(x)
        cover = plasma(noise, *size, 1.6)
        veins = 1 - tf.abs(2 * plasma(noise, *size, 1.3) - 1)
        crystals = 0.35 + 0.35 * cover + 0.6 * veins**6
        return scene * x + ice * tf.minimum(crystals, 1.0) * tint(RIME, x)

    return applied(body, images, seed)


@listed
def fog(images, severity, *, seed=0):
    """Fog or haze: clouds, each image its own, that take contrast away.

    Formula:
        x' = (x + a clouds) max(x) / (max(x) + a),   clouds = plasma fractal in [0, 1]
    with a = 0.2, 0.5, 0.75, 1, 1.5 at severities 1 to 5, and clouds that grow finer (decay 3, 3,
    2.5, 2, 1.75). Clouds are as large as the image, whatever its size.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import fog

    hazy = fog(np.random.rand(2, 32, 32, 3), 3, seed=1)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).
    """
    density, decay = constant(severity, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1.0, 2), (1.5, 1.75)))

    def body(x, noise):
        white = tf.reduce_max(x, axis=(1, 2, 3), keepdims=True)
        return (x + density * plasma(noise, *sides(x), decay)) * white / (white + density)

    return applied(body, images, seed)


@listed
def dirty_lens(images, severity=None, *, amount=None, seed=0):
    """Smears of dirt on the lens, each image its own, which hide what is behind them.

    Formula:
        x' = x + 0.75 m (dirt - x)
    with the colour of dirt, a dark brown, and a mask m in [0, 1] with soft edges: the heights of a
    plasma fractal. They cover 10, 20, 30, 45 and 60 % of the image at severities 1 to 5.
    CIFAR-10-C has no dirt ("spatter" is its nearest); the kind is that of CURE-TSR, which lays
    pictures over the image, and the numbers are our own.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5; None if `amount` is given.
        amount: Fraction of the image that is covered, in [0, 1].
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import dirty_lens

    images = np.random.rand(2, 32, 32, 3)
    dirty = dirty_lens(images, 2, seed=1)
    half = dirty_lens(images, amount=0.5)
    ```

    References:
        Temel et al., CURE-TSR: Challenging Unreal and Real Environments for Traffic Sign
        Recognition, NIPS workshop on machine learning for intelligent transportation systems, 2017.
    """
    amount = strength(severity, (0.1, 0.2, 0.3, 0.45, 0.6), amount=amount)
    check_fraction("amount", amount)

    def body(x, noise):
        height, width = sides(x)
        relief = plasma(noise, height, width, 1.6)
        heights = tf.sort(tf.reshape(relief, (-1, height * width)), axis=-1)
        shore = round((1 - amount) * (height * width - 1))
        rise = (relief - heights[:, shore, None, None, None]) / 0.08
        mask = tf.clip_by_value(rise, 0.0, 1.0)
        return x + 0.75 * mask * (tint(DIRT, x) - x)

    return applied(body, images, seed)
