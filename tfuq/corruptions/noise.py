"""Noise of sensors: Gaussian, shot, impulse and speckle."""

from __future__ import annotations

import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_flags, check_fraction, check_positive
from tfuq._images.pieces import applied
from tfuq.corruptions._registry import Suites, listed, size_of, strength

GAUSSIAN = Suites((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38))
PHOTONS = Suites((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
IMPULSES = Suites((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
SPECKLES = Suites((0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6))


@listed
def gaussian_noise(
    images: ArrayLike,
    severity: int | None = None,
    *,
    stddev: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Adds independent Gaussian noise to every value.

    Formula:
        x' = x + stddev * z,   z ~ N(0, 1)
    with stddev 0.04, 0.06, 0.08, 0.09, 0.10 at severities 1 to 5 of CIFAR-10-C and 0.08, 0.12,
    0.18, 0.26, 0.38 of ImageNet-C.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `stddev` is given.
        stddev: Standard deviation, where the images reach from 0 to 1.
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
    from tfuq.corruptions import gaussian_noise

    images = np.random.rand(2, 32, 32, 3)
    noisy = gaussian_noise(images, 3, seed=1)
    slightly = gaussian_noise(images, stddev=0.01)
    ```

    References:
        Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.noise_settings`.
    """
    stddev = strength(images, severity, severity_of, GAUSSIAN, stddev=stddev)
    check_positive("stddev", stddev)
    return applied(lambda x, noise: x + stddev * noise.normal(*size_of(x)[1:]), images, seed)


@listed
def shot_noise(
    images: ArrayLike,
    severity: int | None = None,
    *,
    photons: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Poisson noise of light that comes in few photons.

    Formula:
        x' = Poisson(photons * x) / photons
    with 500, 250, 100, 75, 50 photons for white at severities 1 to 5 of CIFAR-10-C and 60, 25, 12,
    5, 3 of ImageNet-C. It passes no gradient on, and XLA has no kernel for it.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `photons` is given.
        photons: Mean number of photons of a white value.
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
    from tfuq.corruptions import shot_noise

    noisy = shot_noise(np.random.rand(2, 32, 32, 3), 3)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.noise_settings`.
    """
    photons = strength(images, severity, severity_of, PHOTONS, photons=photons)
    check_positive("photons", photons)
    return applied(lambda x, noise: noise.poisson(x * photons) / photons, images, seed)


@listed
def impulse_noise(
    images: ArrayLike,
    severity: int | None = None,
    *,
    amount: float | None = None,
    salt: float = 0.5,
    whole_pixels: bool = False,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Salt and pepper: some values become 1 (salt) or 0 (pepper).

    Severities 1 to 5 of CIFAR-10-C hit 1, 2, 3, 5 and 7 % of the values, each channel by itself,
    those of ImageNet-C 3, 6, 9, 17 and 27 %. Mishra (2020,
    section 5.1) hits whole pixels, 1 to 5 and 15 % of them, with three times as much black as
    white: `impulse_noise(images, amount=0.05, salt=0.25, whole_pixels=True)`.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `amount` is given.
        amount: Expected fraction of the values, or pixels, that are hit, in [0, 1].
        salt: Fraction of those hit that become white, in [0, 1].
        whole_pixels: Whether all channels of a pixel are hit together.
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
    from tfuq.corruptions import impulse_noise

    images = np.random.randint(256, size=(2, 32, 32, 3), dtype="uint8")
    noisy = impulse_noise(images, 5)
    specks = impulse_noise(images, amount=0.15, salt=0.25, whole_pixels=True)
    ```

    References:
        - Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).
        - Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020, section 5.1.

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.noise_settings`.
    """
    amount = strength(images, severity, severity_of, IMPULSES, amount=amount)
    check_fraction("amount", amount)
    check_fraction("salt", salt)
    check_flags(whole_pixels=whole_pixels)

    def body(x, noise):
        _, height, width, channels = size_of(x)
        hit = noise.uniform(height, width, 1 if whole_pixels else channels)
        x = tf.where(hit < amount, 0.0, x)
        return tf.where(hit < amount * salt, 1.0, x)

    return applied(body, images, seed)


@listed
def speckle_noise(
    images: ArrayLike,
    severity: int | None = None,
    *,
    stddev: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Gaussian noise in proportion to the brightness, as of radar and ultrasound.

    Formula:
        x' = x + x * stddev * z,   z ~ N(0, 1)
    with stddev 0.06, 0.1, 0.12, 0.16, 0.2 at severities 1 to 5 of CIFAR-10-C and 0.15, 0.2, 0.35,
    0.45, 0.6 of ImageNet-C.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `stddev` is given.
        stddev: Standard deviation of the factor.
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
    from tfuq.corruptions import speckle_noise

    noisy = speckle_noise(np.random.rand(2, 32, 32, 1), 3)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.noise_settings`.
    """
    stddev = strength(images, severity, severity_of, SPECKLES, stddev=stddev)
    check_positive("stddev", stddev)
    return applied(lambda x, noise: x + x * stddev * noise.normal(*size_of(x)[1:]), images, seed)
