"""Means of soft-max and sigmoid under Gaussian logits, against plain implementations."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfuq._math import point_blocks
from tfuq._math.logistic_normal import log_mean_sigmoid, log_mean_softmax
from tfuq._random.points import NormalPoints

ROWS = 4


def parameters(classes, factors, efficient, deviation, seed=0):
    rng = np.random.default_rng(seed)
    loc = 4 * rng.normal(size=(ROWS, classes))
    scale = deviation * np.exp(0.3 * rng.normal(size=(ROWS, classes)))
    if not factors:
        parts = ()
    elif efficient:
        gain = deviation * rng.normal(size=(ROWS, classes))
        parts = (gain, rng.normal(size=(factors, classes)))
    else:
        parts = (deviation * rng.normal(size=(ROWS, classes, factors)),)
    return [tf.constant(p, "float32") for p in (loc, scale, *parts)]


def samples_of_logits(params, points, mirrored):
    """u, `(rows, samples, classes)`, in float64, all samples at once."""
    loc, scale, *factors = [tf.cast(p, "float64") for p in params]
    points = tf.cast(points, "float64")
    if mirrored:
        points = tf.concat([points, -points], axis=0)
    num_factors = points.shape[1] - loc.shape[1]
    z, e = points[:, :num_factors], points[:, num_factors:]
    logits = loc[:, None] + scale[:, None] * e
    if len(factors) == 1:
        logits += tf.einsum("bkr,sr->bsk", factors[0], z)
    elif factors:
        logits += factors[0][:, None] * tf.matmul(z, factors[1])
    return logits


def plain(link, params, points, mirrored):
    logits = samples_of_logits(params, points, mirrored)
    if link == "softmax":
        log_probs = (tf.nn.log_softmax(logits),)
    else:
        log_probs = tf.math.log_sigmoid(logits), tf.math.log_sigmoid(-logits)
    count = tf.cast(tf.shape(logits)[1], "float64")
    return [tf.reduce_logsumexp(t, axis=1) - tf.math.log(count) for t in log_probs]


def ours(link, params, points, mirrored, power=1):
    loc, scale, *factors = params
    if link == "softmax":
        return [log_mean_softmax(loc, scale, factors, points, mirrored=mirrored, power=power)]
    return log_mean_sigmoid(loc, scale, factors, points, mirrored=mirrored, power=power)


def outputs_and_gradients(function, params):
    """Outputs, and the gradients of a fixed random combination of them."""
    with tf.GradientTape() as tape:
        tape.watch(params)
        outputs = function(params)
        loss = 0.0
        for index, output in enumerate(outputs):
            weights = np.random.default_rng(index).normal(size=(ROWS, *output.shape[1:]))
            loss += tf.reduce_sum(output * tf.constant(weights, output.dtype))
    return outputs, tape.gradient(loss, params)


def assert_agrees(link, params, points, mirrored, compiled=False):
    expected, expected_gradients = outputs_and_gradients(
        lambda p: plain(link, p, points, mirrored), params
    )
    run = tf.function(
        lambda: outputs_and_gradients(lambda p: ours(link, p, points, mirrored), params),
        jit_compile=compiled,
    )
    outputs, gradients = run()
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    for got, want in zip(gradients, expected_gradients, strict=True):
        error = np.linalg.norm(got - want)
        assert error <= 1e-4 * np.linalg.norm(want)


@pytest.mark.slow_product
@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "classes, factors, efficient", [(3, 0, False), (10, 6, False), (5, 2, True), (2, 1, False)]
)
@pytest.mark.parametrize("rule", ["sobol", "iid"])
def test_values_and_gradients_agree_with_a_plain_implementation(
    link, classes, factors, efficient, rule
):
    points = NormalPoints(rule, 38, factors + classes)
    params = parameters(classes, factors, efficient, deviation=1.0)
    assert_agrees(link, params, points(), points.mirrored)


@pytest.mark.slow_cases("True-sigmoid")
@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("compiled", [False, True])
def test_noise_beyond_float32_takes_the_careful_road(link, compiled):
    points = NormalPoints("sobol", 38, 8)
    params = parameters(6, 2, efficient=False, deviation=60.0)
    assert_agrees(link, params, points(), points.mirrored, compiled)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("deviation", [1.0, 60.0])
def test_second_moment_agrees_with_a_plain_implementation(link, deviation):
    points = NormalPoints("antithetic", 30, 7)
    params = parameters(5, 2, efficient=False, deviation=deviation)
    logits = samples_of_logits(params, points(), points.mirrored)
    probs = tf.nn.softmax(logits) if link == "softmax" else tf.sigmoid(logits)
    expected = tf.reduce_mean(tf.square(probs), axis=1)
    log_moment = ours(link, params, points(), points.mirrored, power=2)[0]
    np.testing.assert_allclose(tf.exp(log_moment), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("deviation", [1.0, 60.0])
def test_result_does_not_depend_on_the_size_of_blocks(link, deviation, monkeypatch):
    points = NormalPoints("sobol", 74, 7)  # 37 points: a last block that has to be filled up
    params = parameters(5, 2, efficient=False, deviation=deviation)

    def run(p):
        return ours(link, p, points(), points.mirrored)

    whole, whole_gradients = outputs_and_gradients(run, params)
    monkeypatch.setattr(point_blocks, "POINTS", 1)
    for points_in_block in (1, 5, 36):
        monkeypatch.setattr(point_blocks, "BLOCK", points_in_block * ROWS * 5)
        parts, gradients = outputs_and_gradients(run, params)
        for got, want in zip((*parts, *gradients), (*whole, *whole_gradients), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("deviation", [1.0, 60.0])
@pytest.mark.parametrize(("efficient", "rows"), [(True, ROWS), (True, None), (False, None)])
def test_rows_of_many_classes_may_come_a_few_at_once(link, deviation, efficient, rows, monkeypatch):
    points = NormalPoints("sobol", 74, 7)
    params = parameters(5, 2, efficient=efficient, deviation=deviation)

    def run(p):
        return ours(link, p, points(), points.mirrored)

    whole, whole_gradients = outputs_and_gradients(run, params)
    monkeypatch.setattr(point_blocks, "MANY", 5)
    monkeypatch.setattr(point_blocks, "BLOCK", 3 * 5 * point_blocks.POINTS)
    # Three rows, and one that is filled up to three.
    assert point_blocks.Blocks(points(), params[0]).of_rows.points.shape == (4, 7, 10)
    spec = [tf.TensorSpec((rows if len(p) == ROWS else len(p), *p.shape[1:])) for p in params]
    traced = tf.function(
        lambda *p: outputs_and_gradients(run, p), input_signature=spec, autograph=False
    )
    parts, gradients = traced(*params)
    for got, want in zip((*parts, *gradients), (*whole, *whole_gradients), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_gradient_lives_where_probability_underflows():
    # edward2 clips at 1e-7: below log p = -16 its gradient is zero.
    loc = tf.constant([[0.0, -50.0, -400.0]])
    scale = tf.ones_like(loc)
    points = NormalPoints("sobol", 64, 3)()
    with tf.GradientTape() as tape:
        tape.watch(loc)
        log_probs = log_mean_softmax(loc, scale, (), points, mirrored=True)
        rare = tf.reduce_sum(log_probs[:, 1:])
    np.testing.assert_allclose(log_probs[0, 1:], [-50, -400], atol=2)
    np.testing.assert_allclose(tape.gradient(rare, loc)[0, 1:], [1.0, 1.0], rtol=1e-4)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_nan_stays_nan(link):
    loc, scale = parameters(3, 0, efficient=False, deviation=1.0)
    loc = tf.tensor_scatter_nd_update(loc, [[1, 2]], [np.nan])
    points = NormalPoints("sobol", 16, 3)()
    for output in ours(link, [loc, scale], points, True):
        assert np.isnan(output[1, 2])
        assert np.isfinite(output[0]).all()
        assert np.isfinite(output[2:]).all()


def largest_tensor(function, *shapes):
    """Elements of the largest tensor in the graph of a function and in the graphs it calls."""
    spec = [tf.TensorSpec(shape) for shape in shapes]
    graph = tf.function(function, input_signature=spec).get_concrete_function().graph
    graphs = [graph, *(inner.graph for inner in graph._functions.values())]
    operations = itertools.chain.from_iterable(g.get_operations() for g in graphs)
    outputs = itertools.chain.from_iterable(operation.outputs for operation in operations)
    return max(tensor.shape.num_elements() or 0 for tensor in outputs)


def test_no_tensor_holds_all_samples(monkeypatch):
    points = NormalPoints("iid", 2000, 110)

    def step(loc, scale, loadings):
        with tf.GradientTape() as tape:
            tape.watch([loc, scale, loadings])
            log_probs = log_mean_softmax(loc, scale, (loadings,), points(), mirrored=False)
        return tape.gradient(log_probs, [loc, scale, loadings])

    shapes = (64, 100), (64, 100), (64, 100, 10)
    assert largest_tensor(step, *shapes) <= point_blocks.BLOCK
    monkeypatch.setattr(point_blocks, "BLOCK", 2**30)  # that the measure sees such a tensor
    assert largest_tensor(step, *shapes) == 2000 * 64 * 100
