"""Conformal sets for data from elsewhere: weights of examples, of classes, estimated and known."""

import keras
import numpy as np
import pytest

from tfuq.export import export
from tfuq.selective import (
    ConformalPredictor,
    CovariateShift,
    TemperatureScaling,
    black_box_shift_estimation,
)
from tfuq.selective._weighted_sets import limits_of, thresholds_at
from tfuq.selective.conformal_scores import smallest_threshold

SHIFT = 1.2  # of the mean of an input, which is normal


def draw(count, rng, shift=0.0):
    """An input, what a network says of its two classes, and the label: it is wrong where x > 1."""
    x = rng.normal(shift, 1, size=count)
    p = 1 / (1 + np.exp(-3 * np.abs(x)))  # sure of itself everywhere
    right = rng.random(count) < np.where(x > 1, 0.6, p)
    predicted = rng.integers(2, size=count)
    probs = np.where(predicted[:, None] == np.arange(2), p[:, None], 1 - p[:, None])
    return x, probs, np.where(right, predicted, 1 - predicted)


def weight(x):
    return np.exp(SHIFT * x - SHIFT**2 / 2)


def classes(count, rng, prior):
    """Probabilities of three classes by a network that learned of equal frequencies, and labels."""
    labels = rng.choice(3, size=count, p=prior)
    logits = (
        rng.normal(size=(count, 3)) + np.array([3.0, 2.0, 0.8])[labels, None] * np.eye(3)[labels]
    )
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), labels


OLD, NOW = [0.8, 0.15, 0.05], [0.1, 0.3, 0.6]
X, PROBS, Y = draw(600, np.random.default_rng(0))
SETS = ConformalPredictor.fit(PROBS, Y, alpha=0.1, weights=weight(X))


# --- Thresholds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_equal_weights_are_split_conformal(alpha):
    scores = np.random.default_rng(1).normal(size=57).round(1)  # with ties
    for common in (1.0, 0.37):
        values, limits = limits_of(scores, np.full(57, common), alpha)
        expected = smallest_threshold(scores, np.ones(57), 57, alpha)
        assert thresholds_at(values, limits, np.array([common]))[0] == expected
    plain = ConformalPredictor.fit(PROBS, Y, alpha=alpha)
    same = ConformalPredictor.fit(PROBS, Y, alpha=alpha, weights=np.ones(600))
    found = same.predict_set(PROBS, weights=np.ones(600))
    np.testing.assert_array_equal(found, plain.predict_set(PROBS))


def test_thresholds_are_the_weighted_quantiles_of_the_formula():
    rng = np.random.default_rng(2)
    scores, weights, new = rng.random(40), rng.exponential(size=40), rng.exponential(size=30)
    order = np.argsort(scores)
    values, limits = limits_of(scores, weights, 0.2)
    for w, found in zip(new, thresholds_at(values, limits, new), strict=True):
        shares = np.cumsum(np.append(weights[order], w)) / (weights.sum() + w)
        place = np.flatnonzero(shares[:-1] >= 0.8)
        assert found == (scores[order][place[0]] if place.size else np.inf)


def test_sets_are_those_of_each_examples_threshold():
    limits = thresholds_at(SETS.threshold, SETS.weight_limits, weight(X))
    expected = limits[:, None] + 1e-6 >= 1 - PROBS
    np.testing.assert_array_equal(SETS.predict_set(PROBS, weights=weight(X)), expected)
    assert SETS.predict_set(PROBS[:1], weights=[1e6]).all()  # heavier than all that was seen
    unknown = SETS.predict_set(np.array([[np.nan, 0.5]]), weights=[1.0])
    assert unknown.all() and not SETS.accept(np.array([[np.nan, 0.5]]), weights=[1.0]).any()
    np.testing.assert_array_equal(SETS.set_size(PROBS, weights=weight(X)), expected.sum(-1))
    np.testing.assert_array_equal(SETS.accept(PROBS, weights=weight(X)), expected.sum(-1) == 1)
    assert ConformalPredictor.from_json(SETS.to_json()) == SETS


