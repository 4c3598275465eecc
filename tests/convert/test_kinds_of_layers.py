"""Each kind of layer that is converted: predictions kept, draws that differ, and the way back."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from tfuq import convert, layers
from tfuq._random.draws import TakesDraws, one_draw

RNG = np.random.default_rng(0)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(shape, *body):
    return keras.Sequential([keras.Input(shape), *body])


def attending(**options):
    x = keras.Input((4, 6))
    return keras.Model(x, kl.MultiHeadAttention(2, 3, **options)(x, x))


class Twice(kl.Dropout):
    """A subclass that only has another default."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(rate, **kwargs)


class Own(kl.Dropout):
    """A subclass of nobody knows what `call`."""

    def call(self, inputs, training=False):
        return inputs * 2 if training else inputs


VARIATIONAL = {
    "Conv3D": (lambda: network((3, 3, 3, 2), kl.Conv3D(2, 2)), "Conv3DVariational"),
    "DepthwiseConv1D": (
        lambda: network((5, 2), kl.DepthwiseConv1D(2)),
        "DepthwiseConv1DVariational",
    ),
    "DepthwiseConv2D": (
        lambda: network((5, 5, 2), kl.DepthwiseConv2D(2, depth_multiplier=2)),
        "DepthwiseConv2DVariational",
    ),
    "SeparableConv1D": (
        lambda: network((5, 2), kl.SeparableConv1D(3, 2)),
        "SeparableConv1DVariational",
    ),
    "SeparableConv2D": (
        lambda: network((5, 5, 2), kl.SeparableConv2D(3, 2, activation="tanh")),
        "SeparableConv2DVariational",
    ),
    "EinsumDense": (
        lambda: network((4, 6), kl.EinsumDense("abc,cde->abde", (4, 2, 3), bias_axes="de")),
        "EinsumDenseVariational",
    ),
    "MultiHeadAttention": (attending, "MultiHeadAttentionVariational"),
    "GRU": (lambda: network((4, 2), kl.GRU(3)), "GRUVariational"),
    "LSTM": (lambda: network((4, 2), kl.LSTM(3, return_sequences=True)), "LSTMVariational"),
    "SimpleRNN": (lambda: network((4, 2), kl.SimpleRNN(3)), "SimpleRNNVariational"),
    "Bidirectional": (lambda: network((4, 2), kl.Bidirectional(kl.GRU(3))), "GRUVariational"),
    "TimeDistributed": (
        lambda: network((4, 2), kl.TimeDistributed(kl.Dense(3))),
        "DenseVariational",
    ),
    "LoRA": (lambda: with_lora(network((4,), kl.Dense(3))), "DenseVariational"),
    "LoRA of EinsumDense": (
        lambda: with_lora(network((4, 6), kl.EinsumDense("abc,cd->abd", (4, 3)))),
        "EinsumDenseVariational",
    ),
    "Conv2D in groups": (
        lambda: network((5, 5, 4), kl.Conv2D(2, 2, groups=2)),
        "Conv2DVariational",
    ),
}
DROPPING = {
    "GaussianDropout": (
        lambda: network((40,), kl.GaussianDropout(0.5)),
        "MCGaussianDropout",
    ),
    "subclass of Dropout": (lambda: network((40,), Twice()), "MCDropout"),
    "recurrent dropout": (lambda: network((4, 2), kl.LSTM(9, recurrent_dropout=0.5)), "MCLSTM"),
    "dropout of a GRU": (lambda: network((4, 9), kl.GRU(3, dropout=0.5)), "MCGRU"),
    "SimpleRNN": (
        lambda: network((4, 9), kl.SimpleRNN(3, dropout=0.4, recurrent_dropout=0.4)),
        "MCSimpleRNN",
    ),
    "Bidirectional": (
        lambda: network((4, 9), kl.Bidirectional(kl.LSTM(9, recurrent_dropout=0.5))),
        "MCLSTM",
    ),
    "TimeDistributed": (
        lambda: network((4, 9), kl.TimeDistributed(kl.Dropout(0.5))),
        "MCDropout",
    ),
    "attention": (lambda: attending(dropout=0.5), "MCMultiHeadAttention"),
}


