"""One pass over any data: the right predictions beside the right labels, each example once."""

import math
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import two_devices

from tfuq._models.outputs import select_output
from tfuq._models.predicting import Labelled, check_validation_data, predict_with_labels

EXAMPLES, BATCH = 37, 8
X = np.random.default_rng(0).normal(size=(EXAMPLES, 3)).astype("float32")
Y = np.arange(EXAMPLES)  # distinct, so that a label out of step shows
WEIGHT = np.linspace(1, 2, EXAMPLES).astype("float32")


class Batches(keras.utils.PyDataset):
    """Batches of `arrays`, whose `reads` are counted."""

    def __init__(self, *arrays, **kwargs):
        super().__init__(**kwargs)
        self.arrays, self.reads = arrays, 0

    def __len__(self):
        return math.ceil(len(self.arrays[0]) / BATCH)

    def __getitem__(self, index):
        self.reads += 1
        rows = slice(index * BATCH, (index + 1) * BATCH)
        parts = tuple(array[rows] for array in self.arrays)
        return parts if len(parts) > 1 else parts[0]


class Endless(Batches):
    num_batches = None


def tensors(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)


def unknown_length(*arrays):
    return tensors(*arrays).filter(lambda *parts: True)


def shuffled(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).shuffle(EXAMPLES).batch(BATCH)


def threads(*arrays):
    return Batches(*arrays, workers=2)


def arrays(*arrays):
    return arrays


KINDS = [arrays, tensors, unknown_length, shuffled, Batches, threads]


