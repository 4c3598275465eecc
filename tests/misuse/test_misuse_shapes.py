"""The misuse table of shapes: inputs of another size than a model says it takes, at every entry.

`Sequential` models do not ask, so that one with a global average answers to images of any size.
"""

import entry_points
import keras
import numpy as np
import pytest
import tensorflow as tf
from entry_points import ENTRIES, RANDOM_ONLY
from keras import layers as kl
from models import CLASSES, IMAGES, made

from tfuq import corruptions, interpret, layers, ood, predictive, selective
from tfuq.convert import laplace_head
from tfuq.selective import RejectionRule

SAYS = r"must have the shape that the model takes, \(None, 6, 6, 1\)"
OTHERS = {
    "twice the size": IMAGES.repeat(2, 1).repeat(2, 2),
    "half of the height": IMAGES[:, :3],
    "two channels": IMAGES.repeat(2, -1),  # a convolution in two groups, to TensorFlow
    "channels first": np.moveaxis(IMAGES, -1, 1),
}
TAKE_INPUTS = [name for name in ENTRIES if "export" not in name]
ROWS = [
    (name, mistake)
    for mistake in OTHERS
    for name in TAKE_INPUTS
    if mistake == "twice the size" or name in ("predict_uncertainty", "RejectionRule.fit_model")
]


@pytest.mark.every_case
@pytest.mark.parametrize("entry, mistake", ROWS, ids=lambda part: part.replace(" ", "_"))
def test_refused_as_the_model_takes_another_shape(entry, mistake, tmp_path, monkeypatch, counts):
    monkeypatch.setattr(entry_points, "IMAGES", OTHERS[mistake])
    with pytest.raises(ValueError, match=SAYS):
        ENTRIES[entry](made("soft-max"), CLASSES, tmp_path)
    counts("misuse rows, refused")


WRONG = OTHERS["twice the size"]
NOISY = "MCSoftmaxDenseFA"


def fitted_detector(kind):
    return getattr(ood, kind)().fit(made("soft-max"), IMAGES, CLASSES)


def shift(source, target):
    model = made("logits by the loss")
    layer = model.layers[-2].name
    return selective.shift_report(model, (source, CLASSES), target, layer=layer, n_bootstrap=2)


LATER = {
    "sample_predictions": lambda: RANDOM_ONLY["sample_predictions"](
        made("VBLLDense"), CLASSES, None
    ),
    "Energy.score": lambda: fitted_detector("Energy").score(WRONG),
    "Mahalanobis.score": lambda: fitted_detector("Mahalanobis").score(WRONG),
    "GradientFeatures": lambda: ood.GradientFeatures(made("logits by the loss"))(WRONG),
    "laplace_head": lambda: laplace_head(made("logits by the loss"), (WRONG, CLASSES)),
    "shift_report, source": lambda: shift(WRONG, IMAGES),
    "shift_report, target": lambda: shift(IMAGES, WRONG),
    "label_noise_pairs": lambda: interpret.label_noise_pairs(made(NOISY), WRONG),
    "label_noise_ranks": lambda: interpret.label_noise_ranks(
        made(NOISY), (WRONG, CLASSES), np.full((24, 3), 1 / 3)
    ),
    "corruption_report, what is prepared": lambda: corruptions.corruption_report(
        made("soft-max"),
        IMAGES,
        CLASSES,
        ["contrast"],
        [1],
        preprocess=lambda images: images[:, :5],
        verbose=0,
    ),
    "RejectionRule.append_to": lambda: (
        RejectionRule("confidence", 0.5).append_to(made("soft-max")).predict(WRONG, verbose=0)
    ),
}


@pytest.mark.every_case
@pytest.mark.parametrize("entry", LATER)
def test_refused_where_it_was_fitted_to_the_right_shape(entry, monkeypatch, counts):
    monkeypatch.setattr(entry_points, "IMAGES", WRONG)
    with pytest.raises(ValueError, match=rf"{SAYS}|expected shape=\(None, 6, 6, 1\)"):
        LATER[entry]()
    counts("misuse rows, refused")


def batches_of(images):
    """A dataset that does not say how large its images are."""
    spec = tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None,), "int64")
    return tf.data.Dataset.from_generator(lambda: [(images, CLASSES)], output_signature=spec)


