"""What all corruptions have in common: types, seeds, graphs, severities, errors."""

import numpy as np
import pytest
import tensorflow as tf
from contract_layers import global_randomness
from sklearn.datasets import load_sample_image

from tfuq import corruptions
from tfuq._images import pieces

NAMES = corruptions.names()
RANDOM = (
    *("dirty_lens", "elastic_transform", "fog", "frost", "gaussian_noise", "glass_blur"),
    *("impulse_noise", "motion_blur", "shot_noise", "snow", "spatter", "speckle_noise"),
)
# CIFAR-10-C's own numbers do not grow in these; `saturate` first takes colour away, then adds some.
NOT_STEADY = (
    *("elastic_transform", "frost", "glass_blur", "motion_blur", "saturate", "snow", "spatter"),
)


def photograph(side=32):
    """Four pieces of a photograph, uint8 `(4, side, side, 3)`."""
    image = tf.cast(load_sample_image("china.jpg")[:400, :400], "float32")
    pieces = tf.stack([image[i : i + 200, j : j + 200] for i in (0, 200) for j in (0, 200)])
    pieces = tf.image.resize(pieces, (side, side), antialias=True)
    return tf.cast(tf.round(pieces), "uint8").numpy()


IMAGES = photograph()
SMALL = photograph(19)[:3, :17]


def as_float(images):
    return images.astype("float32") / 255


def test_names_are_those_of_cifar_10_c_and_two_more():
    of_cifar = {
        *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
        *("defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"),
        *("snow", "frost", "fog", "spatter", "brightness", "contrast", "saturate"),
        *("elastic_transform", "pixelate", "jpeg_compression"),
    }
    assert set(NAMES) == of_cifar | {"decolor", "dirty_lens"} and len(of_cifar) == 19
    benchmark, validation = corruptions.names("benchmark"), corruptions.names("validation")
    assert len(benchmark) == 15 and {*benchmark, *validation} == of_cifar
    refused("which", corruptions.names, "all")
    assert set(NAMES) <= set(corruptions.__all__)


# --- Types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_channels(name):
    expected = corruptions.corrupt(as_float(SMALL), name, 4).numpy()
    assert expected.shape == SMALL.shape and expected.dtype == np.float32
    assert expected.min() >= 0 and expected.max() <= 1
    assert np.abs(expected - as_float(SMALL)).max() > 0.02
    eight_bits = corruptions.corrupt(SMALL, name, 4)
    assert eight_bits.dtype == tf.uint8
    # Rounding of a half, and of an element on the edge of it.
    np.testing.assert_allclose(eight_bits.numpy() / 255, expected, atol=0.501 / 255)
    for dtype in ("float16", "bfloat16", "float64"):
        images = tf.cast(as_float(SMALL), dtype)
        found = corruptions.corrupt(images, name, 4)
        assert found.dtype == images.dtype and found.shape == images.shape
    grey = corruptions.corrupt(SMALL[..., 1:2], name, 4)
    assert grey.shape == (*SMALL.shape[:3], 1)
    assert np.any(grey != SMALL[..., 1:2]) == (name not in ("decolor", "saturate"))


@pytest.mark.parametrize("name", NAMES)
def test_one_pixel_and_no_image(name):
    assert np.isfinite(corruptions.corrupt(np.full((2, 1, 1, 3), 0.5), name, 5)).all()
    for dtype in ("uint8", "float32"):
        nothing = corruptions.corrupt(np.zeros((0, 6, 5, 3), dtype), name, 1)
        assert nothing.shape == (0, 6, 5, 3) and nothing.dtype == dtype


