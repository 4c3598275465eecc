"""Keras callbacks."""

from tfuq._arguments import public_dir
from tfuq.callbacks.backup import BackupAndRestore
from tfuq.callbacks.kl_annealing import KLAnnealing
from tfuq.callbacks.lr_sweep import LRRangeTest
from tfuq.callbacks.posterior_mean import PosteriorMean
from tfuq.callbacks.posterior_sampling import PosteriorSampling
from tfuq.callbacks.rejection import RejectionEvaluator
from tfuq.callbacks.saliency import SaliencySelection
from tfuq.callbacks.schedules import SGDR
from tfuq.callbacks.snapshot import SnapshotEnsemble
from tfuq.callbacks.swag import SWAG
from tfuq.callbacks.unfreezing import GradualUnfreezing

__all__ = [
    "SGDR",
    "SWAG",
    "BackupAndRestore",
    "GradualUnfreezing",
    "KLAnnealing",
    "LRRangeTest",
    "PosteriorMean",
    "PosteriorSampling",
    "RejectionEvaluator",
    "SaliencySelection",
    "SnapshotEnsemble",
]
__dir__ = public_dir(__all__)
