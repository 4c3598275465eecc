"""Decisions from scores: rejection, deferral, calibration, conformal sets, shift."""

from tfuq._arguments import public_dir
from tfuq.selective.adaptive_conformal import AdaptiveConformal
from tfuq.selective.beta_calibration import BetaCalibration
from tfuq.selective.calibration import (
    IsotonicCalibration,
    TemperatureScaling,
    VectorScaling,
)
from tfuq.selective.combined_score import CombinedScore
from tfuq.selective.conformal import ConformalPredictor, SetCoverage, SetEvaluation
from tfuq.selective.conformal_regression import ConformalRegressor, IntervalEvaluation
from tfuq.selective.covariate_shift import CovariateShift
from tfuq.selective.curves import (
    GeneralizedCurve,
    RiskCoverageCurve,
    augrc,
    aurc,
    coverage_at_risk,
    eaurc,
    generalized_risk_coverage_curve,
    risk_at_coverage,
    risk_coverage_curve,
)
from tfuq.selective.deferral import (
    Cascade,
    CascadeStage,
    Deferral,
    DeferralPoint,
    cascade,
    simulate_deferral,
)
from tfuq.selective.dirichlet_calibration import DirichletCalibration
from tfuq.selective.error_predictor import ErrorPredictor
from tfuq.selective.gap import SelectiveGap, gap
from tfuq.selective.groups import GroupRow, SubgroupReport, subgroup_report
from tfuq.selective.mask_risk import MaskEvaluation, MaskRiskControl
from tfuq.selective.monitor import Monitor
from tfuq.selective.ordinal import (
    KappaCurve,
    expected_cost,
    kappa_referral_curve,
    minimum_cost_decision,
    quadratic_weighted_kappa,
)
from tfuq.selective.regression_rule import RegressionRule
from tfuq.selective.rule import Evaluation, RejectionRule, UnattainableRisk
from tfuq.selective.score_choice import (
    ScoreComparison,
    ScoreRow,
    best_score,
    choose_p,
    pnorm_score,
    sirc_score,
)
from tfuq.selective.shift import (
    AccuracyEstimate,
    LabelShift,
    ShiftReport,
    TwoSampleTest,
    average_thresholded_confidence,
    black_box_shift_estimation,
    classifier_two_sample_test,
    correct_label_shift,
    difference_of_confidences,
    shift_report,
)
from tfuq.selective.venn_abers import VennAbersCalibration

__all__ = [
    "AccuracyEstimate",
    "AdaptiveConformal",
    "BetaCalibration",
    "Cascade",
    "CascadeStage",
    "CombinedScore",
    "ConformalPredictor",
    "ConformalRegressor",
    "CovariateShift",
    "Deferral",
    "DeferralPoint",
    "DirichletCalibration",
    "ErrorPredictor",
    "Evaluation",
    "GeneralizedCurve",
    "GroupRow",
    "IntervalEvaluation",
    "IsotonicCalibration",
    "KappaCurve",
    "LabelShift",
    "MaskEvaluation",
    "MaskRiskControl",
    "Monitor",
    "RegressionRule",
    "RejectionRule",
    "RiskCoverageCurve",
    "ScoreComparison",
    "ScoreRow",
    "SelectiveGap",
    "SetCoverage",
    "SetEvaluation",
    "ShiftReport",
    "SubgroupReport",
    "TemperatureScaling",
    "TwoSampleTest",
    "UnattainableRisk",
    "VectorScaling",
    "VennAbersCalibration",
    "augrc",
    "aurc",
    "average_thresholded_confidence",
    "best_score",
    "black_box_shift_estimation",
    "cascade",
    "choose_p",
    "classifier_two_sample_test",
    "correct_label_shift",
    "coverage_at_risk",
    "difference_of_confidences",
    "eaurc",
    "expected_cost",
    "gap",
    "generalized_risk_coverage_curve",
    "kappa_referral_curve",
    "minimum_cost_decision",
    "pnorm_score",
    "quadratic_weighted_kappa",
    "risk_at_coverage",
    "risk_coverage_curve",
    "shift_report",
    "simulate_deferral",
    "sirc_score",
    "subgroup_report",
]
__dir__ = public_dir(__all__)
