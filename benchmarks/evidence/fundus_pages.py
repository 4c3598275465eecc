"""Grids, tables and sentences of `benchmarks/fundus.py`."""

import statistics

import numpy as np

from evidence import paired
from evidence.marked import ROOT, markdown

RESULTS = ROOT / "benchmarks" / "results" / "fundus.json"
ROWS = ("Dense", "VBLL", "MC dropout", "deep ensemble")
PENALTIES = 0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0
GRID = {  # eight plans a row; the ensemble takes that of Dense
    "Dense": [{"value": l2, "l2": l2} for l2 in PENALTIES],
    "MC dropout": [
        {"value": rate, "l2": l2} for rate in (0.2, 0.5) for l2 in (0.0, 1e-2, 1e-1, 3e-1)
    ],
    "VBLL": [{"value": scale, "l2": l2} for scale in (0.3, 1.0) for l2 in (0.0, 1e-2, 1e-1, 3e-1)],
}
TABLE_I = ("accuracy of sure", "sure", "ece")
OURS = ("accuracy", "nll", "augrc", "coverage", "risk", "sensitivity", "specificity")
COLUMNS = {  # title, digits, whether more is better
    "accuracy of sure": ("accuracy on accepted, > .7", 3, True),
    "sure": ("coverage, > .7", 3, True),
    "ece": ("ECE", 3, False),
    "accuracy": ("accuracy", 3, True),
    "nll": ("NLL", 3, False),
    "augrc": ("AUGRC", 4, False),
    "coverage": ("coverage of the rule", 3, True),
    "risk": ("risk of accepted", 3, None),
    "sensitivity": ("sensitivity of accepted", 3, None),
    "specificity": ("specificity of accepted", 3, None),
}
PAIRED = ("accuracy of sure", "sure", "accuracy", "nll", "augrc", "coverage")
TITLES = {"home": "at home", "test": "official test"}


def the(found):
    return found["tasks"]["retinas"]


def values_of(task, row, part, column):
    each = (run[part].get(column) for run in task["runs"][row].values())
    return [value for value in each if value is not None]


def cell(task, row, part, column):
    values = values_of(task, row, part, column)
    if not values:
        return "-"
    digits = COLUMNS[column][1]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"


def home_table(found):
    """Table I of the paper beside ours, mean ± standard deviation over seeds."""
    task = the(found)
    named = ((TITLES.get(part, part), count) for part, count in task["rows"].items())
    sizes = ", ".join(f"{part} {count}" for part, count in named)
    said = f"Images: {sizes}; seeds: {len(task['runs']['Dense'])}.\n"
    tables = (f"\n**{TITLES[part].capitalize()}**\n\n{part_table(task, part)}" for part in TITLES)
    return said + "".join(tables)


def part_table(task, part):
    body = []
    for row in filter(task["runs"].get, ROWS):
        rejected = f"{1 - statistics.fmean(values_of(task, row, part, 'sure')):.3f}"
        first, second, third = (cell(task, row, part, c) for c in TABLE_I)
        ours = (cell(task, row, part, c) for c in OURS)
        body.append([row, first, second, rejected, third, *ours])
    paper = ["paper: VBLL, DenseNet201", "0.899", "0.745", "0.255", "0.022", *["-"] * len(OURS)]
    first, second, third = (COLUMNS[c][0] for c in TABLE_I)
    titles = ["row", first, second, "rejected", third, *(COLUMNS[c][0] for c in OURS)]
    return markdown(titles, [*body, paper])


def difference_table(found):
    task, body = the(found), []
    for row in ROWS[1:]:
        known = task["differences"].get(row)
        if known:
            cells = (paired.told(known[c], *COLUMNS[c][1:]) for c in PAIRED)
            body.append([row, *cells])
    return markdown(["row less Dense", *(COLUMNS[c][0] for c in PAIRED)], body)


