"""Blur of optics and movement: Gaussian, defocus, motion and zoom."""

import math
import numbers

import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, check_positive, shown
from tfuq._images.arithmetic import disk, filtered, gaussian_weights, magnified, streaked, trailed
from tfuq._images.pieces import applied
from tfuq.corruptions._registry import constant, listed, strength


@listed
def gaussian_blur(images, severity=None, *, sigma=None, kernel_size=None, seed=0):
    """Soft focus: a Gaussian filter, the same in all directions.

    At severities 1 to 5 sigma is 0.4, 0.6, 0.7, 0.8 and 1 pixels, whatever the size of the images,
    and the filter reaches to 4 sigma. Mishra (2020, section 5.1) blurs with kernels of 3 x 3
    (CIFAR-10), 5 x 5 and 7 x 7, whose sigma is not told; with `kernel_size` it is OpenCV's
    0.3 ((kernel_size - 1) / 2 - 1) + 0.8, unless `sigma` is given.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `sigma` or `kernel_size` is given.
        sigma: Standard deviation of the filter in pixels.
        kernel_size: Odd number of pixels that the filter is wide.
        seed: Not used: nothing is random here.

    Returns:
        Tensor of the shape and dtype of `images`. Edges are repeated beyond the border.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import gaussian_blur

    images = np.random.rand(2, 32, 32, 3)
    soft = gaussian_blur(images, 5)
    isotropic = gaussian_blur(images, kernel_size=3)
    ```

    References:
        - Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions
          and Perturbations, ICLR 2019 (CIFAR-10-C).
        - Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020, section 5.1.
    """
    if kernel_size is None:
        sigma = strength(severity, (0.4, 0.6, 0.7, 0.8, 1.0), sigma=sigma)
        check_positive("sigma", sigma)
        radius = int(4 * sigma + 0.5)
    else:
        strength(severity, (), kernel_size=kernel_size)
        radius = _radius(kernel_size)
        sigma = 0.3 * (radius - 1) + 0.8 if sigma is None else sigma
        check_positive("sigma", sigma)
    weights = gaussian_weights(sigma, radius)

    def body(x, noise):
        return filtered(filtered(x, weights[:, None], "edge"), weights[None], "edge")

    return applied(body, images, seed)


@listed
def defocus_blur(images, severity=None, *, radius=None, seed=0):
    """Blur of a lens out of focus: the mean over a disk.

    At severities 1 to 5 the radius is 0.3, 0.4, 0.5, 1 and 1.5 pixels, whatever the size of the
    images, and the disk is smoothed by a 3 x 3 Gaussian of sigma 0.4, 0.5, 0.6, 0.2 and 0.1; with
    `radius`, sigma is 0.5. (Below a radius of 1 that Gaussian is all there is.)

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `radius` is given.
        radius: Radius of the disk in pixels.
        seed: Not used: nothing is random here.

    Returns:
        Tensor of the shape and dtype of `images`. Images are mirrored at the border.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import defocus_blur

    images = np.random.rand(2, 32, 32, 3)
    blurred = defocus_blur(images, 4)
    wide = defocus_blur(images, radius=6)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).
    """
    radius = strength(severity, (0.3, 0.4, 0.5, 1.0, 1.5), radius=radius)
    check_positive("radius", radius)
    sigma = 0.5 if severity is None else constant(severity, (0.4, 0.5, 0.6, 0.2, 0.1))
    kernel = disk(radius, sigma)
    return applied(lambda x, noise: filtered(x, kernel, "reflect"), images, seed)


@listed
def motion_blur(images, severity=None, *, kernel_size=None, angle=None, seed=0):
    """Blur of a camera that moves: the mean along a line.

    Severities 1 to 5 trail off like half a Gaussian of sigma 1, 1.5, 2, 2 and 2.5 pixels, cut off
    after 12, 12, 12, 16 and 18 pixels, whatever the size of the images; each image moves in a
    direction of its own, uniform within 45 degrees of the horizontal. With `kernel_size` the mean
    is even over a line through the pixel, by default the diagonal: the anisotropic blur of Mishra
    (2020, sections 5.1 and 5.2.5), who takes 3 pixels for CIFAR-10 and 7 for larger images.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `kernel_size` is given.
        kernel_size: Odd number of pixels of the line.
        angle: Direction in degrees, clockwise from the right; by default random for severities,
            and 45, from top left to bottom right, for `kernel_size`.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`. Edges are repeated beyond the border.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import motion_blur

    images = np.random.rand(2, 32, 32, 3)
    moved = motion_blur(images, 3, seed=1)
    anisotropic = motion_blur(images, kernel_size=3)
    ```

    References:
        - Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).
        - Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020, chapter 5.
    """
    if angle is not None and not (isinstance(angle, numbers.Real) and math.isfinite(angle)):
        raise ValueError(
            f"Argument `angle` must be a finite number or None. Received: angle={shown(angle)}"
        )
    if kernel_size is not None:
        strength(severity, (), kernel_size=kernel_size)
        radius = _radius(kernel_size)
        angle = math.radians(45.0 if angle is None else angle)
        steps = line(np.arange(-radius, radius + 1), angle)
        weights = np.full(kernel_size, 1 / kernel_size)
        return applied(lambda x, noise: streaked(x, weights, steps), images, seed)
    trail = constant(severity, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)))

    def body(x, noise):
        if angle is None:
            return trailed(x, *trail, noise.uniform(low=-math.pi / 4, high=math.pi / 4))
        return trailed(x, *trail, tf.constant([math.radians(angle)]))

    return applied(body, images, seed)


def line(distances, angle):
    """Steps `(1, count, 2)` along a line from row to row or column to column: 45 is diagonal."""
    direction = np.array([math.sin(angle), math.cos(angle)])
    direction /= np.abs(direction).max()
    return tf.constant(distances[:, None] * direction, "float32")[None]


@listed
def zoom_blur(images, severity=None, *, max_factor=None, seed=0):
    """Blur of a lens that zooms in: the mean over enlarged images, and the image itself.

    Formula:
        x' = (x + sum_{k=0}^{n} zoom(x, 1 + k / 100)) / (n + 2)
    with factors up to 1.06, 1.11, 1.15, 1.20 and 1.25 at severities 1 to 5, relative to the size of
    the images. (CIFAR-10-C zooms by cutting off whole pixels, which leaves images of 32 x 32 as
    they are below 1.03; here the zoom is continuous.)

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `max_factor` is given.
        max_factor: The largest factor, at least 1.01; rounded to hundredths.
        seed: Not used: nothing is random here.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are none, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import zoom_blur

    zoomed = zoom_blur(np.random.rand(2, 32, 32, 3), 5)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).
    """
    largest = strength(severity, (1.06, 1.11, 1.15, 1.2, 1.25), max_factor=max_factor)
    check_positive("max_factor", largest)
    if largest < 1.01:
        raise ValueError(
            f"Argument `max_factor` must be at least 1.01. Received: max_factor={shown(max_factor)}"
        )
    factors = 1 + np.arange(round(100 * (largest - 1)) + 1) / 100

    def body(x, noise):
        return sum(magnified(x, factors[1:]), 2 * x) / (len(factors) + 1)  # the first one is 1

    return applied(body, images, seed)


def _radius(kernel_size):
    check_integer("kernel_size", kernel_size, 1)
    if kernel_size % 2 == 0:
        raise ValueError(
            f"Argument `kernel_size` must be odd. Received: kernel_size={shown(kernel_size)}"
        )
    return kernel_size // 2
