"""Folders of images: which files are read, of which class, and which are left out and why."""

import collections
import concurrent.futures
from typing import NamedTuple

import numpy as np

from tfuq._images.files import IMAGES, UNREAD, UnreadableImage, read_image
from tfuq.cli._stderr import notice

_READERS = 8  # threads that decode images
_NOT_OURS = ("__MACOSX",)  # what macOS packs beside files


class Found(NamedTuple):
    """Images of a folder, in the order of their names."""

    files: list
    folders: list  # names of the sub-folders that are classes; None if there are none
    labels: np.ndarray | None  # of each file the number of its folder
    skipped: list  # dicts: `file` and `why`


def found_in(path):
    """`Found` of sub-folders, which are classes whatever is below them, or of images alone."""
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    folders = [f for f in folders if not f.name.startswith(".") and f.name not in _NOT_OURS]
    beside, skipped, others = _sorted_out(x for x in path.iterdir() if x.is_file())
    below = {}
    for folder in folders:
        below[folder.name], more, rest = _sorted_out(_files_below(folder))
        skipped, others = skipped + more, others + rest
    has_classes = any(below.values())
    if has_classes and beside:
        raise ValueError(
            "DATA must be a folder of images, or one of sub-folders of images. Received: "
            f"{path}, with images beside the folders {[f.name for f in folders[:5]]}"
        )
    if not has_classes and not beside:
        raise ValueError(f"DATA must hold images ({', '.join(IMAGES)}). Received: {path}")
    _tell_others(others)
    if not has_classes:
        return Found(beside, None, None, skipped)
    numbers = np.repeat(np.arange(len(below)), [len(part) for part in below.values()])
    files = [file for part in below.values() for file in part]
    return Found(files, list(below), numbers, skipped)


def readable(found, channels):
    """The same without the images that cannot be decoded, which are skipped.

    Each is decoded once for that, as rows of a table that is to be gone on with need their numbers
    before the first is predicted.
    """
    unreadable = _unreadable(found.files, channels)
    kept = [file not in unreadable for file in found.files]
    if not any(kept):
        raise ValueError(
            f"DATA must hold images that can be read. Received: {len(kept)}, of which none can, "
            f"such as {found.files[0]} ({unreadable[found.files[0]]})"
        )
    skipped = [{"file": str(file), "why": why} for file, why in unreadable.items()]
    files = [file for file in found.files if file not in unreadable]
    labels = None if found.labels is None else found.labels[kept]
    return Found(files, found.folders, labels, found.skipped + skipped)


def _files_below(folder):
    """Files of a folder and of those in it, but of hidden ones."""
    for file in folder.rglob("*"):
        inside = file.relative_to(folder).parts[:-1]
        if file.is_file() and not any(p.startswith(".") or p in _NOT_OURS for p in inside):
            yield file


def _sorted_out(files):
    """Images in the order of their names, those that are skipped, and what is no image."""
    images, skipped, others = [], [], []
    for file in sorted(files):
        suffix = file.suffix.lower()
        if suffix in IMAGES and not file.name.startswith("."):
            images.append(file)
        elif suffix in IMAGES:
            skipped.append(
                {"file": str(file), "why": "a hidden file, as macOS leaves beside others"}
            )
        elif suffix in UNREAD:
            skipped.append({"file": str(file), "why": f"images of the kind {suffix} are not read"})
        elif not file.name.startswith("."):
            others.append(file)
    return images, skipped, others


def _unreadable(files, channels):
    """Of the files that cannot be decoded the reasons, by file."""

    def why_not(file):
        try:
            read_image(file, channels)
        except UnreadableImage as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        reasons = zip(files, pool.map(why_not, files), strict=True)
        return {file: why for file, why in reasons if why is not None}


def _tell_others(others):
    if others:
        counts = collections.Counter(file.suffix.lower() or "no suffix" for file in others)
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.most_common(6))
        notice(f"no images: {len(others)} ({kinds}), such as {others[0]}")
