"""A stacked ensemble says what its members say, one after another."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfuq.ensembles import DeepEnsemble
from tfuq.export import export
from tfuq.layers import MCDropout, NormalDense, VBLLDense
from tfuq.ood import Energy
from tfuq.predictive import predict_uncertainty

RNG = np.random.default_rng(0)
MEMBERS = 3


def plain():
    body = [layers.Conv2D(6, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 1)), *body, layers.Dense(5, "relu"), dense()])


def dense():
    return layers.Dense(3)


def branched():
    """What is shared before the first weights, grouped and separable convolutions, sums, joins."""
    inputs = keras.Input((12, 12, 2))
    x = layers.Rescaling(0.5)(inputs)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    y = layers.Conv2D(4, 1, activation="gelu")(y)
    x = layers.Add()([x, y])
    z = layers.SeparableConv2D(3, 3, strides=2, padding="same")(x)
    x = layers.Concatenate()([z, layers.AveragePooling2D(2)(x), layers.MaxPooling2D(2)(inputs)])
    x = 2 * layers.SpatialDropout2D(0.2)(x) + 1
    x = layers.Conv2D(6, 3, groups=3, dilation_rate=2)(x)
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, layers.Softmax()(layers.Dense(3)(x)))


def other_layers():
    """Layers that are called member by member, nested models, and random layers."""
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, "tanh"), layers.PReLU()])
    inputs = keras.Input((9, 4))
    x = layers.Conv1D(5, 3, activation="relu")(inputs)
    x = layers.LayerNormalization()(layers.LSTM(6)(x))
    x = MCDropout(0.3)(inner(x))
    return keras.Model(inputs, VBLLDense(3, kl_weight=0.1)(x))


def two_inputs():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    x = layers.Multiply()([layers.Dense(4)(inputs["a"]), inputs["b"]])
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


def per_pixel():
    upper = layers.UpSampling2D()
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(3, 1), upper, layers.Dense(2)])


KINDS = [plain, branched, other_layers, two_inputs, per_pixel]
READ = {build: {"from_logits": build not in (branched, two_inputs)} for build in KINDS}


def ensemble_of(build, seed=0):
    """Members whose weights, and moving statistics, are random."""
    ensemble = DeepEnsemble(build, MEMBERS, seed=seed)
    rng = np.random.default_rng(seed)
    for member in ensemble:
        for weight in member.weights:
            if weight.dtype == "float32":
                weight.assign(weight + rng.uniform(0.02, 0.1, size=weight.shape))
    return ensemble


def inputs_of(model, count=7):
    def drawn(tensor):
        return RNG.normal(size=(count, *tensor.shape[1:])).astype("float32")

    if isinstance(model, keras.Sequential):
        return drawn(model.inputs[0])
    return keras.tree.map_structure(drawn, model.input)


@pytest.mark.parametrize("build", KINDS)
def test_is_the_loop(build):
    ensemble = ensemble_of(build)
    stacked, x = ensemble.stacked(), inputs_of(ensemble.members[0])
    for size in (7, 1):
        part = keras.tree.map_structure(lambda array, size=size: array[:size], x)
        found = stacked.predict(part, **READ[build])
        np.testing.assert_allclose(found, ensemble.predict(part, **READ[build]), atol=1e-6)
    said, expected = (predict_uncertainty(each, x, **READ[build]) for each in (stacked, ensemble))
    np.testing.assert_allclose(said.mutual_information, expected.mutual_information, atol=1e-6)


def test_follows_its_members():
    ensemble = ensemble_of(plain)
    stacked, x = ensemble.stacked(), inputs_of(ensemble.members[0])
    before = stacked.predict(x, from_logits=True)
    ensemble.members[1].layers[-1].bias.assign([5.0, 0.0, 0.0])
    after = stacked.predict(x, from_logits=True)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.abs(after[1] - before[1]).max() > 0.1


@pytest.mark.parametrize(
    "precision", ["mixed_float16", pytest.param("float64", marks=pytest.mark.slow)]
)
def test_in_other_precisions(precision):
    def build():
        with _policy(precision):
            return plain()

    ensemble = ensemble_of(build)
    x = inputs_of(ensemble.members[0])
    found = ensemble.stacked().predict(x, from_logits=True)
    gap = 2e-3 if precision == "mixed_float16" else 1e-6
    np.testing.assert_allclose(found, ensemble.predict(x, from_logits=True), atol=gap)


class _policy:
    """Keras' global policy, put back afterwards."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.name)

    def __exit__(self, *error):
        keras.config.set_dtype_policy(self.before)


def test_numbers():
    def build():
        return keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), NormalDense(1)])

    ensemble = ensemble_of(build)
    x = inputs_of(ensemble.members[0])
    found, expected = (predict_uncertainty(each, x) for each in (ensemble.stacked(), ensemble))
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
    np.testing.assert_allclose(found.epistemic_std, expected.epistemic_std, atol=1e-5)


