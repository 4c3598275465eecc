"""Thresholds: order statistics, intervals that cover, and what is detected."""

import numpy as np
import pytest
from scipy import stats
from small_detectors import (
    DETECTORS,
    OTHER,
    X,
    Y,
    fitted,
    model_of,
    refused,
)

from tfuq import ood
from tfuq.ood.thresholds import find_threshold

RARE = 1e-6  # of the statistical tests: how often a correct threshold fails one


@pytest.mark.parametrize("n, tpr, confidence", [(40, 0.8, 0.9), (200, 0.95, 0.95), (15, 0.5, 0.8)])
def test_interval_covers(n, tpr, confidence):
    """Uniform scores, whose quantile of order `tpr` is `tpr`: coverage is as stated, and no less.

    1,500 sets; by the binomial tail a correct interval fails one seed in a million (RARE).
    """
    detector, hits, accepted = ood.MaxSoftmax(), 0, []
    for scores in np.random.default_rng(n).random((1500, n)):
        found = detector.threshold_at(tpr, scores=scores, confidence=confidence)
        hits += found.lower <= tpr <= found.upper
        accepted.append(found.value)
    assert stats.binomtest(hits, 1500, confidence, alternative="less").pvalue > RARE
    law = stats.beta(np.ceil(tpr * n), n + 1 - np.ceil(tpr * n))  # of the fraction accepted
    assert stats.kstest(accepted, law.cdf).pvalue > RARE


def test_threshold_is_an_order_statistic():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    found = ood.MaxSoftmax().threshold_at(0.9, scores=scores)
    assert (found.value, found.tpr, found.confidence, found.examples) == (90, 0.9, 0.95, 100)
    inside = np.arange(101)[1:]
    lower, upper = (inside[stats.binom.cdf(inside - 1, 100, 0.9) <= 0.025].max(), found.upper)
    assert found.lower == lower  # P(B < l) <= 2.5 %
    assert stats.binom.sf(upper - 1, 100, 0.9) <= 0.025 < stats.binom.sf(upper - 2, 100, 0.9)
    assert find_threshold([2.0] * 9, 0.5).value == 2  # ties
    few = find_threshold([1.0, 2.0], 0.5)
    assert (few.value, few.lower, few.upper) == (1, -np.inf, np.inf)
    assert find_threshold([0.0, np.inf], 1.0).value == np.inf


@pytest.mark.parametrize("name", DETECTORS)
def test_detects_what_scores_higher(name):
    detector = fitted(name)
    threshold = detector.threshold_at(0.75, X)
    assert threshold == find_threshold(detector.score(X), 0.75) == detector.threshold
    found = detector.detect(OTHER)
    assert found.dtype == bool and found.shape == (21,)
    np.testing.assert_array_equal(found, detector.score(OTHER) > threshold.value)
    assert 8 <= detector.detect(X).sum() <= 10  # of neighbours of one another, two are the k-th
    detector.threshold_at(1.0, scores=[np.inf])
    bad = OTHER.copy()
    bad[2, 0] = np.nan
    assert detector.detect(bad).tolist() == [i == 2 for i in range(21)]
    detector.fit(model_of(name), X, Y)
    refused("threshold", detector.detect, OTHER)  # that of other fits is forgotten


def test_thresholds_that_are_none():
    detector = ood.MaxSoftmax()
    for tpr in (0, -0.1, 1.1, np.nan, "0.9", None):
        refused("tpr", detector.threshold_at, tpr, scores=[1.0])
    for confidence in (0, 1, 2, None):
        refused("confidence", detector.threshold_at, 0.9, scores=[1.0], confidence=confidence)
    for scores in ([], [[1.0]], [np.nan, 1.0]):
        refused("scores", detector.threshold_at, 0.9, scores=scores)
    refused("scores", detector.threshold_at, 0.9, X, scores=[1.0])
    refused("x", detector.threshold_at, 0.9)
    refused("threshold", detector.detect, X)
