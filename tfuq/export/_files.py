"""Files of an export, a folder or one file: where they may go, and their hashes."""

import contextlib
import hashlib
import pathlib

from tfuq._arguments import shown
from tfuq._files.reading import DAMAGE, fingerprint, hash_of, json_text, read_json
from tfuq._files.writing import put_in_place, scratch_beside
from tfuq.export._card import CARD, card_text

METADATA = "metadata.json"
FORMAT = 1
# Endings by which people, and programs, tell what a file is: none of them that of another kind.
OF_OTHERS = (
    *(".h5", ".hdf5", ".json", ".keras", ".lite", ".md", ".npz", ".onnx", ".pb", ".pt", ".pth"),
    *(".tflite", ".xml", ".zip"),
)
_OWN_HASH = "sha256_of_metadata"


def check_path(path, overwrite):
    """The path as `pathlib.Path`; ValueError if something is there that must stay."""
    path = pathlib.Path(path)
    _check_ending(path, "of a folder, without one", ())
    if not path.exists():
        return path
    is_own = overwrite and (path / METADATA).is_file()
    if not path.is_dir() or (any(path.iterdir()) and not is_own):
        hint = "an exported model, to overwrite" if overwrite else "new or an empty folder"
        raise ValueError(f"Argument `path` must be {hint}. Received: path={str(path)!r}")
    return path


def check_file(path, overwrite, endings):
    """The path of a model in one file as `pathlib.Path`; ValueError if what is there must stay.

    And if its ending is none of `endings`, the first of which is the usual one, but another's.
    """
    path = pathlib.Path(path)
    _check_ending(path, f"such as model{endings[0]}", endings)
    beside = metadata_of(path)
    is_there = path.exists() or beside.exists()
    if is_there and not (overwrite and not path.is_dir() and _is_metadata(beside)):
        hint = "an exported model, to overwrite" if overwrite else "a new file"
        raise ValueError(f"Argument `path` must be {hint}. Received: path={str(path)!r}")
    return path


def _check_ending(path, wanted, own):
    if path.suffix.lower() in OF_OTHERS and path.suffix.lower() not in own:
        raise ValueError(
            f"Argument `path` must be the name {wanted}: `export` writes a folder, `export_litert` "
            f"a .tflite file, `export_onnx` an .onnx file. Received: path={str(path)!r}"
        )


def _is_metadata(file):
    try:
        return _OWN_HASH in read_json(file)
    except DAMAGE:
        return False


@contextlib.contextmanager
def file_written_whole(path, content, card):
    """Gives a path beside `path` to write a model to, which takes its place at the end.

    So do what is known of the model, a dict `content`, and its card. An error leaves nothing.
    """
    with scratch_beside(path) as scratch:
        new = scratch / "new" / path.name
        new.parent.mkdir()
        yield new
        write_metadata(new, content, card)
        places = (metadata_of, card_of, lambda file: file)
        put_in_place({place(new): place(path) for place in places}, scratch)


def metadata_of(path):
    """Where the metadata of a model is: in its folder, or beside its file."""
    return path / METADATA if path.is_dir() else path.with_name(f"{path.name}.json")


def card_of(path):
    """Where the card of a model is: in its folder, or beside its file."""
    return path / CARD if path.is_dir() else path.with_name(f"{path.name}.md")


def hashes(path):
    """`{relative path: {"sha256", "bytes"}}` of a file, or all in a folder but the metadata."""
    if path.is_file():
        return {path.name: fingerprint(path)}
    folder = path
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / METADATA)
    return {file.relative_to(folder).as_posix(): fingerprint(file) for file in files}


def hash_of_arrays(arrays):
    """SHA-256 of arrays, with their dtypes and shapes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_metadata(path, content, card):
    """Writes what is known of a model, its card, and the hashes of its files, beside it."""
    card_of(path).write_text(card_text(content, card), encoding="utf-8")
    content = {"format": FORMAT, **content, "files": hashes(path)}
    content["model_card"] = fingerprint(card_of(path))
    content[_OWN_HASH] = _hash_of(content)
    text = json_text(content, indent=2, allow_nan=False)
    metadata_of(path).write_text(text + "\n", encoding="utf-8")


def _hash_of(content):
    return hash_of({key: value for key, value in content.items() if key != _OWN_HASH})


def read_metadata(path):
    """The metadata of an exported model whose files are all as they were written, or ValueError."""
    path = pathlib.Path(path)
    beside = metadata_of(path)
    try:
        content = read_json(beside)
        known, files, own = content["format"], content["files"], content.get(_OWN_HASH)
    except DAMAGE as error:
        raise ValueError(
            f"Argument `path` must be a folder that `export` wrote, with {METADATA}, or a "
            "file of `export_litert` or `export_onnx`, with one that ends in .json beside it. "
            f"Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error
    if known != FORMAT:
        versions = content.get("versions")
        writer = versions.get("tfuq") if isinstance(versions, dict) else None
        raise ValueError(
            f"Argument `path` must hold a model of format {FORMAT}, which this version knows. "
            f"Received: path={str(path)!r}, format {shown(known)}, written by tfuq {shown(writer)}"
        )
    if own != _hash_of(content):
        raise ValueError(
            "Argument `path` must hold files as written. "
            f"Received: path={str(path)!r}, {beside.name} altered"
        )
    for name, expected in files.items():
        # A file may have been given another name, with what is beside it.
        _check_file(path, path / name if beside.parent == path else path, name, expected)
    card = card_of(path)
    if card.is_file() and content.get("model_card") is not None:
        _check_file(path, card, card.name, content["model_card"])
    return content


def _check_file(path, file, name, expected):
    if not file.is_file():
        raise ValueError(
            f"Argument `path` must hold all files. Received: path={str(path)!r}, no {name}"
        )
    present = fingerprint(file)
    if present != expected:
        change = "truncated" if present["bytes"] < expected["bytes"] else "altered"
        raise ValueError(
            f"Argument `path` must hold files as written. Received: path={str(path)!r}, {name} "
            f"{change}: SHA-256 {present['sha256']} of {present['bytes']} bytes, expected "
            f"{expected['sha256']} of {expected['bytes']}"
        )
