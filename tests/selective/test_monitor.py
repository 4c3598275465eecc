"""A monitor of a rule: what it promises of alarms, what it sees, its file, and bad input."""

import base64
import json

import numpy as np
import pytest
from scipy import stats

from tfuq.predictive import RegressionUncertainty
from tfuq.selective import Monitor, RegressionRule, RejectionRule
from tfuq.selective.bets import Bets, Jumps, mean_upper_bound, start_weight
from tfuq.selective.monitor import SHARES

RNG = np.random.default_rng(0)


def cases(count, rng, wrong=0.1):
    """Binary predictions whose answers are wrong with a probability of `wrong`, and labels."""
    probs = rng.uniform(0.5, 1, size=count)
    return probs, (rng.random(count) >= wrong).astype(int)


def fitted(**options):
    rng = np.random.default_rng(1)
    return RejectionRule.fit(*cases(2000, rng, 0.05), target_risk=0.1, **options)


def test_bets_grow_no_fair_game():
    """1,000 streams at the bound: the mean wealth is 1, and an alarm as rare as promised."""
    rng, bets, most = np.random.default_rng(2), Bets(0.1), 1.0
    for _ in range(1000):
        bets.take(rng.random(1000) < 0.1)
        most = np.maximum(most, bets.wealth)
    limit = stats.binom.ppf(1 - 1e-4, 1000, 0.05)  # a right test fails once in 10,000
    assert np.sum(most >= 20) <= limit
    factors = 1 + Bets(0.1).slopes * (np.array([[0.0], [1.0]]) - 0.1)
    np.testing.assert_allclose([0.9, 0.1] @ factors, 1)
    assert sum(start_weight(k) for k in range(1_000_000)) < 1
    jumps, most = Jumps(), 1.0
    for _ in range(1000):
        jumps.take(rng.random(1000))
        most = np.maximum(most, jumps.wealth)
    assert np.sum(most >= 20) <= limit


def test_a_wealth_is_no_more_on_average_after_a_case_than_before():
    """The proof's step, at starts and between them, of losses at the bound and uniform p-values."""
    rng, middles = np.random.default_rng(2), (np.arange(20) + 0.5) / 20
    for games, parts, shares in (
        (Bets(0.1), [0.0, 1.0], [0.9, 0.1]),
        (Jumps(), middles, np.full(20, 0.05)),
    ):
        assert games.wealth == 1
        for drawn in rng.choice(parts, size=150, p=shares):
            nexts = [type(games)(*([0.1] if len(parts) == 2 else []), games.count, games.sums)
                     for _ in parts]  # fmt: skip
            for each, part in zip(nexts, parts, strict=True):
                each.take(part)
            mean = np.dot(shares, [each.wealth for each in nexts])
            assert mean == pytest.approx(games.wealth, rel=1e-9)
            games.take(drawn)
            assert games.wealth > 0


def test_scores_that_move_late_are_seen_as_soon_as_early():
    """Half a deviation after 20,000 quiet cases: a test that began once would need thousands."""
    rng, jumps, seen = np.random.default_rng(3), Jumps(), []
    for _ in range(20_000):
        jumps.take(rng.random(50))
    assert np.median(jumps.wealth) < 1
    while len(seen) < 500 and np.median(jumps.wealth) < 1 / (SHARES["scores"] * 0.05):
        jumps.take(stats.norm.sf(rng.normal(0.5, size=50)))
        seen.append(np.median(jumps.wealth))
    assert len(seen) < 250


def test_a_doubled_risk_is_seen_within_300_labelled_cases():
    rng, delays = np.random.default_rng(3), []
    for _ in range(21):
        bets = Bets(0.1)
        for loss in rng.random(1000) < 0.1:
            bets.take(loss)
        while bets.wealth < 1 / (SHARES["risk"] * 0.05):
            bets.take(rng.random() < 0.2)
        delays.append(bets.count - 1000)
    assert np.median(delays) <= 300


