"""Could any rule accept at least 95 % of the best of three in every world of `rules.py`?

    python benchmarks/rules_bound.py

An upper bound, by Neyman and Pearson, on the worst ratio that any rule could have which keeps its
promise and never accepts less because an answer is right. In a world w it accepts no more often
than in w', where an answer errs with w's probability or with the target, whichever is less. Each w'
is tested against one flat null, a little above the target, at which all that is accepted breaks the
promise. With b_w the coverage of the best of `ltt`, `sgr` and the fixed sequence, q_w the most of w
that keeps the target, L_w the likelihood ratio of w' over the flat null, any weights p_w >= 0 and
any price m >= 0, the worst ratio is at most

    (m delta + E0[(sum_w p_w q_w L_w - m)^+] + sum_w p_w (1 - q_w) delta) / sum_w p_w b_w

since more than q_w of w is accepted with a probability of at most delta. The weights are those of a
linear program on some sets, the bound is the mean over others. Below .95 no such rule could hold
it; above, nothing is shown. Scores of three and ten values, with nulls of their own, are left out.
"""

import argparse
import pathlib

import numpy as np
from rules import DELTA, LEAST, RESULTS, VALUES, best, read_rows, wrong_at
from scipy.optimize import linprog

PLACES = 4000  # of scores
SETS, OTHERS = 4000, 100_000
BLOCK = 10_000


def bound(count, target, coverages, seed=0):
    """The bound, its standard error, and the worlds with a weight, of the best's `coverages`."""
    rng, worlds = np.random.default_rng(seed), list(coverages)
    scores = (np.arange(PLACES) + 0.5) / PLACES
    wrong = np.stack([wrong_at(world, scores, target) for world in worlds])
    risks = np.cumsum(wrong[:, ::-1], axis=1) / np.arange(1, PLACES + 1)
    most = np.array([np.flatnonzero(r <= target * (1 + 1e-9))[-1] + 1 for r in risks]) / PLACES
    best_of = np.array([coverages[world] for world in worlds])
    at_null = np.full(PLACES, target)
    models = np.concatenate([at_null[None], np.minimum(wrong, target)])
    null, worlds_at = split(densities(rng, models, count, SETS))
    room = (1 - most) * DELTA
    # Of each set whether it is accepted, and the ratio: the largest for which all can be met.
    rows = np.concatenate([-most[:, None] * worlds_at, null[None]]) / SETS
    rows = np.column_stack([rows, np.append(best_of, 0)])
    limits = np.append(room, DELTA)
    found = linprog(
        np.append(np.zeros(SETS), -1), rows, limits, bounds=[(0, 1)] * SETS + [(0, None)]
    )
    weights, price = np.maximum(-found.ineqlin.marginals, 0)[:-1], -found.ineqlin.marginals[-1]
    parts = [split(densities(rng, models, count, BLOCK)) for _ in range(OTHERS // BLOCK)]
    gains = [np.maximum((weights * most) @ at - price * null, 0) for null, at in parts]
    gains = np.concatenate(gains)
    total = weights @ best_of
    upper = (price * DELTA + gains.mean() + weights @ room) / total
    error = gains.std() / np.sqrt(len(gains)) / total
    return upper, error, [w for w, p in zip(worlds, weights, strict=True) if p > 1e-9]


def split(found):
    return found[0], found[1:]


def densities(rng, models, count, sets):
    """Of sets drawn from the mean of all models, theirs over that mean, `(models, sets)`."""
    drawn = rng.integers(len(models), size=sets)
    places = rng.integers(PLACES, size=(sets, count))
    errs = rng.random((sets, count)) < models[drawn[:, None], places]
    with np.errstate(divide="ignore"):
        logs = np.log(models), np.log1p(-models)
    found = [np.where(errs, e[places], r[places]).sum(axis=1) for e, r in zip(*logs, strict=True)]
    found = np.exp(found - np.max(found, axis=0))
    return found / found.mean(axis=0)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=RESULTS, help="what `rules.py` has done")
    add("--sizes", type=int, nargs="+", default=[60, 100, 200])
    arguments = parser.parse_args(argv)
    rows = read_rows(arguments.json)
    print("| n | target | bound | standard error | worlds that bind |")
    print("| --: | --: | --: | --: | --- |")
    for count, target in sorted({(row["n"], row["target"]) for row in rows}):
        cell = {
            row["world"]: best(row) for row in rows if (row["n"], row["target"]) == (count, target)
        }
        cell = {world: value for world, value in cell.items() if value > LEAST}
        cell = {world: value for world, value in cell.items() if world not in VALUES}
        if count in arguments.sizes and cell:
            upper, error, bind = bound(count, target, cell)
            print(f"| {count} | {target} | {upper:.2f} | {error:.3f} | {', '.join(bind)} |")


if __name__ == "__main__":
    main()
