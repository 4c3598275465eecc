"""Grad-CAM against an explicit GradientTape on a network in two parts, and against tf-explain."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import of_logits
from keras import layers
from skimage.transform import resize
from test_api import refused

from tfuq._random.draws import one_draw
from tfuq.ensembles import DeepEnsemble
from tfuq.interpret import grad_cam, guided_grad_cam
from tfuq.layers import MCDropout, MCSoftmaxDenseFA, VBLLDense
from tfuq.predictive import sample_predictions

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "tf_explain.npz"
IMAGES = np.random.default_rng(0).normal(size=(5, 12, 12, 3)).astype("float32")
RAW = {"relu": False, "upsample": False}


def front():
    """Images to maps `(4, 4, 5)`."""
    convs = [layers.Conv2D(4, 3, activation="relu", name="first"), layers.MaxPooling2D()]
    last = layers.Conv2D(5, 2, activation="tanh", name="last")
    return keras.Sequential([keras.Input((12, 12, 3)), *convs, last], name="front")


def head(*last):
    return keras.Sequential([keras.Input((4, 4, 5)), layers.Flatten(), *last], name="head")


class Subclassed(keras.Model):
    def __init__(self, front, head):
        super().__init__()
        self.front, self.head = front, head

    def call(self, inputs):
        return self.head(self.front(inputs))


def joined(front, head):
    inputs = keras.Input((12, 12, 3))
    return of_logits(keras.Model(inputs, head(front(inputs))))


def expected(front, head, score, images=IMAGES):
    """sum_k a_k A_k of the paper, where `score` turns the outputs into one number per image."""
    features = front(images)
    with tf.GradientTape() as tape:
        tape.watch(features)
        found = score(head(features))
    weights = tape.gradient(found, features).numpy().mean(axis=(1, 2))
    return np.einsum("bc,bhwc->bhw", weights, features.numpy())


def column(i):
    return lambda outputs: outputs[:, i]


def agree(found, wanted):
    assert found.shape == wanted.shape and found.dtype == "float32"
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def plain():
    """A network in two parts, as one with nested models, and the outputs of class 0, 1, 2."""
    keras.utils.set_random_seed(1)
    parts = front(), head(layers.Dense(3))
    wanted = np.stack([expected(*parts, column(i)) for i in range(3)], axis=1)
    return (*parts, joined(*parts), wanted)


@pytest.mark.slow_cases("sequential", "loaded")
@pytest.mark.parametrize("style", ["nested", "sequential", "subclassed", "loaded"])
def test_models_of_every_style(plain, style, tmp_path):
    front, head, nested, wanted = plain
    model = nested
    if style == "sequential":
        model = of_logits(keras.Sequential([*front.layers, *head.layers]))
    elif style == "subclassed":
        model = of_logits(Subclassed(front, head))
    elif style == "loaded":
        nested.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    agree(grad_cam(model, IMAGES, 1, **RAW), wanted[:, 1])


@pytest.mark.slow
def test_classes(plain):
    """The predicted one, several, those of each image; in batches and from a dataset."""
    _, _, model, wanted = plain
    predicted = model(IMAGES).numpy().argmax(axis=1)
    assert len(set(predicted)) > 1
    data = tf.data.Dataset.from_tensor_slices((IMAGES, predicted)).batch(3)
    agree(grad_cam(model, data, **RAW), wanted[np.arange(5), predicted])
    agree(grad_cam(model, IMAGES, (2, 0), **RAW, batch_size=2), wanted[:, [2, 0]])
    labels = np.array([0, 2, 1, 1, 0])
    found = grad_cam(model, IMAGES, labels[:, None], **RAW, batch_size=2)
    agree(found, wanted[np.arange(5), labels][:, None])


def test_positive_part_at_the_size_of_the_images(plain):
    _, _, model, wanted = plain
    maps = np.maximum(wanted[:, 2], 0)
    sized = [resize(each, (12, 12), order=1, mode="edge", anti_aliasing=False) for each in maps]
    agree(grad_cam(model, IMAGES, 2), np.stack(sized))


def test_any_layer(plain):
    """By name or as a layer, however deep; the model is left as it was."""
    front, head, model, _ = plain
    before = model.predict(IMAGES, verbose=0)
    first, rest = keras.Sequential(front.layers[:1]), keras.Sequential(front.layers[1:])
    wanted = expected(first, lambda x: head(rest(x)), column(0))
    for layer in ("first", front.layers[0]):
        agree(grad_cam(model, IMAGES, 0, layer, **RAW), wanted)
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), before)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


@pytest.mark.slow
def test_probabilities_and_entropy(plain):
    front, head, model, _ = plain

    def entropy(logits):
        return -tf.reduce_sum(tf.nn.softmax(logits) * tf.nn.log_softmax(logits), axis=1)

    def probability(logits):
        return tf.nn.softmax(logits)[:, 1]

    agree(grad_cam(model, IMAGES, target="entropy", **RAW), expected(front, head, entropy))
    found = grad_cam(model, IMAGES, 1, target="probability", **RAW)
    agree(found, expected(front, head, probability))
    soft = keras.Sequential([*front.layers, *head.layers, layers.Softmax()])
    agree(grad_cam(soft, IMAGES, 1, target="probability", **RAW), found)
    agree(grad_cam(soft, IMAGES, 1, **RAW), grad_cam(model, IMAGES, 1, **RAW))


@pytest.mark.slow
def test_nested_application(tmp_path):
    """MobileNetV2 in a model that is saved: maps of its last layer, and guided gradients."""
    options = {"input_shape": (64, 64, 3), "alpha": 0.35, "include_top": False, "weights": None}
    base = keras.applications.MobileNetV2(**options)
    head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(3)])
    inputs = keras.Input((64, 64, 3))
    model = keras.Model(inputs, head(base(inputs)))
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0, 0.1, w.shape) for w in model.get_weights()])
    images = rng.normal(size=(3, 64, 64, 3)).astype("float32")
    wanted = expected(base, head, column(1), images)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    told = {"from_logits": True}
    found = grad_cam(model, images, 1, **RAW, **told)
    agree(found, wanted)
    np.testing.assert_array_equal(grad_cam(model, images, 1, "out_relu", **RAW, **told), found)
    detail = guided_grad_cam(model, images, 1, **told)
    assert detail.shape == images.shape and np.all(np.isfinite(detail))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_output_for_two_classes(activation):
    """Of -z and z whatever the activation, of 1 - p and p."""
    parts = front(), head(layers.Dense(1))
    inputs = keras.Input((12, 12, 3))
    model = keras.Model(inputs, layers.Activation(activation)(joined(*parts)(inputs)))
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=activation is None))
    for options, score in (
        ({}, column(0)),
        ({"target": "probability"}, lambda logits: tf.sigmoid(logits[:, 0])),
    ):
        wanted = expected(*parts, score)
        found = grad_cam(model, IMAGES, [0, 1], "last", **options, **RAW)
        agree(found[:, 1], wanted)
        agree(found[:, 0], -wanted)


def test_labels():
    parts = front(), head(layers.Dense(4))
    inputs = keras.Input((12, 12, 3))
    model = keras.Model(inputs, layers.Activation("sigmoid")(joined(*parts)(inputs)))

    def entropy(logits):
        p = tf.sigmoid(logits)
        return -tf.reduce_sum(p * tf.math.log(p) + (1 - p) * tf.math.log(1 - p), axis=1)

    found = grad_cam(model, IMAGES, [3], multi_label=True, **RAW)
    agree(found[:, 0], expected(*parts, column(3)))
    found = grad_cam(model, IMAGES, [3], target="probability", multi_label=True, **RAW)
    agree(found[:, 0], expected(*parts, lambda logits: tf.sigmoid(logits[:, 3])))
    found = grad_cam(model, IMAGES, target="entropy", multi_label=True, **RAW)
    agree(found, expected(*parts, entropy))


def test_predictions_of_each_pixel():
    parts = front(), layers.Conv2DTranspose(3, 3, 3)
    model = joined(*parts)
    wanted = expected(*parts, lambda y: tf.reduce_mean(y[..., 1], axis=(1, 2)))
    agree(grad_cam(model, IMAGES, 1, "last", from_logits=True, **RAW), wanted)


TARGETS = {
    "class": lambda p: tf.reduce_mean(p, axis=0)[:, 1],
    "entropy": lambda p: entropy(tf.reduce_mean(p, axis=0)),
    "expected_entropy": lambda p: tf.reduce_mean(entropy(p), axis=0),
    "mutual_information": lambda p: TARGETS["entropy"](p) - TARGETS["expected_entropy"](p),
}


def entropy(p):
    return -tf.reduce_sum(p * tf.math.log(p), axis=-1)


@pytest.fixture(scope="module")
def drawn():
    """A network that is random before and behind the maps, and these and the probabilities."""
    keras.utils.set_random_seed(2)
    convs = [layers.Conv2D(4, 3, activation="relu"), MCDropout(0.3), layers.Conv2D(5, 7)]
    parts = (
        keras.Sequential([keras.Input((12, 12, 3)), *convs]),
        head(MCDropout(0.5), layers.Dense(3)),
    )
    features, probs = [], []
    with tf.GradientTape(persistent=True) as tape:
        for number in range(3):
            with one_draw(tf.constant([7, number])):
                features.append(parts[0](IMAGES))
                tape.watch(features[-1])
                probs.append(tf.nn.softmax(parts[1](features[-1])))
        stack = tf.stack(probs)
        scores = {name: score(stack) for name, score in TARGETS.items()}
    return joined(*parts), stack, features, scores, tape


@pytest.mark.slow
def test_draws_are_those_of_sample_predictions(drawn):
    model, stack, *_ = drawn
    found = sample_predictions(model, IMAGES, num_samples=3, seed=7, from_logits=True)
    np.testing.assert_allclose(found, stack, rtol=1e-4, atol=1e-6)


@pytest.mark.slow_cases("class")
@pytest.mark.slow_cases("entropy", "expected_entropy")
@pytest.mark.parametrize("target", TARGETS)
def test_averaged_over_draws(drawn, target):
    """The gradient of what is a function of all draws with respect to the maps of each."""
    model, _, features, scores, tape = drawn
    wanted = 0
    for maps, gradient in zip(features, tape.gradient(scores[target], features), strict=True):
        wanted += np.einsum("bc,bhwc->bhw", gradient.numpy().mean(axis=(1, 2)), maps.numpy())
    classes = 1 if target == "class" else None
    options = {"num_samples": 3, "seed": 7, "from_logits": True, "batch_size": 3}
    agree(grad_cam(model, IMAGES, classes, target=target, **options, **RAW), wanted)


def test_agrees_with_tf_explain():
    with np.load(FIXTURE) as fixture:
        fixture = dict(fixture)
    convs = [layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()]
    convs += [layers.Conv2D(5, 3, activation="relu"), layers.Flatten()]
    model = keras.Sequential([keras.Input((16, 16, 3)), *convs, layers.Dense(3, "softmax")])
    model.set_weights([fixture[f"weight_{i}"] for i in range(6)])
    found = grad_cam(model, fixture["images"], 1, target="probability", **RAW)
    np.testing.assert_allclose(found, fixture["cam"], rtol=1e-4, atol=1e-6)


def test_points_at_a_planted_mark():
    """A network that sees nothing but red, and images with a red mark in a place of their own."""
    red = layers.Conv2D(1, 3, padding="same", activation="relu")
    pool = layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input((16, 16, 3)), red, pool, layers.Dense(2)])
    kernel = np.zeros((3, 3, 3, 1))
    kernel[..., 0, 0], kernel[..., 1:, 0] = 1, -1
    model.set_weights([kernel, np.zeros(1), np.array([[-1.0, 1.0]]), np.zeros(2)])
    of_logits(model)
    rng = np.random.default_rng(0)
    images = np.repeat(rng.random((4, 16, 16, 1)), 3, axis=-1)
    places = rng.integers(1, 13, size=(4, 2))
    for image, (row, col) in zip(images, places, strict=True):
        image[row : row + 3, col : col + 3] = (1, 0, 0)
    peaks = [np.unravel_index(m.argmax(), m.shape) for m in grad_cam(model, images, 1)]
    np.testing.assert_array_equal(peaks, places + 1)
    assert not grad_cam(model, images, 0).any()  # nothing speaks for the other class


class WithAge(keras.Model):
    """Takes a dict, gives a dict, one output of it from a branch that has maps of its own."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3, name="used")
        self.dense = layers.Dense(3)
        self.other = layers.Conv2D(2, 3, name="unused")

    def call(self, inputs):
        features = keras.ops.mean(self.conv(inputs["image"]), axis=(1, 2))
        classes = self.dense(keras.ops.concatenate([features, inputs["age"]], axis=1))
        return {"class": classes, "map": self.other(inputs["image"])}


