"""Small pictures as PNG in data URIs, which a page can hold within itself."""

import base64

import numpy as np
import tensorflow as tf

from tfuq._predictions.masks import stretched

SIDE = 80  # pixels, at most


def thumbnail(image):
    """The data URI of a picture `(height, width[, 1 or 3])`, from its least to its largest number.

    It is never enlarged.
    """
    image = np.asarray(image)
    image = stretched(image[None], (1, *image.shape[:2]))[0]
    image = image[..., None] if image.ndim == 2 else image
    if max(image.shape[:2]) > SIDE:
        options = {"preserve_aspect_ratio": True, "antialias": True}
        image = tf.image.resize(image, (SIDE, SIDE), **options).numpy()
    pixels = np.clip(np.rint(255 * image), 0, 255).astype("uint8")
    png = base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
    return f"data:image/png;base64,{png}"
