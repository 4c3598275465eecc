"""Stacks of predictions, what their uncertainty is made of, and the networks they come from."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfuq import predictive
from tfuq.layers import (
    DenseVariational,
    MCDropout,
    MCSoftmaxDenseFA,
    SparseBayesDense,
    VBLLDense,
)
from tfuq.predictive import decompose, predict_uncertainty, sample_predictions
from tfuq.predictive.sampler import sampler_of


def random_stack(*shape, seed=0):
    logits = np.random.default_rng(seed).normal(scale=2, size=shape)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def inputs(count=11, features=4):
    return np.random.default_rng(1).normal(size=(count, features)).astype("float32")


def sequential(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


def bayesian_head(**kwargs):
    return VBLLDense(3, kl_weight=0.01, posterior_scale=0.5, seed=1, **kwargs)


# --- From a stack -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 5, 3), (4, 2, 3, 5, 2)])
def test_parts_agree_with_scipy(shape):
    stack = random_stack(*shape)
    parts = decompose(stack)
    total = stats.entropy(stack.mean(0), axis=-1)
    aleatoric = stats.entropy(stack, axis=-1).mean(0)
    np.testing.assert_allclose(parts.predictive_entropy, total)
    np.testing.assert_allclose(parts.expected_entropy, aleatoric)
    np.testing.assert_allclose(parts.mutual_information, total - aleatoric, atol=1e-12)
    votes = stats.mode(stack.argmax(-1), axis=0).count
    np.testing.assert_allclose(parts.variation_ratio, 1 - votes / shape[0])
    np.testing.assert_allclose(parts.std, stack.std(0))
    np.testing.assert_array_equal(parts.label, stack.mean(0).argmax(-1))
    np.testing.assert_allclose(parts.confidence, stack.mean(0).max(-1))


def test_functions_agree_with_decompose():
    stack = random_stack(7, 4, 3)
    for name in (
        "predictive_entropy",
        "expected_entropy",
        "mutual_information",
        "variation_ratio",
    ):
        np.testing.assert_allclose(
            getattr(predictive, name)(stack), getattr(decompose(stack), name), atol=1e-12
        )


@pytest.mark.parametrize("multi_label, columns", [(False, 1), (True, 3)])
def test_binary_predictions_are_two_classes_each(multi_label, columns):
    p = np.random.default_rng(0).uniform(size=(9, 6, columns))
    parts = decompose(p, multi_label=multi_label)
    both = decompose(np.stack([1 - p, p], axis=-1))
    for name in parts._fields:
        expected = getattr(both, name)
        if name in ("probs", "std"):
            expected = expected[..., 1]
        np.testing.assert_allclose(getattr(parts, name), expected, atol=1e-12)


def test_certain_samples_that_disagree_are_all_epistemic():
    parts = decompose(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
    np.testing.assert_allclose(parts.mutual_information, np.log(2))
    assert parts.expected_entropy == 0
    assert parts.variation_ratio == 0.5


@pytest.mark.parametrize(
    "stack",
    [np.zeros((0, 2, 3)), np.ones(3) / 3, [[[1.5, -0.5]]], [[[0.9, 0.9, 0.05]]], [[[np.nan, 1]]]],
)
def test_bad_stacks(stack):
    for function in (
        decompose,
        predictive.predictive_entropy,
        predictive.expected_entropy,
        predictive.mutual_information,
        predictive.variation_ratio,
    ):
        with pytest.raises(ValueError, match="Argument `stack` must"):
            function(stack)


def test_what_does_not_sum_to_1_may_be_several_labels_or_rounded():
    with pytest.raises(ValueError, match="sum to 1 over the classes, or pass multi_label=True"):
        predictive.entropy([0.9, 0.9, 0.05])
    assert predictive.entropy([0.9, 0.9, 0.05], multi_label=True).shape == (3,)
    assert decompose([[[0.604, 0.4]]]).confidence == 0.604  # what a model in bfloat16 gives


def test_margin_is_the_lead_of_the_most_probable_class():
    stack = random_stack(4, 6, 3)
    second, first = np.sort(stack.mean(0), axis=-1)[:, 1:].T
    np.testing.assert_allclose(decompose(stack).margin, first - second, atol=1e-12)
    p = stack[..., :1]
    both = decompose(np.concatenate([1 - p, p], axis=-1)).margin
    np.testing.assert_allclose(decompose(p).margin[:, 0], both, atol=1e-12)


# --- From a model -----------------------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(5, activation="relu")
        self.dropout, self.head = MCDropout(0.5, seed=2), bayesian_head()

    def call(self, x, training=False):
        return self.head(self.dropout(self.hidden(x), training=training), training=training)


def functional():
    x = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="relu")(x)
    return keras.Model(x, bayesian_head()(MCDropout(0.5, seed=2)(hidden)))


def nested():
    return sequential(keras.layers.Dense(4), functional())


def weights():
    """Random weights alone, whose outputs only the loss declares."""
    model = sequential(DenseVariational(3, kl_weight=0.1, posterior_scale=0.5))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


MODELS = {
    "functional": functional,
    "nested": nested,
    "sequential": lambda: sequential(keras.layers.Dense(5), MCDropout(0.5), bayesian_head()),
    "subclassed": Subclassed,
    "weights": weights,
}


@pytest.mark.slow_cases("weights")
@pytest.mark.slow_cases("functional", "nested")
@pytest.mark.slow_cases("sequential")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_samples_are_networks_whatever_the_batches(make):
    model, x = make(), inputs()
    stack = sample_predictions(model, x, 6, batch_size=4)
    assert stack.shape == (6, 11, 3)
    np.testing.assert_allclose(stack.sum(-1), 1, rtol=1e-5)
    assert np.ptp(stack, axis=0).max() > 0.05
    np.testing.assert_allclose(sample_predictions(model, x, 6, batch_size=11), stack, atol=1e-6)
    np.testing.assert_allclose(sample_predictions(model, x, 3), stack[:3], atol=1e-6)
    assert not np.allclose(sample_predictions(model, x, 6, seed=1), stack, atol=1e-3)


@pytest.mark.slow_cases("subclassed")
@pytest.mark.slow_cases("functional", "nested")
@pytest.mark.slow_cases("sequential")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_uncertainty_is_that_of_the_samples(make):
    model, x = make(), inputs()
    expected = decompose(sample_predictions(model, x, 7))
    found = predict_uncertainty(model, x, 7, batch_size=3)
    for name in found._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-6)


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        x = inputs()[4 * index : 4 * index + 4]
        return x, np.zeros(len(x))


DATA = {
    "float64": lambda: inputs().astype("float64"),
    "pair": lambda: (inputs(), np.zeros(11)),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(inputs()).batch(4),
    "pairs": lambda: tf.data.Dataset.from_tensor_slices((inputs(), np.zeros(11))).batch(4),
    "PyDataset": Pairs,
}


@pytest.mark.parametrize("make", DATA.values(), ids=DATA)
def test_any_data(make):
    model = MODELS["functional"]()
    np.testing.assert_allclose(
        sample_predictions(model, make(), 3), sample_predictions(model, inputs(), 3), atol=1e-6
    )


class Counted(keras.layers.Layer):
    """Passes its input on and counts how often it really runs."""

    runs = 0

    def call(self, x):
        def count(values):
            type(self).runs += 1
            return values

        outputs = tf.py_function(count, [x], x.dtype)
        outputs.set_shape(x.shape)
        return outputs


@pytest.mark.slow_cases("sample_predictions")
@pytest.mark.parametrize("summarise", [sample_predictions, predict_uncertainty])
def test_what_comes_before_randomness_runs_once(summarise, optimized_graphs):
    x = keras.Input((4,))
    model = keras.Model(x, bayesian_head()(keras.layers.Dense(5)(Counted()(x))))
    model(inputs())
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    Counted.runs = 0
    summarise(model, inputs(), num_samples=9, batch_size=4)
    assert Counted.runs == 3  # batches


def test_summaries_hold_no_stack():
    model = MODELS["functional"]()
    sampler = sampler_of(model, 37, None, True, False, 0)
    batch = tf.constant(inputs())
    prefix, _, sums = sampler._parts(batch)
    graph = sums.get_concrete_function(*prefix(batch)).graph
    functions = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    shapes = [t.shape for g in functions for op in g.get_operations() for t in op.outputs]
    large = [s for s in shapes if s.rank is not None and s.rank >= 2 and 37 in s.as_list()]
    assert large == [s for s in large if s.as_list() == [37, 2]]  # the seeds


@pytest.mark.slow
def test_draws_have_the_posterior_predictive():
    # 4,000 draws: each mean of probabilities within 6 standard errors, which a correct sampler
    # leaves in 1 of 5e8 entries.
    model = sequential(bayesian_head(test_mc_samples=4096))
    x = inputs(5)
    stack = sample_predictions(model, x, 4000)
    expected = keras.ops.softmax(model(x))
    error = stack.std(0) / np.sqrt(4000)
    assert np.all(np.abs(stack.mean(0) - expected) < 6 * error + 1e-4)


@pytest.mark.slow
def test_label_noise_is_aleatoric_and_weights_are_epistemic():
    def parts(posterior_scale, noise_bias):
        backbone = DenseVariational(6, kl_weight=0.1, posterior_scale=posterior_scale)
        head = MCSoftmaxDenseFA(3, num_factors=2, logits_only=True, test_mc_samples=256)
        model = sequential(backbone, head)
        head.scale_bias.assign(tf.fill((3,), float(noise_bias)))
        head.factor_kernel.assign(tf.zeros_like(head.factor_kernel))
        keras.utils.set_random_seed(0)
        backbone.kernel.assign(keras.random.normal((4, 6), seed=1))
        head.loc_kernel.assign(3 * keras.random.normal((6, 3), seed=2))
        head.scale_kernel.assign(tf.zeros((6, 3)))
        return predict_uncertainty(model, inputs(), 200)

    neither, weights, noise, both = parts(1e-5, -9), parts(0.3, -9), parts(1e-5, 2), parts(0.3, 2)
    assert neither.mutual_information.max() < 1e-4
    assert noise.mutual_information.max() < 1e-4
    assert np.mean(noise.expected_entropy) > np.mean(neither.expected_entropy) + 0.1
    assert np.mean(weights.mutual_information) > 0.05
    assert np.mean(both.mutual_information) > 0.02
    assert np.mean(both.expected_entropy) > np.mean(weights.expected_entropy) + 0.1


def test_learned_noise_of_a_last_layer_is_averaged_within_a_sample():
    head = bayesian_head(noise="learned", noise_scale=2.0, test_mc_samples=512)
    model = sequential(head)
    head.kernel_rho.assign(tf.fill(head.kernel_rho.shape, -20.0))
    stack = sample_predictions(model, inputs(), 4)
    assert np.ptp(stack, axis=0).max() < 1e-4
    np.testing.assert_allclose(stack[0], keras.ops.softmax(model(inputs())), atol=1e-3)


def test_layers_called_twice_have_one_draw():
    shared = DenseVariational(4, kl_weight=0.1, posterior_scale=1.0)
    x = keras.Input((4,))
    difference = keras.layers.Subtract()([shared(x), shared(x)])
    model = keras.Model(x, keras.layers.Softmax()(difference))
    np.testing.assert_allclose(sample_predictions(model, inputs(), 3), 0.25, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_logits_are_declared(compiled):
    logits = sequential(DenseVariational(3, kl_weight=0.1, posterior_scale=0.5))
    x = keras.Input((4,))
    probs = keras.Model(x, keras.layers.Softmax()(logits(x)))
    if compiled:
        logits.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        probs.compile(loss="sparse_categorical_crossentropy")
    else:
        with pytest.raises(ValueError, match="Argument `from_logits` must"):
            sample_predictions(logits, inputs(), 3)
    told = sample_predictions(logits, inputs(), 3, from_logits=None if compiled else True)
    np.testing.assert_allclose(told, sample_predictions(probs, inputs(), 3), atol=1e-5)


def test_one_logit_and_several_labels():
    model = sequential(VBLLDense(1, 0.01, likelihood="bernoulli", posterior_scale=0.5))
    one = predict_uncertainty(model, inputs(), 5, from_logits=True)
    assert one.probs.shape == one.mutual_information.shape == (11, 1)
    model = sequential(VBLLDense(3, 0.01, likelihood="bernoulli", posterior_scale=0.5))
    several = predict_uncertainty(model, inputs(), 5, from_logits=True, multi_label=True)
    assert several.mutual_information.shape == (11, 3)
    assert not np.allclose(several.probs.sum(-1), 1, atol=0.01)


@pytest.mark.slow
def test_one_of_several_outputs():
    x = keras.Input((4,))
    head = MCSoftmaxDenseFA(3, 0, test_mc_samples=16)
    model = keras.Model(x, head(DenseVariational(5, kl_weight=0.1)(x)))
    by_name = sample_predictions(model, inputs(), 3, output="probs", from_logits=False)
    by_logits = sample_predictions(model, inputs(), 3, output="logits", from_logits=True)
    np.testing.assert_allclose(by_name, by_logits, atol=1e-5)
    with pytest.raises(ValueError, match="Argument `output` must"):
        sample_predictions(model, inputs(), 3)


def test_progress_is_shown(capsys):
    sample_predictions(MODELS["weights"](), inputs(), 2, batch_size=4, verbose=1)
    assert "3/3" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": sequential(keras.layers.Dense(3, "softmax"))}, "layers with random weights"),
        (
            {"model": sequential(SparseBayesDense(3, kl_weight=0.1), keras.layers.Softmax())},
            "once weights are selected",
        ),
        ({"model": "resnet"}, "Argument `model` must be a Keras model"),
        ({"num_samples": 0}, "Argument `num_samples` must"),
        ({"batch_size": 0}, "Argument `batch_size` must"),
        ({"seed": -1}, "Argument `seed` must"),
        ({"x": np.zeros((0, 4))}, "at least one example"),
        ({"x": 3.0}, "Argument `x` must hold arrays"),
        ({"x": tf.data.Dataset.from_tensors(np.zeros((2, 4))).repeat()}, "must end"),
    ],
)
def test_bad_input(change, message):
    arguments = {"model": MODELS["weights"](), "x": inputs(), **change}
    with pytest.raises(ValueError, match=message):
        sample_predictions(**arguments)


# --- What is kept for the next call -----------------------------------------------------------


class Counting(keras.Model):
    """Counts how often it is traced (or called)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return self.layer(x)


