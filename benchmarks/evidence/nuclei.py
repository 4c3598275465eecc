"""Nuclei of cells, pixel by pixel: a set that scripts of classes can run, too.

What three stages of EfficientNet-Lite0 give at a place is the place's row of features; its class
is whether it is of a nucleus. Images under fluorescence train, choose and test; stained tissue is
near, retinas are far. Rows of an image stand one after another, and are drawn together.
"""

import numpy as np
from sklearn.decomposition import PCA

from evidence import images, measures, rows
from evidence.features import BATCH, trunk

NAME = "Nuclei"
STAGES = "block2_add", "block4_add", "block7_add"  # 32, 16 and 8 places wide, of 128 pixels
GRID, PLACES, TRAINED = 32, 128, 64  # of an image: wide; that are judged; that train
SIZES = {"test": 100, "validation": 60, "train": 0}
STRANGE, WIDE = 50, 128  # images of each kind; pixels


def maps(network, x):
    """Features of each place: (rows, GRID, GRID, channels)."""
    import keras

    inside = keras.Model(network.input, [network.get_layer(name).output for name in STAGES])
    found = inside.predict(x.astype("float32"), batch_size=BATCH, verbose=0)
    wide = [
        each.repeat(GRID // each.shape[1], 1).repeat(GRID // each.shape[2], 2) for each in found
    ]
    return np.concatenate(wide, axis=-1)


def masks(file, chosen):
    """Which places are of a nucleus for the most part: (rows, GRID, GRID)."""
    bits = np.unpackbits(file["mask_packed"][chosen], axis=1)
    blocks = bits.reshape(-1, GRID, WIDE // GRID, GRID, WIDE // GRID)
    return (blocks.mean(axis=(2, 4)) > 0.5).astype("int64")


def drawn(values, count, rng):
    """`count` places of each image, one image after another."""
    flat = values.reshape(len(values), GRID * GRID, -1)
    places = np.stack([rng.permutation(GRID * GRID)[:count] for _ in flat])
    return places, np.take_along_axis(flat, places[..., None], 1).reshape(-1, flat.shape[-1])


class Pixels:
    """As `tasks.Task`: parts of rows of features, in the same projection, and labels."""

    name, key, classes, cluster = NAME, NAME, 2, PLACES
    identity = target_risk = None  # of the files as they are given out; there is no rule

    def __init__(self, folder):
        file, network = images.read(folder, "dsb2018_nuclei_128_jpeg"), trunk(folder)
        jpeg = {"image_bytes": file["bytes"], "image_offsets": file["offsets"]}
        modality = file["modality"]
        kept = images.split_rows(np.flatnonzero(modality == 0), SIZES)
        strange = np.flatnonzero(modality == 2)[:STRANGE]
        retinas = images.read(folder, "idrid_grading_128_jpeg")
        raw, self.y, rng = {}, {}, np.random.default_rng(0)
        for part, chosen in {**kept, "near": strange}.items():
            count = TRAINED if part == "train" else PLACES
            found = maps(network, images.decoded(jpeg, "image", chosen))
            places, raw[part] = drawn(found, count, rng)
            if part != "near":
                truth = masks(file, chosen).reshape(len(chosen), -1)
                self.y[part] = np.take_along_axis(truth, places, 1).ravel()
        eyes = images.decoded(retinas, "test", range(STRANGE))
        raw["far"] = drawn(maps(network, eyes), PLACES, rng)[1]
        pca = PCA(svd_solver="full").fit(raw["train"])
        scale = np.sqrt(pca.explained_variance_.mean())
        self.x = {part: (pca.transform(v) / scale).astype("float32") for part, v in raw.items()}
        self.counts = {part: len(values) for part, values in raw.items()}

    def plan(self, seed):
        return rows.Plan(None, 0.0, rows.STAGES, seed, len(self.x["train"]), self.classes)


def dice(probs, labels):
    """Of each image: 2 |A and B| / (|A| + |B|), 1 where both are empty."""
    said, truth = (v.reshape(-1, PLACES) for v in (probs.argmax(-1) == 1, labels == 1))
    sizes = said.sum(1) + truth.sum(1)
    return np.where(sizes == 0, 1.0, 2 * (said & truth).sum(1) / np.maximum(sizes, 1))


def resampled(labels):
    """A function for `paired.differences`, of which images are drawn, with all of their places."""

    def of(run, weights):
        each = {part: np.repeat(w, PLACES, axis=1) for part, w in weights.items()}
        found = measures.resampled(run, labels, each)
        values = dice(run["test"], labels["test"])
        return {**found, "dice": weights["test"] @ values / len(values)}

    return of
