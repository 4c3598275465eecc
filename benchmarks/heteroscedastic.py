"""Heteroscedastic heads side by side: tfuq, edward2 0.0.2, and plain Dense layers.

    make bench-heteroscedastic

edward2 runs in its own environment and process, under legacy Keras. The contestants take turns
within one run, so that the ratios hold on a machine whose speed drifts; times are medians over the
rounds, and a ratio is the median of the rounds' ratios.

Contestants: `tfuq`, `edward2`, `dense` (one `Dense`), `floor` (the projections of the head alone,
which no estimator can beat). Inference of tfuq takes as many samples as give edward2's error, which
this script measures; training takes edward2's number of samples.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

# name: batch, features, classes, factors, edward2's samples, parameter_efficient, tfuq's samples
CASES = {
    "B64 D2048 K1000 R15 S100": (64, 2048, 1000, 15, 100, False, 80),
    "B64 D512 K100 R10 S1000": (64, 512, 100, 10, 1000, False, 288),
    "B32 D2048 K10 R6 S1000": (32, 2048, 10, 6, 1000, False, 192),
    "B32 D1024 K5000 R50 S20 efficient": (32, 1024, 5000, 50, 20, True, 16),
}
IMAGENET_21K = (32, 2048, 21843, 50, 100, True, 100)
AIMS = {"forward": (2.5, 12, 5, 2.5), "train": (1.3, 3, 1.7, 1.4)}  # compiled: above 1
MODES = ("forward", "train", "forward compiled", "train compiled")


def build(contestant, case, mode):
    """A function of (inputs, labels), the variables it trains, and its inputs."""
    import tensorflow as tf

    batch, features, classes, factors, samples, efficient, own_samples = case
    if contestant == "edward2":
        import edward2

        head = edward2.layers.MCSoftmaxDenseFA(
            classes,
            factors,
            parameter_efficient=efficient,
            train_mc_samples=samples,
            test_mc_samples=samples,
        )

        def logits(x, training):
            return head(x, training=training)[0]

    elif contestant == "tfuq":
        from tfuq.layers import MCSoftmaxDenseFA

        head = MCSoftmaxDenseFA(
            classes,
            factors,
            parameter_efficient=efficient,
            train_mc_samples=samples,
            test_mc_samples=own_samples,
            logits_only=True,
        )
        logits = head
    else:
        widths = [classes]
        if contestant == "floor":
            widths += [classes, classes if efficient else classes * factors]
        import keras

        denses = [keras.layers.Dense(width) for width in widths]

        def logits(x, training):
            outputs = [dense(x) for dense in denses]
            return outputs[0] + sum(tf.reduce_sum(t) for t in outputs[1:])

    x = tf.random.stateless_normal((batch, features), [1, 2])
    y = tf.random.stateless_uniform((batch,), [3, 4], maxval=classes, dtype="int32")
    logits(x[:1], training=True)  # builds, and leaves the peak of memory low
    if contestant in ("edward2", "tfuq"):
        variables = head.trainable_variables
    else:
        variables = [v for dense in denses for v in dense.trainable_variables]

    def forward(x, y):
        return logits(x, training=False)

    def train(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits(x, training=True))
            loss = tf.reduce_mean(losses)
        *gradients, dx = tape.gradient(loss, [*variables, x])
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(1e-6 * gradient)
        return loss + 0 * dx[:, 0]

    step = forward if mode.startswith("forward") else train
    return tf.function(step, jit_compile="compiled" in mode), variables, (x, y)


def worker(contestant):
    """Answers requests, one JSON line each: prepare a case, or run it and say the time."""
    step = inputs = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            case = CASES.get(request["case"], IMAGENET_21K)
            if "samples" in request:
                case = (*case[:4], request["samples"], case[5], request["samples"])
            step, variables, inputs = build(contestant, case, request["mode"])
            before = peak_memory()
            step(*inputs)
            first = peak_memory()
            for _ in range(2):
                step(*inputs)[..., 0].numpy()
            answer = {
                "grown": peak_memory() - before,
                "first": first - before,
                "before": before,
                "weights": sum(int(v.shape.num_elements()) * 4 for v in variables) / 2**20,
            }
        else:
            start = time.perf_counter()
            for _ in range(request["repeats"]):
                step(*inputs)[..., 0].numpy()
            answer = {"ms": (time.perf_counter() - start) / request["repeats"] * 1e3}
        print("answer " + json.dumps(answer), flush=True)


def peak_memory():
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Process:
    """A worker in its own process."""

    def __init__(self, contestant, edward2_python):
        python = edward2_python if contestant == "edward2" else sys.executable
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if contestant == "edward2":
            environment["TF_USE_LEGACY_KERAS"] = "1"
        self.process = subprocess.Popen(
            [python, __file__, "--worker", contestant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line[len("answer ") :])
        raise RuntimeError(f"The worker ended. Request: {request}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure_times(contestants, case, mode, rounds, edward2_python):
    """Median milliseconds by contestant, taken in turns, and the median of the rounds' ratios."""
    processes = {name: Process(name, edward2_python) for name in contestants}
    for process in processes.values():
        process.ask(do="prepare", case=case, mode=mode)
    repeats = 1 if "K1000" in case or "K5000" in case else 10
    times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, process in processes.items():
            times[name].append(process.ask(do="run", repeats=repeats)["ms"])
    for process in processes.values():
        process.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    # Within a round the machine is the same for both; between rounds of minutes it is not.
    pairs = zip(times["edward2"], times["tfuq"], strict=True)
    return medians, statistics.median(theirs / ours for theirs, ours in pairs)


