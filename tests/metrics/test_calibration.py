"""Calibration errors of the top label: against netcal, scikit-learn and counts made by hand."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from tfuq import metrics
from tfuq._math.bins import bin_sums, calibration_error, equal_mass, fine_index
from tfuq.metrics.calibration import FINE_BINS

NETCAL = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "netcal.npz", allow_pickle=False)
MEASURES = {
    "ece": metrics.expected_calibration_error,
    "mce": metrics.maximum_calibration_error,
    "adaptive": metrics.adaptive_calibration_error,
}
ANSWERS = [key for key in NETCAL.files if key.split("/")[1] in MEASURES]


def predictions(n, classes=4, seed=0):
    """Probabilities that are too confident, and labels."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(classes, 0.5), size=n)
    right = rng.random(n) < 0.8 * probs.max(axis=1)
    wrong = (probs.argmax(axis=1) + rng.integers(1, classes, size=n)) % classes
    return np.where(right, probs.argmax(axis=1), wrong), probs


@pytest.mark.parametrize("answer", ANSWERS)
def test_function_agrees_with_netcal(answer):
    case, measure, n_bins = answer.split("/")
    labels, probs = NETCAL[f"{case}/labels"], NETCAL[f"{case}/probs"]
    ours = MEASURES[measure](labels, probs, n_bins=int(n_bins))
    np.testing.assert_allclose(ours, NETCAL[answer], atol=1e-12)


def test_netcal_cases_tell_measures_and_bins_apart():
    values = [float(NETCAL[key]) for key in ANSWERS if key.startswith("random/")]
    assert len(set(np.round(values, 6))) >= 9  # so that agreement with them means something


@pytest.mark.parametrize("n_bins", [1, 4, 15])
def test_reliability_curve_agrees_with_sklearn(n_bins):
    labels, probs = predictions(200)
    curve = metrics.reliability_curve(labels, probs, n_bins=n_bins)
    right = probs.argmax(axis=1) == labels
    accuracy, confidence = calibration_curve(right, probs.max(axis=1), n_bins=n_bins)
    filled = curve["count"] > 0
    np.testing.assert_allclose(curve["accuracy"][filled], accuracy, atol=1e-12)
    np.testing.assert_allclose(curve["confidence"][filled], confidence, atol=1e-12)
    assert np.isnan(curve["accuracy"][~filled]).all()
    assert curve["count"].sum() == 200


