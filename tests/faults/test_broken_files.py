"""Files that were cut off, altered or written by another version are refused, or say the same."""

import copy
import io
import json
import shutil

import numpy as np
import pytest
from artifacts import ARTIFACTS, files_of, same

READ = [name for name, artifact in ARTIFACTS.items() if artifact.read]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(name)`: the path of a whole artifact, and what it says."""
    folder, known = tmp_path_factory.mktemp("written"), {}

    def get(name):
        if name not in known:
            ARTIFACTS[name].write(folder / name, 0)
            known[name] = ARTIFACTS[name].read(folder / name)
        return folder / name, known[name]

    return get


@pytest.fixture
def copied(written, tmp_path):
    """`copied(name)`: the path of a copy, and what it says."""

    def get(name):
        path, said = written(name)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / name)
        return tmp_path / name, said

    return get


def answer(name, path):
    """What the artifact says, or None where it is refused by an error that names it."""
    try:
        return ARTIFACTS[name].read(path)
    except (ValueError, OSError) as error:
        assert path.name in str(error), f"{type(error).__name__}: {error}"
        assert isinstance(error, OSError) or "must" in str(error), error
        return None


@pytest.mark.slow_cases("exported")
@pytest.mark.slow_cases("litert")
@pytest.mark.parametrize("name", READ)
def test_cut_off(name, copied, counts):
    path, _ = copied(name)
    for file in files_of(path):
        whole = file.read_bytes()
        cuts = (0, 1, len(whole) // 4, len(whole) // 2, len(whole) - 9, len(whole) - 2)
        for cut in sorted({max(0, cut) for cut in cuts}):
            file.write_bytes(whole[:cut])
            assert answer(name, path) is None, (file, cut)
            counts("files cut off, all refused")
        file.write_bytes(whole)
        file.rename(path.parent / "away")
        if name != "snapshots" or file.suffix == ".h5":  # without its list there are no snapshots
            assert answer(name, path) is None, file
        (path.parent / "away").rename(file)


@pytest.mark.slow_cases("25-backup")
@pytest.mark.slow_cases("25-exported")
@pytest.mark.slow_cases("*-litert")
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("times", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_flipped_bytes(name, times, copied, counts):
    """Each is noticed, or changes nothing of what the artifact says."""
    path, said = copied(name)
    times = times // 4 if name == "exported" else times  # five files, hashed each time
    rng, refused = np.random.default_rng(times), 0
    for file in files_of(path):
        whole = file.read_bytes()
        for place in rng.choice(len(whole), min(times, len(whole)), replace=False):
            changed = bytearray(whole)
            changed[place] ^= 1 << rng.integers(8)
            file.write_bytes(changed)
            found = answer(name, path)
            assert found is None or same(found, said), (file, place)
            refused += found is None
            counts("bytes flipped")
        file.write_bytes(whole)
    counts("bytes flipped, of these refused", refused)
    assert same(ARTIFACTS[name].read(path), said)


# --- What JSON says -----------------------------------------------------------------------------


def in_text(content):
    return json.loads(content), lambda changed: json.dumps(changed).encode()


def in_arrays(entry, encode):
    """Of an `.npz` file that holds JSON as its array `entry`."""

    def read(content):
        with np.load(io.BytesIO(content)) as file:
            arrays = dict(file)
        text = arrays.pop(entry)
        head = json.loads(bytes(text) if text.dtype == "uint8" else str(text))

        def write(changed):
            new = io.BytesIO()
            np.savez(new, **{entry: encode(json.dumps(changed))}, **arrays)
            return new.getvalue()

        return head, write

    return read


HEADS = {
    "rule.json": ("", in_text, "format"),
    "calibration.json": ("", in_text, "format"),
    "conformal.json": ("", in_text, "format"),
    "detector.npz": ("", in_arrays("header", np.array), "format"),
    "backup": (
        "backup.npz",
        in_arrays("state", lambda text: np.frombuffer(text.encode(), "uint8")),
        "format",
    ),
    "ensemble": ("ensemble.json", in_text, "format"),
    "snapshots": ("snapshots.json", in_text, "format"),
    "exported": ("metadata.json", in_text, "format"),
    "scores.parquet": ("_manifest.json", in_text, "version"),
    "scores.tfrecord": ("_manifest.json", in_text, "version"),
}
OTHER_KINDS = [None, "x", -7, 1.5, [], {}, [[]], True]


@pytest.fixture
def head(copied):
    """`head(name)`: the path, what it says, its JSON, and a function that changes that."""

    def get(name):
        inside, reader, _ = HEADS[name]
        path, said = copied(name)
        file = path / inside if inside else path
        content, write = reader(file.read_bytes())
        if name != "exported":  # whose hash is not to be missed
            content.pop("sha256", None)  # as somebody would leave it out who changes the rest
        return path, said, content, lambda changed: file.write_bytes(write(changed))

    return get


def places(content, at=()):
    """The way to everything in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if key == "fitted_to":  # notes, of any kind
            continue
        yield (*at, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*at, key))


def changed_at(content, place, value):
    """A copy of nested dicts and lists with another value at a place; `...` takes it away."""
    content = found = copy.deepcopy(content)
    for key in place[:-1]:
        found = found[key]
    if value is ...:
        del found[place[-1]]
    else:
        found[place[-1]] = value
    return content


@pytest.mark.slow_cases("exported")
@pytest.mark.parametrize("name", HEADS)
def test_another_version_or_field(name, head, counts):
    path, said, content, change = head(name)
    version = HEADS[name][2]
    change(content)
    if name != "exported":
        assert same(ARTIFACTS[name].read(path), said)  # what follows is refused for its own sake
    others = [value for value in (0, 3, 99, "1", None, [1]) if value != content[version]]
    wrong = [{**content, version: value} for value in others]
    wrong += [{**content, "more": 1}, [content], {}, [], 7, "text", None]
    for each in wrong:
        change(each)
        assert answer(name, path) is None, each
        counts("files of another version or form, all refused")


# What may be None: it has not been fitted or looked for yet, and using it says so.
NOT_YET = {
    "calibration.json": [(("config", "temperature"), None)],
    "detector.npz": [(("threshold",), None)],
}


def kind_of(value):
    return "number" if type(value) in (int, float) else type(value)


@pytest.mark.slow_cases("40-backup")
@pytest.mark.slow_cases("*-exported")
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("times", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_wrong_types(name, times, head, counts):
    """Every entry replaced by one of each other kind, and left out: refused, or without effect."""
    path, said, content, change = head(name)
    cases = []
    for place in places(content):
        old = content
        for key in place:
            old = old[key]
        others = [other for other in OTHER_KINDS if kind_of(other) != kind_of(old)]
        is_shorter = place[:1] == ("shards",) and len(place) == 2  # a list of scores, of fewer
        cases += [(place, value) for value in [*([] if is_shorter else [...]), *others]]
    for place, value in NOT_YET.get(name, ()):
        cases.remove((place, value))
    chosen = np.random.default_rng(0).permutation(len(cases))[:times]
    for place, value in [cases[number] for number in chosen]:
        change(changed_at(content, place, value))
        found = answer(name, path)
        assert found is None or same(found, said), (place, value)
        counts("entries of a wrong type")
