"""Reading of requests: inputs of the model from a body, or a refusal that says why.

Nothing is decoded or parsed before it is known how much memory that takes, nothing is unpickled,
and what is not a finite number stops here.
"""

import io
import math
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from tfuq.serving import json_texts
from tfuq.serving.refusals import Refused

IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG"}
JSON, NPY = "application/json", "application/x-npy"
TAKEN = (*IMAGES, NPY, JSON)
# Which modes of Pillow hold how many channels without loss.
MODES = {1: ("L", ("1", "L")), 2: ("LA", ("LA",)), 3: ("RGB", ("RGB", "P")), 4: ("RGBA", ("RGBA",))}
PNG_END = b"IEND\xaeB`\x82"
NPY_HEADER = 512  # that of a plain array has 118 bytes
DEEPER = 6  # levels of JSON beyond the axes: two are due, more is a mistake that is told as a shape
_OPENING = threading.Lock()


class InputSpec(NamedTuple):
    """What the model takes.

    `shape` is that of one input, None where any length will do; `pixel_range` is what 0 and 255 of
    an image become for a model of floating point inputs, None if nobody says it: such a model gets
    no images. `value_range` is what arrays must lie in, None where nothing is declared; `bounds`
    are the same with what rounding leaves, and `takes_integers` says whether arrays may hold such:
    the metadata of the export say both. `max_decoded` is how many bytes one input may have as the
    model takes it.
    """

    shape: tuple
    dtype: np.dtype
    pixel_range: tuple | None = None
    max_pixels: int = 2**24
    max_instances: int = 32
    value_range: tuple | None = None
    is_bgr: bool = False
    bounds: tuple | None = None
    takes_integers: bool = False
    max_decoded: int = 2**26


class Prepared(NamedTuple):
    """A body whose head is known, and nothing else: what reading it costs, and how to.

    `cost` is the memory in bytes that reading takes at most, the body not counted; `read` returns
    the list of inputs, of `spec.shape` and `spec.dtype`; `is_list` says whether they came as one.
    """

    cost: int
    read: Callable
    is_list: bool


def read(content_type, body, spec):
    """List of inputs of `spec.shape` and `spec.dtype`, and whether they came as a list."""
    prepared_body = prepared(content_type, body, spec)
    return prepared_body.read(), prepared_body.is_list


