"""Features whose covariance has not full rank: units that never fire, normalization, rounding."""

import pathlib

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers
from scipy import stats

from tfuq import ood
from tfuq._math.pseudo_inverse import inverse_above, pseudo_inverse

RNG = np.random.default_rng(0)
FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "pytorch_ood_singular.npz")
KINDS = ("dead", "normalized")
THEIRS = {
    kind: {n.removeprefix(f"{kind}/"): FIXTURE[n] for n in FIXTURE.files if n.startswith(kind)}
    for kind in KINDS
}
# As in `test_scores.py`; of these networks ViM has two axes.
AS_THEIRS = {
    "max_softmax": (ood.MaxSoftmax, (), lambda s: 1 + s),
    "max_logit": (ood.MaxLogit, (), lambda s: s),
    "energy": (ood.Energy, (), lambda s: s),
    "entropy": (ood.Entropy, (), lambda s: s),
    "odin": (ood.ODIN, (10.0, 0.05), lambda s: 1 + s),
    "mahalanobis": (ood.Mahalanobis, (), lambda s: 240 * s),
    "relative": (ood.RelativeMahalanobis, (), lambda s: 120 * s),
    "knn": (ood.KNN, (5,), lambda s: s),
    "vim": (ood.ViM, (2,), lambda s: s),
    "react": (ood.ReAct, (90,), lambda s: s),
    "grad_norm": (ood.GradNorm, (), lambda s: s),
}


def network_of(kind):
    theirs = THEIRS[kind]
    dense = [layers.Dense(8, "relu"), layers.Dense(6, "relu")]
    norm = [layers.LayerNormalization(epsilon=1e-3)] if kind == "normalized" else []
    model = keras.Sequential([keras.Input((5,)), *dense, *norm, layers.Dense(3)])
    weights = [theirs[f"{part}_{i}"] for i in range(3) for part in ("kernel", "bias")]
    extra = [theirs["gamma"], theirs["beta"]] if norm else []
    model.set_weights([*weights[:4], *extra, *weights[4:]])
    return of_logits(model)


@pytest.fixture(scope="module")
def networks():
    return {kind: network_of(kind) for kind in KINDS}


@pytest.mark.parametrize("name", AS_THEIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_as_pytorch_ood(kind, name, networks):
    theirs = THEIRS[kind]
    make, options, convert = AS_THEIRS[name]
    detector = make(*options).fit(networks[kind], theirs["train_x"], theirs["labels"])
    found, expected = detector.score(theirs["test_x"]), convert(theirs[name])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.std(expected) + 1e-5)


# --- Local remedies ---------------------------------------------------------------------------

LABELS = np.arange(400) % 3
TRAIN = (RNG.normal(size=(400, 6)) + 2 * RNG.normal(size=(3, 6))[LABELS]).astype("float32")
TEST = (3 * RNG.normal(size=(50, 6))).astype("float32")
GAUSSIAN = (ood.Mahalanobis, ood.RelativeMahalanobis)


def with_dead(features):
    return np.concatenate([features, np.zeros((len(features), 1), "float32")], axis=1)


@pytest.mark.parametrize("count", [400, 7])  # 7: fewer than the features need
@pytest.mark.parametrize("kind", GAUSSIAN)
def test_a_unit_that_never_fires_changes_nothing(kind, count):
    plain = kind().fit_features(TRAIN[:count], LABELS[:count]).score_features(TEST)
    dead = kind().fit_features(with_dead(TRAIN[:count]), LABELS[:count])
    np.testing.assert_allclose(dead.score_features(with_dead(TEST)), plain, rtol=1e-9, atol=1e-9)


def test_mahalanobis_is_that_of_the_pseudo_inverse():
    mixed = TRAIN.astype("float64") @ RNG.normal(size=(6, 9))
    means = np.stack([mixed[c == LABELS].mean(0) for c in range(3)])
    inverse = np.linalg.pinv(np.cov((mixed - means[LABELS]).T, bias=True), rcond=1e-10)
    gaps = mixed[:50, None] - means
    expected = np.einsum("ncd,de,nce->nc", gaps, inverse, gaps).min(1)
    found = ood.Mahalanobis().fit_features(mixed, LABELS).score_features(mixed[:50])
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_a_step_of_float32_is_none_of_a_score():
    """The sum of normalized features is constant but for rounding: nothing to measure by."""
    network = keras.Sequential([keras.Input((6,)), layers.LayerNormalization()])
    network.layers[0].set_weights([RNG.uniform(0.5, 2, 6), RNG.normal(size=6)])
    train, test = (network.predict(x, verbose=0) for x in (TRAIN, TEST))
    steps = np.nextafter(test, np.where(RNG.random(test.shape) < 0.5, -np.inf, np.inf))
    for kind in GAUSSIAN:
        detector = kind().fit_features(train, LABELS)
        found, expected = detector.score_features(steps), detector.score_features(test)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.std(expected))


