"""Files of arrays beside a JSON header: read without running anything, never larger than they are.

They are NumPy archives, not compressed, of arrays of floating point numbers.
"""

import pathlib
import sys
import zipfile

import numpy as np

from tfuq._files.reading import json_text, open_arrays, parsed
from tfuq._files.writing import written_whole


def write_arrays(path, header, arrays):
    """Writes a dict that JSON can hold and a dict of arrays to the file `path`, whole or not."""
    with written_whole(pathlib.Path(path)) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, header=np.array(json_text(header)), **arrays)


def read_arrays(path):
    """The header and the arrays; a file that does not hold them raises one of `DAMAGE`."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed")
    with open_arrays(path) as file:
        arrays = dict(file)
    for name, array in arrays.items():
        if array.dtype.kind != ("U" if name == "header" else "f"):
            raise ValueError(f"{name} holds {array.dtype}")
    return parsed(text_of(arrays.pop("header"))), arrays


def text_of(array):
    """The text of an array of one; NumPy makes texts of numbers that are no characters, too."""
    points = np.ascontiguousarray(array).view("uint32")
    if array.ndim or np.any(points > sys.maxunicode):
        raise ValueError("the header is not text")
    return str(array)


def check_shapes(arrays, shapes, sizes):
    """Raises ValueError unless the arrays are finite and have the axes `{name: axes}`.

    Axes of one name have one size; `sizes` are those that are known.
    """
    if arrays.keys() != shapes.keys():
        raise ValueError(f"arrays {sorted(arrays)}, not {sorted(shapes)}")
    sizes = dict(sizes)
    for name, axes in shapes.items():
        array = arrays[name]
        fits = array.ndim == len(axes) and 0 not in array.shape
        if fits:
            named = zip(axes, array.shape, strict=True)
            fits = all(sizes.setdefault(axis, size) == size for axis, size in named)
        if not fits or not np.all(np.isfinite(array)):
            raise ValueError(f"{name} must be finite, of shape {axes}, not {array.shape}")