def test_what_is_said():
    says = SETS.describe()
    assert "hold the true label of at least 90 on average, if the weights are right" in says
    effective = weight(X).sum() ** 2 / np.sum(weight(X) ** 2)
    assert SETS.fitted_to["effective_examples"] == pytest.approx(effective)
    assert f"the 600 count as {effective:.0f}" in says
    assert "if" not in ConformalPredictor.fit(PROBS, Y).describe()
    assert "nothing is promised" in ConformalPredictor("lac", 0.7).describe()


# --- Promises -----------------------------------------------------------------------------------


def test_known_weights_keep_the_coverage_under_covariate_shift(sets=2000):
    """Five standard errors of the mean over sets: fails a right method once in 3 million runs."""
    rng = np.random.default_rng(3)
    plain, weighted = [], []
    for _ in range(sets):
        x, probs, y = draw(150, rng)
        new_x, new, new_y = draw(100, rng, SHIFT)
        scores = 1 - probs[np.arange(150), y]
        of_new = 1 - new[np.arange(100), new_y]
        values, limits = limits_of(scores, weight(x), 0.1)
        weighted.append(np.mean(of_new <= thresholds_at(values, limits, weight(new_x))))
        plain.append(np.mean(of_new <= smallest_threshold(scores, np.ones(150), 150, 0.1)))
    error = np.std(weighted) / np.sqrt(sets)
    assert np.mean(weighted) > 0.9 - 5 * error
    assert np.mean(plain) < 0.85


def test_known_weights_keep_the_coverage_under_label_shift(sets=2000):
    """As above."""
    rng = np.random.default_rng(4)
    ratio = np.array(NOW) / OLD
    plain, weighted = [], []
    for _ in range(sets):
        (probs, y), (new, new_y) = classes(300, rng, OLD), classes(100, rng, NOW)
        scores, of_new = (1 - p[np.arange(len(k)), k] for p, k in ((probs, y), (new, new_y)))
        values, limits = limits_of(scores, ratio[y], 0.1)
        weighted.append(np.mean(of_new <= thresholds_at(values, limits, ratio)[new_y]))
        plain.append(np.mean(of_new <= smallest_threshold(scores, np.ones(300), 300, 0.1)))
    assert np.mean(weighted) > 0.9 - 5 * np.std(weighted) / np.sqrt(sets)
    assert np.mean(plain) < 0.8


def test_estimated_label_shift_is_nearly_as_good():
    """4,000 new examples, .9 less 4 standard errors and .03 for what is estimated."""
    rng = np.random.default_rng(5)
    (own, own_y), (probs, y) = classes(3000, rng, OLD), classes(1500, rng, OLD)
    new, new_y = classes(4000, rng, NOW)
    shift = black_box_shift_estimation(own, own_y, new)
    sets = ConformalPredictor.fit(probs, y, alpha=0.1, weights=shift)
    assert sets.class_conditional and sets.threshold.shape == (3,)
    assert sets.coverage(new, new_y).coverage > 0.87 - 4 * 0.0047
    assert ConformalPredictor.fit(probs, y, alpha=0.1).coverage(new, new_y).coverage < 0.8
    assert "if the classes come as often as was estimated" in sets.describe()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    found = sets.append_to(model).predict(new, verbose=0)["prediction_set"]
    np.testing.assert_array_equal(found, sets.predict_set(new))
    assert ConformalPredictor.from_json(sets.to_json()) == sets


def test_estimated_covariate_shift_is_nearly_as_good():
    rng = np.random.default_rng(6)
    old, now = draw(3000, rng)[0], draw(3000, rng, SHIFT)[0]
    shift = CovariateShift.fit(old[:, None], now[:, None])
    np.testing.assert_allclose(np.log(shift.weights(X[:, None])), np.log(weight(X)), atol=0.35)
    sets = ConformalPredictor.fit(PROBS, Y, alpha=0.1, weights=shift.weights(X[:, None]))
    new_x, new, new_y = draw(4000, rng, SHIFT)
    given = shift.weights(new_x[:, None])
    assert sets.coverage(new, new_y, weights=given).coverage > 0.87 - 4 * 0.0047
    assert sets.evaluate(new, new_y, weights=given).mean_size <= 2
    assert CovariateShift.from_json(shift.to_json()) == shift
    unequal = CovariateShift.fit(old[:, None], now[:600, None])  # as many of each or not
    np.testing.assert_allclose(np.log(unequal.weights(X[:, None])), np.log(weight(X)), atol=0.5)