def prepared(content_type, body, spec):
    """The `Prepared` body of a request; `Refused` if its type or its head says enough."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in TAKEN:
        raise Refused(
            415,
            "unsupported_media_type",
            f"the Content-Type must be one of {', '.join(TAKEN)}, with the file itself as the "
            f"body; it was {kind[:80] or 'absent'}",
        )
    if not body:
        raise Refused(400, "empty", "the body is empty")
    if kind == JSON:
        cost = json_texts.cost_of(body, DEEPER + len(spec.shape), _most_items(spec))
        return Prepared(cost, lambda: _instances(body, spec), True)
    return _npy(body, spec) if kind == NPY else _image(body, IMAGES[kind], spec)


def _most_items(spec):
    """How many numbers and lists a JSON of inputs may hold."""
    if None in spec.shape:
        return json_texts.MOST_ITEMS
    lists = sum(math.prod(spec.shape[:axis]) for axis in range(len(spec.shape)))
    return 16 + spec.max_instances * (math.prod(spec.shape) + lists)


def _check_decoded(shape, spec):
    size = math.prod(shape) * spec.dtype.itemsize
    if size > spec.max_decoded:
        raise Refused(
            413,
            "too_large",
            f"the input would have {size} bytes once decoded, the limit is {spec.max_decoded}",
        )


# --- Images -----------------------------------------------------------------------------------


def _image(body, kind, spec):
    if len(spec.shape) not in (2, 3):
        raise Refused(415, "unsupported_media_type", "the model takes arrays, not images")
    if spec.pixel_range is None and spec.dtype.kind == "f":
        raise Refused(
            415,
            "unsupported_media_type",
            "the model does not declare what pixels become, and the server was not started with "
            "--pixel-range: send arrays",
        )
    image = _opened(body, kind)
    width, height = image.size
    if width * height > spec.max_pixels:
        raise Refused(
            413,
            "too_large",
            f"the image claims {width} x {height} pixels, the limit is {spec.max_pixels} pixels",
        )
    if getattr(image, "n_frames", 1) > 1:
        raise Refused(422, "wrong_shape", f"the file holds {image.n_frames} images, not one")
    channels = len(image.getbands()) if image.mode != "P" else 3
    check_shape((height, width, channels)[: len(spec.shape)], spec)
    mode, readable = MODES[spec.shape[2] or channels if len(spec.shape) == 3 else 1]
    if image.mode not in readable or (kind == "PNG" and body[24] > 8):  # the depth in its header
        raise Refused(
            422,
            "wrong_pixels",
            f"the image must have 8 bits for each of the channels {'+'.join(mode)}; its pixels "
            f"are of mode {image.mode}",
        )
    _check_decoded((height, width, len(mode)), spec)
    # Pillow holds 4 bytes per pixel, a progressive JPEG 2 per channel; then come the array, its
    # scaled copy and what is between.
    cost = width * height * (4 + len(mode) * (3 + 3 * max(spec.dtype.itemsize, 4)))
    return Prepared(cost, lambda: [_pixels(body, kind, image, mode, spec)], False)


def _pixels(body, kind, image, mode, spec):
    """The input that an image of the right size and mode holds."""
    _check_whole(body, kind, image)
    pixels = _decoded(body, kind, mode)
    if spec.is_bgr and pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    if spec.dtype.kind != "f":
        return pixels.reshape(_full(spec.shape, pixels)).astype(spec.dtype)
    low, high = spec.pixel_range
    scaled = low + (high - low) * (pixels.astype("float32") / 255)
    return scaled.reshape(_full(spec.shape, pixels)).astype(spec.dtype)


def _full(shape, pixels):
    """Shape of an input: that of the pixels, `(height, width)` or with channels."""
    rank = len(shape)
    return (*pixels.shape, 1)[:rank] if pixels.ndim == 2 else pixels.shape


def _opened(body, kind):
    """The image with its header read, and no pixel."""
    try:
        # That warnings are caught is known to the whole process: one at a time.
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we count ourselves
            return Image.open(io.BytesIO(body), formats=[kind])
    except Image.DecompressionBombError as error:
        raise Refused(413, "too_large", f"the image claims too many pixels: {error}") from error
    except Exception as error:  # Pillow's decoders raise what they like
        raise Refused(
            415, "not_an_image", f"the body is not an image of the type {kind} that was announced"
        ) from error


def _check_whole(body, kind, image):
    """Refuses a file without its end; a PNG also if a checksum is wrong."""
    if kind == "JPEG":
        # Inside of a scan (that begins with FF DA) FF D9 is the end, and nothing else.
        whole = body.rfind(b"\xff\xd9") > body.rfind(b"\xff\xda") > 0
    else:
        try:
            image.verify()
            whole = PNG_END in body  # whose checksum Pillow does not read
        except Exception:
            whole = False
    if not whole:
        raise Refused(400, "truncated", f"the {kind} is truncated or damaged")


def _decoded(body, kind, mode):
    try:
        image = _opened(body, kind)
        image.load()
        return np.asarray(image.convert(mode))
    except Refused:
        raise
    except Exception as error:
        raise Refused(400, "truncated", f"the {kind} is truncated or damaged") from error


# --- Arrays -----------------------------------------------------------------------------------


def _npy(body, spec):
    """The array of a .npy file, of which the header is read."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, is_fortran, dtype = readers[version](file, max_header_size=NPY_HEADER)
    except Exception as error:  # the header is a Python literal: what that can raise is a long list
        raise Refused(
            400, "malformed", "the body is not a .npy file with a plain header"
        ) from error
    if dtype.kind not in "iuf":  # among others, objects, which are pickled
        raise Refused(422, "wrong_dtype", f"the array must hold numbers; its dtype is {dtype}")
    if not all(type(length) is int and length >= 0 for length in shape):  # True is an int to NumPy
        raise Refused(
            400,
            "malformed",
            "the header of the .npy file must hold lengths of axes that are counts",
        )
    check_shape(shape, spec)
    _check_decoded(shape, spec)
    expected, found = math.prod(shape) * dtype.itemsize, len(body) - file.tell()
    if found != expected:
        word = "truncated" if found < expected else "malformed"
        raise Refused(
            400, word, f"the .npy file must have {expected} bytes of numbers; there are {found}"
        )
    if dtype.kind in "iu" and spec.value_range is not None and not spec.takes_integers:
        raise Refused(422, "wrong_range", _range_of(spec) + f"; the dtype of the array is {dtype}")
    offset, order = file.tell(), "F" if is_fortran else "C"
    cost = math.prod(shape) * (8 + 2 * spec.dtype.itemsize)  # checks, the cast and its copy

    def read_array():
        array = np.frombuffer(body, dtype, offset=offset)
        return [_cast(array.reshape(shape, order=order), spec)]

    return Prepared(cost, read_array, False)


