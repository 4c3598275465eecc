"""Tables 1 and 2 of Lee and AlRegib (2020), at a size that two cores can run.

    python benchmarks/ood.py --json ood.json            # runs what is not there yet
    python benchmarks/ood.py --json ood.json --report   # the tables, in markdown

Network, data and scores are those of `examples/ood_detection.py`: one network that knows CIFAR-10
and one that knows MNIST, three seeds each. Methods that learn from unknown images do so as the
paper does (on the set they are judged on) and on another set. Table 2 tells pristine from corrupted
test images of CIFAR-10: the gradient detector and `Mahalanobis`, each corruption and severity by
itself, both judged on images that neither has learned from.
"""

import argparse
import importlib
import json
import os
import pathlib
import statistics
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import tfuq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
example = importlib.import_module("ood_detection")

SEEDS = (0, 1, 2)
CORRUPTIONS = {  # the paper's names
    "Noise": "gaussian_noise",
    "LensBlur": "defocus_blur",
    "GaussianBlur": "gaussian_blur",
    "DirtyLens": "dirty_lens",
    "Exposure": "brightness",
    "Snow": "snow",
    "Haze": "fog",
    "Decolor": "decolor",
}
SEVERITIES = (1, 2, 3, 4, 5)
SHOWN = ("detection_accuracy", "auroc", "aupr_out")


def read_runs(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_runs(path, runs):
    """Writes the whole file or nothing, so that an interrupted benchmark can go on."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    os.replace(partial, path)


def corrupted_rows(model, sets, seed):
    """AUROC of pristine against corrupted images: `{corruption: {method: one per severity}}`."""
    images = sets.test[0]
    features = tfuq.ood.GradientFeatures(model, batch_size=64)
    distance = tfuq.ood.Mahalanobis()
    distance.fit(model, *(array[:5000] for array in sets.train), batch_size=256)
    known, far = features(images), distance.score(images, batch_size=256)
    fit, judge = example.split(len(images))
    found = {}
    for name, corruption in CORRUPTIONS.items():
        found[name] = {"Mahalanobis": [], "gradients": []}
        for severity in SEVERITIES:
            bad = tfuq.corruptions.corrupt(images, corruption, severity, seed=seed).numpy()
            norms = features(bad)
            detector = tfuq.ood.GradientDetector(seed=seed).fit_features(known[fit], norms[fit])
            scores = {
                "Mahalanobis": (far[judge], distance.score(bad[judge], batch_size=256)),
                "gradients": tuple(detector.score_features(rows[judge]) for rows in (known, norms)),
            }
            for method, pair in scores.items():
                found[name][method].append(example.judged(*pair)["auroc"])
    return found


def run_once(name, folder, images, seed):
    """All figures of one network, as the file keeps them."""
    keras.utils.clear_session()
    sets = example.LOADERS[name](folder, images)
    model = example.train_model(sets, example.SETTINGS, seed)
    rows = example.unsupervised_rows(model, sets)
    rows |= example.supervised_rows(model, sets, seed)[0]
    run = {
        "model": name,
        "seed": seed,
        "accuracy": float(
            np.mean(model.predict(sets.test[0], verbose=0).argmax(-1) == sets.test[1])
        ),
        "rows": [{"method": method, "set": key, **found} for (method, key), found in rows.items()],
    }
    if name == "cifar10":
        run["corrupted"] = corrupted_rows(model, sets, seed)
    return run


def benchmark(path, folder, models, images, seeds):
    runs = read_runs(path)
    for seed in seeds:
        for name in models:
            if not any(run["model"] == name and run["seed"] == seed for run in runs):
                print(name, seed, flush=True)
                runs.append(run_once(name, folder, images, seed))
                write_runs(path, runs)


# --- Tables -----------------------------------------------------------------------------------


def spread(values):
    """Mean and, from two values on, standard deviation, in percent."""
    text = f"{100 * statistics.mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * statistics.stdev(values):.1f}"


def print_markdown(*rows):
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print(f"| {' | '.join(row)} |")


def first_table(runs):
    """A row for each method, a column for each unknown set and figure."""
    rows = [row for run in runs for row in run["rows"]]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    for name in sets:
        print(f"\n{runs[0]['model']} against {name}, percent\n")
        methods = dict.fromkeys(row["method"] for row in rows if row["set"] == name)
        chosen = [
            [r for r in rows if (r["method"], r["set"]) == (method, name)] for method in methods
        ]
        print_markdown(
            ["method", "detection accuracy", "AUROC", "AUPR"],
            *([r[0]["method"], *(spread([x[c] for x in r]) for c in SHOWN)] for r in chosen),
        )


def second_table(runs):
    """Mahalanobis / gradients, as the paper's table 2."""
    print(
        "\npristine against corrupted images of CIFAR-10, AUROC, percent: Mahalanobis / gradients\n"
    )
    rows = []
    for name in CORRUPTIONS:
        cells = []
        for i in range(len(SEVERITIES)):
            pair = [
                spread([run["corrupted"][name][method][i] for run in runs])
                for method in ("Mahalanobis", "gradients")
            ]
            cells.append(" / ".join(pair))
        rows.append([name, *cells])
    print_markdown(["corruption", *(f"level {level}" for level in SEVERITIES)], *rows)


def report(path):
    """The tables of `benchmarks/README.md`."""
    everything = read_runs(path)
    for name in example.LOADERS:
        runs = [run for run in everything if run["model"] == name]
        if runs:
            print(f"\n{name}: {len(runs)} seeds, accuracy {spread([r['accuracy'] for r in runs])}")
            first_table(runs)
    runs = [run for run in everything if "corrupted" in run]
    if runs:
        second_table(runs)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default="ood.json", help="what is done")
    add("--data", metavar="DIR", default=example.base.default_folder(), help="default: %(default)s")
    add("--models", nargs="+", choices=example.LOADERS, default=list(example.LOADERS))
    add("--seeds", nargs="+", type=int, default=SEEDS)
    add("--images", type=int, default=1000, help="of each test set (%(default)s)")
    add("--report", action="store_true", help="print the tables of the file and run nothing")
    arguments = parser.parse_args(argv)
    if not arguments.report:
        benchmark(
            arguments.json, arguments.data, arguments.models, arguments.images, arguments.seeds
        )
    report(arguments.json)


if __name__ == "__main__":
    main()
