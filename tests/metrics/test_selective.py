"""Accuracy, coverage and rejection rate at one threshold, and the table for many."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from tfuq import metrics

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(3, 0.7), size=120)
LABELS = np.where(RNG.random(120) < 0.7, PROBS.argmax(axis=1), RNG.integers(3, size=120))
WEIGHT = RNG.integers(0, 4, size=120).astype(float)
FUNCTIONS = [metrics.selective_accuracy, metrics.coverage, metrics.rejection_rate]
METRICS = [metrics.SelectiveAccuracy, metrics.Coverage, metrics.RejectionRate]


def expected_at(threshold, confidence=None):
    """The row of the table at one threshold, counted by hand and by scikit-learn."""
    accepted = (PROBS.max(axis=1) if confidence is None else confidence) >= threshold
    share = WEIGHT[accepted].sum() / WEIGHT.sum()
    row = {"coverage": share, "rejection_rate": 1 - share}
    if share == 0:
        return {**row, "accuracy": np.nan, "risk": np.nan, "ece": np.nan}
    kept = {"sample_weight": WEIGHT[accepted]}
    accuracy = accuracy_score(LABELS[accepted], PROBS[accepted].argmax(axis=1), **kept)
    ece = metrics.expected_calibration_error(LABELS[accepted], PROBS[accepted], **kept)
    return {**row, "accuracy": accuracy, "risk": 1 - accuracy, "ece": ece}


@pytest.mark.parametrize("threshold", [0, 0.5, 0.73, 0.9, 1.0])
def test_functions_at_one_threshold(threshold):
    row = expected_at(threshold)
    names = ("accuracy", "coverage", "rejection_rate")
    for function, name in zip(FUNCTIONS, names, strict=True):
        ours = function(LABELS, PROBS, threshold, sample_weight=WEIGHT)
        np.testing.assert_allclose(ours, row[name], atol=1e-12)


@pytest.mark.parametrize("confidence", [None, RNG.random(120)])
def test_table_is_the_functions_at_each_threshold(confidence):
    thresholds = [0.9, 0.0, 0.5, 0.5, 0.73, 1.0]  # unsorted, with a repetition and the extremes
    table = metrics.rejection_table(
        LABELS, PROBS, thresholds, confidence=confidence, sample_weight=WEIGHT
    )
    np.testing.assert_array_equal(table["threshold"], thresholds)
    rows = [expected_at(threshold, confidence) for threshold in thresholds]
    for name, values in table.items():
        if name != "threshold":
            np.testing.assert_allclose(values, [row[name] for row in rows], atol=1e-12)


@pytest.mark.parametrize("n_bins", [1, 7])
def test_table_passes_its_options_on(n_bins):
    logits = np.log(PROBS)
    table = metrics.rejection_table(LABELS, logits, [0.6], n_bins=n_bins, from_logits=True)
    kept = PROBS.max(axis=1) >= 0.6
    expected = metrics.expected_calibration_error(LABELS[kept], PROBS[kept], n_bins=n_bins)
    np.testing.assert_allclose(table["ece"], [expected])


def test_table_of_multi_label_predictions_decides_on_each_label():
    probs, labels = PROBS[:, :2], RNG.integers(2, size=(120, 2))
    table = metrics.rejection_table(labels, probs, [0.8], multi_label=True)
    flat = metrics.rejection_table(labels.ravel(), probs.ravel(), [0.8])
    assert table.keys() == flat.keys()
    for name, values in table.items():
        np.testing.assert_allclose(values, flat[name])


def test_coverage_and_rejection_rate_are_fractions_to_the_last_bit():
    weight = RNG.random(120)
    table = metrics.rejection_table(LABELS, PROBS, np.linspace(0, 1, 21), sample_weight=weight)
    assert table["coverage"][0] == 1.0
    assert table["rejection_rate"][0] == 0.0
    assert (np.diff(table["coverage"]) <= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threshold", np.arange(5, 11) / 10)
def test_a_confidence_of_exactly_the_threshold_is_accepted(dtype, threshold):
    probs = np.array([[threshold, 1 - threshold]], dtype=dtype)
    assert metrics.coverage([0], probs, threshold) == 1.0
    assert metrics.rejection_table([0], probs, [threshold])["coverage"] == [1.0]
    metric = metrics.Coverage(threshold)
    metric.update_state([0], probs)
    assert float(metric.result()) == 1.0


def test_nothing_accepted_has_no_accuracy():
    assert np.isnan(metrics.selective_accuracy([0, 1], [[0.6, 0.4], [0.4, 0.6]], 0.7))
    assert metrics.coverage([0, 1], [[0.6, 0.4], [0.4, 0.6]], 0.7) == 0.0
    assert metrics.rejection_rate([0, 1], [[0.6, 0.4], [0.4, 0.6]], 0.7) == 1.0
    table = metrics.rejection_table([0, 1], [[0.6, 0.4], [0.4, 0.6]], [0.7])
    assert all(np.isnan(table[name]).all() for name in ("accuracy", "risk", "ece"))


def test_streaming_accuracy_is_nan_until_something_is_accepted():
    metric = metrics.SelectiveAccuracy(0.7)
    metric.update_state([0], [[0.6, 0.4]])
    assert np.isnan(metric.result())
    metric.update_state([0], [[0.8, 0.2]])
    assert float(metric.result()) == 1.0


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", None, True])
@pytest.mark.parametrize("part", [*FUNCTIONS, *METRICS])
def test_threshold_is_checked(part, threshold):
    with pytest.raises(ValueError, match=r"`threshold` must be in \[0, 1\]. Received: threshold="):
        part(threshold=threshold) if part in METRICS else part([0], [[0.5, 0.5]], threshold)


@pytest.mark.parametrize("thresholds", [[], [0.5, 1.5], [-0.1], [np.nan], [[0.5]], "high", None])
def test_thresholds_are_checked(thresholds):
    with pytest.raises(ValueError, match="Argument `thresholds` must"):
        metrics.rejection_table([0], [[0.5, 0.5]], thresholds)


@pytest.mark.parametrize(
    "confidence", [[0.5], [0.5, 1.5], [np.nan, 0.5], [-0.1, 0.5], [0.1, 0.2, 0.3], ["a", "b"]]
)
def test_confidence_is_checked(confidence):
    with pytest.raises(ValueError, match=r"Argument `confidence` must .*Received: confidence"):
        metrics.rejection_table([0, 1], [[0.5, 0.5]] * 2, [0.5], confidence=confidence)


def test_table_checks_its_bins():
    with pytest.raises(ValueError, match="`n_bins`"):
        metrics.rejection_table([0], [[0.5, 0.5]], [0.5], n_bins=0)


def test_what_has_no_weight_may_have_any_confidence():
    table = metrics.rejection_table(
        [0, -1], [[0.9, 0.1]] * 2, [0.5], confidence=[0.6, np.nan], sample_weight=[1, 0]
    )
    assert table["coverage"] == [1.0]
