"""Losses of networks that say how far off a number may be, or that they do not know a class.

`LogitNorm`, `OutlierExposure` and `EnergyMargin` take logits and classes. The others take what a
head of `tfuq.layers` returns, the parameters of a distribution, as `y_pred`, and numbers as
`y_true`; of several numbers a loss is the mean, as Keras' mean squared error is. All are Keras
losses: sample weights, masks and reductions work as there, they are computed in float32 under mixed
precision, and are saved with a model.
"""

from tfuq._arguments import public_dir
from tfuq.losses.classes import EnergyMargin, LogitNorm, OutlierExposure
from tfuq.losses.evidential import Evidential
from tfuq.losses.scores import CRPS, BetaNLL, NegativeLogLikelihood, Pinball

__all__ = [
    "CRPS",
    "BetaNLL",
    "EnergyMargin",
    "Evidential",
    "LogitNorm",
    "NegativeLogLikelihood",
    "OutlierExposure",
    "Pinball",
]
__dir__ = public_dir(__all__)
