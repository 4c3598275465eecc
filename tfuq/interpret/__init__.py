"""Explanations of predictions and of their uncertainty: maps of images, and pairs of classes."""

from tfuq._arguments import public_dir
from tfuq.interpret.confusions import ConfusedPair, ConfusedPairs, confused_pairs
from tfuq.interpret.gradients import grad_cam, guided_backpropagation, guided_grad_cam
from tfuq.interpret.label_noise import (
    LabelNoisePair,
    LabelNoisePairs,
    LabelNoiseRanks,
    label_noise_pairs,
    label_noise_ranks,
)
from tfuq.interpret.occlusion import CenterOcclusion, center_occlusion, occlusion

__all__ = [
    "CenterOcclusion",
    "ConfusedPair",
    "ConfusedPairs",
    "LabelNoisePair",
    "LabelNoisePairs",
    "LabelNoiseRanks",
    "center_occlusion",
    "confused_pairs",
    "grad_cam",
    "guided_backpropagation",
    "guided_grad_cam",
    "label_noise_pairs",
    "label_noise_ranks",
    "occlusion",
]
__dir__ = public_dir(__all__)
