"""Files of images as pixels of 8 bits, whatever their format."""

import pathlib
import re

import numpy as np
import tensorflow as tf

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_BY_PILLOW = (".tif", ".tiff", ".webp")  # which TensorFlow does not decode
JPEG = b"\xff\xd8\xff"
_OF_8_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_NODES = re.compile(r"\{\{.*?\}\}|\[Op:.*")
# Images that nothing here reads: a person has to know that they were left out.
UNREAD = (
    *(".avif", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jp2"),
    *(".jxl", ".nii", ".pgm", ".ppm", ".psd", ".raw", ".svg", ".svs", ".tga"),
)


class UnreadableImage(ValueError):
    """A file that is no image of one picture with pixels of 8 bits; the message says why."""


def read_image(path, channels):
    """Pixels of a file, uint8 `(height, width, channels)`, or an `UnreadableImage`."""
    path = str(path)
    if pathlib.Path(path).suffix.lower() in _BY_PILLOW:
        return tf.constant(_read_by_pillow(path, channels))
    try:
        return _decoded(tf.io.read_file(path), channels)
    except (tf.errors.OpError, ValueError) as error:
        raise UnreadableImage(reason_of(error)) from None


def reason_of(error):
    """The first line of an error, without the names of TensorFlow's nodes and operations."""
    first = next(iter(str(error).strip().splitlines()), "")
    return _NODES.sub("", first).strip()[:200] or type(error).__name__


def _decoded(content, channels):
    """Pixels as Pillow, browsers and the server have them.

    TensorFlow's default for JPEG is a fast cosine transform, whose pixels differ by up to 18.
    """
    if content.numpy().startswith(JPEG):
        return tf.io.decode_jpeg(content, channels, dct_method="INTEGER_ACCURATE")
    return tf.io.decode_image(content, channels, expand_animations=False)


def _read_by_pillow(path, channels):
    try:
        from PIL import Image
    except ImportError:
        raise UnreadableImage("TIFF and WebP are read by Pillow: pip install pillow") from None
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UnreadableImage(f"it holds {image.n_frames} pictures, not one")
            if image.mode not in _OF_8_BITS:
                raise UnreadableImage(f"its pixels are {image.mode!r}, not of 8 bits")
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow raises of all kinds at what is damaged
        raise UnreadableImage(f"{type(error).__name__}: {error}"[:200]) from None
    return pixels[..., None] if channels == 1 else pixels
