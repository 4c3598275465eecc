"""Three heads on CIFAR-10 with the "worst" human labels of CIFAR-10N, 40 % of them wrong.

    python benchmarks/label_noise.py --json label_noise.json            # runs what is not there yet
    python benchmarks/label_noise.py --json label_noise.json --report   # the tables, in markdown

The network, data and training are those of `examples/label_noise.py`, the same for every head. Ours
try each temperature with the first seed and keep that of the lowest NLL on the last tenth of the
training images, which is held out. Its labels are as noisy as the others: whoever has noisy labels
has no clean ones to choose by. The clean test labels serve for the report only, as do the answers
of about 51 people per test image (CIFAR-10H), whose distribution is the other yardstick.
"""

import argparse
import importlib
import json
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from scipy.special import log_softmax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
example = importlib.import_module("label_noise")

TEMPERATURES = (0.5, 1.0, 2.0)
SEEDS = (0, 1, 2)
KEY = ("head", "temperature", "seed")
SCORES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "human_nll": "NLL, CIFAR-10H",
    "val_nll": "NLL, held-out noisy labels",
}


def human_nll(counts, logits):
    """-mean_i sum_c q_ic log p_ic in nats, for the shares q of people who answered c."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return float(-np.mean(np.sum(shares * log_softmax(logits, axis=-1), axis=-1)))


def read_runs(path, settings):
    """The finished runs in the file, which must have been made with the same settings."""
    if not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["settings"] != settings:
        raise ValueError(
            f"Argument `--json` must name a new file, or one made with settings={settings}. "
            f"Received: {path} with settings={stored['settings']}"
        )
    return stored["runs"]


def write_runs(path, settings, runs):
    """Writes the whole file or nothing, so that an interrupted benchmark can go on."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1), encoding="utf-8")
    os.replace(partial, path)


def find(runs, *key):
    """The finished run with this head, temperature and seed, or None."""
    return next((run for run in runs if tuple(run[name] for name in KEY) == key), None)


def run_once(data, counts, epochs, head, temperature, seed):
    """Trains and judges one model; `temperature` is None for `Dense`, which has none."""
    keras.utils.clear_session()
    start = time.perf_counter()
    options = {} if temperature is None else {"temperature": temperature}
    model, val_nll = example.train(head, data, epochs=epochs, seed=seed, verbose=2, **options)
    logits = model.predict(data.x_test, batch_size=512, verbose=0)
    return {
        **dict(zip(KEY, (head, temperature, seed), strict=True)),
        **example.judge(data.y_test, logits),
        "human_nll": human_nll(counts, logits),
        "val_nll": val_nll,
        "seconds": round(time.perf_counter() - start),
    }


def temperatures_of(head):
    return (None,) if head == "Dense" else TEMPERATURES


def best_temperature(runs, head):
    """That of the lowest held-out NLL with the first seed."""
    trials = [find(runs, head, temperature, SEEDS[0]) for temperature in temperatures_of(head)]
    return min(filter(None, trials), key=lambda run: run["val_nll"])["temperature"]


def plan(runs):
    """Heads, temperatures and seeds to run. Asks `runs`, which grows, for the best temperature."""
    for head in example.HEADS:
        for temperature in temperatures_of(head):
            yield head, temperature, SEEDS[0]
        for seed in SEEDS[1:]:
            yield head, best_temperature(runs, head), seed


def benchmark(path, folder, epochs, limit):
    settings = {"labels": "worst", "images": limit, "epochs": epochs}
    settings |= {"batch_size": example.BATCH_SIZE, "learning_rate": example.LEARNING_RATE}
    runs = read_runs(path, settings)
    data = example.load_files(folder, "worst", limit)
    counts = example.read_file(folder, example.PEOPLE)["cifar10h_counts"][:limit]
    for key in plan(runs):
        if find(runs, *key) is None:
            print(*key, flush=True)
            runs.append(run_once(data, counts, epochs, *key))
            write_runs(path, settings, runs)
            print(json.dumps(runs[-1]), flush=True)


def spread(values):
    """Mean and, from two values on, standard deviation."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.4f}"


def print_markdown(*rows):
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print(f"| {' | '.join(row)} |")


def score_row(runs, head):
    temperature = best_temperature(runs, head)
    chosen = [run for run in runs if (run["head"], run["temperature"]) == (head, temperature)]
    columns = ([run[score] for run in chosen] for score in SCORES)
    shown = "-" if temperature is None else f"{temperature:g}"
    return [head, shown, str(len(chosen)), *map(spread, columns)]


def temperature_row(runs, head):
    trials = [find(runs, head, temperature, SEEDS[0]) for temperature in TEMPERATURES]
    return [head, *("-" if run is None else f"{run['val_nll']:.4f}" for run in trials)]


def report(path):
    """The tables of `benchmarks/README.md`: means and standard deviations over the seeds."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    settings, runs = stored["settings"], stored["runs"]
    heads = [head for head in example.HEADS if find(runs, head, temperatures_of(head)[0], SEEDS[0])]
    images = "all images" if settings["images"] is None else f"ONLY {settings['images']} images"
    print(f"{settings['epochs']} epochs, {images}; clean test labels; mean ± standard deviation\n")
    titles = ["head", "temperature", "seeds", *SCORES.values()]
    print_markdown(titles, *(score_row(runs, head) for head in heads))
    print("\nNLL of the held-out noisy labels by temperature, first seed\n")
    titles = ["head", *map(str, TEMPERATURES)]
    print_markdown(titles, *(temperature_row(runs, h) for h in heads if h != "Dense"))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=pathlib.Path, default="label_noise.json", help="what is done (%(default)s)")
    add("--data", metavar="DIR", default=example.default_folder(), help="default: %(default)s")
    add("--epochs", type=int, default=example.EPOCHS, help="default: %(default)s")
    add("--images", type=int, help="only so many of each split, to try the script")
    add("--report", action="store_true", help="print the tables of the file and run nothing")
    arguments = parser.parse_args(argv)
    if not arguments.report:
        benchmark(arguments.json, arguments.data, arguments.epochs, arguments.images)
    report(arguments.json)


if __name__ == "__main__":
    main()
