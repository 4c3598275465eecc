"""VBLL heads side by side: vbll 0.4.9 (torch), TFP's DenseFlipout, and plain Dense heads.

    make bench-vbll

vbll runs in its own environment, TFP's layer under legacy Keras; every contestant has its own
process. Two contestants take turns within one run, so that ratios hold on a machine whose speed
drifts; times are medians, and a ratio is the median of the rounds' ratios.

A training step computes the loss, the gradients of all weights and of the inputs, and an SGD
update. vbll's step holds what its `forward` does, 20 draws of the logits among it. Against vbll the
noise on the logits is learned, as it always is there; elsewhere it is off. The time of
`sample_predictions` is that of the whole call, tracing included. Compiled is with XLA, as Keras'
`compile` has it by default; of vbll, which has no such thing, it is the same step as before.

Ratios want a quiet machine: PyTorch's threads suffer more than TensorFlow's when others use the
cores. OMP_NUM_THREADS, TF_NUM_INTRAOP_THREADS and TF_NUM_INTEROP_THREADS set the number of threads.
"""

import argparse
import json
import os
import pathlib
import sys

import turns
from turns import verdict

BATCH, IMAGES, SAMPLES = 64, 4096, 30
RATE = 1e-6

# form of the covariance, features, classes
HEADS = {
    "diagonal 512 to 10": ("diagonal", 512, 10),
    "low rank 3, 512 to 10": ("low_rank", 512, 10),
    "dense 512 to 10": ("dense", 512, 10),
    "diagonal 1024 to 100": ("diagonal", 1024, 100),
    "numbers, diagonal 512 to 1": ("diagonal", 512, 1),
    "numbers, diagonal 512 to 10": ("diagonal", 512, 10),
    "numbers, diagonal 1024 to 100": ("diagonal", 1024, 100),
    "numbers, dense 512 to 1": ("dense", 512, 1),
}
# contestants, case, mode, aim: the second is to take so many times as long as the first
FASTER = {
    "vbll": (
        (("tfuq", "vbll"), "diagonal 512 to 10", "train", 4),
        (("tfuq", "vbll"), "low rank 3, 512 to 10", "train", 8),
        (("tfuq", "vbll"), "dense 512 to 10", "train", 60),
        (("tfuq", "vbll"), "diagonal 1024 to 100", "train", 8),
        (("tfuq", "vbll"), "diagonal 1024 to 100", "predict", 1),
        (("tfuq", "vbll"), "diagonal 512 to 10", "train compiled", 4),
        (("tfuq", "vbll"), "low rank 3, 512 to 10", "train compiled", 8),
        (("tfuq", "vbll"), "dense 512 to 10", "train compiled", 60),
        (("tfuq", "vbll"), "diagonal 1024 to 100", "train compiled", 8),
    ),
    "numbers": (
        (("tfuq_numbers", "vbll_numbers"), "numbers, diagonal 512 to 1", "train", 4),
        (("tfuq_numbers", "vbll_numbers"), "numbers, diagonal 512 to 10", "train", 4),
        (("tfuq_numbers", "vbll_numbers"), "numbers, diagonal 1024 to 100", "train", 4),
        (("tfuq_numbers", "vbll_numbers"), "numbers, dense 512 to 1", "train", 40),
        (("tfuq_numbers", "vbll_numbers"), "numbers, diagonal 512 to 1", "train compiled", 4),
        (("tfuq_numbers", "vbll_numbers"), "numbers, diagonal 512 to 10", "train compiled", 4),
        (("tfuq_numbers", "vbll_numbers"), "numbers, diagonal 1024 to 100", "train compiled", 4),
        (("tfuq_numbers", "vbll_numbers"), "numbers, dense 512 to 1", "train compiled", 40),
        (("tfuq_numbers", "vbll_numbers"), "numbers, diagonal 512 to 1", "predict", 1),
    ),
    "flipout": (
        (("tfuq_plain", "flipout"), "diagonal 512 to 10", "train", 1),
        (("tfuq_plain", "flipout"), "diagonal 1024 to 100", "train", 1),
    ),
    "samples": ((("sample_predictions", "predict_30_times"), "small CNN", "predict", 10),),
}
# contestants, mode, aim: the first is to take at most so many times as long as the second
COSTS = (
    (("cnn_vbll", "cnn_dense"), "train", 1.25),
    (("cnn_vbll", "cnn_dense"), "predict", 1.5),
    (("cnn_vbll_numbers", "cnn_dense_numbers"), "train", 1.1),
)


