"""A step moves each layer as far as its depth or its group says, whatever moves it."""

import itertools

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf
from contract import policy, two_devices
from keras import layers, optimizers

from tfuq._models.train_step import intercepted, optimizer_chain, rebuild_optimizer
from tfuq.callbacks import GradualUnfreezing
from tfuq.optimizers import DiscriminativeLearningRate
from tfuq.optimizers.discriminative import layer_factors

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.normal(size=(12, 2)).astype("float32")
FACTORS = [0.01, 0.1, 1.0]  # of three layers
STEPS = 4
SHAPES = [(3, 2), (2,)] * 3
STARTS = [RNG.normal(size=shape) for shape in SHAPES]
GRADIENTS = [[RNG.normal(size=shape) for shape in SHAPES] for _ in range(STEPS)]

DECAY = {"weight_decay": 0.3}
OPTIMIZERS = {
    "sgd": lambda **k: optimizers.SGD(0.1, **k),
    "momentum": lambda **k: optimizers.SGD(0.1, momentum=0.9, **k),
    "nesterov": lambda **k: optimizers.SGD(0.1, momentum=0.9, nesterov=True, **k),
    "adam": lambda **k: optimizers.Adam(0.1, **k),
    "amsgrad": lambda **k: optimizers.Adam(0.1, amsgrad=True, **k),
    "adamw": lambda **k: optimizers.AdamW(0.1, **{"weight_decay": 0.0, **k}),
    "nadam": lambda **k: optimizers.Nadam(0.1, **k),
    "adamax": lambda **k: optimizers.Adamax(0.1, **k),
    "adagrad": lambda **k: optimizers.Adagrad(0.1, **k),
    "adadelta": lambda **k: optimizers.Adadelta(0.1, **k),
    "rmsprop": lambda **k: optimizers.RMSprop(0.1, **k),
    "centered": lambda **k: optimizers.RMSprop(0.1, momentum=0.9, centered=True, **k),
    "lamb": lambda **k: optimizers.Lamb(0.1, **k),
    "lion": lambda **k: optimizers.Lion(0.1, **k),
    "muon": lambda **k: optimizers.Muon(0.1, **{"weight_decay": None, **k}, adam_weight_decay=None),
    "schedule_free": lambda **k: optimizers.ScheduleFreeAdamW(0.1, **k),
    "adafactor": lambda **k: optimizers.Adafactor(0.1, **k),
    "capped_adafactor": lambda **k: optimizers.Adafactor(3.0, **k),
    "ftrl": lambda **k: optimizers.Ftrl(0.1, beta=0.1, l1_regularization_strength=0.1, **k),
}
FROM_ZERO = ("ftrl", "muon")  # weights that follow from sums of gradients alone; finest float32
FLOAT32 = ("muon",)
FIRST_STEP = (
    "adafactor",
    "capped_adafactor",
    "lamb",
)  # then their steps depend on where the weights are


# --- Models and variables ---------------------------------------------------------------------


def three_layers(starts=STARTS, dtype="float64"):
    """Kernel and bias of `low`, `middle` and `top`."""
    found = []
    for i, start in enumerate(starts):
        with keras.name_scope(("low", "middle", "top")[i // 2]):
            found.append(keras.Variable(start, dtype=dtype, name=("kernel", "bias")[i % 2]))
    return found


def values(variables):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def course(optimizer, variables, gradients=GRADIENTS):
    """The values of `variables` after each step."""
    found = []
    for step in gradients:
        optimizer.apply([tf.cast(g, variables[0].dtype) for g in step], variables)
        found.append(values(variables))
    return found


def assert_close(found, expected, rtol=1e-6, atol=1e-12):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def stack(name="model"):
    names = ("low", "middle")
    hidden = [layers.Dense(4, "tanh", name=n) for n in names]
    return keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(2, name="top")], name=name)


def compiled(optimizer, model=None, **kwargs):
    model = stack() if model is None else model
    model.compile(optimizer, "mse", **{"jit_compile": False, **kwargs})
    return model


