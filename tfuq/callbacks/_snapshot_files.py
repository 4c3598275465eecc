"""Files of a training's snapshots: their names, the list of them, and which of them stay."""

import math
import re
from typing import NamedTuple

import keras

from tfuq._arguments import check_integer, shown
from tfuq._files.reading import DAMAGE, check_fields, json_text, read_json, sealed, unsealed
from tfuq._files.writing import written_whole
from tfuq._version import __version__

MANIFEST = "snapshots.json"
FORMAT = 1
MAX_BYTES = 2**22  # of a manifest: some 20,000 snapshots
NAME = re.compile(r"cycle_\d{3,}_step_\d{8,}\.weights\.h5")


class Snapshot(NamedTuple):
    """The weights at the end of a cycle.

    Args:
        file: Name of the file in the directory.
        cycle: How many cycles were over, from 1.
        step: How many steps the optimizer had taken.
        epoch: Number of the epoch in which the cycle ended, from 0.
        value: What the logs of that epoch say of `monitor`; None if they say nothing, or nothing
            finite.
    """

    file: str
    cycle: int
    step: int
    epoch: int
    value: float | None = None


def latest(snapshots, keep):
    """The last `keep` of them in the order of their steps (Huang et al. 2017)."""
    return sorted(snapshots, key=lambda snapshot: snapshot.step)[-keep:]


def best(snapshots, keep, direction):
    """The `keep` of them with the highest `direction * value`, in the order of their steps.

    Of equals the later one stays; those without a value go first.
    """

    def merit(snapshot):
        value = -math.inf if snapshot.value is None else direction * snapshot.value
        return value, snapshot.step

    return latest(sorted(snapshots, key=merit)[-keep:], keep)


def snapshot_name(cycle, step):
    """Name of the file with the weights after `cycle` cycles and `step` steps."""
    return f"cycle_{cycle:03d}_step_{step:08d}.weights.h5"


def write_manifest(directory, snapshots, monitor, fingerprints=None):
    """Replaces the list of the snapshots in `directory` at once.

    `fingerprints` are those of the files, by their names, where they are known.
    """
    entries = [snapshot._asdict() for snapshot in snapshots]
    manifest = {"tfuq": __version__, "keras": keras.__version__, "format": FORMAT}
    known = {s.file: fingerprints[s.file] for s in snapshots if s.file in (fingerprints or {})}
    manifest |= {"monitor": monitor, "snapshots": entries, "files": known}
    text = json_text(sealed(manifest), indent=2, allow_nan=False)
    with written_whole(directory / MANIFEST) as path:
        path.write_text(text, encoding="utf-8")


def read_manifest(directory):
    """The snapshots that `directory` lists, and the name of their value; none, without a list."""
    return _read_manifest(directory)[:2]


def read_fingerprints(directory):
    """What is known of the files that `directory` lists: hash and size, by their names."""
    return _read_manifest(directory)[2]


def _read_manifest(directory):
    path = directory / MANIFEST
    if not path.is_file():
        return [], None, {}
    try:
        manifest = unsealed(read_json(path, MAX_BYTES))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {shown(manifest['format'])} instead of {FORMAT}")
        check_fields(manifest, ("tfuq", "keras", "format", "monitor", "snapshots", "files"))
        snapshots = [_entry(**entry) for entry in manifest["snapshots"]]
        return snapshots, manifest["monitor"], dict(manifest.get("files", {}))
    except DAMAGE as error:
        raise ValueError(
            f"Argument `directory` must hold a {MANIFEST} as SnapshotEnsemble writes it, or none: "
            "choose another directory, or remove the file, which gives up the snapshots. "
            f"Received: directory={str(directory)!r} ({type(error).__name__}: {error})"
        ) from error


def _entry(file, cycle, step, epoch, value):
    """A snapshot, if that is what the arguments describe."""
    for name, number in (("cycle", cycle), ("step", step), ("epoch", epoch)):
        check_integer(name, number, 0)
    if file != snapshot_name(cycle, step):  # so no name leads elsewhere
        raise ValueError(f"file {shown(file)} instead of {snapshot_name(cycle, step)!r}")
    if value is not None and not math.isfinite(value):
        raise ValueError(f"value {shown(value)} instead of a finite number or null")
    return Snapshot(file, cycle, step, epoch, value)


def delete_unlisted(directory, snapshots):
    """Deletes what has the name of a snapshot and is none of `snapshots`."""
    listed = {snapshot.file for snapshot in snapshots}
    for path in directory.iterdir():
        if NAME.fullmatch(path.name) and path.name not in listed:
            path.unlink()
