"""Pictures in data URIs, which a page can hold within itself."""

import base64

import numpy as np
import tensorflow as tf

from tfuq._predictions.masks import stretched

SIDE = 80  # pixels, at most
QUALITY = 92
PICTURES = 3e6  # bytes, of all pictures of a page


def picture_of(image, budget):
    """A picture at its own size, or as large as `budget` bytes allow: a dict for the page.

    Returns:
        `uri`, its `width` and `height` in pixels, and the size that it had, `of`. Small ones are
        PNG, to the bit but for the stretching; others JPEG.
    """
    image = _shaped(image)
    size = image.shape[1::-1]
    if max(size) <= SIDE:
        return _described("png", tf.io.encode_png(_pixels(image)), size, size)
    now = size
    while True:
        encoded = tf.io.encode_jpeg(_pixels(image), quality=QUALITY, chroma_downsampling=False)
        bytes_ = len(encoded.numpy()) * 4 / 3  # in base64
        if bytes_ <= budget or max(now) <= SIDE:
            return _described("jpeg", encoded, now, size)
        shrink = min(0.9, (budget / bytes_) ** 0.5)
        now = tuple(max(1, int(shrink * side)) for side in now)
        image = tf.image.resize(image, now[::-1], antialias=True).numpy()


def _described(kind, encoded, now, size):
    return {"uri": _uri(kind, encoded), "width": now[0], "height": now[1], "of": list(size)}


def _shaped(image):
    """The picture `(height, width, 1 or 3)` in [0, 1]."""
    image = np.asarray(image)
    image = stretched(image[None], (1, *image.shape[:2]))[0]
    return image[..., None] if image.ndim == 2 else image


def _pixels(image):
    return np.clip(np.rint(255 * image), 0, 255).astype("uint8")


def _uri(kind, encoded):
    return f"data:image/{kind};base64,{base64.b64encode(encoded.numpy()).decode()}"
