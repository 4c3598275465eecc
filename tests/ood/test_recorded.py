"""Detectors by layers inside a network: gradients at them, Gram matrices; an expected gradient."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers
from scipy import special

from tfuq import metrics, ood
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import VBLLDense
from tfuq.ood.graph_scores import GraphScore

RNG = np.random.default_rng(0)
FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "pytorch_ood_later.npz"
THEIRS = dict(np.load(FIXTURE))
IMAGES = RNG.normal(size=(30, 6, 6, 2)).astype("float32")
LABELS = np.arange(30) % 3


def convolutional(*normalized):
    """Two convolutions, perhaps normalized, with ReLUs behind them."""
    keras.utils.set_random_seed(1)
    parts = []
    for i, filters in enumerate((4, 5)):
        parts.append(layers.Conv2D(filters, 3, name=f"conv_{i}"))
        parts += [layers.BatchNormalization(name=f"norm_{i}")] if normalized else []
        parts.append(layers.ReLU())
    parts += [layers.GlobalAveragePooling2D(), layers.Dense(3, name="last")]
    return of_logits(keras.Sequential([keras.Input((6, 6, 2)), *parts]))


# --- Gram ----------------------------------------------------------------------------------------


def test_gram_as_pytorch_ood():
    """Theirs is float32 here and there; with `validation=0` nothing is by chance."""
    weights = [THEIRS[f"{kind}_{i}"] for i in range(3) for kind in ("kernel", "bias")]
    dense = [layers.Dense(8, "relu", name="a"), layers.Dense(6, "relu", name="b"), layers.Dense(3)]
    model = of_logits(keras.Sequential([keras.Input((5,)), *dense]))
    model.set_weights(weights)
    detector = ood.Gram(["a", "b"], powers=(1, 2), validation=0)
    detector.fit(model, THEIRS["train_x"], THEIRS["labels"])
    found = detector.score(THEIRS["test_x"])
    np.testing.assert_allclose(found, THEIRS["gram"], rtol=2e-3, atol=1e-4)
    assert ood.Gram(powers=(1, 2)).fit(model, THEIRS["train_x"], THEIRS["labels"])._names == [
        "a",
        "b",
    ]


def gram_by_hand(maps, power):
    """Row sums of the whole matrix, of one example."""
    flat = maps.reshape(-1, maps.shape[-1]).astype("float64") ** power
    sums = (flat.T @ flat).sum(1)
    return np.sign(sums) * np.abs(sums) ** (1 / power)


def test_gram_by_hand():
    """Matrices, ranges and the deviation that is expected, example by example."""
    model = convolutional()
    outputs = [model.get_layer(f"conv_{i}").output for i in range(2)]
    maps = [np.asarray(m) for m in keras.Model(model.inputs[0], outputs)(IMAGES)]
    logits = np.asarray(model(IMAGES))
    detector = ood.Gram(powers=(1, 3), validation=0.3, seed=4).fit(model, IMAGES, LABELS)
    held_out, predicted = detector._held_out(LABELS), logits.argmax(1)
    assert held_out.sum() == 9 and np.bincount(LABELS[held_out]).tolist() == [3, 3, 3]
    total = np.zeros(30)
    for each in maps:
        g = np.stack([np.concatenate([gram_by_hand(m, p) for p in (1, 3)]) for m in each])
        bounds = [[f(g[(c == LABELS) & ~held_out], 0) for c in range(3)] for f in (np.min, np.max)]

        def deviations(classes, g=g, bounds=bounds):
            least, most = (np.stack(b)[classes] for b in bounds)
            below = np.maximum(least - g, 0) / np.abs(least + 1e-6)
            return (below + np.maximum(g - most, 0) / np.abs(most + 1e-6)).sum(1)

        total += deviations(predicted) / deviations(LABELS)[held_out].mean()
    np.testing.assert_allclose(detector.score(IMAGES), total, rtol=1e-4)
    arrays = detector.fit_features([*maps, logits], LABELS).score_features([*maps, logits])
    np.testing.assert_allclose(arrays, total, rtol=1e-4)


def test_gram_of_a_class_without_examples_is_unknown():
    maps, logits, some = IMAGES, RNG.normal(size=(30, 3)), LABELS < 2
    with pytest.warns(UserWarning, match=r"1 of 3 classes have no example: \[2\]"):
        detector = ood.Gram(powers=(1,)).fit_features([maps[some], logits[some]], LABELS[some])
    found = detector.score_features([maps, logits])
    np.testing.assert_array_equal(np.isinf(found), logits.argmax(1) == 2)


# --- Gradients -----------------------------------------------------------------------------------


def slopes(model, target, name):
    """Gradients of a target of the features and the logits at a layer's outputs, by Keras alone."""
    inner = keras.Model(model.inputs[0], model.get_layer(name).output)
    after = model.layers[model.layers.index(model.get_layer(name)) + 1 :]
    with tf.GradientTape() as tape:
        x = maps = tf.constant(inner(IMAGES))
        tape.watch(maps)
        for layer in after[:-1]:
            x = layer(x, training=False)
        total = tf.reduce_sum(target(x, after[-1](x)))
    return tape.gradient(total, maps).numpy()


