"""Exported models say what Python says, where neither tfuq nor Keras can be imported."""

import pathlib
from typing import NamedTuple

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

from tfuq.callbacks import SnapshotEnsemble
from tfuq.ensembles import DeepEnsemble
from tfuq.export import export
from tfuq.layers import (
    Conv2DVariational,
    DenseVariational,
    MCDropout,
    MCSigmoidDenseFA,
    MCSoftmaxDenseFA,
    SparseBayesConv2D,
    SparseBayesDense,
    VBLLDense,
)
from tfuq.ood import KNN, Energy, Mahalanobis, MutualInformation
from tfuq.predictive import decompose, predict_uncertainty, sample_predictions
from tfuq.selective import (
    ConformalPredictor,
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    VectorScaling,
)

pytestmark = pytest.mark.xdist_group("saved_models")  # one process loads them all

PROCESS = pathlib.Path(__file__).with_name("served_process.py")
NAMES = (
    *("label", "confidence", "predictive_entropy", "expected_entropy", "mutual_information"),
    "std",
)
KL = {"kl_weight": 0.01, "posterior_scale": 0.5}
VAGUE = {"kl_weight": 0.01}
LAYERS = keras.layers


class Case(NamedTuple):
    """A model, how it is exported, and what Python says: a dict of arrays for 64 inputs."""

    model: object
    options: dict
    expected: dict
    inputs: dict


def rows(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=(64, *shape)).astype("float32")


X, IMAGES = rows(4), rows(6, 6, 2, seed=2)
Y = np.arange(64) % 3


def sequential(*layers, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *layers])


