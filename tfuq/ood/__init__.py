"""Detection of inputs that are out of distribution: scores that grow the further out they are."""

from tfuq._arguments import public_dir
from tfuq.ood.boundaries import FDBD
from tfuq.ood.density import GradientDensity
from tfuq.ood.detector import GradientDetector
from tfuq.ood.gradients import GradientFeatures
from tfuq.ood.last_layer import DICE, ExGrad, GradNorm, ViM
from tfuq.ood.layer import DetectorLayer
from tfuq.ood.logits import ODIN, Energy, Entropy, MaxLogit, MaxSoftmax
from tfuq.ood.mahalanobis import Mahalanobis, RelativeMahalanobis
from tfuq.ood.neighbours import KNN
from tfuq.ood.patterns import SHE, NNGuide
from tfuq.ood.posteriors import GEN, KLMatching
from tfuq.ood.recorded import GAIA, Gram
from tfuq.ood.saving import load_detector
from tfuq.ood.shaped import ASH, SCALE, ReAct
from tfuq.ood.sirc import SIRC
from tfuq.ood.stacks import MutualInformation
from tfuq.ood.thresholds import Threshold
from tfuq.ood.tuning import Tuned, tune

__all__ = [
    "ASH",
    "DICE",
    "FDBD",
    "GAIA",
    "GEN",
    "KNN",
    "ODIN",
    "SCALE",
    "SHE",
    "SIRC",
    "DetectorLayer",
    "Energy",
    "Entropy",
    "ExGrad",
    "GradNorm",
    "GradientDensity",
    "GradientDetector",
    "GradientFeatures",
    "Gram",
    "KLMatching",
    "Mahalanobis",
    "MaxLogit",
    "MaxSoftmax",
    "MutualInformation",
    "NNGuide",
    "ReAct",
    "RelativeMahalanobis",
    "Threshold",
    "Tuned",
    "ViM",
    "load_detector",
    "tune",
]
__dir__ = public_dir(__all__)
