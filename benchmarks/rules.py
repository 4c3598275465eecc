"""How much does a rule accept, by method, and is what it promises true?

    python benchmarks/rules.py --json rules.json            # runs what is not there yet
    python benchmarks/rules.py --json rules.json --report   # the tables, in markdown
    python benchmarks/rules.py --json more.json --sets 1000 --seed 1 --below rules.json
    .venv-mapie/bin/python benchmarks/rules.py --check      # fixed sequence as MAPIE 1.6 has it

Twelve worlds, seven of them made against one method or another, whose risk by score is known:
scores are uniform or tied at three or ten values, and an example is wrong with a probability that
depends on its score and, so that no cell is idle, on the target r. In each cell (examples, target,
world) sets of examples are drawn; each method finds a threshold with a confidence of 95 % or
refuses. Coverage is a mean over the sets, 0 where it refuses, of all that can be drawn; a
violation is a threshold whose true risk is above the target.

MAPIE's fixed sequence has one chain of thresholds fixed beforehand, here its default hundred
(0.99, 0.98, ..., 0), used well: from the first that accepts as many as could pass at all.
"""

import argparse
import json
import pathlib
import time

import numpy as np
from scipy import stats

DELTA = 0.05
SIZES = (60, 100, 200, 500, 1000, 5000)
TARGETS = (0.02, 0.05, 0.1, 0.2, 0.3)
SETS = {5000: 100}
DEFAULT_SETS = 300
LEAST = 0.005  # coverage of the best method under which a cell is left out of ratios
BY_HAND = {  # score, target: probability of an error; the last seven against one method or another
    "good": lambda u, r: 0.6 * (1 - u) ** 1.5,
    "sharp": lambda u, r: np.where(u < 0.3, 0.5, 0.3 * r),
    "slope": lambda u, r: 4 * r * (1 - u),
    "easy": lambda u, r: 0.6 * r * (1 - u),
    "steep": lambda u, r: 8 * r * (1 - u) ** 2,
    "flat": lambda u, r: 0.7 * r + 0 * u,
    "rising": lambda u, r: r * (0.3 + 0.9 * u),
    "waves": lambda u, r: np.where(np.floor(8 * u) % 2, 1.7 * r, 0.3 * r),
    "barely": lambda u, r: np.where(u > 0.5, 0.6 * r, np.where(u > 0.47, 6 * r, 0.9 * r)),
    "head": lambda u, r: np.where(u > 0.9, 6 * r, np.where(u > 0.19, 0.02 * r, 3 * r)),
    "three": lambda u, r: np.where(u > 0.66, 0.6 * r, np.where(u > 0.33, 0.9 * r, 5 * r)),
    "ten": lambda u, r: np.where(u > 0.89, 3 * r, np.where(u > 0.25, 0.3 * r, 4 * r)),
}
VALUES = {"three": 3, "ten": 10}  # of tied scores
CELLS = 100_000  # of the integral of the risk


def fewest(risk):
    return int(np.ceil(np.log(DELTA) / np.log1p(-risk) - 1e-9))


def wrong_at(world, scores, target):
    return np.minimum(BY_HAND[world](scores, target), 1.0)


def true_risk(world, target):
    """A function of thresholds."""
    cells = VALUES.get(world, CELLS)
    scores = (np.arange(cells)[::-1] + (0 if world in VALUES else 0.5)) / cells
    risks = np.cumsum(wrong_at(world, scores, target)) / np.arange(1, cells + 1)
    return lambda threshold: risks[max(round((1 - threshold) * cells), 1) - 1]


def draw(rng, world, count, target):
    """Scores of the levels, from the most trusted, and how many and how many wrong down to each."""
    scores = rng.random(count)
    if world in VALUES:
        scores = np.floor(scores * VALUES[world]) / VALUES[world]
    wrong = rng.random(count) < wrong_at(world, scores, target)
    values, level = np.unique(-scores, return_inverse=True)
    return -values, np.bincount(level).cumsum(), np.bincount(level, wrong).cumsum()


def fixed_sequence(values, accepted, errors, risk):
    """The level of the last threshold that passes, or None."""
    levels = np.searchsorted(-values, -np.linspace(0.99, 0, 100) + 1e-9, side="right") - 1
    levels = levels[levels >= 0]
    levels = levels[accepted[levels] >= fewest(risk)]
    failed = stats.binom.cdf(errors[levels], accepted[levels], risk) > DELTA
    passed = levels[: failed.argmax()] if failed.any() else levels
    return passed[-1] if len(passed) else None


def run_cell(count, target, world, sets=None, seed=0):
    from tfuq.selective._guarantees import METHODS, Sums

    entropy = [count, round(1000 * target), list(BY_HAND).index(world)]
    rng = np.random.default_rng(entropy + [seed] * (seed > 0))
    risk_of, sets = true_risk(world, target), sets or SETS.get(count, DEFAULT_SETS)
    found = {name: [0.0, 0, 0] for name in (*METHODS, "mapie")}
    for _ in range(sets):
        values, accepted, errors = draw(rng, world, count, target)
        for name, sums in found.items():
            if name == "mapie":
                level = fixed_sequence(values, accepted, errors, target)
            else:
                level = METHODS[name](Sums(accepted, errors, True), target, DELTA)
            if level is not None:
                sums[0] += 1 - values[level]
                sums[1] += 1
                sums[2] += bool(risk_of(values[level]) > target * (1 + 1e-9))
    rows = {name: [round(value / sets, 5) for value in sums] for name, sums in found.items()}
    return {"n": count, "target": target, "world": world, "sets": sets, "methods": rows}


