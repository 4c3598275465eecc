"""Six schemes of training on CIFAR-10, and on medical images with a trunk that has learned that.

    python benchmarks/rapid_training.py --json rapid_training.json           # what is not there yet
    python benchmarks/rapid_training.py --json rapid_training.json --report  # tables, in markdown

Network, data, schemes and settings are those of `examples/rapid_training.py`; the settings were
chosen with the seeds 10 and 11, which are not among the three here. The trunk is trained once, on
all of CIFAR-10's training images but those held out; the seeds draw the last layer and the order of
the images. Costs are those of first reaching the best validation accuracy of SGD with the same
seed, its range test included; the ratio eta is equation 3.3 of Mishra (2020). Seconds are those of
the process. A file holds the runs of one version and its settings, and no others are added to it.
"""

import argparse
import importlib
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import tfuq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
example = importlib.import_module("rapid_training")

SEEDS = (0, 1, 2)
PAPER_ETA = "1.09 to 1.77 on CIFAR-10 (table 3.5), 0.93 to 2.18 on pets (table 3.8)"
IMAGES = 8000  # of CIFAR-10 to train on from scratch; the trunk has all but those held out


def read_runs(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_runs(path, runs):
    """Writes the whole file or nothing, so that an interrupted benchmark can go on."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    os.replace(partial, path)


def origin_of(task):
    """What the runs of a task in one file have in common, as JSON has it."""
    settings = example.settings_for(task, example.Settings())
    return json.loads(json.dumps({"version": tfuq.__version__, "settings": settings._asdict()}))


def check_origin(path, runs):
    """Raises ValueError if the file holds runs of another version or with other settings."""
    for run in runs:
        if run.get("origin") != origin_of(run["task"]):
            raise ValueError(
                "Argument `--json` must be a new file, or of this version with these settings. "
                f"Received: {path}, whose {run['task']} has {run.get('origin')}"
            )


def trunk_for(task, folder, path):
    """An untrained trunk, or one that has learned CIFAR-10, which is kept in a file at `path`."""
    settings = example.Settings()
    if task == "scratch":
        return example.build_trunk((example.SIZE, example.SIZE, 3), settings)
    if not path.exists():
        data = example.load_cifar10(folder)
        example.train_trunk(data, settings._replace(verbose=2)).save(path)
    return keras.models.load_model(path)


def benchmark(path, folder, tasks):
    runs = read_runs(path)
    check_origin(path, runs)
    trunk_path = path.with_suffix(".trunk.keras")
    if not runs:
        trunk_path.unlink(missing_ok=True)  # of other runs
    for task in tasks:
        settings = example.settings_for(task, example.Settings())
        options = {"images": IMAGES} if task == "scratch" else {}
        data = example.LOADERS[task](folder, **options)
        for seed in SEEDS:
            for scheme in example.SCHEMES:
                key = {"task": task, "scheme": scheme, "seed": seed}
                if any(key.items() <= run.items() for run in runs):
                    continue
                keras.utils.clear_session()
                keras.utils.set_random_seed(seed)
                trunk = trunk_for(task, folder, trunk_path)
                with tempfile.TemporaryDirectory() as kept:
                    snapshots = kept if scheme == "SGDR+DLR+CLM" else None
                    run, _ = example.run_scheme(scheme, trunk, data, settings, seed, snapshots)
                runs.append({**key, "origin": origin_of(task), **run})
                write_runs(path, runs)
                shown = {k: v for k, v in run.items() if k not in ("seconds", "steps")}
                print(task, json.dumps(shown), flush=True)


# --- Tables -----------------------------------------------------------------------------------


def spread(values, digits=4):
    """Mean and, from two values on, standard deviation; a dash where a run never got there."""
    if not all(map(math.isfinite, values)):
        reached = sum(map(math.isfinite, values))
        return f"reached by {reached} of {len(values)}"
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def scheme_row(runs, scheme):
    baselines = {run["seed"]: run for run in runs if run["scheme"] == "SGD"}
    own = [run for run in runs if run["scheme"] == scheme and run["seed"] in baselines]
    best = [max(baselines[run["seed"]]["val_accuracy"]) for run in own]
    pairs = list(zip(own, best, strict=True))
    steps, seconds = ([example.cost_of(run, b, of) for run, b in pairs] for of in COSTS)
    by_steps, by_seconds = zip(
        *(example.speed_ups(run, baselines[run["seed"]]) for run in own), strict=True
    )
    return [
        scheme,
        str(len(own)),
        spread([run["accuracy"] for run in own]),
        spread([run["nll"] for run in own]),
        spread([run["ece"] for run in own]),
        spread(steps, 0),
        spread(seconds, 0),
        spread([eta if eta else math.inf for eta in by_steps], 2),
        spread([eta if eta else math.inf for eta in by_seconds], 2),
    ]


COSTS = ("steps", "seconds")
TITLES = ["scheme", "seeds", "accuracy", "NLL", "ECE", "steps", "seconds", "eta, steps"]
TITLES += ["eta, seconds"]


def print_markdown(*rows):
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print(f"| {' | '.join(row)} |")


def report(path):
    """The tables of `benchmarks/README.md`."""
    everything = read_runs(path)
    for task in example.TASKS:
        runs = [run for run in everything if run["task"] == task]
        if not runs:
            continue
        print(f"\n{task}; the paper's eta of SGDR+DLR+CLM: {PAPER_ETA}\n")
        done = {run["scheme"] for run in runs}
        print_markdown(TITLES, *(scheme_row(runs, s) for s in example.SCHEMES if s in done))
        print(f"\n{task}: snapshots of SGDR+DLR+CLM\n")
        kept = [run for run in runs if "ensemble" in run]
        rows = [
            [
                name,
                *(
                    spread([run[name][score] for run in kept])
                    for score in ("accuracy", "nll", "ece")
                ),
            ]
            for name in ("last", "ensemble")
        ]
        if kept:
            print_markdown(["weights", "accuracy", "NLL", "ECE"], *rows)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default="rapid_training.json", help="what is done")
    add("--data", metavar="DIR", default=example.default_folder(), help="default: %(default)s")
    add("--tasks", nargs="+", choices=example.TASKS, default=example.TASKS)
    add("--report", action="store_true", help="print the tables of the file and run nothing")
    arguments = parser.parse_args(argv)
    if not arguments.report:
        benchmark(arguments.json, arguments.data, arguments.tasks)
    report(arguments.json)


if __name__ == "__main__":
    main()
