"""Registration with Keras, the listing of public names, and checks of arguments."""

import keras
import numpy as np

register = keras.saving.register_keras_serializable(package="tfuq")


def public_dir(names):
    """A module's `__dir__` that lists `names`, its `__all__`, and nothing else."""
    return lambda: sorted(names)


def _is_integer(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_real(value):
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def is_finite(value):
    """Whether `value` is a real number that a float can hold; NaN and infinity are none."""
    return _is_real(value) and abs(value) <= np.finfo("float64").max


def check_integer(name, value, minimum):
    """Raises ValueError unless `value` is an integer >= `minimum`."""
    if not _is_integer(value) or value < minimum:
        raise ValueError(
            f"Argument `{name}` must be an integer of at least {minimum}. "
            f"Received: {name}={value!r}"
        )


def check_positive(name, value):
    """Raises ValueError unless `value` is a finite number > 0."""
    if not is_finite(value) or value <= 0:
        raise ValueError(
            f"Argument `{name}` must be a finite number above 0. Received: {name}={value!r}"
        )


def check_fraction(name, value):
    """Raises ValueError unless `value` is a number in [0, 1]."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(f"Argument `{name}` must be in [0, 1]. Received: {name}={value!r}")


def check_choice(name, value, choices):
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        options = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Argument `{name}` must be one of {options}. Received: {name}={value!r}")


def checked_range(value_range):
    """The argument `value_range` of an image layer, (black, white), as a pair of floats."""
    try:
        low, high = (float(value) for value in value_range)
        if np.isfinite([low, high]).all() and low < high:
            return low, high
    except (TypeError, ValueError):
        pass
    raise ValueError(
        "Argument `value_range` must be a pair (black, white) of numbers that increase. "
        f"Received: value_range={value_range!r}"
    )


def check_model(model):
    """Raises ValueError unless `model` is a Keras model."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"Argument `model` must be a Keras model. Received: model={model!r}")


def check_flags(**flags):
    """Raises ValueError unless all of `flags` are True or False."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"Argument `{name}` must be True or False. Received: {name}={value!r}")


def to_float64(name, array):
    """The argument `name` as an array of float64, or a ValueError."""
    try:
        found = np.asarray(array)
        if found.dtype.kind in "biufV":  # V is how numpy knows bfloat16
            return found.astype("float64")
    except (TypeError, ValueError):
        pass  # ragged lists, structures
    raise ValueError(f"Argument `{name}` must be an array of numbers. Received: {name}={array!r}")
