"""Calibration of each class against the rest."""

import pathlib

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from tfuq import metrics

NETCAL = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "netcal.npz", allow_pickle=False)
ANSWERS = [key for key in NETCAL.files if key.split("/")[1] == "classwise"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_function_agrees_with_netcal(answer):
    case, _, n_bins = answer.split("/")
    data = NETCAL[f"{case}/labels"], NETCAL[f"{case}/probs"]
    ours = metrics.classwise_calibration_error(*data, n_bins=int(n_bins), per_class=True)
    np.testing.assert_allclose(ours, NETCAL[answer], atol=1e-12)
    mean = metrics.classwise_calibration_error(*data, n_bins=int(n_bins))
    assert mean == pytest.approx(NETCAL[answer].mean(), abs=1e-12)


def test_binary_prediction_has_the_curve_of_class_one():
    rng = np.random.default_rng(0)
    positive = rng.random(300)
    labels = (rng.random(300) < positive**2).astype(int)
    frequency, probability = calibration_curve(labels, positive, n_bins=10)
    counts, _ = np.histogram(positive, bins=10, range=(0, 1))
    expected = (counts * abs(frequency - probability)).sum() / 300
    ours = metrics.classwise_calibration_error(labels, positive, n_bins=10, per_class=True)
    np.testing.assert_allclose(ours, [expected])


def test_multi_label_prediction_has_a_curve_per_label():
    rng = np.random.default_rng(1)
    probs, labels = rng.random((50, 3)), rng.integers(2, size=(50, 3))
    ours = metrics.classwise_calibration_error(labels, probs, multi_label=True, per_class=True)
    expected = [metrics.classwise_calibration_error(labels[:, k], probs[:, k]) for k in range(3)]
    np.testing.assert_allclose(ours, expected)


def test_weights_per_label_and_a_label_without_any():
    rng = np.random.default_rng(2)
    probs, labels = rng.random((50, 2)), rng.integers(2, size=(50, 2))
    weight = np.stack([rng.integers(3, size=50), np.zeros(50)], axis=1)
    ours = metrics.classwise_calibration_error(
        labels, probs, multi_label=True, per_class=True, sample_weight=weight
    )
    alone = metrics.classwise_calibration_error(
        labels[:, 0], probs[:, 0], sample_weight=weight[:, 0]
    )
    np.testing.assert_allclose(ours, [alone, np.nan])


def test_classes_that_never_occur_count():
    ours = metrics.classwise_calibration_error([0, 0], [[0.5, 0.5, 0.0]] * 2, per_class=True)
    np.testing.assert_allclose(ours, [0.5, 0.5, 0.0])


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="`n_bins`"):
        metrics.classwise_calibration_error([0, 1], [0.2, 0.8], n_bins=0)
    with pytest.raises(ValueError, match="`per_class` must be True or False"):
        metrics.classwise_calibration_error([0, 1], [0.2, 0.8], per_class="all")


def test_streaming_metric_refuses_another_number_of_classes():
    metric = metrics.ClasswiseCalibrationError()
    metric.update_state([0], [[0.5, 0.5, 0.0]])
    with pytest.raises(ValueError, match=r"`y_pred` must .* 3. Received: y_pred with 4"):
        metric.update_state([0], [[0.5, 0.5, 0.0, 0.0]])
