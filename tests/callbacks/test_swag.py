"""SWAG: moments of others, draws, and every way in which Keras trains.

`fixtures/make_swag.py` wrote what torch-uncertainty and torch have of the same weights.
"""

import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import callbacks, convert, export, predictive
from tfuq._models.batch_statistics import renew_batch_statistics
from tfuq.callbacks import SWAG
from tfuq.callbacks.swag import first_epoch
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import SparseBayesDense
from tfuq.optimizers import IVON, DiscriminativeLearningRate
from tfuq.optimizers.swag import SWAGMoments

FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures/swag.npz")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = np.argmax(X[:, :3], axis=-1)


def collected(rank, count=7, scale=1.0):
    """`SWAGMoments` of the trajectory of the fixture."""
    weights = [FIXTURE[f"weights_{i}"] for i in range(2)]
    variables = [keras.Variable(values[0], dtype="float64") for values in weights]
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(variables)
    moments = SWAGMoments(optimizer, rank, scale)
    for step in range(count):
        for variable, values in zip(variables, weights, strict=True):
            variable.assign(values[step])
        moments.collect()
    assert moments.end() == (count > 1)
    return moments


def test_moments_are_theirs():
    moments = collected(rank=4)
    for i in range(2):
        mean, squares = FIXTURE[f"mean_{i}"], FIXTURE[f"squares_{i}"]
        np.testing.assert_allclose(moments.means()[i], mean, atol=1e-14)
        np.testing.assert_allclose(moments.means()[i], FIXTURE[f"average_{i}"], atol=1e-14)
        np.testing.assert_allclose(moments._squares[i] / 7, squares - mean**2, atol=1e-13)
        kept = np.roll(moments._deviations[i].numpy(), -(7 % 4), axis=0)
        theirs = FIXTURE[f"deviations_{i}"].reshape(kept.shape)
        np.testing.assert_allclose(kept, theirs, atol=1e-14)


def their_covariance(rank, count):
    """Of all weights together, in NumPy, from the weights alone."""
    weights = [FIXTURE[f"weights_{i}"][:count].reshape(count, -1) for i in range(2)]
    weights = np.concatenate(weights, axis=1)
    means = np.cumsum(weights, axis=0) / np.arange(1, count + 1)[:, None]
    diagonal = np.diag(np.var(weights, axis=0))
    if not rank:
        return weights.mean(axis=0), diagonal
    kept = (weights - means)[-rank:]
    return weights.mean(axis=0), (diagonal + kept.T @ kept / (len(kept) - 1)) / 2


@pytest.mark.parametrize("rank, count, scale", [(4, 7, 1.0), (0, 7, 0.5), (20, 3, 1.0)])
def test_draws_have_the_stated_mean_and_covariance(rank, count, scale):
    """6 standard errors of 4,000 draws: 44 numbers, of which a correct one fails once in 10^7."""
    moments, num = collected(rank, count, scale), 4000
    seeds = tf.constant([[3, i] for i in range(num)])

    def drawn(seed):
        return tf.concat([tf.reshape(value, [-1]) for _, value in moments.drawn(seed)], 0)

    together = tf.function(lambda: tf.map_fn(drawn, seeds, fn_output_signature="float64"))
    draws = together().numpy()
    mean, covariance = their_covariance(rank, count)
    covariance = scale * covariance
    variances = np.diag(covariance)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 6 * np.sqrt(variances / num))
    errors = np.sqrt((np.outer(variances, variances) + covariance**2) / num)
    assert np.all(np.abs(np.cov(draws.T) - covariance) < 6 * errors + 1e-12)
    found = np.concatenate([np.ravel(d) for d in moments.standard_deviations()])
    np.testing.assert_allclose(found, np.sqrt(variances), rtol=1e-12)


def test_batch_statistics_are_those_of_torch():
    batches = FIXTURE["batches"]
    layer = keras.layers.BatchNormalization(dtype="float64")
    dropped = keras.layers.Dropout(0.5, seed=1)  # moves a state of random numbers
    model = keras.Sequential([keras.Input((3,), dtype="float64"), layer, dropped])
    before = [v.numpy() for v in dropped.variables]
    renew_batch_statistics(model, batches.reshape(-1, 3), batch_size=8)
    np.testing.assert_allclose(layer.moving_mean, FIXTURE["means_of_batches"], rtol=1e-6)
    theirs = FIXTURE["variances_of_batches"] * 7 / 8  # torch divides by n - 1
    np.testing.assert_allclose(layer.moving_variance, theirs, rtol=1e-6)
    assert layer.momentum == 0.99
    np.testing.assert_array_equal([v.numpy() for v in dropped.variables], before)


# --- Training ------------------------------------------------------------------------------------


