"""Tables and sentences of `benchmarks/noisy_labels.py`."""

import statistics

import numpy as np
import scipy.stats

from evidence import measures, multilabel, paired
from evidence.marked import ROOT, markdown

RESULTS = ROOT / "benchmarks" / "results" / "noisy_labels.json"
ROWS = ("Dense", "diagonal", "1 factor", "3 factors", "full", "efficient")
COLUMNS = {
    "classes": {
        "accuracy": measures.COLUMNS["accuracy"],
        "top5": ("top-5", 4, True),
        "nll": measures.COLUMNS["nll"],
        "ece": measures.COLUMNS["ece"],
        "augrc": measures.COLUMNS["augrc"],
    },
    "labels": {**multilabel.COLUMNS, "ece": measures.COLUMNS["ece"]},
}
CURVED = {"classes": ("accuracy", "nll", "augrc"), "labels": ("gap", "nll", "augrc")}
JUDGED = {
    "classes": ("accuracy", "top5", "nll", "augrc"),
    "labels": ("gap", "accuracy", "nll", "augrc"),
}
SAME, ONE = "Dense at the same temperature", "itself at temperature 1"
OTHERS = {  # of a row and its temperature: the runs that it is compared with
    SAME: lambda row, temperature: f"Dense, {temperature:g}",
    ONE: lambda row, temperature: f"{row}, 1",
}
TOLD = {"accuracy": "accuracy", "gap": "gAP", "nll": "NLL", "augrc": "AUGRC"}
SETS = (
    "CIFAR-10N worst", "Mosaics of CIFAR-10N worst", "CIFAR-10N aggregate", "IDRiD, six labels"
)  # fmt: skip
BASES = ("Dense", "diagonal", SAME, ONE)


def summary(runs, trial):
    """Mean and standard deviation over seeds of what is drawn over the temperature."""
    found = {"l2": trial[1], "held out": trial[-1]}
    for column in ("accuracy", "gap", "nll", "augrc"):
        values = [run[column] for run in runs if column in run]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found[column] = [round(statistics.fmean(values), 5), round(spread, 5)]
    return found


def examples_of(ranks, names, top=8):
    """Of table 5: examples of rank 1, those of the largest covariance first."""
    first = np.flatnonzero(ranks.rank == 1)
    first = first[np.argsort(-np.abs(ranks.covariance[first]), kind="stable")][:top]
    return [
        [int(ranks.index[i]), names[ranks.label[i]], names[ranks.other[i]],
         round(float(ranks.covariance[i]), 3)]
        for i in first
    ]  # fmt: skip


def over_seeds(each):
    """Pairs and examples of the first seed, histograms of all, agreement of each."""
    found = {"pairs": each[0]["pairs"], "confusion": [one["confusion"] for one in each]}
    if "histogram" in each[0]:
        found["examples"] = each[0]["examples"]
        found["histograms"] = [one["histogram"] for one in each]
    return found


# --- Tables -------------------------------------------------------------------------------------


def chosen(task, row):
    return min(task["trials"][row], key=lambda trial: trial[-1])


def set_table(name, task):
    columns = COLUMNS[task["kind"]]
    titles = ["head", "temperature", "L2", *(c[0] for c in columns.values()), "held-out noisy NLL"]
    body, most = [], max(trial[2] for trials in task["trials"].values() for trial in trials)
    for row in filter(task["runs"].get, ROWS):
        temperature, l2, stages, nll = chosen(task, row)
        cells = []
        for column, (_, digits, more) in columns.items():
            mean = statistics.fmean(run[column] for run in task["runs"][row].values())
            known = task["differences"]["Dense"].get(row, {}).get(column)
            cells.append(f"{mean:.{digits}f}" + (sign(known, more) if known else ""))
        shorter = "" if stages == most else ", a third"
        body.append([row, f"{temperature:g}", f"{l2:g}{shorter}", *cells, f"{nll:.3f}"])
    sizes = ", ".join(f"{part} {count}" for part, count in task["rows"].items())
    counted = "labels" if task["kind"] == "labels" else "classes"
    seeds = len(task["runs"]["Dense"])
    head = f"**{name}** ({task['classes']} {counted}; rows: {sizes}; seeds: {seeds})\n\n"
    return head + markdown(titles, body)


def sign(difference, more):
    _, low, high = difference
    return "" if low <= 0 <= high else " +" if (low > 0) == more else " −"


def difference_table(name, task):
    """Each head less each of `BASES`."""
    columns, body = JUDGED[task["kind"]], []
    for base in BASES:
        for row in ROWS:
            known = task["differences"].get(base, {}).get(row)
            if known:
                cells = (paired.told(known[c], *COLUMNS[task["kind"]][c][1:]) for c in columns)
                body.append([f"{row} less {base}", *cells])
    titles = ["", *(COLUMNS[task["kind"]][c][0] for c in columns)]
    return f"**{name}**\n\n" + markdown(titles, body)


