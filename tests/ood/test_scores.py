"""Scores against those of pytorch-ood, scikit-learn, SciPy, and against closed forms."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers
from scipy import special, stats
from sklearn.covariance import EmpiricalCovariance, LedoitWolf, ShrunkCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from tfuq import metrics, ood
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import VBLLDense
from tfuq.ood._last_layer_formulas import residual_space
from tfuq.ood._logit_scores import LOGIT_SCORES
from tfuq.predictive import mutual_information, sample_predictions

RNG = np.random.default_rng(0)
FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "pytorch_ood.npz"
THEIRS = dict(np.load(FIXTURE))
WEIGHTS = [THEIRS[f"{kind}_{i}"] for i in range(3) for kind in ("kernel", "bias")]
TRAIN_X, LABELS, TEST_X = (THEIRS[name] for name in ("train_x", "labels", "test_x"))
EPSILON = 0.05  # of the fixture


def features_of(x):
    for kernel, bias in zip(WEIGHTS[:4:2], WEIGHTS[1:4:2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    return x


TRAIN, TEST = features_of(TRAIN_X), features_of(TEST_X)
HEAD = tuple(WEIGHTS[4:])
RESIDUALS = TRAIN - np.stack([TRAIN[c == LABELS].mean(0) for c in range(3)])[LABELS]


@pytest.fixture(scope="module")
def network():
    """The network of the fixture."""
    dense = [layers.Dense(8, "relu"), layers.Dense(6, "relu"), layers.Dense(3)]
    model = keras.Sequential([keras.Input((5,)), *dense])
    model.set_weights(WEIGHTS)
    return of_logits(model)


# --- pytorch-ood ---------------------------------------------------------------------------------

# They add 1e-6 to the diagonal of the sum of 120 outer products, where tfuq shrinks their mean.
ADDED, SPREAD = 1e-6 / 120, np.mean(RESIDUALS**2)
SHRINKAGE = ADDED / (SPREAD + ADDED)

# Of each: the detector, and how theirs becomes the same number.
AS_THEIRS = {
    "max_softmax": (ood.MaxSoftmax(), lambda s: 1 + s),
    "max_logit": (ood.MaxLogit(), lambda s: s),
    "energy": (ood.Energy(), lambda s: s),
    "energy_2": (ood.Energy(2.0), lambda s: s),
    "entropy": (ood.Entropy(), lambda s: s),
    "odin": (ood.ODIN(10.0, EPSILON), lambda s: 1 + s),
    "mahalanobis": (ood.Mahalanobis(shrinkage=SHRINKAGE), lambda s: 240 * s / (1 - SHRINKAGE)),
    "mahalanobis_moved": (ood.Mahalanobis(epsilon=EPSILON), lambda s: 240 * s),
    "relative": (ood.RelativeMahalanobis(), lambda s: 120 * s),
    "knn": (ood.KNN(k=5), lambda s: s),
    "vim": (ood.ViM(dim=4), lambda s: s),
    "react": (ood.ReAct(90), lambda s: s),
    "grad_norm": (ood.GradNorm(), lambda s: s),
}
# What they add differs between the two distances of `relative`; their ViM is float32.
ROUGH = {"relative": 1e-4, "vim": 3e-4}


@pytest.mark.parametrize("name", AS_THEIRS)
def test_as_pytorch_ood(name, network):
    detector, convert = AS_THEIRS[name]
    expected = convert(THEIRS[name])
    found = detector.fit(network, TRAIN_X, LABELS).score(TEST_X)
    assert found.dtype == "float64"
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=ROUGH.get(name, 1e-5))


@pytest.mark.parametrize("name", [n for n in AS_THEIRS if n not in ("odin", "mahalanobis_moved")])
def test_arrays_as_pytorch_ood(name):
    detector, convert = AS_THEIRS[name]
    if isinstance(detector, (ood.ViM, ood.ReAct, ood.GradNorm)):
        detector.fit_features(TRAIN, head=HEAD)
    elif detector._shapes():
        detector.fit_features(TRAIN, LABELS)
    found = detector.score_features(TEST if detector._shapes() else THEIRS["logits"])
    rough = ROUGH.get(name, 1e-9)
    np.testing.assert_allclose(found, convert(THEIRS[name]), rtol=rough, atol=rough)


# --- Direction -----------------------------------------------------------------------------------

DETECTORS = {
    "MaxSoftmax": ood.MaxSoftmax(),
    "MaxLogit": ood.MaxLogit(),
    "Energy": ood.Energy(),
    "Entropy": ood.Entropy(),
    "ODIN": ood.ODIN(epsilon=0.01),
    "Mahalanobis": ood.Mahalanobis(),
    "Mahalanobis (P+FE)": ood.Mahalanobis(layers=["hidden", None], epsilon=0.01),
    "RelativeMahalanobis": ood.RelativeMahalanobis(),
    "KNN": ood.KNN(k=5),
    "ViM": ood.ViM(dim=3),
    "ReAct": ood.ReAct(),
    "GradNorm": ood.GradNorm(),
    "GEN": ood.GEN(),
    "KLMatching": ood.KLMatching(),
    "SHE": ood.SHE(),
    "NNGuide": ood.NNGuide(k=5),
    "FDBD": ood.FDBD(),
    "ASH": ood.ASH(50, "p"),
    "SCALE": ood.SCALE(80),
    "DICE": ood.DICE(),
    "ExGrad": ood.ExGrad(),
    "Gram": ood.Gram(powers=(1, 2)),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_larger_is_further_out(name):
    """Three classes, each along an axis of its own; what is far out lies along a fourth."""
    hidden = layers.Dense(6, "linear", kernel_initializer="identity", name="hidden")
    head = layers.Dense(3, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((6,)), hidden, head])
    model.run_eagerly = True
    of_logits(model)
    labels = np.arange(90) % 3
    known = 5 * np.eye(6)[labels] + RNG.normal(0, 0.3, (90, 6))
    other = 3 * np.eye(6)[np.full(30, 3)] + RNG.normal(0, 0.3, (30, 6))
    detector = DETECTORS[name].fit(model, known[:60], labels[:60])
    scores = detector.score(np.concatenate([known[60:], other]))
    assert metrics.auroc(np.repeat([0, 1], 30), scores) == 1


# --- Logits --------------------------------------------------------------------------------------


def test_one_logit_is_two_classes():
    z = RNG.normal(size=(20, 1)) * 3
    p = special.expit(z[:, 0])
    entropy = stats.entropy([p, 1 - p])
    np.testing.assert_allclose(ood.MaxSoftmax().score_features(z), np.minimum(p, 1 - p))
    np.testing.assert_allclose(ood.Entropy().score_features(z), entropy)
    np.testing.assert_allclose(ood.MaxLogit().score_features(z), -np.abs(z[:, 0]) / 2)
    np.testing.assert_allclose(
        ood.Energy(2.0).score_features(z), -2 * np.log(2 * np.cosh(z[:, 0] / 4))
    )


def test_certain_predictions_stay_apart():
    z = np.array([[50.0, 0.0], [60.0, 0.0], [800.0, 0.0], [-800.0, -900.0]])
    found = ood.MaxSoftmax().score_features(z)
    np.testing.assert_allclose(found[:2], np.exp([-50, -60]))
    np.testing.assert_allclose(ood.Entropy().score_features(z)[2:], 0, atol=1e-30)
    np.testing.assert_allclose(ood.Energy().score_features(z)[2:], [-800, 800])


def by_tape(value, x):
    """The gradient of a sum over examples, at each of the inputs."""
    x = [tf.constant(part, "float32") for part in x]
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(value(x))
    return [gradient.numpy() for gradient in tape.gradient(total, x)]


def test_odin_moves_all_inputs():
    first, second = keras.Input((4, 4, 2)), keras.Input((3,))
    joined = layers.Concatenate()([layers.Flatten()(layers.Conv2D(3, 2)(first)), second])
    model = keras.Model([first, second], layers.Dense(3, "softmax")(joined))
    x = [RNG.normal(size=(6, *shape)).astype("float32") for shape in ((4, 4, 2), (3,))]
    logits = keras.Model(model.inputs, joined)

    def at(x, temperature=5.0):
        kernel, bias = model.layers[-1].weights
        return (logits(x) @ kernel.value + bias.value) / temperature

    gradients = by_tape(lambda x: -tf.reduce_max(tf.nn.log_softmax(at(x)), 1), x)
    moved = [part - 0.1 * np.sign(gradient) for part, gradient in zip(x, gradients, strict=True)]
    expected = 1 - special.softmax(at(moved), 1).max(1)
    detector = ood.ODIN(5.0, 0.1).fit(model, x)
    np.testing.assert_allclose(detector.score(x), expected, rtol=1e-4)
    assert np.all(detector.score(x) < ood.ODIN(5.0, 0.0).fit(model, x).score(x))


# --- Gaussians -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator, options, count",
    [
        (EmpiricalCovariance(assume_centered=True), {}, 120),
        (ShrunkCovariance(shrinkage=0.3, assume_centered=True), {"shrinkage": 0.3}, 120),
        (LedoitWolf(assume_centered=True), {}, 5),  # not of full rank
    ],
)
def test_mahalanobis_as_scikit_learn(estimator, options, count):
    x, labels = TRAIN[:count], LABELS[:count]
    means = np.stack([x[labels == c].mean(0) for c in range(3)])
    estimator.fit(x - means[labels])
    expected = np.min([estimator.mahalanobis(TEST - mean) for mean in means], axis=0)
    detector = ood.Mahalanobis(**options).fit_features(x, labels)
    np.testing.assert_allclose(detector.score_features(TEST), expected, rtol=1e-8)
    one_hot = ood.Mahalanobis(**options).fit_features(x, np.eye(3)[labels])
    np.testing.assert_array_equal(one_hot.score_features(TEST), detector.score_features(TEST))
    background = type(estimator)(**estimator.get_params()).fit(x - x.mean(0))
    relative = ood.RelativeMahalanobis(**options).fit_features(x, labels).score_features(TEST)
    expected = expected - background.mahalanobis(TEST - x.mean(0))
    np.testing.assert_allclose(relative, expected, rtol=1e-7, atol=1e-8)


def test_input_processing_moves_to_the_closest_class(network):
    """For each layer by itself, as the tape says; the fixture has the penultimate layer alone."""
    names = [network.layers[0].name, None]
    detector = ood.Mahalanobis(layers=names, epsilon=0.1).fit(network, TRAIN_X, LABELS)
    found = []
    for i in range(2):
        part = keras.Model(network.inputs[0], network.layers[i].output)
        train = np.asarray(part(TRAIN_X.astype("float32")), "float64")
        means = np.stack([train[c == LABELS].mean(0) for c in range(3)])
        precision = np.linalg.inv(np.cov((train - means[LABELS]).T, bias=True))

        def distance(x, part=part, means=means, precision=precision):
            gaps = tf.cast(part(x), "float64")[:, None] - means
            return tf.reduce_min(tf.einsum("ncd,de,nce->nc", gaps, precision, gaps), 1)

        gradient = by_tape(lambda x: distance(x[0]), [TEST_X])[0]
        moved = distance(tf.constant(TEST_X - 0.1 * np.sign(gradient), "float32")).numpy()
        at_train = distance(tf.constant(TRAIN_X, "float32")).numpy()
        found.append((moved - at_train.mean()) / at_train.std())
    np.testing.assert_allclose(detector.score(TEST_X), np.mean(found, 0), rtol=1e-3, atol=1e-4)


def test_weights_of_layers_as_scikit_learn():
    shallow = np.maximum(TRAIN_X @ WEIGHTS[0] + WEIGHTS[1], 0)
    both = [shallow, TRAIN]
    detector = ood.Mahalanobis(layers=["hidden", None]).fit_features(both, LABELS)
    single = [ood.Mahalanobis().fit_features(rows, LABELS) for rows in both]

    def distances(scale):
        parts = zip(single, (scale * shallow, scale * TRAIN), strict=True)
        return np.stack([d.score_features(rows) for d, rows in parts], 1)

    z = (distances(1) - distances(1).mean(0)) / distances(1).std(0)
    np.testing.assert_allclose(detector.score_features(both), z.mean(1), rtol=1e-9, atol=1e-9)
    detector.threshold_at(0.9)
    detector.fit_weights_features(both, [1.3 * rows for rows in both])
    assert detector.threshold is None
    joint = np.concatenate([distances(1), distances(1.3)])
    z = (joint - joint.mean(0)) / joint.std(0)
    model = LogisticRegression(C=1.0, tol=1e-12).fit(z, np.repeat([0, 1], 120))
    expected = model.decision_function(z)[:120]
    np.testing.assert_allclose(detector.score_features(both), expected, rtol=1e-4, atol=1e-5)
    assert detector.threshold_at(0.9).value == pytest.approx(np.sort(expected)[107], rel=1e-4)


def test_weights_of_layers_from_inputs(network):
    options = {"layers": [network.layers[0].name, None]}
    outside = 2 * TRAIN_X
    found = ood.Mahalanobis(**options).fit(network, TRAIN_X, LABELS).fit_weights(TRAIN_X, outside)
    hidden = [np.maximum(x @ WEIGHTS[0] + WEIGHTS[1], 0) for x in (TRAIN_X, outside)]
    features = [[h, features_of(x)] for h, x in zip(hidden, (TRAIN_X, outside), strict=True)]
    expected = ood.Mahalanobis(**options).fit_features(features[0], LABELS)
    expected.fit_weights_features(*features)
    np.testing.assert_allclose(found.score(outside), expected.score_features(features[1]), 1e-3)


def test_features_of_images_are_means_over_positions():
    inputs = keras.Input((5, 5, 2))
    maps = layers.Conv2D(4, 2, name="maps")(inputs)
    model = of_logits(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(maps))))
    x, y = RNG.normal(size=(30, 5, 5, 2)), np.arange(30) % 3
    found = ood.Mahalanobis("maps").fit(model, x, y).score(x)
    maps = np.asarray(keras.Model(inputs, maps)(x))
    expected = ood.Mahalanobis().fit_features(maps.mean((1, 2)), y)
    np.testing.assert_allclose(found, expected.score_features(maps), rtol=1e-4)


# --- Neighbours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 4096])
def test_neighbours_as_scikit_learn(block, monkeypatch):
    monkeypatch.setattr("tfuq.ood.neighbours.BLOCK", block)
    unit = TRAIN / np.linalg.norm(TRAIN, axis=1, keepdims=True)
    expected = NearestNeighbors(n_neighbors=9).fit(unit)
    detector = ood.KNN(k=9).fit_features(TRAIN)
    queries = TEST / np.linalg.norm(TEST, axis=1, keepdims=True)
    found = expected.kneighbors(queries)[0][:, -1]
    np.testing.assert_allclose(detector.score_features(TEST), found, rtol=1e-6)
    others = np.sort(expected.kneighbors()[0][:, -1])  # each without itself
    assert detector.threshold_at(0.9).value == pytest.approx(others[107], rel=1e-6)


@pytest.mark.parametrize("size", [1e30, 1e-30])  # of which float32 has no square
def test_neighbours_of_any_length_in_float32(size):
    features, new = (RNG.normal(size=(n, 4)).astype("float32") for n in (30, 8))
    expected = ood.KNN(3).fit_features(features).score_features(new)
    found = ood.KNN(3).fit_features(np.float32(size) * features)
    np.testing.assert_allclose(found.score_features(np.float32(size) * new), expected, rtol=1e-5)


def test_neighbours_need_others():
    detector = ood.KNN(k=3).fit_features(np.eye(3))
    np.testing.assert_allclose(detector.score_features(np.eye(3)), np.sqrt(2))
    np.testing.assert_allclose(detector.score_features(np.zeros((1, 3))), 1)
    with pytest.raises(ValueError, match="`x` must be given"):
        detector.threshold_at(0.9)


# --- The last layer ------------------------------------------------------------------------------


def test_vim_by_singular_vectors():
    kernel, bias = HEAD
    origin = np.linalg.lstsq(kernel.T, -bias, rcond=None)[0]
    rest = np.linalg.svd(TRAIN - origin)[2][3:]
    length = [np.linalg.norm((rows - origin) @ rest.T, axis=1) for rows in (TRAIN, TEST)]
    alpha = (TRAIN @ kernel + bias).max(1).mean() / length[0].mean()
    expected = alpha * length[1] - special.logsumexp(TEST @ kernel + bias, axis=1)
    detector = ood.ViM().fit_features(TRAIN, head=HEAD)  # half of six
    np.testing.assert_allclose(detector.score_features(TEST), expected, rtol=1e-8)


def test_vim_of_fewer_examples_than_features():
    """By another road, in d^2 n, to the same lengths: the axes of a subspace are arbitrary."""
    few, origin = RNG.normal(size=(5, 12)), RNG.normal(size=12)
    total = (few - origin).T @ (few - origin)
    expected = np.linalg.eigh(total)[1][:, : 12 - 3]
    found = residual_space(few, origin, 3)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-12)


def test_dimensions_of_vim():
    """As in the authors' code, where it has one."""
    found = [ood.ViM()._dim_of(width) for width in (6, 767, 768, 2047, 2048)]
    assert found == [3, 383, 512, 512, 1000]


