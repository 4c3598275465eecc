"""How well a model stands corrupted images, and whether training on them helps."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_choice, check_integer
from tfuq._files.tables import markdown_table, write_csv
from tfuq._images.pieces import checked_images
from tfuq._models.batches import batches
from tfuq._models.outputs import Reading, any_batch, select_output
from tfuq._random.global_state import seed_of, seeded
from tfuq.corruptions._registry import SEVERITIES, check_severity, corrupt, names
from tfuq.metrics import (
    coverage,
    expected_calibration_error,
    negative_log_likelihood,
    selective_accuracy,
)

FIGURES = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")
TRAIN, TEST = 1, 2  # what the noise is for: no image of one has the noise of another


class CorruptionReport(NamedTuple):
    """How good a model is on clean images, and on those of each corruption and severity.

    Fields:
        corruptions: Names of the corruptions, a tuple.
        severities: Severities, a tuple of integers.
        clean: Dict of the five figures on clean images.
        accuracy: Array `(corruptions, severities)` of fractions.
        nll: Negative log-likelihoods in nats, of that shape like all below.
        ece: Expected calibration errors, fractions.
        coverage: Fractions of predictions whose confidence reaches `threshold`.
        selective_accuracy: Accuracy on these; NaN where there are none.
        threshold: Confidence from which a prediction counts as accepted.

    Example:

    ```python
    import numpy as np
    from tfuq.corruptions import CorruptionReport

    figures = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")
    clean = dict.fromkeys(figures, 0.95)
    corrupted = dict.fromkeys(figures, np.array([[0.9, 0.8], [0.7, 0.4]]))
    report = CorruptionReport(("fog", "snow"), (1, 5), clean, **corrupted, threshold=0.5)
    print(report.mean_corruption_error())  # 0.3
    print(report.to_markdown("accuracy"))
    report.to_csv("report.csv")
    ```
    """

    corruptions: tuple
    severities: tuple
    clean: dict
    accuracy: np.ndarray
    nll: np.ndarray
    ece: np.ndarray
    coverage: np.ndarray
    selective_accuracy: np.ndarray
    threshold: float

    def mean_corruption_error(self, baseline=None, *, relative=False):
        """The mean error over corruptions, relative to that of a baseline model if there is one.

        Formula:
            CE_c = sum_s E_sc / sum_s B_sc,   mCE = mean_c CE_c        (Hendrycks and Dietterich)
            relative: CE_c = sum_s (E_sc - E_clean) / sum_s (B_sc - B_clean)
        with errors E = 1 - accuracy of this model and B of the baseline, at severity s of the
        corruption c. Without a baseline, B is 1 (and B_clean is 0): the plain mean of errors, as is
        usual for CIFAR-10-C, or of how much they grow.

        Args:
            baseline: Report of the baseline model, of the same corruptions and severities, or None.
            relative: Whether to count what corruptions add to the error on clean images.

        Returns:
            A float, 0 or more unless `relative`; 1 is as bad as the baseline.

        Raises:
            ValueError: If `baseline` is no such report, or does not err at some corruption.
        """
        errors = self._errors(relative)
        if baseline is None:
            return float(errors.mean())
        is_report = isinstance(baseline, CorruptionReport)
        if not is_report or baseline[:2] != self[:2]:
            received = baseline[:2] if is_report else baseline
            raise ValueError(
                "Argument `baseline` must be a report of the corruptions and severities "
                f"{self[:2]}. Received: {received!r}"
            )
        of_baseline = baseline._errors(relative).sum(axis=1)
        if not np.all(of_baseline > 0):
            faultless = self.corruptions[int(np.argmin(of_baseline))]
            raise ValueError(
                "Argument `baseline` must err more than 0 at each corruption. "
                f"Received: {of_baseline.min():g} at {faultless!r}"
            )
        return float((errors.sum(axis=1) / of_baseline).mean())

    def _errors(self, relative):
        return (self.clean["accuracy"] if relative else 1.0) - self.accuracy

    def to_markdown(self, figure=None):
        """A Markdown table with a line for each corruption.

        Args:
            figure: `"accuracy"`, `"nll"`, `"ece"`, `"coverage"` or `"selective_accuracy"`, with a
                column for each severity and their mean; None for the means of all five.

        Returns:
            A string.

        Raises:
            ValueError: If there is no such figure.
        """
        if figure is None:
            rows = [["clean", *(self.clean[name] for name in FIGURES)]]
            means = [getattr(self, name).mean(axis=1) for name in FIGURES]
            rows += [list(row) for row in zip(self.corruptions, *means, strict=True)]
            return markdown(["corruption", *FIGURES], rows)
        check_choice("figure", figure, FIGURES)
        rows = [["clean", *[""] * len(self.severities), self.clean[figure]]]
        for name, row in zip(self.corruptions, getattr(self, figure), strict=True):
            rows.append([name, *row, row.mean()])
        return markdown([figure, *map(str, self.severities), "mean"], rows)

    def to_csv(self, path):
        """Writes a line for clean images, of severity 0, and one for each corruption and severity.

        Args:
            path: Path of the file, which is there whole or not at all.
        """
        rows = [["clean", 0, *(self.clean[name] for name in FIGURES)]]
        for c, corruption in enumerate(self.corruptions):
            for s, severity in enumerate(self.severities):
                rows.append([corruption, severity, *(getattr(self, n)[c, s] for n in FIGURES)])
        write_csv(path, ["corruption", "severity", *FIGURES], rows)


def corruption_report(
    model,
    x,
    y=None,
    corruptions=None,
    severities=SEVERITIES,
    *,
    threshold=0.5,
    n_bins=15,
    batch_size=128,
    preprocess=None,
    output=None,
    from_logits=None,
    multi_label=False,
    sample_weight=None,
    seed=0,
    verbose=1,
):
    """Accuracy, likelihood, calibration and coverage of a model on corrupted images.

    One pass over the data for clean images, and one for each corruption and severity.

    Args:
        model: A Keras model; or a function from a batch of inputs to probabilities, such as
            `DeepEnsemble.predict_mixture`.
        x: Images `(n, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; or a
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches of images and labels.
        y: Labels, for arrays: `(n, ...)`, or one-hot `(n, ..., classes)`.
        corruptions: Names of corruptions; by default all, `tfuq.corruptions.names()`.
        severities: Integers from 1 to 5.
        threshold: Confidence from which a prediction is accepted.
        n_bins: Number of bins of the calibration error.
        batch_size: Images at a time, for arrays; datasets have their own.
        preprocess: Function of a batch of (corrupted) images, a tensor, that gives what the model
            takes; by default the images themselves.
        output: Which output, when the model has several: an index, a key or a function of them.
        from_logits: Whether a Keras model's outputs are logits. By default what its compiled loss
            says, or else what the outputs look like.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        sample_weight: Weights, for arrays.
        seed: Integer of at least 0. The noise of an image follows from it, the number of its batch
            and its place there.
        verbose: 1 shows a progress bar.

    Returns:
        `CorruptionReport`, of which `tfuq.plots.corruption_heat_map` makes a picture.

    Raises:
        ValueError: If the images are none, labels are missing, or an argument is not as described.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.corruptions import corruption_report

    x, y = np.random.rand(16, 8, 8, 1), np.arange(16) % 3
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    report = corruption_report(model, x, y, ["gaussian_noise", "contrast"], (1, 5), verbose=0)
    print(report.accuracy, report.mean_corruption_error())
    ```

    References:
        Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations, ICLR 2019.
    """
    corruptions = _checked_names(names() if corruptions is None else corruptions)
    severities = _checked_severities(severities)
    check_integer("seed", seed, 0)
    reading = Reading(output, from_logits, multi_label)
    judge = _Judge(reading, threshold, n_bins, batch_size, preprocess, seed)
    data = x if y is None else (x, y, sample_weight)
    scores = judge.scores(model)
    bar = keras.utils.Progbar(1 + len(corruptions) * len(severities), verbose=verbose)
    clean = judge.figures(scores, data)
    bar.add(1)
    found = []
    for corruption in corruptions:
        for severity in severities:
            found.append(judge.figures(scores, data, corruption, {"severity": severity}))
            bar.add(1)
    shape = (len(corruptions), len(severities))
    arrays = (np.reshape([each[name] for each in found], shape) for name in FIGURES)
    return CorruptionReport(corruptions, severities, clean, *arrays, threshold)


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
    """

    corruption: str
    levels: tuple
    clean: dict
    test_corrupted: dict
    train_corrupted: dict
    both_corrupted: dict

    def rows(self):
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

    def to_markdown(self):
        """The table in Markdown, as table 5.4 of Mishra (2020).

        Returns:
            A string.
        """
        return markdown(["train", "test", *FIGURES], self.rows())

    def to_csv(self, path):
        """Writes the table.

        Args:
            path: Path of the file, which is there whole or not at all.
        """
        write_csv(path, ["train", "test", *FIGURES], self.rows())