def curve_table(name, task):
    """Figure 2 as numbers: what each head does at each temperature, mean ± deviation of seeds."""
    body, columns = [], CURVED[task["kind"]]
    for row in filter(task["curves"].get, ROWS):
        for temperature, found in task["curves"][row].items():
            cells = []
            for column in columns:
                mean, spread = found[column]
                digits = COLUMNS[task["kind"]][column][1]
                cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}")
            body.append([row, temperature, f"{found['l2']:g}", *cells, f"{found['held out']:.3f}"])
    titles = ["head", "temperature", "L2", *(COLUMNS[task["kind"]][c][0] for c in columns)]
    return f"**{name}**\n\n" + markdown([*titles, "held-out noisy NLL"], body)


def pair_table(name, task):
    """Table 4 of the paper: of the head with the most seeds of agreement, its ten pairs."""
    body = []
    for row in filter(task.get("covariances", {}).get, ROWS):
        pairs = task["covariances"][row]["pairs"]
        body.append([row, "; ".join(f"{a}, {b} {value:+.2f}" for a, b, value in pairs)])
    return f"**{name}**\n\n" + markdown(["head", "pairs of the largest mean covariance"], body)


def example_table(name, task):
    """Table 5 of the paper."""
    body = []
    for row in filter(task.get("covariances", {}).get, ROWS):
        for index, label, other, value in task["covariances"][row].get("examples", [])[:3]:
            body.append([row, str(index), label, other, f"{value:+.2f}"])
    titles = ["head", "test image", "right, this head", "wrong, Dense", "covariance"]
    return f"**{name}**\n\n" + markdown(titles, body) if body else ""


def interval_of(values):
    """Mean of seeds and its 95 % interval of Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -np.inf, np.inf
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return mean, mean - half, mean + half


def mean_ranks(histograms):
    """Of each seed: the mean rank, and that of noise that is related to nothing."""
    ranks = 1 + np.arange(len(histograms[0]))
    each = [float(np.dot(h, ranks) / sum(h)) for h in histograms if sum(h)]
    return each, float(ranks.mean())


def rank_table(found):
    """Figure 2 of the paper: ranks of the covariance of the true class and what Dense says."""
    body = []
    for name, task in found["tasks"].items():
        for row in filter(task.get("covariances", {}).get, ROWS):
            known = task["covariances"][row]
            if "histograms" not in known:
                continue
            each, chance = mean_ranks(known["histograms"])
            told = "{:.2f} [{:.2f}, {:.2f}]".format(*interval_of(each))
            total = np.sum(known["histograms"], axis=0)
            shares = " ".join(f"{share:.2f}" for share in total / total.sum())
            body.append([f"{name}: {row}", str(total.sum()), shares, told, f"{chance:g}"])
    titles = ["set: head", "examples", "share of ranks 1, 2, ...", "mean rank", "by chance"]
    return markdown(titles, body)


def agreement_table(found):
    """Spearman's correlation of covariances with confusions, mean over seeds with its interval."""
    body = []
    for name, task in found["tasks"].items():
        cells = []
        for row in ROWS[2:]:
            known = task.get("covariances", {}).get(row, {}).get("confusion", [None])
            if None in known:
                cells.append("-")
            else:
                cells.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval_of(known)))
        body.append([name, *cells])
    return markdown(["Spearman's correlation", *ROWS[2:]], body)


def verdict(found):
    """What is better than what, in how many sets, by the intervals of the differences."""
    said = []
    bases = {
        "Dense": "than Dense",
        "diagonal": "than independent noise",
        SAME: "than Dense at the same temperature",
        ONE: "at the temperature of the lowest held-out noisy NLL than at 1",
    }
    for base, told in bases.items():
        for column, title in TOLD.items():
            signs = {"+": {}, "−": {}}
            total = 0
            for task in found["tasks"].values():
                columns = COLUMNS[task["kind"]]
                if column not in columns or (column == "accuracy" and task["kind"] == "labels"):
                    continue
                total += 1
                for row, known in task["differences"].get(base, {}).items():
                    one = sign(known[column], columns[column][2]).strip()
                    if one:
                        signs[one][row] = signs[one].get(row, 0) + 1
            if total:
                better, worse = (listed(signs[one]) for one in "+−")
                sets = f"{total} set" + "s" * (total > 1)
                said.append(f"- {title}, {sets}. Better {told}: {better}. Worse: {worse}.\n")
    missing = [name for name in SETS if name not in found["tasks"]]
    return "".join(said) + (f"- Not run yet: {'; '.join(missing)}.\n" if missing else "")


def listed(counts):
    named = (f"{row} ({counts[row]})" for row in ROWS if row in counts)
    return ", ".join(named) or "none"


def each_set(table):
    def tables(found):
        made = (table(name, task) for name, task in found["tasks"].items() if task["differences"])
        return "\n".join(filter(None, made))

    return tables


def short(found):
    """The part of the verdict that is of Dense, and of Dense at the same temperature."""
    told = "Better than Dense:", f"Better than {SAME}:", "Not run yet"
    lines = verdict(found).splitlines(keepends=True)
    return "".join(line for line in lines if any(each in line for each in told))


TABLES = {
    "verdict": verdict,
    "short": short,
    "sets": each_set(set_table),
    "differences": each_set(difference_table),
    "curves": each_set(curve_table),
    "pairs": each_set(pair_table),
    "examples": each_set(example_table),
    "ranks": rank_table,
    "agreement": agreement_table,
}
