"""Files that may be damaged or foreign: no code of theirs runs, no memory is taken on their word.

What is wrong with a file raises one of `DAMAGE`; the caller adds which file it is and what to do.
"""

import collections.abc
import contextlib
import hashlib
import json
import math
import os
import zipfile

import h5py
import keras
import numpy as np

from tfuq._files.declared import content_of, remember

# What reading a file that is damaged, or of another kind, may raise.
DAMAGE = (
    OSError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zipfile.zlib.error,
)
JSON_BYTES = 2**22  # of a list of files or a model's configuration, unless more is allowed
CONFIG_BYTES = 2**26
SMALL, EXPANSION = 2**26, 100  # what is compressed holds SMALL bytes, or EXPANSION times its size
_PACKAGES = ("keras", "keras_hub", "keras_cv", "keras_nlp", "builtins")
_SEAL = "sha256"
_BLOCK = 2**20


# --- JSON ---------------------------------------------------------------------------------------


def read_json(path, limit=JSON_BYTES):
    """What a JSON file of at most `limit` bytes says."""
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    return parsed(content.decode("utf-8"))


def parsed(text):
    """What a JSON text says; ValueError of whatever is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sealed(content):
    """A dict with its own hash in it, by which `unsealed` knows it."""
    return {**content, _SEAL: hash_of(content)}


def unsealed(content):
    """The dict without its hash; ValueError if that is another. There may be none."""
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__} instead of an object")
    content = dict(content)
    if _SEAL in content and content.pop(_SEAL) != hash_of(content):
        raise ValueError("it was altered after it was written: its SHA-256 differs")
    return content


def check_fields(content, known):
    """Raises ValueError if the dict holds something that this version does not know."""
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ValueError(f"unknown fields {unknown}")


def hash_of(content):
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json_text(content, sort_keys=True).encode()).hexdigest()


def json_text(content, **options):
    """`json.dumps`, where numbers may be NumPy's, as arguments that came from an array are."""
    return json.dumps(content, default=_plain, **options)


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def fingerprint(path):
    """SHA-256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"sha256": digest.hexdigest(), "bytes": size}


def check_fingerprint(path, expected):
    """Raises ValueError unless the file is the one that was written."""
    found = fingerprint(path)
    if found != expected:
        raise ValueError(f"it was altered after it was written: {found} instead of {expected}")


# --- Arrays -------------------------------------------------------------------------------------


class Arrays(collections.abc.Mapping):
    """The arrays of an open `.npz` file, which are read when they are asked for."""

    def __init__(self, archive):
        self._archive = archive
        self._infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    @property
    def files(self):
        return list(self._infos)

    def __iter__(self):
        return iter(self._infos)

    def __len__(self):
        return len(self._infos)

    def __getitem__(self, name):
        info = self._infos[name]
        with self._archive.open(info) as member:
            _check_header(member, info)
        with self._archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


@contextlib.contextmanager
def open_arrays(file):
    """The `Arrays` of an `.npz` file: each is of the size that it claims, and needs no pickle."""
    with zipfile.ZipFile(file) as archive:
        _check_sizes(archive)
        yield Arrays(archive)


def _check_header(member, info):
    """Raises ValueError unless what follows is an array as large as the member."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(member)
    if version not in readers:
        raise ValueError(f"{info.filename} has another version of the array format, {version}")
    try:
        shape, _, dtype = readers[version](member)
    except Exception as error:  # of all kinds, from the reader of Python literals in NumPy
        raise ValueError(f"{info.filename} has a broken header") from error
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which are never loaded")
    if math.prod(shape) * dtype.itemsize != info.file_size - member.tell():
        raise ValueError(f"{info.filename} is not of the size of its shape {shape}")


def _check_sizes(archive):
    """Raises ValueError unless the members are as large as the file can hold."""
    infos = archive.infolist()
    if len({info.filename for info in infos}) < len(infos):
        raise ValueError("two members of one name")
    archive.fp.seek(0, os.SEEK_END)
    if sum(info.compress_size for info in infos) > archive.fp.tell():
        raise ValueError("its members claim to be larger than the file")
    for info in infos:
        is_stored = info.compress_type == zipfile.ZIP_STORED
        most = info.compress_size if is_stored else max(SMALL, EXPANSION * info.compress_size)
        if info.file_size > most:
            raise ValueError(
                f"{info.filename} of {info.compress_size} bytes expands to {info.file_size}: "
                "write it without compression"
            )


# --- Models -------------------------------------------------------------------------------------


def load_keras(path, subject="A model"):
    """The model of a `.keras` file, of classes that are registered, in Keras' safe mode.

    Unlike Keras, it holds the weights to the checksums of the file. The ValueError of a file that
    does not load calls it `subject`.
    """
    try:
        content = content_of(_check_keras(path))
        model = keras.models.load_model(path, safe_mode=True)
        if content:
            remember(model, content)
        return model
    except Exception as error:  # of all kinds, from zipfile to what a class of the user raises
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise ValueError(
            f"{subject} must be a model that loads, a whole .keras file without code in it: write "
            "it again with `model.save`, import the module that registers its classes, and use no "
            f"Lambda. Received: {str(path)!r} ({type(error).__name__}: {lines[0][:500]})"
        ) from error


def _check_keras(path):
    """The configuration in the file, or an error."""
    with zipfile.ZipFile(path) as archive:
        _check_sizes(archive)
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged: its checksum does not match")
        if archive.getinfo("config.json").file_size > CONFIG_BYTES:
            raise ValueError(f"config.json of more than {CONFIG_BYTES} bytes")
        config = parsed(archive.read("config.json").decode("utf-8"))
        _check_classes(config)
        for info in archive.infolist():
            if info.filename.endswith(".h5"):
                with archive.open(info) as member:
                    check_weights(member)
    return config


def _check_classes(config):
    """Raises ValueError unless all classes are Keras' own or registered, whatever Keras does."""
    for item in config.values() if isinstance(config, dict) else config:
        if isinstance(item, (dict, list)):
            _check_classes(item)
    if not isinstance(config, dict) or not config.get("module"):
        return
    module, kind = str(config["module"]), config.get("class_name")
    if kind == "Lambda":
        raise ValueError("a Lambda, whose code is in the file")
    names = [config.get("registered_name"), config.get("config") if kind == "function" else kind]
    known = any(isinstance(n, str) and keras.saving.get_registered_object(n) for n in names)
    if module.partition(".")[0] not in _PACKAGES and not known:
        raise ValueError(f"{module}.{kind}, which is not registered with Keras")


def check_weights(file):
    """Raises unless the arrays of an HDF5 file are in it, as large as they claim."""
    with h5py.File(file, "r") as store:
        store.visititems(_check_dataset)


def _check_dataset(name, item):
    if not isinstance(item, h5py.Dataset) or h5py.check_vlen_dtype(item.dtype) is not None:
        return
    if item.external or item.is_virtual:
        raise ValueError(f"{name} lies in another file")
    if item.nbytes > max(SMALL, EXPANSION * item.id.get_storage_size()):
        raise ValueError(f"{name} claims to hold {item.nbytes} bytes, which are not there")
