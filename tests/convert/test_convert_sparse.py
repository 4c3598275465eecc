"""Trained networks made sparse Bayesian, their saliency, and the way back."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import resnet18, unet
from contract import two_devices

from tfuq import convert
from tfuq.layers import (
    DenseVariational,
    MCDropout,
    MCSigmoidDenseFA,
    MCSoftmaxDenseFA,
    SparseBayesConv2D,
    SparseBayesDense,
    VBLLDense,
)
from tfuq.layers.sparse_bayes import sparse_bayes_layers
from tfuq.layers.ways import predicting
from tfuq.predictive import predict_uncertainty, sample_predictions

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LABELS = np.arange(6) % 3


def images(count=6):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 2)).astype("float32")


def functional():
    x = keras.Input((8, 8, 2))
    shared = keras.layers.Conv2D(2, 3, padding="same", activation="tanh", name="shared")
    y = keras.layers.BatchNormalization()(shared(shared(x)))
    y = keras.layers.Dropout(0.5)(keras.layers.DepthwiseConv2D(3, name="depthwise")(y))
    y = keras.layers.GlobalAveragePooling2D()(y)
    return keras.Model(x, keras.layers.Dense(3, name="top")(y))


def nested():
    inner = keras.Sequential(
        [keras.Input((8, 8, 2)), keras.layers.Conv2D(4, 3, name="inner"), keras.layers.Flatten()]
    )
    x = keras.Input((8, 8, 2))
    return keras.Model(x, keras.layers.Dense(3, name="top")(inner(x)))


def sequential():
    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((8, 8, 2)), *layers])


MODELS = {"functional": functional, "nested": nested, "sequential": sequential}


def converted(model, data=None, loss=LOSS, **kwargs):
    return convert.sparse_bayesian(
        model, data or (images(), LABELS), loss, **{"r_bayes": 0.1, "kl_weight": 0.01, **kwargs}
    )


def squares(model, x, y, weight=None):
    """Squared gradients of one batch's loss, by path."""
    with tf.GradientTape() as tape:
        loss = LOSS(y, model(x, training=False), sample_weight=weight)
    variables = model.trainable_variables
    found = tape.gradient(loss, [v.value for v in variables])
    return {v.path: np.square(g) for v, g in zip(variables, found, strict=True)}


def mean_squares(model, batches):
    found = [squares(model, *batch) for batch in batches]
    return {path: np.mean([each[path] for each in found], axis=0) for path in found[0]}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_allclose(found[path], values, rtol=1e-4, atol=1e-9, err_msg=path)


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return images()[3 * i : 3 * i + 3], LABELS[3 * i : 3 * i + 3]


# --- Saliency ---------------------------------------------------------------------------------


