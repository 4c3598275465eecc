"""A training with everything at once, killed at random moments, is the one that was not."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest
from resumed import assert_same_bits, listed, run

from tfuq.callbacks import SGDR, BackupAndRestore, SaliencySelection
from tfuq.callbacks.kl_annealing import kl_beta
from tfuq.layers import SparseBayesDense

# One worker has all, so that the trainings run once.
pytestmark = pytest.mark.xdist_group("training_kills")

SCRIPT = pathlib.Path(__file__).with_name("training_kills_process.py")
STEPS, EPOCHS, ANNEALED = 4, 24, 12
ENDS = (3, 9, 21, 45, 93)  # of cycles of 0.75 * 2^i epochs


@pytest.fixture(
    scope="module", params=[4, pytest.param(50, marks=pytest.mark.slow)], ids="{}-kills".format
)
def runs(request, tmp_path_factory):
    """What both trainings left, and what each kill did."""
    folder = tmp_path_factory.mktemp("runs")
    run(SCRIPT, folder, request.param, seed=request.param)
    return folder, json.loads((folder / "kills.json").read_text())


def noted(folder):
    """`(step, rate, beta)` of each step that was taken, in their order."""
    lines = map(str.split, (folder / "rates.txt").read_text().splitlines())
    return [(int(step), float.fromhex(rate), float.fromhex(beta)) for step, rate, beta in lines]


def test_ends_with_the_same_weights(runs, counts):
    """Also moments, counters, indices of the random weights and the states of all noise."""
    folder, kills = runs
    with np.load(folder / "killed/last.npz") as found, np.load(folder / "whole/last.npz") as whole:
        assert found.files == whole.files
        for name in whole.files:
            assert found[name].dtype == whole[name].dtype, name
            assert found[name].tobytes() == whole[name].tobytes(), name
    counts("kills of a training", len(kills))


def test_every_step_has_its_rate_and_its_weight_of_the_kl(runs):
    folder, _ = runs
    whole, killed = noted(folder / "whole"), noted(folder / "killed")
    schedule = SGDR(0.1, 0.001, cycle_length=0.75, cycle_mult=2, steps_per_epoch=STEPS)
    steps = np.arange(EPOCHS * STEPS)
    rates = schedule.learning_rate_at(steps).astype("float32").tolist()
    betas = kl_beta(steps // STEPS, 0.0, 1.0, ANNEALED).astype("float32").tolist()
    assert whole == list(zip(range(1, len(steps) + 1), rates, betas, strict=True))
    assert set(killed) == set(whole)
    assert len(killed) > len(whole)  # so it was killed, and did again what was lost


def test_snapshots_are_the_same(runs):
    folder, _ = runs
    whole, killed = folder / "whole/snapshots", folder / "killed/snapshots"
    assert [int(name.split("_")[3].split(".")[0]) for name in listed(whole)] == list(ENDS)
    assert listed(killed) == listed(whole)[-3:]
    assert sorted(os.listdir(killed)) == sorted([*listed(killed), "snapshots.json"])
    for name in listed(killed):
        assert_same_bits(killed / name, whole / name)


def test_nothing_half_written_is_read(runs, counts):
    """What has its name is whole after every kill; what has none is thrown away.

    The process reads each backup against its checksums after the kill, and puts half a file where a
    kill in the middle of a write leaves one.
    """
    folder, kills = runs
    for number, kill in enumerate(kills):
        assert kill["epoch"] is None or 1 <= kill["epoch"] <= EPOCHS
        left = folder / f"after_{number}"
        if (left / "snapshots.json").exists():
            assert set(listed(left)) <= set(os.listdir(left))
        for path in left.glob("cycle_*"):
            assert_same_bits(path, folder / "whole/snapshots" / path.name)
    assert not list((folder / "killed").rglob(".unfinished-*"))
    assert not list((folder / "killed/backup").iterdir())
    counts("kills in the middle of a write", sum(bool(kill["half_written"]) for kill in kills))


# --- The selection in a backup ------------------------------------------------------------------

X, Y = np.random.default_rng(0).normal(size=(24, 4)), np.arange(24) % 3


def sparse(units=6):
    keras.utils.set_random_seed(0)
    rates = {"kl_weight": 1 / 24, "r_bayes": 0.3, "bias_r_bayes": 0.5}
    layers = [SparseBayesDense(units, **rates, seed=1), SparseBayesDense(3, **rates, seed=2)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=True)
    return model


def fit(model, folder, epochs=4):
    callbacks = [SaliencySelection(scope="global"), BackupAndRestore(folder)]
    model.fit(X, Y, 8, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0)
    return [np.asarray(v) for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.slow_cases("False")
@pytest.mark.slow_after(1)
@pytest.mark.parametrize("used", [False, True])
def test_a_selection_that_moved_the_shares_is_restored(tmp_path, used):
    """Into a new model, and into one whose optimizer has been built on other variables."""
    expected = fit(sparse(), tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        stopped(sparse(), tmp_path / "stopped")
    model = sparse()
    if used:
        model.fit(X, Y, 8, verbose=0)
    found = fit(model, tmp_path / "stopped")
    assert model.history.epoch == [3]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def stopped(model, folder):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise ZeroDivisionError

    callbacks = [SaliencySelection(scope="global"), BackupAndRestore(folder), Stop()]
    model.fit(X, Y, 8, epochs=4, shuffle=False, callbacks=callbacks, verbose=0)


@pytest.mark.slow
def test_the_selection_of_another_network_is_refused(tmp_path):
    with pytest.raises(ZeroDivisionError):
        stopped(sparse(60), tmp_path)
    model = sparse(2)
    before = [np.asarray(v) for v in model.variables]
    with pytest.raises(ValueError, match=r"`backup_dir` must hold.*random weights in .*too many"):
        fit(model, tmp_path)
    for one, other in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(one, other)