# --- Seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name):
    global_randomness()  # Keras makes its generator when first asked for it
    before = global_randomness()
    copies = np.repeat(IMAGES[:1], 3, axis=0)
    first = corruptions.corrupt(copies, name, 5, seed=5).numpy()
    again, other = (corruptions.corrupt(copies, name, 5, seed=seed).numpy() for seed in (5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other) == (name in RANDOM)
    # Each image of a batch has noise of its own.
    assert len({image.tobytes() for image in first}) == (3 if name in RANDOM else 1)
    assert global_randomness() == before


def test_seeds_of_all_kinds():
    def noisy(seed):
        return corruptions.gaussian_noise(as_float(IMAGES), 1, seed=seed).numpy()

    np.testing.assert_array_equal(noisy(3), noisy(np.int64(3)))
    np.testing.assert_array_equal(noisy(3), noisy(tf.constant([0, 3])))
    np.testing.assert_array_equal(noisy(2**31 + 5), noisy(np.array([1, 5])))
    assert np.any(noisy(2**31 + 5) != noisy(5))


@pytest.mark.parametrize("name", RANDOM)
def test_shared_noise_is_that_of_one_image(name):
    copies = np.repeat(IMAGES[:1], 3, axis=0)
    found = corruptions.corrupt(copies, name, 3, seed=pieces.Shared(7)).numpy()
    alone = corruptions.corrupt(copies[:1], name, 3, seed=7).numpy()
    np.testing.assert_array_equal(found, np.repeat(alone, 3, axis=0))


@pytest.mark.slow
def test_large_batches_go_in_pieces(monkeypatch):
    whole = {name: corruptions.corrupt(IMAGES, name, 2).numpy() for name in NAMES}
    monkeypatch.setattr(pieces, "PIECE", 2 * 32 * 32 * 3)
    for name in NAMES:
        found = corruptions.corrupt(IMAGES, name, 2).numpy()
        fixed = 2 if name in RANDOM else 4
        np.testing.assert_array_equal(found[:fixed], whole[name][:fixed])
    same = np.repeat(IMAGES[:1], 4, axis=0)
    noisy = corruptions.gaussian_noise(same, 2).numpy()
    assert len({image.tobytes() for image in noisy}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_single_images_are_batches_of_one(name):
    for images in (IMAGES, as_float(IMAGES)):
        found = corruptions.corrupt(images[0], name, 3, seed=2)
        assert found.shape == images[0].shape
        np.testing.assert_array_equal(found, corruptions.corrupt(images[:1], name, 3, seed=2)[0])


# --- Graphs -----------------------------------------------------------------------------------


def all_of(images, seed, names=NAMES):
    told = {"seed": seed, "severity_of": "cifar10-c"}
    return {name: corruptions.corrupt(images, name, 3, **told) for name in names}


@pytest.mark.slow
def test_in_a_pipeline_as_in_eager_mode():
    """With batches of unknown size, seeds from a counter, and as many threads as there are."""
    names = ("shot_noise", "motion_blur", "fog", "jpeg_compression")
    data = tf.data.Dataset.from_tensor_slices(as_float(SMALL)).batch(2).enumerate()
    data = data.map(
        lambda number, images: all_of(images, tf.stack([0, number]), names),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    for number, found in enumerate(data):
        images = as_float(SMALL)[2 * number : 2 * number + 2]
        for name in names:
            expected = corruptions.corrupt(images, name, 3, seed=number)
            np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)
    assert number == 1


NEED_SIZE = ("dirty_lens", "elastic_transform", "fog", "frost", "pixelate")


def check_graph(names, shape):
    function = tf.function(lambda x: all_of(x, 1, names), input_signature=[tf.TensorSpec(shape)])
    found = function(as_float(SMALL))
    for name in names:
        expected = corruptions.corrupt(as_float(SMALL), name, 3, seed=1)
        np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_in_a_graph_as_in_eager_mode():
    check_graph(NEED_SIZE, (None, *SMALL.shape[1:]))
    check_graph([name for name in NAMES if name not in NEED_SIZE], (None, None, None, 3))


@pytest.mark.slow
def test_images_of_unknown_size():
    check_graph(("contrast", "gaussian_blur", "gaussian_noise"), (None, None, None, 3))
    undecided = tf.function(lambda x: corruptions.contrast(x, 3))
    with pytest.raises(ValueError, match=r"Argument `severity_of` must .*graph"):
        undecided.get_concrete_function(tf.TensorSpec((None, None, None, 3)))
    told = {"severity_of": "cifar10-c"}
    for name in NEED_SIZE:
        function = tf.function(lambda x, name=name: corruptions.corrupt(x, name, 3, **told))
        with pytest.raises(ValueError, match="height and width that are known"):
            function.get_concrete_function(tf.TensorSpec((None, None, None, 3)))


@pytest.mark.slow
def test_compiled():
    able = [name for name in NAMES if name not in ("jpeg_compression", "shot_noise")]
    found = tf.function(lambda x: all_of(x, 1, able), jit_compile=True)(as_float(SMALL))
    for name in able:
        expected = corruptions.corrupt(as_float(SMALL), name, 3, seed=1)
        np.testing.assert_allclose(found[name], expected, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"jpeg_compression", "shot_noise"}))
