"""Exported regressions say what Python says: numbers, intervals, decisions; or are refused."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.ensembles import DeepEnsemble
from tfuq.export import export, export_litert, export_onnx, verify_export
from tfuq.export._runtimes import RUNTIMES
from tfuq.layers import (
    EvidentialDense,
    LaplaceDense,
    MCDropout,
    MixtureDense,
    MultivariateNormalDense,
    NormalDense,
    QuantileDense,
    StudentTDense,
    VBLLRegression,
)
from tfuq.ood import MutualInformation
from tfuq.predictive import RegressionUncertainty, predict_uncertainty
from tfuq.selective import (
    ConformalPredictor,
    ConformalRegressor,
    RegressionRule,
    RejectionRule,
    TemperatureScaling,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype("float32")
IMAGES = RNG.normal(size=(40, 3, 3, 4)).astype("float32")
KL = {"kl_weight": 0.01, "posterior_scale": 0.3}
WRITERS = {"saved_model": export, "litert": export_litert, "onnx": export_onnx}
SIZES = (1, 7, 40)


def network(*layers, shape=(4,)):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape), keras.layers.Dense(8, "tanh"), *layers])


def truths(found, seed=2):
    """Labels of the predictions, noise and all."""
    return found.mean + np.random.default_rng(seed).normal(size=found.mean.shape)


def fitted_rule(found, score="std", **options):
    """A rule that accepts a half."""
    options = {"tolerance": 1.0, "target_coverage": 0.5, **options}
    return RejectionRule.fit(found, truths(found), score, **options)


def answers(kind, path, x):
    """What an exported model says, of batches of any size."""
    if kind == "saved_model":
        served = tf.saved_model.load(str(path))
        return {k: v.numpy() for k, v in served.serve(tf.constant(x)).items()}
    model = RUNTIMES[kind](path)
    return model({model.inputs[0]: x})


def check(tmp_path, model, x=X, kinds=tuple(WRITERS), draws=None, options=None, rule=None):
    """Exports say what `predict_uncertainty` says, and of NaN nothing."""
    options = options or {}
    told = {} if draws is None else {"num_samples": draws}
    found = predict_uncertainty(model, x, **told)
    expected = {}
    if rule is not None:
        expected = {"score": rule.score_of(found), "accept": rule.accept(found)}
        assert 0 < expected["accept"].mean() < 1
    if options.get("conformal") is not None:
        expected |= options["conformal"].interval(found)._asdict()
    spoiled = x.copy()
    spoiled[3] = np.nan
    for kind in kinds:
        path = tmp_path / kind
        WRITERS[kind](model, path, rule=rule, **told, **options)
        compared = verify_export(path, x, found).differences
        assert {"mean"} < set(compared) or found.family.name == "point"
        if expected:
            verify_export(path, x, expected)
        for size in SIZES:
            said = answers(kind, path, spoiled[:size])
            assert {len(array) for array in said.values()} == {size}
        bad = {name: array[3] for name, array in said.items()}
        assert np.isnan(bad["mean"]).all() and not np.any(bad.get("accept", False))
        ends = np.stack([bad["lower"], bad["upper"]]) if "lower" in bad else np.array(np.nan)
        assert not np.isfinite(ends).any()
    return found, said


def metadata(path):
    beside = path / "metadata.json" if path.is_dir() else path.with_name(f"{path.name}.json")
    return json.loads(beside.read_text())


# --- Agreement --------------------------------------------------------------------------------


def test_a_rule_and_its_interval(tmp_path):
    model = network(NormalDense(1))
    found = predict_uncertainty(model, X)
    goal = {"tolerance": 1.0, "target_coverage": 0.6, "level": 0.8}
    rule = RegressionRule.fit(found, truths(found), "interval_width", **goal)
    rule.save(tmp_path / "rule.json")
    assert RejectionRule.load(tmp_path / "rule.json") == rule
    found, said = check(tmp_path, model, rule=rule)
    names = {"mean", "std", "aleatoric_std", "lower", "upper", "score", "accept"}
    assert set(said) == names  # one network has no epistemic part
    assert said["accept"].dtype == bool and said["mean"].dtype == np.float32
    np.testing.assert_allclose(said["score"], said["upper"] - said["lower"], rtol=1e-5)
    about = metadata(tmp_path / "saved_model")
    assert (about["family"], about["level"]) == ({"name": "normal"}, 0.8)
    assert about["rule"]["says"] == rule.describe()
    export(model, tmp_path / "by_path", rule=tmp_path / "rule.json")
    verify_export(tmp_path / "by_path", X, {"accept": rule.accept(found)})
    with pytest.raises(ValueError, match="tolerance"):
        verify_export(tmp_path / "by_path", X, found.mean + 1e-3)
    with pytest.raises(ValueError, match="tolerance"):
        verify_export(tmp_path / "by_path", X, {"accept": ~rule.accept(found)})


@pytest.mark.slow
def test_draws_are_those_of_python(tmp_path):
    model = network(MCDropout(0.3), NormalDense(2))
    found = predict_uncertainty(model, X, 3)
    rule = fitted_rule(found, "epistemic_std")
    _, said = check(tmp_path, model, kinds=("saved_model", "litert"), draws=3, rule=rule)
    assert said["epistemic_std"].shape == (40, 2) and np.nanmin(said["epistemic_std"]) > 0


@pytest.mark.slow
def test_a_closed_form_has_no_draws(tmp_path):
    model = network(VBLLRegression(1, **KL))
    found = predict_uncertainty(model, X)
    rule = fitted_rule(found, "epistemic_std")
    check(tmp_path, model, kinds=("litert",), draws=5, rule=rule)
    assert metadata(tmp_path / "litert")["num_samples"] is None
    with pytest.raises(ValueError, match="fresh_samples"):
        export(model, tmp_path / "fresh", predictive="fresh_samples")


@pytest.mark.slow
def test_an_ensemble_mixes_its_members(tmp_path):
    members = [network(NormalDense(1)) for _ in range(3)]
    for scale, member in enumerate(members):
        member.set_weights([(1 + scale) * weight for weight in member.get_weights()])
    check(tmp_path, DeepEnsemble.from_models(members), kinds=("onnx",))


@pytest.mark.slow
def test_numbers_per_pixel(tmp_path):
    model = network(MixtureDense(1, num_components=2), shape=(3, 3, 4))
    found = predict_uncertainty(model, IMAGES)
    rule = fitted_rule(found, "std")
    found, said = check(tmp_path, model, IMAGES, ("saved_model", "litert"), rule=rule)
    assert said["accept"].shape == found.shape == (40, 3, 3, 1)
    assert metadata(tmp_path / "saved_model")["outputs"]["mean"]["shape"] == [None, 3, 3, 1]


FAMILIES = {
    "laplace": lambda: LaplaceDense(2),
    "student_t": lambda: StudentTDense(1),
    "evidential": lambda: EvidentialDense(1),
    "quantiles": lambda: QuantileDense(1),
    "multivariate_normal": lambda: MultivariateNormalDense(3),
    "vbll student_t": lambda: VBLLRegression(2, likelihood="student_t", **KL),
    "vbll joint": lambda: VBLLRegression(2, likelihood="multivariate_normal", num_factors=2, **KL),
}


@pytest.mark.slow_cases(
    "student_t", "vbll student_t", "vbll joint", "evidential", "multivariate_normal"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family(family, tmp_path):
    kinds = ("litert", "onnx") if family == "student_t" else ("litert",)
    check(tmp_path, network(FAMILIES[family]()), kinds=kinds)


@pytest.mark.parametrize("level", [0.5, 0.99, 0.9998])
def test_student_t_without_its_own_operations(level):
    """The polynomial of 1 / df in float32, against TFP's quantiles in float64."""
    df = np.concatenate([np.geomspace(2.01, 1e6, 200), [np.inf]])[:200]
    params = np.stack([0 * df, 1 + 0 * df, df], -1)[None]
    exact = RegressionUncertainty(params, "student_t").interval(level).upper[:, 0]
    family = StudentTDense(1).family
    found = family.quantile(tf.constant(params[0], "float32"), (1 + level) / 2)[:, 0]
    np.testing.assert_allclose(found, exact, rtol=3e-6)


