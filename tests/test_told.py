"""What objects say of themselves: two to five lines, a table where one helps, no whole arrays."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import callbacks, corruptions, interpret, ood, predictive, selective
from tfuq._arguments import LONGEST_SHOWN, shown
from tfuq.ensembles import DeepEnsemble

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet([1, 1, 1], 300)
Y = np.where(RNG.random(300) < 0.7, PROBS.argmax(-1), RNG.integers(3, size=300))
X = RNG.normal(size=(300, 4)).astype("float32")


def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")], name="net")


def evaluated():
    evaluator = callbacks.RejectionEvaluator((X, Y), (0.4, 0.5, 0.6), verbose=0)
    evaluator.evaluate(model())
    return evaluator


def fitted_detector():
    detector = ood.KNN(k=3).fit(model(), X, Y)
    detector.threshold_at(0.9)
    return detector


def corrupted():
    figures = ("accuracy", "nll", "ece", "coverage", "selective_accuracy")
    many = dict.fromkeys(figures, np.full((2, 2), 0.5))
    clean = dict.fromkeys(figures, 0.9)
    return corruptions.CorruptionReport(("fog", "snow"), (1, 5), clean, **many, threshold=0.5)


def rule():
    return selective.RejectionRule.fit(PROBS, Y, target_coverage=0.7)


# What makes it, words that its lines hold, whether a notebook has a table.
THINGS = {
    "Uncertainty": (
        lambda: predictive.decompose(PROBS[None]),
        ("300 examples, 3 classes", "mean confidence"),
        True,
    ),
    "RejectionRule": (rule, ("confidence", "coverage=", "fitted to"), True),
    "RejectionRule by hand": (lambda: selective.RejectionRule(), ("threshold=0.5", "not"), False),
    "ConformalPredictor": (
        lambda: selective.ConformalPredictor.fit(PROBS, Y, alpha=0.2),
        ("alpha=0.2", "fitted to"),
        True,
    ),
    "TemperatureScaling": (
        lambda: selective.TemperatureScaling().fit(PROBS, Y),
        ("temperature=", "examples=300"),
        True,
    ),
    "IsotonicCalibration": (
        lambda: selective.IsotonicCalibration().fit(PROBS, Y),
        ("knots=", "examples=300"),
        True,
    ),
    "BetaCalibration": (
        lambda: selective.BetaCalibration().fit(PROBS, Y),
        ("c=", "examples=300"),
        True,
    ),
    "DirichletCalibration": (
        lambda: selective.DirichletCalibration(strength=1.0).fit(PROBS, Y),
        ("penalty=1", "examples=300"),
        True,
    ),
    "VennAbersCalibration": (
        lambda: selective.VennAbersCalibration().fit(PROBS, Y),
        ("knots=", "examples=300"),
        True,
    ),
    "KNN": (fitted_detector, ("k=3", "fitted", "'net'", "value="), False),
    "Energy": (lambda: ood.Energy(), ("not fitted", "threshold_at"), False),
    "MutualInformation": (lambda: ood.MutualInformation(), ("not fitted",), False),
    "GradientFeatures": (lambda: ood.GradientFeatures(model()), ("'net'",), False),
    "DeepEnsemble": (
        lambda: DeepEnsemble(model, 3),
        ("num_members=3", "15 weights", "0 times"),
        True,
    ),
    "RejectionEvaluator": (evaluated, ("array (300, 4)", "latest at 0.5: accuracy="), True),
    "SGDR": (lambda: callbacks.SGDR(0.1, cycle_length=2), ("0.1", "no training yet"), False),
    "KLAnnealing": (lambda: callbacks.KLAnnealing(duration=3), ("duration=3",), False),
    "PosteriorSampling": (lambda: callbacks.PosteriorSampling(2), ("num_samples=2",), False),
    "SaliencySelection": (
        lambda: callbacks.SaliencySelection(after_epoch=2),
        ("in no training yet",),
        False,
    ),
    "LRRangeTest": (lambda: callbacks.LRRangeTest(), ("LRRangeTest(",), False),
    "GradualUnfreezing": (
        lambda: callbacks.GradualUnfreezing(model()),
        ("'net'", "no training yet"),
        False,
    ),
    "SnapshotEnsemble": (lambda: callbacks.SnapshotEnsemble("folder"), ("'folder'",), False),
    "BackupAndRestore": (lambda: callbacks.BackupAndRestore("folder"), ("'folder'",), False),
    "Deferral": (
        lambda: selective.simulate_deferral(None, PROBS, Y, expert=0.9),
        ("coverage=array (",),
        True,
    ),
    "Cascade": (
        lambda: selective.cascade([(PROBS, 0.7)], Y, expert=0.9),
        ("accuracy=",),
        True,
    ),
    "SubgroupReport": (
        lambda: selective.subgroup_report(rule(), PROBS, Y, np.repeat(["a", "b"], 150)),
        ("groups=2", "failing:"),
        True,
    ),
    "RiskCoverageCurve": (
        lambda: selective.risk_coverage_curve(PROBS, Y),
        ("array (",),
        False,
    ),
    "CorruptionReport": (corrupted, ("'fog'", "array (2, 2)"), True),
    "ConfusedPairs": (
        lambda: interpret.confused_pairs(Y, [PROBS, PROBS[::-1]]),
        ("ConfusedPairs",),
        True,
    ),
}


@pytest.mark.parametrize("name", THINGS)
def test_two_to_five_lines_that_inform(name):
    make, words, has_table = THINGS[name]
    thing = make()
    text, page = repr(thing), thing._repr_html_()
    assert 2 <= len(text.splitlines()) <= 5, text
    assert max(map(len, text.splitlines())) <= 400
    assert "<keras" not in text and "\n [" not in text and " object at " not in text
    assert all(word in text for word in words), text
    assert (page is not None) == has_table
    if has_table:
        assert page.count("<tr>") == page.count("</tr>") > 1 and page.count("<tr>") < 40
        assert page.endswith("</table>") and name.split()[0] in page


def test_a_table_shows_what_is_no_code():
    report = selective.subgroup_report(None, PROBS, Y, np.repeat(["<b>", "a|b"], 150))
    page = report._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;" in page and "a|b" in page


# --- In errors ------------------------------------------------------------------------------------

BIG = np.arange(10_000.0).reshape(100, 100)


@pytest.mark.parametrize(
    "value, part",
    [
        (BIG, "of shape (100, 100), float64"),
        (BIG.tolist(), "of shape (100, 100), float64"),
        (tf.constant(BIG), "of shape (100, 100), float64"),
        (keras.Variable(BIG), "of shape (100, 100), float"),
        ((BIG, BIG), "float64, [0, 1, "),
        ({"x": BIG, "y": [BIG]}, "'y': [["),
        ([BIG] * 9, "of shape (9, 100, 100)"),
        ([[1, 2], [3], *[[4]] * 9], "list of 11: "),
        (tf.data.Dataset.from_tensor_slices(BIG), "Dataset"),
        ("a" * 10_000, "aaa..."),
        (None, "None"),
        (True, "True"),
        ([1, 2], "[1, 2]"),
        ((1,), "(1,)"),
    ],
)
def test_values_are_shown_short(value, part):
    text = shown(value)
    assert part in text
    assert len(text) <= LONGEST_SHOWN + 3 + 40 and "\n" not in text


def test_models_are_shown_by_name():
    assert shown(model()) == "Sequential 'net'"
    assert shown((model(), X)).startswith("(Sequential 'net', [")