def test_gradients(name):
    x = tf.constant(as_float(SMALL) * 0.5 + 0.25)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(corruptions.corrupt(x, name, 1) ** 2)
    gradient = tape.gradient(total, x)
    assert np.isfinite(gradient).all() and np.any(gradient != 0)


# --- Severities -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_severities_grow(name):
    """Noise over 12,288 values leaves the fall, at least 0.7 dB, no chance of 1 in 1e9 to turn."""
    images = as_float(IMAGES)
    found = [corruptions.corrupt(images, name, severity) for severity in range(1, 6)]
    errors = [float(tf.reduce_mean((each - images) ** 2)) for each in found]
    if name not in NOT_STEADY:
        assert errors == sorted(errors), errors
    assert len(set(errors)) >= 4
    # The affine part shrinks while the field grows, and pixels move no further behind glass.
    if name not in ("elastic_transform", "glass_blur", "spatter"):
        assert errors[4] > 1.5 * errors[0]


# --- What is refused --------------------------------------------------------------------------


def refused(argument, call, *args, **kwargs):
    with pytest.raises(ValueError, match=rf"(?s)Argument `{argument}` must .*Received: "):
        call(*args, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_severities_that_are_none(name):
    for severity in (0, 6, -1, 2.0, True, "3", None):
        refused("severity", corruptions.corrupt, IMAGES, name, severity)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES[None],
        IMAGES[0, 0],
        IMAGES[..., :2],
        IMAGES.astype("int32"),
        IMAGES > 100,
        IMAGES.astype("float32"),
        as_float(IMAGES) - 0.5,
        np.full((1, 4, 4, 1), np.nan),
        "image.png",
        [[1.0], [2.0, 3.0]],
        None,
    ],
    ids=str,
)
def test_images_that_are_none(images):
    refused("images", corruptions.contrast, images, 3)


def test_severities_of_no_benchmark():
    refused("severity_of", corruptions.fog, IMAGES, 3, severity_of="imagenet")
    refused("severity_of", corruptions.decolor, IMAGES, 3, severity_of="imagenet")
    told = {"severity_of": "imagenet-c"}
    refused("severity_of", corruptions.contrast, IMAGES, factor=0.5, **told)
    refused("severity_of", corruptions.motion_blur, IMAGES, kernel_size=3, **told)


def test_unknown_corruptions():
    with pytest.raises(ValueError, match=r"one of 'brightness', .*Received: name='rain'"):
        corruptions.corrupt(IMAGES, "rain", 3)
    with pytest.raises(TypeError):
        corruptions.corrupt(IMAGES, "snow", 3, amount=0.3)


@pytest.mark.parametrize("seed", [-1, 1.5, "now", None, tf.constant([1.0, 2.0]), np.arange(3)])
def test_seeds_that_are_none(seed):
    refused("seed", corruptions.fog, IMAGES, 3, seed=seed)


BAD = {
    "gaussian_noise": {"stddev": (0, -0.1, float("nan"), "1")},
    "shot_noise": {"photons": (0, -5, None)},
    "impulse_noise": {"amount": (-0.1, 1.1, "1"), "salt": (-0.1, 2), "whole_pixels": (1, None)},
    "speckle_noise": {"stddev": (0, -0.1)},
    "gaussian_blur": {"sigma": (0, -1), "kernel_size": (0, 2, 2.5)},
    "defocus_blur": {"radius": (0, float("inf"))},
    "motion_blur": {"kernel_size": (0, 4, 1.5), "angle": ("left", float("nan"))},
    "zoom_blur": {"max_factor": (1, 0.5, "2")},
    "dirty_lens": {"amount": (-0.1, 1.5)},
    "brightness": {"amount": (-1.1, 2, float("nan"), "1")},
    "contrast": {"factor": (-0.1, 1.5)},
    "decolor": {"amount": (-0.1, 1.5)},
    "pixelate": {"scale": (0, 1.5, "1")},
    "jpeg_compression": {"quality": (0, 101, 50.0)},
}
BESIDE_SEVERITY = ("salt", "whole_pixels", "angle")


@pytest.mark.parametrize("name", BAD)
def test_options_out_of_range(name):
    for option, values in BAD[name].items():
        severity = 3 if option in BESIDE_SEVERITY else None
        for value in values:
            if value is not None or option == "whole_pixels":
                refused(option, corruptions.corrupt, IMAGES, name, severity, **{option: value})
    strength = next(iter(set(BAD[name]) - set(BESIDE_SEVERITY)))
    refused("severity", corruptions.corrupt, IMAGES, name, 3, **{strength: 0.5})