def fit(model, *callbacks, **kwargs):
    kwargs = {"epochs": 2, "batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(X, Y, callbacks=list(callbacks), **kwargs).history


def built_factors(model, **kwargs):
    optimizer = DiscriminativeLearningRate("sgd", **kwargs)
    optimizer.build(model.trainable_variables)
    return optimizer.factors


def names(model, **kwargs):
    """Names of the layers in the order of depth."""
    return [path.split("/")[-1] for path in built_factors(model, **kwargs)]


# --- The formulas -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [2, 3, 7, 50])
@pytest.mark.parametrize("min_factor", [1e-3, 0.01, 1])
def test_log_and_linear(num_layers, min_factor):
    found = layer_factors(num_layers, "log", min_factor)
    np.testing.assert_allclose(found, np.geomspace(min_factor, 1, num_layers))
    found = layer_factors(num_layers, "linear", min_factor)
    np.testing.assert_allclose(found, np.linspace(min_factor, 1, num_layers))


def test_thirds_as_printed():
    """Equation 2.7 says 0.01, 0.1 and 1; boundaries are in the lower third."""
    for num_layers in (3, 6, 30):
        np.testing.assert_allclose(
            layer_factors(num_layers, "thirds"), np.repeat(FACTORS, num_layers // 3)
        )
    np.testing.assert_allclose(layer_factors(4, "thirds"), [0.01, 0.1, 1, 1])
    np.testing.assert_allclose(layer_factors(5, "thirds", 0.25), [0.25, 0.5, 0.5, 1, 1])


@pytest.mark.parametrize("scheme", ["log", "linear", "thirds"])
def test_few_layers(scheme):
    assert layer_factors(1, scheme) == [1]
    assert layer_factors(0, scheme) == []
    assert layer_factors(2, scheme)[1] == 1


# --- Which layers, in which order -------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["log", "linear", "thirds"])
def test_factors_of_a_sequential_model(scheme):
    found = built_factors(stack(), scheme=scheme, min_factor=0.04)
    assert list(found) == ["model/low", "model/middle", "model/top"]
    np.testing.assert_allclose(list(found.values()), layer_factors(3, scheme, 0.04))


def test_branches_and_layers_made_out_of_order():
    """b1 and b2 are parallel to b3; `last` is made first, `shared` is used twice."""
    last, shared = layers.Dense(4, name="last"), layers.Dense(4, name="shared")
    x = keras.Input((4,))
    b3 = layers.Dense(4, name="b3")
    first = layers.Dense(4, name="first")(x)
    b1 = layers.Dense(4, name="b1")(first)
    y = layers.Add()([layers.Dense(4, name="b2")(b1), b3(first)])
    model = keras.Model(x, last(shared(layers.BatchNormalization(name="norm")(shared(y)))))
    order = names(model)
    assert order[0] == "first" and order[-3:] == ["shared", "norm", "last"]
    assert set(order[1:4]) == {"b1", "b2", "b3"} and order.index("b1") < order.index("b2")
    np.testing.assert_allclose(list(built_factors(model).values()), np.geomspace(0.01, 1, 7))


def trunk(name, kind):
    parts = [layers.Dense(4, use_bias=False, name="a"), layers.Dense(4, name="b")]
    if kind == "sequential":
        return keras.Sequential([keras.Input((4,)), *parts], name=name)
    x = keras.Input((4,))
    return keras.Model(x, parts[1](parts[0](x)), name=name)


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_nested_backbones_whose_layers_have_the_same_names(kind):
    x = keras.Input((4,))
    y = trunk("lower", kind)(layers.Dense(4, name="stem")(x))
    model = keras.Model(x, layers.Dense(2, name="head")(trunk("upper", kind)(y)))
    found = built_factors(model)
    path = {
        "sequential": ["lower/a", "lower/b", "upper/a", "upper/b"],
        "functional": ["a", "b", "a#2", "b#2"],
    }
    assert list(found) == ["stem", *path[kind], "head"]
    np.testing.assert_allclose(list(found.values()), np.geomspace(0.01, 1, 6))


@keras.saving.register_keras_serializable("test_optimizers")
class Subclassed(keras.Model):
    """`head` is the first attribute and the last to be called; two layers are called `fc`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = layers.Dense(2, name="head")
        self.lower = layers.Dense(4, use_bias=False, name="fc")
        self.upper = layers.Dense(4, name="fc")
        self.attention = layers.MultiHeadAttention(1, 2, name="attention")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        y = self.upper(self.lower(x))[:, None]
        return self.head(self.attention(y, y)[:, 0]) * self.scale


def test_subclassed_models_in_the_order_of_attributes():
    model = Subclassed(name="net")
    model(X)
    parts = [f"attention/{part}" for part in ("query", "key", "value", "attention_output")]
    expected = ["net", *(f"net/{name}" for name in ("head", "fc", "fc#2", *parts))]
    found = built_factors(model)
    assert list(found) == expected
    np.testing.assert_allclose(list(found.values()), np.geomspace(0.01, 1, 8))


def test_frozen_layers_do_not_count():
    model = stack()
    model.layers[0].trainable = False
    assert built_factors(model) == {"model/middle": 0.01, "model/top": 1}


def test_variables_without_a_layer():
    optimizer = DiscriminativeLearningRate("sgd")
    optimizer.build([keras.Variable(0.0, name="a"), keras.Variable(0.0, name="b")])
    assert optimizer.factors == {"a": 0.01, "b": 1}
    optimizer = DiscriminativeLearningRate("sgd")
    optimizer.build([tf.Variable(0.0, name="a/w"), tf.Variable(0.0, name="b/w")])
    assert list(optimizer.factors.values()) == [0.01, 1]


# --- Groups -----------------------------------------------------------------------------------


def test_groups_by_name_path_and_part_of_a_path():
    for pattern in ("low", "model/low", "lo*", "model/l*"):
        found = built_factors(stack(), groups={pattern: 0.5})
        assert found == {"model/low": 0.5, "model/middle": 0.1, "model/top": 1}, pattern
    assert built_factors(stack(), groups={"model": 2}) == dict.fromkeys(
        ["model/low", "model/middle", "model/top"], 2
    )


def test_first_group_counts_and_variables_can_differ_within_a_layer():
    groups = {"middle/bias": 4, "bias": 2, "top": 0.5}
    assert built_factors(stack(), scheme=None, groups=groups) == {
        "model/low/kernel": 1,
        "model/low/bias": 2,
        "model/middle/kernel": 1,
        "model/middle/bias": 4,
        "model/top/kernel": 0.5,
        "model/top/bias": 2,
    }


def test_groups_name_the_second_layer_of_a_path():
    model = Subclassed(name="net")
    model(X)
    found = built_factors(model, scheme=None, groups={"fc#2": 3})
    assert [path for path, factor in found.items() if factor == 3] == ["net/fc#2"]


def test_groups_that_fit_nothing():
    optimizer = DiscriminativeLearningRate("sgd", groups={"low": 1, "lo": 2})
    with pytest.raises(ValueError, match=r"`groups` must.*model/middle.*Received: 'lo',"):
        optimizer.build(stack().trainable_variables)
    assert not optimizer.built and not optimizer.inner_optimizer.built and optimizer.factors == {}


# --- The update -------------------------------------------------------------------------------


def test_all_optimizers_of_keras_are_here():
    wrappers = (optimizers.Optimizer, optimizers.LossScaleOptimizer, optimizers.MultiOptimizer)
    classes = {
        thing
        for thing in vars(optimizers).values()
        if isinstance(thing, type) and issubclass(thing, optimizers.Optimizer)
    }
    assert {type(make()) for make in OPTIMIZERS.values()} == classes - set(wrappers)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_move_by_their_factor(name):
    """The same gradients, and step by step f times as far as the optimizer alone."""
    starts = [0 * start for start in STARTS] if name in FROM_ZERO else STARTS
    gradients = GRADIENTS[:1] if name in FIRST_STEP else GRADIENTS
    dtype = "float32" if name in FLOAT32 else "float64"
    alone = course(OPTIMIZERS[name](), three_layers(starts, dtype), gradients)
    wrapped = DiscriminativeLearningRate(OPTIMIZERS[name]())
    found = course(wrapped, three_layers(starts, dtype), gradients)
    for a, b in zip(found, alone, strict=True):
        expected = [f * (y - s) for f, y, s in zip(np.repeat(FACTORS, 2), b, starts, strict=True)]
        assert_close([x - s for x, s in zip(a, starts, strict=True)], expected, atol=1e-9)
        assert_close(a[4:], b[4:], rtol=0, atol=0)  # factor 1: to the bit


def by_layer(make, variables, gradients=GRADIENTS):
    """Where the layers go with an optimizer each, `make(factor)`, and these optimizers."""
    found, made = [], []
    for i, factor in enumerate(FACTORS):
        own = slice(2 * i, 2 * i + 2)
        made.append(make(factor))
        found.append(course(made[-1], variables[own], [step[own] for step in gradients]))
    return [[*low, *middle, *top] for low, middle, top in zip(*found, strict=True)], made


@pytest.mark.parametrize(
    "name, options",
    [
        ("adamw", DECAY),
        ("momentum", DECAY),
        ("lion", DECAY),
        ("schedule_free", DECAY),
        ("adam", {"clipnorm": 0.5}),
        ("sgd", {"clipvalue": 0.2, **DECAY}),
        ("nesterov", {"gradient_accumulation_steps": 2, **DECAY}),
        ("adamw", {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3, **DECAY}),
        ("sgd", {"loss_scale_factor": 4.0}),
    ],
)
def test_as_with_an_optimizer_of_that_rate_for_each_layer(name, options):
    def make(factor):
        optimizer = OPTIMIZERS[name](**options)
        optimizer.learning_rate = factor * float(optimizer.learning_rate)
        return optimizer

    wrapped, variables = DiscriminativeLearningRate(make(1)), three_layers()
    references = three_layers()
    found, (expected, others) = course(wrapped, variables), by_layer(make, references)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, atol=1e-7)
    wrapped.finalize_variable_values(variables)
    for i, other in enumerate(others):
        other.finalize_variable_values(references[2 * i : 2 * i + 2])
    assert_close(values(variables), values(references), atol=1e-7)
    steps = STEPS // options.get("gradient_accumulation_steps", 1)
    assert int(wrapped.iterations) == int(wrapped.inner_optimizer.iterations) == steps


def test_muon_has_two_weight_decays():
    def make(factor):
        return optimizers.Muon(0.1 * factor, weight_decay=0.3, adam_weight_decay=0.6)

    wrapped = DiscriminativeLearningRate(make(1))
    found = course(wrapped, three_layers(dtype="float32"))
    expected = by_layer(make, three_layers(dtype="float32"))[0]
    assert_close(found[-1], expected[-1], rtol=1e-5, atol=1e-6)


def test_schedules():
    schedule = optimizers.schedules.ExponentialDecay
    wrapped = DiscriminativeLearningRate(optimizers.AdamW(schedule(0.1, 1, 0.5), **DECAY))

    def make(factor):
        return optimizers.AdamW(schedule(0.1 * factor, 1, 0.5), **DECAY)

    found, expected = course(wrapped, three_layers()), by_layer(make, three_layers())[0]
    assert_close(found[-1], expected[-1], atol=1e-7)
    assert float(wrapped.learning_rate) == pytest.approx(0.1 * 0.5**STEPS)
    with pytest.raises(TypeError, match="not settable"):
        wrapped.learning_rate = 0.1


def test_clipping_by_the_norm_of_all():
    alone, wrapped = (optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5) for _ in range(2))
    expected = course(alone, three_layers())[-1]
    found = course(DiscriminativeLearningRate(wrapped), three_layers())[-1]
    for f, x, y, start in zip(np.repeat(FACTORS, 2), found, expected, STARTS, strict=True):
        np.testing.assert_allclose(x - start, f * (y - start), rtol=1e-6)


@pytest.mark.parametrize("early", [True, False])
def test_variables_without_weight_decay(early):
    """Told before it is wrapped, or afterwards."""
    wrapped = optimizers.AdamW(0.1, **DECAY)
    if early:
        wrapped.exclude_from_weight_decay(var_names=["bias"])
    wrapped = DiscriminativeLearningRate(wrapped)
    if not early:
        wrapped.exclude_from_weight_decay(var_names=["bias"])
    decayed, plain = optimizers.AdamW(0.1, **DECAY), optimizers.Adam(0.1)
    variables = three_layers()
    course(wrapped, variables, GRADIENTS[:1])
    moved = [v - start for v, start in zip(values(variables), STARTS, strict=True)]
    for i, optimizer in enumerate((decayed, plain)):
        others = three_layers()
        course(optimizer, others, GRADIENTS[:1])
        expected = [v - start for v, start in zip(values(others), STARTS, strict=True)]
        for j, factor in enumerate(FACTORS):
            np.testing.assert_allclose(
                moved[2 * j + i], factor * expected[2 * j + i], rtol=1e-6, atol=1e-9
            )


def test_some_of_the_variables_constraints_and_sparse_gradients():
    variables = [keras.Variable(np.ones((3, 2)), name=n) for n in ("a", "b", "c")]
    variables[0].constraint = keras.constraints.UnitNorm()
    wrapped = DiscriminativeLearningRate(optimizers.SGD(1.0))
    wrapped.build(variables)
    rows = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]), tf.constant([3, 2]))
    wrapped.apply([tf.ones((3, 2)), rows], variables[:2])
    a, b, c = values(variables)
    np.testing.assert_allclose(a, np.full((3, 2), 3**-0.5), rtol=1e-6)
    np.testing.assert_allclose(b, 1 - 0.1 * np.array([[0, 0], [1, 1], [0, 0]]))
    assert np.all(c == 1)


def test_wrapped_anew():
    """The optimizer of an earlier wrapper: its state stays, the factors are the latest."""
    inner, variables = optimizers.SGD(0.1), three_layers()
    course(DiscriminativeLearningRate(inner), variables)
    wrapped = DiscriminativeLearningRate(inner, min_factor=0.25)
    assert wrapped.built and int(wrapped.iterations) == STEPS
    before = values(variables)
    course(wrapped, variables, GRADIENTS[:1])
    for f, x, b, g in zip(
        np.repeat([0.25, 0.5, 1], 2), values(variables), before, GRADIENTS[0], strict=True
    ):
        np.testing.assert_allclose(x - b, -0.1 * f * g, rtol=1e-6)


def test_takes_over_what_is_built():
    inner, variables = optimizers.Adam(0.1), three_layers()
    course(inner, variables, GRADIENTS[:1])
    with pytest.raises(ValueError, match=r"`groups` must"):
        DiscriminativeLearningRate(inner, groups={"head": 2})
    course(inner, variables, GRADIENTS[1:2])  # which has left it alone
    wrapped = DiscriminativeLearningRate(inner)
    assert list(wrapped.factors) == ["low", "middle", "top"]
    before = values(variables)
    found = course(wrapped, variables, GRADIENTS[2:3])[0]
    other = optimizers.Adam(0.1)
    expected = course(other, three_layers(), GRADIENTS[:3])[2]
    for f, x, y, b in zip(np.repeat(FACTORS, 2), found, expected, before, strict=True):
        np.testing.assert_allclose(x - b, f * (y - b), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="Unknown variable"):
        wrapped.apply([tf.zeros(())], [keras.Variable(0.0)])


class Relative(optimizers.Optimizer):
    """An optimizer that is none of Keras' own, and takes no schedule."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * tf.sign(gradient))


def test_an_optimizer_of_ones_own():
    variables = three_layers(dtype="float32")
    course(DiscriminativeLearningRate(Relative(0.5)), variables, GRADIENTS[:1])
    moved = [v - start for v, start in zip(values(variables), STARTS, strict=True)]
    expected = [
        -0.5 * f * np.sign(g) for f, g in zip(np.repeat(FACTORS, 2), GRADIENTS[0], strict=True)
    ]
    assert_close(moved, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_compiled_by_xla(name):
    options = DECAY if name == "adamw" else {}
    results = []
    for jit_compile in (False, True):
        variables = three_layers(dtype="float32")
        optimizer = DiscriminativeLearningRate(OPTIMIZERS[name](**options))
        optimizer.build(variables)
        step = tf.function(optimizer.apply, jit_compile=jit_compile)
        for gradients in GRADIENTS[:2]:
            step([tf.constant(g, "float32") for g in gradients])
        results.append(values(variables))
    assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", pytest.param("adafactor", marks=pytest.mark.slow)])
def test_on_two_devices(name):
    """Both replicas have half of each gradient."""
    options = DECAY if name == "adamw" else {}
    variables = three_layers(dtype="float32")
    alone = DiscriminativeLearningRate(OPTIMIZERS[name](**options))
    expected = course(alone, variables)[-1]
    strategy = two_devices()
    with strategy.scope():
        variables = three_layers(dtype="float32")
        optimizer = DiscriminativeLearningRate(OPTIMIZERS[name](**options))
        optimizer.build(variables)
    half = [tf.constant(np.stack(g) / 2, "float32") for g in zip(*GRADIENTS, strict=True)]

    @tf.function
    def step():
        strategy.run(lambda: optimizer.apply([g[optimizer.iterations.value] for g in half]))

    for _ in GRADIENTS:
        step()
    assert_close(values(variables), expected, rtol=1e-5, atol=1e-6)
    for variable in variables:
        first, second = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)


# --- In training ------------------------------------------------------------------------------


def of_each_layer(make):
    """Keras' optimizer of optimizers, which has one for each layer."""
    rates = dict(zip(("low", "middle", "top"), FACTORS, strict=True))
    by_path = {f".*{name}/.*": make(factor) for name, factor in rates.items()}
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(), by_path))