def of_logits(model):
    """The model, compiled with a loss that says what its outputs are."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    return model


def trunk():
    return LAYERS.Dense(6, activation="tanh", name="trunk")


def of_uncertainty(found, has_samples=True):
    """The outputs that an `Uncertainty` tells."""
    names = NAMES[:5] if has_samples else NAMES[:3]
    return {"probabilities": found.probs} | {name: getattr(found, name) for name in names}


def drawn(model, x=X, options=None, **more):
    """A case of a random model: all of `predict_uncertainty`."""
    options = {"num_samples": 5, "seed": 3, **(options or {})}
    reading = {k: v for k, v in options.items() if k in ("output", "multi_label", "from_logits")}
    draws = {"num_samples": options["num_samples"], "seed": options["seed"]}
    found = predict_uncertainty(model, x, **draws, **reading)
    return Case(model, options, of_uncertainty(found) | more, {"inputs": x})


def certain(model, probs, x=X, options=None, **more):
    """A case of a model with one prediction, `probs`."""
    options = options or {}
    found = decompose(np.asarray(probs)[None], options.get("multi_label", False))
    return Case(model, options, of_uncertainty(found, False) | more, {"inputs": x})


# --- The kinds of models ----------------------------------------------------------------------


def plain(folder):
    model = sequential(trunk(), LAYERS.Dense(3, activation="softmax"))
    return certain(model, model.predict(X, verbose=0))


def plain_with_everything(folder):
    """Raw images, a calibration, a rule, sets and a detector."""
    model = of_logits(sequential(LAYERS.Flatten(), trunk(), LAYERS.Dense(3), shape=(6, 6, 2)))
    raw = np.random.default_rng(0).integers(256, size=(64, 6, 6, 2), dtype="uint8")
    x = (raw / 127.5 - 1).astype("float32")
    logits = model.predict(x, verbose=0)
    calibration = VectorScaling(from_logits=True).fit(logits[:32], Y[:32])
    probs = np.asarray(keras.ops.softmax(calibration.transform(logits)))
    rule = RejectionRule.fit(probs[32:], Y[32:], target_coverage=0.5)
    sets = ConformalPredictor.fit(probs[32:], Y[32:], "aps", alpha=0.3)
    detector = KNN(k=3).fit(model, x)
    options = {"rule": rule, "conformal": sets, "calibration": calibration, "ood": detector}
    options |= {"preprocessing": [LAYERS.Rescaling(1 / 127.5, offset=-1)]}
    options |= {"input_signature": tf.TensorSpec((None, 6, 6, 2), "uint8")}
    more = {"accept": rule.accept(probs), "prediction_set": sets.predict_set(probs)}
    case = certain(model, probs, raw, options, **more, ood_score=detector.score(x))
    assert 0 < more["accept"].mean() < 1
    return case


def named_inputs_and_outputs(folder):
    inputs = {"left": keras.Input((4,), name="left"), "right": keras.Input((4,), name="right")}
    joined = LAYERS.Concatenate()(list(inputs.values()))
    outputs = {"other": LAYERS.Dense(2)(joined), "classes": VBLLDense(3, **KL)(joined)}
    model = keras.Model(inputs, outputs)
    x = {"left": X, "right": rows(4, seed=5)}
    found = predict_uncertainty(model, x, 5, output="classes", from_logits=True)
    options = {"num_samples": 5, "output": "classes", "from_logits": True}
    return Case(model, options, of_uncertainty(found), x)


def ensemble(folder):
    models = [sequential(trunk(), LAYERS.Dense(3, activation="softmax")) for _ in range(3)]
    together = DeepEnsemble.from_models(models)
    stack = together.predict(X)
    rule = RejectionRule.fit(stack, Y, "mutual_information", target_coverage=0.5)
    detector = MutualInformation().fit(together, X)
    options = {"rule": rule, "ood": detector}
    more = {"accept": rule.accept(stack), "ood_score": detector.score(X)}
    return Case(together, options, of_uncertainty(decompose(stack)) | more, {"inputs": X})


def ensemble_of_random_networks(folder):
    models = [sequential(trunk(), VBLLDense(3, **KL)) for _ in range(2)]
    stack = np.concatenate([sample_predictions(m, X, 4, seed=7) for m in models])
    options = {"num_samples": 4, "seed": 7}
    return Case(models, options, of_uncertainty(decompose(stack)), {"inputs": X})


def snapshots(folder):
    model = sequential(trunk(), LAYERS.Dense(3, activation="softmax"))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    callback = SnapshotEnsemble(folder / "snapshots", every=1)
    model.fit(X, Y, epochs=3, batch_size=64, verbose=0, callbacks=[callback])
    stack = callback.ensemble().predict(X)
    return Case(callback, {}, of_uncertainty(decompose(stack)), {"inputs": X})


def sparse_bayesian(folder):
    layers = [SparseBayesDense(n, kl_weight=0.01, r_bayes=0.3) for n in (6, 3)]
    model = of_logits(sequential(layers[0], LAYERS.Activation("tanh"), layers[1]))
    for layer in layers:
        layer.select(np.random.default_rng(0).random(layer.kernel.shape))
    return drawn(model)


def sparse_bayesian_before_selection(folder):
    model = sequential(SparseBayesDense(3, kl_weight=0.01, r_bayes=0.3), LAYERS.Softmax())
    return certain(model, model.predict(X, verbose=0))


def fully_bayesian(folder):
    layers = [
        Conv2DVariational(3, 3, activation="relu", **KL),
        LAYERS.Flatten(),
        DenseVariational(6, activation="tanh", **KL),
        DenseVariational(3, **KL),
    ]
    return drawn(of_logits(sequential(*layers, shape=(6, 6, 2))), IMAGES)


def dropout(folder):
    layers = [MCDropout(0.5), trunk(), MCDropout(0.5), LAYERS.Dense(3)]
    return drawn(of_logits(sequential(*layers)))


def vbll(folder):
    model = sequential(trunk(), VBLLDense(3, posterior="low_rank", rank=2, noise="learned", **KL))
    stack = sample_predictions(model, X, 5, seed=3)
    scaling = TemperatureScaling(1.7, rank=2)
    probs = scaling.transform(stack)
    found = decompose(stack)
    total = decompose(probs[None])
    more = {k: getattr(found, k) for k in ("expected_entropy", "mutual_information")}
    detector = Mahalanobis().fit(model, X, Y)
    case = drawn(model, options={"calibration": scaling, "ood": detector})
    expected = of_uncertainty(total) | more | {"ood_score": detector.score(X)}
    return case._replace(expected=expected)


def vbll_labels(folder):
    model = sequential(trunk(), VBLLDense(3, likelihood="bernoulli", **KL))
    stack = sample_predictions(model, X, 5, multi_label=True, seed=3)
    rule = RejectionRule("entropy", 0.5, rank=2, multi_label=True)
    sets = ConformalPredictor("lac", [0.4, 0.6, 0.8], multi_label=True)
    more = {"accept": rule.accept(stack), "prediction_set": sets.predict_set(stack)}
    return drawn(model, options={"multi_label": True, "rule": rule, "conformal": sets}, **more)


def vbll_in_closed_form(folder):
    model = sequential(trunk(), VBLLDense(3, logits_only=False, **KL))
    found = model(X)
    logits = found.mean / tf.sqrt(1 + np.pi / 8 * found.variance)
    return certain(model, tf.nn.softmax(logits), options={"predictive": "probit"})


def vbll_means(folder):
    model = sequential(trunk(), VBLLDense(3, logits_only=False, **KL))
    return certain(model, tf.nn.softmax(model(X).mean), options={"predictive": "mean"})


def dropout_mean(folder):
    layers = [trunk(), MCDropout(0.5), LAYERS.Dense(3)]
    whole = sequential(layers[0], layers[2])
    probs = tf.nn.softmax(whole(X))
    return certain(of_logits(sequential(*layers)), probs, options={"predictive": "mean"})


def heteroscedastic(folder):
    model = sequential(trunk(), MCSoftmaxDenseFA(3, num_factors=2, resample=False))
    return certain(model, tf.nn.softmax(model(X).logits))


def heteroscedastic_labels(folder):
    model = sequential(trunk(), MCSigmoidDenseFA(3, num_factors=2, logits_only=True))
    options = {"multi_label": True, "from_logits": True}
    return certain(model, tf.sigmoid(model(X)), options=options)


def heteroscedastic_in_closed_form(folder):
    head = MCSoftmaxDenseFA(3, num_factors=2, temperature=1.5, parameter_efficient=True)
    model = sequential(trunk(), head)
    given = head.logit_distribution(model.layers[0](X))
    logits = given.mean() / 1.5 / np.sqrt(1 + np.pi / 8 * given.variance() / 1.5**2)
    return certain(model, tf.nn.softmax(logits), options={"predictive": "probit"})


def of_noise_and_weights():
    """A model whose head has both, and its parts: mean, label noise, variance by the weights."""
    head = MCSoftmaxDenseFA(3, 2, temperature=1.5, seed=3, last_layer="vbll", **VAGUE)
    model = sequential(trunk(), head)
    alone = VBLLDense(3, logits_only=False, **VAGUE)
    alone.build((None, 6))
    alone.set_weights(head.mean_layer.get_weights())
    x = model.layers[0](X)
    return model, alone(x).mean, tf.linalg.diag_part(head.covariance(x)), alone(x).variance


def noise_and_weights_in_closed_form(folder):
    model, mean, noise, variance = of_noise_and_weights()
    logits = mean / 1.5 / tf.sqrt(1 + np.pi / 8 * (noise + variance) / 1.5**2)
    return certain(model, tf.nn.softmax(logits), options={"predictive": "probit"})


def noise_and_mean_weights(folder):
    model, *_ = of_noise_and_weights()
    head = model.layers[-1]
    alone = MCSoftmaxDenseFA(3, 2, temperature=1.5, seed=3)
    alone.build((None, 6))
    names = [f"{name}_{part}" for name in ("scale", "factor") for part in ("kernel", "bias")]
    for name in names:
        getattr(alone, name).assign(getattr(head, name))
    alone.loc_kernel.assign(head.mean_layer.kernel)
    alone.loc_bias.assign(head.mean_layer.bias)
    return certain(model, alone(model.layers[0](X)).probs, options={"predictive": "mean"})


def binary(folder):
    model = sequential(trunk(), LAYERS.Dense(1, activation="sigmoid"))
    labels = Y % 2
    steps = np.linspace(0, 1, 64)  # between which rounding is not seen
    isotonic = IsotonicCalibration().fit(steps, np.arange(64) % 7 < 6 * steps)
    probs = isotonic.transform(model.predict(X, verbose=0)[:, 0])
    rule = RejectionRule.fit(probs, labels, target_coverage=0.5)
    options = {"calibration": isotonic, "rule": rule}
    return certain(model, probs[:, None], options=options, accept=rule.accept(probs))


def segmentation(folder):
    layers = [Conv2DVariational(4, 3, padding="same", activation="relu", **KL)]
    head = SparseBayesConv2D(2, 1, kl_weight=0.01, r_bayes=0.5)
    model = of_logits(sequential(*layers, head, shape=(6, 6, 2)))
    head.select(np.ones(head.kernel.shape))
    stack = sample_predictions(model, IMAGES, 5, seed=3)
    rule = RejectionRule("margin", 0.3, rank=4)
    return drawn(model, IMAGES, {"rule": rule}, accept=rule.accept(stack))


def mixed_precision(folder):
    model = sequential(
        LAYERS.Dense(6, activation="tanh", dtype="mixed_float16"),
        VBLLDense(3, dtype="mixed_float16", **KL),
    )
    return drawn(model)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = trunk(), DenseVariational(3, **KL)

    def call(self, inputs):
        return self.second(self.first(inputs))


def subclassed(folder):
    model = of_logits(Subclassed())
    model(X)
    detector = Energy().fit(model, X)
    spec = tf.TensorSpec((None, 4), "float32")
    options = {"input_signature": spec, "ood": detector}
    return drawn(model, options=options, ood_score=detector.score(X))


KINDS = (
    *(plain, plain_with_everything, named_inputs_and_outputs, ensemble, subclassed, snapshots),
    *(ensemble_of_random_networks, sparse_bayesian, sparse_bayesian_before_selection),
    *(fully_bayesian, dropout, dropout_mean, vbll, vbll_labels, vbll_in_closed_form, vbll_means),
    *(heteroscedastic, heteroscedastic_labels, heteroscedastic_in_closed_form, binary),
    *(noise_and_weights_in_closed_form, noise_and_mean_weights, segmentation, mixed_precision),
)


# `make test` takes one of each: detectors, ensembles, sampled weights and heads, convolutions,
# several inputs, a class of the user's.
QUICK = (
    *("plain_with_everything", "ensemble", "fully_bayesian", "vbll", "heteroscedastic"),
    *("segmentation", "named_inputs_and_outputs", "subclassed"),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory, request):
    """What each kind of model that is asked for serves in another process, beside its case."""
    folder, cases = tmp_path_factory.mktemp("export"), {}
    tests = (t for t in request.session.items if t.originalname == "test_agrees_with_python")
    asked = {test.callspec.params["kind"] for test in tests}
    for kind in [each for each in KINDS if each.__name__ in asked]:
        keras.utils.set_random_seed(1)
        place = folder / kind.__name__
        place.mkdir()
        case = cases[kind.__name__] = kind(place)
        export(case.model, place / "written", **case.options)
        (place / "written").rename(place / "moved")
        np.savez(place / "inputs.npz", **case.inputs)
    done = processes.run(PROCESS, folder, world="tensorflow")
    assert done.returncode == 0, done.stderr[-5000:]
    return {
        name: (case, dict(np.load(folder / name / "served.npz"))) for name, case in cases.items()
    }


@pytest.mark.slow_cases(*(kind.__name__ for kind in KINDS if kind.__name__ not in QUICK))
@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
def test_agrees_with_python(served, kind):
    case, found = served[kind]
    # Products in float16 are rounded otherwise in a batch of another size.
    tolerance = 1e-3 if kind == "mixed_precision" else 1e-5
    for size in (1, 7, 64):
        first = {k.split("/")[2]: v for k, v in found.items() if k.startswith(f"{size}/1/")}
        again = {k.split("/")[2]: v for k, v in found.items() if k.startswith(f"{size}/2/")}
        assert set(first) == set(case.expected)
        for name, expected in case.expected.items():
            expected = np.asarray(expected)[:size]
            np.testing.assert_array_equal(first[name], again[name])  # to the bit
            assert first[name].shape == expected.shape, name
            if name in ("label", "accept", "prediction_set"):
                assert first[name].dtype == ("int64" if name == "label" else "bool")
                np.testing.assert_array_equal(first[name], expected, err_msg=name)
            else:
                assert first[name].dtype == "float32"
                scale = max(1.0, np.abs(expected).max()) if name == "ood_score" else 1.0
                np.testing.assert_allclose(
                    first[name], expected, rtol=0, atol=tolerance * scale, err_msg=name
                )
