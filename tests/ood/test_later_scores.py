"""Scores of the years since 2021 against those of pytorch-ood, and against closed forms."""

import pathlib

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers
from scipy import special, stats

from tfuq import ood

RNG = np.random.default_rng(0)
FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "pytorch_ood_later.npz"
THEIRS = dict(np.load(FIXTURE))
WEIGHTS = [THEIRS[f"{kind}_{i}"] for i in range(3) for kind in ("kernel", "bias")]
TRAIN_X, LABELS, TEST_X = (THEIRS[name] for name in ("train_x", "labels", "test_x"))


def features_of(x):
    for kernel, bias in zip(WEIGHTS[:4:2], WEIGHTS[1:4:2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    return x


TRAIN, TEST = features_of(TRAIN_X), features_of(TEST_X)
HEAD = tuple(WEIGHTS[4:])
TRAIN_LOGITS, LOGITS = (rows @ HEAD[0] + HEAD[1] for rows in (TRAIN, TEST))


@pytest.fixture(scope="module")
def network():
    """The network of the fixture."""
    dense = [layers.Dense(8, "relu"), layers.Dense(6, "relu"), layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *dense])
    model.set_weights(WEIGHTS)
    return of_logits(model)


# --- pytorch-ood ---------------------------------------------------------------------------------

# Of each: the detector, by how much theirs is less, and how exact theirs is.
AS_THEIRS = {
    "gen": (ood.GEN(), 3, 1e-12),  # theirs is a mean over the classes
    "gen_2": (ood.GEN(0.5, 2), 2, 1e-12),
    "kl_matching": (ood.KLMatching(), 1, 1e-12),
    "she": (ood.SHE(), 1, 1e-12),
    "nnguide": (ood.NNGuide(5), 1, 1e-6),  # some of it is float32
    "fdbd": (ood.FDBD(), 1, 1e-6),
}


@pytest.mark.parametrize("name", AS_THEIRS)
def test_as_pytorch_ood(name, network):
    detector, factor, _ = AS_THEIRS[name]
    found = detector.fit(network, TRAIN_X, LABELS).score(TEST_X)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found, factor * THEIRS[name], rtol=1e-4, atol=1e-5)


def arrays_of(detector):
    """What `fit_features` and `score_features` take, and the options of the former."""
    if isinstance(detector, (ood.GEN, ood.KLMatching)):
        return TRAIN_LOGITS, LOGITS, {}
    if isinstance(detector, (ood.SHE, ood.NNGuide)):
        return (TRAIN, TRAIN_LOGITS), (TEST, LOGITS), {"y": LABELS}
    return TRAIN, TEST, {"head": HEAD}


@pytest.mark.parametrize("name", AS_THEIRS)
def test_arrays_as_pytorch_ood(name):
    detector, factor, rough = AS_THEIRS[name]
    train, test, options = arrays_of(detector)
    found = detector.fit_features(train, **options).score_features(test)
    np.testing.assert_allclose(found, factor * THEIRS[name], rtol=rough, atol=rough)


# --- Closed forms --------------------------------------------------------------------------------


def test_generalized_entropy_tells_certain_predictions_apart():
    """1 - p is 0 in float64 from a gap of 37 on."""
    gaps = np.array([40.0, 60.0, 700.0])
    logits = np.stack([gaps, np.zeros(3)], axis=1)
    expected = 2 * np.exp(-0.1 * gaps)  # p -> 1, and q = 1 - p = exp(-gap) of both classes
    np.testing.assert_allclose(ood.GEN().score_features(logits), expected, rtol=1e-12)
    one = ood.GEN().score_features(gaps[:, None])
    np.testing.assert_allclose(one, expected, rtol=1e-12)


def test_generalized_entropy_of_the_largest():
    logits = 3 * RNG.normal(size=(9, 7))
    p = np.sort(special.softmax(logits, axis=1))[:, ::-1]
    for top in (1, 3, 7, 100, None):
        expected = np.sum((p * (1 - p))[:, :top] ** 0.3, axis=1)
        np.testing.assert_allclose(ood.GEN(0.3, top).score_features(logits), expected)


