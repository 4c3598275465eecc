"""Test-time augmentation: one stack per seed, flips undone per pixel, nothing else changed."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq import predictive
from tfuq.layers import MCDropout, VBLLDense
from tfuq.predictive import decompose

augmented = predictive.test_time_augmentation
IMAGES = np.random.default_rng(0).random((7, 4, 6, 2)).astype("float32")


def classifier(*layers, dtype="float32"):
    layers = layers or (keras.layers.Dense(3),)
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4, 6, 2), dtype=dtype)
    layers = keras.layers.Rescaling(1.0), keras.layers.Flatten(), *layers
    model = keras.Sequential([inputs, *layers])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def segmenter():
    keras.utils.set_random_seed(1)
    layer = keras.layers.Conv2D(3, 3, padding="same", activation="softmax")
    return keras.Sequential([keras.Input((None, None, 2)), layer])


def softmax(model, images):
    return keras.ops.softmax(model(images)).numpy()


def flip(images):
    return images[:, :, ::-1]


def turn(images):
    return np.rot90(images, axes=(1, 2))


def turn_back(masks):
    return np.rot90(masks, -1, axes=(1, 2))


def numpy_global(images):
    return images + np.random.normal(size=images.shape)  # noqa: NPY002


def numpy_seeded(images, seed):
    return images + np.random.default_rng(seed).normal(size=images.shape)


def in_place(images, *, seed):
    images += np.random.default_rng(seed).normal(size=images.shape)
    return images


AUGMENTATIONS = {
    "layer": lambda: keras.layers.RandomFlip("horizontal"),
    "layers": lambda: keras.Sequential(
        [keras.layers.GaussianNoise(0.1), keras.layers.RandomFlip(seed=3)]
    ),
    "NumPy": lambda: numpy_global,
    "NumPy, seed": lambda: numpy_seeded,
    "in place": lambda: in_place,
    "TensorFlow": lambda: tf.image.random_flip_left_right,
    "TensorFlow, seed": lambda: (
        lambda images, seed: tf.image.stateless_random_flip_left_right(images, (seed, 0))
    ),
}


@pytest.mark.slow_cases("layers", "NumPy, seed", "TensorFlow, seed", "in place")
@pytest.mark.parametrize("make", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_a_seed_gives_one_stack(make):
    model, augment = classifier(), make()
    stack = augmented(model, IMAGES, augment, 4, batch_size=3, seed=5)
    assert stack.shape == (4, 7, 3) and stack.dtype == np.float32
    np.testing.assert_allclose(stack[0], softmax(model, IMAGES), rtol=1e-5)
    assert np.ptp(stack[1:], axis=0).max() > 1e-3
    again = augmented(model, IMAGES, augment, 3, batch_size=3, seed=5, include_original=False)
    np.testing.assert_array_equal(again, stack[1:])
    other = augmented(model, IMAGES, augment, 4, batch_size=3, seed=6)
    assert np.abs(other[1:] - stack[1:]).max() > 1e-3


@pytest.mark.parametrize("name", ["layers", "NumPy", "TensorFlow"])
def test_random_state_stays(name):
    augment = AUGMENTATIONS[name]()

    def numbers():
        return (
            random.random(),
            np.random.random(),  # noqa: NPY002
            float(tf.random.uniform(())),
            float(keras.random.uniform(())),
        )

    def after(action):
        keras.utils.set_random_seed(3)
        tf.random.uniform(())
        action()
        return numbers()

    model = classifier()
    model(IMAGES)
    quiet = after(lambda: None)
    assert after(lambda: augmented(model, IMAGES, augment, 2)) == quiet
    if name == "layers":
        states = [variable.numpy() for variable in augment.variables]
        augmented(model, IMAGES, augment, 3, seed=2)
        for variable, state in zip(augment.variables, states, strict=True):
            np.testing.assert_array_equal(variable.numpy(), state)


def test_images_of_a_sample_are_flipped_each_by_itself():
    """Each of 40 images is flipped or not: all the same in 1 of 2^39 seeds."""
    images = np.repeat(IMAGES[:1], 40, axis=0)
    model = classifier()
    stack = augmented(
        model, images, keras.layers.RandomFlip("horizontal"), 1, include_original=False
    )
    expected = softmax(model, np.concatenate([images[:1], flip(images[:1])]))
    off = np.abs(stack[0][:, None] - expected).max(-1)
    assert set(off.argmin(1)) == {0, 1}
    np.testing.assert_allclose(off.min(1), 0, atol=1e-6)


def test_a_list_is_one_sample_each():
    model = classifier()
    stack = augmented(model, IMAGES, [flip, keras.layers.Rescaling(0.5)], batch_size=3)
    for found, images in zip(stack, (IMAGES, flip(IMAGES), 0.5 * IMAGES), strict=True):
        np.testing.assert_allclose(found, softmax(model, images), rtol=1e-5)


def test_masks_are_turned_back():
    """A prediction that follows the turned images is undone by turning it back."""
    model = segmenter()
    stack = augmented(model, IMAGES, [(flip, flip), (turn, turn_back), flip])
    assert stack.shape == (4, 7, 4, 6, 3)
    expected = [
        model(IMAGES),
        flip(model(flip(IMAGES))),
        turn_back(model(turn(IMAGES))),
        model(flip(IMAGES)),
    ]
    for found, masks in zip(stack, expected, strict=True):
        np.testing.assert_allclose(found, masks, atol=1e-6)
    # A kernel that is its own mirror image sees no difference.
    kernel = model.layers[0].kernel
    kernel.assign((kernel + kernel[:, ::-1]) / 2)
    stack = augmented(model, IMAGES, [(flip, flip)])
    np.testing.assert_allclose(decompose(stack).mutual_information, 0, atol=1e-6)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        images = IMAGES[3 * index : 3 * index + 3]
        return images, np.zeros(len(images))


DATA = {
    "pair": lambda: (IMAGES, np.zeros(7)),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(IMAGES).batch(3),
    "PyDataset": Batches,
}


@pytest.mark.parametrize("make", DATA.values(), ids=DATA)
def test_any_data(make):
    model = classifier()
    expected = augmented(model, IMAGES, numpy_seeded, 3, batch_size=3)
    found = augmented(model, make(), numpy_seeded, 3, batch_size=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_several_inputs():
    inputs = {"image": keras.Input((4, 6, 2), name="image"), "age": keras.Input((1,), name="age")}
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(inputs["image"]), inputs["age"]])
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(joined))
    data = {"image": IMAGES, "age": np.ones((7, 1))}
    stack = augmented(model, data, [lambda given: {**given, "image": flip(given["image"])}])
    np.testing.assert_allclose(stack[1], model({**data, "image": flip(IMAGES)}), atol=1e-6)


def test_summary_is_that_of_the_stack():
    model, options = classifier(), {"num_samples": 5, "batch_size": 3}
    found = augmented(model, IMAGES, numpy_seeded, summary=True, **options)
    expected = decompose(augmented(model, IMAGES, numpy_seeded, **options))
    for name, values in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), values, err_msg=name)


def test_labels_of_their_own():
    model = classifier()
    stack = augmented(model, IMAGES, [flip], from_logits=True, multi_label=True)
    np.testing.assert_allclose(stack[1], keras.ops.sigmoid(model(flip(IMAGES))), rtol=1e-5)


def test_one_of_several_outputs():
    x = keras.Input((4, 6, 2))
    outputs = {n: keras.layers.Dense(2)(keras.layers.Flatten()(x)) for n in ("mask", "grade")}
    model = keras.Model(x, outputs)
    stack = augmented(model, IMAGES, [flip], output="grade", from_logits=True)
    expected = keras.ops.softmax(model(IMAGES)["grade"])
    np.testing.assert_allclose(stack[0], expected, rtol=1e-5)


def test_random_weights_stand_still():
    """What differs is what the augmentation does, not the draws of the network."""
    model = classifier(MCDropout(0.5), VBLLDense(3, kl_weight=0.1))
    stack = augmented(model, IMAGES, [keras.layers.Identity(), flip])
    np.testing.assert_array_equal(stack[0], stack[1])
    assert np.abs(stack[2] - stack[0]).max() > 1e-3


def test_models_of_integers_get_rounded_images():
    model = classifier(dtype="uint8")
    images = np.full((2, 4, 6, 2), 10, "uint8")
    stack = augmented(model, images, [lambda images: images * 1.19])
    np.testing.assert_allclose(stack[1], softmax(model, np.full_like(images, 12)), rtol=1e-5)


def test_thirty_samples_are_the_default(capsys):
    assert augmented(classifier(), IMAGES, numpy_seeded, verbose=1).shape == (30, 7, 3)
    assert "1/1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, argument",
    [
        ({"augment": lambda images: images[:3]}, "augment"),
        ({"augment": lambda images: images[:, :2]}, "augment"),
        ({"augment": lambda images: images[..., 0]}, "augment"),
        ({"augment": lambda images: (images, images)}, "augment"),
        ({"augment": keras.layers.RandomCrop(2, 2)}, "augment"),
        ({"augment": None}, "augment"),
        ({"augment": "flip"}, "augment"),
        ({"augment": (flip, flip)}, "augment"),
        ({"augment": [], "num_samples": None}, "augment"),
        ({"augment": [(flip, 3)], "num_samples": None}, "augment"),
        ({"augment": [(flip, lambda p: p[:, :1])], "num_samples": None}, "augment"),
        ({"augment": [flip]}, "num_samples"),
        ({"num_samples": 1}, "num_samples"),
        ({"num_samples": 0, "include_original": False}, "num_samples"),
        ({"num_samples": 2.5}, "num_samples"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"model": "resnet"}, "model"),
        ({"x": IMAGES[:0]}, "x"),
    ],
)
def test_bad_input(change, argument):
    arguments = {"model": classifier(), "x": IMAGES, "augment": flip, "num_samples": 3}
    with pytest.raises(ValueError, match=rf"(?s)Argument `{argument}` must.*Received: "):
        augmented(**{**arguments, **change})


def test_models_that_do_not_know_their_inputs_take_other_sizes():
    class Pooled(keras.Model):
        def __init__(self):
            super().__init__()
            self.pool, self.head = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)

        def call(self, images):
            return self.head(self.pool(images))

    smaller = [lambda images: images[:, 1:, 1:]]
    with pytest.raises(ValueError, match="Argument `from_logits` must"):
        augmented(Pooled(), IMAGES, smaller)
    stack = augmented(Pooled(), IMAGES, smaller, from_logits=True)
    assert stack.shape == (2, 7, 3)
