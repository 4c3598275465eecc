"""Heads under losses that misread them: the first step of a training tells."""

import keras
import numpy as np
import pytest

from tfuq.layers import MCSigmoidDenseFA, MCSoftmaxDenseFA, MCSoftmaxDenseXL, VBLLDense

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
CLASSES, LABELS = np.arange(12) % 3, np.eye(3)[np.arange(12) % 3]
HEADS = {
    "VBLLDense": (lambda **kw: VBLLDense(3, kl_weight=0.1, **kw), CLASSES),
    "MCSoftmaxDenseFA": (lambda **kw: MCSoftmaxDenseFA(3, 2, **kw), CLASSES),
    "MCSoftmaxDenseXL": (lambda **kw: MCSoftmaxDenseXL(3, 2, **kw), CLASSES),
    "MCSigmoidDenseFA": (lambda **kw: MCSigmoidDenseFA(3, 2, **kw), LABELS),
}
EXCLUSIVE = (keras.losses.SparseCategoricalCrossentropy, "sparse_categorical_crossentropy")
INDEPENDENT = (keras.losses.BinaryCrossentropy, "binary_crossentropy")
LOSSES = {"MCSigmoidDenseFA": INDEPENDENT}


def model_of(head, style):
    if style == "sequential":
        return keras.Sequential([keras.Input((4,)), head])
    inputs = keras.Input((4,))
    return keras.Model(inputs, head(inputs))


@pytest.mark.parametrize("style", ["sequential", "functional"])
@pytest.mark.parametrize("name", HEADS)
def test_a_loss_of_probabilities_is_refused(name, style):
    make, y = HEADS[name]
    model = model_of(make(logits_only=True), style)
    loss, loss_name = LOSSES.get(name, EXCLUSIVE)
    for wrong in (loss(), loss_name):
        model.compile("sgd", wrong)
        with pytest.raises(ValueError, match="from_logits"):
            model.fit(X, y, verbose=0)
    model.compile("sgd", loss(from_logits=True))
    assert np.isfinite(model.fit(X, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("name", HEADS)
def test_a_tuple_under_one_loss_is_refused(name):
    make, y = HEADS[name]
    model = model_of(make(logits_only=False), "functional")
    model.compile("sgd", LOSSES.get(name, EXCLUSIVE)[1])
    with pytest.raises(ValueError, match="logits_only"):
        model.fit(X, y, verbose=0)


@pytest.mark.parametrize("name", HEADS)
def test_the_logits_of_a_tuple_are_trained(name):
    make, y = HEADS[name]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, make(logits_only=False)(inputs).logits)
    model.compile("sgd", LOSSES.get(name, EXCLUSIVE)[0](from_logits=True))
    assert np.isfinite(model.fit(X, y, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("name", HEADS)
def test_losses_by_field_name(name, tmp_path):
    """A named tuple of losses, one of the logits alone; the same after loading."""
    make, y = HEADS[name]
    head = make(logits_only=False)
    nothing = [None] * (len(head.output_type._fields) - 1)
    loss = LOSSES.get(name, EXCLUSIVE)[0](from_logits=True)
    model = model_of(head, "functional")
    model.compile("sgd", head.output_type(loss, *nothing), jit_compile=False)
    assert np.isfinite(model.fit(X, y, verbose=0).history["loss"]).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = [each.evaluate(X, y, verbose=0) for each in (model, loaded)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    logits = keras.Model(model.inputs, model.output.logits)
    logits.compile("sgd", loss, jit_compile=False)
    assert logits.evaluate(X, y, verbose=0) == pytest.approx(found[0], abs=1e-6)
