"""Answers to one question: differences with Dense over sets, and the sentences that follow.

A sentence comes from the figures alone: it counts the sets in which the interval of a difference
leaves out 0.
"""

import functools
import statistics

import numpy as np
import scipy.stats

from evidence import measures
from evidence.cells import complete, judged_sets, mark, mean_of
from evidence.images import TARGETS
from evidence.marked import markdown
from evidence.rows import ROWS

CHEAP = 3.0  # times the training of Dense: what a recommendation may cost that is not the best
SHORT = ("Dense", "temperature scaling", "VBLL", "HET full", "SNGP", "deep ensemble")
RULED = ("Dense", "VBLL", "MC dropout", "deep ensemble")  # rows of the table of the rule


def extent(found):
    """What has been run, which no page can say by hand and stay true."""
    alike = {}
    for name, task in found["tasks"].items():
        rows = complete(task)
        if rows:
            l2 = max(trial[1] for trials in task["trials"].values() for trial in trials)
            left = [row for row in ROWS if row not in rows]
            missing = f"; not run: {', '.join(left)}" if left else ""
            said = (
                f"{len(rows)} of {len(ROWS)} rows, {len(task['runs']['Dense'])} seeds, "
                f"{task['budget']} trials a row, L2 up to {l2:g}{missing}.\n"
            )
            alike.setdefault(said, []).append(name)
    count = sum(map(len, alike.values()))
    few = " What is said holds for this set, not for yours." if count == 1 else ""
    lines = (f"- {'; '.join(names)}: {said}" for said, names in alike.items())
    return f"Run so far: {count} of {len(TARGETS)} sets.{few}\n\n" + "".join(lines)


def by_column(found, column):
    """Row less Dense, set by set: a + is better, a − worse, none undecided by the interval."""
    tasks, digits = judged_sets(found), measures.COLUMNS[column][1]
    rows = []
    for row in ROWS:
        cells = []
        for task in tasks.values():
            known = task["differences"].get(row, {}).get(column)
            if known is None:
                cells.append("-")
            else:
                cells.append(f"{known[0]:+.{digits}f}{mark(task, row, column)}")
        if any(cell != "-" for cell in cells):
            rows.append([row, *cells])
    title = f"{measures.COLUMNS[column][0]}, row less Dense"
    return markdown([title, *tasks], rows) + "\n" + verdict(tasks, column)


def listed(counts, total):
    names = [f"{row} ({count} of {total[row]})" for row, count in counts.items() if count]
    return ", ".join(names) or "none"


def verdict(tasks, column, rows=ROWS, base="Dense"):
    """Which rows are better than `base`, and which are worse, in how many sets."""
    better, worse, total = {}, {}, {}
    for row in rows:
        marks = [
            mark(task, row, column)
            for task in tasks.values()
            if column in task["differences"].get(row, {})
        ]
        total[row] = len(marks)
        better[row], worse[row] = marks.count(" +"), marks.count(" −")
    return f"Better than {base}: {listed(better, total)}. Worse: {listed(worse, total)}.\n"


def counted(found, column):
    """{row: (sets where it is better than Dense, where it is worse, all, training / Dense)}."""
    tasks, known = judged_sets(found), {}
    for row in ROWS:
        having = [t for t in tasks.values() if column in t["differences"].get(row, {})]
        if having:
            marks = [mark(task, row, column) for task in having]
            costs = [
                mean_of(t["runs"][row], "seconds") / mean_of(t["runs"]["Dense"], "seconds")
                for t in having
            ]
            cost = statistics.median(costs)
            known[row] = marks.count(" +"), marks.count(" −"), len(marks), cost
    return known