def noise_settings(
    build_model,
    train,
    test,
    corruption,
    levels=SEVERITIES,
    *,
    threshold=0.5,
    n_bins=15,
    batch_size=32,
    preprocess=None,
    output=None,
    from_logits=None,
    multi_label=False,
    seed=0,
    verbose=1,
    **fit_kwargs,
):
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
        **fit_kwargs: What else `keras.Model.fit` takes, such as `epochs`.

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
    """
    check_choice("corruption", corruption, names())
    options = _checked_levels(corruption, levels)
    check_integer("seed", seed, 0)
    reading = Reading(output, from_logits, multi_label)
    judge = _Judge(reading, threshold, n_bins, batch_size, preprocess, seed)
    bar = keras.utils.Progbar(1 + len(options), verbose=min(verbose, 1), unit_name="training")

    def trained(corruption=None, options=None):
        data = judge.training_data(train, corruption, options)
        with seeded(seed):
            model = _checked_model(build_model)
            model.fit(**data, **fit_kwargs, verbose=2 if verbose > 1 else 0)
        bar.add(1)
        return judge.scores(model)

    scores = trained()
    clean = judge.figures(scores, test)
    found = [[judge.figures(scores, test, corruption, each) for each in options], [], []]
    for each in options:
        scores = trained(corruption, each)
        found[1].append(judge.figures(scores, test))
        found[2].append(judge.figures(scores, test, corruption, each))
    columns = ({n: np.array([each[n] for each in figures]) for n in FIGURES} for figures in found)
    return NoiseSettings(corruption, tuple(map(_text, options)), clean, *columns)


# --- Predictions and how good they are --------------------------------------------------------


class _Judge(NamedTuple):
    """How models are asked, and how their answers are judged."""

    reading: Reading
    threshold: float
    n_bins: int
    batch_size: int
    preprocess: object
    seed: int

    def scores(self, model):
        """What `model` answers to images, as a function of their batches."""
        if isinstance(model, keras.Model):
            return _ModelScores(model, self.reading, self.inputs)
        if callable(model):
            return _FunctionScores(model, self.inputs)
        raise ValueError(
            "Argument `model` must be a Keras model or a function from inputs to probabilities. "
            f"Received: model={model!r}"
        )

    def inputs(self, images):
        """What the model takes, from images."""
        return images if self.preprocess is None else self.preprocess(images)

    def figures(self, scores, data, corruption=None, options=None):
        """The five figures on `data`, by name, with or without a corruption."""
        rows = []
        for number, (images, *beside) in enumerate(batches(data, self.batch_size, verbose=0)):
            images = self._corrupted(images, corruption, options, seed_of(self.seed, number, TEST))
            rows.append((scores(images), *map(self._chosen, beside)))
        predicted, labels, weight = (
            None if part[0] is None else np.concatenate(part) for part in zip(*rows, strict=True)
        )
        if labels is None:
            raise ValueError("Argument `y` must hold labels, or `x` pairs. Received: no labels")
        data = (labels, predicted)
        flags = {"from_logits": scores.from_logits, "multi_label": self.reading.multi_label}
        flags["sample_weight"] = weight
        return {
            "accuracy": selective_accuracy(*data, 0.0, **flags),
            "nll": negative_log_likelihood(*data, **flags),
            "ece": expected_calibration_error(*data, n_bins=self.n_bins, **flags),
            "coverage": coverage(*data, self.threshold, **flags),
            "selective_accuracy": selective_accuracy(*data, self.threshold, **flags),
        }

    def _chosen(self, beside):
        """Labels or weights of the judged output, as an array or None."""
        nested = keras.tree.is_nested(beside)
        beside = select_output(beside, self.reading.output) if nested else beside
        return None if beside is None else np.asarray(beside)

    def _corrupted(self, images, corruption, options, seed):
        if corruption is None:
            return checked_images(images)
        return corrupt(images, corruption, **options, seed=seed)

    def training_data(self, data, corruption, options):
        """Arguments of `fit`: `data`, corrupted once if asked for, and ready for the model."""
        seed = seed_of(self.seed, 0, TRAIN) >> 1

        def changed(number, images, *beside):
            pair = tf.stack([seed, tf.cast(number, "int32")])
            return self.inputs(self._corrupted(images, corruption, options, pair)), *beside

        if isinstance(data, tf.data.Dataset):
            return {"x": data.enumerate().map(lambda number, each: changed(number, *each))}
        parts = [
            changed(number, images)[0]
            for number, (images, *_) in enumerate(batches(data, self.batch_size, verbose=0))
        ]
        _, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x = tf.nest.map_structure(lambda *each: np.concatenate(each), *parts)
        return {"x": x, "y": y, "sample_weight": weight, "batch_size": self.batch_size}


class _FunctionScores:
    """Probabilities that a function gives."""

    from_logits = False

    def __init__(self, function, inputs):
        self._function, self._inputs = function, inputs

    def __call__(self, images):
        return np.asarray(self._function(self._inputs(images)))


class _ModelScores:
    """Logits or probabilities of a Keras model; logits as they are, where soft-max underflows."""

    from_logits = None

    def __init__(self, model, reading, inputs):
        self._model, self._reading, self._inputs = model, reading, inputs

    def __call__(self, images):
        batch = self._inputs(images)
        if self.from_logits is None:
            self.from_logits = self._reading.is_logits(self._model, batch)
            self._function = tf.function(
                lambda batch: self._reading.select(self._model, batch),
                input_signature=[tf.nest.map_structure(any_batch, batch)],
                autograph=False,
            )
        return self._function(batch).numpy()


# --- Tables -----------------------------------------------------------------------------------


def markdown(header, rows):
    """A table in Markdown; numbers with four digits after the point."""
    cells = [[f"{c:.4f}" if isinstance(c, float) else c for c in row] for row in rows]
    return markdown_table(header, cells)


# --- Checks -----------------------------------------------------------------------------------


def _checked_names(corruptions):
    if isinstance(corruptions, str) or not np.iterable(corruptions) or not len(corruptions):
        raise ValueError(
            "Argument `corruptions` must be a sequence of names, at least one. "
            f"Received: corruptions={corruptions!r}"
        )
    for name in corruptions:
        check_choice("corruptions", name, names())
    return tuple(corruptions)


def _checked_severities(severities):
    if not np.iterable(severities) or not len(severities):
        raise ValueError(
            "Argument `severities` must be a sequence of integers from 1 to 5, at least one. "
            f"Received: severities={severities!r}"
        )
    for severity in severities:
        check_severity(severity)
    return tuple(int(severity) for severity in severities)


def _checked_levels(corruption, levels):
    """The arguments of each level, which the corruption has taken once."""
    if isinstance(levels, (str, dict)) or not np.iterable(levels) or not len(levels):
        raise ValueError(
            "Argument `levels` must be a sequence of severities, or of dicts of arguments of the "
            f"corruption, at least one. Received: levels={levels!r}"
        )
    options = [each if isinstance(each, dict) else {"severity": each} for each in levels]
    for each in options:
        corrupt(tf.zeros((1, 8, 8, 3)), corruption, **each)
    return options


def _checked_model(build_model):
    if not callable(build_model) or isinstance(build_model, keras.Model):
        raise ValueError(
            "Argument `build_model` must be a function that returns a compiled Keras model. "
            f"Received: build_model={build_model!r}"
        )
    model = build_model()
    if not isinstance(model, keras.Model) or not model.compiled:
        raise ValueError(
            "Argument `build_model` must return a compiled Keras model. "
            f"Received: a function that returns {model!r}"
        )
    return model


def _text(options):
    """`{"severity": 3}` -> "severity 3"."""
    return ", ".join(f"{name} {value}" for name, value in options.items())
