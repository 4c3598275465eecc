"""Same model, same input, same answer: however it is compiled, loaded, fed or served.

Each model is built once. The reference is plain Keras on all examples at once, and for a head whose
draws are random what one call gives.
"""

import functools
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.export import export, export_litert, export_onnx, verify_export
from tfuq.layers import (
    MCSigmoidDenseFA,
    MCSigmoidDenseXL,
    MCSoftmaxDenseFA,
    MCSoftmaxDenseXL,
    SNGPDense,
    VBLLDense,
    VBLLGenerativeDense,
)
from tfuq.predictive import predict_uncertainty

X = np.random.default_rng(0).normal(size=(7, 5)).astype("float32")
DRAWS, CLOSE = 4, 1e-6
FEW = {"num_factors": 2, "test_mc_samples": 16, "logits_only": True}

HEADS = {
    "soft-max": lambda: keras.layers.Dense(3, "softmax"),
    "sigmoid": lambda: keras.layers.Dense(1, "sigmoid"),
    "VBLLDense": lambda: VBLLDense(3, kl_weight=0.1),
    "VBLLGenerativeDense": lambda: VBLLGenerativeDense(3, kl_weight=0.1),
    "VBLLDense of labels": lambda: VBLLDense(3, kl_weight=0.1, likelihood="bernoulli"),
    "MCSoftmaxDenseFA": lambda: MCSoftmaxDenseFA(3, **FEW),
    "MCSoftmaxDenseFA of a VBLL": lambda: MCSoftmaxDenseFA(
        3, **FEW, last_layer="vbll", kl_weight=0.1
    ),
    "SNGPDense": lambda: SNGPDense(3, num_features=16),
    "MCSigmoidDenseFA": lambda: MCSigmoidDenseFA(3, **FEW),
    "MCSoftmaxDenseXL": lambda: MCSoftmaxDenseXL(3, **FEW),
    "MCSigmoidDenseXL": lambda: MCSigmoidDenseXL(3, **FEW),
}
OF_LABELS = ("sigmoid", "VBLLDense of labels", "MCSigmoidDenseFA", "MCSigmoidDenseXL")
QUICK = ("soft-max",)  # of the exports, which take seconds each


@functools.cache
def made(head):
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(4, "tanh"), HEADS[head]()]
    return keras.Sequential([keras.Input((5,)), *layers])


def compiled(head):
    model = made(head)
    kind = "BinaryCrossentropy" if head in OF_LABELS else "SparseCategoricalCrossentropy"
    is_logits = head not in ("soft-max", "sigmoid")
    model.compile("sgd", getattr(keras.losses, kind)(from_logits=is_logits), jit_compile=False)
    return model


def loaded(head, folder, **options):
    made(head).save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras", **options)


class Batches(keras.utils.PyDataset):
    num_batches = 3

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[3 * i : 3 * i + 3]


def answer(model, data=X, batch_size=32):
    return predict_uncertainty(model, data, DRAWS, batch_size).probs


def draws(head):
    return "VBLL" in head or head == "SNGPDense"


@functools.cache
def expected(head):
    if draws(head):
        return answer(made(head))
    outputs = made(head).predict(X, verbose=0)
    links = {"MCSoftmax": keras.ops.softmax, "MCSigmoid": keras.ops.sigmoid}
    link = links.get(head.partition("Dense")[0], keras.ops.convert_to_tensor)
    return keras.ops.convert_to_numpy(link(outputs))


WAYS = {
    "not compiled": lambda head, folder: answer(made(head)),
    "compiled": lambda head, folder: answer(compiled(head)),
    "reloaded": lambda head, folder: answer(loaded(head, folder)),
    "reloaded, not compiled": lambda head, folder: answer(loaded(head, folder, compile=False)),
    "one at a time": lambda head, folder: answer(made(head), batch_size=1),
    "by calls of one": lambda head, folder: np.concatenate(
        [answer(made(head), X[i : i + 1]) for i in range(len(X))]
    ),
    "in batches": lambda head, folder: answer(made(head), batch_size=3),
    "in float64": lambda head, folder: answer(made(head), X.astype("float64")),
    "tf.data": lambda head, folder: answer(
        made(head), tf.data.Dataset.from_tensor_slices(X).batch(3)
    ),
    "PyDataset": lambda head, folder: answer(made(head), Batches()),
}
FORMATS = {
    "SavedModel": (export, "model"),
    "LiteRT": (export_litert, "model.tflite"),
    "ONNX": (export_onnx, "model.onnx"),
}


@pytest.mark.slow_product
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", HEADS)
def test_in_python(head, way, tmp_path, counts):
    np.testing.assert_allclose(WAYS[way](head, tmp_path), expected(head), rtol=0, atol=CLOSE)
    counts("ways to the same answer")


def exported():
    for head in HEADS:
        for kind in FORMATS:
            yield pytest.param(
                head, kind, marks=() if head in QUICK else pytest.mark.slow, id=f"{head}-{kind}"
            )


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("head, kind", exported())
def test_in_exports(head, kind, tmp_path, counts):
    if kind == "ONNX" and not all(
        map(importlib.util.find_spec, ("tf2onnx", "onnx", "onnxruntime"))
    ):
        pytest.skip('tf2onnx is not installed: pip install "tfuq[onnx]"')
    write, name = FORMATS[kind]
    write(made(head), tmp_path / name, **({"num_samples": DRAWS} if draws(head) else {}))
    for rows in (slice(None), slice(0, 1), slice(2, 5)):
        given = {"probabilities": expected(head)[rows]}
        verify_export(tmp_path / name, X[rows], given, tolerance=CLOSE)
    counts("ways to the same answer")
