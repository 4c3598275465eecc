"""Masks with a promised recall."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.export import export, export_litert, export_onnx
from tfuq.export._runtimes import ONNX, LiteRT
from tfuq.selective import MaskRiskControl, RejectionRule

RNG = np.random.default_rng(5)
ALPHA = 0.1


def images(n, labels, side=4):
    """Probabilities that are too high, and masks that follow others; each label is a simulation."""
    level = RNG.normal(size=(n, 1, 1, labels))  # images differ
    z = level + RNG.normal(size=(n, side, side, labels))
    marked = RNG.random(z.shape) < 1 / (1 + np.exp(-z))
    return (1 / (1 + np.exp(-0.5 * z - 1))).astype("float32"), marked


def recalls(n, labels):
    """Mean recall on 20 new images of each label, which is a simulation of its own."""
    probs, marked = images(n, labels)
    sets = MaskRiskControl.fit(probs, marked, alpha=ALPHA, multi_label=True)
    new, truth = images(20, labels)
    found = sets.predict(new)
    pixels = truth.sum(axis=(1, 2))
    recall = (found & truth).sum(axis=(1, 2)) / np.maximum(pixels, 1)
    return np.sum(recall, axis=0, where=pixels > 0) / np.maximum((pixels > 0).sum(axis=0), 1)


@pytest.mark.slow_cases("1000-2000")
@pytest.mark.parametrize("n, labels", [(20, 2000), (100, 2000), (500, 200), (1000, 2000)])
def test_recall_is_what_was_promised(n, labels):
    each = np.concatenate([recalls(n, part) for part in [200] * (labels // 200)])
    error = 6 * each.std() / np.sqrt(labels)  # a right procedure fails 1 time in 1e9
    assert 1 - ALPHA - error <= each.mean() <= 1 - ALPHA + 2 / (n + 1) + 0.02 + error


def test_the_threshold_is_the_largest_that_passes():
    probs, marked = images(50, 1)
    sets = MaskRiskControl.fit(probs[..., 0], marked[..., 0], 0.8)

    def missed(threshold):
        masks, truth = probs[..., 0] >= threshold, marked[..., 0]
        pixels = truth.sum(axis=(1, 2))
        recall = (masks & truth).sum(axis=(1, 2))[pixels > 0] / pixels[pixels > 0]
        return np.sum(1 - recall), len(recall)

    for threshold, passes in ((sets.threshold - 1e-6, True), (sets.threshold + 1e-5, False)):
        total, count = missed(threshold)
        assert (total <= 0.2 * (count + 1) - 1) == passes


def test_empty_masks_are_told():
    probs, marked = images(60, 1)
    marked[:20] = False
    sets = MaskRiskControl.fit(probs, marked)
    empty = int((~marked.any(axis=(1, 2, 3))).sum())
    assert sets.fitted_to["empty_masks"] == [empty] and f"{empty}" in sets.describe()
    told = sets.evaluate(probs, marked)
    assert told.empty_masks == empty and told.examples == 60 - empty
    assert told.recall_lower <= told.recall <= told.recall_upper


def test_shapes_and_stacks_are_one():
    probs, marked = images(40, 1)
    sets = MaskRiskControl.fit(probs, marked)
    same = MaskRiskControl.fit(probs[..., 0], marked[..., 0])
    assert same == sets == MaskRiskControl.fit(probs, marked[..., 0])
    mask = sets.predict(probs)
    assert mask.shape == probs.shape
    np.testing.assert_array_equal(sets.predict(probs[..., 0]), mask[..., 0])
    stack = np.stack([probs, probs])
    np.testing.assert_array_equal(sets.predict(stack), mask)
    np.testing.assert_array_equal(sets.predict(stack[..., 0], stacked=True), mask[..., 0])
    assert MaskRiskControl.fit(stack, marked, stacked=True) == sets
    logits = np.log(probs / (1 - probs))
    of_logits = MaskRiskControl.fit(logits, marked, from_logits=True)
    np.testing.assert_allclose(of_logits.threshold, sets.threshold, atol=1e-6)


def test_what_is_not_known_is_in_the_mask():
    probs = np.full((1, 2, 2), 0.1)
    probs[0, 0, 0] = np.nan
    np.testing.assert_array_equal(MaskRiskControl(0.5).predict(probs)[0], [[1, 0], [0, 0]])


def test_in_a_model(tmp_path):
    layer = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")
    model = keras.Sequential([keras.Input((4, 4, 1)), layer])
    x = RNG.normal(size=(40, 4, 4, 1)).astype("float32")
    sets = MaskRiskControl.fit_model(model, (x, x > 0.5), alpha=0.2)
    assert sets == MaskRiskControl.from_json(sets.to_json())
    whole = sets.append_to(model)
    whole.save(tmp_path / "model.keras")
    answers = keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0)
    np.testing.assert_array_equal(answers["mask"], sets.predict(model.predict(x, verbose=0)))


def marking(count=40):
    """A model of masks, images, and what was fitted to them."""
    layer = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")
    model = keras.Sequential([keras.Input((4, 4, 1)), layer])
    x = RNG.normal(size=(count, 4, 4, 1)).astype("float32")
    return model, x, MaskRiskControl.fit_model(model, (x, x > 0.5), alpha=0.2)


def test_in_an_export(tmp_path):
    """The mask of Python, and of what is not known all of it, beside a rule and its decision."""
    model, x, sets = marking()
    export(
        model, tmp_path / "served", conformal=sets, rule=RejectionRule("confidence", 0.6, rank=4)
    )
    served = tf.saved_model.load(str(tmp_path / "served"))
    said = served.serve(x)
    np.testing.assert_array_equal(said["mask"], sets.predict(model.predict(x, verbose=0)))
    assert said["accept"].dtype == tf.bool and "prediction_set" not in said
    x[0, 0, 0] = np.nan
    assert served.serve(x[:1])["mask"].numpy().all()
    with pytest.raises(ValueError, match="`conformal` must be fitted to predictions of 4 axes"):
        export(model, tmp_path / "no", conformal=MaskRiskControl(0.5, rank=3))


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_in_one_file(kind, tmp_path):
    """Another runtime marks what Python marks, and all of what is not known."""
    if kind == "onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    write, runtime, name = {
        "litert": (export_litert, LiteRT, "model.tflite"),
        "onnx": (export_onnx, ONNX, "model.onnx"),
    }[kind]
    model, x, sets = marking()
    write(model, tmp_path / name, conformal=sets)
    run = runtime(tmp_path / name)
    expected = sets.predict(model.predict(x, verbose=0))
    assert 0 < expected.mean() < 1
    for size in (1, 7, 40):
        np.testing.assert_array_equal(run({run.inputs[0]: x[:size]})["mask"], expected[:size])
    x[0, 0, 0] = np.nan
    assert np.all(run({run.inputs[0]: x[:1]})["mask"])


def test_misuse(counts):
    probs, marked = images(40, 1)
    fit = MaskRiskControl.fit
    for call in (
        lambda: fit(8 * probs - 4, marked),  # logits
        lambda: fit(100 * probs, marked),
        lambda: fit(np.concatenate([1 - probs, probs], -1), marked),  # two classes
        lambda: fit(probs, marked[:-1]),
        lambda: fit(probs, marked.transpose(0, 2, 1, 3)[:, :3]),
        lambda: fit(probs, marked * 255),
        lambda: fit(probs[:, 0, 0, 0], marked[:, 0, 0, 0]),  # no images
        lambda: fit(probs, np.zeros_like(marked)),
        lambda: fit(probs[:5], marked[:5]),  # too few
        lambda: fit(np.where(marked, np.nan, probs), marked),
        lambda: fit(probs, marked, 0.9, alpha=0.1),
        lambda: fit(probs, marked, 1.5),
        lambda: fit(probs, marked).predict(np.concatenate([probs, probs], -1)),
        lambda: fit(probs, marked).predict(8 * probs - 4),
        lambda: fit(probs, marked).evaluate(probs, np.zeros_like(marked)),
        lambda: MaskRiskControl(1.5),
    ):
        with pytest.raises(ValueError, match=r"must"):
            call()
        counts("misuse rows, refused")
    with pytest.raises(ValueError, match="at least 9 masks"):
        fit(probs[:5], marked[:5])
