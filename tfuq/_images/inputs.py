"""A description of a model's images: range, size, channels, and how others are resized."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import check_choice, check_integer, checked_range, shown

CHANNELS = ("gray", "rgb", "bgr")
RESIZE = ("bilinear", "nearest", "refuse")
TOLERANCE = 1e-3  # of the range: resizing and compression leave such
_DERIVED = ("bounds", "takes_integers")  # that `told` says of the rest


class InputSpec(NamedTuple):
    """Images as a model was fitted to them.

    Attributes:
        value_range: What black and white are, which 0 and 255 of a file become.
        size: `(height, width)`, or None where any will do.
        channels: `"gray"`, `"rgb"` or `"bgr"`; None for what the model's input shape says.
        resize: How images of other sizes are brought to `size`: `"bilinear"` (antialiased),
            `"nearest"`, or `"refuse"`.
    """

    value_range: tuple = (0.0, 255.0)
    size: tuple | None = None
    channels: str | None = None
    resize: str = "bilinear"

    def checked(self):
        """The same with plain numbers, or a ValueError."""
        size = self.size
        if size is not None:
            sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
            for side in sides:
                check_integer("size", side, 1)
            if len(sides) != 2:
                raise ValueError(
                    f"Argument `size` must be a pair (height, width). Received: size={shown(size)}"
                )
            size = tuple(map(int, sides))
        if self.channels is not None:
            check_choice("channels", self.channels, CHANNELS)
        check_choice("resize", self.resize, RESIZE)
        return InputSpec(checked_range(self.value_range), size, self.channels, self.resize)

    def get_config(self):
        """All of it, as JSON can hold it."""
        lists = {"value_range": list(self.value_range), "size": self.size and list(self.size)}
        return {**self._asdict(), **lists}

    @classmethod
    def from_config(cls, config):
        """What `get_config` or `told` said, or a ValueError."""
        try:
            given = {name: value for name, value in config.items() if name not in _DERIVED}
            return cls(**given).checked()
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"Received: no description of inputs, {shown(config)} ({error})"
            ) from None

    def for_shape(self, shape):
        """With size and channels of a model's input shape `(batch, height, width, channels)`.

        Raises:
            ValueError: If what is declared is another.
        """
        _, height, width, channels = shape
        size = None if None in (height, width) else (height, width)
        kinds = CHANNELS[:1] if channels == 1 else CHANNELS[1:]
        if (self.size and size and self.size != size) or self.channels not in (None, *kinds):
            raise ValueError(
                f"Argument `inputs` must fit the model, which takes {tuple(shape)}. Received: "
                f"size={self.size}, channels={shown(self.channels)}"
            )
        return self._replace(size=self.size or size, channels=self.channels or kinds[0])

    def prepared(self, pixels):
        """Pixels `(..., height, width, channels)` of files, 0 to 255, as the model takes them."""
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        shape = tuple(pixels.shape[-3:-1])  # of an image, or of a batch
        if self.size is not None and shape != self.size:
            if self.resize == "refuse":
                raise ValueError(
                    f"Argument `data` must hold images of {self.size} pixels. Received: {shape}"
                )
            antialias = self.resize == "bilinear"
            pixels = tf.image.resize(pixels, self.size, self.resize, antialias=antialias)
        low, high = self.value_range
        return low + tf.cast(pixels, "float32") * ((high - low) / 255.0)

    def bounds(self):
        """Smallest and largest value that is taken, with what rounding leaves."""
        low, high = self.value_range
        return low - TOLERANCE * (high - low), high + TOLERANCE * (high - low)

    def takes_integers(self):
        """Whether pixels may be integers: in 0 to 255 alone, else they are of another range."""
        return self.value_range == (0.0, 255.0)

    def rows_inside(self, batch):
        """In graphs: whether each example of a batch, bool `(batch,)`, lies in the range.

        One that holds NaN does, and is known as such elsewhere.
        """
        low, high = self.bounds()
        rows = True
        for leaf in tf.nest.flatten(batch):
            if not (leaf.dtype.is_floating or self.takes_integers()):
                rows &= tf.zeros(tf.shape(leaf)[:1], "bool")
            axes = tf.range(1, tf.rank(leaf))
            outside = (tf.cast(leaf, "float32") < low) | (tf.cast(leaf, "float32") > high)
            rows &= ~tf.reduce_any(outside, axes)
        return rows

    def told(self):
        """What `get_config` says, and what a server compares without this class."""
        rest = {"bounds": list(self.bounds()), "takes_integers": self.takes_integers()}
        return {**self.get_config(), **rest}

    def check(self, values, argument="data"):
        """Raises ValueError unless finite values, `(batch, ...)`, lie in the range."""
        values = np.asarray(values)
        low, high = self.bounds()
        is_integer = values.dtype.kind in "iub" and not self.takes_integers()
        with np.errstate(invalid="ignore"):
            outside = np.isfinite(values) & ((values < low) | (values > high))
        if is_integer or outside.any():
            finite = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
            raise ValueError(
                f"Argument `{argument}` must hold images from {self.value_range[0]:g} to "
                f"{self.value_range[1]:g}, as declared of the model. Received: dtype "
                f"{values.dtype}, from {finite.min():g} to {finite.max():g}: scale them"
            )