def with_lora(model):
    layer = model.layers[-1]
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 0.1))
    return model


def inputs_of(model, count=3):
    return RNG.normal(size=(count, *model.input_shape[1:])).astype("float32")


def random_layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, TakesDraws)]


def check_conversion(model, copy, tmp_path):
    """The mean network predicts as before, draws differ and are one network, all of it is saved."""
    x = inputs_of(model)
    expected = model(x)
    np.testing.assert_allclose(copy(x), expected, atol=1e-6)

    def draw(x, number):
        with one_draw(tf.constant([0, number])):
            return np.asarray(copy(x))

    drawn = draw(x, 1)
    assert np.abs(drawn - np.asarray(expected)).max() > 1e-4
    assert np.abs(drawn - draw(x, 2)).max() > 1e-4
    np.testing.assert_allclose(draw(x[:1], 1), drawn[:1], atol=1e-5)
    copy.save(tmp_path / "copy.keras")
    again = keras.models.load_model(tmp_path / "copy.keras", safe_mode=True)
    np.testing.assert_allclose(again(x), expected, atol=1e-6)
    back = convert.to_deterministic(copy)
    np.testing.assert_allclose(back(x), expected, atol=1e-6)
    assert not random_layers(back)


@pytest.mark.slow_cases(
    "Conv3D", "DepthwiseConv1D", "SeparableConv1D", "LSTM", "SimpleRNN", "LoRA of*"
)
@pytest.mark.parametrize("make, kind", VARIATIONAL.values(), ids=VARIATIONAL)
def test_variational(make, kind, tmp_path):
    model = make()
    copy = convert.variational(model, kl_weight=0.01)
    kinds = {new for _, new in convert.report(copy).converted.values()}
    assert kinds == {kind} and not convert.report(copy).left
    assert all(type(layer).__name__ in kinds | PROJECTIONS for layer in random_layers(copy))
    check_conversion(model, copy, tmp_path)


PROJECTIONS = {"EinsumDenseVariational"}


@pytest.mark.slow_cases("dropout of a GRU")
@pytest.mark.slow_cases("SimpleRNN", "Bidirectional", "GaussianDropout")
@pytest.mark.parametrize("make, kind", DROPPING.values(), ids=DROPPING)
def test_mc_dropout(make, kind, tmp_path):
    model = make()
    copy = convert.mc_dropout(model)
    assert {new for _, new in convert.report(copy).converted.values()} == {kind}
    check_conversion(model, copy, tmp_path)


@pytest.mark.slow_cases("SeparableConv2D")
@pytest.mark.parametrize("name", ["SeparableConv2D", "GRU", "MultiHeadAttention"])
def test_all_kernels_have_a_gradient_and_mopeds_start(name):
    model = VARIATIONAL[name][0]()
    copy = convert.variational(model, kl_weight=0.01, moped=True, moped_delta=0.2)
    x = inputs_of(model)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(copy(x, training=True))) + tf.add_n(copy.losses)
    variables = copy.trainable_variables
    found = tape.gradient(loss, [variable.value for variable in variables])
    assert all(gradient is not None for gradient in found)
    kernels = [layer for layer in random_layers(copy) if hasattr(layer, "kernels")]
    for layer in kernels:
        for kernel in layer.kernels:
            expected = np.maximum(0.2 * np.abs(getattr(layer, kernel)), 1e-6)
            found = layer.posterior(kernel).scale
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)


