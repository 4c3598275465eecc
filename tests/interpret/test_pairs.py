"""Confused pairs against scikit-learn, label noise against what is written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn.metrics import confusion_matrix
from test_api import refused

from tfuq.interpret import confused_pairs, label_noise_pairs, label_noise_ranks
from tfuq.layers import MCSigmoidDenseFA, MCSoftmaxDenseFA

RNG = np.random.default_rng(0)
LABELS = RNG.integers(4, size=60)
RUNS = RNG.dirichlet(np.ones(4), size=(3, 60)) + 0.3 * np.eye(4)[LABELS]
RUNS /= RUNS.sum(axis=-1, keepdims=True)

# --- Confused pairs -------------------------------------------------------------------------------


def test_counts_are_those_of_scikit_learn():
    weights = RNG.random(60)
    found = confused_pairs(LABELS, RUNS, sample_weight=weights, top=None)
    wanted = [confusion_matrix(LABELS, run.argmax(1), sample_weight=weights) for run in RUNS]
    np.testing.assert_allclose(found.counts, wanted)
    assert len(found.pairs) == 6
    for pair in found.pairs:
        a, b = int(pair.first), int(pair.second)
        errors = [matrix[a, b] + matrix[b, a] for matrix in wanted]
        assert pair.mean == pytest.approx(np.mean(errors))
        assert pair.std == pytest.approx(np.std(errors, ddof=1))
        assert pair.rate == pytest.approx(np.mean(errors) / weights[np.isin(LABELS, [a, b])].sum())
    means = [pair.mean for pair in found.pairs]
    assert means == sorted(means, reverse=True)


def test_directed_pairs_are_halves():
    found = confused_pairs(LABELS, list(RUNS), directed=True, top=None)
    means = {(p.first, p.second): p.mean for p in found.pairs}
    matrices = [confusion_matrix(LABELS, run.argmax(1)) for run in RUNS]
    for (a, b), mean in means.items():
        assert mean == pytest.approx(np.mean([m[int(a), int(b)] for m in matrices]))
    assert " as " in found.to_markdown()


def test_shapes_of_predictions():
    """One run or several, logits, one-hot labels, binary, pixels, none that is wrong."""
    one = confused_pairs(LABELS, RUNS[0])
    assert np.isnan(one.pairs[0].std) and one.counts.shape == (1, 4, 4)
    logits = confused_pairs(np.eye(4)[LABELS], np.log(RUNS[0]), from_logits=True)
    assert [p[:3] for p in logits.pairs] == [p[:3] for p in one.pairs]
    binary = confused_pairs([0, 1, 1], [[0.9, 0.4, 0.8], [0.1, 0.4, 0.8]])
    assert binary.pairs[0][:4] == ("0", "1", 1.5, pytest.approx(np.sqrt(0.5)))
    assert binary.pairs[0].runs == 2
    pixels = confused_pairs(LABELS.reshape(3, 20), RUNS[0].reshape(3, 20, 4))
    np.testing.assert_array_equal(pixels.counts, one.counts)
    assert confused_pairs([0, 1], np.eye(2)).pairs == ()


def test_markdown_of_the_thesis():
    """The first line of table 4.2: four runs with 31.75 +- 6.28 errors."""
    errors = [38, 34, 32, 23]
    predicted = np.zeros((4, 40), int)
    for run, count in enumerate(errors):
        predicted[run, :count] = 1
    found = confused_pairs(np.zeros(40, int), np.eye(2)[predicted], names=["Ulcer", "Tu|mor"])
    assert f"| Ulcer and Tu\\|mor | 31.75 ± {np.std(errors, ddof=1):.2f} |" in found.to_markdown()


def test_refusals_of_confused_pairs():
    refused("y_true", confused_pairs, LABELS + 1, RUNS[0])
    refused("y_true", confused_pairs, LABELS[:9], RUNS[0])
    refused("y_pred", confused_pairs, LABELS, RUNS[0] * np.nan)
    refused("y_pred", confused_pairs, LABELS, [RUNS[0], RUNS[1][:5]])
    refused("names", confused_pairs, LABELS, RUNS, names=["a"])
    refused("directed", confused_pairs, LABELS, RUNS, directed=1)
    for top in (0, -1, 2.5, True):
        refused("top", confused_pairs, LABELS, RUNS, top=top)


# --- Label noise ----------------------------------------------------------------------------------


def noisy(**options):
    """Features, then a heteroscedastic head; its weights are large, so that noise depends on x."""
    head = MCSoftmaxDenseFA(4, 2, test_mc_samples=16, sampling="iid", name="noisy", **options)
    inputs = keras.Input((6,))
    outputs = head(layers.Dense(5, activation="tanh", name="features")(inputs))
    model = keras.Model(inputs, outputs)
    model.set_weights([RNG.normal(size=w.shape) for w in model.get_weights()])
    return model


X = RNG.normal(size=(50, 6)).astype("float32")


def written_out(model):
    """Sigma(x) = diag(d^2) + V V^T for all x."""
    head = model.get_layer("noisy")
    features = model.get_layer("features")(X).numpy()

    def dense(name):
        kernel, bias = (getattr(head, f"{name}_{kind}").numpy() for kind in ("kernel", "bias"))
        return features @ kernel + bias

    scale = np.log1p(np.exp(dense("scale"))) + 1e-3
    factors = dense("factor").reshape(-1, 4, 2)
    return np.eye(4) * (scale**2)[:, None] + np.einsum("nar,nbr->nab", factors, factors)


@pytest.mark.parametrize("by", ["covariance", "correlation"])
def test_mean_covariance(by, tmp_path, monkeypatch):
    monkeypatch.setattr("tfuq.interpret.label_noise.BLOCK", 48)  # three matrices at a time
    model = noisy(logits_only=True)
    mean = written_out(model).mean(axis=0)
    root = np.sqrt(np.diag(mean))
    wanted = {"covariance": mean, "correlation": mean / np.outer(root, root)}
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    found = label_noise_pairs(model, X, by=by, names="abcd", top=5)
    np.testing.assert_allclose(found.covariance, wanted["covariance"], rtol=1e-4)
    np.testing.assert_allclose(found.correlation, wanted["correlation"], rtol=1e-4)
    assert found.n == 50 and len(found.pairs) == 5
    pairs = sorted(
        ((a, b) for a in range(4) for b in range(a)), key=lambda pair: -abs(wanted[by][pair])
    )
    for pair, (b, a) in zip(found.pairs, pairs, strict=False):
        assert (pair.first, pair.second) == ("abcd"[a], "abcd"[b])
        assert getattr(pair, by) == pytest.approx(wanted[by][a, b], rel=1e-4)


@pytest.mark.slow
def test_ranks_of_the_wrong_class():
    model = noisy()
    probs = np.asarray(model.predict(X, verbose=0)[2])
    labels = np.where(RNG.random(50) < 0.7, probs.argmax(axis=1), RNG.integers(4, size=50))
    other = RNG.dirichlet(np.ones(4), size=50)
    data = tf.data.Dataset.from_tensor_slices((X, labels)).batch(16)
    found = label_noise_ranks(model, data, other, "noisy", output="probs")
    wrong = other.argmax(axis=1)
    chosen = np.flatnonzero((probs.argmax(axis=1) == labels) & (wrong != labels))
    np.testing.assert_array_equal(found.index, chosen)
    np.testing.assert_array_equal(found.label, labels[chosen])
    np.testing.assert_array_equal(found.other, wrong[chosen])
    for i, covariance, rank in zip(chosen, found.covariance, found.rank, strict=True):
        row = written_out(model)[i, labels[i]]
        assert covariance == pytest.approx(row[wrong[i]], rel=1e-3, abs=1e-5)
        order = sorted(set(range(4)) - {labels[i]}, key=lambda c: -abs(row[c]))
        assert rank == 1 + order.index(wrong[i])
    histogram = found.histogram()
    assert histogram.shape == (3,) and histogram.sum() == len(chosen)
    lines = found.to_markdown("abcd", top=2).splitlines()[2:]
    first = np.flatnonzero(found.rank == 1)
    best = first[np.abs(found.covariance[first]).argmax()]
    assert len(lines) == min(2, len(first)) and lines[0].startswith(f"| {found.index[best]} | ")


def test_places_and_labels():
    """A head on each pixel, and one of several labels."""
    inputs = keras.Input((2, 2, 6))
    model = keras.Model(inputs, MCSigmoidDenseFA(3, 1, test_mc_samples=8)(inputs).probs)
    found = label_noise_pairs(model, X[:48].reshape(12, 2, 2, 6))
    wanted = model.layers[-1].covariance(X[:48]).numpy().mean(axis=0)
    np.testing.assert_allclose(found.covariance, wanted, rtol=1e-4)
    assert found.n == 48 and found.to_markdown().count("\n") == 4


def test_refusals_of_label_noise():
    model = noisy(logits_only=True)
    other, labels = np.ones((50, 4)) / 4, np.zeros(50, int)
    plain = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="plain")])
    refused("layer", label_noise_pairs, plain, X)
    refused("layer", label_noise_pairs, plain, X, "plain")
    refused("layer", label_noise_pairs, model, X, "features")
    one = keras.Sequential([keras.Input((6,)), MCSigmoidDenseFA(1, 1, logits_only=True)])
    refused("layer", label_noise_pairs, one, X)
    refused("model", label_noise_pairs, "model", X)
    refused("by", label_noise_pairs, model, X, by="rank")
    refused("top", label_noise_pairs, model, X, top=0)
    refused("names", label_noise_pairs, model, X, names="abc")
    refused("data", label_noise_pairs, model, X[:0])
    refused("data", label_noise_pairs, model, X * np.nan)
    refused("data", label_noise_ranks, model, X, other)
    refused("data", label_noise_ranks, model, (X, labels + 4), other)
    refused("other", label_noise_ranks, model, (X, labels), other[:, :3])
    refused("other", label_noise_ranks, model, (X, labels), other[:40])
    refused("other", label_noise_ranks, model, (X[:40], labels[:40]), other)
    refused("other", label_noise_ranks, model, (X, labels), other * 9)
    refused("names", label_noise_ranks(model, (X, labels), other).to_markdown, "ab")
