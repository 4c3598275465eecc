"""SGDR: the curve is the formula's at every step, whatever runs the steps or resumes them."""

import math
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import two_devices

from tfuq._models import train_step
from tfuq.callbacks import SGDR, GradualUnfreezing, PosteriorSampling
from tfuq.callbacks.schedules import cycle_at, sgdr
from tfuq.layers import DenseVariational
from tfuq.optimizers import DiscriminativeLearningRate

STEPS = 5  # an epoch
ONES = np.ones((4 * STEPS, 1), "float32")
SHAPE = {"cycle_length": 0.7, "cycle_mult": 1.5, "cycle_decay": 0.8, "warmup": 0.5}


class MeanOutput(keras.losses.Loss):
    """On inputs of 1 the gradient of a kernel is 1: each step moves it by the learning rate."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean(y_pred, axis=-1)


class Probe(keras.callbacks.Callback):
    """Notes the optimizer's rate after each batch, and the count of steps."""

    def __init__(self, stop=None):
        super().__init__()
        self.rates, self.steps, self.stop = [], [], stop

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.rates.append(keras.ops.convert_to_numpy(optimizer.learning_rate))
        self.steps.append(int(keras.ops.convert_to_numpy(optimizer.iterations)))
        if self.stop is not None and len(self.steps) == self.stop:
            raise RuntimeError("interrupted")


