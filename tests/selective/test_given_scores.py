"""Rules of scores that come beside the predictions: of a detector, an array, a function."""

import warnings

import keras
import numpy as np
import pytest

from tfuq.ood import MaxSoftmax
from tfuq.selective import Monitor, RejectionRule, UnattainableRisk, augrc, best_score, gap

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(3), size=600)
STRANGE = RNG.random(600)
Y = np.where(RNG.random(600) < STRANGE**3, (PROBS.argmax(-1) + 1) % 3, PROBS.argmax(-1))
WRONG = PROBS.argmax(-1) != Y


def fitted(**options):
    return RejectionRule.fit(PROBS, Y, target_risk=0.1, score=STRANGE, **options)


def test_an_array_ranks_what_the_probabilities_do_not():
    rule = fitted()
    accepted = rule.accept(PROBS, score=STRANGE)
    assert rule.score == "given" and not rule.grows_with_trust
    np.testing.assert_array_equal(accepted, np.float32(rule.threshold) >= STRANGE.astype("float32"))
    assert accepted.sum() == rule.fitted_to["accepted"] > 200
    assert WRONG[accepted].mean() < 0.1
    with pytest.raises(UnattainableRisk):
        RejectionRule.fit(PROBS, Y, target_risk=0.1)
    found = rule.evaluate(PROBS, Y, score=STRANGE)
    assert (found.accepted, found.risk) == (accepted.sum(), WRONG[accepted].mean())
    again = RejectionRule.from_json(rule.to_json())
    assert again == rule
    np.testing.assert_array_equal(again.accept(PROBS[:9], score=STRANGE[:9]), accepted[:9])
    column = RejectionRule.fit(PROBS, Y, target_risk=0.1, score=STRANGE[:, None])
    assert column.threshold == rule.threshold
    stack = rule.accept(np.stack([PROBS, PROBS]), score=STRANGE)
    np.testing.assert_array_equal(stack, accepted)


def test_by_class_by_group_and_a_function():
    groups = np.arange(600) % 2
    rule = RejectionRule.fit(PROBS, Y, STRANGE, target_coverage=0.5, by="group", groups=groups)
    assert 0.5 <= rule.accept(PROBS, groups, score=STRANGE).mean() < 0.51
    rule = RejectionRule.fit(PROBS, Y, STRANGE, target_coverage=0.5, by="class")
    assert 0.5 <= rule.accept(PROBS, score=STRANGE).mean() < 0.52

    def doubt(probs):
        return -probs.max(axis=-1)

    rule = RejectionRule.fit(PROBS, Y, doubt, target_coverage=0.4)
    plain = RejectionRule.fit(PROBS, Y, target_coverage=0.4)
    np.testing.assert_array_equal(rule.accept(PROBS, score=doubt), plain.accept(PROBS))


def test_scores_of_a_detector_and_a_monitor():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, "softmax")])
    model.set_weights([np.eye(3), np.zeros(3)])
    x = np.log(PROBS).astype("float32")
    scores = MaxSoftmax().fit(model, x).score(x)
    rule = RejectionRule.fit(PROBS, Y, scores, target_coverage=0.5)
    plain = RejectionRule.fit(PROBS, Y, target_coverage=0.5)
    np.testing.assert_array_equal(rule.accept(PROBS, score=scores), plain.accept(PROBS))
    monitor = fitted().monitor().update(PROBS, Y, score=STRANGE)
    assert monitor.fitted_to["accepted"] == fitted().fitted_to["accepted"]
    assert Monitor.from_json(monitor.to_json()) == monitor
    with pytest.raises(ValueError, match="`score` must be the scores of these"):
        monitor.update(PROBS, Y)
    with pytest.raises(ValueError, match=r"for a detector pass the array `detector\.score\(x\)`"):
        RejectionRule.fit(PROBS, Y, MaxSoftmax(), target_coverage=0.5)


def test_nan_is_never_accepted_and_never_fitted_to():
    strange, probs = STRANGE.copy(), PROBS.copy()
    strange[0], probs[1] = np.nan, np.nan
    accepted = fitted().accept(probs, score=np.where(np.arange(600) < 2, -1.0, strange))
    assert accepted[0] and not accepted[1]
    assert not fitted().accept(PROBS, score=strange)[0]
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="`score` must hold finite numbers"):
            RejectionRule.fit(PROBS, Y, np.where(np.arange(600) == 5, bad, STRANGE), 0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fitted().accept(PROBS),
        lambda: fitted().score_of(PROBS),
        lambda: fitted().accept(PROBS, score=STRANGE[:5]),
        lambda: fitted().accept(PROBS, score="entropy"),
        lambda: RejectionRule("confidence", 0.7).accept(PROBS, score=STRANGE),
        lambda: RejectionRule.fit(PROBS, Y, STRANGE[:7], 0.1),
        lambda: RejectionRule.fit(PROBS, Y, ["a"] * 600, 0.1),
        lambda: RejectionRule.fit(PROBS[:, None], Y[:, None], STRANGE, target_coverage=0.5),
    ],
)
def test_scores_of_others_are_refused(call):
    with pytest.raises(ValueError, match=r"`score` must .*Received: "):
        call()


def test_a_model_cannot_hold_what_comes_beside_it():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])
    with pytest.raises(ValueError, match="cannot be part of a model"):
        fitted().append_to(model)


def test_confidences_for_doubts_are_told():
    """Of a score that says nothing no warning comes: once in 30,000 (4 standard deviations)."""
    rng = np.random.default_rng(11)
    probs = rng.dirichlet(np.ones(3), size=1000)
    labels = np.where(rng.random(1000) < probs.max(-1), probs.argmax(-1), probs.argmin(-1))
    confidence, nothing = probs.max(-1), rng.random(1000)
    calls = (
        lambda score: RejectionRule.fit(probs, labels, target_coverage=0.5, score=score),
        lambda score: augrc(probs, labels, score=score),
        lambda score: best_score(probs, labels, {"ours": score, "p": "margin"}, resamples=10),
        lambda score: gap(probs, labels, score),
    )
    for call in calls:
        with pytest.warns(UserWarning, match="score has to grow with uncertainty. Negate"):
            call(confidence)
        for fine in (-confidence, nothing, np.zeros(1000)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                call(fine)
