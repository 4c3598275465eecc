"""Calibration after training: optima, other people's numbers, kinds of predictions, bad input."""

import json
import pathlib
import warnings

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from tfuq.ensembles import DeepEnsemble
from tfuq.metrics import expected_calibration_error, negative_log_likelihood
from tfuq.selective import (
    BetaCalibration,
    DirichletCalibration,
    IsotonicCalibration,
    TemperatureScaling,
    VectorScaling,
    VennAbersCalibration,
)
from tfuq.selective.venn_abers import fit_steps

CURVES = (IsotonicCalibration, BetaCalibration, VennAbersCalibration)  # which give probabilities
CLASSES = (TemperatureScaling, VectorScaling, DirichletCalibration, *CURVES)
RNG = np.random.default_rng(0)
TRUE_LOGITS = RNG.normal(size=(3000, 4), scale=1.5)
Y = np.array([RNG.choice(4, p=row) for row in softmax(TRUE_LOGITS, axis=-1)])
LOGITS = (2.5 * TRUE_LOGITS).astype("float32").astype("float64")  # too confident
PROBS = softmax(LOGITS, axis=-1)
STACK = LOGITS[:500] + RNG.normal(size=(5, 500, 4), scale=3)
WEIGHT = RNG.integers(4, size=3000).astype("float64")
FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "netcal_scaling.npz"


def nll(logits, labels, weight=None):
    losses = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    return np.average(losses, weights=weight)


# --- Somebody else's numbers -------------------------------------------------------------------


@pytest.mark.parametrize("case", ["multi_class", "binary"])
def test_agrees_with_netcal(case):
    """Within the tolerance of netcal's optimizers, which is far above that of ours."""
    data = np.load(FIXTURE)
    probs, labels = data[f"{case}/probs"], data[f"{case}/labels"]
    temperature = TemperatureScaling().fit(probs, labels)
    np.testing.assert_allclose(1 / temperature.temperature, data[f"{case}/factor"], rtol=1e-6)
    np.testing.assert_allclose(temperature(probs), data[f"{case}/temperature"], atol=1e-6)
    vector = VectorScaling().fit(probs, labels)
    np.testing.assert_allclose(vector(probs), data[f"{case}/vector"], atol=1e-4)
    np.testing.assert_allclose(vector.scale, data[f"{case}/weights"], atol=1e-4)
    isotonic = IsotonicCalibration().fit(probs, labels)
    np.testing.assert_allclose(isotonic(probs), data[f"{case}/isotonic"], atol=1e-6)


def test_curves_agree_with_the_authors_packages():
    """The tolerance of beta curves is that of scikit-learn's optimizer, which betacal uses."""
    with np.load(FIXTURE.with_name("calibration_curves.npz")) as file:
        data = dict(file)
    probs, labels, new = data["probs"], data["labels"], data["new"]
    beta = BetaCalibration().fit(probs, labels)
    np.testing.assert_allclose(beta(new), data["beta"], atol=5e-4)
    bent = BetaCalibration().fit(probs, data["bent_labels"])  # one weight is at its bound
    np.testing.assert_allclose(bent(new), data["bent_beta"], atol=5e-4)
    assert min(*bent.a, *bent.b) == 0
    venn_abers = VennAbersCalibration().fit(probs, labels)
    np.testing.assert_allclose(venn_abers.interval(new), data["venn_abers_pairs"].T, atol=1e-6)
    np.testing.assert_allclose(venn_abers(new), data["venn_abers"], atol=1e-6)


def test_venn_abers_is_isotonic_regression_with_one_more_example():
    values = RNG.integers(40, size=120).astype("float32") / 40
    labels = (RNG.random(120) < values**2).astype(int)
    new = np.r_[values[:10], 0, 1, RNG.random(20)].astype("float32")
    pairs = VennAbersCalibration().fit(values, labels).interval(new)
    for target, found in enumerate(pairs):
        for value, got in zip(new, found, strict=True):
            more = IsotonicRegression().fit(np.append(values, value), np.append(labels, target))
            np.testing.assert_allclose(got, more.predict([value])[0], atol=1e-6)


