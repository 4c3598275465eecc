"""The tables of the pages, made from the files in `results`, between markers.

A page has `<!-- methods NAME -->` and `<!-- end -->`; what is between them is written here. The
tables of other scripts, with the script's name in the marker, are theirs.
"""

import functools
import json
import pathlib
import re
import statistics

import numpy as np

from evidence import measures
from evidence.images import TARGETS
from evidence.marked import markdown
from evidence.rows import ROWS

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
PAGES = ("README.md", "benchmarks/README.md", "docs/which-method.md")
CHEAP = 3.0  # times the training of Dense: what a recommendation may cost that is not the best
SHORT = ("Dense", "temperature scaling", "VBLL", "HET full", "SNGP", "deep ensemble")


def compact(value, indent=0):
    """JSON with a line for each run, so that a change of one shows as one."""
    if not isinstance(value, dict) or not any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value, ensure_ascii=False)
    space = " " * (indent + 1)
    items = (
        f"{space}{json.dumps(k, ensure_ascii=False)}: {compact(v, indent + 1)}"
        for k, v in value.items()
    )
    return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"


def mean_of(runs, column):
    values = [run[column] for run in runs.values() if run.get(column) is not None]
    return statistics.fmean(values) if values else None


def mark(task, row, column):
    """+ or - where the interval of the difference with Dense has only better or only worse."""
    found = task["differences"].get(row, {}).get(column)
    return "" if found is None else sign(found, column)


def sign(difference, column):
    """+ or - of a difference with its interval, "" where that has 0 in it."""
    _, low, high = difference
    if low <= 0 <= high:
        return ""
    return " +" if (low > 0) == measures.COLUMNS[column][2] else " −"


def cell(task, row, column):
    value = mean_of(task["runs"][row], column)
    if value is None:
        return "-"
    return f"{value:.{measures.COLUMNS[column][1]}f}{mark(task, row, column)}"


def complete(task):
    """The rows of a set that have as many seeds as Dense."""
    count = len(task["runs"].get("Dense", {}))
    return [row for row in ROWS if len(task["runs"].get(row, {})) == count > 0]


def known_columns(task, columns):
    return [c for c in columns if any(c in run for run in task["runs"]["Dense"].values())]


def heading(name, task):
    sizes = ", ".join(f"{part} {count}" for part, count in task["rows"].items())
    seeds = len(task["runs"]["Dense"])
    return (
        f"**{name}** ({task['classes']} classes; rows: {sizes}; seeds: {seeds}; "
        f"trials: {task['budget']}; "
        f"the rule's target: {task['target_risk']:g})\n\n"
    )


def set_table(name, task, columns=tuple(measures.COLUMNS)):
    columns = known_columns(task, columns)
    titles = ["row", *(measures.COLUMNS[column][0] for column in columns)]
    rows = [[row, *(cell(task, row, c) for c in columns)] for row in complete(task)]
    return heading(name, task) + markdown(titles, rows)


def difference_table(name, task):
    columns = [c for c in measures.PAIRED if any(c in d for d in task["differences"].values())]
    titles = ["row less Dense", *(measures.COLUMNS[column][0] for column in columns)]

    def shown(found, column):
        mean, low, high = found[column]
        digits = measures.COLUMNS[column][1]
        return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"

    known = {row: task["differences"][row] for row in ROWS if row in task["differences"]}
    rows = [[row, *(shown(found, c) for c in columns)] for row, found in known.items()]
    return f"**{name}**\n\n" + markdown(titles, rows)


def trial_table(name, task):
    def shown(trial):
        value, l2, epochs, nll = trial
        return f"{value:g}, L2 {l2:g}, {epochs} epochs: {nll:.3f}"

    rows = []
    for row in filter(task["trials"].get, ROWS):
        trials = task["trials"][row]
        best = min(trials, key=lambda trial: trial[-1])
        cells = [f"**{shown(t)}**" if t is best else shown(t) for t in trials]
        rows.append([row, *cells])
    count = max(len(row) for row in rows) - 1
    return f"**{name}**\n\n" + markdown(["row", *(f"trial {i + 1}" for i in range(count))], rows)


