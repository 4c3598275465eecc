"""How much does a rule accept, by method, and is what it promises true?

    python benchmarks/rules.py            # runs what is not there yet
    python benchmarks/rules.py --again    # the cells below 95 % once more, 1,000 other sets each
    python benchmarks/rules.py --report   # writes the tables of README.md
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
from evidence import marked
from scipy import stats

RESULTS = pathlib.Path(__file__).with_name("results") / "rules.json"
AGAIN = RESULTS.with_name("rules_below.json")
DELTA = 0.05
SIZES = (60, 100, 200, 500, 1000, 5000)
TARGETS = (0.02, 0.05, 0.1, 0.2, 0.3)
SETS = {5000: 400}
DEFAULT_SETS = 1000
SETS_AGAIN = 2000  # of the cells below 95 %, as cells picked for being low come back in part
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


def size_table(rows):
    titles = ["n", "cells", "auto below 95 %", "worst", "mean of auto over best"]
    titles += ["mean coverage: " + name for name in ("auto", "ltt", "sgr", "mapie")]
    titles += ["most violations: " + name for name in ("auto", "ltt", "sgr", "mapie")]
    cells = [
        line(n, [row for row in rows if row["n"] == n]) for n in sorted({r["n"] for r in rows})
    ]
    return marked.markdown(titles, cells)


def world_table(rows):
    found = []
    for world in BY_HAND:
        told = [ratio(row) for row in rows if row["world"] == world and best(row) > LEAST]
        low = sum(r < 0.95 for r in told)
        found.append(
            [world, str(len(told)), str(low), f"{min(told):.2f}"] if told else [world, "0", "0", ""]
        )
    return marked.markdown(["world", "cells", "auto below 95 %", "worst"], found)


def below_table(rows, again):
    """The cells below 95 %, the worst first, and the same with the other sets of `again`."""
    titles = ["world", "n", "target", "auto / best", "again", "auto, again", "best, again"]
    titles += ["violations of auto", "of the best"]
    others = {key(row): row for row in again}
    found = []
    for row in sorted(rows, key=ratio):
        if ratio(row) < 0.95:
            cells = [row["world"], str(row["n"]), str(row["target"]), f"{ratio(row):.2f}"]
            other = others.get(key(row))
            found.append(cells + (once_more(other) if other else ["not run"] + 4 * [""]))
    return marked.markdown(titles, found)


def once_more(row):
    methods = row["methods"]
    name = max(("ltt", "sgr", "mapie"), key=lambda name: methods[name][0])
    counts = best(row) > LEAST
    first = f"{ratio(row):.2f}" if counts else "the best accepts next to nothing"
    both = methods["auto"], methods[name]
    return [first, *(f"{m[0]:.4f}" for m in both), *(f"{m[2]:.3f}" for m in both)]


def verdict(rows, again):
    """In how many cells `auto` has 95 % of the best other, and in how many more the second time."""
    told = [row for row in rows if best(row) > LEAST]
    low = {key(row) for row in told if ratio(row) < 0.95}
    risen = [row for row in again if key(row) in low and ratio(row) >= 0.95]
    more = sum(ratio(row) > 1.05 for row in told)
    shares = {
        name: sum(row["methods"][name][0] >= 0.95 * best_of_all(row) for row in told)
        for name in ("ltt", "mapie", "sgr")
    }
    others = ", ".join(f"`{name}` in {count}" for name, count in shares.items())
    return (
        f"`auto` has 95 % of the best of the three in {len(told) - len(low)} of {len(told)} cells, "
        f"and more than 105 % in {more}. Of the {len(low)} others {len(risen)} have 95 % with the "
        f"other sets. 95 % of the best of all four: {others}.\n"
    )


def best_of_all(row):
    return max(values[0] for values in row["methods"].values())


def key(row):
    return row["n"], row["target"], row["world"]


TABLES = {  # by the name of their place in README.md
    "sizes": size_table,
    "worlds": world_table,
    "below": lambda rows: below_table(rows, read_rows(AGAIN)),
    "verdict": lambda rows: verdict(rows, read_rows(AGAIN)),
}


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


def run_cells(path, cells, sets, seed):
    rows = read_rows(path)
    done = {key(row) for row in rows}
    for cell in cells:
        if cell not in done:
            rows.append(run_cell(*cell, sets, seed))
            text = ",\n".join(json.dumps(row) for row in rows)
            path.write_text(f"[\n{text}\n]\n", encoding="utf-8")
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=RESULTS, help="what is done; default: %(default)s")
    add("--report", action="store_true", help="write the tables and run nothing")
    add("--again", action="store_true", help="only the cells below 95 %%, with other sets")
    add("--check", action="store_true", help="compare the fixed sequence with MAPIE's")
    arguments = parser.parse_args(argv)
    if arguments.check:
        return check()
    if arguments.report:
        from evidence import pages  # what MAPIE's environment has not

        return pages.write_all(read_rows(RESULTS), "rules", TABLES)
    path = arguments.json
    again = path.with_name(f"{path.stem}_below.json")
    start = time.time()
    if arguments.again:
        below = [key(row) for row in read_rows(path) if ratio(row) < 0.95]
        run_cells(again, below, SETS_AGAIN, 1)
    else:
        cells = [(n, r, w) for n in SIZES for r in TARGETS if n >= fewest(r) for w in BY_HAND]
        run_cells(path, cells, None, 0)
    rows, others = read_rows(path), read_rows(again)
    found = size_table(rows), world_table(rows), below_table(rows, others), verdict(rows, others)
    print(*found, f"{time.time() - start:.0f} seconds", sep="\n")


if __name__ == "__main__":
    main()
