"""Folders that are whole or not there, hashes that tell, and arguments that are refused."""

import errno
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import ood
from tfuq.ensembles import DeepEnsemble
from tfuq.export import export, verify_export
from tfuq.export._files import FORMAT, METADATA, write_metadata
from tfuq.layers import DenseVariational, MCDropout, VBLLDense
from tfuq.selective import ConformalPredictor, RejectionRule, TemperatureScaling

KL = {"kl_weight": 0.01, "posterior_scale": 0.5}
X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")


def classifier(*layers):
    last = keras.layers.Dense(3, activation="softmax")
    return keras.Sequential([keras.Input((4,)), *(layers or (last,))])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An exported model, and its probabilities of X."""
    model = classifier()
    probs = model.predict(X, verbose=0)
    rule = RejectionRule.fit(probs, np.arange(40) % 3, target_coverage=0.5)
    path = tmp_path_factory.mktemp("written") / "model"
    export(model, path, rule=rule)
    return path, probs, model, rule


@pytest.fixture
def copy(written, tmp_path):
    """A copy of it that a test may damage."""
    for file in written[0].rglob("*"):
        target = tmp_path / "copy" / file.relative_to(written[0])
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return tmp_path / "copy"


# --- What is written --------------------------------------------------------------------------


def test_metadata_say_what_was_exported(written):
    path, _, model, rule = written
    content = json.loads((path / METADATA).read_text())
    assert content["versions"]["tensorflow"] == tf.__version__
    assert content["versions"]["keras"] == keras.__version__
    assert (content["format"], content["predictive"]) == (FORMAT, "fixed_samples")
    assert content["num_samples"] is None
    assert content["rule"]["config"] == rule.get_config()
    assert content["calibration_examples"] == {"rule": 40}
    assert content["signature"]["inputs"] == {"inputs": {"dtype": "float32", "shape": [None, 4]}}
    assert content["signature"]["outputs"] == sorted(content["outputs"])
    kinds = {name: (each["dtype"], each["shape"]) for name, each in content["outputs"].items()}
    assert kinds == {
        "probabilities": ("float32", [None, 3]),
        "label": ("int64", [None]),
        "confidence": ("float32", [None]),
        "predictive_entropy": ("float32", [None]),
        "accept": ("bool", [None]),
    }
    assert all(each["meaning"] for each in content["outputs"].values())
    assert {"saved_model.pb", "variables/variables.index"} < set(content["files"])
    assert len(content["weights_sha256"]) == 64
    weights = [weight + 1 for weight in model.get_weights()]
    other = keras.models.clone_model(model)
    other.set_weights(weights)
    export(other, path.with_name("other"))
    found = json.loads((path.with_name("other") / METADATA).read_text())
    assert found["weights_sha256"] != content["weights_sha256"]


def test_rule_from_a_file(written, tmp_path):
    _, probs, model, rule = written
    rule.save(tmp_path / "rule.json")
    export(model, tmp_path / "model", rule=tmp_path / "rule.json")
    expected = {"accept": rule.accept(probs), "probabilities": probs}
    verify_export(tmp_path / "model", X, expected)


def test_path_that_is_not_empty_is_left_alone(written, tmp_path):
    model = written[2]
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="Argument `path`"):
            export(model, tmp_path, overwrite=overwrite)
    with pytest.raises(ValueError, match="Argument `path`"):
        export(model, tmp_path / "notes.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_overwrites_its_own(written, copy):
    other = classifier()
    with pytest.raises(ValueError, match="Argument `path`"):
        export(other, copy)
    verify_export(copy, X, written[1])
    export(other, copy, overwrite=True)
    verify_export(copy, X, other.predict(X, verbose=0))
    assert [file.name for file in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "variables; No space left on device"),
    ],
)
def test_no_space(error, written, copy, monkeypatch):
    """The old export is still there, and nothing else."""

    def fails(trackable, path, **kwargs):
        with open(f"{path}/half", "w") as stream:
            stream.write("half")
        raise error

    monkeypatch.setattr(tf.saved_model, "save", fails)
    with pytest.raises(OSError, match=r"No space left.*another disk") as raised:
        export(classifier(), copy, overwrite=True)
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        export(classifier(), copy.with_name("new"))
    assert [file.name for file in copy.parent.iterdir()] == ["copy"]
    verify_export(copy, X, written[1])


# --- What is verified -------------------------------------------------------------------------


def test_files_that_changed_are_named(written, copy):
    probs = written[1]
    weights = copy / "variables" / "variables.data-00000-of-00001"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"variables\.data.* truncated: SHA-256 [0-9a-f]{64}"):
        verify_export(copy, X, probs)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"variables\.data.* altered: SHA-256 [0-9a-f]{64}"):
        verify_export(copy, X, probs)
    weights.unlink()
    with pytest.raises(ValueError, match=r"no variables/variables\.data"):
        verify_export(copy, X, probs)
    weights.write_bytes(whole)
    verify_export(copy, X, probs)


def test_metadata_that_changed(written, copy):
    file = copy / METADATA
    content = json.loads(file.read_text())
    content["rule"]["config"]["threshold"] = 0.0
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"metadata.json altered"):
        verify_export(copy, X, written[1])
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match="JSONDecodeError"):
        verify_export(copy, X, written[1])
    file.unlink()
    with pytest.raises(ValueError, match="folder that `export` wrote"):
        verify_export(copy, X, written[1])


def test_another_version(written, copy, monkeypatch):
    monkeypatch.setattr("tfuq.export._files.FORMAT", FORMAT + 1)
    about = json.loads((copy / METADATA).read_text())
    del about["format"]
    write_metadata(copy, {**about, "versions": {"tfuq": "9.9"}}, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format 2, written by tfuq '9\.9'"):
        verify_export(copy, X, written[1])


def test_answers_that_differ(written):
    path, probs, _, _ = written
    assert verify_export(path, X, probs).differences["probabilities"] <= 1e-5
    moved = probs.copy()
    moved[3, 1] += 3e-5
    with pytest.raises(ValueError, match=r"difference of (2.9|3.0).*in 'probabilities'"):
        verify_export(path, X, moved)
    verify_export(path, X, moved, tolerance=1e-4)
    moved[3, 1] = np.nan
    with pytest.raises(ValueError, match="difference of inf"):
        verify_export(path, X, moved)
    with pytest.raises(ValueError, match=r"difference of 1.0 in 'label'"):
        verify_export(path, X, {"label": (probs.argmax(-1) + 1) % 3})
    with pytest.raises(ValueError, match=r"name outputs of the model.*std"):
        verify_export(path, X, {"std": probs})
    with pytest.raises(ValueError, match="shape of the output"):
        verify_export(path, X, probs[:5])


def test_equally_probable_classes_may_be_told_either_way(tmp_path):
    model = classifier(keras.layers.Dense(3, kernel_initializer="zeros"), keras.layers.Softmax())
    export(model, tmp_path / "model")
    found = verify_export(tmp_path / "model", X, {"label": np.full(40, 2)})
    assert found.differences == {"label": 0.0}


# --- What is refused --------------------------------------------------------------------------


class Halving(keras.layers.Layer):
    def call(self, inputs):
        return keras.ops.convert_to_tensor(np.asarray(inputs) / 2)  # fails in a graph

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


class Python(keras.layers.Layer):
    def call(self, inputs):
        halves = tf.py_function(lambda x: x / 2, [inputs], "float32")
        return tf.ensure_shape(halves, inputs.shape)


class Noisy(keras.layers.Layer):
    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


@pytest.mark.parametrize(
    "layer, message",
    [
        (Halving(name="halving"), "'halving' of class Halving, whose call fails"),
        (Python(name="calls_back"), "py_function in layer 'calls_back' of class Python"),
        (
            keras.layers.Lambda(lambda x: x + float(x[0, 0]), output_shape=(4,), name="function"),
            "'function' of class Lambda, whose call fails",
        ),
        (Noisy(name="noisy"), "'fresh_samples' for a model whose calls differ.*'noisy'"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("head", [keras.layers.Softmax, lambda: VBLLDense(3, **KL)])
def test_layer_that_cannot_be_exported_is_named(layer, message, head, tmp_path):
    model = classifier(keras.layers.Dense(4), layer, head())
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def rule(score="confidence", **options):
    return RejectionRule(score, 0.5, **options)


def detector_of_another_model():
    return ood.Energy().fit(classifier(), X)


PLAIN, RANDOM = classifier(), classifier(VBLLDense(3, **KL))


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("model.keras", {}, "Argument `model`"),
        ([], {}, "at least one"),
        (keras.Sequential([keras.layers.Dense(3)]), {}, "must be built"),
        (PLAIN, {"predictive": "median"}, "Argument `predictive`"),
        (PLAIN, {"predictive": "probit"}, "'probit' with 0 of these"),
        (classifier(MCDropout(0.5), VBLLDense(3, **KL)), {"predictive": "probit"}, "mc_dropout"),
        (PLAIN, {"predictive": "fresh_samples"}, "without random layers"),
        (PLAIN, {"num_samples": 5}, "Argument `num_samples` must be None"),
        (RANDOM, {"num_samples": 0}, "Argument `num_samples`"),
        (RANDOM, {"num_samples": 5, "predictive": "mean"}, "Argument `num_samples` must be None"),
        (RANDOM, {"seed": -1}, "Argument `seed`"),
        (PLAIN, {"batch_size": 0}, "Argument `batch_size`"),
        (PLAIN, {"multi_label": 2}, "Argument `multi_label`"),
        (PLAIN, {"rule": rule("mutual_information")}, "score='mutual_information'"),
        (RANDOM, {"rule": rule("variation_ratio"), "predictive": "mean"}, "variation_ratio"),
        (PLAIN, {"rule": rule(rank=4)}, "Argument `rule` must be fitted to predictions of 2 axes"),
        (PLAIN, {"rule": rule(multi_label=True)}, "with multi_label=False"),
        (PLAIN, {"rule": RejectionRule("margin", [1.0], by="group", keys=["a"])}, "group"),
        (PLAIN, {"rule": RejectionRule("margin", [1.0], by="class", keys=[3])}, "must know all"),
        (PLAIN, {"calibration": TemperatureScaling(2.0, from_logits=True)}, "fitted to logits"),
        (PLAIN, {"calibration": TemperatureScaling()}, "must be fitted first"),
        (PLAIN, {"conformal": rule}, "Argument `conformal`"),
        (PLAIN, {"conformal": ConformalPredictor("aps", 0.5, randomized=True)}, "randomized"),
        (PLAIN, {"ood": ood.Mahalanobis()}, "must be fitted"),
        (PLAIN, {"ood": "energy"}, "Argument `ood`"),
        (PLAIN, {"ood": ood.MutualInformation().fit(RANDOM, X)}, "num_samples=30 and seed=0"),
        (PLAIN, {"ood": detector_of_another_model()}, "fitted to the model that is exported"),
        (PLAIN, {"preprocessing": np.asarray}, "Argument `preprocessing` must be made of"),
        (PLAIN, {"preprocessing": 3}, "Argument `preprocessing`"),
    ],
)
def test_arguments_that_do_not_fit(model, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


def test_detector_on_gradients_is_refused_by_name(tmp_path):
    features = np.exp(np.random.default_rng(0).normal(size=(40, 3)))
    detector = ood.GradientDensity().fit_features(features)
    with pytest.raises(ValueError, match=r"Energy.*Received: a GradientDensity"):
        export(PLAIN, tmp_path / "model", ood=detector)


def test_subclassed_model_needs_its_signature(tmp_path):
    class Whole(keras.Model):
        def call(self, inputs):
            return keras.ops.softmax(inputs)

    model = Whole()
    model.compile(loss="sparse_categorical_crossentropy")  # of probabilities
    model(X)
    with pytest.raises(ValueError, match="Argument `input_signature` must be given"):
        export(model, tmp_path / "model")
    export(model, tmp_path / "model", input_signature=tf.TensorSpec((None, 4), "float32"))
    verify_export(tmp_path / "model", X, keras.ops.softmax(X))


def test_ensemble_with_one_random_member(tmp_path):
    """The draws of one, and the other as it is: a stack of four networks."""
    random = classifier(DenseVariational(3, **KL))
    random.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    together = DeepEnsemble.from_models([PLAIN, random])
    export(together, tmp_path / "model", num_samples=3)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    assert np.all(loaded.serve(X)["mutual_information"].numpy() > 0)
