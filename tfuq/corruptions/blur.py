"""Blur of optics and movement: Gaussian, defocus, motion and zoom."""

from __future__ import annotations

import math
import numbers

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_integer, check_positive, shown
from tfuq._images.arithmetic import disk, filtered, magnified, smoothed, streaked, trailed
from tfuq._images.pieces import applied
from tfuq.corruptions._registry import Suites, constant, listed, size_of, strength

GAUSSIAN = Suites((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0))  # pixels
DEFOCUS = Suites(  # radius, sigma
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
)
TRAILS = Suites(  # half of the length, sigma
    ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
    ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
)
ZOOMS = Suites(  # largest factor, step: what NumPy's rounding makes of the published ranges
    ((1.06, 0.01), (1.11, 0.01), (1.15, 0.01), (1.2, 0.01), (1.25, 0.01)),
    ((1.11, 0.01), (1.15, 0.01), (1.2, 0.02), (1.24, 0.02), (1.3, 0.03)),
)
GLASS = Suites(  # sigma, longest shift, times
    ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
)
DOUBLINGS = 8  # of how far a chain of pixels is followed: none has 256


@listed
def gaussian_blur(
    images: ArrayLike,
    severity: int | None = None,
    *,
    sigma: float | None = None,
    kernel_size: int | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Soft focus: a Gaussian filter, the same in all directions.

    At severities 1 to 5 sigma is 0.4, 0.6, 0.7, 0.8 and 1 pixels (ImageNet-C: 1, 2, 3, 4 and 6),
    and the filter reaches to 4 sigma. Mishra (2020, section 5.1) blurs with kernels of 3 x 3
    (CIFAR-10), 5 x 5 and 7 x 7, whose sigma is not told; with `kernel_size` it is OpenCV's 0.3
    ((kernel_size - 1) / 2 - 1) + 0.8, unless `sigma` is given.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `sigma` or `kernel_size` is given.
        sigma: Standard deviation of the filter in pixels.
        kernel_size: Odd number of pixels that the filter is wide.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Not used: nothing is random here.

    Returns:
        Tensor of the shape and dtype of `images`. Edges are repeated beyond the border.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

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

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    if kernel_size is None:
        sigma = strength(images, severity, severity_of, GAUSSIAN, sigma=sigma)
        check_positive("sigma", sigma)
        radius = int(4 * sigma + 0.5)
    else:
        strength(images, severity, severity_of, (), kernel_size=kernel_size)
        radius = _radius(kernel_size)
        sigma = 0.3 * (radius - 1) + 0.8 if sigma is None else sigma
        check_positive("sigma", sigma)
    return applied(lambda x, noise: smoothed(x, sigma, radius), images, seed)


@listed
def defocus_blur(
    images: ArrayLike,
    severity: int | None = None,
    *,
    radius: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Blur of a lens out of focus: the mean over a disk.

    At severities 1 to 5 the radius is 0.3, 0.4, 0.5, 1 and 1.5 pixels, and the disk is smoothed by
    a 3 x 3 Gaussian of sigma 0.4, 0.5, 0.6, 0.2 and 0.1 (below a radius of 1 that is all there is).
    Those of ImageNet-C have radii of 3, 4, 6, 8 and 10 and sigma 0.1 at severity 1, then 0.5, in 5
    x 5 pixels for radii above 8. With `radius`, sigma is 0.5.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `radius` is given.
        radius: Radius of the disk in pixels.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Not used: nothing is random here.

    Returns:
        Tensor of the shape and dtype of `images`. Images are mirrored at the border.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

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

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    if radius is None:
        radius, sigma = constant(images, severity, severity_of, DEFOCUS)
    else:
        radius, sigma = strength(images, severity, severity_of, (), radius=radius), 0.5
    check_positive("radius", radius)
    kernel = disk(radius, sigma)
    return applied(lambda x, noise: filtered(x, kernel, "reflect"), images, seed)


@listed
def motion_blur(
    images: ArrayLike,
    severity: int | None = None,
    *,
    kernel_size: int | None = None,
    angle: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Blur of a camera that moves: the mean along a line.

    Severities 1 to 5 trail off like half a Gaussian of sigma 1, 1.5, 2, 2 and 2.5 pixels, cut off
    after 12, 12, 12, 16 and 18 pixels (ImageNet-C: sigma 3, 5, 8, 12 and 15, after 20, 30, 30, 30
    and 40); each image moves in a direction of its own, uniform within 45 degrees of the
    horizontal. With `kernel_size` the mean is even over a line through the pixel, by default the
    diagonal: the anisotropic blur of Mishra (2020, sections 5.1 and 5.2.5), who takes 3 pixels for
    CIFAR-10 and 7 for larger images.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `kernel_size` is given.
        kernel_size: Odd number of pixels of the line.
        angle: Direction in degrees, clockwise from the right; by default random for severities,
            and 45, from top left to bottom right, for `kernel_size`.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`. Edges are repeated beyond the border.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

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

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    if angle is not None and not (isinstance(angle, numbers.Real) and math.isfinite(angle)):
        raise ValueError(
            f"Argument `angle` must be a finite number or None. Received: angle={shown(angle)}"
        )
    if kernel_size is not None:
        strength(images, severity, severity_of, (), kernel_size=kernel_size)
        radius = _radius(kernel_size)
        angle = math.radians(45.0 if angle is None else angle)
        steps = line(np.arange(-radius, radius + 1), angle)
        weights = np.full(kernel_size, 1 / kernel_size)
        return applied(lambda x, noise: streaked(x, weights, steps), images, seed)
    trail = constant(images, severity, severity_of, TRAILS)

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
def zoom_blur(
    images: ArrayLike,
    severity: int | None = None,
    *,
    max_factor: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Blur of a lens that zooms in: the mean over enlarged images, and the image itself.

    Formula:
        x' = (x + sum_{k=0}^{n} zoom(x, 1 + k / 100)) / (n + 2)
    with factors up to 1.06, 1.11, 1.15, 1.20 and 1.25 at severities 1 to 5, relative to the size of
    the images; those of ImageNet-C are 1.11 and 1.15, 1.20 and 1.24 in steps of 2 / 100, and 1.30
    in steps of 3 / 100. (CIFAR-10-C zooms by cutting off whole pixels, which leaves images of 32 x
    32 as they are below 1.03; here the zoom is continuous.)

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `max_factor` is given.
        max_factor: The largest factor, at least 1.01; rounded to hundredths.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Not used: nothing is random here.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import zoom_blur

    zoomed = zoom_blur(np.random.rand(2, 32, 32, 3), 5)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    if max_factor is None:
        largest, step = constant(images, severity, severity_of, ZOOMS)
    else:
        largest, step = strength(images, severity, severity_of, (), max_factor=max_factor), 0.01
    check_positive("max_factor", largest)
    if largest < 1.01:
        raise ValueError(
            f"Argument `max_factor` must be at least 1.01. Received: max_factor={shown(max_factor)}"
        )
    factors = 1 + step * np.arange(round((largest - 1) / step) + 1)

    def body(x, noise):
        return sum(magnified(x, factors[1:]), 2 * x) / (len(factors) + 1)  # the first one is 1

    return applied(body, images, seed)


@listed
def glass_blur(
    images: ArrayLike, severity: int, *, severity_of: str | None = None, seed: int | Tensor = 0
) -> Tensor:
    """A pane of frosted glass: pixels change places with near ones, between two soft filters.

    A Gaussian filter, a shuffle, and the filter again, with sigma 0.05, 0.25, 0.4, 0.25 and 0.4
    pixels, shifts of up to 1 pixel and 1, 1, 1, 2 and 2 rounds at severities 1 to 5; those of
    ImageNet-C have sigma 0.7, 0.9, 1, 1.1 and 1.5, shifts of up to 1, 2, 2, 3 and 4, and 2, 1, 3, 2
    and 2 rounds. In a round each pixel, from the last to the first, takes the value that another
    one near it has by then: the published code was to swap them, but copies, and so does this.

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
    from tfuq.corruptions import glass_blur

    behind_glass = glass_blur(np.random.rand(2, 32, 32, 3), 3, seed=1)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    sigma, longest, rounds = constant(images, severity, severity_of, GLASS)

    def body(x, noise):
        x = smoothed(x, sigma)
        batch, height, width, channels = size_of(x)
        flat = tf.reshape(x, (batch, height * width, channels))
        for _ in range(rounds):
            source = sources(noise.uniform(height, width, 2), longest)
            source += tf.zeros((batch, 1), "int32")  # the same for all images, or of each
            flat = tf.gather(flat, source, axis=1, batch_dims=1)
        return smoothed(tf.reshape(flat, tf.shape(x)), sigma)

    return applied(body, images, seed)


def sources(numbers, longest):
    """Where pixels get their value from, `(batch, height * width)`, as one loop over them says.

    The loop goes from the last pixel to the first and leaves `longest` at the borders out. A pixel
    whose value comes from one that was there before has the value that this one got.

    Args:
        numbers: `(batch, height, width, 2)` in [0, 1): the shifts, from -longest to longest - 1.
    """
    height, width = tf.shape(numbers)[1], tf.shape(numbers)[2]
    shift = tf.cast(tf.floor(2.0 * longest * numbers), "int32") - longest
    row, column = tf.range(height)[:, None], tf.range(width)
    moves = (row > longest) & (row <= height - longest)
    moves &= (column > longest) & (column <= width - longest)
    own = row * width + column
    other = own + shift[..., 0] * width + shift[..., 1]
    taken = tf.where(moves, other, own)
    flat = tf.reshape(taken, (tf.shape(numbers)[0], height * width))
    if longest == 1:
        return flat  # shifts go up and left only, where no pixel was there before
    own = tf.reshape(own, (1, height * width))
    before = tf.where(flat > own, flat, own)  # the next of a chain, whose end is its own
    for _ in range(DOUBLINGS):
        before = tf.gather(before, before, axis=1, batch_dims=1)
    return tf.gather(flat, before, axis=1, batch_dims=1)


def _radius(kernel_size):
    check_integer("kernel_size", kernel_size, 1)
    if kernel_size % 2 == 0:
        raise ValueError(
            f"Argument `kernel_size` must be odd. Received: kernel_size={shown(kernel_size)}"
        )
    return kernel_size // 2