def test_next_call_traces_nothing_and_sees_new_weights():
    model = Counting(DenseVariational(3, kl_weight=0.01, posterior_scale=0.5, seed=1))
    model(inputs())
    before = sample_predictions(model, inputs(), 3, from_logits=True)
    calls = model.calls
    again = sample_predictions(model, inputs(5), 3, from_logits=True)
    np.testing.assert_allclose(again, before[:, :5], rtol=1e-5)
    assert model.calls == calls
    model.layer.kernel.assign_add(tf.random.stateless_normal((4, 3), [1, 2]))
    assert np.abs(sample_predictions(model, inputs(), 3, from_logits=True) - before).max() > 0.01
    assert model.calls == calls
    assert sample_predictions(model, inputs(), 4, from_logits=True).shape[0] == 4
    assert model.calls > calls


@pytest.mark.slow
def test_new_variables_and_another_loss_are_noticed():
    layer = SparseBayesDense(3, r_bayes=0.5, kl_weight=0.01, posterior_scale=0.5)
    model = sequential(layer)
    layer.select(np.arange(12.0).reshape(4, 3))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    many = sample_predictions(model, inputs(), 8)
    layer.resize(1)
    layer.select(np.arange(12.0).reshape(4, 3))
    one = sample_predictions(model, inputs(), 8)
    # The last weight alone is random: the odds of the first two classes stand still.
    odds = [stack[..., 0] / stack[..., 1] for stack in (many, one)]
    assert odds[0].std(0).max() > 0.01 and odds[1].std(0).max() < 1e-5
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=False))
    with pytest.raises(ValueError, match="Argument `from_logits` must be True"):
        sample_predictions(model, inputs(), 8)