DATA = {
    "arrays": lambda: (images(), LABELS),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((images(), LABELS)).batch(3),
    "pydataset": Pairs,
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_saliency_is_the_mean_square_of_the_batches_gradients(data):
    model = functional()
    found = convert.saliency(model, data(), LOSS, batch_size=3)
    halves = [(images()[i : i + 3], LABELS[i : i + 3]) for i in (0, 3)]
    assert_same(found, mean_squares(model, halves))


def test_fisher_is_the_mean_square_of_the_examples_gradients():
    model = functional()
    found = convert.saliency(model, (images(), LABELS), LOSS, method="fisher", batch_size=4)
    single = [(images()[i : i + 1], LABELS[i : i + 1]) for i in range(6)]
    assert_same(found, mean_squares(model, single))


@pytest.mark.parametrize("method", ["gradient", "fisher"])
def test_saliency_of_weighted_examples(method):
    model, weight = sequential(), np.array([1, 0, 2, 1, 0, 3], "float32")
    size = 1 if method == "fisher" else 6
    rows = [slice(i, i + size) for i in range(0, 6, size)]
    parts = [(images()[row], LABELS[row], weight[row]) for row in rows]
    found = convert.saliency(model, (images(), LABELS, weight), LOSS, method=method)
    assert_same(found, mean_squares(model, parts))


@pytest.mark.parametrize(
    "loss", [keras.losses.sparse_categorical_crossentropy, "sparse_categorical_crossentropy"]
)
def test_loss_is_a_function_or_a_name(loss):
    x = keras.Input((8, 8, 2))
    model = keras.Model(x, keras.layers.Softmax()(sequential()(x)))
    found = convert.saliency(model, (images(), LABELS), loss)
    object_loss = keras.losses.SparseCategoricalCrossentropy()
    assert_same(found, convert.saliency(model, (images(), LABELS), object_loss))


def test_compiled_loss_serves():
    model = sequential()
    model.compile("sgd", LOSS)
    found = convert.saliency(model, (images(), LABELS))
    assert_same(found, squares(model, images(), LABELS))


def two_outputs(structure):
    x = keras.Input((4,))
    one, two = keras.layers.Dense(3, name="one")(x), keras.layers.Dense(1, name="two")(x)
    return keras.Model(x, {"a": one, "b": two} if structure == "dict" else [one, two])


@pytest.mark.parametrize(
    "structure, losses",
    [
        ("list", {"one": LOSS, "two": "mse"}),
        ("list", [LOSS, "mse"]),
        ("dict", {"a": LOSS, "b": "mse"}),
    ],
)
def test_losses_of_several_outputs(structure, losses):
    """They ended in "Unknown `config`" of Keras."""
    model, x = two_outputs(structure), np.random.default_rng(0).normal(size=(6, 4))
    labels = [LABELS, np.ones((6, 1))]
    labels = dict(zip("ab", labels, strict=True)) if structure == "dict" else labels
    found = convert.saliency(model, (x, labels), losses)
    assert found["one/kernel"].any()
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(model(x))
        loss = tf.reduce_mean(tf.square(outputs[1] - 1))
    kernel = model.get_layer("two").kernel
    np.testing.assert_allclose(
        found["two/kernel"], np.square(tape.gradient(loss, kernel.value)), rtol=1e-4
    )


@pytest.mark.parametrize("losses", [{"three": "mse"}, ["mse"], {}])
def test_losses_of_other_outputs(losses):
    data = (np.ones((2, 4)), [np.zeros(2), np.zeros((2, 1))])
    with pytest.raises(ValueError, match=r"Argument `loss` must hold losses of .*'one', 'two'"):
        convert.saliency(two_outputs("list"), data, losses)


def test_sparse_copy_of_a_network_with_several_outputs():
    data = (np.ones((6, 4)), {"one": LABELS, "two": np.ones((6, 1))})
    losses = {"one": LOSS, "two": "mse"}
    copy = convert.sparse_bayesian(two_outputs("list"), data, losses, 0.5, kl_weight=0.1)
    assert len(sparse_bayes_layers(copy)) == 2


def test_paths_that_repeat_are_told_apart():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = (keras.layers.Dense(4, name="same") for _ in range(2))
            self.one.build((None, 4)), self.two.build((None, 4))
            self.built = True

        def call(self, x):
            return self.two(self.one(x))

    found = convert.saliency(Twice(), (np.ones((2, 4), "float32"), np.zeros(2)), LOSS)
    assert list(found) == ["same/kernel", "same/bias", "same/kernel_1", "same/bias_1"]


# --- Conversion -------------------------------------------------------------------------------


@pytest.mark.slow_cases("functional")
@pytest.mark.slow_cases("nested", "sequential")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_copy_predicts_what_the_model_does_and_selects_its_largest_gradients(make):
    model = make()
    before = [weight.numpy() for weight in model.weights]
    copy = converted(model)
    np.testing.assert_array_equal(copy(images()), model(images()))
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight)
    found = squares(model, images(), LABELS)
    layers = sparse_bayes_layers(copy)
    assert len(layers) == sum(path.endswith("kernel") for path in found)
    for layer in layers:
        values = next(v for path, v in found.items() if path.endswith(f"{layer.name}/kernel"))
        count = math.ceil(0.1 * values.size)
        largest = np.argsort(-values.ravel(), kind="stable")[:count]
        np.testing.assert_array_equal(layer.kernel_indices, np.sort(largest))
    copy.compile("sgd", LOSS, jit_compile=False)
    assert np.isfinite(copy.fit(images(), LABELS, verbose=0).history["loss"]).all()
    stack = sample_predictions(copy, images(), num_samples=3)
    assert np.std(stack, axis=0).max() > 1e-4


def test_shared_layer_stays_shared():
    copy = converted(functional())
    assert len({id(layer) for layer in sparse_bayes_layers(copy) if layer.name == "shared"}) == 1
    assert len(copy.get_layer("shared")._inbound_nodes) == 2


def test_global_scope_takes_the_largest_of_all():
    model = functional()
    copy = converted(model, scope="global")
    found = squares(model, images(), LABELS)
    kernels = {layer.name: found[f"{layer.name}/kernel"] for layer in sparse_bayes_layers(copy)}
    together = np.concatenate([values.ravel() for values in kernels.values()])
    count = math.ceil(0.1 * together.size)
    least = np.sort(together)[-count]
    for layer in sparse_bayes_layers(copy):
        chosen = np.flatnonzero(kernels[layer.name].ravel() >= least)
        assert layer.num_bayesian() == len(chosen)
        if len(chosen):
            np.testing.assert_array_equal(layer.kernel_indices, chosen)
    assert sum(layer.num_bayesian() for layer in sparse_bayes_layers(copy)) == count


