"""Metrics of calibration, rejection, masks, numbers and detection: functions and Keras metrics.

A function takes whole arrays, computes in float64 and raises on anything that has no meaning. The
metric of the same name takes batches, in `compile(metrics=[...])` or by hand, with a state whose
size does not depend on the data, and answers NaN instead of raising.
"""

from tfuq._arguments import public_dir
from tfuq.metrics.calibration import (
    AdaptiveCalibrationError,
    ExpectedCalibrationError,
    MaximumCalibrationError,
    adaptive_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from tfuq.metrics.calibration_significance import (
    CalibrationErrorInterval,
    SpiegelhalterTest,
    expected_calibration_error_interval,
    spiegelhalter_test,
)
from tfuq.metrics.classwise import ClasswiseCalibrationError, classwise_calibration_error
from tfuq.metrics.of_mean import OfMean
from tfuq.metrics.ood import (
    aupr_in,
    aupr_out,
    auroc,
    bootstrap_interval,
    detection_accuracy,
    fpr_at_tpr,
    ood_metrics,
)
from tfuq.metrics.ood_streaming import AUROC, AUPRIn, AUPROut, DetectionAccuracy, FPRAtTPR
from tfuq.metrics.regression import (
    ause,
    crps,
    interval_score,
    mean_interval_width,
    number_negative_log_likelihood,
    prediction_interval_coverage,
    quantile_calibration_curve,
    quantile_calibration_error,
    sharpness,
)
from tfuq.metrics.regression_streaming import (
    AUSE,
    CRPS,
    IntervalScore,
    MeanIntervalWidth,
    NumberNegativeLogLikelihood,
    PredictionIntervalCoverage,
    QuantileCalibrationError,
    Sharpness,
)
from tfuq.metrics.rejection import rejection_table
from tfuq.metrics.risk_coverage import AUGRC, AURC, CoverageAtRisk, RiskAtCoverage
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
    "AUGRC",
    "AURC",
    "AUROC",
    "AUSE",
    "CRPS",
    "AUPRIn",
    "AUPROut",
    "AdaptiveCalibrationError",
    "BrierScore",
    "CalibrationErrorInterval",
    "ClasswiseCalibrationError",
    "Coverage",
    "CoverageAtRisk",
    "DetectionAccuracy",
    "DiceScore",
    "EntropyOfExpectation",
    "ExpectedCalibrationError",
    "FPRAtTPR",
    "IntervalScore",
    "MaximumCalibrationError",
    "MeanIntervalWidth",
    "NegativeLogLikelihood",
    "NumberNegativeLogLikelihood",
    "OfMean",
    "PredictionIntervalCoverage",
    "QuantileCalibrationError",
    "RejectionRate",
    "RiskAtCoverage",
    "SelectiveAccuracy",
    "Sharpness",
    "SpiegelhalterTest",
    "adaptive_calibration_error",
    "aupr_in",
    "aupr_out",
    "auroc",
    "ause",
    "bootstrap_interval",
    "brier_score",
    "classwise_calibration_error",
    "coverage",
    "crps",
    "detection_accuracy",
    "dice_score",
    "entropy_of_expectation",
    "expected_calibration_error",
    "expected_calibration_error_interval",
    "fpr_at_tpr",
    "interval_score",
    "maximum_calibration_error",
    "mean_interval_width",
    "negative_log_likelihood",
    "number_negative_log_likelihood",
    "ood_metrics",
    "prediction_interval_coverage",
    "quantile_calibration_curve",
    "quantile_calibration_error",
    "rejection_rate",
    "rejection_table",
    "reliability_curve",
    "selective_accuracy",
    "sharpness",
    "spiegelhalter_test",
]
__dir__ = public_dir(__all__)
