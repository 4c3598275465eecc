"""Registration with Keras, public names, types, checks of arguments, and how objects are shown."""

from __future__ import annotations

import html
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

if sys.version_info >= (3, 11):
    from typing import Self as Self
else:
    from typing_extensions import Self as Self

register = keras.saving.register_keras_serializable(package="tfuq")

MOST_SHOWN, LONGEST_SHOWN = 6, 200  # values of an array, characters of anything
MOST_LOOKED_AT = 1000  # objects of an array

# --- Types in public signatures ------------------------------------------------------------------


class EnsembleLike(Protocol):
    """Several models that predict together, such as a `tfuq.ensembles.DeepEnsemble`."""

    @property
    def members(self) -> tuple[keras.Model, ...]: ...


Tensor: TypeAlias = tf.Tensor | keras.KerasTensor
ArrayLike: TypeAlias = npt.ArrayLike | tf.Tensor | keras.KerasTensor
# Arrays, or tuples, lists and dicts of them, or batches of these.
Arrays: TypeAlias = ArrayLike | tuple[Any, ...] | list[Any] | dict[str, Any]
Data: TypeAlias = Arrays | tf.data.Dataset | keras.utils.PyDataset
ModelLike: TypeAlias = keras.Model | EnsembleLike
Output: TypeAlias = int | str | Callable[[Any], Any]  # which of several: index, key or function
PathLike: TypeAlias = str | os.PathLike[str]


# --- Names and checks ----------------------------------------------------------------------------


def public_dir(names):
    """A module's `__dir__` that lists `names`, its `__all__`, and nothing else."""
    return lambda: sorted(names)


def shown(value):
    """A value for an error: of arrays shape, dtype and a few numbers, of models the name."""
    if isinstance(value, keras.layers.Layer):  # models are layers
        return f"{type(value).__name__} {value.name!r}"
    if type(value) in (list, tuple, dict):
        return _cut(_shown_parts(value))
    if type(value).__module__.startswith("pandas."):
        return f"{type(value).__name__} of shape {value.shape}"
    if hasattr(value, "shape") and hasattr(value, "numpy"):  # eager tensors and variables
        value = _array_of(value)
    if isinstance(value, np.ndarray) and value.shape:
        found = value.ravel()[:MOST_SHOWN].tolist()
        more = ", ..." if np.size(value) > MOST_SHOWN else ""
        values = ", ".join(_cut(f"{x:.4g}" if isinstance(x, float) else repr(x)) for x in found)
        return f"[{values}{more}] of shape {tuple(value.shape)}, {np.dtype(value.dtype).name}"
    return _cut(" ".join(repr(value).split()))


def _array_of(value):
    try:
        return value.numpy()
    except (AttributeError, NotImplementedError):  # symbolic
        return value


def _shown_parts(value):
    """A list, tuple or dict: as an array if it is one of numbers, else its first few parts."""
    if type(value) is dict:
        parts = [f"{key!r}: {shown(part)}" for key, part in list(value.items())[:MOST_SHOWN]]
        more = ", ..." if len(value) > MOST_SHOWN else ""
        return f"{{{', '.join(parts)}{more}}}"
    if len(value) > MOST_SHOWN:
        try:
            found = np.asarray(value)
        except ValueError:  # ragged
            found = None
        if found is None or found.dtype == object:
            return f"{type(value).__name__} of {len(value)}: {_cut(shown(value[0]))}, ..."
        return shown(found)
    parts = [shown(part) for part in value]
    if type(value) is tuple:
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    return f"[{', '.join(parts)}]"


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
    """Raises ValueError unless `model` is a Keras model; of an ensemble it says what to do."""
    if isinstance(model, keras.Model):
        return
    members = getattr(model, "members", None)
    otherwise = ""
    if isinstance(members, tuple):
        otherwise = ", one at a time: of an ensemble call this for each of its `members`"
    raise ValueError(
        f"Argument `model` must be a Keras model{otherwise}. Received: model={shown(model)}"
    )


def check_flags(**flags):
    """Raises ValueError unless all of `flags` are True or False."""
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(
                f"Argument `{name}` must be True or False. Received: {name}={shown(value)}"
            )


def as_array(name, value):
    """The argument `name` as an array, or a ValueError where NumPy would say less."""
    check_kind(name, value)
    return np.asarray(value)


