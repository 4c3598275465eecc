"""Misuse of conformal intervals and of pictures of numbers: right, or refused; never silent."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
from matplotlib import pyplot
from models import CLASSES, IMAGES, made

from tfuq import plots, report
from tfuq._predictions.stacks import samples
from tfuq.predictive import RegressionUncertainty, decompose
from tfuq.selective import ConformalRegressor, RejectionRule

RNG = np.random.default_rng(0)
N = 60
X = RNG.normal(size=N)
Y = X + RNG.normal(size=N)


def numbers(*blocks, family="normal", draws=1):
    params = np.stack(blocks, -1)
    return RegressionUncertainty(np.stack([params] * draws), family)


ONE = np.ones(N)
FOUND = numbers(X, ONE)
TWO = numbers(X, X, ONE, ONE)
SPOILED = np.where(np.arange(N) == 7, np.nan, 1.0)
PROBS = RNG.dirichlet(np.ones(3), size=N)
fit = ConformalRegressor.fit


def of(method="split", **options):
    return fit(FOUND, Y, method=method, **options)


RAW = np.stack([X, -ONE], -1)[None]
PARAMETERS = {
    "scales below 0": lambda: RegressionUncertainty(RAW, "normal"),
    "one scale below 0": lambda: numbers(X, np.where(np.arange(N) == 7, -0.1, 1.0)),
    "blocks in another order": lambda: numbers(ONE, X),
    "degrees of freedom below 0": lambda: numbers(X, ONE, -ONE, family="student_t"),
    "a deviation of the mean below 0": lambda: numbers(X, ONE, -ONE, family="bayesian_normal"),
    "evidence below 0": lambda: numbers(X, -ONE, 1 + ONE, ONE, family="evidential"),
    "a scale of a mixture below 0": lambda: numbers(
        *(X, X, X, X, ONE, -ONE), family={"name": "mixture", "num_components": 2}
    ),
    "quantiles that cross": lambda: numbers(
        X + 1, X - 1, family={"name": "quantiles", "levels": [0.1, 0.9]}
    ),
    "whole numbers": lambda: numbers(np.arange(N), np.arange(N)),
    "an unknown family": lambda: numbers(X, ONE, family="gamma"),
    "one parameter of two": lambda: numbers(X),
    "no stack": lambda: RegressionUncertainty(X, "normal"),
}
FITS = {
    "labels of another length": lambda: fit(FOUND, Y[:-1]),
    "labels of two numbers for one": lambda: fit(FOUND, np.stack([Y, Y], -1)),
    "labels of one number for two": lambda: fit(TWO, Y),
    "labels the other way round": lambda: fit(FOUND, Y[None]),
    "labels that are NaN": lambda: fit(FOUND, Y * SPOILED),
    "labels that are texts": lambda: fit(FOUND, ["a"] * N),
    "predictions that are NaN": lambda: fit(numbers(X * SPOILED, ONE), Y),
    "scales that are NaN": lambda: fit(numbers(X, ONE * SPOILED), Y, method="normalized"),
    "no scale at all": lambda: fit((X, 0 * X), Y, method="normalized"),
    "a network of numbers alone, normalized": lambda: fit(
        numbers(X, family="point"), Y, method="normalized"
    ),
    "a network of numbers alone, cqr": lambda: fit(numbers(X, family="point"), Y, method="cqr"),
    "probabilities of classes": lambda: fit(PROBS, Y),
    "an Uncertainty of classes": lambda: fit(decompose(PROBS[None]), Y),
    "parameters as means": lambda: fit(FOUND.params[0], Y),
    "a stack of draws": lambda: fit(np.stack([X, X])[..., None], Y),
    "means for normalized": lambda: fit(X, Y, method="normalized"),
    "a pair for split": lambda: fit((X, ONE), Y),
    "three arrays for cqr": lambda: fit((X, X, X), Y, method="cqr"),
    "a pair of other shapes": lambda: fit((X, X[:-1]), Y, method="cqr"),
    "an unknown method": lambda: fit(FOUND, Y, method="jackknife"),
    "alpha in percent": lambda: fit(FOUND, Y, alpha=10),
    "alpha and coverage": lambda: fit(FOUND, Y, alpha=0.1, target_coverage=0.9),
    "groups of another length": lambda: fit(FOUND, Y, groups=["a"] * 3),
    "groups that are missing": lambda: fit(FOUND, Y, groups=[None] + ["a"] * (N - 1)),
    "a group that is too small": lambda: fit(FOUND, Y, groups=["a"] * (N - 3) + ["b"] * 3),
    "no examples": lambda: fit(X[:0], Y[:0]),
    "a classifier": lambda: ConformalRegressor.fit_model(
        made("soft-max"), (IMAGES, CLASSES.astype("float32"))
    ),
}
USES = {
    "another number of units": lambda: of().interval(TWO),
    "parameters as means": lambda: of().interval(FOUND.params[0]),
    "another family": lambda: of().interval(numbers(X, ONE, family="laplace")),
    "draws for one network": lambda: of("normalized").interval(numbers(X, ONE, draws=3)),
    "one network for draws": lambda: fit(numbers(X, ONE, draws=3), Y).interval(FOUND),
    "pairs, then an uncertainty": lambda: fit((X, ONE), Y, method="normalized").interval(FOUND),
    "images for rows": lambda: of().interval(np.zeros((4, 3, 1))),
    "no groups": lambda: of(groups=X > 0).interval(FOUND),
    "groups where there are none": lambda: of().interval(FOUND, groups=X > 0),
    "an unknown group": lambda: of(groups=X > 0).interval(FOUND, groups=["c"] * N),
    "the rows of the fit": lambda: of().evaluate(FOUND, Y),
    "the rows of the fit, in another order": lambda: of().evaluate(FOUND[::-1], Y[::-1]),
    "labels that are NaN": lambda: of().coverage(FOUND[:30], (Y * SPOILED)[:30]),
    "a width below 0": lambda: of().accept(FOUND, -1.0),
    "groups in a model": lambda: of(groups=X > 0).transform(tf.zeros((2, 2))),
    "pairs in a model": lambda: fit((X, ONE), Y, method="cqr").transform(tf.zeros((2, 2))),
    "a stack in a model": lambda: of().transform(tf.zeros((3, 2, 2))),
    "no stack in a model": lambda: fit(numbers(X, ONE, draws=3), Y).transform(tf.zeros((2, 2))),
    "two numbers in a model": lambda: of().transform(tf.zeros((2, 4))),
    "a threshold of another shape": lambda: ConformalRegressor("split", [1.0], asymmetric=True),
    "levels the other way round": lambda: ConformalRegressor("cqr", 1.0, levels=[0.9, 0.1]),
}
INPUTS = np.stack([X, Y], -1)
ENDS = X - 1, X + 1
over, against = plots.intervals_over, plots.predicted_against_true
levelled, widths = plots.quantile_calibration, plots.error_against_width
PICTURES = {
    "probabilities of classes": lambda: against(Y, PROBS),
    "an Uncertainty of classes": lambda: over(X, decompose(PROBS[None])),
    "classes in a calibration": lambda: levelled(Y, {"a": decompose(PROBS[None])}),
    "a stack of draws": lambda: against(Y, samples(np.stack([X, X])), intervals=ENDS),
    "means without intervals": lambda: against(Y, X),
    "means in a calibration": lambda: levelled(Y, X),
    "a network of numbers alone": lambda: over(X, numbers(X, family="point")),
    "labels and predictions the other way round": lambda: against(FOUND, Y),
    "labels of another length": lambda: against(Y[:-1], FOUND),
    "labels of one number for two": lambda: against(Y, TWO, unit=0),
    "labels the other way round": lambda: levelled(Y[None], FOUND),
    "labels that are NaN": lambda: widths(Y * SPOILED, FOUND),
    "labels that are texts": lambda: over(X, FOUND, ["a"] * N),
    "predictions that are NaN": lambda: against(Y, numbers(X * SPOILED, ONE)),
    "predictions that are NaN in a calibration": lambda: levelled(Y, numbers(X * SPOILED, ONE)),
    "inputs that are NaN": lambda: over(X * SPOILED, FOUND),
    "no inputs": lambda: over(X[:0], FOUND),
    "inputs of another length": lambda: over(X[:-1], FOUND),
    "several inputs, none named": lambda: over(INPUTS, FOUND),
    "an input that is none of them": lambda: over(INPUTS, FOUND, feature=2),
    "one input, named": lambda: over(X, FOUND, feature=0),
    "several numbers, none named": lambda: against(np.stack([Y, Y], -1), TWO),
    "several numbers in a calibration": lambda: levelled(np.stack([Y, Y], -1), TWO),
    "a number that is none of them": lambda: over(X, TWO, unit=2),
    "a number that is a flag": lambda: over(X, TWO, unit=True),
    "a level in percent": lambda: over(X, FOUND, level=90),
    "a level of intervals": lambda: over(X, FOUND, level=0.5, intervals=ENDS),
    "intervals of another length": lambda: over(X, FOUND, intervals=(X[1:], X[1:])),
    "one end": lambda: over(X, FOUND, intervals=X),
    "ends that cross": lambda: over(X, FOUND, intervals=ENDS[::-1]),
    "ends that are NaN": lambda: over(X, FOUND, intervals=(X * SPOILED, X)),
    "bars that are no flag": lambda: over(X, FOUND, bars="yes"),
    "no network": lambda: levelled(Y, {}),
    "levels that fall": lambda: levelled(Y, FOUND, levels=[0.9, 0.1]),
    "one width for all": lambda: widths(Y, FOUND),
    "widths of infinity": lambda: widths(Y, FOUND, intervals=(X - np.inf, X)),
    "no bins": lambda: widths(Y, FOUND, n_bins=0),
    "no Axes": lambda: against(Y, FOUND, ax=3),
}


@pytest.mark.parametrize("mistake", PICTURES)
def test_pictures_refuse(mistake, counts):
    with pytest.raises(ValueError, match=r"(?s)(must|end it with).*Received"):
        PICTURES[mistake]()
    assert pyplot.get_fignums() == []
    counts("misuse rows, refused")


@pytest.mark.parametrize("mistake", PARAMETERS)
def test_parameters_are_refused(mistake, counts):
    with pytest.raises(ValueError, match=r"(?s)must.*Received"):
        PARAMETERS[mistake]()
    counts("misuse rows, refused")


def test_parameters_of_unknown_rows_stay(counts):
    """NaN is what is unknown; a scale of 0 is one draw of a network that is sure."""
    found = numbers(X * SPOILED, ONE * SPOILED)
    assert np.isnan(found.std[7, 0]) and np.isfinite(found.std[8, 0])
    assert (numbers(X, 0 * ONE).std == 0).all()
    counts("misuse rows, right", 2)


@pytest.mark.parametrize("mistake", FITS)
def test_fit_refuses(mistake, counts):
    with pytest.raises(ValueError, match=r"(?s)must.*Received"):
        FITS[mistake]()
    counts("misuse rows, refused")


@pytest.mark.parametrize("mistake", USES)
def test_use_refuses(mistake, counts):
    with pytest.raises(ValueError, match=r"(?s)(must|cannot).*Received"):
        USES[mistake]()
    counts("misuse rows, refused")


@pytest.mark.parametrize("count, asymmetric", [(9, False), (19, True)])
def test_too_few_examples_are_told_how_many(count, asymmetric, counts):
    fit(X[:count], Y[:count], asymmetric=asymmetric)
    with pytest.raises(ValueError, match=f"at least {count} examples"):
        fit(X[: count - 1], Y[: count - 1], asymmetric=asymmetric)
    counts("misuse rows, refused")


def test_a_column_is_as_good_as_a_row(counts):
    for means in (X, X[:, None]):
        for labels in (Y, Y[:, None]):
            assert fit(means, labels) == fit(X, Y)
            counts("misuse rows, right")


FAR_LABELS = {
    "in another unit": (1000 * Y, FOUND),
    "that nothing was learned of": (1e6 + Y, numbers(0 * X, ONE)),
}
READERS = {
    "intervals": lambda found, y: fit(found, y),
    "a rule": lambda found, y: RejectionRule.fit(
        found, y, tolerance=1e9, target_risk=0.5, score="interval_width"
    ),
    "a report": lambda found, y: report.to_markdown((found, y)),
}


@pytest.mark.parametrize("labels", FAR_LABELS)
@pytest.mark.parametrize("reader", READERS)
def test_warns_of_labels_of_another_unit(reader, labels, counts):
    y, found = FAR_LABELS[labels]
    if reader == "a rule":
        found = numbers(found.mean[:, 0], np.linspace(0.5, 1.5, N))
    with pytest.warns(UserWarning, match="of another unit.*standardize"):
        READERS[reader](found, y)
    counts("misuse rows, warned")


@pytest.mark.parametrize("reader", READERS)
def test_says_nothing_of_labels_that_fit(reader, counts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        READERS[reader](numbers(X, np.linspace(0.1, 1.5, N)), Y)
    counts("misuse rows, right")