@pytest.mark.slow_cases("normalized")
@pytest.mark.slow_cases("cqr", "split")
@pytest.mark.parametrize("method", ["split", "normalized", "cqr"])
def test_conformal_intervals(method, tmp_path):
    model = network(QuantileDense(2)) if method == "cqr" else network(NormalDense(2))
    found = predict_uncertainty(model, X)
    sets = ConformalRegressor.fit(found, truths(found), alpha=0.2, method=method)
    kinds = ("saved_model", "litert") if method == "normalized" else ("saved_model",)
    check(tmp_path, model, kinds=kinds, options={"conformal": sets})
    assert metadata(tmp_path / "saved_model")["level"] is None


def test_numbers_alone(tmp_path):
    """A squared error says no noise: a mean, a deviation between draws, and no interval."""
    model = network(MCDropout(0.3), keras.layers.Dense(1))
    model.compile("sgd", "mse")
    found = predict_uncertainty(model, X, 3)
    sets = ConformalRegressor.fit(found.mean, truths(found), alpha=0.2)  # of arrays
    rule = RegressionRule("std", float(np.median(found.std)), family="point")
    options = {"conformal": ConformalRegressor("split", sets.threshold)}
    _, said = check(tmp_path, model, X, ("saved_model",), 3, options, rule)
    assert "aleatoric_std" not in said and said["upper"].shape == (40, 1)
    single = network(keras.layers.Dense(1))
    export(single, tmp_path / "one", family="point")
    assert set(answers("saved_model", tmp_path / "one", X)) == {"mean"}


