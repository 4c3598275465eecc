"""The folder of an exported model: written whole or not at all, and known by its hashes."""

import contextlib
import errno
import hashlib
import json
import pathlib
import shutil
import tempfile

import tensorflow as tf

METADATA = "metadata.json"
FORMAT = 1
_OWN_HASH = "sha256_of_metadata"
_BLOCK = 2**20


def check_path(path, overwrite):
    """The path as `pathlib.Path`; ValueError if something is there that must stay."""
    path = pathlib.Path(path)
    if not path.exists():
        return path
    is_own = overwrite and (path / METADATA).is_file()
    if not path.is_dir() or (any(path.iterdir()) and not is_own):
        hint = "an exported model, to overwrite" if overwrite else "new or an empty folder"
        raise ValueError(f"Argument `path` must be {hint}. Received: path={str(path)!r}")
    return path


@contextlib.contextmanager
def folder_written_whole(path):
    """Gives a new folder beside `path`, which takes its place at the end; an error leaves nothing.

    Where the disk is full, the OSError says so.
    """
    with _disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}-", ignore_cleanup_errors=True
        ) as scratch:
            new = pathlib.Path(scratch, "new")
            new.mkdir()
            yield new
            old = pathlib.Path(scratch, "old")
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise


@contextlib.contextmanager
def _disk_errors(path):
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and "No space left" not in str(error):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            errno.ENOSPC,
            f"There is no space for the model: {free / 2**20:.0f} MB are left. Nothing was "
            "written; make space or export to another disk",
            str(path),
        ) from error


def hashes(folder):
    """`{relative path: {"sha256", "bytes"}}` of all files in a folder but the metadata."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / METADATA)
    return {file.relative_to(folder).as_posix(): _fingerprint(file) for file in files}


def _fingerprint(file):
    digest, size = hashlib.sha256(), 0
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"sha256": digest.hexdigest(), "bytes": size}


def hash_of_arrays(arrays):
    """SHA-256 of arrays, with their dtypes and shapes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_metadata(folder, content):
    """Writes what is known of a model, and the hashes of its files, beside it."""
    content = {"format": FORMAT, **content, "files": hashes(folder)}
    content[_OWN_HASH] = _hash_of(content)
    text = json.dumps(content, indent=2, allow_nan=False)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")


def _hash_of(content):
    content = {key: value for key, value in content.items() if key != _OWN_HASH}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_metadata(path):
    """The metadata of an exported model whose files are all as they were written, or ValueError."""
    path = pathlib.Path(path)
    try:
        content = json.loads((path / METADATA).read_text(encoding="utf-8"))
        known, files, own = content["format"], content["files"], content.get(_OWN_HASH)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"Argument `path` must be a folder that `export` wrote, with {METADATA}. "
            f"Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error
    if known != FORMAT:
        raise ValueError(
            f"Argument `path` must hold a model of format {FORMAT}, which this version knows. "
            f"Received: format {known!r}, written by tfuq {content.get('tfuq')!r}"
        )
    if own != _hash_of(content):
        raise ValueError(
            f"Argument `path` must hold files as written. Received: {METADATA} altered"
        )
    for name, expected in files.items():
        _check_file(path / name, name, expected)
    return content


def _check_file(file, name, expected):
    if not file.is_file():
        raise ValueError(f"Argument `path` must hold all files. Received: no {name}")
    found = _fingerprint(file)
    if found != expected:
        change = "truncated" if found["bytes"] < expected["bytes"] else "altered"
        raise ValueError(
            f"Argument `path` must hold files as written. Received: {name} {change}: SHA-256 "
            f"{found['sha256']} of {found['bytes']} bytes, expected {expected['sha256']} of "
            f"{expected['bytes']}"
        )
