"""Marks that were planted are found and painted over; what is no mark stays."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from sklearn.cluster import KMeans
from test_api import refused

from tfuq.preprocessing import ConfounderRemoval, confounder_mask, remove_confounders
from tfuq.preprocessing._blobs import joined, window_share
from tfuq.preprocessing._clusters import clusters, quantized

RNG = np.random.default_rng(1)
INK = (0.2, 0.2, 0.7)
TONE, LESION = np.array([0.8, 0.6, 0.5]), np.array([0.35, 0.2, 0.15])


def skin(count=3, side=48):
    """Skin with its grain, brighter on the right, and a small dark lesion in the middle."""
    rng = np.random.default_rng(0)
    tone = np.where(np.arange(side)[:, None] < side // 2, 0.8, 1.0) * TONE
    images = tone + rng.normal(scale=0.02, size=(count, side, side, 3))
    images[:, 20:30, 20:30] = LESION
    return images.clip(0, 1).astype("float32")


def marked(images):
    """The images with ink on each, somewhere else, and where it is."""
    images, where = images.copy(), np.zeros(images.shape[:3], bool)
    for number in range(len(images)):
        where[number, 4 + 5 * number : 7 + 5 * number, 3:40] = True
        where[number, 35:44, 8 * number : 8 * number + 4] = True
    images[where] = INK
    return images, where


CLEAN = skin()
MARKED, WHERE = marked(CLEAN)


# --- K-means ----------------------------------------------------------------------------------


def test_clusters_are_those_of_scikit_learn():
    """From the same points, weights and start: the same centres, as Lloyd's algorithm has it."""
    counts, sums = quantized(tf.constant(MARKED), tf.ones(MARKED.shape[:3]))
    centres, shares = clusters(counts, sums, 4)
    for i in range(len(MARKED)):
        used = counts[i].numpy() > 0
        points, weights = (sums[i] / counts[i][:, None]).numpy()[used], counts[i].numpy()[used]
        fit = KMeans(4, init=centres[i].numpy(), n_init=1).fit(points, sample_weight=weights)
        sizes = np.bincount(fit.labels_, weights, minlength=4) / weights.sum()
        np.testing.assert_allclose(fit.cluster_centers_, centres[i], atol=1e-4)
        np.testing.assert_allclose(sizes, shares[i], atol=1e-4)
        anew = KMeans(4, n_init=20, random_state=0).fit(points, sample_weight=weights)
        assert fit.inertia_ <= 1.2 * anew.inertia_  # the start is a good one
        assert np.all(np.diff(shares[i]) <= 0)


def test_quantized_colours_are_counted():
    counts, sums = quantized(tf.constant(MARKED), tf.ones(MARKED.shape[:3]))
    expected = [
        np.histogramdd(image.reshape(-1, 3)[:, ::-1], bins=8, range=[(0, 1)] * 3)[0].ravel()
        for image in MARKED
    ]
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose(tf.reduce_sum(sums, 1), MARKED.sum((1, 2)), rtol=1e-4)


# --- Masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"marker_colors": [(0, 1, 0), INK], "tolerance": 0.1}])
def test_mask_is_where_the_ink_is(options):
    np.testing.assert_array_equal(confounder_mask(MARKED, margin=0, **options), WHERE)
    np.testing.assert_array_equal(confounder_mask(MARKED[1], margin=0, **options), WHERE[1])
    assert not np.any(confounder_mask(CLEAN, **options))
    wider = tf.nn.max_pool2d(tf.cast(WHERE[..., None], "float32"), 5, 1, "SAME")[..., 0]
    np.testing.assert_array_equal(confounder_mask(MARKED, margin=2, **options), wider > 0)


def test_lesions_are_marks_only_without_shades_and_off_the_middle():
    lesion = np.all(LESION.astype("float32") == CLEAN, axis=-1)
    assert lesion[0].mean() < 0.1
    shades = {"keep_shades": False, "tolerance": 0.3}
    found = confounder_mask(CLEAN, **shades, margin=0, keep_middle=False)
    np.testing.assert_array_equal(found, lesion)
    assert not np.any(confounder_mask(CLEAN, **shades))
    aside = np.roll(CLEAN, 18, axis=2)
    np.testing.assert_array_equal(
        confounder_mask(aside, **shades, margin=0), np.roll(lesion, 18, axis=2)
    )
    # What is frequent is no mark.
    assert not np.any(confounder_mask(aside, **shades, min_share=0.04))


