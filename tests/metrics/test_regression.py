"""Metrics of predicted numbers: against closed forms, scikit-learn and brute force."""

import keras
import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

from tfuq import metrics
from tfuq.layers import NormalDense
from tfuq.predictive import RegressionUncertainty

RNG = np.random.default_rng(4)
N = 60
LOC, SCALE = RNG.normal(size=(N, 2)), 0.3 + RNG.random((N, 2))
Y = LOC + SCALE * RNG.normal(size=(N, 2))
WEIGHT = RNG.integers(4, size=N).astype(float)
NORMAL = RegressionUncertainty(np.concatenate([LOC, SCALE], -1)[None], "normal")
QUANTILES = {"name": "quantiles", "levels": [0.05, 0.5, 0.95]}
MIXTURE = {"name": "mixture", "num_components": 2}


def of(family, *blocks):
    """A `RegressionUncertainty` of one network."""
    return RegressionUncertainty(np.concatenate(blocks, -1)[None], family)


FOUND = {
    "normal": NORMAL,
    "laplace": of("laplace", LOC, SCALE),
    "student_t": of("student_t", LOC, SCALE, 3 + SCALE),
    "mixture": of(MIXTURE, LOC, -LOC, LOC, LOC + 1, SCALE, 2 * SCALE),
    "quantiles": of(QUANTILES, LOC - 1.6 * SCALE, LOC, LOC + 1.6 * SCALE),
}


def draws_of(family, *blocks):
    """Three draws, of which one is far off."""
    stack = [np.concatenate([blocks[0] + d, *blocks[1:]], -1) for d in (0.0, 0.3, 2.0)]
    return RegressionUncertainty(np.stack(stack), family)


DRAWS = {
    "normal": draws_of("normal", LOC, SCALE),
    "laplace": draws_of("laplace", LOC, SCALE),
    "student_t": draws_of("student_t", LOC, SCALE, 3 + SCALE),
    "mixture": RegressionUncertainty(
        np.stack([FOUND["mixture"].params[0], FOUND["mixture"].params[0] + 0.4]), MIXTURE
    ),
}


def weighted(values):
    return np.average(np.broadcast_to(values, Y.shape).mean(-1), weights=WEIGHT)


# --- Functions ----------------------------------------------------------------------------------


def test_interval_metrics_are_their_formulas():
    lower, upper = stats.norm(LOC, SCALE).interval(0.8)
    inside = (lower <= Y) & (upper >= Y)
    pinball = [
        sklearn.metrics.mean_pinball_loss(
            Y.ravel(), end.ravel(), alpha=q, sample_weight=np.repeat(WEIGHT, 2)
        )
        for q, end in ((0.1, lower), (0.9, upper))
    ]
    options = {"level": 0.8, "sample_weight": WEIGHT}
    for y_pred in (NORMAL, (lower, upper)):
        covered = metrics.prediction_interval_coverage(Y, y_pred, **options)
        np.testing.assert_allclose(covered, weighted(inside))
        width = metrics.mean_interval_width(y_pred, **options)
        np.testing.assert_allclose(width, weighted(upper - lower))
        score = metrics.interval_score(Y, y_pred, **options)
        np.testing.assert_allclose(score, 2 / 0.2 * sum(pinball))


@pytest.mark.slow_cases("student_t")
@pytest.mark.parametrize("name", DRAWS)
def test_crps_is_the_integral(name):
    found, y = DRAWS[name][:2], Y[:2]
    rows = RegressionUncertainty(found.params, found.family)
    grid = np.linspace(-40, 40, 1601)[:, None, None]
    many = RegressionUncertainty(
        np.repeat(rows.params, len(grid), axis=1), rows.family
    )  # each row at each point of the grid, in one call
    points = np.tile(grid[:, 0, :], (2, 2))
    reached = many.cdf(points).reshape(2, len(grid), 2).transpose(1, 0, 2)
    expected = np.trapezoid((reached - (grid >= y)) ** 2, grid, axis=0).mean()
    np.testing.assert_allclose(metrics.crps(y, rows), expected, atol=0.02)
    again = RegressionUncertainty(np.repeat(rows.params, 500, axis=1), rows.family)
    samples = again.samples(6, seed=1).reshape(6, 2, 500, 2)
    samples = samples.transpose(0, 2, 1, 3).reshape(3000, 2, 2)
    error = 6 * np.std(samples) / np.sqrt(3000)  # fails right draws 1 time in 5e8
    assert abs(metrics.crps(y, samples) - metrics.crps(y, rows)) < error


