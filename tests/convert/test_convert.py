"""Heads replaced, networks made Bayesian, dropout left on."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import convert
from tfuq.layers import (
    Conv2DVariational,
    DenseVariational,
    MCDropout,
    MCSoftmaxDenseFA,
    VBLLDense,
)
from tfuq.layers.base import variational_layers
from tfuq.predictive import sample_predictions

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def images(count=6):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 2)).astype("float32")


def backbone():
    x = keras.Input((8, 8, 2))
    y = keras.layers.Conv2D(4, 3, activation="relu")(x)
    y = keras.layers.BatchNormalization()(y)
    y = keras.layers.SpatialDropout2D(0.25)(y)
    return keras.Model(x, keras.layers.GlobalAveragePooling2D()(y), name="backbone")


def nested():
    x = keras.Input((8, 8, 2))
    features = keras.layers.Dropout(0.5)(backbone()(x))
    return keras.Model(x, keras.layers.Dense(3, name="top")(features), name="whole")


def sequential():
    layers = [backbone(), keras.layers.Dense(3), keras.layers.Softmax()]
    return keras.Sequential([keras.Input((8, 8, 2)), *layers])


def head_inside():
    inner = keras.Sequential([backbone(), keras.layers.Dense(3)], name="inner")
    x = keras.Input((8, 8, 2))
    return keras.Model(x, keras.layers.Activation("softmax")(inner(x)))


MODELS = {"nested": nested, "sequential": sequential, "head_inside": head_inside}


def mean_head(**kwargs):
    return VBLLDense(3, kl_weight=0.01, predictive="mean", **kwargs)


# --- The last layer ---------------------------------------------------------------------------


@pytest.mark.slow_cases("head_inside")
@pytest.mark.slow_cases("nested")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_new_head_starts_from_the_old_weights(make):
    model = make()
    new = convert.replace_head(model, mean_head())
    old = model(images())
    found = new(images())
    if make is not nested:
        found = keras.ops.softmax(found)
    np.testing.assert_allclose(found, old, atol=1e-5)
    new.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=False)
    assert np.isfinite(new.fit(images(), np.arange(6) % 3, verbose=0).history["loss"]).all()


def test_rest_is_shared_or_copied():
    model = nested()
    shared = convert.replace_head(model, mean_head())
    copied = convert.replace_head(model, mean_head(), copy=True)
    kernel = model.get_layer("backbone").layers[1].kernel
    assert shared.get_layer("backbone") is model.get_layer("backbone")
    before = copied(images())
    kernel.assign_add(tf.ones_like(kernel))
    np.testing.assert_array_equal(copied(images()), before)
    assert not np.allclose(shared(images()), before)


def test_heteroscedastic_head_starts_from_the_old_weights():
    model = nested()
    head = MCSoftmaxDenseFA(3, num_factors=2, logits_only=True)
    convert.replace_head(model, head)
    np.testing.assert_array_equal(head.loc_kernel, model.get_layer("top").kernel)
    np.testing.assert_array_equal(head.loc_bias, model.get_layer("top").bias)
    head = MCSoftmaxDenseFA(3, 2, logits_only=True, last_layer="vbll", kl_weight=0.1)
    noisy = convert.replace_head(model, head)
    np.testing.assert_array_equal(head.mean_layer.kernel, model.get_layer("top").kernel)
    top = convert.replace_head(noisy, keras.layers.Dense(3)).layers[-1]
    np.testing.assert_array_equal(top.kernel, head.mean_layer.kernel)


def test_other_classes_without_the_old_weights():
    new = convert.replace_head(nested(), keras.layers.Dense(7), initialize=False)
    assert new(images()).shape == (6, 7)


@pytest.mark.slow
def test_keras_applications_backbone():
    base = keras.applications.MobileNetV2((32, 32, 3), 0.35, include_top=False, weights=None)
    layers = [base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers])
    new = convert.replace_head(model, mean_head())
    x = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(new(x), model(x), atol=1e-5)


ENDS = {
    "MobileNet": lambda: one_pixel(1, keras.layers.Reshape((3,)), keras.layers.Softmax()),
    "MobileNetV3": lambda: one_pixel(1, keras.layers.Flatten(), keras.layers.Softmax()),
    "soft-max before": lambda: one_pixel(1, keras.layers.Softmax(), keras.layers.Flatten()),
    "average": lambda: one_pixel(2, keras.layers.GlobalAveragePooling2D(), keras.layers.Softmax()),
    "U-Net": lambda: one_pixel(4, keras.layers.Activation("softmax")),
    "pixels in a row": lambda: one_pixel(2, keras.layers.Reshape((4, 3)), keras.layers.Softmax()),
}


@pytest.mark.parametrize("make", ENDS.values(), ids=ENDS)
def test_head_in_place_of_a_convolution_of_one_pixel(make, tmp_path):
    model = make()
    new = convert.replace_head(model, mean_head())
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(keras.ops.softmax(new(x)), model(x), atol=1e-6)
    new.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(again(x), new(x), atol=1e-6)


def several(structure):
    x = keras.Input((4,))
    one, two = keras.layers.Dense(3, name="one")(x), keras.layers.Dense(2, name="two")(x)
    outputs = {"list": [one, two], "dict": {"b": one, "a": two}}[structure]
    return keras.Model(x, outputs)


@pytest.mark.parametrize(
    "structure, output, other",
    [("list", "one", 1), ("list", 0, 1), ("dict", "b", "a"), ("dict", 1, "a")],
)
def test_one_of_several_outputs(structure, output, other):
    model, x = several(structure), np.ones((2, 4), "float32")
    new = convert.replace_head(model, mean_head(), output=output)
    found, expected = new(x), model(x)
    np.testing.assert_array_equal(found[other], expected[other])
    key = {"list": 0, "dict": "b"}[structure]
    np.testing.assert_allclose(found[key], expected[key], atol=1e-6)
    assert [type(layer).__name__ for layer in new.layers].count("VBLLDense") == 1


def test_a_head_can_take_the_place_of_a_head():
    first = convert.replace_head(nested(), MCSoftmaxDenseFA(3, num_factors=2, logits_only=True))
    again = convert.replace_head(first, mean_head())
    np.testing.assert_array_equal(again.layers[-1].kernel, first.layers[-1].loc_kernel)


def test_replaced_model_saves(tmp_path):
    new = convert.replace_head(nested(), VBLLDense(3, kl_weight=0.01))
    new.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(again(images()), new(images()), atol=1e-6)


def built_head():
    head = mean_head()
    head.build((None, 4))
    return head


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [keras.layers.Dense(3)(x), keras.layers.Dense(3)(x)])


def one_pixel(pixels=2, *after, activation=None, **options):
    """A network that ends in a convolution of one pixel, as MobileNet and SqueezeNet do."""
    last = keras.layers.Conv2D(3, 1, activation=activation, **options)
    after = after or (keras.layers.Reshape((3 * pixels**2,)),)
    return keras.Sequential([keras.Input((pixels, pixels, 2)), last, *after])


def many_pixels():
    return keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Conv2D(3, 3)])


def relu_before_average():
    return one_pixel(2, keras.layers.Activation("relu"), keras.layers.GlobalAveragePooling2D())


def channels_first():
    last = keras.layers.Conv1D(3, 1, data_format="channels_first")
    return keras.Sequential([keras.Input((2, 4)), last])


def quantized():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.layers[-1].quantize("int8")
    return model


class Subclassed(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "model, head, message",
    [
        (nested, lambda: VBLLDense(4, 0.01), r"as many units .* \(4, 4\) for .* \(4, 3\)"),
        (nested, lambda: mean_head(use_bias=False), "must have a bias"),
        (nested, lambda: keras.layers.ReLU(), "must have a kernel"),
        (nested, built_head, "not built yet"),
        (nested, lambda: "dense", "must be a Keras layer"),
        (two_outputs, mean_head, "Argument `output` must name one output.*as it has several"),
        (many_pixels, mean_head, r"as many units .* with \(3, 3, 2, 3\)"),
        (relu_before_average, mean_head, "no activation before an average"),
        (channels_first, mean_head, "must be a convolution in place of one with channels first"),
        (quantized, mean_head, "Argument `initialize` must be False for a layer with quantized"),
        (one_pixel, lambda: MCSoftmaxDenseFA(3, 2), "must return its logits alone"),
        (backbone, mean_head, "must end in a layer with weights"),
        (Subclassed, mean_head, "functional or Sequential"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), mean_head, "must be built"),
    ],
)
def test_heads_that_do_not_fit(model, head, message):
    with pytest.raises(ValueError, match=message):
        convert.replace_head(model(), head())


# --- Whole networks ---------------------------------------------------------------------------


@pytest.mark.slow_cases("head_inside")
@pytest.mark.slow_cases("nested")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_variational_copy_predicts_as_the_original(make):
    model = make()
    model(images(), training=True)  # moves the batch statistics
    bayesian = convert.variational(model, kl_weight=1e-3)
    np.testing.assert_allclose(bayesian(images()), model(images()), atol=1e-5)
    kinds = {type(layer) for layer in variational_layers(bayesian)}
    assert kinds == {Conv2DVariational, DenseVariational}
    assert type(bayesian) is type(model)
    from_logits = True if make is nested else None
    stack = sample_predictions(bayesian, images(), 4, from_logits=from_logits)
    assert np.ptp(stack, axis=0).max() > 1e-3


def test_variational_copy_is_a_copy_and_trains():
    model = nested()
    bayesian = convert.variational(model, kl_weight=1e-3)
    before = [weight.numpy() for weight in model.weights]
    bayesian.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=False)
    bayesian.fit(images(), np.arange(6) % 3, verbose=0)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight)
    assert np.any(bayesian.get_layer("top").kernel != model.get_layer("top").kernel)


def mean_square(y_true, y_pred):
    """A loss that is not registered with Keras."""
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize("loss", ["mse", mean_square], ids=["keras", "unregistered"])
def test_copy_of_a_compiled_model_is_not_compiled(loss):
    model = sequential()
    model.compile("adam", loss)
    copy = convert.variational(model, kl_weight=0.01)
    assert model.compiled and not copy.compiled
    assert not convert.to_deterministic(copy).compiled


def test_shared_layers_stay_shared():
    dense, x = keras.layers.Dense(4), keras.Input((4,))
    bayesian = convert.variational(keras.Model(x, dense(dense(x))), kl_weight=1e-3)
    assert len(variational_layers(bayesian)) == 1


def test_layers_to_convert_can_be_named():
    bayesian = convert.variational(nested(), kl_weight=1e-3, layers=["top"])
    assert [layer.name for layer in variational_layers(bayesian)] == ["top"]


@pytest.mark.slow
def test_moped_prior_is_saved(tmp_path):
    model = nested()
    bayesian = convert.variational(model, kl_weight=1e-3, moped=True, moped_delta=0.2)
    top, kernel = bayesian.get_layer("top"), model.get_layer("top").kernel.numpy()
    np.testing.assert_allclose(top.posterior().scale, 0.2 * np.abs(kernel), rtol=1e-4)
    # KL(N(w, s^2) || N(w, 1)) has no term in w.
    scale = 0.2 * np.abs(kernel)
    np.testing.assert_allclose(
        top.kl_divergence(), np.sum(-np.log(scale) + scale**2 / 2 - 0.5), rtol=1e-4
    )
    top.kernel.assign(tf.zeros_like(top.kernel))
    bayesian.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True).get_layer("top")
    np.testing.assert_array_equal(again.prior_loc, kernel)
    np.testing.assert_allclose(again.kl_divergence(), top.kl_divergence(), rtol=1e-6)


def test_frozen_layers_stay_frozen():
    model = nested()
    model.get_layer("backbone").layers[1].trainable = False
    bayesian = convert.variational(model, kl_weight=1e-3)
    assert not bayesian.get_layer("backbone").layers[1].trainable
    assert bayesian.get_layer("top").trainable


@pytest.mark.parametrize(
    "model, change, message",
    [
        (nested, {"kl_weight": None}, "1 / number of training examples"),
        (nested, {"layers": ["dropout"]}, "Argument `layers` must name"),
        (nested, {"layers": []}, "Argument `layers` must name"),
        (nested, {"moped_delta": 0}, "Argument `moped_delta` must"),
        (nested, {"estimator": "none"}, "Argument `estimator` must"),
        (Subclassed, {}, "functional or Sequential"),
    ],
)
def test_what_cannot_be_made_variational(model, change, message):
    with pytest.raises(ValueError, match=message):
        convert.variational(model(), **{"kl_weight": 1e-3, **change})


# --- Dropout ----------------------------------------------------------------------------------


def test_dropout_stays_on_and_batch_statistics_do_not_move():
    model = nested()
    dropping = convert.mc_dropout(model)
    kinds = [type(layer) for layer in dropping._flatten_layers()]
    assert kinds.count(MCDropout) == 2
    before = [weight.numpy() for weight in dropping.weights]
    stack = sample_predictions(dropping, images(), 8, from_logits=True)
    assert np.ptp(stack, axis=0).max() > 0.01
    np.testing.assert_array_equal(dropping(images()), model(images()))  # the mean network
    for old, weight in zip(before, dropping.weights, strict=True):
        np.testing.assert_array_equal(old, weight)
    # Rate and thinning are those of the original.
    found = [x for x in dropping._flatten_layers() if isinstance(x, MCDropout)]
    assert sorted(x.rate for x in found) == [0.25, 0.5]


def test_spatial_dropout_drops_whole_channels():
    x = keras.Input((8, 8, 16))
    model = keras.Model(x, keras.layers.SpatialDropout2D(0.5)(x))
    half = np.full((2, 8, 8, 16), 0.5, "float32")  # and its double is a probability
    kind = {"from_logits": False, "multi_label": True}
    dropped = sample_predictions(convert.mc_dropout(model), half, 1, **kind)[0]
    assert set(np.unique(dropped)) == {0.0, 1.0}
    assert np.all(dropped == dropped[:, :1, :1])


def test_no_dropout_to_leave_on():
    with pytest.raises(ValueError, match="must hold Dropout"):
        convert.mc_dropout(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