@pytest.mark.slow
def test_callbacks_move_the_rate_of_all_layers():
    """Epochs of three steps, two per execution, against schedules of the same values."""
    model, other = stack(), stack()
    other.set_weights(model.get_weights())
    compiled(
        DiscriminativeLearningRate(optimizers.AdamW(1.0, weight_decay=0.1)),
        model,
        steps_per_execution=2,
    )
    rates = [0.1, 0.03]
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, min_delta=1e9)
    history = fit(model, scheduler, plateau)
    np.testing.assert_allclose(history["learning_rate"], rates, rtol=1e-6)
    schedule = optimizers.schedules.PiecewiseConstantDecay

    def make(factor):
        of_steps = schedule([2], [factor * rate for rate in rates])
        return optimizers.AdamW(of_steps, weight_decay=0.1)

    compiled(of_each_layer(make), other)
    expected = fit(other)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    assert_close(model.get_weights(), other.get_weights(), rtol=1e-4, atol=1e-6)


def test_reduces_on_a_plateau():
    optimizer = DiscriminativeLearningRate(optimizers.SGD(0.1))
    model = compiled(optimizer)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    plateau.set_model(model)
    plateau.on_train_begin()
    for epoch in range(3):
        plateau.on_epoch_end(epoch, {"loss": 1.0})
    assert float(optimizer.learning_rate) == pytest.approx(0.025)
    assert float(optimizer.inner_optimizer.learning_rate) == pytest.approx(0.025)