def network(optimizer=None, seed=0, normalized=False, **options):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(6, "tanh"), keras.layers.Dense(3)]
    if normalized:
        layers.insert(1, keras.layers.BatchNormalization())
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer or keras.optimizers.SGD(0.5), LOSS, **{"jit_compile": False, **options})
    return model


def trained(model, swag=None, **options):
    options = {"epochs": 6, "batch_size": 16, "verbose": 0, **options}
    beside = options.pop("callbacks", [])
    model.fit(X, Y, callbacks=[*beside, swag or SWAG(start=2, rank=3)], **options)
    return model


class Weights(keras.callbacks.Callback):
    """The weights at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_epoch_end(self, epoch, logs=None):
        self.found.append([v.numpy() for v in self.model.trainable_variables])


def test_mean_of_the_last_epochs():
    weights, model = Weights(), network()
    history = model.fit(X, Y, epochs=6, verbose=0, callbacks=[weights, SWAG(start=0.5)]).history
    assert history["swag_networks"] == [0, 0, 0, 1, 2, 3]
    for i, variable in enumerate(model.trainable_variables):
        mean = np.mean([found[i] for found in weights.found[3:]], axis=0)
        np.testing.assert_allclose(variable, mean, atol=1e-6)
    kept = trained(network(), SWAG(start=2, set_mean=False))
    plain = network()
    plain.fit(X, Y, epochs=6, batch_size=16, verbose=0)
    for one, other in zip(kept.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)  # it trains as without


def test_networks_between_batches():
    model = network()
    history = model.fit(
        X, Y, epochs=3, batch_size=16, verbose=0, callbacks=[SWAG(start=1, frequency=2)]
    ).history
    assert history["swag_networks"] == [0, 2, 4]


@pytest.mark.parametrize("start, first", [(0.75, 6), (0.7, 6), (3, 3), (0, 0), (0.0, 0)])
def test_first_epoch(start, first):
    assert first_epoch(start, 8) == first


WAYS = {
    "plain": lambda: network(),
    "jit": lambda: network(jit_compile=True),
    "eager": lambda: network(run_eagerly=True),
    "several steps": lambda: network(steps_per_execution=2),
    "momentum by depth": lambda: network(
        DiscriminativeLearningRate(keras.optimizers.SGD(0.5, momentum=0.5), min_factor=0.5)
    ),
    "accumulated": lambda: network(keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)),
    "scaled": lambda: network(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=8.0)
    ),
    "normalized": lambda: network(normalized=True),
}


@pytest.mark.slow_cases(*(way for way in WAYS if way != "scaled"))
@pytest.mark.parametrize("way", WAYS)
def test_trains_draws_saves_and_loads(way, tmp_path):
    saves(WAYS[way](), tmp_path)


def saves(model, folder):
    before = model.evaluate(X, Y, verbose=0)
    trained(model, SWAG(X if len(model.layers) == 3 else None, start=2, rank=3))
    assert model.evaluate(X, Y, verbose=0) < before
    draws = predictive.sample_predictions(model, X, 4)
    assert np.isfinite(draws).all() and np.ptp(draws, axis=0).max() > 1e-3
    model.save(folder / "model.keras")
    loaded = keras.models.load_model(folder / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(predictive.sample_predictions(loaded, X, 4), draws)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        saves(network(), tmp_path)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.slow
def test_two_devices(tmp_path):
    from contract import two_devices

    with two_devices().scope():
        model = network(jit_compile="auto", normalized=True)
    saves(model, tmp_path)


@pytest.mark.slow
def test_two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    heads = {name: keras.layers.Dense(3, name=name)(hidden) for name in ("a", "b")}
    model = keras.Model(inputs, heads)
    model.compile("sgd", {"a": LOSS, "b": LOSS}, jit_compile=False)
    model.fit(X, {"a": Y, "b": Y}, epochs=4, verbose=0, callbacks=[SWAG(start=1)])
    for name in heads:
        assert np.ptp(predictive.sample_predictions(model, X, 4, output=name), axis=0).max() > 0


class Killed(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 4:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("is_behind", [True, False])
def test_a_killed_training_goes_on_to_the_bit(tmp_path, is_behind):
    def fit(*others):
        model, both = network(), [callbacks.BackupAndRestore(tmp_path), SWAG(start=2, rank=3)]
        both = both[::-1] if is_behind else both
        model.fit(X, Y, epochs=6, shuffle=False, verbose=0, callbacks=[*both, *others])
        return predictive.sample_predictions(model, X, 3), model.optimizer.num_networks()

    whole = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(Killed())
    resumed = fit()
    assert resumed[1] == whole[1] == 4
    np.testing.assert_array_equal(resumed[0], whole[0])


@pytest.mark.slow
def test_a_second_fit_begins_anew_or_drops_the_posterior():
    model = trained(network())
    first = model.optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(model)  # with SWAG again
        model.evaluate(X, Y, verbose=0, callbacks=[SWAG(start=2, rank=3)])
    assert model.optimizer is first and first.num_networks() == 4 and first.is_random()
    trained(model, SWAG(start=2, rank=0))
    assert model.optimizer.rank == 0 and not isinstance(model.optimizer.optimizer, SWAGMoments)
    with pytest.warns(UserWarning, match="SWAG's posterior is dropped"):
        model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"with `tfuq.callbacks.SWAG`"):
        predictive.sample_predictions(model, X)


def test_the_next_fit_says_that_it_drops_the_posterior():
    model = trained(network())
    with pytest.warns(UserWarning, match="SWAG's posterior is dropped"):
        model.fit(X, Y, batch_size=16, verbose=0)  # of the same shapes, as it was traced for


@pytest.mark.slow
def test_exports_draw_the_same_networks(tmp_path):
    model = trained(network())
    export.export(model, tmp_path / "served", num_samples=4)
    served = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    expected = predictive.predict_uncertainty(model, X, 4)
    np.testing.assert_allclose(served(tf.constant(X))["probabilities"], expected.probs, atol=1e-5)
    assert expected.mutual_information.max() > 1e-5


@pytest.mark.slow
def test_what_loses_the_posterior_says_so():
    model = trained(network())
    with pytest.warns(UserWarning, match="The copy has no posterior .* SWAG keeps"):
        convert.spectral_normalize(model)
    with pytest.warns(UserWarning, match="The ensemble has no posterior .* SWAG keeps"):
        DeepEnsemble.from_models([model])


# --- Misuse --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_statistics_of_the_last_weights_are_told():
    model = network(normalized=True)
    with pytest.warns(UserWarning, match="Batch normalizations.*pass `data`"):
        trained(model)


def test_a_training_that_ends_too_early_has_no_posterior():
    stop = keras.callbacks.EarlyStopping("loss", patience=0, mode="max")
    with pytest.warns(UserWarning, match="collected 0 of the two networks"):
        model = trained(network(), callbacks=[stop])
    with pytest.raises(ValueError, match="random weights"):
        predictive.sample_predictions(model, X)


STOP = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
REFUSED = {
    "too late": (network, {"epochs": 3}, [SWAG(start=2)], "at least two networks"),
    "too few batches": (network, {}, [SWAG(frequency=9)], "at least two networks"),
    "IVON": (lambda: network(IVON(0.1, num_data=64)), {}, [SWAG()], "keeps no posterior.*IVON"),
    "two": (network, {}, [SWAG(), SWAG()], "one SWAG"),
    "weights restored": (network, {}, [SWAG(start=2), STOP], "SWAG after EarlyStopping"),
    "saved too early": (
        network,
        {},
        [keras.callbacks.BackupAndRestore("nowhere"), SWAG(start=2)],
        "before Keras' BackupAndRestore",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_it_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, options, beside, error = REFUSED[name]
    model = make()
    before = model.get_weights()
    with pytest.raises(ValueError, match=error):
        model.fit(X, Y, **{"epochs": 6, "verbose": 0, "callbacks": beside, **options})
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_other_variables_after_the_first_network_are_refused():
    def fit(after_epoch):
        keras.utils.set_random_seed(0)
        layers = [SparseBayesDense(n, kl_weight=0.01, r_bayes=0.1) for n in (6, 3)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile("sgd", LOSS, jit_compile=False)
        selection = callbacks.SaliencySelection(after_epoch=after_epoch, scope="global")
        return trained(model, callbacks=[selection], epochs=5)

    with pytest.raises(ValueError, match="must stay the same while SWAG"):
        fit(4)
    moments = fit(1).optimizer
    assert len(moments.means()) == len(moments._trainable_variables) and moments.is_random()


@pytest.mark.parametrize(
    "name, options",
    [
        ("start", {"start": 1.0}),
        ("start", {"start": -1}),
        ("start", {"start": True}),
        ("start", {"start": "half"}),
        ("frequency", {"frequency": 0}),
        ("frequency", {"frequency": "batch"}),
        ("rank", {"rank": 1}),
        ("scale", {"scale": 0.0}),
        ("set_mean", {"set_mean": 1}),
        ("batch_size", {"batch_size": 0}),
        ("verbose", {"verbose": 3}),
    ],
)
def test_bad_arguments(name, options):
    with pytest.raises(ValueError, match=f"Argument `{name}`.*Received: {name}="):
        SWAG(**options)
