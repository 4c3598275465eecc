"""The contract of metrics: the same number wherever and however it is measured."""

import dataclasses
import functools
import json

import keras
import numpy as np
import tensorflow as tf
from contract import (
    CLASSES,
    COMPILED,
    LABELS,
    POLICIES,
    assert_close,
    policy,
    two_devices,
)

import tfuq

BATCH = 4


@dataclasses.dataclass(frozen=True)
class MetricCase:
    """One configuration of a metric.

    Args:
        name: Of the case in the test's id.
        metric: Class of the metric.
        kwargs: Its constructor arguments.
        task: `"classes"` (three, sparse labels), `"binary"` (one column), `"labels"` (three) or
            `"numbers"` (mean and scale of a normal distribution).
        is_example: Whether `make test` runs all checks of it: see `metric_checks`.
    """

    name: str
    metric: type
    kwargs: dict = dataclasses.field(default_factory=dict)
    task: str = "classes"
    is_example: bool = False

    def make(self):
        return self.metric(**self.kwargs)

    def data(self, examples=5 * BATCH):
        """Labels, predictions and whole weights, some 0: a weight counts how often a row stands."""
        rng = np.random.default_rng(2)
        columns = {"binary": 1, "numbers": 2}.get(self.task, 3)
        scores = rng.normal(size=(examples, columns)).astype("float32")
        if self.task == "numbers":
            y_true = rng.normal(size=(examples, 1)).astype("float32")
            squash = keras.activations.softplus
        elif self.task == "classes":
            y_true, squash = rng.integers(3, size=examples), keras.ops.softmax
        else:
            y_true, squash = rng.integers(2, size=scores.shape), keras.ops.sigmoid
        y_pred = scores if self.kwargs.get("from_logits") else np.asarray(squash(scores))
        return y_true, y_pred, rng.integers(4, size=examples).astype("float32")

    def loss(self, from_logits=False):
        if self.task == "numbers":
            return tfuq.losses.NegativeLogLikelihood("normal")
        return (CLASSES if self.task == "classes" else LABELS).loss(from_logits)


def measured(case, y_true, y_pred, weight=None, metric=None):
    """The metric of all rows at once, without any model."""
    metric = metric or case.make()
    metric.update_state(y_true, y_pred, weight)
    return float(metric.result())


def passing(case, columns, **kwargs):
    """A compiled model that returns its input, so that predictions are known."""
    model = keras.Sequential([keras.Input((columns,)), keras.layers.Activation("linear")])
    model.compile(loss=case.loss(), weighted_metrics=[case.make()], **kwargs)
    return model


def evaluated(model, y_true, y_pred, weight):
    """What the only metric of a compiled model says; the loss comes before it."""
    return model.evaluate(y_pred, y_true, BATCH, sample_weight=weight, verbose=0)[1]


def metric_evaluates(case, jit):
    y_true, y_pred, weight = case.data()
    expected = measured(case, y_true, y_pred, weight)
    assert np.isfinite(expected)
    model = passing(case, y_pred.shape[-1], jit_compile=jit)
    for _ in range(2):  # the second evaluation starts from nothing, too
        assert_close(evaluated(model, y_true, y_pred, weight), expected)


def metric_trains(case):
    """In `fit`, compiled; line by line, training calls a metric as evaluation does."""
    y_true, x, weight = case.data()
    logits = case.kwargs.get("from_logits", False)
    squash = {"classes": "softmax", "numbers": "softplus"}.get(case.task, "sigmoid")
    head = keras.layers.Dense(x.shape[-1], activation=None if logits else squash)
    model = keras.Sequential([keras.Input(x.shape[1:]), head])
    metric = case.make()
    model.compile("adam", case.loss(logits), weighted_metrics=[metric], jit_compile=True)
    history = model.fit(x, y_true, BATCH, sample_weight=weight, verbose=0).history
    assert np.isfinite(history[metric.name])


def metric_mixed_precision(case, name):
    y_true, y_pred, weight = case.data()
    with policy(name):
        model = passing(case, y_pred.shape[-1], jit_compile=False)
    seen = keras.ops.cast(keras.ops.cast(y_pred, model.compute_dtype), "float32")
    expected = measured(case, y_true, seen, weight)
    assert_close(evaluated(model, y_true, y_pred, weight), expected)


def metric_two_devices(case):
    """The last batch leaves the second device without an example."""
    y_true, y_pred, weight = case.data(5 * BATCH + 1)
    weight[-1] = 1.0
    with two_devices().scope():
        model = passing(case, y_pred.shape[-1])
    found = evaluated(model, y_true, y_pred, weight)
    assert_close(found, measured(case, y_true, y_pred, weight))


