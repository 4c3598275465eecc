"""SNGPDense: keras-proba 0.1.0's numbers, a sum that starts anew at each epoch, draws, errors."""

import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.layers import SNGPDense
from tfuq.layers.ways import predicting
from tfuq.predictive import predict_uncertainty, sample_predictions

FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "keras_proba.npz")
CASES = {
    "sum": {"ridge": 0.5, "length_scale": 2.0},
    "momentum": {"momentum": 0.9},
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 5)).astype("float32")
Y = np.arange(60) % 3
SMALL = {"num_features": 16, "seed": 1}


def network(*, jit_compile=False, learning_rate=0.0, **kwargs):
    layers = [keras.layers.Dense(4, "tanh"), SNGPDense(3, **{**SMALL, **kwargs})]
    model = keras.Sequential([keras.Input((5,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, jit_compile=jit_compile)
    return model


def precision_of(model, x):
    """ridge I + sum of phi phi^T, in float64."""
    layer = model.layers[-1]
    phi = np.asarray(layer.random_features(model.layers[0](x)), "float64")
    return layer.ridge * np.eye(layer.num_features) + phi.T @ phi


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_keras_proba(case):
    given = {name: FIXTURE[f"{case}/{name}"] for name in ("kernel", "random_kernel", "random_bias")}
    layer = SNGPDense(
        3,
        num_features=12,
        logits_only=False,
        use_bias=False,
        **{"length_scale": 1.0, **CASES[case]},
    )
    x, new = FIXTURE["x"], FIXTURE["new"]
    layer.build(x.shape)
    for name, values in given.items():
        getattr(layer, name).assign(values)
    trained = layer(x[:8], training=True)
    np.testing.assert_array_equal(trained.logits, trained.mean)
    layer(x[8:], training=True)
    np.testing.assert_allclose(layer.precision, FIXTURE[f"{case}/precision"], rtol=1e-4, atol=1e-5)
    found = layer(new)
    np.testing.assert_allclose(found.mean, FIXTURE[f"{case}/logits"], rtol=1e-4, atol=1e-5)
    for column in np.asarray(found.variance).T:
        np.testing.assert_allclose(column, FIXTURE[f"{case}/variance"], rtol=1e-4)
    np.testing.assert_allclose(found.logits, FIXTURE[f"{case}/mean_field"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow_cases("True")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_each_epoch_starts_anew_by_itself(jit_compile):
    model = network(jit_compile=jit_compile)
    found = model.fit(X, Y, 16, epochs=3, validation_data=(X, Y), verbose=0)
    assert set(found.history) == {"loss", "val_loss"}
    layer, expected = model.layers[-1], precision_of(model, X)
    np.testing.assert_allclose(layer.precision, expected, rtol=1e-4, atol=1e-5)
    before = model.predict(X, verbose=0)
    model.evaluate(X, Y, verbose=0)  # resets metrics, too: what is predicted stays
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)
    model.fit(X[:20], Y[:20], verbose=0)
    np.testing.assert_allclose(layer.precision, precision_of(model, X[:20]), rtol=1e-4, atol=1e-5)


def test_evaluation_within_an_epoch_starts_nothing_anew():
    class Evaluated(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.evaluate(X, Y, verbose=0)
            self.model.test_on_batch(X, Y)

    model = network()
    model.fit(X, Y, 16, epochs=2, shuffle=False, callbacks=[Evaluated()], verbose=0)
    expected = precision_of(model, X)
    np.testing.assert_allclose(model.layers[-1].precision, expected, rtol=1e-4, atol=1e-5)


def test_metrics_that_a_model_of_ones_own_resets():
    class Extended(keras.Sequential):
        def reset_metrics(self):
            super().reset_metrics()

    model = Extended(network().layers)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.eye(3)[Y]
    model.fit(X, y, 16, epochs=2, verbose=0)
    model.evaluate(X, y, verbose=0)
    model(X[:10], training=True)
    expected = precision_of(model, np.concatenate([X, X[:10]]))
    np.testing.assert_allclose(model.layers[-1].precision, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_train_on_batch_sums_and_says_so(momentum):
    model = network(momentum=momentum)
    layer = model.layers[-1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for start in range(0, 60, 20):
            model.train_on_batch(X[start : start + 20], Y[start : start + 20])
    told = ["start_anew" in str(each.message) for each in caught]
    assert sum(told) == (momentum is None)
    if momentum is None:
        np.testing.assert_allclose(layer.precision, precision_of(model, X), rtol=1e-4, atol=1e-5)


def test_a_loop_of_ones_own_says_when():
    model = network()
    layer = model.layers[-1]
    model(X, training=True)
    model(X[:10], training=True)
    twice = precision_of(model, np.concatenate([X, X[:10]]))
    np.testing.assert_allclose(layer.precision, twice, rtol=1e-4, atol=1e-5)
    layer.start_anew()
    model.train_on_batch(X[:10], Y[:10])  # without a warning
    np.testing.assert_allclose(layer.precision, precision_of(model, X[:10]), rtol=1e-4, atol=1e-5)


def test_masked_positions_do_not_count():
    layer = SNGPDense(3, **SMALL)
    x, mask = X.reshape(6, 10, 5), np.arange(60).reshape(6, 10) % 3 > 0
    layer(x, training=True, mask=tf.constant(mask))
    phi = np.asarray(layer.random_features(x[mask]))
    np.testing.assert_allclose(layer.precision, np.eye(16) + phi.T @ phi, rtol=1e-4, atol=1e-5)
    moving = SNGPDense(3, momentum=0.5, **SMALL)
    moving(x, training=True, mask=tf.zeros(mask.shape, bool))
    np.testing.assert_array_equal(moving.precision, np.eye(16))


def test_far_away_is_the_prior():
    """Random features of 1,024: the variance of the prior is 1 but for their own noise."""
    layer = SNGPDense(3, 1024, 1.0, logits_only=False, seed=1)
    for _ in range(20):
        layer(X, training=True)
    near, far = layer(X).variance, layer(X + 50).variance
    assert np.max(near) < 0.2 and np.min(far) > 0.8
    np.testing.assert_allclose(SNGPDense(3, 1024, 1.0, logits_only=False)(X).variance, 1, atol=0.2)
    far_probs = tf.nn.softmax(layer(X + 50).logits)
    mean_probs = tf.nn.softmax(layer(X + 50).mean)
    assert np.max(far_probs, -1).mean() < np.max(mean_probs, -1).mean()


def test_ways_are_closed_forms():
    layer = SNGPDense(3, mean_field_factor=2.0, logits_only=False, **SMALL)
    mean, variance = np.asarray(layer(X).mean), np.asarray(layer(X).variance)
    np.testing.assert_allclose(layer(X).logits, mean / np.sqrt(1 + 2 * variance), rtol=1e-5)
    with predicting("probit"):
        expected = mean / np.sqrt(1 + np.pi / 8 * variance)
        np.testing.assert_allclose(layer(X).logits, expected, rtol=1e-5)
    with predicting("mean"):
        np.testing.assert_array_equal(layer(X).logits, mean)
    np.testing.assert_allclose(layer.mean_logits(X), mean, rtol=1e-5, atol=1e-6)


def test_draws_have_mean_and_variance():
    """Of 4,000 draws of the network; each bound fails less than 1 correct layer in 1e6."""
    model = network()
    model.fit(X, Y, verbose=0)
    layer, count = model.layers[-1], 4000
    probs = sample_predictions(model, X[:4], num_samples=count, seed=0)
    log_ratio = np.log(probs[..., 0]) - np.log(probs[..., 1])
    rows = model.layers[0](X[:4])
    layer.logits_only = False
    found = layer(rows)
    mean, deviation = found.mean[:, 0] - found.mean[:, 1], np.sqrt(2 * found.variance[:, 0])
    assert np.all(np.abs(log_ratio.mean(0) - mean) < 6 * deviation / np.sqrt(count))
    np.testing.assert_allclose(log_ratio.std(0), deviation, rtol=6 / np.sqrt(2 * count))
    layer.logits_only = True
    assert np.all(predict_uncertainty(model, X[:4], 8).mutual_information > 0)


def test_errors_name_what_was_received():
    wrong = {
        "units": (0, 2.5, None, True),
        "num_features": (0, "many"),
        "length_scale": (0, -1.0, float("nan")),
        "ridge": (0.0, None),
        "momentum": (1.0, 0, -1, "0.9", float("nan"), True),
        "mean_field_factor": (-0.1, None, float("inf")),
        "likelihood": ("gaussian", None),
        "logits_only": ("yes",),
        "seed": (-1, 0.5),
    }
    for argument, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=f"`{argument}`.*{argument}={value!r}"):
                SNGPDense(**{"units": 3, argument: value})
    with pytest.raises(ValueError, match=r"likelihood='bernoulli'\. Received: units=1"):
        SNGPDense(1)
    assert SNGPDense(1, likelihood="bernoulli")(X).shape == (60, 1)


def test_learns_from_many_features():
    """By default the kernel is as wide as features of unit variance ask for."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size=300)
    x = (rng.normal(size=(300, 200)) + 1.5 * rng.normal(size=(3, 200))[y]).astype("float32")
    right = {}
    for length_scale in (None, 1.0):
        model = keras.Sequential([keras.Input((200,)), SNGPDense(3, 256, length_scale, seed=1)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
        model.fit(x[:200], y[:200], epochs=20, verbose=0)
        right[length_scale] = np.mean(model.predict(x[200:], verbose=0).argmax(-1) == y[200:])
    assert right[None] > 0.95 and right[1.0] < 0.6  # nothing is alike at the distance of 1
