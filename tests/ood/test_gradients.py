"""Features are the squared norms that a GradientTape gives for one example at a time."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import resnet18, unet
from keras import layers

from tfuq.ensembles import DeepEnsemble
from tfuq.layers import MCSoftmaxDenseFA, SparseBayesDense, VBLLDense
from tfuq.ood import GradientDensity, GradientFeatures


def one_at_a_time(model, x, label=1.0, output=lambda y: y, variables=None, scale=1.0):
    """|dJ / dw|^2, J the mean binary cross entropy of logits, without any of tfuq."""
    variables = variables or model.trainable_variables

    @tf.function(autograph=False)
    def norms(x):
        with tf.GradientTape() as tape:
            logits = tf.cast(output(model(x, training=False)), "float32")
            labels = tf.broadcast_to(tf.cast(label, "float32"), tf.shape(logits))
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            loss = scale * tf.reduce_mean(losses)
        values = [v.value for v in variables]
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        gradients = [tf.cast(tf.convert_to_tensor(g), "float32") / scale for g in gradients]
        return tf.stack([tf.reduce_sum(tf.square(g)) for g in gradients])

    count = len(tf.nest.flatten(x)[0])
    rows = [
        tf.nest.map_structure(lambda a, i=i: tf.constant(a[i : i + 1]), x) for i in range(count)
    ]
    return np.stack([norms(row) for row in rows])


def shaken(model):
    """The model with weights that are nowhere 0 or 1, as after training."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if not variable.dtype.startswith("float"):
            continue
        noise = rng.normal(size=variable.shape) * 0.2
        noise = np.abs(noise) if "variance" in variable.path else noise
        variable.assign(variable + noise.astype("float32"))
    return model


def agree(model, x, rtol=1e-4, **kwargs):
    model(x)  # a layer that is another's activation makes its weights when it is called
    found = GradientFeatures(model, from_logits=True)(x)
    expected = one_at_a_time(model, x, **kwargs)
    assert found.dtype == "float32" and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-12)
    assert np.count_nonzero(expected) > 0


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def chain(shape, *inner, classes=3):
    """Layers one after the other, and a linear head on all they give."""
    head = [layers.Flatten(), layers.Dense(classes)]
    return shaken(keras.Sequential([keras.Input(shape), *inner, *head]))


# --- Kinds of layers ------------------------------------------------------------------------------


def conv(rank, **kwargs):
    kind = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    return kind(4, 3, **kwargs)


