"""The public face: names, docstrings, registration, configurations, and how bad input is met."""

import ast
import functools
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_contract import CALLBACKS, LAYERS, METRICS

import tfuq
from tfuq import callbacks, convert, layers, losses, metrics, ood, optimizers, plots, selective
from tfuq._predictions.families import family_named
from tfuq._predictions.family import Family
from tfuq.optimizers.swag import SWAGMoments

TABLE = (pathlib.Path(__file__).parent / "public_names.txt").read_text().splitlines()
MODULES = [
    f"tfuq.{found.name}"
    for found in pkgutil.iter_modules(tfuq.__path__)
    if not found.name.startswith("_")
]
# Of layers the class is documented, not what Keras calls.
KERAS_HOOKS = ("build", "call", "compute_output_spec", "get_config", "set_model")
PUBLIC = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]
CASES = [*LAYERS, *METRICS]
DETECTORS = [
    getattr(ood, name)
    for name in ood.__all__
    if hasattr(getattr(ood, name), "get_config") and name not in ("DetectorLayer", "SIRC")
]


def public_classes(base):
    found = [getattr(importlib.import_module(m), name) for m, name in PUBLIC]
    return {thing for thing in found if inspect.isclass(thing) and issubclass(thing, base)}


# --- Names ------------------------------------------------------------------------------------


def test_public_names_are_those_of_the_table():
    """Both ways: a name that is gone, or new, is written down on purpose."""
    found = [f"tfuq.{name}" for name in tfuq.__all__]
    found += [f"{module}.{name}" for module, name in PUBLIC]
    assert sorted(found) == TABLE


@pytest.mark.parametrize("module", ["tfuq", *MODULES])
def test_dir_lists_public_names_that_exist(module):
    found = importlib.import_module(module)
    assert dir(found) == sorted(set(found.__all__))
    assert len(set(found.__all__)) == len(found.__all__)
    assert all(hasattr(found, name) for name in found.__all__)


@pytest.mark.parametrize("module, name", PUBLIC)
def test_public_things_have_docstrings(module, name):
    thing = getattr(importlib.import_module(module), name)
    assert inspect.getdoc(thing)
    first = inspect.getdoc(thing).splitlines()[0]
    assert first.endswith("."), first
    if inspect.isclass(thing):
        for method, function in vars(thing).items():
            documented = not method.startswith("_") and method not in KERAS_HOOKS
            if inspect.isfunction(function) and documented:
                assert inspect.getdoc(function), f"{name}.{method}"


def test_modules_have_docstrings():
    for found in pkgutil.walk_packages(tfuq.__path__, "tfuq."):
        if found.name != "tfuq._version":  # one line, which setup.py reads
            assert importlib.import_module(found.name).__doc__, found.name


IMPORT = """
import sys, tfuq
print(sorted({name.partition(".")[0] for name in sys.modules}))
{}
"""


def test_import_loads_no_tfp():
    """In a new process, because the tests themselves use TFP. Nor does one have to import a public
    module by itself."""
    of_each = [f"{module}.{importlib.import_module(module).__all__[0]}" for module in MODULES]
    assert {"tfuq.serving.make_app", "tfuq.cli.main"} <= set(of_each)
    code = IMPORT.replace("{}", "; ".join(of_each))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert "tfuq" in loaded
    assert not {"tensorflow_probability", "tf_keras"} & loaded


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tfuq.nothing


# --- Classes of Keras -------------------------------------------------------------------------


def test_every_class_is_in_the_contract():
    with_two_inputs = {thing for thing, _ in ATTENTION}  # tests/layers/test_attention.py
    in_battery = {case.layer for case in LAYERS}
    with_two_inputs |= {ood.DetectorLayer}  # which has two outputs: tests/selective
    assert public_classes(keras.layers.Layer) == in_battery | with_two_inputs
    assert public_classes(keras.metrics.Metric) == {case.metric for case in METRICS}
    made = {type(case.make(np.ones((1, 4)), np.ones(1, int))) for case in CALLBACKS}
    assert public_classes(keras.callbacks.Callback) == made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_class_is_registered(case):
    made = type(case.make())
    assert keras.saving.get_registered_name(made) == f"tfuq>{made.__name__}"
    assert keras.saving.get_registered_object(f"tfuq>{made.__name__}") is made


