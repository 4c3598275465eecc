"""Lookup tables, and what else TensorFlow tracks, that a preprocessing uses: a part of the file."""

import functools
import types

import keras
import tensorflow as tf


def tracked_of(steps):
    """Tables, layers and modules that are `steps`, or that functions among these name or hold."""
    kind = tf.__internal__.tracking.Trackable
    found, seen, waiting = [], [], list(steps)
    while waiting:
        each = waiting.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        python = getattr(each, "python_function", None)  # of a `tf.function`, which holds nothing
        if python is not None:
            waiting.append(python)
        elif isinstance(each, kind):
            found.append(each)
        elif not isinstance(each, (type, types.ModuleType)):
            waiting += _held_by(each)
    return [x for x in found if not isinstance(x, keras.layers.Layer) or x.built]


def _held_by(each):
    """What a callable, or a container of such, reaches; nothing of other objects."""
    if isinstance(each, types.FunctionType):
        names = [name for name in _names_in(each.__code__) if name in each.__globals__]
        cells = [cell.cell_contents for cell in each.__closure__ or () if _is_filled(cell)]
        defaults = [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
        return [*cells, *defaults, *(each.__globals__[name] for name in names)]
    if isinstance(each, types.MethodType):
        return [each.__func__, *_attributes(each.__self__)]
    if isinstance(each, functools.partial):
        return [each.func, *each.args, *each.keywords.values()]
    if isinstance(each, dict):
        return list(each.values())
    if isinstance(each, (list, tuple, set)):
        return list(each)
    call = type(each).__call__ if callable(each) else None
    return [call, *_attributes(each)] if isinstance(call, types.FunctionType) else []


def _names_in(code):
    """Names that a function reads, and those that the functions within it read."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return {*code.co_names, *(name for part in inner for name in _names_in(part))}


def _attributes(each):
    is_tracked = isinstance(each, tf.__internal__.tracking.Trackable)
    return [each] if is_tracked else list(getattr(each, "__dict__", {}).values())


def _is_filled(cell):
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