@pytest.mark.slow
def test_rounding_is_relative_to_the_unit(tmp_path):
    """A price of millions, and a length in metres that is nanometres, are compared alike."""
    for scale in (1e7, 1e-9):
        model = network(keras.layers.Dense(1))
        model.set_weights([*model.get_weights()[:2], *(scale * w for w in model.get_weights()[2:])])
        export(model, tmp_path / "model", family="point", overwrite=True)
        expected = model.predict(X, verbose=0).astype("float64")
        verify_export(tmp_path / "model", X, expected)
        with pytest.raises(ValueError, match="tolerance"):
            verify_export(tmp_path / "model", X, expected * (1 + 1e-4))


# --- Misuse -----------------------------------------------------------------------------------


@functools.cache
def built(name):
    """Models of the mistakes, each made once."""
    layers = {
        "normal": lambda: [NormalDense(1)],
        "laplace": lambda: [LaplaceDense(1)],
        "dropout": lambda: [MCDropout(0.3), NormalDense(1)],
        "quantiles": lambda: [QuantileDense(1)],
        "vbll": lambda: [VBLLRegression(1, **KL)],
        "linear": lambda: [keras.layers.Dense(2)],
        "classes": lambda: [keras.layers.Dense(2, "softmax")],
    }
    return network(*layers[name]())


@functools.cache
def four():
    return predict_uncertainty(built("dropout"), X, 4)


def first_of_four():
    return RegressionUncertainty(four().params[:1], "normal")


def sets_of_classes():
    probs = RNG.dirichlet(np.ones(3), size=50)
    return ConformalPredictor.fit(probs, probs.argmax(-1), alpha=0.2)


def mutual_information():
    return MutualInformation(from_logits=True).fit(lambda x: np.full((2, len(x), 2), 0.5), X)


