"""Small objects that are fitted once and used for long: JSON, files, and layers of a model.

A child names its configuration: what its constructor takes, numbers, texts and arrays. Everything
else follows from it. Reading runs no code, and a text of another kind raises a ValueError.
"""

import json
import pathlib

import keras
import numpy as np

from tfuq._files import written_whole
from tfuq._labelled import select_output

FORMAT = 1
LARGEST_TEXT = 2**26  # characters


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


def numbers(name, value):
    """The argument `name`, numbers that `plain` may have written, as an array of float64."""
    try:
        array = np.asarray(value, "float64")
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if np.any(np.isnan(array)):
        raise ValueError(f"Argument `{name}` must hold numbers, no NaN. Received: {name}={value!r}")
    return array


class Fitted:
    """Base of what is fitted to data and kept: `get_config` is all that it is."""

    def get_config(self):
        """The arguments of the constructor, as JSON can hold them."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def to_json(self):
        """A text from which `from_json` makes an object that is equal in all it does."""
        content = {"class": type(self).__name__, "format": FORMAT, "config": self.get_config()}
        return json.dumps(content, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text):
        """The object that `to_json` described.

        Raises:
            ValueError: If the text is damaged, of another class or a later version of the format.
        """
        try:
            if len(text) > LARGEST_TEXT:
                raise ValueError(f"{len(text)} characters, more than {LARGEST_TEXT}")
            content = json.loads(text)
            if content["class"] != cls.__name__:
                raise ValueError(f"it describes {content['class']!r}")
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, known is {FORMAT}")
            return cls.from_config(content["config"])
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"Argument `text` must be what `{cls.__name__}.to_json` gave. "
                f"Received: {str(text)[:80]!r} ({error})"
            ) from error

    def save(self, path):
        """Writes `to_json` to the file `path`, whole or not at all."""
        with written_whole(pathlib.Path(path)) as unfinished:
            unfinished.write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
            ValueError: As `from_json`; if the file is too large or no text.
            OSError: If it cannot be read.
        """
        path = pathlib.Path(path)
        if path.stat().st_size > 4 * LARGEST_TEXT:
            raise ValueError(
                f"Argument `path` must name a file of JSON. Received: path={path} of "
                f"{path.stat().st_size} bytes"
            )
        return cls.from_json(path.read_text(encoding="utf-8"))

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    __hash__ = None

    def __repr__(self):
        parts = (f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({', '.join(parts)})"


def with_outputs(model, layer, output=None):
    """A functional model of the same inputs, whose outputs are `layer` of the outputs of `model`.

    `output` chooses among several: an index, a key or a function. The weights are shared.
    """
    if not isinstance(getattr(model, "inputs", None), list):
        raise ValueError(
            "Argument `model` must know its inputs: call a subclassed model in a functional one "
            f"(`keras.Model(inputs, model(inputs))`). Received: model={model}"
        )
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, layer(select_output(model(inputs), output)))
