"""Distribution shift: known shifts are recovered, no shift is seldom seen, scikit-learn."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn.linear_model import LogisticRegression

from tfuq._math.logistic_regression import logistic_regression
from tfuq.selective import (
    average_thresholded_confidence,
    black_box_shift_estimation,
    classifier_two_sample_test,
    correct_label_shift,
    difference_of_confidences,
    shift_report,
)

CENTRES = np.array([[2.0, 0], [0, 2], [-1, -1]])


def examples(rng, count, prior):
    """Points around the centre of their class."""
    labels = rng.choice(3, size=count, p=prior)
    return (CENTRES[labels] + rng.normal(size=(count, 2))).astype("float32"), labels


def posterior(x, prior=(1 / 3, 1 / 3, 1 / 3)):
    """What Bayes says of them."""
    logs = np.log(prior) - ((x[:, None] - CENTRES) ** 2).sum(-1) / 2
    return np.exp(logs) / np.exp(logs).sum(-1, keepdims=True)


RNG = np.random.default_rng(0)
X, LABELS = examples(RNG, 900, [0.5, 0.3, 0.2])
PROBS = posterior(X)
NEW_PRIOR = np.array([0.1, 0.2, 0.7])
NEW_X, NEW_LABELS = examples(RNG, 900, NEW_PRIOR)
NEW = posterior(NEW_X)


# --- Label shift ---------------------------------------------------------------------------------


def test_label_shift_is_the_solution_of_its_equation():
    found = black_box_shift_estimation(PROBS, LABELS, NEW)
    matrix = np.zeros((3, 3))
    np.add.at(matrix, (PROBS.argmax(1), LABELS), 1 / np.bincount(LABELS)[LABELS])
    shares = np.bincount(NEW.argmax(1), minlength=3) / len(NEW)
    prior = np.bincount(LABELS) / len(LABELS)
    np.testing.assert_allclose(found.target_prior, np.linalg.solve(matrix, shares), atol=1e-9)
    np.testing.assert_allclose(found.source_prior, prior)
    np.testing.assert_allclose(found.weights, found.target_prior / prior)
    assert found.condition_number == pytest.approx(np.linalg.cond(matrix))
    assert found.reliable
    assert found.p_value < 1e-9
    same = black_box_shift_estimation(np.log(PROBS), LABELS, np.log(NEW) + 1, from_logits=True)
    np.testing.assert_array_equal(same.target_prior, found.target_prior)
    stack = black_box_shift_estimation([PROBS, PROBS], np.eye(3)[LABELS], [NEW, NEW])
    np.testing.assert_array_equal(stack.lower, found.lower)


@pytest.mark.slow
def test_a_known_label_shift_is_recovered_within_its_interval():
    rng, inside, alike = np.random.default_rng(1), np.zeros(3), 0
    for seed in range(60):
        x, labels = examples(rng, 400, [0.5, 0.3, 0.2])
        new, _ = examples(rng, 300, NEW_PRIOR)
        options = {"n_bootstrap": 100, "seed": seed}
        found = black_box_shift_estimation(posterior(x), labels, posterior(new), **options)
        inside += (found.lower <= NEW_PRIOR) & (found.upper >= NEW_PRIOR)
        again, _ = examples(rng, 300, [0.5, 0.3, 0.2])
        found = black_box_shift_estimation(posterior(x), labels, posterior(again), n_bootstrap=1)
        alike += found.p_value < 0.05
    # Intervals at 95 % that hold the truth in 90 % fail 1 time in 3e5, and so do tests that hold.
    assert np.all(inside >= stats.binom.ppf(1e-6, 60, 0.9))
    assert alike <= stats.binom.ppf(1 - 1e-6, 60, 0.05)


def test_classes_that_cannot_be_told_apart_are_said_to_be_so():
    rng = np.random.default_rng(2)
    blind = rng.dirichlet(np.ones(3), size=900)  # predictions that know nothing
    found = black_box_shift_estimation(blind, LABELS, NEW)
    assert not found.reliable
    always = np.tile([[0.8, 0.1, 0.1]], (900, 1))
    found = black_box_shift_estimation(always, LABELS, always)
    assert (found.reliable, found.condition_number, found.p_value) == (False, np.inf, 1.0)
    merged = PROBS @ [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]]
    assert not black_box_shift_estimation(merged, LABELS, NEW).reliable
    seen = LABELS != 1
    found = black_box_shift_estimation(PROBS[seen], LABELS[seen], NEW)
    assert not found.reliable
    assert found.target_prior[1] == 0
    assert np.isnan(found.weights[1])
    one = black_box_shift_estimation(PROBS[:1], LABELS[:1], NEW[:1])
    assert not one.reliable
    binary = black_box_shift_estimation(PROBS[:, 0], LABELS == 0, NEW[:, :1])
    assert binary.target_prior.shape == (2,)


def test_corrected_predictions_are_those_of_bayes():
    corrected = correct_label_shift(NEW, [1 / 3] * 3, NEW_PRIOR)
    np.testing.assert_allclose(corrected, posterior(NEW_X, NEW_PRIOR), atol=1e-12)
    kept = correct_label_shift([[1.0, 0.0]], [0.5, 0.5], [0, 1])
    np.testing.assert_array_equal(kept, [[1, 0]])
    binary = correct_label_shift([0.4], [0.5, 0.5], [0.2, 0.8])
    np.testing.assert_allclose(binary, [[0.12 / 0.44, 0.32 / 0.44]])


# --- Accuracy ----------------------------------------------------------------------------------


def test_thresholded_confidence_is_exact_on_its_source_in_any_order():
    rng = np.random.default_rng(3)
    for seed in range(20):
        rows = np.random.default_rng(seed).permutation(900)[: 20 + 7 * seed]
        probs = np.round(PROBS[rows], 1)  # full of ties
        probs /= probs.sum(1, keepdims=True)
        accuracy = np.mean(probs.argmax(1) == LABELS[rows])
        for score in ("confidence", "entropy"):
            found = average_thresholded_confidence(
                probs, LABELS[rows], probs[rng.permutation(len(rows))], score=score, n_bootstrap=1
            )
            assert found.accuracy == pytest.approx(accuracy, abs=1e-12)
            assert found.source_accuracy == accuracy
    always = np.tile([[0.8, 0.1, 0.1]], (10, 1))
    found = average_thresholded_confidence(always, [1] * 10, always)
    assert (found.accuracy, found.lower, found.upper, found.threshold) == (0, 0, 0, np.inf)


def test_thresholded_confidence_counts_what_is_above():
    source, target = np.linspace(0.51, 0.99, 49), np.linspace(0.6, 0.9, 31)
    pair = (np.stack([1 - p, p], -1) for p in (source, target))
    labels = (source > 0.705).astype(int)
    found = average_thresholded_confidence(next(pair), labels, next(pair))
    assert found.threshold == np.float32(source[labels == 1][0])
    assert found.accuracy == np.mean(np.float32(target) >= found.threshold)
    assert found.lower < found.accuracy < found.upper


def test_confidences_of_a_calibrated_model_tell_its_accuracy():
    """Easier and harder inputs, whose labels follow the predictions."""
    rng = np.random.default_rng(4)
    source, target = rng.uniform(0.5, 1, 4000), rng.uniform(0.5, 0.8, 4000)
    labels = rng.random(4000) < source
    found = difference_of_confidences(source, labels, target)
    expected = labels.mean() - (source.mean() - target.mean())
    assert found.accuracy == pytest.approx(expected, abs=1e-12)
    assert abs(found.accuracy - 0.65) < 5 * np.sqrt((0.19 + 0.01) / 4000)  # fails 1 in 2e6
    assert found.lower < found.accuracy < found.upper
    assert found.threshold is None
    assert difference_of_confidences([1.0], [0], [0.5]).accuracy == 0


# --- Covariate shift ---------------------------------------------------------------------------


def test_the_classifier_is_that_of_scikit_learn():
    x, y = np.float64(X), (LABELS == 0).astype(int)
    for l2 in (0.1, 10.0):
        weights, bias = logistic_regression(x, y, l2)
        theirs = LogisticRegression(C=1 / l2, tol=1e-8).fit(x, y)
        np.testing.assert_allclose(weights, theirs.coef_[0], atol=2e-3)
        np.testing.assert_allclose(bias, theirs.intercept_[0], atol=2e-3)


def test_equal_samples_are_seldom_told_apart():
    rng, p_values = np.random.default_rng(5), []
    for seed in range(200):
        a, b = rng.normal(size=(60, 3)), rng.normal(size=(45, 3))
        p_values.append(classifier_two_sample_test(a, b, seed=seed).p_value)
    for level in (0.05, 0.2, 0.5):
        limit = stats.binom.ppf(1 - 1e-6, 200, level)  # what a correct test passes 1 time in 1e6
        assert np.sum(np.array(p_values) <= level) <= limit
    assert np.mean(p_values) < 0.75  # nor is it blind


def test_unequal_samples_are_told_apart():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(400, 5)), rng.normal(size=(300, 5))
    b[:, 2] += 1
    constant = np.ones((1, 1))
    a, b = (np.concatenate([s, constant.repeat(len(s), 0)], axis=1) for s in (a, b))
    found = classifier_two_sample_test(a, b, test_share=0.4)
    assert found.examples == 240
    assert found.p_value < 1e-6
    assert abs(found.accuracy - stats.norm.cdf(0.5)) < 5 * np.sqrt(0.25 / 240) + 0.03
    right = round(found.accuracy * 240)
    assert found.p_value == pytest.approx(stats.binomtest(right, 240, 0.5, "greater").pvalue)
    assert classifier_two_sample_test(a, b, max_examples=50).examples == 50
    maps = a[:, None, None].repeat(2, 1), b[:, None, None].repeat(2, 1)
    assert classifier_two_sample_test(*maps, test_share=0.4) == found


# --- The report --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """Bayes' rule as a layer of logits behind one that does nothing."""
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Identity(name="plain"), keras.layers.Dense(3)]
    )
    model.layers[-1].set_weights([CENTRES.T, -(CENTRES**2).sum(1) / 2])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_report_says_what_the_functions_say(model):
    options = {"n_bootstrap": 50, "seed": 3}
    found = shift_report(model, (X, LABELS), (NEW_X, NEW_LABELS), **options)
    parts = (
        (found.label_shift, black_box_shift_estimation(PROBS, LABELS, NEW, **options)),
        (
            found.thresholded_confidence,
            average_thresholded_confidence(PROBS, LABELS, NEW, **options),
        ),
        (found.confidence_difference, difference_of_confidences(PROBS, LABELS, NEW, **options)),
        (found.feature_shift, classifier_two_sample_test(X, NEW_X, seed=3)),
    )
    for one, other in parts:
        for value, expected in zip(one, other, strict=True):
            if expected is not None:
                np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(found.probs, NEW, atol=1e-6)
    assert found.groups == ("0", "1", "2")
    assert found.source_accuracy == np.mean(PROBS.argmax(1) == LABELS)
    assert found.target_accuracy == np.mean(NEW.argmax(1) == NEW_LABELS)
    right = found.corrected_probs.argmax(1) == NEW_LABELS
    assert found.corrected_accuracy == right.mean() > found.target_accuracy
    text = found.to_markdown()
    assert f"true on the new data {found.target_accuracy:.1%}" in text
    assert "unreliable" not in text
    recall = np.mean(NEW.argmax(1)[NEW_LABELS == 2] == 2)
    assert text.splitlines()[-1].startswith("| 2 | ")
    assert text.splitlines()[-1].endswith(f" {recall:.1%} |")

    data = tf.data.Dataset.from_tensor_slices((X, np.eye(3)[LABELS])).batch(128)
    bare = shift_report(model, data, tf.data.Dataset.from_tensor_slices(NEW_X).batch(99), **options)
    assert bare.target_accuracy is None
    assert bare.left_out == 0
    np.testing.assert_array_equal(bare.label_shift.target_prior, found.label_shift.target_prior)
    assert "recall now" not in bare.to_markdown()


