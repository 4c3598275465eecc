"""Optimizers: learning rates by depth, and one that learns how sure it is of each weight."""

from tfuq._arguments import public_dir
from tfuq.optimizers.discriminative import DiscriminativeLearningRate
from tfuq.optimizers.ivon import IVON

__all__ = ["IVON", "DiscriminativeLearningRate"]
__dir__ = public_dir(__all__)