@pytest.mark.slow
def test_global_selection_saves(tmp_path):
    copy = converted(functional(), scope="global", bias_r_bayes=0.3)
    copy.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras", safe_mode=True)
    for one, other in zip(copy.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        sample_predictions(copy, images(), 2, from_logits=True),
        sample_predictions(again, images(), 2, from_logits=True),
    )


def test_only_the_layers_that_are_named():
    copy = converted(functional(), layers=["top"], bias_r_bayes=0.5)
    (layer,) = sparse_bayes_layers(copy)
    assert layer.name == "top" and layer.num_bayesian("bias") == 2
    assert type(copy.get_layer("shared")) is keras.layers.Conv2D


@pytest.mark.parametrize("r_bayes, share", [(0, 0), (1, 1)])
def test_no_weight_or_all(r_bayes, share):
    copy = converted(sequential(), r_bayes=r_bayes)
    for layer in sparse_bayes_layers(copy):
        assert layer.num_bayesian() == share * np.prod(layer.kernel.shape)


@pytest.mark.slow
def test_trainable_parameters_of_resnet18_grow_by_the_selected():
    model = resnet18()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    copy = convert.sparse_bayesian(model, (x, np.array([1, 2])), LOSS, 0.01, kl_weight=1e-6)
    kernels = [
        layer.kernel.shape
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
    ]
    assert len(kernels) == 21
    grown = sum(math.ceil(0.01 * math.prod(shape)) for shape in kernels)

    def trainable(one):
        return sum(math.prod(v.shape) for v in one.trainable_variables)

    assert trainable(copy) == trainable(model) + grown
    full = convert.variational(model, kl_weight=1e-6)
    assert trainable(full) == trainable(model) + sum(map(math.prod, kernels))
    np.testing.assert_array_equal(copy(x), model(x))


@pytest.mark.slow
def test_unet():
    model = unet()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    copy = convert.sparse_bayesian(model, (x, x > 0), loss, 0.05, kl_weight=0.01)
    np.testing.assert_array_equal(copy(x), model(x))
    assert {type(layer).__name__ for layer in sparse_bayes_layers(copy)} == {
        "SparseBayesConv2D",
        "SparseBayesConv2DTranspose",
    }


# --- The way back -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_back_to_plain_keras(make):
    model = make()
    for bayesian in (converted(model), convert.variational(model, 0.01)):
        back = convert.to_deterministic(bayesian)
        assert {type(layer).__module__.split(".")[0] for layer in back._flatten_layers()} == {
            "keras"
        }
        assert [type(a) for a in back._flatten_layers()] == [
            type(a) for a in model._flatten_layers()
        ]
        np.testing.assert_array_equal(back(images()), model(images()))
        assert back.count_params() == model.count_params()


def test_dropout_goes_back():
    model = functional()
    back = convert.to_deterministic(convert.mc_dropout(model))
    assert not any(isinstance(layer, MCDropout) for layer in back.layers)
    assert any(type(layer) is keras.layers.Dropout for layer in back.layers)
    np.testing.assert_array_equal(back(images()), model(images()))


X = np.random.default_rng(1).normal(size=(7, 4)).astype("float32")


def dense(*head, **options):
    first = DenseVariational(5, "relu", kl_weight=0.1, posterior_scale=0.5, name="first", **options)
    return keras.Sequential([keras.Input((4,)), first, *head])


