"""How often does a monitor cry wolf, and how soon does it see that a risk has doubled?

    python benchmarks/monitor.py --json monitor.json

Ten thousand streams of 100,000 cases whose risk is the promised one, whose coverage is that of the
fit and whose scores are exchangeable: the share that any test of `tfuq.selective.Monitor` ever
stops with an alarm, at alpha = 5 %. Then streams whose risk doubles after some labelled cases:
labelled cases from then to the alarm, median and nine tenths. And streams whose scores are normal
and move by some of their deviations after some cases: cases without labels from then to the alarm,
of the test as it is and of one that begins once, as it was first.

And what no test could do. Cut the stream into windows of as many cases as the median delay may be.
A test whose median delay holds wherever the risk doubles, given no alarm before, stops in each
window with a probability of at least .5 x (1 - alpha) if the risk doubles at its start, which is
then the only news. By Neyman and Pearson, it stops there under the promised risk with at least the
level of the best test of one window that has this power. The windows are disjoint, so these levels
add up to a bound below the share of streams that alarm. Above alpha, no test has both.
"""

import argparse
import itertools
import json
import pathlib
import time

import numpy as np
from scipy.stats import binom

from tfuq.selective._monitor_state import BINS
from tfuq.selective.bets import MOST, Bets, Jumps
from tfuq.selective.monitor import SHARES, TO_BIN

ALPHA = 0.05
RISKS = (0.05, 0.1, 0.2)
BEFORE = (0, 1000, 10_000)
MOVES = (0.25, 0.5, 1.0)  # of scores, in deviations
QUIET = (1000, 10_000, 50_000)
DELAY = 300  # the median that is asked for


def false_alarms(streams, cases, risk=0.1, coverage=0.6, seed=0):
    """Shares of the streams that each test, and any test, stops.

    Every case is accepted and has its label, so that the risk's test sees most. A binned score has
    a conformal p-value that is uniform and independent of those before, whatever the bins.
    """
    rng = np.random.default_rng(seed)
    bets = {"risk": Bets(risk), "more": Bets(coverage), "less": Bets(1 - coverage)}
    most, jumps = dict.fromkeys(SHARES, 1.0), Jumps()
    for _ in range(cases):
        accepted = rng.random(streams) < coverage
        bets["risk"].take(rng.random(streams) < risk)
        bets["more"].take(accepted)
        bets["less"].take(~accepted)
        jumps.take(rng.random(streams))
        wealth = {"risk": bets["risk"].wealth, "scores": jumps.wealth}
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
    return quantiles(found)


def quantiles(found):
    """Of delays from the change on; those of streams that nothing stopped are infinite."""
    later = np.sort(np.where(np.isnan(found), np.inf, found)[~(found <= 0)])
    return {"median": float(np.median(later)), "nine tenths": float(later[int(0.9 * len(later))])}


class OneGame:
    """The test of the scores as it was first: a single game, with a slope of 0 among others."""

    def __init__(self):
        self.slopes, self.sums = np.array([-1.6, 0.0, 1.6]), np.full(3, 1 / 3)

    def take(self, p_value):
        self.sums = 0.99 * self.sums + 0.01 * np.mean(self.sums, axis=-1, keepdims=True)
        factors = 1 + self.slopes * (p_value[:, None] - 0.5)
        self.sums = np.minimum(self.sums * factors, MOST)

    @property
    def wealth(self):
        return self.sums.sum(axis=-1)


def binned_p_values(streams, move, before, rng):
    """Conformal p-values of scores in bins, case after case, as a monitor has them."""
    quantiles_of_first = np.quantile(
        rng.normal(size=(TO_BIN, streams)), np.arange(1, BINS) / BINS, 0
    )
    bins, every = np.zeros((streams, BINS)), np.arange(streams)
    for case in itertools.count():
        scores = rng.normal(size=streams) + (move if case >= before else 0)
        place = np.sum(scores >= quantiles_of_first, axis=0)
        bins[every, place] += 1
        higher = case + 1 - np.cumsum(bins, axis=1)[every, place]
        yield (higher + rng.random(streams) * bins[every, place]) / (case + 1)


def delays_of_scores(streams, move, before, seed=0, most=5000):
    """Cases from the move of the scores to the alarm of each stream, of both tests."""
    games = {"": Jumps(), ", begun once": OneGame()}
    found = {name: np.full(streams, np.nan) for name in games}
    for case, p_value in enumerate(
        binned_p_values(streams, move, before, np.random.default_rng(seed))
    ):
        for name, game in games.items():
            game.take(p_value)
            is_new = np.isnan(found[name]) & (game.wealth >= 1 / (SHARES["scores"] * ALPHA))
            found[name][is_new] = case + 1 - before
        if case + 1 == before + most:
            break
    return {k + name: v for name, each in found.items() for k, v in quantiles(each).items()}


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
    parser.add_argument("--moved", type=int, default=1000, help="streams whose scores move (1000)")
    arguments = parser.parse_args(argv)
    start, rows = time.time(), []
    for risk in RISKS:
        for before in BEFORE:
            rows.append({"risk": risk, "before": before, **delays(1000, risk, before)})
            print(rows[-1], flush=True)
    moves = []
    for move in MOVES:
        for before in QUIET:
            found = delays_of_scores(arguments.moved, move, before)
            moves.append({"move": move, "before": before, **found})
            print(moves[-1], flush=True)
    streams = {"streams": arguments.streams, "cases": arguments.cases}
    alarms = {**streams, **false_alarms(arguments.streams, arguments.cases)}
    print(alarms, f"{time.time() - start:.0f} seconds")
    bounds = [{"risk": r, "alarms": least_false_alarms(r, arguments.cases)} for r in RISKS]
    print(bounds)
    result = {
        "false alarms": alarms,
        "delays": rows,
        "delays of scores": moves,
        f"least at a delay of {DELAY}": bounds,
    }
    text = json.dumps(result, indent=1).replace("Infinity", "null")  # never
    arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