# --- Contestants: each makes a function of nothing that does one step and waits for its end -----


def tfuq_head(case, mode, noise="learned"):
    from tfuq.layers import VBLLDense

    form, features, classes = HEADS[case]
    rank = 3 if form == "low_rank" else None
    options = {"posterior": form, "rank": rank, "noise": noise, "test_mc_samples": 20}
    return tensorflow_step(VBLLDense(classes, kl_weight=1e-4, **options), features, classes, mode)


def tfuq_plain_head(case, mode):
    return tfuq_head(case, mode, noise="none")


def flipout_head(case, mode):
    import tensorflow_probability as tfp

    _, features, classes = HEADS[case]

    def divergence(q, p, _):
        return 1e-4 * tfp.distributions.kl_divergence(q, p)

    head = tfp.layers.DenseFlipout(classes, kernel_divergence_fn=divergence)
    return tensorflow_step(lambda x, training: head(x), features, classes, mode, head)


def tensorflow_step(call, features, classes, mode, layer=None):
    import tensorflow as tf

    x = tf.random.stateless_normal((BATCH, features), [1, 2])
    y = tf.random.stateless_uniform((BATCH,), [3, 4], maxval=classes, dtype="int32")
    layer = layer or call
    call(x, training=True)
    variables = [tf_variable(v) for v in layer.trainable_variables]

    def predict(x, y):
        return tf.nn.softmax(call(x, training=False)), ()

    def train(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = call(x, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            loss = tf.reduce_mean(losses) + sum(layer.losses)
        *gradients, dx = tape.gradient(loss, [*variables, x])
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
        return loss, dx

    step = train if mode.startswith("train") else predict
    step = tf.function(step, jit_compile=mode.endswith("compiled"))
    return lambda: step(x, y)[0].numpy()


def tf_variable(variable):
    """TensorFlow's own variable, whose update is one operation."""
    return variable if callable(variable.value) else variable.value


def tfuq_numbers(case, mode):
    import tensorflow as tf

    from tfuq.layers import VBLLRegression

    form, features, units = HEADS[case]
    head = VBLLRegression(units, kl_weight=1e-4, posterior=form)
    loss_of = head.negative_log_likelihood()
    x = tf.random.stateless_normal((BATCH, features), [1, 2])
    y = tf.random.stateless_normal((BATCH, units), [3, 4])
    head(x)
    variables = [variable.value for variable in head.trainable_variables]

    def train(x, y):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = loss_of(y, head(x, training=True)) + sum(head.losses)
        *gradients, dx = tape.gradient(loss, [*variables, x])
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
        return loss, dx

    step = train if mode.startswith("train") else lambda x, y: (head(x), ())
    step = tf.function(step, jit_compile=mode.endswith("compiled"))
    return lambda: step(x, y)[0].numpy()


def vbll_numbers(case, mode):
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    import torch
    from vbll.layers.regression import Regression

    form, features, units = HEADS[case]
    head = Regression(features, units, 1e-4, parameterization=form)
    with torch.no_grad():  # at random it spans powers of ten, is NaN after some steps, and raises
        head.noise_logdiag.zero_()
    x, y = torch.randn(BATCH, features, requires_grad=True), torch.randn(BATCH, units)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE)

    def train():
        optimizer.zero_grad()
        x.grad = None
        head(x).train_loss_fn(y).backward()
        optimizer.step()

    @torch.no_grad()
    def predict():
        return head.predictive(x)

    return train if mode.startswith("train") else predict


def vbll_head(case, mode):
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # there, `vbll` is this file
    import torch
    from vbll.layers.classification import DiscClassification

    form, features, classes = HEADS[case]
    form = form.replace("low_rank", "lowrank")
    head = DiscClassification(features, classes, 1e-4, parameterization=form, cov_rank=3)
    x, y = torch.randn(BATCH, features, requires_grad=True), torch.randint(classes, (BATCH,))
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE)

    def train():
        optimizer.zero_grad()
        x.grad = None
        head(x).train_loss_fn(y).backward()
        optimizer.step()

    @torch.no_grad()
    def predict():
        return head.predictive(x, n_samples=20)

    return train if mode.startswith("train") else predict