def test_one_of_two_venn_abers_probabilities_is_calibrated():
    """In expectation over 4,000 samples of 20: false failure below 1e-5 (|z| < 4.5)."""
    rng = np.random.default_rng(3)
    gaps = []
    for _ in range(4000):
        values = rng.integers(5, size=21).astype("float32") / 5
        labels = (rng.random(21) < 0.1 + 0.6 * values**2).astype(int)
        fitted = fit_steps(values[:-1], labels[:-1])
        pair = VennAbersCalibration(*[[part.tolist()] for part in fitted])
        gaps.append(labels[-1] - steps_at(pair, values[-1])[labels[-1]])
    assert abs(np.mean(gaps)) < 4.5 * np.std(gaps) / len(gaps) ** 0.5


def steps_at(pair, value):
    """p0 and p1 of one value, looked up one by one."""
    knots, zeros, ones = (np.array(part[0]) for part in (pair.knots, pair.zeros, pair.ones))
    below, above = np.flatnonzero(knots <= value), np.flatnonzero(knots >= value)
    return zeros[below[-1]] if below.size else 0.0, ones[above[0]] if above.size else 1.0


def test_weights_that_differ_are_no_exchangeable_examples():
    with pytest.raises(ValueError, match="`sample_weight` must be 0 or one number"):
        VennAbersCalibration().fit(PROBS, Y, 1 + WEIGHT)
    left_out = VennAbersCalibration().fit(PROBS, Y, 7 * (WEIGHT > 0))
    assert left_out == VennAbersCalibration().fit(PROBS[WEIGHT > 0], Y[WEIGHT > 0])


def test_venn_abers_of_a_class_without_a_label_is_small():
    three = Y < 3
    with pytest.warns(UserWarning, match=r"without class \[3\]: .* examples are without it"):
        fitted = VennAbersCalibration().fit(PROBS[three], Y[three])
    lower, upper = fitted.interval(PROBS)
    assert np.all(lower[:, 3] == 0) and upper[:, 3].min() < 1 / 1000


def test_dirichlet_is_multinomial_regression_with_its_penalty():
    """Without one it is scikit-learn's; with one, a gradient of zero."""
    probs, labels = PROBS[:500], Y[:500]
    logs = log_softmax(LOGITS[:500], axis=-1)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(logs, labels)
    free = DirichletCalibration(strength=1e-9).fit(probs, labels)
    np.testing.assert_allclose(free(probs), theirs.predict_proba(logs), atol=1e-4)
    held = DirichletCalibration(strength=0.5).fit(probs, labels)
    weights, bias = np.array(held.weights), np.array(held.bias)
    residual = softmax(logs @ weights.T + bias, axis=-1) - np.eye(4)[labels]
    slope = residual.T @ logs / 500 + 2 * 0.5 / 12 * weights * (1 - np.eye(4))
    assert np.abs(slope).max() < 1e-5
    assert np.abs(residual.mean(0) + 2 * 0.5 / 4 * bias).max() < 1e-5


def test_dirichlet_gives_one_class_what_is_of_another():
    """What is like 2 is often 1: no scaling of single logits knows of which class it is."""
    rng = np.random.default_rng(4)
    z = rng.normal(size=(4000, 3), scale=2)
    true = softmax(z @ np.array([[1.0, 0, 0], [0, 0.2, 1], [0, 0, 0.2]]).T, axis=-1)
    labels = (true.cumsum(-1) < rng.random((4000, 1))).sum(-1)
    ours = DirichletCalibration(from_logits=True).fit(z[:2000], labels[:2000])
    other = VectorScaling(from_logits=True).fit(z[:2000], labels[:2000])
    assert nll(ours(z[2000:]), labels[2000:]) < nll(other(z[2000:]), labels[2000:]) - 0.05
    assert ours.fitted_to["penalty"] in (1e-4, 1e-3, 1e-2, 1e-1)


def test_isotonic_agrees_with_scikit_learn_on_ties_and_weights():
    values = np.round(RNG.random(600), 2).astype("float32")
    labels = (RNG.random(600) < values**2).astype(int)
    weight = WEIGHT[:600]
    ours = IsotonicCalibration().fit(values, labels, weight)
    theirs = IsotonicRegression(out_of_bounds="clip")
    theirs.fit(values.astype("float64"), labels, sample_weight=weight)
    np.testing.assert_array_equal(ours.knots[0], theirs.X_thresholds_)
    np.testing.assert_allclose(ours.heights[0], theirs.y_thresholds_, atol=1e-12)
    between = np.r_[0, 1, values, RNG.random(500)]
    np.testing.assert_allclose(ours(between), theirs.predict(between), atol=1e-5)


