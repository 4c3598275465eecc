"""Comparison of training on clean and on corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import Data, Output, PathLike, Tensor, check_choice, check_integer, shown, told
from tfuq._files.tables import write_csv
from tfuq._models.batches import repeated
from tfuq._models.meaning import reading_of
from tfuq._random.global_state import seeded
from tfuq.corruptions._protocol import FIGURES, EvaluationProtocol, figure_table
from tfuq.corruptions._registry import SEVERITIES, corrupt, names


@told
class NoiseSettings(NamedTuple):
    """How good models are that were trained and tested on clean or on corrupted images.

    Fields:
        corruption: Name of the corruption.
        levels: How strong it is, a tuple of texts.
        clean: Trained and tested on clean images: dict of name to number, of the figures
            `"accuracy"`, `"nll"` (nats), `"ece"`, `"coverage"` and `"selective_accuracy"`.
        test_corrupted: Trained on clean images, tested on corrupted ones: dict of name to array
            `(levels,)`.
        train_corrupted: Trained on corrupted images, tested on clean ones.
        both_corrupted: Trained and tested on images corrupted to the same level.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import NoiseSettings

    names = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")
    clean, noisy = dict.fromkeys(names, 0.9), dict.fromkeys(names, np.array([0.8, 0.7]))
    settings = NoiseSettings("fog", ("severity 1", "severity 5"), clean, noisy, noisy, noisy)
    print(settings.to_markdown())
    settings.to_csv("settings.csv")
    ```

    See also: `tfuq.corruptions.noise_settings`.
    """

    corruption: str
    levels: tuple
    clean: dict
    test_corrupted: dict
    train_corrupted: dict
    both_corrupted: dict

    def rows(self) -> list[list[Any]]:
        """The table's lines: what was trained on, what was tested on, and the five figures.

        Returns:
            A list of lists.
        """
        rows = [["clean", "clean", *(self.clean[name] for name in FIGURES)]]
        for figures, train, test in (
            (self.test_corrupted, False, True),
            (self.train_corrupted, True, False),
            (self.both_corrupted, True, True),
        ):
            for number, level in enumerate(self.levels):
                sets = [level if corrupted else "clean" for corrupted in (train, test)]
                rows.append([*sets, *(figures[name][number] for name in FIGURES)])
        return rows

    def to_markdown(self) -> str:
        """The table in Markdown, as table 5.4 of Mishra (2020).

        Returns:
            A string.
        """
        return figure_table(["train", "test", *FIGURES], self.rows())

    def to_csv(self, path: PathLike) -> None:
        """Writes the table.

        Args:
            path: Path of the file, which is there whole or not at all.
        """
        write_csv(path, ["train", "test", *FIGURES], self.rows())


def noise_settings(
    build_model: Callable[[], keras.Model],
    train: Data,
    test: Data,
    corruption: str,
    levels: Sequence[Any] = SEVERITIES,
    *,
    threshold: float = 0.5,
    n_bins: int = 15,
    batch_size: int = 32,
    preprocess: Callable[[Any], Any] | None = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    seed: int | Tensor = 0,
    verbose: int = 1,
    **fit_kwargs: Any,
) -> NoiseSettings:
    """Trains and tests on clean and on corrupted images, to see whether training on noise helps.

    The three settings of Mishra (2020, chapter 5), and the clean reference: trained clean and
    tested corrupted, trained corrupted and tested clean, both corrupted to the same level. One
    model is trained on clean images and one per level. All start from the same weights and see
    arrays in the same order. Arrays are corrupted once; in a dataset the noise belongs to the place
    of a batch, so that one which is not shuffled anew gives the same images in each epoch.

    Args:
        build_model: Function that returns a new, compiled Keras model.
        train: Training data: arrays `(x, y)` or `(x, y, sample_weight)` with images as
            `corruption_report` takes them, or a `tf.data.Dataset` of such batches.
        test: Test data, of the same kinds.
        corruption: One of `tfuq.corruptions.names()`.
        levels: How strong it is: severities, or dicts of the corruption's arguments, such as
            `[{"amount": 0.01, "salt": 0.25}, {"amount": 0.15, "salt": 0.25}]`.
        threshold: Confidence from which a prediction is accepted.
        n_bins: Number of bins of the calibration error.
        batch_size: Images at a time, for arrays, also in training.
        preprocess: Function of a batch of images, a tensor, that gives what the model takes; of a
            dataset it becomes part of the graph.
        output: Which output is tested, when the model has several.
        from_logits: Whether the model's outputs are logits. By default what its loss says.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        seed: Integer of at least 0, from which weights, orders and noise follow.
        verbose: 1 shows a progress bar, 2 also Keras' lines of each training.
        **fit_kwargs: Further arguments of `keras.Model.fit`, such as `epochs`.

    Returns:
        `NoiseSettings`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.corruptions import noise_settings

    def build_model():
        layers = [keras.layers.Flatten(), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=False)
        return model

    data = np.random.rand(32, 8, 8, 1), np.arange(32) % 2
    specks = [{"amount": 0.15, "salt": 0.25, "whole_pixels": True}]
    table = noise_settings(build_model, data, data, "impulse_noise", specks, verbose=0)
    print(table.to_markdown())
    ```

    References:
        Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020, chapter 5.

    See also: `tfuq.corruptions.NoiseSettings`, `tfuq.corruptions.gaussian_noise`.
    """
    check_choice("corruption", corruption, names())
    options = _checked_levels(corruption, levels)
    check_integer("seed", seed, 0)
    reading = reading_of(output, from_logits, multi_label)
    protocol = EvaluationProtocol(reading, threshold, n_bins, batch_size, preprocess, seed)
    bar = keras.utils.Progbar(1 + len(options), verbose=min(verbose, 1), unit_name="training")

    def trained(corruption=None, options=None):
        data = protocol.training_data(train, corruption, options)
        with seeded(seed):
            model = _checked_model(build_model)
            data["x"] = repeated(data["x"], fit_kwargs.get("steps_per_epoch"))
            model.fit(**data, **fit_kwargs, verbose=2 if verbose > 1 else 0)
        bar.add(1)
        return protocol.scores(model)

    scores = trained()
    clean = protocol.figures(scores, test)
    found = [[protocol.figures(scores, test, corruption, each) for each in options], [], []]
    for each in options:
        scores = trained(corruption, each)
        found[1].append(protocol.figures(scores, test))
        found[2].append(protocol.figures(scores, test, corruption, each))
    columns = ({n: np.array([each[n] for each in figures]) for n in FIGURES} for figures in found)
    return NoiseSettings(corruption, tuple(map(_text, options)), clean, *columns)


def _checked_levels(corruption, levels):
    """The arguments of each level, which the corruption has taken once."""
    if isinstance(levels, (str, dict)) or not np.iterable(levels) or not len(levels):
        raise ValueError(
            "Argument `levels` must be a sequence of severities, or of dicts of arguments of the "
            f"corruption, at least one. Received: levels={shown(levels)}"
        )
    options = [each if isinstance(each, dict) else {"severity": each} for each in levels]
    for each in options:
        corrupt(tf.zeros((1, 8, 8, 3)), corruption, **each)
    return options


def _checked_model(build_model):
    if not callable(build_model) or isinstance(build_model, keras.Model):
        raise ValueError(
            "Argument `build_model` must be a function that returns a compiled Keras model. "
            f"Received: build_model={shown(build_model)}"
        )
    model = build_model()
    if not isinstance(model, keras.Model) or not model.compiled:
        raise ValueError(
            "Argument `build_model` must return a compiled Keras model. "
            f"Received: a function that returns {shown(model)}"
        )
    return model


def _text(options):
    """`{"severity": 3}` -> "severity 3"."""
    return ", ".join(f"{name} {value}" for name, value in options.items())