def test_refused_in_graphs_whose_sizes_are_not_known(counts):
    model, rule = made("soft-max"), RejectionRule.fit_model
    asked = {"target_coverage": 0.5}
    known = rule(model, (IMAGES, CLASSES), **asked)
    assert rule(model, batches_of(IMAGES), **asked).threshold == known.threshold
    counts("misuse rows, right")
    for call in (
        lambda data: rule(model, data, **asked),
        lambda data: predictive.predict_uncertainty(model, data),
    ):
        with pytest.raises(ValueError, match=SAYS):
            call(batches_of(WRONG))
        counts("misuse rows, refused")


def test_a_saved_model_of_keras_is_asked_for_its_shape(tmp_path, counts):
    made("soft-max").export(tmp_path / "served", verbose=False)
    loaded, asked = (
        tf.saved_model.load(str(tmp_path / "served")),
        {"from_logits": False, "verbose": 0},
    )
    with pytest.raises(ValueError, match=SAYS):
        predictive.score_dataset(loaded, WRONG, tmp_path / "scores", **asked)
    assert not (tmp_path / "scores").exists()
    counts("misuse rows, refused")
    found = predictive.score_dataset(loaded, IMAGES, tmp_path / "scores", **asked)
    assert found.examples == 24
    counts("misuse rows, right")


def pooled(*shape):
    keras.utils.set_random_seed(0)
    body = [kl.Conv2D(4, 3), kl.GlobalAveragePooling2D(), kl.Dense(3, "softmax")]
    return keras.Sequential([*([keras.Input(shape)] if shape else []), *body])


def two_inputs():
    images, ages = keras.Input((6, 6, 1), name="images"), keras.Input((1,), name="ages")
    pooled = kl.GlobalAveragePooling2D()(images)
    return keras.Model([images, ages], kl.Dense(3, "softmax")(kl.Concatenate()([pooled, ages])))


AGES = np.arange(24, dtype="float32")
# Models, inputs, and those inputs as Keras' own `predict` takes them.
RIGHT = {
    "any size": lambda: (pooled(None, None, 1), WRONG, WRONG),
    "any height": lambda: (pooled(None, 6, 1), IMAGES[:, :4], IMAGES[:, :4]),
    "without the last axis": lambda: (pooled(6, 6, 1), IMAGES[..., 0], IMAGES),
    "one more last axis": lambda: (pooled(6, 6, 1), IMAGES[..., None], IMAGES),
    "by name": lambda: (two_inputs(), {"ages": AGES, "images": IMAGES}, [IMAGES, AGES]),
    "in a pair": lambda: (two_inputs(), ((IMAGES, AGES[:, None]),), [IMAGES, AGES]),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_taken_as_keras_takes_them(kind, counts):
    model, given, plain = RIGHT[kind]()
    found = predictive.predict_uncertainty(model, given)
    np.testing.assert_allclose(found.probs, model.predict(plain, verbose=0), atol=1e-6)
    counts("misuse rows, right")


def test_the_order_of_inputs_is_looked_at(counts):
    model = two_inputs()
    with pytest.raises(ValueError, match="must have the shape that the model takes"):
        predictive.predict_uncertainty(model, {"ages": IMAGES, "images": AGES})
    counts("misuse rows, refused")


def test_a_model_that_was_built_by_its_data_is_one_of_their_shape(tmp_path, counts):
    model = pooled()
    model.predict(IMAGES, verbose=0)
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        with pytest.raises(ValueError, match=SAYS.replace("None", r"\w+")):
            predictive.predict_uncertainty(each, WRONG)
        counts("misuse rows, refused")


def test_a_subclassed_model_says_nothing_of_its_inputs(counts):
    class Pooled(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.VBLLDense(3, kl_weight=0.1)

        def call(self, images):
            return self.head(keras.ops.mean(images, axis=(1, 2)))

    model = Pooled()
    found = predictive.predict_uncertainty(model, WRONG, 4)
    assert found.probs.shape == predictive.predict_uncertainty(model, IMAGES, 4).probs.shape
    counts("misuse rows, right")
