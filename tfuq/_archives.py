"""Files of arrays beside a JSON header: read without running anything, never larger than they are.

They are NumPy archives, not compressed, of arrays of floating point numbers.
"""

import json
import math
import pathlib
import zipfile

import numpy as np

from tfuq._files import written_whole

# What reading a file that is damaged, or of another kind, may raise.
DAMAGE = (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile)


def write_arrays(path, header, arrays):
    """Writes a dict that JSON can hold and a dict of arrays to the file `path`, whole or not."""
    with written_whole(pathlib.Path(path)) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)


def read_arrays(path):
    """The header and the arrays; a file that does not hold them raises one of `DAMAGE`."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _check_member(archive, info)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("header"))), arrays


def _check_member(archive, info):
    """Raises unless the member is an array, not compressed, of the size that it claims."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{info.filename} has another version of the array format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        size = info.file_size - member.tell()
    if dtype.kind != ("U" if info.filename == "header.npy" else "f"):
        raise ValueError(f"{info.filename} holds {dtype}")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{info.filename} is not of the size of its shape {shape}")


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