@pytest.mark.slow
def test_mixed_precision():
    """`compile` puts a LossScaleOptimizer around it; the gradients are those of float16."""
    with policy("mixed_float16"):
        model, other = stack(), stack()
    other.set_weights(model.get_weights())
    starts = model.get_weights()
    compiled(DiscriminativeLearningRate(optimizers.SGD(0.5, momentum=0.9)), model)
    compiled(optimizers.SGD(0.5, momentum=0.9), other)
    chain = optimizer_chain(model.optimizer)
    assert [type(o).__name__ for o in chain] == [
        "LossScaleOptimizer",
        "DiscriminativeLearningRate",
        "SGD",
    ]
    for each in (model, other):
        each.train_on_batch(X, Y)
    moved = [a - b for a, b in zip(model.get_weights(), starts, strict=True)]
    expected = [a - b for a, b in zip(other.get_weights(), starts, strict=True)]
    for f, a, b in zip(np.repeat(FACTORS, 2), moved, expected, strict=True):
        np.testing.assert_allclose(a, f * b, rtol=1e-3, atol=1e-6)
    assert int(model.optimizer.iterations) == 1
    rebuild_optimizer(model.optimizer, model.trainable_variables[2:])
    assert list(chain[1].factors) == ["model/middle", "model/top"]


