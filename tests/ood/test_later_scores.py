"""Scores of the years since 2021 against those of pytorch-ood, and against closed forms."""

import pathlib

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers
from scipy import special, stats

from tfuq import ood
from tfuq.export import export_onnx

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
    "ash_s": (ood.ASH(50), 1, 1e-12),
    "ash_p": (ood.ASH(50, "p"), 1, 1e-12),
    "ash_b": (ood.ASH(50, "b"), 1, 1e-12),
    "scale": (ood.SCALE(50), 1, 1e-12),
    "dice": (ood.DICE(70), 1, 1e-6),
}


# Of equal activations (zeros) ASH-B fills some, and which these are is nobody's rule.
IS_CLEAR = np.sort(TEST, axis=1)[:, 3] > 0


def comparable(name):
    """Rows whose score is defined."""
    return IS_CLEAR if name == "ash_b" else slice(None)


def test_most_rows_are_comparable():
    assert np.count_nonzero(IS_CLEAR) > 15


@pytest.mark.parametrize("name", AS_THEIRS)
def test_as_pytorch_ood(name, network):
    detector, factor, _ = AS_THEIRS[name]
    found, rows = detector.fit(network, TRAIN_X, LABELS).score(TEST_X), comparable(name)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found[rows], factor * THEIRS[name][rows], rtol=1e-4, atol=1e-5)


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
    rows = comparable(name)
    np.testing.assert_allclose(found[rows], factor * THEIRS[name][rows], rtol=rough, atol=rough)


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
    with pytest.warns(UserWarning, match=r"1 of 3 classes have no example .* \[1\].*inf"):
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


# --- In files of other runtimes -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gen", "kl_matching", "nnguide", "ash_s", "dice"])
def test_in_onnx(name, network, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    detector = AS_THEIRS[name][0].fit(network, TRAIN_X, LABELS)
    export_onnx(network, tmp_path / "m.onnx", ood=detector)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {session.get_inputs()[0].name: TEST_X.astype("float32")})
    expected = detector.score(TEST_X)
    np.testing.assert_allclose(found[names.index("ood_score")], expected, rtol=1e-4, atol=1e-5)


# --- Features and weights that are changed -------------------------------------------------------

MAPS = np.abs(RNG.normal(size=(20, 4, 4, 3))).astype("float32")


def shaped_by_hand(maps, percentile, kind):
    """A loop over examples, each of which is one flat vector."""
    shaped = np.zeros(maps.shape)
    for row, flat in zip(shaped.reshape(len(maps), -1), maps.reshape(len(maps), -1), strict=True):
        kept = np.argsort(-flat)[: flat.size - round(flat.size * percentile / 100)]
        factor = np.exp(flat.sum() / flat[kept].sum())
        if kind == "scale":
            row[:] = flat * factor
        else:
            fill = flat.sum() / len(kept)
            row[kept] = {"s": flat[kept] * factor, "p": flat[kept], "b": fill}[kind]
    return shaped


@pytest.mark.parametrize("kind", ["s", "p", "b", "scale"])
def test_maps_inside_a_network_are_shaped(kind):
    """All positions and channels of an example compete, and the rest of the network goes on."""
    maps = layers.Identity(name="maps")
    rest = [layers.Flatten(), layers.Dense(5, "relu"), layers.Dense(3)]
    model = of_logits(keras.Sequential([keras.Input(MAPS.shape[1:]), maps, *rest]))
    detector = ood.SCALE(70, layer="maps") if kind == "scale" else ood.ASH(70, kind, layer="maps")
    found = detector.fit(model, MAPS).score(MAPS)
    logits = model.predict(shaped_by_hand(MAPS, 70, kind), verbose=0)
    np.testing.assert_allclose(found, -special.logsumexp(logits, axis=1), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`head` must be given"):
        detector.score_features(MAPS.reshape(20, -1))


def test_activations_that_are_not_there_or_negative():
    """Zeros stay zeros; where the largest sum to less than 0, the ratio means nothing."""
    head = (np.eye(4)[:, :3], None)
    features = np.array([[3.0, 1.0, 0.0, 0.0], [0, 0, 0, 0], [-1, -2, -3, -4], [5, -1, -1, -1]])
    for detector in (ood.SCALE(50), ood.ASH(50)):
        found = detector.fit_features(np.abs(features), head=head).score_features(features)
        assert np.isposinf(found).tolist() == [False, False, True, False]
        assert found[1] == pytest.approx(-np.log(3), rel=1e-12)
    expected = -special.logsumexp(features[3, :3] * np.exp(2 / 4))
    found = ood.SCALE(50).fit_features(features, head=head).score_features(features)
    assert found[3] == pytest.approx(expected, rel=1e-12)


def test_inside_a_network_a_ratio_below_0_is_unknown_too():
    """Behind it NaN may become a number like any: in max-pooling, in a ReLU that is fused."""
    first = [layers.Dense(9, "tanh", name="first"), layers.Reshape((9, 1))]
    rest = [layers.MaxPooling1D(3), layers.Flatten(), layers.Dense(3)]
    keras.utils.set_random_seed(1)
    model = of_logits(keras.Sequential([keras.Input((5,)), *first, *rest]))
    x = (2 * RNG.normal(size=(60, 5))).astype("float32")
    largest = -np.sort(-model.layers[0](x).numpy(), axis=1)[:, :5]
    is_unknown = largest.sum(1) < 0
    assert 1 <= is_unknown.sum() < 30
    for detector in (ood.SCALE(45, layer="first"), ood.ASH(45, layer="first")):
        found = detector.fit(model, x).score(x)
        np.testing.assert_array_equal(np.isposinf(found), is_unknown)


def test_nothing_is_removed_at_percentile_0():
    features, kernel = np.abs(RNG.normal(size=(30, 6))), RNG.normal(size=(6, 3))
    plain = -special.logsumexp(features @ kernel, axis=1)
    found = ood.ASH(0, "p").fit_features(features, head=(kernel, None)).score_features(features)
    np.testing.assert_allclose(found, plain)
    scaled = ood.SCALE(0).fit_features(features, head=(kernel, None)).score_features(features)
    np.testing.assert_allclose(scaled, -special.logsumexp(np.e * features @ kernel, axis=1))


def test_weights_that_contribute_little_are_left_out():
    features, kernel = np.abs(RNG.normal(size=(30, 6))), RNG.normal(size=(6, 3))
    contributions = features.mean(0)[:, None] * kernel
    kept = np.argsort(contributions.ravel())[-9:]  # half of 18
    sparse = np.zeros(18)
    sparse[kept] = kernel.ravel()[kept]
    logits = features @ sparse.reshape(6, 3) + 0.1
    for base, expected in (
        ("energy", -special.logsumexp(logits, axis=1)),
        ("max_logit", -logits.max(1)),
        ("entropy", stats.entropy(special.softmax(logits, axis=1), axis=1)),
    ):
        detector = ood.DICE(50, base).fit_features(features, head=(kernel, np.full(3, 0.1)))
        np.testing.assert_allclose(detector.score_features(features), expected)
