"""Vessels of retinas, place by place, as `evidence/nuclei.py` has nuclei; and made-up places.

Squares of 64 pixels of DRIVE, at twice their size: a place is 2 x 2 pixels. Rows of an image stand
one after another, whatever square they are of. 14 of the 20 images of its training part train, 6
choose; its 20 test images test, by the first of two raters.
"""

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

from evidence import images, nuclei, rows
from evidence.features import trunk

NAME = "Vessels"
SQUARE, SQUARES, TRAINED = 64, 8, 512  # pixels wide; of an image; places of an image that train
SIZES = {"validation": 6, "train": 14}


def squares(image, truth, view, rng):
    """Squares inside of the round view, at twice their size, and which places are vessels."""
    found, height, width = [], *truth.shape
    while len(found) < SQUARES:
        top, left = rng.integers(height - SQUARE), rng.integers(width - SQUARE)
        cut = slice(top, top + SQUARE), slice(left, left + SQUARE)
        if view[cut].all():
            large = Image.fromarray(image[cut]).resize((nuclei.WIDE, nuclei.WIDE), Image.BILINEAR)
            step = SQUARE // nuclei.GRID
            blocks = truth[cut].reshape(nuclei.GRID, step, nuclei.GRID, step)
            found.append((np.asarray(large), blocks.mean(axis=(1, 3)) > 0.5))
    return (np.stack(each) for each in zip(*found, strict=True))


class Vessels:
    """As `nuclei.Pixels`, of retinas."""

    name, key, classes, cluster = NAME, NAME, 2, nuclei.PLACES
    identity = target_risk = None

    def __init__(self, folder):
        file, network = images.read(folder, "drive_vessels_jpeg"), trunk(folder)
        shape, rng = tuple(file["shape"]), np.random.default_rng(0)
        raw, self.y = {}, {}
        chosen = images.split_rows(np.arange(20), SIZES)
        for part in ("train", "validation", "test"):
            group, mask = (
                ("test", "vessel_test_r1") if part == "test" else ("train", "vessel_train")
            )
            which = chosen.get(part, np.arange(20))
            x = images.decoded(file, group, which)
            truth, view = (
                np.unpackbits(file[name][which], axis=1)[:, : np.prod(shape)].reshape(-1, *shape)
                for name in (mask, f"fov_{group}")
            )
            count = (TRAINED if part == "train" else nuclei.PLACES) // SQUARES
            features, labels = [], []
            for image, vessel, inside in zip(x, truth, view, strict=True):
                cut, is_vessel = squares(image, vessel, inside, rng)
                places, values = nuclei.drawn(nuclei.maps(network, cut), count, rng)
                features.append(values)
                flat = is_vessel.reshape(SQUARES, -1)
                labels.append(np.take_along_axis(flat, places, 1).ravel())
            raw[part], self.y[part] = np.concatenate(features), np.concatenate(labels).astype(int)
        pca = PCA(svd_solver="full").fit(raw["train"])
        scale = np.sqrt(pca.explained_variance_.mean())
        self.x = {part: (pca.transform(v) / scale).astype("float32") for part, v in raw.items()}
        self.counts = {part: len(values) for part, values in raw.items()}

    plan = nuclei.Pixels.plan


class MadeUp:
    """Places of images whose labels follow from the features, half of them: no file is needed."""

    name = key = "made up"
    classes, identity, target_risk = 2, None, None

    def __init__(self, folder=None):
        rng, self.x, self.y = np.random.default_rng(0), {}, {}
        for part, count in (("train", 8), ("validation", 4), ("test", 6)):
            x = rng.normal(size=(count * nuclei.PLACES, 6))
            self.x[part] = x.astype("float32")
            self.y[part] = (x[:, 0] + rng.normal(size=len(x)) > 0).astype(int)
        self.counts = {part: len(values) for part, values in self.x.items()}

    def plan(self, seed):
        return rows.Plan(None, 0.0, rows.STAGES, seed, len(self.x["train"]), self.classes)