@pytest.mark.parametrize("normalized", [False, True])
def test_gaia_by_hand(normalized):
    model = convolutional(*("yes" * normalized))
    names = ["norm_0", "norm_1"] if normalized else ["conv_0", "conv_1"]
    detector = ood.GAIA("z").fit(model, IMAGES)
    assert detector._names == names  # batch normalizations where there are some
    found = [slopes(model, lambda f, z: tf.reduce_max(z, 1), name) for name in names]
    shares = np.concatenate([np.mean(g != 0, axis=(1, 2)) for g in found], axis=1)
    assert 0.1 < shares.mean() < 0.9
    np.testing.assert_allclose(detector.score(IMAGES), np.mean(shares**2, 1), rtol=1e-6)

    found = [slopes(model, lambda f, z: tf.reduce_sum(f, 1), name) for name in names]
    inner = np.concatenate([g.mean((1, 2)) for g in found], axis=1)
    logits = np.asarray(model(IMAGES), "float64")
    ease = (1 - 3 * special.softmax(logits, 1)) @ model.layers[-1].get_weights()[0].T
    outer = np.sqrt(np.abs(ease).mean(1))
    scores = ood.GAIA("a").fit(model, IMAGES).score(IMAGES)
    np.testing.assert_allclose(scores, np.mean((inner / outer[:, None]) ** 2, 1), rtol=1e-3)


@pytest.mark.parametrize("variant", ["z", "a"])
def test_gaia_in_a_graph_and_of_an_ensemble(variant):
    """Channels of all members are side by side; of two that are the same nothing changes."""
    model = convolutional("yes")
    alone = ood.GAIA(variant).fit(model, IMAGES)
    score = GraphScore(alone, tf.constant(IMAGES), tf.Variable)
    found = tf.function(lambda x: score(x, score.read(x)), autograph=False)(IMAGES)
    np.testing.assert_allclose(found, alone.score(IMAGES), rtol=1e-5)
    both = ood.GAIA(variant).fit(DeepEnsemble.from_models([model, convolutional("yes")]), IMAGES)
    scale = 2 if variant == "a" else 1  # the mean of the logits has half of each one's gradient
    np.testing.assert_allclose(both.score(IMAGES), scale * alone.score(IMAGES), rtol=1e-4)


