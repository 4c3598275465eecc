"""Weights that nothing was built for: of pixels, labels, classes, by group. Refused by name."""

import numpy as np
import pytest

from tfuq import metrics, selective
from tfuq.selective import ConformalPredictor, RejectionRule

RNG = np.random.default_rng(0)
N = 120
PROBS = RNG.dirichlet(np.ones(3), size=N)
Y = np.where(RNG.random(N) < 0.1, 0, PROBS.argmax(-1))
LABELS = RNG.uniform(size=(N, 4))
LABELS_Y = (RNG.random((N, 4)) < LABELS).astype(int)
PIXELS = RNG.dirichlet(np.ones(3), size=(N, 2, 2))
PIXELS_Y = PIXELS.argmax(-1)
GROUPS = RNG.choice(["north", "south"], N)
RULE = RejectionRule("confidence", 0.5)
SETS = ConformalPredictor.fit(PROBS, Y, alpha=0.2)

WRONG = {
    "of labels": (RNG.random((N, 4)) < 0.5).astype(float),
    "of pixels": (RNG.random((N, 3, 3)) < 0.5).astype(float),
    "of pixels, fractions": RNG.uniform(0.5, 2, (N, 3, 3)),
    "of classes": np.array([1.0, 2.0, 3.0]),
    "of each class": RNG.uniform(0.5, 2, (N, 3)),
    "by group": {"north": 2.0, "south": 1.0},
    "below 0": -np.ones(N),
    "NaN": np.full(N, np.nan),
    "texts": GROUPS,
    "one for all": 2.0,
    "too few": np.ones(N - 1),
}
ANY = {  # takes weights of examples, whole numbers or not
    "aurc": lambda w: selective.aurc(PROBS, Y, sample_weight=w),
    "aurc of labels": lambda w: selective.aurc(LABELS, LABELS_Y, multi_label=True, sample_weight=w),
    "aurc of pixels": lambda w: selective.aurc(PIXELS, PIXELS_Y, sample_weight=w),
    "gap": lambda w: selective.gap(PROBS, Y, sample_weight=w),
    "TemperatureScaling": lambda w: selective.TemperatureScaling().fit(PROBS, Y, sample_weight=w),
    "weights of sets": lambda w: ConformalPredictor.fit(PROBS, Y, alpha=0.2, weights=w),
    "Spiegelhalter": lambda w: metrics.spiegelhalter_test(Y, PROBS, sample_weight=w),
}
MASKS = {  # counts examples or does not
    "RejectionRule.fit": lambda w: RejectionRule.fit(
        PROBS, Y, target_coverage=0.5, sample_weight=w
    ),
    "by group": lambda w: RejectionRule.fit(
        PROBS, Y, target_coverage=0.5, by="group", groups=GROUPS, sample_weight=w
    ),
    "of pixels": lambda w: RejectionRule.fit(
        PIXELS, PIXELS_Y, target_coverage=0.5, sample_weight=w
    ),
    "evaluate": lambda w: RULE.evaluate(PROBS, Y, sample_weight=w),
    "ConformalPredictor.fit": lambda w: ConformalPredictor.fit(
        PROBS, Y, alpha=0.2, sample_weight=w
    ),
    "coverage": lambda w: SETS.coverage(PROBS, Y, sample_weight=w),
    "subgroup_report": lambda w: selective.subgroup_report(RULE, PROBS, Y, GROUPS, sample_weight=w),
}
NONE = {  # of data from elsewhere, for one decision of an example among classes
    "of labels": lambda w: ConformalPredictor.fit(
        LABELS, LABELS_Y, alpha=0.2, multi_label=True, weights=w
    ),
    "of pixels": lambda w: ConformalPredictor.fit(PIXELS, PIXELS_Y, alpha=0.2, weights=w),
    "by group": lambda w: ConformalPredictor.fit(PROBS, Y, alpha=0.2, groups=GROUPS, weights=w),
    "by class": lambda w: ConformalPredictor.fit(
        PROBS, Y, alpha=0.2, class_conditional=True, weights=w
    ),
    "not fitted to any": lambda w: SETS.coverage(PROBS, Y, weights=w),
}
# What is right there: a weight of each label.
RIGHT = {("aurc of labels", "of labels")}
ROWS = [
    pytest.param(call, weights, id=f"{entry}-{mistake}".replace(" ", "_"))
    for entry, call in {**ANY, **{f"mask of {name}": call for name, call in MASKS.items()}}.items()
    for mistake, weights in WRONG.items()
    if (entry, mistake) not in RIGHT
]


@pytest.mark.every_case
@pytest.mark.parametrize("call, weights", ROWS)
def test_are_refused(call, weights, counts):
    with pytest.raises(ValueError, match=r"(?s)weight.*Received: "):
        call(weights)
    counts("misuse rows, refused")


@pytest.mark.every_case
@pytest.mark.parametrize("entry", MASKS)
def test_fractions_are_refused_where_examples_are_counted(entry, counts):
    with pytest.raises(ValueError, match="`sample_weight` must be a mask of 0 and 1"):
        MASKS[entry](RNG.uniform(0.5, 2, N))
    counts("misuse rows, refused")


@pytest.mark.every_case
@pytest.mark.parametrize("entry", NONE)
def test_weights_of_new_data_are_refused_where_there_are_several_decisions(entry, counts):
    with pytest.raises(ValueError, match="weights"):
        NONE[entry](RNG.uniform(0.5, 2, N))
    counts("misuse rows, refused")


def test_a_column_is_a_weight_of_each():
    mask = (np.arange(N) % 3 > 0).astype(float)
    rules = [MASKS["RejectionRule.fit"](each) for each in (mask, mask[:, None])]
    assert rules[0] == rules[1] and rules[0].fitted_to["examples"] == mask.sum()