def model(optimizer=None, **kwargs):
    layers = [keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
    made = keras.Sequential([keras.Input((1,)), *layers])
    kwargs = {"jit_compile": False, **kwargs}
    made.compile(optimizer or keras.optimizers.SGD(7.0), MeanOutput(), **kwargs)
    return made


def fit(made, *callbacks, **kwargs):
    kwargs = {"epochs": 4, "batch_size": 4, "verbose": 0, **kwargs}
    return made.fit(ONES, ONES, callbacks=list(callbacks), **kwargs).history


def expected_rates(steps, per_epoch=STEPS, top=0.3, bottom=0.03):
    lengths = {name: SHAPE[name] * per_epoch for name in ("cycle_length", "warmup")}
    factors = {name: SHAPE[name] for name in ("cycle_mult", "cycle_decay")}
    return sgdr(np.arange(steps), top, bottom, **lengths, **factors)


def walked(rates):
    """Where a weight of 1 is after steps of these rates, to the bit."""
    weight = np.float32(1)
    for rate in rates.astype("float32"):
        weight = weight - rate
    return weight


# --- The formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("mult, decay, length", [(1, 1, 7), (1, 0.9, 5), (2, 0.8, 5), (1.5, 1, 4)])
def test_is_that_of_keras(mult, decay, length):
    """Keras takes its factors from float32, even where it computes in float64."""
    steps = np.arange(1000)
    schedule = keras.optimizers.schedules.CosineDecayRestarts(
        np.float64(0.3), length, t_mul=mult, m_mul=decay, alpha=0.1
    )
    expected = schedule(steps.astype("float64"))
    found = sgdr(steps, 0.3, 0.03, length, mult, decay)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_warmup_is_that_of_keras():
    schedule = keras.optimizers.schedules.CosineDecay(
        np.float64(0.03), 50, alpha=0.0, warmup_target=0.3, warmup_steps=8
    )
    expected = [float(schedule(np.float64(step))) for step in range(50)]
    rates = sgdr(np.arange(50), 0.3, 0.0, cycle_length=50, warmup=8)
    np.testing.assert_allclose(rates[8:], expected[8:], rtol=2e-6)
    rises = sgdr(np.arange(9), 0.3, 0.03, cycle_length=50, warmup=8)
    np.testing.assert_allclose(rises, expected[:9], rtol=2e-6)


def exact(step, length, mult, warmup=0):
    """Cycle and fraction of it in rational numbers."""
    begin, cycle = Fraction(warmup), 0
    while step >= begin + length:
        begin, length, cycle = begin + length, length * mult, cycle + 1
    return cycle, max(0.0, float((step - begin) / length))


@pytest.mark.parametrize("mult", ["1", "1.1", "1.5", "2", "3"])
@pytest.mark.parametrize("length, warmup", [("1.1", "0"), ("0.1", "0.7"), ("2.3", "1.1")])
def test_cycles_of_fractions_of_an_epoch(length, warmup, mult):
    """Against rational numbers: 1.1 epochs of 10 steps are 11 steps, not 11.000000000000002."""
    found = cycle_at(np.arange(500), float(length) * 10, float(mult), float(warmup) * 10)
    lengths = Fraction(length) * 10, Fraction(mult), Fraction(warmup) * 10
    for step, cycle, over in zip(range(500), *found, strict=True):
        assert (cycle, pytest.approx(over, abs=1e-9)) == exact(step, *lengths)


def test_last_and_first_step_of_a_cycle():
    np.testing.assert_allclose(sgdr([10, 11, 22], 1.0, cycle_length=1.1 * 10)[1:], 1.0)
    assert sgdr(10, 1.0, cycle_length=11) == pytest.approx((1 + math.cos(math.pi * 10 / 11)) / 2)
    found = sgdr([3, 4, 12, 13], 1.0, 0.2, cycle_length=4, cycle_mult=2, cycle_decay=0.5)
    wave = [(1 + math.cos(math.pi * part)) / 2 for part in (3 / 4, 0, 0, 1 / 16)]
    np.testing.assert_allclose(found, 0.2 + 0.8 * np.array([1, 0.5, 0.25, 0.25]) * wave)


def test_boundaries_far_out():
    whole, broken = 10**9, 11 * 10**8
    for length, boundary in ((1000, whole), (1.1 * 10, broken), (0.1 * 30, 3 * 10**8)):
        cycle, over = cycle_at([boundary - 1, boundary, boundary + 1], length)
        np.testing.assert_array_equal(cycle - cycle[1], [-1, 0, 0])
        np.testing.assert_allclose(over, [1 - 1 / length, 0, 1 / length], atol=1e-6)
    cycle, over = cycle_at([2**30 - 2, 2**30 - 1, 2**30], 1, 2)
    np.testing.assert_array_equal(cycle, [29, 30, 30])
    np.testing.assert_allclose(over, [1 - 2.0**-29, 0, 2.0**-30], atol=1e-11)


def test_alone_and_among_others_it_is_the_same():
    lone = [sgdr(step, 0.3, 0.03, 3.5, 1.5, 0.8, 2.5) for step in range(200)]
    np.testing.assert_array_equal(np.float32(lone), np.float32(expected_rates(200)))


# --- In training ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"steps_per_execution": 3}, {"run_eagerly": True}, {"jit_compile": True}],
    ids=["graph", "executions", "eager", "xla"],
)
def test_same_curve_to_the_bit(options):
    made, schedule = model(**options), SGDR(0.3, 0.03, **SHAPE)
    history = fit(made, schedule)
    rates = expected_rates(4 * STEPS)
    assert made.get_weights()[0].item() == walked(rates)
    np.testing.assert_array_equal(schedule.learning_rates, rates)
    np.testing.assert_array_equal(schedule.steps, np.arange(4 * STEPS))
    last = rates[STEPS - 1 :: STEPS].astype("float32")
    np.testing.assert_array_equal(history["learning_rate"], last.astype(float))
    assert float(made.optimizer.learning_rate) == last[-1]


def test_long_epochs_and_executions_take_further_tables(monkeypatch):
    monkeypatch.setattr("tfuq.callbacks.schedules.TABLE", 2)
    made, schedule = model(run_eagerly=True), SGDR(0.3, 0.03, **SHAPE)
    fit(made, schedule)
    assert made.get_weights()[0].item() == walked(expected_rates(4 * STEPS))


@pytest.mark.slow
def test_several_devices():
    with two_devices().scope():
        made = model()
    history = fit(made, SGDR(0.3, 0.03, **SHAPE))
    rates = expected_rates(4 * STEPS)
    assert made.get_weights()[0].item() == walked(rates)
    assert history["learning_rate"][0] == np.float32(rates[STEPS - 1])


def test_accumulated_gradients_count_as_one_step():
    """Epochs have 2.5 steps: every second batch is one."""
    probe = Probe()
    made = model(keras.optimizers.SGD(7.0, gradient_accumulation_steps=2), run_eagerly=True)
    schedule = SGDR(0.3, 0.03, **SHAPE)
    fit(made, schedule, probe)
    rates = expected_rates(10, per_epoch=2.5)
    np.testing.assert_array_equal(probe.rates, np.repeat(rates, 2).astype("float32"))
    np.testing.assert_array_equal(schedule.learning_rates, rates)
    assert made.get_weights()[0].item() == walked(rates)


