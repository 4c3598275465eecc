"""Every detector scores in a graph as in Python, or says that it does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits

from tfuq import ood
from tfuq.ood.base import Detector
from tfuq.ood.graph_scores import GraphScore, has_graph_form

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = np.arange(40) % 3

DETECTORS = (
    ood.MaxSoftmax(),
    ood.MaxLogit(),
    ood.Energy(temperature=2.0),
    ood.Entropy(),
    ood.ODIN(epsilon=0.0),
    ood.ODIN(temperature=10.0, epsilon=0.05),
    ood.Mahalanobis(),
    ood.Mahalanobis(layers=["trunk", None]),
    ood.Mahalanobis(layers=["trunk", None], epsilon=0.01),
    ood.RelativeMahalanobis(shrinkage=0.1),
    ood.KNN(k=3),
    ood.SIRC(ood.KNN(k=3)),
    ood.SIRC(ood.RelativeMahalanobis(shrinkage=0.1)),
    ood.SIRC(ood.ViM(dim=2)),
    ood.ViM(dim=2),
    ood.GradNorm(temperature=2.0),
    ood.ReAct(percentile=70),
    ood.ReAct(percentile=70, base="max_softmax", layer="trunk"),
    ood.GEN(gamma=0.5),
    ood.KLMatching(),
    ood.SHE(),
    ood.SIRC(ood.SHE(layer="trunk")),
    ood.NNGuide(k=3),
    ood.FDBD(),
    ood.ASH(50),
    ood.ASH(50, "p", "entropy"),
    ood.ASH(50, "b", layer="trunk"),
    ood.SCALE(50),
    ood.SIRC(ood.SCALE(50)),
    ood.SCALE(50, layer="trunk"),
    ood.DICE(50),
    ood.ExGrad(),
    ood.GAIA("a"),
    ood.Gram(),
    ood.SIRC(ood.Gram(powers=(1, 2), validation=0)),
)


def classifier():
    trunk = keras.layers.Dense(6, activation="relu", name="trunk")
    return of_logits(keras.Sequential([keras.Input((4,)), trunk, keras.layers.Dense(3)]))


def graph_scores(detector, x):
    score = GraphScore(detector, tf.constant(X), tf.Variable)
    spec = tf.TensorSpec((None, 4), "float32")
    scored = tf.function(
        lambda batch: score(batch, score.read(batch)), input_signature=[spec], autograph=False
    )
    return scored(x).numpy()


@pytest.mark.filterwarnings(
    "ignore:.* classes have no example"
)  # SHE of a network that was not trained
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda each: type(each).__name__)
def test_detector_scores_in_a_graph_as_in_python(detector):
    detector.fit(classifier(), X, Y)
    x = np.concatenate([3 * X, np.full((1, 4), np.nan, "float32")])
    found, expected = graph_scores(detector, x), detector.score(x)
    assert expected[-1] == found[-1] == np.inf
    assert len(np.unique(found)) > 10
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_detector_is_compared_or_says_that_it_has_no_graph_form():
    public = [getattr(ood, name) for name in ood.__all__]
    kinds = {each for each in public if isinstance(each, type) and issubclass(each, Detector)}
    silent = {each for each in kinds if each._graph_score is None}
    assert silent == {ood.GradientDensity, ood.GradientDetector, ood.MutualInformation}
    assert kinds - silent == set(map(type, DETECTORS))
    assert all(map(has_graph_form, kinds - silent)) and not any(map(has_graph_form, silent))


def test_a_detector_without_a_hook_has_no_graph_form():
    class Other(Detector):
        pass

    assert not has_graph_form(Other)


def test_neighbours_are_found_block_by_block(monkeypatch):
    x = 2 * X + 1
    for detector in (ood.KNN(k=5), ood.NNGuide(k=5)):
        whole = detector.fit(classifier(), X).score(x)
        own = detector.threshold_at(0.5)
        with monkeypatch.context() as patch:
            for file in ("neighbours", "patterns"):
                patch.setattr(f"tfuq.ood.{file}.BLOCK", 7)
            np.testing.assert_allclose(graph_scores(detector, x), whole, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(detector.score(x), whole, rtol=1e-12)
            assert detector.threshold_at(0.5) == pytest.approx(own, rel=1e-12)