def advice(found, column):
    """A recommendation: the row that is most often better than Dense, of all and of the cheap.

    Better and worse are counted against each other; of equal rows the cheaper one stands first.
    What is better in less than half of the sets is named, and not recommended.
    """
    known, said = counted(found, column), []
    kinds = (
        (np.inf, "At any cost of training"),
        (CHEAP, f"Up to {CHEAP:g} times Dense's training"),
    )
    for limit, told in kinds:
        fit = {row: v for row, v in known.items() if v[0] > v[1] and v[3] <= limit}
        if not fit:
            said.append(f"{told}: Dense; nothing is better more often than it is worse.")
            continue
        row = max(fit, key=lambda row: (fit[row][0] - fit[row][1], -fit[row][3]))
        better, worse, total, cost = fit[row]
        equal = [f"{r} ({v[3]:.1f} times)" for r, v in fit.items() if v[:2] == (better, worse)]
        equal = [name for name in equal if not name.startswith(f"{row} (")]
        as_often = f" As often: {', '.join(equal)}." if equal else ""
        first = f"**{row}**"
        if 2 * better < total:
            first = f"Dense; nothing is better in half of the sets. Most often it is {row}"
        said.append(
            f"{told}: {first}, better than Dense in {better} of {total} sets and worse in "
            f"{worse}; its training costs {cost:.1f} times Dense's.{as_often}"
        )
    return "\n".join(f"- {line}" for line in said) + "\n"


def no_help(found):
    """Column by column, the rows that are never better than Dense, or more often worse."""
    lines = []
    for column in measures.PAIRED:
        known = counted(found, column)
        never = [row for row, (better, worse, _, _) in known.items() if better == 0 == worse]
        harm = [
            f"{row} ({worse} of {total}, better in {better})"
            for row, (better, worse, total, _) in known.items()
            if worse > better
        ]
        lines.append(
            f"- {measures.COLUMNS[column][0]}: worse than Dense more often than better: "
            f"{', '.join(harm) or 'none'}. Never better nor worse: {', '.join(never) or 'none'}.\n"
        )
    return "".join(lines)


# --- Some of the sets ---------------------------------------------------------------------------


def noisy(table):
    """A table of the sets whose labels of training are those that single people gave."""

    def of_noisy(found):
        return table({"tasks": {n: t for n, t in found["tasks"].items() if "CIFAR-10N" in n}})

    return of_noisy


def rule_table(found):
    """What the rule promised, and what came of it at home and where images are others."""
    rows = []
    for name, task in judged_sets(found).items():
        cells = []
        for row in RULED:
            columns = ("coverage", "realized", "shift_accepted_wrong")
            values = (mean_of(task["runs"].get(row, {}), column) for column in columns)
            cells.append(" / ".join("-" if v is None else f"{v:.2f}" for v in values))
        rows.append([name, f"{task['target_risk']:g}", *cells])
    return markdown(["set", "promised risk", *RULED], rows)


def kept(found):
    """Set by set, in how many runs the risk of what was accepted stayed below the promise."""
    lines = []
    for name, task in judged_sets(found).items():
        runs = [run for each in task["runs"].values() for run in each.values()]
        given = [run for run in runs if run["realized"] is not None]
        target, count = task["target_risk"], task["rows"]["test"]
        held = sum(run["realized"] <= target for run in given)
        against = sum(chance_of(run, target, count) < 0.05 for run in given)
        lines.append(
            f"- {name}: risk at most the promised in {held} of {len(given)} runs, above it by more "
            f"than chance in {against}; nothing to promise in {len(runs) - len(given)}.\n"
        )
    return "".join(lines)


def chance_of(run, target, count):
    """That so many errors or more come about at a risk of `target`."""
    accepted = round(run["coverage"] * count)
    return scipy.stats.binom.sf(round(run["realized"] * accepted) - 1, accepted, target)


PARTS = {
    **{f"advice {c}": functools.partial(advice, column=c) for c in measures.PAIRED},
    **{f"by {c}": functools.partial(by_column, column=c) for c in measures.PAIRED},
}
TABLES = {
    "no help": no_help,
    "extent": extent,
    "rule": rule_table,
    "kept": kept,
    **PARTS,
    **{f"{name}, noisy": noisy(table) for name, table in PARTS.items()},
}
