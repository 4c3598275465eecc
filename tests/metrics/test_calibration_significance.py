"""Spiegelhalter's test, intervals of the calibration error: closed forms and what they promise."""

import numpy as np
import pytest
from scipy import stats

from tfuq.metrics import (
    expected_calibration_error,
    expected_calibration_error_interval,
    spiegelhalter_test,
)

RNG = np.random.default_rng(0)


def drawn(probs, rng):
    """A label for each row, with its probabilities."""
    return (rng.random(len(probs))[:, None] > np.cumsum(probs, axis=-1)).sum(axis=-1)


def test_binary_is_spiegelhalters_formula():
    p = RNG.random(200)
    y = (RNG.random(200) < p**2).astype(int)
    expected = np.sum((y - p) * (1 - 2 * p)) / np.sqrt(np.sum((1 - 2 * p) ** 2 * p * (1 - p)))
    for given in (p, p[:, None], np.stack([1 - p, p], -1)):
        found = spiegelhalter_test(y, given)
        np.testing.assert_allclose(found.statistic, expected, rtol=1e-6)
        np.testing.assert_allclose(found.p_value, 2 * stats.norm.sf(abs(expected)), rtol=1e-4)
    logits = spiegelhalter_test(y, np.log(p / (1 - p)), from_logits=True)
    np.testing.assert_allclose(logits.statistic, expected, rtol=1e-5)
    weight = np.r_[np.ones(150), np.zeros(50)]
    part = spiegelhalter_test(y[:150], p[:150])
    np.testing.assert_allclose(spiegelhalter_test(y, p, sample_weight=weight), part, rtol=1e-6)


def test_variance_is_that_of_drawn_labels():
    probs = RNG.dirichlet(np.ones(4) * 0.7, size=30)
    scores = []
    for _ in range(4000):
        y = drawn(probs, RNG)
        scores.append(np.sum((probs - np.eye(4)[y]) ** 2))
    y = drawn(probs, RNG)
    brier = np.sum((probs - np.eye(4)[y]) ** 2)
    expected = (brier - np.mean(scores)) / np.std(scores)
    assert abs(spiegelhalter_test(y, probs).statistic - expected) < 0.15  # 6 of its deviations


def test_p_values_of_calibrated_predictions_are_uniform():
    """200 data sets; a correct test fails this once in 1e6."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        probs = rng.dirichlet(np.ones(3), size=300)
        found.append(spiegelhalter_test(drawn(probs, rng), probs).p_value)
    assert stats.kstest(found, "uniform").pvalue > 1e-6


def test_sign_says_too_confident():
    p = np.full(400, 0.9)
    assert spiegelhalter_test(np.repeat([1, 0], [300, 100]), p).statistic > 3
    assert spiegelhalter_test(np.repeat([1, 0], [399, 1]), p).statistic < -3
    certain = spiegelhalter_test([1, 0], [1.0, 1.0])
    assert (certain.statistic, certain.p_value) == (np.inf, 0.0)


@pytest.mark.parametrize("probs", [[0.5, 0.5], [1.0, 0.0]])
def test_nothing_to_say_is_refused(probs):
    with pytest.raises(ValueError, match="whose Brier score does not vary"):
        spiegelhalter_test([1, 0], probs)


def test_rounding_of_uniform_predictions_is_no_evidence():
    with pytest.raises(ValueError, match="whose Brier score does not vary"):
        spiegelhalter_test(np.arange(300) % 3, np.full((300, 3), 1 / 3, "float32"))


@pytest.mark.parametrize("function", [spiegelhalter_test, expected_calibration_error_interval])
def test_weights_are_0_or_1(function):
    with pytest.raises(ValueError, match="`sample_weight` must hold only 0 and 1"):
        function([1, 0], [0.9, 0.2], sample_weight=[2.0, 1.0])
    with pytest.raises(ValueError, match="probabilities"):
        function([1, 0], [3.0, -2.0])


def test_the_bias_is_that_of_drawn_accuracies():
    """Kumar et al. draw accuracies from the normal distribution that the closed form integrates."""
    p = RNG.random(60)
    y = (RNG.random(60) < p**1.5).astype(int)
    plain = expected_calibration_error(y, p, n_bins=5)
    confidence, correct = np.maximum(p, 1 - p), (p >= 0.5) == y
    index = np.minimum((confidence * 5).astype(int), 4)
    n = np.bincount(index, minlength=5)
    held = n > 0
    mean = [np.bincount(index, each, 5)[held] / n[held] for each in (confidence, correct)]
    spread = np.sqrt(mean[1] * (1 - mean[1]) / n[held])
    accuracies = mean[1] + spread * RNG.normal(size=(200_000, held.sum()))
    drawn_errors = (np.abs(accuracies - mean[0]) * n[held] / 60).sum(axis=-1)
    expected = 2 * plain - drawn_errors.mean()
    found = expected_calibration_error(y, p, n_bins=5, debiased=True)
    assert abs(found - expected) < 5 * drawn_errors.std() / np.sqrt(200_000)


def test_debiased_is_nearer_to_the_truth():
    """Of calibrated predictions the plain error is above 0 on average, the debiased one less."""
    errors = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        p = rng.random(150)
        y = (rng.random(150) < p).astype(int)
        errors.append([expected_calibration_error(y, p, debiased=each) for each in (False, True)])
    plain, debiased = np.mean(errors, axis=0)
    assert plain > 0.05 and abs(debiased) < 0.6 * plain


def test_interval_holds_the_true_error():
    """Sure of 90 %, right in 75 %: one bin, error 0.15. Fails once in 1e5 if 93 % hold it."""
    held = 0
    for seed in range(100):
        y = (np.random.default_rng(seed).random(150) < 0.75).astype(int)
        found = expected_calibration_error_interval(y, np.full(150, 0.9), num_resamples=300)
        held += found.lower <= 0.15 <= found.upper
    assert held >= stats.binom.ppf(1e-5, 100, 0.93)


def test_interval_repeats_and_grows_with_confidence():
    p = RNG.random(80)
    y = (RNG.random(80) < p).astype(int)
    wide, narrow = (
        expected_calibration_error_interval(y, p, confidence=c, num_resamples=200)
        for c in (0.99, 0.5)
    )
    assert wide.lower <= narrow.lower <= narrow.upper <= wide.upper
    assert wide == expected_calibration_error_interval(y, p, confidence=0.99, num_resamples=200)
    with pytest.raises(ValueError, match=r"`confidence` must be in \(0, 1\)"):
        expected_calibration_error_interval(y, p, confidence=1)


def test_pixels_of_an_image_are_drawn_together():
    probs = np.repeat(RNG.random((12, 1)), 50, axis=1)[..., None]
    y = np.repeat(RNG.random((12, 1)) < 0.5, 50, axis=1).astype(int)
    images = expected_calibration_error_interval(y, probs, num_resamples=200)
    pixels = expected_calibration_error_interval(y.ravel(), probs.ravel(), num_resamples=200)
    assert images.upper - images.lower > 2 * (pixels.upper - pixels.lower)
