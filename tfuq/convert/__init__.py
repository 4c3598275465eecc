"""Conversion of models: deterministic ones to Bayesian ones, and back."""

from tfuq._arguments import public_dir
from tfuq.convert._report import ConversionReport, report
from tfuq.convert.deterministic import to_deterministic
from tfuq.convert.dropout import mc_dropout
from tfuq.convert.gaussian import variational
from tfuq.convert.head import replace_head
from tfuq.convert.laplace import laplace_head
from tfuq.convert.members import batch_ensemble
from tfuq.convert.sparse import saliency, sparse_bayesian
from tfuq.convert.spectral import SpectralBound, spectral_normalize

__all__ = [
    "ConversionReport",
    "SpectralBound",
    "batch_ensemble",
    "laplace_head",
    "mc_dropout",
    "replace_head",
    "report",
    "saliency",
    "sparse_bayesian",
    "spectral_normalize",
    "to_deterministic",
    "variational",
]
__dir__ = public_dir(__all__)
