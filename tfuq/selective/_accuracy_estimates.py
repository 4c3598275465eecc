"""Estimates of distribution shift over arrays; `tfuq.selective` gathers them."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from tfuq._arguments import check_fraction, check_integer, to_float64
from tfuq._predictions.labelled import labelled_predictions
from tfuq._predictions.probabilities import entropy
from tfuq._predictions.scores import score_name
from tfuq.selective._label_shift import (
    by_true_class,
    confidence_difference,
    resampled,
    resampled_priors,
    sampling_error,
    solve_prior,
    thresholded_accuracy,
)


class LabelShift(NamedTuple):
    """How frequent the classes are in new data, from what a model predicts; arrays `(classes,)`.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import black_box_shift_estimation
    >>> probs = np.eye(2)[[0] * 60 + [1] * 40]
    >>> black_box_shift_estimation(probs, [0] * 60 + [1] * 40, np.eye(2)[[0] * 9 + [1]]).reliable
    True
    """

    source_prior: np.ndarray
    """Frequency of each class in the labelled data."""
    target_prior: np.ndarray
    """Estimated frequency in the new data; NaN, and so are its ends, if nothing of the kind that is
    predicted for these was predicted for the labelled data."""
    lower: np.ndarray
    """Lower end of its bootstrap interval."""
    upper: np.ndarray
    weights: np.ndarray
    """`target_prior / source_prior`; NaN for a class that the labelled data do not hold."""
    condition_number: float
    """Of the matrix P(predicted | true) that is inverted; inf if it is singular."""
    reliable: bool
    """Whether all classes were seen, and the least singular value of that matrix is above its
    sampling error: otherwise some classes cannot be told apart by these predictions."""
    p_value: float
    """Of the hypothesis that all classes are predicted as often as before (chi-squared test)."""


class AccuracyEstimate(NamedTuple):
    """The accuracy on new data, estimated without their labels.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import difference_of_confidences
    >>> probs = np.tile([[0.9, 0.1]], (10, 1))
    >>> found = difference_of_confidences(probs, [0] * 9 + [1], np.tile([[0.7, 0.3]], (5, 1)))
    >>> round(found.accuracy, 6), found.source_accuracy
    (0.7, 0.9)
    """

    accuracy: float
    lower: float
    """Lower end of its bootstrap interval: it tells of chance, not of wrong assumptions."""
    upper: float
    source_accuracy: float
    threshold: float | None
    """The score above which predictions count as right, if there is one."""


# --- Label shift ---------------------------------------------------------------------------------


def black_box_shift_estimation(
    probs_source,
    labels,
    probs_target,
    *,
    confidence=0.95,
    n_bootstrap=500,
    seed=0,
    from_logits=False,
):
    """Frequencies of the classes in new data without labels, if only these frequencies changed.

    Formula:

    ```
    sum_j P_source(predicted i | true j) q_j = P_target(predicted i)   (Lipton et al. 2018)
    ```

    solved for q >= 0 by least squares, which is the exact solution where that is a distribution.
    It holds if examples of a class look the same in both data: for label shift alone.

    Args:
        probs_source: Predictions for data that the model has not been trained on, `(n, classes)`;
            binary `(n,)` or `(n, 1)`; or a stack `(samples, n, classes)`.
        labels: Their labels, sparse or one-hot.
        probs_target: Predictions for the new data, of the same classes.
        confidence: Of the interval.
        n_bootstrap: Draws that the interval is made of.
        seed: Of these draws.
        from_logits: Whether predictions are logits.

    Returns:
        `LabelShift`.

    Raises:
        ValueError: If arrays are empty, hold NaN or no probabilities, or do not fit together; if
            there are several predictions for an example, of pixels or labels.

    Example:

    >>> import numpy as np
    >>> from tfuq.selective import black_box_shift_estimation
    >>> right = np.eye(2)[[0] * 90 + [1] * 10 + [1] * 80 + [0] * 20]  # 90 % and 80 % of a class
    >>> new = np.eye(2)[[0] * 34 + [1] * 66]  # as 20 % and 80 % of the classes would give
    >>> black_box_shift_estimation(right, [0] * 100 + [1] * 100, new).target_prior.round(6)
    array([0.2, 0.8])
    """
    check_draws(confidence, n_bootstrap, seed)
    source, labels, target = _read(probs_source, labels, probs_target, from_logits)
    classes = source.shape[1]
    confusion = confusion_of(labels, source).T
    counts = np.bincount(target.argmax(axis=1), minlength=classes)
    columns = by_true_class(confusion)
    found = solve_prior(columns, counts / counts.sum())
    draws = resampled_priors(confusion, counts, n_bootstrap, np.random.default_rng(seed))
    lower, upper = _interval(draws, confidence)
    prior = confusion.sum(axis=0) / confusion.sum()
    values = np.linalg.svd(columns, compute_uv=False)
    return LabelShift(
        prior,
        found,
        lower,
        upper,
        np.divide(found, prior, out=np.full(classes, np.nan), where=prior > 0),
        float(values[0] / values[-1]) if values[-1] > 1e-12 else np.inf,
        bool(np.all(prior > 0) and values[-1] > sampling_error(confusion)),
        _same_frequencies(confusion.sum(axis=1), counts),
    )


def correct_label_shift(probs, source_prior, target_prior, *, from_logits=False):
    """Probabilities for data whose classes are more or less frequent than where they were learned.

    Formula:

    ```
    p'(y | x) = p(y | x) q(y) / p(y), over the sum of the same     (Saerens et al. 2002)
    ```

    Args:
        probs: Predictions `(n, classes)`, binary `(n,)` or `(n, 1)`, or a stack of them.
        source_prior: Frequencies p of the classes where the model learned, `(classes,)`; two for
            binary predictions.
        target_prior: Frequencies q in the data at hand.
        from_logits: Whether `probs` are logits.

    Returns:
        Probabilities `(n, classes)`, float64. Where all that the prediction holds possible has a
        frequency of 0, the prediction as it was.

    Raises:
        ValueError: If a prior is not one, or asks for a class that the source does not have; if
            predictions hold NaN or do not fit.

    Example:

    >>> from tfuq.selective import correct_label_shift
    >>> correct_label_shift([[0.6, 0.4]], [0.5, 0.5], [0.2, 0.8]).round(4)
    array([[0.2727, 0.7273]])
    """
    probs = _read_unlabelled("probs", probs, from_logits)
    priors = {"source_prior": source_prior, "target_prior": target_prior}
    before, after = (_check_prior(*prior, probs.shape[1]) for prior in priors.items())
    if np.any((before == 0) & (after > 0)):
        raise ValueError(
            "Argument `source_prior` must be above 0 wherever `target_prior` is. "
            f"Received: source_prior={source_prior}, target_prior={target_prior}"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        # Ratios as logarithms: they may be larger than any float.
        ratio = np.where(after > 0, np.log(after) - np.log(before), -np.inf)
        found = np.log(probs) + ratio
    largest = found.max(axis=1, keepdims=True)
    found = np.exp(found - np.where(np.isfinite(largest), largest, 0))
    total = found.sum(axis=1, keepdims=True)
    return np.divide(found, total, out=probs.copy(), where=total > 0)


# --- Accuracy without labels -------------------------------------------------------------------


def average_thresholded_confidence(
    probs_source,
    labels,
    probs_target,
    *,
    score="confidence",
    confidence=0.95,
    n_bootstrap=200,
    seed=0,
    from_logits=False,
):
    """Accuracy on new data without labels: how many are trusted more than a threshold.

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
    """
    score = score_name(score, tuple(_SCORES))
    return _estimated(
        thresholded_accuracy,
        _SCORES[score],
        _read(probs_source, labels, probs_target, from_logits),
        (confidence, n_bootstrap, seed),
    )


def difference_of_confidences(
    probs_source,
    labels,
    probs_target,
    *,
    confidence=0.95,
    n_bootstrap=200,
    seed=0,
    from_logits=False,
):
    """Accuracy on new data without labels: that on the source, less the fall in confidence.

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
    """

    def estimate(*given):
        return confidence_difference(*given), None

    return _estimated(
        estimate,
        lambda probs: probs.max(axis=1),
        _read(probs_source, labels, probs_target, from_logits),
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
    interval = map(float, _interval(drawn, confidence))
    return AccuracyEstimate(found, *interval, float(correct.mean()), threshold)


# --- Covariate shift ---------------------------------------------------------------------------


# --- Arrays ------------------------------------------------------------------------------------


def _read(probs_source, labels, probs_target, from_logits):
    """Probabilities `(n, classes)` and labels of the source, probabilities of the target."""
    source, labels = _read_one("probs_source", probs_source, labels, from_logits)
    target = _read_unlabelled("probs_target", probs_target, from_logits)
    if source.shape[1] != target.shape[1]:
        raise ValueError(
            f"Argument `probs_target` must have the {source.shape[1]} classes of `probs_source`. "
            f"Received: {target.shape[1]}"
        )
    return source, labels, target


def _read_unlabelled(name, probs, from_logits):
    shape = to_float64(name, probs).shape
    count = shape[-2] if len(shape) > 1 else np.size(probs)
    return _read_one(name, probs, np.zeros(count), from_logits)[0]


def _read_one(name, probs, labels, from_logits):
    labelled = labelled_predictions(probs, labels, from_logits=from_logits, names=(name,))
    if len(labelled.shape) > 1:
        raise ValueError(
            f"Argument `{name}` must have one prediction for each example. "
            f"Received: {labelled.shape} of them"
        )
    return np.asarray(labelled.examples.probs()), np.asarray(labelled.examples.labels)


def confusion_of(labels, probs):
    """Counts by true (rows) and predicted class."""
    classes = probs.shape[1]
    cells = labels * classes + probs.argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def _interval(draws, confidence):
    side = (1 - confidence) / 2
    return np.quantile(draws, [side, 1 - side], axis=0)


def _same_frequencies(before, after):
    """p-value of the chi-squared test that two rows of counts have the same frequencies."""
    table = np.stack([before, after])
    table = table[:, table.sum(axis=0) > 0]
    return float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0


def check_draws(confidence, n_bootstrap, seed):
    check_fraction("confidence", confidence)
    check_integer("n_bootstrap", n_bootstrap, 1)
    check_integer("seed", seed, 0)


def _check_prior(name, prior, classes):
    prior = to_float64(name, prior)
    if prior.shape != (classes,) or not np.all(prior >= 0) or abs(prior.sum() - 1) > 1e-6:
        raise ValueError(
            f"Argument `{name}` must hold {classes} frequencies that sum to 1. "
            f"Received: {name}={prior}"
        )
    return prior