def check_kind(name, value):
    """Raises ValueError of a tensor that records gradients, and of an array of objects.

    Texts may be objects to NumPy; a mixture of kinds, such as the columns of a data frame, may not.
    """
    if getattr(value, "requires_grad", False):
        raise ValueError(
            f"Argument `{name}` must be an array, or a tensor that records no gradient: call "
            f"`.detach()` on it. Received: a {type(value).__name__} with requires_grad=True, of "
            f"shape {tuple(value.shape)}"
        )
    is_array = hasattr(value, "__array__") and not hasattr(value, "_keras_history")
    found = np.asarray(value) if is_array and not keras.ops.is_tensor(value) else np.zeros(0)
    if found.dtype.hasobject and found.size and not _are_texts(found):
        kinds = sorted({type(each).__name__ for each in found.ravel()[:MOST_LOOKED_AT]})
        raise ValueError(
            f"Argument `{name}` must hold numbers of one dtype: of a data frame choose the columns "
            "of numbers, `frame[columns].to_numpy('float32')`. Received: "
            f"{type(value).__name__} with dtype=object, of shape {found.shape}, that holds "
            f"{', '.join(kinds[:MOST_SHOWN])}"
        )


def _are_texts(array):
    return all(isinstance(each, (str, bytes)) for each in array.ravel())


def to_float64(name, array, copy=True):
    """The argument `name` as an array of float64, or a ValueError.

    Without `copy` it may be the array itself, for those who only read.
    """
    check_kind(name, array)
    try:
        found = np.asarray(array)
        if found.dtype.kind in "biufV":  # V is how numpy knows bfloat16
            return found.astype("float64", copy=copy)
    except (TypeError, ValueError):
        pass  # ragged lists, structures
    raise ValueError(
        f"Argument `{name}` must be an array of numbers. Received: {name}={shown(array)}"
    )


# --- What objects say of themselves -------------------------------------------------------------

WIDEST, MOST_LINES, MOST_ROWS = 100, 5, 30  # of a `repr`; of a table in a notebook


def told(kind):
    """Decorator of a class whose objects tell what they are: a `repr` of two to five lines.

    The class may have `_told_arguments()`, what is told in the first line (by default what the
    constructor was given), `_told_lines()`, the others (of tuples the fields), and `_told_table()`,
    a header and rows that notebooks show (the table of `to_markdown()`, if there is that).
    """
    kind.__repr__ = _text
    kind._repr_html_ = _html
    return kind


def given_arguments(thing):
    """`{name: value}` of constructor arguments that are attributes and not as by default."""
    return _arguments(thing)[0]


def _arguments(thing):
    """The same, and those that are as by default."""
    found, defaults = {}, {}
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        value = getattr(thing, name, parameter.default)
        default = parameter.default
        is_same = value is default or (type(value) is type(default) and value == default)
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            (defaults if is_same else found)[name] = value
    return found, defaults


def _arguments_of(thing):
    return thing._told_arguments() if hasattr(thing, "_told_arguments") else given_arguments(thing)


def listed(values):
    """`name=value, ...`, each value short."""
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value):
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    if isinstance(value, np.ndarray) and value.ndim:
        return f"array {tuple(value.shape)}"
    if type(value) is tuple:
        return f"({', '.join(map(_short, value))})"
    return shown(value)


def _text(thing):
    if isinstance(thing, tuple):
        head, rest = type(thing).__name__, thing._asdict()
        lines = textwrap.wrap(listed(rest), WIDEST - 2)
    else:
        head = f"{type(thing).__name__}({listed(_arguments_of(thing))})"
        lines = _training_of(thing) if isinstance(thing, keras.callbacks.Callback) else []
    lines = thing._told_lines() if hasattr(thing, "_told_lines") else lines
    lines = lines or textwrap.wrap(f"by default {listed(_arguments(thing)[1])}", WIDEST - 2)
    first = textwrap.wrap(head, WIDEST, subsequent_indent="    ", break_on_hyphens=False)
    first = first if len(first) < 3 else [first[0], f"{first[1]} ..."]
    kept = lines[: MOST_LINES - len(first)]
    return "\n".join([*first, *(f"  {line}" for line in kept)])


def _training_of(callback):
    model = getattr(callback, "_model", None)
    return ["in no training yet" if model is None else f"in the training of {shown(model)}"]


def _html(thing):
    """The text, and under it the table; None without one, so that the text alone is shown."""
    if hasattr(thing, "_told_table"):
        header, rows = thing._told_table()
    elif hasattr(thing, "to_markdown"):
        header, rows = _cells_of(thing.to_markdown())
    else:
        return None
    if not header:
        return None
    rows = [list(row) for row in rows]
    left = len(rows) - MOST_ROWS
    rows = [*rows[:MOST_ROWS], *([[f"... {left} more"]] if left > 0 else [])]
    lines = [_html_row("th", header), *(_html_row("td", row) for row in rows)]
    return f"<pre>{html.escape(repr(thing))}</pre><table>{''.join(lines)}</table>"


def _cells_of(markdown):
    """Header and rows of the first table in a text of Markdown."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    header, _, *rows = (re.split(r" (?<!\\)\| ?", line[2:])[:-1] for line in lines)
    return header, [[cell.replace("\\|", "|") for cell in row] for row in rows]


def _html_row(tag, cells):
    shown_cells = (f"{x:.4g}" if isinstance(x, (float, np.floating)) else str(x) for x in cells)
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in shown_cells)}</tr>"
