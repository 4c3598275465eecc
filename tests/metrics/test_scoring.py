"""Brier score, negative log-likelihood and entropy, against scikit-learn, SciPy and the papers."""

import math

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import brier_score_loss, log_loss

from tfuq import metrics
from tfuq.predictive import predictive_entropy

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


# --- Entropy of the expectation ----------------------------------------------------------------

MANY = {"multi_label": True}
POSITIVE_TERM = -POSITIVE * np.log(POSITIVE)
BOTH_TERMS = entropy([POSITIVE, 1 - POSITIVE])


def streamed_entropy(y_pred, weight=None, **options):
    metric = metrics.EntropyOfExpectation(**options)
    for rows in np.split(np.arange(len(y_pred)), [0, 7, 20]):
        metric.update_state(rows, y_pred[rows], None if weight is None else weight[rows])
    return float(metric.result())


@pytest.mark.parametrize("terms", ["both", "positive"])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_multi_class_entropy_is_scipys(terms, weight):
    expected = np.average(entropy(PROBS, axis=1), weights=weight)
    ours = metrics.entropy_of_expectation(PROBS, binary_terms=terms, sample_weight=weight)
    assert ours == pytest.approx(expected, abs=1e-12)
    assert streamed_entropy(PROBS, weight, binary_terms=terms) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("terms, expected", [("both", BOTH_TERMS), ("positive", POSITIVE_TERM)])
def test_binary_entropy_has_both_terms_or_the_positive_one(terms, expected):
    for y_pred in (POSITIVE, POSITIVE[:, None]):
        ours = metrics.entropy_of_expectation(y_pred, binary_terms=terms)
        assert ours == pytest.approx(expected.mean(), abs=1e-12)
        assert streamed_entropy(y_pred, binary_terms=terms) == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize("terms, expected", [("both", BOTH_TERMS), ("positive", POSITIVE_TERM)])
def test_multi_label_entropy_is_summed_over_labels(terms, expected):
    y_pred, expected = POSITIVE.reshape(20, 4), expected.reshape(20, 4).sum(axis=1)
    weight = WEIGHT[:20]
    for given, average in ((None, expected.mean()), (weight, np.average(expected, weights=weight))):
        options = {"binary_terms": terms, **MANY}
        ours = metrics.entropy_of_expectation(y_pred, sample_weight=given, **options)
        assert ours == pytest.approx(average, abs=1e-12)
        assert streamed_entropy(y_pred, given, **options) == pytest.approx(average, abs=1e-6)


def test_entropy_is_that_of_the_mean_of_a_stack():
    stack = RNG.dirichlet(np.ones(3), size=(5, 80))
    expected = predictive_entropy(stack).mean()
    assert metrics.entropy_of_expectation(stack.mean(axis=0)) == pytest.approx(expected, abs=1e-12)


def test_entropy_at_certainty_and_at_none():
    assert metrics.entropy_of_expectation(np.eye(3)) == 0.0
    assert metrics.entropy_of_expectation([0.0, 1.0]) == 0.0
    assert metrics.entropy_of_expectation(np.full((2, 4), 0.25)) == pytest.approx(math.log(4))
    assert metrics.entropy_of_expectation(np.full((2, 3), 0.5), **MANY) == pytest.approx(
        3 * math.log(2)
    )
    for logits in ([[900.0, 0.0]], [[0.0, -np.inf]], [[900.0]]):
        assert metrics.entropy_of_expectation(logits, from_logits=True) == 0.0


@pytest.mark.parametrize("terms", ["all", None])
def test_binary_terms_are_checked(terms):
    for make in (
        lambda: metrics.entropy_of_expectation(PROBS, binary_terms=terms),
        lambda: metrics.EntropyOfExpectation(binary_terms=terms),
    ):
        with pytest.raises(ValueError, match="`binary_terms` must be one of 'both', 'positive'"):
            make()


def test_entropy_of_what_is_no_prediction_raises_or_is_nan():
    with pytest.raises(ValueError, match="Argument `y_pred` must sum to 1"):
        metrics.entropy_of_expectation(2 * PROBS / 3)
    with pytest.raises(ValueError, match="Argument `y_pred` must not be empty"):
        metrics.entropy_of_expectation([])
    with pytest.raises(ValueError, match="Argument `y_pred` must be an array of numbers"):
        metrics.entropy_of_expectation("words")
    with pytest.raises(ValueError, match="Argument `sample_weight` must"):
        metrics.entropy_of_expectation(PROBS, sample_weight=[1.0])
    with pytest.raises(ValueError, match="Argument `multi_label` must be True or False"):
        metrics.entropy_of_expectation(PROBS, multi_label="yes")
    assert np.isnan(streamed_entropy(np.full((30, 3), np.nan)))


def test_entropy_is_nan_before_any_data_and_leaves_out_what_has_no_weight():
    metric = metrics.EntropyOfExpectation()
    assert np.isnan(metric.result())
    metric.update_state([255, 0], [[np.nan, 0.5], [0.5, 0.5]], [0.0, 1.0])
    assert float(metric.result()) == pytest.approx(math.log(2))


# --- Pixels ------------------------------------------------------------------------------------

PIXELS = [
    ("brier_score", metrics.BrierScore),
    ("negative_log_likelihood", metrics.NegativeLogLikelihood),
    ("expected_calibration_error", metrics.ExpectedCalibrationError),
    ("adaptive_calibration_error", metrics.AdaptiveCalibrationError),
    ("maximum_calibration_error", metrics.MaximumCalibrationError),
    ("classwise_calibration_error", metrics.ClasswiseCalibrationError),
]
FORMS = {
    "classes": (LABELS, PROBS, (4, 5, 4), {}),
    "binary": (OUTCOMES, POSITIVE[:, None], (4, 5, 4), {}),
    "labels": (OUTCOMES.reshape(40, 2), POSITIVE.reshape(40, 2), (2, 5, 4), MANY),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name, metric", PIXELS)
def test_pixels_are_examples(name, metric, form):
    """Maps `(batch, height, width, classes)` say what their pixels say, one below another."""
    y_true, y_pred, shape, options = FORMS[form]
    function = getattr(metrics, name)
    maps = y_true.reshape(*shape, *y_true.shape[1:]), y_pred.reshape(*shape, -1)
    expected = function(y_true, y_pred, **options)
    assert function(*maps, **options) == pytest.approx(expected, abs=1e-12)
    streaming = metric(**options)
    streaming.update_state(*maps)
    flat = metric(**options)
    flat.update_state(y_true, y_pred)
    assert float(streaming.result()) == pytest.approx(float(flat.result()), abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_entropy_of_pixels_is_averaged_over_them(form):
    _, y_pred, shape, options = FORMS[form]
    expected = metrics.entropy_of_expectation(y_pred, **options)
    ours = metrics.entropy_of_expectation(y_pred.reshape(*shape, -1), **options)
    assert ours == pytest.approx(expected, abs=1e-12)
    assert streamed_entropy(y_pred.reshape(*shape, -1), **options) == pytest.approx(ours, abs=1e-6)