# --- What the picture was taken of ----------------------------------------------------------------


def coloured_lesion():
    """Skin with a lesion of a hue of its own in the middle, which looks like a mark."""
    images = CLEAN.copy()
    rows, columns = np.mgrid[:48, :48]
    where = (rows - 25) ** 2 + 1.7 * (columns - 24) ** 2 < 36
    images[:, where] = 0.55, 0.15, 0.45
    return images, where


def test_a_compact_blob_in_the_middle_is_never_ink():
    images, where = coloured_lesion()
    assert np.all(confounder_mask(images, keep_middle=False).numpy()[:, where])
    assert not np.any(confounder_mask(images))
    np.testing.assert_array_equal(remove_confounders(images), images)
    inked, ink = marked(images)
    free = ink & ~np.array([touches(where, each) for each in ink])
    found = confounder_mask(inked, margin=0).numpy()
    assert not found[:, where].any()
    np.testing.assert_array_equal(found[free], True)
    # What is named is a mark wherever it is.
    named = confounder_mask(images, [(0.55, 0.15, 0.45)], tolerance=0.05)
    assert np.all(named.numpy()[:, where])


def touches(blob, marks):
    """Those of the marks that are joined to the blob."""
    labels, _ = ndimage.label(marks | blob, np.ones((3, 3)))
    return marks & (labels == labels[25, 24])


def test_blobs_as_scipy_joins_them():
    flags = RNG.random((6, 40, 33, 1)) < 0.55
    seeds = flags & (RNG.random(flags.shape) < 0.01)
    found = joined(tf.constant(seeds), tf.constant(flags)).numpy()
    share = window_share(tf.constant(flags), 2).numpy()
    box = np.ones((5, 5))
    area = ndimage.convolve(np.ones((40, 33)), box, mode="constant")
    for number in range(6):
        whole = ndimage.binary_propagation(
            seeds[number, ..., 0], np.ones((3, 3)), mask=flags[number, ..., 0]
        )
        np.testing.assert_array_equal(found[number, ..., 0], whole)
        count = ndimage.convolve(1.0 * flags[number, ..., 0], box, mode="constant")
        np.testing.assert_allclose(share[number, ..., 0], count / area, atol=1e-5)


@pytest.mark.slow
def test_too_much_is_no_mark_and_said():
    images = CLEAN.copy()
    images[0, :, 32:] = INK  # a third
    with pytest.warns(UserWarning, match=r"1 of 3 images .*max_share=0.3.*marker_colors"):
        found, mask = remove_confounders(images, [INK], return_mask=True)
    assert not mask.numpy().any()
    np.testing.assert_array_equal(found, images)
    found, mask = remove_confounders(images, [INK], max_share=0.5, margin=0, return_mask=True)
    assert mask.dtype == tf.bool
    np.testing.assert_array_equal(mask[0], np.broadcast_to(np.arange(48) >= 32, (48, 48)))
    assert np.all(found[0, :, 32:] != images[0, :, 32:])
    graph = tf.function(lambda x: remove_confounders(x, [INK], return_mask=True))
    np.testing.assert_array_equal(graph(images)[0], images)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_mask_on_request(as_bytes):
    images = np.uint8(np.round(255 * MARKED)) if as_bytes else MARKED
    found, mask = remove_confounders(images, return_mask=True)
    np.testing.assert_array_equal(found, remove_confounders(images))
    np.testing.assert_array_equal(mask, confounder_mask(images))
    one, of_one = remove_confounders(images[0], return_mask=True)
    assert one.shape == images[0].shape and of_one.shape == images[0].shape[:2]


def test_grey_images():
    grey = CLEAN[..., :1].copy()
    grey[:, 5:8, 5:30] = 0.02
    expected = np.zeros(grey.shape[:3], bool)
    expected[:, 5:8, 5:30] = True
    black = confounder_mask(grey, [(0, 0, 0)], margin=0)
    np.testing.assert_array_equal(black, expected)
    rare = confounder_mask(grey, keep_shades=False, margin=0, tolerance=0.25)
    assert np.all(rare[expected])
    refused("keep_shades", confounder_mask, grey)
    refused("keep_shades", remove_confounders, grey)
    assert remove_confounders(grey, [(0, 0, 0)]).numpy().min() > 0.2