def test_isotonic_is_one_against_the_rest():
    fitted = IsotonicCalibration(from_logits=True).fit(LOGITS, Y, WEIGHT)
    probs = tf.nn.softmax(LOGITS.astype("float32")).numpy()
    curves = [
        IsotonicRegression(out_of_bounds="clip").fit(p.astype("float64"), k == Y, WEIGHT).predict(p)
        for k, p in enumerate(probs.T)
    ]
    expected = np.stack(curves, -1)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(fitted(LOGITS), expected, atol=2e-4)  # float32 on steep steps
    np.testing.assert_allclose(IsotonicCalibration().fit(probs, Y, WEIGHT)(probs), expected, 1e-4)


def test_isotonic_of_nothing_is_uniform():
    curves = IsotonicCalibration([[0.3, 0.8]] * 4, [[0.0, 1.0]] * 4)
    found = curves([[0.2, 0.3, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_allclose(found[0], 1 / 4, 1e-6)
    assert found[1].round(6).tolist() == [0.5, 0.5, 0.0, 0.0]
    with pytest.raises(ValueError, match="`probs` must hold probabilities that sum to 1"):
        curves([[0.1, 0.2, 0.15, 0.1]])


def test_platt_is_the_logistic_regression_of_scikit_learn():
    z = LOGITS[:, 0]
    labels = (RNG.random(3000) < expit(0.4 * z - 1)).astype(int)
    ours = VectorScaling(from_logits=True).fit(z, labels, WEIGHT)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=500)
    theirs.fit(z[:, None], labels, sample_weight=WEIGHT)
    np.testing.assert_allclose(ours.scale, theirs.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(ours.bias, theirs.intercept_, rtol=1e-4)


# --- Classes without a label -------------------------------------------------------------------


@pytest.mark.parametrize("cls", [VectorScaling, IsotonicCalibration])
def test_a_class_without_a_label_warns_and_goes_on(cls):
    """Of the others it is the fit to them alone; scikit-learn's goes on with a warning, too."""
    three = Y < 3
    with pytest.warns(
        UserWarning, match=r"labels are without class \[3\]: its probabilities are not"
    ):
        fitted = cls().fit(PROBS[three], Y[three])
    found = fitted(PROBS)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert np.all(found[PROBS[:, 3] > 0.5, 3] > 0.25), "what is strange stays strange"
    if cls is VectorScaling:
        logits = np.log(PROBS[three][:, :3]) * fitted.scale[:3] + fitted.bias[:3]
        residual = softmax(logits, axis=-1) - np.eye(3)[Y[three]]
        assert np.abs(residual.mean(0)).max() < 1e-7
        np.testing.assert_allclose(fitted.scale[3], np.mean(fitted.scale[:3]), rtol=1e-6)
        assert abs(fitted.bias[3]) < 1e-8
    else:
        assert fitted.knots[3] == fitted.heights[3] == [0.0, 1.0]
    assert cls.from_config(fitted.get_config()) == fitted


@pytest.mark.parametrize("cls", [VectorScaling, IsotonicCalibration])
def test_a_single_class_changes_nothing(cls):
    with pytest.warns(UserWarning, match=r"without class \[0\]"):
        fitted = cls().fit([0.2, 0.7, 0.9], [1, 1, 1])
    np.testing.assert_allclose(fitted([0.1, 0.6]), [0.1, 0.6], rtol=1e-5)
    several = [[0.5, 0.3], [0.2, 0.6], [0.7, 0.1], [0.6, 0.2]]
    with pytest.warns(UserWarning, match=r"labels of label 1 are without class \[1\]"):
        fitted = cls(multi_label=True).fit(several, [[0, 0], [1, 0], [1, 0], [1, 0]])
    np.testing.assert_allclose(fitted(several)[:, 1], np.array(several)[:, 1], rtol=1e-5)


# --- Optima ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_temperature_is_the_optimum(weight):
    fitted = TemperatureScaling(from_logits=True).fit(LOGITS, Y, weight)
    factor = 1 / fitted.temperature
    expected = softmax(factor * LOGITS, axis=-1)
    of_label = LOGITS[np.arange(3000), Y]
    derivative = np.average(np.sum(expected * LOGITS, axis=-1) - of_label, weights=weight)
    assert abs(derivative) < 1e-10
    least = minimize_scalar(lambda b: nll(b * LOGITS, Y, weight), bounds=(0.01, 10))
    np.testing.assert_allclose(factor, least.x, rtol=1e-5)
    # What made the labels was divided by 2.5; the weights leave 3 of 4 examples.
    assert abs(fitted.temperature - 2.5) < 0.3


def test_temperature_in_closed_form():
    """Certain of q, right in r of all: logit(q) / T = logit(r)."""
    for q, right in ((0.9, 75), (0.6, 75), (0.999, 51)):
        labels = np.r_[np.ones(right, int), np.zeros(100 - right, int)]
        fitted = TemperatureScaling().fit(np.full(100, q), labels)
        np.testing.assert_allclose(fitted.temperature, logit(q) / logit(right / 100), rtol=1e-8)


def test_vector_is_the_optimum():
    logits, labels = LOGITS[:400] - [0, 0, 3, 0], Y[:400]
    fitted = VectorScaling(from_logits=True).fit(logits, labels)

    def loss(parameters):
        return nll(parameters[:4] * log_softmax(logits, axis=-1) + parameters[4:], labels)

    found = loss(np.r_[fitted.scale, fitted.bias])
    other = minimize(loss, np.r_[np.full(4, 0.5), np.zeros(4)], method="Powell", tol=1e-10)
    assert found < loss(np.r_[np.ones(4), np.zeros(4)])
    assert found <= other.fun + 1e-12
    logits = log_softmax(logits, axis=-1)
    residual = softmax(logits * fitted.scale + fitted.bias, axis=-1) - np.eye(4)[labels]
    assert np.abs(residual.mean(0)).max() < 1e-8
    assert np.abs((residual * logits).mean(0)).max() < 1e-7
    assert abs(sum(fitted.bias)) < 1e-10


@pytest.mark.parametrize("cls", CLASSES)
def test_calibrates_data_that_were_not_fitted_to(cls):
    """ECE of 1000 calibrated predictions is about 0.03 by chance; here it was above 0.1."""
    fitted = cls(from_logits=True).fit(LOGITS[:2000], Y[:2000])
    logits, y = LOGITS[2000:], Y[2000:]
    found = fitted(logits)
    probs = found if cls in CURVES else softmax(found, axis=-1)
    assert expected_calibration_error(y, PROBS[2000:]) > 0.1
    assert expected_calibration_error(y, probs) < 0.06
    if cls is not IsotonicCalibration:  # certain of 0 or 1, it can be infinitely wrong
        before = negative_log_likelihood(y, PROBS[2000:])
        assert negative_log_likelihood(y, probs) < before - 0.1
    if cls is TemperatureScaling:
        np.testing.assert_array_equal(found.argmax(-1), logits.argmax(-1))


# --- Kinds of predictions ----------------------------------------------------------------------


def test_probabilities_and_logits_are_fitted_alike():
    of_logits = TemperatureScaling(from_logits=True).fit(LOGITS, Y)
    of_probs = TemperatureScaling().fit(PROBS, np.eye(4)[Y])
    np.testing.assert_allclose(of_probs.temperature, of_logits.temperature, rtol=1e-9)
    found = of_logits(LOGITS)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, LOGITS / of_logits.temperature, rtol=1e-5)
    np.testing.assert_allclose(of_probs(PROBS), softmax(found, axis=-1), atol=1e-6)


def test_binary_has_three_forms():
    z, labels = LOGITS[:, 0], (Y == 0).astype(int)
    for cls in set(CLASSES) - {DirichletCalibration}:
        flat = cls(from_logits=True).fit(z, labels)
        column = cls(from_logits=True).fit(z[:, None], labels)
        assert (flat.rank, column.rank) == (1, 2)
        np.testing.assert_array_equal(flat(z)[:, None], column(z[:, None]))
        np.testing.assert_array_equal(flat(z[:, None]), column(z[:, None]))
        np.testing.assert_array_equal(flat(np.stack([z, z])[..., None])[:, 0].shape, (3000,))
    pair = np.stack([np.zeros_like(z), z], -1)
    two = TemperatureScaling(from_logits=True).fit(pair, labels)
    one = TemperatureScaling(from_logits=True).fit(z, labels)
    np.testing.assert_allclose(two.temperature, one.temperature, rtol=1e-10)


def test_multi_label():
    z = LOGITS[:, :2]
    labels = (RNG.random((3000, 2)) < expit(z / [2, 4])).astype(int)
    options = {"from_logits": True, "multi_label": True}
    for cls, kwargs in (
        (TemperatureScaling, {"per_label": True}),
        (VectorScaling, {}),
        (IsotonicCalibration, {}),
    ):
        fitted = cls(**options, **kwargs).fit(z, labels)
        alone = [cls(from_logits=True).fit(z[:, k], labels[:, k]) for k in (0, 1)]
        expected = np.stack([alone[k](z[:, k]) for k in (0, 1)], -1)
        np.testing.assert_allclose(fitted(z), expected, atol=1e-5)
    shared = TemperatureScaling(**options).fit(z, labels)
    together = TemperatureScaling(from_logits=True).fit(z.ravel(), labels.ravel())
    assert np.isclose(shared.temperature, together.temperature, rtol=1e-10)
    assert 2 < shared.temperature < 4
    weight = np.arange(3000) < 2000
    fewer = TemperatureScaling(**options, per_label=True).fit(z, labels, weight)
    assert fewer == TemperatureScaling(**options, per_label=True).fit(z[:2000], labels[:2000])


@pytest.mark.parametrize("cls", CLASSES)
def test_pixels_are_entries(cls):
    images, maps = LOGITS.reshape(30, 10, 10, 4), Y.reshape(30, 10, 10)
    fitted, flat = cls(from_logits=True).fit(images, maps), cls(from_logits=True).fit(LOGITS, Y)
    assert fitted.rank == 4
    np.testing.assert_allclose(fitted(images).reshape(-1, 4), flat(LOGITS), atol=1e-5)
    stacked = fitted(np.stack([images, images]))
    expected = fitted(images)
    if cls not in CURVES:  # logits come back as log-probabilities
        stacked, expected = softmax(stacked, -1), softmax(expected, -1)
    np.testing.assert_allclose(stacked, expected, atol=2e-4)


@pytest.mark.parametrize("from_logits", [False, True])
def test_stacks_are_fitted_as_they_are_used(from_logits):
    y, samples = Y[:500], softmax(STACK, axis=-1)
    given = STACK if from_logits else samples
    mean = np.log(samples.mean(0))

    def averaged(b):
        return np.log(softmax(b * STACK, axis=-1).mean(0))

    for average, scaled in (("before", lambda b: b * mean), ("after", averaged)):
        fitted = TemperatureScaling(from_logits=from_logits, average=average).fit(given, y)
        assert fitted.rank == 2
        least = minimize_scalar(lambda b: nll(scaled(b), y), bounds=(0.02, 5))  # noqa: B023
        factor = 1 / fitted.temperature
        np.testing.assert_allclose(factor, least.x, rtol=1e-4)
        assert nll(scaled(factor), y) <= least.fun + 1e-12
        found = softmax(fitted(given), axis=-1) if from_logits else fitted(given)
        expected = softmax(scaled(factor), axis=-1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        one = [fitted(given[0]), fitted(given[:1])]
        one = softmax(one, axis=-1) if from_logits else one
        np.testing.assert_allclose(*one, atol=1e-5)


def test_stacks_of_the_other_scalings():
    y, samples = Y[:500], softmax(STACK, axis=-1)
    for cls in (VectorScaling, IsotonicCalibration):
        first = cls().fit(samples, y)
        single = cls().fit(samples.mean(0), y)
        np.testing.assert_allclose(first(samples), single(samples.mean(0)), atol=1e-3)
        last = cls(average="after").fit(samples, y)
        np.testing.assert_allclose(last(samples), np.mean([last(s) for s in samples], 0), atol=1e-5)
    logits = np.log(samples)
    fitted = VectorScaling(average="after").fit(samples, y)

    def loss(parameters):
        scaled = softmax(parameters[:4] * logits + parameters[4:], axis=-1)
        return -np.mean(np.log(scaled.mean(0)[np.arange(500), y]))

    best = np.r_[fitted.scale, fitted.bias]
    for step in np.r_[np.eye(8), -np.eye(8)] * 1e-3:
        assert loss(best) <= loss(best + step)
    pooled = IsotonicCalibration().fit(samples.reshape(-1, 4), np.tile(y, 5))
    np.testing.assert_allclose(
        IsotonicCalibration(average="after").fit(samples, y)(samples[0]), pooled(samples[0]), 1e-5
    )


def test_weights_leave_out_and_repeat():
    spoilt = np.where(np.arange(3000)[:, None] < 1000, np.nan, LOGITS)
    weight = (np.arange(3000) >= 1000) * (1.0 + (np.arange(3000) >= 2000))
    twice = np.r_[1000:3000, 2000:3000]
    for cls in set(CLASSES) - {VennAbersCalibration}:  # whose examples count alike
        options = {"strength": 0.01} if cls is DirichletCalibration else {}
        weighted = cls(from_logits=True, **options).fit(spoilt, Y, weight)
        repeated = cls(from_logits=True, **options).fit(LOGITS[twice], Y[twice])
        np.testing.assert_allclose(weighted(LOGITS), repeated(LOGITS), atol=1e-5)


# --- Extremes ----------------------------------------------------------------------------------


def test_temperature_stops_at_its_limits():
    z, y = LOGITS[:50], LOGITS[:50].argmax(-1)
    with pytest.warns(UserWarning, match="stopped at its limit 0.001.*all right"):
        assert TemperatureScaling(from_logits=True).fit(z, y).temperature == 1e-3
    with pytest.warns(UserWarning, match="stopped at its limit 1000.*no better than chance"):
        assert TemperatureScaling(from_logits=True).fit(z, z.argmin(-1)).temperature == 1e3
    with pytest.warns(UserWarning, match="of label 1 stopped"):
        TemperatureScaling(multi_label=True, per_label=True).fit(
            [[0.9, 0.9], [0.9, 0.9], [0.9, 0.9]], [[1, 1], [1, 1], [0, 1]]
        )
    assert TemperatureScaling().fit(np.full((3, 4), 0.25), [0, 1, 2]).temperature == 1.0


def test_separable_classes_are_told():
    with pytest.warns(UserWarning, match="separate the classes without an error"):
        fitted = VectorScaling(from_logits=True).fit(LOGITS, LOGITS.argmax(-1))
    assert np.isfinite(fitted.scale).all() and np.isfinite(fitted.bias).all()
    assert np.isfinite(fitted(LOGITS)).all()


def test_certain_predictions_stay_finite():
    probs = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]]
    labels = np.array([0, 1, 2, 0, 1, 2, 1, 2])
    for cls in CLASSES:
        fitted = cls().fit(probs, labels)
        found = fitted(probs)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    # All examples are alike, so the best confidence is the accuracy.
    scaled = TemperatureScaling().fit(probs, labels)(probs)
    np.testing.assert_allclose(scaled.max(-1), 0.75, atol=1e-6)
    np.testing.assert_allclose(TemperatureScaling(1.0)([0.0, 1.0, 0.3]), [0, 1, 0.3], atol=1e-7)


def test_classes_that_are_ruled_out():
    logits = LOGITS.copy()
    logits[np.arange(3000), (Y + RNG.integers(1, 4, size=3000)) % 4] = -np.inf
    plain = TemperatureScaling(from_logits=True).fit(logits, Y)
    lower = TemperatureScaling(from_logits=True).fit(np.maximum(logits, -1e5), Y)
    assert np.isclose(plain.temperature, lower.temperature, rtol=1e-9)
    vector = VectorScaling(from_logits=True).fit(logits, Y)
    for fitted in (plain, vector):
        probs = softmax(fitted(logits), axis=-1)
        assert np.isfinite(probs).all()
    assert np.all(softmax(plain(logits), axis=-1)[np.isinf(logits)] == 0)


@pytest.mark.parametrize("cls", CLASSES)
def test_nan_is_refused_in_arrays_and_never_confident_in_graphs(cls):
    fitted = cls().fit(PROBS[:200], Y[:200])
    for bad in (np.nan, np.inf, -np.inf):
        rows = np.array([[bad, 0.2, 0.3, 0.5], [0.1, 0.2, 0.3, 0.4]], "float32")
        with pytest.raises(ValueError, match=r"`probs` must hold .*Received: "):
            fitted(rows)
        found = fitted.transform(tf.constant(rows)).numpy()
        assert np.isnan(found[0]).any() and np.isfinite(found[1]).all()


# --- Models and files --------------------------------------------------------------------------


def model_of_logits(units=4):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.jit_compile = False
    return model


def test_a_model_is_read_in_one_pass():
    model, x = model_of_logits(), RNG.normal(size=(120, 4)).astype("float32")
    y, weight = np.arange(120) % 4, np.arange(120) % 3 + 1.0
    expected = VectorScaling(from_logits=True).fit(model.predict(x, verbose=0), y, weight)
    dataset = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(50)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            rows = slice(60 * index, 60 * index + 60)
            return x[rows], y[rows], weight[rows]

    for data in ((x, y, weight), dataset, Batches()):
        found = VectorScaling.fit_model(model, data)
        assert found.from_logits and found.rank == 2
        np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-4)
    with pytest.raises(ValueError, match="must be"):
        VectorScaling.fit_model(model, x)
    with pytest.raises(ValueError, match="`from_logits`"):
        VectorScaling.fit_model(model, (10 * x, y), from_logits=False)
    model.loss = None  # nobody says what the outputs are
    with pytest.raises(ValueError, match="`from_logits` must be True"):
        VectorScaling.fit_model(model, (10 * x, y))