def test_draws_of_recurrent_weights_are_those_of_a_plain_network_with_them():
    """The kernels of a draw are the same at each step: the plain LSTM with them agrees."""
    model = network((4, 2), kl.LSTM(3))
    copy = convert.variational(model, kl_weight=0.01)
    layer, x = copy.layers[0], inputs_of(model)
    with one_draw(tf.constant([0, 1])) as draw:
        drawn = copy(x)
        seeds = tf.unstack(tf.random.split(draw.seed_of(layer), 2, alg="philox"), 2)
    kernels = [layer._drawn(n, s) for n, s in zip(layer.kernels, seeds, strict=True)]
    plain = kl.LSTM(3)
    plain.build((None, 4, 2))
    plain.set_weights([*map(np.asarray, kernels), np.asarray(layer.cell.bias)])
    np.testing.assert_allclose(plain(x), drawn, atol=1e-6)


def test_dropout_of_a_recurrent_layer_moves_on_beside_drawn_weights():
    layer = layers.LSTMVariational(3, kl_weight=0.1, dropout=0.5, posterior_scale=1e-6)
    x = np.ones((1, 4, 8), "float32")
    found = [np.asarray(layer(x, training=True)) for _ in range(6)]
    assert any(np.abs(each - found[0]).max() > 1e-3 for each in found)


# --- The report -------------------------------------------------------------------------------


def test_report_says_what_was_converted_and_left_and_why(capsys):
    body = [kl.Conv2D(2, 2, name="a"), kl.BatchNormalization(name="b"), kl.PReLU(name="c")]
    model = network((4, 4, 1), *body, kl.Flatten(), kl.Dense(3, name="d"))
    copy = convert.variational(model, kl_weight=0.01, layers=["d"])
    found = convert.report(copy)
    assert found.converted == {"d": ("Dense", "DenseVariational")}
    assert found.left == {
        "a": ("Conv2D", "it is not among `layers`"),
        "b": ("BatchNormalization", "normalization has no kernel"),
        "c": ("PReLU", "there is no counterpart of PReLU"),
    }
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and found.summary() in printed
    with pytest.raises(ValueError, match="Argument `model` must be what `mc_dropout`"):
        convert.report(model)


