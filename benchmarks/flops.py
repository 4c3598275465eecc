"""Floating-point operations of a training step and of inference, from TensorFlow's profiler.

    make bench-flops

As the paper counts its table 1: operations that TensorFlow's own profiler knows, of the graph of a
step on one batch. What a graph calls is counted with it; of a condition, such as the one that asks
whether weights are selected, the branch that is taken once they are.

The paper's column is for whole trainings: deterministic 1, an ensemble of 5 members 5, partial 1 %
3.36, 5 % 3.45, 20 % 3.8, fully Bayesian 15 (which took more epochs). Ours: the first half of the
epochs is deterministic, the second has 5 samples per step; fully Bayesian has them all along, for
as many epochs as the others.
"""

import argparse
import contextlib
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))

import keras
import numpy as np
import tensorflow as tf
from architectures import resnet18, unet
from tensorflow.python.framework import ops
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

from tfuq import convert

BATCH, SAMPLES = 8, 5
PAPER = {"1 %": 3.36, "5 %": 3.45, "20 %": 3.8, "fully Bayesian": 15.0}
SHARES = {"1 %": 0.01, "5 %": 0.05, "20 %": 0.2, "fully Bayesian": 1.0}
NETWORKS = {
    "ResNet-18, 28 x 28": lambda: resnet18(classes=14, shape=(28, 28, 1)),
    "U-Net, 64 x 64": lambda: unet(width=16, depth=4, shape=(64, 64, 1)),
}
CALLS = {
    "PartitionedCall": "f",
    "StatefulPartitionedCall": "f",
    "If": "then_branch",
    "StatelessIf": "then_branch",
}


def flops(function, *arrays):
    """Operations of one call of `function` on arrays of these shapes."""
    specs = [tf.TensorSpec(array.shape, array.dtype) for array in arrays]
    graph = tf.function(function).get_concrete_function(*specs).graph
    return graph_flops(graph, graph.as_graph_def(add_shapes=True).library)


def graph_flops(graph, library):
    """What the profiler's register says of `graph`, and of the functions of `library` it calls."""
    functions = {each.signature.name: each for each in library.function}
    total = 0
    for op in reached(graph):
        # Like the profiler, which says nothing of operations whose shapes are not known.
        with contextlib.suppress(ValueError):
            total += ops.get_stats_for_node_def(graph, op.node_def, "flops").value or 0
        if op.type in CALLS:
            called = functions[op.get_attr(CALLS[op.type]).name]
            shapes = [tensor.shape for tensor in op.inputs][op.type.endswith("If") :]
            total += graph_flops(function_def_to_graph(called, input_shapes=shapes), library)
    return total


def reached(graph):
    """The operations that the outputs depend on, which are those that run."""
    found, waiting = {}, [tensor.op for tensor in graph.outputs]
    while waiting:
        op = waiting.pop()
        if id(op) not in found:
            found[id(op)] = op
            waiting += [tensor.op for tensor in op.inputs]
    return list(found.values())


def training_step(model, loss):
    """Loss and gradients of one batch, as a function."""

    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True)) + sum(model.losses)
        variables = [variable.value for variable in model.trainable_variables]
        return [g for g in tape.gradient(value, variables) if g is not None]

    return step


def counts(make):
    """Operations `{name: (training step, inference)}` of all forms of a network."""
    model = make()
    x = np.random.default_rng(0).normal(size=(BATCH, *model.input_shape[1:])).astype("float32")
    y = (model(x).numpy() > 0).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    found = {"deterministic": step_and_inference(model, loss, x, y)}
    for name, share in SHARES.items():
        for estimator in ("reparameterization", "local_reparameterization"):
            random = convert.sparse_bayesian(
                model, (x, y), loss, share, kl_weight=1e-4, estimator=estimator
            )
            found[name, estimator] = step_and_inference(random, loss, x, y)
    return found


def step_and_inference(model, loss, x, y):
    return (
        flops(training_step(model, loss), x, y),
        flops(lambda x: model(x, training=False), x),
    )


def training_ratio(name, step):
    """Of a whole training, where `step` is the ratio of a step with one sample."""
    bayesian = SAMPLES * step
    return bayesian if name == "fully Bayesian" else (1 + bayesian) / 2


def report(network):
    found = counts(NETWORKS[network])
    step, inference = found.pop("deterministic")
    per_example = f"{step / BATCH / 1e9:.2f} and {inference / BATCH / 1e9:.2f} GFLOP an example"
    print(f"\n{network}: deterministic training and inference {per_example}\n")
    print("| share | estimator | step, 1 sample | step, 5 samples | training | paper's training |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("| ensemble of 5 | | 5.00 | | 5.00 | 5 |")
    for (name, estimator), (own, _) in found.items():
        ratio = own / step
        cells = f"{ratio:.2f} | {SAMPLES * ratio:.2f} | {training_ratio(name, ratio):.2f}"
        print(f"| {name} | {estimator} | {cells} | {PAPER[name]} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    for network in parser.parse_args().networks:
        report(network)


if __name__ == "__main__":
    main()
