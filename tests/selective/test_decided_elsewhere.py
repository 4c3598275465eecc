"""Monitors of cases that were decided elsewhere, and of labels that come later."""

import numpy as np
import pytest

from tfuq.selective import Monitor, RejectionRule


def cases(count, seed, wrong=0.05):
    rng = np.random.default_rng(seed)
    probs = rng.uniform(0.5, 1, size=count)
    return probs, (rng.random(count) >= wrong).astype(int)


@pytest.fixture
def monitor():
    return RejectionRule.fit(*cases(2000, 1), target_risk=0.1).monitor()


def decided(monitor, probs, labels):
    losses = (labels != (probs > 0.5)).astype(float)
    return monitor.rule.accept(probs), np.maximum(probs, 1 - probs), losses


def test_is_update_of_the_same_cases(monitor):
    probs, labels = cases(300, 2)
    expected = Monitor.from_json(monitor.to_json()).update(probs, labels)
    accepted, scores, losses = decided(monitor, probs, labels)
    found = monitor.update_decisions(accepted, scores, losses)
    assert found is monitor and found.fitted_to == expected.fitted_to
    assert found.wealth == pytest.approx(expected.wealth)
    assert 0 < found.fitted_to["labelled"] == found.fitted_to["accepted"]


def test_labels_may_come_later(monitor):
    """The test of the risk takes losses in the order in which they come, whenever they do."""
    at_once = Monitor.from_json(monitor.to_json())
    accepted, scores, losses = decided(monitor, *cases(300, 3))
    at_once.update_decisions(accepted, scores, losses)
    monitor.update_decisions(accepted, scores)
    assert monitor.fitted_to["labelled"] == 0
    for part in np.array_split(losses[accepted], 7):
        monitor.update_losses(part)
    assert monitor.fitted_to == at_once.fitted_to
    assert monitor.wealth == pytest.approx(at_once.wealth)
    assert monitor.risk_bound == pytest.approx(at_once.risk_bound)


def test_errors_raise_the_alarm_when_their_labels_come(monitor):
    accepted, scores, _ = decided(monitor, *cases(400, 4))
    monitor.update_decisions(accepted, scores)
    assert not monitor.alarm
    assert monitor.update_losses(np.ones(100)).alarms == ["risk"]


def test_misuse(monitor, counts):
    accepted, scores, losses = decided(monitor, *cases(20, 5))
    for arguments, match in (
        ((accepted.astype(int), scores), "`accepted` must hold True or False"),
        ((accepted[:3], scores), "for each of 20 scores"),
        ((accepted, np.stack([scores, scores], -1)), "for each of 40 scores"),
        ((accepted, ["a"] * 20), "`scores` must"),
        ((accepted, scores, losses[:3]), "one for each of 20 cases"),
        ((accepted, scores, losses + 1.5), r"`losses` must hold numbers in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            monitor.update_decisions(*arguments)
        counts("misuse rows, refused")
    assert monitor.fitted_to["cases"] == 0
    monitor.update_decisions(accepted, scores)
    waiting = int(accepted.sum())
    for given, match in (
        ([np.nan], "accepted cases that have no label"),
        (np.zeros(waiting + 1), f"losses of the {waiting} accepted"),  # the same labels twice
        ([2.0], r"in \[0, 1\]"),
        (["wrong"], "`losses` must"),
    ):
        with pytest.raises(ValueError, match=match):
            monitor.update_losses(given)
        counts("misuse rows, refused")
    assert monitor.fitted_to["labelled"] == 0
    monitor.update_losses(np.zeros(waiting))
    with pytest.raises(ValueError, match="losses of the 0 accepted"):
        monitor.update_losses([0.0])
    counts("misuse rows, refused")
