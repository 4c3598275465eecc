"""Detectors of `benchmarks/detectors.py`: how each is made, judged and told in tables.

A page has `<!-- detectors NAME -->` and `<!-- end -->`; what is between them is written here.
"""

import re
import statistics

import keras
import numpy as np
import scipy.stats

from evidence import measures
from evidence.pages import ROOT, markdown
from tfuq import ood

BASE, TRUNK = "MaxSoftmax", "trunk"  # what all are compared with; the layer of frozen features
TPR, RESAMPLES = 0.95, 400
KINDS = ("near", "far")
COLUMNS = {"auroc": ("AUROC", True), "fpr95": ("FPR95", False)}  # title, whether more is better
PAGES = ("benchmarks/README.md", "docs/how-to/unknown-inputs.md")
RESULTS = ROOT / "benchmarks" / "results" / "detectors.json"
MARKED = re.compile(r"(<!-- detectors (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# tfuq's defaults, but for what is named. Of a hidden layer that ends in its ReLU no gradient is 0,
# which GAIA's default variant counts.
DETECTORS = {
    BASE: ood.MaxSoftmax,
    "MaxLogit": ood.MaxLogit,
    "Energy": ood.Energy,
    "Entropy": ood.Entropy,
    "GEN": ood.GEN,
    "ODIN": ood.ODIN,
    "KLMatching": ood.KLMatching,
    "Mahalanobis": ood.Mahalanobis,
    "RelativeMahalanobis": ood.RelativeMahalanobis,
    "KNN": ood.KNN,
    "ViM": ood.ViM,
    "SHE": ood.SHE,
    "NNGuide": ood.NNGuide,
    "FDBD": ood.FDBD,
    "ReAct": ood.ReAct,
    "ASH": ood.ASH,
    "SCALE": ood.SCALE,
    "DICE": ood.DICE,
    "GradNorm": ood.GradNorm,
    "ExGrad": ood.ExGrad,
    'GAIA("a")': lambda: ood.GAIA("a"),
    "Gram": ood.Gram,
    "GradientDensity": ood.GradientDensity,
    "SIRC(ViM)": lambda: ood.SIRC(ood.ViM()),
    "KNN, trunk": lambda: ood.KNN(layer=TRUNK),
    "Mahalanobis, trunk": lambda: ood.Mahalanobis(TRUNK),
    "RelativeMahalanobis, trunk": lambda: ood.RelativeMahalanobis(TRUNK),
}


def with_trunk(network):
    """The network behind a layer that shows the frozen features, compiled, so that it is known."""
    first = [keras.Input(network.input_shape[1:]), keras.layers.Activation("linear", name=TRUNK)]
    model = keras.Sequential([*first, *network.layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, jit_compile=False)
    return model


def scored(name, model, known, parts):
    """Scores of each part by a detector that is fitted to the pair `known`, of training rows."""
    detector = DETECTORS[name]()
    if name == "GradientDensity":
        features = ood.GradientFeatures(model)
        # Fitted to rows that have not trained the network, as it asks for.
        detector.fit_features(features(parts["validation"]))
        return {part: detector.score_features(features(x)) for part, x in parts.items()}
    detector.fit(model, *known, batch_size=1000)
    return {part: detector.score(x, batch_size=1000) for part, x in parts.items()}


# --- Figures, and their differences with the largest probability --------------------------------


def fpr_of(inside, outside, scores_in, scores_out):
    """Share of the unknown that is accepted where 95 % of the known are, of resamples of both.

    Weights `(resamples, rows)` say how often each row is in a resample.
    """
    order, other = np.argsort(scores_in, kind="stable"), np.argsort(scores_out, kind="stable")
    reached = np.cumsum(inside[:, order], axis=1)
    index = np.argmax(reached >= TPR * reached[:, -1:] - 1e-6, axis=1)
    thresholds = scores_in[order][index]
    accepted = np.cumsum(np.pad(outside[:, other], ((0, 0), (1, 0))), axis=1)
    below = np.searchsorted(scores_out[other], thresholds, side="right")
    return accepted[np.arange(len(accepted)), below] / accepted[:, -1]


OF = {"auroc": measures.auroc_of, "fpr95": fpr_of}


def figures(scores):
    """{column of a kind: value} of the scores of one network, by parts."""
    once = {part: np.ones((1, len(found)), "float32") for part, found in scores.items()}
    return {
        f"{kind} {column}": round(float(found[0]), 5)
        for kind in known_kinds(scores)
        for column, found in resampled(scores, once, kind).items()
    }


def known_kinds(scores):
    return [kind for kind in KINDS if kind in scores]


def resampled(scores, weights, kind):
    pairs = weights["test"], weights[kind], scores["test"], scores[kind]
    return {column: measure(*pairs) for column, measure in OF.items()}


def differences(runs, seed=0):
    """Detector less `BASE` by column: the difference, and an interval that holds for all at once.

    `runs`: {detector: [scores by part, of a seed, ...]}. Rows and seeds are drawn with replacement,
    the same for both; normal intervals, Bonferroni's for the detectors of a column.
    """
    rng, base = np.random.default_rng(seed), runs[BASE]
    weights = {
        part: measures.drawn(len(base[0][part]), RESAMPLES, rng)
        for part in ("test", *known_kinds(base[0]))
    }
    chosen = measures.drawn(len(base), RESAMPLES, rng) / len(base)

    def over_seeds(name):
        found = {}
        for kind in known_kinds(base[0]):
            each = [resampled(scores, weights, kind) for scores in runs[name]]
            for column in OF:
                stack = np.stack([one[column] for one in each], axis=1)
                found[f"{kind} {column}"] = (stack * chosen).sum(axis=1)
        return found

    width = scipy.stats.norm.isf(0.025 / (len(DETECTORS) - 1))
    of_base, found = over_seeds(BASE), {}
    for name in filter(lambda name: name != BASE, runs):
        mine = over_seeds(name)
        found[name] = {
            column: [round(float(v), 5) for v in measures.interval(mine[column] - values, width)]
            for column, values in of_base.items()
        }
    return found


# --- Tables -------------------------------------------------------------------------------------


def columns_of(task):
    known = {column for runs in task["runs"].values() for run in runs.values() for column in run}
    return [f"{k} {c}" for k in KINDS for c in COLUMNS if f"{k} {c}" in known]


def mark(task, name, column):
    """+ or − where the interval of the difference with `BASE` has only better or only worse."""
    found = task["differences"].get(name, {}).get(column)
    if found is None or found[1] <= 0 <= found[2]:
        return ""
    return " +" if (found[1] > 0) == COLUMNS[column.split()[1]][1] else " −"


def title_of(column):
    kind, name = column.split()
    return f"{kind} {COLUMNS[name][0]}"


def mean_of(task, name, column):
    return statistics.fmean(run[column] for run in task["runs"][name].values())


def known_names(task):
    """Detectors that have as many seeds as `BASE`."""
    count = len(task["runs"].get(BASE, {}))
    return [name for name in DETECTORS if len(task["runs"].get(name, {})) == count > 0]


def set_table(name, task):
    columns = columns_of(task)
    rows = [
        [each, *(f"{mean_of(task, each, c):.3f}{mark(task, each, c)}" for c in columns)]
        for each in known_names(task)
    ]
    sizes = ", ".join(f"{part} {count}" for part, count in task["rows"].items())
    seeds = len(task["runs"][BASE])
    head = f"**{name}** (accuracy {task['accuracy']:.3f}; rows: {sizes}; seeds: {seeds})\n\n"
    return head + markdown(["detector", *map(title_of, columns)], rows) + control_line(task)


def control_line(task):
    """What pixels alone, and features with examples of the unknown, tell."""
    said = [
        f"{kind}: pixels {found['pixels']:.3f}, features {found['features']:.3f}"
        for kind, found in task["controls"].items()
    ]
    line = "; ".join(said)
    return f"\nAUROC of controls that have seen half of the unknown. {line}.\n" if said else ""


def difference_table(name, task):
    columns, known = columns_of(task), task["differences"]

    def shown(detector, column):
        mean, low, high = known[detector][column]
        return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"

    rows = [[each, *(shown(each, c) for c in columns)] for each in DETECTORS if each in known]
    titles = [f"detector less {BASE}", *map(title_of, columns)]
    return f"**{name}**\n\n" + markdown(titles, rows)


def verdict(found):
    """Which detectors are better than `BASE` in AUROC with certainty, and in how many sets."""
    lines = []
    for kind in KINDS:
        column = f"{kind} auroc"
        tasks = [task for task in found["tasks"].values() if column in columns_of(task)]
        for said, wanted in (("better", " +"), ("worse", " −")):
            counts = {
                name: sum(mark(task, name, column) == wanted for task in tasks)
                for name in DETECTORS
            }
            order = sorted(filter(counts.get, counts), key=lambda name: -counts[name])
            listed = ", ".join(f"`{name}` ({counts[name]} of {len(tasks)})" for name in order)
            lines.append(f"- {kind}, {said} than `{BASE}`: {listed or 'none'}.\n")
    return "".join(lines)


def best(found):
    """The best of each set and kind, beside `BASE`: for the page of the how-to."""
    rows = []
    for name, task in found["tasks"].items():
        for column in (f"{kind} auroc" for kind in KINDS):
            if column not in columns_of(task):
                continue
            means = {each: mean_of(task, each, column) for each in known_names(task)}
            first = sorted(means, key=means.get, reverse=True)[:3]
            told = ", ".join(f"{each} {means[each]:.3f}" for each in first)
            rows.append([f"{name}, {column.split()[0]}", f"{means[BASE]:.3f}", told])
    return markdown(["AUROC", BASE, "the best three"], rows)


def each_set(table):
    return lambda found: "\n".join(table(name, task) for name, task in found["tasks"].items())


TABLES = {
    "sets": each_set(set_table),
    "differences": each_set(difference_table),
    "verdict": verdict,
    "best": best,
}


def written(text, found):
    """A page with its tables made anew."""
    return MARKED.sub(lambda m: m[1] + TABLES[m[2]](found) + m[4], text)


def write_all(found):
    for name in PAGES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        path.write_text(written(text, found), encoding="utf-8")
