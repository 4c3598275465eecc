"""Metrics of many rows: read in blocks, with few copies, and the same as of all at once."""

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from tfuq import metrics
from tfuq._math import level_blocks
from tfuq._predictions import examples

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4000, 5))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
LABELS = (LOGITS + RNG.gumbel(size=LOGITS.shape)).argmax(-1)
WEIGHT = RNG.integers(0, 3, 4000).astype(float)


def peak(call):
    """Bytes that a call has at most, besides what was there before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def coverage_table(y_true, y_pred, **options):
    return np.hstack(list(metrics.reliability_curve(y_true, y_pred, **options).values()))


FUNCTIONS = {
    "expected": metrics.expected_calibration_error,
    "adaptive": metrics.adaptive_calibration_error,
    "maximum": metrics.maximum_calibration_error,
    "classwise": metrics.classwise_calibration_error,
    "reliability": coverage_table,
    "brier": metrics.brier_score,
    "likelihood": metrics.negative_log_likelihood,
    "entropy": lambda y_true, y_pred, **flags: metrics.entropy_of_expectation(y_pred, **flags),
    "selective": metrics.selective_accuracy,
    "coverage": metrics.coverage,
}
DATA = {
    "classes": (LABELS, PROBS, {}),
    "weights": (LABELS, PROBS, {"sample_weight": WEIGHT}),
    "logits": (LABELS, LOGITS, {"from_logits": True}),
    "binary": (LABELS == 1, PROBS[:, 1], {}),
    "column": (LABELS == 1, PROBS[:, 1:2], {}),
    "labels": (LABELS[:, None] == np.arange(5), PROBS, {"multi_label": True}),
    "pixels": (LABELS.reshape(40, 100), PROBS.reshape(40, 100, 5), {}),
    "one-hot": (np.eye(5)[LABELS], PROBS, {}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_figures_of_blocks_are_those_of_the_whole(name, monkeypatch):
    for data in DATA.values():
        expected = FUNCTIONS[name](*data[:2], **data[2])
        with monkeypatch.context() as changed:
            changed.setattr(examples, "BLOCK", 4200)
            found = FUNCTIONS[name](*data[:2], **data[2])
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_only_a_block_is_read_at_a_time(monkeypatch):
    """What TensorFlow holds is not traced: so blocks are measured before it sees them."""
    sizes, kept = [], examples._read

    def read(y_true, y_pred, *weights, **told):
        sizes.append(y_pred.size)
        return kept(y_true, y_pred, *weights, **told)

    monkeypatch.setattr(examples, "BLOCK", 4200)
    monkeypatch.setattr(examples, "_read", read)
    for name in FUNCTIONS:
        sizes.clear()
        FUNCTIONS[name](LABELS, PROBS)
        assert max(sizes) <= 4200 and sum(sizes) == PROBS.size, name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_calibration_error_takes_little_beside_the_array(dtype, monkeypatch):
    monkeypatch.setattr(examples, "BLOCK", 2**15)
    probs = np.tile(PROBS, (25, 2)).astype(dtype) / 2
    labels = np.tile(LABELS, 25)
    assert probs.shape == (100_000, 10)
    assert peak(lambda: metrics.expected_calibration_error(labels, probs)) <= probs.nbytes
    assert peak(lambda: metrics.adaptive_calibration_error(labels, probs)) <= 3 * probs.nbytes


@pytest.mark.parametrize("unused", [None, 10, 3210])
def test_examples_of_blocks_copy_no_scores_that_stay(unused, monkeypatch):
    weight, probs = np.ones(4000), PROBS.copy()
    if unused is not None:
        weight[unused], probs[unused] = 0, np.nan
    expected = examples.from_arrays(LABELS, probs, weight)
    monkeypatch.setattr(examples, "BLOCK", 700)
    found = examples.from_arrays(LABELS, probs, weight)
    for one, other in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.shares_memory(found.scores, probs) == (unused is None)
    assert unused is not None or not found.scores.flags.writeable
    assert probs.flags.writeable


def test_faults_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(examples, "BLOCK", 700)
    broken = PROBS.copy()
    broken[3210, 2] = np.nan
    with pytest.raises(ValueError, match=r"(?s)`y_pred` must hold no NaN.*at example 3210"):
        metrics.expected_calibration_error(LABELS, broken)
    with pytest.raises(ValueError, match=r"`sample_weight` must not be 0 everywhere"):
        metrics.brier_score(LABELS, PROBS, sample_weight=0 * WEIGHT)
    early = np.where(np.arange(4000) > 3900, 1.0, 0.0)  # no weight in most blocks
    metrics.brier_score(LABELS, PROBS, sample_weight=early)
    for labels in (LABELS[:-1], LABELS[0], None):
        with pytest.raises(ValueError, match="Argument `y_true` must"):
            metrics.expected_calibration_error(labels, PROBS)


# --- Detection --------------------------------------------------------------------------------

OUT = RNG.random(30_000) < 0.3
SCORE = np.round(RNG.normal(size=30_000) + OUT, 2)  # with ties
SCORE[:50], SCORE[50:90] = np.inf, -np.inf
FIGURES = {
    "auroc": (metrics.auroc, sklearn_metrics.roc_auc_score),
    "aupr_out": (metrics.aupr_out, sklearn_metrics.average_precision_score),
    "aupr_in": (
        metrics.aupr_in,
        lambda y, s, **w: sklearn_metrics.average_precision_score(1 - y, -s, **w),
    ),
}


@pytest.mark.slow_cases("7")
@pytest.mark.parametrize("block", [7, 1000, 2**18])
def test_detection_in_blocks(block, monkeypatch):
    some = slice(0, None, 1 if block > 7 else 20)  # of 7 there would be thousands of blocks
    out, score = OUT[some], SCORE[some]
    finite = np.clip(score, -100, 100)
    weight = RNG.integers(1, 4, score.size)
    others = (metrics.detection_accuracy, metrics.fpr_at_tpr)
    expected = [each(out, score) for each in others]
    expected.append(metrics.fpr_at_tpr(out, score, 0.8, positive="out"))
    monkeypatch.setattr(level_blocks, "LEVELS", block)
    for function, peer in FIGURES.values():
        np.testing.assert_allclose(function(out, score), peer(1 * out, finite), rtol=1e-10)
        found = function(1.0 * out, score.astype("float32"), sample_weight=weight)
        rounded = finite.astype("float32")
        np.testing.assert_allclose(found, peer(1 * out, rounded, sample_weight=weight), rtol=1e-10)
    found = [each(out, score) for each in others]
    found.append(metrics.fpr_at_tpr(out, score, 0.8, positive="out"))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    of_all = metrics.ood_metrics(out, score)
    assert of_all["auroc"] == metrics.auroc(out, score)
    assert of_all["fpr_at_tpr"] == expected[1]


@pytest.mark.parametrize("name", FIGURES)
def test_detection_takes_no_more_than_three_times_the_column(name, monkeypatch):
    """Every score is another, so that a table of all levels would be as long as the column."""
    monkeypatch.setattr(level_blocks, "LEVELS", 2**13)
    score = RNG.permutation(200_000) / 7
    out = RNG.random(200_000) < 0.5
    function = FIGURES[name][0]
    assert peak(lambda: function(out, score)) <= 3 * score.nbytes
