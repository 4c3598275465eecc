"""Corruptions between camera and scene: snow, frost, fog, water, mud and dirt on the lens."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_fraction
from tfuq._images.arithmetic import (
    distances,
    equalized,
    filtered,
    grey,
    magnified,
    neighbourhood_max,
    plasma,
    sides,
    smoothed,
    tint,
    trailed,
)
from tfuq._images.pieces import applied
from tfuq.corruptions._registry import Suites, constant, listed, size_of, strength

SNOW = Suites(  # mean, stddev, factor, threshold, radius, sigma, mix
    (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
FROST = Suites(  # shares of scene and of ice
    ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
)
FOG = Suites(  # density, decay
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1.0, 2), (1.5, 1.75)),
    ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
)
SPATTER = Suites(  # mean, stddev, sigma, threshold, strength or sigma of the mask, whether mud
    (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1.0, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    ),
    (
        (0.65, 0.3, 4.0, 0.69, 0.6, False),
        (0.65, 0.3, 3.0, 0.68, 0.6, False),
        (0.65, 0.3, 2.0, 0.68, 0.5, False),
        (0.65, 0.3, 1.0, 0.65, 1.5, True),
        (0.67, 0.4, 1.0, 0.65, 1.5, True),
    ),
)
COVERED = (0.1, 0.2, 0.3, 0.45, 0.6)

WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
DEEPEST = 20  # pixels from the shore, from which water grows no thicker
RIME = (0.86, 0.94, 1.0)
DIRT = (0.34, 0.29, 0.22)


@listed
def snow(
    images: ArrayLike, severity: int, *, severity_of: str | None = None, seed: int | Tensor = 0
) -> Tensor:
    """Falling flakes, each image its own, on a scene that grows paler.

    Formula:
        x' = m x + (1 - m) max(x, 1.5 grey(x) + 0.5) + flakes + flakes turned by 180 degrees
    Flakes are Gaussian noise, enlarged, cut off below a threshold and blurred along a direction
    within 45 degrees of the vertical, with the numbers of CIFAR-10-C or of ImageNet-C.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import snow

    snowy = snow(np.random.rand(2, 32, 32, 3), 2, seed=1)
    ```

    References:
        Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    mean, stddev, factor, threshold, radius, sigma, mix = constant(
        images, severity, severity_of, SNOW
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
def frost(
    images: ArrayLike, severity: int, *, severity_of: str | None = None, seed: int | Tensor = 0
) -> Tensor:
    """Ice on the lens, each image its own.

    Formula:
        x' = a x + b ice
    with (a, b) = (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45) at severities 1 to 5 of
    CIFAR-10-C and (1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75) of ImageNet-C.
    CIFAR-10-C cuts the ice from six photographs. None is shipped here: what stands in for them is
    made of two plasma fractals, one for the cover and one whose contour lines are the veins of the
    crystals. Figures are thus near those on CIFAR-10-C's files, not the same.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import frost

    frozen = frost(np.random.rand(2, 32, 32, 3), 2, seed=1)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    scene, ice = constant(images, severity, severity_of, FROST)

    def body(x, noise):
        size = sides(x)
        cover = plasma(noise, *size, 1.6)
        veins = 1 - tf.abs(2 * plasma(noise, *size, 1.3) - 1)
        crystals = 0.35 + 0.35 * cover + 0.6 * veins**6
        return scene * x + ice * tf.minimum(crystals, 1.0) * tint(RIME, x)

    return applied(body, images, seed)


@listed
def fog(
    images: ArrayLike, severity: int, *, severity_of: str | None = None, seed: int | Tensor = 0
) -> Tensor:
    """Fog or haze: clouds, each image its own, that take contrast away.

    Formula:
        x' = (x + a clouds) max(x) / (max(x) + a),   clouds = plasma fractal in [0, 1]
    with a = 0.2, 0.5, 0.75, 1, 1.5 at severities 1 to 5, and clouds that grow finer (decay 3, 3,
    2.5, 2, 1.75); of ImageNet-C a = 1.5, 2, 2.5, 2.5, 3 with decays 2, 2, 1.7, 1.5, 1.4. Clouds are
    as large as the image, whatever its size.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import fog

    hazy = fog(np.random.rand(2, 32, 32, 3), 3, seed=1)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    density, decay = constant(images, severity, severity_of, FOG)

    def body(x, noise):
        white = tf.reduce_max(x, axis=(1, 2, 3), keepdims=True)
        return (x + density * plasma(noise, *sides(x), decay)) * white / (white + density)

    return applied(body, images, seed)


@listed
def spatter(
    images: ArrayLike, severity: int, *, severity_of: str | None = None, seed: int | Tensor = 0
) -> Tensor:
    """Drops on the lens, each image its own: of water at severities 1 to 3, of mud at 4 and 5.

    Formula:
        water: x' = x + a m pale,   mud: x' = (1 - m) x + m brown
    with a mask m: Gaussian noise, smoothed, where it exceeds a threshold; of water its thickness,
    which grows from the shores, in relief. The numbers are those of CIFAR-10-C or of ImageNet-C.
    Their shores of water are the edges that Canny's detector finds, here all that drops end at:
    figures are near those on their files, not the same.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import spatter

    wet = spatter(np.random.rand(2, 32, 32, 3), 2, seed=1)
    muddy = spatter(np.random.rand(2, 32, 32, 3), 4, seed=1)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    *drops, threshold, strong, is_mud = constant(images, severity, severity_of, SPATTER)
    mean, stddev, sigma = drops

    def body(x, noise):
        _, height, width, _ = size_of(x)
        liquid = smoothed(mean + stddev * noise.normal(height, width, 1), sigma)
        if is_mud:
            mask = smoothed(tf.cast(liquid > threshold, "float32"), strong)
            mask = tf.where(mask < 0.8, 0.0, mask)
            return (1 - mask) * x + mask * tint(MUD, x)
        liquid = tf.floor(255 * tf.where(liquid < threshold, 0.0, liquid))
        mask = liquid * _relief(liquid)
        most = tf.reduce_max(mask, axis=(1, 2, 3), keepdims=True)
        return x + strong * tf.math.divide_no_nan(mask, most) * tint(WATER, x)

    return applied(body, images, seed)


def _relief(liquid):
    """Heights of water `(batch, height, width, 1)`: of the distance from the shore, lit aslant."""
    is_shore = (liquid > 0) & (-neighbourhood_max(-liquid) <= 0)
    distance = tf.minimum(distances(is_shore, DEEPEST), float(DEEPEST))
    box = np.full((3, 3), 1 / 9)
    heights = equalized(tf.floor(filtered(distance, box, "reflect") + 1e-4), DEEPEST + 1)
    slanted = filtered(heights, [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], "reflect")
    return filtered(tf.clip_by_value(slanted, 0.0, 255.0), box, "reflect")


@listed
def dirty_lens(
    images: ArrayLike,
    severity: int | None = None,
    *,
    amount: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Smears of dirt on the lens, each image its own, which hide what is behind them.

    Formula:
        x' = x + 0.75 m (dirt - x)
    with the colour of dirt, a dark brown, and a mask m in [0, 1] with soft edges: the heights of a
    plasma fractal. They cover 10, 20, 30, 45 and 60 % of the image at severities 1 to 5.
    CIFAR-10-C has no dirt (`spatter` is its nearest); the kind is that of CURE-TSR, which lays
    pictures over the image, and the numbers are our own.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5; None if `amount` is given.
        amount: Fraction of the image that is covered, in [0, 1].
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

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

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    amount = strength(images, severity, severity_of, COVERED, amount=amount)
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