def check(sets=300):
    """Whether `fixed_sequence` is what MAPIE finds; runs in an environment that has it."""
    from mapie.risk_control.fwer_control import control_fwer
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value

    rng, found = np.random.default_rng(0), 0
    for _ in range(sets):
        world, target = rng.choice(list(BY_HAND)), float(rng.choice(TARGETS[1:]))
        values, accepted, errors = draw(rng, world, 500, target)
        levels = np.searchsorted(-values, -np.linspace(0.99, 0, 100) + 1e-9, side="right") - 1
        levels = levels[levels >= 0]
        levels = levels[accepted[levels] >= fewest(target)]
        # A little less than errors / accepted: MAPIE's ceil(n risk) is one more by rounding.
        risks = np.maximum(errors[levels] - 1e-9, 0) / accepted[levels]
        p_values = compute_hoeffding_bentkus_p_value(risks, accepted[levels], target, binary=True)
        passed = control_fwer(p_values[:, 0], DELTA, "fixed_sequence")
        expected = levels[passed[-1]] if len(passed) else None
        if fixed_sequence(values, accepted, errors, target) != expected:
            raise SystemExit(f"MAPIE finds level {expected} in {world} at {target}")
        found += expected is not None
    print(f"{sets} sets: as MAPIE, which finds a threshold in {found}")


def report(path):
    rows = read_rows(path)
    print(f"{len(rows)} cells, {len({row['world'] for row in rows})} worlds\n")
    titles = ["n", "cells", "auto below 95 %", "worst", "mean of auto over best"]
    titles += ["mean coverage: " + name for name in ("auto", "ltt", "sgr", "mapie")]
    titles += ["most violations: " + name for name in ("auto", "ltt", "sgr", "mapie")]
    print(f"| {' | '.join(titles)} |\n|{' --: |' * len(titles)}")
    for count in sorted({row["n"] for row in rows}):
        print(f"| {' | '.join(line(count, [row for row in rows if row['n'] == count]))} |")
    print("\ncells below 95 %, the worst first\n\n| auto / best | n | target | world | coverages |")
    print("| --: | --: | --: | --- | --- |")
    for row in sorted(rows, key=ratio):
        if ratio(row) < 0.95:
            cells = ", ".join(f"{k} {v[0]:.3f}" for k, v in row["methods"].items())
            print(f"| {ratio(row):.2f} | {row['n']} | {row['target']} | {row['world']} | {cells} |")


def line(count, rows):
    names = ("auto", "ltt", "sgr", "mapie")
    told = [row for row in rows if best(row) > LEAST]
    ratios = [ratio(row) for row in told]
    cells = [str(count), str(len(told)), str(sum(r < 0.95 for r in ratios)), f"{min(ratios):.2f}"]
    cells.append(f"{np.mean(np.minimum(ratios, 1)):.3f}")
    cells += [f"{np.mean([row['methods'][name][0] for row in rows]):.3f}" for name in names]
    return cells + [f"{max(row['methods'][name][2] for row in rows):.3f}" for name in names]


def best(row):
    return max(row["methods"][name][0] for name in ("ltt", "sgr", "mapie"))


def ratio(row):
    """Coverage of `auto` over that of the best other; 1 where that accepts next to nothing."""
    return row["methods"]["auto"][0] / best(row) if best(row) > LEAST else 1.0


def read_rows(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default="rules.json", help="what is done")
    add("--report", action="store_true", help="print the tables of the file and run nothing")
    add("--sets", type=int, help="in each cell, in place of 300, or 100 of n = 5,000")
    add("--seed", type=int, default=0, help="of other sets than those of the file")
    add("--below", type=pathlib.Path, help="only the cells in which this file has less than 95 %%")
    add("--check", action="store_true", help="compare the fixed sequence with MAPIE's")
    arguments = parser.parse_args(argv)
    if arguments.check:
        return check()
    if not arguments.report:
        rows = read_rows(arguments.json)
        done = {(row["n"], row["target"], row["world"]) for row in rows}
        cells = [(n, r, w) for n in SIZES for r in TARGETS if n >= fewest(r) for w in BY_HAND]
        if arguments.below:
            below = [row for row in read_rows(arguments.below) if ratio(row) < 0.95]
            cells = [(row["n"], row["target"], row["world"]) for row in below]
        start = time.time()
        for cell in cells:
            if cell not in done:
                rows.append(run_cell(*cell, arguments.sets, arguments.seed))
                text = ",\n".join(json.dumps(row) for row in rows)
                arguments.json.write_text(f"[\n{text}\n]\n", encoding="utf-8")
        print(f"{time.time() - start:.0f} seconds")
    return report(arguments.json)


if __name__ == "__main__":
    main()
