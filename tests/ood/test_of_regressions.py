"""Detectors on the features of a regression: against scikit-learn, of every head, and refusals."""

import keras
import numpy as np
import pytest
import sklearn.covariance
import sklearn.neighbors
import sklearn.preprocessing
import tensorflow as tf
from keras import layers

from tfuq import ood
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import NormalDense, QuantileDense, VBLLRegression
from tfuq.ood import KNN, SIRC, GradientDensity, GradientFeatures, Gram, Mahalanobis

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)).astype("float32")
Y = X.sum(1)
NEW = RNG.normal(size=(30, 4)).astype("float32")
FAR = 9 + NEW


def network(*last, loss=None):
    keras.utils.set_random_seed(2)
    hidden = [layers.Dense(7, "tanh", name="hidden"), layers.Dense(5, "tanh", name="features")]
    model = keras.Sequential([keras.Input((4,)), *hidden, *last])
    if loss is not None:
        model.compile("sgd", loss)
    return model


HEADS = {
    "NormalDense": lambda: network(NormalDense(1)),
    "VBLLRegression": lambda: network(VBLLRegression(2, kl_weight=0.01)),
    "QuantileDense": lambda: network(QuantileDense(1)),
    "Dense": lambda: network(layers.Dense(1), loss="mse"),
    "Dense, then scaled": lambda: network(layers.Dense(2), layers.Rescaling(3.0), loss="mae"),
    "Dense, then reshaped": lambda: network(layers.Dense(2), layers.Reshape((2, 1)), loss="mae"),
}


def features_of(model, x, name="features"):
    return keras.Model(model.inputs, model.get_layer(name).output).predict(x, verbose=0)


@pytest.mark.slow_cases("QuantileDense", "Dense, then*")
@pytest.mark.parametrize("head", HEADS)
def test_scores_are_those_of_scikit_learn(head):
    """On what the head takes; y is not looked at, whole numbers of it are no classes."""
    model = HEADS[head]()
    known, new = features_of(model, X), np.concatenate([NEW, FAR])
    y = np.round(np.tile(Y[:, None], (1, model.output_shape[1])))
    found = Mahalanobis().fit(model, X, y).score(new)
    gaussian = sklearn.covariance.EmpiricalCovariance().fit(known.astype("float64"))
    np.testing.assert_allclose(found, gaussian.mahalanobis(features_of(model, new)), rtol=1e-3)
    unit = sklearn.preprocessing.normalize
    nearest = sklearn.neighbors.NearestNeighbors(n_neighbors=3).fit(unit(known))
    expected = nearest.kneighbors(unit(features_of(model, new)))[0][:, -1]
    np.testing.assert_allclose(KNN(3).fit(model, X).score(new), expected, rtol=1e-3, atol=1e-4)
    assert found[30:].min() > found[:30].mean()


def test_the_output_that_is_named():
    """Each of two heads has features of its own."""
    inputs = keras.Input((4,))
    first, second = layers.Dense(3, "tanh")(inputs), layers.Dense(5, "tanh")(inputs)
    outputs = {"age": NormalDense(1)(second), "weight": NormalDense(1)(first)}
    model = keras.Model(inputs, outputs)
    for output, width in (("age", 5), ("weight", 3)):
        assert KNN(3, output=output).fit(model, X)._widths == [width]
    scaled = {name: layers.Rescaling(2.0)(value) for name, value in outputs.items()}
    model = keras.Model(inputs, scaled)
    model.compile("sgd", {"age": "mse", "weight": "mse"})
    with pytest.raises(ValueError, match="`output` must be the output of a layer with weights"):
        KNN(3, output="age").fit(model, X)


def test_gram_matrices_of_one_class(tmp_path):
    model = HEADS["NormalDense"]()
    detector = Gram(powers=(1, 2)).fit(model, X)
    assert detector._widths == [14, 10, 1]
    assert np.median(detector.score(FAR)) > 5 * np.median(detector.score(NEW))
    detector.save(tmp_path / "gram.npz")
    again = ood.load_detector(tmp_path / "gram.npz", model)
    np.testing.assert_array_equal(again.score(FAR), detector.score(FAR))


@pytest.mark.slow
def test_an_ensemble_has_the_features_of_its_members():
    members = [HEADS["NormalDense"](), HEADS["NormalDense"]()]
    detector = Mahalanobis(layers=["hidden", None]).fit(DeepEnsemble.from_models(members), X)
    assert detector._widths == [14, 10]
    assert detector.score(FAR).min() > detector.score(NEW).mean()


def test_gradients_of_a_named_loss():
    """They are those that a tape finds, example by example."""
    model = HEADS["NormalDense"]()
    loss = model.layers[-1].negative_log_likelihood(reduction="none")
    features = GradientFeatures(model, [2.5], loss=loss)
    found = features(NEW[:3])
    for i in range(3):
        with tf.GradientTape() as tape:
            value = loss(tf.constant([[2.5]]), model(NEW[i : i + 1]))
        gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
        expected = [float(tf.reduce_sum(g**2)) for g in gradients]
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)
    density = GradientDensity().fit(features, X)
    assert np.median(density.score(FAR)) > np.median(density.score(NEW))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": lambda y, params: params[..., 0]},
        {"loss": lambda y, params: params[..., 0], "confounding_label": [1.0, 2.0]},
    ],
)
def test_gradients_need_a_loss_and_a_y(options):
    with pytest.raises(ValueError, match="`confounding_label` must"):
        GradientFeatures(HEADS["NormalDense"](), **options)(NEW)


OF_CLASSES = sorted(
    name
    for name in ood.__all__
    if isinstance(getattr(ood, name), type)
    and issubclass(getattr(ood, name), ood.base.Detector)
    and name not in ("GradientDensity", "GradientDetector", "MutualInformation")
    and name not in ("KNN", "Mahalanobis", "Gram")
)


@pytest.mark.parametrize("head", ["NormalDense", "Dense"])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_those_of_classes_say_what_fits(head, name):
    kind = getattr(ood, name)
    detector = SIRC(KNN(3)) if kind is SIRC else kind()
    with pytest.raises(ValueError, match=f"classifier for {name}: .*KNN, Mahalanobis or Gram"):
        detector.fit(HEADS[head](), X, np.arange(120) % 2)
