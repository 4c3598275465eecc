"""Pictures of rejection, calibration, errors, numbers, explanations, masks, detection (`plots`).

Each function draws with matplotlib on the Axes it is given, or on those of a new figure, and
returns them; those of several panels do the same with a Figure. The colours are told apart by
colour-blind eyes (Okabe and Ito 2008), and line styles, markers and hatches by those who print in
grey.
"""

from tfuq._arguments import public_dir
from tfuq._predictions.masks import error_map
from tfuq.plots.calibration import reliability_diagram
from tfuq.plots.decisions import detection_histograms, risk_coverage
from tfuq.plots.detection import corruption_heat_map, gradient_distributions
from tfuq.plots.errors import confusion_difference, confusion_matrix, roc_curves
from tfuq.plots.examples import accept_reject_grid, uncertainty_against_error
from tfuq.plots.explanations import confused_pairs, explanation_maps, label_noise_pairs
from tfuq.plots.monitoring import monitor_process
from tfuq.plots.regression import (
    error_against_width,
    intervals_over,
    predicted_against_true,
    quantile_calibration,
)
from tfuq.plots.rejection import confidence_histogram, rejection_curve
from tfuq.plots.segmentation import uncertainty_maps
from tfuq.plots.training import learning_rate_curve, lr_range_test

__all__ = [
    "accept_reject_grid",
    "confidence_histogram",
    "confused_pairs",
    "confusion_difference",
    "confusion_matrix",
    "corruption_heat_map",
    "detection_histograms",
    "error_against_width",
    "error_map",
    "explanation_maps",
    "gradient_distributions",
    "intervals_over",
    "label_noise_pairs",
    "learning_rate_curve",
    "lr_range_test",
    "monitor_process",
    "predicted_against_true",
    "quantile_calibration",
    "rejection_curve",
    "reliability_diagram",
    "risk_coverage",
    "roc_curves",
    "uncertainty_against_error",
    "uncertainty_maps",
]
__dir__ = public_dir(__all__)
