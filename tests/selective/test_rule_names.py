"""Rules that know the names of their classes: labels by name, numbers of classes, files."""

import json

import keras
import numpy as np
import pytest

from tfuq import metrics, report
from tfuq.predictive import declare, read_scores, score_dataset
from tfuq.selective import (
    ConformalPredictor,
    IsotonicCalibration,
    RejectionRule,
    TemperatureScaling,
    VectorScaling,
)

RNG = np.random.default_rng(0)
NAMES = ["cat", "dog", "emu"]
X = RNG.normal(size=(300, 3)).astype("float32")
PROBS = np.exp(2 * X) / np.exp(2 * X).sum(-1, keepdims=True)
Y = (X + RNG.normal(size=X.shape)).argmax(-1)
TEXTS = np.array(NAMES)[Y]


def refused(argument, call, *args, **options):
    with pytest.raises(ValueError, match=rf"(?s)Argument `{argument}` must .*Received: ") as caught:
        call(*args, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def rule():
    return RejectionRule.fit(PROBS, TEXTS, target_coverage=0.7, class_names=NAMES)


def test_labels_by_name_are_labels_by_number(rule):
    plain = RejectionRule.fit(PROBS, Y, target_coverage=0.7)
    assert rule.threshold == plain.threshold and rule.fitted_to == plain.fitted_to
    assert rule.evaluate(PROBS, TEXTS) == rule.evaluate(PROBS, Y) == plain.evaluate(PROBS, Y)
    unknown = refused("labels", rule.evaluate, PROBS, np.where(Y == 2, "gnu", TEXTS))
    assert "'cat', 'dog', 'emu'" in unknown and "'gnu'" in unknown
    refused("labels", plain.evaluate, PROBS, TEXTS)


def test_another_number_of_classes_is_refused(rule):
    for probs in (PROBS[:, :2] / PROBS[:, :2].sum(-1, keepdims=True), np.full((5, 4), 0.25)):
        assert "predictions of 3 classes" in refused("probs", rule.accept, probs)
    refused("class_names", RejectionRule, class_names=["cat", "cat"])
    few = {"target_coverage": 0.5, "class_names": NAMES[:2]}
    assert "as its `class_names`" in refused("probs", RejectionRule.fit, PROBS, Y, **few)
    binary = RejectionRule("confidence", 0.6, rank=1, class_names=["well", "ill"])
    assert binary.accept([0.9, 0.5]).tolist() == [True, False]
    labels = RejectionRule("confidence", 0.6, multi_label=True, class_names=NAMES)
    assert labels.accept(PROBS).shape == PROBS.shape


def test_files_keep_the_names_and_older_ones_load(rule, tmp_path):
    rule.save(tmp_path / "r.json")
    again = RejectionRule.load(tmp_path / "r.json")
    assert again == rule and again.class_names == NAMES
    content = json.loads(rule.to_json())
    del content["config"]["class_names"]
    old = RejectionRule.from_json(json.dumps(content))
    assert old.class_names is None and old.threshold == rule.threshold
    assert json.loads(old.to_json()) == content  # as versions without names wrote it, and read it


def test_what_is_said_is_said_by_name():
    known = Y != 2
    options = {"target_coverage": 0.7, "class_names": NAMES}
    text = RejectionRule.fit(PROBS[known], TEXTS[known], **options).describe()
    assert "No case of class emu" in text


def test_a_model_and_its_rule_agree(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    declare(model, class_names=NAMES)
    rule = RejectionRule.fit_model(model, (X, Y), target_coverage=0.7)
    assert rule.class_names == NAMES
    other = RejectionRule("confidence", 0.6, class_names=NAMES[::-1])
    refused("class_names", score_dataset, model, X, tmp_path / "s", rule=other, verbose=0)
    refused(
        "class_names",
        RejectionRule.fit_model,
        model,
        (X, Y),
        target_coverage=0.7,
        class_names=NAMES[::-1],
    )
    nameless = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    found = score_dataset(nameless, (X, TEXTS), tmp_path / "t", rule=rule, verbose=0)
    np.testing.assert_array_equal(read_scores(found.path)["true_label"], Y)


def test_reports_take_the_names(rule):
    assert "emu" in report.to_markdown((PROBS, Y), rule=rule)


# --- Calibrations, sets and metrics ---------------------------------------------------------------

KINDS = (TemperatureScaling, VectorScaling, IsotonicCalibration)


class Column:
    """What matters here of a column of a data frame: NumPy gets an array of objects from it."""

    def __array__(self, dtype=None, copy=None):
        return np.array(TEXTS.tolist(), object)


def test_a_column_of_pandas_is_such_a_column():
    frame = pytest.importorskip("pandas").DataFrame({"label": TEXTS})
    for column in (frame["label"], frame["label"].astype("category")):
        assert np.asarray(column).tolist() == np.asarray(Column()).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_calibrations_take_names_of_classes(kind):
    by_number = kind().fit(PROBS, Y)
    for labels in (TEXTS, list(TEXTS), Column()):
        assert kind().fit(PROBS, labels, class_names=NAMES) == by_number
    assert "class_names" in refused("labels", kind().fit, PROBS, TEXTS)
    refused("labels", kind().fit, PROBS, np.where(Y == 2, "gnu", TEXTS), class_names=NAMES)


def test_sets_take_names_of_classes(tmp_path):
    sets = ConformalPredictor.fit(PROBS, Column(), alpha=0.2, class_names=NAMES)
    plain = ConformalPredictor.fit(PROBS, Y, alpha=0.2)
    assert sets.threshold == plain.threshold
    assert sets.coverage(PROBS, TEXTS) == plain.coverage(PROBS, Y)
    sets.save(tmp_path / "s.json")
    assert ConformalPredictor.load(tmp_path / "s.json").class_names == NAMES
    assert "class_names" not in plain.get_config()
    assert "class_names" in refused("labels", ConformalPredictor.fit, PROBS, TEXTS)
    refused("probs", sets.predict_set, np.full((5, 4), 0.25))


def test_names_of_a_model_are_those_of_its_calibration_and_sets():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    declare(model, class_names=NAMES)
    assert TemperatureScaling.fit_model(model, (X, TEXTS)).is_fitted
    assert ConformalPredictor.fit_model(model, (X, TEXTS)).class_names == NAMES
    with pytest.raises(ValueError, match="`class_names` must be the same"):
        ConformalPredictor.fit_model(model, (X, Y), class_names=NAMES[::-1])


OF_LABELS = ("expected_calibration_error", "adaptive_calibration_error")
OF_LABELS += ("maximum_calibration_error", "reliability_curve", "classwise_calibration_error")
OF_LABELS += ("brier_score", "negative_log_likelihood", "selective_accuracy", "coverage")
OF_LABELS += ("rejection_rate", "rejection_table")


@pytest.mark.parametrize("name", OF_LABELS)
def test_metrics_take_names_of_classes(name):
    function = getattr(metrics, name)
    more = ([0.5],) if name == "rejection_table" else ()
    found = function(Column(), PROBS, *more, class_names=NAMES)
    expected = function(Y, PROBS, *more)
    for part, other in zip(np.atleast_1d(found), np.atleast_1d(expected), strict=True):
        np.testing.assert_equal(part, other)
    assert "class_names" in refused("y_true", function, TEXTS, PROBS, *more)


def test_streaming_metrics_refuse_names():
    metric = metrics.ExpectedCalibrationError()
    refused("y_true", metric.update_state, keras.ops.convert_to_tensor(TEXTS.tolist()), PROBS)