def measure_memory(contestant, case, mode, edward2_python, **options):
    """Megabytes by which a fresh process grows at its first three steps."""
    process = Process(contestant, edward2_python)
    answer = process.ask(do="prepare", case=case, mode=mode, **options)
    process.close()
    return answer


def log_prob_error(rule, samples, classes, factors, deviation, efficient, seeds=6):
    """RMSE of log-probabilities over random heads, against 2^15 points."""
    import numpy as np
    import tensorflow as tf

    from tfuq._math.logistic_normal import log_mean_softmax
    from tfuq._random.points import NormalPoints

    rng = np.random.default_rng(0)
    shape = (4 if classes > 100 else 24, classes)  # few classes: many heads, for a steady figure
    loc = tf.constant(rng.normal(scale=2, size=shape), "float32")
    share = deviation / np.sqrt(2)
    scale = tf.constant(share * np.exp(0.3 * rng.normal(size=shape)), "float32")
    if efficient:
        loadings = rng.normal(size=(factors, classes)) / np.sqrt(factors)
        parts = (tf.ones(shape) * share, tf.constant(loadings, "float32"))
    else:
        parts = rng.normal(size=(*shape, factors)) * share / np.sqrt(factors)
        parts = (tf.constant(parts, "float32"),)

    @tf.function
    def log_probs(points, mirrored):
        return log_mean_softmax(loc, scale, parts, points, mirrored=mirrored)

    def estimate(rule, samples, seed):
        points = NormalPoints(rule, samples, factors + classes, seed=seed)
        return log_probs(points(), points.mirrored).numpy()

    exact = estimate("sobol", 2**15, 10**6)
    errors = [estimate(rule, samples, seed) - exact for seed in range(seeds)]
    return float(np.sqrt(np.mean(np.square(errors))))


def gradient_error(rule, samples, classes, factors, reference_samples=2**14):
    """Relative RMSE of the training gradient of a head at its start, over 8 steps."""
    import numpy as np
    import tensorflow as tf

    from tfuq.layers import MCSoftmaxDenseFA

    x = tf.random.stateless_normal((32, 16), [1, 1])
    y = tf.random.stateless_uniform((32,), [2, 2], maxval=classes, dtype="int32")
    weights = None

    def gradients(rule, samples, steps):
        nonlocal weights
        head = MCSoftmaxDenseFA(
            classes, factors, train_mc_samples=samples, sampling=rule, seed=1, logits_only=True
        )
        head.build(x.shape)
        weights = head.get_weights() if weights is None else weights
        head.set_weights(weights)

        @tf.function
        def gradient():
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, head(x, training=True))
            return tape.gradient(losses, [v.value for v in head.trainable_variables])

        return np.stack(
            [np.concatenate([np.ravel(part) for part in gradient()]) for _ in range(steps)]
        )

    exact = gradients("sobol", reference_samples, steps=4).mean(axis=0)
    errors = gradients(rule, samples, steps=8) - exact
    return float(np.sqrt(np.mean(np.sum(errors**2, axis=1))) / np.linalg.norm(exact))