def test_ensembles_give_stacks():
    softmax_of = [keras.Sequential([model_of_logits(), keras.layers.Softmax()]) for _ in range(2)]
    x, y = RNG.normal(size=(80, 4)).astype("float32"), np.arange(80) % 4
    for member in softmax_of:
        member(x)
    stack = DeepEnsemble.from_models(softmax_of).predict(x)
    for cls in CLASSES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # untrained members may be no better than chance
            assert cls().fit(stack, y)(stack).shape == (80, 4)


IN_A_NEW_PROCESS = """
import sys
import numpy as np, tensorflow as tf
data, names = np.load("data.npz"), sys.argv[1:]
sys.modules["tfuq"] = None  # cannot be imported
served = tf.saved_model.load("served")
whole, one = served.serve(tf.constant(data["x"])), served.serve(tf.constant(data["x"][:1]))
for name in names:
    np.testing.assert_allclose(whole[name], data[name], atol=1e-5)
    np.testing.assert_allclose(one[name], data[name][:1], atol=1e-5)
del sys.modules["tfuq"]
import keras, tfuq
for name in names:
    model = keras.models.load_model(f"{name}.keras", safe_mode=True)
    np.testing.assert_allclose(model(data["x"]), data[name], atol=1e-5)
    fitted = getattr(tfuq.selective, name).load(f"{name}.json")
    np.testing.assert_allclose(fitted(data["scores"]), data[name], atol=1e-5)
"""