def test_loss_is_scaled_once():
    optimizer = DiscriminativeLearningRate(optimizers.SGD(0.1, loss_scale_factor=4.0))
    assert float(optimizer.scale_loss(2.0)) == 8
    scaled = optimizers.LossScaleOptimizer(optimizer, initial_scale=16.0)
    assert float(scaled.scale_loss(2.0)) == 32
    assert float(optimizer.scale_loss(2.0)) == 2
    assert optimizer.inner_optimizer.loss_scale_factor is None


@pytest.mark.slow
def test_unfreezing():
    """Layers that wait stand still, and have the factors of the whole model when they join."""
    optimizer = DiscriminativeLearningRate(optimizers.SGD(0.1))
    model = compiled(optimizer)
    kernels = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: kernels.append(model.get_weights()[::2])
    )
    fit(model, GradualUnfreezing(num_stages=2), note, epochs=3)
    kernels.append(model.get_weights()[::2])
    moved = [
        [not np.array_equal(a, b) for a, b in zip(*pair, strict=True)]
        for pair in itertools.pairwise(kernels)
    ]
    assert moved == [[False, False, True], [False, True, True], [True, True, True]]
    np.testing.assert_allclose(list(optimizer.factors.values()), FACTORS)


def test_on_other_variables():
    """`rebuild_optimizer` keeps the moments; the layers are counted anew."""
    variables = three_layers()
    optimizer = DiscriminativeLearningRate(optimizers.Adam(0.1))
    course(optimizer, variables)
    moments = values(optimizer.inner_optimizer._momentums)
    rebuild_optimizer(optimizer, variables[2:])
    assert optimizer.factors == {"middle": 0.01, "top": 1}
    assert_close(values(optimizer.inner_optimizer._momentums), moments[2:], rtol=0)
    seen = []
    before = values(variables)

    def handler(apply, grads, variables):
        seen.append(len(grads))
        apply(grads, variables)

    with intercepted(optimizer_chain(optimizer)[-1], "test", handler):
        course(optimizer, variables[2:], [step[2:] for step in GRADIENTS[:1]])
    moved = [np.abs(v - b).max() for v, b in zip(values(variables), before, strict=True)]
    assert seen == [4] and moved[0] == moved[1] == 0 and 0 < moved[2] < 0.05 * moved[4]


