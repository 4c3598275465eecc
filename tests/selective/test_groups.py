"""The subgroup report: figures against their definitions, verdicts against their promise."""

import csv
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

from tfuq import metrics
from tfuq.predictive import decompose
from tfuq.selective import ConformalPredictor, RejectionRule, subgroup_report

RNG = np.random.default_rng(0)
N = 300
PROBS = RNG.dirichlet(np.full(3, 0.5), size=N)
LABELS = np.where(RNG.random(N) < 0.7, PROBS.argmax(axis=1), RNG.integers(3, size=N))
SITES = RNG.choice(["north", "south|east", "west"], size=N, p=[0.6, 0.39, 0.01])
SITES[0] = "alone"
DEVICES = RNG.integers(9, 11, size=N)
RULE = RejectionRule("confidence", 0.6)


def wilson(rate, n, confidence):
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    ends = (rate + z**2 / (2 * n)), z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return [(ends[0] - ends[1]) / (1 + z**2 / n), (ends[0] + ends[1]) / (1 + z**2 / n)]


def test_figures_are_those_of_each_group():
    columns = {"site": SITES, "device": DEVICES}
    report = subgroup_report(RULE, PROBS, LABELS, columns, target_risk=0.2, confidence=0.9)
    names = [(row.column, row.group) for row in report]
    assert names == [
        ("all", "all"),
        *[("site", name) for name in sorted(set(SITES))],
        ("device", "9"),
        ("device", "10"),
    ]
    accepted = PROBS.max(axis=1) >= np.float32(0.6)
    for row in report:
        chosen = {
            "all": True,
            "site": row.group == SITES,
            "device": DEVICES.astype(str) == row.group,
        }
        chosen = np.broadcast_to(chosen[row.column], N)
        right = PROBS.argmax(axis=1)[chosen] == LABELS[chosen]
        kept = accepted[chosen]
        assert row.n == chosen.sum()
        assert row.accuracy == accuracy_score(LABELS[chosen], PROBS.argmax(axis=1)[chosen])
        assert row.coverage == kept.mean()
        assert row.accepted == kept.sum()
        ece = metrics.expected_calibration_error(LABELS[chosen], PROBS[chosen])
        assert row.ece == pytest.approx(ece, abs=1e-12)
        for rate, n, lower, upper in (
            (row.accuracy, row.n, row.accuracy_lower, row.accuracy_upper),
            (row.coverage, row.n, row.coverage_lower, row.coverage_upper),
            *([(row.risk, kept.sum(), row.risk_lower, row.risk_upper)] if kept.any() else []),
        ):
            assert [lower, upper] == pytest.approx(wilson(rate, n, 0.9), abs=1e-9)
        if kept.any():
            assert row.risk == pytest.approx(1 - right[kept].mean())
        else:
            assert np.isnan(row.risk)
            assert row[-4:-2] == (0, 1)


def errors_of(wrong, n):
    """Predictions and labels of n accepted examples, of which some are wrong."""
    return np.tile([[0.9, 0.1]], (n, 1)), (np.arange(n) < wrong).astype(int)


def test_verdicts_are_exact_tests_with_a_correction():
    parts = {"a": (20, 100), "b": (1, 100), "c": (14, 100), "d": (0, 5), "e": (1, 1)}
    probs, labels = (
        np.concatenate(x) for x in zip(*[errors_of(*p) for p in parts.values()], strict=True)
    )
    groups = np.repeat(list(parts), [n for _, n in parts.values()])
    fails = {k: stats.binomtest(*p, 0.1, "greater").pvalue for k, p in parts.items()}
    holds = {k: stats.binomtest(*p, 0.1, "less").pvalue for k, p in parts.items()}
    assert fails["e"] > 0.05 / 4
    assert 0.05 < fails["c"] < 0.15

    def verdicts(**options):
        report = subgroup_report(None, probs, labels, groups, target_risk=0.1, **options)
        return {row.group: row.verdict for row in report.rows[1:]}

    assert verdicts() == {
        "a": "fails",
        "b": "holds",
        "c": "not shown",
        "d": "not shown",
        "e": "not shown",
    }
    assert verdicts(correction=None, confidence=0.85)["c"] == "fails"
    # Holm's second test is at 0.2 / 4, Bonferroni's at 0.2 / 5.
    level = 1 - 4.5 * sorted(fails.values())[1]
    second = sorted(fails, key=fails.get)[1]
    assert verdicts(confidence=level)[second] == "fails"
    assert verdicts(confidence=level, correction="bonferroni")[second] == "not shown"
    assert holds["b"] < 0.01


