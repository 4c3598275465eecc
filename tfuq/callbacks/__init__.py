"""Keras callbacks."""

from tfuq.callbacks.kl_annealing import KLAnnealing
from tfuq.callbacks.posterior_sampling import PosteriorSampling
from tfuq.callbacks.rejection import RejectionEvaluator
from tfuq.callbacks.saliency import SaliencySelection
from tfuq.callbacks.unfreezing import GradualUnfreezing

__all__ = [
    "GradualUnfreezing",
    "KLAnnealing",
    "PosteriorSampling",
    "RejectionEvaluator",
    "SaliencySelection",
]
