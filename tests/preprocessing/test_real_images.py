"""Heuristics of preprocessing on real, clean images: what is no mark, border or shadow stays.

The images are those of the folder that TFUQ_DATA names; a set that is not there is skipped. Shares
that are allowed leave room over what was measured, which stands beside them.
"""

import io
import os
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image
from skimage import exposure

from tfuq import preprocessing

COUNT = 100
# Measured with 300 images each: share of which more than a fifth of the middle would be painted
# over (before the middle was kept: .033, .057, .017, .157, .107, .000, .003, .000).
SETS = {
    "cifar10": ("cifar10_jpeg.npz", "test_", 0.02),
    "tiny-imagenet": ("tinyimagenet32_val_jpeg.npz", "test_", 0.03),
    "textures": ("ood32_dev_jpeg.npz", "dtd_", 0.02),
    "flowers": ("ood32_dev_jpeg.npz", "flowers_", 0.04),
    "skin": ("ham10000_64_jpeg.npz", "test_", 0.01),
    "fundus": ("idrid_grading_128_jpeg.npz", "test_", 0.0),
    "nuclei": ("dsb2018_nuclei_128_jpeg.npz", "", 0.01),
    "vessels": ("drive_vessels_jpeg.npz", "test_", 0.0),
}
GREY = {
    "brain": "brain_mri_64.npz",
    "chest": "pneumoniamnist_28.npz",
    "mnist": "mnist.npz",
    "fashion": "fashion_mnist_part.npz",
    "letters": "notmnist_test.npz",
    "characters": "omniglot_small28.npz",
}


def opened(file):
    folder = os.environ.get("TFUQ_DATA")
    path = pathlib.Path(folder or ".") / file
    if not folder or not path.exists():
        pytest.skip(f"TFUQ_DATA names no folder with {file}")
    return np.load(path)


def colour_images(name, count=COUNT):
    """Up to `count` images of the set, spread over it."""
    file, group, _ = SETS[name]
    with opened(file) as data:
        packed, offsets = data[f"{group}bytes"], data[f"{group}offsets"]
    chosen = np.unique(np.linspace(0, len(offsets) - 2, count).astype(int))
    files = (packed[offsets[i] : offsets[i + 1]].tobytes() for i in chosen)
    return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in files])


def grey_images(name, count=COUNT):
    with opened(GREY[name]) as data:
        arrays = [key for key in data.files if data[key].dtype == np.uint8 and data[key].ndim >= 3]
        assert arrays, data.files
        images = data[arrays[0]]
    return images[:: max(1, len(images) // count)][:count].reshape(-1, *images.shape[1:3], 1)


def middle(mask):
    height, width = mask.shape[1:3]
    rows, columns = slice(height // 4, -(height // 4)), slice(width // 4, -(width // 4))
    return np.asarray(mask)[:, rows, columns].mean(axis=(1, 2))


@pytest.mark.parametrize("name", SETS)
def test_clean_images_lose_nothing_in_the_middle(name, record_property):
    images = colour_images(name, 8 if name == "vessels" else COUNT)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, mask = preprocessing.remove_confounders(images, return_mask=True)
    assert len(told) <= 1
    share = np.asarray(mask).mean(axis=(1, 2))
    record_property("painted", f"{share.mean():.4f} {np.mean(middle(mask) > 0.2):.4f}")
    assert share.max() < 0.3
    assert np.mean(middle(mask) > 0.2) <= SETS[name][2] + 0.02
    kept = ~np.asarray(mask)
    np.testing.assert_array_equal(np.asarray(found)[kept], images[kept])


def test_ink_on_skin_is_still_found():
    """Violet lines as of a pen, away from the middle of real lesions: most of them are painted."""
    images = colour_images("skin", 40)
    inked = images.copy()
    inked[:, 4:7, 6:50] = inked[:, 20:60, 57:60] = (70, 30, 150)
    where = np.any(inked != images, axis=-1)
    found = np.asarray(preprocessing.confounder_mask(inked))
    per_image = np.array([mask[ink].mean() for mask, ink in zip(found, where, strict=True)])
    assert np.mean(per_image > 0.9) > 0.6
    named = np.asarray(preprocessing.confounder_mask(inked, [(70 / 255, 30 / 255, 150 / 255)]))
    assert np.all(named[where])


@pytest.mark.parametrize("name", GREY)
def test_grey_images_need_a_word(name):
    """Shades are all that they have: nothing is painted over without being asked for."""
    images = grey_images(name, 20)
    with pytest.raises(ValueError, match="keep_shades"):
        preprocessing.remove_confounders(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = preprocessing.confounder_mask(images, keep_shades=False)
    assert np.asarray(mask).mean(axis=(1, 2)).max() < 0.3


@pytest.mark.parametrize("name", SETS)
def test_a_crop_cuts_off_no_bright_disc(name):
    """Of a fundus picture in a black frame the disc is left, whole; of other images all but what is
    dark along the border.
    """
    images = colour_images(name, 8 if name == "vessels" else 24)
    side = images.shape[1]
    frame = side // 4
    framed = np.pad(images, ((0, 0), (frame, frame), (2 * frame, frame), (0, 0)))
    size = images.shape[1:3]
    crops = {"pad_to_aspect_ratio": False}
    found = np.asarray(preprocessing.crop_fundus(framed, size, **crops)).astype(int)
    alone = np.asarray(preprocessing.crop_fundus(images, size, **crops)).astype(int)
    # The frame is gone, whatever else is: crops of both are the same, but for resampling.
    assert np.mean(np.abs(found - alone).mean(axis=(1, 2, 3)) < 12) >= 0.95
    bright = alone.mean() / images.mean()
    assert 0.9 < bright < 1.6


@pytest.mark.parametrize("name", SETS)
def test_light_is_evened_and_nothing_else(name):
    """A scene under a ramp of light comes nearer to the scene; without a flash it stays."""
    scene = colour_images(name, 4 if name == "vessels" else 12) / 255 * 0.6 + 0.35
    ramp = np.linspace(0.3, 1.0, scene.shape[2])[:, None]
    ambient = (0.6 * ramp * scene**2.2) ** (1 / 2.2)
    flash = (0.6 * ramp * scene**2.2 + 0.35 * scene**2.2) ** (1 / 2.2)
    sigma = scene.shape[2] / 16
    even = np.asarray(preprocessing.correct_illumination(ambient, flash, sigma=sigma))

    def unlike(images):
        """How far from the scene, whatever its brightness."""
        ratio = np.log(images.mean(-1)) - np.log(scene.mean(-1))
        return ratio.std(axis=(1, 2))

    assert np.mean(unlike(even) < 0.5 * unlike(ambient)) > 0.9
    same = preprocessing.correct_illumination(ambient, ambient, sigma=sigma)
    np.testing.assert_allclose(same, ambient, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar10", "skin", "fundus", "nuclei"])
def test_contrast_is_that_of_scikit_image(name):
    images = colour_images(name, 3) / 255
    found = np.asarray(preprocessing.clahe(images))
    for image, each in zip(images, found, strict=True):
        np.testing.assert_allclose(each, exposure.equalize_adapthist(image), atol=1e-4)