@pytest.mark.slow
def test_inside_layers_tell_bars_from_noise():
    """A small network that is trained on bars; seeds are fixed. What is measured stands beside."""
    rng, y = np.random.default_rng(0), np.arange(300) % 3

    def bars():
        images = rng.uniform(0, 0.3, (300, 9, 9, 1))
        for image, label in zip(images, y, strict=True):
            image[:, 3 * label : 3 * label + 3] += 0.6
        return images.astype("float32")

    x, new, noise = bars(), bars(), rng.uniform(size=(300, 9, 9, 1)).astype("float32")
    keras.utils.set_random_seed(0)
    parts = [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU()]
    parts += [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU()]
    parts += [layers.Flatten(), layers.Dense(3)]
    model = of_logits(keras.Sequential([keras.Input((9, 9, 1)), *parts]))
    model.compile(keras.optimizers.Adam(0.01), model.loss, jit_compile=False)
    model.fit(x, y, epochs=5, verbose=0)
    for detector in (ood.Gram(), ood.GAIA("z"), ood.GAIA("a"), ood.ExGrad()):
        scores = detector.fit(model, x, y).score(np.concatenate([new, noise]))
        area = metrics.auroc(np.repeat([0, 1], 300), scores)
        assert area > 0.5, (detector, area)


def test_expected_gradient_is_that_of_the_tape():
    model = of_logits(
        keras.Sequential([keras.Input((5,)), layers.Dense(4, "tanh"), layers.Dense(3)])
    )
    x = RNG.normal(size=(6, 5)).astype("float32")
    kernel = model.layers[-1].kernel.value
    found = ood.ExGrad().fit(model, x).score(x)
    for row, score in zip(x, found, strict=True):
        probs = special.softmax(np.asarray(model(row[None]))[0])
        norms = []
        for label in range(3):
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                log_p = tf.nn.log_softmax(model.layers[0](row[None]) @ kernel)[0, label]
            norms.append(np.abs(tape.gradient(log_p, kernel)).sum())
        np.testing.assert_allclose(score, probs @ norms, rtol=1e-4)


def test_expected_gradient_of_certain_predictions():
    """p (1 - p) of a gap of 50 is exp(-50), and not 0."""
    head = (np.array([[50.0, 0.0]]), None)
    detector = ood.ExGrad().fit_features([[1.0], [2.0]], head=head)
    np.testing.assert_allclose(detector.score_features([[1.0]]), 4 * np.exp(-50), rtol=1e-9)


def test_layers_behind_which_a_head_stands():
    """A head makes the logits, and so all other layers are inside."""
    dense = layers.Dense(6, name="hidden")
    parts = [layers.Flatten(), dense, layers.ReLU(), VBLLDense(3, kl_weight=0.1)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *parts])
    for kind in (ood.GAIA, ood.Gram):
        detector = kind().fit(model, IMAGES, LABELS)
        assert detector._names == ["hidden"] and np.isfinite(detector.score(IMAGES)).all()


# --- Refused -------------------------------------------------------------------------------------


def test_models_without_such_layers():
    bare = of_logits(keras.Sequential([keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(3)]))
    for kind in (ood.GAIA, ood.Gram):
        with pytest.raises(ValueError, match="`layers` must name layers inside"):
            kind().fit(bare, IMAGES, LABELS)
        with pytest.raises(ValueError, match="`layer` must name"):
            kind(layers=["none"]).fit(bare, IMAGES, LABELS)
    for labels in (LABELS - 1, LABELS + 1):
        with pytest.raises(ValueError, match="`y` must hold classes from 0 to 2"):
            ood.Gram().fit(convolutional(), IMAGES, labels)


def test_layers_without_a_gradient():
    """Of the last layer's outputs the features do not depend."""
    for variant in "za":
        for names in (["last"], ["conv_0", "last"]):
            with pytest.raises(ValueError, match="`layers` must name layers before the last"):
                ood.GAIA(variant, layers=names).fit(convolutional(), IMAGES)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
def test_one_score_for_all_is_told():
    """Behind the ReLU that a layer ends in no gradient is 0: the default counts nothing there."""
    dense = [layers.Dense(6, "relu"), layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((5,)), *dense])
    model.run_eagerly = True
    x = RNG.normal(size=(12, 5)).astype("float32")
    with pytest.warns(UserWarning, match=r"(?s)scores all 12 examples 1: .*variant=\"a\""):
        ood.GAIA().fit(model, x)
    assert np.ptp(ood.GAIA("a").fit(model, x).score(x)) > 0
