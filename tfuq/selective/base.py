"""Small objects that are fitted once and used for long: JSON, files, and layers of a model.

A child names its configuration: what its constructor takes, numbers, texts and arrays. Everything
else follows from it. Reading runs no code, and a text of another kind raises a ValueError.
"""

from __future__ import annotations

import copy
import pathlib
import warnings
from typing import Any

import keras
import numpy as np

from tfuq._arguments import PathLike, Self, listed, shown, told
from tfuq._files.reading import DAMAGE, check_fields, json_text, parsed, read_json, sealed, unsealed
from tfuq._files.writing import written_whole
from tfuq._models.outputs import select_output

FORMAT = 1
LARGEST_TEXT = 2**26  # characters, which are a byte each


def plain(value):
    """`value` as JSON can hold it: arrays as lists, infinities as the texts "inf" and "-inf"."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def warn_of_complement(name, value, what):
    """Warns of a probability that is more likely meant as 1 less it: alpha for a confidence."""
    warnings.warn(
        f"What is fitted with {name}={value:g} {what}: {name}={1 - value:g} is more usual. "
        "Was it meant the other way round?",
        stacklevel=4,
    )


def config_of(fitted, names, optional=()):
    """Attributes as JSON can hold them, of the `optional` ones those that are not None."""
    names += tuple(name for name in optional if getattr(fitted, name) is not None)
    values = {name: getattr(fitted, name) for name in names}
    parts = {n: v._content() if isinstance(v, Fitted) else v for n, v in values.items()}
    return plain(parts)


def numbers(name, value):
    """The argument `name`, numbers that `plain` may have written, as an array of float64."""
    try:
        is_flag = np.asarray(value).dtype.kind == "b"
        array = np.array(np.nan) if is_flag else np.asarray(value, "float64")
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if np.any(np.isnan(array)):
        raise ValueError(
            f"Argument `{name}` must hold numbers, no NaN. Received: {name}={shown(value)}"
        )
    return array


@told
class Fitted:
    """Base of what is fitted to data and kept: `get_config` is all that it is."""

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, as JSON can hold them."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)

    def to_json(self) -> str:
        """A text from which `from_json` makes an object that is equal in all it does."""
        return json_text(self._content(), allow_nan=False, indent=1)

    def _content(self):
        return {"class": type(self).__name__, "format": FORMAT, "config": self.get_config()}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The object that `to_json` described.

        Raises:
            ValueError: If the text is damaged, of another class or a later version of the format.
        """
        try:
            if len(text) > LARGEST_TEXT:
                raise ValueError(f"{len(text)} characters, more than {LARGEST_TEXT}")
            return cls._from_content(parsed(text))
        except DAMAGE as error:
            raise ValueError(
                f"Argument `text` must be what `{cls.__name__}.to_json` gave. "
                f"Received: {shown(str(text)[:80])} ({error})"
            ) from error

    @classmethod
    def _from_content(cls, content):
        content = unsealed(content)
        if content["class"] != cls.__name__:
            raise ValueError(f"it describes {shown(content['class'])}")
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {shown(content['format'])}, known is {FORMAT}")
        check_fields(content, ("class", "format", "config"))
        made = cls.from_config(content["config"])
        missing = sorted(set(made.get_config()) - set(content["config"]))
        if missing:  # a default in their place would be another's decision
            raise ValueError(f"no {missing}")
        return made

    def save(self, path: PathLike) -> None:
        """Writes `to_json` and its hash to the file `path`, whole or not at all."""
        text = json_text(sealed(self._content()), allow_nan=False, indent=1)
        with written_whole(pathlib.Path(path)) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Reads what `save` wrote.

        Raises:
            ValueError: If the file is damaged, of another class, or of another version.
            OSError: If it cannot be read.
        """
        try:
            return cls._from_content(read_json(path, LARGEST_TEXT))
        except OSError:
            raise  # which names the file
        except DAMAGE as error:
            raise ValueError(
                f"Argument `path` must name a file as `{cls.__name__}.save` of this version wrote "
                f"it: restore it, or fit and save again. Received: path={str(path)!r} "
                f"({type(error).__name__}: {error})"
            ) from error

    def __reduce__(self):  # as its file: a function of the fit, a lambda say, is not part of it
        return _pickled, (type(self), self.get_config())

    def __copy__(self):
        made = type(self).__new__(type(self))
        vars(made).update(vars(self))
        return made

    def __deepcopy__(self, memo):
        made = self.__copy__()
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    __hash__ = None

    def _told_arguments(self):
        config = self.get_config()
        told = {k: v for k, v in config.items() if k not in ("fitted_to", "calibration")}
        return {name: value for name, value in told.items() if value not in (None, False)}

    def _told_lines(self):
        report, calibration = self.fitted_to, getattr(self, "calibration", None)
        lines = [f"fitted to {listed(_short(report))}"] if report else ["not fitted to data"]
        if calibration is not None:
            lines.append(f"after a {type(calibration).__name__} of its own rows")
        return lines

    def _told_table(self):
        report = self.get_config().get("fitted_to") or {}
        parts = report.get("parts") or {}
        rows = [(name, value) for name, value in _short(report).items()]
        rows += [(f"{key}: {n}", x) for key, part in parts.items() for n, x in _short(part).items()]
        return (("fitted to", ""), rows) if rows else ((), ())


def _pickled(kind, config):
    return kind.from_config(config)


def _short(report):
    """What is one number or text."""
    return {name: value for name, value in report.items() if not isinstance(value, (list, dict))}


def with_outputs(model, layer, output=None):
    """A functional model of the same inputs, whose outputs are `layer` of the outputs of `model`.

    `output` chooses among several: an index, a key or a function. The weights are shared. What is
    predicted for inputs that are not finite is NaN: a network may hide that, as max-pooling does.
    """
    if not isinstance(getattr(model, "inputs", None), list):
        raise ValueError(
            "Argument `model` must know its inputs: call a subclassed model in a functional one "
            f"(`keras.Model(inputs, model(inputs))`). Received: model={shown(model)}"
        )
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, layer(_known(inputs, select_output(model(inputs), output, model))))


def _known(inputs, predictions):
    """Symbolic predictions, NaN where floating point inputs are not finite."""
    axis = 1 if predictions.shape[0] is not None and None in predictions.shape[1:2] else 0
    for leaf in keras.tree.flatten(inputs):
        if leaf.sparse or not keras.backend.is_float_dtype(leaf.dtype):
            continue
        rows = keras.ops.isfinite(leaf)
        if len(leaf.shape) > 1:
            rows = keras.ops.all(rows, axis=tuple(range(1, len(leaf.shape))))
        rest = len(predictions.shape) - axis - 1
        rows = keras.ops.reshape(rows, (*[1] * axis, -1, *[1] * rest))
        predictions = keras.ops.where(rows, predictions, float("nan"))
    return predictions