ATTENTION = [
    (layers.MCMultiHeadAttention, {"num_heads": 2, "key_dim": 3, "dropout": 0.1}),
    (layers.MultiHeadAttentionVariational, {"num_heads": 2, "key_dim": 3, "kl_weight": 0.1}),
]
# What else is registered, with arguments that are worth comparing.
OTHERS = [
    *ATTENTION,
    (convert.SpectralBound, {"norm_bound": 0.5, "iterations": 2, "input_shape": (4, 4, 1)}),
    (selective.RejectionRule, {"score": "margin", "threshold": 0.5, "rank": 2}),
    (selective.TemperatureScaling, {"temperature": 1.5, "from_logits": True}),
    (selective.VectorScaling, {"scale": [1.0, 2.0], "bias": [0.0, 0.5]}),
    (selective.IsotonicCalibration, {}),
    (selective.BetaCalibration, {"a": [1.0], "b": [2.0], "c": [0.5]}),
    (selective.DirichletCalibration, {"strength": 0.1, "weights": [[1.0]], "bias": [0.0]}),
    (selective.VennAbersCalibration, {}),
    (selective.ConformalPredictor, {"score": "raps", "threshold": 0.5, "penalty": 0.1}),
    (
        selective.CovariateShift,
        {"mean": [0.0], "deviation": [1.0], "coefficients": [0.5], "bias": 0.1},
    ),
    (selective.ConformalRegressor, {"method": "normalized", "threshold": 1.5}),
    (selective.AdaptiveConformal, {"step_size": 0.1, "level": 0.2, "scores": [1.0]}),
    (selective.MaskRiskControl, {"threshold": 0.3, "from_logits": True}),
    (
        optimizers.DiscriminativeLearningRate,
        {"optimizer": keras.optimizers.SGD(), "scheme": None},
    ),
    (SWAGMoments, {"optimizer": keras.optimizers.SGD(), "rank": 4, "scale": 0.5}),
    (optimizers.IVON, {"learning_rate": 0.5, "num_data": 50, "beta_2": 0.9, "seed": 3}),
    (selective.RegressionRule, {"score": "interval_width", "threshold": 0.5, "units": 2}),
    (losses.NegativeLogLikelihood, {"family": {"name": "mixture", "num_components": 2}}),
    (losses.BetaNLL, {"beta": 0.25, "family": "laplace"}),
    (losses.CRPS, {"family": "student_t"}),
    (losses.Pinball, {"levels": [0.1, 0.9]}),
    (losses.Evidential, {"coefficient": 0.1}),
    (losses.LogitNorm, {"temperature": 0.1}),
    (losses.OutlierExposure, {"weight": 0.25}),
    (losses.EnergyMargin, {"margin_in": -9.0, "margin_out": -3.0, "weight": 0.2}),
    *((detector, {}) for detector in DETECTORS),
    (ood.KNN, {"layer": "features"}),
    (selective.ErrorPredictor, {"layer": "features", "components": 3}),
    (
        selective.CombinedScore,
        {"scores": {"a": "margin", "b": "given"}, "weights": {"a": 1.0, "b": 2.0}},
    ),
]
CONSTRUCTED = [
    *(pytest.param(case.make, case.kwargs, id=case.name) for case in CASES),
    *(
        pytest.param(functools.partial(c, **kw), kw, id=f"{c.__name__}{len(kw)}")
        for c, kw in OTHERS
    ),
]
# Of these None is a default that the constructor works out.
WORKED_OUT = ("allow_empty", "bias_initializer", "dtype", "fitted_to", "k_reg", "name")


def as_stored(name, given, attribute):
    """The argument `given` in the form in which Keras' own layers store it."""
    if name.endswith("_initializer") and given is not None:
        return keras.initializers.get(given)
    if isinstance(attribute, Family):
        return family_named(given)
    if name.endswith("activation") and isinstance(given, str):
        return keras.activations.get(given)
    if isinstance(attribute, tuple) and isinstance(given, int):
        return (given,) * len(attribute)
    return attribute if given is None and name in WORKED_OUT else given


def same(found, expected):
    serialize = keras.saving.serialize_keras_object
    return serialize(found) == serialize(expected)


def test_every_registered_class_is_constructed():
    registered = keras.saving.get_custom_objects().items()
    ours = {thing for name, thing in registered if name.startswith("tfuq>")}
    made = {type(case.make()) for case in CASES} | {thing for thing, _ in OTHERS}
    made.add(selective.Monitor)  # of a rule and what it has seen: tests/selective/test_monitor.py
    made |= {ood.DetectorLayer, ood.SIRC}  # of detectors: tests/selective/test_detector_rules.py
    assert ours == made


# Arguments of Keras' own layers, which it holds under other names or in other forms.
KERAS_HAS_OTHERWISE = ("dtype", "output_shape", "value_dim", "sliding_window", "flash_attention")
KERAS_HAS_OTHERWISE += ("activation", "recurrent_activation", "use_cudnn")
LATER = ("calibration", "class_names", "fitted_to", "keys", "weight_limits")


