"""The subgroup report of predicted numbers: figures against their definitions; bad input."""

import csv

import numpy as np
import pytest

from tfuq import metrics
from tfuq.predictive import RegressionUncertainty
from tfuq.selective import ConformalRegressor, RegressionRule, RejectionRule, subgroup_report

RNG = np.random.default_rng(0)
N, TOLERANCE = 400, 1.0
SCALE = RNG.uniform(0.1, 2, size=N)
MEAN = RNG.normal(size=N)
SITES = RNG.choice(["north", "south"], size=N)
OFF = np.where(SITES == "south", 3.0, 1.0)  # there the noise is larger than the network says
Y = MEAN + OFF * SCALE * RNG.normal(size=N)


def numbers(mean=MEAN, scale=SCALE, family="normal"):
    return RegressionUncertainty(np.stack([mean, scale], -1)[None], family)


FOUND = numbers()
RULE = RegressionRule("std", 0.9, level=0.8, tolerance=TOLERANCE)


def of_a_function():
    return RejectionRule.fit(FOUND, Y, loss=lambda m, y: 0 * m, tolerance=1.0, target_risk=0.3)


def test_a_function_is_known_while_the_process_runs():
    assert subgroup_report(of_a_function(), FOUND, Y, SITES).rows[0].risk == 0


def test_figures_are_those_of_each_group(tmp_path):
    report = subgroup_report(RULE, FOUND, Y, {"site": SITES}, target_risk=0.3)
    assert [row.group for row in report] == ["all", "north", "south"]
    accepted, error = RULE.accept(FOUND)[:, 0], np.abs(Y - MEAN)
    lower, upper = (end[:, 0] for end in FOUND.interval(0.8))
    for row in report:
        of = np.ones(N, bool) if row.group == "all" else row.group == SITES
        assert row.n == of.sum() and row.accepted == accepted[of].sum()
        assert row.accuracy == pytest.approx((error[of] <= TOLERANCE).mean())
        assert row.coverage == pytest.approx(accepted[of].mean())
        assert row.risk == pytest.approx((error[of & accepted] > TOLERANCE).mean())
        assert row.mean_error == pytest.approx(error[of].mean())
        inside = (lower <= Y) & (upper >= Y)
        assert row.interval_coverage == pytest.approx(inside[of].mean())
        assert row.ece == pytest.approx(metrics.quantile_calibration_error(Y[of], FOUND[of]))
    assert [row.verdict for row in report.rows[1:]] == ["holds", "fails"]
    table = report.to_markdown()
    assert "within tolerance" in table and "in interval" in table
    report.to_csv(tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert float(rows[1]["mean_error"]) == pytest.approx(report.rows[1].mean_error)


def test_rules_by_group_losses_and_several_numbers():
    options = {"tolerance": TOLERANCE, "target_risk": 0.4, "confidence": 0.8}
    rule = RejectionRule.fit(FOUND, Y, by="group", groups=SITES, **options)
    report = subgroup_report(rule, FOUND, Y, SITES)
    accepted = rule.accept(FOUND, SITES)[:, 0]
    assert [row.coverage for row in report.rows[1:]] == [
        accepted[name == SITES].mean() for name in ("north", "south")
    ]
    assert report.target_risk == 0.4

    def capped(mean, y):
        return np.minimum(np.abs(mean - y) / 4, 1)

    report = subgroup_report(None, FOUND, Y, SITES, loss=capped, tolerance=1.0, target_risk=0.3)
    assert report.rows[0].risk == pytest.approx(capped(MEAN, Y).mean())
    two = RegressionUncertainty(np.stack([MEAN, MEAN, SCALE, SCALE], -1)[None], "normal")
    report = subgroup_report(None, two, np.stack([Y, Y], -1), SITES, tolerance=1.0)
    one = subgroup_report(None, FOUND, Y, SITES, tolerance=1.0)
    for row, other in zip(report, one, strict=True):
        assert row.accuracy == other.accuracy and row.mean_error == pytest.approx(other.mean_error)
        assert row.n == other.n and row.accepted == 2 * other.accepted


def test_numbers_without_noise_have_no_intervals():
    draws = np.stack([MEAN, MEAN + 0.1])[..., None]
    found = RegressionUncertainty(draws, "point")
    report = subgroup_report(None, found, Y, SITES, tolerance=1.0)
    assert np.isnan(report.rows[0].ece) and np.isnan(report.rows[0].interval_coverage)
    assert report.rows[0].mean_error == pytest.approx(np.abs(MEAN + 0.05 - Y).mean())
    report.to_markdown()
    levels = [0.2, 0.5, 0.8]
    ends = MEAN[:, None] + SCALE[:, None] * [-1, 0, 1]
    quantiles = RegressionUncertainty(ends[None], {"name": "quantiles", "levels": levels})
    row = subgroup_report(None, quantiles, Y, SITES, tolerance=1.0).rows[0]
    inside = (ends[:, 0] <= Y) & (ends[:, 2] >= Y)
    assert row.interval_coverage == pytest.approx(inside.mean())


SPOILED = np.where(np.arange(N) == 3, np.nan, 1.0)
PROBS = RNG.dirichlet(np.ones(3), size=N)
MISTAKES = {
    "no tolerance": lambda: subgroup_report(None, FOUND, Y, SITES),
    "a tolerance below 0": lambda: subgroup_report(None, FOUND, Y, SITES, tolerance=-1),
    "a tolerance for classes": lambda: subgroup_report(
        None, PROBS, np.zeros(N, int), SITES, tolerance=1.0
    ),
    "a rule of classes": lambda: subgroup_report(
        RejectionRule("confidence", 0.5), FOUND, Y, SITES, tolerance=1.0
    ),
    "a rule of numbers for classes": lambda: subgroup_report(RULE, PROBS, np.zeros(N, int), SITES),
    "intervals as a rule": lambda: subgroup_report(
        ConformalRegressor.fit(FOUND, Y), FOUND, Y, SITES, tolerance=1.0
    ),
    "labels that are NaN": lambda: subgroup_report(RULE, FOUND, Y * SPOILED, SITES),
    "predictions that are NaN": lambda: subgroup_report(RULE, numbers(MEAN * SPOILED), Y, SITES),
    "labels of another length": lambda: subgroup_report(RULE, FOUND, Y[1:], SITES),
    "groups of another length": lambda: subgroup_report(RULE, FOUND, Y, SITES[1:]),
    "another family": lambda: subgroup_report(RULE, numbers(family="laplace"), Y, SITES),
    "logits": lambda: subgroup_report(RULE, FOUND, Y, SITES, from_logits=True),
    "bins": lambda: subgroup_report(RULE, FOUND, Y, SITES, n_bins=3),
    "a loss of classes": lambda: subgroup_report(RULE, FOUND, Y, SITES, loss="false_negative"),
    "a loss above 1": lambda: subgroup_report(RULE, FOUND, Y, SITES, loss=lambda m, y: 9 + 0 * m),
    "a loss that the rule's file does not keep": lambda: subgroup_report(
        RejectionRule.from_json(of_a_function().to_json()),
        FOUND,
        Y,
        SITES,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refuses(mistake, counts):
    with pytest.raises(ValueError, match=r"(?s)(must|is required).*Received"):
        MISTAKES[mistake]()
    counts("misuse rows, refused")
