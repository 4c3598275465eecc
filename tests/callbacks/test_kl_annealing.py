"""The curve is the formula's, whoever starts or resumes the training, and all layers are on it."""

import math

import keras
import numpy as np
import pytest

from tfuq.callbacks import KLAnnealing
from tfuq.callbacks.kl_annealing import kl_beta
from tfuq.layers import DenseVariational, SparseBayesDense, VBLLDense

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.integers(3, size=12)
STEPS = 3  # an epoch


class Probe(keras.callbacks.Callback):
    """Notes beta, and the optimizer's steps, before each batch; it stands behind the annealing."""

    def __init__(self):
        super().__init__()
        self.betas, self.steps = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.betas.append(float(self.model.layers[-1].beta))
        self.steps.append(int(self.model.optimizer.iterations))


class Interrupt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("interrupted")


def classifier(optimizer=None, **kwargs):
    """A variational layer in a nested model, and another at the top."""
    low = DenseVariational(3, kl_weight=0.1, estimator="reparameterization", name="low")
    inner = keras.Sequential([keras.Input((4,)), low])
    model = keras.Sequential([keras.Input((4,)), inner, VBLLDense(3, kl_weight=0.1)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.01), loss, jit_compile=False, **kwargs)
    return model


def fit(model, *callbacks, **kwargs):
    kwargs = {"epochs": 5, "batch_size": 12 // STEPS, "verbose": 0, **kwargs}
    return model.fit(X, Y, callbacks=list(callbacks), **kwargs).history


# --- The formula ------------------------------------------------------------------------------


def test_linear_by_hand():
    """Paper 001: from 0.2 to 0.01."""
    found = kl_beta(np.arange(7), 0.2, 0.01, 4)
    np.testing.assert_allclose(found, [0.2, 0.1525, 0.105, 0.0575, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("ramp", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("duration, cycles", [(40, 4), (12, 1), (15, 5)])
def test_cyclical_as_printed(duration, cycles, ramp):
    """Fu et al. count iterations t from 1."""
    for t in range(1, duration + 1):
        tau = (t - 1) % math.ceil(duration / cycles) / (duration / cycles)
        expected = tau / ramp if tau <= ramp else 1.0
        assert kl_beta(t - 1, 0, 1, duration, cycles, ramp) == pytest.approx(expected)
    assert kl_beta(duration, 0, 1, duration, cycles, ramp) == 1


def test_cycles_that_do_not_divide_the_duration():
    """Each cycle takes 10 / 3 epochs, so the second begins in epoch 4 at tau = 0.2."""
    found = kl_beta(np.arange(11), 0, 1, 10, 3)
    np.testing.assert_allclose(found, [0, 0.3, 0.6, 0.9, 0.2, 0.5, 0.8, 0.1, 0.4, 0.7, 1])


# --- In training ------------------------------------------------------------------------------


def test_by_epoch():
    model, probe = classifier(), Probe()
    history = fit(model, KLAnnealing(0.5, 0.1, duration=2), probe)
    np.testing.assert_allclose(history["kl_beta"], [0.5, 0.3, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(probe.betas, np.repeat(history["kl_beta"], 3), rtol=1e-6)
    assert float(model.layers[0].get_layer("low").beta) == pytest.approx(0.1)


@pytest.mark.slow
def test_by_epoch_in_cycles():
    annealing = KLAnnealing(duration=4, schedule="cyclical", cycles=2, ramp=1.0)
    model = classifier()
    np.testing.assert_allclose(fit(model, annealing)["kl_beta"], [0, 0.5, 0, 0.5, 1])
    by_default = KLAnnealing(duration=16, schedule="cyclical")
    np.testing.assert_allclose(fit(model, by_default)["kl_beta"], [0, 0.5, 1, 1, 0])


def test_by_step():
    probe = Probe()
    history = fit(classifier(), KLAnnealing(duration=8, unit="step"), probe, epochs=4)
    np.testing.assert_allclose(probe.betas, np.minimum(np.arange(12) / 8, 1))
    np.testing.assert_allclose(history["kl_beta"], [2 / 8, 5 / 8, 1, 1])


def test_by_step_with_several_steps_per_execution():
    """Three steps an epoch, two per execution: executions begin at steps 0, 2, 3, 5 and so on."""
    probe = Probe()
    model = classifier(steps_per_execution=2)
    fit(model, KLAnnealing(duration=8, unit="step"), probe, epochs=2)
    assert probe.steps == [0, 2, 3, 5]
    np.testing.assert_allclose(probe.betas, np.array(probe.steps) / 8)


@pytest.mark.slow
def test_by_step_counts_updates_not_batches():
    probe = Probe()
    model = classifier(keras.optimizers.SGD(0.01, gradient_accumulation_steps=3))
    fit(model, KLAnnealing(duration=4, unit="step"), probe)
    np.testing.assert_allclose(probe.betas, np.minimum(np.repeat(np.arange(5), 3) / 4, 1))


def test_beta_weighs_the_kl_that_training_sees():
    """The loss of a step differs by 0.1 (1 - 0.25) KL, of both layers."""
    losses = []
    for beta in (1.0, 0.25):
        keras.utils.set_random_seed(0)
        model = classifier()
        kl = sum(float(layer.kl_divergence()) for layer in variational(model))
        losses.append(fit(model, KLAnnealing(beta, beta), epochs=1, batch_size=12)["loss"][0])
    np.testing.assert_allclose(losses[0] - losses[1], 0.1 * 0.75 * kl, rtol=1e-4)


def variational(model):
    return model.layers[0].get_layer("low"), model.layers[-1]


@pytest.mark.slow_cases("epoch-4")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("unit, duration", [("epoch", 4), ("step", 14)])
def test_resumes_where_it_was(unit, duration, tmp_path):
    """`BackupAndRestore` goes on in a new model, as after the end of the process."""
    parts = []
    for stop in (3, None):
        probe = Probe()
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        annealing = KLAnnealing(duration=duration, unit=unit)
        try:
            fit(classifier(), annealing, backup, probe, Interrupt(stop))
        except RuntimeError:
            assert stop
        parts.append(probe)
    assert [part.steps for part in parts] == [list(range(9)), list(range(9, 15))]
    times = np.arange(15) if unit == "step" else np.arange(15) // STEPS
    np.testing.assert_allclose(parts[0].betas + parts[1].betas, times / duration, rtol=1e-6)


def test_initial_epoch_and_a_new_training():
    model, annealing = classifier(), KLAnnealing(duration=4)
    np.testing.assert_allclose(fit(model, annealing, initial_epoch=3)["kl_beta"], [0.75, 1])
    np.testing.assert_allclose(fit(model, annealing, epochs=2)["kl_beta"], [0, 0.25])


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values",
    [
        ("initial", (-0.1, float("nan"), float("inf"), "0", None, True)),
        ("target", (-0.1, float("nan"), "1", None)),
        ("duration", (0, -1, 2.5, "3", None, True)),
        ("unit", ("batch", None)),
        ("schedule", ("cosine", None)),
        ("cycles", (0, 1.5, "2", True)),
        ("ramp", (0, -0.5, 1.5, float("nan"), "1")),
    ],
)
def test_bad_arguments(name, values):
    schedule = {"schedule": "cyclical"} if name in ("cycles", "ramp") else {}
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}` must.*Received: {name}="):
            KLAnnealing(**{**schedule, name: value})


def test_arguments_that_would_be_ignored():
    for name, value in (("cycles", 2), ("ramp", 0.5)):
        with pytest.raises(ValueError, match=rf"`{name}` must be None.*linear"):
            KLAnnealing(**{name: value})
    with pytest.raises(ValueError, match=r"`cycles` must not be above `duration`.*4.*3"):
        KLAnnealing(duration=3, schedule="cyclical")


def test_models_without_variational_layers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"`model` must hold variational layers.*Received"):
        fit(model, KLAnnealing())


def test_models_that_are_not_built():
    model = keras.Sequential([VBLLDense(3, kl_weight=0.1)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"`model` must be built.*Received"):
        fit(model, KLAnnealing())


def test_two_of_them_are_refused():
    model = keras.Sequential([keras.Input((4,)), VBLLDense(3, kl_weight=0.1)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="must hold one KLAnnealing: the KL divergence has one"):
        model.fit(X, Y, callbacks=[KLAnnealing(), KLAnnealing()], verbose=0)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("kind", [VBLLDense, DenseVariational, SparseBayesDense])
def test_files_of_the_way_hold_what_it_leads_to(kind, tmp_path):
    """A checkpoint of the first epoch held its weight, 0.2, where the model's became 1."""
    model = keras.Sequential([keras.Input((4,)), kind(3, kl_weight=0.1)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(self.model.layers[-1].beta))

    saved = [
        keras.callbacks.ModelCheckpoint(str(tmp_path / "epoch{epoch}.keras")),
        keras.callbacks.ModelCheckpoint(
            str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True
        ),
    ]
    annealing = KLAnnealing(0.2, 1.0, duration=2)
    model.fit(X, Y, epochs=3, callbacks=[annealing, *saved, Look()], verbose=0)
    assert seen == pytest.approx([0.2, 0.6, 1.0])
    for epoch in (1, 2, 3):
        whole = keras.models.load_model(tmp_path / f"epoch{epoch}.keras")
        assert float(whole.layers[-1].beta) == 1.0
        model.load_weights(tmp_path / f"{epoch}.weights.h5")
        assert float(model.layers[-1].beta) == 1.0
    model.layers[-1].beta.assign(0.25)  # what the user sets is saved
    model.save_weights(tmp_path / "own.weights.h5")
    model.layers[-1].beta.assign(0.5)
    model.load_weights(tmp_path / "own.weights.h5")
    assert float(model.layers[-1].beta) == 0.25