@pytest.mark.parametrize("make, given", CONSTRUCTED)
def test_constructor_argument_attribute_and_key_have_one_value(make, given):
    thing = make()
    config = thing.get_config()
    parameters = inspect.signature(type(thing).__init__).parameters.values()
    named = {
        p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    del named["self"]
    for name, default in {**named, **given}.items():
        is_of_keras = isinstance(thing, keras.layers.MultiHeadAttention) and name not in given
        if is_of_keras or name in KERAS_HAS_OTHERWISE:
            continue
        attribute = getattr(thing, name)
        if isinstance(attribute, keras.Variable):  # the rate of an optimizer
            attribute = float(attribute)
        value = given.get(name, default)
        assert same(attribute, as_stored(name, value, attribute)), (name, value, attribute)
        # What `tfuq.selective` learned later is left out where it is None, as in older files.
        told = config.get(name) if name in LATER and attribute is None else config[name]
        told = family_named(told) if isinstance(attribute, Family) else told
        assert same(attribute, told), (name, attribute, told)
    if isinstance(thing, keras.layers.Layer | keras.metrics.Metric):
        assert {"name", "dtype"} <= set(config)


# --- Bad input --------------------------------------------------------------------------------


def refused(argument, call, *args, **kwargs):
    """Calls, and checks that the error names the argument, the expected and the received."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert f"`{argument}`" in message, message
    assert "must" in message and "Received: " in message, message


HEADS = {"num_classes": layers.MCSoftmaxDenseFA, "num_outputs": layers.MCSigmoidDenseFA}
NOT_COUNTS = (0, -1, 2.5, "3", True, None)
NOT_POSITIVE = (0, -1.0, float("nan"), float("inf"), "1", None)
NOT_FRACTIONS = (-0.1, 1.1, float("nan"), "0.5", None)


@pytest.mark.parametrize("size", HEADS)
def test_heads_refuse_bad_arguments(size):
    head = HEADS[size]
    for value in NOT_COUNTS:
        refused(size, head, value, 2)
        refused("train_mc_samples", head, 3, 2, train_mc_samples=value)
        refused("test_mc_samples", head, 3, 2, test_mc_samples=value)
    for value in (-1, 2.5, "3", True, None):
        refused("num_factors", head, 3, value)
    for value in NOT_POSITIVE:
        refused("temperature", head, 3, 2, temperature=value)
        tuned = {"tune_temperature": value is None}  # otherwise None is allowed, as in edward2
        refused("temperature_lower_bound", head, 3, 2, temperature_lower_bound=value, **tuned)
        refused("temperature_upper_bound", head, 3, 2, temperature_upper_bound=value, **tuned)
    for low, high in ((2.0, 1.0), (1.0, 1.0)):
        bounds = {"temperature_lower_bound": low, "temperature_upper_bound": high}
        refused("temperature_lower_bound", head, 3, 2, **bounds)
    refused("sampling", head, 3, 2, sampling="lattice")
    refused("seed", head, 3, 2, seed="now")
    for value in (-0.1, float("nan"), "0"):
        refused("eps", head, 3, 2, eps=value)


@pytest.mark.parametrize("size", HEADS)
def test_heads_refuse_inputs_without_features(size):
    with pytest.raises(ValueError, match=r"(?s)must be known.*Received"):
        HEADS[size](3, 2)(keras.Input((None,)))
    with pytest.raises(ValueError):
        HEADS[size](3, 2)(tf.zeros(3))


# Of numbers, not of classes: tests/metrics/test_regression.py says what they refuse.
NUMBERS = {case.metric for case in METRICS if case.task == "numbers"}
OF_NUMBERS = {
    name
    for name in metrics.__all__
    if getattr(metrics, name).__module__ == "tfuq.metrics.regression"
}


@pytest.mark.parametrize("metric", sorted(public_classes(keras.metrics.Metric), key=str))
def test_metrics_refuse_bad_arguments(metric):
    arguments = inspect.signature(metric).parameters
    bad = {"n_bins": NOT_COUNTS, "threshold": NOT_FRACTIONS, "class_reduction": ("median",)}
    for name in bad.keys() & arguments.keys():
        for value in bad[name]:
            if value is not arguments[name].default:
                refused(name, metric, **{name: value})
    flags = ("from_logits", "multi_label") if metric not in NUMBERS else ()
    for flag in flags:
        refused(flag, metric, **{flag: "yes"})


LABELLED = public_classes(keras.metrics.Metric) - {metrics.EntropyOfExpectation}


@pytest.mark.parametrize("metric", sorted(LABELLED, key=str))
def test_metrics_refuse_shapes_that_do_not_match(metric):
    probs = np.full((4, 3), 1 / 3)
    with pytest.raises(ValueError, match="Received"):
        metric().update_state([0, 1], probs)
    with pytest.raises(ValueError, match="Received"):
        metric().update_state([0, 1, 2, 0], probs, [1.0, 1.0])


JUDGES = {
    name: getattr(metrics, name)
    for name in metrics.__all__
    if inspect.isfunction(getattr(metrics, name))
    and name not in OF_NUMBERS
    and {"y_true", "y_pred"} <= inspect.signature(getattr(metrics, name)).parameters.keys()
}
JUDGES["rejection_table"] = lambda y_true, y_pred, **kwargs: metrics.rejection_table(
    y_true, y_pred, [0.5], **kwargs
)
PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_functions_refuse_bad_data(judge):
    judge([0, 1], PROBS)  # what is refused below is good but for one thing
    refused("y_true", judge, [0, 3], PROBS)
    refused("y_true", judge, [0, -1], PROBS)
    refused("y_true", judge, [0, 0.5], PROBS)
    refused("y_true", judge, [0, np.nan], PROBS)
    refused("y_true", judge, [0, 1, 2], PROBS)
    refused("y_true", judge, ["cat", "dog"], PROBS)
    refused("y_pred", judge, [0, 1], np.where(PROBS == 0.8, np.nan, PROBS))
    refused("y_pred", judge, [0, 1], PROBS * 2)
    refused("y_pred", judge, [0, 1], PROBS - 0.15)
    refused("y_pred", judge, [], PROBS[:0])
    refused("sample_weight", judge, [0, 1], PROBS, sample_weight=[1.0])
    refused("sample_weight", judge, [0, 1], PROBS, sample_weight=[1.0, -1.0])
    refused("sample_weight", judge, [0, 1], PROBS, sample_weight=[0.0, 0.0])
    refused("sample_weight", judge, [0, 1], PROBS, sample_weight=[1.0, np.nan])


@pytest.mark.parametrize("name", [n for n in JUDGES if n != "rejection_table"])
def test_functions_refuse_bad_arguments(name):
    function = getattr(metrics, name)
    bad = {"n_bins": NOT_COUNTS, "threshold": NOT_FRACTIONS, "class_reduction": ("median",)}
    arguments = inspect.signature(function).parameters
    for argument in bad.keys() & arguments.keys():
        for value in bad[argument]:
            if value is not arguments[argument].default:
                refused(argument, function, [0, 1], PROBS, **{argument: value})


def test_rejection_table_refuses_bad_arguments():
    for thresholds in ([], [1.5], [0.5, -0.1], [float("nan")], "all"):
        refused("thresholds", metrics.rejection_table, [0, 1], PROBS, thresholds)
    for confidence in ([0.5], [0.5, np.nan]):
        refused("confidence", metrics.rejection_table, [0, 1], PROBS, [0.5], confidence=confidence)


@pytest.mark.parametrize("data", [None, (PROBS,), (PROBS[:0], []), (PROBS, [0]), "x"])
def test_the_evaluator_refuses_bad_data(data):
    refused("validation_data", callbacks.RejectionEvaluator, data)


def test_the_evaluator_refuses_bad_arguments():
    evaluator, data = callbacks.RejectionEvaluator, (PROBS, np.array([0, 1]))
    for thresholds in ([], [1.5], [0.5, -0.1], [float("nan")], 0.5, "0.5"):
        refused("thresholds", evaluator, data, thresholds)
    for value in NOT_COUNTS:
        refused("every", evaluator, data, every=value)
        refused("n_bins", evaluator, data, n_bins=value)
    refused("score", evaluator, data, score="certainty")


@pytest.mark.parametrize(
    "argument, x, y",
    [
        ("y_true", PROBS, [0, 3]),
        ("y_pred", PROBS * np.nan, [0, 1]),
        ("y_pred", PROBS * 2, [0, 1]),
    ],
)
def test_the_evaluator_refuses_bad_predictions(argument, x, y):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    evaluator = callbacks.RejectionEvaluator((x, np.array(y)), from_logits=False, verbose=0)
    refused(argument, evaluator.evaluate, model)


def test_plots_refuse_bad_arguments():
    refused("ax", plots.reliability_diagram, [0, 1], PROBS, ax="here")
    refused("n_bins", plots.reliability_diagram, [0, 1], PROBS, n_bins=0)
    refused("threshold", plots.confidence_histogram, PROBS, threshold=1.5)
    refused("thresholds", plots.rejection_curve, [0, 1], PROBS, thresholds=[1.5])
    refused("y_true", plots.rejection_curve, [0, 3], PROBS)
    refused("y_pred", plots.confidence_histogram, PROBS * np.nan)
