"""Detectors on heads and inputs of every kind: convolutions, int8, float16, bytes, ensembles."""

import keras
import numpy as np
import pytest
from architectures import of_logits
from keras import layers
from scipy import special, stats

from tfuq import ood
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import MCDropout
from tfuq.predictive import sample_predictions

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(40, 8, 8, 3)).astype("float32")
LABELS = np.arange(40) % 3
ALL = {
    "MaxSoftmax": ood.MaxSoftmax,
    "MaxLogit": ood.MaxLogit,
    "Energy": ood.Energy,
    "Entropy": ood.Entropy,
    "ODIN": ood.ODIN,
    "Mahalanobis": ood.Mahalanobis,
    "Mahalanobis with a step": lambda: ood.Mahalanobis(epsilon=0.01),
    "RelativeMahalanobis": ood.RelativeMahalanobis,
    "KNN": lambda: ood.KNN(k=3),
    "ViM": lambda: ood.ViM(dim=3),
    "ReAct": ood.ReAct,
    "GradNorm": ood.GradNorm,
    "GEN": ood.GEN,
    "KLMatching": ood.KLMatching,
    "SHE": ood.SHE,
    "NNGuide": lambda: ood.NNGuide(k=3),
    "FDBD": ood.FDBD,
    "ASH": ood.ASH,
    "SCALE": ood.SCALE,
    "DICE": ood.DICE,
    "ExGrad": ood.ExGrad,
}
# SHE, of networks that were not trained.
pytestmark = pytest.mark.filterwarnings("ignore:.* classes have no example")


def body():
    return [layers.Conv2D(6, 3, activation="relu", name="body")]


HEADS = {
    "MobileNetV3": lambda: [
        layers.GlobalAveragePooling2D(keepdims=True),
        layers.Conv2D(3, 1),
        layers.Flatten(),
        layers.Activation("softmax"),
    ],
    "MobileNet": lambda: [
        layers.GlobalAveragePooling2D(keepdims=True),
        layers.Conv2D(3, 1),
        layers.Reshape((3,)),
        layers.Softmax(),
    ],
    "all convolutional": lambda: [
        layers.Conv2D(3, 1),
        layers.GlobalAveragePooling2D(),
        layers.Activation("softmax"),
    ],
    "pooled and normalized": lambda: [
        layers.GlobalAveragePooling2D(),
        layers.LayerNormalization(),
        layers.Dense(3, "softmax"),
    ],
}


def network(head, dtype="float32"):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), dtype=dtype)
    scaling = [layers.Rescaling(1 / 64, offset=-2.0)] if dtype == "uint8" else []
    model = keras.Sequential([inputs, *scaling, *body(), *head])
    model.run_eagerly = dtype != "uint8"
    return model


def dense_twin(model):
    """The same function as features, pooled, and a Dense layer."""
    conv = model.get_layer("body")
    head = next(each for each in reversed(model.layers) if each.weights and "norm" not in each.name)
    norm = [each for each in model.layers if "norm" in each.name]
    norm = [layers.LayerNormalization()] if norm else []
    last = layers.Dense(3, "softmax")
    twin = keras.Sequential(
        [keras.Input((8, 8, 3)), *body(), layers.GlobalAveragePooling2D(), *norm, last]
    )
    twin.layers[0].set_weights(conv.get_weights())
    kernel, bias = head.get_weights()
    last.set_weights([kernel.reshape(kernel.shape[-2:]), bias])
    twin.run_eagerly = True
    return twin


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("head", HEADS)
def test_every_score_is_that_of_the_same_network_with_a_dense_layer(head):
    model = network(HEADS[head]())
    twin = dense_twin(model)
    np.testing.assert_allclose(model(IMAGES), twin(IMAGES), atol=1e-6)
    for name, make in ALL.items():
        if name in ("ReAct", "ASH", "SCALE") and head == "all convolutional":
            continue  # change each position, not their mean
        found = make().fit(model, IMAGES, LABELS).score(IMAGES)
        expected = make().fit(twin, IMAGES, LABELS).score(IMAGES)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5, err_msg=name)