def control_table(found):
    titles = ["set", "pixels: near", "far", "features: near", "far", "Dense, entropy: near", "far"]
    rows = []
    for name, task in found["tasks"].items():
        known = [task["controls"].get(kind, {}) for kind in ("near", "far")]
        cells = [f"{k[of]:.3f}" if of in k else "-" for of in ("pixels", "features") for k in known]
        dense = [mean_of(task["runs"].get("Dense", {}), kind) for kind in ("near", "far")]
        rows.append([name, *cells, *("-" if d is None else f"{d:.3f}" for d in dense)])
    return markdown(titles, rows)


def rank_table(found, columns=("nll", "augrc", "near")):
    """Mean ranks of the rows that all sets have, and what two of them must differ by."""
    tasks = list(found["tasks"].values())
    rows = [row for row in complete(tasks[0]) if all(row in complete(task) for task in tasks)]
    titles, each, notes = ["row"], [], []
    for column in columns:
        table = [[mean_of(task["runs"][row], column) for row in rows] for task in tasks]
        title, _, more = measures.COLUMNS[column]
        mean, p, difference = measures.ranks(table, more)
        titles.append(title)
        each.append(mean)
        said = f"Friedman p = {p:.3g}, " if np.isfinite(p) else ""
        notes.append(f"{title}: {said}critical difference {difference:.1f}")
    order = np.argsort(each[0])
    body = [[rows[i], *(f"{mean[i]:.1f}" for mean in each)] for i in order]
    return markdown(titles, body) + f"\nOver {len(tasks)} sets. " + "; ".join(notes) + ".\n"


def training_table(task):
    """CPU time of training alone, where answers and exports have not been measured."""
    base = mean_of(task["runs"]["Dense"], "seconds")
    rows = [[row, f"{mean_of(task['runs'][row], 'seconds') / base:.1f}"] for row in complete(task)]
    said = f"CPU time of all steps but the tracing, one thread. Dense: {base:.2f} s"
    note = f"\n{said}. Answers, memory and exports: not measured yet (`--costs`).\n"
    return markdown(["row", "training / Dense"], rows) + note


def cost_table(found):
    task = next((t for t in found["tasks"].values() if t["costs"] and "Dense" in t["runs"]), None)
    if task is None:
        return training_table(next(iter(found["tasks"].values())))
    costs, runs = task["costs"], task["runs"]
    trunk, base = costs["trunk"]["ms"], mean_of(runs["Dense"], "seconds")
    dense = costs["rows"]["Dense"]
    titles = ["row", "training / Dense", "answer / Dense, head alone", "with the trunk"]
    titles += ["weights, MB", "export, MB"]
    rows = []
    for row in filter(costs["rows"].get, ROWS):
        cost = costs["rows"][row]
        seconds = mean_of(runs[row], "seconds") if row in runs else None
        trained = "-" if seconds is None else f"{seconds / base:.1f}"
        with_trunk = (trunk + cost["ms"]) / (trunk + dense["ms"])
        sizes = f"{cost['weights_mb']:.2f}", f"{cost['export_mb']:.2f}"
        rows.append([row, trained, f"{cost['ms'] / dense['ms']:.1f}", f"{with_trunk:.2f}", *sizes])
    said = f"CPU time of one thread. Dense: {base:.2f} s of training, {dense['ms']:.4f} ms an image"
    note = f"\n{said}; the trunk, {trunk:.1f} ms an image, is the same for all.\n"
    return markdown(titles, rows) + note