def test_labels_of_other_names_are_mapped_to_groups(model):
    """As the thesis maps 198 names of diseases to its 10 classes (table 5.9)."""
    names = np.array([["vulgaris", "pomade"], ["areata", "areata"], ["bowen", "wheal"]])
    named = names[NEW_LABELS, np.arange(900) % 2]
    label_map = {"vulgaris": "acne", "pomade": "acne", "areata": "alopecia", "bowen": "acne"}
    class_map = {0: "acne", 1: "alopecia", 2: "acne"}
    options = {"n_bootstrap": 5, "layer": "plain"}
    maps = {"label_map": {**label_map, "wheal": None}, "class_map": class_map}
    new = tf.data.Dataset.from_tensor_slices((NEW_X, named)).batch(300)
    found = shift_report(model, (X, LABELS), new, **maps, **options)
    assert found.groups == ("acne", "alopecia")
    assert found.left_out == np.sum(named == "wheal")
    rows = named != "wheal"
    predicted = NEW[:, 1] > 0.5
    assert found.target_accuracy == np.mean(predicted[rows] == (NEW_LABELS == 1)[rows])
    assert found.source_accuracy == np.mean((PROBS[:, 1] > 0.5) == (LABELS == 1))
    assert found.target_confusion.sum() == rows.sum()
    assert "left out" in found.to_markdown()
    assert "| acne | " in found.to_markdown()

    numbers = shift_report(
        model,
        (X, LABELS),
        (NEW_X, named),
        label_map={"vulgaris": 0, "pomade": 0, "areata": 1, "bowen": 2, "wheal": 2},
        **options,
    )
    assert numbers.target_accuracy == np.mean(NEW.argmax(1) == NEW_LABELS)
    classes = shift_report(model, (X, LABELS), (NEW_X, NEW_LABELS), class_map=class_map, **options)
    assert classes.target_accuracy == np.mean(predicted == (NEW_LABELS == 1))


