"""BatchEnsemble: as edward2, by dense kernels in NumPy, who trains on what, draws, copies."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from tfuq.convert import batch_ensemble, replace_head, report, to_deterministic
from tfuq.export import export, verify_export
from tfuq.interpret import grad_cam
from tfuq.layers import BatchEnsembleConv2D, BatchEnsembleDense, MCDropout
from tfuq.ood import MaxLogit, MutualInformation
from tfuq.predictive import decompose, predict_uncertainty, sample_predictions

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4)).astype("float32")
IMAGES = RNG.normal(size=(7, 6, 5, 4)).astype("float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def moved(model):
    """Its weights away from where they start (biases of 0 hide much)."""
    for weight in model.trainable_variables:
        weight.assign(RNG.normal(size=weight.shape))
    return model


def network(members=3, *between):
    hidden = BatchEnsembleDense(6, members, activation="tanh", seed=1)
    layers = [hidden, *between, BatchEnsembleDense(3, members, seed=2)]
    return moved(keras.Sequential([keras.Input((4,)), *layers]))


def dense_kernel(layer, member):
    """W_m = W * (r_m s_m^T), and the bias of the member, in float64."""
    names = ("kernel", "input_factor", "output_factor", "bias")
    kernel, r, s, bias = (np.asarray(getattr(layer, name), "float64") for name in names)
    return kernel * np.outer(r[member], s[member]), bias[member]


def member_logits(model, x, member):
    """One member of `network`, computed with a dense kernel in each layer."""
    for layer in (each for each in model.layers if isinstance(each, BatchEnsembleDense)):
        kernel, bias = dense_kernel(layer, member)
        x = np.tanh(x @ kernel + bias) if layer.units == 6 else x @ kernel + bias
    return x


# --- edward2 -------------------------------------------------------------------------------------

FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "batch_ensemble.npz")
AS_THEIRS = {
    "dense": lambda: BatchEnsembleDense(6, 3, activation="tanh"),
    "convolution": lambda: BatchEnsembleConv2D(
        4, 3, num_members=3, strides=2, padding="same", activation="tanh"
    ),
}


@pytest.mark.parametrize("case", AS_THEIRS)
def test_as_edward2(case):
    """Outputs and gradients in training, and each draw; there each member has a block of rows."""
    theirs = {name: FIXTURE[f"{case}/{name}"] for name in ("x", "outputs", "upstream")}
    # Ours is member i mod 3 at place i.
    ours = {
        name: np.stack(np.split(rows, 3), 1).reshape(rows.shape) for name, rows in theirs.items()
    }
    layer = AS_THEIRS[case]()
    model = keras.Sequential([keras.Input(ours["x"].shape[1:]), layer])
    names = ("kernel", "input_factor", "output_factor", "bias")
    weights = {name: getattr(layer, name) for name in names}
    for name, weight in weights.items():
        weight.assign(FIXTURE[f"{case}/{name}"])
    with tf.GradientTape() as tape:
        outputs = model(ours["x"], training=True)
        total = tf.reduce_sum(outputs * ours["upstream"])
    np.testing.assert_allclose(outputs, ours["outputs"], rtol=1e-5, atol=1e-6)
    gradients = tape.gradient(total, [weight.value for weight in weights.values()])
    for name, gradient in zip(names, gradients, strict=True):
        np.testing.assert_allclose(
            gradient, FIXTURE[f"{case}/gradient_{name}"], rtol=1e-4, atol=1e-4, err_msg=name
        )
    logits = keras.Sequential([model, keras.layers.Flatten()])
    drawn = sample_predictions(logits, ours["x"], multi_label=True, from_logits=True)
    expected = 1 / (1 + np.exp(-theirs["outputs"].reshape(3, 4, -1)))
    for member in range(3):
        np.testing.assert_allclose(drawn[member, member::3], expected[member], rtol=1e-4)


# --- Dense kernels -------------------------------------------------------------------------------


def test_draws_are_the_members_in_turn():
    model = network()
    expected = np.stack([softmax(member_logits(model, X, m), axis=-1) for m in range(3)])
    found = sample_predictions(model, X, from_logits=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    twice = sample_predictions(model, X, 6, from_logits=True, seed=5)
    np.testing.assert_allclose(twice, np.concatenate([expected] * 2), rtol=1e-4, atol=1e-6)
    both = predict_uncertainty(model, X, from_logits=True), decompose(expected)
    for name in ("mean_probs", "mutual_information", "predictive_entropy"):
        if hasattr(both[1], name):
            found, wanted = (np.asarray(getattr(each, name)) for each in both)
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.predict(X, verbose=0), member_logits(model, X, 0), rtol=1e-4)


@pytest.mark.parametrize("options", [{"padding": "same", "strides": 2}, {"groups": 2}])
def test_convolutions_of_members(options):
    layer = BatchEnsembleConv2D(4, 3, num_members=2, activation="relu", **options)
    model = moved(keras.Sequential([keras.Input((6, 5, 4)), layer, keras.layers.Flatten()]))
    found = sample_predictions(model, IMAGES, multi_label=True, from_logits=True)
    assert len(found) == 2
    kernel, r, s, bias = (
        np.asarray(each)
        for each in (layer.kernel, layer.input_factor, layer.output_factor, layer.bias)
    )
    for member in range(2):
        one = keras.layers.Conv2D(4, 3, activation="relu", **options)
        one.build(IMAGES.shape)
        group = 4 // options.get("groups", 1)  # filters and channels of a group
        rows = np.stack([np.roll(r[member], -group * (j // group))[:group] for j in range(4)], -1)
        one.kernel.assign(kernel * (rows if group < 4 else r[member][:, None]) * s[member])
        one.bias.assign(bias[member])
        expected = 1 / (1 + np.exp(-np.reshape(one(IMAGES), (7, -1))))
        np.testing.assert_allclose(found[member], expected, rtol=1e-4, atol=1e-6)


def test_a_batch_is_divided_among_members_and_goes_round():
    """Each step the members change places, so that a batch of one trains all of them in turn."""
    model = network()
    per_example = np.stack([member_logits(model, X, m) for m in range(3)])
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    for step in range(4):
        members = (np.arange(7) + step) % 3
        np.testing.assert_allclose(
            model(X, training=True), per_example[members, np.arange(7)], rtol=1e-4, atol=1e-5
        )
        model.optimizer.iterations.assign_add(1)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_all_members_train_whatever_the_batch(batch_size):
    model = network()
    before = {weight.path: weight.numpy() for weight in model.weights}
    model.compile(keras.optimizers.SGD(0.1, weight_decay=0.5), LOSS)
    model.fit(X[:6], np.arange(6) % 3, batch_size, verbose=0)
    for weight in model.weights:
        rows = np.reshape(before[weight.path] - weight, (weight.shape[0], -1))
        assert np.all(np.abs(rows).max(axis=1) > 0), weight.path


def test_a_loop_without_an_optimizer_that_leaves_members_out_says_so():
    model = network()
    with pytest.warns(UserWarning, match="a batch of 2 trains only the first 2 of 3 members"):
        model(X[:2], training=True)
    model.compile("sgd", LOSS)
    model(X[:2], training=True)


def test_gradients_of_a_member_are_those_of_its_own_examples():
    model = network()
    model.compile("sgd", LOSS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(X[:2], training=True) ** 2)
    factor = model.layers[0].input_factor
    gradient = np.asarray(tape.gradient(loss, factor.value))
    assert np.all(np.abs(gradient[:2]).max(axis=1) > 0)
    np.testing.assert_array_equal(gradient[2], 0)


def test_weight_decay_leaves_factors_alone():
    """Where there is no gradient, a step is decay alone."""
    model = network()
    model.compile(keras.optimizers.SGD(0.1, weight_decay=0.5), lambda y, p: 0.0 * keras.ops.sum(p))
    before = model.layers[0].get_weights()
    model.train_on_batch(X, np.zeros(7))
    for old, weight in zip(before, model.layers[0].weights, strict=True):
        factor = 1.0 if weight.name.endswith("factor") else 0.95
        np.testing.assert_allclose(weight, factor * old, rtol=1e-5)


def test_factors_start_as_signs_or_around_one():
    layer = BatchEnsembleDense(500, 2, seed=3)
    layer.build((None, 500))
    signs = np.concatenate([layer.input_factor, layer.output_factor])
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 6 / np.sqrt(2000)  # a correct layer fails 1 seed in 5e8
    assert np.any(np.asarray(layer.input_factor) != np.asarray(layer.output_factor))
    normal = BatchEnsembleDense(500, 2, factors="normal", factor_scale=0.2, seed=3)
    normal.build((None, 500))
    assert abs(np.mean(normal.input_factor) - 1) < 6 * 0.2 / np.sqrt(1000)
    assert abs(np.std(normal.input_factor) / 0.2 - 1) < 6 / np.sqrt(2000)


def test_with_other_randomness_draws_are_rounded_up():
    model = network(4, MCDropout(0.5))
    assert sample_predictions(model, X, from_logits=True).shape == (32, 7, 3)
    with pytest.raises(
        ValueError, match=r"multiple of 4.*num_samples=30"
    ):  # 30 by word, not by default
        sample_predictions(model, X, 30, from_logits=True)
    layers = [BatchEnsembleDense(6, 2), BatchEnsembleDense(3, 3)]
    mixed = keras.Sequential([keras.Input((4,)), *layers])
    assert len(sample_predictions(mixed, X, from_logits=True)) == 6
    with pytest.raises(ValueError, match=r"multiple of 6.*num_samples=4"):
        sample_predictions(mixed, X, 4, from_logits=True)


def test_exports_and_pictures_take_the_members(tmp_path):
    model = network()
    for number, predictive in enumerate(("fixed_samples", "fresh_samples")):
        path = tmp_path / str(number)
        export(model, path, predictive=predictive, from_logits=True)
        assert verify_export(path, X, predict_uncertainty(model, X, from_logits=True))
    detector = MutualInformation(from_logits=True).fit(model, X)
    export(model, tmp_path / "scored", ood=detector, from_logits=True)
    with pytest.raises(ValueError, match="num_samples"):
        export(model, tmp_path / "odd", num_samples=4, from_logits=True)
    pictures = [keras.Input((6, 5, 4)), BatchEnsembleConv2D(3, 3, num_members=2)]
    head = [keras.layers.GlobalAveragePooling2D(), BatchEnsembleDense(3, 2)]
    images = keras.Sequential([*pictures, *head])
    assert grad_cam(images, IMAGES, 0, num_samples=2, from_logits=True).shape == (7, 6, 5)
    with pytest.raises(ValueError, match="num_samples"):
        grad_cam(images, IMAGES, 0, num_samples=3, from_logits=True)


def test_copies_of_a_trained_model():
    layers = [keras.layers.Conv2D(3, 3, activation="relu"), keras.layers.BatchNormalization()]
    layers += [keras.layers.Flatten(), keras.layers.Dense(3)]
    model = moved(keras.Sequential([keras.Input((6, 5, 4)), *layers]))
    close = batch_ensemble(model, 4, factor_scale=1e-6, seed=1)
    np.testing.assert_allclose(
        close.predict(IMAGES, verbose=0), model(IMAGES), rtol=1e-3, atol=1e-3
    )
    assert [type(layer).__name__ for layer in close.layers[::3]] == [
        "BatchEnsembleConv2D",
        "BatchEnsembleDense",
    ]
    assert set(report(close).left) == {close.layers[1].name}
    stack = sample_predictions(batch_ensemble(model, 4, seed=1), IMAGES, from_logits=True)
    assert len(stack) == 4 and np.abs(stack[0] - stack[1]).max() > 1e-3
    again = batch_ensemble(model, 4, seed=1)
    np.testing.assert_array_equal(stack, sample_predictions(again, IMAGES, from_logits=True))
    last = batch_ensemble(model, 4, layers=[model.layers[-1].name])
    assert type(last.layers[0]) is keras.layers.Conv2D
    with pytest.raises(ValueError, match="random weights"):
        to_deterministic(close)  # which of the members?


def test_heads_with_members_are_put_in_place_of_others():
    inner = [keras.layers.Dense(4, "relu"), keras.layers.Dense(3)]
    model = moved(keras.Sequential([keras.Input((4,)), *inner]))
    head = BatchEnsembleDense(3, 2, factors="normal", factor_scale=1e-6)
    members = replace_head(model, head, copy=True)
    np.testing.assert_allclose(members(X), model(X), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="initialize"):
        replace_head(members, keras.layers.Dense(3))


def test_detectors_see_member_0_as_predictions_do():
    model = network()
    found = MaxLogit(from_logits=True).fit(model, X, np.arange(7) % 3).score(X)
    np.testing.assert_allclose(found, -member_logits(model, X, 0).max(-1), rtol=1e-4, atol=1e-4)
    kernel, bias = model.layers[-1].linear_map()
    expected = dense_kernel(model.layers[-1], 0)
    np.testing.assert_allclose(kernel, expected[0], rtol=1e-5)
    np.testing.assert_allclose(bias, expected[1], rtol=1e-5)


def test_saved_and_loaded(tmp_path):
    model = network()
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    stacks = [sample_predictions(each, X, from_logits=True) for each in (model, again)]
    np.testing.assert_array_equal(*stacks)