def first_table(found):
    """A few rows of the first set, for the page that people see first."""
    name, task = next(iter(found["tasks"].items()))
    columns = known_columns(task, ("accuracy", "nll", "augrc", "coverage", "near"))
    titles = ["", *(measures.COLUMNS[column][0] for column in columns)]
    known = [row for row in SHORT if row in complete(task)]
    rows = [[row, *(cell(task, row, column) for column in columns)] for row in known]
    said = f"{name}, frozen EfficientNet-Lite0, means of {len(task['runs']['Dense'])} seeds"
    note = "+ and − where the interval of the difference with Dense leaves out 0"
    return markdown(titles, rows) + f"\n{said}; {note}.\n"


# --- Answers to one question: differences with Dense over all sets, and what they say -----------


def extent(found):
    """What has been run, which no page can say by hand and stay true."""
    lines = []
    for name, task in found["tasks"].items():
        rows = complete(task)
        if rows:
            l2 = max(trial[1] for trials in task["trials"].values() for trial in trials)
            left = [row for row in ROWS if row not in rows]
            missing = f"; not run: {', '.join(left)}" if left else ""
            lines.append(
                f"- {name}: {len(rows)} of {len(ROWS)} rows, {len(task['runs']['Dense'])} seeds, "
                f"{task['budget']} trials a row, L2 up to {l2:g}{missing}.\n"
            )
    few = " What is said holds for this set, not for yours." if len(lines) == 1 else ""
    return f"Run so far: {len(lines)} of {len(TARGETS)} sets.{few}\n\n" + "".join(lines)


def judged_sets(found):
    return {n: t for n, t in found["tasks"].items() if t["differences"]}


def by_column(found, column):
    """Row less Dense, set by set, with the interval: a + is better, a − worse, none undecided."""
    tasks, digits = judged_sets(found), measures.COLUMNS[column][1]
    rows = []
    for row in ROWS:
        cells = []
        for task in tasks.values():
            known = task["differences"].get(row, {}).get(column)
            if known is None:
                cells.append("-")
            else:
                mean, low, high = (f"{value:+.{digits}f}" for value in known)
                cells.append(f"{mean} [{low}, {high}]{mark(task, row, column)}")
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
        said.append(
            f"{told}: **{row}**, better than Dense in {better} of {total} sets and worse in "
            f"{worse}; its training costs {cost:.1f} times Dense's.{as_often}"
        )
    return "\n".join(f"- {line}" for line in said) + "\n"


def no_help(found):
    """The rows that are better than Dense in no column of no set."""
    tasks, rows = judged_sets(found), []
    for row in ROWS:
        marks = [mark(task, row, column) for task in tasks.values() for column in measures.PAIRED]
        known = any(row in task["differences"] for task in tasks.values())
        if known and " +" not in marks:
            rows.append(row)
    said = ", ".join(measures.COLUMNS[column][0] for column in measures.PAIRED)
    return f"Better than Dense in none of {said}, in no set: {', '.join(rows) or 'none'}.\n"


def each_set(table):
    return lambda found: "\n".join(
        table(name, task) for name, task in found["tasks"].items() if "Dense" in task["runs"]
    )


TABLES = {
    "sets": each_set(set_table),
    "differences": each_set(difference_table),
    "trials": each_set(trial_table),
    "controls": control_table,
    "ranks": rank_table,
    "costs": cost_table,
    "first": first_table,
    "no help": no_help,
    "extent": extent,
    **{f"advice {c}": functools.partial(advice, column=c) for c in measures.PAIRED},
    **{f"by {column}": functools.partial(by_column, column=column) for column in measures.PAIRED},
}


def marked(script="methods"):
    """The pattern of what stands between the markers of a script."""
    return re.compile(rf"(<!-- {script} (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written(text, found, script="methods", tables=TABLES):
    """A page with the tables of a script made anew."""
    return marked(script).sub(lambda m: m[1] + tables[m[2]](found) + m[4], text)


def write_all(found, script="methods", tables=TABLES):
    for name in PAGES:
        path = ROOT / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            path.write_text(written(text, found, script, tables), encoding="utf-8")
