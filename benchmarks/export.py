"""What an export with its uncertainty costs: size, latency beside the plain model's, agreement.

    make bench-export

A residual network for 64 x 64 images with one head after another, exported as SavedModel, as LiteRT
file of float32, float16 and int8 weights, and as ONNX file where tf2onnx is installed. The plain
model is the same network with logits alone: exported by Keras, and converted from that or from the
Keras model. Of each format all take turns in one process, on one thread; a ratio is the median of
the rounds' ratios to the plain model of the same format. Serving a VBLL head with 30 samples, or a
heteroscedastic head with 10 factors, is to take at most 1.5 times the plain model.
"""

import argparse
import importlib.util
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
from tfuq.export._runtimes import ONNX, LiteRT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))
import rapid_training as base

PLAIN = ("plain", None, {}, None, None)
CLASSES, SAMPLES, MEMBERS = 10, 30, 5
SHAPE, BATCHES = (64, 64, 3), (1, 64)
ROUNDS, LEAST_MS = 15, 40  # of each contestant in a round
KL = 1e-4


def network(head, width=16, seed=0):
    keras.utils.set_random_seed(seed)
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
        # Of members that are equal, a converter would keep one.
        [network(dense(CLASSES), seed=seed) for seed in range(MEMBERS)]
    )
    yield "ensemble of 5", ensemble, {}, lambda x: ensemble.predict_mixture(x, from_logits=True)


def size_of(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def plain_saved_model(folder, path):
    del folder
    network(keras.layers.Dense(CLASSES)).export(path, verbose=False)


def plain_litert(weights):
    def write(folder, path):
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
        converter.optimizations = [] if weights == "float32" else [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16] if weights == "float16" else []
        path.write_bytes(converter.convert())

    return write


def plain_onnx(folder, path):
    import tf2onnx

    spec = tf.TensorSpec((None, *SHAPE), "float32", "inputs")
    model = network(keras.layers.Dense(CLASSES))
    call = tf.function(lambda inputs: model(inputs, training=False), input_signature=[spec])
    tf2onnx.convert.from_function(call, [spec], opset=18, output_path=str(path))


def run_saved_model(path):
    model = tf.saved_model.load(str(path))
    return lambda x: model.serve(tf.constant(x))


def run_by(runtime):
    def run(path):
        model = runtime(path)
        return lambda x: model({model.inputs[0]: x})

    return run


def formats():
    """Name, how it is written by tfuq, how the plain model is, and what runs it."""
    yield "SavedModel", tfuq.export.export, {}, plain_saved_model, run_saved_model
    for weights in ("float32", "float16", "int8"):
        arguments = {"weights": weights}
        name = f"LiteRT, {weights}"
        yield name, tfuq.export.export_litert, arguments, plain_litert(weights), run_by(LiteRT)
    if all(map(importlib.util.find_spec, ("tf2onnx", "onnx", "onnxruntime"))):
        yield "ONNX", tfuq.export.export_onnx, {}, plain_onnx, run_by(ONNX)
    else:
        print("ONNX is left out: tf2onnx is not installed")


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
    known = [(*kind, kind[3](x)) for kind in kinds()]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        plain_saved_model(None, root / "plain")
        heads = [f"ms, batch {batch} | times plain" for batch in BATCHES]
        print(f"| format | model | MB | difference from Python | {' | '.join(heads)} |")
        print(f"| --- | --- | --: | --: |{' --: | --: |' * len(BATCHES)}")
        for number, (kind, write, own, write_plain, run) in enumerate(formats()):
            models, columns = {}, {}
            for name, model, arguments, _, expected in [PLAIN, *known]:
                path = root / f"{number}-{name}"
                if model is None:
                    write_plain(root / "plain", path)
                else:
                    write(model, path, from_logits=True, **arguments, **own)
                models[name] = run(path)
                columns[name] = f"{size_of(path) / 1e6:.2f} | "
                if model is not None:
                    found = np.asarray(models[name](x)["probabilities"])
                    columns[name] += f"{np.abs(found - expected).max():.1e}"
            for batch in BATCHES:
                times = in_turns(models, x[:batch])
                for name, mine in times.items():
                    ratio = statistics.median(
                        a / b for a, b in zip(mine, times["plain"], strict=True)
                    )
                    columns[name] += f" | {statistics.median(mine):.2f} | {ratio:.2f}"
            for name, figures in columns.items():
                print(f"| {kind} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