def _instances(body, spec):
    """The arrays of `{"instances": [...]}`, as for TensorFlow Serving."""
    content = json_texts.parsed(body)
    if not isinstance(content, dict) or set(content) != {"instances"}:
        raise Refused(400, "malformed", 'the JSON must be {"instances": [input, ...]}')
    instances = content["instances"]
    if not isinstance(instances, list) or not 1 <= len(instances) <= spec.max_instances:
        raise Refused(
            422, "wrong_shape", f"`instances` must be a list of 1 to {spec.max_instances} inputs"
        )
    return [_instance(each, spec) for each in instances]


def _instance(nested, spec):
    try:
        array = np.asarray(nested)
    except (ValueError, OverflowError) as error:
        raise Refused(422, "wrong_shape", "the lists of an instance differ in length") from error
    if array.dtype.kind not in "iuf":
        raise Refused(422, "wrong_dtype", "an instance must hold numbers, in lists of equal length")
    check_shape(array.shape, spec)
    _check_decoded(array.shape, spec)
    return _cast(array, spec)


def check_shape(shape, spec):
    """Refuses an input that has not the shape of the model's inputs."""
    fits = len(shape) == len(spec.shape) and all(
        length == wanted if wanted is not None else length > 0
        for length, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in spec.shape)
        found = ", ".join(map(str, shape))
        raise Refused(
            422, "wrong_shape", f"the input must have shape ({wanted}); it has ({found[:80]})"
        )
    if math.prod(shape[:2]) > spec.max_pixels:
        raise Refused(413, "too_large", f"the input has more than {spec.max_pixels} pixels")


def _range_of(spec):
    low, high = spec.value_range
    return f"the input must hold numbers from {low:g} to {high:g}, which the model was fitted to"


def _cast(array, spec):
    """Numbers in the dtype of the model, if they are finite and fit in."""
    if not np.all(np.isfinite(array)):
        raise Refused(422, "not_finite", "the input holds NaN or infinity")
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype)
    if spec.dtype.kind == "f":
        if not np.all(np.isfinite(cast)):
            raise Refused(422, "not_finite", f"the input holds numbers too large for {spec.dtype}")
    elif array.dtype.kind == "f" or np.any(cast != array):
        raise Refused(422, "wrong_dtype", f"the input must hold integers that fit in {spec.dtype}")
    if spec.value_range is not None:
        low, high = spec.bounds or spec.value_range
        if np.any(cast < low) or np.any(cast > high):
            raise Refused(422, "wrong_range", _range_of(spec))
    return cast