@pytest.mark.slow_cases("laplace")
@pytest.mark.parametrize("name", ["laplace", "student_t"])
def test_crps_of_draws_by_integral_and_in_closed_form(name):
    """Draws that are equal are one network, and normals are integrated as well as added up."""
    one = FOUND[name]
    same = RegressionUncertainty(np.repeat(one.params, 3, axis=0), one.family)
    np.testing.assert_allclose(metrics.crps(Y, same), metrics.crps(Y, one), rtol=1e-6)


def test_the_integral_of_draws_of_normals_is_the_closed_form():
    from tfuq._predictions import mixture_scores

    stack, y = DRAWS["normal"].params, keras.ops.convert_to_tensor(Y)
    closed = mixture_scores.mixture_crps(DRAWS["normal"].family, keras.ops.array(stack), y)
    family = DRAWS["normal"].family
    each = np.mean([family.crps(keras.ops.array(p), y) for p in stack], axis=0)
    integral = each - mixture_scores._disagreement(family, keras.ops.array(stack), y)
    np.testing.assert_allclose(integral, closed, atol=1e-5)


def test_crps_of_samples_is_that_of_all_pairs():
    draws = RNG.normal(size=(7, N, 2))
    pairs = np.abs(draws[:, None] - draws[None]).mean((0, 1))
    expected = (np.abs(draws - Y).mean(0) - pairs / 2).mean()
    np.testing.assert_allclose(metrics.crps(Y, draws), expected)


def test_likelihood_is_that_of_scipy():
    found = metrics.number_negative_log_likelihood(Y, NORMAL, sample_weight=WEIGHT)
    np.testing.assert_allclose(found, weighted(-stats.norm(LOC, SCALE).logpdf(Y)))
    density = np.mean([stats.norm(LOC + d, SCALE).pdf(Y) for d in (0, 0.3, 2)], axis=0)
    found = metrics.number_negative_log_likelihood(Y, DRAWS["normal"])
    np.testing.assert_allclose(found, -np.log(density).mean())


def test_quantile_calibration_error_is_brute_force():
    levels = np.arange(1, 20) / 20
    shares = [(stats.norm(LOC, SCALE).ppf(q) >= Y).mean() for q in levels]
    expected = np.abs(shares - levels).mean()
    np.testing.assert_allclose(metrics.quantile_calibration_error(Y, NORMAL), expected)
    curve = metrics.quantile_calibration_curve(Y, NORMAL)
    np.testing.assert_allclose([curve["level"], curve["share"]], [levels, shares])
    of_quantiles = metrics.quantile_calibration_error(Y, FOUND["quantiles"])
    ends = [LOC - 1.6 * SCALE, LOC, LOC + 1.6 * SCALE]
    shares = [(end >= Y).mean() for end in ends]
    np.testing.assert_allclose(of_quantiles, np.abs(np.subtract(shares, [0.05, 0.5, 0.95])).mean())


def test_sharpness_is_a_root_of_a_mean_variance():
    expected = np.sqrt(weighted(SCALE**2))
    np.testing.assert_allclose(metrics.sharpness(NORMAL, sample_weight=WEIGHT), expected)
    np.testing.assert_allclose(metrics.sharpness(SCALE, sample_weight=WEIGHT), expected)