HEADS = {
    "VBLLDense": lambda: VBLLDense(3, 0.1, name="head"),
    "VBLLDense in closed form": lambda: VBLLDense(
        3, kl_weight=0.1, predictive="probit", name="head"
    ),
    "MCSoftmaxDenseFA": lambda: MCSoftmaxDenseFA(3, num_factors=2, logits_only=True, name="head"),
    "MCSigmoidDenseFA": lambda: MCSigmoidDenseFA(3, num_factors=2, logits_only=True, name="head"),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_copy_with_a_head_predicts_the_same_and_says_if_it_stays_random(head, recwarn):
    model = dense(HEADS[head]())
    back = convert.to_deterministic(model)
    np.testing.assert_allclose(back(X), model(X), atol=1e-6)
    said = [str(each.message) for each in recwarn if "to_deterministic" in str(each.message)]
    assert len(said) == ("VBLL" in head) and all("VBLLDense 'head' are copied" in x for x in said)


def test_predictions_that_are_not_of_the_means_are_told():
    model = dense(resample=True)
    with pytest.warns(UserWarning, match="weights of first anew for each prediction"):
        back = convert.to_deterministic(model)
    with predicting("mean"):
        expected = model(X)
    np.testing.assert_allclose(back(X), expected, atol=1e-6)
    assert not np.allclose(back(X), model(X))
    thinned = dense(MCDropout(0.5, predictive="thinned", name="drop"))
    with pytest.warns(UserWarning, match="one mask of drop .*the copy drops nothing"):
        assert not np.allclose(convert.to_deterministic(thinned)(X), thinned(X))


def test_the_copy_is_not_the_average_of_networks():
    """The means predict what `predict` does; an average of soft-maxes is less certain."""
    model = dense(DenseVariational(3, "softmax", kl_weight=0.1, posterior_scale=1.0))
    back = convert.to_deterministic(model)
    np.testing.assert_array_equal(back(X), model(X))
    average = predict_uncertainty(model, X, 64).probs
    assert np.abs(average - back(X)).max() > 1e-3


def test_layers_within_time_distributed_are_converted():
    inner = keras.layers.Dense(3, name="inner")
    model = keras.Sequential([keras.Input((5, 4)), keras.layers.TimeDistributed(inner, name="td")])
    x = np.stack([X] * 5, 1)
    bayesian = convert.variational(model, 0.01, layers=["inner"])
    assert type(bayesian.get_layer("td").layer) is DenseVariational
    back = convert.to_deterministic(bayesian)
    assert type(back.get_layer("td").layer) is keras.layers.Dense
    for found in (bayesian, back):
        np.testing.assert_allclose(found(x), model(x), atol=1e-6)


class Holder(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = DenseVariational(3, kl_weight=0.1, name="held")

    def call(self, x):
        return self.dense(x)


def test_what_a_layer_holds_for_itself_is_told():
    with pytest.raises(ValueError, match="`model` must hold layers with random weights"):
        convert.to_deterministic(keras.Sequential([keras.Input((4,)), Holder()]))
    with pytest.warns(UserWarning, match="DenseVariational 'held' are copied as they are"):
        convert.to_deterministic(dense(Holder()))


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"r_bayes": 1.5}, "Argument `r_bayes` must be in"),
        ({"kl_weight": None}, "Argument `kl_weight` is required"),
        ({"scope": "model"}, "Argument `scope` must be one of 'layer', 'global'"),
        ({"method": "hessian"}, "Argument `method` must be one of 'gradient', 'fisher'"),
        ({"estimator": "x"}, "Argument `estimator` must"),
        ({"layers": ["nothing"]}, "Argument `layers` must name layers .* among"),
        ({"layers": []}, "Argument `layers` must name layers"),
        ({"loss": None}, "Argument `loss` must be given for a model that is not compiled"),
        ({"loss": 3}, "Could not interpret loss identifier"),
        ({"data": (images(),)}, "Argument `data` must hold labels"),
        ({"data": (images()[:0], LABELS[:0])}, "Argument `data` must hold at least one example"),
        ({"data": (images(), LABELS[:3])}, "Argument `data` must hold arrays of one length"),
        (
            {"data": (images() * np.nan, LABELS)},
            "Argument `data` must give finite gradients.*kernel",
        ),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        converted(functional(), **change)


def test_nothing_to_convert():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match="Argument `model` must hold layers that can be converted"):
        converted(model)
    with pytest.raises(ValueError, match="Argument `model` must hold layers with random weights"):
        convert.to_deterministic(sequential())


def test_layer_without_a_gradient_is_named():
    x = keras.Input((4,))
    used, aside = keras.layers.Dense(3, name="used")(x), keras.layers.Dense(3, name="aside")(x)
    data = (np.ones((2, 4), "float32"), np.zeros(2))
    with pytest.raises(ValueError, match="no gradient for aside/kernel"):
        converted(keras.Model(x, [used, aside]), data, lambda y, out: LOSS(y, out[0]))
    dead = keras.Model(x, used * 0.0)
    with pytest.raises(ValueError, match="gradients are 0 in all of the kernel of 'used'"):
        converted(dead, data)


def test_model_that_is_no_graph():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Argument `model` must be a functional or Sequential"):
        converted(Subclassed())
    with pytest.raises(ValueError, match="Argument `model` must be a built Keras model"):
        convert.saliency(Subclassed(), (images(), LABELS), LOSS)


def test_subclasses_of_keras_layers_are_left_alone():
    """They are of nobody knows what `call`; ours among them are random already."""
    layers = [SparseBayesConv2D(2, 3, kl_weight=0.1), keras.layers.Flatten()]
    layers += [SparseBayesDense(3, kl_weight=0.1), keras.layers.Dense(3, name="last")]
    copy = converted(keras.Sequential([keras.Input((8, 8, 2)), *layers]))
    assert [layer.is_selected() for layer in sparse_bayes_layers(copy)] == [False, False, True]


@pytest.mark.slow
def test_saliency_under_a_strategy_is_that_without():
    """On two devices a model outside replicas has the variables of the first."""
    x, y = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8) % 2

    def found():
        keras.utils.set_random_seed(0)
        return convert.saliency(
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), (x, y), LOSS
        )

    with two_devices().scope():
        mirrored = found()
    for ours, expected in zip(mirrored.values(), found().values(), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
