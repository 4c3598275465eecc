"""The misuse table: what people do wrong, at every entry point. Right, or refused; never silent.

A row is one mistake at one entry point. "Refused" is a `ValueError` that names the argument to
pass; "right" is the answer of plain Keras or of the right call.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from entry_points import ENTRIES, RANDOM_ONLY
from models import (
    BINARY,
    CLASSES,
    IMAGES,
    RIGHT,
    RIGHT_BINARY,
    RIGHT_LABELS,
    WRONG,
    expected_probs,
    labels_of,
    made,
    twin,
)

from tfuq import corruptions, layers, metrics, predictive, preprocessing, selective
from tfuq.ensembles import DeepEnsemble
from tfuq.selective import ConformalPredictor, RejectionRule

# --- Models whose outputs nobody declares -----------------------------------------------------

IS_RANDOM = [name for name in WRONG if "random" in name or "VBLL" in name]
# All of them run in `make test-slow`; `make test` has these at every entry point.
QUICK = ("linear, not compiled", "one number under mse", "VBLLDense under a loss by name")
WRONG_ROWS = [
    pytest.param(name, entry, marks=[] if name in QUICK else [pytest.mark.slow])
    for entry in ENTRIES
    for name in WRONG
]
WRONG_ROWS += [(name, entry) for entry in RANDOM_ONLY for name in IS_RANDOM]


# A loss of numbers declares a regression: these entry points answer it as one.
OF_NUMBERS = [name for name in WRONG if " mse" in name or "Huber" in name]
EXPORTS = ("export", "export_litert", "export_onnx", "tfuq export")
COMMANDS = ("tfuq evaluate", "tfuq calibrate", "tfuq predict")
READS_NUMBERS = (
    *EXPORTS,
    *COMMANDS,
    "score_dataset",
    "tfuq calibrate, a rule",
    "predict_uncertainty",
    "predict_uncertainty(DeepEnsemble)",
    "sample_predictions",
    "RejectionRule.fit_model",
    "ood.Mahalanobis",
    "ood.Gram",
    "ood.KNN",
)


def reads_numbers(call, name, entry, folder):
    """Whether the answer is that of a regression; or a refusal names the argument to pass."""
    targets = np.arange(24.0)
    if name.startswith("three") and entry.startswith("tfuq"):
        targets = np.stack([targets] * 3, axis=-1)
    # Without a tolerance, of one network without a score.
    if entry in ("RejectionRule.fit_model", "tfuq calibrate, a rule"):
        with pytest.raises(ValueError, match=r"`(score|tolerance|y)`"):
            call(made(name), targets, folder)
        return False
    if entry == "ood.KNN":  # of 50 neighbours among 24 images
        with pytest.raises(ValueError, match="`k`"):
            call(made(name), targets, folder)
        return False
    found = call(made(name), targets, folder)
    if entry in EXPORTS:
        about = next(iter([*folder.rglob("metadata.json"), *folder.glob("*.*.json")]))
        assert json.loads(about.read_text())["family"] == {"name": "point"}
    if entry.startswith("predict_uncertainty"):
        np.testing.assert_allclose(found.mean.mean(), made(name).predict(IMAGES).mean(), atol=0.2)
        assert "no aleatoric part" in found.note
        with pytest.raises(ValueError, match="NormalDense"):
            found.interval(0.9)
    return True


@pytest.mark.every_case
@pytest.mark.parametrize("name, entry", WRONG_ROWS, ids=lambda part: part.replace(" ", "_"))
def test_refused_as_nobody_says_what_it_is(name, entry, tmp_path, counts):
    call = {**ENTRIES, **RANDOM_ONLY}[entry]
    if name in OF_NUMBERS and entry in READS_NUMBERS:
        is_right = reads_numbers(call, name, entry, tmp_path)
        counts("misuse rows, right" if is_right else "misuse rows, refused")
        return
    with pytest.raises(ValueError, match=r"from.logits"):
        call(made(name), labels_of(name), tmp_path)
    counts("misuse rows, refused")


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("name", [name for name in RIGHT if "logits" not in name])
def test_a_caller_cannot_contradict_a_layer(name, said, counts):
    """`from_logits=True` on a soft-max would give a soft-max of a soft-max."""
    model = made(name)
    is_logits = "soft-max" not in name
    probs = expected_probs(name)
    if said == is_logits:
        found = predictive.predict_uncertainty(model, IMAGES, 64, from_logits=said)
        np.testing.assert_allclose(found.probs.sum(-1), 1, atol=1e-5)
        assert found.probs.shape == probs.shape
        counts("misuse rows, right")
        return
    with pytest.raises(ValueError, match="from_logits"):
        predictive.predict_uncertainty(model, IMAGES, 4, from_logits=said)
    counts("misuse rows, refused")


# --- One model, one answer --------------------------------------------------------------------

STABLE = [name for name in {**RIGHT, **RIGHT_BINARY, **RIGHT_LABELS} if "dropout" not in name]


def ways(model, tmp_path):
    """The same model and inputs in the ways that must not matter."""
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    yield "one at a time", predictive.predict_uncertainty(model, IMAGES, 4, batch_size=1)
    yield "compiled again", predictive.predict_uncertainty(model, IMAGES, 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    yield "loaded", predictive.predict_uncertainty(loaded, IMAGES, 4)


@pytest.mark.slow_cases("VBLLDense of labels", "MCSoftmaxDenseFA", "three logits by the loss")
@pytest.mark.parametrize("name", STABLE)
def test_one_model_has_one_answer(name, tmp_path, counts):
    model, whole = made(name), predictive.predict_uncertainty(made(name), IMAGES, 4)
    if "VBLL" not in name and "Laplace" not in name:  # draws are not the closed form
        np.testing.assert_allclose(whole.probs, expected_probs(name), atol=1e-5)
    for _, found in ways(model, tmp_path):
        np.testing.assert_allclose(found.probs, whole.probs, atol=1e-6)
        np.testing.assert_array_equal(found.label, whole.label)
        counts("misuse rows, right")


@pytest.mark.parametrize("name", [name for name in STABLE if "loss" not in name])
def test_not_compiled_is_the_same(name, tmp_path, counts):
    made(name).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    found = predictive.predict_uncertainty(loaded, IMAGES, 4)
    whole = predictive.predict_uncertainty(made(name), IMAGES, 4)
    np.testing.assert_allclose(found.probs, whole.probs, atol=1e-6)
    counts("misuse rows, right")


@pytest.mark.slow_cases("MCSoftmaxDenseFA")
@pytest.mark.parametrize("name", [name for name in STABLE if "VBLL" not in name])
def test_ensembles_read_as_one_model_does(name, counts):
    found = DeepEnsemble.from_models([made(name), twin(name)]).predict(IMAGES)
    np.testing.assert_allclose(np.mean(found, axis=0), expected_probs(name), atol=1e-5)
    counts("misuse rows, right")


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
@pytest.mark.parametrize("kind", ["VBLLDense", "SparseBayesDense", "DenseVariational"])
def test_integers_are_the_numbers_that_they_are(kind, dtype, counts):
    """Counts and codes, given as they are, to a graph that was made for them."""
    inputs = keras.Input((4,), dtype=dtype)
    model = keras.Model(inputs, getattr(layers, kind)(3, kl_weight=0.1)(inputs))
    plain = keras.Input((4,))
    twin = keras.Model(plain, model.layers[-1](plain))
    x = np.arange(20).reshape(5, 4).astype(dtype)
    found = model.predict(x, verbose=0)
    np.testing.assert_allclose(found, twin.predict(x.astype("float32"), verbose=0), rtol=1e-5)
    counts("misuse rows, right")


# --- Arrays that are no probabilities -----------------------------------------------------------

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(40, 3)) * 3
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
TRUE = np.array([RNG.choice(3, p=row) for row in PROBS])
ONES = PROBS[:, 0]  # of class 1 of two
ONE_TRUE = (RNG.random(40) < ONES).astype(int)
NO_PROBS = {
    "logits": LOGITS,
    "log-probabilities": np.log(PROBS),
    "percentages": 100 * PROBS,
    "uint8": np.round(255 * PROBS).astype("uint8"),
    "rows that do not sum to 1": np.full_like(PROBS, [0.9, 0.9, 0.05]),
}
BY_CLASS = {
    "two classes for three": PROBS[:, :2] / PROBS[:, :2].sum(-1, keepdims=True),
    "five classes for three": np.full((40, 5), 0.2),
    "one column for three": PROBS[:, :1],
    "one number each for three": PROBS[:, 0],
}


def rule():
    return RejectionRule.fit(PROBS, TRUE, target_coverage=0.7)


def sets():
    return ConformalPredictor.fit(PROBS, TRUE, alpha=0.2)


def scaling(kind):
    return getattr(selective, kind)().fit(PROBS, TRUE).transform


def monitor():
    return RejectionRule.fit(PROBS, TRUE, target_risk=0.9).monitor()


DECIDES = {
    "Monitor.update": lambda: monitor().update,
    "RejectionRule.accept": lambda: rule().accept,
    "RejectionRule.score_of": lambda: rule().score_of,
    "RejectionRule by hand": lambda: RejectionRule("confidence", 0.7).accept,
    "ConformalPredictor.predict_set": lambda: sets().predict_set,
    "TemperatureScaling.transform": lambda: scaling("TemperatureScaling"),
    "VectorScaling.transform": lambda: scaling("VectorScaling"),
    "IsotonicCalibration.transform": lambda: scaling("IsotonicCalibration"),
    "BetaCalibration.transform": lambda: scaling("BetaCalibration"),
    "DirichletCalibration.transform": lambda: scaling("DirichletCalibration"),
    "VennAbersCalibration.transform": lambda: scaling("VennAbersCalibration"),
}
DESCRIBES = {
    "gap": lambda: lambda probs: selective.gap(probs, TRUE),
    "best_score": lambda: lambda probs: selective.best_score(probs, TRUE),
    "decompose": lambda: lambda probs: predictive.decompose(probs[None]),
    "entropy": lambda: predictive.entropy,
    "predictive_entropy": lambda: lambda probs: predictive.predictive_entropy(probs[None]),
    "expected_entropy": lambda: lambda probs: predictive.expected_entropy(probs[None]),
    "mutual_information": lambda: lambda probs: predictive.mutual_information(probs[None]),
    "variation_ratio": lambda: lambda probs: predictive.variation_ratio(probs[None]),
}
JUDGES = {
    name: lambda name=name: lambda probs: getattr(metrics, name)(TRUE, probs)
    for name in (
        "expected_calibration_error",
        "expected_calibration_error_interval",
        "spiegelhalter_test",
        "adaptive_calibration_error",
        "classwise_calibration_error",
        "brier_score",
        "negative_log_likelihood",
        "selective_accuracy",
    )
    if hasattr(metrics, name)
}
ARRAY_ROWS = [
    (entry, mistake) for entry in {**DECIDES, **DESCRIBES, **JUDGES} for mistake in NO_PROBS
]


@pytest.mark.parametrize("entry, mistake", ARRAY_ROWS, ids=lambda part: part.replace(" ", "_"))
def test_refused_as_they_are_no_probabilities(entry, mistake, counts):
    call = {**DECIDES, **DESCRIBES, **JUDGES}[entry]()
    with pytest.raises(ValueError, match=r"from_logits|probabilities|sum to 1"):
        call(NO_PROBS[mistake])
    counts("misuse rows, refused")


@pytest.mark.parametrize("mistake", BY_CLASS)
@pytest.mark.parametrize("entry", [e for e in DECIDES if "by hand" not in e and "Temp" not in e])
def test_refused_as_they_are_of_other_classes(entry, mistake, counts):
    with pytest.raises(ValueError, match=r"classes|axes|shape|stacked"):
        DECIDES[entry]()(BY_CLASS[mistake])
    counts("misuse rows, refused")


OTHER_SCORES = {
    "of fewer cases": ONES[:30],
    "of each class": PROBS,
    "NaN": np.where(np.arange(40) == 3, np.nan, ONES),
}


@pytest.mark.parametrize("mistake", OTHER_SCORES, ids=lambda part: part.replace(" ", "_"))
def test_refused_as_they_are_no_scores(mistake, counts):
    given = OTHER_SCORES[mistake]
    fitted = RejectionRule.fit(PROBS, TRUE, target_coverage=0.5, score=ONES)
    calls = [
        lambda: RejectionRule.fit(PROBS, TRUE, target_coverage=0.5, score=given),
        lambda: selective.gap(PROBS, TRUE, given),
        lambda: selective.best_score(PROBS, TRUE, {"other": given}),
        *([] if mistake == "NaN" else [lambda: fitted.accept(PROBS, score=given)]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"`scores?`|score"):
            call()
        counts("misuse rows, refused")
    if mistake == "NaN":  # of a case that nothing is known of
        assert not fitted.accept(PROBS, score=given)[3]
    with pytest.raises(ValueError, match="score"):
        fitted.accept(PROBS)  # who has the score, has to give it again
    counts("misuse rows, refused")


OTHER_LABELS = {
    "of fewer cases": TRUE[:30],
    "a fourth class": np.where(np.arange(40) == 3, 3, TRUE),
    "one-hot": np.eye(3)[TRUE],
    "below 0": TRUE - 1,
}


@pytest.mark.parametrize("mistake", OTHER_LABELS, ids=lambda part: part.replace(" ", "_"))
def test_a_monitor_refuses_other_labels_and_counts_no_case(mistake, counts):
    watching = monitor()
    with pytest.raises(ValueError, match=r"`labels`"):
        watching.update(PROBS, OTHER_LABELS[mistake])
    assert watching.fitted_to["cases"] == 0
    counts("misuse rows, refused")


@pytest.mark.parametrize("labels", [TRUE, None], ids=["the same labels", "without labels"])
def test_a_monitor_refuses_cases_that_it_has_taken(labels, counts):
    watching = monitor().update(PROBS, TRUE)
    with pytest.raises(ValueError, match="`probs` must hold new cases"):
        watching.update(PROBS, labels)
    assert watching.fitted_to["cases"] == 40
    counts("misuse rows, refused")


# --- One example or a stack ---------------------------------------------------------------------


def binary_rule():
    return RejectionRule.fit(ONES, ONE_TRUE, target_coverage=0.7)


BINARY_DECIDES = {
    "RejectionRule.accept": lambda: binary_rule().accept,
    "RejectionRule.score_of": lambda: binary_rule().score_of,
    "ConformalPredictor.predict_set": lambda: (
        ConformalPredictor.fit(ONES, ONE_TRUE, alpha=0.2).predict_set
    ),
    "TemperatureScaling.transform": lambda: (
        selective.TemperatureScaling().fit(ONES, ONE_TRUE).transform
    ),
}


@pytest.mark.parametrize("entry", BINARY_DECIDES)
def test_a_column_is_as_good_as_a_row(entry, counts):
    """Six patients, as a Keras sigmoid gives them: six answers, those of `(6,)`."""
    call = BINARY_DECIDES[entry]()
    column, plain = np.asarray(call(ONES[:6, None])), np.asarray(call(ONES[:6]))
    np.testing.assert_allclose(column.reshape(plain.shape), plain)
    assert len(column) == 6
    counts("misuse rows, right")


@pytest.mark.parametrize("entry", [e for e in BINARY_DECIDES if "Temp" not in e])
def test_two_axes_of_a_binary_rule_have_two_readings(entry, counts):
    call = BINARY_DECIDES[entry]()
    stack = np.stack([ONES, ONES * 0.9, ONES * 0.8])
    with pytest.raises(ValueError, match="stacked"):
        call(stack)
    counts("misuse rows, refused")
    found = np.asarray(call(stack, stacked=True))
    np.testing.assert_allclose(found, np.asarray(call(stack.mean(0))), rtol=1e-6)
    counts("misuse rows, right")


@pytest.mark.parametrize("entry", [e for e in BINARY_DECIDES if "Temp" not in e])
def test_samples_say_themselves_that_they_are_a_stack(entry, counts):
    model = made("one sigmoid")
    samples = predictive.test_time_augmentation(model, IMAGES, [lambda i: i, lambda i: i[:, ::-1]])
    call = BINARY_DECIDES[entry]()
    np.testing.assert_allclose(
        np.asarray(call(samples)), np.asarray(call(np.asarray(samples).mean(0)))
    )
    counts("misuse rows, right")


def test_a_rule_in_a_model_answers_each_patient(counts):
    """With one answer for each row, whoever else is in the batch."""
    whole = binary_rule().append_to(made("one sigmoid"))
    together = whole.predict(IMAGES, verbose=0)
    for i in range(3):
        alone = whole.predict(IMAGES[i : i + 1], verbose=0)
        for name, values in together.items():
            assert len(values) == len(IMAGES)
            np.testing.assert_allclose(alone[name][0], values[i], atol=1e-6)
    counts("misuse rows, right")


# --- Images of another range ----------------------------------------------------------------------

PICTURES = RNG.integers(256, size=(3, 12, 12, 3)).astype("float32")
OTHER_RANGES = {
    "0 to 255 for 0 to 1": ((0, 1), PICTURES),
    "0 to 1 for 0 to 255": ((0, 255), PICTURES / 255),
    "-1 to 1 for 0 to 255": ((0, 255), PICTURES / 127.5 - 1),
    "0 to 255 for -1 to 1": ((-1, 1), PICTURES),
}
IMAGE_LAYERS = {
    "CorruptionLayer": lambda **told: corruptions.CorruptionLayer("contrast", 3, **told),
    "CLAHE": preprocessing.CLAHE,
    "Gamma": preprocessing.Gamma,
    "CenterFieldOfView": lambda **told: preprocessing.CenterFieldOfView(0.5, **told),
    "FundusCrop": lambda **told: preprocessing.FundusCrop(8, **told),
    "ConfounderRemoval": preprocessing.ConfounderRemoval,
}
IMAGE_FUNCTIONS = {
    "corrupt": lambda images: corruptions.corrupt(images, "contrast", 3),
    "clahe": preprocessing.clahe,
    "adjust_gamma": preprocessing.adjust_gamma,
    "remove_confounders": preprocessing.remove_confounders,
}


def piped(function, images):
    return list(tf.data.Dataset.from_tensors(images).map(function))


@pytest.mark.parametrize("mistake", OTHER_RANGES)
@pytest.mark.parametrize("entry", IMAGE_LAYERS)
def test_refused_as_images_are_of_another_range(entry, mistake, counts):
    value_range, images = OTHER_RANGES[mistake]
    layer = IMAGE_LAYERS[entry](value_range=value_range)
    with pytest.raises(ValueError, match="value_range"):
        layer(images)
    with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
        piped(layer, images)
    counts("misuse rows, refused", 2)


@pytest.mark.parametrize("entry", IMAGE_FUNCTIONS)
def test_refused_as_images_are_no_fractions(entry, counts):
    with pytest.raises(ValueError, match="value_range"):
        IMAGE_FUNCTIONS[entry](PICTURES)
    with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
        piped(IMAGE_FUNCTIONS[entry], PICTURES)
    counts("misuse rows, refused", 2)


@pytest.mark.parametrize("entry", IMAGE_LAYERS)
def test_layers_take_the_images_of_keras_loaders(entry, counts):
    """Floats of 0 to 255, as `image_dataset_from_directory` and `decode_jpeg` give them."""
    found = IMAGE_LAYERS[entry]()(PICTURES)
    np.testing.assert_allclose(found, IMAGE_LAYERS[entry]()(PICTURES.astype("uint8")), atol=0.51)
    counts("misuse rows, right")


# --- From predictions to a rule -------------------------------------------------------------------

PAIRS = ("soft-max", "VBLLDense", "MCSoftmaxDenseFA", "logits by the loss", "one sigmoid")


@pytest.mark.parametrize("name", PAIRS)
def test_what_predict_uncertainty_gives_is_what_a_rule_takes(name, counts):
    found = predictive.predict_uncertainty(made(name), IMAGES, 8)
    fitted = RejectionRule.fit(found, labels_of(name), target_coverage=0.5)
    np.testing.assert_array_equal(fitted.accept(found), fitted.accept(found.probs))
    counts("misuse rows, right")


def test_mutual_information_of_predictions_is_taken_as_it_is(counts):
    found = predictive.predict_uncertainty(made("VBLLDense"), IMAGES, 8)
    fitted = RejectionRule.fit(found, CLASSES, "mutual_information", target_coverage=0.5)
    scores = found.mutual_information.astype("float32")
    expected = scores <= np.float32(fitted.threshold)
    np.testing.assert_array_equal(fitted.accept(found), expected)
    counts("misuse rows, right")


@pytest.mark.parametrize("name", ["soft-max", "MCSoftmaxDenseFA", "logits by the loss"])
def test_a_network_without_randomness_has_no_epistemic_part(name, counts):
    found = predictive.predict_uncertainty(made(name), IMAGES)
    assert np.all(found.mutual_information == 0)
    assert np.all(found.expected_entropy == found.predictive_entropy)
    assert "random" in found.note and found.note in repr(found)
    counts("misuse rows, right")


def test_labels_of_another_task_are_refused(counts):
    with pytest.raises(ValueError, match="labels"):
        RejectionRule.fit(PROBS[:24], BINARY + 7, target_coverage=0.5)
    counts("misuse rows, refused")
