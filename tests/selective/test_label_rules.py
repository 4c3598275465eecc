"""Rules with a threshold and a promise for each label of multi-label predictions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.export import export
from tfuq.selective import RejectionRule

SHARPNESS = np.array([1.0, 0.7, 0.5])  # of three labels, the last is hard to tell


def draw(count, seed):
    """Logits `(count, 3)`, and labels that follow them less and less."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(count, 3))
    return logits, (rng.random((count, 3)) < 1 / (1 + np.exp(-SHARPNESS * logits))).astype(int)


LOGITS, Y = draw(800, 0)
OPTIONS = {"from_logits": True, "multi_label": True, "by": "label", "target_risk": 0.15}
RULE = RejectionRule.fit(LOGITS, Y, **OPTIONS)
NEW, NEW_Y = draw(4000, 1)


def test_each_label_has_the_rule_of_its_own_column():
    assert RULE.keys == [0, 1, 2] and len(RULE.threshold) == 3
    new = RULE.accept(NEW)
    for label in range(3):
        column = LOGITS[:, label : label + 1]
        alone = RejectionRule.fit(column, Y[:, label], from_logits=True, target_risk=0.15)
        assert RULE.threshold[label] == pytest.approx(alone.threshold)
        own = np.ravel(alone.accept(NEW[:, label : label + 1]))
        np.testing.assert_array_equal(new[:, label], own)
        assert RULE.fitted_to["parts"][str(label)]["accepted"] == alone.fitted_to["accepted"]
    assert RULE.threshold[0] < RULE.threshold[2]
    assert RejectionRule.from_json(RULE.to_json()) == RULE
    assert "of each label at most 15 in 100" in RULE.describe()


def test_in_models_and_exports(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    accept = RULE.accept(NEW)
    found = RULE.append_to(model).predict(NEW, verbose=0)
    np.testing.assert_array_equal(found["accept"], accept)
    export(model, tmp_path / "m", rule=RULE, from_logits=True, multi_label=True)
    served = tf.saved_model.load(str(tmp_path / "m"))
    assert np.mean(served.serve(NEW.astype("float32"))["accept"] == accept) > 0.999


def test_other_targets_and_images():
    rule = RejectionRule.fit(LOGITS, Y, **{**OPTIONS, "target_risk": None}, target_coverage=0.5)
    np.testing.assert_allclose(rule.accept(LOGITS).mean(axis=0), 0.5, atol=0.01)
    images, y = LOGITS.reshape(200, 2, 2, 3), Y.reshape(200, 2, 2, 3)
    rule = RejectionRule.fit(images, y, **{**OPTIONS, "target_risk": 0.45})
    assert rule.accept(images).shape == images.shape
    missed = RejectionRule.fit(LOGITS, Y, **{**OPTIONS, "target_risk": 0.3}, loss="false_negative")
    assert len(missed.threshold) == 3


@pytest.mark.parametrize(
    "message, call",
    [
        (
            "unless multi_label=True",
            lambda: RejectionRule.fit(np.eye(3), [0, 1, 2], None, 0.5, by="label"),
        ),
        (
            "unless multi_label=True",
            lambda: RejectionRule("confidence", [0.5], by="label", keys=[0]),
        ),
        ("labels that the rule was fitted to, 3", lambda: RULE.accept(NEW[:, :2])),
        (
            "labels of the model",
            lambda: export(
                keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")]),
                "nowhere",
                rule=RULE,
                from_logits=True,
                multi_label=True,
            ),
        ),
    ],
)
def test_what_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No threshold")
def test_violations_are_as_rare_as_promised():
    """150 fits at 95 %: of each label 7.5 violations at most are expected, of all together too.

    A rule that errs in 5 % has more than 21 with a probability of 6e-6 (binomial).
    """
    margin = np.abs(np.random.default_rng(9).normal(size=200_000)) * 3
    chance = 1 - 1 / (1 + np.exp(-SHARPNESS[:, None] * margin))  # of an error, by the logit
    alone, together = np.zeros(3, int), 0
    for seed in range(150):
        logits, y = draw(300, 100 + seed)
        for simultaneous in (False, True):
            rule = RejectionRule.fit(logits, y, **OPTIONS, simultaneous=simultaneous)
            cut = np.log(rule.threshold / (1 - np.minimum(rule.threshold, 1 - 1e-12)))
            kept = [chance[k][margin >= cut[k]] for k in range(3)]
            broken = np.array([len(part) > 0 and part.mean() > 0.15 for part in kept])
            if simultaneous:
                together += broken.any()
            else:
                alone += broken
    assert alone.max() <= 21 and together <= 21
