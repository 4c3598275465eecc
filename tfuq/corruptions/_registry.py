"""Registry of image corruptions: their list, argument checks and random numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, Tensor, check_choice, shown
from tfuq._images.pieces import checked_images, tensor_of

CORRUPTIONS = {}
SEVERITIES = (1, 2, 3, 4, 5)
CIFAR, IMAGENET = SUITES = ("cifar10-c", "imagenet-c")
MIDDLE = math.sqrt(32 * 224)  # of their sides, by ratio: 84.7 pixels
# The kinds that mCE is a mean over, and those that the authors keep for validation.
BENCHMARK = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
VALIDATION = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


class Suites(NamedTuple):
    """Five constants of each published benchmark."""

    cifar: tuple
    imagenet: tuple


def listed(function):
    """Makes `function` known to `corrupt` by its name."""
    CORRUPTIONS[function.__name__] = function
    return function


def names(which: str | None = None) -> tuple[str, ...]:
    """Names of corruptions.

    Args:
        which: `"benchmark"` for the 15 that the mean corruption error is published over, in the
            order of the paper; `"validation"` for the 4 further ones of CIFAR-10-C and ImageNet-C;
            None for all there are, in alphabetical order.

    Returns:
        A tuple of strings.

    Raises:
        ValueError: If `which` is none of these.

    Example:

    >>> import tfuq
    >>> tfuq.corruptions.names()[:4]
    ('brightness', 'contrast', 'decolor', 'defocus_blur')
    >>> len(tfuq.corruptions.names("benchmark"))
    15

    See also: `tfuq.corruptions.corrupt`.
    """
    check_choice("which", which, (None, "benchmark", "validation"))
    chosen = {None: tuple(sorted(CORRUPTIONS)), "benchmark": BENCHMARK, "validation": VALIDATION}
    return chosen[which]


def corrupt(
    images: ArrayLike,
    name: str,
    severity: int | None = None,
    *,
    seed: int | Tensor = 0,
    **options: Any,
) -> Tensor:
    """Images with a corruption, by its name.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        name: One of `names()`.
        severity: Integer from 1 to 5; None if an option says how strong the corruption is.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.
        **options: Further arguments of that corruption, such as `severity_of`.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: If there is no such corruption, or it refuses an argument.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import corrupt

    images = np.random.randint(256, size=(2, 32, 32, 3), dtype="uint8")
    foggy = corrupt(images, "fog", 3, seed=1)
    print(foggy.shape, foggy.dtype)
    ```

    See also: `tfuq.corruptions.names`, `tfuq.corruptions.CorruptionLayer`,
    `tfuq.corruptions.corruption_report`.
    """
    check_choice("name", name, names())
    return CORRUPTIONS[name](images, severity, seed=seed, **options)


# --- How strong -------------------------------------------------------------------------------


def check_severity(severity):
    """Raises ValueError unless `severity` is an integer from 1 to 5."""
    is_integer = isinstance(severity, (int, np.integer)) and not isinstance(severity, bool)
    if not is_integer or severity not in SEVERITIES:
        raise ValueError(
            "Argument `severity` must be an integer from 1 to 5. "
            f"Received: severity={shown(severity)}"
        )


def suite_of(images, severity_of=None):
    """The benchmark whose severities are meant: as said, or that of images of the nearer size."""
    check_choice("severity_of", severity_of, (None, *SUITES))
    if severity_of is not None:
        return severity_of
    shape = images.shape if hasattr(images, "shape") else tensor_of(images).shape
    shape = tf.TensorShape(shape)
    if shape.rank not in (None, 3, 4):
        checked_images(images)  # says what is wrong
    sides = (None,) if shape.rank is None else shape[-3:-1]
    if None in tuple(sides):
        raise ValueError(
            f"Argument `severity_of` must be one of {SUITES} where a graph does not know how large "
            f"images are. Received: severity_of=None with images of shape {shape}"
        )
    return CIFAR if min(sides) < MIDDLE else IMAGENET


def constant(images, severity, severity_of, constants):
    """The one of five `constants`, or of those of one of two `Suites`, that a severity has."""
    check_severity(severity)
    check_choice("severity_of", severity_of, (None, *SUITES))
    if isinstance(constants, Suites):
        constants = constants[SUITES.index(suite_of(images, severity_of))]
    return constants[severity - 1]


def strength(images, severity, severity_of, constants, **given):
    """`given`, an argument by its name, or if it is None the constant of the severity."""
    ((name, value),) = given.items()
    if value is None:
        return constant(images, severity, severity_of, constants)
    for other, found in (("severity", severity), ("severity_of", severity_of)):
        if found is not None:
            raise ValueError(
                f"Argument `{other}` must be None if `{name}` is given. "
                f"Received: {other}={shown(found)}, {name}={shown(value)}"
            )
    return value


# --- Images in, images out --------------------------------------------------------------------


def size_of(images):
    """The shape of images, in integers where it is known and in tensors where it is not."""
    dynamic = tf.shape(images)
    return [dynamic[i] if side is None else side for i, side in enumerate(images.shape)]