def test_a_stack_of_binary_predictions_with_labels():
    rule, (probs, labels) = fitted(), cases(300, np.random.default_rng(5))
    stack = np.stack([probs, probs])
    found = rule.monitor().update(stack, labels, stacked=True)
    assert found.fitted_to == rule.monitor().update(probs, labels).fitted_to


@pytest.mark.parametrize("loss", ["precision of 1", "recall of 1", "false negatives of 1"])
def test_labels_that_come_late_of_a_rule_of_one_class(loss):
    """Losses of the cases that the risk is of, as `evaluate` counts them."""
    rng = np.random.default_rng(6)
    probs, labels = cases(2000, rng, 0.1)
    probs = np.where(rng.random(2000) < 0.5, probs, 1 - probs)
    labels = np.where(rng.random(2000) < 0.9, probs > 0.5, labels).astype(int)
    rule = RejectionRule.fit(probs, labels, loss=loss, target_risk=0.2)
    accepted, answers = rule.accept(probs), (probs > 0.5).astype(int)
    of_risk = (answers if loss.startswith("precision") else labels) == 1
    late = (answers != labels)[accepted & of_risk]
    monitor = rule.monitor().update_decisions(accepted, rule.score_of(probs))
    monitor.update_losses(late.astype(float))
    assert monitor.fitted_to == rule.monitor().update(probs, labels).fitted_to
    assert monitor.fitted_to["loss"] / len(late) == pytest.approx(rule.evaluate(probs, labels).risk)


def test_each_test_sees_its_own_change():
    rule, rng = fitted(), np.random.default_rng(4)
    monitor = rule.monitor()
    monitor.update(*cases(1000, rng, 0.08))
    assert not monitor.alarm and monitor.alarms == []
    assert 0.08 < monitor.risk_bound < 0.16
    worse = Monitor.from_json(monitor.to_json())
    worse.update(*cases(1000, rng, 0.25))
    assert worse.alarm and worse.alarms == ["risk"]
    drifted = Monitor.from_json(monitor.to_json())
    drifted.update(0.5 + 0.5 * rng.beta(1, 4, size=1500))  # no labels at all
    assert "scores" in drifted.alarms
    strict = RejectionRule.from_config({**rule.get_config(), "threshold": 0.9}).monitor()
    strict.update(cases(500, rng)[0])
    assert "coverage" in strict.alarms


def test_a_text_goes_on_where_it_ended_and_is_small():
    probs, labels = cases(400, np.random.default_rng(5))
    whole, part = fitted().monitor(0.1), fitted().monitor(0.1)
    whole.update(probs, labels)
    for start in range(0, 400, 7):
        part.update(probs[start : start + 7], labels[start : start + 7])
        part = Monitor.from_json(part.to_json())
    states = [each.get_config()["state"] for each in (part, whole)]
    assert [len(state.pop("batches")) for state in states] == [0, 8]  # few scores tell no batch
    assert states[0] == states[1]
    assert part.wealth == whole.wealth


def test_a_text_is_small_at_all_times():
    """1,024 bytes, the rule in it: of two classes, of seven with names, and of numbers."""
    rng = np.random.default_rng(5)
    names = ["nevus", "melanoma", "keratosis", "carcinoma", "angioma", "fibroma", "Bowen"]
    probs = rng.dirichlet(np.ones(7), size=4000)
    labels = np.array(names)[np.where(rng.random(4000) < 0.05, 0, probs.argmax(-1))]
    options = {"target_risk": 0.1, "class_names": names}
    found, y = numbers(4000, rng)
    for rule, rows, known in (
        (fitted(), *cases(4000, rng)),
        (RejectionRule.fit(probs, labels, **options), probs, labels),
        (RejectionRule.fit(found, y, tolerance=1.0, target_risk=0.1), found, y),
    ):
        monitor = rule.monitor()
        for first, end in ((0, 1), (1, 31), (31, 32), (32, 1000), (1000, 4000)):
            monitor.update(rows[first:end], known[first:end])
            assert len(monitor.to_json().encode()) <= 1024
            assert Monitor.from_json(monitor.to_json()) == monitor
    longest = {**monitor.get_config()["state"], "cases": 10**8, "accepted": 10**8}
    longest |= {"labelled": 10**4, "loss": 1234.56789, "bins": [10**7] * 8}
    assert len(Monitor(rule, 0.05, state=longest).to_json().encode()) <= 1024


