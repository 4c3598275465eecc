"""Preparation of images, as Keras layers and as functions in TensorFlow.

Each layer is a thin shell over a function of its own. All take a batch `(batch, height, width, 1
or 3)` or a single image, of uint8 or of floating point: functions in [0, 1], layers in their
`value_range`. They run eagerly, in a `tf.function` with or without XLA, in `tf.data`, and in a
SavedModel; none has weights or random numbers. In eager mode a function refuses values outside
[0, 1]; a graph cannot look at values, and layers clip them.
"""

from tfuq._arguments import public_dir
from tfuq.preprocessing.confounders import ConfounderRemoval, confounder_mask, remove_confounders
from tfuq.preprocessing.contrast import CLAHE, clahe
from tfuq.preprocessing.crops import (
    CenterFieldOfView,
    FundusCrop,
    center_field_of_view,
    crop_fundus,
)
from tfuq.preprocessing.light import (
    Gamma,
    IlluminationCorrection,
    adjust_gamma,
    correct_illumination,
)
from tfuq.preprocessing.synthetic import SyntheticEvaluation, evaluate_synthetic

__all__ = [
    "CLAHE",
    "CenterFieldOfView",
    "ConfounderRemoval",
    "FundusCrop",
    "Gamma",
    "IlluminationCorrection",
    "SyntheticEvaluation",
    "adjust_gamma",
    "center_field_of_view",
    "clahe",
    "confounder_mask",
    "correct_illumination",
    "crop_fundus",
    "evaluate_synthetic",
    "remove_confounders",
]
__dir__ = public_dir(__all__)
