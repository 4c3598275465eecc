"""Digital corruptions: brightness, contrast, colour, warps, blocks, JPEG."""

from __future__ import annotations

import numbers

import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_fraction, check_integer, shown
from tfuq._images.arithmetic import grey, sides, warped
from tfuq._images.pieces import applied
from tfuq.corruptions._grids import barycentric, blocks, smooth_field
from tfuq.corruptions._registry import Suites, constant, listed, strength

BRIGHTNESS = Suites((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
CONTRAST = Suites((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
GREYNESS = (0.2, 0.4, 0.6, 0.8, 1.0)
SATURATION = Suites(  # factor, what is added
    ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
    ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
)
WRITTEN = 244 / 224  # the side that ImageNet-C's code has, for images of 224
ELASTIC = Suites(  # alpha, sigma, reach, as parts of the shorter side
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    tuple(
        tuple(WRITTEN * number for number in numbers)
        for numbers in (
            *((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02)),
            *((0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        )
    ),
)
SCALES = Suites((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
QUALITIES = Suites((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))


@listed
def brightness(
    images: ArrayLike,
    severity: int | None = None,
    *,
    amount: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Exposure: too bright, or with a negative `amount` too dark.

    Formula:
        V' = clip(V + amount, 0, 1),   x' = x V' / V,   V = the largest channel
    that is, the value of HSV is moved, with hue and saturation kept. The amount is 0.05, 0.1, 0.15,
    0.2, 0.3 at severities 1 to 5 of CIFAR-10-C and 0.1, 0.2, 0.3, 0.4, 0.5 of ImageNet-C.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `amount` is given.
        amount: What is added, in [-1, 1].
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
    from tfuq.corruptions import brightness

    images = np.random.rand(2, 32, 32, 3)
    bright = brightness(images, 3)
    dark = brightness(images, amount=-0.3)
    ```

    References:
        Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    amount = strength(images, severity, severity_of, BRIGHTNESS, amount=amount)
    if not isinstance(amount, numbers.Real) or not -1 <= amount <= 1:
        raise ValueError(f"Argument `amount` must be in [-1, 1]. Received: amount={shown(amount)}")

    def body(x, noise):
        value = tf.reduce_max(x, axis=-1, keepdims=True)
        new = tf.clip_by_value(value + amount, 0.0, 1.0)
        return tf.where(value > 0, x * tf.math.divide_no_nan(new, value), new)

    return applied(body, images, seed)


@listed
def contrast(
    images: ArrayLike,
    severity: int | None = None,
    *,
    factor: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Less contrast: values move towards the image's mean of their channel.

    Formula:
        x' = mean + factor (x - mean)
    with factor 0.75, 0.5, 0.4, 0.3, 0.15 at severities 1 to 5 of CIFAR-10-C and 0.4, 0.3, 0.2, 0.1,
    0.05 of ImageNet-C.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `factor` is given.
        factor: Fraction of the contrast that is left, in [0, 1].
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
    from tfuq.corruptions import contrast

    flat = contrast(np.random.rand(2, 32, 32, 3), 3)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    factor = strength(images, severity, severity_of, CONTRAST, factor=factor)
    check_fraction("factor", factor)

    def body(x, noise):
        mean = tf.reduce_mean(x, axis=(1, 2), keepdims=True)
        return mean + factor * (x - mean)

    return applied(body, images, seed)


@listed
def decolor(
    images: ArrayLike,
    severity: int | None = None,
    *,
    amount: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Less colour, down to none; grey images stay as they are.

    Formula:
        x' = x + amount (grey - x),   grey = 0.299 red + 0.587 green + 0.114 blue
    with amount 0.2, 0.4, 0.6, 0.8, 1 at severities 1 to 5. The numbers are our own: CIFAR-10-C has
    `saturate`, which takes colour away at severities 1 and 2 and adds some above.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5; None if `amount` is given.
        amount: Fraction of the colour that goes, in [0, 1].
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
    from tfuq.corruptions import decolor

    images = np.random.rand(2, 32, 32, 3)
    print(np.ptp(decolor(images, 5), axis=-1).max())  # no colour is left
    ```

    References:
        Temel et al., CURE-TSR: Challenging Unreal and Real Environments for Traffic Sign
        Recognition, NIPS workshop on machine learning for intelligent transportation systems, 2017.

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    amount = strength(images, severity, severity_of, GREYNESS, amount=amount)
    check_fraction("amount", amount)
    return applied(lambda x, noise: x + amount * (grey(x) - x), images, seed)


@listed
def saturate(
    images: ArrayLike, severity: int, *, severity_of: str | None = None, seed: int | Tensor = 0
) -> Tensor:
    """Another saturation: colours too weak or too strong; grey images stay as they are.

    Formula:
        S' = clip(a S + b, 0, 1),   x' = V - (V - x) S' / S
    with the saturation S and value V of HSV, and (a, b) = (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1),
    (2.5, 0.2) at severities 1 to 5; of ImageNet-C the last three are (2, 0), (5, 0.1), (20, 0.2).
    As in CIFAR-10-C, a grey pixel of a colour image counts as red.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        severity: Integer from 1 to 5.
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
    from tfuq.corruptions import saturate

    gaudy = saturate(np.random.rand(2, 32, 32, 3), 5)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    factor, added = constant(images, severity, severity_of, SATURATION)

    def body(x, noise):
        if x.shape[-1] == 1:
            return x
        value = tf.reduce_max(x, axis=-1, keepdims=True)
        # V - x is proportional to V S, and of red with S = 1 it is (0, V, V).
        away = value - x
        spread = tf.reduce_max(away, axis=-1, keepdims=True)
        red = tf.constant([0.0, 1.0, 1.0]) * value
        unit = tf.where(spread > 0, value * tf.math.divide_no_nan(away, spread), red)
        saturation = tf.math.divide_no_nan(spread, value)
        return value - unit * tf.clip_by_value(factor * saturation + added, 0.0, 1.0)

    return applied(body, images, seed)


# --- Geometry ---------------------------------------------------------------------------------


@listed
def elastic_transform(
    images: ArrayLike, severity: int, *, severity_of: str | None = None, seed: int | Tensor = 0
) -> Tensor:
    """Pulls the image about like rubber, each image its own way.

    A random affine map moves three points by up to r, and a smooth random field, uniform noise
    smoothed by a Gaussian of width sigma, times alpha, moves every pixel. With s the shorter side,
    (alpha, sigma, r) / s = (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
    (0.1, 0.03, 0.03) at severities 1 to 5 of CIFAR-10-C, and 244 / 224 times (2, 0.7, 0.1), (2,
    0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02) of ImageNet-C.
    (CIFAR-10-C interpolates for the affine map and then again for the field, here once for both.)

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5.
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the nearer size.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.

    Returns:
        Tensor of the shape and dtype of `images`. Images are mirrored at the border.

    Raises:
        ValueError: If `images` are not images, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import elastic_transform

    bent = elastic_transform(np.random.rand(2, 32, 32, 3), 4, seed=1)
    ```

    References:
        - Simard et al., Best Practices for Convolutional Neural Networks, ICDAR 2003.
        - Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    numbers = constant(images, severity, severity_of, ELASTIC)

    def body(x, noise):
        size = sides(x)
        alpha, sigma, reach = (min(size) * number for number in numbers)
        moves = noise.uniform(3, 2, low=-reach, high=reach)
        shift = tf.einsum("hwp,bpa->bhwa", barycentric(*size), moves)
        if alpha:
            shift += alpha * smooth_field(noise, *size, sigma)
        rows, columns = (tf.range(float(side)) for side in size)
        return warped(x, rows[:, None] + shift[..., 0], columns + shift[..., 1], "reflect")

    return applied(body, images, seed)


@listed
def pixelate(
    images: ArrayLike,
    severity: int | None = None,
    *,
    scale: float | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """Shrinks the images and enlarges them again, both with a box filter.

    The smaller side is 0.95, 0.9, 0.85, 0.75, 0.65 of the original at severities 1 to 5 of
    CIFAR-10-C and 0.6, 0.5, 0.4, 0.3, 0.25 of ImageNet-C, rounded down to whole pixels.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; in a graph,
            height and width must be known.
        severity: Integer from 1 to 5; None if `scale` is given.
        scale: Size of the small image relative to the original, in (0, 1].
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
    from tfuq.corruptions import pixelate

    images = np.random.rand(2, 32, 32, 3)
    coarse = pixelate(images, 5)
    coarser = pixelate(images, scale=0.25)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    scale = strength(images, severity, severity_of, SCALES, scale=scale)
    check_fraction("scale", scale)
    if scale == 0:
        raise ValueError(f"Argument `scale` must be in (0, 1]. Received: scale={shown(scale)}")

    def body(x, noise):
        rows, columns = (blocks(side, max(1, int(scale * side))) for side in sides(x))
        return tf.einsum("ij,kl,bjlc->bikc", rows, columns, x)

    return applied(body, images, seed)


# --- Compression ------------------------------------------------------------------------------


@listed
def jpeg_compression(
    images: ArrayLike,
    severity: int | None = None,
    *,
    quality: int | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """JPEG and back, image by image, with colour at half the resolution.

    The quality is 80, 65, 58, 50, 40 at severities 1 to 5 of CIFAR-10-C and 25, 18, 15, 10, 7 of
    ImageNet-C. It passes no gradient on, and XLA has no kernel for it.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1], which is
            rounded to 8 bits.
        severity: Integer from 1 to 5; None if `quality` is given.
        quality: Integer from 1 to 100.
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
    from tfuq.corruptions import jpeg_compression

    compressed = jpeg_compression(np.random.rand(2, 32, 32, 3), 5)
    ```

    References:
        Hendrycks and Dietterich, ICLR 2019 (CIFAR-10-C).

    See also: `tfuq.corruptions.corrupt`, `tfuq.corruptions.CorruptionLayer`.
    """
    quality = strength(images, severity, severity_of, QUALITIES, quality=quality)
    check_integer("quality", quality, 1)
    if quality > 100:
        raise ValueError(
            f"Argument `quality` must be at most 100. Received: quality={shown(quality)}"
        )

    def body(x, noise):
        channels = x.shape[-1]

        def there_and_back(image):
            packed = tf.io.encode_jpeg(image, quality=quality)
            return tf.io.decode_jpeg(packed, channels, dct_method="INTEGER_ACCURATE")

        pixels = tf.cast(tf.round(255.0 * x), "uint8")
        pixels = tf.reshape(tf.map_fn(there_and_back, pixels), tf.shape(x))
        return tf.cast(pixels, "float32") / 255.0

    return applied(body, images, seed)
