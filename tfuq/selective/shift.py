"""Shift report: how new data differ from labelled ones, and the accuracy to expect on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from tfuq._arguments import Data, Output, shown, to_float64, told
from tfuq._files.tables import markdown_table
from tfuq._models.batches import batches
from tfuq._models.features import Tap
from tfuq._models.outputs import select_output
from tfuq._predictions.probabilities import probabilities
from tfuq.selective._accuracy_estimates import (
    AccuracyEstimate,
    average_thresholded_confidence,
    difference_of_confidences,
)
from tfuq.selective._label_shift import LabelShift, black_box_shift_estimation, correct_label_shift
from tfuq.selective._shift_inputs import check_draws, confusion_of
from tfuq.selective._two_sample_test import TwoSampleTest, classifier_two_sample_test

__all__ = [
    "AccuracyEstimate",
    "LabelShift",
    "ShiftReport",
    "TwoSampleTest",
    "average_thresholded_confidence",
    "black_box_shift_estimation",
    "classifier_two_sample_test",
    "correct_label_shift",
    "difference_of_confidences",
    "shift_report",
]


@told
class ShiftReport(NamedTuple):
    """Shift of new data against test data, and the estimated accuracy on them.

    Example:

    ```python
    import keras, numpy as np
    from tfuq.selective import shift_report

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    x = np.random.default_rng(0).normal(size=(100, 2))
    print(shift_report(model, (x, x[:, 0] > 0), x + 3).to_markdown())
    ```

    See also: `tfuq.selective.shift_report`.
    """

    groups: tuple
    """Names of the classes, or of the groups of them."""
    source_examples: int
    target_examples: int
    label_shift: LabelShift
    feature_shift: TwoSampleTest
    thresholded_confidence: AccuracyEstimate
    confidence_difference: AccuracyEstimate
    source_confusion: np.ndarray
    """Labelled examples by true (rows) and predicted group."""
    target_confusion: np.ndarray | None
    """The same of the new data, if they have labels."""
    corrected_confusion: np.ndarray | None
    """The same of the predictions `corrected_probs`."""
    left_out: int
    """New examples whose label `label_map` does not name; they count nowhere in the confusion."""
    probs: np.ndarray
    """Probabilities of the new data, `(n, groups)`."""
    corrected_probs: np.ndarray
    """The same, corrected for the label shift that was estimated."""

    @property
    def source_accuracy(self) -> float | None:
        """Accuracy on the labelled data."""
        return _accuracy(self.source_confusion)

    @property
    def target_accuracy(self) -> float | None:
        """Accuracy on the new data; None without labels."""
        return _accuracy(self.target_confusion)

    @property
    def corrected_accuracy(self) -> float | None:
        """Accuracy of the corrected predictions on the new data; None without labels."""
        return _accuracy(self.corrected_confusion)

    def to_markdown(self) -> str:
        """What was found, line by line, and a table with a row for each group."""
        return "\n".join([*_summary(self), "", _group_table(self)])


def shift_report(
    model: keras.Model,
    source: Data,
    target: Data,
    *,
    label_map: Mapping[Any, Any] | None = None,
    class_map: Mapping[int, Any] | None = None,
    layer: str | None = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    max_examples: int = 5000,
    batch_size: int = 32,
    seed: int = 0,
    verbose: int = 0,
) -> ShiftReport:
    """Tests new data without labels for a shift and estimates the accuracy on them.

    Label shift is estimated by `black_box_shift_estimation`, covariate shift by
    `classifier_two_sample_test` on features, the accuracy by `average_thresholded_confidence` and
    `difference_of_confidences`. None of them sees all shifts, and no method here sees a change in
    the meaning of the labels.

    If the new data have other labels, such as 198 names for the model's 10 classes (paper 002,
    table 5.9), maps bring both to common groups; a group's probability is the sum over its classes.

    Args:
        model: A Keras model of any style with a prediction `(batch, classes)` for each example.
        source: Labelled data that the model has not been trained on: `(x, y)` arrays, a
            `tf.data.Dataset` or a `PyDataset` of such batches. Sample weights are not looked at.
        target: The new data: inputs alone or, to see the true accuracy too, with labels.
        label_map: `{label of target: group}`. A label that is missing in it (or has the group None)
            is left out, and counted. By default labels are the model's classes.
        class_map: `{class of the model, an integer: group}`, all of them. By default each class is
            a group, and the groups of `label_map` are integers.
        layer: Name of the layer whose outputs are the features; None for what the last layer takes.
        output: Which output, if there are several: an index or a key.
        from_logits: Whether it holds logits; None to find out.
        confidence: Of intervals.
        n_bootstrap: Draws that these are made of.
        max_examples: How many of each data the test of features uses at most.
        batch_size: Examples in a batch of arrays.
        seed: Of all that is drawn.
        verbose: 1 shows a progress bar.

    Returns:
        `ShiftReport`.

    Raises:
        ValueError: If data are empty, not finite, or `source` has no labels; if labels are no
            classes, or a map does not fit; if the model has no such layer or output.

    Example:

    ```python
    import keras, numpy as np
    from tfuq.selective import shift_report

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, "softmax")])
    x = np.random.default_rng(0).normal(size=(60, 3))
    names = np.array(["vulgaris", "areata", "keloidalis"])[x.argmax(-1)]
    report = shift_report(
        model,
        (x, x.argmax(-1)),
        (x, names),
        class_map={0: "acne", 1: "alopecia", 2: "acne"},
        label_map={"vulgaris": "acne", "areata": "alopecia", "keloidalis": "acne"},
    )
    print(report.to_markdown())
    ```

    References:
        - Lipton, Wang and Smola, "Detecting and correcting for label shift with black box
          predictors", 2018.
        - Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", 2017.
        - Garg et al., "Leveraging unlabeled data to predict out-of-distribution performance", 2022.
        - Guillory et al., "Predicting with confidence on unseen distributions", 2021.
        - Saerens et al., "Adjusting the outputs of a classifier to new a priori probabilities",
          2002.

    See also: `tfuq.selective.ShiftReport`, `tfuq.selective.classifier_two_sample_test`,
    `tfuq.selective.black_box_shift_estimation`, `tfuq.selective.Monitor`.
    """
    check_draws(confidence, n_bootstrap, seed)
    tap = Tap(model, (layer,), output=output, from_logits=from_logits)
    before = _predicted(tap, source, "source", output, batch_size, verbose, model)
    after = _predicted(tap, target, "target", output, batch_size, verbose, model)
    if before.labels is None:
        raise ValueError("Argument `source` must hold labels. Received: inputs alone")
    if after.labels is None and label_map is not None:
        raise ValueError(
            "Argument `label_map` must be None if `target` has no labels. "
            f"Received: label_map={shown(label_map)}"
        )
    groups, group_of = _groups(class_map, before.probs.shape[1])
    probs = [part.probs @ np.eye(len(groups))[group_of] for part in (before, after)]
    labels = _as_groups("source", before.labels, group_of)
    given = probs[0], labels, probs[1]
    options = {"confidence": confidence, "n_bootstrap": n_bootstrap, "seed": seed}
    shift = black_box_shift_estimation(*given, **options)
    known = np.isfinite(shift.target_prior).all()
    prior = shift.target_prior if known else shift.source_prior
    corrected = correct_label_shift(probs[1], shift.source_prior, prior)
    confusions, left_out = (None, None), 0
    if after.labels is not None:
        true = _mapped(after.labels, label_map, groups, group_of)
        left_out = int(np.count_nonzero(true < 0))
        rows = true >= 0
        confusions = [confusion_of(true[rows], found[rows]) for found in (probs[1], corrected)]
    return ShiftReport(
        tuple(groups),
        len(labels),
        len(probs[1]),
        shift,
        classifier_two_sample_test(
            before.features, after.features, max_examples=max_examples, seed=seed
        ),
        average_thresholded_confidence(*given, **options),
        difference_of_confidences(*given, **options),
        confusion_of(labels, probs[0]),
        *confusions,
        left_out,
        probs[1],
        corrected,
    )


class _Predicted(NamedTuple):
    """What a model makes of data, and their labels if they have any."""

    probs: np.ndarray
    features: np.ndarray
    labels: np.ndarray | None


def _predicted(tap, data, name, output, batch_size, verbose, model):
    found, labels = [], []
    for batch, label, _ in batches(data, batch_size, verbose, name, model=model, finite=True):
        found.append(tap(batch))
        if label is not None:
            labels.append(_label_array(label, output))
    logits = np.concatenate([part.logits for part in found], dtype="float64")
    probs = np.asarray(probabilities(logits, True, is_binary=False))
    features = np.concatenate([part.features[0] for part in found])
    if not (np.isfinite(probs).all() and np.isfinite(features).all()):
        raise ValueError(
            f"Argument `model` must predict finite numbers. Received: NaN or infinity for `{name}`"
        )
    return _Predicted(probs, features, np.concatenate(labels) if labels else None)


def _label_array(label, output):
    """Labels of a batch, `(batch,)`, of one-hot rows the class."""
    if isinstance(label, (dict, list, tuple)):
        label = select_output(label, output)
    label = np.asarray(label)
    if label.ndim > 1 and label.shape[-1] > 1:
        label = label.argmax(axis=-1)
    label = label.reshape(len(label), -1)[:, 0]
    if label.dtype.kind in "SO":
        return np.array([x.decode() if isinstance(x, bytes) else x for x in label], dtype=object)
    return label


def _groups(class_map, classes):
    """Names of the groups, and the group of each class."""
    if class_map is None:
        return [str(k) for k in range(classes)], np.arange(classes)
    if not isinstance(class_map, dict) or set(class_map) != set(range(classes)):
        raise ValueError(
            f"Argument `class_map` must be a dict with a group for each class 0 to {classes - 1}. "
            f"Received: class_map={shown(class_map)}"
        )
    named = [str(class_map[k]) for k in range(classes)]
    groups = list(dict.fromkeys(named))
    if len(groups) < 2:
        raise ValueError(f"Argument `class_map` must have at least 2 groups. Received: {groups}")
    return groups, np.array([groups.index(name) for name in named])


def _as_groups(name, labels, group_of):
    """Groups of labels that are classes."""
    numbers = to_float64(name, labels)
    fine = (numbers >= 0) & (numbers < len(group_of)) & (numbers == np.floor(numbers))
    if not np.all(fine):
        raise ValueError(
            f"Argument `{name}` must have labels of the classes 0 to {len(group_of) - 1}. "
            f"Received: {labels[~fine][0]} ({np.count_nonzero(~fine)} such)"
        )
    return group_of[numbers.astype(int)]


def _mapped(labels, label_map, groups, group_of):
    """Groups of the target's labels; -1 for what is left out."""
    if label_map is None:
        return _as_groups("target", labels, group_of)
    known = isinstance(label_map, dict) and {str(g) for g in label_map.values() if g is not None}
    if not known or not known <= set(groups):
        raise ValueError(
            f"Argument `label_map` must be a dict from labels to the groups {groups}. "
            f"Received: label_map={shown(label_map)}"
        )
    index = {key: -1 if g is None else groups.index(str(g)) for key, g in label_map.items()}
    found = np.array([index.get(label, -1) for label in labels.tolist()])
    if np.all(found < 0):
        raise ValueError(
            "Argument `label_map` must name some of the labels of `target`. "
            f"Received: label_map={shown(label_map)} for {list(dict.fromkeys(labels.tolist()))[:5]}"
        )
    return found


