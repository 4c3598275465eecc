"""Registration with Keras, the listing of public names, and checks of arguments."""

import keras
import numpy as np

register = keras.saving.register_keras_serializable(package="tfuq")

MOST_SHOWN, LONGEST_SHOWN = 6, 200  # values of an array, characters of anything


def public_dir(names):
    """A module's `__dir__` that lists `names`, its `__all__`, and nothing else."""
    return lambda: sorted(names)


def shown(value):
    """A value for an error: of arrays shape, dtype and a few numbers, of models the name."""
    if isinstance(value, keras.layers.Layer):  # models are layers
        return f"{type(value).__name__} {value.name!r}"
    if isinstance(value, (list, tuple)) and len(value) > MOST_SHOWN:
        try:
            value = np.asarray(value)
        except ValueError:  # ragged
            return f"{type(value).__name__} of {len(value)}: {_cut(repr(value[0]))}, ..."
    if isinstance(value, np.ndarray) and value.shape:
        found = value.ravel()[:MOST_SHOWN].tolist()
        more = ", ..." if np.size(value) > MOST_SHOWN else ""
        values = ", ".join(_cut(f"{x:.4g}" if isinstance(x, float) else repr(x)) for x in found)
        return f"[{values}{more}] of shape {tuple(value.shape)}, {np.dtype(value.dtype).name}"
    return _cut(repr(value))


def _cut(text):
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


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
            f"Received: {name}={shown(value)}"
        )


def check_positive(name, value):
    """Raises ValueError unless `value` is a finite number > 0."""
    if not is_finite(value) or value <= 0:
        raise ValueError(
            f"Argument `{name}` must be a finite number above 0. Received: {name}={shown(value)}"
        )


def check_fraction(name, value):
    """Raises ValueError unless `value` is a number in [0, 1]."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(f"Argument `{name}` must be in [0, 1]. Received: {name}={shown(value)}")


def check_choice(name, value, choices):
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        options = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"Argument `{name}` must be one of {options}. Received: {name}={shown(value)}"
        )


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
        f"Received: value_range={shown(value_range)}"
    )


def check_model(model):
    """Raises ValueError unless `model` is a Keras model."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"Argument `model` must be a Keras model. Received: model={shown(model)}")


def check_flags(**flags):
    """Raises ValueError unless all of `flags` are True or False."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(
                f"Argument `{name}` must be True or False. Received: {name}={shown(value)}"
            )


def to_float64(name, array):
    """The argument `name` as an array of float64, or a ValueError."""
    try:
        found = np.asarray(array)
        if found.dtype.kind in "biufV":  # V is how numpy knows bfloat16
            return found.astype("float64")
    except (TypeError, ValueError):
        pass  # ragged lists, structures
    raise ValueError(
        f"Argument `{name}` must be an array of numbers. Received: {name}={shown(array)}"
    )
