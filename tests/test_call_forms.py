"""Names that were promised with their arguments: each form as it is written, and used once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits

import tfuq
from tfuq.predictive import sample_predictions

Y = np.arange(48) % 3
CENTERS = np.random.default_rng(0).normal(size=(3, 6))
X = (np.random.default_rng(1).normal(size=(48, 6)) + 2 * CENTERS[Y]).astype("float32")
OTHER = 4 * np.random.default_rng(2).normal(size=(48, 6)).astype("float32")
GIVEN = {"tfuq": tfuq, "units": 3, "num_factors": 2, "num_members": 2, "learning_rate": 0.1}

LAYERS = (
    "tfuq.layers.MCSoftmaxDenseXL(units, num_factors)",
    "tfuq.layers.SNGPDense(units)",
    "tfuq.layers.BatchEnsembleDense(units, num_members)",
)
CONVERSIONS = (
    'tfuq.convert.laplace_head(model, (x, y), structure="kfac")',
    "tfuq.convert.spectral_normalize(model, norm_bound=0.95)",
)
DETECTORS = (
    *("SCALE()", "ASH()", "GEN()", "NNGuide()", "FDBD()", "SHE()", "DICE()", "KLMatching()"),
    *("GAIA()", "ExGrad()", "Gram()"),
)
LOSSES = ("tfuq.losses.LogitNorm()", "tfuq.losses.OutlierExposure()")


def made(form, **given):
    """What a form says, of these names."""
    return eval(form, {**GIVEN, **given})


def network():
    """Eight features and three classes, by logits; it has learned most of its rows."""
    keras.utils.set_random_seed(15)
    layers = [keras.layers.Dense(8, name="trunk"), keras.layers.ReLU(), keras.layers.Dense(3)]
    return of_logits(keras.Sequential([keras.Input((6,)), *layers]))


@pytest.fixture(scope="module")
def model():
    model = network()
    model.optimizer.learning_rate = 0.1
    model.fit(X, Y, epochs=20, verbose=0)
    assert np.mean(model.predict(X, verbose=0).argmax(-1) == Y) > 0.8
    return model


@pytest.mark.parametrize("form", LAYERS)
def test_layers(form):
    layer = made(form)
    outputs = layer(X)
    logits = getattr(outputs, "logits", outputs)
    assert logits.shape == (48, 3) and np.isfinite(logits).all()
    with tf.GradientTape() as tape:
        outputs = layer(X, training=True)
        logits = getattr(outputs, "logits", outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(Y, logits)
    for gradient in tape.gradient(loss, layer.trainable_variables):
        assert gradient is not None and np.isfinite(gradient).all()


@pytest.mark.parametrize("form", CONVERSIONS)
def test_conversions(form, model):
    copy = made(form, model=model, x=X, y=Y)
    assert copy is not model
    found, plain = (each.predict(X, verbose=0) for each in (copy, model))
    if "laplace" in form:

        def certainty(logits):
            return np.max(tf.nn.softmax(logits), axis=-1).mean()

        assert np.mean(found.argmax(-1) == plain.argmax(-1)) > 0.9
        assert certainty(found) < certainty(plain)
        return
    norms = [np.linalg.norm(each.kernel, 2) for each in (model.layers[0], copy.layers[0])]
    assert norms[0] > 1 and norms[1] < 0.951


def test_ivon_draws():
    model = network()
    optimizer = made("tfuq.optimizers.IVON(learning_rate, num_data=n)", n=len(X))
    model.compile(optimizer, model.loss, jit_compile=False)
    losses = model.fit(X, Y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    draws = sample_predictions(model, X, num_samples=3)
    assert draws.shape == (3, 48, 3) and np.all(draws.std(axis=0).max(axis=0) > 1e-4)


def test_swag_draws():
    model = network()
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[made("tfuq.callbacks.SWAG(start=2)")])
    draws = sample_predictions(model, X, num_samples=3)
    assert draws.shape == (3, 48, 3) and np.all(draws.std(axis=0).max(axis=0) > 1e-6)


@pytest.mark.parametrize("form", DETECTORS)
def test_detectors(form, model):
    detector = made(f"tfuq.ood.{form}").fit(model, X, Y)
    scores = detector.score(OTHER)
    assert scores.shape == (48,) and np.isfinite(scores).all() and len(np.unique(scores)) > 3
    limit = detector.threshold_at(0.5).value
    np.testing.assert_array_equal(detector.detect(OTHER), scores > limit)


@pytest.mark.parametrize("form", LOSSES)
def test_losses(form):
    """Less of the right classes than of wrong ones, and with a gradient."""
    loss, logits = made(form), tf.constant(3 * np.eye(3, dtype="float32"))
    assert loss([0, 1, 2], logits) < loss([1, 2, 0], logits)
    model = network()
    model.compile("sgd", loss, jit_compile=False)
    losses = model.fit(X, Y, epochs=2, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