@pytest.mark.parametrize("classes", [1, 3])
def test_grad_norm_by_tape(classes):
    kernel, bias = RNG.normal(size=(6, classes)), RNG.normal(size=classes)
    detector = ood.GradNorm(temperature=2.0).fit_features(TRAIN, head=(kernel, bias))
    if classes == 1:  # z is (-z / 2, z / 2)
        kernel, bias = (np.concatenate([-w / 2, w / 2], -1) for w in (kernel, bias))
    kernel, expected = tf.constant(kernel), []
    for row in TEST:
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            log_probs = tf.nn.log_softmax((row[None] @ kernel + bias) / 2)
            divergence = -tf.reduce_mean(log_probs)  # but for a constant
        expected.append(-np.abs(tape.gradient(divergence, kernel)).sum())
    np.testing.assert_allclose(detector.score_features(TEST), expected, rtol=1e-9)


@pytest.mark.parametrize("base", LOGIT_SCORES)
def test_react_scores_what_is_cut_off(base):
    limit = np.percentile(TRAIN, 80)
    logits = np.minimum(TEST, limit) @ HEAD[0] + HEAD[1]
    log_probs = special.log_softmax(logits, 1)
    expected = {
        "energy": -special.logsumexp(logits, axis=1),
        "max_logit": -logits.max(1),
        "max_softmax": 1 - np.exp(log_probs).max(1),
        "entropy": stats.entropy(np.exp(log_probs), axis=1),
    }[base]
    detector = ood.ReAct(80, base).fit_features(TRAIN, head=HEAD)
    np.testing.assert_allclose(detector.score_features(TEST), expected, rtol=1e-9)


