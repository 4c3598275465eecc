"""What an ensemble costs beside one of its members: one after another, and stacked.

    python benchmarks/stacked.py --json stacked.json            # the table, in markdown, too
    python benchmarks/stacked.py --json stacked.json --part draws   # these rows of it alone

Calls of one compiled graph, in turns within a process, so that each round sees one machine; a ratio
is the median of the rounds' ratios to one network, of the clock and, of draws, of the processor's
time, which other work on the same cores lengthens less. Operations are those that the profiler
counts. Networks: a small one (two convolutions of 16 and 32 filters, images of 16 x 16), where
overhead bounds the time, and a wide one (convolutions of 64 and 128, images of 32 x 32), where
arithmetic does. SavedModels are those of `tfuq.export.export`. Fully Bayesian networks, of which 30
draws are taken: the small one, and a network of Dense layers.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from flops import flops
from keras import layers

from tfuq import convert, export
from tfuq.ensembles import DeepEnsemble

ROUNDS, SECONDS = 25, 0.02  # rounds, and about how long a contestant is timed in each
BATCHES = (1, 8, 64)
SHAPES = {"small": ((16, 16, 1), 16), "wide": ((32, 32, 3), 64)}
MEMBERS = 16
EXPORTED, DRAWS = 5, 30


def build(name):
    shape, width = SHAPES[name]
    body = [layers.Conv2D(width, 3, activation="relu"), layers.MaxPooling2D()]
    body += [layers.Conv2D(2 * width, 3, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential(
        [keras.Input(shape), *body, layers.Dense(2 * width, "relu"), layers.Dense(10)]
    )


def compiled(function, shape):
    return tf.function(function, input_signature=[tf.TensorSpec((None, *shape))], autograph=False)


def graphs(name):
    """Contestants: one network, all members one after another, and stacked."""
    ensemble = DeepEnsemble(lambda: build(name), MEMBERS)
    members, shape = ensemble.members, SHAPES[name][0]
    made = {
        "one": lambda x: members[0](x, training=False),
        "loop": lambda x: tf.stack([member(x, training=False) for member in members], -2),
        "stacked": ensemble.stacked().forward,
    }
    return {key: compiled(function, shape) for key, function in made.items()}, made, ensemble


def exported(name, folder):
    """SavedModels of one network and of five, called as a server calls them."""
    ensemble = DeepEnsemble(lambda: build(name), EXPORTED)
    sources = {"one": ensemble.members[0], "loop": ensemble, "stacked": ensemble.stacked()}
    loaded = {}
    for key, source in sources.items():
        export.export(source, folder / f"{name}_{key}", from_logits=True)
        loaded[key] = tf.saved_model.load(str(folder / f"{name}_{key}"))
    return {key: model.serve for key, model in loaded.items()}, loaded


def dense():
    return keras.Sequential(
        [keras.Input((32,)), *(layers.Dense(64, "relu") for _ in range(2)), layers.Dense(10)]
    )


BAYESIAN = {"small": lambda: build("small"), "Dense layers": dense}


def drawn(name, folder):
    """SavedModels of a network, and of the draws of its fully Bayesian form."""
    one = BAYESIAN[name]()
    export.export(one, folder / f"one_{name}", from_logits=True)
    bayesian = convert.variational(one, kl_weight=1e-3)
    export.export(bayesian, folder / f"drawn_{name}", from_logits=True, num_samples=DRAWS)
    loaded = {
        kind: tf.saved_model.load(str(folder / f"{kind}_{name}")) for kind in ("one", "drawn")
    }
    return {kind: model.serve for kind, model in loaded.items()}, loaded, one.input_shape[1:]


def ratios(contestants, x):
    """Median of the rounds' times over those of "one", and its milliseconds."""
    counts = {}
    for key, call in contestants.items():
        call(x)
        start = time.perf_counter()
        call(x)
        counts[key] = max(1, int(SECONDS / (time.perf_counter() - start)))
    clocks = {"": time.perf_counter, "_processor": time.process_time}
    spent = {key + name: [] for key in contestants for name in clocks}
    for _ in range(ROUNDS):
        for key, call in contestants.items():
            starts = {name: clock() for name, clock in clocks.items()}
            for _ in range(counts[key]):
                call(x)
            for name, clock in clocks.items():
                spent[key + name].append((clock() - starts[name]) / counts[key])
    found = {
        key + name: statistics.median(
            a / b for a, b in zip(spent[key + name], spent["one" + name], strict=True)
        )
        for key in contestants
        for name in clocks
    }
    return {**found, "one_ms": 1e3 * statistics.median(spent["one"])}


def measured(folder):
    """Rows of ensembles."""
    rows = []
    for name, (shape, _) in SHAPES.items():
        contestants, functions, _ = graphs(name)
        files, kept = exported(name, folder)
        for batch in BATCHES:
            x = np.random.default_rng(0).normal(size=(batch, *shape)).astype("float32")
            found = {"network": name, "batch": batch, "members": MEMBERS}
            found |= {key: round(value, 3) for key, value in ratios(contestants, x).items()}
            operations = {key: flops(function, x) for key, function in functions.items()}
            found["operations"] = operations["stacked"] / operations["loop"]
            rows.append(found)
            found = {"network": name, "batch": batch, "members": EXPORTED, "saved_model": True}
            served = ratios(files, tf.constant(x))
            rows.append(found | {key: round(value, 3) for key, value in served.items()})
            print(*rows[-2:], sep="\n", flush=True)
        del kept
    return rows


def measured_draws(folder):
    rows = []
    for name in BAYESIAN:
        files, kept, shape = drawn(name, folder)
        for batch in BATCHES:
            x = tf.constant(np.random.default_rng(0).normal(size=(batch, *shape)), "float32")
            found = {key: round(value, 3) for key, value in ratios(files, x).items()}
            rows.append({"network": name, "batch": batch, "draws": DRAWS, **found})
            rows[-1]["load"] = round(os.getloadavg()[0], 1)
            print(rows[-1], flush=True)
        del kept
    return rows


def report(rows):
    print("| network | images | members | one, ms | in a row / one | stacked / one | operations |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for row in (row for row in rows if "draws" not in row):
        name = row["network"] + (", SavedModel" if row.get("saved_model") else "")
        operations = f"{row['operations']:.3f}" if "operations" in row else ""
        print(
            f"| {name} | {row['batch']} | {row['members']} | {row['one_ms']:.2f} | "
            f"{row['loop']:.2f} | {row['stacked']:.2f} | {operations} |"
        )
    print("\n| fully Bayesian | examples | draws | one, ms | all draws / one | of the processor |")
    print("| --- | --: | --: | --: | --: | --: |")
    for row in (row for row in rows if "draws" in row):
        cells = [row["network"], row["batch"], DRAWS, f"{row['one_ms']:.2f}", f"{row['drawn']:.2f}"]
        cells.append(f"{row['drawn_processor']:.2f}")
        print("| " + " | ".join(map(str, cells)) + " |")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--part", choices=("all", "draws"), default="all")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.part == "all":
            rows = measured(pathlib.Path(folder))
        else:
            known = json.loads(arguments.json.read_text(encoding="utf-8"))
            rows = [row for row in known if "draws" not in row]
        rows += measured_draws(pathlib.Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    report(rows)


if __name__ == "__main__":
    main()
