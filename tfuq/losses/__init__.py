"""Losses of networks that say a number and how far off it may be.

Each takes what a head of `tfuq.layers` returns, the parameters of a distribution, as `y_pred`, and
numbers as `y_true`. All are Keras losses: sample weights, masks and reductions work as there, they
are computed in float32 under mixed precision, and are saved with a model. Of several numbers a loss
is the mean, as Keras' mean squared error is.
"""

from tfuq._arguments import public_dir
from tfuq.losses.evidential import Evidential
from tfuq.losses.scores import CRPS, BetaNLL, NegativeLogLikelihood, Pinball

__all__ = ["CRPS", "BetaNLL", "Evidential", "NegativeLogLikelihood", "Pinball"]
__dir__ = public_dir(__all__)
