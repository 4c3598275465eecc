"""RejectionEvaluator by the measures of uncertainty of drawn networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.callbacks import RejectionEvaluator
from tfuq.layers import VBLLDense
from tfuq.metrics import rejection_table
from tfuq.predictive import decompose, predict_uncertainty

SCORES = ("predictive_entropy", "mutual_information", "variation_ratio")


def data(count=40):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 4)).astype("float32"), rng.integers(3, size=count)


def bayesian(units=3, **kwargs):
    head = VBLLDense(units, 0.01, posterior_scale=0.8, seed=1, **kwargs)
    return keras.Sequential([keras.Input((4,)), head])


def evaluated(score, model, *, given=None, **kwargs):
    evaluator = RejectionEvaluator(given or data(), (0.3, 0.7), score, num_samples=12, **kwargs)
    return evaluator.evaluate(model)


@pytest.mark.slow_cases("predictive_entropy", "variation_ratio")
@pytest.mark.parametrize("score", SCORES)
def test_accepts_by_the_uncertainty_of_the_networks(score):
    (x, y), model = data(), bayesian()
    parts = predict_uncertainty(model, x, 12, from_logits=True)
    largest = 1.0 if score == "variation_ratio" else np.log(3)
    confidence = 1 - getattr(parts, score) / largest
    expected = rejection_table(y, parts.probs, (0.3, 0.7), confidence=confidence)
    found = evaluated(score, model, from_logits=True)
    for name, column in expected.items():
        np.testing.assert_allclose(found[name], column, atol=1e-6)
    coverages = {tuple(evaluated(s, model, from_logits=True)["coverage"]) for s in SCORES}
    assert len(coverages) == len(SCORES)  # each is a score of its own


def test_datasets_and_weights():
    x, y = data()
    weight = np.linspace(0.1, 1, len(x))
    model = bayesian()
    arrays = evaluated("mutual_information", model, given=(x, y, weight), from_logits=True)
    batches = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(7)
    dataset = evaluated("mutual_information", model, given=batches, from_logits=True)
    for name, column in arrays.items():
        np.testing.assert_allclose(dataset[name], column, atol=1e-6)
    unweighted = evaluated("mutual_information", model, from_logits=True)
    assert np.any(arrays["coverage"] != unweighted["coverage"])


@pytest.mark.slow
def test_labels_and_binary_predictions():
    x, y = data()
    model = bayesian(likelihood="bernoulli")
    labels = (y[:, None] == np.arange(3)).astype("int32")
    several = evaluated(
        "mutual_information", model, given=(x, labels), from_logits=True, multi_label=True
    )
    untold = evaluated("mutual_information", model, given=(x, labels))
    one = evaluated(
        "predictive_entropy",
        bayesian(1, likelihood="bernoulli"),
        given=(x, (y > 0).astype("int32")),
        from_logits=True,
    )
    for table in (several, untold, one):
        assert table["coverage"][1] < table["coverage"][0] <= 1


def test_entropy_of_a_deterministic_model_is_that_of_its_prediction():
    x, y = data()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    probs = model.predict(x, verbose=0)
    confidence = 1 - decompose(probs[None]).predictive_entropy / np.log(3)
    expected = rejection_table(y, probs, (0.3, 0.7), confidence=confidence)
    found = evaluated("predictive_entropy", model)
    for name, column in expected.items():
        np.testing.assert_allclose(found[name], column, atol=1e-6)


@pytest.mark.parametrize("score", ["mutual_information", "variation_ratio"])
def test_deterministic_models_have_no_epistemic_score(score):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=f"Argument `score` must .* Received: score='{score}'"):
        evaluated(score, model)


def test_in_training():
    x, y = data()
    evaluator = RejectionEvaluator(
        (x, y), (0.5,), "mutual_information", from_logits=True, num_samples=4, verbose=0
    )
    model = bayesian()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    logs = model.fit(x, y, epochs=2, verbose=0, callbacks=[evaluator]).history
    assert len(logs["val_coverage_at_0.5"]) == 2


def test_bad_number_of_samples():
    with pytest.raises(ValueError, match="Argument `num_samples` must"):
        RejectionEvaluator(data(), num_samples=0)
