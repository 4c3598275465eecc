"""IVON: the authors' optimizer, draws, and every way in which Keras trains.

`fixtures/make_ivon.py` wrote what ivon-opt does with noise that both are given.
"""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfuq import convert, export, predictive
from tfuq.callbacks import PosteriorMean, PosteriorSampling
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import VBLLDense
from tfuq.optimizers import IVON, DiscriminativeLearningRate

FIXTURE = np.load(pathlib.Path(__file__).parent / "fixtures/ivon.npz")
CASES = {  # as in `make_ivon.py`
    "plain": {"learning_rate": 0.1, "num_data": 50},
    "prior": {
        "learning_rate": 0.05,
        "num_data": 200,
        "prior_precision": 0.1,
        "hessian_init": 0.3,
        "beta_2": 0.9,
    },
    "clipped": {
        "learning_rate": 0.5,
        "num_data": 100,
        "clip_radius": 0.05,
        "beta_1": 0.5,
        "beta_2": 0.99,
    },
    "own rate": {
        "learning_rate": 0.02,
        "num_data": 30,
        "rescale_learning_rate": False,
        "beta_2": 0.999,
    },
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class GivenNoise(IVON):
    """Draws the standard normals of the fixture, one row after the other."""

    rows = None

    def _noise(self, index, hessian, seed):
        normal = next(self.rows)
        return normal / tf.sqrt(self.num_data * (hessian + self.prior_precision))


@pytest.mark.parametrize("case", CASES)
def test_steps_are_theirs(case):
    theirs = {name: FIXTURE[f"{case}/{name}"] for name in ("noise", "means", "hessians", "momenta")}
    weights = keras.Variable(FIXTURE["start"], dtype="float64")
    optimizer = GivenNoise(**CASES[case])
    optimizer.build([weights])
    optimizer.rows = iter([*theirs["noise"], np.zeros(5)])
    optimizer.to_sample()
    for step in range(len(theirs["noise"])):
        gradient = FIXTURE["curvature"] @ (weights.numpy() - FIXTURE["target"])
        optimizer.apply([tf.constant(gradient)], [weights])
        mean = weights.numpy() - optimizer._noises[0].numpy()
        np.testing.assert_allclose(mean, theirs["means"][step], atol=5e-7)  # a rate in float32
        found = optimizer.hessians()[0], optimizer._momenta[0].numpy()
        np.testing.assert_allclose(found[0], theirs["hessians"][step], rtol=2e-6)
        np.testing.assert_allclose(found[1], theirs["momenta"][step], rtol=2e-6, atol=1e-6)


# --- Training ------------------------------------------------------------------------------------


def examples(count=64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, np.argmax(x[:, :3], axis=-1)


def network(optimizer, seed=0, **options):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(6, "tanh"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer, LOSS, **{"jit_compile": False, **options})
    return model


def ivon(rate=0.5, **options):
    return IVON(rate, **{"num_data": 64, **options})


def learns(model, **options):
    x, y = examples()
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=5, batch_size=16, verbose=0, **options)
    after = model.evaluate(x, y, verbose=0)
    assert np.isfinite(after) and after < 0.8 * before
    draws = predictive.sample_predictions(model, x, 4)
    assert np.isfinite(draws).all() and np.ptp(draws, axis=0).max() > 1e-3
    return model


WAYS = {
    "plain": lambda: network(ivon()),
    "jit": lambda: network(ivon(), jit_compile=True),
    "eager": lambda: network(ivon(), run_eagerly=True),
    "several steps": lambda: network(ivon(), steps_per_execution=2),
    "schedule": lambda: network(ivon(keras.optimizers.schedules.CosineDecay(0.5, 100))),
    "by depth": lambda: network(DiscriminativeLearningRate(ivon(), min_factor=0.5)),
    "accumulated": lambda: network(ivon(1.0, gradient_accumulation_steps=2)),
    "clipped": lambda: network(ivon(global_clipnorm=1.0)),
    "scaled": lambda: network(keras.optimizers.LossScaleOptimizer(ivon(), initial_scale=8.0)),
}


@pytest.mark.slow_cases("plain", "jit", "eager", "several steps", "clipped", "accumulated")
@pytest.mark.parametrize("way", WAYS)
def test_learns_and_draws(way):
    learns(WAYS[way]())


@pytest.mark.slow_cases("mixed_bfloat16")
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_learns_in_mixed_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        learns(network(ivon()))
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.slow
def test_learns_on_two_devices():
    from contract import two_devices

    with two_devices().scope():
        model = network(ivon())
    learns(model)


@pytest.mark.slow
def test_rates_by_depth_scale_the_step_of_the_mean():
    x, y = examples(16)
    plain, scaled = network(ivon()), network(DiscriminativeLearningRate(ivon(), min_factor=0.1))
    start = plain.get_weights()
    for model in (plain, scaled):
        model.fit(x, y, batch_size=16, verbose=0)
    steps = [[w - s for w, s in zip(m.get_weights(), start, strict=True)] for m in (plain, scaled)]
    np.testing.assert_allclose(steps[1][0], 0.1 * steps[0][0], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(steps[1][2], steps[0][2], rtol=1e-3, atol=1e-7)


@pytest.mark.dear
def test_accumulated_gradients_are_those_of_the_larger_batch():
    x, y = examples(32)
    whole, parts = network(ivon()), network(ivon(gradient_accumulation_steps=2))
    whole.fit(x, y, batch_size=32, epochs=3, shuffle=False, verbose=0)
    parts.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    for one, other in zip(whole.optimizer.hessians(), parts.optimizer.hessians(), strict=True):
        assert np.all(one > 0) and np.all(other > 0)
    # Noise follows from the count of batches, which differs; the first step has none.
    whole, parts = network(ivon()), network(ivon(gradient_accumulation_steps=2))
    whole.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    parts.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Seen(keras.callbacks.Callback):
    """Whether the weights are the mean, as validation and the end of an epoch see them."""

    def __init__(self):
        super().__init__()
        self.in_validation, self.at_end, self.in_training = [], [], []

    def _is_mean(self):
        return all(np.all(np.asarray(n) == 0) for n in self.model.optimizer._noises)

    def on_train_batch_end(self, batch, logs=None):
        self.in_training.append(self._is_mean())

    def on_test_batch_end(self, batch, logs=None):
        self.in_validation.append(self._is_mean())

    def on_epoch_end(self, epoch, logs=None):
        self.at_end.append(self._is_mean())


@pytest.mark.parametrize("with_callback", [True, False])
def test_validation_sees_the_mean_with_the_callback_alone(with_callback):
    x, y = examples()
    seen, model = Seen(), network(ivon())
    callbacks = [PosteriorMean(), seen] if with_callback else [seen]
    model.fit(x, y, epochs=2, validation_data=(x, y), callbacks=callbacks, verbose=0)
    assert not any(seen.in_training)
    assert set(seen.in_validation) == set(seen.at_end) == {with_callback}
    assert seen._is_mean()  # after `fit`, either way
    np.testing.assert_array_equal(model.predict(x, verbose=0), model.predict(x, verbose=0))


def test_early_stopping_restores_a_mean():
    x, y = examples()
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=1, mode="max", restore_best_weights=True
    )
    model = network(ivon())
    history = model.fit(
        x, y, epochs=9, validation_data=(x, y), callbacks=[PosteriorMean(), stop], verbose=0
    ).history["val_loss"]
    assert len(history) == 2
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), history[0], rtol=1e-5)


