"""Requests that no server should answer, each with the refusal that is due."""

import io
import json
import re
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

PNG, JPEG, NPY, JSON = "image/png", "image/jpeg", "application/x-npy", "application/json"


class Malformed(NamedTuple):
    """A body, or a function that makes an iterator of its parts, and the refusal of it."""

    body: object
    content_type: str
    status: int
    error: str


def kinds(pixels, limit):
    """`{name: Malformed}`, from one good image `(height, width[, channels])` of uint8.

    `limit` is the server's for the size of a body, in bytes.
    """
    floats = (pixels / 255).astype("float32")
    png, jpeg, npy = image_file(pixels, "PNG"), image_file(pixels, "JPEG"), npy_file(floats)
    larger = np.pad(pixels, [(0, 1), (0, 0), (0, 0)][: pixels.ndim])
    parts = [b"x" * 2**16] * (limit // 2**16 + 2)
    nested = json.dumps(floats.tolist())
    return {
        "wrong shape, image": Malformed(image_file(larger, "PNG"), PNG, 422, "wrong_shape"),
        "wrong channels": Malformed(_other_channels(pixels), PNG, 422, "wrong_shape"),
        "16 bits per pixel": Malformed(_deep(pixels), PNG, 422, _error_of_deep(pixels)),
        "wrong shape, array": Malformed(npy_file(floats[:-1]), NPY, 422, "wrong_shape"),
        "wrong shape, JSON": Malformed(_json([0.5, 0.5]), JSON, 422, "wrong_shape"),
        "ragged lists": Malformed(b'{"instances": [[[0], [0, 1]]]}', JSON, 422, "wrong_shape"),
        "NaN, array": Malformed(npy_file(_with(floats, np.nan)), NPY, 422, "not_finite"),
        "infinity, array": Malformed(npy_file(_with(floats, np.inf)), NPY, 422, "not_finite"),
        "beyond float32": Malformed(
            npy_file(_with(floats.astype("float64"), 1e300)), NPY, 422, "not_finite"
        ),
        "NaN, JSON": Malformed(_json(_with(floats, np.nan).tolist()), JSON, 422, "not_finite"),
        "1e999, JSON": Malformed(
            b'{"instances": [' + _first(nested, "1e999") + b"]}", JSON, 422, "not_finite"
        ),
        "huge, says so": Malformed(b"".join(parts), PNG, 413, "too_large"),
        "huge, does not say": Malformed(lambda: iter(parts), PNG, 413, "too_large"),
        "huge, claims pixels": Malformed(_bomb(50_000), PNG, 413, "too_large"),
        "huge, claims less": Malformed(_bomb(9_000), PNG, 413, "too_large"),
        "truncated PNG": Malformed(png[: len(png) * 3 // 4], PNG, 400, "truncated"),
        "PNG without its end": Malformed(png[:-12], PNG, 400, "truncated"),
        "damaged PNG": Malformed(_damaged(png), PNG, 400, "truncated"),
        "truncated JPEG": Malformed(jpeg[:-8], JPEG, 400, "truncated"),
        "truncated array": Malformed(npy[:-3], NPY, 400, "truncated"),
        "more than an array": Malformed(npy + b"more", NPY, 400, "malformed"),
        "truncated JSON": Malformed(_json(floats.tolist())[:-5], JSON, 400, "malformed"),
        "deep JSON": Malformed(b"[" * 200_000, JSON, 400, "malformed"),
        "text as PNG": Malformed(b"This is not an image.", PNG, 415, "not_an_image"),
        "noise as JPEG": Malformed(bytes(range(256)) * 8, JPEG, 415, "not_an_image"),
        "PNG as JPEG": Malformed(png, JPEG, 415, "not_an_image"),
        "pickled objects": Malformed(_pickled(), NPY, 422, "wrong_dtype"),
        "text, JSON": Malformed(_json("an image"), JSON, 422, "wrong_dtype"),
        "no instance": Malformed(b'{"instances": []}', JSON, 422, "wrong_shape"),
        "a list, JSON": Malformed(b"[1, 2]", JSON, 400, "malformed"),
        "empty": Malformed(b"", PNG, 400, "empty"),
        "a form": Malformed(
            png, "application/x-www-form-urlencoded", 415, "unsupported_media_type"
        ),
        "no type": Malformed(png, None, 415, "unsupported_media_type"),
        **_hostile_json(pixels, limit),
        **_hostile_arrays(floats),
        **_hostile_images(pixels),
    }


def _hostile_json(pixels, limit):
    """Texts that take long or much to parse, or are of a kind that nobody expects."""

    def many(part):
        """As much of it as the server takes at all, and no more."""
        return b'{"instances": [' + part * ((limit - 100) // len(part)) + b"0]}"

    one, deep = (pixels / 255).tolist(), b"[" * 500 + b"]" * 500 + b","
    return {
        "pairs of brackets": Malformed(many(b"[],"), JSON, 413, "too_large"),
        "objects, JSON": Malformed(many(b"{},"), JSON, 413, "too_large"),
        "numbers without end": Malformed(many(b"0,"), JSON, 413, "too_large"),
        "texts without end": Malformed(many(b'"",'), JSON, 413, "too_large"),
        "deep lists": Malformed(many(deep), JSON, 400, "malformed"),
        "a huge integer": Malformed(_json(1)[:-3] + b"9" * 9999 + b"]}", JSON, 400, "malformed"),
        "UTF-16": Malformed(
            json.dumps({"instances": [1]}).encode("utf-16"), JSON, 400, "malformed"
        ),
        "another key": Malformed(json.dumps({"inputs": one}).encode(), JSON, 400, "malformed"),
        "a batch, JSON": Malformed(_json([one]), JSON, 422, "wrong_shape"),
        "truth values, JSON": Malformed(_json((pixels > 99).tolist()), JSON, 422, "wrong_dtype"),
        "nothing, JSON": Malformed(b"null", JSON, 400, "malformed"),
    }


def _hostile_arrays(floats):
    """Headers of .npy files that are no headers, or of arrays that are none."""
    *rest, last = floats.shape
    start = "".join(f"{length}, " for length in rest)

    def header(shape, descr="'<f4'"):
        text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': ({start}{shape})}}"
        text = text.ljust(117) + "\n"
        return (
            b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + floats.tobytes()
        )

    found = {
        "truth values as lengths": Malformed(header("True"), NPY, 400, "malformed"),
        "negative lengths": Malformed(header("-1"), NPY, 400, "malformed"),
        "lengths with a point": Malformed(header(f"{last}.0"), NPY, 400, "malformed"),
        "lengths beyond memory": Malformed(header("10000000000000"), NPY, 422, "wrong_shape"),
        "a call in a header": Malformed(header("exit()"), NPY, 400, "malformed"),
        "complex numbers": Malformed(header(last, "'<c8'"), NPY, 422, "wrong_dtype"),
        "dates": Malformed(header(last, "'<M8[s]'"), NPY, 422, "wrong_dtype"),
        "another version": Malformed(b"\x93NUMPY\x09\x00" + b" " * 200, NPY, 400, "malformed"),
        "half of a header": Malformed(header(last)[:40], NPY, 400, "malformed"),
    }
    return found


def _hostile_images(pixels):
    """Files of other kinds than they say, or of more than one image."""
    first = Image.open(io.BytesIO(image_file(pixels, "PNG")))
    film, gif = io.BytesIO(), io.BytesIO()
    first.save(film, "PNG", save_all=True, append_images=[Image.new(first.mode, first.size, 255)])
    first.convert("L").save(gif, "GIF")
    return {
        "several images": Malformed(film.getvalue(), PNG, 422, "wrong_shape"),
        "GIF as PNG": Malformed(gif.getvalue(), PNG, 415, "not_an_image"),
    }


# --- Files ------------------------------------------------------------------------------------


def image_file(pixels, kind):
    file = io.BytesIO()
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    Image.fromarray(flat).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def npy_file(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def _json(instance):
    return json.dumps({"instances": [instance]}).encode()


def _with(array, value):
    array = array.copy()
    array.flat[array.size // 2] = value
    return array


def _first(nested, number):
    """JSON of nested lists with another first number."""
    return re.sub(r"[\d.][\d.e-]*", number, nested, count=1).encode()


def _other_channels(pixels):
    """The image in grey if it has colours, in colours if it is grey."""
    image = Image.open(io.BytesIO(image_file(pixels, "PNG")))
    file = io.BytesIO()
    image.convert("RGB" if image.mode == "L" else "L").save(file, "PNG")
    return file.getvalue()


def _deep(pixels):
    """A grey PNG with 16 bits per pixel."""
    return image_file(np.full(pixels.shape[:2], 40_000, "uint16"), "PNG")


def _error_of_deep(pixels):
    return "wrong_pixels" if pixels.ndim == 2 or pixels.shape[2] == 1 else "wrong_shape"


def _bomb(side):
    """A PNG of a hundred bytes that claims `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in chunks)


def _chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def _damaged(png):
    """One bit of the pixels the other way round."""
    place = png.index(b"IDAT") + 10
    return png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :]


def _pickled():
    return npy_file(np.array([{"an": "object"}], dtype=object), allow_pickle=True)
