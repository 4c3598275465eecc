"""The streaming metrics say what the functions say, whatever the batches and the graph."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfuq import metrics

# Metric, function, and the arguments of both.
PAIRS = [
    (metrics.ExpectedCalibrationError, metrics.expected_calibration_error, {"n_bins": 7}),
    (metrics.MaximumCalibrationError, metrics.maximum_calibration_error, {"n_bins": 4}),
    (metrics.ClasswiseCalibrationError, metrics.classwise_calibration_error, {"n_bins": 5}),
    (metrics.BrierScore, metrics.brier_score, {"class_reduction": "mean"}),
    (metrics.BrierScore, metrics.brier_score, {}),
    (metrics.NegativeLogLikelihood, metrics.negative_log_likelihood, {}),
    (metrics.SelectiveAccuracy, metrics.selective_accuracy, {"threshold": 0.6}),
    (metrics.Coverage, metrics.coverage, {"threshold": 0.6}),
    (metrics.RejectionRate, metrics.rejection_rate, {"threshold": 0.6}),
]
ADAPTIVE = (metrics.AdaptiveCalibrationError, metrics.adaptive_calibration_error, {"n_bins": 3})
ALL = [*PAIRS, ADAPTIVE]


def name_of(value):
    return value.__name__ if isinstance(value, type) else ""


def task(kind, n=40, seed=0):
    """Labels, predictions in float32 and options of one kind of prediction."""
    rng = np.random.default_rng(seed)
    if kind == "multi-class":
        probs = rng.dirichlet(np.full(3, 0.6), size=n).astype("float32")
        return rng.integers(3, size=n), probs, {}
    if kind == "binary":
        return rng.integers(2, size=(n, 1)), rng.random((n, 1)).astype("float32"), {}
    if kind == "dense":
        probs = rng.dirichlet(np.ones(3), size=(n, 2, 2)).astype("float32")
        return rng.integers(3, size=(n, 2, 2)), probs, {}
    options = {"multi_label": True}
    return rng.integers(2, size=(n, 3)), rng.random((n, 3)).astype("float32"), options


def feed(metric, y_true, y_pred, weight=None, cuts=()):
    """Updates the metric with the batches between `cuts`; returns its result."""
    for part in np.split(np.arange(len(y_pred)), sorted(cuts)):
        metric.update_state(y_true[part], y_pred[part], None if weight is None else weight[part])
    return float(metric.result())


@pytest.mark.slow_product
@pytest.mark.parametrize("kind", ["multi-class", "binary", "dense", "multi-label"])
@pytest.mark.parametrize("metric, function, kwargs", PAIRS, ids=name_of)
def test_metric_is_its_function(metric, function, kwargs, kind):
    y_true, y_pred, options = task(kind)
    weight = np.random.default_rng(1).random(40)
    expected = function(y_true, y_pred, sample_weight=weight, **kwargs, **options)
    ours = feed(metric(**kwargs, **options), y_true, y_pred, weight, cuts=[7, 7, 30])
    assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("metric, function, kwargs", PAIRS, ids=name_of)
def test_metric_from_logits_is_its_function(metric, function, kwargs):
    rng = np.random.default_rng(2)
    for shape, classes in (((40, 4), 4), ((40,), 2)):
        y_true, logits = rng.integers(classes, size=40), rng.normal(size=shape).astype("float32")
        expected = function(y_true, logits, from_logits=True, **kwargs)
        ours = feed(metric(from_logits=True, **kwargs), y_true, logits, cuts=[20])
        assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.slow_after(3)
@given(st.lists(st.integers(0, 40), max_size=6), st.permutations(range(40)))
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("metric, function, kwargs", ALL, ids=name_of)
def test_batches_and_order_do_not_matter(metric, function, kwargs, cuts, order):
    y_true, y_pred, _ = task("multi-class")
    metric = metric(**kwargs)
    whole = feed(metric, y_true, y_pred)
    metric.reset_state()
    order = np.array(order)
    assert feed(metric, y_true[order], y_pred[order], cuts=cuts) == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow_after(3)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), st.integers(0, 1)),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("metric, function, kwargs", ALL, ids=name_of)
def test_edges_agree_and_results_are_in_range(metric, function, kwargs, data):
    y_pred, y_true = np.array(data).T
    expected = function(y_true, y_pred, **kwargs)
    ours = feed(metric(**kwargs), y_true, y_pred)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    largest = np.inf if metric is metrics.NegativeLogLikelihood else 1 + 1e-12
    assert np.isnan(expected) or 0 <= expected <= largest


@pytest.mark.parametrize("metric, function, kwargs", ALL, ids=name_of)
def test_no_data_has_no_result(metric, function, kwargs):
    metric = metric(**kwargs)
    assert np.isnan(metric.result())
    metric.update_state(np.zeros(0), np.zeros((0, 3), "float32"))
    metric.update_state([0], [[1.0, 0.0, 0.0]], [0.0])
    assert np.isnan(metric.result())
    metric.update_state([0], [[1.0, 0.0, 0.0]])
    assert np.isfinite(metric.result())


@pytest.mark.slow
@pytest.mark.slow_cases("True")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_graph_says_the_same_and_passes_faults_on(jit_compile):
    y_true, y_pred, _ = task("multi-class")
    expected = [feed(metric(**kwargs), y_true, y_pred) for metric, _, kwargs in ALL]
    all_metrics = [metric(**kwargs) for metric, _, kwargs in ALL]

    @tf.function(jit_compile=jit_compile)
    def update(y_true, y_pred):
        for metric in all_metrics:
            metric.update_state(y_true, y_pred)
        return tf.stack([metric.result() for metric in all_metrics])

    np.testing.assert_allclose(update(y_true, y_pred), expected, atol=1e-6)
    y_pred[3, 1] = np.nan
    assert np.isnan(update(y_true, y_pred)).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_counts_go_on_past_what_float32_holds(jit_compile):
    metric = metrics.Coverage(0.5)
    many = 2.0**24
    metric.sums.assign([[many, 0, 0], [many, many, many]])

    @tf.function(jit_compile=jit_compile)
    def update():
        metric.update_state([0, 0, 0], [[0.4, 0.3, 0.3]] * 3)

    update()
    np.testing.assert_array_equal(np.asarray(metric.sums)[:, 0], [many + 3, many])


def test_one_large_batch_is_summed_as_exactly():
    confidence = np.full((3_000_000, 1), 0.7, "float32")
    metric = metrics.ExpectedCalibrationError()
    metric.update_state(np.ones_like(confidence), confidence)
    assert float(metric.result()) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("metric, function, kwargs", ALL, ids=name_of)
def test_config_is_complete(metric, function, kwargs):
    made = metric(**kwargs, from_logits=True, multi_label=True, name="mine", dtype="float64")
    config = json.loads(json.dumps(made.get_config()))
    options = {"from_logits": True, "multi_label": True, "name": "mine", "dtype": "float64"}
    assert config.items() >= {**kwargs, **options}.items()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert type(again) is metric
    assert again.get_config() == made.get_config()


def test_numpy_numbers_are_plain_in_the_config():
    config = metrics.Coverage(np.float32(0.5)).get_config()
    json.dumps(config)
    json.dumps(metrics.ExpectedCalibrationError(np.int64(3)).get_config())


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_dtype_is_that_of_the_result(dtype):
    metric = metrics.NegativeLogLikelihood(dtype=dtype)
    metric.update_state([0], np.array([[0.3, 0.7]]))
    tolerance = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-15}[dtype]
    assert keras.backend.standardize_dtype(metric.result().dtype) == dtype
    assert float(metric.result()) == pytest.approx(-np.log(0.3), rel=tolerance)


@pytest.mark.slow
def test_direction_tells_monitors_what_is_better():
    up = {metrics.SelectiveAccuracy, metrics.Coverage}
    assert all(metric._direction == ("up" if metric in up else "down") for metric, *_ in ALL)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activation="softmax")])
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=[metrics.BrierScore()])
    stop = keras.callbacks.EarlyStopping("val_brier_score", patience=1)
    y_true, x, _ = task("multi-class")
    fit = model.fit(x, y_true, epochs=5, verbose=0, validation_data=(x, y_true), callbacks=[stop])
    assert len(fit.history["val_brier_score"]) == 2  # nothing improves, so it stops


def test_masked_steps_do_not_count():
    y_true, y_pred, _ = task("dense")
    y_true, y_pred = y_true[:, 0], y_pred[:, 0]  # (40, 2) steps of 3 classes
    mask = np.random.default_rng(3).random((40, 2)) < 0.5
    inputs = np.where(mask[..., None], y_pred, 0.0).astype("float32")
    model = keras.Sequential([keras.Input((2, 3)), keras.layers.Masking(), keras.layers.ReLU()])
    model.compile(loss="sparse_categorical_crossentropy", metrics=[metrics.BrierScore()])
    ours = model.evaluate(inputs, y_true, verbose=0, return_dict=True)["brier_score"]
    assert ours == pytest.approx(metrics.brier_score(y_true[mask], y_pred[mask]), abs=1e-6)