@pytest.mark.parametrize("error", ["absolute", "squared"])
def test_sparsification_is_brute_force(error):
    errors = np.abs(Y - LOC).ravel() ** (1 if error == "absolute" else 2)

    def curve(doubt):
        order = np.argsort(doubt)
        return np.cumsum(errors[order]) / np.arange(1, len(errors) + 1)

    expected = (curve(SCALE.ravel()) - curve(errors)).mean() / errors.mean()
    np.testing.assert_allclose(metrics.ause(Y, NORMAL, error=error), expected)
    np.testing.assert_allclose(metrics.ause(Y, LOC, SCALE, error=error), expected)
    assert metrics.ause(Y, LOC, np.abs(Y - LOC), error=error) == 0
    assert metrics.ause(Y, Y, SCALE) == 0
    constant = metrics.ause(Y, LOC, np.ones_like(LOC), error=error)
    np.testing.assert_allclose(constant, 1 - curve(errors).mean() / errors.mean())


def test_labels_without_the_last_axis(counts):
    """`(n,)` and `(n, 1)` are one; nothing is broadcast into `(n, n)`."""
    found = RegressionUncertainty(np.stack([LOC[:, 0], SCALE[:, 0]], -1)[None], "normal")
    for name in ("crps", "interval_score", "prediction_interval_coverage", "ause"):
        function = getattr(metrics, name)
        assert function(Y[:, 0], found) == function(Y[:, :1], found)
        counts("misuse rows, right")


def test_intervals_without_ends_are_taken(counts):
    """As `ConformalRegressor` gives them for what is not known."""
    ends = np.full((2, 1), -np.inf), np.full((2, 1), np.inf)
    assert metrics.prediction_interval_coverage([0.0, 1.0], ends) == 1.0
    assert metrics.mean_interval_width(ends) == np.inf
    assert metrics.interval_score([0.0, 1.0], ends) == np.inf
    counts("misuse rows, right")


# --- Streaming ----------------------------------------------------------------------------------

STREAMED = {
    "PredictionIntervalCoverage": metrics.prediction_interval_coverage,
    "MeanIntervalWidth": lambda y, found, **o: metrics.mean_interval_width(found, **o),
    "IntervalScore": metrics.interval_score,
    "CRPS": metrics.crps,
    "NumberNegativeLogLikelihood": metrics.number_negative_log_likelihood,
    "QuantileCalibrationError": metrics.quantile_calibration_error,
    "Sharpness": lambda y, found, **o: metrics.sharpness(found, **o),
    "AUSE": metrics.ause,
}


# What a family does is in its formulas, so each has the metrics that ask for others of them.
CASES = [(name, "normal") for name in STREAMED]
CASES += [(name, family) for name in ("CRPS", "QuantileCalibrationError") for family in FOUND]
CASES += [("IntervalScore", "laplace"), ("IntervalScore", "quantiles"), ("AUSE", "mixture")]


@pytest.mark.parametrize("name, family", dict.fromkeys(CASES))
def test_streaming_metrics_are_the_functions(name, family):
    found = FOUND[family]
    metric = getattr(metrics, name)(found.family, dtype="float64")
    for rows in (slice(0, 17), slice(17, N)):
        metric.update_state(Y[rows], found.params[0][rows], WEIGHT[rows])
    expected = STREAMED[name](Y, found, sample_weight=WEIGHT)
    np.testing.assert_allclose(metric.result(), expected, atol=0.02 if name == "AUSE" else 1e-6)


@pytest.mark.parametrize("name", STREAMED)
def test_streaming_metrics_answer_nan(name, counts):
    metric = getattr(metrics, name)()
    assert np.isnan(metric.result())
    params = np.array([[0.0, 1.0], [np.nan, np.nan]])
    metric.update_state(np.zeros((2, 1)), params, np.array([1.0, 0.0]))
    assert np.isfinite(metric.result())
    metric.update_state(np.zeros((2, 1)), params)
    assert np.isnan(metric.result())
    counts("misuse rows, right")