DILATED = "transposed 1D, dilated"  # not every processor has a kernel for it
LAYERS = {
    "dense": ((5,), [layers.Dense(4, "relu")]),
    "dense on positions": ((6, 5), [layers.Dense(40, "tanh"), layers.Dense(30, "gelu")]),
    "same": ((7, 6, 2), [conv(2, padding="same", activation="relu")]),
    "valid, strides": ((9, 8, 2), [conv(2, strides=2, activation=layers.LeakyReLU())]),
    "same, strides, no bias": (
        (7, 8, 2),
        [conv(2, strides=(2, 2), padding="same", use_bias=False)],
    ),
    "dilation": ((9, 8, 2), [conv(2, dilation_rate=2, padding="same"), conv(2, dilation_rate=2)]),
    "groups": ((6, 6, 4), [conv(2, groups=2, padding="same")]),
    "many channels": ((4, 4, 40), [layers.Conv2D(50, 3, padding="same"), layers.Conv2D(60, 1, 2)]),
    "1D, causal": ((9, 3), [conv(1, padding="causal", dilation_rate=2), conv(1, padding="same")]),
    "3D": ((4, 5, 4, 2), [conv(3, padding="same", strides=2)]),
    DILATED: ((5, 3), [layers.Conv1DTranspose(4, 3, padding="same", dilation_rate=2)]),
    "depthwise": (
        (7, 7, 3),
        [
            layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same"),
            layers.DepthwiseConv2D((2, 3), activation="tanh", use_bias=False),
        ],
    ),
    "depthwise 1D": ((8, 3), [layers.DepthwiseConv1D(3, dilation_rate=2)]),
    "separable": (
        (7, 7, 3),
        [layers.SeparableConv2D(5, 3, strides=2, depth_multiplier=2, activation="tanh")],
    ),
    "separable 1D": ((8, 3), [layers.SeparableConv1D(5, 3, padding="same")]),
    "transposed": (
        (3, 4, 3),
        [
            layers.Conv2DTranspose(4, 3, 2, padding="same", activation="relu"),
            layers.Conv2DTranspose(2, 3, 2, output_padding=1),
        ],
    ),
    "transposed 1D": ((5, 3), [layers.Conv1DTranspose(4, 3, padding="same", strides=2)]),
    "batch normalization": ((4, 4, 3), [conv(2), layers.BatchNormalization()]),
    "other normalization": (
        (4, 6),
        [
            layers.LayerNormalization(),
            layers.GroupNormalization(3),
            layers.RMSNormalization(),
            layers.LayerNormalization(axis=(1, 2), center=False),
            layers.BatchNormalization(axis=1, scale=False),
        ],
    ),
    "dropout": ((5,), [layers.Dense(8), layers.Dropout(0.5), layers.GaussianNoise(1.0)]),
    "activation with a weight": ((5,), [layers.Dense(8, layers.PReLU())]),
    "recurrent": ((5, 3), [layers.GRU(4, return_sequences=True), layers.Dense(6)]),
    "recurrent, unrolled": ((3, 3), [layers.SimpleRNN(4, unroll=True)]),
    "both ways": ((4, 3), [layers.Bidirectional(layers.LSTM(3))]),
    "over time": ((4, 6, 6, 2), [layers.TimeDistributed(conv(2))]),
    "einsum": ((4, 3), [layers.EinsumDense("abc,cd->abd", (4, 5), bias_axes="d")]),
}


SLOW = ("recurrent", "both ways")  # to vectorize a loop takes seconds


@pytest.mark.slow_cases(
    "1D*", "* 1D*", "same, strides*", "groups", "dilation", "over time", "other norm*"
)
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in LAYERS]
)
def test_layer(kind):
    shape, inner = LAYERS[kind]
    if kind == DILATED:
        try:
            inner[0](images(3, *shape))
        except tf.errors.InvalidArgumentError as error:
            pytest.skip(f"TensorFlow cannot run it here: {str(error)[-160:]!r}")
    agree(chain(shape, *inner), images(3, *shape))


# --- Kinds of models ------------------------------------------------------------------------------


class Gate(layers.Layer):
    """Weights of its own beside a layer inside."""

    def build(self, shape):
        self.inner = layers.Dense(shape[-1])
        self.inner.build(shape)
        self.mix = self.add_weight(shape=(shape[-1], shape[-1]), name="mix")
        self.shift = self.add_weight(shape=(shape[-1],), name="shift")

    def call(self, x, scale=1.0):
        return scale * self.inner(x) * tf.sigmoid(tf.matmul(x, self.mix)) + self.shift


class Network(keras.Model):
    """A subclassed model: a layer in a loop, one in a dict, one that is not called."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(4)
        self.gates = {"a": Gate()}
        self.idle = layers.Dense(2)
        self.last = layers.Dense(3)

    def build(self, shape):
        self.first.build(shape)
        self.gates["a"].build((None, 4))
        self.idle.build(shape)
        self.last.build((None, 4))

    def call(self, x, training=False):
        x = self.first(x)
        for scale in (1.0, 0.5):
            x = tf.tanh(self.gates["a"](x, scale=scale))
        return self.last(x)


class Tied(keras.Model):
    """A table of embeddings that is the last layer's kernel as well."""

    def __init__(self, reader):
        super().__init__()
        self.table = layers.Embedding(7, 4, mask_zero=True)
        self.reader = reader

    def build(self, shape):
        self.table.build(shape)
        self.reader.build((*shape, 4))

    def call(self, ids, training=False):
        return tf.matmul(self.reader(self.table(ids)), self.table.embeddings, transpose_b=True)