def report_errors():
    print("\nRMSE of log-probabilities (noise of standard deviation 0.5 / 1.5 on the logits)\n")
    print("| case | independent, S of edward2 | tfuq's S | tfuq |")
    print("| --- | --- | --- | --- |")
    for name, (_, _, classes, factors, samples, efficient, own) in CASES.items():
        pairs = [
            [
                log_prob_error(rule, count, classes, factors, deviation, efficient)
                for deviation in (0.5, 1.5)
            ]
            for rule, count in (("iid", samples), ("sobol", own))
        ]
        theirs, ours = (" / ".join(f"{error:.4f}" for error in pair) for pair in pairs)
        print(f"| {name} | {theirs} | {own} | {ours} |", flush=True)
    print("\nRelative RMSE of the training gradient, batch of 32\n")
    print("| case | independent, 1,000 | the default: Sobol, 512 |")
    print("| --- | --- | --- |")
    for classes, factors in ((10, 6), (100, 10)):
        theirs = gradient_error("iid", 1000, classes, factors)
        ours = gradient_error("sobol", 512, classes, factors)
        print(f"| K{classes} R{factors} | {theirs:.3f} | {ours:.3f} |", flush=True)


def report_times(rounds, edward2_python, modes, cases):
    for mode in modes:
        print(f"\n{mode}: medians of {rounds} rounds, milliseconds\n")
        print("| case | dense | floor | edward2 | tfuq | edward2 / tfuq | aim |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for case in cases:
            ms, ratio = measure_times(
                ("dense", "floor", "edward2", "tfuq"), case, mode, rounds, edward2_python
            )
            cells = " | ".join(f"{ms[name]:.1f}" for name in ("dense", "floor", "edward2", "tfuq"))
            aim = AIMS[mode][list(CASES).index(case)] if mode in AIMS else 1
            print(f"| {case} | {cells} | {ratio:.2f} | {aim} |", flush=True)


def report_compiled_ratio(rounds, edward2_python):
    """Compiled against uncompiled, in turns."""
    print("\ntfuq compiled / uncompiled\n")
    print("| case | forward | train |")
    print("| --- | --- | --- |")
    for case in list(CASES)[1:3]:
        cells = []
        for step in ("forward", "train"):
            pair = [Process("tfuq", edward2_python) for _ in range(2)]
            for process, mode in zip(pair, (f"{step} compiled", step), strict=True):
                process.ask(do="prepare", case=case, mode=mode)
            times = [[p.ask(do="run", repeats=3)["ms"] for p in pair] for _ in range(rounds)]
            cells.append(f"{statistics.median(c / plain for c, plain in times):.2f}")
            for process in pair:
                process.close()
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


def report_memory(edward2_python):
    case = "B64 D512 K100 R10 S1000"
    print(f"\nGrowth of memory at the first steps, MB, {case}, uncompiled\n")
    print("| mode | edward2 S1000 | tfuq S100 | tfuq S1000 | edward2 / tfuq | S1000 / S100 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for mode in ("forward", "train"):
        theirs = measure_memory("edward2", case, mode, edward2_python, samples=1000)["grown"]
        small = measure_memory("tfuq", case, mode, edward2_python, samples=100)["grown"]
        large = measure_memory("tfuq", case, mode, edward2_python, samples=1000)["grown"]
        # What stays below the peak of starting up cannot be seen: then the growth reads 0.
        ratios = "- | -" if not small * large else f"{theirs / large:.1f} | {large / small:.2f}"
        print(f"| {mode} | {theirs:.0f} | {small:.0f} | {large:.0f} | {ratios} |", flush=True)
    print("\nImagenet-21k head (K=21,843, D=2048, R=50, parameter-efficient, S=100, B=32)\n")
    print("| mode | weights, MB | growth at the first steps, MB |")
    print("| --- | --- | --- |")
    for mode in ("forward", "train"):
        answer = measure_memory("tfuq", "imagenet_21k", mode, edward2_python)
        print(f"| {mode} | {answer['weights']:.0f} | {answer['grown']:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help="run as this contestant's worker (internal)")
    parser.add_argument("--edward2-python", default=".venv-edward2/bin/python")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--modes", nargs="*", default=MODES)
    parser.add_argument("--cases", nargs="*", type=int, default=range(1, len(CASES) + 1))
    parser.add_argument("--parts", nargs="*", default=["errors", "times", "compiled", "memory"])
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker)
    cases = [list(CASES)[row - 1] for row in arguments.cases]
    if "errors" in arguments.parts:
        report_errors()
    if "times" in arguments.parts:
        report_times(arguments.rounds, arguments.edward2_python, arguments.modes, cases)
    if "compiled" in arguments.parts:
        report_compiled_ratio(arguments.rounds, arguments.edward2_python)
    if "memory" in arguments.parts:
        report_memory(arguments.edward2_python)


if __name__ == "__main__":
    main()