def test_texts_of_earlier_formats_are_read():
    """Wealths in digits, bounds and numbers of cases again and again; scores tested by one game."""
    monitor = fitted().monitor().update(*cases(300, np.random.default_rng(5)))
    content = json.loads(monitor.to_json())
    state, slopes = content["config"]["state"], [0.2, 0.5, 3.0]
    second = json.loads(json.dumps(content))
    bets = [part for bets in monitor._bets.values() for part in bets.sums]
    wealth = np.array([*monitor._most.values(), *slopes, *bets])
    second["config"]["state"]["wealth"] = base64.b64encode(wealth.tobytes()).decode()
    del state["wealth"], state["batches"]
    state |= {"most": monitor._most, "scores": slopes, "first": []}
    state |= {k: [bets.bound, bets.count, bets.spent, bets.sums.tolist()]
              for k, bets in monitor._bets.items()}  # fmt: skip
    content["config"]["rule"] = json.loads(fitted().to_json())
    spent = monitor._jumps.spent
    assert 0.5 < spent < 1
    expected = {**monitor.wealth, "scores": 3.7 * spent + 1 - spent}
    for each in (content, second):
        again = Monitor.from_json(json.dumps(each))
        assert again.wealth == pytest.approx(expected)
        assert again.fitted_to == monitor.fitted_to and again.rule == monitor.rule
        again.update(*cases(300, np.random.default_rng(6)))
        assert Monitor.from_json(again.to_json()).wealth == again.wealth


def test_a_batch_that_comes_twice_is_refused():
    monitor, rng = fitted().monitor(), np.random.default_rng(5)
    first, *later = (cases(40, rng) for _ in range(5))
    monitor.update(*first)
    before = monitor.to_json()
    for again in (monitor, Monitor.from_json(before)):  # also after the process ended
        for given in (first, (first[0], None)):
            with pytest.raises(ValueError, match=r"`probs` must hold new cases: 40 .*Received: "):
                again.update(*given)
        accepted = again.rule.accept(first[0])
        with pytest.raises(ValueError, match="`update_losses`"):
            again.update_decisions(accepted, again.rule.score_of(first[0]))
        assert again.to_json() == before
    for batch in later:
        monitor.update(*batch)
    for known in (first, *later[-2:]):
        with pytest.raises(ValueError, match="must hold new cases"):
            monitor.update(*known)
    assert monitor.fitted_to["cases"] == 200
    monitor.update(later[-1][0][::-1])  # in another order they are others
    few = [0.9, 0.8, 0.9, 0.7] * 20  # equal scores come again by chance
    monitor.update(few).update(few).update([0.95]).update([0.95])
    assert monitor.fitted_to["cases"] == 402


def test_labels_of_some_are_enough_and_those_of_the_refused_count_for_nothing():
    probs, labels = cases(300, np.random.default_rng(6))
    some = [int(label) if k % 3 else None for k, label in enumerate(labels)]
    monitor = fitted().monitor().update(probs, some)
    accepted = fitted().accept(probs)
    assert monitor.fitted_to["labelled"] == np.sum(accepted[np.arange(300) % 3 > 0])
    again = fitted().monitor().update(probs, np.where(np.arange(300) % 3, labels, np.nan))
    assert again == monitor
    three = np.random.default_rng(7).dirichlet(np.ones(3), size=400)
    rule = RejectionRule.fit(three, three.argmax(-1), target_risk=0.1, class_names=["a", "b", "c"])
    named = rule.monitor().update(three[:3], ["a", None, "c"])
    assert named.fitted_to["cases"] == 3