def test_reliability_curve_names_its_bins():
    curve = metrics.reliability_curve([0, 1], [[0.75, 0.25], [0.5, 0.5]], n_bins=4)
    np.testing.assert_array_equal(curve["lower"], [0, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(curve["upper"], [0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(curve["count"], [0, 0, 1, 1])  # an edge lies above itself


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_edges_hold_in_any_precision(dtype):
    edges = np.linspace(0, 1, 11)[5:].astype(dtype)
    curve = metrics.reliability_curve(np.ones(6, int), edges, n_bins=10)
    rounded = np.float32(edges) >= np.linspace(0, 1, 11)[5:].astype("float32")
    counts = np.zeros(10)
    np.add.at(counts, np.minimum(np.arange(5, 11) - ~rounded, 9), 1)
    np.testing.assert_array_equal(curve["count"], counts)
    if dtype != "float16":
        assert rounded.all()


@pytest.mark.parametrize("measure", ["ece", "mce", "adaptive"])
def test_binary_confidence_is_that_of_the_likelier_class(measure):
    positive = np.random.default_rng(3).random(50)
    labels = np.random.default_rng(4).integers(2, size=50)
    both = np.stack([1 - positive, positive], axis=1)
    expected = MEASURES[measure](labels, both)
    assert MEASURES[measure](labels, positive) == pytest.approx(expected, abs=1e-12)
    assert MEASURES[measure](labels[:, None], positive[:, None]) == pytest.approx(expected)


@pytest.mark.parametrize("measure", ["ece", "mce", "adaptive"])
def test_multi_label_is_a_binary_prediction_per_label(measure):
    rng = np.random.default_rng(5)
    probs, labels = rng.random((40, 3)), rng.integers(2, size=(40, 3))
    ours = MEASURES[measure](labels, probs, multi_label=True)
    assert ours == pytest.approx(MEASURES[measure](labels.ravel(), probs.ravel()))


@pytest.mark.parametrize("measure", ["ece", "mce", "adaptive"])
def test_dense_predictions_count_every_place(measure):
    labels, probs = predictions(60)
    ours = MEASURES[measure](labels.reshape(3, 4, 5), probs.reshape(3, 4, 5, 4))
    assert ours == pytest.approx(MEASURES[measure](labels, probs))


@pytest.mark.parametrize("measure", ["ece", "mce", "adaptive"])
def test_weights_are_repetitions(measure):
    labels, probs = predictions(50)
    weight = np.random.default_rng(6).integers(0, 4, size=50)
    repeated = np.repeat(labels, weight), np.repeat(probs, weight, axis=0)
    ours = MEASURES[measure](labels, probs, sample_weight=weight)
    assert ours == pytest.approx(MEASURES[measure](*repeated), abs=1e-12)


@pytest.mark.parametrize("measure", ["ece", "mce", "adaptive"])
def test_logits_and_one_hot_labels_say_the_same(measure):
    labels, probs = predictions(50)
    expected = MEASURES[measure](labels, probs)
    assert MEASURES[measure](np.eye(4)[labels], probs) == pytest.approx(expected)
    assert MEASURES[measure](labels, np.log(probs) + 3, from_logits=True) == pytest.approx(expected)


@given(st.permutations(range(30)))
@settings(max_examples=15, deadline=None)
def test_adaptive_error_does_not_depend_on_order(order):
    rng = np.random.default_rng(7)
    positive = rng.choice([0.5, 0.7, 0.7, 0.9, 1.0], size=30)  # many ties
    labels, order = rng.integers(2, size=30), np.array(order)
    expected = metrics.adaptive_calibration_error(labels, positive, n_bins=4)
    ours = metrics.adaptive_calibration_error(labels[order], positive[order], n_bins=4)
    assert ours == pytest.approx(expected, abs=1e-12)


def test_adaptive_error_of_one_confidence_is_the_plain_gap():
    ours = metrics.adaptive_calibration_error([1, 1, 1, 0], [0.9] * 4)
    assert ours == pytest.approx(0.15)


def test_equal_mass_shares_out_what_lies_on_a_border():
    confidence, correct = np.array([0.2, 0.5, 0.9]), np.array([0, 1, 1])
    sums = bin_sums(np.arange(3), 3, confidence, correct, np.ones(3))
    halves = np.asarray(equal_mass(sums, 2))
    expected = [[1.5, 0.2 + 0.25, 0.5], [1.5, 0.25 + 0.9, 1.5]]
    np.testing.assert_allclose(halves, expected)


def adaptive_bound(probs, n_bins):
    """What the docstring allows between the streaming and the exact adaptive error."""
    index = np.asarray(fine_index(probs.max(axis=1), FINE_BINS))
    mass = np.bincount(index, minlength=FINE_BINS) / len(probs)
    borders = np.linspace(0, 1, n_bins + 1)[1:-1]
    holding = np.unique(np.searchsorted(np.cumsum(mass), borders))
    return 0.5 * 1.005 * mass[holding].sum()


@pytest.mark.parametrize("concentration", [0.02, 0.5, 5.0])
@pytest.mark.parametrize("n", [200, 20000])
def test_streaming_adaptive_error_stays_within_its_bound(concentration, n):
    rng = np.random.default_rng(8)
    probs = rng.dirichlet(np.full(3, concentration), size=n).astype("float32")
    labels = rng.integers(3, size=n)
    metric = metrics.AdaptiveCalibrationError()
    metric.update_state(labels, probs)
    exact = metrics.adaptive_calibration_error(labels, probs)
    error = abs(float(metric.result()) - exact)
    assert error <= adaptive_bound(probs, 15) + 1e-6
    if concentration == 5.0 and n == 20000:
        assert 0 < error < 1e-3


def test_fine_bins_are_narrow_everywhere():
    confidence = np.linspace(0, 1, 200_001)
    index = np.asarray(fine_index(confidence, FINE_BINS))
    assert (index[0], index[-1]) == (0, FINE_BINS - 1)
    assert (np.diff(index) >= 0).all()
    assert np.bincount(index).max() * 5e-6 < 0.0022


def test_calibration_error_of_nothing_is_nan():
    assert np.isnan(calibration_error(np.zeros((15, 3))))


@pytest.mark.parametrize("measure", ["ece", "mce", "adaptive"])
@pytest.mark.parametrize("n_bins", [0, -1, 2.5, True, None])
def test_number_of_bins_is_checked(measure, n_bins):
    with pytest.raises(ValueError, match=r"`n_bins` must .* Received: n_bins="):
        MEASURES[measure]([0, 1], [0.2, 0.8], n_bins=n_bins)


def test_reliability_curve_checks_its_bins():
    with pytest.raises(ValueError, match="`n_bins`"):
        metrics.reliability_curve([0, 1], [0.2, 0.8], n_bins=0)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.ExpectedCalibrationError,
        metrics.AdaptiveCalibrationError,
        metrics.MaximumCalibrationError,
        metrics.ClasswiseCalibrationError,
    ],
)
def test_metric_checks_its_bins(metric):
    with pytest.raises(ValueError, match="`n_bins`"):
        metric(n_bins=0)
