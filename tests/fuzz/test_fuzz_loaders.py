"""Files that anybody may have written: loaders refuse them with a ValueError, and that is all."""

import copy
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from fuzz_loaders import accepts, clean_up, make_targets
from hypothesis import strategies as st

HERE = pathlib.Path(__file__).parent
FINDS = HERE / "finds"
VALUES = (
    None,
    True,
    0,
    -1,
    1,
    2**63,
    10**400,
    1e308,
    -0.0,
    "",
    "x",
    "\x00",
    [],
    {},
    [[]],
    [None],
    ["a", 1],
)
VALUES += ([1e400], float("nan"), float("inf"), {"a": {}}, [0] * 50, "0.5", [[0.5, 0.5]])


@pytest.fixture(scope="module")
def targets():
    yield make_targets()
    clean_up()


NAMES = (
    *("rule", "rule resealed", "rule text", "conformal", "conformal resealed", "calibration"),
    *("calibration resealed", "detector", "data", "data members", "jpeg members", "backup"),
    *(f"detector members {number}" for number in range(5)),
    *(
        f"{folder}{way}"
        for folder in ("ensemble", "snapshots", "scores")
        for way in ("", " resealed")
    ),
)


def test_all_targets_are_run(targets):
    assert sorted(targets) == sorted(NAMES)


@st.composite
def edited(draw, seeds):
    """A good file, with some bytes changed, cut, doubled; or, of JSON, with other values in it."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(("bytes", "bytes", "cut", "double", "json", "json", "json")))
        changed = _json(draw, data) if way == "json" else None
        data = _bytes(draw, data, way) if changed is None else changed
    return data


def _bytes(draw, data, way):
    if not data:
        return draw(st.binary(max_size=8))
    place = draw(st.integers(0, len(data) - 1))
    if way == "cut":
        return data[:place]
    if way == "double":
        return data[:place] + data[: place + 1]
    new = draw(st.binary(min_size=1, max_size=4))
    return data[:place] + new + data[place + len(new) * draw(st.integers(0, 1)) :]


def _json(draw, data):
    """JSON with one value changed, gone, or beside it another; None if it is no JSON."""
    try:
        content = json.loads(data)
    except ValueError:
        return None
    places = list(_places(content))
    if not places:
        return None
    holder, key = draw(st.sampled_from(places))
    way = draw(st.sampled_from(("set", "set", "set", "delete", "add")))
    value = copy.deepcopy(draw(st.sampled_from(VALUES)))
    if way == "set":
        holder[key] = value
    elif way == "delete":
        del holder[key]
    elif isinstance(holder, dict):
        holder["other"] = value
    else:
        holder.append(value)
    return json.dumps(content).encode()


def _places(content):
    pairs = content.items() if isinstance(content, dict) else ()
    pairs = enumerate(content) if isinstance(content, list) else pairs
    for key, value in list(pairs):
        yield content, key
        yield from _places(value)


def fuzz(loader, seeds, examples):
    """How many cases ran, and how many of these the loader took."""
    taken = []

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.seed(int(os.environ.get("TFUQ_FUZZ_SEED", 0)))
    @hypothesis.given(edited(seeds))
    def case(data):
        with np.errstate(all="ignore"):
            taken.append(accepts(loader, data))

    case()
    return len(taken), sum(taken)


@pytest.mark.slow_cases("rule")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_edited_files(name, targets, counts):
    loader, seeds = targets[name]
    assert all(accepts(loader, seed) for seed in seeds)
    cases, taken = fuzz(loader, seeds, 40)
    counts("fuzz cases", cases)
    counts("refused files", cases - taken)
    if "resealed" not in name and "members" not in name:
        assert taken < cases


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_edited_files_at_length(name, targets, counts):
    cases, taken = fuzz(*targets[name], 2000)
    counts("fuzz cases", cases)
    counts("refused files", cases - taken)


@pytest.mark.filterwarnings("ignore")
def test_earlier_finds(targets, counts):
    """What once came out as another error; each file is called `<loader>__<what it was>`."""
    finds = sorted(FINDS.glob("*__*"))
    assert finds, f"no files in {FINDS}"
    for path in finds:
        loader, _ = targets[path.name.split("__")[0].replace("_", " ")]
        assert not accepts(loader, path.read_bytes()), path.name
    counts("refused files", len(finds))


@pytest.mark.slow
def test_coverage_guided(counts, tmp_path):
    """Half a minute of atheris, in a process of its own."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    command = [sys.executable, str(HERE / "atheris_loaders.py"), "-max_total_time=30", "-seed=1"]
    options = {"cwd": tmp_path, "env": os.environ | {"TMPDIR": str(tmp_path)}, "text": True}
    done = subprocess.run(command, capture_output=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    inputs = int(re.search(r"Done (\d+) runs", done.stderr).group(1))
    assert inputs > 1000
    counts("fuzz cases", inputs)
