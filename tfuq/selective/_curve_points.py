"""Points of risk-coverage curves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfuq._arguments import told


@told
class RiskCoverageCurve(NamedTuple):
    """Points of a risk-coverage curve, one for each number of accepted predictions.

    Example:

    >>> import tfuq
    >>> curve = tfuq.selective.risk_coverage_curve([[0.9, 0.1], [0.2, 0.8]], [0, 0])
    >>> curve.risk
    array([0. , 0.5])

    See also: `tfuq.selective.risk_coverage_curve`.
    """

    coverage: np.ndarray
    """Accepted fraction, ascending to 1."""
    risk: np.ndarray
    """Mean loss of the accepted."""
    generalized_risk: np.ndarray
    """Loss of the accepted per prediction, accepted or not: risk times coverage."""
    threshold: np.ndarray
    """Score of the last prediction accepted, in the units of the score."""
    attainable: np.ndarray
    """Whether a threshold gives this point: False between predictions of the same score."""


@told
class GeneralizedCurve(NamedTuple):
    """Points of a generalized risk-coverage curve, which begins at coverage 0.

    Example:

    >>> import tfuq
    >>> curve = tfuq.selective.generalized_risk_coverage_curve([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    >>> curve.coverage
    array([0. , 0.5, 1. ])

    See also: `tfuq.selective.generalized_risk_coverage_curve`.
    """

    coverage: np.ndarray
    """Accepted fraction, from 0 to 1."""
    generalized_risk: np.ndarray
    """Loss of the accepted per prediction, accepted or not."""
    attainable: np.ndarray
    """Whether a threshold gives this point: False between predictions of the same score."""