def metric_weights(case):
    """A whole weight is so many equal rows, no weights are ones, weight 0 is no row."""
    y_true, y_pred, weight = case.data()
    repeats = weight.astype(int)
    repeated = measured(case, np.repeat(y_true, repeats, 0), np.repeat(y_pred, repeats, 0))
    assert_close(measured(case, y_true, y_pred, weight), repeated)
    ones = measured(case, y_true, y_pred, np.ones_like(weight))
    assert_close(ones, measured(case, y_true, y_pred))
    assert measured(case, y_true, y_pred) != repeated, "the data cannot tell weights apart"


OTHER_LABELS = {
    "classes": (lambda y: keras.utils.to_categorical(y, 3), lambda y: y[:, None]),
    "binary": (lambda y: y[:, 0], lambda y: y.astype("float32")),
    "labels": (lambda y: y.astype("float32"), lambda y: y.astype(bool)),
    "numbers": (lambda y: y[:, 0], lambda y: y.astype("float64")),
}


def metric_labels(case):
    """One-hot labels say what sparse ones say; a column of labels what a row says."""
    y_true, y_pred, weight = case.data()
    expected = measured(case, y_true, y_pred, weight)
    for form in OTHER_LABELS[case.task]:
        assert_close(measured(case, form(y_true), y_pred, weight), expected)


def metric_batches(case):
    """Any batches, empty ones among them, and the order of rows change nothing."""
    y_true, y_pred, weight = case.data()
    expected = measured(case, y_true, y_pred, weight)
    metric = case.make()
    for rows in np.split(np.arange(len(weight))[::-1], [0, 1, 1, 8, 20]):
        metric.update_state(y_true[rows], y_pred[rows], weight[rows])
    assert_close(metric.result(), expected)


def metric_state(case):
    """The state has one size whatever it has seen, and `reset_state` brings the start back."""
    metric = case.make()
    fresh = float(metric.result())
    start = {variable.name: variable.numpy() for variable in metric.variables}
    y_true, y_pred, weight = case.data()
    first = measured(case, y_true, y_pred, weight, metric)
    assert not np.array_equal(first, fresh, equal_nan=True)
    shapes = [variable.shape for variable in metric.variables]
    assert shapes, "what streams has variables"
    metric.update_state(np.tile(y_true.T, 9).T, np.tile(y_pred.T, 9).T)
    assert [variable.shape for variable in metric.variables] == shapes
    metric.reset_state()
    for variable in metric.variables:  # some are made when the number of classes is known
        np.testing.assert_array_equal(variable, start.get(variable.name, np.zeros(variable.shape)))
    metric.update_state(y_true[:0], y_pred[:0], weight[:0])
    np.testing.assert_equal(float(metric.result()), fresh)
    assert measured(case, y_true, y_pred, weight, metric) == first


def metric_config(case):
    metric = case.make()
    config = metric.get_config()
    for name, value in case.kwargs.items():
        assert config[name] == value
    assert json.loads(json.dumps(config)) == config
    assert type(metric).from_config(config).get_config() == config
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert again.get_config() == config


def metric_in_function(case):
    """Own loops work as `fit` does: with an unknown batch, in a graph."""
    y_true, y_pred, weight = case.data()
    metric = case.make()

    arrays = [tf.constant(array) for array in (y_true, y_pred, weight)]
    of_any_batch = [tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays]

    @tf.function(input_signature=of_any_batch)
    def update(*rows):
        metric.update_state(*rows)

    for start, stop in ((0, 3), (3, 8), (8, None)):
        update(*(array[start:stop] for array in arrays))
    assert_close(metric.result(), measured(case, y_true, y_pred, weight))


METRIC_CHECKS = {
    "weights": metric_weights,
    "labels": metric_labels,
    "batches": metric_batches,
    "state": metric_state,
    "config": metric_config,
    "in_function": metric_in_function,
    "trains": metric_trains,
    "two_devices": metric_two_devices,
    **{name: functools.partial(metric_mixed_precision, name=name) for name in POLICIES},
    **{f"evaluates_{k}": functools.partial(metric_evaluates, jit=v) for k, v in COMPILED.items()},
}

# Of the first case of each class; the others trace or compile for seconds.
PLAIN_CHECKS = ("weights", "labels", "batches", "state", "config")
# Of the first case of each task, too: what Keras hands to a metric depends on that.
TASK_CHECKS = ("evaluates_plain",)
# Of further cases of a class, those that see what arguments change.
FURTHER_CASE_CHECKS = ("weights", "labels", "config")


def metric_checks(cases):
    """Every check to run, as `(case, name, check, whether it is slow)`.

    `make test` runs all checks of the cases that are examples, the plain ones of the first case of
    each class, an evaluation of the first of each task, and a few of every other case. The rest is
    slow.
    """
    classes, tasks = set(), set()
    for case in cases:
        quick = FURTHER_CASE_CHECKS if case.metric in classes else PLAIN_CHECKS
        quick += () if case.task in tasks else TASK_CHECKS
        classes.add(case.metric)
        tasks.add(case.task)
        for name, check in METRIC_CHECKS.items():
            yield case, name, check, not (case.is_example or name in quick)