def test_draws_have_the_deviations_of_the_posterior():
    """6 standard errors of 2,000 draws: a correct one fails once in 10^7 here."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(ivon(num_data=20), "mse")
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    model.fit(x, x[:, :1], epochs=5, verbose=0)
    draws = predictive.sample_predictions(model, np.eye(2, dtype="float32"), 2000)[..., 0]
    deviations = np.asarray(model.optimizer.standard_deviations()[0])[:, 0]
    mean = model.layers[-1].kernel.numpy()[:, 0]
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 6 * deviations / 2000**0.5)
    assert np.all(np.abs(draws.std(axis=0) / deviations - 1) < 6 / 4000**0.5)


@pytest.mark.dear
def test_saves_loads_and_goes_on_to_the_bit(tmp_path):
    x, y = examples()
    model = network(ivon())
    model.fit(x, y, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    draws = [predictive.sample_predictions(each, x, 3) for each in (model, loaded)]
    np.testing.assert_array_equal(*draws)
    loaded.compile(loaded.optimizer, LOSS, jit_compile=False)
    for each in (model, loaded):
        each.fit(x, y, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_exports_draw_the_same_networks(tmp_path):
    x, _ = examples()
    model = learns(network(ivon()))
    export.export(model, tmp_path / "served", num_samples=4)
    served = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    found = served(tf.constant(x))["probabilities"]
    expected = predictive.predict_uncertainty(model, x, 4)
    np.testing.assert_allclose(found, expected.probs, atol=1e-5)
    assert expected.mutual_information.max() > 1e-4
    export.export(model, tmp_path / "mean", predictive="mean")
    served = tf.saved_model.load(tmp_path / "mean").signatures["serving_default"]
    probs = special.softmax(model.predict(x, verbose=0), axis=-1)
    np.testing.assert_allclose(served(tf.constant(x))["probabilities"], probs, atol=1e-5)


def test_what_loses_the_posterior_says_so():
    """A conversion and an ensemble take the mean weights: a warning, and no draws."""
    model = learns(network(ivon()))
    head = VBLLDense(3, kl_weight=0.1)
    losing = {
        "The copy": lambda: convert.spectral_normalize(model),
        "The new model": lambda: convert.replace_head(model, head),
        "The ensemble": lambda: DeepEnsemble.from_models([model]),
    }
    for what, make in losing.items():
        with pytest.warns(UserWarning, match=f"{what} has no posterior .* IVON keeps"):
            make()


@pytest.mark.slow
def test_draws_do_not_move_the_weights():
    x, _ = examples()
    model = learns(network(ivon()))
    before = model.get_weights()
    predictive.sample_predictions(model, x, 2)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow_cases("False")
@pytest.mark.parametrize("is_constrained", [False, True])
def test_weights_that_others_set_are_the_mean(is_constrained):
    x, y = examples()
    bound = keras.constraints.MaxNorm(0.5) if is_constrained else None
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_constraint=bound)])
    model.compile(ivon(num_data=10), LOSS, jit_compile=False)
    for _ in range(3):
        model.train_on_batch(x, y)
    optimizer, variables = model.optimizer, model.trainable_variables
    held = [optimizer._noise_in(v, i).numpy() for i, v in enumerate(variables)]
    assert all(np.any(noise) for noise in held)  # though the constraint has moved the kernel
    given = [np.ones(w.shape, w.dtype) for w in model.get_weights()]
    model.set_weights(given)
    draws = predictive.sample_predictions(model, np.eye(4, dtype="float32"), 2)
    assert np.ptp(draws) > 0
    optimizer.to_mean()
    for weight in model.get_weights():
        np.testing.assert_array_equal(weight, np.ones_like(weight))
    optimizer.to_sample()
    model.set_weights(given)
    hessians = [h.numpy() for h in optimizer.hessians()]
    model.train_on_batch(x, y)  # a step from the mean leaves the Hessian as it is
    for old, new in zip(hessians, optimizer.hessians(), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-6)


# --- Misuse --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options",
    [
        ("num_data", {"num_data": None}),
        ("num_data", {"num_data": 0}),
        ("num_data", {"num_data": 100 / 32}),
        ("beta_1", {"beta_1": 1.0}),
        ("beta_2", {"beta_2": float("nan")}),
        ("prior_precision", {"prior_precision": -0.1}),
        ("hessian_init", {"hessian_init": 0.0}),
        ("clip_radius", {"clip_radius": "no"}),
        ("rescale_learning_rate", {"rescale_learning_rate": 1}),
        ("seed", {"seed": -1}),
    ],
)
def test_bad_arguments(name, options):
    with pytest.raises(ValueError, match=f"Argument `{name}`.*Received: {name}="):
        ivon(**options)


def test_decay_of_keras_is_not_taken():
    with pytest.raises(TypeError, match="weight_decay"):
        ivon(weight_decay=0.1)


def test_no_posterior_before_training():
    model = network(ivon())
    with pytest.raises(ValueError, match=r"trained by `tfuq.optimizers.IVON`"):
        predictive.sample_predictions(model, examples()[0])
    with pytest.raises(ValueError, match="before it has trained"):
        model.optimizer.standard_deviations()


@pytest.mark.slow
def test_callbacks_for_other_models_are_refused():
    x, y = examples()
    with pytest.raises(ValueError, match=r"must be `tfuq.optimizers.IVON`.*Adam"):
        network("adam").fit(x, y, callbacks=[PosteriorMean()], verbose=0)
    with pytest.raises(ValueError, match="layers with random weights"):
        learns(network(ivon())).fit(x, y, callbacks=[PosteriorSampling(2)], verbose=0)
