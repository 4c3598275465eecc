"""Files and folders that are there whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile

_UNFINISHED = ".unfinished-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def written_whole(path):
    """Gives a path in the same folder to write to; what is there in the end becomes `path` at once.

    It is on the disk before it gets its name: `path` is the old file or the new one, never a part.
    An error leaves the old one, and nothing else; where the disk is full or may not be written to,
    the OSError says so.
    """
    unfinished = path.with_name(_UNFINISHED + path.name)
    with disk_errors(path):
        try:
            yield unfinished
            _flush(unfinished, os.O_RDWR)
            os.replace(unfinished, path)
        finally:
            with contextlib.suppress(OSError):  # where it could not be made, or not be removed
                unfinished.unlink()
    with contextlib.suppress(OSError):  # not every system opens folders
        _flush(path.parent, os.O_RDONLY)


@contextlib.contextmanager
def disk_errors(path):
    """Says of a full or closed disk, in an OSError, what to do, whatever the writer raises."""
    try:
        yield
    except Exception as error:  # HDF5, TensorFlow and Arrow have kinds of their own
        number = _disk_errno(error)
        if number is None:
            raise
        hint = "choose another folder, or change its rights"
        if number in _FULL:
            there = next(folder for folder in path.absolute().parents if folder.exists())
            free = shutil.disk_usage(there).free / 2**20
            hint = f"{free:.1f} MB are left: make space, or choose another disk"
        raise OSError(
            number,
            f"{os.strerror(number)}; nothing was written, what was there before stays; {hint}",
            str(path),
        ) from error


def _disk_errno(error):
    """The number of the disk's own error; None if it is something else."""
    if isinstance(error, OSError) and error.errno in (*_FULL, *_CLOSED):
        return error.errno
    text = str(error)
    return next((n for n in (*_FULL, errno.EROFS) if os.strerror(n) in text), None)


def _flush(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Folders ------------------------------------------------------------------------------------


@contextlib.contextmanager
def folder_written_whole(path):
    """Gives a new folder beside `path`, which takes its place at the end; an error leaves nothing.

    A full disk, or one that may not be written to, is told by an OSError.
    """
    with scratch_beside(path) as scratch:
        new = scratch / "new"
        new.mkdir()
        yield new
        put_in_place({new: path}, scratch)


@contextlib.contextmanager
def scratch_beside(path):
    """Gives a folder on the disk of `path` that is gone at the end, with all that is left in it."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}-", ignore_cleanup_errors=True
        ) as scratch:
            yield pathlib.Path(scratch)


def put_in_place(moves, scratch):
    """Renames all, `{new: path}`, or none; what stood at a path goes to `scratch`."""
    done, old = [], {path: scratch / f"old-{i}" for i, path in enumerate(moves.values())}
    try:
        for new, path in moves.items():
            if path.exists():
                path.rename(old[path])
            done.append(path)
            new.rename(path)
    except OSError:
        for path in done:
            if path.is_file():
                path.unlink()
            if old[path].exists():
                old[path].rename(path)
        raise


def prepare_folder(name, folder):
    """Makes `folder` if need be, writes to it, and removes what a killed process left unfinished.

    Raises ValueError, which calls it the argument `name`, if that cannot be.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / f"{_UNFINISHED}probe").write_bytes(b"probe")
        finally:
            for path in folder.glob(f"{_UNFINISHED}*"):
                path.unlink()
    except OSError as error:
        raise ValueError(
            f"Argument `{name}` must be a folder that can be written to. "
            f"Received: {name}={str(folder)!r} ({error})"
        ) from error