def test_scores_are_continuous_in_how_much_a_unit_varies():
    """From a column that is rounding to one that counts, no step."""
    found = []
    noise, at_test = RNG.normal(size=(400, 1)), RNG.normal(size=(50, 1))
    for size in np.geomspace(1e-9, 1e-3, 241):
        train = np.concatenate([TRAIN, 1 + size * noise], axis=1)
        test = np.concatenate([TEST, 1 + size * at_test], axis=1)
        found.append(ood.Mahalanobis().fit_features(train, LABELS).score_features(test))
    found = np.stack(found)
    assert np.abs(found[-1] / found[0] - 1).max() > 0.02
    assert np.abs(np.diff(found, axis=0) / found[:-1]).max() < 0.25 * 0.5


def test_float16_features_have_the_tolerance_of_float16():
    sums = TRAIN.sum(1, keepdims=True)
    rounded = np.concatenate([TRAIN, sums], axis=1).astype("float16")
    exact = ood.Mahalanobis().fit_features(TRAIN, LABELS).score_features(TEST)
    detector = ood.Mahalanobis().fit_features(rounded, LABELS)
    test = np.concatenate([TEST, TEST.sum(1, keepdims=True)], axis=1).astype("float16")
    assert stats.spearmanr(detector.score_features(test), exact).statistic > 0.99


def test_inverses_have_no_step():
    values = np.geomspace(1e-3, 1e3, 2001)
    found = inverse_above(values, 1.0)
    assert np.all(found[values < 1] == 0)
    np.testing.assert_allclose(found[values > 100], 1 / values[values > 100])
    assert np.abs(np.diff(found)).max() < 2e-3


def test_the_kernel_of_a_head_is_inverted_but_for_rounding():
    kernel = RNG.normal(size=(8, 4))
    kernel -= kernel.mean(1, keepdims=True)  # what soft-max training keeps
    found = pseudo_inverse(kernel.T.astype("float32").astype("float64"))
    np.testing.assert_allclose(found, np.linalg.pinv(kernel.T, rcond=1e-6), rtol=1e-4, atol=1e-5)


def test_virtual_logits_need_a_dimension_that_features_take_up():
    head = RNG.normal(size=(9, 3)), RNG.normal(size=3)
    rows = TRAIN @ RNG.normal(size=(6, 9)).astype("float32")
    with pytest.raises(ValueError, match="Argument `dim` must be below the rank"):
        ood.ViM(dim=7).fit_features(rows, head=(head[0], np.zeros(3)))
    assert ood.ViM(dim=4).fit_features(rows, head=head)._state["alpha"] < 1e3


# --- Alone or in a batch ----------------------------------------------------------------------

DETECTORS = (
    ood.MaxSoftmax(),
    ood.Energy(),
    ood.ODIN(),
    ood.Mahalanobis(),
    ood.Mahalanobis(epsilon=0.01),
    ood.RelativeMahalanobis(),
    ood.KNN(k=5),
    ood.ViM(dim=8),
    ood.ReAct(),
    ood.GradNorm(),
)


@pytest.fixture(scope="module")
def normalized():
    """A network whose features are layer-normalized, as those of a ViT, and its data."""
    keras.utils.set_random_seed(1)
    body = [layers.Dense(32, "gelu"), layers.Dense(16), layers.LayerNormalization()]
    model = keras.Sequential([keras.Input((6,)), *body, layers.Dense(3)])
    return of_logits(model)


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda each: type(each).__name__)
def test_an_example_alone_scores_as_in_a_batch(detector, normalized):
    detector.fit(normalized, TRAIN, LABELS, batch_size=64)
    whole = detector.score(TEST, batch_size=50)
    for size in (1, 7):
        found = detector.score(TEST, batch_size=size)
        np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-4 * np.std(whole))


# --- Gradient norms ---------------------------------------------------------------------------


def test_a_column_without_spread_changes_no_density():
    norms = np.exp(RNG.normal(size=(60, 5)))
    still = np.full((60, 2), 3.0) * (1 + 1e-7 * RNG.normal(size=(60, 2)))  # float32 errors
    plain = ood.GradientDensity().fit_features(norms)
    more = ood.GradientDensity().fit_features(np.concatenate([norms, still], axis=1))
    found = more.score_features(np.concatenate([2 * norms, still], axis=1))
    np.testing.assert_allclose(found, plain.score_features(2 * norms), rtol=1e-9)


# --- Arguments --------------------------------------------------------------------------------


def test_one_class_has_no_relative_distance():
    with pytest.raises(ValueError, match="Argument `y` must hold at least two classes"):
        ood.RelativeMahalanobis().fit_features(TRAIN, np.zeros(400))
