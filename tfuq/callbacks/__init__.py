"""Keras callbacks."""

from tfuq.callbacks.kl_annealing import KLAnnealing
from tfuq.callbacks.rejection import RejectionEvaluator
from tfuq.callbacks.unfreezing import GradualUnfreezing

__all__ = ["GradualUnfreezing", "KLAnnealing", "RejectionEvaluator"]
