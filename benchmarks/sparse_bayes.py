"""Sparse Bayesian networks side by side with the deterministic network they are made from.

    make bench-sparse-bayes

ResNet-18 with the stem for small images, 32 x 32, batch of 32. Every contestant has its own
process; they take turns within one run (`benchmarks/turns.py`). A training step computes the loss,
the gradients of all weights and an update by SGD with momentum, with one sample. Inference is over
128 images: `predict` of the deterministic network, `sample_predictions` with five samples of the
others. "prefix" has random weights in its last stage and head only: what comes before runs once.
"""

import argparse
import os
import sys

import turns
from turns import verdict

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))

BATCH, IMAGES, SAMPLES = 32, 128, 5
R_BAYES = 0.01
TRAIN_AIMS = {"local_reparameterization": 2.2, "reparameterization": 1.5, "flipout": None}
MEMORY_AIM = 1.15
INFERENCE_AIMS = {"local_reparameterization": 5.2, "prefix": 5.2}


# --- Contestants: each makes a function of nothing that does one step and waits for its end -----


def network(contestant):
    """The network, and its data."""
    import keras
    import numpy as np
    from architectures import resnet18

    from tfuq import convert

    rng = np.random.default_rng(0)
    x = rng.normal(size=(IMAGES, 32, 32, 3)).astype("float32")
    y = rng.integers(10, size=IMAGES)
    model = resnet18(shape=(32, 32, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if contestant != "deterministic":
        options = {"estimator": contestant}
        if contestant == "prefix":
            kinds = (keras.layers.Conv2D, keras.layers.Dense)
            names = [layer.name for layer in model.layers if isinstance(layer, kinds)]
            options = {"layers": names[-6:]}
        few = (x[:BATCH], y[:BATCH])
        model = convert.sparse_bayesian(model, few, loss, R_BAYES, kl_weight=1e-4, **options)
    model.compile(keras.optimizers.SGD(1e-6, momentum=0.9), loss, jit_compile=False)
    return model, x, y


def train_step(contestant):
    model, x, y = network(contestant)
    return lambda: model.train_on_batch(x[:BATCH], y[:BATCH])


def inference(contestant):
    from tfuq.predictive import sample_predictions

    model, x, _ = network(contestant)
    if contestant == "deterministic":
        return lambda: model.predict(x, batch_size=BATCH, verbose=0)
    return lambda: sample_predictions(model, x, SAMPLES, batch_size=BATCH)


STEPS = {"train": train_step, "inference": inference}


def start(mode, contestant):
    return turns.Process(__file__, "--worker", mode, contestant)


# --- Report ------------------------------------------------------------------------------------


def report(mode, aims, rounds, title):
    print(f"\n{title}: milliseconds, medians of {rounds} rounds\n")
    print("| network | ms | times deterministic | at most | reached |")
    print("| --- | --- | --- | --- | --- |")
    names = ["deterministic", *aims]
    processes = [start(mode, name) for name in names]
    grown = [process.grown for process in processes]
    medians, ratios, _ = turns.take_turns(processes, rounds)
    for name, median, ratio in zip(names, medians, ratios, strict=True):
        print(f"| {name} | {median:.0f} | {ratio:.2f} | {judged(ratio, aims.get(name))} |")
    if mode == "train":
        print("\nGrowth of memory at the first three training steps, MB\n")
        print("| network | MB | times deterministic | at most | reached |")
        print("| --- | --- | --- | --- | --- |")
        for name, size in zip(names, grown, strict=True):
            aim = None if name == "deterministic" else MEMORY_AIM
            print(
                f"| {name} | {size:.0f} | {size / grown[0]:.2f} | {judged(size / grown[0], aim)} |"
            )


def judged(ratio, aim):
    return " | " if aim is None else f"{aim} | {verdict(ratio <= aim)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help="mode, contestant (internal)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="*", default=["train", "inference"], choices=list(STEPS))
    arguments = parser.parse_args()
    if arguments.worker:
        mode, contestant = arguments.worker
        return turns.serve(STEPS[mode](contestant))
    if "train" in arguments.parts:
        report("train", TRAIN_AIMS, arguments.rounds, "A training step, one sample")
    if "inference" in arguments.parts:
        title = f"Inference, {IMAGES} images, {SAMPLES} samples"
        report("inference", INFERENCE_AIMS, arguments.rounds, title)


if __name__ == "__main__":
    main()