@pytest.mark.slow
def test_groups_within_the_target_are_seldom_said_to_fail():
    """20 groups at the target risk itself: any of them fails in at most 5 % of reports."""
    rng, n, runs = np.random.default_rng(0), 20 * 30, 60
    probs, groups = np.tile([0.9, 0.1], (n, 1)), np.repeat(np.arange(20), 30)
    flagged = {"holm": 0, None: 0}
    for _ in range(runs):
        labels = rng.random(n) < 0.2
        for correction in flagged:
            report = subgroup_report(
                None, probs, labels, groups, target_risk=0.2, correction=correction, n_bins=1
            )
            flagged[correction] += any(row.fails for row in report.rows[1:])
    limit = stats.binom.ppf(1 - 1e-6, runs, 0.05)  # a correct one passes it 1 time in 1e6
    assert flagged["holm"] <= limit < flagged[None]


def test_pixels_and_labels_are_judged_by_their_images():
    rng = np.random.default_rng(0)
    probs = rng.uniform(0.5, 1, (200, 3, 4))
    labels = rng.random((200, 3, 4)) < np.where(np.arange(200) < 100, 0.99, 0.6)[:, None, None]
    groups = np.repeat(["good", "bad"], 100)
    for given, flags in (
        ((probs[..., None], labels), {}),
        ((probs, labels), {"multi_label": True}),
    ):
        report = subgroup_report(None, *given, groups, target_risk=0.2, **flags)
        found = {row.group: row for row in report}
        assert found["good"].verdict == "holds"
        assert found["bad"].verdict == "fails"
        assert found["bad"].n == 100
        assert found["bad"].accuracy == labels[100:].mean()
        assert found["bad"].accuracy_lower == pytest.approx(
            wilson(labels[100:].mean(), 100, 0.95)[0]
        )
    # Of 3 images there is no saying, though they have thousands of pixels.
    wide = np.tile(probs[:3, :1, :1], (1, 60, 60))
    report = subgroup_report(None, wide[..., None], wide < 0, list("aab"), target_risk=0.6)
    assert {row.verdict for row in report} == {"not shown"}


def test_rules_of_all_kinds_say_what_they_accept():
    fitted = RejectionRule.fit(PROBS, LABELS, target_risk=0.45)
    report = subgroup_report(fitted, PROBS, LABELS, SITES)
    assert report.target_risk == 0.45
    assert report.rows[0].coverage == fitted.fitted_to["coverage"]
    assert [row.group for row in report.failing] == [row.group for row in report if row.fails]

    sets = ConformalPredictor.fit(PROBS, LABELS)
    row = subgroup_report(sets, PROBS, LABELS, SITES).rows[0]
    assert row.coverage == sets.evaluate(PROBS, LABELS).singletons
    assert row.verdict == "no target"

    by_site = RejectionRule("confidence", [0.5, 0.7], by="group", keys=["north", "west"])
    report = subgroup_report(by_site, PROBS, LABELS, SITES, target_risk=0.2)
    found = {row.group: row for row in report}
    assert found["south|east"].verdict == "nothing accepted"
    assert found["north"].coverage == np.mean(PROBS.max(1)[SITES == "north"] >= 0.5)
    by_device = subgroup_report(by_site, PROBS, LABELS, DEVICES, rule_groups=SITES)
    assert by_device.rows[0].coverage == report.rows[0].coverage

    stack = np.stack([PROBS, PROBS])
    again = subgroup_report(RULE, stack, np.eye(3)[LABELS], SITES, target_risk=0.2)
    np.testing.assert_equal(
        list(again), list(subgroup_report(RULE, PROBS, LABELS, SITES, target_risk=0.2))
    )