def test_loss_scale_and_layer_wise_rates():
    """A step that is skipped leaves the curve where it is: the gradient of 4 overflows twice."""
    inner = DiscriminativeLearningRate(keras.optimizers.SGD(7.0), groups={"*kernel": 0.5})
    scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**127)
    made, probe = model(scaled, run_eagerly=True, loss_weights=4.0), Probe()
    fit(made, SGDR(0.3, 0.03, **SHAPE), probe)
    assert probe.steps.count(0) == 2
    rates = expected_rates(4 * STEPS - 2)
    np.testing.assert_array_equal(probe.rates[2:], rates.astype("float32"))
    assert made.get_weights()[0].item() == walked(4 * rates / 2)


@pytest.mark.slow
def test_with_other_callbacks_that_change_the_step():
    layers = [keras.layers.Dense(3), DenseVariational(3, kl_weight=0.01)]
    made = keras.Sequential([keras.Input((1,)), *layers])
    made.compile(keras.optimizers.SGD(7.0), MeanOutput(), jit_compile=False)
    probe = Probe()
    others = [GradualUnfreezing(num_stages=1, epochs_per_stage=1), PosteriorSampling(2)]
    before = made.layers[0].get_weights()
    history = fit(made, others[0], SGDR(0.3, 0.03, **SHAPE), others[1], probe, epochs=2)
    rates = expected_rates(2 * STEPS).astype("float32")
    np.testing.assert_array_equal(probe.rates, rates)
    assert history["unfreezing_stage"] == [0, 1]
    assert np.any(made.layers[0].get_weights()[0] != before[0])
    probe.rates.clear()
    fit(made, probe, epochs=1)  # and nothing is left of it
    np.testing.assert_array_equal(probe.rates, rates[-1])


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("backup_first", [True, False])
def test_resumes_where_it_was(backup_first, tmp_path):
    """In a new model, as after the end of the process; the callbacks stand in any order."""
    parts = []
    for stop in (2 * STEPS + 2, None):
        made, probe = model(run_eagerly=True), Probe(stop)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=1)
        schedule = SGDR(0.3, 0.03, **SHAPE)
        pair = (backup, schedule) if backup_first else (schedule, backup)
        try:
            fit(made, *pair, probe)
        except RuntimeError:
            assert stop
        parts.append(probe)
    # Keras repeats the epoch that was broken off, with the steps that the optimizer had taken.
    rates = expected_rates(2 * STEPS + 2 + 2 * STEPS)
    np.testing.assert_array_equal(parts[0].rates + parts[1].rates, rates.astype("float32"))
    assert made.get_weights()[0].item() == walked(rates)
    np.testing.assert_array_equal(schedule.steps, np.arange(2 * STEPS + 2, 4 * STEPS + 2))


def test_a_second_fit_goes_on():
    made, schedule = model(run_eagerly=True), SGDR(0.3, 0.03, **SHAPE)
    fit(made, schedule, epochs=2)
    fit(made, schedule, initial_epoch=2)
    rates = expected_rates(4 * STEPS)
    assert made.get_weights()[0].item() == walked(rates)
    np.testing.assert_array_equal(schedule.learning_rates, rates[2 * STEPS :])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_length_that_is_not_known():
    data = tf.data.Dataset.from_tensor_slices((ONES, ONES)).batch(4)
    unknown = data.filter(lambda x, y: True)
    with pytest.raises(ValueError, match=r"`steps_per_epoch` must be given.*Received"):
        model(run_eagerly=True).fit(unknown, callbacks=[SGDR(0.3)], shuffle=False, verbose=0)
    made = model(run_eagerly=True)
    schedule = SGDR(0.3, 0.03, steps_per_epoch=STEPS, **SHAPE)
    made.fit(unknown, epochs=2, callbacks=[schedule], shuffle=False, verbose=0)
    assert made.get_weights()[0].item() == walked(expected_rates(2 * STEPS))