MISTAKES = {
    "a rule of classes": ("normal", lambda: {"rule": RejectionRule("confidence", 0.5)}, "`rule`"),
    "sets of classes": ("normal", lambda: {"conformal": sets_of_classes()}, "`conformal`"),
    "a calibration of classes": (
        *("normal", lambda: {"calibration": TemperatureScaling()}),
        "`calibration`",
    ),
    "a rule of two numbers": ("normal", lambda: {"rule": RegressionRule(units=2)}, "`rule`"),
    "a rule of another family": (
        *("normal", lambda: {"rule": RegressionRule(family="laplace")}),
        "`rule`",
    ),
    "a rule of pixels": ("normal", lambda: {"rule": RegressionRule(rank=4)}, "`rule`"),
    "a rule of groups": (
        *("normal", lambda: {"rule": RegressionRule(threshold=[1.0], by="group", keys=["a"])}),
        "group",
    ),
    "a rule of the epistemic part of one network": (
        *("normal", lambda: {"rule": RegressionRule("epistemic_std")}),
        "epistemic",
    ),
    "a rule of one network for draws": (
        *("dropout", lambda: {"rule": fitted_rule(first_of_four())}),
        "num_samples",
    ),
    "a rule of other draws": ("dropout", lambda: {"rule": fitted_rule(four())}, "num_samples"),
    "a rule of draws for the mean network": (
        *("dropout", lambda: {"rule": fitted_rule(four()), "predictive": "mean"}),
        "predictive",
    ),
    "intervals of other draws": (
        *("dropout", lambda: {"conformal": ConformalRegressor.fit(four(), truths(four()))}),
        "num_samples",
    ),
    "intervals of two numbers": (
        *("normal", lambda: {"conformal": ConformalRegressor(threshold=[1, 1], family="normal")}),
        "`conformal`",
    ),
    "intervals of another family": (
        *("normal", lambda: {"conformal": ConformalRegressor(family="laplace")}),
        "`conformal`",
    ),
    "intervals of pairs": (
        *("normal", lambda: {"conformal": ConformalRegressor("normalized")}),
        "fit it",
    ),
    "a level beside conformal intervals": (
        *("normal", lambda: {"level": 0.8, "conformal": ConformalRegressor()}),
        "`level`",
    ),
    "a level beside that of the rule": (
        *("normal", lambda: {"level": 0.8, "rule": RegressionRule(level=0.5)}),
        "`level`",
    ),
    "a level in percent": ("normal", lambda: {"level": 90}, "`level`"),
    "a level further out than the quantiles": ("quantiles", lambda: {"level": 0.99}, "`level`"),
    "a detector of classes": ("dropout", lambda: {"ood": mutual_information()}, "`ood`"),
    "logits of numbers": ("normal", lambda: {"from_logits": True}, "classifier"),
    "several labels of numbers": ("normal", lambda: {"multi_label": True}, "classifier"),
    "another family than the head's": ("normal", lambda: {"family": "laplace"}, "`family`"),
    "a family and logits": (
        *("linear", lambda: {"family": "normal", "from_logits": True}),
        "`from_logits`",
    ),
    "an unknown family": ("linear", lambda: {"family": "gauss"}, "`family`"),
    "nobody says what it is": ("linear", dict, "`from_logits`"),
    "the probit of numbers": ("vbll", lambda: {"predictive": "probit"}, "probit"),
    "samples of one network": ("normal", lambda: {"num_samples": 5}, "num_samples"),
    "members of two families": ("normal laplace", dict, "family"),
    "a number beside a classifier": ("normal classes", dict, "family"),
    "a rule of numbers on classes": ("classes", lambda: {"rule": RegressionRule()}, "`rule`"),
    "intervals on classes": ("classes", lambda: {"conformal": ConformalRegressor()}, "`conformal`"),
    "a level of classes": ("classes", lambda: {"level": 0.9}, "`level`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refused(mistake, tmp_path, counts):
    names, options, says = MISTAKES[mistake]
    models = [built(name) for name in names.split()]
    with pytest.raises(ValueError, match=says) as raised:
        export(models if len(models) > 1 else models[0], tmp_path / "model", **options())
    assert "Received" in str(raised.value)
    assert not (tmp_path / "model").exists()
    counts("misuse rows, refused")


@pytest.mark.slow
def test_what_a_runtime_lacks_is_named(tmp_path):
    """Mixtures of Student's t have no quantile without the incomplete beta function."""
    model = network(MCDropout(0.3), StudentTDense(1))
    with pytest.raises(ValueError, match="Betainc"):
        export_litert(model, tmp_path / "litert", num_samples=2)
    found = predict_uncertainty(model, X, 2)
    sets = ConformalRegressor.fit(found, truths(found), alpha=0.2, method="normalized")
    check(tmp_path, model, kinds=("litert",), draws=2, options={"conformal": sets})