def test_inputs_and_outputs_by_name():
    model = WithAge()
    data = {"age": np.ones((5, 1), "float32"), "image": (IMAGES * 10).astype("uint8")}
    found = grad_cam(model, data, 2, output="class", from_logits=True, **RAW)
    weights = model.dense.kernel[:4, 2].numpy() / 100  # of an average over 10 x 10 places
    maps = model.conv(data["image"].astype("float32")).numpy()
    agree(found, maps @ weights)
    named = {"output": "class", "from_logits": True}
    refused("layer", grad_cam, model, data, 2, "unused", **named)
    refused("images", grad_cam, model, {"age": data["age"], "image": IMAGES[..., 0]}, **named)


def test_refusals(plain):
    _, _, model, _ = plain
    flat = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    refused("model", grad_cam, lambda x: x, IMAGES)
    bare = keras.Sequential([keras.Input((12, 12, 3)), layers.Flatten(), layers.Dense(3)])
    refused("model", grad_cam, of_logits(bare), IMAGES)
    refused("from_logits", grad_cam, keras.Sequential([*bare.layers]), IMAGES)
    refused("images", grad_cam, flat, np.ones((5, 2)))
    refused("images", grad_cam, model, IMAGES[:, :8])
    refused("images", grad_cam, model, IMAGES[..., :1])
    refused("images", grad_cam, model, IMAGES[:0])
    for layer in ("no such", "head", model.layers[-1].layers[0], 3, layers.ReLU()):
        refused("layer", grad_cam, model, IMAGES, layer=layer)
    for classes in (3, -1, [0, 3], 1.0, True, "1", [], [[0], [1]], np.zeros((6, 1), int), [[[0]]]):
        refused("class_index", grad_cam, model, IMAGES, classes)
    refused("class_index", grad_cam, model, IMAGES, 0, target="entropy")
    refused("target", grad_cam, model, IMAGES, target="logit")
    for count in (0, 2.0, 4):  # the last one because the model is not random
        refused("num_samples", grad_cam, model, IMAGES, num_samples=count)
    refused("num_samples", grad_cam, model, IMAGES, target="mutual_information")
    for name in ("relu", "upsample", "multi_label", "from_logits"):
        refused(name, grad_cam, model, IMAGES, **{name: "yes"})
    refused("batch_size", grad_cam, model, IMAGES, batch_size=0)
    refused("seed", grad_cam, model, IMAGES, seed=-1)


