"""Detectors know the model that they were fitted to: its weights and the shape of its outputs."""

import json

import keras
import numpy as np
import pytest
from architectures import of_logits
from small_detectors import MODEL, OTHER, X, Y, fitted, make_model, refused
from test_score_files import rewritten

import tfuq.export
from tfuq import ood
from tfuq._models.fingerprint import fingerprint, quick_mark
from tfuq.ensembles import DeepEnsemble
from tfuq.optimizers import IVON
from tfuq.predictive.rows import _models_digest

KINDS = ("MaxSoftmax", "Mahalanobis", "KNN", "ViM", "GradNorm", "ODIN")


def changed(model):
    """A copy of which one weight differs by one bit."""
    copy = keras.models.clone_model(model)
    weights = model.get_weights()
    weights[-1].view("uint32")[-1] ^= 1
    copy.set_weights(weights)
    return copy


def test_a_copy_is_the_same_model_and_one_bit_makes_another():
    copy = keras.models.clone_model(MODEL)
    copy.set_weights(MODEL.get_weights())
    assert fingerprint(copy) == fingerprint(MODEL) and quick_mark(copy) == quick_mark(MODEL)
    other = changed(MODEL)
    assert fingerprint(other) != fingerprint(MODEL) and quick_mark(other) != quick_mark(MODEL)
    assert fingerprint(lambda x: x) is None and quick_mark(lambda x: x) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_beside_other_weights(kind, tmp_path):
    detector = fitted(kind)
    detector.threshold_at(0.9, X)
    detector.save(tmp_path / "d.npz")
    other, same = changed(MODEL), of_logits(keras.models.clone_model(MODEL))
    same.set_weights(MODEL.get_weights())
    refused("model", ood.load_detector, tmp_path / "d.npz", other)
    refused("model", type(detector).load, tmp_path / "d.npz", model=other)
    loaded = ood.load_detector(tmp_path / "d.npz", same)
    np.testing.assert_allclose(loaded.score(OTHER), detector.score(OTHER), rtol=1e-4, atol=1e-5)
    refused("model", setattr, loaded, "model", other)
    refused("model", loaded.detect, OTHER)  # nothing is answered with it
    meant = ood.load_detector(tmp_path / "d.npz", other, check_model=False)
    assert np.isfinite(meant.score(OTHER)).all()


def test_a_model_that_was_trained_after_the_fit():
    model = make_model()
    detector = ood.Mahalanobis("hidden").fit(model, X, Y)
    detector.threshold_at(0.9, X)
    before = detector.score(OTHER)
    weights = model.get_weights()
    model.set_weights([weight + 0.01 for weight in weights])
    for call in (detector.score, detector.detect):
        refused("model", call, OTHER)
    model.set_weights(weights)
    np.testing.assert_array_equal(detector.score(OTHER), before)
    model.set_weights([weight + 0.01 for weight in weights])
    assert np.isfinite(detector.fit(model, X, Y).score(OTHER)).all()  # fitted to what it is now


def test_ensembles_and_gradients(tmp_path):
    ensemble = DeepEnsemble(make_softmax, 2)
    detector = ood.MutualInformation().fit(ensemble, X)
    detector.save(tmp_path / "d.npz")
    assert len(ood.load_detector(tmp_path / "d.npz", ensemble).score(OTHER)) == len(OTHER)
    ensemble.members[1].set_weights([w + 1 for w in ensemble.members[1].get_weights()])
    refused("model", ood.load_detector, tmp_path / "d.npz", ensemble)
    refused("model", detector.score, OTHER)

    density = ood.GradientDensity().fit(ood.GradientFeatures(MODEL), X)
    density.save(tmp_path / "g.npz")
    ood.load_detector(tmp_path / "g.npz", ood.GradientFeatures(MODEL))
    other = ood.GradientFeatures(changed(MODEL))
    refused("model", ood.load_detector, tmp_path / "g.npz", other)


def make_softmax():
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, "softmax")])


def test_files_without_a_fingerprint_load_as_before(tmp_path):
    fitted("KNN").save(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as file:
        assert json.loads(str(file["header"]))["model"] == fingerprint(MODEL)
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "old.npz").write_bytes(rewritten(content, {"model": None}))
    assert np.isfinite(ood.load_detector(tmp_path / "old.npz", changed(MODEL)).score(OTHER)).all()
    (tmp_path / "odd.npz").write_bytes(rewritten(content, {"model": "mine"}))
    refused("path", ood.load_detector, tmp_path / "odd.npz")


def test_an_export_with_a_detector_of_other_weights(tmp_path):
    model = make_softmax()
    detector = ood.MaxSoftmax().fit(model, X)
    model.set_weights([weight + 0.01 for weight in model.get_weights()])
    refused("model", tfuq.export.export, model, tmp_path / "m", ood=detector)
    assert not (tmp_path / "m").exists()


def test_the_posterior_of_an_optimizer_belongs_to_a_model_that_is_drawn_from():
    model = make_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(IVON(0.1, num_data=len(X)), loss, run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    draws, mean = ood.MutualInformation(num_samples=2).fit(model, X), ood.Energy().fit(model, X)
    expected, digest = draws.score(OTHER), _models_digest([model])
    np.testing.assert_array_equal(draws.score(OTHER), expected)
    wider = model.optimizer.hessians()[0].numpy() / 4
    model.optimizer._hessians[0].assign(wider)  # and no weight changes
    refused("model", draws.score, OTHER)
    assert np.isfinite(mean.score(OTHER)).all()
    assert _models_digest([model]) != digest
