"""The range test finds what the curve says, from exact losses, and leaves nothing behind."""

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import two_devices
from scipy.signal import lfilter

from tfuq.callbacks import SGDR, GradualUnfreezing, LRRangeTest, PosteriorSampling
from tfuq.callbacks._sweep_curve import exponential_sweep, is_diverged, read_sweep, smooth
from tfuq.callbacks.lr_sweep import lr_range_test
from tfuq.layers import MCDropout
from tfuq.optimizers import DiscriminativeLearningRate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 3)) + 1).astype("float32")
SWEEP = {"start": 1e-3, "stop": 0.1, "num_steps": 10, "batch_size": 8}  # more than four batches
EAGER = {"run_eagerly": True}
pytestmark = pytest.mark.filterwarnings("ignore:The range test ended")  # as most of these do
SGD = keras.optimizers.SGD


def model(optimizer="sgd", **kwargs):
    """It has all kinds of state: moving averages, seeds, metrics."""
    layers = [keras.layers.Dropout(0.2), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "tanh"), *layers])
    made.compile(optimizer, "mse", **{"jit_compile": False, "metrics": ["mae"], **kwargs})
    return made


def linear(optimizer="sgd", **kwargs):
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    made.compile(optimizer, "mse", **{"jit_compile": False, **kwargs})
    return made


def state(made):
    """All variables of model and optimizer, in each replica."""
    variables = (*made.variables, *made.optimizer.variables, *made.metrics_variables)
    parts = [part for v in variables for part in getattr(v.value, "values", (v.value,))]
    return [part.numpy() for part in parts]


def draws():
    """The next numbers of everything that draws at random."""
    return [
        random.random(),
        np.random.rand(),  # noqa: NPY002
        float(tf.random.uniform(())),
        float(keras.random.uniform(())),
        float(tf.random.get_global_generator().uniform(())),
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# --- The curve and what it says ---------------------------------------------------------------


def test_sweep_is_a_geometric_series():
    found = exponential_sweep(np.arange(100), 1e-7, 10.0, 100)
    np.testing.assert_allclose(found, np.geomspace(1e-7, 10, 100))


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.9, 0.98])
def test_moving_average(smoothing):
    losses = RNG.normal(size=50)
    average = lfilter([1 - smoothing], [1, -smoothing], losses)
    corrected = average / (1 - smoothing ** np.arange(1, 51))
    np.testing.assert_allclose(smooth(losses, smoothing), corrected)


@pytest.mark.parametrize(
    "losses, expected",
    [
        ([2.0, 1.0, 3.9], False),
        ([2.0, 1.0, 4.1], True),
        ([2.0], False),
        ([-1.0, -2.0, 3.9], False),  # 4 times the lowest is lower still
        ([-1.0, -2.0, 4.1], True),
    ],
)
def test_diverged(losses, expected):
    assert is_diverged(np.array(losses), 4.0) is expected


def test_reads_a_known_curve():
    """A logistic fall around 1e-2 and, two decades on, a rise: the slope is steepest at 1e-2."""
    rates = np.geomspace(1e-6, 10, 701)
    decades = np.log10(rates)
    losses = 1 / (1 + np.exp(4 * (decades + 2))) + 0.1 * np.maximum(0, decades) ** 2
    found = read_sweep(rates, losses, smoothing=0.0, diverged=False)
    assert found.steepest == pytest.approx(1e-2, rel=0.02)
    assert found.minimum == rates[np.argmin(losses)]
    assert found.suggestion == found.minimum_over_10 == found.minimum / 10
    assert np.prod(found.bracket) == pytest.approx(found.minimum**2)
    assert found.bracket[1] / found.bracket[0] == pytest.approx(10)
    np.testing.assert_array_equal(found.smoothed_losses, losses)


