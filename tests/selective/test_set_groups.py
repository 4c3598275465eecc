"""Conformal sets by group: the promise in each, and groups that are missing, new or too small."""

import keras
import numpy as np
import pytest

from tfuq.export import export
from tfuq.selective import ConformalPredictor, subgroup_report


def draw(count, seed, sharpness=1.0):
    """Probabilities, and labels that follow them where `sharpness` is 1; below, they are worse."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(3, 0.6), size=count)
    true = probs**sharpness / (probs**sharpness).sum(-1, keepdims=True)
    labels = (rng.random((count, 1)) > true.cumsum(axis=1)).sum(axis=1)
    return probs, labels.clip(0, 2)


A, B = draw(400, 0), draw(300, 1, 0.3)
PROBS, LABELS = (np.concatenate(pair) for pair in zip(A, B, strict=True))
GROUPS = np.repeat(["A", "B"], [400, 300])
SETS = ConformalPredictor.fit(PROBS, LABELS, alpha=0.1, groups=GROUPS)


def test_each_group_has_the_predictor_of_its_own_rows():
    alone = [ConformalPredictor.fit(*part, alpha=0.1) for part in (A, B)]
    np.testing.assert_array_equal(SETS.threshold, [each.threshold for each in alone])
    assert SETS.keys == ["A", "B"] and SETS.by == "group"
    assert SETS.fitted_to["examples_of_group"] == {"A": 400, "B": 300}
    new = draw(50, 3)[0]
    groups = np.array(["B", "A"] * 25)
    found = SETS.predict_set(new, groups)
    for name, each in zip("AB", alone, strict=True):
        np.testing.assert_array_equal(found[groups == name], each.predict_set(new)[groups == name])
    np.testing.assert_array_equal(SETS.accept(new, groups), found.sum(-1) == 1)
    np.testing.assert_array_equal(SETS.set_size(new, groups), found.sum(-1))
    assert ConformalPredictor.from_json(SETS.to_json()) == SETS


def test_the_promise_holds_in_each_where_one_threshold_breaks_it():
    """5,000 new examples: a coverage of .9 is missed by 4 standard errors (.017) 1 time in 30,000.

    The threshold of 300 examples adds a standard deviation of .017 to that of the promise.
    """
    plain = ConformalPredictor.fit(PROBS, LABELS, alpha=0.1)
    new, labels = draw(5000, 4, 0.3)
    groups = np.full(5000, "B")
    assert plain.coverage(new, labels).coverage < 0.85
    assert SETS.coverage(new, labels, groups).coverage > 0.9 - 4 * (0.0042**2 + 0.017**2) ** 0.5
    found = SETS.evaluate(new, labels, groups)
    assert found.coverage == SETS.coverage(new, labels, groups).coverage
    report = subgroup_report(SETS, new, labels, groups)
    assert report.rows[1].group == "B"


def test_small_and_unknown_groups():
    groups = np.where(np.arange(700) < 5, "C", GROUPS)
    with pytest.warns(UserWarning, match=r"fewer than 9 .*sets of all labels: \{'C': 5\}"):
        sets = ConformalPredictor.fit(PROBS, LABELS, alpha=0.1, groups=groups)
    assert sets.fitted_to["groups_without_promise"] == ["C"]
    assert ConformalPredictor.from_json(sets.to_json()) == sets
    assert sets.predict_set(PROBS[:3], ["C"] * 3).all()
    found = sets.predict_set(PROBS[:3], ["D", "A", "D"], unknown_group="all")
    assert (
        found[[0, 2]].all() and not sets.accept(PROBS[:3], ["D"] * 3, unknown_group="reject").any()
    )


@pytest.mark.parametrize("options", [{"class_conditional": True}, {"score": "raps"}, {}])
def test_other_kinds(options):
    groups = np.arange(700) % 2
    sets = ConformalPredictor.fit(PROBS, LABELS, alpha=0.2, groups=groups, **options)
    assert len(sets.threshold) == 2 == len(sets.keys)
    assert 0.7 < sets.coverage(PROBS, LABELS, groups).coverage < 0.95
    images, labels = PROBS[:600].reshape(30, 4, 5, 3), LABELS[:600].reshape(30, 4, 5)
    sets = ConformalPredictor.fit(images, labels, alpha=0.2, groups=np.arange(30) % 2, **options)
    assert sets.predict_set(images, np.arange(30) % 2).shape == images.shape


MODEL = keras.Sequential([keras.Input((3,)), keras.layers.Softmax()])


@pytest.mark.parametrize(
    "message, call",
    [
        ("`groups` must hold groups .*'C'", lambda: SETS.predict_set(PROBS[:1], ["C"])),
        ("`groups` must name the group", lambda: SETS.predict_set(PROBS[:1])),
        ("`groups` must name the group", lambda: SETS.predict_set(PROBS[:2], ["A"])),
        (
            "`groups` must be None",
            lambda: ConformalPredictor("lac", 0.5).predict_set(PROBS[:1], ["A"]),
        ),
        ("`unknown_group`", lambda: SETS.predict_set(PROBS[:1], ["A"], unknown_group="reject")),
        (
            "one group of 9 examples",
            lambda: ConformalPredictor.fit(PROBS, LABELS, alpha=0.1, groups=np.arange(700)),
        ),
        (
            "1 that are None or NaN",
            lambda: ConformalPredictor.fit(PROBS, LABELS, groups=[None, *GROUPS[1:]]),
        ),
        ("`keys` must name", lambda: ConformalPredictor("lac", [0.5, 0.6], keys=["A", "A"])),
        ("`threshold` must have 1 axes", lambda: ConformalPredictor("lac", 0.5, keys=["A"])),
        ("cannot be part of a model", lambda: SETS.append_to(MODEL)),
        ("`conformal` must not", lambda: export(MODEL, "nowhere", conformal=SETS)),
    ],
)
def test_what_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()