class Scan(layers.Layer):
    """A loop over what its own weights have made, which TensorFlow does not vectorize."""

    def build(self, shape):
        width = shape[-1]
        self.before = self.add_weight(shape=(width, width), name="before")
        self.inside = self.add_weight(shape=(width, width), name="inside")

    def call(self, x):
        steps = tf.transpose(tf.matmul(x, self.before), (1, 0, 2))
        start = tf.zeros_like(steps[0])
        found = tf.scan(lambda h, step: tf.tanh(tf.matmul(h, self.inside) + step), steps, start)
        return tf.transpose(found, (1, 0, 2))


def nested():
    inner = keras.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.Conv2D(3, 3, use_bias=False)(inner))
    trunk = keras.Model(inner, layers.ReLU()(x))
    neck = keras.Sequential([layers.Flatten(), layers.Dense(5, "tanh")])
    deep = keras.Sequential([keras.Input((6, 6, 2)), trunk, neck])
    return keras.Sequential([keras.Input((6, 6, 2)), deep, layers.Dense(3)])


def shared():
    """A layer at two depths, a convolution at two resolutions, a model on two inputs."""
    inputs = {"a": keras.Input((8, 8, 2), name="a"), "b": keras.Input((8, 8, 2), name="b")}
    conv, square = layers.Conv2D(2, 3, padding="same"), layers.Dense(4, "relu")
    start = keras.Input((8, 8, 2))
    x = conv(layers.AveragePooling2D(2)(conv(start)))
    twin = keras.Model(start, layers.Dense(4)(layers.Flatten()(x)))
    joined = layers.Add()([square(twin(x)) for x in inputs.values()])
    return keras.Model(inputs, layers.Dense(3)(square(joined)))


