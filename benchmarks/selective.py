"""Does a rule that was fitted on one half of the images hold on the other half?

    python benchmarks/selective.py            # runs what is not there yet
    python benchmarks/selective.py --report   # writes the tables of README.md
    python benchmarks/selective.py --scores ...   # which score ranks errors best: scores.py

Skin lesions (HAM10000, 7 kinds): a network learns the training images; the test images of the
hospitals that it knows are halved 100 times. Diabetic retinopathy (IDRiD, must a doctor see this
eye: grade 2 or more): 516 images are few, so five networks predict a fifth each that they have not
learned from, and these predictions are halved 100 times. On one half a `RejectionRule` is fitted
for a target of the risk and a confidence of 95 %; on the other the share of wrong answers among the
accepted is counted. The external hospital of HAM10000 has no part in any of this: a rule fitted on
all other test images meets it, and `subgroup_report` says what becomes of its promise.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from evidence import marked, pages
from sklearn.model_selection import StratifiedKFold

from tfuq import selective

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
example = importlib.import_module("clinical_rejection")

RESULTS = pathlib.Path(__file__).with_name("results") / "selective.json"
SPLITS, CONFIDENCE, FOLDS = 100, 0.95, 5
TARGETS = {"HAM10000": (0.1, 0.15, 0.2), "IDRiD": (0.15, 0.2, 0.25)}
METHODS = ("auto", "ltt", "sgr")
EXTERNAL = "external"
IDRID = "idrid_grading_128_jpeg.npz"
IDRID_SETTINGS = example.base.Settings(width=16, num_cycles=5)  # 31 epochs of few images


# --- Predictions, made once --------------------------------------------------------------------


def predict(model, x):
    return keras.ops.convert_to_numpy(keras.ops.softmax(model.predict(x, 256, verbose=0)))


def lesions(folder, seed=0):
    """Probabilities, labels and hospitals of the test images."""
    data, rest, _ = example.load_lesions(folder)
    model = example.train_model(data, example.SETTINGS, seed)
    return predict(model, rest.x), rest.y, rest.groups


def retinas(folder, seed=0):
    """The same of all images of IDRiD, each predicted by a network that has not learned from it."""
    parts = [example.base.read(folder, IDRID, part) for part in ("train", "test")]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    y = (y >= 2).astype("int64")
    probs = np.empty((len(y), 2))
    for train, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y):
        pair, validation = example.base.split_off(x[train], y[train], 50)
        data = example.base.Data(pair, validation, (x[held], y[held]))
        probs[held] = predict(example.train_model(data, IDRID_SETTINGS, seed), x[held])
    return probs, y, np.full(len(y), "Nanded")


SOURCES = {"HAM10000": lesions, "IDRiD": retinas}


# --- Halves -----------------------------------------------------------------------------------


def one_split(probs, labels, target, method, seed):
    """What a rule promises on one half, and what the other half finds; None if it refuses."""
    fit, judge = np.split(np.random.default_rng(seed).permutation(len(labels)), [len(labels) // 2])
    options = {"target_risk": target, "confidence": CONFIDENCE, "method": method}
    try:
        rule = selective.RejectionRule.fit(probs[fit], labels[fit], **options)
    except selective.UnattainableRisk:
        return None
    accepted, wrong = rule.accept(probs), probs.argmax(-1) != labels
    return {
        "coverage": float(np.mean(accepted[judge])),
        "risk": float(np.mean(wrong[judge][accepted[judge]])) if accepted[judge].any() else 0.0,
        "risk_of_all": float(np.mean(wrong[accepted])),
    }


def halves(probs, labels, target, method):
    runs = [one_split(probs, labels, target, method, seed) for seed in range(SPLITS)]
    found = [run for run in runs if run is not None]
    return {
        "target": target,
        "method": method,
        "fitted": len(found),
        "coverage": float(np.mean([run["coverage"] for run in found])) if found else None,
        "risk": float(np.mean([run["risk"] for run in found])) if found else None,
        "exceeded": sum(run["risk"] > target for run in found),
        "exceeded_of_all": sum(run["risk_of_all"] > target for run in found),
    }


def abroad(probs, labels, groups, target):
    """What becomes of a promise made on known hospitals, in each and in the external one."""
    known = groups != EXTERNAL
    try:
        rule = selective.RejectionRule.fit(
            probs[known], labels[known], target_risk=target, confidence=CONFIDENCE
        )
    except selective.UnattainableRisk as refusal:
        return {"target": target, "refused": str(refusal)}
    report = selective.subgroup_report(rule, probs, labels, groups)
    return {"target": target, "table": report.to_markdown()}


def run_once(name, folder):
    probs, labels, groups = SOURCES[name](folder)
    own = groups != EXTERNAL
    accuracy = float(np.mean(probs[own].argmax(-1) == labels[own]))
    rows = [
        halves(probs[own], labels[own], target, method)
        for target in TARGETS[name]
        for method in METHODS
    ]
    found = {"name": name, "images": int(own.sum()), "accuracy": accuracy, "rows": rows}
    if not own.all():
        found["abroad"] = [abroad(probs, labels, groups, target) for target in TARGETS[name]]
    return found


# --- Tables -----------------------------------------------------------------------------------


def tables(runs):
    return "\n".join("\n".join(blocks(run)) for run in runs)


def blocks(run):
    """A title and the table of a set, and of its hospitals if it has some."""
    yield f"{run['name']}: {run['images']} images, accuracy {run['accuracy']:.3f}\n"
    titles = ["target", "method", "a rule was found", "coverage", "risk of the other half"]
    titles += ["target exceeded there", "exceeded by all images"]
    rows = []
    for row in run["rows"]:
        cells = [f"{row['target']:.2f}", row["method"], f"{row['fitted']} of {SPLITS}"]
        known = row["fitted"] > 0
        cells += [f"{row[key]:.3f}" if known else "-" for key in ("coverage", "risk")]
        rows.append([*cells, str(row["exceeded"]), str(row["exceeded_of_all"])])
    yield marked.markdown(titles, rows)
    for row in run.get("abroad", ()):
        yield f"{run['name']}, target {row['target']:.2f}, by hospital\n"
        yield (row.get("table") or row["refused"]).rstrip() + "\n"


def most(runs):
    """In how many splits a promise was exceeded, over all sets, targets and methods."""
    rows = [row for run in runs for row in run["rows"]]
    there, of_all = (max(row[key] for row in rows) for key in ("exceeded", "exceeded_of_all"))
    return (
        f"The other half exceeds the target in at most {there} of {SPLITS} splits, all images "
        f"together in at most {of_all}.\n"
    )


TABLES = {"tables": tables, "most": most}


def read_runs(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--scores" in argv:
        return importlib.import_module("scores").main([a for a in argv if a != "--scores"])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default=RESULTS, help="what is done; default: %(default)s")
    add("--data", metavar="DIR", default=example.base.default_folder(), help="default: %(default)s")
    add("--report", action="store_true", help="write the tables of the file and run nothing")
    arguments = parser.parse_args(argv)
    if arguments.report:
        return pages.write_all(read_runs(arguments.json), "selective", TABLES)
    runs = read_runs(arguments.json)
    for name in SOURCES:
        if not any(run["name"] == name for run in runs):
            print(name, flush=True)
            keras.utils.clear_session()
            runs.append(run_once(name, arguments.data))
            arguments.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print(tables(runs), most(runs), sep="\n")


if __name__ == "__main__":
    main()
