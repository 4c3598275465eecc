"""Full and closed disks: an error that says what and what to do, and the last good file stays.

As root, or where user namespaces are allowed, the disks are real: small ones in memory. Everywhere,
a limit of the size of files stands for a full disk.
"""

import errno
import os
import resource
import subprocess

import numpy as np
import pytest
from artifacts import ARTIFACTS, BY_OTHERS, content_of, network, same

from tfuq.predictive import score_dataset

OWN = [name for name in ARTIFACTS if name not in BY_OTHERS]
FILLER = "filler"
IS_ROOT = os.geteuid() == 0


def mount(folder, *options):
    done = subprocess.run(
        ["mount", *options, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=8m", "tfuq-test")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, left):
    """Fills all of the disk but `left` bytes."""
    with open(disk / FILLER, "ab") as file:
        file.truncate(file.tell())
        space = os.statvfs(disk)
        file.write(b"x" * (space.f_bavail * space.f_frsize - left))


def refused_by_the_disk(write, path, number):
    """The error of `write`; it names the file or its folder, and says what to do."""
    with pytest.raises((OSError, ValueError)) as caught:
        write(path, number)
    text = str(caught.value)
    assert str(path) in text, text
    assert any(hint in text for hint in ("make space", "choose another", "must be a folder")), text
    return caught.value


def beside(folder):
    """What is in a folder, at any depth, but the filler."""
    return sorted(str(path) for path in folder.rglob("*") if path.name != FILLER)


@pytest.mark.slow_cases("exported")
@pytest.mark.slow_cases("litert", "rejection.csv")
@pytest.mark.parametrize("name", OWN)
def test_full(name, disk, counts):
    """With no space at all, and with some for a beginning."""
    artifact, path = ARTIFACTS[name], disk / name
    artifact.write(path, 0)
    before, names = content_of(path), beside(disk)
    said = artifact.read(path) if artifact.read else None
    for left in (0, 8192) if artifact.large else (0,):
        fill(disk, left)
        error = refused_by_the_disk(artifact.write, path, 1)
        assert getattr(error, "errno", errno.ENOSPC) == errno.ENOSPC
        assert content_of(path) == before
        assert beside(disk) == names
        os.unlink(disk / FILLER)
        counts("writes on a full disk")
    if said is not None:
        assert same(artifact.read(path), said)
    artifact.write(path, 1)  # once there is space, nothing is in the way


@pytest.mark.parametrize("name", OWN)
def test_new_on_a_full_disk(name, disk, counts):
    """Nothing of that name is there afterwards that a reader would take for one."""
    artifact, path = ARTIFACTS[name], disk / name
    fill(disk, 8192 if artifact.large else 0)
    refused_by_the_disk(artifact.write, path, 1)
    assert not content_of(path)
    counts("writes on a full disk")


@pytest.mark.slow_cases("litert", "rejection.csv")
@pytest.mark.parametrize("name", OWN)
def test_read_only(name, disk, counts):
    artifact, path = ARTIFACTS[name], disk / name
    artifact.write(path, 0)
    before, names = content_of(path), beside(disk)
    mount(disk, "-o", "remount,ro")
    refused_by_the_disk(artifact.write, path, 1)
    refused_by_the_disk(artifact.write, disk / f"new-{name}", 1)
    assert content_of(path) == before
    assert beside(disk) == names
    if artifact.read:
        artifact.read(path)
    counts("writes in a read-only folder", 2)


@pytest.mark.parametrize("name", [n for n in OWN if ARTIFACTS[n].large])
def test_largest_size_of_files(name, tmp_path, counts):
    """A full disk for everybody: no file may grow beyond two thousand bytes."""
    artifact, path = ARTIFACTS[name], tmp_path / name
    artifact.write(path, 0)
    before, names = content_of(path), beside(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        refused_by_the_disk(artifact.write, path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content_of(path) == before
    assert beside(tmp_path) == names
    counts("writes on a full disk")


@pytest.mark.parametrize("form", ["parquet", "tfrecord"])
def test_scores_go_on_when_there_is_space_again(form, disk, tmp_path, counts):
    """The shards that were written stay; in the end all is as on a disk with space."""
    data, model = np.random.default_rng(1).normal(size=(6000, 4)).astype("float32"), network()

    def score(path):
        score_dataset(model, data, path, shard_size=2000, format=form, verbose=0, batch_size=1000)

    score(tmp_path / "scores")
    expected = content_of(tmp_path / "scores")
    fill(disk, 2 * len(expected[str(tmp_path / f"scores/part-00000.{form}")]))
    refused_by_the_disk(lambda path, _: score(path), disk / "scores", None)
    names = [os.path.basename(name) for name in beside(disk / "scores")]
    assert names == ["_manifest.json", f"part-00000.{form}"]
    os.unlink(disk / FILLER)
    score(disk / "scores")
    assert list(content_of(disk / "scores").values()) == list(expected.values())
    counts("writes on a full disk")
