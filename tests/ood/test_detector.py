"""Detectors on gradients: what they learn, their thresholds, their files, what they refuse."""

import keras
import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from tfuq import metrics
from tfuq.ood import GradientDensity, GradientDetector, load_detector
from tfuq.ood.density import leave_one_out, shrunk_whitener
from tfuq.ood.detector import equal_priors, relu_network, split_rows
from tfuq.ood.log_features import Scale, log_norms, squared_norms

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(5, 5)) + 2 * np.eye(5)


def norms(n, shift=0.0, seed=0):
    """Log-normal features `(n, 5)`, correlated, of different sizes, exact in float32."""
    rng = np.random.default_rng(seed)
    features = np.exp(0.3 * (rng.normal(size=(n, 5)) + shift) @ MIX + np.linspace(-4, 4, 5))
    return features.astype("float32").astype("float64")


IN, OUT = norms(300), norms(150, 0.7, seed=1)
QUICK = {"epochs": 6, "learning_rate": 0.01, "batch_size": 32}


@pytest.fixture(scope="module")
def trained():
    return GradientDetector(**QUICK, seed=4).fit_features(IN, OUT)


@pytest.fixture(scope="module")
def density():
    return GradientDensity().fit_features(IN)


# --- Arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n, p", [(200, 5), (20, 40), (12, 2)])
def test_covariance_is_that_of_scikit_learn(n, p):
    x = RNG.normal(size=(n, p)) @ RNG.normal(size=(p, p))
    z = Scale.of(x)(x)
    np.testing.assert_allclose([z.mean(axis=0), z.std(axis=0)], [[0] * p, [1] * p], atol=1e-12)
    matrix, amount = shrunk_whitener(z)
    expected = LedoitWolf(assume_centered=True).fit(z)
    assert amount == pytest.approx(expected.shrinkage_, rel=1e-12)
    np.testing.assert_allclose(matrix @ matrix.T, expected.precision_, rtol=1e-8, atol=1e-8)


def test_density_is_the_mahalanobis_distance_of_scikit_learn(density):
    logs = log_norms(IN)
    z = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    model = LedoitWolf().fit(z)
    rows = (log_norms(OUT) - logs.mean(axis=0)) / logs.std(axis=0)
    np.testing.assert_allclose(density.score_features(OUT), model.mahalanobis(rows), rtol=1e-9)


@pytest.mark.parametrize("n", [12, 40])
def test_leaving_one_out_is_fitting_to_the_others(n):
    z = RNG.normal(size=(n, 6)) @ RNG.normal(size=(6, 6))
    z -= z.mean(axis=0)
    matrix, amount = shrunk_whitener(z)
    target = z.var(axis=0).mean() * n / (n - 1)
    expected = []
    for i in range(n):
        others = np.delete(z, i, axis=0)
        again = (1 - amount) * np.cov(others.T, bias=True) + amount * target * np.eye(6)
        step = z[i] - others.mean(axis=0)
        expected.append(step @ np.linalg.solve(again, step))
    scores = np.square(z @ matrix).sum(axis=1)
    np.testing.assert_allclose(leave_one_out(scores, amount), expected, rtol=1e-9)


def test_split_is_40_40_20_of_each_set():
    labels = np.repeat([0, 1], [100, 30])
    parts = split_rows(labels, seed=1)
    assert [np.bincount(labels[rows]).tolist() for rows in parts] == [[40, 12], [40, 12], [20, 6]]
    assert sorted(np.concatenate(parts)) == list(range(130))
    again, other = split_rows(labels, seed=1), split_rows(labels, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts[0], other[0])
    smallest = split_rows(np.repeat([0, 1], 10), seed=0)
    assert [len(rows) for rows in smallest] == [8, 8, 4]