# --- Certain predictions --------------------------------------------------------------------------


def endings(front, head):
    """Models that end in the soft-max or sigmoid of the same logits, or in its logarithm."""
    inputs, last = keras.Input((12, 12, 3)), head.layers[-1]
    logits = head(front(inputs))
    name = "softmax" if last.units > 1 else "sigmoid"
    inside = layers.Dense(last.units, name)
    whole = keras.Sequential([front, *head.layers[:-1], inside])
    whole.build((None, 12, 12, 3))
    inside.set_weights(last.get_weights())
    yield whole
    yield keras.Model(inputs, layers.Activation(name)(logits))
    yield keras.Model(inputs, getattr(keras.ops, name)(logits))
    if last.units > 1:
        yield keras.Model(inputs, layers.Softmax()(logits))
        yield keras.Model(inputs, layers.Activation("log_softmax")(logits))


@pytest.mark.slow_cases("3")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("units", [3, 1])
def test_certain_predictions(units):
    """Of the score before the soft-max or sigmoid, which float32 rounds to 1."""
    keras.utils.set_random_seed(4)
    parts = front(), head(layers.Dense(units))
    parts[1].layers[-1].bias.assign(45.0 * np.eye(units)[0])
    model = joined(*parts)
    if units == 1:
        model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    for target in ("class", "entropy"):
        options = {"target": target, "layer": "last", **RAW}
        wanted = grad_cam(model, IMAGES, **options)
        assert np.abs(wanted).max(axis=(1, 2)).min() > 0
        for other in endings(*parts):
            found = grad_cam(other, IMAGES, **options)
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_certain_predictions_of_heads():
    """Their logits are logarithms of probabilities, of which those of a certain class are 0."""
    inputs, maps = keras.Input((12, 12, 3)), front()
    features = layers.Flatten()(maps(inputs))
    last = VBLLDense(3, kl_weight=0.01)
    model = keras.Model(inputs, last(features))
    last.bias.assign([60.0, 0.0, 0.0])
    plain = layers.Dense(3)
    wanted = of_logits(keras.Model(inputs, plain(features)))
    plain.set_weights([last.kernel, last.bias])
    agree(
        grad_cam(model, IMAGES, layer="last", **RAW), grad_cam(wanted, IMAGES, layer="last", **RAW)
    )