def test_a_pooling_after_the_last_activation_shows_the_logits_and_no_linear_layer():
    """As SqueezeNet ends: energies are known, what is defined on a linear layer is refused."""
    head = [layers.Conv2D(3, 1, activation="relu"), layers.GlobalAveragePooling2D()]
    model = network([*head, layers.Softmax()])
    logits = np.asarray(keras.Model(model.inputs[0], model.layers[-2].output)(IMAGES))
    for name, make in ALL.items():
        if name in ("ViM", "GradNorm", "FDBD", "DICE", "ExGrad"):
            with pytest.raises(ValueError, match="Argument `model` must end in a Dense layer"):
                make().fit(model, IMAGES, LABELS)
            continue
        assert np.all(np.isfinite(make().fit(model, IMAGES, LABELS).score(IMAGES))), name
    found = ood.Energy().fit(model, IMAGES).score(IMAGES)
    np.testing.assert_allclose(found, -special.logsumexp(logits, axis=1), rtol=1e-5)
    features = ood.KNN(k=3).fit(model, IMAGES)._state["bank"]
    assert features.shape == (40, 6)  # what the convolution takes, not the logits


@pytest.mark.slow_cases("int8")
@pytest.mark.slow_cases("float16", "mixed_float16")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize("kind", ["int8", "mixed_float16", "float16"])
def test_every_score_of_coarse_networks_is_close_to_that_of_float32(kind):
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5, "tanh"), layers.Dense(3, "softmax")]
    plain = network(head)
    if kind == "int8":
        coarse = keras.models.clone_model(plain)
        coarse.set_weights(plain.get_weights())
        coarse.quantize("int8")
    else:
        keras.config.set_dtype_policy(kind)
        coarse = network([type(each).from_config(strip(each)) for each in head])
        keras.config.set_dtype_policy("float32")
        coarse.set_weights(plain.get_weights())
    coarse.run_eagerly = True
    for name, make in ALL.items():
        found = make().fit(coarse, IMAGES, LABELS).score(IMAGES)
        expected = make().fit(plain, IMAGES, LABELS).score(IMAGES)
        assert np.all(np.isfinite(found)), name
        assert stats.spearmanr(found, expected).statistic > 0.8, name


def strip(layer):
    return {k: v for k, v in layer.get_config().items() if k not in ("dtype", "name")}


@pytest.mark.slow
def test_bytes_are_moved_as_the_floats_behind_them():
    bytes_ = RNG.integers(0, 256, size=(40, 8, 8, 3)).astype("uint8")
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")]
    model = network(head, "uint8")
    twin = network([layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")])
    floats = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(1 / 64, -2.0), twin])
    twin.set_weights(model.get_weights())
    floats.run_eagerly = True
    makers = {
        "ODIN": lambda: ood.ODIN(10.0, 2.0),
        "Mahalanobis": lambda: ood.Mahalanobis(epsilon=2.0),
        "Energy": ood.Energy,
    }
    for name, make in makers.items():
        found = make().fit(model, bytes_, LABELS).score(bytes_)
        expected = make().fit(floats, bytes_.astype("float32"), LABELS)
        expected = expected.score(bytes_.astype("float32"))
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)
    still = ood.ODIN(10.0, 0.0).fit(model, bytes_).score(bytes_)
    assert np.all(ood.ODIN(10.0, 2.0).fit(model, bytes_).score(bytes_) < still)


# --- Ensembles --------------------------------------------------------------------------------


def members():
    keras.utils.set_random_seed(2)
    made = [
        keras.Sequential([keras.Input((5,)), layers.Dense(4, "tanh"), layers.Dense(3)])
        for _ in range(2)
    ]
    for member in made:
        of_logits(member).run_eagerly = True
    return made


ROWS = RNG.normal(size=(40, 5)).astype("float32")


