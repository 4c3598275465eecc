"""A training that is killed and resumed is the one that was not, to the bit."""

import os
import pathlib

import numpy as np
import pytest
from resumed import assert_same_bits, listed, run

from tfuq.callbacks import SGDR

# One worker has all, so that the trainings run once.
pytestmark = pytest.mark.xdist_group("resume")

SCRIPT = pathlib.Path(__file__).with_name("resume_process.py")
STEPS, EPOCHS = 4, 24
ENDS = (3, 9, 21, 45, 93)  # of cycles of 0.75 * 2^i epochs


@pytest.fixture(
    scope="module", params=[4, pytest.param(20, marks=pytest.mark.slow)], ids="{}-kills".format
)
def runs(request, tmp_path_factory):
    """What both trainings left, and how often one was killed."""
    folder = tmp_path_factory.mktemp("runs")
    run(SCRIPT, folder, request.param)
    return folder, request.param


def rates(folder):
    """`(step, rate)` of each step that was taken, in their order."""
    lines = (folder / "rates.txt").read_text().splitlines()
    return [(int(step), float.fromhex(rate)) for step, rate in map(str.split, lines)]


def test_rates(runs):
    """Every step has the rate of the curve, however often it was taken."""
    folder, _ = runs
    whole, killed = rates(folder / "whole"), rates(folder / "killed")
    schedule = SGDR(0.1, 0.001, cycle_length=0.75, cycle_mult=2, steps_per_epoch=STEPS)
    expected = schedule.learning_rate_at(np.arange(EPOCHS * STEPS)).astype("float32")
    assert whole == list(enumerate(expected.tolist(), 1))
    assert set(killed) == set(whole)


def test_last_weights(runs):
    """Weights, moments, the count of steps and the state of the dropout."""
    folder, _ = runs
    assert_same_bits(folder / "killed/last.weights.h5", folder / "whole/last.weights.h5")
    noise = [np.load(folder / name / "noise.npy") for name in ("killed", "whole")]
    np.testing.assert_array_equal(*noise)


def test_snapshots(runs):
    folder, _ = runs
    whole, killed = folder / "whole/snapshots", folder / "killed/snapshots"
    assert [int(name.split("_")[3].split(".")[0]) for name in listed(whole)] == list(ENDS)
    assert listed(killed) == listed(whole)[-3:]
    assert sorted(os.listdir(killed)) == sorted([*listed(killed), "snapshots.json"])
    for name in listed(killed):
        assert_same_bits(killed / name, whole / name)


def test_no_snapshot_is_half_written(runs):
    """Whatever has the name of a snapshot after a kill is whole, listed or not."""
    folder, kills = runs
    seen = 0
    for number in range(kills):
        left = folder / f"after_{number}"
        if (left / "snapshots.json").exists():
            assert set(listed(left)) <= set(os.listdir(left))
        for path in left.glob("cycle_*"):
            assert_same_bits(path, folder / "whole/snapshots" / path.name)
            seen += 1
    assert seen