@pytest.mark.slow
def test_named_tuples_are_outputs():
    inputs = keras.Input((12, 12, 3))
    features = layers.GlobalAveragePooling2D()(front()(inputs))
    noisy = MCSoftmaxDenseFA(3, 2, test_mc_samples=8, sampling="iid")(features)
    found = grad_cam(keras.Model(inputs, noisy), IMAGES, output="probs")
    assert found.shape == (5, 12, 12) and found.max() > 0


# --- Ensembles --------------------------------------------------------------------------------


def small_network(seed):
    keras.utils.set_random_seed(seed)
    conv = keras.layers.Conv2D(4, 3, activation="relu", name="places")
    layers = [conv, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input((9, 8, 3)), *layers])


def test_the_map_of_an_ensemble_is_the_mean_of_its_members():
    members = [small_network(seed) for seed in (0, 1)]
    images = np.random.default_rng(0).random((5, 9, 8, 3)).astype("float32")
    ensemble = DeepEnsemble.from_models(members)
    classes = np.mean([m.predict(images, verbose=0) for m in members], axis=0).argmax(-1)
    maps = [grad_cam(m, images, classes[:, None], relu=False)[:, 0] for m in members]
    found = grad_cam(ensemble, images, batch_size=2)
    np.testing.assert_allclose(found, np.maximum(np.mean(maps, axis=0), 0), atol=1e-6)
    of_two = grad_cam(ensemble, images, [0, 2], layer="places", relu=False, upsample=False)
    assert of_two.shape == (5, 2, 7, 6)
    data = tf.data.Dataset.from_tensor_slices(images).batch(2)
    np.testing.assert_allclose(
        grad_cam(ensemble, data, [0, 2], relu=False, upsample=False), of_two, atol=1e-6
    )
    with pytest.raises(ValueError, match="`images` must be arrays for an ensemble"):
        grad_cam(ensemble, data)
    with pytest.raises(ValueError, match="`target` must be 'class' or 'probability' for an"):
        grad_cam(ensemble, images, target="predictive_entropy")