class Block(kl.Layer):
    """A layer that makes its own, which its configuration does not show."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.drop = kl.Dense(3, name="inner"), kl.Dropout(0.5, name="drop")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.drop(self.inner(x))


def test_what_another_layer_builds_is_left_and_said():
    """It counted as converted, and was not."""
    model = network((4,), Block(name="block"), kl.Dense(3, name="top"), kl.Dropout(0.1))
    found = convert.report(convert.variational(model, kl_weight=0.1))
    assert found.left == {"inner": ("Dense", "another layer builds it")}
    found = convert.report(convert.mc_dropout(model))
    assert found.left == {"drop": ("Dropout", "another layer builds it")}
    alone = network((4,), Block())
    for conversion in (convert.mc_dropout, lambda m: convert.variational(m, kl_weight=0.1)):
        with pytest.raises(ValueError, match=r"build .* themselves"):
            conversion(alone)


class Depth(kl.Layer):
    """Stochastic depth as people write it, without a generator that could be seen."""

    def call(self, x, training=False):
        return x * keras.ops.floor(keras.random.uniform(()) + 0.8) if training else x


NOISY = {
    "AlphaDropout": (lambda: (kl.AlphaDropout(0.3),), (8,), "of its own kind"),
    "GaussianNoise": (lambda: (kl.GaussianNoise(0.3),), (8,), "of its own kind"),
    "RandomFlip": (lambda: (kl.RandomFlip(), kl.Flatten()), (4, 4, 3), "of its own kind"),
    "Own": (lambda: (Own(0.5),), (8,), "drops in a `call` of its own"),
    "Depth": (lambda: (Depth(),), (8,), "may be random"),
    "ConvLSTM1D": (
        lambda: (kl.ConvLSTM1D(2, 2, recurrent_dropout=0.2), kl.Flatten()),
        (3, 5, 1),
        "of its own kind",
    ),
    "RNN": (
        lambda: (kl.RNN([kl.LSTMCell(3), kl.GRUCell(3, dropout=0.2)]),),
        (3, 5),
        "of its own kind",
    ),
}


@pytest.mark.parametrize("name", NOISY)
def test_noise_that_is_left_is_said(name):
    body, shape, why = NOISY[name]
    model = network(shape, *body(), kl.Dropout(0.5))
    left = convert.report(convert.mc_dropout(model)).left
    assert list(left) == [model.layers[0].name]
    kind, said = left[model.layers[0].name]
    assert kind == name and why in said


WITHOUT_TWIN = {
    "Conv1DTranspose": (lambda: kl.Conv1DTranspose(2, 2), (4, 2), "Conv1DTranspose"),
    "Conv3DTranspose": (lambda: kl.Conv3DTranspose(2, 2), (2, 2, 2, 2), "Conv3DTranspose"),
    "ConvLSTM1D": (lambda: kl.ConvLSTM1D(2, 2), (3, 5, 1), "ConvLSTMCell"),
    "RNN": (lambda: kl.RNN(kl.LSTMCell(3)), (3, 5), "LSTMCell"),
    "Embedding": (lambda: kl.Embedding(4, 2), (3,), "Embedding"),
}


@pytest.mark.parametrize("name", WITHOUT_TWIN)
def test_kernels_that_are_left_are_said(name):
    make, shape, why = WITHOUT_TWIN[name]
    model = network(shape, make(), kl.Flatten(), kl.Dense(3))
    data = np.ones((4, *shape)), np.arange(4) % 3
    for copy in (
        convert.variational(model, kl_weight=0.1),
        convert.sparse_bayesian(model, data, LOSS, kl_weight=0.1),
    ):
        assert convert.report(copy).left == {
            model.layers[0].name: (name, f"there is no counterpart of {why}")
        }


def test_layers_of_one_name_are_each_in_the_report():
    inner = [network((4,), kl.Dense(4, name="same"), kl.PReLU(name="act")) for _ in range(2)]
    found = convert.report(convert.variational(network((4,), *inner), kl_weight=0.1))
    assert len(found.converted) == len(found.left) == 2
    assert "2 converted (2 Dense); left 2 PReLU" in found.summary()


def test_quantized_weights_are_left():
    model = network((4,), kl.Dense(8, name="a"), kl.Dense(3, name="b"))
    model.layers[0].quantize("int8")
    copy = convert.variational(model, kl_weight=0.1)
    assert convert.report(copy).left == {"a": ("Dense", "its weights are quantized")}
    x = inputs_of(model)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)


def test_attention_with_quantized_projections_is_refused():
    """Its integers became the kernels of the copy, which predicted something else."""
    x = keras.Input((4, 8))
    y = kl.Dropout(0.2)(kl.MultiHeadAttention(2, 4, dropout=0.3)(x, x))
    model = keras.Model(x, kl.Dense(3, name="top")(y))
    for projection in model.layers[1]._flatten_layers(include_self=False):
        if isinstance(projection, kl.EinsumDense):
            projection.quantize("int8")
    for conversion in (lambda m: convert.variational(m, kl_weight=0.1), convert.mc_dropout):
        with pytest.raises(ValueError, match="quantized one by one"):
            conversion(model)


def test_sparse_copy_of_a_network_with_lora():
    model, data = with_lora(network((4,), kl.Dense(3))), (np.ones((4, 4)), np.arange(4) % 3)
    copy = convert.sparse_bayesian(model, data, LOSS, 0.5, kl_weight=0.1)
    x = inputs_of(model)
    np.testing.assert_allclose(copy(x), model(x), atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.top = kl.Dense(3)

    def call(self, x):
        return self.top(x)


def test_a_subclassed_model_is_told_what_to_write():
    model = Subclassed()
    model(np.ones((1, 4)))
    for conversion in (
        convert.mc_dropout,
        lambda m: convert.variational(m, kl_weight=0.1),
        lambda m: convert.sparse_bayesian(m, (np.ones((2, 4)), [0, 1]), LOSS, kl_weight=0.1),
        lambda m: convert.replace_head(m, layers.VBLLDense(3, kl_weight=0.1)),
    ):
        with pytest.raises(ValueError, match=r"(?s)self.top = tfuq.layers.*new_model.top.kernel"):
            conversion(model)
