"""Rules that know the names of their classes: labels by name, numbers of classes, files."""

import json

import keras
import numpy as np
import pytest

from tfuq import report
from tfuq.predictive import declare, read_scores, score_dataset
from tfuq.selective import RejectionRule

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