def small_cnn(head):
    import keras

    layers = [keras.Input((32, 32, 3))]
    for filters in (32, 64, 64):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        layers.append(keras.layers.MaxPooling2D())
    layers += [keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"), head]
    return keras.Sequential(layers)


def cnn(head):
    """The steps of a small CNN with a head of ten classes."""

    def make(case, mode):
        import keras
        import tensorflow as tf

        from tfuq.layers import VBLLDense

        keras.utils.set_random_seed(0)
        last = keras.layers.Dense(10)
        if head == "vbll":
            last = VBLLDense(10, kl_weight=1e-4, test_mc_samples=SAMPLES)
        model = small_cnn(last)
        x = tf.random.stateless_uniform((BATCH, 32, 32, 3), [1, 2])
        y = tf.random.stateless_uniform((BATCH,), [3, 4], maxval=10, dtype="int32")
        variables = model.trainable_variables

        def predict(x, y):
            return tf.nn.softmax(model(x, training=False))

        def train(x, y):
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
                loss = tf.reduce_mean(losses) + sum(model.losses)
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(RATE * gradient)
            return loss

        step = tf.function(train if mode == "train" else predict)
        return lambda: step(x, y).numpy()

    return make


def cnn_of_numbers(head):
    """A training step of the small CNN with a head of one number."""

    def make(case, mode):
        import keras
        import tensorflow as tf

        from tfuq.layers import VBLLRegression

        keras.utils.set_random_seed(0)
        last = keras.layers.Dense(1) if head == "dense" else VBLLRegression(1, kl_weight=1e-4)
        loss_of = keras.losses.MeanSquaredError()
        loss_of = loss_of if head == "dense" else last.negative_log_likelihood()
        model = small_cnn(last)
        x = tf.random.stateless_uniform((BATCH, 32, 32, 3), [1, 2])
        y = tf.random.stateless_normal((BATCH, 1), [3, 4])
        variables = model.trainable_variables

        @tf.function
        def train(x, y):
            with tf.GradientTape() as tape:
                loss = loss_of(y, model(x, training=True)) + sum(model.losses)
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(RATE * gradient)
            return loss

        return lambda: train(x, y).numpy()

    return make


def sampled_cnn(function):
    """30 predictions for each image, by one of two roads."""

    def make(case, mode):
        import keras
        import numpy as np

        from tfuq.layers import VBLLDense
        from tfuq.predictive import sample_predictions

        head = VBLLDense(10, kl_weight=1e-4, test_mc_samples=1, sampling="iid", resample=True)
        model = small_cnn(head)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, jit_compile=False)
        x = np.random.default_rng(0).random((IMAGES, 32, 32, 3), dtype="float32")

        def by_sampling():
            return sample_predictions(model, x, SAMPLES, BATCH)

        def one_by_one():
            return np.stack([model.predict(x, BATCH, verbose=0) for _ in range(SAMPLES)])

        return by_sampling if function == "sample_predictions" else one_by_one

    return make


def posterior_predictive(case, mode):
    """`case` is a function of `tfuq.predictive`, `mode` the number of samples; 100 classes."""
    import keras
    import numpy as np

    from tfuq import predictive
    from tfuq.layers import VBLLDense

    model = keras.Sequential([keras.Input((64,)), VBLLDense(100, kl_weight=1e-4)])
    x = np.random.default_rng(0).normal(size=(IMAGES, 64)).astype("float32")
    function = getattr(predictive, case)
    function(model, x[:BATCH], 2, from_logits=True)  # so that the graphs' own memory is no growth
    return lambda: function(model, x, int(mode), batch_size=BATCH, from_logits=True)


CONTESTANTS = {
    "tfuq": tfuq_head,
    "tfuq_plain": tfuq_plain_head,
    "vbll": vbll_head,
    "flipout": flipout_head,
    "tfuq_numbers": tfuq_numbers,
    "vbll_numbers": vbll_numbers,
    "cnn_vbll_numbers": cnn_of_numbers("vbll"),
    "cnn_dense_numbers": cnn_of_numbers("dense"),
    "cnn_vbll": cnn("vbll"),
    "cnn_dense": cnn("dense"),
    "sample_predictions": sampled_cnn("sample_predictions"),
    "predict_30_times": sampled_cnn("predict"),
    "posterior_predictive": posterior_predictive,
}


# --- Processes ---------------------------------------------------------------------------------


def start(pythons, contestant, case, mode):
    python = pythons.get(contestant.removesuffix("_numbers"), sys.executable)
    legacy = {"TF_USE_LEGACY_KERAS": "1"} if contestant == "flipout" else {}
    command = (__file__, "--worker", contestant, case, mode)
    return turns.Process(*command, python=python, environment=legacy)


