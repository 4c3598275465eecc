"""predict_uncertainty of regressions: what is declared, draws, files, refusals."""

import keras
import numpy as np
import pytest

from tfuq import layers, losses, predictive
from tfuq.callbacks import SnapshotEnsemble
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import MCDropout, NormalDense

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype("float32")
Y = X.sum(axis=1)


def network(*head, loss=None, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), *head])
    if loss is not None:
        model.compile("sgd", loss, jit_compile=False, **options)
    return model


def test_a_head_declares_what_it_is():
    model = network(NormalDense(1))
    found = predictive.predict_uncertainty(model, X)
    loc, scale = np.split(model.predict(X, verbose=0), 2, axis=-1)
    np.testing.assert_allclose(found.mean, loc, rtol=1e-6)
    np.testing.assert_allclose(found.std, scale, rtol=1e-6)
    assert (found.epistemic_std == 0).all() and "single network" in found.note


def test_draws_have_an_epistemic_part():
    model = network(MCDropout(0.5, seed=1), NormalDense(1))
    found = predictive.predict_uncertainty(model, X, num_samples=8, seed=3)
    stack = predictive.sample_predictions(model, X, num_samples=8, seed=3)
    assert stack.shape == (8, 40, 2) and found.note == ""
    np.testing.assert_allclose(found.mean, stack[..., :1].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.epistemic_std, stack[..., :1].std(axis=0), rtol=1e-4)
    expected = np.sqrt(np.mean(stack[..., 1:] ** 2, axis=0))
    np.testing.assert_allclose(found.aleatoric_std, expected, rtol=1e-5)


def test_subclassed_models_show_their_head_when_called():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = NormalDense(1)

        def call(self, inputs):
            return self.head(inputs)

    model = Net()
    found = predictive.predict_uncertainty(model, X)
    np.testing.assert_allclose(found.mean, np.asarray(model(X))[:, :1], rtol=1e-6)


def test_a_loss_of_numbers_says_numbers_alone():
    model = network(keras.layers.Dense(1), loss="mse")
    found = predictive.predict_uncertainty(model, X)
    np.testing.assert_allclose(found.mean, model.predict(X, verbose=0), rtol=1e-6)
    assert "no aleatoric part" in found.note
    with pytest.raises(ValueError, match="NormalDense"):
        found.interval(0.9)


def test_the_caller_may_say_it():
    model = network(keras.layers.Dense(1))
    with pytest.raises(ValueError, match="from_logits"):
        predictive.predict_uncertainty(model, X)
    found = predictive.predict_uncertainty(model, X, family="point")
    np.testing.assert_allclose(found.mean, model.predict(X, verbose=0), rtol=1e-6)
    with pytest.raises(ValueError, match="`family`"):
        predictive.predict_uncertainty(network(NormalDense(1)), X, family="laplace")


def test_one_answer_whatever_the_way(tmp_path):
    head = NormalDense(1)
    model = network(head, loss=head.negative_log_likelihood())
    model.fit(X, Y, verbose=0)
    whole = predictive.predict_uncertainty(model, X)
    model.save(tmp_path / "model.keras")
    for loaded in (
        keras.models.load_model(tmp_path / "model.keras"),
        keras.models.load_model(tmp_path / "model.keras", compile=False),
    ):
        for batch_size in (1, 7):
            found = predictive.predict_uncertainty(loaded, X, batch_size=batch_size)
            np.testing.assert_allclose(found.params, whole.params, atol=1e-6)
    assert loaded.layers[-1].get_config() == head.get_config()


def test_an_ensemble_has_an_epistemic_part():
    models = [network(NormalDense(1)), network(NormalDense(1))]
    models[1].set_weights([w + 0.1 for w in models[1].get_weights()])
    found = predictive.predict_uncertainty(DeepEnsemble.from_models(models), X)
    each = np.stack([model.predict(X, verbose=0) for model in models])
    np.testing.assert_allclose(found.params, each, rtol=1e-5)
    assert (found.epistemic_std > 0).all() and found.num_samples == 2
    mixed = DeepEnsemble.from_models([models[0], network(layers.LaplaceDense(1))])
    with pytest.raises(ValueError, match="one family"):
        predictive.predict_uncertainty(mixed, X)


