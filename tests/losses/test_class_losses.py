"""Losses of classifiers: against pytorch-ood, in training, and what they refuse."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import special

from tfuq import losses, metrics, ood, predictive

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "pytorch_ood_later.npz"
THEIRS = {k.removeprefix("losses/"): v for k, v in np.load(FIXTURE).items() if "losses/" in k}
LOGITS, LABELS = THEIRS["logits"].astype("float32"), THEIRS["labels"]
INSIDE = LABELS >= 0
ONE_HOT = np.eye(3, dtype="float32")[LABELS] * INSIDE[:, None]

LOSSES = {
    "logit_norm": lambda **options: losses.LogitNorm(0.3, **options),
    "exposure": lambda **options: losses.OutlierExposure(0.5, **options),
    "energy": lambda **options: losses.EnergyMargin(-3.0, -1.0, 0.1, **options),
}
WITH_OUTLIERS = ("exposure", "energy")
EVERY = pytest.mark.parametrize("name", LOSSES)


def rows_of(name, labels=LABELS):
    """Labels and logits that the loss takes."""
    rows = slice(None) if name in WITH_OUTLIERS else INSIDE
    return labels[rows], LOGITS[rows]


def test_as_pytorch_ood():
    """Theirs of outlier exposure is a mean over all rows, not over those of each kind."""
    rows = THEIRS["exposure_none"]
    expected = {
        "logit_norm": THEIRS["logit_norm_mean"],
        "exposure": rows[INSIDE].mean() + rows[~INSIDE].mean(),
        "energy": THEIRS["energy_mean"],
    }
    for name, make in LOSSES.items():
        np.testing.assert_allclose(make()(*rows_of(name)), expected[name], rtol=1e-5)
        each = make(reduction="none")(*rows_of(name)).numpy()
        theirs = THEIRS[f"{name}_none"]
        if name != "logit_norm":  # the rows' weights make one mean of both
            theirs = theirs * np.where(INSIDE, 14 / INSIDE.sum(), 14 / (~INSIDE).sum())
        np.testing.assert_allclose(each, theirs, rtol=1e-5)


@EVERY
def test_labels_of_any_form(name):
    loss = LOSSES[name]()
    y, logits = rows_of(name)
    expected = loss(y, logits)
    for labels in (y[:, None], y.astype("int8"), y.astype("float64"), rows_of(name, ONE_HOT)[0]):
        np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-6)


@EVERY
def test_pixels_are_rows(name):
    loss = LOSSES[name]()
    y, logits = (array[: len(array) // 2 * 2] for array in rows_of(name))
    maps = loss(y.reshape(1, 2, -1), logits.reshape(1, 2, -1, 3))
    np.testing.assert_allclose(maps, loss(y, logits), rtol=1e-6)


@EVERY
def test_comes_back_from_its_configuration(name):
    loss = LOSSES[name]()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_array_equal(again(*rows_of(name)), loss(*rows_of(name)))


@EVERY
def test_gradients_are_finite(name):
    """Also where all logits are 0, of which the length has no gradient."""
    y, logits = rows_of(name)
    logits = tf.constant(np.where(np.arange(len(y))[:, None] == 1, 0, logits))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = LOSSES[name]()(y, logits)
    gradient = tape.gradient(value, logits).numpy()
    assert np.isfinite(gradient).all() and (gradient[0] != 0).any()


def test_a_batch_of_one_kind():
    """Without outliers it is the crossentropy; of outliers alone their part."""
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    y, logits = LABELS[INSIDE], LOGITS[INSIDE]
    exposure = LOSSES["exposure"]()
    np.testing.assert_allclose(exposure(y, logits), plain(y, logits), rtol=1e-6)
    log_probs = special.log_softmax(LOGITS[~INSIDE], axis=1)
    expected = -0.5 * log_probs.mean()
    np.testing.assert_allclose(exposure(LABELS[~INSIDE], LOGITS[~INSIDE]), expected, rtol=1e-5)


def test_length_of_logits_counts_for_nothing():
    y, logits = rows_of("logit_norm")
    loss = losses.LogitNorm()
    np.testing.assert_allclose(loss(y, 100 * logits), loss(y, logits), rtol=1e-4)
    best = np.eye(3, dtype="float32")[y] - 1 / 3  # as apart as unit vectors can be
    least = np.log1p(2 * np.exp(-np.sqrt(3 / 2) / 0.3))
    np.testing.assert_allclose(losses.LogitNorm(0.3)(y, best), least, rtol=1e-4)
    assert losses.LogitNorm(0.3)(y, logits) > least


@EVERY
def test_a_model_that_is_compiled_with_it_has_logits_of_classes(name, tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("sgd", LOSSES[name](), jit_compile=False)
    x = np.random.default_rng(0).normal(size=(14, 4)).astype("float32")
    probs = special.softmax(model.predict(x, verbose=0), axis=1)
    found = predictive.predict_uncertainty(model, x, 1).probs
    np.testing.assert_allclose(found, probs, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    y = np.abs(LABELS)
    np.testing.assert_allclose(
        again.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-5
    )
    np.testing.assert_allclose(ood.MaxSoftmax().fit(again, x).score(x), 1 - probs.max(1), rtol=1e-4)


BAD_LABELS = {
    "a class too many": lambda y: np.where(y == 2, 3, y),
    "an outlier by another name": lambda y: np.where(y == 2, -2, y),
    "half a class": lambda y: np.where(y == 2, 0.5, y),
    "no number": lambda y: np.where(y == 2, np.nan, y),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
@EVERY
def test_labels_that_are_no_classes_are_refused(name, kind):
    y, logits = rows_of(name)
    bad = BAD_LABELS[kind](y)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`y_true` must hold classes"):
        LOSSES[name]()(bad, logits)
    compiled = tf.function(LOSSES[name](), jit_compile=True)  # which drops the check
    assert np.isnan(compiled(tf.constant(bad, "float32"), logits))


def test_one_hot_rows_have_a_sum():
    with pytest.raises(tf.errors.InvalidArgumentError, match="sum to 1"):
        losses.LogitNorm()(ONE_HOT, LOGITS)  # zeros are outliers, which it has not
    with pytest.raises(tf.errors.InvalidArgumentError, match="row of zeros"):
        losses.OutlierExposure()(0.5 * ONE_HOT, LOGITS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`y_true` must hold classes"):
        losses.LogitNorm()(LABELS, LOGITS)


@EVERY
def test_other_shapes_and_probabilities_are_refused(name):
    loss, (y, logits) = LOSSES[name](), rows_of(name)
    for bad in (y[:3], np.zeros((len(y), 4)), y[:, None, None, None]):
        with pytest.raises(ValueError, match=r"`y_true` must hold a class.*Received"):
            loss(bad, logits)
    with pytest.raises(ValueError, match=r"`y_pred` must hold logits.*two or more"):
        loss(y, logits[:, :1])
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    model.compile("sgd", loss, jit_compile=False)
    with pytest.raises(ValueError, match="`y_pred` must be logits"):
        model.fit(np.zeros((len(y), 4)), y, verbose=0)


@pytest.mark.parametrize(
    "argument, make",
    [
        ("temperature", lambda: losses.LogitNorm(0)),
        ("weight", lambda: losses.OutlierExposure(-0.1)),
        ("weight", lambda: losses.OutlierExposure(np.nan)),
        ("weight", lambda: losses.EnergyMargin(weight="0.1")),
        ("margin_in", lambda: losses.EnergyMargin(-7, -25)),
        ("margin_in", lambda: losses.EnergyMargin(-np.inf, -7)),
    ],
)
def test_bad_arguments(argument, make):
    with pytest.raises(ValueError, match=rf"Argument `{argument}` must .*Received"):
        make()


@pytest.mark.slow
def test_outliers_in_training_teach_to_tell_others():
    """Three blobs; outliers everywhere, and others along an axis of their own; seeds are fixed.

    Measured AUROC with and without outliers: .959 and .857 with exposure, .958 and .889 with
    margins; the standard error of each is about .01.
    """
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    axes = 3 * np.eye(4)
    x, new = ((axes[y] + rng.normal(size=(300, 4))).astype("float32") for _ in range(2))
    outliers = (3 * rng.normal(size=(300, 4))).astype("float32")
    other = (axes[np.full(300, 3)] + rng.normal(size=(300, 4))).astype("float32")

    def areas(loss, x, y):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(32, "relu"), layers.Dense(3)])
        model.compile(keras.optimizers.Adam(0.02), loss, jit_compile=False)
        model.fit(x, y, batch_size=100, epochs=20, verbose=0)
        both = np.concatenate([new, other])
        kinds = {"exposure": ood.MaxSoftmax, "energy": ood.Energy}
        scores = {name: make().fit(model, x).score(both) for name, make in kinds.items()}
        return {n: metrics.auroc(np.repeat([0, 1], 300), s) for n, s in scores.items()}

    plain = areas(keras.losses.SparseCategoricalCrossentropy(from_logits=True), x, y)
    x, y = np.concatenate([x, outliers]), np.concatenate([y, np.full(300, -1)])
    trained = {"exposure": losses.OutlierExposure(), "energy": losses.EnergyMargin(-5.0, -1.0)}
    for name, loss in trained.items():
        assert areas(loss, x, y)[name] > plain[name] + 0.03


@pytest.mark.parametrize("loss", [losses.OutlierExposure(0.5), losses.EnergyMargin(-3.0, -1.0)])
@pytest.mark.parametrize("padding", [0, -1])
def test_means_are_over_what_a_mask_lets_through(loss, padding):
    """Whatever class padding has; it counted in the means of its kind."""
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2, 6, 3)).astype("float32"), np.arange(6) < np.array([[6], [2]])
    y = np.where(rng.random((2, 6)) < 0.4, -1, 1)
    assert {-1, 1} == set(y[mask])
    masked = tf.constant(logits)
    masked._keras_mask = tf.constant(mask)
    found = loss(np.where(mask, y, padding), masked)
    np.testing.assert_allclose(found, loss(y[mask], logits[mask]), rtol=1e-5)