def test_steepest_descent_where_there_is_none():
    rates = np.geomspace(1e-3, 1, 20)
    rising = read_sweep(rates, np.linspace(1, 2, 20), smoothing=0.0, diverged=True)
    assert rising.steepest is None
    assert rising.minimum == rates[0]
    # Nor is it looked for in the first tenth, or behind the minimum.
    losses = np.array([9, 5, 4, 3.9, 3, 2, 1, 8, 5, 5] + [5.0] * 10)
    found = read_sweep(rates, losses, smoothing=0.0, diverged=False)
    assert found.steepest in rates[2:7]


# --- Losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [None, 2])
def test_losses_are_those_of_single_steps(accumulated):
    """Against gradients by hand; batches 9 and 10 are the first two again, of the third epoch."""
    made = linear(SGD(1.0, gradient_accumulation_steps=accumulated), **EAGER)
    weights = [w.astype("float64") for w in made.get_weights()]
    found = lr_range_test(made, (X, Y), shuffle=False, **SWEEP)
    rates = np.geomspace(1e-3, 0.1, 10)
    np.testing.assert_allclose(found.learning_rates, rates)
    size = 8 * (accumulated or 1)
    for step in range(10):
        rows = np.arange(step * size, (step + 1) * size) % 32
        error = X[rows] @ weights[0] + weights[1] - Y[rows]
        np.testing.assert_allclose(found.losses[step], np.mean(error**2), rtol=1e-5)
        gradients = X[rows].T @ error, error.sum(0)
        scale = rates[step] * 2 / error.size
        weights = [w - scale * g for w, g in zip(weights, gradients, strict=True)]
    np.testing.assert_allclose(found.smoothed_losses, smooth(found.losses, 0.9))


@pytest.mark.slow
def test_stops_when_it_diverges():
    found = lr_range_test(linear(**EAGER), (X, Y), 1e-3, 1e6, 60, stop_factor=3.0)
    assert found.diverged and len(found.losses) < 60
    smoothed = found.smoothed_losses
    assert smoothed[-1] > 3 * smoothed.min() and smoothed[-2] <= 3 * smoothed[:-1].min()
    beyond = lr_range_test(linear(**EAGER), (X, Y), 1e-3, 1e30, 60, stop_factor=None)
    assert beyond.diverged and 5 <= len(beyond.losses) < 60
    assert np.isfinite(beyond.losses).all()
    assert beyond.smoothed_losses.max() > 4 * beyond.smoothed_losses.min()


def test_seed_says_the_order():
    made = linear(**EAGER)
    first, again, other = (lr_range_test(made, (X, Y), seed=s, **SWEEP) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.losses, again.losses)
    assert np.all(first.losses != other.losses)


class Batches(keras.utils.PyDataset):
    """Counts what it is told of epochs."""

    def __init__(self, num_batches=4):
        super().__init__()
        self.count, self.told = num_batches, 0

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        rows = slice(index % 4 * 8, index % 4 * 8 + 8)
        return X[rows], Y[rows]

    def on_epoch_begin(self):
        self.told += 1

    on_epoch_end = on_epoch_begin


@pytest.mark.slow
def test_kinds_of_data_say_the_same():
    made = linear(**EAGER)
    expected = lr_range_test(made, (X, Y), shuffle=False, **SWEEP).losses
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    finite, infinite = Batches(), Batches(None)
    weighted = (X, Y, np.ones(32, "float32"))
    unknown = dataset.filter(lambda x, y: True)
    for data in (weighted, dataset, unknown, dataset.repeat(), finite, infinite):
        found = lr_range_test(made, data, shuffle=False, **SWEEP)
        np.testing.assert_array_equal(found.losses, expected)
    assert finite.told == infinite.told == 0


def test_class_weights():
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile("sgd", loss, **EAGER)
    labels = np.arange(32) % 3
    weights = np.array([1.0, 2.0, 0.5], "float32")
    by_class = lr_range_test(
        made, (X, labels), class_weight=dict(enumerate(weights)), shuffle=False, **SWEEP
    )
    by_example = lr_range_test(made, (X, labels, weights[labels]), shuffle=False, **SWEEP)
    np.testing.assert_allclose(by_class.losses, by_example.losses, rtol=1e-6)