@pytest.mark.slow_cases(
    "Max*", "Entropy", "ODIN", "*with a step", "Relative*", "ViM", "ReAct", "GEN"
)
@pytest.mark.parametrize("name", ALL)
def test_an_ensemble_is_scored_as_one_network(name, tmp_path):
    both = members()
    ensemble = DeepEnsemble.from_models(both)
    detector = ALL[name]().fit(ensemble, ROWS, LABELS)
    found = detector.score(ROWS)
    logits = np.stack([np.asarray(each(ROWS), "float64") for each in both])
    inputs = keras.Input((5,))
    hidden = layers.Concatenate()([each.layers[0](inputs) for each in both])
    last = layers.Dense(3)
    joint = of_logits(keras.Model(inputs, last(hidden)))
    weights = [each.layers[1].get_weights() for each in both]
    kernel = np.concatenate([kernel for kernel, _ in weights]) / 2
    last.set_weights([kernel, np.mean([bias for _, bias in weights], axis=0)])
    if name in ("MaxSoftmax", "Entropy"):
        probs = special.softmax(logits, -1).mean(0)
        expected = 1 - probs.max(1) if name == "MaxSoftmax" else stats.entropy(probs, axis=1)
    elif name in ("GEN", "KLMatching", "SHE"):
        features = np.log(special.softmax(logits, -1).mean(0))
        if name == "SHE":
            features = np.asarray(keras.Model(inputs, hidden)(ROWS)), features
        expected = ALL[name]().fit_features(features, LABELS).score_features(features)
    else:
        expected = ALL[name]().fit(joint, ROWS, LABELS).score(ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    detector.threshold_at(0.9, ROWS)
    detector.save(tmp_path / "ensemble.npz")
    loaded = ood.load_detector(tmp_path / "ensemble.npz", ensemble)
    np.testing.assert_array_equal(loaded.detect(ROWS), detector.detect(ROWS))
    with pytest.raises(ValueError, match="fitted to"):
        ood.load_detector(tmp_path / "ensemble.npz", both[0])


# --- Labels and pixels ------------------------------------------------------------------------


def joint_of(kind, z):
    p = special.expit(z)
    return {
        "MaxSoftmax": 1 - np.prod(np.maximum(p, 1 - p), -1),
        "MaxLogit": -z.max(-1),
        "Energy": -np.log1p(np.exp(z)).sum(-1),
        "Entropy": stats.entropy(np.stack([p, 1 - p]), axis=0).sum(-1),
    }[kind]


def label_of(kind, z):
    p = special.expit(z)
    return {
        "MaxSoftmax": np.minimum(p, 1 - p),
        "MaxLogit": -z,
        "Energy": -np.log1p(np.exp(z)),
        "Entropy": stats.entropy(np.stack([p, 1 - p]), axis=0),
    }[kind]


CLASSWISE = ("MaxSoftmax", "MaxLogit", "Energy", "Entropy")


@pytest.mark.parametrize("ends_in", ["sigmoid", "logits"])
def test_labels_that_do_not_exclude_one_another(ends_in, tmp_path):
    last = layers.Dense(3, "sigmoid" if ends_in == "sigmoid" else None)
    model = keras.Sequential([keras.Input((5,)), last])
    loss = keras.losses.BinaryCrossentropy(from_logits=ends_in != "sigmoid")
    model.compile("sgd", loss, run_eagerly=True)
    z = ROWS.astype("float64") @ last.get_weights()[0]
    for kind in CLASSWISE:
        detector = getattr(ood, kind)(multi_label=True).fit(model, ROWS)
        np.testing.assert_allclose(detector.score(ROWS), joint_of(kind, z), rtol=1e-5, atol=1e-6)
        found = detector.score_each(ROWS)
        np.testing.assert_allclose(found, label_of(kind, z), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(detector.score_features(z), joint_of(kind, z), rtol=1e-9)
        detector.save(tmp_path / "labels.npz")
        assert ood.load_detector(tmp_path / "labels.npz").multi_label is True
        spoilt = np.where(np.arange(40)[:, None] == 3, np.nan, ROWS)
        assert np.all(np.isinf(detector.score_each(spoilt)[3]))
    assert np.all(np.isfinite(ood.KNN(k=3).fit(model, ROWS).score(ROWS)))


def test_labels_are_said_and_are_none_of_a_soft_max():
    labels = keras.Sequential([keras.Input((5,)), layers.Dense(3, "sigmoid")])
    with pytest.raises(ValueError, match="multi_label=True"):
        ood.Energy().fit(labels, ROWS)
    with pytest.raises(ValueError, match="exclude one another"):
        ood.ViM(dim=2).fit(labels, ROWS)
    classes = keras.Sequential([keras.Input((5,)), layers.Dense(3, "softmax")])
    with pytest.raises(ValueError, match="Argument `multi_label` must be False"):
        ood.Energy(multi_label=True).fit(classes, ROWS)
    with pytest.raises(ValueError, match="one class for each example"):
        ood.Mahalanobis().fit_features(ROWS, RNG.integers(0, 2, (40, 3)) | 1)


@pytest.mark.parametrize("ends_in", ["softmax", "sigmoid"])
def test_pixels_have_scores(ends_in):
    width = 3 if ends_in == "softmax" else 1
    last = layers.Conv2D(width, 1, activation=ends_in)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same"), last])
    model.run_eagerly = True
    z = np.asarray(model.layers[0](IMAGES), "float64") @ last.kernel.numpy()[0, 0]
    if width == 1:
        z = np.concatenate([-z / 2, z / 2], -1)
    p = special.softmax(z, -1)
    expected = {
        "MaxSoftmax": 1 - p.max(-1),
        "MaxLogit": -z.max(-1),
        "Energy": -special.logsumexp(z, -1),
        "Entropy": stats.entropy(p, axis=-1),
    }
    for kind, each in expected.items():
        detector = getattr(ood, kind)().fit(model, IMAGES)
        np.testing.assert_allclose(detector.score_each(IMAGES), each, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(detector.score(IMAGES), each.mean((1, 2)), rtol=1e-4, atol=1e-6)
        assert detector.threshold_at(0.9, scores=detector.score_each(IMAGES).ravel())
    with pytest.raises(ValueError, match="one prediction per example"):
        ood.KNN(k=2).fit(model, IMAGES)


@pytest.mark.parametrize("ends_in", ["softmax", "sigmoid"])
def test_networks_disagree_on_pixels(ends_in):
    last = layers.Conv2D(3 if ends_in == "softmax" else 1, 1, activation=ends_in)
    drop = MCDropout(0.5)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), drop, last])
    detector = ood.MutualInformation(num_samples=4, seed=3).fit(model, IMAGES)
    stack = np.asarray(sample_predictions(model, IMAGES, num_samples=4, seed=3), "float64")
    if stack.shape[-1] == 1:
        stack = np.concatenate([1 - stack, stack], -1)
    expected = stats.entropy(stack.mean(0), axis=-1) - stats.entropy(stack, axis=-1).mean(0)
    spoilt = IMAGES.copy()
    spoilt[5, 0, 0, 0] = np.nan
    found = detector.score_each(spoilt)
    assert np.all(np.isinf(found[5])) and found.shape == (40, 6, 6)
    np.testing.assert_allclose(detector.score_each(IMAGES), expected, atol=1e-6)
    np.testing.assert_allclose(detector.score(IMAGES), expected.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(detector.score_features(stack), expected.mean((1, 2)), atol=1e-6)


def test_a_single_prediction_has_no_parts():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, "softmax")])
    with pytest.raises(ValueError, match="take `score`"):
        ood.Energy().fit(model, ROWS).score_each(ROWS)
    stacks = ood.MutualInformation().fit(lambda x: np.full((2, len(x), 3), 1 / 3), ROWS)
    with pytest.raises(ValueError, match="take `score`"):
        stacks.score_each(ROWS)


def test_probabilities_of_one_class_whose_logit_does_not_show():
    """An average of sigmoids p: its logit is log p - log(1 - p)."""
    inputs = keras.Input((5,))
    parts = [layers.Dense(1, "sigmoid")(inputs) for _ in range(2)]
    model = keras.Model(inputs, layers.Average()(parts))
    p = np.asarray(model(ROWS), "float64")[:, 0]
    found = ood.MaxSoftmax(from_logits=False).fit(model, ROWS).score(ROWS)
    np.testing.assert_allclose(found, np.minimum(p, 1 - p), rtol=1e-4)