def test_losses_are_those_of_the_rule():
    missed = (PROBS.argmax(1) != 2)[LABELS == 2]
    rule = RejectionRule(
        "confidence", 0.0, fitted_to={"loss": "false_negative", "positive_class": 2}
    )
    for row in (
        subgroup_report(rule, PROBS, LABELS, SITES).rows[0],
        subgroup_report(None, PROBS, LABELS, SITES, loss="false_negative", positive_class=2).rows[
            0
        ],
    ):
        assert (row.accepted, row.risk) == (len(missed), missed.mean())

    def half(probs, labels):
        return (probs.argmax(-1) != labels) / 2

    row = subgroup_report(None, PROBS, LABELS, SITES, loss=half, target_risk=0.5).rows[0]
    assert row.risk == (PROBS.argmax(1) != LABELS).mean() / 2
    assert row.verdict == "holds"
    options = {"target_coverage": 0.5, "by": "group", "groups": SITES}
    halves = (1 - np.eye(PROBS.shape[1])) / 2
    for loss in (half, halves):
        ruled = RejectionRule.fit(PROBS, LABELS, loss=loss, **options)
        row = subgroup_report(ruled, PROBS, LABELS, SITES).rows[0]
        assert row == subgroup_report(ruled, PROBS, LABELS, SITES, loss=half).rows[0]
    ruled = RejectionRule.fit(PROBS, LABELS, loss=half, target_risk=0.5)
    costs = RejectionRule.fit(PROBS, LABELS, loss=halves, target_risk=0.5)
    for own, other in ((half, lambda probs, labels: 1.0 * (labels > 0)), (halves, 2 * halves)):
        made = ruled if own is half else costs
        targets = [
            subgroup_report(made, PROBS, LABELS, SITES, loss=loss).target_risk
            for loss in (None, own, other)
        ]
        assert targets == [0.5, 0.5, None]  # what was promised is of no other loss
    rule.fitted_to["loss"] = "half"
    with pytest.raises(ValueError, match="Argument `loss` must"):
        subgroup_report(rule, PROBS, LABELS, SITES)


def test_reports_are_written(tmp_path):
    report = subgroup_report(
        RULE, PROBS, LABELS, {"site": SITES, "id": [None] * N}, target_risk=0.2
    )
    lines = report.to_markdown().splitlines()
    assert len(lines) == 2 + len(report) + 2
    cells = [line.replace("\\|", "").count("|") for line in lines[: 2 + len(report)]]
    assert set(cells) == {8}
    assert lines[2].startswith("| all | 300 |")
    assert "site: south\\|east" in lines[5] + lines[4]
    assert lines[-1] == "Target risk 0.2, confidence 0.95, Holm's correction for 5 groups."
    report.to_csv(tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == [row.group for row in report]
    assert float(rows[0]["ece"]) == report.rows[0].ece
    assert rows[-1]["group"] == "None"


@pytest.mark.parametrize(
    "argument, options",
    [
        ("rule", {"rule": 0.7}),
        ("rule", {"rule": type("Rule", (), {"accept": lambda self, probs: [True]})()}),
        ("groups", {"groups": SITES[:-1]}),
        ("groups", {"groups": np.stack([SITES, SITES], 1)}),
        ("groups", {"groups": {}}),
        ("groups", {"groups": "north"}),
        ("target_risk", {"target_risk": 0}),
        ("target_risk", {"target_risk": 2}),
        ("confidence", {"confidence": 1}),
        ("correction", {"correction": "none"}),
        ("n_bins", {"n_bins": 0}),
        ("loss", {"loss": "brier"}),
        ("positive_class", {"loss": "false_negative", "positive_class": 7}),
        ("labels", {"labels": LABELS[1:]}),
        ("labels", {"labels": LABELS + 1}),
        ("probs", {"probs": PROBS * np.nan}),
        (
            "rule_groups",
            {
                "rule": RejectionRule("confidence", [0.5], by="group", keys=["north"]),
                "groups": {"a": SITES, "b": SITES},
            },
        ),
    ],
)
def test_bad_input_is_refused(argument, options):
    given = {"rule": RULE, "probs": PROBS, "labels": LABELS, "groups": SITES} | options
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        subgroup_report(**given)


@pytest.mark.parametrize("void", [None, 2])
def test_what_predict_uncertainty_gives_is_read_as_its_probabilities(void):
    rng = np.random.default_rng(0)
    stack = rng.dirichlet(np.ones(3), size=(4, 60))
    labels, sites = rng.integers(3, size=60), np.where(np.arange(60) % 2, "a", "b")
    found, rule = decompose(stack), RejectionRule("confidence", 0.5)
    for each in (rule, None):
        expected = subgroup_report(each, found.probs, labels, sites, ignore_class=void)
        assert subgroup_report(each, found, labels, sites, ignore_class=void) == expected
