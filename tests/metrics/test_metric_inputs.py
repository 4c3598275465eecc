"""What all metrics read: shapes of labels, predictions and weights, and what cannot be judged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import metrics

FUNCTIONS = {
    "expected_calibration_error": metrics.ExpectedCalibrationError,
    "adaptive_calibration_error": metrics.AdaptiveCalibrationError,
    "maximum_calibration_error": metrics.MaximumCalibrationError,
    "classwise_calibration_error": metrics.ClasswiseCalibrationError,
    "brier_score": metrics.BrierScore,
    "negative_log_likelihood": metrics.NegativeLogLikelihood,
    "selective_accuracy": metrics.SelectiveAccuracy,
    "coverage": metrics.Coverage,
    "rejection_rate": metrics.RejectionRate,
}
PROBS = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
LOGITS = {"from_logits": True}
MANY = {"multi_label": True}

# Reason, labels, predictions, options, and what the error names: values only, shapes are right.
FAULTS = [
    ("nan", [0, 1], [[0.7, 0.2, 0.1], [np.nan, 0.8, 0.1]], {}, "y_pred"),
    ("all nan", [0, 1], [[np.nan] * 3] * 2, {}, "y_pred"),
    ("nan logit", [0, 1], [[1.0, 2.0, np.nan], [0.0, 0.0, 0.0]], LOGITS, "y_pred"),
    ("inf logit", [0, 1], [[1.0, 2.0, np.inf], [0.0, 0.0, 0.0]], LOGITS, "y_pred"),
    ("only -inf logits", [0, 1], [[-np.inf] * 3, [0.0, 0.0, 0.0]], LOGITS, "y_pred"),
    ("above 1", [0, 1], [[1.5, -0.4, -0.1], [0.1, 0.8, 0.1]], {}, "y_pred"),
    ("inf", [0, 1], [[np.inf, 0.0, 0.0], [0.1, 0.8, 0.1]], {}, "y_pred"),
    ("sum above 1", [0, 1], [[0.7, 0.7, 0.7], [0.1, 0.8, 0.1]], {}, "y_pred"),
    ("logits as probabilities", [0, 1], [[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], {}, "y_pred"),
    ("binary above 1", [0, 1], [0.3, 1.2], {}, "y_pred"),
    ("binary below 0", [0, 1], [0.3, -0.2], {}, "y_pred"),
    ("binary nan", [0, 1], [0.3, np.nan], {}, "y_pred"),
    ("class too high", [0, 3], PROBS, {}, "y_true"),
    ("class below 0", [0, -1], PROBS, {}, "y_true"),
    ("class between", [0, 0.5], PROBS, {}, "y_true"),
    ("class nan", [0, np.nan], PROBS, {}, "y_true"),
    ("binary class 2", [0, 2], [0.3, 0.4], {}, "y_true"),
    ("two classes hot", [[1, 1, 0], [1, 0, 0]], PROBS, {}, "y_true"),
    ("no class hot", [[0, 0, 0], [1, 0, 0]], PROBS, {}, "y_true"),
    ("negative one-hot", [[2, -1, 0], [1, 0, 0]], PROBS, {}, "y_true"),
    ("nan one-hot", [[np.nan, 0, 0], [1, 0, 0]], PROBS, {}, "y_true"),
    ("label of 2", [[0, 1, 2], [0, 0, 1]], PROBS, MANY, "y_true"),
    ("negative weight", [0, 1], PROBS, {"sample_weight": [1, -1]}, "sample_weight"),
    ("nan weight", [0, 1], PROBS, {"sample_weight": [1, np.nan]}, "sample_weight"),
    ("inf weight", [0, 1], PROBS, {"sample_weight": [1, np.inf]}, "sample_weight"),
]

# The same, for shapes that cannot go together.
MISFITS = [
    ("fewer labels", [0], PROBS, {}, "y_true"),
    ("more labels", [0, 1, 2], PROBS, {}, "y_true"),
    ("one-hot of other classes", [[1, 0], [0, 1]], PROBS, {}, "y_true"),
    ("labels of a dense kind", [[[0]], [[1]]], PROBS, {}, "y_true"),
    ("too few label columns", [[0, 1], [0, 1]], PROBS, MANY, "y_true"),
    ("no label axis", [0, 1], [0.5, 0.5], MANY, "y_pred"),
    ("scalar", 0, 0.5, {}, "y_pred"),
    ("fewer weights", [0, 1], PROBS, {"sample_weight": [1.0]}, "sample_weight"),
    ("more weights", [0, 1], PROBS, {"sample_weight": [1.0, 1.0, 1.0]}, "sample_weight"),
    ("weight per class", [0, 1], PROBS, {"sample_weight": np.ones((2, 3))}, "sample_weight"),
    ("scalar weight", [0, 1], PROBS, {"sample_weight": 1.0}, "sample_weight"),
]


def ids(cases):
    return [case[0] for case in cases]


@pytest.mark.parametrize("case", FAULTS + MISFITS, ids=ids(FAULTS + MISFITS))
def test_function_raises(case, function=metrics.brier_score):
    _, y_true, y_pred, options, argument = case
    with pytest.raises(ValueError, match=f"Argument `{argument}` must .*Received: {argument}"):
        function(y_true, y_pred, **options)


@pytest.mark.parametrize("case", MISFITS, ids=ids(MISFITS))
def test_streaming_metric_raises_on_shapes(case, metric=metrics.BrierScore):
    _, y_true, y_pred, options, argument = case
    weight, flags = options.get("sample_weight"), {"multi_label": "multi_label" in options}
    with pytest.raises(ValueError, match=f"Argument `{argument}` must .*Received: {argument}"):
        metric(**flags).update_state(y_true, y_pred, weight)


# NaN and infinity are what a model that diverges gives; all else was misread.
DIVERGED = [case for case in FAULTS if "nan" in case[0] or "inf" in case[0]]
MISREAD = [case for case in FAULTS if case not in DIVERGED]


def fed(metric, case, jit_compile=None):
    """The streaming metric of a faulty case, and how it is updated: in a graph, or eagerly."""
    _, y_true, y_pred, options, _ = case
    weight = options.get("sample_weight")
    metric = metric(**{flag: True for flag in ("from_logits", "multi_label") if flag in options})
    update = metric.update_state
    if jit_compile is not None:
        update = tf.function(update, jit_compile=jit_compile)
    args = [np.asarray(part, "float32") for part in (y_true, y_pred)]
    return metric, lambda: update(*args, None if weight is None else np.float32(weight))


def assert_goes_on(metric, y_pred):
    """Only a new start makes the metric a number again."""
    certain = np.zeros_like(y_pred)
    certain[..., 0] = 1.0
    metric.reset_state()
    metric.update_state(certain if certain.ndim > 1 else np.ones(2), certain)
    assert np.isfinite(metric.result())


@pytest.mark.slow_cases("all nan-graph")
@pytest.mark.slow_product
@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "XLA"])
@pytest.mark.parametrize("case", DIVERGED, ids=ids(DIVERGED))
def test_streaming_metric_is_nan_after_nan_until_reset(
    case, jit_compile, metric=metrics.BrierScore
):
    metric, update = fed(metric, case, jit_compile)
    update()
    certain = np.zeros_like(case[2])
    certain[..., 0] = 1.0
    metric.update_state(certain if certain.ndim > 1 else np.ones(2), certain)
    assert np.isnan(metric.result())
    assert_goes_on(metric, case[2])


@pytest.mark.parametrize("case", MISREAD, ids=ids(MISREAD))
def test_streaming_metric_refuses_what_it_would_misread(case, metric=metrics.BrierScore):
    metric, update = fed(metric, case)
    with pytest.raises(ValueError, match=f"Argument `{case[4]}` must .*Received: {case[4]}"):
        update()
    assert_goes_on(metric, case[2])


@pytest.mark.slow_after(5)
@pytest.mark.parametrize("case", MISREAD, ids=ids(MISREAD))
def test_a_graph_refuses_in_the_first_batch(case, metric=metrics.BrierScore):
    _, update = fed(metric, case, jit_compile=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"Argument `{case[4]}` must "):
        update()


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("case", MISREAD, ids=ids(MISREAD))
def test_under_xla_the_result_refuses(case, metric=metrics.BrierScore):
    metric, update = fed(metric, case, jit_compile=True)
    update()
    with pytest.raises(ValueError, match=f"Argument `{case[4]}` must .*Received: "):
        metric.result()
    assert_goes_on(metric, case[2])


@pytest.mark.slow_cases("{}")
@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": False}, {}], ids=repr)
def test_training_with_a_metric_that_is_not_told_of_logits_stops(how):
    """It was NaN in silence, and `EarlyStopping` took it for the end."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[metrics.ExpectedCalibrationError()], **how)
    x, y = 9 * np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 3
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="from_logits=True"):
        model.fit(x, y, epochs=3, verbose=0)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="from_logits=True"):
        model.evaluate(x, y, verbose=0)


