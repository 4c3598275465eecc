"""Terms of the loss that layers add: once per set of weights, weighted as the loss is."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfuq.layers import Conv1DVariational, DenseVariational, SparseBayesDense, VBLLDense

CE = keras.losses.SparseCategoricalCrossentropy


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape or (6, 5)).astype("float32")


# --- The KL divergence, once ------------------------------------------------------------------


def variational():
    return DenseVariational(4, kl_weight=0.1)


def sparse():
    layer = SparseBayesDense(4, kl_weight=0.1, r_bayes=0.5)
    layer.build((None, 5))
    layer.select(np.arange(20.0).reshape(5, 4))
    return layer


def last():
    return VBLLDense(4, kl_weight=0.1, objective="closed_form")


class Siamese(keras.Model):
    """Calls its layer three times, once inside a layer that is built on its first call."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.inner = layer, Inner(layer)

    def call(self, x, training=False):
        once = self.layer(x, training=training) - self.layer(-x, training=training)
        return once + self.inner(x)


class Inner(keras.layers.Layer):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.scale = layer, keras.layers.Dense(4)

    def call(self, x):
        return self.layer(self.scale(x) @ tf.ones((4, 5)))


def siamese(layer):
    x = keras.Input((5,))
    return keras.Model(x, keras.layers.Subtract()([layer(x), layer(-x)]))


def nested(layer):
    x = keras.Input((5,))
    encoder = keras.Sequential([keras.Input((5,)), layer])
    return keras.Model(x, keras.layers.Subtract()([encoder(x), encoder(-x)]))


SHARED = {"functional": siamese, "nested": nested, "subclassed": Siamese}


@pytest.mark.slow_product
@pytest.mark.parametrize("make", [variational, sparse, last])
@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED)
def test_a_shared_layer_adds_its_kl_once(share, make):
    layer = make()
    model = share(layer)
    for _ in range(2):  # the first call also builds what is not built yet
        model(inputs())
        expected = 0.1 * float(layer.kl_divergence())
        np.testing.assert_allclose([float(sum(model.losses))], [expected], rtol=1e-5)
    layer(inputs())
    np.testing.assert_allclose(layer.losses, [0.1 * float(layer.kl_divergence())], rtol=1e-5)


def test_time_distributed_adds_the_kl_once():
    layer = variational()
    model = keras.Sequential([keras.Input((7, 5)), keras.layers.TimeDistributed(layer)])
    model(inputs(2, 7, 5))
    np.testing.assert_allclose(sum(model.losses), 0.1 * float(layer.kl_divergence()), rtol=1e-5)


class Cell(keras.layers.Layer):
    """A cell of a recurrent layer whose weights are random."""

    state_size = output_size = 3

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = DenseVariational(3, kl_weight=0.1)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, states, training=False):
        hidden = keras.ops.tanh(self.dense(x, training=training) + states[0])
        return hidden, [hidden]


LOOPS = {
    "TimeDistributed": lambda: keras.layers.TimeDistributed(DenseVariational(3, kl_weight=0.1)),
    "RNN": lambda: keras.layers.RNN(Cell()),
    "RNN, unrolled": lambda: keras.layers.RNN(Cell(), unroll=True),
}


@pytest.mark.slow_cases("RNN")
@pytest.mark.slow_cases("TimeDistributed", "RNN, unrolled")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_kl_within_loops_counts_once(loop):
    """Of sequences of unknown length, over which TensorFlow loops, in training and evaluation."""
    length = 5 if "unrolled" in loop else None
    model = keras.Sequential([keras.Input((length, 4)), LOOPS[loop]()])
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype("float32")
    means = model.predict(x, verbose=0)
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    (layer,) = (each for each in model._flatten_layers() if isinstance(each, DenseVariational))
    kl = 0.1 * float(layer.kl_divergence())
    data = model.evaluate(x, means, verbose=0, batch_size=6)
    np.testing.assert_allclose(data, kl, rtol=1e-5)
    history = model.fit(x, means, batch_size=6, verbose=0).history["loss"]
    assert kl < history[0] < 2 * kl  # the noise of the weights adds less than the KL itself