# --- Everything is put back -------------------------------------------------------------------

OPTIMIZERS = {
    "momentum": (lambda: SGD(0.05, momentum=0.9), EAGER),
    "executions": (lambda: keras.optimizers.Adam(0.05), {"steps_per_execution": 3}),
    "accumulated": (lambda: SGD(0.05, gradient_accumulation_steps=3), EAGER),
    "average": (lambda: SGD(0.05, use_ema=True), EAGER),
    "layer-wise": (lambda: DiscriminativeLearningRate(keras.optimizers.AdamW(0.05)), EAGER),
    # Gradients overflow at first: steps are skipped, the scale is halved.
    "scaled": (lambda: keras.optimizers.LossScaleOptimizer(SGD(0.05), 2.0**127), EAGER),
}


@pytest.mark.slow_cases("layer-wise-True")
@pytest.mark.slow_cases("accumulated*", "average*", "executions*", "scaled*", "momentum-False")
@pytest.mark.parametrize(
    "kind, trained", [*((kind, True) for kind in OPTIMIZERS), ("momentum", False)]
)
def test_everything_is_put_back(kind, trained):
    optimizer, options = OPTIMIZERS[kind]
    made = model(optimizer(), **options)
    if trained:
        made.fit(X, Y, epochs=1, batch_size=8, verbose=0)
    made.optimizer.build(made.trainable_variables)
    made.evaluate(X, Y, verbose=0)
    made.stop_training = "as it was"
    attributes = dict(vars(made))
    tf.random.get_global_generator().reset_from_seed(3)
    keras.utils.set_random_seed(4)
    keras.random.uniform(())
    before = state(made)
    found = lr_range_test(made, (X, Y), seed=4, **SWEEP)
    assert len(found.losses) == 10
    assert_same(state(made), before)
    assert vars(made).keys() == attributes.keys()
    for name in ("train_function", "stop_training", "steps_per_execution", "history"):
        assert vars(made).get(name) is attributes.get(name), name
    drawn = draws()
    tf.random.get_global_generator().reset_from_seed(3)
    keras.utils.set_random_seed(4)
    keras.random.uniform(())
    assert drawn == draws()


@pytest.mark.slow
def test_random_sequences_go_on_where_they_were():
    made, found = linear(**EAGER), []
    for test in (False, True):
        tf.random.get_global_generator().reset_from_seed(3)
        keras.utils.set_random_seed(5)
        first = draws()
        if test:
            made.fit(X, Y, 8, 9, callbacks=[LRRangeTest(1e-3, 0.1, 10)], shuffle=False, verbose=0)
            lr_range_test(made, (X, Y), **SWEEP)
        found.append([first, draws()])
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_everything_is_put_back_with_xla(policy):
    keras.config.set_dtype_policy(policy)
    made = model(keras.optimizers.Adam(0.05), jit_compile=True)
    made.fit(X, Y, batch_size=8, verbose=0)
    before = state(made)
    function = made.train_function
    found = lr_range_test(made, (X, Y), **SWEEP)
    assert len(found.losses) == 10
    assert_same(state(made), before)
    assert made.train_function is function