# --- Saving -----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("test_optimizers")
class Halving(optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 * 0.5 ** tf.cast(step, "float32")

    def get_config(self):
        return {}


def test_configuration():
    inner = optimizers.AdamW(Halving(), weight_decay=0.1)
    groups = {"top": 0.5, "*": 2.0}
    optimizer = DiscriminativeLearningRate(inner, "linear", 0.1, groups, name="mine")
    config = optimizer.get_config()
    again = DiscriminativeLearningRate.from_config(optimizer.get_config())
    assert again.get_config() == config
    assert isinstance(again.inner_optimizer.learning_rate, tf.Tensor)
    for keep in (keras.saving, optimizers):
        serialize = getattr(keep, "serialize_keras_object", None) or keep.serialize
        deserialize = getattr(keep, "deserialize_keras_object", None) or keep.deserialize
        again = deserialize(serialize(optimizer))
        assert again.get_config() == config
        assert list(again.groups) == ["top", "*"]  # in their order: the first counts


def saved_model(path, **kwargs):
    """A trained model whose paths are others once it is loaded."""
    optimizer = DiscriminativeLearningRate(optimizers.Adam(0.1), **kwargs)
    top = layers.Dense(2, name="top")
    model = keras.Sequential([keras.Input((4,)), stack("trunk"), top], name="whole")
    fit(compiled(optimizer, model), epochs=1)
    model.save(path)
    return model


def test_saves_and_loads(tmp_path):
    """Without the names of models in its paths, the loaded model has the same factors."""
    groups = {"trunk/*": 0.5, "bias": 2.0}
    model = saved_model(tmp_path / "model.keras", groups=groups, scheme=None)
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    old, new = model.optimizer, loaded.optimizer
    assert next(iter(old.factors)).startswith("trunk/low")
    assert list(new.factors.values()) == list(old.factors.values()) == [0.5] * 3 + [1, 2]
    assert new.groups == groups and int(new.iterations) == 3
    assert_close(values(new.variables), values(old.variables), rtol=0)
    for each in (model, loaded):
        each.train_on_batch(X, Y)
    assert_close(loaded.get_weights(), model.get_weights(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("scale", [False, True])
def test_weights_alone(scale, tmp_path):
    """As `BackupAndRestore` keeps them: a new model goes on as the old one does."""

    def make():
        optimizer = DiscriminativeLearningRate(optimizers.SGD(0.1, momentum=0.9), groups={"t*": 2})
        optimizer = optimizers.LossScaleOptimizer(optimizer) if scale else optimizer
        return compiled(optimizer, run_eagerly=True)

    models = make(), make()
    fit(models[0], epochs=1)
    models[0].save_weights(tmp_path / "all.weights.h5")
    models[1].optimizer.build(models[1].trainable_variables)
    models[1].load_weights(tmp_path / "all.weights.h5")
    assert_close(values(models[1].optimizer.variables), values(models[0].optimizer.variables))
    for model in models:
        fit(model, epochs=1)
    assert_close(models[1].get_weights(), models[0].get_weights(), rtol=0)


@pytest.mark.slow
def test_resumes_where_it_was(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise RuntimeError("interrupted")

    def make():
        keras.utils.set_random_seed(1)
        optimizer = DiscriminativeLearningRate(optimizers.Adam(0.1))
        return compiled(optimizer, run_eagerly=True)

    whole, part, rest = make(), make(), make()
    fit(whole)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(part, keras.callbacks.BackupAndRestore(tmp_path), Interrupt())
    fit(rest, keras.callbacks.BackupAndRestore(tmp_path))
    assert int(rest.optimizer.iterations) == 6
    assert_close(rest.get_weights(), whole.get_weights(), rtol=0)


LOAD = """
import sys, keras, tfuq.optimizers
model = keras.models.load_model(sys.argv[1], safe_mode=True)
print(int(model.optimizer.iterations), list(model.optimizer.factors.values()))
"""


@pytest.mark.slow
def test_loads_in_a_new_process(tmp_path):
    model = saved_model(tmp_path / "model.keras")
    done = processes.run(LOAD, tmp_path / "model.keras")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"3 {list(model.optimizer.factors.values())}"


@pytest.mark.slow
def test_fits_compiled_and_on_two_devices():
    weights = stack().get_weights()
    results = []
    for kind in ("plain", "compiled", "two devices"):
        strategy = two_devices() if kind == "two devices" else tf.distribute.get_strategy()
        with strategy.scope():
            optimizer = DiscriminativeLearningRate(optimizers.AdamW(0.1, weight_decay=0.1))
            jit_compile = {"plain": False, "compiled": True, "two devices": "auto"}[kind]
            model = compiled(optimizer, jit_compile=jit_compile)
        model.set_weights(weights)
        fit(model)
        results.append(model.get_weights())
    for found in results[1:]:
        assert_close(found, results[0], rtol=1e-3, atol=1e-4)


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("optimizer", (None, "adan", 3, {}, optimizers.Adam, {"class_name": "Dense"})),
        ("scheme", ("cosine", 1)),
        ("min_factor", (0, -0.1, 1.1, float("nan"), "1", None, True)),
        ("groups", ([("a", 1)], "a", {1: 1.0})),
    ],
)
def test_bad_arguments(name, wrong):
    for value in wrong:
        with pytest.raises(ValueError, match=rf"(?s)`{name}` must.*Received: {name}="):
            DiscriminativeLearningRate(**{"optimizer": "sgd", name: value})


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan"), None, "1"])
def test_bad_factors(factor):
    with pytest.raises(ValueError, match=r"`groups\['a'\]` must be a finite number above 0"):
        DiscriminativeLearningRate("sgd", groups={"a": factor})


def test_optimizers_of_optimizers():
    multi = optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(), {}))
    scaled = optimizers.LossScaleOptimizer(optimizers.SGD())
    for wrong in (multi, scaled, DiscriminativeLearningRate("sgd")):
        with pytest.raises(ValueError, match=r"`optimizer` must not wrap another optimizer"):
            DiscriminativeLearningRate(wrong)


def test_names_and_configurations():
    assert isinstance(DiscriminativeLearningRate("adamw").inner_optimizer, optimizers.AdamW)
    config = optimizers.serialize(optimizers.Adam(0.3))
    assert float(DiscriminativeLearningRate(config).learning_rate) == pytest.approx(0.3)