def doubling(**compiled):
    """A model whose prediction is twice its input."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(2.0)])
    model.compile(**compiled)
    return model


def in_order(found):
    """The arrays of `found`, in the order of the (distinct) labels."""
    order = np.argsort(found["y_true"])
    return {name: np.asarray(value)[order] for name, value in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_example_once_with_its_label_and_weight(kind):
    labelled = Labelled(doubling(), None)
    for _ in range(2):
        found = in_order(predict_with_labels(labelled, kind(X, Y, WEIGHT)))
        np.testing.assert_array_equal(found["y_true"], Y)
        np.testing.assert_array_equal(found["y_pred"], 2 * X)
        np.testing.assert_array_equal(found["weight"], WEIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_no_weight(kind):
    found = predict_with_labels(Labelled(doubling(), None), kind(X, Y))
    assert set(found) == {"y_pred", "y_true"}


@pytest.mark.parametrize(
    "compiled",
    [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3}],
    ids=lambda compiled: next(iter(compiled)),
)
@pytest.mark.parametrize("kind", [arrays, tensors, unknown_length])
def test_as_the_model_was_compiled(kind, compiled):
    labelled = Labelled(doubling(**compiled), None)
    found = in_order(predict_with_labels(labelled, kind(X, Y)))
    np.testing.assert_array_equal(found["y_true"], Y)
    np.testing.assert_array_equal(found["y_pred"], 2 * X)
    assert labelled.jit_compile is bool(compiled.get("jit_compile", doubling().jit_compile))
    assert labelled.run_eagerly is bool(compiled.get("run_eagerly"))


@pytest.mark.parametrize("kind", [arrays, tensors, Batches])
def test_two_replicas_see_each_example_once(kind):
    with two_devices().scope():
        labelled = Labelled(doubling(), None)
    found = in_order(predict_with_labels(labelled, kind(X, Y)))
    np.testing.assert_array_equal(found["y_true"], Y)
    np.testing.assert_array_equal(found["y_pred"], 2 * X)


def test_dataset_is_read_once():
    reads = []

    def generate():
        for row in zip(X, Y, strict=True):
            reads.append(1)
            yield row

    signature = (tf.TensorSpec((3,)), tf.TensorSpec((), "int64"))
    data = tf.data.Dataset.from_generator(generate, output_signature=signature).batch(BATCH)
    predict_with_labels(Labelled(doubling(), None), data)
    assert len(reads) == EXAMPLES


def test_py_dataset_is_read_once_but_for_what_keras_peeks_at():
    data = Batches(X, Y)
    doubling().predict(data, verbose=0)
    expected, data.reads = data.reads, 0
    predict_with_labels(Labelled(doubling(), None), data)
    assert data.reads == expected


def test_half_precision_comes_out_as_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    found = predict_with_labels(Labelled(doubling(), None), (X, Y))
    assert found["y_pred"].dtype == "float32"
    np.testing.assert_allclose(found["y_pred"], 2 * X, rtol=2**-7)


# --- Choosing an output ------------------------------------------------------------------------


class Heads(NamedTuple):
    logits: object
    probs: object


@keras.saving.register_keras_serializable(package="test_labelled")
class TwoHeads(keras.layers.Layer):
    def call(self, x):
        return Heads(x, 2 * x)


@pytest.mark.parametrize("output", [1, "probs", lambda heads: heads.probs])
def test_output_of_a_named_tuple(output):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.heads = TwoHeads()

        def call(self, x):
            return self.heads(x)

    found = predict_with_labels(Labelled(Subclassed(), output), tensors(X, Y))
    np.testing.assert_array_equal(found["y_pred"], 2 * X)
    np.testing.assert_array_equal(found["y_true"], Y)


@pytest.mark.parametrize("output", ["b", lambda outputs: outputs["b"]])
@pytest.mark.parametrize("kind", [arrays, tensors])
def test_output_and_labels_by_key(output, kind):
    x = keras.Input((3,))
    model = keras.Model(x, {"a": x, "b": keras.layers.Rescaling(2.0)(x)})
    labels = {"a": -Y, "b": Y}
    if kind is arrays:
        data = (X, labels)
    else:
        data = tf.data.Dataset.from_tensor_slices((X, labels)).batch(BATCH)
    found = predict_with_labels(Labelled(model, output), data)
    np.testing.assert_array_equal(found["y_pred"], 2 * X)
    np.testing.assert_array_equal(found["y_true"], Y)


@pytest.mark.parametrize("output", ["c", 2, "__len__"])
def test_unknown_output_raises(output):
    with pytest.raises(ValueError, match=r"Argument `output` must be .*Received: output="):
        select_output(Heads(X, X) if output == "__len__" else {"a": X, "b": X}, output)


def test_output_must_be_said_if_and_only_if_there_are_several():
    model = keras.Sequential([keras.Input((3,)), TwoHeads()])
    with pytest.raises(ValueError, match=r"Argument `output` .*Received: output=None"):
        predict_with_labels(Labelled(model, None), (X, Y))
    with pytest.raises(ValueError, match=r"Argument `output` .*Received: output=0"):
        predict_with_labels(Labelled(doubling(), 0), (X, Y))


# --- Data that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y[:-1]), r"one length of at least 1\. Received: lengths \[37, 36\]"),
        ((X, Y, WEIGHT[1:]), r"one length of at least 1\. Received: lengths \[37, 37, 36\]"),
        (({"a": X, "b": X[:5]}, Y), r"one length of at least 1\. Received: lengths \[37, 5, 37\]"),
        ((X[:0], Y[:0]), r"one length of at least 1\. Received: lengths \[0, 0\]"),
        ((X,), r"\(x, y, sample_weight\)\. Received: a tuple of 1"),
        ((X, None), r"hold arrays, labels among them"),
        ((X, [0, 1]), r"hold arrays, labels among them"),
        (X, r"PyDataset\. Received: ndarray"),
        (iter([(X, Y)]), r"PyDataset\. Received: list_iterator"),
        (tensors(X, Y).repeat(), r"be finite: .*end .*Received: an infinite dataset"),
        (tensors(X, Y).take(0), r"at least one batch\. Received: an empty dataset"),
        (tensors(X, Y).unbatch(), r"be batched: .*Received: elements of"),
        (tf.data.Dataset.from_tensor_slices(X).batch(4), r"give \(x, y\) .*Received: elements of"),
        (Batches(X[:0], Y[:0]), r"at least one batch\. Received: an empty dataset"),
        (Endless(X, Y), r"be finite: .*end .*Received: an infinite dataset"),
    ],
)
def test_unreadable_data_raise(data, message):
    with pytest.raises(ValueError, match=r"Argument `validation_data` must .*" + message):
        check_validation_data(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (unknown_length(X, Y).filter(lambda x, y: False), "at least one batch"),
        (Batches(X), r"give \(x, y\)"),
    ],
    ids=["empty", "without labels"],
)
def test_what_only_the_pass_can_tell_raises(data, message):
    check_validation_data(data)
    with pytest.raises(ValueError, match=r"Argument `validation_data` must .*" + message):
        predict_with_labels(Labelled(doubling(), None), data)
