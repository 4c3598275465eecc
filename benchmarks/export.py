"""What an export with its uncertainty costs: size, latency beside the plain model's, agreement.

    make bench-export

A residual network for 64 x 64 images with one head after another, each exported by
`tfuq.export.export` and loaded with TensorFlow alone; the plain one is exported by Keras. All take
turns in one process, on one thread; a ratio is the median of the rounds' ratios to the plain model.
Serving a VBLL head with 30 samples, or a heteroscedastic head with 10 factors, is to take at most
1.5 times the plain model.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tfuq

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
import rapid_training as base

CLASSES, SAMPLES, MEMBERS = 10, 30, 5
SHAPE, BATCHES = (64, 64, 3), (1, 64)
ROUNDS, LEAST_MS = 15, 40  # of each contestant in a round
KL = 1e-4


def network(head, width=16):
    keras.utils.set_random_seed(0)
    trunk = base.build_trunk(SHAPE, base.Settings(width=width))
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, head(trunk(inputs)))


def dropped(x):
    return keras.layers.Dense(CLASSES)(tfuq.layers.MCDropout(0.5)(x))


def kinds():
    """Name, model, arguments of `export`, and what Python predicts for images."""
    dense = keras.layers.Dense
    vbll, variational = tfuq.layers.VBLLDense, tfuq.layers.DenseVariational
    sampled = {"num_samples": SAMPLES}

    def of_samples(model):
        return lambda x: tfuq.predictive.predict_uncertainty(model, x, SAMPLES).probs

    def of_predict(model):
        return lambda x: tf.nn.softmax(model.predict(x, verbose=0)).numpy()

    for name, model in {
        "VBLL head, 30 samples": network(vbll(CLASSES, kl_weight=KL)),
        "dropout before the head, 30 samples": network(dropped),
        "variational head, 30 samples": network(variational(CLASSES, kl_weight=KL)),
    }.items():
        yield name, model, sampled, of_samples(model)
    model = network(tfuq.layers.MCSoftmaxDenseFA(CLASSES, num_factors=10, logits_only=True))
    yield "heteroscedastic head, 10 factors", model, {}, of_predict(model)
    model = network(dense(CLASSES))
    yield "plain head", model, {}, of_predict(model)
    ensemble = tfuq.ensembles.DeepEnsemble.from_models(
        [network(dense(CLASSES)) for _ in range(MEMBERS)]
    )
    yield "ensemble of 5", ensemble, {}, lambda x: ensemble.predict_mixture(x, from_logits=True)


def size_of(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())


def milliseconds(function, x):
    """Of one call, from as many calls as take `LEAST_MS`."""
    start, calls = time.perf_counter(), 0
    while (spent := (time.perf_counter() - start) * 1e3) < LEAST_MS:
        function(x)
        calls += 1
    return spent / calls


def in_turns(served, x):
    """Times by name, a list of one for each round."""
    for function in served.values():
        function(x)
    times = {name: [] for name in served}
    for _ in range(ROUNDS):
        for name, function in served.items():
            times[name].append(milliseconds(function, x))
    return times


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    x = np.random.default_rng(0).integers(256, size=(max(BATCHES), *SHAPE)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        plain = network(keras.layers.Dense(CLASSES))
        plain.export(root / "plain", verbose=False)
        loaded, sizes, agreement = {"plain": tf.saved_model.load(root / "plain")}, {}, {}
        sizes["plain"] = size_of(root / "plain")
        for name, model, arguments, predicted in kinds():
            path = root / name.replace(" ", "_")
            tfuq.export.export(model, path, from_logits=True, **arguments)
            loaded[name], sizes[name] = tf.saved_model.load(path), size_of(path)
            found = loaded[name].serve(x)["probabilities"].numpy()
            agreement[name] = np.abs(found - predicted(x)).max()
        served = {name: model.serve for name, model in loaded.items()}
        print("| model | MB | largest difference from Python | batch | ms | times plain |")
        print("| --- | --: | --: | --: | --: | --: |")
        for batch in BATCHES:
            times = in_turns(served, tf.constant(x[:batch]))
            for name, own in times.items():
                ratio = statistics.median(a / b for a, b in zip(own, times["plain"], strict=True))
                differs = f"{agreement[name]:.1e}" if name in agreement else ""
                figures = f"{batch} | {statistics.median(own):.2f} | {ratio:.2f}"
                print(f"| {name} | {sizes[name] / 1e6:.2f} | {differs} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