@pytest.mark.slow
def test_ride_in_a_model_into_a_new_process(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "softmax")])
    x = RNG.normal(size=(200, 4)).astype("float32")
    scores, arrays, outputs = model.predict(x, verbose=0), {}, {}
    y = np.array([RNG.choice(4, p=row / row.sum()) for row in scores.astype("float64")])
    inputs = keras.Input((4,))
    for cls in CLASSES:
        fitted, name = cls().fit(scores, y), cls.__name__
        whole, arrays[name] = fitted.append_to(model), fitted(scores)
        np.testing.assert_allclose(whole(x), arrays[name], atol=1e-5)
        assert whole(x[:0]).shape == (0, 4)
        fitted.save(tmp_path / f"{name}.json")
        whole.save(tmp_path / f"{name}.keras")
        outputs[name] = whole(inputs)
    # All in one: to export a model takes longer than all else here.
    keras.Model(inputs, outputs).export(tmp_path / "served", verbose=False)
    np.savez(tmp_path / "data.npz", x=x, scores=scores, **arrays)
    done = processes.run(IN_A_NEW_PROCESS, *arrays, cwd=tmp_path, world="keras")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES)
def test_compiled_with_xla(cls):
    fitted = cls().fit(PROBS[:200], Y[:200])
    signature = [tf.TensorSpec((None, 4))]
    compiled = tf.function(fitted.transform, signature, jit_compile=True)
    for rows in (0, 1, 7):
        probs = PROBS[:rows].astype("float32")
        np.testing.assert_allclose(compiled(probs), fitted(probs), atol=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_texts(cls):
    fitted = cls(from_logits=True).fit(LOGITS[:200], Y[:200])
    again = cls.from_json(fitted.to_json())
    assert again == fitted
    np.testing.assert_array_equal(again(LOGITS), fitted(LOGITS))
    assert cls.from_json(cls().to_json()) == cls()
    parameters = list(cls._parameters)
    for name in parameters:
        for bad in ("x", [], [[]], [["x"]], {"a": 1}, "inf", [None], -1e9, [[1, 1], [1, 1]]):
            content = json.loads(fitted.to_json())
            content["config"][name] = bad
            with pytest.raises(ValueError, match=f"must be what `{cls.__name__}.to_json` gave"):
                cls.from_json(json.dumps(content))


# --- Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_bad_arrays(cls):
    for probs, labels in (
        (PROBS * 2, Y),
        (PROBS * np.nan, Y),
        (PROBS[:0], Y[:0]),
        (PROBS, Y[:10]),
        (PROBS, Y + 1),
        (PROBS, Y - 0.5),
        (PROBS, Y.astype(str)),
        ([], []),
    ):
        with pytest.raises(ValueError, match=r"`(probs|labels)` must .*Received: "):
            cls().fit(probs, labels)
    with pytest.raises(ValueError, match=r"`sample_weight` must .*Received: "):
        cls().fit(PROBS, Y, -WEIGHT)
    with pytest.raises(ValueError, match=f"{cls.__name__} must be fitted first"):
        cls()(PROBS)
    fitted = cls().fit(PROBS, Y)
    for other in (PROBS[0], PROBS[None, None], PROBS[0, 0], "probs", [[2.0, -1.0, 0.0, 0.0]]):
        with pytest.raises(ValueError, match=r"`probs` must .*Received: "):
            fitted(other)
    if cls is not TemperatureScaling:
        with pytest.raises(ValueError, match="the last of length 4"):
            fitted(PROBS[:, :3])
    options = {"per_label": True} if cls is TemperatureScaling else {}
    refused = r"`sample_weight` must leave an entry.*label \[1\]"
    if cls is DirichletCalibration:
        refused = "`multi_label` must be False.*BetaCalibration"
    with pytest.raises(ValueError, match=refused):
        cls(multi_label=True, **options).fit([[0.5, 0.4]] * 2, [[0, 0], [1, 1]], [[1, 0]] * 2)
    if cls is DirichletCalibration:
        with pytest.raises(ValueError, match=r"`probs` must be of two or more classes.*Beta"):
            cls().fit(PROBS[:, 0], Y == 0)
        return
    flat = cls().fit(PROBS[:, 0], Y == 0)
    with pytest.raises(ValueError, match="must have 1 axes"):
        flat(PROBS)


@pytest.mark.parametrize(
    "cls, options",
    [
        (TemperatureScaling, {"temperature": 0}),
        (TemperatureScaling, {"temperature": np.nan}),
        (TemperatureScaling, {"temperature": [1.0]}),
        (TemperatureScaling, {"temperature": 1.0, "per_label": True, "multi_label": True}),
        (TemperatureScaling, {"per_label": True}),
        (TemperatureScaling, {"per_label": "yes"}),
        (TemperatureScaling, {"rank": 0}),
        (TemperatureScaling, {"average": "first"}),
        (TemperatureScaling, {"from_logits": "yes"}),
        (VectorScaling, {"scale": [1.0]}),
        (VectorScaling, {"scale": [1.0], "bias": [1.0, 2.0]}),
        (VectorScaling, {"scale": 1.0, "bias": 1.0}),
        (VectorScaling, {"scale": [np.inf], "bias": [0.0]}),
        (IsotonicCalibration, {"knots": [[0.5]]}),
        (IsotonicCalibration, {"knots": [[0.5, 0.5]], "heights": [[0.1, 0.2]]}),
        (IsotonicCalibration, {"knots": [[0.1, 0.5]], "heights": [[0.3, 0.2]]}),
        (IsotonicCalibration, {"knots": [[0.1, 0.5]], "heights": [[0.2]]}),
        (IsotonicCalibration, {"knots": [[0.5]], "heights": [[1.5]]}),
        (IsotonicCalibration, {"knots": [[0.5]], "heights": [[0.5], [0.5]]}),
        (IsotonicCalibration, {"knots": 0.5, "heights": 0.5}),
        (BetaCalibration, {"a": [1.0], "b": [1.0]}),
        (BetaCalibration, {"a": [-1.0], "b": [1.0], "c": [0.0]}),
        (BetaCalibration, {"a": [1.0], "b": [1.0, 2.0], "c": [0.0]}),
        (DirichletCalibration, {"multi_label": True}),
        (DirichletCalibration, {"strength": 0}),
        (DirichletCalibration, {"strength": "none"}),
        (DirichletCalibration, {"weights": [[1.0, 0.0]], "bias": [0.0]}),
        (VennAbersCalibration, {"average": "after"}),
        (VennAbersCalibration, {"knots": [[0.5]], "zeros": [[0.5]]}),
        (VennAbersCalibration, {"knots": [[0.5]], "zeros": [[0.5]], "ones": [[0.4]]}),
        (VennAbersCalibration, {"knots": [[0.5, 0.4]], "zeros": [[0, 0]], "ones": [[1, 1]]}),
    ],
)
def test_bad_constructor(cls, options):
    with pytest.raises(ValueError, match=r"Arguments? `.* must .*Received: "):
        cls(**options)