@pytest.mark.slow_cases("options0")
@pytest.mark.slow_cases("options1")
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}])
def test_the_loss_of_a_fit_holds_the_kl_once(options):
    layer = variational()
    model = siamese(layer)
    model.compile(keras.optimizers.SGD(0.0), "mse", **{"jit_compile": False, **options})
    x, kl = inputs(), 0.1 * float(siamese_kl(layer))
    found = model.fit(x, np.zeros((6, 4)), batch_size=6, epochs=2, verbose=0).history["loss"]
    mse = np.mean(model.predict(x, verbose=0) ** 2)
    evaluated = model.evaluate(x, np.zeros((6, 4)), verbose=0)
    np.testing.assert_allclose(evaluated, mse + kl, rtol=1e-4)
    assert kl < min(found) and max(found) < 1.9 * kl  # and noise


def siamese_kl(layer):
    return layer.kl_divergence()


def test_two_replicas_add_the_kl_once_together():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = variational()
        model = siamese(layer)
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    x = inputs()
    found = model.evaluate(x, np.zeros((6, 4)), batch_size=6, verbose=0)
    mse = np.mean(np.asarray(model(x)) ** 2)
    np.testing.assert_allclose(found, mse + 0.1 * float(layer.kl_divergence()), rtol=1e-4)


# --- The closed-form term follows the loss ------------------------------------------------------


def lse_terms(head, x, y):
    """lse(mean + var / 2) - mean_y, one per label: cross-entropy and gap."""
    distribution = head.logit_distribution(x)
    mean, variance = distribution.mean().numpy(), distribution.variance().numpy()
    at_label = np.take_along_axis(mean, y[..., None], -1)[..., 0]
    return special.logsumexp(mean + variance / 2, axis=-1) - at_label


def first_loss(model, x, y, loss, jit=False, **kwargs):
    fit = {name: kwargs.pop(name) for name in ("sample_weight", "class_weight") if name in kwargs}
    model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=jit, **kwargs)
    return model.fit(x, y, batch_size=len(x), verbose=0, **fit).history["loss"][0]


def head_model(*shape, **kwargs):
    head = VBLLDense(3, kl_weight=0.0, posterior_scale=0.5, **kwargs)
    return keras.Sequential([keras.Input(shape or (5,)), head]), head


WEIGHTS = np.linspace(0.2, 3, 6)
LABELS = np.array([0, 1, 2, 0, 1, 2])
FOLLOWED = {
    "mean": ({}, {}, lambda t: t.mean()),
    "sum": ({"reduction": "sum"}, {}, lambda t: t.sum()),
    "sum_jit": ({"reduction": "sum"}, {"jit": True}, lambda t: t.sum()),
    "loss_weights": ({}, {"loss_weights": 0.25}, lambda t: 0.25 * t.mean()),
    "sample_weight": ({}, {"sample_weight": WEIGHTS}, lambda t: (WEIGHTS * t).mean()),
    "class_weight": (
        {},
        {"class_weight": {0: 1.0, 1: 2.0, 2: 5.0}},
        lambda t: (np.array([1, 2, 5])[LABELS] * t).mean(),
    ),
    "ignore_class": ({"ignore_class": 1}, {}, lambda t: t[LABELS != 1].mean()),
    "all": (
        {"reduction": "sum", "ignore_class": 1},
        {"sample_weight": WEIGHTS, "loss_weights": [0.5]},
        lambda t: 0.5 * (WEIGHTS * t)[LABELS != 1].sum(),
    ),
}


@pytest.mark.slow_cases("sum", "class_weight")
@pytest.mark.slow_cases("sum_jit", "loss_weights", "sample_weight", "ignore_class")
@pytest.mark.parametrize("loss, options, expected", FOLLOWED.values(), ids=FOLLOWED)
def test_the_term_is_weighted_and_reduced_as_the_loss(loss, options, expected):
    model, head = head_model()
    found = first_loss(model, inputs(), LABELS, CE(from_logits=True, **loss), **options)
    np.testing.assert_allclose(found, expected(lse_terms(head, inputs(), LABELS)), rtol=1e-5)


def test_the_term_honours_masks():
    x = inputs(4, 6, 5)
    x[:, 4:] = 0
    y = np.random.default_rng(3).integers(3, size=(4, 6))
    head = VBLLDense(3, kl_weight=0.0, posterior_scale=0.5)
    model = keras.Sequential([keras.Input((6, 5)), keras.layers.Masking(), head])
    expected = lse_terms(head, x, y)[:, :4].mean()
    np.testing.assert_allclose(first_loss(model, x, y, CE(from_logits=True)), expected, rtol=1e-5)
    found = first_loss(model, x, y, CE(from_logits=True, reduction="sum"))
    np.testing.assert_allclose(found, expected * 16, rtol=1e-5)