def verdict(found):
    """What differs from Dense, by the intervals."""
    said, known = [], the(found)["differences"]
    for column in PAIRED:
        title, _, more = COLUMNS[column]
        signs = {"better": [], "worse": []}
        for row in ROWS[1:]:
            _, low, high = known.get(row, {}).get(column, (0, 0, 0))
            if low > 0 or high < 0:
                signs["better" if (low > 0) == more else "worse"].append(row)
        better, worse = (", ".join(signs[word]) or "none" for word in ("better", "worse"))
        said.append(f"- {title}. Better than Dense: {better}. Worse: {worse}.\n")
    return "".join(said)


def away_table(found):
    """What becomes of the rule abroad."""
    task, body = the(found), []
    parts = list(next(iter(task["runs"]["Dense"].values())))
    for part in parts:
        for row in filter(task["runs"].get, ROWS):
            columns = ("accuracy", "coverage", "risk")
            cells = (cell(task, row, part, column) for column in columns)
            risks = values_of(task, row, part, "risk")
            broken = sum(risk > found["settings"]["target"] for risk in risks)
            count = f"{broken} of {len(risks)}"
            body.append([f"{TITLES.get(part, part)}: {row}", *cells, count])
    above = f"above {found['settings']['target']:g}"
    titles = ["where: row", "accuracy", "coverage of the rule", "risk of accepted", above]
    return markdown(titles, body)


def rule_abroad(found):
    """In how many runs of all rows the risk of what was accepted was above the promised."""
    task, target, said = the(found), found["settings"]["target"], []
    for part in next(iter(task["runs"]["Dense"].values())):
        each = [values_of(task, row, part, "risk") for row in filter(task["runs"].get, ROWS)]
        risks = [risk for values in each for risk in values]
        broken = sum(risk > target for risk in risks)
        where = TITLES.get(part, part)
        said.append(
            f"- {where}: risk of accepted above {target:g} in {broken} of {len(risks)} runs.\n"
        )
    return "".join(said)


def monitor_table(found):
    """After how many cases the monitor of Dense's rule says so, seed by seed together."""
    body = []
    for part, runs in the(found)["watched"].items():
        known = [run["monitor"] for run in runs.values() if "monitor" in run]
        for test in ("any", "risk", "coverage", "scores"):
            if known:
                shares = statistics.fmean(one[test]["share"] for one in known)
                cases = [one[test]["cases"] for one in known if "cases" in one[test]]
                told = "-"
                if cases:
                    middle, low, high = np.mean(cases, axis=0)
                    told = f"{middle:.0f} ({low:.0f} to {high:.0f})"
                where = TITLES.get(part, part)
                body.append([f"{where}: {test}", str(len(known)), f"{shares:.3f}", told])
    orders = found["settings"]["orders"]
    titles = ["where: test", "rules", "orders with an alarm", "cases until then (5 % to 95 %)"]
    return markdown(titles, body) + f"\n{orders} orders of the cases for each rule.\n"


def report_table(found):
    """What a shift report says, and from how many cases on the features tell."""
    body = []
    for part, runs in the(found)["watched"].items():
        values = list(runs.values())
        seen = sum(run["p"] < 0.05 for run in values)
        estimated, true = (
            statistics.fmean(run[key] for run in values) for key in ("estimated", "true")
        )
        told = []
        for size in values[0]["subsets"]:
            share = statistics.fmean(run["subsets"][size] for run in values)
            told.append(f"{size}: {share:.2f}")
        where = TITLES.get(part, part)
        body.append(
            [where, f"{seen} of {len(values)}", f"{estimated:.3f}", f"{true:.3f}", "; ".join(told)]
        )
    titles = ["where", "features differ, p < .05", "accuracy, estimated", "true"]
    return markdown([*titles, "cases: how often features differ"], body)


TABLES = {
    "home": home_table,
    "verdict": verdict,
    "differences": difference_table,
    "abroad": away_table,
    "rule": rule_abroad,
    "monitor": monitor_table,
    "report": report_table,
}