def _accuracy(confusion):
    return None if confusion is None else float(np.trace(confusion) / confusion.sum())


def _summary(report):
    shift, test = report.label_shift, report.feature_shift
    doubt = "" if shift.reliable else "; the estimate below is unreliable: classes are confused"
    lines = [
        f"- {report.target_examples} new examples, beside {report.source_examples} labelled ones",
        f"- predicted frequencies as before: p = {shift.p_value:.2g} (condition number "
        f"{shift.condition_number:.3g}{doubt})",
        f"- features alike: p = {test.p_value:.2g} (a classifier tells them apart in "
        f"{test.accuracy:.1%} of {test.examples})",
        f"- accuracy on the labelled data {report.source_accuracy:.1%}",
    ]
    estimates = {
        "average thresholded confidence": report.thresholded_confidence,
        "difference of confidences": report.confidence_difference,
    }
    lines += [
        f"- estimated on the new data {found.accuracy:.1%} [{found.lower:.1%}, {found.upper:.1%}] "
        f"({name})"
        for name, found in estimates.items()
    ]
    if report.target_accuracy is not None:
        left = f"; {report.left_out} left out" if report.left_out else ""
        lines.append(
            f"- true on the new data {report.target_accuracy:.1%}, corrected for label shift "
            f"{report.corrected_accuracy:.1%}{left}"
        )
    return lines


def _group_table(report):
    shift = report.label_shift
    has_labels = report.target_confusion is not None
    names = ["group", "frequency before", "now, estimated", "recall before"]
    names += ["recall now"] * has_labels
    rows = []
    for k, group in enumerate(report.groups):
        cells = [
            group,
            f"{shift.source_prior[k]:.1%}",
            f"{shift.target_prior[k]:.1%} [{shift.lower[k]:.1%}, {shift.upper[k]:.1%}]",
            _recall(report.source_confusion, k),
        ]
        cells += [_recall(report.target_confusion, k)] if has_labels else []
        rows.append(cells)
    return markdown_table(names, rows)


def _recall(confusion, group):
    total = confusion[group].sum()
    return f"{confusion[group, group] / total:.1%}" if total else "-"
