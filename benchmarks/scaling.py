"""How time and memory grow with samples, classes, batch, image size, and workers.

    make bench-scaling

Each size has a process of its own; the sizes of a row take turns, so that ratios hold on a machine
whose speed drifts. Times are medians of the rounds; memory is what the first steps add to the peak
of their process, tracing included. What grows is the last size over the one before it, and the time
there over the time before: "linear" says whether the time grows no more than the size (and 10 %).

`--part features` is of 29,593 classes and 1,024 features: a training step of `MCSoftmaxDenseXL`,
whose noise is made in the features, beside its floor, S projections from features to classes with
both of their gradients, and beside one `Dense`. "peak" is that of the whole process.

Workers are processes on 127.0.0.1 under `tfuq.distribute.multi_worker`, one thread each, which
share a global batch of 256 (strong scaling). Efficiency is the time of one over workers times the
time of all: of four on two cores no more than a half can be had.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import turns
from turns import verdict

# (what varies, sizes, head, mode) and what else differs from DEFAULT
DEFAULT = {"samples": 100, "classes": 10, "batch": 64, "image": 32}
SWEEPS = (
    ("samples", (1, 10, 100, 1000), "heteroscedastic", "predict"),
    ("samples", (1, 10, 100, 1000), "heteroscedastic", "train"),
    ("samples", (1, 10, 100, 1000), "heteroscedastic", "predict", {"classes": 1000}),
    ("samples", (1, 10, 100, 1000), "heteroscedastic", "train", {"classes": 1000}),
    ("classes", (10, 100, 1000, 20000), "heteroscedastic", "train"),
    ("classes", (10, 100, 1000, 20000), "vbll", "train"),
    ("batch", (1, 8, 64, 512), "heteroscedastic", "train"),
    ("batch", (1, 8, 64, 512), "vbll", "train"),
    ("image", (32, 64, 128, 256), "convolutions", "train"),
)
FEATURES = 128
MANY = {"classes": 29593, "features": 1024, "factors": 50, "batch": 64}
WORKERS, GLOBAL_BATCH = (1, 2, 4), 256
SHARED = ({"image": 32, "steps": 20}, {"image": 96, "steps": 8})  # little to compute, and more


# --- One size ---------------------------------------------------------------------------------


def head(kind, sizes):
    import keras

    from tfuq import layers

    if kind == "vbll":
        return keras.Input((FEATURES,)), [layers.VBLLDense(sizes["classes"], kl_weight=1e-4)]
    if kind == "heteroscedastic":
        draws = {"train_mc_samples": sizes["samples"], "test_mc_samples": sizes["samples"]}
        options = {"num_factors": 10, "logits_only": True, "parameter_efficient": True}
        made = layers.MCSoftmaxDenseFA(sizes["classes"], **options, **draws)
        return keras.Input((FEATURES,)), [made]
    convolutions = [
        layers.Conv2DVariational(8, 3, strides=2, activation="relu", kl_weight=1e-4),
        layers.Conv2DVariational(16, 3, strides=2, activation="relu", kl_weight=1e-4),
        keras.layers.GlobalAveragePooling2D(),
        layers.VBLLDense(sizes["classes"], kl_weight=1e-4),
    ]
    return keras.Input((sizes["image"], sizes["image"], 3)), convolutions


def stepper(kind, mode, sizes):
    """A function of nothing that does one step and waits for its end."""
    import keras
    import tensorflow as tf

    inputs, parts = head(kind, sizes)
    model = keras.Sequential([inputs, *parts])
    x = tf.random.stateless_normal((sizes["batch"], *inputs.shape[1:]), [1, 2])
    y = tf.range(sizes["batch"]) % sizes["classes"]
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1e-6)
    optimizer.build(model.trainable_variables)

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True)) + sum(model.losses)
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        return loss

    @tf.function
    def predict():
        return model(x, training=False)

    step = train if mode == "train" else predict
    return lambda: step().numpy()


def stepper_of_many(kind, samples):
    """As `stepper`, with inputs that have a gradient: a step of `Dense`, of the head, of its floor.

    The floor has a mean in place of a loss: nothing but its projections.
    """
    import keras
    import tensorflow as tf

    from tfuq import layers

    classes, factors = MANY["classes"], MANY["factors"]
    options = {"train_mc_samples": samples, "test_mc_samples": 2, "logits_only": True}
    is_head = kind == "features"
    head = layers.MCSoftmaxDenseXL(classes, factors, **options) if is_head else None
    model = keras.Sequential(
        [keras.Input((MANY["features"],)), head or keras.layers.Dense(classes)]
    )
    x = tf.random.stateless_normal((MANY["batch"], MANY["features"]), [1, 2])
    x = tf.Variable(tf.repeat(x, samples, axis=0) if kind == "floor" else x)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1e-6)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            is_floor = kind == "floor"
            loss = tf.reduce_mean(logits) if is_floor else loss_of(tf.range(len(x)), logits)
        of_inputs, *gradients = tape.gradient(loss, [x, *model.trainable_weights])
        optimizer.apply(gradients, model.trainable_weights)
        return loss + tf.reduce_sum(of_inputs)  # which is not left out then

    return lambda: step().numpy()


def report_features(rounds):
    def started(kind, samples):
        return turns.Process(__file__, "--serve", kind, "many", str(samples))

    plain = started("dense", 1)
    plain.close()
    titles = ("samples", "floor, ms", "head, ms", "ratio", "of the processor")
    print(f"\n| {' | '.join(titles)} | peak of Dense, head, MB | ratio |\n|{' --- |' * 7}")
    for samples in (8, 32):
        pair = [started(kind, samples) for kind in ("floor", "features")]
        peak = pair[1].peak
        times, ratios, of_processor = turns.take_turns(pair, rounds)
        cells = [f"{samples}", *(f"{ms:.0f}" for ms in times), f"{ratios[1]:.2f}"]
        cells += [f"{of_processor[1]:.2f}", f"{plain.peak:.0f}, {peak:.0f}"]
        print(f"| {' | '.join(cells)} | {peak / plain.peak:.2f} |", flush=True)


def sweep(rounds, varied, sizes, kind, mode, others):
    """Milliseconds and MB at each size, measured in turns."""
    options = [{**DEFAULT, **others, varied: size} for size in sizes]
    processes = [
        turns.Process(__file__, "--serve", kind, mode, json.dumps(each)) for each in options
    ]
    memory = [process.grown for process in processes]
    times, *_ = turns.take_turns(processes, rounds, repeats=3)
    return times, memory


def report(rounds):
    titles = ("head, mode", "varied", "ms", "memory, MB", "size grows", "time grows", "linear")
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for varied, sizes, kind, mode, *others in SWEEPS:
        others = others[0] if others else {}
        times, memory = sweep(rounds, varied, sizes, kind, mode, others)
        larger = sizes[-1] / sizes[-2]
        larger = larger**2 if varied == "image" else larger
        grows = times[-1] / times[-2]
        also = "".join(f", {size:,} {name}" for name, size in others.items())
        cells = [f"{kind}, {mode}{also}", f"{varied} {', '.join(map(str, sizes))}"]
        cells += [", ".join(f"{ms:.2f}" for ms in times), ", ".join(f"{mb:.0f}" for mb in memory)]
        cells += [f"{larger:g}", f"{grows:.2f}", verdict(grows <= 1.1 * larger)]
        print(f"| {' | '.join(cells)} |", flush=True)


# --- Workers ----------------------------------------------------------------------------------


def free_ports(count):
    opened = [socket.socket() for _ in range(count)]
    for each in opened:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in opened]
    for each in opened:
        each.close()
    return ports


def train_together(index, ports, image, steps):
    """Milliseconds per step of one worker, after the epoch that traces."""
    import keras
    import numpy as np

    from tfuq.distribute import multi_worker

    if len(ports) > 1:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        task = {"type": "worker", "index": index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    x = np.random.default_rng(0).normal(size=(GLOBAL_BATCH * steps, image, image, 3))
    x = x.astype("float32")
    y = np.arange(len(x)) % DEFAULT["classes"]
    with multi_worker() as strategy:
        with strategy.scope():
            inputs, parts = head("convolutions", {**DEFAULT, "image": image})
            model = keras.Sequential([inputs, *parts])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("sgd", loss, jit_compile=False)
        ends = []
        clock = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
        )
        model.fit(x, y, GLOBAL_BATCH, 6, 0, [clock], shuffle=False)
    return statistics.median(np.diff(ends)) / steps * 1e3


def workers_at_work(folder, count, **case):
    """The time of `count` workers, each a fork of this process, which has not run TensorFlow."""
    ports, children = free_ports(count), []
    for index in range(count):
        child = os.fork()
        if not child:
            signal.alarm(600)
            status = 1
            try:
                path = os.path.join(folder, f"{count}_{index}")
                with open(path, "w") as file:
                    file.write(str(train_together(index, ports, **case)))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        raise RuntimeError(f"{count} workers ended with {statuses}")
    with open(os.path.join(folder, f"{count}_0")) as file:
        return float(file.read())


def report_workers():
    import tempfile

    import keras  # noqa: F401 (once, before the forks)

    import tfuq.distribute  # noqa: F401

    print(f"\n{os.cpu_count()} cores, {GLOBAL_BATCH} images per step\n")
    print("| image | workers | ms per step | faster than one | efficiency |")
    print("| --- | --- | --- | --- | --- |")
    for case in SHARED:
        with tempfile.TemporaryDirectory() as folder:
            times = [workers_at_work(folder, count, **case) for count in WORKERS]
        for count, ms in zip(WORKERS, times, strict=True):
            faster = times[0] / ms
            cells = [f"{case['image']} x {case['image']}", f"{count}", f"{ms:.1f}"]
            cells += [f"{faster:.2f}", f"{faster / count:.0%}"]
            print(f"| {' | '.join(cells)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "MODE", "SIZES"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--part", choices=("sizes", "features", "workers", "all"), default="all")
    arguments = parser.parse_args()
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
    if arguments.serve:
        kind, mode, sizes = arguments.serve
        if mode == "many":
            turns.serve(stepper_of_many(kind, int(sizes)))
            return
        turns.serve(stepper(kind, mode, json.loads(sizes)))
        return
    if arguments.part in ("sizes", "all"):
        report(arguments.rounds)
    if arguments.part in ("features", "all"):
        report_features(arguments.rounds)
    if arguments.part in ("workers", "all"):
        report_workers()


if __name__ == "__main__":
    sys.exit(main())
