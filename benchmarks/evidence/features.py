"""Features of a frozen network, computed once and kept in a folder of the user's.

Every image takes the same way: to `SIZE` pixels (bilinear), through JPEG of quality 75 with 4:2:0,
through EfficientNet-Lite0 without its top. So no set is told from another by the codec of its
files; by how sharp it was before, it may still be, which the control on pixels shows.
"""

import hashlib
import importlib
import io
import os
import pathlib
import sys

import numpy as np
from PIL import Image

SIZE, QUALITY, BATCH = 96, 75, 64
BANDS = 8  # of DCT coefficients of 8 x 8 blocks, which the control of pixels reads


def one_codec(images):
    """uint8 images (rows, SIZE, SIZE, 3), whatever their size and codec were."""
    made = np.empty((len(images), SIZE, SIZE, 3), "uint8")
    for row, image in enumerate(images):
        small, file = Image.fromarray(image).resize((SIZE, SIZE), Image.BILINEAR), io.BytesIO()
        small.save(file, "JPEG", quality=QUALITY, subsampling=2)
        made[row] = np.asarray(Image.open(file))
    return made


def trunk(folder):
    """EfficientNet-Lite0 that knows ImageNet, from `pretrained.py` beside the data."""
    if not (pathlib.Path(folder) / "pretrained.py").is_file():
        raise FileNotFoundError(f"pretrained.py is missing in {folder}: name its folder, TFUQ_DATA")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("pretrained").efficientnet_lite0()
    finally:
        sys.path.remove(str(folder))


def dct_energies(images):
    """Log mean energy of the 64 DCT coefficients of 8 x 8 blocks, by channel: (rows, 192)."""
    from scipy.fft import dctn

    rows, height, width, channels = images.shape
    more = ((0, 0), (0, -height % BANDS), (0, -width % BANDS), (0, 0))  # the edges, once more
    images = np.pad(images, more, "edge")
    height, width = images.shape[1:3]
    shape = (rows, height // BANDS, BANDS, width // BANDS, BANDS, channels)
    blocks = images.reshape(shape).transpose(0, 1, 3, 5, 2, 4).astype("float32")
    energies = dctn(blocks, axes=(-2, -1), norm="ortho") ** 2
    return np.log(energies.mean(axis=(1, 2)).reshape(rows, -1) + 1e-3)


def pixels(images):
    """The pixels themselves in place of features, of images that are small, and their energies."""
    flat = images.reshape(len(images), -1).astype("float32") / 255
    return flat, dct_energies(images)


class Features:
    """Features of parts: those in `cache` are read, others computed and written there."""

    def __init__(self, folder, cache):
        self.folder, self.cache, self._network = folder, pathlib.Path(cache), None
        self.cache.mkdir(parents=True, exist_ok=True)

    def __call__(self, images):
        """Features (rows, 1280) and DCT energies (rows, 192), float32."""
        images = np.ascontiguousarray(images)
        sign = f"{images.shape}{SIZE}{QUALITY}".encode() + images.tobytes()
        path = self.cache / f"{hashlib.sha256(sign).hexdigest()[:24]}.npz"
        if not path.is_file():
            partial = path.with_suffix(f".{os.getpid()}.npz")  # two scripts may share a cache
            features, energies = self._compute(images)
            np.savez(partial, features=features.astype("float16"), energies=energies)
            partial.replace(path)
        with np.load(path) as file:
            return file["features"].astype("float32"), file["energies"]

    def _compute(self, images):
        self._network = self._network or trunk(self.folder)
        images = one_codec(images)
        features = self._network.predict(images, batch_size=BATCH, verbose=0)
        return features, dct_energies(images)