def test_both_sets_weigh_the_same():
    weight = equal_priors(np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(weight, [2 / 3] * 3 + [2])


# --- With out-of-distribution data ---------------------------------------------------------------


def held_out(detector):
    """Features of the test part, in and out, and of the in-distribution ones to validate."""
    labels = np.repeat([0, 1], [len(IN), len(OUT)])
    rows = np.concatenate([IN, OUT])
    _, validation, test = split_rows(labels, detector.seed)
    return rows[test[test < 300]], rows[test[test >= 300]], rows[validation[validation < 300]]


@pytest.mark.slow
def test_evaluates_what_was_held_out(trained):
    inside, outside, _ = held_out(trained)
    assert (len(inside), len(outside)) == (60, 30)
    scores = np.concatenate([trained.score_features(inside), trained.score_features(outside)])
    y_true = np.repeat([0, 1], [60, 30])
    options = {"tpr": 0.8, "num_resamples": 30, "confidence": 0.7}
    expected = metrics.ood_metrics(y_true, scores, seed=4, **options)
    assert trained.evaluate(**options) == pytest.approx(expected)
    assert expected["auroc"] > 0.75  # logistic regression reaches 0.86
    low, high = trained.evaluate(num_resamples=30)["aupr_in_interval"]
    assert low < high


def test_evaluates_another_set(trained):
    inside, _, _ = held_out(trained)
    other = norms(40, -1.0, seed=5)
    scores = np.concatenate([trained.score_features(inside), trained.score_features(other)])
    expected = metrics.ood_metrics(np.repeat([0, 1], [60, 40]), scores)
    assert trained.evaluate(other, num_resamples=0) == pytest.approx(expected)


def test_scores_are_those_of_the_network_on_standardised_logs(trained):
    state = trained._state
    labels = np.repeat([0, 1], [len(IN), len(OUT)])
    logs = log_norms(np.concatenate([IN, OUT])[split_rows(labels, 4)[0]])
    np.testing.assert_allclose(state["mean"], logs.mean(axis=0))
    network = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
    )
    names = ("hidden_kernel", "hidden_bias", "kernel", "bias")
    network.set_weights([state[name] for name in names])
    z = (log_norms(OUT) - logs.mean(axis=0)) / logs.std(axis=0)
    expected = np.asarray(network(z.astype("float32")))[:, 0]
    np.testing.assert_allclose(trained.score_features(OUT), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_keeps_the_weights_of_the_lowest_validation_loss():
    detector = GradientDetector(epochs=40, learning_rate=0.3, patience=2, batch_size=16)
    detector.fit_features(IN[:60], IN[60:120])  # there is nothing to learn
    losses = detector.history["val_loss"]
    assert len(losses) == np.argmin(losses) + 3 < 40
    _, validation, _ = split_rows(np.repeat([0, 1], 60), 0)
    scores = detector.score_features(IN[:120][validation])
    signs = np.where(validation < 60, 1, -1)
    assert np.logaddexp(0, signs * scores).mean() == pytest.approx(min(losses), rel=1e-4)


def test_threshold_comes_from_the_validation_part(trained):
    _, _, inside = held_out(trained)
    threshold = trained.threshold_at(0.9, confidence=0.8)
    scores = np.sort(trained.score_features(inside))
    assert threshold.examples == len(scores) == 120
    assert threshold.value == pytest.approx(scores[107])
    assert threshold.lower < threshold.value < threshold.upper


# --- Without -------------------------------------------------------------------------------------


def test_threshold_of_the_density_holds_on_new_data():
    rates, naive = [], []
    for seed in range(20):
        features = norms(60, seed=seed)
        wide = np.concatenate([features, norms(60, seed=100 + seed), norms(60, seed=200 + seed)], 1)
        density = GradientDensity().fit_features(wide)
        new = np.concatenate([norms(900, seed=s + seed) for s in (300, 400, 500)], 1)
        scores = density.score_features(new)
        rates.append(np.mean(scores <= density.threshold_at(0.9).value))
        naive_threshold = density.threshold_at(0.9, scores=density.score_features(wide))
        naive.append(np.mean(scores <= naive_threshold.value))
    # Standard deviation 0.04 of each, so 0.01 of the mean of 20; what was fitted scores too low.
    assert abs(np.mean(rates) - 0.9) < 0.04
    assert np.mean(naive) < 0.8


def test_density_tells_sets_apart(density):
    scores = np.concatenate(
        [density.score_features(norms(200, seed=9)), density.score_features(OUT)]
    )
    found = metrics.auroc(np.repeat([0, 1], [200, 150]), scores)
    assert found > 0.6  # the mean alone moves, by 0.7 standard deviations
    far = density.score_features(norms(50, 5.0))
    assert np.all(far > density.threshold_at(1.0).value)


def test_collinear_and_constant_columns():
    features = np.concatenate([IN, 3 * IN, np.full((300, 1), 0.1), np.zeros((300, 1))], axis=1)
    density = GradientDensity().fit_features(features)
    scores = density.score_features(features)
    assert np.all(np.isfinite(scores)) and np.all(np.isfinite(density._fit_scores))
    constant = np.concatenate([IN, 3 * IN, np.full((300, 1), 0.1)], axis=1)
    density = GradientDensity().fit_features(constant)
    scores = density.score_features(constant)
    constant[:, -1] = 0.2  # the floor of all columns moves by 1e-11
    np.testing.assert_allclose(density.score_features(constant), scores, rtol=1e-6)
    two = np.tile([[1.0, 2.0, 3.0], [2.0, 1.0, 6.0]], (5, 1))
    assert np.all(np.isfinite(GradientDensity().fit_features(two).score_features(two)))


def test_zero_is_a_norm():
    features = IN.copy()
    features[0] = 0.0
    assert np.all(np.isfinite(GradientDensity().fit_features(features).score_features(features)))
    np.testing.assert_allclose(log_norms(np.zeros((1, 1))), np.log(1e-20))


# --- Both ----------------------------------------------------------------------------------------


def features_of(x):
    """Stands in for `GradientFeatures(model)`."""
    return np.asarray(x) if x.shape[0] <= 64 else "too many at a time"


@pytest.mark.slow
def test_inputs_are_read_through_the_function(trained):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    detector = GradientDetector(**QUICK, seed=4)
    detector.fit(features_of, (IN, np.zeros(300)), OUT, batch_size=64)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert detector.history == trained.history
    np.testing.assert_array_equal(detector.score(OUT), trained.score_features(OUT))


def test_inputs_of_the_density(density):
    fitted = GradientDensity().fit(features_of, IN)
    assert fitted.model is features_of
    np.testing.assert_allclose(fitted.score(OUT), density.score_features(OUT))
    threshold = fitted.threshold_at(0.95).value
    np.testing.assert_array_equal(fitted.detect(OUT), fitted.score(OUT) > threshold)


@pytest.mark.parametrize("name", ["trained", "density"])
def test_save_and_load(name, request, tmp_path):
    detector = request.getfixturevalue(name)
    threshold = detector.threshold_at(0.8)
    detector.save(tmp_path / "detector.npz")
    loaded = type(detector).load(tmp_path / "detector.npz", model=features_of)
    assert [path.name for path in tmp_path.iterdir()] == ["detector.npz"]
    np.testing.assert_array_equal(loaded.score_features(OUT), detector.score_features(OUT))
    assert loaded.get_config() == detector.get_config()
    assert loaded.threshold == threshold == loaded.threshold_at(0.8)
    np.testing.assert_array_equal(loaded.detect(OUT), loaded.score(OUT) > threshold.value)
    if name == "trained":
        assert loaded.evaluate(num_resamples=9) == detector.evaluate(num_resamples=9)
    other = GradientDensity if name == "trained" else GradientDetector
    with pytest.raises(ValueError, match="`path` must be a file of a "):
        other.load(tmp_path / "detector.npz")


def test_what_is_not_finite_is_out_of_distribution(trained, density):
    features = OUT[:3].copy()
    features[0, 1], features[1, 2] = np.nan, np.inf
    for detector in (trained, density):
        scores = detector.score_features(features)
        assert np.isposinf(scores[:2]).all() and np.isfinite(scores[2])


def test_inputs_that_are_not_finite_are_not_asked_for_gradients():
    def strict(x):
        if not np.isfinite(x).all():
            raise ValueError("Argument `x` must give finite gradients. Received: NaN")
        return np.asarray(x)

    density = GradientDensity().fit(strict, IN)
    x = OUT[:3].copy()
    x[1, 2] = np.nan
    expected = density.score_features(OUT[:3])
    np.testing.assert_allclose(density.score(x), [expected[0], np.inf, expected[2]])


# --- Bad input -----------------------------------------------------------------------------------


def refused(argument, call, *args, **options):
    with pytest.raises(ValueError, match=f"Argument `{argument}` must .*Received: "):
        call(*args, **options)


def spoilt(value):
    features = IN.copy()
    features[3, 2] = value
    return features


BAD = {
    "nan": spoilt(np.nan),
    "inf": spoilt(np.inf),
    "negative": spoilt(-1.0),
    "one axis": IN[0],
    "empty": IN[:0],
    "no columns": IN[:, :0],
    "few": IN[:9],
    "constant": np.ones((30, 5)),
    "words": np.full((30, 5), "a"),
    "nothing": None,
}


@pytest.mark.parametrize("case", BAD)
def test_bad_features(case):
    out = BAD[case] if case == "constant" else OUT
    refused("features", GradientDensity().fit_features, BAD[case])
    refused("features", GradientDetector().fit_features, BAD[case], out)
    if case in ("nan", "inf", "constant"):  # rows of both sets are looked at together
        return
    refused("features_out", GradientDetector().fit_features, IN, BAD[case])


def test_sets_must_fit_together(trained):
    refused("features_out", GradientDetector().fit_features, IN, OUT[:, :4])
    refused("features", trained.score_features, OUT[:, :4])
    refused("features", trained.evaluate, OUT[:, :4])


def test_bad_inputs():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, "softmax")])
    for bad in (model, "model", None):
        refused("model", GradientDensity().fit, bad, IN)
        refused("model", GradientDetector().fit, bad, IN, OUT)
    refused("x", GradientDetector().fit, features_of, IN[:0], OUT)
    refused("x_out", GradientDetector().fit, features_of, np.zeros((20, 5)), OUT[:0])
    refused("x_out", GradientDetector().fit, features_of, np.zeros((20, 5)), None)
    refused("model", GradientDensity().fit, lambda x: np.ones(len(x)), IN)
    refused("x", GradientDensity().fit, lambda x: np.full((len(x), 2), np.nan), IN)
    refused("model", GradientDetector().fit, lambda x: -np.asarray(x), IN, OUT)