def measure_times(pythons, contestants, case, mode, rounds):
    """Median milliseconds of two contestants in turns, and the second's over the first's, of the
    clock and of the processor.
    """
    processes = [start(pythons, name, case, mode) for name in contestants]
    slow = case == "dense 512 to 10" or contestants[0] == "sample_predictions"
    few = "dense" in case or contestants[0].startswith("cnn")  # steps of milliseconds
    repeats = 1 if slow else 10 if few else 50
    found = turns.take_turns(processes, rounds, repeats)
    return *found.times, found.ratios[1], found.processor_ratios[1]


def measure_memory(pythons, contestant, case, mode):
    process = start(pythons, contestant, case, mode)
    process.close()
    return process.grown


# --- Report ------------------------------------------------------------------------------------


def report_faster(pythons, rows, rounds):
    first, second = rows[0][0]
    print(f"\nMilliseconds, medians of {rounds} rounds\n")
    print(f"| case | mode | {first} | {second} | ratio | of the processor | at least | reached |")
    print("|" + " --- |" * 8)
    told = []
    for contestants, case, mode, aim in rows:
        ours, theirs, ratio, own = measure_times(pythons, contestants, case, mode, rounds)
        cells = f"{ours:.2f} | {theirs:.2f} | {ratio:.2f} | {own:.2f} | {aim}"
        print(f"| {case} | {mode} | {cells} | {verdict(ratio >= aim)} |", flush=True)
        row = {"case": case, "mode": mode, first: ours, second: theirs, "ratio": ratio}
        told.append({**row, "processor_ratio": own, "at_least": aim})
    return told


def report_costs(pythons, rounds):
    print(f"\nA small CNN, batch of {BATCH}; milliseconds, medians of {rounds} rounds\n")
    print("| step | VBLL head | Dense head | ratio | of the processor | at most | reached |")
    print("|" + " --- |" * 7)
    told = []
    for (ours, dense), mode, aim in COSTS:
        # Asked for the other way round, the ratio of the rounds is that of the costs.
        theirs, mine, ratio, own = measure_times(pythons, (dense, ours), "", mode, rounds)
        cells = f"{mine:.2f} | {theirs:.2f} | {ratio:.2f} | {own:.2f} | {aim}"
        step = f"{mode}, numbers" if ours.endswith("numbers") else mode
        print(f"| {step} | {cells} | {verdict(ratio <= aim)} |", flush=True)
        row = {"step": step, "vbll": mine, "dense": theirs, "ratio": ratio}
        told.append({**row, "processor_ratio": own, "at_most": aim})
    return told


def report_memory(pythons):
    print("\nGrowth of memory at the first three training steps, MB\n")
    print("| case | tfuq | vbll | tfuq / vbll | at most | reached |")
    print("| --- | --- | --- | --- | --- | --- |")
    case = "dense 512 to 10"
    ours, theirs = (measure_memory(pythons, name, case, "train") for name in ("tfuq", "vbll"))
    ratio = ours / theirs
    print(f"| {case} | {ours:.0f} | {theirs:.0f} | {ratio:.3f} | 0.1 | {verdict(ratio <= 0.1)} |")
    print(f"\nGrowth of memory, MB, {IMAGES} examples, 100 classes\n")
    print("| function | 30 samples | 300 samples |")
    print("| --- | --- | --- |")
    for function in ("predict_uncertainty", "sample_predictions"):
        few, many = (
            measure_memory(pythons, "posterior_predictive", function, count)
            for count in ("30", "300")
        )
        print(f"| {function} | {few:.0f} | {many:.0f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=3, help="contestant, case, mode (internal)")
    parser.add_argument("--vbll-python", default=".venv-vbll/bin/python")
    parser.add_argument("--legacy-python", default=".venv-edward2/bin/python")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=pathlib.Path, help="adds the rows of times to this file")
    parser.add_argument("--parts", nargs="*", default=[*FASTER, "costs", "memory"])
    arguments = parser.parse_args()
    if arguments.worker:
        contestant, case, mode = arguments.worker
        return turns.serve(CONTESTANTS[contestant](case, mode))
    pythons = {"vbll": arguments.vbll_python, "flipout": arguments.legacy_python}
    for part in arguments.parts:
        rows = ()
        if part == "costs":
            rows = report_costs(pythons, arguments.rounds)
        elif part == "memory":
            report_memory(pythons)
        else:
            rounds = min(arguments.rounds, 5) if part == "samples" else arguments.rounds
            rows = report_faster(pythons, FASTER[part], rounds)
        if arguments.json and rows:
            record(arguments.json, part, rows)


def record(path, part, rows):
    """Writes the rows of a part into a file beside those of the other parts."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    threads = {n: os.environ.get(n) for n in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}
    found[part] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], **threads, "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
