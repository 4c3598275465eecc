"""Ensembles that other processes train: killed, they go on member by member; Ray trains them too.

As a script, `python test_ensembles_elsewhere.py FOLDER`, it trains, for a test that kills it.
"""

import concurrent.futures
import functools
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import numpy as np
import pytest

from tfuq.callbacks import BackupAndRestore
from tfuq.distribute import RayExecutor
from tfuq.ensembles import DeepEnsemble

MEMBERS, EPOCHS = 3, 4
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
HAS_RAY = importlib.util.find_spec("ray") is not None


def build():
    hidden = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.02), LOSS, jit_compile=False)
    return model


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 4)).astype("float32"), rng.integers(3, size=24)


class Notes(keras.callbacks.Callback):
    """Writes a line after each epoch; stops the member `stops` in its third one."""

    def __init__(self, path, pause, stops=False):
        super().__init__()
        self.path, self.pause, self.stops = path, pause, stops

    def on_epoch_begin(self, epoch, logs=None):
        if self.stops and epoch == 2:
            raise InterruptedError

    def on_epoch_end(self, epoch, logs=None):
        with open(self.path, "a") as file:
            file.write(f"{epoch}\n")
        time.sleep(self.pause)


def backups(folder, number, pause=0.0, stops=None):
    """What a user passes as `callbacks`: a folder for each member, whose backup stays."""
    folder = pathlib.Path(folder) / f"member_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    notes = Notes(folder / "epochs.txt", pause, number == stops)
    return [BackupAndRestore(folder / "backup", delete_checkpoint=False), notes]


def fit(callbacks, **how):
    ensemble = DeepEnsemble(build, MEMBERS, seed=3)
    x, y = data()
    histories = ensemble.fit(
        x, y, batch_size=8, epochs=EPOCHS, shuffle=False, callbacks=callbacks, verbose=0, **how
    )
    return ensemble, histories


def epochs_of(folder):
    paths = [folder / f"member_{number}" / "epochs.txt" for number in range(MEMBERS)]
    return [path.read_text().split() for path in paths]


def assert_same_members(found, expected, tolerance=0.0):
    for one, other in zip(found, expected, strict=True):
        for array, right in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(array, right, rtol=tolerance, atol=tolerance)


class Inline(concurrent.futures.Executor):
    """Runs in this process what others would run."""

    def submit(self, function, /, *args, **kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"executor": Inline()}])
def test_members_go_on_one_by_one(tmp_path, how):
    """The first has all its epochs, the second two; the last one begins, or is done as well."""
    expected, _ = fit(None)
    with pytest.raises(InterruptedError):
        fit(functools.partial(backups, tmp_path, stops=1), **how)
    ensemble, histories = fit(functools.partial(backups, tmp_path), **how)
    last = [0, 1, 2, 3] if not how else []  # `executor` had its task already
    assert [history.epoch for history in histories] == [[], [2, 3], last]
    assert epochs_of(tmp_path) == [["0", "1", "2", "3"]] * MEMBERS
    assert_same_members(ensemble, expected)


def lines(folder):
    return sum(path.read_text().count("\n") for path in folder.glob("member_*/epochs.txt"))


def killed(folder, wanted):
    """Starts this file as a script, and kills it with its workers after so many epochs."""
    started = subprocess.Popen([sys.executable, __file__, str(folder)], start_new_session=True)
    until = time.monotonic() + 240
    while lines(folder) < wanted and started.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    is_there = started.poll() is None
    if is_there:
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    return is_there and lines(folder) >= wanted


@pytest.mark.slow
def test_killed_processes_go_on(tmp_path, counts):
    kills = [killed(tmp_path, wanted) for wanted in (3, 8)]
    assert kills == [True, True]
    before = lines(tmp_path)
    ensemble, histories = fit(functools.partial(backups, tmp_path), workers=2)
    assert_same_members(ensemble, fit(None)[0], 1e-6)
    trained = sum(len(history.epoch) for history in histories)
    assert trained <= MEMBERS * EPOCHS - before + 4  # an epoch at most of each of two, twice
    counts("kills of an ensemble's training", len(kills))
    print(f"{len(kills)} kills of 3 processes; {before} epochs before, {trained} after them")


def test_ray_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    with pytest.raises(ImportError, match=r"tfuq\[ray\]"):
        RayExecutor()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason='needs Ray: pip install "tfuq[ray]"')
def test_ray_trains_the_same_members(tmp_path):
    import ray

    paths = os.pathsep.join([str(pathlib.Path(__file__).parent), *filter(None, sys.path)])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    try:
        with RayExecutor(num_cpus=1) as executor:
            callbacks = functools.partial(backups, tmp_path, stops=1)
            with pytest.raises(InterruptedError):
                fit(callbacks, executor=executor)
            ensemble, histories = fit(functools.partial(backups, tmp_path), executor=executor)
        with pytest.raises(RuntimeError, match="shut down"):
            executor.submit(len, [])
    finally:
        ray.shutdown()
    assert [history.epoch for history in histories] == [[], [2, 3], []]
    assert_same_members(ensemble, fit(None)[0], 1e-6)
    print("3 members trained by 2 workers of Ray, one of them stopped and resumed")


if __name__ == "__main__":
    fit(functools.partial(backups, sys.argv[1], pause=0.1), workers=2)
