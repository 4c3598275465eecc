"""Metrics of calibration, probabilities, rejection and masks: functions and Keras metrics.

A function takes whole arrays, computes in float64 and raises on anything that it cannot judge. The
metric of the same name takes batches, in `compile(metrics=[...])` or by hand, with a state whose
size does not depend on the data, and answers NaN instead of raising.
"""

from tfuq.metrics.calibration import (
    AdaptiveCalibrationError,
    ExpectedCalibrationError,
    MaximumCalibrationError,
    adaptive_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from tfuq.metrics.classwise import ClasswiseCalibrationError, classwise_calibration_error
from tfuq.metrics.rejection import rejection_table
from tfuq.metrics.scoring import (
    BrierScore,
    EntropyOfExpectation,
    NegativeLogLikelihood,
    brier_score,
    entropy_of_expectation,
    negative_log_likelihood,
)
from tfuq.metrics.segmentation import DiceScore, dice_score
from tfuq.metrics.selective import (
    Coverage,
    RejectionRate,
    SelectiveAccuracy,
    coverage,
    rejection_rate,
    selective_accuracy,
)

__all__ = [
    "AdaptiveCalibrationError",
    "BrierScore",
    "ClasswiseCalibrationError",
    "Coverage",
    "DiceScore",
    "EntropyOfExpectation",
    "ExpectedCalibrationError",
    "MaximumCalibrationError",
    "NegativeLogLikelihood",
    "RejectionRate",
    "SelectiveAccuracy",
    "adaptive_calibration_error",
    "brier_score",
    "classwise_calibration_error",
    "coverage",
    "dice_score",
    "entropy_of_expectation",
    "expected_calibration_error",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "rejection_rate",
    "rejection_table",
    "reliability_curve",
    "selective_accuracy",
]