@pytest.mark.slow
def test_a_shared_head_adds_the_mean_over_its_calls():
    x, y = inputs(6, 4, 5), np.random.default_rng(3).integers(3, size=(6, 4))
    head = VBLLDense(3, kl_weight=0.0, posterior_scale=0.5)
    model = keras.Sequential([keras.Input((4, 5)), keras.layers.TimeDistributed(head)])
    found = first_loss(model, x, y, CE(from_logits=True))
    np.testing.assert_allclose(found, lse_terms(head, x, y).mean(), rtol=1e-5)


@pytest.mark.slow
def test_two_outputs_have_a_term_each_and_plain_losses_only():
    head, x = VBLLDense(3, kl_weight=0.0, posterior_scale=0.5), keras.Input((5,))
    model = keras.Model(x, [head(x), head(-x)])
    losses = [CE(from_logits=True), CE(from_logits=True)]
    found = first_loss(model, inputs(), [LABELS, LABELS], losses)
    expected = sum(lse_terms(head, sign * inputs(), LABELS).mean() for sign in (1, -1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for options, name in (
        ({"loss_weights": [1.0, 0.5]}, "loss_weights"),
        ({"sample_weight": [WEIGHTS, WEIGHTS]}, "sample_weight"),
    ):
        with pytest.raises(ValueError, match=f"Received: {name} with several outputs"):
            first_loss(model, inputs(), [LABELS, LABELS], losses, **options)


def test_a_loss_without_reduction_is_refused():
    model, _ = head_model()
    with pytest.raises(ValueError, match="Argument `loss` must have a reduction"):
        first_loss(model, inputs(), LABELS, CE(from_logits=True, reduction=None))


def test_evaluation_has_no_term_after_a_training_call():
    model, _ = head_model(predictive="mean")
    model.compile(keras.optimizers.SGD(0.0), CE(from_logits=True), run_eagerly=True)
    model.fit(inputs(), LABELS, sample_weight=WEIGHTS, verbose=0)
    model(inputs(seed=1), training=True)
    found = model.evaluate(inputs(), LABELS, sample_weight=WEIGHTS, verbose=0)
    loss = CE(from_logits=True)(LABELS, model(inputs()), sample_weight=WEIGHTS)
    np.testing.assert_allclose(found, loss, rtol=1e-5)


# --- Weight decay, heavy KL ---------------------------------------------------------------------


@pytest.mark.slow_cases("<lambda>2-False", "<lambda>0-False")
@pytest.mark.slow_product
@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: DenseVariational(4, kl_weight=0.0, trainable_prior=True),
        lambda: Conv1DVariational(4, 1, kl_weight=0.0),
        lambda: VBLLDense(4, kl_weight=0.0, posterior="low_rank", rank=2, noise="learned"),
        lambda: VBLLDense(4, kl_weight=0.0, posterior="dense"),
        sparse,
    ],
)
def test_weight_decay_leaves_the_spread_alone(make, is_built):
    layer = make()
    shape = (3, 5) if isinstance(layer, Conv1DVariational) else (5,)
    model = keras.Sequential([keras.Input(shape), layer])
    # Steps of a size that rounds to nothing, and decay of a tenth.
    model.compile(keras.optimizers.AdamW(1e-12, weight_decay=1e11), "mse", jit_compile=False)
    if is_built:
        model.optimizer.build(model.trainable_variables)
    before = {v.name: v.numpy() for v in layer.trainable_variables}
    y = np.zeros((6, *model.output_shape[1:]))
    model.fit(inputs(6, *shape), y, batch_size=6, verbose=0)
    for variable in layer.trainable_variables:
        kept = variable.name in ("kernel", "bias")
        expected = before[variable.name] * (0.9 if kept else 1)
        np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=1e-7)


def test_a_far_too_large_weight_warns_when_built():
    with pytest.warns(UserWarning, match=r"KL divergence of layer 'top'.*tfuq.kl_weight_for"):
        DenseVariational(300, kl_weight=1.0, name="top").build((None, 300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DenseVariational(300, kl_weight=1 / 1000).build((None, 300))