def tokens():
    """An embedding whose rows are met more than once, and attention."""
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(5, 4)(ids)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    return keras.Model(ids, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def encoder():
    """The way down of a U-Net, and a head on it."""
    model = unet(width=2, shape=(8, 8, 1))
    bottom = model.layers[[type(layer).__name__ for layer in model.layers].index("Conv2DTranspose")]
    pooled = layers.GlobalAveragePooling2D()(bottom.input)
    return keras.Model(model.input, layers.Dense(3)(pooled))


def built(model, *shape):
    model.build((None, *shape))
    return model


PAIR = {"a": images(3, 8, 8, 2), "b": images(3, 8, 8, 2, seed=1)}
IDS = np.array([[1, 2, 2, 4, 1, 1], [3, 3, 3, 3, 3, 3], [0, 1, 2, 3, 4, 0]])

MODELS = {
    "nested": (nested, images(3, 6, 6, 2)),
    "shared": (shared, PAIR),
    "subclassed, custom": (lambda: built(Network(), 5), images(3, 5)),
    "custom inside": (lambda: chain((4, 5), Gate(), layers.Conv1D(3, 2)), images(3, 4, 5)),
    "loop inside": (lambda: chain((4, 3), Scan()), images(3, 4, 3)),
    "tied": (lambda: built(Tied(layers.GlobalAveragePooling1D()), 6), IDS),
    "tokens": (tokens, IDS),
    "U-Net encoder": (encoder, images(2, 8, 8, 1)),
    "ResNet-18, thin": (lambda: resnet18(width=2, shape=(8, 8, 3)), images(2, 8, 8, 3)),
}


@pytest.mark.slow_cases("loop inside")
@pytest.mark.slow_cases("ResNet*", "U-Net*", "tied", "tokens", "custom inside", "shared")
@pytest.mark.parametrize("kind", MODELS)
def test_model(kind):
    make, x = MODELS[kind]
    agree(shaken(make()), x)


@pytest.mark.slow
def test_tied_weights_around_a_loop():
    agree(shaken(built(Tied(layers.GRU(4)), 6)), IDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, x",
    [
        (lambda: resnet18(shape=(32, 32, 3)), images(4, 32, 32, 3)),
        (lambda: unet(width=16, depth=3, classes=2, shape=(32, 32, 1)), images(3, 32, 32, 1)),
    ],
    ids=["ResNet-18", "U-Net"],
)
def test_model_of_full_size(make, x):
    """As made: weights shaken by 0.2 would let the activations of 18 layers explode."""
    agree(make(), x)


@pytest.mark.slow
def test_layers_of_a_segmentation_network():
    """The features of a part of a U-Net, whose output is a map of two classes."""
    model, x = shaken(unet(width=2, depth=1, classes=2, shape=(6, 6, 1))), images(2, 6, 6, 1)
    part = [layer.name for layer in model.layers if isinstance(layer, layers.Conv2D)][:3]
    found = GradientFeatures(model, layers=part, from_logits=True)
    expected = one_at_a_time(model, x)
    columns = [v.path.split("/")[0] in part for v in model.trainable_variables]
    assert found.names == [
        v.path for v in model.trainable_variables if v.path.split("/")[0] in part
    ]
    np.testing.assert_allclose(found(x), expected[:, columns], rtol=1e-4, atol=1e-12)


# --- Heads that know what they do not know --------------------------------------------------------

HEADS = {
    "heteroscedastic": lambda: MCSoftmaxDenseFA(
        3, 2, test_mc_samples=8, logits_only=True, dtype="float32"
    ),
    "variational last layer": lambda: VBLLDense(3, kl_weight=0.01, logits_only=True),
    "sparse Bayesian": lambda: SparseBayesDense(3, kl_weight=0.01, r_bayes=0.5),
}


@pytest.mark.slow_cases("variational last layer")
@pytest.mark.slow_cases("heteroscedastic")
@pytest.mark.parametrize("head", HEADS)
def test_heads_as_they_stand(head):
    parts = [layers.Dense(4, "relu"), HEADS[head]()]
    model = keras.Sequential([keras.Input((5,)), *parts])
    agree(shaken(model), images(3, 5))


# --- Precision ------------------------------------------------------------------------------------


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("policy, scale", [("mixed_float16", 2.0**12), ("mixed_bfloat16", 1.0)])
def test_mixed_precision(policy, scale):
    """Half precision rounds at another place if examples come one at a time."""
    keras.config.set_dtype_policy(policy)
    inner = [conv(2, padding="same"), layers.BatchNormalization(), layers.Activation("tanh")]
    model = chain((6, 6, 2), *inner, layers.Conv2D(3, 3, 2))
    agree(model, images(4, 6, 6, 2), rtol=0.05 if scale == 1 else 0.01, scale=scale)


def test_small_gradients_of_half_precision():
    """They would be 0 if the loss were not scaled."""
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(3)])
    x = images(3, 4)
    for layer in model.layers:
        layer.kernel.assign(layer.kernel * 1e-3)
    model.layers[1].bias.assign([12.0, 12.0, 12.0])  # nearly what "all" asks for
    found = GradientFeatures(model, from_logits=True)(x)
    expected = one_at_a_time(model, x, scale=2.0**12)
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert np.all(found > 0)


def test_columns_of_an_ensemble_are_those_of_its_members_side_by_side():
    def network(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="top")])

    members = [network(0), network(1)]
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    options = {"from_logits": True, "with_loss": True, "layers": ["top"]}
    features = GradientFeatures(DeepEnsemble.from_models(members), **options)
    expected = [GradientFeatures(member, **options)(x) for member in members]
    np.testing.assert_array_equal(features(x), np.concatenate(expected, axis=1))
    assert len(features.names) == 6 and features.names[3].startswith("member 1: ")
    density = GradientDensity().fit(features, x)
    assert density.score(x).shape == (20,)
