"""GradientFeatures side by side with one batched pass and with two other roads to its numbers.

    make bench-gradient-features

The residual network of `examples/rapid_training.py`, 32 x 32, ten classes, batches of 64. Every
contestant has its own process; they take turns within one run (`benchmarks/turns.py`), so that
ratios hold on a machine whose speed drifts; times are medians, and a ratio is the median of the
rounds' ratios. All but Python's loop over the batches is one compiled `tf.function`:

- `batched`: a forward and a backward pass, the gradients of the summed loss. It does not give the
  norms for each example; no road that does can be as fast.
- `one_at_a_time`: the same for a single example, whose norms are taken, example by example.
- `vectorized_map`: TensorFlow's own way to run that for all examples side by side.

Memory is how far the peak of a process grows at its first steps, tracing included.
"""

import argparse
import os
import sys

import turns
from turns import verdict

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples"))

BATCH, SHAPE, CLASSES = 64, (32, 32, 3), 10
FEW, MANY = 256, 2048  # images
REPEATS = 5
TIME_AIMS = {"batched": 2.5, "one_at_a_time": 1, "vectorized_map": 1}  # times the road's, at most
GROWTH_AIM = 1.1  # memory for many images, times that for few, at most


# --- Contestants: each makes a function that gives the features of images, batch by batch -------


def network():
    import keras
    import rapid_training

    keras.utils.set_random_seed(0)
    trunk = rapid_training.build_trunk(SHAPE, rapid_training.Settings(width=16, stages=3))
    return rapid_training.make_model(trunk, CLASSES, rapid_training.sgd())


def gradients(model, x):
    """Of the loss of the confounding label that has all classes, summed over the examples."""
    import tensorflow as tf

    weights = model.trainable_variables
    with tf.GradientTape() as tape:
        logits = model(x, training=False)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.ones_like(logits), logits)
        loss = tf.reduce_sum(tf.reduce_mean(losses, axis=-1))
    return tape.gradient(loss, weights)


def norms_of_one(model, x):
    import tensorflow as tf

    return tf.stack([tf.reduce_sum(tf.square(g)) for g in gradients(model, x[None])])


def gradient_features(model):
    from tfuq.ood import GradientFeatures

    return GradientFeatures(model, batch_size=BATCH)


def in_batches(step):
    import numpy as np

    def features(x):
        starts = range(0, len(x), BATCH)
        return np.concatenate([step(x[start : start + BATCH]).numpy() for start in starts])

    return features


def batched(model):
    import tensorflow as tf

    step = tf.function(lambda x: tf.nest.map_structure(tf.identity, gradients(model, x)))
    return in_batches(lambda x: step(x)[-1])


def one_at_a_time(model):
    import numpy as np
    import tensorflow as tf

    step = tf.function(lambda x: norms_of_one(model, x))
    return lambda x: np.stack([step(tf.constant(example)).numpy() for example in x])


def vectorized_map(model):
    import tensorflow as tf

    def of_one(x):
        return norms_of_one(model, x)

    return in_batches(tf.function(lambda x: tf.vectorized_map(of_one, x)))


CONTESTANTS = {
    "GradientFeatures": gradient_features,  # first: the ratios are to it
    "batched": batched,
    "one_at_a_time": one_at_a_time,
    "vectorized_map": vectorized_map,
}


def images(count):
    import numpy as np

    x = np.random.default_rng(0).random((count, *SHAPE), dtype="float32")
    x *= 255  # in place: what was there before the first step would hide growth
    return x


def make_step(contestant, count):
    features, x = CONTESTANTS[contestant](network()), images(count)
    return lambda: features(x)


def start(contestant, count):
    return turns.Process(__file__, "--worker", contestant, str(count))


# --- Report ------------------------------------------------------------------------------------


def report_agreement():
    import numpy as np

    model, x = network(), images(BATCH)
    ours, expected = (CONTESTANTS[name](model)(x) for name in ("GradientFeatures", "one_at_a_time"))
    difference = np.max(np.abs(ours - expected) / expected)
    print(f"\nLargest relative difference from one example at a time: {difference:.1e}")


def report_time(rounds):
    print(f"\nA batch of {BATCH}: milliseconds, medians of {rounds} rounds\n")
    print("| road | ms | GradientFeatures / road | at most | reached |")
    print("| --- | --- | --- | --- | --- |")
    processes = [start(name, BATCH) for name in CONTESTANTS]
    medians, ratios, _ = turns.take_turns(processes, rounds, REPEATS)
    for name, median, ratio in zip(CONTESTANTS, medians, ratios, strict=True):
        aim = TIME_AIMS.get(name)
        judged = " | " if aim is None else f"{aim} | {verdict(1 / ratio <= aim)}"
        print(f"| {name} | {median:.1f} | {1 / ratio:.2f} | {judged} |")


def report_memory():
    print(f"\nGrowth of memory, MB, images in batches of {BATCH}\n")
    print(f"| road | {FEW} images | {MANY:,} images | many / few | GradientFeatures / road |")
    print("| --- | --- | --- | --- | --- |")
    names = ("GradientFeatures", "batched", "vectorized_map")
    few, many = ({name: memory(name, count) for name in names} for count in (FEW, MANY))
    growth = {name: many[name] / few[name] for name in names}
    share = {name: many["GradientFeatures"] / many[name] for name in names}
    for name in names:
        cells = f"{few[name]:.0f} | {many[name]:.0f} | {growth[name]:.2f} | {share[name]:.2f}"
        print(f"| {name} | {cells} |")
    bounded = verdict(growth["GradientFeatures"] <= GROWTH_AIM)
    smaller = verdict(share["vectorized_map"] < 1)
    print(f"\nMany / few at most {GROWTH_AIM}: {bounded}. Less than vectorized_map: {smaller}.")


def memory(contestant, count):
    process = start(contestant, count)
    process.close()
    return process.grown


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=2, help="contestant, number of images (internal)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", nargs="*", default=["time", "memory", "agreement"])
    arguments = parser.parse_args()
    if arguments.worker:
        contestant, count = arguments.worker
        return turns.serve(make_step(contestant, int(count)))
    if "time" in arguments.parts:
        report_time(arguments.rounds)
    if "memory" in arguments.parts:
        report_memory()
    if "agreement" in arguments.parts:
        report_agreement()  # last: the peak of this process would pass to those that it starts


if __name__ == "__main__":
    main()
