"""Tests of the vocabulary of scores: one word for each, one value wherever it is asked for."""

import keras
import numpy as np
import pytest

import tfuq
from tfuq._predictions.scores import OF_STACKS, SCORES, score_name
from tfuq.callbacks import RejectionEvaluator
from tfuq.predictive import decompose
from tfuq.selective import RejectionRule, risk_coverage_curve

STACK = np.random.default_rng(0).dirichlet(np.ones(3), size=(5, 40))
LABELS = np.random.default_rng(1).integers(0, 3, 40)


@pytest.mark.parametrize("score", SCORES)
def test_a_score_has_one_value_for_rules_and_decompose(score):
    rule = RejectionRule(score, 0.5)
    assert rule.score == score
    expected = getattr(decompose(STACK), score)
    np.testing.assert_allclose(rule.score_of(STACK), expected, atol=1e-6)
    assert len(risk_coverage_curve(STACK, LABELS, score=score).threshold) > 1


@pytest.mark.parametrize("score", SCORES)
def test_the_evaluator_takes_the_words_of_rules(score):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    x = np.log(np.random.default_rng(0).dirichlet(np.ones(2), size=9)).astype("float32")
    evaluator = RejectionEvaluator((x, x.argmax(-1)), [0.5], score=score)
    assert evaluator.score == score
    if score in OF_STACKS:
        with pytest.raises(ValueError, match="Argument `score` must be one of 'confidence'"):
            evaluator.evaluate(model)
    else:
        assert 0 <= evaluator.evaluate(model)["coverage"] <= 1


@pytest.mark.parametrize(
    "old, new", [("entropy", "predictive_entropy"), ("max_probability", "confidence")]
)
def test_old_words_are_accepted(old, new):
    assert score_name(old) == new
    rule = RejectionRule(old, 0.6)
    assert rule.get_config() == RejectionRule(new, 0.6).get_config()
    np.testing.assert_array_equal(rule.accept(STACK), RejectionRule(new, 0.6).accept(STACK))
    given = risk_coverage_curve(STACK, LABELS, score=old)
    np.testing.assert_array_equal(given.risk, risk_coverage_curve(STACK, LABELS, score=new).risk)
    data = (np.zeros((2, 2)), np.zeros(2, int))
    assert RejectionEvaluator(data, score=old).score == new


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="Argument `score` must be one of 'confidence', 'margin'"):
        score_name("certainty")
    with pytest.raises(ValueError, match="Argument `target` must be one of 'class'"):
        score_name("certainty", ("class",), argument="target")


def test_a_certain_prediction_is_accepted_whatever_keras_epsilon():
    before = keras.config.epsilon()
    keras.config.set_epsilon(1e-10)
    try:
        rule = RejectionRule("predictive_entropy", 0.1)
        assert rule.score_of([[1.0, 0.0]]) == 0 and rule.accept([[1.0, 0.0]]).all()
        assert tfuq.predictive.entropy([[1.0, 0.0]]) == 0
    finally:
        keras.config.set_epsilon(before)