BODIES = {
    "variational": lambda: layers.DenseVariational(8, kl_weight=1e-3),
    "sparse": lambda: layers.SparseBayesDense(8, kl_weight=1e-3),
    "dropout": lambda: MCDropout(0.3),
    "Gaussian dropout": lambda: layers.MCGaussianDropout(0.3),
}
HEADS = {
    "normal": lambda: NormalDense(1),
    "Laplace": lambda: layers.LaplaceDense(1),
    "t": lambda: layers.StudentTDense(1),
    "mixture": lambda: layers.MixtureDense(1, num_components=2),
    "quantiles": lambda: layers.QuantileDense(1, levels=[0.05, 0.5, 0.95]),
    "evidential": lambda: layers.EvidentialDense(1),
    "joint": lambda: layers.MultivariateNormalDense(2, num_factors=1),
    "Bayesian": lambda: layers.VBLLRegression(1, kl_weight=1e-3),
}


@pytest.mark.slow_product
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_behind_every_random_layer(head, body):
    """Trained by its own loss; draws differ, and what they say is the mixture of them."""
    last = HEADS[head]()
    loss = last.pinball() if head == "quantiles" else last.negative_log_likelihood()
    model = network(BODIES[body](), last, loss=loss)
    if body == "sparse":
        chosen = model.layers[1]
        chosen.select(*[RNG.uniform(size=w.shape) for w in chosen.ranked_weights().values()])
    y = np.stack([Y, -Y], axis=-1)[:, : last.units]
    assert np.isfinite(model.fit(X, y, batch_size=20, verbose=0).history["loss"]).all()
    found = predictive.predict_uncertainty(model, X, num_samples=4, seed=2)
    assert found.num_samples == 4 and found.shape == (40, last.units)
    assert np.isfinite(found.mean).all() and (found.epistemic_std > 0).any()
    lower, upper = found.interval(0.8)
    assert (lower < upper).all()
    if head != "quantiles":  # of which nothing is known between the levels
        np.testing.assert_allclose(
            found.std**2, found.aleatoric_std**2 + found.epistemic_std**2, rtol=1e-5
        )


def test_snapshots_of_one_training_have_an_epistemic_part(tmp_path):
    model = network(NormalDense(1), loss=GOOD)
    snapshots = SnapshotEnsemble(tmp_path / "snapshots", every=1)
    model.fit(X, Y, epochs=3, callbacks=[snapshots], verbose=0)
    found = predictive.predict_uncertainty(snapshots.ensemble(), X)
    assert found.num_samples == 3 and (found.epistemic_std > 0).all()


def test_inputs_that_are_not_finite_are_unknown():
    x = X.copy()
    x[2, 1] = np.inf
    found = predictive.predict_uncertainty(network(NormalDense(1)), x)
    assert np.isnan(found.mean[2]) and np.isfinite(np.delete(found.mean, 2)).all()


# --- Losses and metrics that misread a head -------------------------------------------------------

GOOD = NormalDense(1).negative_log_likelihood()


@pytest.mark.parametrize(
    "loss, metrics, match",
    [
        ("mse", None, "`loss`"),
        (keras.losses.Huber(), None, "`loss`"),
        (keras.losses.mean_absolute_error, None, "`loss`"),
        (losses.CRPS("laplace"), None, "`loss`"),
        (GOOD, ["mae"], "`metrics`"),
        (GOOD, [keras.metrics.MeanSquaredError()], "`metrics`"),
    ],
)
def test_refused_in_the_first_step(loss, metrics, match):
    model = network(NormalDense(1), loss=loss, metrics=metrics)
    with pytest.raises(ValueError, match=match):
        model.fit(X, Y, verbose=0)


def test_targets_of_another_shape():
    model = network(NormalDense(1), loss=GOOD)
    with pytest.raises(ValueError, match="`y_true`"):
        model.fit(X, np.stack([Y, Y, Y], axis=1), verbose=0)


def test_the_mean_alone_takes_any_loss_of_keras():
    model = network(NormalDense(1, mean_only=True), loss="mse", metrics=["mae"])
    model.fit(X, Y, verbose=0)
    assert model.predict(X, verbose=0).shape == (40, 1)
    with pytest.raises(ValueError, match="mean_only"):
        model.layers[-1].negative_log_likelihood()


def test_what_is_of_classes_refuses_numbers():
    with pytest.raises(ValueError, match="classifier"):
        predictive.predict_uncertainty(network(NormalDense(1)), X, from_logits=True)


@pytest.mark.parametrize("kind", ["Laplace", "StudentT", "Mixture", "Quantile", "Evidential"])
def test_all_heads_are_read(kind):
    head = getattr(layers, f"{kind}Dense")(2)
    found = predictive.predict_uncertainty(network(head), X)
    lower, upper = found.interval(0.9)
    assert found.shape == (40, 2) and (lower < upper).all()
