"""Declarations that travel with a model: names of its classes, and its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras

from tfuq._arguments import ModelLike, PathLike, shown
from tfuq._files.declared import recalled, remember
from tfuq._images.inputs import InputSpec
from tfuq._predictions.class_names import check_count, checked_names


class Declared(NamedTuple):
    """The declarations of a model; None where nothing is declared.

    Example:

    >>> from tfuq.predictive import Declared
    >>> Declared(["cat", "dog"]).class_names
    ['cat', 'dog']

    See also: `tfuq.predictive.declare`, `tfuq.predictive.declared`.
    """

    class_names: list | None = None
    """Names of the classes in the order of the model's output."""
    inputs: InputSpec | None = None
    """`value_range`, `size`, `channels` and `resize` of its images."""


def declare(
    model: keras.Model,
    *,
    class_names: Sequence[str] | None = None,
    value_range: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    channels: str | None = None,
    resize: str = "bilinear",
) -> Declared:
    """Declares class names, range and size of images of a model; saved with the model.

    `model.save` writes them into the `.keras` file of a functional or `Sequential` model; any Keras
    can load the file. The command line, `tfuq.ensembles` and `declared` read them there; exports
    and score folders hold them. Labels are then compared by name, and images of another range (0
    to 255 for a model that takes 0 to 1) are refused. `keras.models.load_model` itself reads no
    declarations: declare again what it gives.

    Args:
        model: Keras model.
        class_names: Names of the classes, in the order of the model's output; two for one column.
        value_range: Values of black and white in the images that the model takes, such as `(0, 1)`
            or `(0, 255)`; None if the inputs are not images.
        size: `(height, width)`, by default that of the model's input.
        channels: `"gray"`, `"rgb"` or `"bgr"`; by default gray for one channel, RGB for three.
        resize: How images of other sizes are brought to that size: `"bilinear"` (antialiased),
            `"nearest"`, or `"refuse"`.

    Returns:
        `Declared`, all declarations so far. An argument of None changes nothing.

    Raises:
        ValueError: If names repeat, are not as many as the model has classes, or an argument does
            not fit the model.

    Example:

    ```python
    import keras
    from tfuq.predictive import declare, declared

    layers = [keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    declare(model, class_names=["cat", "dog", "emu"], value_range=(0, 1))
    model.save("model.keras")
    print(declared("model.keras").class_names)  # ['cat', 'dog', 'emu']
    ```

    See also: `tfuq.predictive.declared`, `tfuq.export.export`.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"Argument `model` must be a Keras model. Received: model={shown(model)}")
    before = declared(model)
    names = checked_names(class_names) or before.class_names
    shape = getattr(model, "output_shape", None)
    if isinstance(shape, tuple) and shape and isinstance(shape[-1], int):
        check_count(names, shape[-1])
    if value_range is None and (size, channels, resize) != (None, None, "bilinear"):
        raise ValueError("Argument `value_range` must be given for images. Received: None")
    inputs = before.inputs
    if value_range is not None:
        inputs = InputSpec(value_range, size, channels, resize).checked()
        shape = getattr(model, "input_shape", None)
        inputs = inputs.for_shape(shape) if is_of_images(shape) else inputs
    remember(model, content_of(Declared(names, inputs)))
    return Declared(names, inputs)


def declared(model: ModelLike | PathLike) -> Declared:
    """Returns the declarations of a model, `Declared`.

    Args:
        model: Keras model, a `.keras` file, or an ensemble, whose members agree.

    Raises:
        ValueError: If members of an ensemble disagree, or a file is damaged.

    Example:

    >>> import keras
    >>> from tfuq.predictive import declare, declared
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
    >>> _ = declare(model, class_names=["well", "ill"])
    >>> declared(model).class_names
    ['well', 'ill']

    See also: `tfuq.predictive.declare`.
    """
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        from tfuq._files.reading import load_keras

        return declared(load_keras(model))
    members = getattr(model, "members", None)
    if members is None or isinstance(model, keras.Model):
        return from_content(recalled(model))
    found = [declared(member) for member in members]
    if any(each != found[0] for each in found):
        raise ValueError(
            f"Argument `model` must have members with the same declarations. Received: {found[:3]}"
        )
    return found[0] if found else Declared()


def content_of(found):
    """`Declared` as JSON can hold it."""
    inputs = None if found.inputs is None else found.inputs.get_config()
    return {"class_names": found.class_names, "inputs": inputs}


def from_content(content):
    """`Declared` of what `content_of` made; it may be from a file, and is checked."""
    inputs = content.get("inputs")
    inputs = None if inputs is None else InputSpec.from_config(inputs)
    return Declared(checked_names(content.get("class_names")), inputs)


def is_of_images(shape):
    """Whether an input shape is `(batch, height, width, 1 or 3)`."""
    return isinstance(shape, tuple) and len(shape) == 4 and shape[-1] in (1, 3)
