"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
import os
import pathlib

_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def written_whole(path):
    """Gives a path in the same folder to write to; what is there in the end becomes `path` at once.

    It is on the disk before it gets its name: `path` is the old file or the new one, never a part.
    An error leaves the old one, and nothing else.
    """
    unfinished = path.with_name(_UNFINISHED + path.name)
    try:
        yield unfinished
        _flush(unfinished, os.O_RDWR)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system opens folders
        _flush(path.parent, os.O_RDONLY)


def _flush(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prepare_folder(name, folder):
    """Makes `folder` if need be, writes to it, and removes what a killed process left unfinished.

    Raises ValueError, which calls it the argument `name`, if that cannot be.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{_UNFINISHED}probe").write_bytes(b"probe")
        for path in folder.glob(f"{_UNFINISHED}*"):
            path.unlink()
    except OSError as error:
        raise ValueError(
            f"Argument `{name}` must be a folder that can be written to. "
            f"Received: {name}={str(folder)!r} ({error})"
        ) from error
