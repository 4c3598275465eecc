"""Registry of image corruptions: their list, argument checks and random numbers."""

import numpy as np
import tensorflow as tf

from tfuq._arguments import check_choice, shown

CORRUPTIONS = {}
SEVERITIES = (1, 2, 3, 4, 5)


def listed(function):
    """Makes `function` known to `corrupt` by its name."""
    CORRUPTIONS[function.__name__] = function
    return function


def names():
    """Names of all corruptions, in alphabetical order.

    Returns:
        A tuple of strings.

    Example:

    >>> import tfuq
    >>> tfuq.corruptions.names()[:4]
    ('brightness', 'contrast', 'decolor', 'defocus_blur')
    """
    return tuple(sorted(CORRUPTIONS))


def corrupt(images, name, severity=None, *, seed=0, **options):
    """Images with a corruption, by its name.

    Args:
        images: `(batch, height, width, 1 or 3)`, uint8, or floating point in [0, 1].
        name: One of `names()`.
        severity: Integer from 1 to 5; None if an option says how strong the corruption is.
        seed: Integer of at least 0, or integer tensor of shape `(2,)`.
        **options: Further arguments of that corruption.

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


def constant(severity, constants):
    """The one of five `constants` that belongs to a severity."""
    check_severity(severity)
    return constants[severity - 1]


def strength(severity, constants, **given):
    """`given`, an argument by its name, or if it is None the constant of the severity."""
    ((name, value),) = given.items()
    if value is None:
        return constant(severity, constants)
    if severity is not None:
        raise ValueError(
            f"Argument `severity` must be None if `{name}` is given. "
            f"Received: severity={shown(severity)}, {name}={shown(value)}"
        )
    return value


# --- Images in, images out --------------------------------------------------------------------


def size_of(images):
    """The shape of images, in integers where it is known and in tensors where it is not."""
    dynamic = tf.shape(images)
    return [dynamic[i] if side is None else side for i, side in enumerate(images.shape)]