@pytest.mark.parametrize("build", [plain, pytest.param(branched, marks=pytest.mark.slow)])
def test_in_a_saved_model(build, tmp_path):
    """With a detector of one member beside it; unknown batch size; plain TensorFlow."""
    ensemble = ensemble_of(build)
    x = inputs_of(ensemble.members[0])
    is_logits = build is plain
    detector = Energy(from_logits=True).fit(ensemble.members[0], x) if is_logits else None
    export(ensemble.stacked(), tmp_path / "served", from_logits=is_logits, ood=detector)
    served = tf.saved_model.load(str(tmp_path / "served"))
    expected = ensemble.predict_mixture(x, from_logits=is_logits)
    for size in (7, 1):
        said = served.serve(x[:size])
        np.testing.assert_allclose(said["probabilities"], expected[:size], atol=1e-6)
    if detector is not None:
        np.testing.assert_allclose(said["ood_score"], detector.score(x)[:1], rtol=1e-5)


def test_its_own_export(tmp_path):
    ensemble = ensemble_of(plain)
    x = inputs_of(ensemble.members[0])
    ensemble.stacked().export(tmp_path / "served", from_logits=True)
    served = tf.saved_model.load(str(tmp_path / "served"))
    said = served.serve(x)
    np.testing.assert_allclose(said["members"], ensemble.predict(x, from_logits=True), atol=1e-6)


def test_is_one_operation_for_all_members():
    """As many convolutions and products of matrices as one network has, whatever the number."""
    counts = []
    for members in (2, 5):
        stacked = DeepEnsemble(plain, members).stacked()
        graph = tf.function(stacked.forward, autograph=False)
        concrete = graph.get_concrete_function(tf.TensorSpec((None, 8, 8, 1)))
        kinds = [operation.type for operation in concrete.graph.get_operations()]
        counts.append([sum(kind.startswith(k) for kind in kinds) for k in ("Conv", "BatchMatMul")])
    assert counts[0] == counts[1] == [1, 2]


# --- Misuse -----------------------------------------------------------------------------------


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def built_own():
    model = Own()
    model(np.zeros((1, 4), "float32"))
    return model


def over_channels():
    """A mean along the axis that is another one when stacked."""
    inputs = keras.Input((4, 5))
    x = layers.Dense(6)(inputs)
    return keras.Model(inputs, layers.Dense(3)(keras.ops.mean(x, axis=2, keepdims=True)[:, 0]))


def masked():
    return keras.Sequential(
        [keras.Input((5,)), layers.Embedding(4, 3, mask_zero=True), layers.LSTM(3)]
    )


REFUSED = {
    "a class of its own": (built_own, "functional or Sequential"),
    "an operation along an axis": (over_channels, "that can be stacked"),
    "masks": (masked, "must not use masks"),
    "no weights yet": (lambda: keras.Sequential([layers.Dense(3)]), "must be built"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, counts):
    build, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        DeepEnsemble(build, 2).stacked()
    counts("misuse rows, refused")


def test_members_of_different_layers_are_refused(counts):
    def wide():
        return keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(3)])

    def narrow():
        return keras.Sequential([keras.Input((4,)), layers.Dense(6, "relu"), layers.Dense(3)])

    def tanh():
        return keras.Sequential([keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(3)])

    def clipped():  # random inputs are not so large that it would show
        last = [layers.ReLU(max_value=1e6), layers.Dense(3)]
        return keras.Sequential([keras.Input((4,)), layers.Dense(8), *last])

    def unclipped():
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(8), layers.ReLU(), layers.Dense(3)]
        )

    with pytest.raises(ValueError, match="arguments"):
        DeepEnsemble.from_models([clipped(), unclipped()]).stacked()
    for other, match in ((narrow, "same layers"), (tanh, "arguments")):
        with pytest.raises(ValueError, match=match):
            DeepEnsemble.from_models([wide(), other()]).stacked()
        counts("misuse rows, refused")


def test_members_that_were_replaced_are_refused(counts):
    """As `fit` in other processes does."""
    ensemble = DeepEnsemble(plain, 2)
    stacked, x = ensemble.stacked(), inputs_of(ensemble.members[0])
    stacked.predict(x, from_logits=True)
    ensemble._members = [plain(), plain()]
    with pytest.raises(ValueError, match=r"Call `stacked\(\)` again"):
        stacked.predict(x, from_logits=True)
    counts("misuse rows, refused")


def test_any_extent():
    def build():
        body = [layers.Conv2D(3, 3, strides=2), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D()]
        return keras.Sequential([keras.Input((None, None, 1)), *body, layers.Dense(2)])

    ensemble = ensemble_of(build)
    x = RNG.normal(size=(3, 14, 12, 1)).astype("float32")
    found = ensemble.stacked().predict(x, from_logits=True)
    np.testing.assert_allclose(found, ensemble.predict(x, from_logits=True), atol=1e-6)
    assert "over stacked weights" in repr(ensemble.stacked())


def test_is_not_trained(counts):
    stacked = DeepEnsemble(plain, 2).stacked()
    with pytest.raises(ValueError, match="`fit` must be called of the ensemble that was stacked"):
        stacked.fit(np.zeros((4, 8, 8, 1)), np.zeros(4))
    counts("misuse rows, refused")