BAD_REPORTS = [
    ("model", {"model": "net"}),
    ("source", {"source": X}),
    ("source", {"source": (X * np.nan, LABELS)}),
    ("source", {"source": (X, LABELS + 1)}),
    ("source", {"source": (X, np.array(["acne"] * 900))}),
    ("source", {"source": (X[:0], LABELS[:0])}),
    ("target", {"target": X[:0]}),
    ("target", {"target": (NEW_X, np.array(["acne"] * 900))}),
    ("label_map", {"target": (NEW_X, NEW_LABELS), "label_map": {7: 0}}),
    ("label_map", {"target": (NEW_X, NEW_LABELS), "label_map": {0: "acne"}}),
    ("label_map", {"target": (NEW_X, NEW_LABELS), "label_map": [0, 1]}),
    ("label_map", {"label_map": {0: 0}}),
    ("class_map", {"class_map": {0: "a"}}),
    ("class_map", {"class_map": {0: "a", 1: "a", 2: "a"}}),
    ("layer", {"layer": "none"}),
    ("confidence", {"confidence": 2}),
    ("n_bootstrap", {"n_bootstrap": 0}),
    ("max_examples", {"max_examples": 1}),
    ("batch_size", {"batch_size": 0}),
    ("seed", {"seed": -1}),
]