def test_one_class_is_not_enough(trained):
    """Out-of-distribution data that are missing, or too few, or not given at all."""
    for missing in (None, [], OUT[:0], OUT[:9]):
        refused("features_out", GradientDetector().fit_features, IN, missing)
    with pytest.raises(TypeError, match="features_out"):
        GradientDetector().fit_features(IN)
    refused("features_out", trained.evaluate, OUT[:0])


def test_without_a_model(trained, tmp_path):
    refused("model", GradientDensity().fit_features(IN).score, IN)
    trained.save(tmp_path / "detector.npz")
    refused("model", GradientDetector.load(tmp_path / "detector.npz").score, IN)
    content = (tmp_path / "detector.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    refused("path", load_detector, tmp_path / "half.npz")


@pytest.mark.parametrize("detector", [GradientDetector(), GradientDensity()])
def test_before_fit(detector, tmp_path):
    refused("detector", detector.score_features, IN)
    refused("detector", detector.score, IN)
    refused("detector", detector.save, tmp_path / "detector.npz")
    refused("detector", detector.threshold_at)
    refused("threshold", detector.detect, IN)
    if isinstance(detector, GradientDetector):
        refused("detector", detector.evaluate)


def test_bad_options():
    for name in ("hidden_units", "batch_size", "epochs", "patience"):
        for value in (0, 1.5, None):
            refused(name, GradientDetector, **{name: value})
    refused("learning_rate", GradientDetector, learning_rate=0)
    refused("seed", GradientDetector, seed=-1)
    refused("features", squared_norms, "features", [[0.1, -0.1]])


def test_network_by_hand():
    z = np.array([[1.0, -1.0]])
    hidden = np.array([[1.0, 2.0], [0.0, 3.0]])
    found = relu_network(
        z, hidden, np.array([0.5, 0.0]), np.array([[2.0], [9.0]]), np.array([0.25])
    )
    np.testing.assert_allclose(found, [2 * 1.5 + 0 + 0.25])
