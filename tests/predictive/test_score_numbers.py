"""Rows of regressions: what `predict_uncertainty` says, resumable, of exports and ensembles too."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.ensembles import DeepEnsemble
from tfuq.export import export
from tfuq.layers import MCDropout, NormalDense
from tfuq.predictive import predict_uncertainty, read_scores, score_dataset
from tfuq.selective import ConformalRegressor, RegressionRule, RejectionRule

RNG = np.random.default_rng(0)
X = RNG.normal(size=(25, 4)).astype("float32")
Y = X.sum(axis=1)
NAMES = ("mean", "std", "aleatoric_std", "epistemic_std")
OPTIONS = {"format": "tfrecord", "verbose": 0}


def network(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh"), *layers])


def assert_says(scores, found, names=NAMES, level=0.9):
    expected = {name: getattr(found, name) for name in names} | found.interval(level)._asdict()
    for name, values in expected.items():
        shape = scores[name].shape
        np.testing.assert_allclose(scores[name], values.reshape(shape), rtol=1e-5, atol=1e-6)


def test_rows_are_what_python_says(tmp_path):
    model = network(MCDropout(0.3), NormalDense(1))
    found = predict_uncertainty(model, X, 4)
    rule = RejectionRule.fit(found, Y, tolerance=1.0, target_coverage=0.5)
    given = {**OPTIONS, "num_samples": 4, "rule": rule, "shard_size": 10}
    done = score_dataset(model, (X, Y), tmp_path / "s", **given)
    assert (done.examples, done.scored, len(done.files)) == (25, 25, 3)
    scores = read_scores(tmp_path / "s")
    assert_says(scores, found)
    np.testing.assert_allclose(scores["true_label"], Y)
    np.testing.assert_allclose(scores["score"], rule.score_of(found)[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(scores["accept"].astype(bool), rule.accept(found)[:, 0])
    assert score_dataset(model, (X, Y), tmp_path / "s", **given).scored == 0  # resumed
    with pytest.raises(ValueError, match="seed"):
        score_dataset(model, (X, Y), tmp_path / "s", **given, level=0.9, seed=1)


@pytest.mark.slow
def test_exports_and_ensembles_have_the_same_rows(tmp_path):
    members = [network(NormalDense(2)), network(NormalDense(2))]
    members[1].set_weights([1.5 * weight for weight in members[1].get_weights()])
    ensemble = DeepEnsemble.from_models(members)
    found = predict_uncertainty(ensemble, X)
    rule = RegressionRule("std", float(np.median(found.std)), units=2, level=0.8)
    export(ensemble, tmp_path / "served", rule=rule)
    served = tf.saved_model.load(str(tmp_path / "served"))
    options = {**OPTIONS, "columns": [*NAMES, "lower", "upper", "score", "accept"]}
    score_dataset(ensemble, X, tmp_path / "a", rule=rule, **options)
    score_dataset(served, X, tmp_path / "b", **options)
    ours, theirs = read_scores(tmp_path / "a"), read_scores(tmp_path / "b")
    assert_says(ours, found, level=0.8)
    assert ours["accept"].shape == (25, 2)
    for name, values in ours.items():
        np.testing.assert_allclose(theirs[name], values, rtol=1e-4, atol=1e-5)


def test_conformal_intervals_and_unknown_rows(tmp_path):
    model = network(NormalDense(1))
    found = predict_uncertainty(model, X)
    sets = ConformalRegressor.fit(found, Y, alpha=0.2, method="normalized")
    spoiled = X.copy()
    spoiled[3] = np.nan
    rule = RegressionRule(threshold=10.0)
    score_dataset(model, spoiled, tmp_path / "s", conformal=sets, rule=rule, **OPTIONS)
    scores, lower = read_scores(tmp_path / "s"), sets.interval(found).lower
    known = np.arange(25) != 3
    np.testing.assert_allclose(scores["lower"][known], lower[known, 0], rtol=1e-5)
    assert np.isnan(scores["mean"][3]) and scores["upper"][3] == np.inf
    np.testing.assert_array_equal(scores["accept"].astype(bool), known)
    assert "epistemic_std" not in scores  # one network


def test_numbers_alone_have_a_mean(tmp_path):
    model = network(keras.layers.Dense(1))
    score_dataset(model, X, tmp_path / "s", family="point", **OPTIONS)
    assert set(read_scores(tmp_path / "s")) == {"index", "mean"}


@pytest.mark.parametrize(
    "head, options, says",
    [
        ("normal", {"rule": RejectionRule("confidence", 0.5)}, "`rule`"),
        ("normal", {"rule": RegressionRule(units=2)}, "units|numbers"),
        ("normal", {"conformal": RejectionRule("confidence", 0.5)}, "`conformal`"),
        ("normal", {"class_names": ["a", "b"]}, "`class_names`"),
        ("normal", {"level": 90}, "`level`"),
        ("normal", {"columns": ["probabilities"]}, "`columns`"),
        ("normal", {"num_samples": 4}, "`num_samples`"),
        ("normal", {"from_logits": True}, "classifier"),
        ("classes", {"rule": RegressionRule()}, "`rule`"),
        ("classes", {"level": 0.9}, "`level`"),
        ("classes", {"conformal": ConformalRegressor()}, "`conformal`"),
    ],
)
def test_refused(head, options, says, tmp_path, counts):
    layer = NormalDense(1) if head == "normal" else keras.layers.Dense(2, "softmax")
    with pytest.raises(ValueError, match=says):
        score_dataset(network(layer), X, tmp_path / "s", **OPTIONS, **options)
    assert not (tmp_path / "s").exists()
    counts("misuse rows, refused")