@pytest.mark.parametrize("reason", ["nan", "class too high", "fewer labels"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_metric_reads_alike(name, reason):
    case = next(case for case in FAULTS + MISFITS if case[0] == reason)
    test_function_raises(case, getattr(metrics, name))
    if case in MISFITS:
        test_streaming_metric_raises_on_shapes(case, FUNCTIONS[name])
    elif case in DIVERGED:
        test_streaming_metric_is_nan_after_nan_until_reset(case, None, FUNCTIONS[name])
    else:
        test_streaming_metric_refuses_what_it_would_misread(case, FUNCTIONS[name])


@pytest.mark.parametrize("empty", [([], []), (np.zeros(0), np.zeros((0, 3)))])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_raise_on_empty_data(function, empty):
    with pytest.raises(ValueError, match=r"`y_pred` must not be empty. Received: y_pred of shape"):
        getattr(metrics, function)(*empty)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_raise_if_nothing_has_weight(function):
    with pytest.raises(ValueError, match="`sample_weight` must not be 0 everywhere"):
        getattr(metrics, function)([0, 1], PROBS, sample_weight=[0, 0])


@pytest.mark.parametrize("flag", ["from_logits", "multi_label"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_flags_are_checked(name, flag):
    with pytest.raises(ValueError, match=f"`{flag}` must be True or False. Received: {flag}='no'"):
        FUNCTIONS[name](**{flag: "no"})
    with pytest.raises(ValueError, match=f"`{flag}` must be True or False. Received: {flag}='no'"):
        getattr(metrics, name)([0, 1], PROBS, **{flag: "no"})


NO_NUMBERS = ["words", "0.5", [["0.1", "0.2", "0.7"]] * 2, [[0.5, 0.5, 0.0], [1.0]], None, [1j, 0j]]


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=repr)
def test_what_is_no_array_of_numbers_raises(bad):
    with pytest.raises(ValueError, match="Argument `y_pred` must be an array of numbers"):
        metrics.brier_score([0, 1], bad)
    is_text = "'" in repr(bad)
    says = "hold numbers where `class_names`" if is_text else "be an array of numbers"
    with pytest.raises(ValueError, match=f"Argument `y_true` must {says}"):
        metrics.brier_score(bad, PROBS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64", "bool"])
def test_tensors_of_any_kind_of_number_are_read(dtype):
    y_pred = tf.cast([[1, 0], [0, 1], [0, 1]], dtype)
    assert metrics.brier_score(tf.cast([0, 1, 0], "uint8"), y_pred) == pytest.approx(2 / 3)


def test_error_tells_the_way_out():
    with pytest.raises(ValueError, match="from_logits=True"):
        metrics.brier_score([0, 1], [[3.0, 1.0, 0.5]] * 2)
    with pytest.raises(ValueError, match="multi_label=True"):
        metrics.brier_score([0, 1], [[0.9, 0.8, 0.7]] * 2)
    with pytest.raises(ValueError, match="multi_label=True"):
        metrics.brier_score([[1, 1, 0]] * 2, PROBS)


def test_error_says_where_and_how_many():
    with pytest.raises(ValueError, match=r"y_true=7.0 at example 1 \(2 such\)"):
        metrics.brier_score([0, 7, 9], [[0.5, 0.5]] * 3)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_has_no_weight_may_hold_anything(function):
    y_true = [0, 255, 1, 1]
    y_pred = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [np.nan] * 3, [0.1, 0.8, 0.1]]
    weight = [1.0, 0.0, 0.0, 2.0]
    expected = getattr(metrics, function)([0, 1], PROBS, sample_weight=[1, 2])
    ours = getattr(metrics, function)(y_true, y_pred, sample_weight=weight)
    assert ours == pytest.approx(expected)
    metric = FUNCTIONS[function]()
    metric.update_state(y_true, y_pred, weight)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_all_shapes_of_labels_and_weights_say_the_same(function):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=(4, 5))
    labels, weight = rng.integers(3, size=(4, 5)), rng.random(4)
    measure = getattr(metrics, function)
    everywhere = np.repeat(weight, 5)
    expected = measure(labels.ravel(), probs.reshape(-1, 3), sample_weight=everywhere)
    for y_true in (labels, labels[..., None], np.eye(3)[labels], 0.4 * np.eye(3)[labels] + 0.2):
        for given in (weight, weight[:, None], np.repeat(weight[:, None], 5, axis=1)):
            ours = measure(y_true, probs, sample_weight=given)
            assert ours == pytest.approx(expected, abs=1e-12)


def test_probabilities_may_be_rounded_to_half_precision():
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.full(1000, 0.1), size=20)
    rounded = probs.astype("float16")
    assert abs(rounded.astype(float).sum(axis=1) - 1).max() > 1e-5  # float32 would be closer
    labels = rng.integers(1000, size=20)
    ours = metrics.brier_score(labels, rounded)
    assert ours == pytest.approx(metrics.brier_score(labels, probs), abs=1e-3)
    assert metrics.negative_log_likelihood([1], [1.004]) == 0.0  # clipped to 1


def test_last_axis_must_be_known_in_a_graph():
    metric = metrics.Coverage()

    @tf.function(input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None, None])])
    def update(y_true, y_pred):
        metric.update_state(y_true, y_pred)

    with pytest.raises(ValueError, match="with the last axis known"):
        update.get_concrete_function()
