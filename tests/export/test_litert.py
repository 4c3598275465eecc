"""LiteRT files say what Python says, with operations that every interpreter has built in."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from formats import assert_agrees, each_kind
from sklearn.datasets import load_digits

from tfuq._math import logistic_normal
from tfuq.export import _unrolled, export_litert, verify_export
from tfuq.export._runtimes import LiteRT
from tfuq.layers import DenseVariational, MCSigmoidDenseFA, MCSoftmaxDenseFA, VBLLDense
from tfuq.ood import ODIN, Mahalanobis
from tfuq.predictive import predict_uncertainty
from tfuq.selective import ConformalPredictor, RejectionRule

KL = {"kl_weight": 0.01, "posterior_scale": 0.5}
X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")


def classifier(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


# --- Agreement --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", each_kind())
def test_agrees_with_python(kind, tmp_path):
    case = kind(tmp_path)
    export_litert(case.model, tmp_path / "model.tflite", **case.options)
    model = LiteRT(tmp_path / "model.tflite")
    assert_agrees(case, kind, model)
    names = {each["op_name"] for each in model.interpreter._get_ops_details()}
    assert names and not [name for name in names if "Flex" in name or "CUSTOM" in name.upper()]
    assert not names & {"IF", "WHILE", "READ_VARIABLE", "VAR_HANDLE"}


@pytest.mark.slow_cases("MCSoftmaxDenseFA")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("head", [MCSoftmaxDenseFA, MCSigmoidDenseFA])
def test_logits_out_of_all_bounds(head, tmp_path):
    """Where softplus, exp and log leave the range of float32."""
    model = classifier(head(3, num_factors=2, logits_only=True))
    for weight in model.weights:
        weight.assign(300 * weight)
    options = {"from_logits": True, "multi_label": head is MCSigmoidDenseFA}
    export_litert(model, tmp_path / "model.tflite", **options)
    logits = model(X)
    probs = tf.sigmoid(logits) if options["multi_label"] else tf.nn.softmax(logits)
    verify_export(tmp_path / "model.tflite", X, probs)


def test_sets_of_labels_of_pixels(tmp_path):
    """An interpreter ends the process where an operation has more axes than it can."""
    layer = keras.layers.Conv2D(2, 3, padding="same", activation="sigmoid")
    model = keras.Sequential([keras.Input((3, 3, 1)), layer])
    x = np.random.default_rng(1).normal(size=(40, 3, 3, 1)).astype("float32")
    probs = model.predict(x, verbose=0)
    labels = np.random.default_rng(2).random(probs.shape) < probs
    sets = ConformalPredictor.fit(probs, labels, alpha=0.2, multi_label=True)
    export_litert(model, tmp_path / "model.tflite", conformal=sets, multi_label=True)
    run = LiteRT(tmp_path / "model.tflite")
    found = run({run.inputs[0]: x})["prediction_set"]
    np.testing.assert_array_equal(found, sets.predict_set(probs))
    x[0, 0, 0] = np.nan
    assert np.all(run({run.inputs[0]: x[:1]})["prediction_set"])  # of what is unknown


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_accepted_of_what_is_no_number(value, tmp_path):
    """An interpreter must not turn a comparison around, of which NaN is neither side."""
    model = classifier(keras.layers.Dense(3, activation="softmax"))
    sets = ConformalPredictor("lac", 0.9)
    options = {"rule": RejectionRule("confidence", 0.1), "conformal": sets}
    export_litert(model, tmp_path / "model.tflite", **options)
    run = LiteRT(tmp_path / "model.tflite")
    x = X[:3].copy()
    x[1, 2] = value
    said = run({run.inputs[0]: x})
    np.testing.assert_array_equal(said["accept"], [True, False, True])
    np.testing.assert_array_equal(said["prediction_set"][1], [True] * 3)
    assert np.isnan(said["probabilities"][1]).all() and np.isnan(said["confidence"][1])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("factors", ["none", "own", "shared"])
@pytest.mark.parametrize("power", [1, 2])
def test_means_without_loops(mirrored, factors, power):
    """Against a mean over samples, one by one, in float64."""
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(5, 3)), rng.random((5, 3))
    own = {"none": (), "own": (rng.normal(size=(5, 3, 2)),)}
    own["shared"] = (rng.normal(size=(5, 3)), rng.normal(size=(2, 3)))
    given, points = own[factors], rng.normal(size=(11, 3 if factors == "none" else 5))
    logits = []
    for point in [*points, *-points] if mirrored else points:
        z, e = point[:-3], point[-3:]
        noise = scale * e
        if factors == "own":
            noise = noise + given[0] @ z
        elif factors == "shared":
            noise = noise + given[0] * (z @ given[1])
        logits.append(loc + noise)
    exps = np.exp(logits)
    probs = exps / exps.sum(-1, keepdims=True)
    arguments = [tf.constant(a, "float32") for a in (loc, scale)]
    arguments += [tuple(tf.constant(a, "float32") for a in given), tf.constant(points, "float32")]
    (found,) = _unrolled.log_means(logistic_normal.Softmax, *arguments, mirrored, power)
    np.testing.assert_allclose(np.exp(found), (probs**power).mean(0), rtol=1e-5)
    found = _unrolled.log_means(logistic_normal.Sigmoid, *arguments, mirrored, power)
    sigmoids = exps / (1 + exps)
    np.testing.assert_allclose(np.exp(found[0]), (sigmoids**power).mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.exp(found[1]), ((1 - sigmoids) ** power).mean(0), rtol=1e-5)


@pytest.mark.slow
def test_draws_one_by_one_are_those_at_once(tmp_path, monkeypatch):
    model = classifier(DenseVariational(5, activation="tanh", **KL), DenseVariational(3, **KL))
    expected = predict_uncertainty(model, X, 4, from_logits=True, seed=2)
    options = {"num_samples": 4, "seed": 2, "from_logits": True}
    export_litert(model, tmp_path / "at_once.tflite", **options)
    monkeypatch.setattr("tfuq.export._samples.AT_ONCE", 0)
    export_litert(model, tmp_path / "one_by_one.tflite", **options)
    for name in ("at_once", "one_by_one"):
        verify_export(tmp_path / f"{name}.tflite", X, expected)
    sizes = [
        len(LiteRT(tmp_path / f"{name}.tflite").interpreter._get_ops_details())
        for name in ("at_once", "one_by_one")
    ]
    assert sizes[0] < sizes[1]


# --- Weights of fewer bits --------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """A network trained on half of the digits, and the other half."""
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="tanh", name="features"),
            VBLLDense(10, kl_weight=1 / 900),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    model.fit(images[:900], labels[:900], epochs=15, verbose=0)
    return model, images, labels


# Measured: differences of the probabilities of 7e-7, 3.3e-4 and 8.2e-3, of the mutual information
# of 2e-7, 1.3e-5 and 2.1e-4, of the scores, relative, of 5e-6, 7e-4 and 0.022; the same accuracy.
@pytest.mark.slow_cases("int8*")
@pytest.mark.slow_cases("float*")
@pytest.mark.parametrize(
    "weights, of_probs, of_scores, share",
    [("float32", 1e-5, 2e-5, 1.0), ("float16", 1e-3, 2e-3, 0.65), ("int8", 0.025, 0.07, 0.5)],
)
def test_weights_of_fewer_bits(digits, weights, of_probs, of_scores, share, tmp_path):
    model, images, labels = digits
    test, truth = images[900:], labels[900:]
    found = predict_uncertainty(model, images, 10)
    rule = RejectionRule.fit(found.probs[:900], labels[:900], target_coverage=0.9)
    detector = Mahalanobis().fit(model, images[:900], labels[:900])
    path = tmp_path / "model.tflite"
    export_litert(model, path, rule=rule, ood=detector, num_samples=10, weights=weights)
    served, expected = LiteRT(path)({"inputs": test}), found.probs[900:]
    np.testing.assert_allclose(served["probabilities"], expected, rtol=0, atol=of_probs)
    accuracy = np.mean(served["label"] == truth)
    assert accuracy > 0.9 and abs(accuracy - np.mean(expected.argmax(-1) == truth)) <= 0.005
    information = found.mutual_information[900:]
    np.testing.assert_allclose(served["mutual_information"], information, rtol=0, atol=of_probs)
    np.testing.assert_allclose(served["ood_score"], detector.score(test), rtol=of_scores)
    # Thresholds are as they were: the decision is the rule's on what is served.
    np.testing.assert_array_equal(served["accept"], rule.accept(served["probabilities"]))
    weights_alone = 4 * sum(weight.shape.num_elements() for weight in model.layers[1].weights)
    draws = 4 * 10 * 64 * 10  # a number for each weight of the head, in each of ten networks
    assert path.stat().st_size < share * (230_000 + draws) + weights_alone
    kinds = {d["dtype"] for d in LiteRT(path).interpreter.get_tensor_details()}
    assert (np.float16 in kinds, np.int8 in kinds) == (weights == "float16", weights == "int8")
    verify_export(path, test, expected, tolerance=of_probs)


def test_threshold_stays_float32(tmp_path):
    """0.7003 is 0.70020 in float16; some of 20,000 confidences are between."""
    model = classifier(keras.layers.Dense(3, activation="softmax"))
    x = np.random.default_rng(0).normal(size=(20_000, 4)).astype("float32")
    rule = RejectionRule("confidence", 0.7003)
    export_litert(model, tmp_path / "model.tflite", rule=rule, weights="float16")
    served = LiteRT(tmp_path / "model.tflite")({"inputs": x})
    confidence = served["confidence"]
    assert np.any((confidence > 0.70021) & (confidence < 0.70029))
    np.testing.assert_array_equal(served["accept"], rule.accept(served["probabilities"]))


# --- Files ------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    model = classifier(keras.layers.Dense(3, activation="softmax"))
    export_litert(model, tmp_path / "model.tflite")
    return tmp_path / "model.tflite", model.predict(X, verbose=0)


def test_metadata_are_beside_the_file(written):
    path, probs = written
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "model.tflite",
        "model.tflite.json",
        "model.tflite.md",
    ]
    content = json.loads(path.with_name("model.tflite.json").read_text())
    assert (content["kind"], content["weights"]) == ("litert", "float32")
    assert content["signature"]["inputs"] == {"inputs": {"dtype": "float32", "shape": [None, 4]}}
    assert content["outputs"]["probabilities"]["shape"] == [None, 3]
    assert content["agreement"]["random_inputs"] == 32
    assert content["agreement"]["probabilities"] < 1e-5
    assert verify_export(path, X, probs).examples == 40


def test_changed_file_is_told(written):
    path, probs = written
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"model\.tflite truncated: SHA-256"):
        verify_export(path, X, probs)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="Argument `x` must be a batch"):
        verify_export(path, X[:, :3], probs)
    with pytest.raises(ValueError, match="difference of"):
        verify_export(path, X, probs + 1e-3)
    path.unlink()
    with pytest.raises(ValueError, match=r"no model\.tflite"):
        verify_export(path, X, probs)


@pytest.mark.slow
def test_moved_to_another_name(written):
    path, probs = written
    moved = path.with_name("other.bin")
    path.with_name("model.tflite.json").rename(path.with_name("other.bin.json"))
    path.rename(moved)
    verify_export(moved, X, probs)


@pytest.mark.slow
def test_overwrites_only_its_own(written, monkeypatch):
    path, probs = written
    other = classifier(keras.layers.Dense(3, activation="softmax"))
    with pytest.raises(ValueError, match="Argument `path` must be a new file"):
        export_litert(other, path)
    mine = path.with_name("mine.tflite")
    mine.write_text("mine")
    with pytest.raises(ValueError, match="an exported model, to overwrite"):
        export_litert(other, mine, overwrite=True)
    assert mine.read_text() == "mine"
    mine.unlink()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tfuq.export._files.write_metadata", full)
        with pytest.raises(OSError, match=r"No space left.*another disk"):
            export_litert(other, path, overwrite=True)
    verify_export(path, X, probs)
    export_litert(other, path, overwrite=True)
    verify_export(path, X, other.predict(X, verbose=0))
    assert len(list(path.parent.iterdir())) == 3


# --- What is refused --------------------------------------------------------------------------


class Fourier(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.abs(tf.signal.fft(tf.cast(inputs, "complex64")))


class Gamma(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.lgamma(inputs)


class Lottery(keras.layers.Layer):
    def call(self, inputs):
        return inputs * tf.random.stateless_uniform(tf.shape(inputs), [1, 2])


class Branching(keras.layers.Layer):
    def call(self, inputs):
        found = tf.cond(tf.reduce_sum(inputs) > 0, lambda: inputs, lambda: -inputs)
        return tf.ensure_shape(found, inputs.shape)


@pytest.mark.slow_cases("fourier*", "StatelessRandom*")
@pytest.mark.parametrize(
    "layer, message",
    [
        (Gamma(name="gamma"), "must be what LiteRT can run"),  # the converter takes it for another
        # Of this it makes something of another shape.
        (Fourier(name="fourier"), "must be what LiteRT (can run|computes)"),
        (Lottery(name="lottery"), "StatelessRandom.*'lottery' of class Lottery"),
        (Branching(name="branching"), "a branch in layer 'branching' of class Branching"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_operation_that_is_not_built_in_is_named(layer, message, tmp_path):
    model = classifier(layer, keras.layers.Dense(3))
    with pytest.raises(ValueError, match=message):
        export_litert(model, tmp_path / "model.tflite", from_logits=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_detector_with_a_gradient_is_refused(tmp_path):
    model = classifier(keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    detector = ODIN(epsilon=0.05).fit(model, X)
    with pytest.raises(ValueError, match=r"operations that LiteRT has built in.*ReluGrad"):
        export_litert(model, tmp_path / "model.tflite", ood=detector, from_logits=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "int4"}, "Argument `weights`"),
        ({"predictive": "fresh_samples"}, "must not be 'fresh_samples'.*LiteRT"),
        ({"predictive": "median"}, "Argument `predictive`"),
        ({"num_samples": 0}, "Argument `num_samples`"),
        ({"overwrite": 1}, "Argument `overwrite`"),
    ],
)
def test_arguments_that_do_not_fit(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_litert(classifier(VBLLDense(3, **KL)), tmp_path / "model.tflite", **options)
    assert not list(tmp_path.iterdir())


def test_draws_that_take_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("tfuq.export._samples.BAKED_BYTES", 100)
    model = classifier(DenseVariational(3, **KL))
    with pytest.raises(ValueError, match="Argument `num_samples` must be smaller"):
        export_litert(model, tmp_path / "model.tflite", num_samples=9, from_logits=True)