@pytest.mark.parametrize("argument, options", BAD_REPORTS)
def test_a_report_refuses_bad_input(model, argument, options):
    given = {"model": model, "source": (X, LABELS), "target": NEW_X, "n_bootstrap": 1} | options
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        shift_report(**given)


BAD = [
    ("probs_source", {"probs_source": PROBS * np.nan}),
    ("probs_source", {"probs_source": PROBS * 3}),
    ("probs_source", {"probs_source": np.full((900, 2, 3), 1 / 3), "labels": np.zeros((900, 2))}),
    ("probs_target", {"probs_target": NEW * np.nan}),
    ("probs_target", {"probs_target": NEW[:0]}),
    ("probs_target", {"probs_target": NEW[:, 0]}),
    ("probs_target", {"probs_target": "many"}),
    ("labels", {"labels": LABELS[1:]}),
    ("labels", {"labels": LABELS + 1}),
    ("confidence", {"confidence": "high"}),
    ("n_bootstrap", {"n_bootstrap": 0.5}),
    ("from_logits", {"from_logits": None}),
]


@pytest.mark.parametrize("argument, options", BAD)
def test_estimates_refuse_bad_input(argument, options):
    given = {"probs_source": PROBS, "labels": LABELS, "probs_target": NEW, "n_bootstrap": 1}
    for function in (
        black_box_shift_estimation,
        average_thresholded_confidence,
        difference_of_confidences,
    ):
        with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
            function(**(given | options))
    with pytest.raises(ValueError, match="Argument `score` must"):
        average_thresholded_confidence(PROBS, LABELS, NEW, score="margin")


@pytest.mark.parametrize(
    "argument, options",
    [
        ("features_a", {"features_a": X[:0]}),
        ("features_a", {"features_a": X[:1]}),
        ("features_b", {"features_b": X[:, :1]}),
        ("features_b", {"features_b": X * np.inf}),
        ("features_b", {"features_b": X[:, 0]}),
        ("test_share", {"test_share": 0}),
        ("test_share", {"test_share": 1}),
        ("l2", {"l2": 0}),
        ("max_examples", {"max_examples": 1}),
        ("seed", {"seed": None}),
    ],
)
def test_two_sample_tests_refuse_bad_input(argument, options):
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        classifier_two_sample_test(**({"features_a": X, "features_b": NEW_X} | options))


@pytest.mark.parametrize(
    "argument, priors",
    [
        ("source_prior", ([0.5, 0.5], NEW_PRIOR)),
        ("source_prior", ([0.5, 0.5, 0], NEW_PRIOR)),
        ("target_prior", (NEW_PRIOR, [0.5, 0.5, 0.5])),
        ("target_prior", (NEW_PRIOR, [1.5, -0.5, 0])),
        ("target_prior", (NEW_PRIOR, [np.nan, 0.5, 0.5])),
    ],
)
def test_priors_that_are_none_are_refused(argument, priors):
    with pytest.raises(ValueError, match=f"(?s)Argument `{argument}` must .*Received: "):
        correct_label_shift(PROBS, *priors)
