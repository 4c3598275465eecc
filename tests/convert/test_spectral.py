"""spectral_normalize: singular values against NumPy's, before, while and after training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.convert import SpectralBound, report, spectral_normalize
from tfuq.layers import SNGPDense

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 6)).astype("float32"), np.arange(32) % 3


def dense_model(last=None):
    hidden = [keras.layers.Dense(12, "tanh", name="a"), keras.layers.Dense(9, name="b")]
    last = last or keras.layers.Dense(3, name="logits")
    model = keras.Sequential([keras.Input((6,)), *hidden, last])
    for layer in hidden:
        layer.kernel.assign(RNG.normal(size=layer.kernel.shape))
    return model


def norm(layer):
    return np.linalg.norm(layer.kernel.numpy(), 2)


def convolution_norm(layer, shape):
    """The largest singular value of the whole matrix of a convolution, column by column."""
    columns = np.eye(np.prod(shape)).reshape(-1, *shape).astype("float32")
    matrix = layer(columns) - layer(np.zeros_like(columns))
    return np.linalg.norm(np.reshape(matrix, (len(columns), -1)), 2)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_kernels_are_within_the_bound(jit_compile, capsys):
    model = dense_model(SNGPDense(3, num_features=16, seed=1))
    copy = spectral_normalize(model, norm_bound=0.8)
    assert "2 converted (2 Dense); left 1 SNGPDense" in capsys.readouterr().out
    assert min(norm(layer) for layer in model.layers[:2]) > 2
    for layer in copy.layers[:2]:
        assert norm(layer) == pytest.approx(0.8, rel=0.02)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    copy.compile(keras.optimizers.SGD(0.5), loss, jit_compile=jit_compile)
    copy.fit(X, Y, 8, epochs=5, verbose=0)
    for layer in copy.layers[:2]:
        assert norm(layer) <= 0.8 * 1.02


def test_a_loaded_kernel_is_bounded_by_the_first_step():
    """By a constraint as a file gives it, without a vector: its first step has those before."""
    model = dense_model()
    copy = spectral_normalize(model, norm_bound=0.8)
    config = keras.constraints.serialize(copy.layers[0].kernel_constraint)
    kernel = keras.Variable(3 * model.layers[0].kernel)
    found = keras.constraints.deserialize(config)(kernel)
    assert np.linalg.norm(found, 2) == pytest.approx(0.8, rel=0.02)


def test_small_kernels_stay_as_they_are():
    model = dense_model()
    for layer in model.layers[:2]:
        layer.kernel.assign(layer.kernel / (2 * norm(layer)))
    copy = spectral_normalize(model)
    np.testing.assert_array_equal(copy(X), model(X))
    assert copy.layers[-1].kernel_constraint is None
    left = report(copy).left
    assert left == {"logits": ("Dense", "its outputs are the model's")}


@pytest.mark.parametrize(
    "layer, shape",
    [
        (keras.layers.Conv2D(4, 3, padding="same"), (6, 5, 2)),
        (keras.layers.Conv2D(3, 2, strides=2), (6, 7, 2)),
        (keras.layers.Conv1D(5, 3, dilation_rate=2, padding="same"), (9, 2)),
        (keras.layers.Conv3D(2, 2), (4, 3, 4, 1)),
    ],
)
def test_convolutions_are_bounded_as_maps(layer, shape):
    flat = keras.layers.Flatten()
    model = keras.Sequential([keras.Input(shape), layer, flat, keras.layers.Dense(2)])
    layer.kernel.assign(RNG.normal(size=layer.kernel.shape))
    copy = spectral_normalize(model, norm_bound=0.5)
    assert convolution_norm(layer, shape) > 1
    assert convolution_norm(copy.layers[0], shape) == pytest.approx(0.5, rel=0.02)


def test_a_constraint_that_layers_share_bounds_each():
    """With one vector for both, the second kernel was left 2.8 times too wide."""
    bound = SpectralBound(0.95)
    layers = [keras.layers.Dense(n, kernel_constraint=bound) for n in (2, 2, 3)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    layers[0].kernel.assign([[3.0, 0.0], [0.0, 0.1]])
    layers[1].kernel.assign([[0.1, 0.0], [0.0, 3.0]])
    model.fit(X[:, :2], Y, 4, epochs=2, verbose=0)
    assert max(norm(layer) for layer in layers) <= 0.95 * 1.05


def test_files_and_graphs_hold_nothing_more(tmp_path):
    copy = spectral_normalize(dense_model())
    count = len(copy.weights)
    assert count == len(dense_model().weights)
    copy.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), copy(X))
    assert loaded.layers[0].kernel_constraint.get_config() == SpectralBound(0.95).get_config()
    graph = tf.function(copy).get_concrete_function(tf.TensorSpec((None, 6))).graph
    plain = tf.function(dense_model()).get_concrete_function(tf.TensorSpec((None, 6))).graph
    operations = [sorted(op.type for op in each.get_operations()) for each in (graph, plain)]
    assert operations[0] == operations[1]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loaded.compile(keras.optimizers.SGD(0.5), loss)
    loaded.fit(X, Y, 8, epochs=5, verbose=0)
    assert max(norm(layer) for layer in loaded.layers[:2]) <= 0.95 * 1.05


def test_what_cannot_be_bounded_is_said():
    grouped = keras.layers.Conv2D(4, 3, groups=2, name="grouped")
    kept = keras.layers.Dense(4, kernel_constraint="non_neg", name="kept")
    inside = [keras.layers.Conv2D(4, 3, name="conv"), grouped, keras.layers.Flatten(), kept]
    model = keras.Sequential([keras.Input((6, 6, 2)), *inside, keras.layers.Dense(2, name="last")])
    found = report(spectral_normalize(model))
    assert set(found.converted) == {"conv"}
    assert {name: why for name, (_, why) in found.left.items()} == {
        "grouped": "it is grouped or causal",
        "kept": "its kernel has a constraint of its own",
        "last": "its outputs are the model's",
    }
    assert set(report(spectral_normalize(model, layers=["last"])).converted) == {"last"}


def test_wrong_arguments_are_refused():
    for wrong in (0, -1.0, None, "0.9", float("nan")):
        with pytest.raises(ValueError, match=f"`norm_bound`.*norm_bound={wrong!r}"):
            spectral_normalize(dense_model(), wrong)
    with pytest.raises(ValueError, match=r"`iterations`.*iterations=0"):
        spectral_normalize(dense_model(), iterations=0)
    with pytest.raises(ValueError, match=r"`layers` must name.*nothing"):
        spectral_normalize(dense_model(), layers=["nothing"])
    inside = [keras.layers.Conv2D(2, 3, name="conv"), keras.layers.GlobalAveragePooling2D()]
    free = keras.Sequential([keras.Input((None, None, 2)), *inside, keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"known extents for 'conv'.*\(None, None, None, 2\)"):
        spectral_normalize(free)
    with pytest.raises(ValueError, match=r"`input_shape` must.*input_shape=None"):
        SpectralBound()(np.ones((3, 3, 2, 2), "float32"))
    with pytest.raises(ValueError, match="`model` must be"):
        spectral_normalize(keras.Sequential([keras.layers.Dense(3)]))
