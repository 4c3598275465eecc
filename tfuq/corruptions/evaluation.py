"""Evaluation of a model on corrupted images, by corruption and severity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    PathLike,
    Tensor,
    check_choice,
    check_integer,
    shown,
    told,
)
from tfuq._files.tables import write_csv
from tfuq._models.batches import batches
from tfuq._models.meaning import reading_of
from tfuq.corruptions._protocol import FIGURES, EvaluationProtocol, figure_table
from tfuq.corruptions._registry import (
    BENCHMARK,
    IMAGENET,
    SEVERITIES,
    check_severity,
    names,
    suite_of,
)

# Mean errors of AlexNet over the severities of ImageNet-C, as published beside that set.
_ERRORS = (
    *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572),
    *(0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
)
ALEXNET = dict(zip(BENCHMARK, _ERRORS, strict=True))


@told
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
        severity_of: Whose severities these are, `"cifar10-c"` or `"imagenet-c"`.

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

    See also: `tfuq.corruptions.corruption_report`.
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
    severity_of: str | None = None

    def mean_corruption_error(
        self, baseline: CorruptionReport | str | None = None, *, relative: bool = False
    ) -> float:
        """The mean error over corruptions, relative to that of a baseline model if there is one.

        Formula:
            CE_c = sum_s E_sc / sum_s B_sc,   mCE = mean_c CE_c        (Hendrycks and Dietterich)
            relative: CE_c = sum_s (E_sc - E_clean) / sum_s (B_sc - B_clean)
        with errors E = 1 - accuracy of this model and B of the baseline, at severity s of the
        corruption c. Without a baseline, B is 1 (and B_clean is 0): the plain mean of errors, as is
        usual for CIFAR-10-C, or of how much they grow.

        Means that are published are over the 15 corruptions `names("benchmark")`. Those of
        ImageNet-C are relative to AlexNet, whose errors, as published, are known here.

        Args:
            baseline: Report of the baseline model, of the same corruptions and severities; or
                `"alexnet"`, for reports that hold those 15 at severities 1 to 5 of ImageNet-C, of
                which others are left out; or None.
            relative: Whether to count what corruptions add to the error on clean images.

        Returns:
            A float, 0 or more unless `relative`; 1 is as bad as the baseline.

        Raises:
            ValueError: If `baseline` is no such report, or does not err at some corruption.
        """
        if isinstance(baseline, str):
            return self._relative_to_alexnet(baseline, relative)
        errors = self._errors(relative)
        if baseline is None:
            return float(errors.mean())
        is_report = isinstance(baseline, CorruptionReport)
        mine = (*self[:2], self.severity_of)
        theirs = (*baseline[:2], baseline.severity_of) if is_report else shown(baseline)
        if mine != theirs:
            raise ValueError(
                "Argument `baseline` must be a report of the corruptions and severities "
                f"{mine}. Received: {theirs}"
            )
        of_baseline = baseline._errors(relative).sum(axis=1)
        if not np.all(of_baseline > 0):
            faultless = self.corruptions[int(np.argmin(of_baseline))]
            raise ValueError(
                "Argument `baseline` must have an error above 0 at each corruption. Received: "
                f"{of_baseline.min():g} at {shown(faultless)}"
            )
        return float((errors.sum(axis=1) / of_baseline).mean())

    def _relative_to_alexnet(self, baseline, relative):
        check_choice("baseline", baseline, ("alexnet",))
        missing = sorted(set(ALEXNET) - set(self.corruptions))
        mine = (tuple(sorted(self.severities)), self.severity_of)
        if missing or relative or mine != (SEVERITIES, IMAGENET):
            raise ValueError(
                "Argument `baseline` must be None or a report, unless this report holds all of "
                f'`names("benchmark")` at severities {SEVERITIES} of "{IMAGENET}", with '
                f"relative=False. Received: baseline={shown(baseline)}, severities {mine[0]} of "
                f"{mine[1]}, relative={relative}, without {missing}"
            )
        means = dict(zip(self.corruptions, self._errors(False).mean(axis=1), strict=True))
        return float(np.mean([means[name] / error for name, error in ALEXNET.items()]))

    def _errors(self, relative):
        return (self.clean["accuracy"] if relative else 1.0) - self.accuracy

    def to_markdown(self, figure: str | None = None) -> str:
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
            return figure_table(["corruption", *FIGURES], rows)
        check_choice("figure", figure, FIGURES)
        rows = [["clean", *[""] * len(self.severities), self.clean[figure]]]
        for name, row in zip(self.corruptions, getattr(self, figure), strict=True):
            rows.append([name, *row, row.mean()])
        return figure_table([figure, *map(str, self.severities), "mean"], rows)

    def to_csv(self, path: PathLike) -> None:
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
    model: ModelLike | Callable[..., Any],
    x: Data,
    y: ArrayLike | None = None,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    *,
    threshold: float = 0.5,
    n_bins: int = 15,
    batch_size: int = 128,
    preprocess: Callable[[Any], Any] | None = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    sample_weight: ArrayLike | None = None,
    severity_of: str | None = None,
    seed: int | Tensor = 0,
    verbose: int = 1,
) -> CorruptionReport:
    """Accuracy, likelihood, calibration and coverage of a model on corrupted images.

    One pass over the data for clean images, and one for each corruption and severity.

    Args:
        model: A Keras model; or a function from a batch of inputs to probabilities, such as
            `DeepEnsemble.predict_mixture`.
        x: Images `(n, height, width, 1 or 3)`, uint8, or floating point in [0, 1]; or a
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches of images and labels.
        y: Labels, for arrays: `(n, ...)`, or one-hot `(n, ..., classes)`.
        corruptions: Names of corruptions; by default all, `tfuq.corruptions.names()`. Those of
            the published mean corruption error are `names("benchmark")`.
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
        severity_of: Whose severities, `"cifar10-c"` or `"imagenet-c"`; None for those of images of
            the size nearer to that of the first batch. The report says which.
        seed: Integer of at least 0. The noise of an image follows from it, the number of its batch
            and its place there.
        verbose: 1 shows a progress bar.

    Returns:
        `CorruptionReport`, of which `tfuq.plots.corruption_heat_map` makes a picture.

    Raises:
        ValueError: If the inputs are not images, labels are missing, or an argument is not as
            described.

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

    See also: `tfuq.corruptions.CorruptionReport`, `tfuq.plots.corruption_heat_map`.
    """
    corruptions = _checked_names(names() if corruptions is None else corruptions)
    severities = _checked_severities(severities)
    check_integer("seed", seed, 0)
    reading = reading_of(output, from_logits, multi_label)
    protocol = EvaluationProtocol(reading, threshold, n_bins, batch_size, preprocess, seed)
    data = x if y is None else (x, y, sample_weight)
    scores = protocol.scores(model)
    bar = keras.utils.Progbar(1 + len(corruptions) * len(severities), verbose=verbose)
    severity_of = suite_of(next(batches(data, batch_size, verbose=0))[0], severity_of)
    clean = protocol.figures(scores, data)
    bar.add(1)
    found = []
    for corruption in corruptions:
        for severity in severities:
            options = {"severity": severity, "severity_of": severity_of}
            found.append(protocol.figures(scores, data, corruption, options))
            bar.add(1)
    shape = (len(corruptions), len(severities))
    arrays = (np.reshape([each[name] for each in found], shape) for name in FIGURES)
    return CorruptionReport(corruptions, severities, clean, *arrays, threshold, severity_of)


def _checked_names(corruptions):
    if isinstance(corruptions, str) or not np.iterable(corruptions) or not len(corruptions):
        raise ValueError(
            "Argument `corruptions` must be a sequence of names, at least one. "
            f"Received: corruptions={shown(corruptions)}"
        )
    for name in corruptions:
        check_choice("corruptions", name, names())
    return tuple(corruptions)


def _checked_severities(severities):
    if not np.iterable(severities) or not len(severities):
        raise ValueError(
            "Argument `severities` must be a sequence of integers from 1 to 5, at least one. "
            f"Received: severities={shown(severities)}"
        )
    for severity in severities:
        check_severity(severity)
    return tuple(int(severity) for severity in severities)