def test_says_where_cycles_end():
    counts = []

    class Listener(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            counts.append(
                train_step.completed_cycles(self.model, self)(self.model.optimizer.iterations)
            )

    made = model(run_eagerly=True)
    schedule = SGDR(0.3, cycle_length=0.6, cycle_mult=2, warmup=0.2)
    fit(made, schedule, Listener())
    ends = np.array([4, 10])  # a step of warm-up, then 3, 6 and 12 steps
    expected = np.searchsorted(ends, np.arange(1, 4 * STEPS + 1), side="right")
    np.testing.assert_array_equal(counts, expected)
    assert all(isinstance(count, int) for count in counts)
    told = [schedule.completed_cycles(step) for step in range(1, 4 * STEPS + 1)]
    assert told == counts
    np.testing.assert_array_equal(schedule.completed_cycles(np.arange(1, 21)), counts)
    assert train_step.completed_cycles(made, schedule) is None


def test_announcement_does_not_keep_the_model():
    """After an interruption it stands, for no other `fit`, and must not hold what it stands for."""
    made, schedule = model(run_eagerly=True), SGDR(0.3)
    with pytest.raises(RuntimeError):
        fit(made, schedule, Probe(stop=1))
    announced = train_step.completed_cycles(made, schedule)
    other = keras.callbacks.Callback()
    other.set_params({"epochs": 1})
    assert train_step.completed_cycles(made, other) is None
    assert announced(2 * STEPS) == 2
    kept = [announced.func, *announced.args, *announced.keywords.values()]
    assert all(callable(thing) or isinstance(thing, (int, float)) for thing in kept)
    assert not any(hasattr(thing, "__self__") for thing in kept if callable(thing))


def test_prints_when_cycles_begin(capsys):
    fit(model(run_eagerly=True), SGDR(0.3, cycle_mult=2, warmup=0.2, verbose=1))
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        "Epoch 1: SGDR begins cycle 1 (epochs: 1) at a learning rate of 0.3",
        "Epoch 2: SGDR begins cycle 2 (epochs: 2) at a learning rate of 0.3",
        "Epoch 4: SGDR begins cycle 3 (epochs: 4) at a learning rate of 0.3",
    ]


def test_questions_before_training():
    schedule = SGDR(0.3, 0.03, steps_per_epoch=STEPS, **SHAPE)
    np.testing.assert_array_equal(schedule.learning_rate_at(np.arange(20)), expected_rates(20))
    assert schedule.learning_rates.size == schedule.steps.size == 0
    with pytest.raises(ValueError, match=r"`steps_per_epoch` must be given.*Received"):
        SGDR(0.3).learning_rate_at(0)


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values",
    [
        ("max_learning_rate", (0, -0.1, float("nan"), float("inf"), "0.1", None, True)),
        ("min_learning_rate", (-0.1, 0.2, float("nan"), "0", None)),
        ("cycle_length", (0, -1, float("inf"), "1", None, True)),
        ("cycle_mult", (0.9, 0, -2, float("nan"), float("inf"), "2")),
        ("cycle_decay", (0, -0.5, 1.1, float("nan"), "1", None)),
        ("warmup", (-0.1, float("inf"), "1", None)),
        ("steps_per_epoch", (0, 2.5, "5", True)),
    ],
)
def test_bad_arguments(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` must.*Received: {name}="):
            SGDR(**{"max_learning_rate": 0.1, name: value})


def test_optimizers_with_a_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    scheduled = keras.optimizers.SGD(schedule)
    for optimizer in (scheduled, keras.optimizers.LossScaleOptimizer(scheduled)):
        with pytest.raises(ValueError, match=r"`optimizer` of `compile` must.*number.*Received"):
            fit(model(optimizer, run_eagerly=True), SGDR(0.1))


def test_epochs_without_steps():
    made = model(run_eagerly=True)
    empty = tf.data.Dataset.from_tensor_slices((ONES[:0], ONES[:0])).batch(4)
    with pytest.raises(ValueError, match=r"`x` of `fit` must hold at least one batch.*Received"):
        made.fit(empty, callbacks=[SGDR(0.1)], shuffle=False, verbose=0)


def test_two_schedules_in_one_fit_are_refused():
    """The second had the last word, and `logs` the rate of neither."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.ones((4, 2))
    with pytest.raises(ValueError, match="must hold one SGDR: a step has one learning rate"):
        model.fit(x, x[:, :1], callbacks=[SGDR(0.1), SGDR(0.2)], verbose=0)
    model.fit(x, x[:, :1], callbacks=[SGDR(0.1)], verbose=0)
