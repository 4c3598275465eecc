"""Exports as the command line reads them: whole, of a known origin, and all called in one way."""

import pathlib

import numpy as np
import tensorflow as tf

from tfuq._files.declared import remember
from tfuq.export._files import METADATA, card_of, metadata_of, read_metadata
from tfuq.export._runtimes import RUNTIMES, as_file_takes
from tfuq.export.signing import check_signature, signature_of

FILES = (".onnx", ".tflite")  # as `export_onnx` and `export_litert` write them


class FileModel:
    """A file of another runtime with the interface of a loaded SavedModel.

    Attributes:
        signatures: Dict of `"serving_default"`, a function of tensors by name.
        variables: A mark of the file in place of weights, which are within it.
    """

    def __init__(self, path, about):
        self.signatures = {"serving_default": Signature(path, about)}
        digest = about["files"][next(iter(about["files"]))]["sha256"]
        self.variables = [np.frombuffer(bytes.fromhex(digest), "uint8")]


class Signature:
    """What a file takes and returns, called as a signature of a SavedModel is."""

    def __init__(self, path, about):
        self._run = RUNTIMES[about["kind"]](path)
        given, told = about["signature"]["inputs"], about["outputs"]
        self.structured_input_signature = ((), {name: _spec(x) for name, x in given.items()})
        self.structured_outputs = {name: _spec(x) for name, x in told.items()}

    def __call__(self, **tensors):
        arrays = {name: as_file_takes(np.asarray(tensor)) for name, tensor in tensors.items()}
        return {name: tf.constant(array) for name, array in self._run(arrays).items()}


def _spec(info):
    return tf.TensorSpec(info["shape"], info["dtype"])


def checked_export(path, key=None):
    """Metadata of an export all of whose files are as written, and signed, if a `key` is given.

    Args:
        path: Folder or file.
        key: None, or the path of a public key (PEM, Ed25519).

    Raises:
        ValueError: If a file is missing, altered, or none of the export; or the signature is
            missing or another's.
    """
    path = pathlib.Path(path)
    about = read_metadata(path)
    if path.is_dir():
        known = {*about["files"], METADATA, f"{METADATA}.sig"}
        there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        if there - known:
            raise ValueError(
                "Argument `path` must hold files as written. Received: "
                f"path={str(path)!r}, with {sorted(there - known)[0]}, which `export` did not write"
            )
    if key is not None:
        check_signature(path, key)
    return about


def size_of(path):
    """Files of an export and their bytes: the model's, its card, metadata and signature."""
    path = pathlib.Path(path)
    beside = metadata_of(path), card_of(path), signature_of(path)
    files = [file for file in {path, *path.rglob("*"), *beside} if file.is_file()]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def load_export(path, key=None):
    """A folder or file of `tfuq export` as a SavedModel is, with what is declared of it."""
    path = pathlib.Path(path)
    about = checked_export(path, key)
    model = tf.saved_model.load(str(path)) if path.is_dir() else FileModel(path, about)
    remember(model, {name: about.get(name) for name in ("class_names", "inputs")})
    return model