def test_optimizer_that_was_not_built_is_as_new():
    made, twin = model(keras.optimizers.Adam(0.05), **EAGER), model("adam", **EAGER)
    lr_range_test(made, (X, Y), **SWEEP)
    twin.optimizer.build(twin.trainable_variables)
    twin.optimizer.learning_rate = 0.05
    for one, other in zip(made.optimizer.variables, twin.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_training_after_it_is_that_without_it():
    trained = []
    for test in (False, True):
        keras.utils.set_random_seed(1)
        made = model(SGD(0.05, momentum=0.9))
        if test:
            lr_range_test(made, (X, Y), **SWEEP)
        made.fit(X, Y, batch_size=8, epochs=2, verbose=0)
        trained.append(made.get_weights())
    assert_same(*trained)


@pytest.mark.slow
def test_several_devices():
    with two_devices().scope():
        mirrored = linear(SGD(0.05, momentum=0.9))
    single = linear(SGD(0.05, momentum=0.9), **EAGER)
    mirrored.fit(X, Y, 8, verbose=0)
    single.set_weights(mirrored.get_weights())
    before = state(mirrored)
    found = lr_range_test(mirrored, (X, Y), shuffle=False, **SWEEP)
    assert_same(state(mirrored), before)
    single.optimizer.build(single.trainable_variables)
    for one, other in zip(single.optimizer.variables, mirrored.optimizer.variables, strict=True):
        one.assign(keras.ops.convert_to_numpy(other))
    expected = lr_range_test(single, (X, Y), shuffle=False, **SWEEP)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


class Breaks(keras.losses.Loss):
    """Raises at the n-th batch."""

    def __init__(self, number, error):
        super().__init__()
        self.left, self.error = number, error

    def call(self, y_true, y_pred):
        self.left -= 1
        if not self.left:
            raise self.error
        return tf.reduce_mean((y_true - y_pred) ** 2, axis=-1)


@pytest.mark.parametrize(
    "error, as_callback", [(KeyboardInterrupt(), False), (RuntimeError("broken"), True)]
)
def test_interruptions_leave_nothing(error, as_callback):
    """In the second epoch of the test."""
    made = model(SGD(0.05, momentum=0.9), **EAGER)
    made.compile(made.optimizer, Breaks(7, error), **EAGER)
    made.optimizer.build(made.trainable_variables)
    made.reset_metrics()
    before = state(made)
    np_state = np.random.get_state()[1]  # noqa: NPY002
    with pytest.raises(type(error)):
        if as_callback:
            made.fit(X, Y, 8, epochs=5, callbacks=[LRRangeTest(1e-3, 0.1, 10)], verbose=0)
        else:
            lr_range_test(made, (X, Y), **SWEEP)
    assert_same(state(made)[: len(before)], before)
    np.testing.assert_array_equal(np.random.get_state()[1], np_state)  # noqa: NPY002
    made.fit(X, Y, 8, verbose=0)  # trains again
    assert made.optimizer.iterations == 4


# --- In fit -----------------------------------------------------------------------------------


class Watch(keras.callbacks.Callback):
    """Looks at the weights whenever `fit` calls, and may raise at the end of an epoch."""

    def __init__(self, raises=False):
        super().__init__()
        self.seen, self.raises = [], raises

    def look(self, *_, **__):
        self.seen.append([w.copy() for w in self.model.get_weights()])

    on_train_batch_begin = on_train_batch_end = on_epoch_begin = on_train_end = look

    def on_epoch_end(self, epoch, logs=None):
        self.look()
        if self.raises:
            raise RuntimeError("elsewhere")


@pytest.mark.slow_cases("average")
@pytest.mark.slow_cases("executions")
@pytest.mark.parametrize(
    "optimizer, options",
    [(SGD(0.5, use_ema=True), EAGER), ("adam", {"steps_per_execution": 3})],
    ids=["average", "executions"],
)
def test_callback_in_fit(optimizer, options):
    made, watch = model(optimizer, **options), Watch()
    weights, rate = made.get_weights(), float(made.optimizer.learning_rate)
    test = LRRangeTest(1e-3, 0.1, 10)
    history = made.fit(
        X, Y, 8, epochs=9, validation_data=(X, Y), callbacks=[watch, test, watch], verbose=0
    ).history
    assert len(history["loss"]) == 3 and made.stop_training
    assert history["loss"][-1] == pytest.approx(test.result.losses[-1])
    np.testing.assert_allclose(test.result.learning_rates, np.geomspace(1e-3, 0.1, 10))
    for seen in watch.seen[:-2]:  # `fit` itself puts averages in place of weights, at the end
        assert_same(seen, weights)
    assert_same(made.get_weights(), weights)
    assert made.optimizer.iterations == 0 and float(made.optimizer.learning_rate) == rate
    made.fit(X, Y, 8, verbose=0)
    assert made.optimizer.iterations == 4


def test_callback_beside_one_that_fails():
    made = model(**EAGER)
    weights = made.get_weights()
    with pytest.raises(RuntimeError, match="elsewhere"):
        made.fit(X, Y, 8, 5, callbacks=[LRRangeTest(1e-3, 0.1, 10), Watch(True)], verbose=0)
    assert_same(made.get_weights(), weights)
    assert made.optimizer.iterations == 0


def test_callback_beside_one_that_fails_before_a_batch():
    made, failing = linear(**EAGER), Watch()
    failing.on_train_batch_begin = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        made.fit(X, Y, 8, 5, callbacks=[LRRangeTest(1e-3, 0.1, 10), failing], verbose=0)
    weights = made.get_weights()
    made.fit(X, Y, 8, verbose=0)
    assert made.optimizer.iterations == 4
    assert np.any(made.get_weights()[0] != weights[0])


@pytest.mark.slow
def test_callback_with_others_that_change_the_step():
    layers = [keras.layers.Dense(5, name="low"), MCDropout(0.5), keras.layers.Dense(3)]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile("sgd", "mse", jit_compile=False)
    weights, test = made.get_weights(), LRRangeTest(1e-3, 0.1, 8)
    others = [GradualUnfreezing("low", num_stages=1), PosteriorSampling(2)]
    made.fit(X, Y, 4, epochs=1, callbacks=[others[0], test, others[1]], verbose=0)
    assert len(test.result.losses) == 8
    assert_same(made.get_weights(), weights)
    made.fit(X, Y, 8, verbose=0)
    assert np.any(made.get_weights()[0] != weights[0])


def test_shows_its_progress(capsys):
    lr_range_test(linear(**EAGER), (X, Y), verbose=1, **SWEEP)
    assert "10/10" in capsys.readouterr().out
    lr_range_test(linear(**EAGER), (X, Y), **SWEEP)
    assert capsys.readouterr().out == ""


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values",
    [
        ("start", (0, -1.0, float("nan"), float("inf"), "1", None, True)),
        ("stop", (0, 1e-8, 1e-7, float("inf"), "1", None)),
        ("num_steps", (0, 4, 10.5, "10", None, True)),
        ("smoothing", (-0.1, 1, 1.5, float("nan"), "0.9", None)),
        ("stop_factor", (1, 0.5, -2, float("nan"), "4")),
        ("verbose", ("auto", 3, None)),
        ("batch_size", (0, 2.5, "8", None)),
        ("seed", (-1, 0.5, None)),
    ],
)
def test_bad_arguments(name, values):
    made = linear()
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` must.*Received: {name}="):
            lr_range_test(made, (X, Y), **{name: value})


def refused(name, made, data=(X, Y), **options):
    with pytest.raises(ValueError, match=rf"(?s)Argument `{name}`.* must.*Received"):
        lr_range_test(made, data, **{**SWEEP, **options})


def test_bad_data():
    made = linear(**EAGER)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    for data in (iter([(X, Y)]), (batch for batch in dataset), X, None, "x", (), iter(dataset)):
        refused("data", made, data)
    for data in ((X[:0], Y[:0]), dataset.take(0), Batches(0)):
        refused("data", made, data)
    with pytest.raises(ValueError, match="can be read once only"):
        lr_range_test(made, (batch for batch in dataset))


def test_bad_models():
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    unbuilt.compile("sgd", "mse")
    refused("model", unbuilt)
    refused("model", keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
    refused("model", "model")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    refused("optimizer", linear(SGD(schedule)))
    refused("optimizer", linear(keras.optimizers.LossScaleOptimizer(SGD(schedule))))


def test_loss_that_is_nan_or_grows_at_once():
    made = model(SGD(0.05, momentum=0.9), **EAGER)
    made.optimizer.build(made.trainable_variables)
    made.evaluate(X, Y, verbose=0)
    before = state(made)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"`model` must have a finite loss.*Received: loss="):
            lr_range_test(made, (X, np.full_like(Y, value)), **SWEEP)
    with pytest.raises(ValueError, match=r"`start` must be lower.*Received: start=1000000"):
        lr_range_test(made, (X, Y), 1e6, 1e9, 10)
    assert_same(state(made), before)


def test_training_that_is_too_short_or_not_its_own():
    made, test = linear(**EAGER), LRRangeTest(1e-3, 0.1, 10)
    with pytest.raises(ValueError, match=r"`epochs` of `fit` must make 10 batches.*Received: 4"):
        made.fit(X, Y, 8, epochs=2, callbacks=[test], verbose=0)
    weights = made.get_weights()
    with pytest.raises(ValueError, match=r"`epochs` of `fit` must make 10 batches.*Received: 4"):
        made.fit(X, Y, 8, epochs=3, initial_epoch=2, callbacks=[test], verbose=0)
    with pytest.raises(ValueError, match=r"`callbacks` of `fit` must hold no other.*Received"):
        made.fit(X, Y, 8, epochs=3, callbacks=[test, SGDR(0.1)], verbose=0)
    assert_same(made.get_weights(), weights)
    assert test.result is None


class NoLoss(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        return {"score": tf.constant(1.0)}


def test_training_steps_that_do_not_say_their_loss():
    made = NoLoss()
    made(X)
    made.compile("sgd", "mse", **EAGER)
    refused("model", made)


# --- Beside others, at its end, and on the validation loss --------------------------------------


class Ends(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_a_training_that_another_callback_ends_is_told():
    """Before, the message asked for more epochs."""
    stopping = keras.callbacks.EarlyStopping("loss", mode="max", patience=1)
    for other in (stopping, Ends()):
        made = linear()
        start = state(made)[:2]
        with pytest.raises(ValueError, match="no callback that ends the training before"):
            test = LRRangeTest(1e-5, 1e-3, num_steps=20)
            made.fit(X, Y, 8, epochs=9, callbacks=[test, other], shuffle=False, verbose=0)
        for one, other_state in zip(start, state(made)[:2], strict=True):
            np.testing.assert_array_equal(one, other_state)


def test_two_range_tests_are_refused():
    tests = [LRRangeTest(num_steps=5), LRRangeTest(num_steps=5)]
    with pytest.raises(ValueError, match="must hold one LRRangeTest: each takes"):
        linear().fit(X, Y, 8, epochs=9, callbacks=tests, verbose=0)


@pytest.mark.slow
def test_a_sweep_that_ends_too_soon_says_so():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = lr_range_test(linear(), (X, Y), 1e-3, 0.01, 20, batch_size=32)
    assert any("ended at stop=0.01 before the loss grew" in str(each.message) for each in told)
    assert found.is_open and not found.diverged
    assert not lr_range_test(linear(), (X, Y), 1e-3, 1e4, 40, batch_size=32).is_open


def test_curve_of_the_validation_loss():
    """The loss of all validation data after each step, by hand; nothing is left of it."""
    made, byhand = linear(), linear(SGD(0.0))
    byhand.set_weights(made.get_weights())
    validation = (X[:12] + 1, Y[:12])
    options = {"smoothing": 0.5, "batch_size": 8, "shuffle": False}
    made.predict(X, verbose=0)
    before = made.evaluate(*validation, verbose=0)
    found = lr_range_test(made, (X, Y), 1e-3, 3.0, 12, validation_data=validation, **options)
    for step, (rate, loss) in enumerate(zip(found.learning_rates, found.losses, strict=True)):
        byhand.optimizer.learning_rate = rate
        rows = slice(8 * (step % 4), 8 * (step % 4) + 8)
        byhand.train_on_batch(X[rows], Y[rows])
        np.testing.assert_allclose(loss, byhand.evaluate(*validation, verbose=0), rtol=1e-4)
    assert made.evaluate(*validation, verbose=0) == before
    with pytest.raises(ValueError, match="Argument `validation_data` must"):
        LRRangeTest(validation_data=X)