def test_with_a_calibration_and_tuned_penalties_weights_follow_their_rows():
    options = {"alpha": 0.2, "calibration": TemperatureScaling(), "seed": 3}
    ones = ConformalPredictor.fit(PROBS, Y, weights=np.ones(600), **options)
    plain = ConformalPredictor.fit(PROBS, Y, **options)
    found = ones.predict_set(PROBS, weights=np.ones(600))
    np.testing.assert_array_equal(found, plain.predict_set(PROBS))
    tuned = {"score": "raps", "penalty": "tuned", "k_reg": 1, "alpha": 0.2}
    ones = ConformalPredictor.fit(PROBS, Y, weights=np.ones(600), **tuned)
    assert ones.fitted_to["examples"] == 480


# --- Misuse -------------------------------------------------------------------------------------

SHIFTED = black_box_shift_estimation(PROBS, Y, PROBS[:100])


@pytest.mark.parametrize(
    "message, call",
    [
        ("for each of 600 examples", lambda: fit(weights=np.ones(599))),
        ("of at least 0 .*Received: weights=", lambda: fit(weights=-np.ones(600))),
        ("finite number", lambda: fit(weights=np.full(600, np.nan))),
        ("not all of weight 0", lambda: fit(weights=np.zeros(600))),
        ("`groups` must be left out", lambda: fit(weights=weight(X), groups=Y)),
        ("`class_conditional` must be left", lambda: fit(weights=SHIFTED, class_conditional=True)),
        ("`weights` must hold the weight of each", lambda: SETS.predict_set(PROBS)),
        ("`weights` must hold the weight of each", lambda: SETS.coverage(PROBS, Y)),
        ("for each of 600", lambda: SETS.accept(PROBS, weights=[1.0])),
        ("`weights` must be None", lambda: fit().predict_set(PROBS, weights=weight(X))),
        ("`weights` must be None", lambda: fit(weights=SHIFTED).accept(PROBS, weights=weight(X))),
        ("of 3 classes", lambda: ConformalPredictor.fit(np.eye(3)[Y], Y, weights=SHIFTED)),
        ("cannot be part of a model", lambda: SETS.append_to(network())),
        ("`conformal` must not need weights", lambda: exported(SETS)),
        ("at least 9 examples", lambda: fit_few(8)),
        ("ascending", lambda: ConformalPredictor("lac", [0.5, 0.4], weight_limits=[1.0, 2.0])),
        ("one for each", lambda: ConformalPredictor("lac", [0.4, 0.5], weight_limits=[1.0])),
        ("same columns|1 columns", lambda: CovariateShift.fit(X[:, None], np.ones((5, 2)))),
        ("1 finite columns", lambda: CovariateShift([0], [1], [1], 0).weights(np.ones((5, 2)))),
        ("above 0", lambda: CovariateShift([0], [0], [1], 0)),
        ("`deviation` must hold", lambda: CovariateShift([0], [1, 1], [1], 0)),
    ],
)  # fmt: skip
def test_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def fit(**options):
    return ConformalPredictor.fit(PROBS, Y, alpha=0.1, **options)


def fit_few(count):
    return ConformalPredictor.fit(PROBS[:count], Y[:count], weights=X[:count] ** 2)


def exported(sets):
    return export(network(), "nowhere", conformal=sets, from_logits=False, multi_label=False)


def network():
    return keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])


def test_warned_of():
    few = np.where(np.arange(600) < 2, 1.0, 1e-6)
    with pytest.warns(UserWarning, match=r"leave 2\.0 effective examples of 600"):
        fit(weights=few)
    with pytest.warns(UserWarning, match="not estimated reliably"):
        fit(weights=SHIFTED._replace(reliable=False))
    with pytest.warns(UserWarning, match="hardly overlap"):
        CovariateShift.fit(X[:, None], X[:, None] + 12)
