"""What a training step of a `BatchEnsemble` costs beside one of the same network without members.

    make bench-batch-ensemble

Each network has a process of its own; the three of a case take turns, so that ratios hold on a
machine whose speed drifts. Each steps through Keras' `train_on_batch`, with Adam: one network, four
members with one kernel, and four members one after another, as an ensemble trains them. Ratios are
medians over the rounds, to one network, by the clock and by the time of the processor.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import turns

MEMBERS, BATCH = 4, 128
CASES = ("Dense of 512", "small CNN")
KINDS = ("one", "members", "ensemble")


def network(case, kind):
    """The model, and the shape of its inputs."""
    import keras
    from keras.layers import Conv2D, Dense, GlobalAveragePooling2D, MaxPooling2D

    from tfuq.layers import BatchEnsembleConv2D, BatchEnsembleDense

    def dense(units, activation=None):
        if kind == "members":
            return BatchEnsembleDense(units, MEMBERS, activation=activation)
        return Dense(units, activation)

    def convolution(filters):
        options = {"activation": "relu", "padding": "same"}
        if kind == "members":
            return BatchEnsembleConv2D(filters, 3, num_members=MEMBERS, **options)
        return Conv2D(filters, 3, **options)

    if case == "Dense of 512":
        shape = (784,)
        body = [dense(512, "relu"), dense(512, "relu")]
    else:
        shape = (32, 32, 3)
        body = [convolution(32), MaxPooling2D(), convolution(64), MaxPooling2D()]
        body += [convolution(64), GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input(shape), *body, dense(10)]), shape


def stepper(case, kind):
    """A function of nothing that does one step."""
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    models = [network(case, kind) for _ in range(MEMBERS if kind == "ensemble" else 1)]
    x = rng.normal(size=(BATCH, *models[0][1])).astype("float32")
    y = rng.integers(10, size=BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for model, _ in models:
        model.compile(keras.optimizers.Adam(1e-6), loss, jit_compile=False)

    def step():
        for model, _ in models:
            model.train_on_batch(x, y)

    return step


def report(rounds):
    head = ("network", "one, ms", "members / one", "of the processor", "ensemble / one", "weights")
    print(f"| {' | '.join(head)} |\n| --- |{' --: |' * (len(head) - 1)}")
    for case in CASES:
        contestants = [turns.Process(__file__, "--serve", case, kind) for kind in KINDS]
        times, ratios, of_processor = turns.take_turns(contestants, rounds, repeats=5)
        one, many = (network(case, kind)[0].count_params() for kind in KINDS[:2])
        cells = [f"{times[0]:.1f}", f"{ratios[1]:.2f}", f"{of_processor[1]:.2f}"]
        cells += [f"{ratios[2]:.2f}", f"{many / one:.3f}"]
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", nargs=2, metavar=("CASE", "KIND"))
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    if given.serve:
        turns.serve(stepper(*given.serve))
    else:
        report(given.rounds)


if __name__ == "__main__":
    main()