def test_kl_matching_is_the_divergence_from_the_closest_mean():
    logits, new = 2 * RNG.normal(size=(60, 4)), 2 * RNG.normal(size=(9, 4))
    logits[:, 3] = -9  # a class that is never predicted has no template
    probs, p = (special.softmax(z, axis=1) for z in (logits, new))
    predicted = probs.argmax(1)
    templates = [probs[predicted == k].mean(0) for k in range(3)]
    expected = np.min([stats.entropy(p, d[None], axis=1) for d in templates], axis=0)
    found = ood.KLMatching().fit_features(logits).score_features(new)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_kl_matching_of_probabilities_that_float64_cannot_hold():
    """log d_1 is about -2000: finite, and 0 log 0 is 0."""
    detector = ood.KLMatching().fit_features([[2000.0, 0.0]])
    found = detector.score_features([[2000.0, 0.0], [0.0, 0.0], [0.0, 2000.0]])
    np.testing.assert_allclose(found, [0, 1000 - np.log(2), 2000])


def test_hopfield_energy_without_a_pattern_is_unknown():
    features, logits = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 3))
    labels = logits.argmax(1)
    labels[labels == 1] = 2
    with pytest.warns(UserWarning, match=r"No example of 1 of 3 classes .* \[1\].*inf"):
        detector = ood.SHE().fit_features((features, logits), labels)
    found, predicted = detector.score_features((features, logits)), logits.argmax(1)
    assert np.all(np.isinf(found) == (predicted == 1))
    patterns = {c: features[predicted == c].mean(0) for c in (0, 2)}
    expected = [-patterns[c] @ f for c, f in zip(predicted, features, strict=True) if c != 1]
    np.testing.assert_allclose(found[predicted != 1], expected)


def test_guidance_by_hand():
    features, logits = RNG.normal(size=(30, 4)), 1 + RNG.normal(size=(30, 3))
    new, new_logits = RNG.normal(size=(8, 4)), RNG.normal(size=(8, 3))
    detector = ood.NNGuide(4).fit_features((features, logits))

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    confidences = special.logsumexp(logits, axis=1)
    products = unit(new) @ unit(features).T * confidences
    guides = np.sort(products, axis=1)[:, -4:].mean(1)
    found = detector.score_features((new, new_logits))
    np.testing.assert_allclose(found, -guides * special.logsumexp(new_logits, axis=1))
    own = unit(features) @ unit(features).T * confidences
    np.fill_diagonal(own, -np.inf)
    expected = -np.sort(own, axis=1)[:, -4:].mean(1) * confidences
    assert detector.threshold_at(0.7).value == pytest.approx(np.sort(expected)[20])


def test_guidance_of_two_doubts_is_no_praise():
    """The product of two negatives would call what is far, of small logits, the most familiar."""
    features = np.array([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0]])
    detector = ood.NNGuide(1).fit_features((features, np.full((3, 2), 3.0)))
    s = 3 + np.log(2)
    found = detector.score_features(([[1.0, 0.0], [-1.0, 0.0]], [[3.0, 3.0], [-9.0, -9.0]]))
    far = s * np.cos(np.arctan(0.1)) * (9 - np.log(2))
    np.testing.assert_allclose(found, [-s * s, far])


def test_boundary_distances_by_hand():
    """Of three classes, each boundary by itself."""
    kernel, bias = 1e4 + RNG.normal(size=(4, 3)), RNG.normal(size=3)  # what is common counts not
    features, new = RNG.normal(size=(30, 4)), RNG.normal(size=(6, 4))
    found = ood.FDBD().fit_features(features, head=(kernel, bias)).score_features(new)
    for x, score in zip(new, found, strict=True):
        z = x @ kernel + bias
        y = z.argmax()
        lengths = [np.linalg.norm(kernel[:, y] - kernel[:, c]) for c in range(3) if c != y]
        gaps = z[y] - np.delete(z, y)
        deviation = np.linalg.norm(x - features.mean(0))
        np.testing.assert_allclose(score, -np.mean(gaps / lengths) / deviation, rtol=1e-7)


def test_boundary_of_one_logit():
    kernel, bias = RNG.normal(size=(4, 1)), np.array([0.3])
    features = RNG.normal(size=(30, 4))
    found = ood.FDBD().fit_features(features, head=(kernel, bias)).score_features(features)
    near = np.abs(features @ kernel + bias)[:, 0] / np.linalg.norm(kernel)
    deviation = np.linalg.norm(features - features.mean(0), axis=1)
    np.testing.assert_allclose(found, -near / deviation)
