"""How often does a monitor cry wolf, and how soon does it see that a risk has doubled?

    python benchmarks/monitor.py --json monitor.json

Ten thousand streams of 100,000 cases whose risk is the promised one, whose coverage is that of the
fit and whose scores are exchangeable: the share that any test of `tfuq.selective.Monitor` ever
stops with an alarm, at alpha = 5 %. Then streams whose risk doubles after some labelled cases:
labelled cases from then to the alarm, median and nine tenths.

And what no test could do. Cut the stream into windows of as many cases as the median delay may be.
A test whose median delay holds wherever the risk doubles, given no alarm before, stops in each
window with a probability of at least .5 x (1 - alpha) if the risk doubles at its start, which is
then the only news. By Neyman and Pearson, it stops there under the promised risk with at least the
level of the best test of one window that has this power. The windows are disjoint, so these levels
add up to a bound below the share of streams that alarm. Above alpha, no test has both.
"""

import argparse
import json
import pathlib
import time

import numpy as np
from scipy.stats import binom

from tfuq.selective.bets import SLOPES, Bets, jumped
from tfuq.selective.monitor import SHARES

ALPHA = 0.05
RISKS = (0.05, 0.1, 0.2)
BEFORE = (0, 1000, 10_000)
DELAY = 300  # the median that is asked for


def false_alarms(streams, cases, risk=0.1, coverage=0.6, seed=0):
    """Shares of the streams that each test, and any test, stops.

    Every case is accepted and has its label, so that the risk's test sees most. A binned score has
    a conformal p-value that is uniform and independent of those before, whatever the bins.
    """
    rng = np.random.default_rng(seed)
    bets = {"risk": Bets(risk), "more": Bets(coverage), "less": Bets(1 - coverage)}
    most, scores = dict.fromkeys(SHARES, 1.0), np.full((streams, len(SLOPES)), 1 / len(SLOPES))
    for _ in range(cases):
        accepted = rng.random(streams) < coverage
        bets["risk"].take(rng.random(streams) < risk)
        bets["more"].take(accepted)
        bets["less"].take(~accepted)
        scores = jumped(scores, rng.random(streams))
        wealth = {"risk": bets["risk"].wealth, "scores": scores.sum(axis=-1)}
        wealth["coverage"] = (bets["more"].wealth + bets["less"].wealth) / 2
        most = {name: np.maximum(most[name], wealth[name]) for name in SHARES}
    stopped = {name: most[name] >= 1 / (share * ALPHA) for name, share in SHARES.items()}
    stopped["any"] = np.any(list(stopped.values()), axis=0)
    return {name: float(np.mean(stop)) for name, stop in stopped.items()}


def delays(streams, risk, before, seed=0, most=5000):
    """Labelled cases from the doubling to the alarm of each stream; infinite if it comes first."""
    rng = np.random.default_rng(seed)
    bets, found = Bets(risk), np.full(streams, np.nan)
    for case in range(before + most):
        bets.take(rng.random(streams) < (risk if case < before else 2 * risk))
        is_new = np.isnan(found) & (bets.wealth >= 1 / (SHARES["risk"] * ALPHA))
        found[is_new] = case + 1 - before
        if case >= before and not np.isnan(found).any():
            break
    later = np.sort(np.where(np.isnan(found), np.inf, found)[~(found <= 0)])
    return {"median": float(np.median(later)), "nine tenths": float(later[int(0.9 * len(later))])}


def least_level(power, cases, risk, doubled):
    """Level of the most powerful test of `risk` against `doubled` that has the power, randomized.

    The likelihood ratio grows with the errors: it rejects for the most of them first.
    """
    errors = np.arange(cases, -1, -1)
    powers = np.cumsum(binom.pmf(errors, cases, doubled))
    last = np.searchsorted(powers, power)
    rest = (power - powers[last]) / binom.pmf(errors[last], cases, doubled)
    level = binom.sf(errors[last] - 1, cases, risk)
    return float(level + rest * binom.pmf(errors[last], cases, risk))


def least_false_alarms(risk, cases, delay=DELAY, alpha=ALPHA):
    """Below the share of streams of `cases` that any test with this median delay stops."""
    return cases // delay * least_level((1 - alpha) / 2, delay, risk, 2 * risk)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, default="monitor.json")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--cases", type=int, default=100_000)
    arguments = parser.parse_args(argv)
    start, rows = time.time(), []
    for risk in RISKS:
        for before in BEFORE:
            rows.append({"risk": risk, "before": before, **delays(1000, risk, before)})
            print(rows[-1], flush=True)
    streams = {"streams": arguments.streams, "cases": arguments.cases}
    alarms = {**streams, **false_alarms(arguments.streams, arguments.cases)}
    print(alarms, f"{time.time() - start:.0f} seconds")
    bounds = [{"risk": r, "alarms": least_false_alarms(r, arguments.cases)} for r in RISKS]
    print(bounds)
    found = {"false alarms": alarms, "delays": rows, f"least at a delay of {DELAY}": bounds}
    text = json.dumps(found, indent=1)
    arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