def test_the_bound_holds_at_all_times_together():
    rng, missed = np.random.default_rng(8), 0
    for _ in range(100):
        total = np.cumsum(rng.random(300) < 0.2)
        bounds = [mean_upper_bound(total[n - 1], n, 0.05) for n in range(10, 301, 10)]
        missed += min(bounds) < 0.2
    assert missed <= stats.binom.ppf(1 - 1e-4, 100, 0.05)
    assert mean_upper_bound(0.0, 0, 0.05) == 1
    assert mean_upper_bound(10, 1000, 0.05) < 0.03


@pytest.mark.parametrize(
    "rule",
    [
        RejectionRule("confidence", 0.7),
        RejectionRule.fit(*cases(200, RNG), target_coverage=0.5),
        RegressionRule("std", 0.5),
    ],
)
def test_rules_that_promise_nothing_of_errors_are_refused(rule):
    with pytest.raises(ValueError, match=r"`rule` must be a RejectionRule .*Received: "):
        rule.monitor()


def test_bad_input_is_refused_and_counts_for_nothing():
    monitor, (probs, labels) = fitted().monitor(), cases(50, RNG)
    before = monitor.to_json()
    for bad in (
        (2 * probs, labels),
        (probs, labels[:10]),
        (probs, labels + 3),
        (probs[:, None, None, None],),
    ):
        with pytest.raises(ValueError, match="must"):
            monitor.update(*bad)
    assert monitor.to_json() == before
    for alpha in (0, 1, -1, np.nan, "often"):
        with pytest.raises(ValueError, match="`alpha` must"):
            fitted().monitor(alpha)
    with pytest.raises(ValueError, match="`text` must"):
        Monitor.from_json(before.replace('"bins"', '"bin"'))
    with pytest.raises(ValueError, match="`text` must"):
        Monitor.from_json(before.replace("RejectionRule", "TemperatureScaling"))


def numbers(count, rng, noise=1.0):
    """Predictions whose deviations are those of their errors times `noise`, and numbers."""
    scale = rng.uniform(0.1, 2, size=count)
    found = RegressionUncertainty(np.stack([0 * scale, scale], -1)[None], "normal")
    return found, noise * scale * rng.normal(size=count)


def test_numbers_are_watched_as_classes_are():
    rng = np.random.default_rng(9)
    rule = RejectionRule.fit(*numbers(2000, rng), tolerance=1.0, target_risk=0.1)
    monitor = rule.monitor()
    monitor.update(*numbers(1000, rng)).update(numbers(50, rng)[0])
    assert not monitor.alarm and monitor.fitted_to["cases"] == 1050
    assert monitor.fitted_to["labelled"] < monitor.fitted_to["accepted"] < 1050
    again = Monitor.from_json(monitor.to_json())
    assert again == monitor and type(again.rule) is RegressionRule
    found, y = numbers(1500, rng, noise=3.0)
    some = np.where(rng.random(1500) < 0.7, y, np.nan)  # labels of some
    assert again.update(found, some).alarms == ["risk"]
    assert again.to_json() != monitor.to_json()
    for bad in ((found, y[:3]), (found, ["a"] * 1500), (y, y), (found, y, None)):
        with pytest.raises(ValueError, match="must"):
            monitor.update(*bad[:2], stacked=True if len(bad) == 3 else None)
    assert monitor == Monitor.from_json(monitor.to_json())


def test_the_risk_is_that_of_the_rule_s_own_loss():
    rng = np.random.default_rng(10)
    costs = np.array([[0, 0.2], [1, 0]])

    def answers(count, swapped=False):
        probs, labels = cases(count, rng, 0.1)
        p = np.stack([1 - probs, probs], -1)
        return (p[:, ::-1], labels) if swapped else (p, labels)

    rule = RejectionRule.fit(*answers(2000), loss=costs, target_risk=0.15)
    monitor = Monitor.from_json(rule.monitor().to_json())
    monitor.update(*answers(800))
    assert not monitor.alarm
    seen = monitor.fitted_to
    assert seen["loss"] / seen["labelled"] == pytest.approx(0.02, abs=0.012)  # 0.2 of a tenth
    assert monitor.update(*answers(300, swapped=True)).alarms[0] == "risk"