# --- Painting ---------------------------------------------------------------------------------


def test_removal_gives_the_clean_image_back():
    found = remove_confounders(MARKED).numpy()
    mask = confounder_mask(MARKED).numpy()
    np.testing.assert_array_equal(found[~mask], MARKED[~mask])
    assert np.abs(found - CLEAN)[WHERE].max() < 0.12  # four standard deviations, and a half bin
    assert np.abs(MARKED - CLEAN)[WHERE].max() > 0.5
    np.testing.assert_allclose(remove_confounders(MARKED[2]), found[2], atol=1e-6)


def test_cells_take_their_own_colour_or_that_of_the_image():
    image = np.full((16, 16, 3), 0.5, "float32")
    image[:8, :8] = 0.75
    image[1, 1] = image[12, 12] = 0, 0, 1
    image[:8, 8:] = 0, 0, 1  # a cell full of ink
    found = remove_confounders(image, [(0, 0, 1)], grid=2, margin=0).numpy()
    expected = np.full((16, 16, 3), 0.5, "float32")
    expected[:8, :8] = 0.75
    np.testing.assert_allclose(found, expected, atol=1e-6)
    ink = np.full((6, 6, 3), (0.0, 0, 1), "float32")
    with pytest.warns(UserWarning, match="max_share"):
        np.testing.assert_array_equal(remove_confounders(ink, [(0, 0, 1)]), ink)


def test_a_planted_confounder_does_not_decide_any_more():
    """A rule that has learned the ink, as a model does, is right by chance once it is gone."""
    labels = np.arange(20) % 2
    images = skin(20)
    images[labels == 1, 5:8, 5:30] = INK

    def by_ink(images):
        return (np.asarray(images)[..., 2] - np.asarray(images)[..., 0]).max(axis=(1, 2)) > 0.2

    assert np.mean(by_ink(images) == labels) == 1
    found = ConfounderRemoval(value_range=(0, 1))(images)
    assert np.mean(by_ink(found) == labels) == 0.5
    # Both classes look alike: the place of the ink is as on the others.
    means = [found.numpy()[labels == label, 5:8, 5:30].mean((0, 1, 2)) for label in (0, 1)]
    np.testing.assert_allclose(*means, atol=0.02)


# --- Layer ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_layer_in_graphs_and_pipelines():
    layer = ConfounderRemoval(value_range=(0, 255))
    expected = remove_confounders(MARKED)
    eight_bits = np.uint8(np.round(255 * MARKED))
    signature = tf.TensorSpec((None, None, None, 3), "float32")
    graph = tf.function(layer, input_signature=[signature], autograph=False)
    np.testing.assert_allclose(graph(255 * MARKED) / 255, expected, atol=1e-5)
    data = tf.data.Dataset.from_tensor_slices(eight_bits).map(layer)
    found = np.stack(list(data))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found / 255, expected, atol=0.02)
    assert layer(255 * MARKED[:0]).shape == (0, 48, 48, 3)


@pytest.mark.slow
def test_compiled():
    for marks in (None, [INK]):
        layer = ConfounderRemoval(marks, value_range=(0, 1))
        compiled = tf.function(layer, jit_compile=True)
        np.testing.assert_allclose(compiled(MARKED), layer(MARKED), atol=1e-5)


def test_bad_arguments():
    for value in (0, -1, None, float("inf")):
        refused("tolerance", ConfounderRemoval, tolerance=value)
    for value in (0, 2.5, None):
        refused("grid", ConfounderRemoval, grid=value)
        refused("num_colors", ConfounderRemoval, num_colors=value)
    refused("min_share", ConfounderRemoval, min_share=1.5)
    refused("keep_shades", ConfounderRemoval, keep_shades=None)
    refused("margin", ConfounderRemoval, margin=-1)
    refused("keep_middle", ConfounderRemoval, keep_middle=1)
    refused("return_mask", remove_confounders, MARKED, return_mask="yes")
    for value in (0, -0.1, 1.5, None, float("nan")):
        refused("max_share", ConfounderRemoval, max_share=value)
        refused("max_share", confounder_mask, MARKED, max_share=value)
    for value in ([], [(0, 0)], [(0, 0, 255)], (0, 0, 1), "blue", [(0, 0, float("nan"))]):
        refused("marker_colors", ConfounderRemoval, marker_colors=value)
