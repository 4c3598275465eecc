"""Metrics of out-of-distribution detection: against scikit-learn, by brute force, and streaming."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, norm
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from tfuq import metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(2, size=300)
SCORES = RNG.normal(size=300) + LABELS
ROUNDED = SCORES.round(1)  # with many ties
WEIGHT = RNG.integers(4, size=300) * 0.3
FUNCTIONS = {
    "auroc": metrics.auroc,
    "aupr_in": metrics.aupr_in,
    "aupr_out": metrics.aupr_out,
    "fpr_at_tpr": metrics.fpr_at_tpr,
    "fpr_at_tpr_out": functools.partial(metrics.fpr_at_tpr, tpr=0.7, positive="out"),
    "detection_accuracy": metrics.detection_accuracy,
}
STREAMING = {
    "auroc": metrics.AUROC,
    "aupr_in": metrics.AUPRIn,
    "aupr_out": metrics.AUPROut,
    "fpr_at_tpr": metrics.FPRAtTPR,
    "fpr_at_tpr_out": functools.partial(metrics.FPRAtTPR, tpr=0.7, positive="out"),
    "detection_accuracy": metrics.DetectionAccuracy,
}


# --- Somebody else's numbers ---------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, WEIGHT, RNG.random(300)], ids=["no", "zeros", "real"])
@pytest.mark.parametrize("scores", [SCORES, ROUNDED, np.sign(SCORES)], ids=["none", "ties", "two"])
def test_areas_are_those_of_scikit_learn(scores, weight):
    options = {"sample_weight": weight}
    expected = {
        "auroc": roc_auc_score(LABELS, scores, **options),
        "aupr_in": average_precision_score(1 - LABELS, -scores, **options),
        "aupr_out": average_precision_score(LABELS, scores, **options),
    }
    for name, value in expected.items():
        assert FUNCTIONS[name](LABELS, scores, **options) == pytest.approx(value, abs=1e-12)


def test_detection_accuracy_is_that_of_scipy_and_of_scikit_learn():
    for scores in (SCORES, ROUNDED):
        inside, outside = scores[LABELS == 0], scores[LABELS == 1]
        distance = ks_2samp(inside, outside, alternative="greater").statistic
        found = metrics.detection_accuracy(LABELS, scores)
        assert found == pytest.approx(0.5 + distance / 2, abs=1e-12)
    thresholds = [-np.inf, *np.unique(ROUNDED)]
    each = [balanced_accuracy_score(LABELS, t < ROUNDED, sample_weight=WEIGHT) for t in thresholds]
    found = metrics.detection_accuracy(LABELS, ROUNDED, sample_weight=WEIGHT)
    assert found == pytest.approx(max(each), abs=1e-12)


def slow_rate(y_true, scores, weight, tpr, positive):
    """The smallest rate of false positives over thresholds with enough true ones, one by one."""
    own = y_true == (positive == "out")
    rates = []
    for threshold in scores:
        accepted = scores <= threshold if positive == "in" else scores >= threshold
        share = weight[accepted & own].sum() / weight[own].sum()
        if share >= tpr - 1e-9:
            rates.append(weight[accepted & ~own].sum() / weight[~own].sum())
    return min(rates)


examples = st.lists(
    st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 3)), min_size=2, max_size=12
)


@given(examples, st.sampled_from([0.05, 0.5, 0.8, 0.95, 1.0]))
@settings(max_examples=60, deadline=None)
def test_by_brute_force(rows, tpr):
    y_true, scores, weight = (np.array(column, float) for column in zip(*rows, strict=True))
    inside, outside = weight[y_true == 0], weight[y_true == 1]
    if not (inside.any() and outside.any()):
        with pytest.raises(ValueError, match="`y_true` must hold both 0"):
            metrics.auroc(y_true, scores, sample_weight=weight)
        return
    options = {"sample_weight": weight}
    for positive in ("in", "out"):
        found = metrics.fpr_at_tpr(y_true, scores, tpr, positive=positive, **options)
        assert found == pytest.approx(slow_rate(y_true, scores, weight, tpr, positive), abs=1e-12)
    pairs = scores[y_true == 1][:, None] - scores[y_true == 0]
    wins = (outside[:, None] * inside * ((pairs > 0) + (pairs == 0) / 2)).sum()
    expected = wins / (inside.sum() * outside.sum())
    assert metrics.auroc(y_true, scores, **options) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("factor", [0.1, 1, 3e7])
def test_a_rate_that_is_reached_exactly_counts_as_reached(factor):
    y_true, scores = [0] * 20 + [1] * 2, [*range(20), 18.5, 30]
    weight = np.full(22, factor)
    assert metrics.fpr_at_tpr(y_true, scores, 0.95, sample_weight=weight) == 0.0
    assert metrics.fpr_at_tpr(y_true, scores, 0.96, sample_weight=weight) == 0.5
    swapped = 1 - np.array(y_true)
    found = metrics.fpr_at_tpr(swapped, -np.array(scores), 0.95, positive="out")
    assert found == 0.0


def test_ties_at_the_threshold_are_positive():
    y_true, scores = [0, 0, 1, 1], [1.0, 2.0, 2.0, 3.0]
    assert metrics.fpr_at_tpr(y_true, scores, 1.0) == 0.5
    assert metrics.fpr_at_tpr(y_true, scores, 1.0, positive="out") == 0.5


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_the_order_of_scores_counts(name):
    found = FUNCTIONS[name](LABELS, ROUNDED)
    assert FUNCTIONS[name](LABELS.astype(bool), np.exp(ROUNDED)) == pytest.approx(found, abs=1e-12)
    images = FUNCTIONS[name](LABELS.reshape(3, 10, 10), ROUNDED.reshape(3, 10, 10))
    assert images == pytest.approx(found, abs=1e-12)
    end = np.where(ROUNDED.max() == ROUNDED, np.inf, ROUNDED)
    assert FUNCTIONS[name](LABELS, end) == pytest.approx(found, abs=1e-12)


def test_perfect_reversed_and_constant_scores():
    y_true = [0, 0, 1, 1, 1]
    expected = {"auroc": (1, 0, 0.5), "detection_accuracy": (1, 0.5, 0.5), "fpr_at_tpr": (0, 1, 1)}
    expected |= {"aupr_in": (1, (1 / 4 + 2 / 5) / 2, 2 / 5)}
    expected |= {"aupr_out": (1, (1 / 3 + 2 / 4 + 3 / 5) / 3, 3 / 5)}
    for name, values in expected.items():
        for scores, value in zip(([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [7] * 5), values, strict=True):
            assert FUNCTIONS[name](y_true, scores) == pytest.approx(value, abs=1e-12)


# --- Intervals -----------------------------------------------------------------------------------


def delong_error(y_true, scores):
    """Standard error of the AUROC (DeLong et al. 1988)."""
    pairs = scores[y_true == 1][:, None] - scores[y_true == 0]
    wins = (pairs > 0) + (pairs == 0) / 2
    parts = [wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1)]
    return np.sqrt(sum(parts))


def test_interval_is_as_wide_as_delong_says():
    options = {"num_resamples": 1000, "confidence": 0.9, "seed": 3}
    low, high = metrics.ood_metrics(LABELS, SCORES, **options)["auroc_interval"]
    half = norm.ppf(0.95) * delong_error(LABELS, SCORES)
    area = metrics.auroc(LABELS, SCORES)
    # The ends of 1,000 resamples are off by about 0.07 standard errors; seeds are fixed.
    np.testing.assert_allclose([low, high], [area - half, area + half], atol=half / 4)


def test_all_metrics_and_their_intervals_at_once():
    options = {"num_resamples": 50, "confidence": 0.8, "seed": 5, "sample_weight": WEIGHT}
    found = metrics.ood_metrics(LABELS, ROUNDED, tpr=0.7, **options)
    functions = {name: FUNCTIONS[name] for name in FUNCTIONS if name != "fpr_at_tpr_out"}
    functions["fpr_at_tpr"] = functools.partial(metrics.fpr_at_tpr, tpr=0.7)
    assert set(found) == {*functions, *(f"{name}_interval" for name in functions)}
    for name, function in functions.items():
        value = function(LABELS, ROUNDED, sample_weight=WEIGHT)
        assert found[name] == pytest.approx(value, abs=1e-12)
        interval = metrics.bootstrap_interval(function, LABELS, ROUNDED, **options)
        assert found[f"{name}_interval"] == pytest.approx(interval, abs=1e-12)
        assert interval[0] < interval[1]
    plain = metrics.ood_metrics(LABELS, ROUNDED, tpr=0.7, sample_weight=WEIGHT)
    assert plain == {name: found[name] for name in functions}


def test_intervals_follow_from_the_seed_and_take_any_metric():
    interval = functools.partial(metrics.bootstrap_interval, num_resamples=30)
    first = interval(metrics.auroc, LABELS, SCORES)
    assert first == interval(roc_auc_score, LABELS, SCORES)
    assert first != interval(metrics.auroc, LABELS, SCORES, seed=1)
    assert interval(metrics.auroc, [0, 0, 1, 1], [1, 2, 3, 4]) == (1.0, 1.0)


def test_resamples_keep_the_size_of_each_class():
    counts = set()

    def count(y_true, y_score):
        assert np.all((y_score > 4) == y_true)
        counts.add((int(np.sum(y_true == 0)), int(np.sum(y_true))))
        return 0.0

    metrics.bootstrap_interval(count, [0] * 5 + [1] * 3, np.arange(8), num_resamples=20)
    assert counts == {(5, 3)}


# --- Streaming -----------------------------------------------------------------------------------


def streamed(metric, y_true, scores, weight=None):
    for rows in np.split(np.arange(len(scores)), [1, 130]):
        metric.update_state(y_true[rows], scores[rows], None if weight is None else weight[rows])
    return float(metric.result())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", STREAMING)
def test_metric_is_its_function_where_bins_tell_scores_apart(name, scale):
    scores = (np.exp2(ROUNDED * 2) * scale).astype("float32")  # 15 % apart, any size
    found = streamed(STREAMING[name](from_logits=True), LABELS, scores, WEIGHT)
    expected = FUNCTIONS[name](LABELS, scores, sample_weight=WEIGHT)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", STREAMING)
def test_probabilities_are_scores_by_their_log_odds(name):
    probs = keras.ops.convert_to_numpy(keras.ops.sigmoid(ROUNDED.astype("float32") * 4))
    found = streamed(STREAMING[name](), LABELS[:, None], probs[:, None])
    assert found == pytest.approx(FUNCTIONS[name](LABELS, ROUNDED), abs=1e-6)
    saturated = np.where(ROUNDED > 1, 1.0, np.where(ROUNDED < 0, 0.0, 0.3))
    found = streamed(STREAMING[name](), LABELS, saturated)
    assert found == pytest.approx(FUNCTIONS[name](LABELS, saturated), abs=1e-6)


@pytest.mark.parametrize("n_bins", [64, 16384])
def test_what_bins_cost(n_bins):
    options = {"n_bins": n_bins, "from_logits": True, "dtype": "float64"}
    area = metrics.AUROC(**options)
    error = abs(streamed(area, LABELS, SCORES) - metrics.auroc(LABELS, SCORES))
    shares = np.asarray(area.sums) / np.asarray(area.sums).sum(axis=0)
    assert error <= shares.prod(axis=1).sum() / 2
    assert error < (1e-4 if n_bins == 16384 else 0.1)
    coarse = {name: streamed(STREAMING[name](**options), LABELS, SCORES) for name in STREAMING}
    exact = {name: FUNCTIONS[name](LABELS, SCORES) for name in STREAMING}
    assert coarse["detection_accuracy"] <= exact["detection_accuracy"] + 1e-12
    for name in ("fpr_at_tpr", "fpr_at_tpr_out"):
        assert coarse[name] >= exact[name] - 1e-12


def test_order_stays_whatever_the_size_of_scores():
    scores = np.array([-np.inf, -1e12, -1e3, -1, -1e-5, 0, 1e-5, 1, 1e3, 1e8, 1e12])
    metric = metrics.AUROC(from_logits=True)
    for split in range(2, len(scores)):  # beyond the range, scores share the end bins
        metric.reset_state()
        metric.update_state((np.arange(len(scores)) >= split).astype(int), scores)
        assert float(metric.result()) == 1.0


def test_maps_of_scores():
    shape = (3, 10, 10)
    metric = metrics.AUROC(from_logits=True, multi_label=True)
    metric.update_state(LABELS.reshape(shape), ROUNDED.reshape(shape))
    assert float(metric.result()) == pytest.approx(metrics.auroc(LABELS, ROUNDED), abs=1e-6)


@pytest.mark.parametrize("name", STREAMING)
def test_one_class_has_no_result_yet(name):
    for label in (0, 1):
        metric = STREAMING[name]()
        metric.update_state([label, label], [0.2, 0.6])
        assert np.isnan(metric.result())
        metric.update_state([1 - label], [0.4])
        assert 0 <= float(metric.result()) <= 1


def test_what_cannot_be_judged_is_nan_for_good():
    metric = metrics.AUROC()
    metric.update_state([0, 1, 1], [0.2, 0.6, np.nan])
    metric.update_state([0, 1], [0.2, 0.6])
    assert np.isnan(metric.result())


def test_scores_of_any_size_are_refused_without_from_logits():
    with pytest.raises(ValueError, match=r"`y_pred` must .*from_logits=True"):
        metrics.AUROC().update_state([0, 1, 1], [0.2, 0.6, 1.5])


# --- Bad input -----------------------------------------------------------------------------------

BAD = {
    "empty": ("y_score", [], [], {}),
    "scalar": ("y_score", 0, 0.5, {}),
    "nan": ("y_score", [0, 1], [0.5, np.nan], {}),
    "words": ("y_score", [0, 1], ["a", "b"], {}),
    "lengths": ("y_true", [0, 1, 1], [0.5, 0.6], {}),
    "column": ("y_true", [[0], [1]], [0.5, 0.6], {}),
    "only in": ("y_true", [0, 0], [0.5, 0.6], {}),
    "only out": ("y_true", [1, 1], [0.5, 0.6], {}),
    "classes": ("y_true", [0, 2], [0.5, 0.6], {}),
    "no label": ("y_true", [0, np.nan], [0.5, 0.6], {}),
    "no weight": ("y_true", [0, 1], [0.5, 0.6], {"sample_weight": [1, 0]}),
    "weights": ("sample_weight", [0, 1], [0.5, 0.6], {"sample_weight": [1]}),
    "negative": ("sample_weight", [0, 1], [0.5, 0.6], {"sample_weight": [1, -1]}),
    "infinite": ("sample_weight", [0, 1], [0.5, 0.6], {"sample_weight": [1, np.inf]}),
}
ALL = {**FUNCTIONS, "ood_metrics": metrics.ood_metrics}
ALL["bootstrap_interval"] = functools.partial(metrics.bootstrap_interval, metrics.auroc)


@pytest.mark.parametrize("function", ALL.values(), ids=ALL)
@pytest.mark.parametrize("case", BAD)
def test_bad_data(function, case):
    argument, y_true, y_score, options = BAD[case]
    with pytest.raises(ValueError, match=f"Argument `{argument}` must .*Received: "):
        function(y_true, y_score, **options)


def test_what_has_no_weight_may_hold_anything():
    found = metrics.auroc([0, 1, 7], [1, 2, np.nan], sample_weight=[1, 1, 0])
    assert found == 1.0


def refused(argument, call, *args, **options):
    with pytest.raises(ValueError, match=f"Argument `{argument}` must .*Received: "):
        call(*args, **options)


def test_bad_options():
    data = ([0, 0, 1, 1], [1, 2, 3, 4])
    interval = functools.partial(metrics.bootstrap_interval, metrics.auroc)
    for tpr in (0, -0.1, 1.1, np.nan, "high", None, True):
        refused("tpr", metrics.fpr_at_tpr, *data, tpr=tpr)
        refused("tpr", metrics.ood_metrics, *data, tpr=tpr)
        refused("tpr", metrics.FPRAtTPR, tpr=tpr)
    refused("positive", metrics.fpr_at_tpr, *data, positive=1)
    refused("positive", metrics.FPRAtTPR, positive="both")
    refused("metric", metrics.bootstrap_interval, "auroc", *data)
    refused("num_resamples", interval, *data, num_resamples=0)
    refused("num_resamples", metrics.ood_metrics, *data, num_resamples=-1)
    for confidence in (0, 1, 95, None):
        refused("confidence", interval, *data, confidence=confidence)
        refused("confidence", metrics.ood_metrics, *data, num_resamples=5, confidence=confidence)
    refused("seed", interval, *data, seed=-1)
    refused("y_true", interval, [0, 1, 1], [1, 2, 3])
    for n_bins in (1, 0, 2.5, None):
        refused("n_bins", metrics.AUROC, n_bins=n_bins)


@pytest.mark.parametrize("name", STREAMING)
def test_metrics_refuse_scores_of_several_classes(name):
    refused("y_pred", STREAMING[name]().update_state, [0, 1], np.full((2, 3), 1 / 3))
    refused("y_true", STREAMING[name]().update_state, [0, 1, 1], [0.1, 0.2])
