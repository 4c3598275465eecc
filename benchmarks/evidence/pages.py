"""The tables of the pages, made from the files in `results`, between markers.

A page has `<!-- methods NAME -->` and `<!-- end -->`; what is between them is written here. The
tables of other scripts, with the script's name in the marker, are theirs.
"""

import json
import pathlib
import re
import statistics

import numpy as np

from evidence import answers, measures
from evidence.answers import SHORT, verdict
from evidence.cells import cell, complete, judged_sets, known_columns, mean_of, ordered
from evidence.images import family_of
from evidence.marked import markdown
from evidence.rows import PENALTIES, ROWS

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
RANKED = "accuracy", "nll", "augrc", "near"
PAGES = ("README.md", "benchmarks/README.md", "docs/which-method.md")


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

    known = task["differences"]
    rows = [[row, *(shown(known[row], c) for c in columns)] for row in ordered(known)]
    return f"**{name}**\n\n" + markdown(titles, rows)


def trial_table(name, task):
    most = max(trial[2] for trials in task["trials"].values() for trial in trials)

    def shown(trial):
        value, l2, stages, nll = trial
        few = {most: "", most // 3: ", a third"}.get(stages, ", two thirds")
        return f"{value:g}, L2 {l2:g}{few}: {nll:.3f}"

    rows = []
    for row in filter(task["trials"].get, ROWS):
        trials = task["trials"][row]
        best = min(trials, key=lambda trial: trial[-1])
        cells = [f"**{shown(t)}**" if t is best else shown(t) for t in trials]
        rows.append([row, *cells])
    count = max(len(row) for row in rows) - 1
    return f"**{name}**\n\n" + markdown(["row", *(f"trial {i + 1}" for i in range(count))], rows)


def grid_ends(found):
    """The rows that chose the largest penalty, or an end of the values that they are tuned by.

    Beyond it something better may lie, which nobody has tried.
    """
    ended = {}
    for name, task in found["tasks"].items():
        for row, trials in task["trials"].items():
            value, l2, _, _ = min(trials, key=lambda trial: trial[-1])
            knob, values = ROWS[row].knob, ROWS[row].values
            has_penalty = knob == "L2" or len(values) == 2
            if l2 == max(PENALTIES) if has_penalty else value in (values[0], values[-1]):
                ended.setdefault(row, []).append(name)
    said = "; ".join(f"{row} ({', '.join(names)})" for row, names in ended.items())
    return f"Chosen at an end of its grid: {said or 'none'}.\n"


def control_table(found):
    titles = ["set", "pixels: near", "far", "features: near", "far", "Dense, entropy: near", "far"]
    rows = []
    for name, task in found["tasks"].items():
        known = [task["controls"].get(kind, {}) for kind in ("near", "far")]
        cells = [f"{k[of]:.3f}" if of in k else "-" for of in ("pixels", "features") for k in known]
        dense = [mean_of(task["runs"].get("Dense", {}), kind) for kind in ("near", "far")]
        rows.append([name, *cells, *("-" if d is None else f"{d:.3f}" for d in dense)])
    return markdown(titles, rows)


def has_column(task, column):
    return mean_of(task["runs"].get("Dense", {}), column) is not None


def rank_table(found, columns=RANKED):
    """Mean ranks of the rows that all sets have, and what two of them must differ by.

    Sets with the same images are no two witnesses: they count as one family, by their mean rank.
    """
    tasks = {name: task for name, task in found["tasks"].items() if complete(task)}
    rows = [row for row in ROWS if all(row in complete(task) for task in tasks.values())]
    titles, each, notes = ["row"], [], []
    for column in columns:
        title, _, more = measures.COLUMNS[column]
        table = family_ranks(tasks, rows, column, more)
        mean, p, difference = measures.ranks(table, more_is_better=False)
        titles.append(title)
        each.append(mean)
        said = f"Friedman p = {p:.3g}, " if np.isfinite(p) else ""
        beside = far_apart(rows, mean, difference)
        notes.append(f"- {title}: {said}critical difference {difference:.1f}; {beside}.\n")
    order = np.argsort(np.mean(each, axis=0))
    body = [[rows[i], *(f"{mean[i]:.1f}" for mean in each)] for i in order]
    said = f"\n{len(tasks)} sets of {len(table)} families of images.\n\n"
    return markdown(titles, body) + said + "".join(notes)


def family_ranks(tasks, rows, column, more):
    """(families, rows): the mean rank of each row in the sets of a family; 1 is best."""
    families = {}
    for name, task in tasks.items():
        values = [mean_of(task["runs"][row], column) for row in rows]
        ranked = measures.ranked(values, more)
        families.setdefault(family_of(name), []).append(ranked)
    return np.array([np.mean(each, axis=0) for each in families.values()])


def far_apart(rows, mean, difference):
    """The pairs whose mean ranks differ by more than the critical difference."""
    pairs = [
        f"{rows[i]} before {rows[j]}"
        for i in range(len(rows))
        for j in range(len(rows))
        if mean[j] - mean[i] > difference
    ]
    return "apart: " + ", ".join(pairs) if pairs else "no two rows are apart"


def training_table(found):
    """CPU time of training alone, where answers and exports have not been measured."""
    known = judged_sets(found)
    rows = [[row, training_of(known, row)] for row in ROWS if training_of(known, row) != "-"]
    said = f"\nCPU time of all steps but the tracing, one thread, the median of {len(known)} sets."
    note = f"{said} Answers, memory and exports: not measured yet (`--costs`).\n"
    return markdown(["row", "training / Dense"], rows) + note


def cost_table(found):
    tasks = [t for t in found["tasks"].values() if t["costs"] and "Dense" in t["runs"]]
    if not tasks:
        return training_table(found)
    task = max(tasks, key=lambda task: len(task["costs"]["rows"]))
    costs, known = task["costs"], judged_sets(found)
    trunk, base = costs["trunk"]["ms"], mean_of(task["runs"]["Dense"], "seconds")
    dense = costs["rows"]["Dense"]
    titles = ["row", "training / Dense", "answer / Dense, head alone", "with the trunk"]
    titles += ["weights, MB", "export, MB", "memory of training, MB", "of answers, MB"]
    rows = []
    for row in filter(costs["rows"].get, ROWS):
        cost = costs["rows"][row]
        trained = training_of(known, row)
        with_trunk = (trunk + cost["ms"]) / (trunk + dense["ms"])
        sizes = f"{cost['weights_mb']:.2f}", f"{cost['export_mb']:.2f}"
        peaks = (cost.get("memory_mb", {}).get(kind) for kind in ("training", "answers"))
        memory = ("-" if peak is None else f"{peak:.0f}" for peak in peaks)
        answer = f"{cost['ms'] / dense['ms']:.1f}", f"{with_trunk:.2f}"
        rows.append([row, trained, *answer, *sizes, *memory])
    said = f"CPU time of one thread. Dense: {base:.2f} s of training, {dense['ms']:.4f} ms an image"
    note = f"\n{said}; the trunk, {trunk:.1f} ms an image, is the same for all."
    note += (
        f" Training: the median of {len(known)} sets; of sparse Bayes without the pass that ranks"
    )
    note += (
        " weights, of a twelfth as many batches. Memory: what a process of its own has at its most"
    )
    note += " beyond TensorFlow, to train the head, and to load the export and ask it 500 rows.\n"
    return markdown(titles, rows) + note


def training_of(tasks, row):
    """The median over sets of the CPU time of training, relative to Dense's."""
    having = [task["runs"] for task in tasks.values() if row in task["runs"]]
    each = [mean_of(r[row], "seconds") / mean_of(r["Dense"], "seconds") for r in having]
    return f"{statistics.median(each):.1f}" if each else "-"


def first_table(found):
    """A few rows of the first set, and of all, for the page that people see first."""
    name, task = next(iter(found["tasks"].items()))
    columns = known_columns(task, ("accuracy", "nll", "augrc", "coverage", "near"))
    titles = ["", *(measures.COLUMNS[column][0] for column in columns)]
    known = [row for row in SHORT if row in complete(task)]
    rows = [[row, *(cell(task, row, column) for column in columns)] for row in known]
    said = f"{name}, frozen EfficientNet-Lite0, means of {len(task['runs']['Dense'])} seeds"
    note = "+ and − where the interval of the difference with Dense leaves out 0"
    tasks = judged_sets(found)
    counted = (
        f"{measures.COLUMNS[column][0]}: {verdict(tasks, column, SHORT[1:])}"
        for column in ("accuracy", "augrc")
    )
    more = f"\nIn how many of {len(tasks)} sets these rows differ from Dense so:\n\n"
    lines = "".join(f"- {line}" for line in counted)
    return markdown(titles, rows) + f"\n{said}; {note}.\n{more}{lines}"


def each_set(table):
    return lambda found: "\n".join(
        table(name, task) for name, task in found["tasks"].items() if "Dense" in task["runs"]
    )


TABLES = {
    "sets": each_set(set_table),
    "differences": each_set(difference_table),
    "trials": each_set(trial_table),
    "grid ends": grid_ends,
    "controls": control_table,
    "ranks": rank_table,
    "costs": cost_table,
    "first": first_table,
    **answers.TABLES,
}


def told(found):
    """All tables of the sets that have been run, for the screen: what `--data` ends with."""
    titles = {"sets": "Figures", "differences": "Differences with Dense", "trials": "Trials"}
    titles |= {"controls": "Controls", "costs": "Costs"}
    parts = [f"## {title}\n\n{TABLES[name](found)}" for name, title in titles.items()]
    if len(found["tasks"]) > 1:
        columns = [c for c in RANKED if all(has_column(t, c) for t in found["tasks"].values())]
        parts.append(f"## Ranks\n\n{rank_table(found, columns)}")
    judged = judged_sets(found)
    verdicts = (
        f"- {measures.COLUMNS[column][0]}: {answers.verdict(judged, column)}"
        for column in measures.PAIRED
        if any(has_column(task, column) for task in judged.values())
    )
    return "\n".join([*parts, "## In how many sets\n\n" + "".join(verdicts)])


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
