"""Estimates of accuracy on new data, without their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfuq._arguments import ArrayLike
from tfuq._predictions.probabilities import entropy
from tfuq._predictions.scores import score_name
from tfuq.selective._shift_inputs import (
    check_draws,
    interval_of,
    read_source_and_target,
)


class AccuracyEstimate(NamedTuple):
    """The accuracy on new data, estimated without their labels.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import difference_of_confidences
    >>> probs = np.tile([[0.9, 0.1]], (10, 1))
    >>> found = difference_of_confidences(probs, [0] * 9 + [1], np.tile([[0.7, 0.3]], (5, 1)))
    >>> round(found.accuracy, 6), found.source_accuracy
    (0.7, 0.9)

    See also: `tfuq.selective.average_thresholded_confidence`,
    `tfuq.selective.difference_of_confidences`.
    """

    accuracy: float
    lower: float
    """Lower end of its bootstrap interval: it tells of chance, not of wrong assumptions."""
    upper: float
    source_accuracy: float
    threshold: float | None
    """The score above which predictions count as right, if there is one."""


def average_thresholded_confidence(
    probs_source: ArrayLike,
    labels: ArrayLike,
    probs_target: ArrayLike,
    *,
    score: str = "confidence",
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    seed: int = 0,
    from_logits: bool = False,
) -> AccuracyEstimate:
    """Accuracy on new data without labels: the share of confidences above a threshold.

    Formula:

    ```
    P_source(score > t) = accuracy on source;   estimate: P_target(score > t)   (Garg et al. 2022)
    ```

    Equal scores share what is over, so that the estimate for the source itself is its accuracy,
    whatever the order. It is right where a score means the same in both data, and misleads where a
    model is sure of what it does not know.

    Args:
        probs_source: Predictions for data that the model has not been trained on, `(n, classes)`;
            binary `(n,)` or `(n, 1)`; or a stack `(samples, n, classes)`.
        labels: Their labels, sparse or one-hot.
        probs_target: Predictions for the new data.
        score: `"confidence"`, the largest probability, or `"predictive_entropy"`, of which the
            negative is compared.
        confidence: Of the interval.
        n_bootstrap: Draws that the interval is made of.
        seed: Of these draws.
        from_logits: Whether predictions are logits.

    Returns:
        `AccuracyEstimate`.

    Raises:
        ValueError: As `black_box_shift_estimation`.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import average_thresholded_confidence
    >>> def binary(p):
    ...     return np.stack([p, 1 - p], axis=1)
    >>> source, target = binary(np.linspace(0.5, 1, 100)), binary(np.linspace(0.5, 0.8, 100))
    >>> labels = np.arange(100) < 20  # the least sure are wrong
    >>> average_thresholded_confidence(source, labels, target).accuracy
    0.66

    See also: `tfuq.selective.difference_of_confidences`, `tfuq.selective.shift_report`.
    """
    score = score_name(score, tuple(_SCORES))
    return _estimated(
        thresholded_accuracy,
        _SCORES[score],
        read_source_and_target(probs_source, labels, probs_target, from_logits),
        (confidence, n_bootstrap, seed),
    )


def difference_of_confidences(
    probs_source: ArrayLike,
    labels: ArrayLike,
    probs_target: ArrayLike,
    *,
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    seed: int = 0,
    from_logits: bool = False,
) -> AccuracyEstimate:
    """Accuracy on new data without labels: source accuracy minus the drop in confidence.

    Formula:

    ```
    accuracy on source - (mean confidence on source - on target)   (Guillory et al. 2021)
    ```

    Args:
        probs_source: As in `average_thresholded_confidence`.
        labels: Their labels, sparse or one-hot.
        probs_target: Predictions for the new data.
        confidence: Of the interval.
        n_bootstrap: Draws that the interval is made of.
        seed: Of these draws.
        from_logits: Whether predictions are logits.

    Returns:
        `AccuracyEstimate`.

    Raises:
        ValueError: As `black_box_shift_estimation`.

    Example:

    >>> from tfuq.selective import difference_of_confidences
    >>> probs = [[0.9, 0.1], [0.2, 0.8]]
    >>> found = difference_of_confidences(probs, [0, 1], [[0.6, 0.4], [0.6, 0.4]])
    >>> round(found.accuracy, 6)
    0.75

    See also: `tfuq.selective.average_thresholded_confidence`, `tfuq.selective.shift_report`.
    """

    def estimate(*given):
        return confidence_difference(*given), None

    return _estimated(
        estimate,
        lambda probs: probs.max(axis=1),
        read_source_and_target(probs_source, labels, probs_target, from_logits),
        (confidence, n_bootstrap, seed),
    )


_SCORES = {  # float32, so that 0.7 equals 0.7
    "confidence": lambda probs: probs.max(axis=1).astype("float32"),
    "predictive_entropy": lambda probs: -np.asarray(entropy(probs), "float32"),
}


def _estimated(estimate, score_of, read, draws):
    confidence, n_bootstrap, seed = draws
    check_draws(confidence, n_bootstrap, seed)
    source, labels, target = read
    correct = source.argmax(axis=1) == labels
    given = score_of(source), correct, score_of(target)
    found, threshold = estimate(*given)
    rng = np.random.default_rng(seed)
    drawn = resampled(lambda *parts: estimate(*parts)[0], *given, n_bootstrap, rng)
    interval = map(float, interval_of(drawn, confidence))
    return AccuracyEstimate(found, *interval, float(correct.mean()), threshold)


def thresholded_accuracy(source, correct, target):
    """Fraction of `target` scores above the threshold that has the source's accuracy above it.

    Scores equal to the threshold count by the fraction that makes it exact on the source.
    Returns the accuracy and the threshold.
    """
    errors = len(source) - int(np.count_nonzero(correct))
    if errors == len(source):
        return 0.0, np.inf
    threshold = np.partition(source, errors)[errors]
    above, at = np.count_nonzero(source > threshold), np.count_nonzero(source == threshold)
    share = (len(source) - errors - above) / at
    found = np.mean(target > threshold) + share * np.mean(target == threshold)
    return float(found), float(threshold)


def confidence_difference(source, correct, target):
    """Source accuracy less what the mean confidence falls by, in [0, 1]."""
    return float(np.clip(np.mean(correct) - (np.mean(source) - np.mean(target)), 0, 1))


def resampled(estimate, source, correct, target, times, rng):
    """`estimate(source, correct, target)` of examples drawn anew from both, `(times,)`."""
    found = np.empty(times)
    for i in range(times):
        rows = rng.integers(len(source), size=len(source))
        others = rng.integers(len(target), size=len(target))
        found[i] = estimate(source[rows], correct[rows], target[others])
    return found