def test_metrics_of_the_mean(tmp_path):
    keras.utils.set_random_seed(0)
    head = NormalDense(1)
    model = keras.Sequential([keras.Input((2,)), head])
    of_mean = [
        metrics.OfMean("mae", head.family),
        metrics.OfMean(keras.metrics.RootMeanSquaredError(), head.family),
    ]
    model.compile(
        "adam",
        head.negative_log_likelihood(),
        metrics=[*of_mean, metrics.CRPS(head.family)],
        run_eagerly=True,
    )
    found = model.fit(LOC, Y[:, 0], verbose=0)
    assert {"mae", "root_mean_squared_error", "crps"} <= set(found.history)
    logs = model.evaluate(LOC, Y[:, 0], verbose=0, return_dict=True)
    error = np.asarray(head.family.mean(model(LOC)))[:, 0] - Y[:, 0]
    np.testing.assert_allclose(logs["mae"], np.abs(error).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["root_mean_squared_error"], np.sqrt(np.mean(error**2)), rtol=1e-5
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.evaluate(LOC, Y[:, 0], verbose=0, return_dict=True) == pytest.approx(logs)


# --- Misuse -------------------------------------------------------------------------------------

PROBS = RNG.dirichlet(np.ones(3), size=N)
JUDGES = {
    name: getattr(metrics, name)
    for name in (
        *("prediction_interval_coverage", "interval_score", "crps"),
        *("number_negative_log_likelihood", "quantile_calibration_error", "ause"),
    )
}
THIRD = np.arange(N)[:, None] == 3
UNKNOWN = RegressionUncertainty(np.where(THIRD, np.nan, NORMAL.params[0])[None], "normal")


@pytest.mark.parametrize("name", JUDGES)
def test_functions_refuse(name, counts):
    judge = JUDGES[name]
    labels = np.where(THIRD, np.nan, Y)
    for call in (
        lambda: judge(Y[:, 0], NORMAL),
        lambda: judge(Y[:-1], NORMAL),
        lambda: judge(Y.T, NORMAL),
        lambda: judge(labels, NORMAL),
        lambda: judge(Y, UNKNOWN),
        lambda: judge(["a"] * N, NORMAL),
        lambda: judge(Y, PROBS),  # of a classifier
        lambda: judge(Y, NORMAL, sample_weight=np.ones(3)),
        lambda: judge(Y, NORMAL, sample_weight=-np.ones(N)),
        lambda: judge(Y, NORMAL, sample_weight=np.zeros(N)),
    ):
        with pytest.raises(ValueError, match=r"(?s)must.*Received"):
            call()
        counts("misuse rows, refused")
    known = np.arange(N) != 3
    assert judge(labels, NORMAL, sample_weight=known) == judge(Y, UNKNOWN, sample_weight=known)


def test_functions_refuse_their_arguments(counts):
    point = RegressionUncertainty(LOC[None], "point")
    for call in (
        lambda: metrics.interval_score(Y, NORMAL, level=90),
        lambda: metrics.interval_score(Y, (LOC + 1, LOC)),  # ends in the other order
        lambda: metrics.prediction_interval_coverage(Y, point),
        lambda: metrics.crps(Y, point),
        lambda: metrics.number_negative_log_likelihood(Y, FOUND["quantiles"]),
        lambda: metrics.quantile_calibration_error(Y, FOUND["quantiles"], [0.01, 0.99]),
        lambda: metrics.quantile_calibration_error(Y, NORMAL, [0.9, 0.1]),
        lambda: metrics.quantile_calibration_curve(Y, PROBS),
        lambda: metrics.ause(Y, LOC),
        lambda: metrics.ause(Y, LOC, SCALE, error="relative"),
        lambda: metrics.sharpness(-SCALE),
        lambda: metrics.OfMean("nothing of the kind"),
        lambda: metrics.CRPS("gamma"),
        lambda: metrics.NumberNegativeLogLikelihood(QUANTILES),
        lambda: metrics.MeanIntervalWidth(level=0),
        lambda: metrics.AUSE(n_bins=1),
        lambda: metrics.CRPS().update_state(Y, LOC),  # of another width
        lambda: metrics.CRPS().update_state(Y[:, :1], NORMAL.params[0]),
        lambda: metrics.OfMean().update_state(Y, PROBS),
    ):
        with pytest.raises(ValueError):
            call()
        counts("misuse rows, refused")


def test_a_classifiers_metric_refuses_numbers(counts):
    with pytest.raises(ValueError, match="y_pred"):
        metrics.negative_log_likelihood(np.zeros(N), NORMAL)
    counts("misuse rows, refused")