def test_react_inside_the_network():
    inputs = keras.Input((6, 6, 2))
    maps = layers.Conv2D(3, 3, activation="relu", name="maps")(inputs)
    outputs = layers.Dense(3)(layers.Flatten()(layers.Conv2D(2, 2)(maps)))
    model = of_logits(keras.Model(inputs, outputs))
    x = RNG.normal(size=(12, 6, 6, 2)).astype("float32")
    detector = ood.ReAct(85, layer="maps").fit(model, x)
    found = keras.Model(inputs, maps)(x)
    assert detector._state["limit"] == pytest.approx(np.percentile(found, 85))
    kept = tf.minimum(found, np.float32(np.percentile(found, 85)))
    for layer in model.layers[2:]:
        kept = layer(kept)
    expected = -special.logsumexp(kept, axis=1)
    np.testing.assert_allclose(detector.score(x), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`head` must be given"):
        detector.score_features(np.asarray(found).reshape(12, -1))


# --- Several networks ----------------------------------------------------------------------------


def test_mutual_information_as_scipy():
    stack = RNG.dirichlet(np.ones(4), size=(10, 30))
    total, parts = stats.entropy(stack.mean(0), axis=-1), stats.entropy(stack, axis=-1)
    found = ood.MutualInformation().score_features(stack)
    np.testing.assert_allclose(found, total - parts.mean(0), rtol=1e-9)
    p = stack[..., :1]
    found = ood.MutualInformation().score_features(p)
    np.testing.assert_allclose(
        found, ood.MutualInformation().score_features(np.concatenate([p, 1 - p], -1)), rtol=1e-9
    )


def test_an_ensemble_is_traced_once():
    class Counted(layers.Dense):
        calls = 0  # of Python: one for each trace

        def call(self, inputs):
            Counted.calls += 1
            return super().call(inputs)

    x = TEST_X.astype("float32")
    members = [of_logits(keras.Sequential([keras.Input((5,)), Counted(3)])) for _ in range(2)]
    ensemble = DeepEnsemble.from_models(members)
    detector = ood.MutualInformation().fit(ensemble, x, batch_size=8)
    detector.score(x)
    before = Counted.calls
    detector.score(x)
    detector.score(x[:7])
    assert Counted.calls == before > 0


def test_networks_that_make_stacks():
    """An ensemble, one of probabilities, a Bayesian network, a function; with a bad row as well."""

    def network(layer):
        return keras.Sequential([keras.Input((5,)), layer])

    members = [of_logits(network(layers.Dense(3))) for _ in range(2)]
    sharp = [network(layers.Dense(3, "softmax")) for _ in range(2)]
    for member, other in zip(members, sharp, strict=True):
        other.set_weights(member.get_weights())
    bayesian = network(VBLLDense(3, kl_weight=0.01, test_mc_samples=8))
    x = TEST_X.astype("float32")

    def function(x):
        return special.softmax(np.stack([np.asarray(member(x)) for member in members]), -1)

    spoilt = x.copy()
    spoilt[0, 1] = np.nan
    drawn = sample_predictions(bayesian, x, 6, seed=2)
    cases = [
        (function, function(x)),
        (DeepEnsemble.from_models(members), function(x)),
        (DeepEnsemble.from_models(sharp), function(x)),
        (bayesian, drawn),
    ]
    for model, stack in cases:
        detector = ood.MutualInformation(num_samples=6, seed=2).fit(model, x, batch_size=8)
        expected = mutual_information(stack)
        np.testing.assert_allclose(detector.score(x), expected, rtol=1e-3, atol=1e-6)
        expected[0] = np.inf
        np.testing.assert_allclose(detector.score(spoilt), expected, rtol=1e-3, atol=1e-6)
