"""Brier score and negative log-likelihood, against scikit-learn and the papers' formulas."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from tfuq import metrics

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(3), size=80)
LABELS = RNG.integers(3, size=80)
POSITIVE = RNG.random(80)
OUTCOMES = RNG.integers(2, size=80)
WEIGHT = RNG.integers(0, 3, size=80).astype(float)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_binary_brier_score_is_sklearns(weight):
    expected = brier_score_loss(OUTCOMES, POSITIVE, sample_weight=weight)
    for reduction in ("sum", "mean"):
        ours = metrics.brier_score(
            OUTCOMES, POSITIVE, class_reduction=reduction, sample_weight=weight
        )
        assert ours == pytest.approx(expected, abs=1e-12)


def test_multi_class_brier_score_sums_or_averages_over_classes():
    squares = (PROBS - np.eye(3)[LABELS]) ** 2
    assert metrics.brier_score(LABELS, PROBS) == pytest.approx(squares.sum(axis=1).mean())
    ours = metrics.brier_score(LABELS, PROBS, class_reduction="mean")  # Abboud et al., section 3.1
    assert ours == pytest.approx(squares.mean())


def test_multi_class_brier_score_is_the_sum_of_sklearns_against_the_rest():
    rest = [brier_score_loss(k == LABELS, PROBS[:, k], sample_weight=WEIGHT) for k in range(3)]
    ours = metrics.brier_score(LABELS, PROBS, sample_weight=WEIGHT)
    assert ours == pytest.approx(sum(rest), abs=1e-12)


def test_multi_label_brier_score():
    probs, labels = POSITIVE.reshape(20, 4), OUTCOMES.reshape(20, 4)
    squares = (probs - labels) ** 2
    total = metrics.brier_score(labels, probs, multi_label=True)
    mean = metrics.brier_score(labels, probs, multi_label=True, class_reduction="mean")
    assert total == pytest.approx(squares.sum(axis=1).mean())
    assert mean == pytest.approx(squares.mean())


def test_brier_score_at_certainty():
    assert metrics.brier_score([0, 1], np.eye(2)) == 0.0
    assert metrics.brier_score([1, 0], np.eye(2)) == 2.0
    assert metrics.brier_score([1, 0], [0.0, 1.0]) == 1.0


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_likelihood_is_sklearns(weight):
    data = {"sample_weight": weight}
    expected = log_loss(LABELS, PROBS, **data)
    assert metrics.negative_log_likelihood(LABELS, PROBS, **data) == pytest.approx(expected)
    expected = log_loss(OUTCOMES, POSITIVE, **data)
    assert metrics.negative_log_likelihood(OUTCOMES, POSITIVE, **data) == pytest.approx(expected)


def test_multi_label_likelihood_averages_over_labels():
    ours = metrics.negative_log_likelihood(
        OUTCOMES.reshape(20, 4), POSITIVE.reshape(20, 4), multi_label=True
    )
    assert ours == pytest.approx(log_loss(OUTCOMES, POSITIVE))


def test_likelihood_of_the_impossible_is_infinite_and_of_the_certain_zero():
    assert metrics.negative_log_likelihood([1], [[1.0, 0.0]]) == math.inf
    assert metrics.negative_log_likelihood([0], [[1.0, 0.0]]) == 0.0
    assert metrics.negative_log_likelihood([0, 1], [1.0, 1.0]) == math.inf
    metric = metrics.NegativeLogLikelihood()
    metric.update_state([1, 0], [[1.0, 0.0], [0.5, 0.5]])
    assert float(metric.result()) == math.inf


def test_logits_do_not_underflow():
    assert metrics.negative_log_likelihood([1], [[800.0, 0.0]], from_logits=True) == 800.0
    assert metrics.negative_log_likelihood([0], [800.0], from_logits=True) == 800.0
    metric = metrics.NegativeLogLikelihood(from_logits=True)
    metric.update_state([1], [[800.0, 0.0]])
    assert float(metric.result()) == 800.0


def test_impossible_classes_may_have_logits_of_minus_infinity():
    logits = [[0.0, 0.0, -np.inf]]
    ours = metrics.negative_log_likelihood([1], logits, from_logits=True)
    assert ours == pytest.approx(math.log(2))


def test_what_has_no_weight_costs_nothing():
    ours = metrics.negative_log_likelihood(
        [1, 0], np.array([[1, 0], [0.5, 0.5]]), sample_weight=[0, 1]
    )
    assert ours == pytest.approx(math.log(2))


@pytest.mark.parametrize("reduction", ["max", None, 1])
def test_reduction_is_checked(reduction):
    for make in (
        lambda: metrics.brier_score([0], [[1.0, 0.0]], class_reduction=reduction),
        lambda: metrics.BrierScore(class_reduction=reduction),
    ):
        with pytest.raises(ValueError, match="`class_reduction` must be one of 'sum', 'mean'"):
            make()
